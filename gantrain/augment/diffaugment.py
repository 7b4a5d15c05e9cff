"""DiffAugment (Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gantrain.augment.augmentation import Augmentation
from gantrain.augment.gates import as_given, in_full, per_image, uniform
from gantrain.errors import check
from gantrain.randomness import Draws

SHIFT, HOLE = 1 / 8, 1 / 2  # of the size of the image


@dataclass(frozen=True)
class DiffAugment(Augmentation):
    """DiffAugment (Zhao et al. 2020): every image that D sees is transformed, always.

    Attributes:
        color: add a brightness in [-0.5, 0.5], multiply the distance from grey (not of grey images) by a factor in [0, 2] and the
            distance from the image's mean by a factor in [0.5, 1.5].
        translation: move the image by up to 1/8 of its size; what enters at an edge is 0, which is mid-grey.
        cutout: set a rectangle of half the image's size to 0; its middle is anywhere, so a part of it may lie outside.
    """

    color: bool = True
    translation: bool = True
    cutout: bool = True

    def __post_init__(self) -> None:
        check(
            self, "cutout", self.color or self.translation or self.cutout, "must be true if color and translation are not; or use name=none"
        )

    def apply(self, x: Tensor, draws: Draws, state: Mapping[str, Tensor], nimg: int) -> Tensor:
        result = x
        if self.color:
            result = recolor(in_full(result), uniform(draws, "color", 3))
        if self.translation:
            result = translate(result, *shifts(uniform(draws, "translation", 2), *x.shape[2:]))
        if self.cutout:
            result = cut_out(result, *corners(uniform(draws, "cutout", 2), *x.shape[2:]))
        return as_given(result, x)


def recolor(x: Tensor, u: Sequence[Tensor]) -> Tensor:
    """Brightness, saturation and contrast in turn, by three uniform numbers in (0, 1), `[N]` each."""
    brightness, saturation, contrast = (per_image(one.to(x.dtype)) for one in u)
    x = x + (brightness - 0.5)
    if x.shape[1] > 1:
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (x - grey) * (2 * saturation)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def shifts(u: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """(pixels downwards, to the right), uniform over the whole numbers up to 1/8 of the size, rounded; int64 `[N]`."""
    down, right = (int(size * SHIFT + 0.5) for size in (height, width))
    return (u[0] * (2 * down + 1)).long() - down, (u[1] * (2 * right + 1)).long() - right


def translate(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images moved by whole pixels, `[N]` each; what enters is 0."""
    rows = torch.arange(x.shape[2], device=x.device) - down[:, None]
    columns = torch.arange(x.shape[3], device=x.device) - right[:, None]
    inside = within(rows, x.shape[2])[:, :, None] & within(columns, x.shape[3])[:, None, :]
    place = rows.clamp(0, x.shape[2] - 1)[:, :, None] * x.shape[3] + columns.clamp(0, x.shape[3] - 1)[:, None, :]
    moved = x.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
    return torch.where(inside[:, None], moved, 0.0)


def within(place: Tensor, size: int) -> Tensor:
    """Whether places are on an axis of a size."""
    return (place >= 0) & (place < size)


def corners(u: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """First (row, column) of a hole of half the size whose middle is uniform over the image, int64 `[N]`; may lie outside."""
    rows, columns = hole_of(height), hole_of(width)
    # As published, the middle of a hole of even size lies at a corner of a pixel, of which there is one more.
    top, left = u[0] * (height + 1 - rows % 2), u[1] * (width + 1 - columns % 2)
    return top.long() - rows // 2, left.long() - columns // 2


def hole_of(size: int) -> int:
    """Pixels of the hole along an axis."""
    return int(size * HOLE + 0.5)


def cut_out(x: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Images with 0 in a rectangle of half their size, given its first row and column, `[N]` each."""
    rows = torch.arange(x.shape[2], device=x.device) - top[:, None]
    columns = torch.arange(x.shape[3], device=x.device) - left[:, None]
    hole = within(rows, hole_of(x.shape[2]))[:, :, None] & within(columns, hole_of(x.shape[3]))[:, None, :]
    return torch.where(hole[:, None], 0.0, x)
