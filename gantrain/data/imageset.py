"""A data set as the trainer sees it: uint8 images of one size, labels, names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gantrain.errors import UserError, check
from gantrain.field_marks import INCIDENTAL

Where = Literal["auto", "device", "host", "disk"]
TRIES = 100  # images after an unreadable one that may stand in for it


@dataclass(frozen=True, kw_only=True)
class Source:
    """What every data set has in its `data:` section.

    Attributes:
        resolution: height and width of the images handed out.
        flip: mirror every image with probability one half.
        labels: false trains without classes, whatever the data has.
        keep_in: where the images live: "device", "host" (memory), "disk" (decoded as they are needed), or "auto", the
            first of these in which they fit.
        workers: processes a training process that decode ahead when the images stay on disk.
        on_error: what an image that cannot be read does: "stop" ends the run with its name; "skip" names it and puts the next
            readable image of its class in its place.
    """

    resolution: int = 32
    flip: bool = False
    labels: bool = True
    keep_in: Where = field(default="auto", metadata=INCIDENTAL)
    workers: int = field(default=4, metadata=INCIDENTAL)
    on_error: Literal["stop", "skip"] = field(default="stop", metadata=INCIDENTAL)

    def __post_init__(self) -> None:
        check(self, "resolution", self.resolution >= 1, "must be at least 1")
        check(self, "workers", self.workers >= 0, "must be at least 0")


@dataclass
class ImageSet(Dataset):
    """Images `[C, resolution, resolution]` uint8 with integer labels, in memory or decoded on demand.

    Attributes:
        name: for messages and records.
        labels: int64 `[N]`.
        class_names: one a class; labels index it.
        channels, resolution: of every image.
        pixels: uint8 `[N, C, H, W]`, or None when images are decoded one by one.
        decode: index to uint8 `[C, H, W]`; raises `UserError` naming the file. Needed when `pixels` is None.
        content: SHA-256 of the files that images are decoded from, once they have been read.
        skips: whether the next readable image of its class takes the place of one that is not.
        skipped: what was wrong with those that were skipped before the run, by number.
        mapped: whether `pixels` is a file that is mapped into memory, whose pages are read as they are needed.
        verify: looks at every image once before a run, with a bar; raises `UserError`. None where there is nothing to be found.
    """

    name: str
    labels: Tensor
    class_names: list[str]
    channels: int
    resolution: int
    pixels: Tensor | None = None
    decode: Callable[[int], Tensor] | None = None
    content: str = ""
    skips: bool = False
    skipped: dict[int, str] = field(default_factory=dict)
    mapped: bool = False
    verify: Callable[[Callable], None] | None = field(default=None, repr=False)
    _fingerprint: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __getitem__(self, index: int) -> tuple[Tensor | UserError, int]:
        """(image, label); the image is the error itself where it cannot be had, since a worker process cannot raise it whole."""
        image, label, _ = self.fetch(index)
        return image, label

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor | UserError, int, list[str]]]:
        """What a `DataLoader` asks for, for `collate`."""
        return [self.fetch(index) for index in indices]

    def fetch(self, index: int) -> tuple[Tensor | UserError, int, list[str]]:
        """(image or why it cannot be had, label, what was skipped for it)."""
        label = int(self.labels[index])
        if self.pixels is not None:
            return self.pixels[index], label, []
        try:
            return self.decode(index), label, []
        except UserError as error:
            return (error, label, []) if not self.skips else (*self.stand_in(index, error), [str(error)])

    def stand_in(self, index: int, error: UserError) -> tuple[Tensor | UserError, int]:
        """The next readable image of the same class, and its label; the error where the class has none."""
        label = self.labels[index]
        others = torch.nonzero(self.labels == label)[:, 0]
        at = int(torch.searchsorted(others, index))
        for other in torch.cat([others[at + 1 :], others[:at]])[:TRIES].tolist():
            try:
                return self.decode(other), int(label)
            except UserError:
                continue
        return UserError(f"{error}; nor can the {min(TRIES, len(others) - 1)} images of its class after it be read"), int(label)

    def unlabelled(self) -> ImageSet:
        """The same images as a single class."""
        self.labels, self.class_names = torch.zeros_like(self.labels), ["all"]
        return self

    @property
    def bytes(self) -> int:
        """Size in memory once decoded."""
        return len(self) * self.channels * self.resolution**2

    @property
    def listing(self) -> str:
        """SHA-256 of what the images are called, how they are made and labelled, whatever their content."""
        digest = hashlib.sha256(f"{self.channels}x{self.resolution}x{self.resolution} {self.class_names}".encode())
        digest.update(self.labels.cpu().numpy().astype(np.int64).tobytes())
        digest.update(self.decode.listing().encode() if hasattr(self.decode, "listing") else b"")
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content: of names and bytes of the files that images come from, or of what was noted of them, else of the pixels.

        It does not depend on whether files have been decoded into memory.
        """
        if not self._fingerprint:
            digest = hashlib.sha256(f"{self.channels}x{self.resolution}x{self.resolution}".encode())
            digest.update(self.labels.cpu().numpy().astype(np.int64).tobytes())
            if self.decode is not None or self.content:
                digest.update(self.content.encode())
            else:
                for chunk in self.pixels.split(4096):
                    digest.update(chunk.cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def numbered_classes(name: str, largest: int, count: int) -> list[str]:
    """Names of the classes of `count` images whose labels are numbers up to `largest`.

    Raises:
        UserError: there are more classes than images; the list would be as long as any number in a file.
    """
    if largest >= count:
        remedy = "number the labels 0, 1, 2, ... without gaps, or set data.labels=false"
        raise UserError(f"{name}: label {largest} makes more classes than its {count:,} images; {remedy}")
    return [str(i) for i in range(largest + 1)]


def collate(items: list[tuple[Tensor | UserError, int, list[str]]]) -> tuple[Tensor, Tensor, list[str]] | UserError:
    """A batch of decoded images and labels and what was skipped for it, or the first error among them."""
    for image, *_ in items:
        if isinstance(image, UserError):
            return image
    images, labels, skipped = zip(*items)
    return torch.stack(images), torch.tensor(labels), [line for lines in skipped for line in lines]
