"""Types in words, for messages and for the list of keys."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gantrain.schedule import Schedule

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", type(None): "null", Any: "a value",
         Schedule: "a schedule"}  # fmt: skip
PLURALS = {int: "whole numbers", float: "numbers", str: "strings"}


def takes_schedule(hint: Any) -> bool:
    """Whether a type allows a schedule, or lists with one."""
    return hint is Schedule or any(takes_schedule(one) for one in typing.get_args(hint) if typing.get_origin(hint) is not Literal)


def without_schedule(hint: Any) -> Any:
    """A type without the schedules that it allows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(without_schedule(one) for one in args if one is not Schedule)]  # noqa: UP007 - of a tuple
    return tuple[tuple(map(without_schedule, args))] if origin is tuple else hint  # type: ignore[misc] # a type made at run time


def describe_type(hint: Any) -> str:
    """A type in words, such as "a whole number or null"; null always comes last."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(one) for one in sorted(args, key=lambda one: one is type(None)))
    if origin is tuple and args[-1] is not ...:
        return f"a list of {len(args)} {PLURALS.get(args[0], 'values')}"
    if origin in (tuple, Sequence):
        return f"a list of {PLURALS.get(args[0], 'values')}"
    if Mapping in (hint, origin):
        return "a mapping"
    return WORDS.get(hint, str(hint))
