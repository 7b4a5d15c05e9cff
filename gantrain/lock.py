"""A folder in which only one process at a time may work."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import weakref
from pathlib import Path
from typing import IO, Any

from gantrain.regular_file import open_regular

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
AVAILABLE = fcntl is not None  # without it, nothing is locked
LONGEST_NAME = 1000  # bytes of what says who holds it
TRIES = 5  # since `owner` holds the lock for a moment while it asks
WAIT = 0.1  # seconds between two tries


class InUse(Exception):
    """Another process holds the folder; the text of the exception says which."""


def acquire(folder: Path, name: str = NAME, create: bool = False) -> IO[str]:
    """Take the folder's lock, which is held as long as the returned file is open; a process that died holds nothing.

    Where neither the system nor the file system has locks, nothing is locked.

    Args:
        folder: the folder.
        name: of the file that is locked.
        create: make the folder if it does not exist, also when another process removes it meanwhile.

    Raises:
        InUse: another process holds it.
        OSError: the file cannot be opened; FileNotFoundError if there is no such folder.
    """
    for _ in range(TRIES):
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            file = lock_file(folder / name)
        except FileNotFoundError:  # the folder was removed after it was made
            if create:
                continue
            raise
        if holds(file, folder, name):
            return file
        file.close()  # its owner has removed or renamed it: another process may hold the one that has its name now
    raise InUse("processes that replace the folder again and again")


def lock_file(path: Path) -> IO[str]:
    """Open a file and lock it, and write into it who holds it.

    Raises:
        InUse: another process holds it.
        OSError: it cannot be opened.
    """
    file: IO[str] = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 - returned open
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
                time.sleep(WAIT)
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


def holds(file: IO[str], folder: Path, name: str = NAME) -> bool:
    """Whether a locked file is still the one that other processes find in this folder; False if it was removed or replaced."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(folder / name))
    except (OSError, ValueError):  # gone, or closed
        return False


def discard(file: IO[str], folder: Path, name: str = NAME) -> None:
    """Remove the file of a lock that is held, and release it. A process that waits for it notices, and takes a new one."""
    if holds(file, folder, name):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    file.close()


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
        with open_regular(folder / NAME) as file:  # a pipe would block
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(LONGEST_NAME).decode("utf-8", "replace").strip() or "another process"
    except OSError:  # no such file, or a file system without locks
        pass
    return None
