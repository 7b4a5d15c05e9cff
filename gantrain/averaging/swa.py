"""Stochastic weight averaging: the plain mean of weights collected during training."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.averaging.rule import Rule, check_every, check_start
from gantrain.clock import periods_from


@dataclass(frozen=True)
class Swa(Rule):
    """Uniform average of weights that are collected at regular intervals from a start on (Izmailov et al. 2018).

    The paper pairs it with a learning rate that stays constant or cycles: `optim.lr_tail`.

    Attributes:
        start_kimg: time of the first collection; before, the average does not exist and is not scored.
        every_kimg: interval in kimg between two collections; under a cyclical tail, the length of a cycle.
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
