"""Files that are written completely or not at all: to a draft, then renamed.

A reader never sees half a file, and a kill or a full disk leaves the old file as it was. A draft is a hidden file next to its target;
it is removed when writing fails, and only a kill can leave one behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def attribute_errors(path: Path) -> Iterator[None]:
    """Inside, an OSError carries the name of this file, whatever file it was raised for."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def open_draft(path: Path, durable: bool = False, only_writer: bool = False) -> Iterator[Path]:
    """A path to write to; what was written there replaces `path` on leaving, or is deleted if writing failed.

    Args:
        path: the file. If it exists, its permissions are kept.
        durable: sync the file and its folder, so that a power cut cannot undo the write.
        only_writer: the caller holds the folder's lock. The draft then has one name, and the next write overwrites one that a kill has
            left; otherwise every process has a draft of its own.

    Raises:
        OSError: the file could not be written; it carries the name of `path`.
    """
    draft = path.with_name(f".{path.stem}{'.writing' if only_writer else f'-{os.getpid()}'}{path.suffix}")
    try:
        with attribute_errors(path):
            yield draft
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
    """Write a whole file; the arguments and errors are those of `open_draft`. A text is written as UTF-8."""
    with open_draft(path, durable, only_writer) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)


def sync(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
