"""`gantrain config`: print the configuration that a run would use, or list all keys."""

from __future__ import annotations

import argparse
import shutil

from gantrain.errors import UserError
from gantrain.shipped import explain_choice

WIDEST = 100  # characters per line of a list of keys


def call(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: conflicting arguments, or an invalid configuration.
    """
    if arguments.keys is not None:
        print(list_keys(arguments), end="")
        return
    from gantrain.config import loading

    if arguments.markdown:
        raise UserError("--markdown: only works with --keys; write --keys --markdown")
    if arguments.config is None:
        raise UserError("config: CONFIG is missing; pass a YAML file, the name of a configuration that ships with gantrain, or --keys")
    text = loading.to_yaml(loading.load(arguments.config, arguments.overrides))
    choice = explain_choice(arguments.config)
    print(f"# {choice}\n{text}" if choice else text, end="")


def list_keys(arguments: argparse.Namespace) -> str:
    """List the keys of all sections, or of the given section."""
    if arguments.config is not None:
        raise UserError(f"--keys: lists keys and takes no CONFIG, got {arguments.config}; for a section write --keys SECTION")
    from gantrain.config import keys

    parts = keys.list_parts()
    if arguments.keys:
        parts = keys.select_parts(parts, arguments.keys)
    if arguments.markdown:
        return keys.as_markdown(parts)
    return keys.as_text(parts, min(WIDEST, max(40, shutil.get_terminal_size((WIDEST, 24)).columns)))
