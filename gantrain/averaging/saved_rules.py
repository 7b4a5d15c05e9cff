"""The rules in a saved bank: the past of one rule must not continue under another without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gantrain.averaging.average import Average
from gantrain.averaging.rule import Averager
from gantrain.errors import UserError
from gantrain.schedule import Schedule

FREE = {"networks", "offload", "update_every_kimg", "snapshot_every_kimg"}  # where an average is, and when it looks: not what it is
PLAIN = (bool, int, float, str, type(None))


def describe_rule(averager: Averager) -> dict[str, Any]:
    """The class of a rule and its hyper-parameters, as JSON values; of a rule that is not a dataclass, the class alone."""
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(averager) if dataclasses.is_dataclass(averager) else ()
    values: dict[str, Any] = {f.name: getattr(averager, f.name) for f in fields if f.init and f.name not in FREE}
    return {"name": type(averager).__name__, **plain_settings(values)}


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that are JSON values, and schedules as such."""
    kept = {key: one for key, one in values.items() if key != "name" and isinstance(one, (*PLAIN, Schedule))}
    return {key: dataclasses.asdict(one) if isinstance(one, Schedule) else one for key, one in kept.items()}


def describe_rules(averages: Mapping[str, Average]) -> dict[str, dict[str, Any]]:
    """The rules of averages by name, for saving."""
    return {name: describe_rule(average.averager) for name, average in averages.items()}


def require_same_rules(saved: Mapping[str, Mapping[str, Any]], averages: Mapping[str, Average]) -> None:
    """Refuse averages that were saved by another rule, or with other hyper-parameters.

    Args:
        saved: what `describe_rule` gave, by average; an average that is not there is not compared.
        averages: those that would continue.

    Raises:
        UserError: names the average and both rules.
    """
    for name, here in describe_rules(averages).items():
        if name not in saved:
            continue
        there = saved[name]
        if there["name"] != here["name"]:
            both = f"by {there['name']}, and is {here['name']} here"
        else:  # a field that only one version of gantrain has is not compared
            different = [key for key in here if key in there and repr(there[key]) != repr(here[key]) and there[key] != here[key]]
            if not different:
                continue
            both = f"by {write_call(there, different)}, and is {write_call(here, different)} here"
        raise UserError(f"average {name!r} was saved {both}; make the bank with the saved rule, or begin the average anew in another bank")


def write_call(rule: Mapping[str, Any], keys: list[str]) -> str:
    """A rule as it is written in Python, with some of its hyper-parameters."""
    return f"{rule['name']}({', '.join(f'{key}={rule[key]!r}' for key in keys)})"
