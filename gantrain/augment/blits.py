"""Pixel blitting of ADA: transforms that move pixels and change none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gantrain.augment.gates import Probability, uniform
from gantrain.augment.wavelet import mirrored
from gantrain.randomness import Draws

REACH = 0.125  # of the size, on either side


@dataclass(frozen=True)
class Blits:
    """What is done to each of N images, in this order.

    Attributes:
        flip: whether it is mirrored left to right, bool `[N]`.
        quarters: counter-clockwise quarter turns, int64 `[N]`; of images that are not square 0 or 2.
        down, right: pixels that it is moved by, int64 `[N]`; what enters at an edge is the mirror image.
    """

    flip: Tensor
    quarters: Tensor
    down: Tensor
    right: Tensor


def draw_blits(draws: Draws, p: Probability, height: int, width: int) -> Blits:
    """Each transform with probability p, of strengths as published (Karras et al. 2020, appendix B).

    With probability p an image is mirrored or not, at even odds, and turned by 0 to 3 quarters; so p/2 are mirrored and 3p/4 turned.
    """
    u = uniform(draws, "blit", 7)
    turns = 4 if height == width else 2
    quarters = (u[3] * turns).long() * (4 // turns)
    down, right = (((2 * u[5] - 1) * (REACH * height)).round().long(), ((2 * u[6] - 1) * (REACH * width)).round().long())
    moved = u[4] < p
    return Blits((u[0] < p) & (u[1] < 0.5), quarters * (u[2] < p), down * moved, right * moved)


def apply_blits(x: Tensor, blits: Blits) -> Tensor:
    """The images `[N, C, H, W]` with their pixels in other places, to the bit."""
    height, width = x.shape[2:]
    rows = mirrored(torch.arange(height, device=x.device)[:, None] - blits.down[:, None, None], height)  # [N, H, 1]
    columns = mirrored(torch.arange(width, device=x.device) - blits.right[:, None, None], width)  # [N, 1, W]
    turn = blits.quarters[:, None, None]
    # A quarter turn takes column j of the image to row H - 1 - j; in places to read from, backwards.
    row = torch.where(turn % 2 == 0, rows, columns)
    column = torch.where(turn % 2 == 0, columns, width - 1 - rows)
    row = torch.where(turn >= 2, height - 1 - row, row)
    column = torch.where(turn >= 2, width - 1 - column, column)
    column = torch.where(blits.flip[:, None, None], width - 1 - column, column)
    place = (row * width + column).flatten(1)
    return x.flatten(2).gather(2, place[:, None].expand(-1, x.shape[1], -1)).view_as(x)
