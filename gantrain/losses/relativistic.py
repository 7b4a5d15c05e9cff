"""Relativistic pairing loss (Jolicoeur-Martineau 2019; the form used by Huang et al. 2024, "R3GAN", but for classes)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gantrain.losses.objective import Loss


@dataclass(frozen=True)
class Relativistic(Loss):
    """D: E softplus(D(G(z)) - D(x)); G: E softplus(D(x) - D(G(z))). The generator's loss needs real images too.

    Each real image is compared with one generated image. In a class-conditional run the two are of classes drawn independently,
    where R3GAN generates an image of the real one's class.
    """

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return F.softplus(logits_fake - logits_real).mean()

    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        assert logits_real is not None
        return F.softplus(logits_real - logits_fake).mean()
