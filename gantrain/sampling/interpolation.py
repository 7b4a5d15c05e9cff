"""Ways from one latent, or one class, to another."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def between(z0: Tensor, z1: Tensor, t: float, truncation: float | None = None) -> Tensor:
    """The latent at t in [0, 1] on the way from z0 to z1, `[N, dim_z]` each: ((1-t) z0 + t z1) / sqrt((1-t)^2 + t^2).

    For independent standard normal z0 and z1 every point of the way is standard normal again, which the generator knows;
    the straight line's midpoint has half the variance. For latents that were cut at +-`truncation` the variance is kept, but the
    midpoint is no longer of the cut law and may reach sqrt(2) times as far: it is clamped to +-`truncation`.
    """
    return cut(((1 - t) * z0 + t * z1) / math.hypot(1 - t, t), truncation)


def circle(z0: Tensor, z1: Tensor, t: float, truncation: float | None = None) -> Tensor:
    """The latent at t of a closed way, `[N, dim_z]`: cos(2 pi t) z0 + sin(2 pi t) z1, the same at t and t + 1.

    For independent standard normal z0 and z1 it is standard normal at every t, and moves at one speed; where they were cut at
    +-`truncation` it is clamped to that, as in `between`.
    """
    return cut(math.cos(2 * math.pi * t) * z0 + math.sin(2 * math.pi * t) * z1, truncation)


def cut(z: Tensor, truncation: float | None) -> Tensor:
    """z clamped to +-`truncation`, where there is one."""
    return z if truncation is None else z.clamp(-truncation, truncation)


def mixture(y0: Tensor, y1: Tensor, t: float, num_classes: int) -> Tensor:
    """Classes at t in [0, 1] on the way from labels y0 to labels y1, int64 `[N]`: weights float32 `[N, num_classes]` of sum one."""
    return torch.lerp(*(torch.nn.functional.one_hot(y, num_classes).float() for y in (y0, y1)), t)
