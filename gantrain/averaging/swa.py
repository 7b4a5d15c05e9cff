"""Stochastic weight averaging: the plain mean of weights collected along the way."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.averaging.rule import Rule, check_every, check_start
from gantrain.clock import periods_from


@dataclass(frozen=True)
class Swa(Rule):
    """Uniform average of the weights from a start on, one collected every so many images (Izmailov et al. 2018).

    The paper pairs it with a learning rate that stays constant or cycles: `optim.lr_tail`.

    Attributes:
        start_kimg: the first weights are collected here; before that the average does not exist and is not scored.
        every_kimg: distance between collected weights; under a cyclical tail, the length of a cycle.
    """

    start_kimg: float = 100.0
    every_kimg: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self)
        check_every(self)

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        collects = periods_from(self.start_kimg, self.every_kimg, previous_nimg, nimg) > 0
        return 1.0 / (num_averaged + 1) if collects else 0.0
