"""Images at other places than their pixels, differentiable as often as anybody likes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BILINEAR, REFLECTION = 0, 2  # as torch numbers them


class Sample(torch.autograd.Function):
    """`[N, C, H, W]` at `[N, h, w, 2]` places without gradient, as `grid_sample` with reflection at the middle of the outermost pixels.

    The result is linear in the image, so its derivative is its adjoint and the derivative of that is itself again. torch's own
    `grid_sample` can be differentiated twice from 2.12 on only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = x.shape[2:]
        return F.grid_sample(x, places, mode="bilinear", padding_mode="reflection", align_corners=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return Adjoint.apply(grad, places, ctx.size), None


class Adjoint(torch.autograd.Function):
    """The adjoint of `Sample`: spreads `[N, C, h, w]` at the places over images of a size."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(places)
        image = y.new_zeros(()).expand(*y.shape[:2], *size)  # whose values the gradient does not depend on
        need = [True, False]
        spread, _ = torch.ops.aten.grid_sampler_2d_backward(y.contiguous(), image, places, BILINEAR, REFLECTION, True, need)
        return spread

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return Sample.apply(grad, places), None, None


def sample(x: Tensor, places: Tensor) -> Tensor:
    """Images at places by bilinear interpolation.

    Args:
        x: `[N, C, H, W]`.
        places: `[N, h, w, 2]`, column and row; -1 is the first pixel and 1 the last. Beyond them is the mirror image.
    """
    return Sample.apply(x, places)
