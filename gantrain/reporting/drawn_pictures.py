"""The picture files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in RUN/samples or RUN/orbit, ordered by images seen, which is their name."""
    return sorted(path for path in folder.glob("*.png") if path.stem.isdigit())


def pick_evenly(paths: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the paths, evenly spaced, including the first and the last."""
    if len(paths) <= most:
        return list(paths)
    return [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]
