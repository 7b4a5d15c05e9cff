"""Filtering in image space, noise and cutout of ADA."""

from __future__ import annotations

import torch
from torch import Tensor

from gantrain.augment.gates import Probability, Rows, gated, normal, only, per_image, uniform
from gantrain.augment.wavelet import BANDS, constant
from gantrain.randomness import Draws

POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # that natural images have in the four bands, as published: a spectrum of 1/f
GAIN, NOISE, CUTOUT = 1.0, 0.1, 0.5  # deviation of the log2 of a gain; of the deviation of the noise; size of the hole over the image's


def draw_gains(draws: Draws, p: Probability) -> tuple[Tensor, Tensor]:
    """(gains of the four bands `[N, 4]`, where one of them is not 1 `[N]`).

    Each band is amplified with probability p, and all are then scaled so that the expected power stays what it was.
    """
    u = torch.stack(list(uniform(draws, "filter", 2 * BANDS)), dim=1)
    gates, values = u[:, :BANDS], u[:, BANDS:]
    gains, on = gated(gates, p, (GAIN * normal(values)).exp2(), 1.0)
    # The powers sum to 1, so a gain g of one band alone multiplies the power of an image by 1 + power (g^2 - 1).
    scale = torch.ones_like(gains[:, 0])
    for band, power in enumerate(POWER):
        scale = scale * (1 + power * (gains[:, band].square() - 1)).rsqrt()
    return gains * scale[:, None], on.any(dim=1)


def apply_gains(x: Tensor, gains: Tensor, touched: Tensor) -> Tensor:
    """The images `[N, C, H, W]` with their bands amplified along rows and columns; those that are not touched stay as they are."""
    gains = gains.to(x.dtype)

    def transform(some: Tensor, of: Rows) -> Tensor:
        rows, columns = ((gains[of] @ constant("bands", n, x.dtype, x.device).flatten(1)).view(-1, 1, n, n) for n in x.shape[2:])
        return rows @ (some @ columns.mT)

    return only(touched, transform, x)


def add_noise(x: Tensor, draws: Draws, p: Probability) -> Tensor:
    """The images `[N, C, H, W]` with normal noise in every value, whose deviation is |N(0, 0.1^2)|, with probability p."""
    gate, u = uniform(draws, "noise", 2)
    deviation, touched = gated(gate, p, NOISE * normal((1 + u) / 2), 0.0)
    noise = draws.normal("noise/values", *x.shape[1:]).to(x.dtype)
    return torch.where(per_image(touched), x + per_image(deviation.to(x.dtype)) * noise, x)


def cut_out(x: Tensor, draws: Draws, p: Probability) -> Tensor:
    """The images `[N, C, H, W]` with 0, mid-grey, in a rectangle of half their size anywhere, with probability p."""
    gate, *middles = uniform(draws, "cutout", 3)
    inside = []
    for middle, size in zip(middles, x.shape[2:]):
        pixel = (torch.arange(size, device=x.device) + 0.5) / size
        inside.append((pixel - middle[:, None]).abs() < CUTOUT / 2)
    rows, columns = inside
    return torch.where(((gate < p)[:, None, None] & rows[:, :, None] & columns[:, None, :])[:, None], 0.0, x)
