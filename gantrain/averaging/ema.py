"""Exponential moving averages."""
from __future__ import annotations

from dataclasses import dataclass

from gantrain.clock import images
from gantrain.errors import check


@dataclass(frozen=True)
class Ema:
    """Exponential moving average with a half-life in images.

    After d images the old average keeps 2^(-d / half-life) of its weight, whatever the batch (Karras et al. 2020,
    StyleGAN2-ADA; equal to rescaling the decay as Busbridge et al. 2023 derive).

    Attributes:
        half_life_kimg: in thousands of images.
        ramp_up: early in a run the half-life is at most this share of the images seen, so that the initial weights are
            forgotten; null switches it off.
    """

    half_life_kimg: float = 10.0
    ramp_up: float | None = 0.05

    def __post_init__(self) -> None:
        check(self, "half_life_kimg", 0 < self.half_life_kimg < float("inf"), "must be above 0")
        check(self, "ramp_up", self.ramp_up is None or 0 < self.ramp_up < float("inf"), "must be above 0, or null for none")

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        half_life = self.half_life_kimg * 1000
        if self.ramp_up is not None:
            half_life = min(half_life, self.ramp_up * previous_nimg)
        if half_life <= 0:
            return 1.0
        return 1.0 - 0.5 ** ((nimg - previous_nimg) / half_life)


@dataclass(frozen=True)
class EmaSteps:
    """Exponential moving average with a fixed decay per update, for reproducing published settings.

    BigGAN's: decay 0.9999, the average following the live weights exactly until a start. Its horizon is a number of
    updates and therefore grows with the batch; `Ema` does not.

    Attributes:
        decay: what the average keeps at each update, in [0, 1).
        start_kimg: until here the average is a copy of the live weights.
    """

    decay: float = 0.9999
    start_kimg: float = 0.0

    def __post_init__(self) -> None:
        check(self, "decay", 0 <= self.decay < 1, "must be in [0, 1)")
        check(self, "start_kimg", 0 <= self.start_kimg < float("inf"), "must be at least 0")

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        if num_averaged == 0 or (self.start_kimg and nimg < images(self.start_kimg)):
            return 1.0
        return 1.0 - self.decay
