"""A folder in which only one process at a time may work."""

from __future__ import annotations

import os
import platform
import time
import weakref
from pathlib import Path
from typing import IO, Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

AVAILABLE = fcntl is not None  # without it, nothing is locked
TRIES = 5  # a tenth of a second apart, since `owner` holds the lock for a moment while it asks


class InUse(Exception):
    """Another process holds the folder; the text of the exception says which."""


def acquire(folder: Path) -> IO[str]:
    """Take the folder's lock, which is held as long as the returned file is open; a process that died holds nothing.

    Where neither the system nor the file system has locks, nothing is locked.

    Raises:
        InUse: another process holds it.
    """
    file: IO[str] = open(folder / ".lock", "a+")  # noqa: SIM115 - returned open
    if not AVAILABLE:
        return file
    here: weakref.ref[IO[str]] = weakref.ref(file)
    os.register_at_fork(after_in_child=lambda: close_if_alive(here))  # otherwise a worker would hold it for a dead owner
    for left in range(TRIES - 1, -1, -1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if left:
                time.sleep(0.1)
                continue
            file.seek(0)
            name = file.read().strip() or "another process"
            file.close()
            raise InUse(name) from None
        except OSError:  # a file system without locks
            return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def close_if_alive(reference: weakref.ref[IO[str]]) -> None:
    """Close a file, unless it was collected."""
    file = reference()
    if file is not None:
        file.close()


def owner(folder: Path) -> str | None:
    """Which process holds the folder now; None if none does, or if that cannot be known."""
    if not AVAILABLE:
        return None
    try:
        with open(folder / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:  # no such file, or a file system without locks
        pass
    return None
