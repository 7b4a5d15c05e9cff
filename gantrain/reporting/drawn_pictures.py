"""The pictures that a run has drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in RUN/samples or RUN/orbit, in the order of their names, which are images seen."""
    return sorted(path for path in folder.glob("*.png") if path.stem.isdigit())


def spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the paths, evenly spread, the first and the last among them."""
    if len(paths) <= most:
        return list(paths)
    return [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]
