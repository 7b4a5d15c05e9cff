"""scikit-learn's 1,797 handwritten digits, which need no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from gantrain.data.imageset import ImageSet, Source, require_room_for_set, sum_array


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """The UCI optical digits test set (Alpaydin and Kaynak 1998): 8x8 grey images of ten classes, resized bicubically."""

    resolution: int = 16

    def build(self) -> ImageSet:
        """All digits in memory, 1 channel."""
        from sklearn.datasets import load_digits

        data = load_digits()
        require_room_for_set("digits", len(data.images), 1, self.resolution, 9)  # two copies of 4 bytes, and the result
        grey = torch.from_numpy(data.images).float()[:, None] * (255 / 16)  # [1797, 1, 8, 8], levels 0..16 to 0..255
        size = (self.resolution, self.resolution)
        pixels = F.interpolate(grey, size=size, mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
        labels = torch.from_numpy(data.target).to(torch.int64)
        names, origin = [str(d) for d in range(10)], sum_array(data.images.astype(np.uint8))
        return ImageSet("digits", labels, names, 1, self.resolution, pixels, named=True, origin=origin)
