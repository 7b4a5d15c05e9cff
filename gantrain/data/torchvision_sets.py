"""CIFAR-10, CIFAR-100 and STL-10, downloaded and checked by torchvision.

CIFAR is read from its binary release, because the Python release is a pickle and gantrain never unpickles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gantrain import torchvision_ops  # noqa: F401 - before torchvision
from gantrain.data.imageset import ImageSet, Source, require_room_for_set, sum_array
from gantrain.data.unpacking import unpack
from gantrain.errors import UserError, one_line
from gantrain.field_marks import INCIDENTAL
from gantrain.home import expand_user
from gantrain.regular_file import check_regular, read_regular

STL10_PAGE = "https://ai.stanford.edu/~acoates/stl10/"
MOST_IMAGES = 50_000  # in a file of a release
MOST_NAMES_FILE = 2**16  # bytes of the file of class names


@dataclass(frozen=True)
class CifarRelease:
    """A binary release: its URL, its files and the format of its records (label bytes, then 3 x 32 x 32 image bytes)."""

    title: str
    url: str
    md5: str
    folder: str
    files: dict[str, list[str]]
    label_bytes: int  # CIFAR-100 stores a coarse label before the fine one; the last byte is used
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
        root: folder that contains `cifar-10-batches-bin/`, or into which it is downloaded.
        split: which part of the data set to use: "train" or "test" (10,000 images).
        download: whether to download the data set (162 MB) if it is missing.
    """

    root: str = field(default="data", metadata=INCIDENTAL)
    split: Literal["train", "test"] = "train"
    download: bool = field(default=True, metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        """One split in memory; raises as `read_cifar`."""
        return read_cifar(CIFAR10, self)


@dataclass(frozen=True, kw_only=True)
class Cifar100(Source):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training images 32x32 of a hundred classes.

    Attributes:
        root: folder that contains `cifar-100-binary/`, or into which it is downloaded.
        split: which part of the data set to use: "train" or "test" (10,000 images).
        download: whether to download the data set (161 MB) if it is missing.
    """

    root: str = field(default="data", metadata=INCIDENTAL)
    split: Literal["train", "test"] = "train"
    download: bool = field(default=True, metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        """One split in memory; raises as `read_cifar`."""
        return read_cifar(CIFAR100, self)


@dataclass(frozen=True, kw_only=True)
class Stl10(Source):
    """STL-10 (Coates, Ng and Lee 2011): 96x96 colour images of ten classes, 5,000 for training and 8,000 for testing.

    Attributes:
        root: folder that contains `stl10_binary/`, or into which it is downloaded.
        split: which part of the data set to use: "train", "test", or "unlabeled" (100,000 images without classes; requires
            `labels: false`).
        download: whether to download the data set (2.6 GB) if it is missing.
    """

    resolution: int = 96
    root: str = field(default="data", metadata=INCIDENTAL)
    split: Literal["train", "test", "unlabeled"] = "train"
    download: bool = field(default=True, metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        """One split in memory.

        Raises:
            UserError: the data set is missing and cannot be downloaded, or the unlabeled split is used with classes.
        """
        from torchvision.datasets import STL10

        if self.split == "unlabeled" and self.labels:
            raise UserError("data.labels: STL-10's unlabeled split has no classes; set data.labels=false")
        try:
            if self.download and not is_there(expand_user(self.root, "data.root") / STL10.base_folder):
                fetch(STL10.url, STL10.tgz_md5, self.root)
        except (RuntimeError, OSError) as error:
            raise not_there("STL-10", self.root, "stl10_binary", STL10_PAGE, error) from error
        try:
            data = STL10(self.root, split=self.split)
            names = list(data.classes)
        except Exception as error:  # at damaged files torchvision fails in many ways; AttributeError if only class_names.txt is missing
            raise not_there("STL-10", self.root, "stl10_binary", STL10_PAGE, error) from error
        labels = torch.from_numpy(np.maximum(data.labels, 0).astype(np.int64))
        names = names if self.split != "unlabeled" else ["all"]
        pixels = resized(torch.from_numpy(data.data), self.resolution)
        return ImageSet(f"stl10/{self.split}", labels, names, 3, self.resolution, pixels, origin=sum_array(data.data))


def read_cifar(release: CifarRelease, source: Cifar10 | Cifar100) -> ImageSet:
    """Reads one split of a CIFAR release, after downloading it if it is missing and `source.download` is true.

    Raises:
        UserError: the release is missing and cannot be downloaded, or one of its files is damaged.
    """
    folder = expand_user(source.root, "data.root") / release.folder
    needed = [*release.files[source.split], release.names]
    if source.download and not all(is_there(folder / name) for name in needed):
        try:
            fetch(release.url, release.md5, source.root)
        except (RuntimeError, OSError) as error:
            raise not_there(release.title, source.root, release.folder, release.url, error) from error
    image_parts, label_parts = [], []
    record = release.label_bytes + 3 * 32 * 32
    for name in needed:
        if not is_there(folder / name):
            raise not_there(release.title, source.root, release.folder, release.url, FileNotFoundError(f"no {folder / name}"))
    for name in release.files[source.split]:
        data = np.frombuffer(read_part(folder / name, MOST_IMAGES * record, folder), dtype=np.uint8)
        if data.size == 0 or data.size % record:
            raise UserError(
                f"{folder / name}: {data.size} bytes are not a whole number of {record}-byte records; delete {folder} and download it again"
            )
        data = data.reshape(-1, record)
        label_parts.append(data[:, release.label_bytes - 1])
        image_parts.append(data[:, release.label_bytes :].reshape(-1, 3, 32, 32))
    try:
        names = read_part(folder / release.names, MOST_NAMES_FILE, folder).decode().split()
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / release.names}: is not text ({one_line(error)}); delete {folder} and download it again") from None
    labels = torch.from_numpy(np.concatenate(label_parts).astype(np.int64))
    if int(labels.max()) >= len(names):
        raise UserError(f"{folder}: label {int(labels.max())} has no name in {release.names}; delete {folder} and download it again")
    published = np.concatenate(image_parts)
    pixels = resized(torch.from_numpy(published), source.resolution)
    name = f"{release.title.lower()}/{source.split}"
    return ImageSet(name, labels, names, 3, source.resolution, pixels, origin=sum_array(published))


def read_part(path: Path, at_most: int, folder: Path) -> bytes:
    """The bytes of a file of a release.

    Args:
        at_most: the largest size in bytes.
        folder: of the release, for the message.

    Raises:
        UserError: it cannot be read, is not a regular file, or is larger.
    """
    try:
        return read_regular(path, at_most)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); delete {folder} and download it again") from None


def fetch(url: str, md5: str, root: str) -> None:
    """Download an archive into `root`, unless it is already there, and unpack it into `root`.

    Raises:
        RuntimeError, OSError: the download failed, or its MD5 sum is wrong.
        UserError: the archive is damaged or unsafe to unpack.
    """
    from torchvision.datasets.utils import download_url

    folder = expand_user(root, "data.root")
    if is_there(folder / Path(url).name):
        check_regular(folder / Path(url).name)
    download_url(url, str(folder), md5=md5)
    unpack(folder / Path(url).name, folder)


def is_there(path: Path) -> bool:
    """Whether a file of a release exists; one that may not be looked at counts, and reading it says why."""
    try:
        return path.exists()
    except OSError:
        return True


def not_there(title: str, root: str, folder: str, url: str, error: Exception) -> UserError:
    """The error for a data set that is missing and cannot be downloaded."""
    return UserError(
        f"data.root: {title} is not under {root!r} ({one_line(error)});"
        f" download {url} on a machine with network access and unpack it to {Path(root) / folder}"
    )


def resized(pixels: torch.Tensor, resolution: int) -> torch.Tensor:
    """Resizes uint8 `[N, C, H, W]` with antialiasing; returns it unchanged if it already has the resolution.

    Raises:
        UserError: the memory does not hold the result.
    """
    if pixels.shape[-1] == resolution:
        return pixels
    require_room_for_set("the data set", len(pixels), pixels.shape[1], resolution, 2)
    from torchvision.transforms.v2.functional import resize

    return torch.cat([resize(chunk, [resolution, resolution], antialias=True) for chunk in pixels.split(4096)])
