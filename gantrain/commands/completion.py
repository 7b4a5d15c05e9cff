"""`gantrain completion`: print a script that lets a shell complete gantrain's commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from gantrain.errors import UserError
from gantrain.shipped import list_shipped

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
# What an argument takes, by the first word of its metavar. Others, such as numbers, are not completed.
TAKES = {"RUN": FOLDERS, "FOLDER": FOLDERS, "PATH": FILES, "TARGET": FILES, "SOURCE": FILES, "FILE": FILES}


def call(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("completion: needs shtab, which is not installed; pip install shtab") from None
    names = " ".join(list_shipped())
    takes = {
        **TAKES,
        "NAME of shipped": {"bash": "_gantrain_shipped", "zsh": f"({names})"},
        "CONFIG": {"bash": "_gantrain_shipped_or_file", "zsh": f"{{compadd {names}; _files}}"},
    }
    for action in actions_of(arguments.parser):
        if completer := takes.get(kind_of(action)):
            action.complete = completer  # type: ignore[attr-defined]  # where shtab looks for it
    functions = [
        f'_gantrain_shipped() {{ compgen -W "{names}" -- "$1"; }}',
        '_gantrain_shipped_or_file() { _gantrain_shipped "$1"; compgen -f -- "$1"; }',
    ]
    print(shtab.complete(arguments.parser, arguments.shell, preamble="\n".join(functions) if arguments.shell == "bash" else ""))


def kind_of(action: argparse.Action) -> str:
    """What an argument takes, as a key of `TAKES`."""
    if action.dest == "shipped":
        return "NAME of shipped"
    if action.dest == "out":
        return "FILE"
    return str(action.metavar or "").partition(".")[0]


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from actions_of(verb)
