"""`gantrain config`: print the configuration that a run would use, or list all keys."""

from __future__ import annotations

import argparse
import shutil

from gantrain.errors import UserError

WIDEST = 100  # columns of a list of keys


def call(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: arguments that do not fit together, or a mistake in the configuration.
    """
    if arguments.keys is not None:
        print(list_keys(arguments), end="")
        return
    from gantrain.config import loading

    if arguments.markdown:
        raise UserError("--markdown: is a form of the list of keys; write --keys --markdown")
    if arguments.config is None:
        raise UserError("config: CONFIG is missing; pass a YAML file, or --keys for a list of all keys")
    print(loading.to_yaml(loading.load(arguments.config, arguments.overrides)), end="")


def list_keys(arguments: argparse.Namespace) -> str:
    """The keys of all sections, or of the section that was asked for."""
    if arguments.config is not None:
        raise UserError(f"--keys: lists the keys of every configuration and takes one SECTION; leave {arguments.config} out")
    from gantrain.config import keys

    parts = keys.list_parts()
    if arguments.keys:
        parts = keys.select_parts(parts, arguments.keys)
    if arguments.markdown:
        return keys.as_markdown(parts)
    return keys.as_text(parts, min(WIDEST, max(40, shutil.get_terminal_size((WIDEST, 24)).columns)))
