"""The one clock: images seen.

`nimg` counts images per generator update, StyleGAN's convention. Everything periodic or decaying is given in kimg (thousands of
images) and uses `due`, never a number of steps, because the batch may grow and need not divide anything.
"""

from __future__ import annotations


def images(kimg: float) -> int:
    """Thousands of images to images, at least 1."""
    return max(1, round(kimg * 1000))


def due(every_kimg: float | None, before: int, after: int) -> bool:
    """Whether a multiple of `every_kimg` lies in (before, after].

    `before` = -1 is the moment ahead of the first image, so that everything periodic fires once at 0. Nothing is due if `every_kimg`
    is None or the clock has not moved.
    """
    return every_kimg is not None and periods(every_kimg, before, after) != 0


def periods(every_kimg: float, before: int, after: int) -> int:
    """How many multiples of `every_kimg` lie in (before, after]."""
    every = images(every_kimg)
    return after // every - before // every


def periods_from(start_kimg: float, every_kimg: float, before: int, after: int) -> int:
    """How many of the moments start, start + every, start + 2 every, ... lie in (before, after]."""
    start = round(start_kimg * 1000)
    return periods(every_kimg, max(before - start, -1), after - start) if after >= start else 0
