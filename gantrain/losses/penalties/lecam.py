"""LeCam regularisation (Tseng et al. 2021), for small data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from gantrain.errors import check
from gantrain.losses.objective import Penalty, PenaltyBatch
from gantrain.losses.penalties import moving_mean
from gantrain.losses.penalties.checks import check_above_0, check_every, check_weight
from gantrain.schedule import Scheduled, value_at


@dataclass(frozen=True)
class LeCam(Penalty):
    """weight (E relu(D(x) - a_fake)^2 + E relu(a_real - D(G(z)))^2) (Tseng et al. 2021, R_LC).

    a_real and a_fake are exponential moving means of D's logits at real and at generated images. Only logits beyond the other side's
    mean are pulled back. The paper's equation has no relu; the authors' code and StudioGAN's have it, and `rectified: false` leaves it
    out.

    The means are those before the step, where published code counts the step's own batch too: a mean over all rounds and processes
    is known only after them. They follow every step of D from the start of the run, without a bias towards 0, and are saved in
    checkpoints. The logits are those of the loss, of augmented images if there is an augmentation.

    Attributes:
        weight: the paper's lambda.
        half_life_kimg: half-life of the moving means, in thousands of real images that D has been trained on: an update counts once
            for each of its D steps. Published is a decay of 0.99 a step, of 64 images: 64 log 2 / -log 0.99 = 4,414 images.
        start_kimg: from when on the penalty is added; published: 1,000 updates of 64 images.
        rectified: whether the relu is taken.
        every: the penalty is applied at every n-th step of D and multiplied by n, and the means are followed at these steps only. It
            takes no forward pass of its own, so that nothing is saved above 1.
    """

    weight: Scheduled = 0.3
    half_life_kimg: float = 4.4
    start_kimg: float = 64.0
    rectified: bool = True
    every: int = 1

    differentiates_twice = False

    def __post_init__(self) -> None:
        check_weight(self, "weight")
        check_above_0(self, "half_life_kimg")
        check(self, "start_kimg", 0 <= self.start_kimg < math.inf, "must be at least 0")
        check_every(self)

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        real, fake = batch.logits_real, batch.logits_fake
        assert real is not None, "D's phase has real images"
        observed = {"real": real.detach().mean(), "fake": fake.detach().mean()}
        if batch.nimg < 1000 * self.start_kimg:
            return fake.new_zeros(()), observed
        above = real - moving_mean.mean_of(batch.state, "fake").to(real)
        below = moving_mean.mean_of(batch.state, "real").to(fake) - fake
        if self.rectified:
            above, below = F.relu(above), F.relu(below)
        amount = above.square().mean() + below.square().mean()
        return value_at(self.weight, batch.nimg) * moving_mean.has_begun(batch.state).to(amount) * amount, observed

    def initial_state(self) -> dict[str, float]:
        return moving_mean.begin("real", "fake")

    def next_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
        return moving_mean.follow(state, observed, images, self.half_life_kimg)
