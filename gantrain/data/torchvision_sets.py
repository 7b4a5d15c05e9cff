"""CIFAR-10, CIFAR-100 and STL-10, downloaded and checked by torchvision.

CIFAR is read from its binary release: the Python release is a pickle, and gantrain unpickles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gantrain import torchvision_ops  # noqa: F401 - before torchvision
from gantrain.data.imageset import ImageSet, Source
from gantrain.data.unpacking import unpack
from gantrain.errors import UserError, one_line
from gantrain.field_marks import INCIDENTAL


@dataclass(frozen=True)
class CifarRelease:
    """Where a binary release lies and how its records are made: label bytes, then 3 x 32 x 32 image bytes."""

    title: str
    url: str
    md5: str
    folder: str
    files: dict[str, list[str]]
    label_bytes: int  # CIFAR-100 has a coarse label in front of the fine one; the last byte counts
    names: str


CIFAR10 = CifarRelease(
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    files={"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
    label_bytes=1,
    names="batches.meta.txt",
)
CIFAR100 = CifarRelease(
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    files={"train": ["train.bin"], "test": ["test.bin"]},
    label_bytes=2,
    names="fine_label_names.txt",
)


@dataclass(frozen=True, kw_only=True)
class Cifar10(Source):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training images 32x32 of ten classes.

    Attributes:
        root: the folder that contains, or receives, `cifar-10-batches-bin/`.
        split: "train" or "test".
        download: fetch the release when it is not there.
    """

    root: str = field(default="data", metadata=INCIDENTAL)
    split: Literal["train", "test"] = "train"
    download: bool = field(default=True, metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        return read_cifar(CIFAR10, self)


@dataclass(frozen=True, kw_only=True)
class Cifar100(Source):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training images 32x32 of a hundred classes.

    Attributes:
        root: the folder that contains, or receives, `cifar-100-binary/`.
        split: "train" or "test".
        download: fetch the release when it is not there.
    """

    root: str = field(default="data", metadata=INCIDENTAL)
    split: Literal["train", "test"] = "train"
    download: bool = field(default=True, metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        return read_cifar(CIFAR100, self)


@dataclass(frozen=True, kw_only=True)
class Stl10(Source):
    """STL-10 (Coates, Ng and Lee 2011): 96x96 colour images of ten classes, 5,000 for training and 8,000 for testing.

    Attributes:
        root: the folder that contains, or receives, `stl10_binary/`.
        split: "train", "test", or "unlabeled" (100,000 images without classes; needs `labels: false`).
        download: fetch the set when it is not there.
    """

    resolution: int = 96
    root: str = field(default="data", metadata=INCIDENTAL)
    split: Literal["train", "test", "unlabeled"] = "train"
    download: bool = field(default=True, metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        from torchvision.datasets import STL10

        if self.split == "unlabeled" and self.labels:
            raise UserError("data.labels: STL-10's unlabeled split has no classes; set data.labels=false")
        try:
            if self.download and not (Path(self.root).expanduser() / STL10.base_folder).is_dir():
                fetch(STL10.url, STL10.tgz_md5, self.root)
            data = STL10(self.root, split=self.split)
            names = list(data.classes)
        except (RuntimeError, OSError, AttributeError) as error:  # the last where only class_names.txt is missing
            raise not_there("STL-10", self.root, "stl10_binary", "https://ai.stanford.edu/~acoates/stl10/", error) from error
        labels = torch.from_numpy(np.maximum(data.labels, 0).astype(np.int64))
        names = names if self.split != "unlabeled" else ["all"]
        pixels = resized(torch.from_numpy(data.data), self.resolution)
        return ImageSet(f"stl10/{self.split}", labels, names, 3, self.resolution, pixels)


def read_cifar(release: CifarRelease, source: Cifar10 | Cifar100) -> ImageSet:
    """A split of a CIFAR release, downloaded first when it is not there and may be.

    Raises:
        UserError: the release is neither there nor to be had, or a file of it is cut short.
    """
    folder = Path(source.root).expanduser() / release.folder
    needed = [*release.files[source.split], release.names]
    if source.download and not all((folder / name).is_file() for name in needed):
        try:
            fetch(release.url, release.md5, source.root)
        except (RuntimeError, OSError) as error:
            raise not_there(release.title, source.root, release.folder, release.url, error) from error
    images, labels = [], []
    record = release.label_bytes + 3 * 32 * 32
    for name in needed:
        if not (folder / name).is_file():
            raise not_there(release.title, source.root, release.folder, release.url, FileNotFoundError(f"no {folder / name}"))
    for name in release.files[source.split]:
        data = np.fromfile(folder / name, dtype=np.uint8)
        if data.size == 0 or data.size % record:
            raise UserError(
                f"{folder / name}: {data.size} bytes are no whole number of {record}-byte records; delete {folder} and fetch it again"
            )
        data = data.reshape(-1, record)
        labels.append(data[:, release.label_bytes - 1])
        images.append(data[:, release.label_bytes :].reshape(-1, 3, 32, 32))
    names = (folder / release.names).read_text().split()
    labels = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    if int(labels.max()) >= len(names):
        raise UserError(f"{folder}: label {int(labels.max())} has no name in {release.names}; delete {folder} and fetch it again")
    pixels = resized(torch.from_numpy(np.concatenate(images)), source.resolution)
    return ImageSet(f"{release.title.lower()}/{source.split}", labels, names, 3, source.resolution, pixels)


def fetch(url: str, md5: str, root: str) -> None:
    """Download an archive into `root`, unless it is there already, and unpack it beside itself.

    Raises:
        RuntimeError, OSError: it cannot be had, or its sum is another.
        UserError: it holds what no archive of data holds.
    """
    from torchvision.datasets.utils import download_url

    folder = Path(root).expanduser()
    download_url(url, str(folder), md5=md5)
    unpack(folder / Path(url).name, folder)


def not_there(title: str, root: str, folder: str, url: str, error: Exception) -> UserError:
    """The one line for a set that is neither on disk nor downloadable."""
    return UserError(
        f"data.root: {title} is not under {root!r} ({one_line(error)});"
        f" get {url} where there is network and unpack it to {Path(root) / folder}"
    )


def resized(pixels: torch.Tensor, resolution: int) -> torch.Tensor:
    """uint8 `[N, C, H, W]` resized with antialiasing, unchanged where it has the resolution already."""
    if pixels.shape[-1] == resolution:
        return pixels
    from torchvision.transforms.v2.functional import resize

    return torch.cat([resize(chunk, [resolution, resolution], antialias=True) for chunk in pixels.split(4096)])
