"""What sections and plug-ins a configuration can have, and which of its keys are marked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gantrain.config.config import Config
from gantrain.config.loading import key_of, leaves, to_dict
from gantrain.field_marks import MAY_CHANGE, MAY_DIFFER
from gantrain.type_words import takes_schedule


@dataclass(frozen=True)
class Section:
    """A dataclass of the configuration.

    Attributes:
        path: full key of the section, "" for the whole configuration; of a plug-in, where it is chosen, such as "averagers".
        cls: the dataclass.
        plugin: the name that chooses it; None if it is not a plug-in.
        marks: names of the marks that hold for all of it.
    """

    path: str
    cls: type
    plugin: str | None = None
    marks: frozenset[str] = frozenset()

    def fields(self) -> Iterator[tuple[str, dataclasses.Field, Any]]:
        """(full key, field, type) of everything that can be set."""
        hints = typing.get_type_hints(self.cls)
        for f in dataclasses.fields(self.cls):
            if f.init:
                yield f"{self.path}.{key_of(f)}" if self.path else key_of(f), f, hints[f.name]


def is_section(f: dataclasses.Field, hint: Any) -> bool:
    """Whether a field holds keys of its own."""
    return "table" in f.metadata or dataclasses.is_dataclass(hint)


def marks_of(f: dataclasses.Field) -> frozenset[str]:
    """Names of the marks on a field."""
    return frozenset(name for name in (*MAY_CHANGE, *MAY_DIFFER) if f.metadata.get(name))


def walk_sections(section: Section | None = None) -> Iterator[Section]:
    """All sections and all plug-ins of every table, parents first, in the order of the fields."""
    section = section or Section("", Config)
    yield section
    for key, f, hint in section.fields():
        marks = section.marks | marks_of(f)
        if section.plugin is None:  # plug-ins inside a plug-in are of its own kind
            for name, cls in f.metadata.get("table", f.metadata.get("chosen_from", {})).items():
                yield from walk_sections(Section(key, cls, name, marks))
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and "table" not in f.metadata:
            yield from walk_sections(Section(key, hint, None, marks))


@functools.cache
def find_marked(mark: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """(keys with a mark, sections with it as prefixes "eval.").

    A key that one plug-in marks is marked for all of that kind: one from outside, with a `root` of its own, is treated alike.
    """
    keys, prefixes = set(), []
    for section in walk_sections():
        for key, f, hint in section.fields():
            if f.metadata.get(mark) and is_section(f, hint):
                prefixes.append(f"{key}.")
            elif f.metadata.get(mark):
                keys.add(key)
                prefixes += [f"{key}."] if takes_schedule(hint) else []
    return frozenset(keys), tuple(prefixes)


def has_mark(key: str, mark: str) -> bool:
    """Whether a full key, or a section that it is in, has a mark."""
    keys, prefixes = find_marked(mark)
    return key in keys or key.startswith(prefixes)


def may_change(key: str) -> bool:
    """Whether a full key may change when a run is resumed."""
    return has_mark(key, "may_change")


def may_differ(key: str) -> bool:
    """Whether a full key may differ between runs that repeat each other."""
    return has_mark(key, "may_differ")


def group_name(config: Config) -> str:
    """A name that two runs share if they repeat each other, that is if they differ only in keys that `may_differ`, such as the seed.

    It is made of the network, the data and a digest of the configuration, such as "biggan-digits-5f0c1a2b".
    """
    values = to_dict(config)
    kept = sorted((key, repr(value)) for key, value in leaves(values) if not may_differ(key))
    digest = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:8]
    names = [str(values[section]["name"]).rpartition(":")[2][:40] for section in ("model", "data")]
    return "-".join([*names, digest])
