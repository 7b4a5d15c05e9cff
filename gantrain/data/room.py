"""How much memory decoding may take at once, whatever the number of threads and worker processes.

An image of 100 megapixels takes about a gigabyte while it is decoded, and its size is known from its header. So each decoder asks for
room first, and waits until it is free. Small images never wait.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: processes do not wait for each other
    fcntl = None

SIZE = 2**30  # bytes that the decoders of a process may take together; an image that needs more is decoded alone
WAIT = 5.0  # seconds that a large image waits for other processes; one that was stopped, or has many, must not stop the others
FREE = 2**22  # bytes of an image that is so small that it need not ask
TRIMMED = 2**26  # bytes of decoding after which memory is given back to the system
POLL = 0.05  # seconds between two looks


class Room:
    """A number of bytes that threads share. Those that wait are served in turn, so a large request is not passed by small ones for ever.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int):
        self.size = size
        self.reset()

    def reset(self) -> None:
        """Free everything: in a forked process, whose other threads do not exist."""
        self.used = 0
        self.turn, self.changed, self.own = threading.Lock(), threading.Condition(threading.Lock()), threading.local()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold so many bytes within this context; wait until they are free. More than `size` counts as all of it.

        A thread that holds all of it already may ask again, and gets it at once. Less than `FREE` does not count.
        """
        if amount < FREE or getattr(self.own, "holds_all", False):
            yield
            return
        amount = min(amount, self.size)
        with self.turn, self.changed:
            self.changed.wait_for(lambda: self.used + amount <= self.size)
            self.used += amount
        self.own.holds_all = amount == self.size
        try:
            if 2 * amount > self.size:
                with turn_of_machine():
                    yield
            else:
                yield
        finally:
            self.own.holds_all = False
            with self.changed:
                self.used -= amount
                self.changed.notify_all()
            if amount >= TRIMMED:
                give_back()


@contextmanager
def turn_of_machine() -> Iterator[None]:
    """Within this context no other process of this user decodes a large image, unless it has waited for longer than `WAIT`."""
    file = None
    if fcntl is not None:
        with suppress(OSError):  # a full or read-only disk: go on without
            file = os.open(
                os.path.join(tempfile.gettempdir(), f"gantrain-large-image-{os.getuid()}"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
    try:
        until = time.monotonic() + WAIT
        while file is not None and time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        if file is not None:
            os.close(file)


def find_trim() -> Any:
    """The function of glibc that gives free memory back; None in other libraries."""
    with suppress(OSError, AttributeError, TypeError):
        return ctypes.CDLL(None).malloc_trim
    return None


TRIM = find_trim()


def give_back() -> None:
    """Give free memory back to the system. glibc keeps what each thread has used, so every thread would keep a large image."""
    if TRIM is not None:
        TRIM(0)


ROOM = Room(SIZE)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ROOM.reset)
