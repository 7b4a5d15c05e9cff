"""Which images a transform is applied to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gantrain.devices import widest_float
from gantrain.randomness import Draws

Probability = float | Tensor  # a tensor is a scalar on the device
Rows = Tensor | slice


def uniform(draws: Draws, name: str, count: int) -> Sequence[Tensor]:
    """Uniform numbers in (0, 1), `[N]` each.

    In float64, since the last digit of a float32 logarithm or cosine depends on where in a batch it is computed.
    """
    return draws.uniform(name, count).to(widest_float(draws.positions.device)).unbind(1)


def gated(gate: Tensor, p: Probability, value: Tensor, neutral: float) -> tuple[Tensor, Tensor]:
    """(the value where a uniform number is below p, else the neutral value; where that is): of the same shape."""
    on = gate < p
    return torch.where(on, value, neutral), on


def normal(u: Tensor) -> Tensor:
    """Standard normal numbers of uniform ones, by the inverse of the distribution function."""
    return torch.special.ndtri(u)


def any_of(masks: Sequence[Tensor]) -> Tensor:
    """Where at least one of several masks is true, `[N]`."""
    return torch.stack(list(masks)).any(dim=0)


def per_image(values: Tensor) -> Tensor:
    """`[N]` as `[N, 1, 1, 1]`."""
    return values[:, None, None, None]


def in_full(x: Tensor) -> Tensor:
    """Images in float32 at least, since halves have too few digits for places and colors."""
    return x if x.dtype == torch.float64 else x.float()


def as_given(result: Tensor, x: Tensor) -> Tensor:
    """Transformed images in the dtype and the memory layout of the images."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return result.to(x.dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def waits(device: torch.device) -> bool:
    """Whether a device would have to be waited for to know how many images are touched."""
    return device.type != "cpu"


def only(touched: Tensor, transform: Callable[[Tensor, Rows], Tensor], x: Tensor) -> Tensor:
    """The images `[N, C, H, W]` transformed where they are touched; the others stay what they are to the bit.

    Args:
        touched: bool `[N]`.
        transform: (images, their rows in the batch) -> transformed images.
    """
    if waits(x.device):
        return torch.where(per_image(touched), transform(x, slice(None)), x)
    rows = touched.nonzero()[:, 0]
    return x.index_copy(0, rows, transform(x[rows], rows)) if len(rows) else x
