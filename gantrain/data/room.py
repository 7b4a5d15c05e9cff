"""How much memory decoding may take at once in a process, whatever the number of its threads.

An image of 100 megapixels takes about a gigabyte while it is decoded, and its size is known from its header. So each decoder asks for
room first, and waits until it is free. Small images never wait. Each worker process has its own room.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

SIZE = 2**30  # bytes that the decoders of a process may take together; an image that needs more is decoded alone
FREE = 2**22  # bytes of an image that is so small that it need not ask
TRIMMED = 2**26  # bytes of decoding after which memory is given back to the system


AT_ONCE: AbstractContextManager[None] = nullcontext()  # of small images


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

    def take(self, amount: int) -> AbstractContextManager[None]:
        """Hold so many bytes within this context; wait until they are free. More than `size` counts as all of it.

        A thread that holds all of it already may ask again, and gets it at once. Less than `FREE` does not count.
        """
        if amount < FREE or getattr(self.own, "holds_all", False):
            return AT_ONCE
        return self._hold(min(amount, self.size))

    @contextmanager
    def _hold(self, amount: int) -> Iterator[None]:
        with self.turn, self.changed:
            self.changed.wait_for(lambda: self.used + amount <= self.size)
            self.used += amount
        self.own.holds_all = amount == self.size
        try:
            yield
        finally:
            self.own.holds_all = False
            with self.changed:
                self.used -= amount
                self.changed.notify_all()
            if amount >= TRIMMED:
                give_back()


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
