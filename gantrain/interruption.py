"""Requests to stop, by Ctrl-C, a closed terminal or a scheduler, which a run obeys between two updates."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from gantrain.command_signals import INTERRUPTED, PREEMPTED, SIGNALS
from gantrain.launch_environment import process_rank

__all__ = ["INTERRUPTED", "PREEMPTED", "SIGNALS", "Interruption", "Stopped", "exit_status"]
# A launcher forwards Ctrl-C to processes that already got it from the terminal: one that comes so soon is not a second one.
ECHO = 1.0  # seconds
ALWAYS = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", None))  # obeyed also by a process that was started to ignore them
ANSWER = b"gantrain: stopping; it saves first. Ctrl-C again stops at once, without saving\n"


class Stopped(BaseException):
    """A signal that ends the command at once. Like KeyboardInterrupt it is not an `Exception`, so that nothing recovers from it."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.signal = number


class Interruption:
    """A context that records requests to stop; it may be entered again inside itself.

    Until `patient` is set, a signal ends the command at once, with `Stopped`, or with KeyboardInterrupt for Ctrl-C. Afterwards it is
    only recorded in `asked`, for the owner to look at; a second Ctrl-C still raises KeyboardInterrupt. Outside the main thread,
    where Python receives no signals, nothing is recorded. A SIGHUP that is ignored, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.patient = False
        self._interrupted: float | None = None  # time of the first Ctrl-C
        self._depth = 0
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | signal.Handlers | None] = {}
        self._pid = 0

    def __enter__(self) -> Interruption:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            self._pid = os.getpid()
            heard = [number for number in SIGNALS if number in ALWAYS or signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker: its owner decides when it ends
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        again = number == signal.SIGINT and self._interrupted is not None and now - self._interrupted > ECHO
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = now
            if self.patient:
                answer()
        if self.asked is None:
            self.asked = signal.Signals(number)
        if again or (number == signal.SIGINT and not self.patient):
            raise KeyboardInterrupt
        if not self.patient:
            raise Stopped(signal.Signals(number))


def answer() -> None:
    """Say on standard error that Ctrl-C was heard: the update may take minutes. Not by `print`, which the signal may have interrupted."""
    if process_rank() == 0:
        with contextlib.suppress(OSError):
            os.write(2, ANSWER)


def exit_status(asked: signal.Signals) -> int:
    """The exit status of a command that a signal ended."""
    return INTERRUPTED if asked == signal.SIGINT else PREEMPTED
