"""The record of the blocks that an interrupted `gantrain prepare` has finished, a line each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gantrain.regular_file import read_regular

DONE = "done.jsonl"
MOST_RECORD = 2**30  # bytes of the record of finished blocks, each of which names its unreadable images


def read_gaps(path: Path) -> defaultdict[int, dict[str, str]]:
    """Returns the unreadable images that an interrupted call recorded, for each block: their places in it, and why."""
    gaps: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for one in read_record(path):
        gaps[int(one["block"])] = {str(at): str(words) for at, words in one.get("unreadable", {}).items()}
    return gaps


def read_done(path: Path) -> dict[int, str]:
    """Returns the checksums of the blocks that an interrupted call recorded."""
    return {int(one["block"]): str(one["sha256"]) for one in read_record(path)}


def read_record(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of the record of finished blocks, up to one that is truncated."""
    try:
        for line in read_regular(path, MOST_RECORD).decode().splitlines():
            one = json.loads(line)
            types = {"block": int, "sha256": str, "unreadable": dict}
            if not all(isinstance({"unreadable": {}, **one}[key], kind) for key, kind in types.items()):
                return
            yield one
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
