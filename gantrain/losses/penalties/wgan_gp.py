"""The gradient penalty of WGAN-GP (Gulrajani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gantrain.errors import check
from gantrain.losses.objective import Penalty, PenaltyBatch
from gantrain.losses.penalties.checks import check_every, check_weight
from gantrain.losses.penalties.gradients import gradient_norms
from gantrain.losses.penalties.images import full_precision
from gantrain.schedule import Scheduled, value_at


@dataclass(frozen=True)
class WGANGP(Penalty):
    """weight E (|grad D(x)| - target)^2 at x = u x_real + (1 - u) x_fake, u uniform in (0, 1) (Gulrajani et al. 2017, Eq. 3).

    It is two-sided: norms below the target are penalised too. The i-th real and the i-th generated image share one u. In a conditional
    run D sees the interpolated image with the label of the real one; the paper has no labels, and StudioGAN does the same. The
    augmentation of the run, if there is one, is that of the real image, and the gradient is with respect to the image before it.

    Attributes:
        weight: the paper's lambda.
        target: the norm that is aimed at; 0 gives the zero-centred penalty of Thanh-Tung et al. (2019).
        every: the penalty is applied at every n-th step of D and multiplied by n; published: 1.
    """

    weight: Scheduled = 10.0
    target: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        check_weight(self, "weight")
        check(self, "target", 0 <= self.target < math.inf, "must be at least 0")
        check_every(self)

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.x_real is not None and batch.y_real is not None, "D's phase has real images"
        real, fake = full_precision(batch.x_real), full_precision(batch.x_fake)
        share = batch.draws.uniform("interpolation", 1, 1, 1).to(real.dtype)
        norms = gradient_norms(batch.d_real, share * real + (1 - share) * fake, batch.y_real)
        return value_at(self.weight, batch.nimg) * (norms - self.target).square().mean(), {}
