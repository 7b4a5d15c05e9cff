"""Geometric transforms of ADA: one affine warp of each image, without aliasing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gantrain.augment.gates import Probability, Rows, any_of, gated, normal, only, uniform
from gantrain.augment.sampling import sample
from gantrain.augment.wavelet import MARGIN, constant
from gantrain.randomness import Draws

SCALE, SHIFT = 0.2, 0.125  # standard deviations: of the log2 of a scale, and of a translation over the size


class Warp(NamedTuple):
    """What is done to each of N images about its middle, in this order. All `[N]`.

    Attributes:
        scale: log2 of the factor of the size.
        before: angle of the first rotation, counter-clockwise in radians.
        stretch: log2 of the factor of the width, and minus that of the height.
        after: angle of the second rotation.
        right, down: translation in pixels.
        touched: whether there is anything to do.
    """

    scale: Tensor
    before: Tensor
    stretch: Tensor
    after: Tensor
    right: Tensor
    down: Tensor
    touched: Tensor


def draw_warp(draws: Draws, p: Probability, height: int, width: int) -> Warp:
    """Each transform with probability p, of strengths as published (Karras et al. 2020, appendix B).

    Either rotation has a probability of 1 - sqrt(1 - p), so that an image is rotated at all with probability p.
    """
    u = uniform(draws, "geometric", 11)
    p_turn = 1 - (1 - p) ** 0.5
    scale, scaled = gated(u[0], p, SCALE * normal(u[1]), 0.0)
    before, turned = gated(u[2], p_turn, math.pi * (2 * u[3] - 1), 0.0)
    stretch, stretched = gated(u[4], p, SCALE * normal(u[5]), 0.0)
    after, turned_again = gated(u[6], p_turn, math.pi * (2 * u[7] - 1), 0.0)
    right, moved = gated(u[8], p, SHIFT * width * normal(u[9]), 0.0)
    down, _ = gated(u[8], p, SHIFT * height * normal(u[10]), 0.0)
    return Warp(scale, before, stretch, after, right, down, any_of([scaled, turned, stretched, turned_again, moved]))


def places_of(warp: Warp, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Where the samples of the warped images are in the images, `[N, 2 H - 1 + 2 MARGIN, 2 W - 1 + 2 MARGIN, 2]` as `sample` takes them.

    The samples lie at all half pixels, and `MARGIN` beyond either edge.
    """
    # Rows point downwards, so a counter-clockwise angle is negative there, and the inverse turns it back.
    cos_1, sin_1, cos_2, sin_2 = (f(angle.to(dtype)) for angle in (warp.before, warp.after) for f in (torch.cos, torch.sin))
    wide, high = ((-warp.scale + sign * warp.stretch).to(dtype).exp2() for sign in (-1, 1))
    # R(before)^-1 diag(wide, high) R(after)^-1 in (column, row), multiplied out: no matrix product that a device would round.
    xx, xy = cos_1 * wide * cos_2 - sin_1 * high * sin_2, -cos_1 * wide * sin_2 - sin_1 * high * cos_2
    yx, yy = sin_1 * wide * cos_2 + cos_1 * high * sin_2, -sin_1 * wide * sin_2 + cos_1 * high * cos_2
    device = warp.scale.device
    column = (torch.arange(2 * width - 1 + 2 * MARGIN, device=device, dtype=dtype) - MARGIN - (width - 1)) / 2
    row = (torch.arange(2 * height - 1 + 2 * MARGIN, device=device, dtype=dtype) - MARGIN - (height - 1)) / 2
    x, y = column - warp.right.to(dtype)[:, None], row - warp.down.to(dtype)[:, None]  # [N, w], [N, h] from the middle
    across, along = 2 / max(1, width - 1), 2 / max(1, height - 1)
    columns = (across * xx)[:, None, None] * x[:, None, :] + ((across * xy)[:, None] * y)[:, :, None]
    rows = (along * yx)[:, None, None] * x[:, None, :] + ((along * yy)[:, None] * y)[:, :, None]
    return torch.stack([columns, rows], dim=-1)


def apply_warp(x: Tensor, warp: Warp) -> Tensor:
    """The images `[N, C, H, W]`, float32 or float64, warped; those that are not touched stay what they are to the bit.

    As published, an image is warped at twice its resolution: a low-pass filter doubles it, it is sampled bilinearly, and a low-pass
    filter halves the samples, so that what becomes smaller does not alias. Beyond its edges an image goes on as its mirror image.
    """
    height, width = x.shape[2:]
    double_rows, halve_rows = (constant(name, height, x.dtype, x.device) for name in ("doubling", "halving"))
    double_columns, halve_columns = (constant(name, width, x.dtype, x.device) for name in ("doubling", "halving"))

    def transform(some: Tensor, rows: Rows) -> Tensor:
        doubled = double_rows @ (some @ double_columns.T)
        warped = sample(doubled, places_of(Warp(*(part[rows] for part in warp)), height, width, x.dtype))
        return halve_rows @ (warped @ halve_columns.T)

    return only(warp.touched, transform, x)
