"""Least-squares loss (Mao et al. 2017, "Least squares generative adversarial networks")."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gantrain.errors import check
from gantrain.losses.objective import Loss


@dataclass(frozen=True)
class LeastSquares(Loss):
    """D: E (D(x) - b)^2 / 2 + E (D(G(z)) - a)^2 / 2; G: E (D(G(z)) - c)^2 / 2. The factor 1/2 is the paper's (Eq. 2).

    The defaults are its 0-1 coding, a = 0 and b = c = 1 (Eq. 9), as in most implementations. a = -1, b = 1, c = 0 (Eq. 8) makes G
    minimise a Pearson chi-squared divergence, since then b - c = 1 and b - a = 2.

    Attributes:
        a: what D's logit of a generated image should be.
        b: what D's logit of a real image should be.
        c: what G wants D's logit of a generated image to be.
    """

    a: float = 0.0
    b: float = 1.0
    c: float = 1.0

    generator_sees_real = False

    def __post_init__(self) -> None:
        for name in ("a", "b", "c"):
            check(self, name, math.isfinite(getattr(self, name)), "must be finite")
        check(self, "b", self.b > self.a, f"must be above a ({self.a:g}): D's logits are higher for real images")
        check(self, "c", self.c > self.a, f"must be above a ({self.a:g}), or G would help D")

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return 0.5 * (logits_real - self.b).square().mean() + 0.5 * (logits_fake - self.a).square().mean()

    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        return 0.5 * (logits_fake - self.c).square().mean()
