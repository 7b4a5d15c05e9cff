"""scikit-learn's 1,797 handwritten digits, which need no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from gantrain.data.imageset import ImageSet, Source, require_room_for_set, sum_array
from gantrain.errors import check

ALL = 1797  # images of the set


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """The UCI optical digits test set (Alpaydin and Kaynak 1998): 8x8 grey images of ten classes, resized bicubically.

    Attributes:
        num_images: use so many, the same number of each class as far as they divide, spread evenly over the writers; null uses all.
    """

    resolution: int = 16
    num_images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        possible = self.num_images is None or 10 <= self.num_images <= ALL
        check(self, "num_images", possible, f"must be between 10 and {ALL}, or null for all")

    def build(self) -> ImageSet:
        """The digits in memory, 1 channel."""
        from sklearn.datasets import load_digits

        data = load_digits()
        images, target = data.images, data.target
        if self.num_images is not None:
            kept = chosen(target, self.num_images)
            images, target = images[kept], target[kept]
        require_room_for_set("digits", len(images), 1, self.resolution, 9)  # two copies of 4 bytes, and the result
        grey = torch.from_numpy(images).float()[:, None] * (255 / 16)  # [N, 1, 8, 8], levels 0..16 to 0..255
        size = (self.resolution, self.resolution)
        pixels = F.interpolate(grey, size=size, mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
        labels = torch.from_numpy(target).to(torch.int64)
        names, origin = [str(d) for d in range(10)], sum_array(images.astype(np.uint8))
        return ImageSet("digits", labels, names, 1, self.resolution, pixels, named=True, origin=origin)


def chosen(target: np.ndarray, number: int) -> np.ndarray:
    """The positions, in order, of `number` digits: of each class the same number, or one more, as far as it has
    them, at even distances in the set's order.

    The set is ordered by writer, so its first hundred digits would be those of a few.

    Args:
        target: the class of each digit.
    """
    places = [np.flatnonzero(target == one) for one in np.unique(target)]
    shares = [0] * len(places)
    while sum(shares) < number:  # one for each class in turn, as long as it has more
        for i, place in enumerate(places):
            shares[i] += shares[i] < len(place) and sum(shares) < number
    return np.sort(np.concatenate([place[np.arange(share) * len(place) // share] for place, share in zip(places, shares)]))
