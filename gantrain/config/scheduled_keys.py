"""Which keys of a configuration are schedules, and what should be said about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gantrain.config.config import Config
from gantrain.config.plain import key_of
from gantrain.schedule import Schedule

RATES = ("optim.lr_g", "optim.lr_d")  # training lines have the rates themselves, with all their factors, as lr/g and lr/d
PREFIX = "schedule/"  # of the others in training lines


def find_schedules(config: Config) -> dict[str, Schedule]:
    """Full key -> schedule, in the order of the configuration."""
    return dict(walk(config, ""))


def walk(value: Any, path: str) -> Iterator[tuple[str, Schedule]]:
    """(full key, schedule) of all schedules in a value of a configuration."""
    if isinstance(value, Schedule):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            if f.init:
                yield from walk(getattr(value, f.name), f"{path}.{key_of(f)}" if path else key_of(f))
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from walk(one, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            yield from walk(one, f"{path}[{i}]")


def values_of(schedules: Mapping[str, Schedule], nimg: int, told: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of schedules for a training line, by names such as `schedule/optim.betas[1]`.

    Args:
        schedules: by full key.
        nimg: images seen before the update.
        told: the line so far. A number that it has by the same name, such as `augment/p`, is not told twice.
    """
    others = {key: one for key, one in schedules.items() if key not in RATES and key.replace(".", "/") not in told}
    return {f"{PREFIX}{key}": one.at(nimg) for key, one in others.items()}


def schedule_notes(config: Config) -> list[str]:
    """Notes about schedules whose end the run does not reach, or that stop the training before it."""
    total, found = config.total_kimg, []
    for key, one in find_schedules(config).items():
        if one.warmup_kimg > total:
            found.append(f"{key}.warmup_kimg={one.warmup_kimg:g} is after total_kimg={total:g}: the warm-up will not end")
        if one.until_kimg is None or one.from_ == one.to:
            continue
        if one.start_kimg >= total:
            found.append(f"{key}.start_kimg={one.start_kimg:g} is not before total_kimg={total:g}: it will stay at {one.from_:g}")
        elif one.until_kimg > total:
            last = one.at(round(total * 1000))
            found.append(f"{key}.until_kimg={one.until_kimg:g} is after total_kimg={total:g}: it will only reach {last:.4g}")
        elif key in RATES and one.to == 0 and one.until_kimg < total:
            found.append(f"{key} is 0 from {one.until_kimg:g} kimg on, before total_kimg={total:g}: its player then stands still")
    return found
