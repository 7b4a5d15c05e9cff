"""Non-saturating logistic loss (Goodfellow et al. 2014)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gantrain.losses.objective import Loss


@dataclass(frozen=True)
class NonSaturating(Loss):
    """D: E softplus(-D(x)) + E softplus(D(G(z))); G: E softplus(-D(G(z)))."""

    generator_sees_real = False
    san = True

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()

    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        return F.softplus(-logits_fake).mean()
