"""The record of the blocks that an interrupted `gantrain prepare` has finished, a line each."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gantrain.regular_file import read_regular

DONE = "done.jsonl"
MOST_RECORD = 2**30  # bytes of the record of finished blocks, each of which names its unreadable images


def line_of(block: int, sha256: str, unreadable: Mapping[str, str]) -> str:
    """The line of a finished block, with a checksum of itself: a flipped digit would leave out another image.

    Args:
        block: its number.
        sha256: of its images.
        unreadable: places in it -> why.
    """
    one = {"block": block, "sha256": sha256, **({"unreadable": dict(unreadable)} if unreadable else {})}
    return json.dumps({**one, "line": sum_of(one)}) + "\n"


def sum_of(one: Mapping[str, Any]) -> str:
    """The checksum of the values of a line."""
    return hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:16]


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
    """Yields the lines of the record of finished blocks, without those that are truncated or altered: their blocks are made again."""
    try:
        lines = read_regular(path, MOST_RECORD).splitlines()
    except OSError:
        return
    for line in lines:
        if (one := parse(line)) is not None:
            yield one


def parse(line: bytes) -> dict[str, Any] | None:
    """A line that `line_of` has written, without its checksum; None for any other."""
    try:
        one = json.loads(line)
        whole = one.pop("line") == sum_of(one)
        fits = type(one["block"]) is int and isinstance(one["sha256"], str) and isinstance(one.get("unreadable", {}), dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return one if whole and fits else None
