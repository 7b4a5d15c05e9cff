"""Signals that come while no command listens to them: during the first imports, and at the exit.

A KeyboardInterrupt there would end in a traceback, and inside the import of a compiled library in an abort. Nothing is open then that
could be lost, so the process says what happened and ends at once. This file is imported before anything else, and imports little.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # set by torchrun and `accelerate launch`, which host the store of the group themselves
# Signals that ask a command to stop, those that the system has: terminals that close send SIGHUP, limits on CPU time SIGXCPU, and
# schedulers any of the others. Windows has few of them.
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(signal.Signals[name] for name in NAMES if name in signal.Signals.__members__)


class State:
    """What the handler knows.

    Attributes:
        owner: number of the process that is a `gantrain` command; 0 where gantrain is used as a library.
        ended_with: exit status of the command once it has ended; None before.
        explained: the command has said that it stops and how to go on, so another Ctrl-C has nothing to add.
    """

    owner = 0
    ended_with: int | None = None
    explained = False


def listen() -> None:
    """End the process at a signal, from now on. Signals that the process was started to ignore, as by nohup, stay ignored."""
    State.owner, State.ended_with, State.explained = os.getpid(), None, False
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            try:
                signal.signal(number, _end)
            except ValueError:  # not in the main thread, where no signals arrive
                return


def owns_process() -> bool:
    """Whether this process is a `gantrain` command, and not a script that uses gantrain or a worker."""
    return os.getpid() == State.owner


def is_told_by_main() -> bool:
    """Whether this is not the main process of a launcher, which stops all processes together: the main one says why, or one that failed.

    Reads the environment itself, since a signal may come before anything is imported that does.
    """
    return os.environ.get(AGENT_STORE) == "True" and os.environ.get("RANK", "0") != "0"


class Raising:
    """A context in which Ctrl-C raises KeyboardInterrupt, so that what is open is closed.

    Outside the main thread, where Python receives no signals, it changes nothing.
    """

    def __enter__(self) -> None:
        self._before = signal.getsignal(signal.SIGINT)
        self._set = self._before is _end
        if self._set:
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            except ValueError:  # not in the main thread
                self._set = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._set:
            signal.signal(signal.SIGINT, self._before)


def _end(number: int, frame: FrameType | None) -> None:
    if not owns_process():  # a forked worker
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if State.ended_with is not None:
        os._exit(State.ended_with)
    words = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    try:
        if not is_told_by_main():
            os.write(2, f"gantrain: error: {words}\n".encode())
    finally:
        os._exit(INTERRUPTED if number == signal.SIGINT else PREEMPTED)
