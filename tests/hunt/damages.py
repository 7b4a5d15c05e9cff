"""Damages to a file, in its place."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from mutations import as_text, mutate_bytes, mutate_json

LARGE = 1 << 28  # bytes


def is_plain(path: Path) -> bool:
    """Whether it is a regular file that can be read whole: an earlier damage may have left a pipe, a device or holes."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < LARGE


def read_plain(path: Path) -> bytes:
    """The bytes of such a file.

    Raises:
        OSError: it is none.
    """
    if not is_plain(path):
        raise OSError(f"{path} was damaged before")
    return path.read_bytes()


def odd_file(dice: random.Random, path: Path) -> None:
    """Put something that is not a regular file, or is far too large, where a file was."""
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink(missing_ok=True)
    how = dice.randrange(8)
    if how == 0:
        path.mkdir()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.symlink_to("/dev/zero")
    elif how == 3:
        path.symlink_to(path.name)
    elif how == 4:
        path.symlink_to("/proc/self/mem")
    elif how == 5:
        path.touch()
    elif how == 6:
        with open(path, "wb") as file:
            file.truncate(5 << 30)  # holes, which take no space
    # else it is missing


def damage(dice: random.Random, path: Path, mutate: Callable[[random.Random, bytes], bytes] = mutate_bytes) -> None:
    """Change a file, or put something odd in its place."""
    if dice.random() < 0.05 or not is_plain(path):
        odd_file(dice, path)
    else:
        path.write_bytes(mutate(dice, path.read_bytes()))


def mutate_document(dice: random.Random, data: bytes) -> bytes:
    """A JSON file with other values, or other bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # it has been damaged before
        value = None
    if value is None or dice.random() < 0.25:
        return mutate_bytes(dice, data)
    return as_text(mutate_json(dice, value, dice.choice([1, 1, 2, 4])))


def files_in(folder: Path) -> list[Path]:
    """The regular files below a folder that can be read whole."""
    return sorted(path for path in folder.rglob("*") if is_plain(path))
