"""Changed keys of a configuration in words: what was added or removed whole is one item. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "absent"  # what `differing_keys` gives for a key that one of the configurations does not have
MOST = 8  # items that one message names

Pair = Sequence[Any]  # the old value and the new one


def say_changes(changed: Mapping[str, Pair]) -> str:
    """Changes as the record of a fork tells them, such as "optim.lr_g 0.0004 -> 0.001; averagers.swa removed"; at most eight."""
    return bounded([say_change(key, *pair) for key, pair in whole_entries(changed).items()], "; ")


def say_change(key: str, old: Any, new: Any) -> str:
    """One change."""
    if old == ABSENT:
        return f"{key} added: {spelled(new)}"
    return f"{key} removed" if new == ABSENT else f"{key} {spelled(old)} -> {spelled(new)}"


def bounded(items: Sequence[str], between: str) -> str:
    """The first items, and how many there are besides."""
    more = f" and {len(items) - MOST} more" if len(items) > MOST else ""
    return between.join(items[:MOST]) + more


def whole_entries(changed: Mapping[str, Pair]) -> dict[str, Pair]:
    """The same changes, with one item for all keys of an entry that is new, gone or of another kind.

    An entry is a section whose `name` chooses what it is, such as `averagers.late`. If the name stays and only values differ, each key
    remains an item of its own.
    """
    entries = {key.removesuffix(".name"): pair for key, pair in changed.items() if key.endswith(".name") and goes_with_keys(key, changed)}
    found: dict[str, Pair] = {}
    for key, pair in changed.items():
        entry = next((one for one in entries if key.startswith(f"{one}.")), None)
        if {} in pair and ABSENT in pair:  # a mapping that had no entries, or has none left: its entries say so
            continue
        if entry is None or (ABSENT not in pair and key != f"{entry}.name"):
            found[key] = pair
        elif key == f"{entry}.name":
            old, new = (with_settings(entry, changed, side) for side in (0, 1))
            found[entry if ABSENT in pair else key] = (pair[0] if ABSENT not in pair else old, new)
    return found


def goes_with_keys(key: str, changed: Mapping[str, Pair]) -> bool:
    """Whether a changed `name` has added or removed other keys of its section, or the section itself: not the name of a W&B run."""
    section = key.removesuffix("name")
    return ABSENT in changed[key] or any(ABSENT in pair for one, pair in changed.items() if one.startswith(section))


def with_settings(entry: str, changed: Mapping[str, Pair], side: int) -> Any:
    """What an entry is on one side (0 is old, 1 is new), with the settings that the other side lacks; those that are off are left out."""
    name = changed[f"{entry}.name"][side]
    settings = {
        key.removeprefix(f"{entry}."): pair[side]
        for key, pair in changed.items()
        if key.startswith(f"{entry}.") and key != f"{entry}.name" and pair[1 - side] == ABSENT
    }
    return name if name == ABSENT else name_and_settings(name, settings)


def name_and_settings(name: str, settings: Mapping[str, Any]) -> str:
    """A plug-in in words, such as "ema with networks g, half_life_kimg 10"; settings that are off are left out."""
    told = ", ".join(f"{key} {spelled(value)}" for key, value in settings.items() if value is not None and value is not False)
    return f"{name} with {told}" if told else str(name)


def spelled(value: Any) -> str:
    """A value as a configuration spells it, without quotes."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
