"""Files that stay readable although a run deletes them: those of a checkpoint that a command reads while the run trains.

A run that trains deletes its older checkpoints, with `keep_last: 1` each one as soon as the next is written. A command that scores one
for an hour opens its files at the beginning: what is open can be read to its end, whatever becomes of its name.
"""

from __future__ import annotations

import contextlib
import io
import os
import traceback
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from gantrain.errors import UserError
from gantrain.regular_file import check_kind, open_regular

AVAILABLE = hasattr(os, "pread")  # Windows has no `pread`, and deletes no open file


class Held:
    """The open files of a folder. They are closed when this object is collected.

    Args:
        folder: the folder.
        names: of its files; those that are missing are left out.

    Attributes:
        others: what is read together with it, and stays open as long as it.

    Raises:
        OSError: a file cannot be opened.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder = folder
        self.others: list[Held] = []
        self._files: dict[str, IO[bytes]] = {}
        for name in names if AVAILABLE else ():
            try:
                self._files[name] = open_regular(folder / name)
            except FileNotFoundError:
                continue

    @property
    def is_empty(self) -> bool:
        """Whether no file is open: the system cannot hold files, or has no room for more open ones. Reading by name still works."""
        return not self._files

    def open(self, name: str, at_most: int | None = None) -> IO[bytes] | None:
        """A file at its beginning, independent of other readers; None for one that is not open.

        Args:
            at_most: the largest size in bytes, as of `open_regular`.

        Raises:
            TooLarge: it is larger.
        """
        file = self._files.get(name)
        if file is None:
            return None
        check_kind(os.fstat(file.fileno()), self.folder / name, at_most)
        return io.BufferedReader(Reader(file))

    def path(self, name: str) -> Path | None:
        """A path to an open file, for a library that opens files itself; None if the system has none."""
        file = self._files.get(name)
        path = None if file is None else Path(f"/proc/self/fd/{file.fileno()}")
        return path if path is not None and path.exists() else None

    def is_current(self) -> bool:
        """Whether the folder's name leads to these files still, or to nothing."""
        try:
            return all(os.path.samestat(os.fstat(file.fileno()), os.stat(self.folder / name)) for name, file in self._files.items())
        except OSError:
            return True


class Reader(io.RawIOBase):
    """Reads an open file from its beginning, without moving the file's own position."""

    def __init__(self, file: IO[bytes]):
        self._file, self._at = file, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """That of the open file."""
        return self._file.fileno()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has a type that no caller passes
        """Fill a buffer as far as the file goes; returns the number of bytes."""
        data = os.pread(self._file.fileno(), len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


_held: weakref.WeakValueDictionary[str, Held] = weakref.WeakValueDictionary()


def keep_open(held: Held) -> Held:
    """Make its files those that `find_held` finds, as long as it exists."""
    _held[key_of(held.folder)] = held
    return held


def forget(held: Held) -> None:
    """Make `find_held` no longer find it."""
    if find_held(held.folder) is held:
        del _held[key_of(held.folder)]


@contextlib.contextmanager
def closed_on_error() -> Iterator[None]:
    """Close what only the traceback of a user's mistake keeps open: an interactive session keeps the last one, and its files with it."""
    try:
        yield
    except UserError as error:
        link: BaseException | None = error
        while link is not None:
            traceback.clear_frames(link.__traceback__)
            link = link.__cause__ or link.__context__
        raise


def find_held(folder: Path) -> Held | None:
    """What this process holds of a folder; None for any other."""
    return _held.get(key_of(folder)) if _held else None


def folders_in(folder: Path) -> list[Path]:
    """The folders in this one of which this process holds files; perhaps they exist no longer."""
    return [held.folder for held in list(_held.values()) if key_of(held.folder.parent) == key_of(folder)]


def key_of(folder: Path) -> str:
    """A folder's path, the same however it is spelt."""
    return os.path.abspath(folder)
