"""Relativistic pairing loss (Jolicoeur-Martineau 2019; for classes as Huang et al. 2024, "R3GAN", use it)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gantrain.losses.objective import Loss


@dataclass(frozen=True)
class Relativistic(Loss):
    """D: E softplus(D(G(z)) - D(x)); G: E softplus(D(x) - D(G(z))). The generator's loss needs real images too.

    Each real image is compared with one generated image: the i-th of a micro-batch with the i-th.

    Attributes:
        paired_labels: whether the two have the same class, in both phases, as in R3GAN. The generated images then have the classes of
            the real ones. With false, classes are drawn independently, as in gantrain before this key.
    """

    paired_labels: bool = True

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return F.softplus(logits_fake - logits_real).mean()

    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        assert logits_real is not None
        return F.softplus(logits_real - logits_fake).mean()
