"""The transforms of consistency regularisation: a flip and a shift of a few pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from gantrain.randomness import Draws


def jitter(x: Tensor, draws: Draws, flip: bool, shift: float) -> Tensor:
    """Images `[N, C, H, W]` as they are seen after a small movement of the camera; differentiable.

    Args:
        flip: whether each image is mirrored with probability 1/2.
        shift: the largest shift in either direction, as a share of the side, in [0, 0.5]; rounded down to whole pixels. What comes in
            at a border is a reflection.
    """
    if flip:
        x = torch.where(draws.uniform("flip", 1, 1, 1) < 0.5, x.flip(3), x)
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    moves = draws.uniform("shift", 2)
    for axis in (2, 3):
        side = x.shape[axis]
        most = int(side * shift)
        if most:
            move = (moves[:, axis - 2, None] * (2 * most + 1)).long() - most
            source = (torch.arange(side, device=x.device) + move).abs()
            source = side - 1 - (side - 1 - source).abs()
            shape = [len(x), 1, 1, 1]
            shape[axis] = side
            x = x.gather(axis, source.view(shape).expand(x.shape))
    return x.contiguous(memory_format=layout)
