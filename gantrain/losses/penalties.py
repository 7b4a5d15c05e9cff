"""Zero-centred gradient penalties of D, for networks of fp32 or bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gantrain.errors import check
from gantrain.losses.objective import Penalty


@dataclass(frozen=True)
class GradientPenalty(Penalty):
    """The fields and the formula of R1 and R2.

    Attributes:
        gamma: weight; the penalty is gamma / 2 times the mean squared norm of D's gradient with respect to an image.
        every: the penalty is applied at every n-th step of D (Karras et al. 2020, section 4.1, "lazy") and multiplied by n, so that
            its strength stays the same.
        networks: the player whose loss it is added to; only "d".
    """

    gamma: float = 0.1
    every: int = 16
    networks: Literal["d"] = "d"

    def __post_init__(self) -> None:
        check(self, "gamma", 0 < self.gamma < float("inf"), "must be above 0")
        check(self, "every", self.every >= 1, "must be at least 1")

    def at(self, D: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The penalty at images `[N, C, H, W]` with labels `[N]`; a scalar."""
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(D(x, y).sum(), x, create_graph=True)
        return 0.5 * self.gamma * gradient.square().sum(dim=(1, 2, 3)).mean()


@dataclass(frozen=True)
class R1(GradientPenalty):
    """Gradient penalty at real images (Mescheder et al. 2018, Eq. 9)."""

    def penalty(self, D: nn.Module, x_real: Tensor, x_fake: Tensor, y_real: Tensor, y_fake: Tensor) -> Tensor:
        return self.at(D, x_real, y_real)


@dataclass(frozen=True)
class R2(GradientPenalty):
    """Gradient penalty at generated images (Mescheder et al. 2018, Eq. 10)."""

    def penalty(self, D: nn.Module, x_real: Tensor, x_fake: Tensor, y_real: Tensor, y_fake: Tensor) -> Tensor:
        return self.at(D, x_fake, y_fake)
