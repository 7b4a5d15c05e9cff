"""From a plug-in's name to its class and back.

A plug-in is a frozen dataclass whose fields are its hyper-parameters. `name: hinge` looks it up in the table of its
kind; `name: package.module:Class` imports one that is not part of gantrain.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

from gantrain.augment import AUGMENTATION
from gantrain.averaging import AVERAGER
from gantrain.batching import BATCH_POLICY
from gantrain.contracts import Contract
from gantrain.data import DATA_SET
from gantrain.errors import InvalidField, UserError, did_you_mean, one_line
from gantrain.interruption import Stopped
from gantrain.losses import LOSS, PENALTY
from gantrain.metrics import EXTRACTOR, METRIC
from gantrain.models import ARCHITECTURE
from gantrain.optimizers import OPTIMIZER
from gantrain.plugin_errors import describe, describe_value, file_of, import_place, in_words, remember, show
from gantrain.regular_file import check_regular
from gantrain.type_words import describe_type

CONTRACTS: dict[str, Contract[Any]] = {
    contract.kind: contract
    for contract in (
        AVERAGER,
        LOSS,
        PENALTY,
        AUGMENTATION,
        ARCHITECTURE,
        DATA_SET,
        METRIC,
        EXTRACTOR,
        BATCH_POLICY,
        OPTIMIZER,
    )
}

MOST_SOURCE = 2**24  # bytes of a Python file
T = TypeVar("T")


def find(kind: str, table: Mapping[str, type[T]], name: str) -> type[T]:
    """The class of this name. A class from outside gets all defaults of the contract of its kind.

    Args:
        kind: one of `CONTRACTS`.
        table: gantrain's own classes by name.
        name: one of these, or `package.module:Class`.

    Raises:
        UserError: no such name in the table; no such module or class; the class is not a dataclass, or a part of the contract is
            missing or has the wrong type.
    """
    if not isinstance(name, str):
        raise UserError(f"{kind}: must be chosen by a name, got {name!r}")
    if not re.fullmatch(r"[^:.\s]+(\.[^:.\s]+)*:[^:.\s]+", name):  # whatever Python can import: `my-losses.py` is a module too
        if ":" in name:
            raise UserError(f"{kind} {name!r}: must be written package.module:Class")
        if name not in table:
            raise UserError(f"no {kind} {name!r}{did_you_mean(name, table)}")
        return table[name]
    found = imported(kind, name)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{kind} {name!r} must be a dataclass whose fields are its hyper-parameters")
    remember(f"{kind} {name!r}", found, file_of(found), getattr(sys.modules.get(name.partition(":")[0]), "__file__", None))
    require_fields(found, f"{kind} {name!r}")
    if kind == METRIC.kind:
        unset = [f.name for f in dataclasses.fields(found) if f.init and f.default is f.default_factory is dataclasses.MISSING]
        if unset:
            raise UserError(f"{kind} {name!r}: field {unset[0]!r} must have a default, since a metric is chosen by its name alone")
    return CONTRACTS[kind].adapt_class(found, name)


def imported(kind: str, name: str) -> Any:
    """Import what `package.module:Class` names.

    Raises:
        UserError: the module does not import, or has nothing of that name.
    """
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` does, so that modules in the working directory are found
        sys.path.append(os.getcwd())
    try:
        require_source(module_name.partition(".")[0])
        module = importlib.import_module(module_name)
        found = getattr(module, class_name, None)  # which imports more if the module has a `__getattr__` of its own
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:  # any error in the module's own code, and `sys.exit`
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{kind} {name!r}: cannot import {module_name!r} ({one_line(error)}); is it on PYTHONPATH?") from error
        show(error)
        where = import_place(error, file_of_module(module_name))
        raise UserError(f"{kind} {name!r}: {module_name!r} fails on import{where} ({describe(error)})") from error
    if found is None:
        classes = [n for n, v in vars(module).items() if isinstance(v, type)]
        raise UserError(f"{kind} {name!r}: {module_name} has no {class_name!r}{did_you_mean(class_name, classes)}")
    return found


def require_source(name: str) -> None:
    """Look at the file of a module before Python reads all of it.

    Raises:
        OSError: it is not a regular file, or is larger than any program.
    """
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            check_regular(spec.origin, MOST_SOURCE)


def file_of_module(name: str) -> str | None:
    """The file of a module that may have failed on import; None if it is not found."""
    with suppress(Exception):
        found = importlib.util.find_spec(name)
        return found.origin if found else None
    return None


def require_fields(cls: type, who: str) -> None:
    """Refuse a class with a field that no configuration can set.

    Args:
        cls: a dataclass.
        who: its name in messages.

    Raises:
        UserError: names the field, its type and its line.
    """
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:  # an annotation that is no name in the module, say
        found = re.search(r"name '(\w+)' is not defined", str(error))
        raise UserError(
            f"{who}: the types of its fields cannot be read ({describe(error)}){line_of(cls, found[1] if found else '')}"
        ) from error
    for f in dataclasses.fields(cls):
        if f.init and not is_settable(hints[f.name]):
            raise UserError(
                f"{who}: field {f.name!r} has the type {describe_type(hints[f.name])}, which a configuration cannot have; use int, float,"
                f" bool, str, Literal, or a list, tuple or dict of these{line_of(cls, f.name)}"
            )


def is_settable(hint: Any) -> bool:
    """Whether a field of this type can be set in a configuration, and written back there."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is typing.Literal:
        return True
    if origin in (typing.Union, types.UnionType):
        return all(is_settable(one) for one in arguments)
    if hint in (int, float, bool, str, type(None), dict, list, tuple, Ellipsis):
        return True
    if origin is dict:
        return arguments[0] is str and is_settable(arguments[1])
    if origin in (list, tuple, Sequence):
        return all(is_settable(one) for one in arguments)
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, Enum))


def line_of(cls: type, word: str) -> str:
    """Where a class has an annotation with a word, for the end of a message; the class itself if it is not found, "" without a source."""
    try:
        lines, first = inspect.getsourcelines(cls)
    except (OSError, TypeError):
        return ""
    at = next((i for i, line in enumerate(lines) if word and ":" in line and re.search(rf"\b{re.escape(word)}\b", line)), 0)
    return f" ({in_words((inspect.getfile(cls), first + at, '<>'))})"


def require_values(plugin: Any, kind: str, name: str) -> None:
    """Refuse a plug-in from outside with a value that the configuration in a run folder cannot hold.

    Raises:
        UserError: names the field and the value.
    """
    for f in dataclasses.fields(plugin):
        value = getattr(plugin, f.name, None)
        if f.init and not is_plain(value):
            raise UserError(
                f"{kind} {name!r}: field {f.name!r} has the value {describe_value(value)}, which a configuration cannot have; use numbers,"
                f" strings, lists and dicts{line_of(type(plugin), f.name)}"
            )


def is_plain(value: Any) -> bool:
    """Whether a value is written into a YAML file as what it is."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and is_plain(one) for key, one in value.items())
    return (
        value is None
        or type(value) in (bool, int, float, str)
        or isinstance(value, Enum)
        or (dataclasses.is_dataclass(value) and not isinstance(value, type))
    )


def adapt_plugins(section: Any) -> None:
    """Adapt the plug-ins of a frozen section to the contracts of their kinds.

    Raises:
        InvalidField: a part of one has the wrong type; names the key.
        UserError: a required part is missing.
    """

    def adapted(contract: Contract[Any], one: Any, key: str) -> Any:
        try:
            return contract.adapt(one)
        except InvalidField as error:
            raise InvalidField(f"{key}.{error.field}", error.value, error.remedy) from None
        except UserError as error:
            raise UserError(f"{key}: {error}") from error

    for f in dataclasses.fields(section):
        if "table" not in f.metadata:
            continue
        contract, value = CONTRACTS[f.metadata["kind"]], getattr(section, f.name)
        if f.metadata.get("mapping"):
            value = {name: adapted(contract, one, f"{f.name}.{name}") for name, one in value.items()}
        else:
            value = adapted(contract, value, f.name)
        object.__setattr__(section, f.name, value)


def name_of(table: Mapping[str, type], plugin: Any) -> str:
    """The name by which `find` returns the class of `plugin`."""
    for name, cls in table.items():
        if type(plugin) is cls:
            return name
    return f"{type(plugin).__module__}:{type(plugin).__qualname__}"
