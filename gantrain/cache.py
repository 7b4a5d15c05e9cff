"""The cache folder: results that take long to compute and are the same for every run.

Each file begins with the SHA-256 of what follows, in hexadecimal and a line of its own: a flipped bit in the features of a reference
would change every score after it, and nothing would say so.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from gantrain.atomic_file import write_atomically
from gantrain.home import expand_user, home_folder, is_writable, replacement
from gantrain.regular_file import PIECE, open_regular

logger = logging.getLogger(__name__)
FRESH = 2.0  # seconds; the coarsest time stamps of file systems in use (FAT)
HEAD = 65  # bytes of the first line
SUM = re.compile(rb"[0-9a-f]{64}\n")
STAMPED = os.name == "posix"  # elsewhere st_ctime is the time of creation, which a change of content leaves as it is


def cache_folder() -> Path:
    """`$GANTRAIN_CACHE`, or `~/.cache/gantrain`; without a writable home folder `$XDG_CACHE_HOME/gantrain`, or one in the folder for
    temporary files.

    Raises:
        UserError: GANTRAIN_CACHE begins with a user who does not exist.
    """
    if chosen := os.environ.get("GANTRAIN_CACHE"):
        return expand_user(chosen, "GANTRAIN_CACHE")
    return default_cache_folder()


@functools.cache
def default_cache_folder() -> Path:
    """The cache folder of this process if GANTRAIN_CACHE is not set."""
    home = home_folder()
    usual = home / ".cache" / "gantrain" if home else None
    if usual and (os.path.isdir(usual) or is_writable(usual)):
        return usual
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and os.path.isabs(xdg) and is_writable(Path(xdg)):
        return Path(xdg) / "gantrain"
    folder = replacement() / "cache"
    if usual:  # without a home folder, `settle_home` has said so
        logger.warning(f"gantrain: {usual} cannot be written; the cache is {folder}: set GANTRAIN_CACHE to choose another")
    return folder


def keep_file(name: str, data: bytes) -> None:
    """Keep a file for later runs. A cache that cannot be written is not an error: the next run computes the result again."""
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_folder() / name, head_of(data) + data)


def kept_file(name: str, at_most: int | None = None) -> bytes | None:
    """The content of a file that was kept; None if there is none, or if it is not what was kept, so that it is computed again.

    Args:
        name: as given to `keep_file`.
        at_most: the largest size in bytes; None is any.
    """
    try:
        with open_regular(cache_folder() / name, None if at_most is None else at_most + HEAD) as file:
            head, digest, size = file.read(HEAD), hashlib.sha256(), 0
            if not SUM.fullmatch(head):
                return None
            while piece := file.read(PIECE):  # in pieces: a hole of any size is not worth the memory
                digest.update(piece)
                size += len(piece)
            if head[:-1] != digest.hexdigest().encode():
                return None
            file.seek(HEAD)
            return file.read(size)
    except (OSError, MemoryError):
        return None


def head_of(data: bytes) -> bytes:
    """The first line of a file with this content."""
    return hashlib.sha256(data).hexdigest().encode() + b"\n"


def state_of_file(path: str | bytes | os.PathLike, descriptor: int | None = None) -> str | None:
    """A text that differs whenever a file's content may: its path, device, inode, size, and times of modification and of change.

    The time of change (ctime) is what makes this safe: a copy of another file's name, size and modification time, or a modification
    time that is set back, changes it, and no ordinary tool can set it. A link has the state of the file that it points to.

    Args:
        path: of the file.
        descriptor: of the file, if it is open.

    Returns:
        The text, in ASCII; None if the state proves nothing: the file changed less than `FRESH` seconds ago, so that another change may
        get the same time stamp (Git calls such a file racily clean), or the system has no time of change.

    Raises:
        OSError: the file cannot be found.
    """
    status = os.stat(path if descriptor is None else descriptor)
    if not STAMPED or time.time() - status.st_ctime < FRESH:
        return None
    where = os.fsencode(os.path.abspath(path))
    return f"{where!r} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def is_digest(value: object) -> bool:
    """Whether a value that was read from a file is a SHA-256 as this package writes it: 64 hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
