"""The cache folder: results that take long to compute and are the same for every run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gantrain.atomic_file import write_atomically


def cache_folder() -> Path:
    """`$GANTRAIN_CACHE`, or `~/.cache/gantrain`."""
    return Path(os.environ.get("GANTRAIN_CACHE") or Path.home() / ".cache" / "gantrain")


def keep_file(name: str, data: bytes) -> None:
    """Keep a file for later runs. A cache that cannot be written is not an error: the next run computes the result again."""
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_folder() / name, data)
