"""How a command ends: its exit status, and who hears of it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import types
from typing import NoReturn

from gantrain import command_signals
from gantrain.errors import GaveUp, UserError
from gantrain.interruption import INTERRUPTED, Stopped, exit_status
from gantrain.launch_environment import process_rank
from gantrain.memory import explain_allocation

USER_ERROR = 2
GAVE_UP = 3
STATUSES = {GaveUp: GAVE_UP, UserError: USER_ERROR, BrokenPipeError: 0, OSError: USER_ERROR, KeyboardInterrupt: INTERRUPTED}


def call(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit status. The other processes of a group hear how it ends."""
    from gantrain.home import settle_home  # --help does not need it

    settle_home(note)  # before the imports, since libraries look for it
    verb = importlib.import_module(f"gantrain.commands.{arguments.verb}")  # a signal ends the process meanwhile
    try:
        with command_signals.Raising():
            status = verb.call(arguments) or 0
    except BaseException as error:
        memory = explain_allocation(error)
        if group := _group():
            group.end(error, USER_ERROR if memory else status_of(error))
        if memory:
            raise UserError(memory) from error
        raise
    if group := _group():
        group.end(None, status)
    return status


def note(line: str) -> None:
    """Say a line about the environment on standard error, once for all processes."""
    if process_rank() == 0:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"gantrain: note: {line}\n")


def status_of(error: BaseException) -> int:
    """The exit status of a command that an exception ends."""
    if isinstance(error, Stopped):
        return exit_status(error.signal)
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 1)


def leave(status: int) -> NoReturn:
    """Exit, without the exit handlers of libraries that would wait for what has gone. Output is flushed already."""
    command_signals.State.ended_with = status
    hung = getattr(sys.modules.get("gantrain.reporting.view_thread"), "HUNG", None)  # W&B's would hang as well
    group = _group()
    if hung or (status and group and group.current()):  # torch's would wait for another process
        os._exit(status)
    sys.exit(status)


def _group() -> types.ModuleType | None:
    """`other_processes` if a command has imported it: it is not needed for --help."""
    return sys.modules.get("gantrain.other_processes")
