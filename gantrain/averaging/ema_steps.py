"""Exponential moving average, by decay per update."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.averaging.rule import Rule, check_start
from gantrain.clock import images
from gantrain.errors import check


@dataclass(frozen=True)
class EmaSteps(Rule):
    """Exponential moving average with a decay per update, for reproducing published settings.

    BigGAN has decay 0.9999 and an average that equals the live weights until a start; with the start at 0 it decays from the
    initial weights (`utils.ema` of the authors' PyTorch release), which then count decay^n after n updates. The horizon is a
    number of updates, so it grows with the batch when counted in images; `batch_size` keeps it constant.

    Attributes:
        decay: fraction of the average that is kept at each update, in [0, 1).
        start_kimg: until this time, the average is a copy of the live weights; 0 decays from the initial weights.
        batch_size: the batch for which the decay was published: d images then keep decay^(d / batch_size), whatever the current
            batch. Null applies the decay once per update.
    """

    decay: float = 0.9999
    start_kimg: float = 0.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "decay", 0 <= self.decay < 1, "must be in [0, 1)")
        check_start(self)
        check(self, "batch_size", self.batch_size is None or self.batch_size >= 1, "must be at least 1, or null")

    @property
    def per_update(self) -> bool:
        return self.batch_size is None

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        if self.start_kimg:
            missed = num_averaged == 0 and self.update_every_kimg is not None  # the start lies between two looks
            if missed or nimg < images(self.start_kimg):
                return 1.0
        return 1.0 - (self.decay if self.batch_size is None else self.decay ** ((nimg - previous_nimg) / self.batch_size))
