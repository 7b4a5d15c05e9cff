"""Interpolation of latents and classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate(z0: Tensor, z1: Tensor, t: float, truncation: float | None = None) -> Tensor:
    """Latents `[N, dim_z]` at t in [0, 1] between z0 and z1: ((1-t) z0 + t z1) / sqrt((1-t)^2 + t^2).

    For independent standard normal z0 and z1 every point is standard normal again, as the generator expects; on the straight
    line the midpoint has half the variance. For latents truncated at +-`truncation` the variance is kept as well, but the
    midpoint no longer follows the truncated distribution and may reach sqrt(2) times as far, so it is clamped to +-`truncation`.
    """
    return clamp(((1 - t) * z0 + t * z1) / math.hypot(1 - t, t), truncation)


def rotate(z0: Tensor, z1: Tensor, t: float, truncation: float | None = None) -> Tensor:
    """Latents `[N, dim_z]` at t on the circle cos(2 pi t) z0 + sin(2 pi t) z1, the same at t and t + 1.

    For independent standard normal z0 and z1 every point is standard normal, and the speed is constant. Truncated latents are
    clamped as in `interpolate`.
    """
    return clamp(math.cos(2 * math.pi * t) * z0 + math.sin(2 * math.pi * t) * z1, truncation)


def mix_classes(y0: Tensor, y1: Tensor, t: float, num_classes: int) -> Tensor:
    """Mix labels y0 and y1, int64 `[N]`, at t in [0, 1]: class weights, float32 `[N, num_classes]`, each row adding up to 1."""
    return torch.lerp(F.one_hot(y0, num_classes).float(), F.one_hot(y1, num_classes).float(), t)


def clamp(z: Tensor, truncation: float | None) -> Tensor:
    """Clamp z to +-`truncation`; None leaves it alone."""
    return z if truncation is None else z.clamp(-truncation, truncation)
