"""How a command ends: its exit status, and who hears of it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import time
import types
from collections.abc import Callable
from typing import NoReturn

from gantrain import command_signals, plugin_errors, streams
from gantrain.errors import USER_ERROR, UserError
from gantrain.interruption import INTERRUPTED, Stopped, exit_status
from gantrain.launch_environment import process_rank
from gantrain.memory import explain_allocation

SECONDS_FOR_MAIN = 3  # the main process prints an error that all processes have; the launcher has killed the others by then
STATUSES = {OSError: USER_ERROR, KeyboardInterrupt: INTERRUPTED}


def call(arguments: argparse.Namespace, check: Callable[[argparse.Namespace], None] = lambda arguments: None) -> int:
    """Run the verb and return its exit status. The other processes of a group hear how it ends.

    Args:
        arguments: of the command line.
        check: called with them before anything else is imported.
    """
    from gantrain.home import settle_home  # --help does not need it

    plugin_errors.State.training = False
    if arguments.verb == "train":
        join_others()
    try:
        check(arguments)
        settle_home(note)  # before the imports, since libraries look for it
        verb = importlib.import_module(f"gantrain.commands.{arguments.verb}")  # a signal ends the process meanwhile
        with command_signals.Raising():
            status = verb.call(arguments) or 0
    except BaseException as error:
        memory = explain_allocation(error)
        failed = UserError(memory) if memory else plugin_errors.explain_failure(error) or unencodable(error)
        if group := _group():
            group.end(error, status_of(failed or error))
        if failed:
            raise failed from error
        if isinstance(error, SystemExit):
            plugin_errors.require_exit(error)
        raise
    if group := _group():
        group.end(None, status)
    return status


def join_others() -> None:
    """Let the other processes of a group hear of this one from here on: if it is killed while it imports torch, too.

    Raises:
        UserError: see `read_place` and `join`.
    """
    from gantrain.launch_environment import read_place
    from gantrain.other_processes import join

    join(read_place())


def unencodable(error: BaseException) -> UserError | None:
    """The error to raise instead of one about a file name that this locale cannot have; None if it is not about one."""
    if not isinstance(error, UnicodeEncodeError) or error.encoding != sys.getfilesystemencoding():
        return None
    name = error.object.encode("ascii", "backslashreplace").decode()
    return UserError(
        f"{name}: is not a file name in the encoding of this locale ({error.encoding}); set PYTHONUTF8=1, or choose another name"
    )


def note(line: str) -> None:
    """Say a line about the environment on standard error, once for all processes."""
    if process_rank() == 0:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"gantrain: note: {line}\n")


def complain(text: str) -> None:
    """Print one line on standard error. Other processes than the main one wait first, so they print only errors of their own."""
    rank = process_rank()
    if rank:
        time.sleep(SECONDS_FOR_MAIN)
    streams.print_safely(f"gantrain: error: {f'process {rank}: ' if rank else ''}{' '.join(text.split())}", sys.stderr)


def status_of(error: BaseException) -> int:
    """The exit status of a command that an exception ends."""
    if isinstance(error, Stopped):
        return exit_status(error.signal)
    if isinstance(error, UserError):
        return error.exit_status
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
