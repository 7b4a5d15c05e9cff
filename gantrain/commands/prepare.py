"""`gantrain prepare`: decode, crop and resize every image of a data set once, and write a memory-mapped array.

Several threads decode. The SHA-256 of every 512 images is stored with the data set. `--verify` checks it, and so does the first
training run on a machine.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from gantrain import torchvision_ops  # noqa: F401 - before torchvision
from gantrain.data import DATASETS, Archive, Folder, ImageSet, intake, pack
from gantrain.data.block_record import DONE, read_done
from gantrain.data.decoding import MOST_PIXELS, Undecodable, refuse_bomb, resized_image, translate_errors
from gantrain.data.imageset import ImageDecoder, numbered_classes
from gantrain.data.intake import audit, refuse_impossible
from gantrain.data.listing import is_folder
from gantrain.data.packed import drafts, read_head, read_packed, verify
from gantrain.data.room import ROOM
from gantrain.errors import InvalidField, UserError, brief, did_you_mean, in_words
from gantrain.home import expand_user
from gantrain.interruption import Interruption, Stopped, exit_status
from gantrain.regular_file import check_regular

BUILT_IN = ("cifar10", "cifar100", "stl10", "digits")
MOST_CHUNK = 2**30  # bytes of a part of an HDF5 file
# torchvision's labelled image sets that can be read without unpickling, with the arguments of each.
TORCHVISION: dict[str, dict[str, Any]] = {
    "Caltech101": {"target_type": "category"},
    "Caltech256": {},
    "DTD": {"split": "train"},
    "EuroSAT": {},
    "FGVCAircraft": {"split": "train"},
    "FashionMNIST": {"train": True},
    "Flowers102": {"split": "train"},
    "Food101": {"split": "train"},
    "Imagenette": {"split": "train"},
    "KMNIST": {"train": True},
    "MNIST": {"train": True},
    "OxfordIIITPet": {"split": "trainval"},
    "SUN397": {},
    "SVHN": {"split": "train"},
}
# Errors of gantrain.data name configuration keys; here they are replaced by this command's options.
IN_OPTIONS = {
    "data.root: ": "",
    "point data.root at the folder": "pass the folder",
    "set data.labels=false": "pass --no-labels",
    "set data.root=": "pass ",
    "set data.on_error=skip": "pass --on-error skip",
    "data.resolution: ": "--resolution: ",
    "set a smaller data.resolution": "use a smaller --resolution",
}


def call(arguments: argparse.Namespace) -> int:
    """Prepare or verify a data set; the exit status.

    Raises:
        UserError: a mistake in the arguments, or in the data; names options, not configuration keys.
    """
    try:
        with Interruption():
            if arguments.verify is not None:
                check_again(Path(arguments.verify))
                return 0
            return prepare(arguments)
    except UserError as error:
        text = str(error)
        for key, option in IN_OPTIONS.items():
            text = text.replace(key, option)
        raise UserError(text) from None


def prepare(arguments: argparse.Namespace) -> int:
    """Prepare a data set; the exit status.

    Raises:
        UserError: an argument is missing or invalid, the source is unreadable, or images do not decode.
    """
    needed = {"SOURCE": arguments.source, "--out": arguments.out, "--resolution": arguments.resolution}
    if missing := [name for name, value in needed.items() if value is None]:
        raise UserError(f"missing: {', '.join(missing)}; see `gantrain prepare --help`")
    if arguments.resolution < 1:
        raise UserError(f"--resolution: must be at least 1, got {arguments.resolution}")
    images, out = source_of(arguments), Path(arguments.out)
    if arguments.no_labels:
        images = images.unlabelled()
    refuse_impossible(images, wanted_classes=not arguments.no_labels)
    images.skips = arguments.on_error == "skip"
    try:
        made = pack(images, out, f"{arguments.source} at {arguments.resolution}, {arguments.filter}", bar("preparing"))
    except (KeyboardInterrupt, Stopped) as stopped:
        done = len(read_done(drafts(out) / DONE))
        blocks = -(-len(images) // intake.BLOCK)
        print(f"gantrain: error: stopped after {done} of {blocks} blocks; run the same command again to continue", file=sys.stderr)
        return exit_status(getattr(stopped, "signal", signal.SIGINT))
    for line in images.skipped.values():
        print(f"skipped: {line}")
    print(f"{out}: {len(images):,} images, {made:,} of them prepared by this command")
    print(audit(read_packed(out, arguments.resolution)))
    print(f"train with data.name=packed {shlex.quote(f'data.root={out}')} data.resolution={arguments.resolution}")
    return 0


def check_again(folder: Path) -> None:
    """Read a whole prepared data set and compare it with its checksums."""
    head = read_head(folder)
    verify(folder, read_packed(folder, head["resolution"]), head, bar("verifying"), always=True)
    print(f"{folder}: all {head['images']:,} images match their checksums")


def bar(title: str) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """The `progress` argument of `pack` and `verify`: a bar that is shown only on a terminal."""
    return lambda items, total: tqdm(items, total=total, desc=title, unit="block", leave=False, disable=None)


def source_of(arguments: argparse.Namespace) -> ImageSet:
    """Open a source by its name or path.

    Raises:
        UserError: the source does not exist or is unreadable.
    """
    source, path = arguments.source, expand_user(arguments.source)
    how: dict[str, Any] = {"resolution": arguments.resolution, "labels": not arguments.no_labels}
    pictures: dict[str, Any] = {**how, "root": str(path), "channels": arguments.channels, "filter": arguments.filter}
    try:
        if source.startswith("torchvision:"):
            return of_torchvision(source.removeprefix("torchvision:"), arguments)
        if is_folder(path):
            return Folder(**pictures).build()
        if path.suffix.lower() == ".zip":
            return Archive(**pictures).build()
        if path.suffix.lower() in (".h5", ".hdf5"):
            return of_hdf5(path, arguments)
        if source in BUILT_IN:
            images = DATASETS[source](**how, **({} if source == "digits" else {"root": arguments.data})).build()
            assert isinstance(images, ImageSet)
            return images
    except InvalidField as error:
        raise UserError(f"--{error.field} {error.remedy}, got {error.value!r}") from None
    raise UserError(f"{source}: is not a folder, a .zip, a .hdf5 or the name of a data set{did_you_mean(source, BUILT_IN)}")


class Items(Protocol):
    """A sequence of pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...


class Resizing(ImageDecoder):
    """Decodes picture number i of `items` to uint8 `[C, resolution, resolution]`."""

    def __init__(self, name: str, items: Items, arguments: argparse.Namespace):
        self.name, self.items, self.resolution = name, items, arguments.resolution
        self.mode, self.filter = "RGB" if arguments.channels == 3 else "L", Image.Resampling[arguments.filter.upper()]

    def listing(self) -> str:
        """Identifies the pictures as far as that is possible without reading them."""
        return f"{self.name} {len(self.items)} {self.mode} {self.resolution} {self.filter.name}"

    def __call__(self, index: int) -> torch.Tensor:
        try:
            with translate_errors():  # of torchvision or h5py
                picture = self.items[index]
            with ROOM.take(refuse_bomb(picture)):
                return resized_image(picture, self.mode, self.resolution, self.filter)
        except Undecodable as error:
            raise UserError(f"{self.name}: image {index} does not decode ({error})") from error


class Pictures:
    """The pictures of a torchvision data set, without their classes."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image:
        return self.dataset[index][0]


def of_torchvision(name: str, arguments: argparse.Namespace) -> ImageSet:
    """Open, and if necessary download, one of torchvision's data sets.

    Raises:
        UserError: the data set is not supported or cannot be downloaded.
    """
    from torchvision import datasets

    if name not in TORCHVISION:
        raise UserError(
            f"torchvision:{name}: is not a supported torchvision data set{did_you_mean(name, TORCHVISION)}; for another, pass its folder"
        )
    try:
        data = getattr(datasets, name)(arguments.data, download=True, **TORCHVISION[name])
        numbers = torch.tensor([int(n) for n in labels_of(data)])
    except Exception as error:  # at damaged files torchvision fails in many ways
        raise UserError(
            f"torchvision:{name}: is not under {arguments.data!r}, or is damaged there, and cannot be downloaded ({brief(error)});"
            " download it on a machine with network access"
        ) from None
    classes = [str(c) for c in getattr(data, "classes", None) or range(int(numbers.max()) + 1)]
    return ImageSet(
        f"torchvision/{name}",
        numbers,
        classes,
        arguments.channels,
        arguments.resolution,
        decode=Resizing(f"torchvision:{name}", Pictures(data), arguments),
    )


def labels_of(data: Any) -> Sequence[int]:
    """The class of every item, from the data set's own list if it has one, otherwise by reading every item."""
    for kept in ("targets", "labels", "_labels", "y"):
        if len(getattr(data, kept, ())) == len(data):
            return getattr(data, kept)
    return [data[i][1] for i in tqdm(range(len(data)), desc="labels", leave=False, disable=None)]


class Rows:
    """The rows of an HDF5 data set as pictures."""

    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        pixels = np.asarray(self.images[index])
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def problem_of_hdf5(dtype: np.dtype, shape: tuple[int, ...], chunks: tuple[int, ...] | None, labels: Any) -> str:
    """What is wrong with the images and labels of an HDF5 file, by their types and shapes, before they are read; "" if nothing.

    Args:
        chunks: the shape of the parts that the images are stored in, each of which is unpacked whole; None is one by one.
        labels: (type, shape), or None without labels.
    """
    if dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        return f"imgs is {dtype} {shape}"
    if shape[2] * shape[3] > MOST_PIXELS:
        return f"imgs has images of {shape[3]} x {shape[2]} pixels, more than {MOST_PIXELS:,}"
    if chunks is not None and math.prod(chunks) > MOST_CHUNK:
        return f"imgs is stored in parts of {in_words(math.prod(chunks))}, and {in_words(MOST_CHUNK)} is the most"
    if labels is None:
        return ""
    kind, places = labels
    if kind.kind not in "iuf" or math.prod(places) != shape[0]:
        return f"imgs is {dtype} {shape} and labels {kind} {places}"
    return ""


def of_hdf5(path: Path, arguments: argparse.Namespace) -> ImageSet:
    """Open BigGAN-PyTorch's HDF5 file: `imgs` uint8 `[N, 3, H, W]` and `labels` int64 `[N]`.

    Raises:
        UserError: the file is missing or has another format, or h5py is not installed.
    """
    not_hdf5 = "is not an HDF5 file written by BigGAN-PyTorch's make_hdf5.py"
    try:
        check_regular(path)
    except OSError as error:
        raise UserError(f"{path}: is not a file ({error.strerror}); pass the path of an HDF5 file") from None
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading HDF5 requires h5py; pip install h5py") from None
    try:
        file = h5py.File(path, "r")
        images, stored = file["imgs"], file["labels"] if not arguments.no_labels and "labels" in file else None
        form = images.dtype, images.shape, images.chunks, None if stored is None else (stored.dtype, stored.shape)
        elsewhere = images.external or images.is_virtual or isinstance(file.get("imgs", getlink=True), h5py.ExternalLink)
    except Exception as error:  # at a damaged file h5py fails in many ways
        raise UserError(f"{path}: {not_hdf5} ({brief(error)})") from None
    if problem := "imgs lies in other files" if elsewhere else problem_of_hdf5(*form):
        raise UserError(f"{path}: {not_hdf5} ({problem})")
    labelled = stored is not None
    try:
        labels = torch.from_numpy(np.asarray(stored if labelled else np.zeros(len(images))).astype(np.int64).reshape(-1))
    except Exception as error:
        raise UserError(f"{path}: its labels cannot be read ({brief(error)}); create the file again") from None
    if int(labels.min()) < 0:
        raise UserError(f"{path}: {not_hdf5} (a label is {int(labels.min())})")
    if not (labelled or arguments.no_labels):
        raise UserError(f"{path}: has no labels; pass --no-labels to train without labels")
    classes = numbered_classes(str(path), int(labels.max()), len(labels))
    return ImageSet(
        f"hdf5/{path.name}", labels, classes, arguments.channels, arguments.resolution, decode=Resizing(str(path), Rows(images), arguments)
    )
