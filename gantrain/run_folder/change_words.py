"""Changed keys of a configuration in words: what was added or removed whole is one item. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gantrain.errors import shown

ABSENT = "absent"  # what `differing_keys` gives for a key that one of the configurations does not have
PLAIN = re.compile(r"[A-Za-z_/~][\w./:~-]*")  # a string without quotes
MOST = 8  # items that one message names

Pair = Sequence[Any]  # the old value and the new one


def say_changes(changed: Mapping[str, Pair]) -> str:
    """Changes as the record of a fork tells them, such as "optim.lr_g 0.0004 -> 0.001; averagers.swa removed"; at most eight."""
    return bounded([say_change(key, *pair) for key, pair in whole_entries(changed, settings=True).items()], "; ")


def say_change(key: str, old: str, new: str) -> str:
    """One change."""
    if old == ABSENT:
        return f"{key} added: {new}"
    return f"{key} removed" if new == ABSENT else f"{key} {old} -> {new}"


def bounded(items: Sequence[str], between: str) -> str:
    """The first items, and how many there are besides."""
    more = f" and {len(items) - MOST} more" if len(items) > MOST else ""
    return between.join(items[:MOST]) + more


def whole_entries(changed: Mapping[str, Pair], settings: bool = False) -> dict[str, tuple[str, str]]:
    """The same changes as YAML spells them, with one item for all keys of an entry that is new, gone or of another kind.

    An entry is a section whose `name` chooses what it is, such as `averagers.late`. If the name stays and only values differ, each key
    remains an item of its own.

    Args:
        settings: whether the entry is told with the settings that the other side lacks.
    """
    entries = [key.removesuffix(".name") for key in changed if key.endswith(".name")]
    found = {}
    for key, pair in changed.items():
        entry = next((one for one in entries if key == one or key.startswith(f"{one}.")), None)
        if entry is None and not ({} in pair and ABSENT in pair):  # a mapping without entries, before or now: its entries say so
            found[key] = (spell(pair[0]), spell(pair[1]))
        elif entry is not None and key == f"{entry}.name":
            old, new = (with_settings(entry, changed, side) if settings else spell(pair[side]) for side in (0, 1))
            if ABSENT in pair:
                before, now = map(spell, changed.get(entry, (ABSENT, ABSENT)))  # null, of a plug-in that need not be there
                found[entry] = (before if old == ABSENT else old, now if new == ABSENT else new)
            else:
                found[key] = (spell(pair[0]), new)
        elif entry is not None and ABSENT not in pair:
            found[key] = (spell(pair[0]), spell(pair[1]))
    return found


def with_settings(entry: str, changed: Mapping[str, Pair], side: int) -> str:
    """What an entry is on one side (0 is old, 1 is new), with the settings that the other side lacks; those that are off are left out."""
    name = changed[f"{entry}.name"][side]
    settings = {
        key.removeprefix(f"{entry}."): pair[side]
        for key, pair in changed.items()
        if key.startswith(f"{entry}.") and key != f"{entry}.name" and pair[1 - side] == ABSENT
    }
    return name_and_settings(name, settings if name != ABSENT else {})


def name_and_settings(name: str | None, settings: Mapping[str, Any]) -> str:
    """A plug-in in words, such as "ema with networks g, half_life_kimg 10"; settings that are off are left out."""
    told = ", ".join(f"{key} {spell(value)}" for key, value in settings.items() if value is not None and value is not False)
    return f"{spell(name)} with {told}" if told else spell(name)


def spell(value: Any) -> str:
    """A value as YAML spells it, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {spell(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(spell, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    plain = isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "yes", "no", "on", "off")
    return str(value) if plain else shown(value)
