"""Wasserstein loss (Arjovsky, Chintala and Bottou 2017, "Wasserstein generative adversarial networks")."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gantrain.losses.objective import Loss


@dataclass(frozen=True)
class Wasserstein(Loss):
    """D: E D(G(z)) - E D(x); G: -E D(G(z)) (Eqs. 2 and 3).

    The difference estimates a distance only if something bounds D's slope: a gradient penalty (Gulrajani et al. 2017) or spectral norm
    (Miyato et al. 2018). The paper's own way, weights of D that are clipped to [-0.01, 0.01], is not offered. D's loss has no lower
    bound, so the guard cannot tell from it that D has won.
    """

    generator_sees_real = False

    def discriminator(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        return logits_fake.mean() - logits_real.mean()

    def generator(self, logits_real: Tensor | None, logits_fake: Tensor) -> Tensor:
        return -logits_fake.mean()
