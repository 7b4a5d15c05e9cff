"""Hinge loss (Lim and Ye 2017; Miyato et al. 2018), BigGAN's choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gantrain.losses.objective import Loss


@dataclass(frozen=True)
class Hinge(Loss):
    """D: E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))); G: -E D(G(z))."""

    generator_sees_real = False
    san = True

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean()

    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        return -logits_fake.mean()
