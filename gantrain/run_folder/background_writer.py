"""Writing in the background: one job at a time, so that at most one copy of a run's state waits in main memory."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Writes checkpoints on a thread, one at a time; a job that comes too early waits.

    The thread is a daemon: a second Ctrl-C does not wait for it, and leaves a draft behind.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Run a job once the previous one is done.

        Raises:
            NotWritten: the previous one failed.
        """
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the current job.

        Raises:
            NotWritten: it failed.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of a job that has failed, without waiting."""
        error, self._error = self._error, None
        if error is not None:
            raise error
