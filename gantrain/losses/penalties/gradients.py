"""D's gradient with respect to an image, differentiable again."""

from __future__ import annotations

import torch
from torch import Tensor

from gantrain.losses.objective import LogitsOf
from gantrain.losses.penalties.images import full_precision


def gradient_norms(logits_of: LogitsOf, x: Tensor, y: Tensor) -> Tensor:
    """Euclidean norms of D's gradients with respect to images `[N, C, H, W]` with labels `[N]`: `[N]`, differentiable.

    A gradient of exactly zero has the subgradient 0, where the square root alone would give NaN.
    """
    x = full_precision(x).requires_grad_(True)
    (gradient,) = torch.autograd.grad(logits_of(x, y).sum(), x, create_graph=True)
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1)
