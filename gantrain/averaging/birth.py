"""Averages that are added to a run that exists: they begin with the weights as they are then."""

from __future__ import annotations

import dataclasses
from typing import Any

from gantrain.averaging.bank import AverageBank
from gantrain.averaging.rule import AVERAGER, Averager


def has_start(averager: Averager) -> bool:
    """Whether a rule has a field `start_kimg` that says when the average begins.

    False for a rule that replaces the live weights: its start is the origin of its intervals.
    """
    field = getattr(type(averager), "__dataclass_fields__", {}).get("start_kimg")
    return field is not None and field.init and not averager.writes_back


def starting_at(averager: Averager, nimg: int) -> Averager:
    """The same rule with its start at `nimg` images; only for rules with `has_start`."""
    rule: Any = averager
    return AVERAGER.adapt(dataclasses.replace(rule, start_kimg=nimg / 1000))


def since_birth(averager: Averager, nimg: int) -> Averager:
    """The rule of an average that was created at `nimg` images: its start is not before that moment.

    A rule that counts from its `start_kimg`, such as BEMA, would otherwise count images that the average has not seen. A rule that
    replaces the live weights is returned as it is: it starts over at swaps, and its own start stays the origin of its intervals.

    Args:
        averager: the rule as configured.
        nimg: images seen when the average was created.
    """
    if not has_start(averager) or nimg <= round(averager.start_kimg * 1000):
        return averager
    return starting_at(averager, nimg)


def begin(bank: AverageBank, name: str, nimg: int) -> AverageBank:
    """A bank with this one average of `bank`, which begins at `nimg` images with the current live weights."""
    return AverageBank(bank.network, {name: since_birth(bank[name].averager, nimg)}, nimg)
