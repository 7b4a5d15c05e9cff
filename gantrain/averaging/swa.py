"""Stochastic weight averaging: the plain mean of weights collected along the way."""
from __future__ import annotations

from dataclasses import dataclass

from gantrain.clock import due, images
from gantrain.errors import check


@dataclass(frozen=True)
class Swa:
    """Uniform average of the weights from a start on, one collected every so many images (Izmailov et al. 2018).

    The paper pairs it with a learning rate that stays constant or cycles: `optim.lr_tail`.

    Attributes:
        start_kimg: the first weights are collected here; before that the average does not exist and is not scored.
        every_kimg: distance between collected weights; under a cyclical tail, the length of a cycle.
    """

    start_kimg: float = 100.0
    every_kimg: float = 1.0

    def __post_init__(self) -> None:
        check(self, "start_kimg", 0 <= self.start_kimg < float("inf"), "must be at least 0")
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        start = images(self.start_kimg) if self.start_kimg else 0
        if nimg < start or not due(self.every_kimg, previous_nimg - start, nimg - start):
            return 0.0
        return 1.0 / (num_averaged + 1)
