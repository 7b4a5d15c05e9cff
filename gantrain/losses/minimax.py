"""Minimax loss (Goodfellow et al. 2014, Eq. 1), whose generator's loss saturates."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gantrain.losses.objective import Loss


@dataclass(frozen=True)
class Minimax(Loss):
    """D: E softplus(-D(x)) + E softplus(D(G(z))); G: -E softplus(D(G(z))), which is E log(1 - sigmoid(D(G(z)))).

    G minimises what D maximises. Where D is sure that an image is generated, G's gradient vanishes; `nonsaturating`, from the same
    paper, has the same D and does not have this weakness.
    """

    generator_sees_real = False

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()

    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        return -F.softplus(logits_fake).mean()
