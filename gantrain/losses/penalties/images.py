"""Images as penalties hand them to D."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Images in at least fp32, without gradient: small perturbations, and squares of gradients, would be lost in 16 bits."""
    x = x.detach()
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """The same values with the strides and the dtype of other images, so that a compiled D need not be compiled for these too.

    Images of one channel are contiguous in both layouts, and keep one of two sets of strides.
    """
    return torch.empty_like(like).copy_(x)
