"""A view on its own thread: training continues even if the view is slow, fails or hangs."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gantrain.reporting.view import View, describe_failure

WAITING = 4096  # calls in the queue of a view at most, which bounds memory
HUNG: list[threading.Thread] = []  # abandoned threads of W&B, for which W&B's exit handler might wait forever


class ViewThread:
    """A view whose calls are made by a thread, in order; only the end of the run waits for it.

    The first call that raises ends the view with one line; later calls are ignored.

    Args:
        name: of the view.
        start: opens the view, on the thread; None if there is nothing to show it in.
        patience: seconds that `finish` waits.
        say: receives a line if a call fails, if calls are dropped, or if `finish` gives up.
        hangs: whether an abandoned thread would keep the process from exiting.
    """

    def __init__(self, name: str, start: Callable[[], View | None], patience: float, say: Callable[[str], None], hangs: bool = False):
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
        """Close the view after all calls; give up after `patience`, or immediately if not `wait`."""
        if not wait:
            self._give_up()
            return
        until = time.monotonic() + self._patience
        while self._thread.is_alive() and time.monotonic() < until:
            with contextlib.suppress(queue.Full):  # calls are still being made
                self._calls.put(("finish", (exit_code,)), timeout=min(0.1, self._patience))
                break
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._give_up():
            self._say(f"{self.name}: did not finish within {self._patience:g} seconds; giving up; metrics.jsonl is complete")

    def _run(self, start: Callable[[], View | None]) -> None:
        """Open the view and make the calls, until the last one or the first that raises."""
        try:
            view, name = start(), ""
            while view is not None and name != "finish":
                name, arguments = self._calls.get()
                getattr(view, name)(*arguments)
        except (Exception, SystemExit) as error:  # on a thread, nobody else would see it
            self._give_up()
            self._say(describe_failure(self.name, error))

    def _call(self, name: str, *arguments: Any) -> None:
        """Queue a call of the view; drop it if the queue is full or the view has ended."""
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait((name, arguments))
        except queue.Full:
            if not self._dropped:
                self._say(f"{self.name}: cannot keep up; updates are dropped until it catches up; metrics.jsonl is complete")
            self._dropped += 1

    def _give_up(self) -> bool:
        """Abandon the thread; returns whether it was still running."""
        alive = self._thread.is_alive()
        if alive and self._hangs:
            HUNG.append(self._thread)
        return alive
