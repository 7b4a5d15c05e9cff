"""Conversion between images as bytes and images as numbers, in one place.

Inside gantrain an image batch is float `[N, C, H, W]` in [-1, 1]; on disk, in data sets and before feature extractors it is uint8 in
0..255.
"""

from __future__ import annotations

import torch


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 in [-1, 1], same shape."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] to uint8 0..255, same shape: rounded to the nearest level, with values outside clipped.

    Truncating instead would darken an image by half a level, which FID notices.
    """
    return images.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
