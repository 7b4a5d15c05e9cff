"""A folder in which one process at a time may work."""
from __future__ import annotations

import fcntl
import os
import platform
import weakref
from pathlib import Path
from typing import IO


class InUse(Exception):
    """Another process has the folder; `str` of this is who."""


def locked(folder: Path) -> IO[str]:
    """The folder's lock, held as long as the returned file is open: a dead owner holds nothing.

    Raises:
        InUse: another process holds it.
    """
    file = open(folder / ".lock", "a+")  # noqa: SIM115
    here = weakref.ref(file)
    os.register_at_fork(after_in_child=lambda: (held := here()) and held.close())  # else a worker would hold it for a dead owner
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise InUse(owner) from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file
