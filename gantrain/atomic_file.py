"""Atomic writes: a file is written to a draft, then renamed.

A reader never sees half a file, and a kill or a full disk leaves the old file unchanged. A draft is a hidden file next to its target.
It is removed if writing fails; only a kill can leave one behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def attribute_errors(path: Path) -> Iterator[None]:
    """Within this context, every OSError gets the name of this file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def open_draft(path: Path, durable: bool = False, only_writer: bool = False) -> Iterator[Path]:
    """A path to write to. On leaving, the file written there replaces `path`, or is deleted if writing failed.

    Args:
        path: the file. If it exists, its permissions are kept.
        durable: sync the file and its folder, so that a power failure cannot undo the write.
        only_writer: the caller holds the folder's lock. The draft then has a fixed name, so the next write overwrites a draft left by a
            kill. Otherwise each process uses a draft of its own.

    Raises:
        OSError: the file could not be written; it carries the name of `path`, unless it names another file, which the caller reads.
    """
    draft = path.with_name(f".{path.stem}{'.writing' if only_writer else f'-{os.getpid()}'}{path.suffix}")
    try:
        try:
            yield draft
        except OSError as error:
            if error.filename in (None, str(draft)):  # others are of files that the caller reads meanwhile
                error.filename = str(path)
            raise
        with attribute_errors(path):
            if durable:
                sync(draft)
            with suppress(OSError):  # a new file, or a file system that refuses chmod
                shutil.copymode(path, draft)
            os.replace(draft, path)
            if durable:
                sync(path.parent)
    finally:
        with suppress(OSError):
            draft.unlink()


def write_atomically(path: Path, data: str | bytes | memoryview, durable: bool = False, only_writer: bool = False) -> None:
    """Write a whole file; arguments and errors as in `open_draft`. Text is written as UTF-8."""
    with open_draft(path, durable, only_writer) as draft, attribute_errors(path):
        draft.write_bytes(data.encode() if isinstance(data, str) else data)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk. Windows flushes no folders, and only files that are open for writing."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
