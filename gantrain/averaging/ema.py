"""Exponential moving average, by half-life in images."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.averaging.rule import Rule
from gantrain.errors import check
from gantrain.schedule import Scheduled, check_positive, value_at


@dataclass(frozen=True)
class Ema(Rule):
    """Exponential moving average with a half-life in images.

    After d images, the old average keeps 2^(-d / half-life) of its weight, whatever the batch (Karras et al. 2020,
    StyleGAN2-ADA; equal to rescaling the decay as Busbridge et al. 2023 derive).

    Attributes:
        half_life_kimg: half-life in thousands of images, or a schedule of it; 0, at an end of a schedule, copies the live weights.
        ramp_up: early in a run, the half-life is limited to this fraction of the images seen, so that the initial weights are
            forgotten; null switches this off.
    """

    half_life_kimg: Scheduled = 10.0
    ramp_up: float | None = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "half_life_kimg")
        check(self, "ramp_up", self.ramp_up is None or 0 < self.ramp_up < float("inf"), "must be above 0, or null for none")

    def half_life(self, nimg: int) -> float:
        """The half-life in images that holds at `nimg`."""
        half_life = value_at(self.half_life_kimg, nimg) * 1000
        return half_life if self.ramp_up is None else min(half_life, self.ramp_up * nimg)

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        half_life = self.half_life(previous_nimg)
        return 1.0 - 0.5 ** ((nimg - previous_nimg) / half_life) if half_life > 0 else 1.0
