"""A folder in which one process at a time may work."""

from __future__ import annotations

import fcntl
import os
import platform
import time
import weakref
from pathlib import Path
from typing import IO

TRIES = 5  # a tenth of a second apart: `owner` holds a lock for the moment in which it asks


class InUse(Exception):
    """Another process has the folder; `str` of this is who."""


def acquire(folder: Path) -> IO[str]:
    """The folder's lock, held as long as the returned file is open: a dead owner holds nothing.

    Raises:
        InUse: another process holds it.
    """
    file = open(folder / ".lock", "a+")  # noqa: SIM115
    here = weakref.ref(file)
    os.register_at_fork(after_in_child=lambda: (held := here()) and held.close())  # else a worker would hold it for a dead owner
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


def owner(folder: Path) -> str | None:
    """Who has the folder now; None where nobody does, or where that cannot be known."""
    try:
        with open(folder / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:  # no such file, or a file system without locks
        pass
    return None
