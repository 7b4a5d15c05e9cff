"""From a plug-in's name to its class and back.

A plug-in is a frozen dataclass whose fields are its hyper-parameters. `name: hinge` looks it up in the table of its
kind; `name: package.module:Class` imports one that is not part of gantrain.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from gantrain.averaging import AVERAGER
from gantrain.batching import BATCH_POLICY
from gantrain.contracts import Contract
from gantrain.data import DATA_SET
from gantrain.errors import InvalidField, UserError, did_you_mean, one_line
from gantrain.losses import LOSS, PENALTY
from gantrain.metrics import EXTRACTOR, METRIC
from gantrain.models import ARCHITECTURE

CONTRACTS: dict[str, Contract[Any]] = {
    contract.kind: contract for contract in (AVERAGER, LOSS, PENALTY, ARCHITECTURE, DATA_SET, METRIC, EXTRACTOR, BATCH_POLICY)
}

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
    if ":" not in name:
        if name not in table:
            raise UserError(f"no {kind} {name!r}{did_you_mean(name, table)}")
        return table[name]
    found = imported(kind, name)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{kind} {name!r} must be a dataclass whose fields are its hyper-parameters")
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
        module = importlib.import_module(module_name)
        found = getattr(module, class_name, None)  # which imports more if the module has a `__getattr__` of its own
    except ImportError as error:
        raise UserError(f"{kind} {name!r}: cannot import {module_name!r} ({one_line(error)}); is it on PYTHONPATH?") from error
    except Exception as error:  # any error in the module's own code
        raise UserError(f"{kind} {name!r}: {module_name!r} fails on import ({type(error).__name__}: {one_line(error)})") from error
    if found is None:
        classes = [n for n, v in vars(module).items() if isinstance(v, type)]
        raise UserError(f"{kind} {name!r}: {module_name} has no {class_name!r}{did_you_mean(class_name, classes)}")
    return found


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
