"""Files that are either written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, what the disk refuses has the name of the file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under, which is called `path` once it is whole, and deleted where it will not be."""
    draft = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        with naming(path):
            yield draft
            os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink()
