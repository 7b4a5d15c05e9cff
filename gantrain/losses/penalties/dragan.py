"""The gradient penalty of DRAGAN (Kodali et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gantrain.errors import check
from gantrain.losses.objective import Penalty, PenaltyBatch
from gantrain.losses.penalties.checks import check_above_0, check_every, check_weight
from gantrain.losses.penalties.gradients import gradient_norms
from gantrain.losses.penalties.images import full_precision
from gantrain.schedule import Scheduled, value_at


@dataclass(frozen=True)
class DRAGAN(Penalty):
    """weight E (|grad D(x)| - target)^2 around real images (Kodali et al. 2017).

    x = x_real + a noise std u with a uniform in (0, 1) for each image and u uniform in (0, 1) for each value, as in the authors' code;
    the paper writes Gaussian noise. The authors take the standard deviation of all values of a batch, which would make the penalty of
    an image depend on the others in its micro-batch, and so on how a batch is split. Here it is that of the image's own values, or one
    number for the whole data set. An image of a single colour has the deviation 0 and is then not moved.

    D sees the image with the label and the augmentation of the real one; the gradient is with respect to the image before it.

    Attributes:
        weight: the paper's lambda.
        target: the norm that is aimed at, the paper's k.
        noise: size of the perturbation in standard deviations.
        std: the standard deviation of the data, for images in [-1, 1]; null takes each image's own.
        every: the penalty is applied at every n-th step of D and multiplied by n; published: 1.
    """

    weight: Scheduled = 10.0
    target: float = 1.0
    noise: float = 0.5
    std: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        check_weight(self, "weight")
        check(self, "target", 0 <= self.target < math.inf, "must be at least 0")
        check_above_0(self, "noise")
        check(self, "std", self.std is None or 0 < self.std < math.inf, "must be above 0, or null")
        check_every(self)

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.x_real is not None and batch.y_real is not None, "D's phase has real images"
        x = full_precision(batch.x_real)
        std = x.std(dim=(1, 2, 3), correction=0, keepdim=True) if self.std is None else self.std
        way = batch.draws.uniform("way", 1, 1, 1).to(x.dtype)
        norms = gradient_norms(
            batch.d_real, x + way * (self.noise * std) * batch.draws.uniform("noise", *x.shape[1:]).to(x.dtype), batch.y_real
        )
        return value_at(self.weight, batch.nimg) * (norms - self.target).square().mean(), {}
