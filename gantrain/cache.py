"""Where results that take long to make and are the same for every run are kept."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """`$GANTRAIN_CACHE`, or `~/.cache/gantrain`."""
    return Path(os.environ.get("GANTRAIN_CACHE") or Path.home() / ".cache" / "gantrain")


def keep_file(name: str, data: bytes) -> None:
    """Keep a file for the next run. A cache that cannot be written is no error: the next run makes it again."""
    draft = cache_folder() / f".{name}-{os.getpid()}"
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        os.replace(draft, cache_folder() / name)
    except OSError:
        with suppress(OSError):
            draft.unlink()
