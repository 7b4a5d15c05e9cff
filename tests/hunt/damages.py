"""Damages to a file, in its place."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from mutations import as_text, mutate_bytes, mutate_json


def odd_file(dice: random.Random, path: Path) -> None:
    """Put something that is not a regular file, or is far too large, where a file was."""
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
    if dice.random() < 0.05:
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
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
