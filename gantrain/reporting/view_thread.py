"""A view on a thread of its own: whether it is slow, fails or hangs, training goes on."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gantrain.reporting.view import View

WAITING = 4096  # calls that may wait for a view: a bound on memory
HUNG: list[threading.Thread] = []  # threads of W&B that were let go: W&B's own end of a process might wait for them


class GuardedView(View, Protocol):
    """A view that a `ViewThread` calls: it catches its own errors, which nobody would see on a thread.

    Attributes:
        ended: whether a call has failed, after which it does nothing any more.
    """

    @property
    def ended(self) -> bool: ...


class ViewThread:
    """A view whose calls a thread makes, in order; only the end of the run waits for it.

    Args:
        name: of the view.
        start: opens it, on the thread; None where that fails.
        patience: seconds that `finish` waits.
        say: receives a line where calls were left out or the end was not waited for.
        hangs: whether a thread that is let go would keep the process from ending.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], GuardedView | None],
        patience: float,
        say: Callable[[str], None],
        hangs: bool = False,
    ):
        self.name, self._patience, self._say, self._hangs = name, patience, say, hangs
        self._calls: queue.Queue[tuple[str, tuple]] = queue.Queue(WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, args=(start,), name=name, daemon=True)
        self._thread.start()

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        self._call("log", nimg, values)

    def event(self, nimg: int, name: str, words: str, fields: Mapping[str, Any]) -> None:
        self._call("event", nimg, name, words, fields)

    def overview(self, nimg: int) -> None:
        self._call("overview", nimg)

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        self._call("image", nimg, key, path, caption)

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        self._call("samples", nimg, path, list(classes))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._call("summary", values)

    def conclude(self) -> None:
        self._call("conclude")

    def finish(self, exit_code: int, wait: bool = True) -> None:
        """Have the view closed when all calls are made, or let go of it when that takes too long, or at once unless `wait`."""
        if not wait:
            self._let_go()
            return
        until = time.monotonic() + self._patience
        while self._thread.is_alive() and time.monotonic() < until:
            with contextlib.suppress(queue.Full):  # of calls that are being made
                self._calls.put(("finish", (exit_code,)), timeout=min(0.1, self._patience))
                break
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._let_go():
            self._say(f"{self.name}: did not take everything within {self._patience:g} seconds and is let go; metrics.jsonl has everything")

    def _run(self, start: Callable[[], GuardedView | None]) -> None:
        view = start()
        while view is not None:
            name, arguments = self._calls.get()
            getattr(view, name)(*arguments)
            if name == "finish":
                return
            if view.ended:
                self._let_go()
                return

    def _call(self, name: str, *arguments: Any) -> None:
        """Have a method of the view called, some time."""
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait((name, arguments))
        except queue.Full:
            if not self._dropped:
                self._say(f"{self.name}: does not keep up; what comes while it is behind is left out there, metrics.jsonl has everything")
            self._dropped += 1

    def _let_go(self) -> bool:
        """Leave the thread to itself; whether it was still at work."""
        alive = self._thread.is_alive()
        if alive and self._hangs:
            HUNG.append(self._thread)
        return alive
