"""From a plug-in's name to its class and back.

A plug-in is a frozen dataclass whose fields are its hyper-parameters. `name: hinge` looks it up in the table of its
kind; `name: package.module:Class` imports one that lives outside gantrain.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import Any

from gantrain.errors import UserError, did_you_mean, one_line

# What a class from outside must have to be of its kind.
CONTRACTS = {
    "averager": ["weight"],
    "loss": ["discriminator", "generator"],
    "penalty": ["penalty"],
    "architecture": ["build"],
    "data set": ["build"],
    "metric": ["compute"],
    "batch policy": ["propose"],
    "feature extractor": ["build"],
}


def find(kind: str, table: dict[str, type], name: str) -> type:
    """The class that `name` stands for.

    Raises:
        UserError: no such name in the table, or the module or class does not exist or is no dataclass.
    """
    if not isinstance(name, str):
        raise UserError(f"a {kind} is chosen by a name, got {name!r}")
    if ":" not in name:
        if name not in table:
            raise UserError(f"no {kind} {name!r}{did_you_mean(name, table)}")
        return table[name]
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` has it, so that a module beside the configuration is found
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{kind} {name!r}: cannot import {module_name!r} ({one_line(error)}); is it on PYTHONPATH?") from error
    except Exception as error:  # whatever the module's own code does wrong
        raise UserError(f"{kind} {name!r}: {module_name!r} fails on import ({type(error).__name__}: {one_line(error)})") from error
    found = getattr(module, class_name, None)
    if found is None:
        classes = [n for n, v in vars(module).items() if isinstance(v, type)]
        raise UserError(f"{kind} {name!r}: {module_name} has no {class_name!r}{did_you_mean(class_name, classes)}")
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{kind} {name!r} must be a dataclass whose fields are its hyper-parameters")
    lacking = [method for method in CONTRACTS.get(kind, ()) if not callable(getattr(found, method, None))]
    if lacking and not (kind == "averager" and hasattr(found, "update")):
        raise UserError(f"{kind} {name!r} has no method {lacking[0]!r}, which every {kind} has")
    return found


def name_of(table: dict[str, type], plugin: Any) -> str:
    """The name under which `find` gives the class of `plugin` back."""
    for name, cls in table.items():
        if type(plugin) is cls:
            return name
    return f"{type(plugin).__module__}:{type(plugin).__qualname__}"
