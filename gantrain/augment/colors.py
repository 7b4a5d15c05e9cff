"""Color transforms of ADA: one affine map of the channels of each image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gantrain.augment.gates import Probability, any_of, gated, normal, per_image, uniform
from gantrain.randomness import Draws

BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # standard deviations: of an addend, and of the log2 of two factors


@dataclass(frozen=True)
class Colors:
    """What is done to each of N images, in this order. All `[N]`.

    Attributes:
        brightness: added to all channels.
        contrast: log2 of the factor of all channels.
        flip: whether the mean of the channels changes its sign.
        hue: angle in radians by which colors turn about the axis of greys.
        saturation: log2 of the factor of the distance from grey.
        touched: whether there is anything to do.
    """

    brightness: Tensor
    contrast: Tensor
    flip: Tensor
    hue: Tensor
    saturation: Tensor
    touched: Tensor


def draw_colors(draws: Draws, p: Probability, channels: int) -> Colors:
    """Each transform with probability p, of strengths as published (Karras et al. 2020, appendix B).

    Grey images have neither hue nor saturation, and hue is that of red, green and blue alone. What images lack is not drawn.
    """
    u = uniform(draws, "color", 10)
    brightness, brighter = gated(u[0], p, BRIGHTNESS * normal(u[1]), 0.0)
    contrast, stronger = gated(u[2], p, CONTRAST * normal(u[3]), 0.0)
    flip = (u[4] < p) & (u[5] < 0.5)
    hue, turned = gated(u[6], p if channels == 3 else 0.0, math.pi * (2 * u[7] - 1), 0.0)
    saturation, saturated = gated(u[8], p if channels > 1 else 0.0, SATURATION * normal(u[9]), 0.0)
    return Colors(brightness, contrast, flip, hue, saturation, any_of([brighter, stronger, flip, turned, saturated]))


def matrices_of(colors: Colors, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The map of the channels: factors `[N, C, C]` and addends `[N, 1, 1]`.

    The axis of greys is multiplied by the contrast and the flip; the colors across it by the contrast and the saturation, and turned.
    """
    device = colors.hue.device
    grey = torch.full((channels, channels), 1 / channels, device=device, dtype=dtype)
    across = torch.eye(channels, device=device, dtype=dtype) - grey
    contrast, saturation = colors.contrast.to(dtype).exp2(), colors.saturation.to(dtype).exp2()
    along = contrast * (1 - 2 * colors.flip.to(dtype))
    color = contrast * saturation
    hue = colors.hue.to(dtype)
    factors = along[:, None, None] * grey + (color * hue.cos())[:, None, None] * across
    if channels == 3:  # Rodrigues' formula: the cross product with the axis (1, 1, 1) / sqrt(3)
        turn = (across.roll(1, 0) - across.roll(-1, 0)) / math.sqrt(3)
        factors = factors + (color * hue.sin())[:, None, None] * turn
    return factors, (along * colors.brightness.to(dtype))[:, None, None]


def apply_colors(x: Tensor, colors: Colors) -> Tensor:
    """The images `[N, C, H, W]`, float32 or float64, in other colors; those that are not touched stay what they are to the bit."""
    factors, addends = matrices_of(colors, x.shape[1], x.dtype)
    return torch.where(per_image(colors.touched), torch.baddbmm(addends, factors, x.flatten(2)).view_as(x), x)
