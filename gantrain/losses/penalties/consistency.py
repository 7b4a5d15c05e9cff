"""Consistency regularisation of D: CR (Zhang et al. 2020) and bCR (Zhao et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gantrain.errors import check
from gantrain.losses.objective import LogitsOf, Penalty, PenaltyBatch
from gantrain.losses.penalties.checks import check_every, check_weight
from gantrain.losses.penalties.images import full_precision
from gantrain.losses.penalties.jitter import jitter
from gantrain.randomness import Draws
from gantrain.schedule import Scheduled, value_at


class Jittering(Penalty):
    """What CR and bCR share: D's logit at an image and at the image after a random flip and shift.

    D(x) is the logit of the loss; D(T(x)) costs a forward and a backward pass. Where the run has an augmentation, both images are
    augmented with the same random numbers.

    Attributes:
        flip: whether T mirrors an image with probability 1/2. D then learns to ignore left and right: turn it off where a mirrored
            image is not an image of the data, as with digits.
        shift: the largest shift of T in either direction, as a share of the side (published: 4 of 32 pixels).
        every: the penalty is applied at every n-th step of D and multiplied by n; published: 1.
    """

    flip: bool
    shift: float

    differentiates_twice = False

    def __post_init__(self) -> None:
        check(self, "shift", 0 <= self.shift <= 0.5, "must be in [0, 0.5]")
        check(self, "shift", self.flip or self.shift > 0, "must be above 0 where flip is false")
        check_every(self)

    def change(self, logits_of: LogitsOf, x: Tensor, y: Tensor, logits: Tensor, draws: Draws) -> Tensor:
        """The mean squared change of the logit, a scalar."""
        moved = jitter(full_precision(x), draws, self.flip, self.shift)
        return (logits - logits_of(moved, y)).square().mean()

    def change_at_real(self, batch: PenaltyBatch) -> Tensor:
        """`change` at real images."""
        assert batch.x_real is not None and batch.y_real is not None and batch.logits_real is not None, "D's phase has real images"
        return self.change(batch.d_real, batch.x_real, batch.y_real, batch.logits_real, batch.draws.of("real"))


@dataclass(frozen=True)
class Consistency(Jittering):
    """CR: weight E (D(x) - D(T(x)))^2 at real images (Zhang et al. 2020).

    Attributes:
        weight: the paper's lambda.
    """

    weight: Scheduled = 10.0
    flip: bool = True
    shift: float = 0.125
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self, "weight")

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return value_at(self.weight, batch.nimg) * self.change_at_real(batch), {}


@dataclass(frozen=True)
class BalancedConsistency(Jittering):
    """bCR: weight_real E (D(x) - D(T(x)))^2 + weight_fake E (D(G(z)) - D(T(G(z))))^2 (Zhao et al. 2021, Algorithm 1).

    With CR alone the transforms of D can appear in generated images; generated images that are transformed too prevent it.

    Attributes:
        weight_real: the paper's lambda_real.
        weight_fake: the paper's lambda_fake.
    """

    weight_real: Scheduled = 10.0
    weight_fake: Scheduled = 10.0
    flip: bool = True
    shift: float = 0.125
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self, "weight_real")
        check_weight(self, "weight_fake")

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        real = self.change_at_real(batch)
        fake = self.change(batch.d_fake, batch.x_fake, batch.y_fake, batch.logits_fake, batch.draws.of("fake"))
        return value_at(self.weight_real, batch.nimg) * real + value_at(self.weight_fake, batch.nimg) * fake, {}
