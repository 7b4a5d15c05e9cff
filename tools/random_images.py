"""Random images as a data set, for measuring: `data.name=random_images:RandomImages`. Time does not depend on what pictures show."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from gantrain.data import ImageSet, Source


@dataclass(frozen=True, kw_only=True)
class RandomImages(Source):
    """Attributes: size, how many; channels; num_classes. Labels go round."""

    size: int = 10_000
    channels: int = 3
    num_classes: int = 10

    def build(self) -> ImageSet:
        shape = (self.size, self.channels, self.resolution, self.resolution)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return ImageSet("random", torch.arange(self.size) % self.num_classes, [str(i) for i in range(self.num_classes)], self.channels, self.resolution, pixels)
