"""How a command ends: its exit status, and who hears of it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import time
import types
from typing import NoReturn

from gantrain import command_signals, plugin_errors, streams
from gantrain.errors import USER_ERROR, UserError
from gantrain.interruption import INTERRUPTED, PREEMPTED, Stopped, exit_status
from gantrain.launch_environment import is_launched, process_rank
from gantrain.memory import explain_allocation

SECONDS_FOR_MAIN = 3  # the main process prints an error that all processes have; the launcher has killed the others by then
SECONDS_FOR_OTHERS = 2  # further ones, so that a process with an error of its own has printed it
STATUSES = {OSError: USER_ERROR, KeyboardInterrupt: INTERRUPTED}


def call(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit status. The other processes of a group hear how it ends."""
    from gantrain.commands.arguments import refuse_missing  # --help does not need them
    from gantrain.home import settle_home

    plugin_errors.State.training = False
    if arguments.verb == "train":
        join_others()
    try:
        refuse_missing(arguments)
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


def forget_interrupt() -> None:
    """Let Python exit with a status after a KeyboardInterrupt that was caught.

    One that passes through code from a string, such as that of a dataclass which is being defined, leaves a mark in CPython, at which
    the process later kills itself by SIGINT whatever its status. Running such code again removes the mark.
    """
    exec("")


def note(line: str) -> None:
    """Say a line about the environment on standard error, once for all processes."""
    if process_rank() == 0:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"gantrain: note: {line}\n")


def complain(text: str, status: int = USER_ERROR, of_another: bool = False) -> None:
    """Print one line on standard error. Other processes than the main one wait first, so they print only errors of their own.

    A launcher kills all processes when the first exits. One that only knows of the failure of another exits after that one has
    printed its message.

    Args:
        text: of the line.
        status: with which the command is about to exit. A signal that comes while it waits ends it with this, and without a word.
        of_another: the line only says that another process has failed.
    """
    rank = process_rank()
    longer = SECONDS_FOR_OTHERS if of_another and is_launched() else 0
    if rank:
        wait(SECONDS_FOR_MAIN + longer, status)
    streams.print_safely(f"gantrain: error: {f'process {rank}: ' if rank else ''}{' '.join(text.split())}", sys.stderr)
    if longer and not rank:
        wait(SECONDS_FOR_MAIN + longer, status)


def wait(seconds: float, status: int) -> None:
    """Let other processes speak first. A signal ends the process with this exit status: what it has to say has been said."""
    command_signals.State.ended_with = status
    time.sleep(seconds)


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
    grouped = group and (group.current() or (is_launched() and status not in (INTERRUPTED, PREEMPTED)))  # after these, all leave together
    if hung or (status and grouped):  # torch's would wait for another process, which waits in `complain`
        os._exit(status)
    sys.exit(status)


def _group() -> types.ModuleType | None:
    """`other_processes` if a command has imported it: it is not needed for --help."""
    return sys.modules.get("gantrain.other_processes")
