"""The picture files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in RUN/samples or RUN/orbit, ordered by images seen, which is their name."""
    return sorted(path for path in folder.glob("*.png") if path.stem.isascii() and path.stem.isdigit())


def pick_evenly(all_of_them: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of a list, evenly spaced, including the first and the last."""
    if len(all_of_them) <= most:
        return list(all_of_them)
    return [all_of_them[round(i * (len(all_of_them) - 1) / (most - 1))] for i in range(most)]
