"""Power-function average: a window that grows with the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gantrain.averaging.rule import Rule
from gantrain.errors import check

DEFAULT = 0.10  # the longer of the two that Karras et al. follow
WIDEST = 1 / math.sqrt(12)  # sigma_rel of gamma = 0, the plain mean of the whole run


@dataclass(frozen=True)
class Power(Rule):
    """Average in which the weights at time s have weight s^gamma (Karras et al. 2024, section 3.1).

    The window is a fixed fraction of the run, whatever its length, and the initial weights are forgotten entirely. An update
    at t images whose predecessor was at t' keeps (t' / t)^(gamma + 1) of the average: the live weights of that interval then
    have, after T images, exactly the weight (t / T)^(gamma + 1) - (t' / T)^(gamma + 1), however batches grow.

    Attributes:
        sigma_rel: standard deviation of the window as a fraction of the run, in (0, 0.2887]; null is 0.10 unless gamma is set.
        gamma: the exponent itself, at least 0, instead of sigma_rel.
        snapshot_every_kimg: interval in kimg between compact copies of this average, from which `gantrain average` rebuilds averages of
            other lengths after the run. That takes two power averages of different lengths. Null keeps none.
    """

    sigma_rel: float | None = None
    gamma: float | None = None
    snapshot_every_kimg: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "gamma", self.gamma is None or 0 <= self.gamma < float("inf"), "must be at least 0, or null")
        check(self, "gamma", self.gamma is None or self.sigma_rel is None, "cannot be combined with sigma_rel; set only one of them")
        check(
            self,
            "sigma_rel",
            self.sigma_rel is None or 0 < self.sigma_rel <= WIDEST,
            f"must be above 0 and at most {WIDEST:.4f}, the width of the plain mean",
        )
        every = self.snapshot_every_kimg
        check(self, "snapshot_every_kimg", every is None or 0 < every < float("inf"), "must be above 0, or null for none")

    @property
    def exponent(self) -> float:
        """gamma, set directly or by sigma_rel."""
        return self.gamma if self.gamma is not None else gamma_of(self.sigma_rel or DEFAULT)

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        return 1.0 - (previous_nimg / max(nimg, 1)) ** (self.exponent + 1)


def gamma_of(sigma_rel: float) -> float:
    """The exponent whose window has this relative width: the largest root of

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))   (Karras et al. 2024, section 3.1).
    """
    inverse = sigma_rel**-2
    return float(max(root.real for root in np.roots([1, 7, 16 - inverse, 12 - inverse]) if abs(root.imag) < 1e-6 * (1 + abs(root.real))))


def sigma_rel_of(gamma: float) -> float:
    """The relative width of an exponent's window; the inverse of `gamma_of`."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
