"""The transforms of consistency regularisation: a flip and a shift of a few pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gantrain.errors import UserError
from gantrain.losses.penalties.images import laid_out_as
from gantrain.randomness import Draws


def largest_move(side: int, shift: float) -> int:
    """A shift as a share of a side, in whole pixels, rounded down."""
    return int(side * shift + 1e-9)


def least_shift(side: int) -> float:
    """A shift, of few digits, that is a pixel of a side."""
    return math.ceil(10_000 / side) / 10_000


def jitter(x: Tensor, draws: Draws, flip: bool, shift: float) -> Tensor:
    """Images `[N, C, H, W]` as they are seen after a small movement of the camera; differentiable, laid out as they were.

    Args:
        flip: whether each image is mirrored with probability 1/2.
        shift: the largest shift in either direction, as a share of the side, in [0, 0.5]; rounded down to whole pixels. What comes in
            at a border is a reflection.

    Raises:
        UserError: the shift is less than a pixel.
    """
    before = x
    if flip:
        x = torch.where(draws.uniform("flip", 1, 1, 1) < 0.5, x.flip(3), x)
    moves = draws.uniform("shift", 2)
    for axis in (2, 3):
        side = x.shape[axis]
        most = largest_move(side, shift)
        if shift > 0 and not most:
            raise UserError(f"penalties: shift={shift:g} is less than a pixel of {side}; use {least_shift(side):g} or more, or 0")
        if most:
            move = (moves[:, axis - 2, None] * (2 * most + 1)).long() - most
            source = (torch.arange(side, device=x.device) + move).abs()
            source = side - 1 - (side - 1 - source).abs()
            shape = [len(x), 1, 1, 1]
            shape[axis] = side
            x = x.gather(axis, source.view(shape).expand(x.shape))
    return laid_out_as(x, before)
