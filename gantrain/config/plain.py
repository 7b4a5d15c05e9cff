"""Configurations as plain nested values, as YAML files have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from gantrain.config.plugins import name_of
from gantrain.schedule import Schedule


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values that `gantrain.config.loading.build` turns back into an equal configuration."""
    result: dict[str, Any] = {}
    for f in (one for one in dataclasses.fields(config) if one.init):  # others are computed from these
        result[key_of(f)] = plain_value(f, getattr(config, f.name))
    return result


def plain_value(f: dataclasses.Field, value: Any) -> Any:
    """The value of a field as plain nested values."""
    table: dict[str, type] | None = f.metadata.get("table")
    if table is not None and f.metadata.get("mapping"):
        return {name: {"name": name_of(table, one), **to_dict(one)} for name, one in value.items()}
    if table is not None:
        return {"name": name_of(table, value), **to_dict(value)}
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return written(value)


def written(value: Any) -> Any:
    """A value as files have it: a tuple is a list there, a schedule a mapping, and a member of an enumeration its name."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Schedule):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [written(one) for one in value]
    return {key: written(one) for key, one in value.items()} if type(value) is dict else value


def plain_default(f: dataclasses.Field) -> Any:
    """The default of a field as files have it; `dataclasses.MISSING` if it has none."""
    return plain_value(f, f.default if f.default_factory is dataclasses.MISSING else f.default_factory())


def key_of(f: dataclasses.Field) -> str:
    """The name of a field in files."""
    return f.metadata.get("key", f.name)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(full key, value) of everything that is not a section."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def sections_of(key: str) -> list[str]:
    """The sections that a full key is in, outermost first: "a", "a.b" of "a.b.c"."""
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


SCHEDULE_KEYS = tuple(map(key_of, dataclasses.fields(Schedule)))


def fold_schedules(flat: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Values by full key, with a schedule as one value where the other configuration has a number in its place."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        whole, _, part = key.rpartition(".")
        if part in SCHEDULE_KEYS and whole in other:
            found.setdefault(whole, {}).update({} if value is None else {part: value})
        else:
            found[key] = value
    return found
