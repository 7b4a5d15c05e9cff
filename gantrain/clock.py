"""The one clock: images seen.

`nimg` counts images per generator update, StyleGAN's convention. Everything periodic or decaying is stated in kimg
(thousands of images) and asks `due`, never "every so many steps", because the batch may grow and need not divide anything.
"""
from __future__ import annotations


def images(kimg: float) -> int:
    """Thousands of images to images, at least 1."""
    return max(1, round(kimg * 1000))


def due(every_kimg: float | None, before: int, after: int) -> bool:
    """Whether a multiple of `every_kimg` lies in (before, after].

    `before` = -1 stands for the moment ahead of the first image, so that everything periodic fires once at 0. With
    `every_kimg` None nothing is ever due; nor is it when the clock stands still.
    """
    if every_kimg is None:
        return False
    every = images(every_kimg)
    return before // every != after // every
