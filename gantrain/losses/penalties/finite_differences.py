"""R1 and R2 by finite differences, without a second derivative (the "approximated R1" of Lin et al. 2025, "APT", arXiv 2501.08316)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gantrain.errors import check
from gantrain.losses.objective import LogitsOf, Penalty, PenaltyBatch
from gantrain.losses.penalties.checks import check_above_0, check_every, check_weight
from gantrain.losses.penalties.images import full_precision, laid_out_as
from gantrain.randomness import Draws
from gantrain.schedule import Scheduled, value_at

SIGMA_OF_BF16 = 0.05  # below it, the rounding of a logit of a few units may outweigh its change


@dataclass(frozen=True)
class FiniteDifference(Penalty):
    """The fields and the formula of `fd_r1` and `fd_r2`: gamma / 2 E ((D(x + sigma n) - D(x)) / sigma)^2, n standard normal.

    For sigma -> 0 its mean over n is gamma / 2 E |g|^2 with g the gradient of D at x, that is R1 or R2. Of the same gamma, both can be
    exchanged. APT's lambda |D(x) - D(x + sigma n)|^2 is gamma = 2 lambda sigma^2: its lambda = 100 at sigma = 0.01 is gamma = 0.02.

    Bias: expand D(x + d) = D(x) + g.d + d.H d / 2 + ... For a D of which this is all, the mean of the squared quotient is
    |g|^2 + sigma^2 / 4 ((tr H)^2 + 2 |H|_F^2), exactly: the term of order sigma is odd in n and vanishes. Higher derivatives of D add
    other terms of order sigma^2. A linear D has no bias. A kink of D, as of relu, counts like curvature within the reach of the noise.

    Variance: (g.n)^2 is |g|^2 times a chi-squared variable of one degree of freedom. One n for each image gives the variance
    2 |g|^4 + O(sigma^2), whatever sigma and the number of pixels are: a mean over N images of equal |g| is off by sqrt(2 / N) of its
    value. The gradient with respect to D's parameters is unbiased likewise, and is as noisy.

    Rounding: a logit that a network rounds to r |D| adds about (r |D| / sigma)^2 to the squared quotient. It is negligible in fp32. In
    bf16 r is about 2e-3, which adds 0.04 |D|^2 at sigma = 0.01, often more than |g|^2: use a larger sigma there. fp16, and TF32 in the
    convolutions of fp32, keep three bits more, which makes it 64 times smaller.

    The penalty takes the logits D(x) from the loss, so it costs a forward and a backward pass of D on the real, or the generated,
    images alone. x + sigma n is augmented with the random numbers of x: the differences are of images before the augmentation.

    Attributes:
        gamma: weight, as of r1 and r2.
        sigma: standard deviation of the noise, for images in [-1, 1]. The bias grows with sigma^2; rounding errors count for more the
            smaller it is: use 0.05 or more in bf16.
        every: the penalty is applied at every n-th step of D and multiplied by n; published: 1, at n times the cost.
        share: the share of images at which it is computed, one n-th. Where n divides micro_batch, only these images are passed
            through D; otherwise all are, and nothing is saved. Which images these are depends on `micro_batch` only where an earlier,
            smaller batch was not a multiple of n.
        reuse_logits: whether the logits of the loss serve as D(x). Turn it off for a D in which the images of a batch affect each other,
            as by minibatch standard deviation; it then costs a forward and a backward pass more.
    """

    gamma: Scheduled = 0.1
    sigma: float = 0.01
    every: int = 4
    share: float = 1.0
    reuse_logits: bool = True

    differentiates_twice = False

    def __post_init__(self) -> None:
        check_weight(self, "gamma")
        check_above_0(self, "sigma")
        check_every(self)
        in_range = 0 < self.share <= 1
        whole = in_range and abs(self.stride * self.share - 1) < 0.02
        check(self, "share", in_range, "must be above 0 and at most 1")
        check(self, "share", whole, "must be one n-th, such as 0.5, 0.33 or 0.25")

    @property
    def stride(self) -> int:
        """n: the penalty is computed at every n-th image."""
        return round(1 / self.share)

    def at(self, logits_of: LogitsOf, x: Tensor, y: Tensor, logits: Tensor, draws: Draws, nimg: int) -> Tensor:
        """The penalty at images `[N, C, H, W]` with labels and logits `[N]`; a scalar."""
        stride, chosen = self.stride, None
        if len(x) % stride:  # all images, of which some count: which ones must not depend on how the batch is split
            chosen, stride = stride * (draws.positions % stride == 0), 1
        if stride > 1:
            x, y, logits, draws = x[::stride], y[::stride], logits[::stride], Draws(draws.seed, draws.purpose, draws.positions[::stride])
        further = () if stride == 1 else (stride,)
        x = full_precision(x)
        noise = draws.normal("noise", *x.shape[1:]).to(x.dtype)
        moved = logits_of(laid_out_as(x + self.sigma * noise, x), y, *further)
        if not self.reuse_logits:
            logits = logits_of(x, y, *further)
        squares = ((moved - logits) / self.sigma).square()
        return 0.5 * value_at(self.gamma, nimg) * (squares if chosen is None else squares * chosen).mean()


@dataclass(frozen=True)
class FiniteDifferenceR1(FiniteDifference):
    """R1 by finite differences: gamma / 2 E ((D(x + sigma n) - D(x)) / sigma)^2 at real images (Lin et al. 2025).

    It needs no second derivative, so it goes with torch.compile, fp16 and any attention. docs/penalties.md explains its noise.
    """

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.x_real is not None and batch.y_real is not None and batch.logits_real is not None, "D's phase has real images"
        return self.at(batch.d_real, batch.x_real, batch.y_real, batch.logits_real, batch.draws, batch.nimg), {}


@dataclass(frozen=True)
class FiniteDifferenceR2(FiniteDifference):
    """R2 by finite differences: gamma / 2 E ((D(x + sigma n) - D(x)) / sigma)^2 at generated images."""

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.at(batch.d_fake, batch.x_fake, batch.y_fake, batch.logits_fake, batch.draws, batch.nimg), {}
