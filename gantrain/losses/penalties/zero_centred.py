"""Zero-centred gradient penalties of D, for networks of fp32 or bf16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gantrain.losses.objective import Penalty, PenaltyBatch
from gantrain.losses.penalties.checks import check_every, check_weight
from gantrain.schedule import Scheduled, value_at


@dataclass(frozen=True)
class GradientPenalty(Penalty):
    """The fields and the formula of R1 and R2.

    The gradient is with respect to the image before the augmentation of the run, as StyleGAN2-ADA and R3GAN take it. A subclass that
    defines only `penalty` is asked for that.

    Attributes:
        gamma: weight; the penalty is gamma / 2 times the mean squared norm of D's gradient with respect to an image.
        every: the penalty is applied at every n-th step of D (Karras et al. 2020, section 4.1, "lazy") and multiplied by n, so that
            its strength stays the same.
        networks: the player whose loss it is added to; only "d".
    """

    gamma: Scheduled = 0.1
    every: int = 16
    networks: Literal["d"] = "d"

    def __post_init__(self) -> None:
        check_weight(self, "gamma")
        check_every(self)

    def at(self, D: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, nimg: int = 0) -> Tensor:
        """The penalty at images `[N, C, H, W]` with labels `[N]`, after `nimg` images of training; a scalar."""
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(D(x, y).sum(), x, create_graph=True)
        return 0.5 * value_at(self.gamma, nimg) * gradient.square().sum(dim=(1, 2, 3)).mean()


@dataclass(frozen=True)
class R1(GradientPenalty):
    """Gradient penalty at real images (Mescheder et al. 2018, Eq. 9)."""

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if type(self).penalty is not R1.penalty:
            return super().term(batch, player)
        assert batch.x_real is not None and batch.y_real is not None, "D's phase has real images"
        return self.at(batch.d_real, batch.x_real, batch.y_real, batch.nimg), {}

    def penalty(self, D: nn.Module, x_real: Tensor, x_fake: Tensor, y_real: Tensor, y_fake: Tensor) -> Tensor:
        """The penalty for a loop of one's own, with the gamma that a schedule starts with."""
        return self.at(D, x_real, y_real)


@dataclass(frozen=True)
class R2(GradientPenalty):
    """Gradient penalty at generated images (Mescheder et al. 2018, Eq. 10)."""

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if type(self).penalty is not R2.penalty:
            return super().term(batch, player)
        return self.at(batch.d_fake, batch.x_fake, batch.y_fake, batch.nimg), {}

    def penalty(self, D: nn.Module, x_real: Tensor, x_fake: Tensor, y_real: Tensor, y_fake: Tensor) -> Tensor:
        """The penalty for a loop of one's own, with the gamma that a schedule starts with."""
        return self.at(D, x_fake, y_fake)
