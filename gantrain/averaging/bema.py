"""Bias-corrected EMA: an average that corrects its lag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gantrain.averaging.rule import Rule, Weights, check_every, check_start
from gantrain.clock import periods_from
from gantrain.errors import check


@dataclass(frozen=True)
class Bema(Rule):
    """EMA plus a fraction of the distance travelled, BEMA (Block and Zhang 2025, Algorithm 1).

        beta_t = (rho + gamma t)^-kappa      ema <- (1 - beta_t) ema + beta_t theta
        alpha_t = (rho + gamma t)^-eta       average = ema + alpha_t (theta - theta_0)

    The second term is the maximum-likelihood correction of the lag for an Ornstein-Uhlenbeck process that still drifts to
    its mean from theta_0. Its price is noise: it adds alpha_t of the live weights' motion to the average, so a plain EMA is
    less noisy on a plateau. It needs two more copies of the network than an EMA.

    The paper counts t and the interval between looks in optimizer steps; here both are in images, so that growth of the batch
    changes neither. A look after m intervals instead of one keeps (1 - beta_t)^m of the EMA.

    Attributes:
        start_kimg: time of theta_0 (the paper's tau); 0 takes the initial weights. Before, there is no average.
        every_kimg: interval in kimg between two looks at the weights (phi; the paper's 400 steps, here of 64 images).
        step_kimg: length of one step of t, in kimg.
        kappa: exponent of the averaging weight.
        eta: exponent of the correction.
        gamma: factor of t.
        rho: offset added to gamma t, at least 1.
    """

    start_kimg: float = 0.0
    every_kimg: float = 25.6
    step_kimg: float = 0.064
    kappa: float = 0.5
    eta: float = 0.2
    gamma: float = 1.0
    rho: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self)
        check_every(self)
        check(self, "step_kimg", 0 < self.step_kimg < float("inf"), "must be above 0")
        check(self, "kappa", 0 <= self.kappa < float("inf"), "must be at least 0")
        check(self, "eta", 0 <= self.eta < float("inf"), "must be at least 0")
        check(self, "gamma", 0 <= self.gamma < float("inf"), "must be at least 0")
        check(self, "rho", 1 <= self.rho < float("inf"), "must be at least 1, so that no weight exceeds 1")

    def slots(self) -> list[str]:
        return ["ema", "start"]

    def beta(self, nimg: int) -> float:
        """Weight of the live weights in the EMA at `nimg` images, for looks `every_kimg` apart."""
        return self.age(nimg) ** -self.kappa

    def alpha(self, nimg: int) -> float:
        """Strength of the correction at `nimg` images."""
        return self.age(nimg) ** -self.eta

    def age(self, nimg: int) -> float:
        """rho + gamma t at `nimg` images."""
        return self.rho + self.gamma * (nimg / 1000 - self.start_kimg) / self.step_kimg

    def update(
        self, shadows: Weights, live: Weights, nimg: int, previous_nimg: int, num_averaged: int, slots: Mapping[str, Weights]
    ) -> bool:
        average = list(shadows.values())
        theta = [tensor.to(shadow.dtype) for tensor, shadow in zip(live.values(), average)]
        ema, start = list(slots["ema"].values()), list(slots["start"].values())
        if previous_nimg < self.start_kimg * 1000:
            if nimg < self.start_kimg * 1000:
                return False
            for tensors in (average, ema, start):
                torch._foreach_copy_(tensors, theta)
            return True
        looks = periods_from(self.start_kimg, self.every_kimg, previous_nimg, nimg)
        if not looks:
            return False
        torch._foreach_lerp_(ema, theta, 1.0 - (1.0 - self.beta(nimg)) ** looks)
        torch._foreach_copy_(average, torch._foreach_sub(theta, start))
        torch._foreach_mul_(average, self.alpha(nimg))
        torch._foreach_add_(average, ema)
        return True
