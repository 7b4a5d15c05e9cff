"""A data set of random images for benchmarks, whose timing does not depend on image content: `data.name=random_images:RandomImages`.

To write such images as a prepared data set for `data.name=packed data.root=FOLDER`:

    python tools/random_images.py --num 20000 --resolution 128 --classes 1000 --out FOLDER
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import command
import torch

from gantrain.data import ImageSet, Source, pack


@dataclass(frozen=True, kw_only=True)
class RandomImages(Source):
    """Images of uniform noise, whose labels cycle through the classes.

    Attributes:
        size: number of images.
        channels: number of colour channels.
        num_classes: number of classes.
    """

    size: int = 10_000
    channels: int = 3
    num_classes: int = 10

    def build(self) -> ImageSet:
        """All images in memory, the same on every call."""
        shape = (self.size, self.channels, self.resolution, self.resolution)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return ImageSet(
            "random",
            torch.arange(self.size) % self.num_classes,
            [str(i) for i in range(self.num_classes)],
            self.channels,
            self.resolution,
            pixels,
        )


def main() -> None:
    """Parse the arguments and write the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=command.positive, default=10_000, help="number of images (default: 10000)")
    parser.add_argument("--resolution", type=command.positive, required=True)
    parser.add_argument("--channels", type=command.positive, default=3, help="(default: 3)")
    parser.add_argument("--classes", type=command.positive, default=10, help="(default: 10)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to create")
    arguments = parser.parse_args()
    source = RandomImages(resolution=arguments.resolution, size=arguments.num, channels=arguments.channels, num_classes=arguments.classes)
    pack(source.build(), arguments.out, "random images")


if __name__ == "__main__":
    command.run(main)
