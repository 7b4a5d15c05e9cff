"""Prepare a data set for fast training: every image decoded, cropped and resized once, into an array that is mapped into memory.

    python tools/prepare_dataset.py data/imagenet/train --out data/imagenet128 --resolution 128
    python tools/prepare_dataset.py ffhq-256x256.zip --out data/ffhq256 --resolution 256 --no-labels
    python tools/prepare_dataset.py ILSVRC128.hdf5 --out data/imagenet128 --resolution 128
    python tools/prepare_dataset.py cifar10 --out data/cifar10_packed --resolution 32
    python tools/prepare_dataset.py torchvision:Food101 --out data/food101 --resolution 128
    python tools/prepare_dataset.py --verify data/imagenet128

then

    gantrain train configs/imagenet128_biggan.yaml data.name=packed data.root=data/imagenet128 data.resolution=128

A source is a folder with one sub-folder a class; a zip as StyleGAN's data set tool writes it (labels from its `dataset.json`);
BigGAN-PyTorch's HDF5 (`imgs`, `labels`; needs h5py); one of gantrain's data sets (cifar10, cifar100, stl10, digits); or
`torchvision:NAME`, of torchvision's own classification sets, fetched into `--data` where it is not there.

Several threads decode. The same command goes on where an interrupted one has stopped. Where images do not decode, they are named at the end
and nothing is finished; `--on-error skip` puts the next readable image of its class in the place of each. The head keeps the SHA-256 of
every 512 images: the first start of a training on a machine compares them, and so does `--verify`.
"""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Iterable
from pathlib import Path

import command
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from gantrain import torchvision_ops  # noqa: F401 - before torchvision
from gantrain.data import DATASETS, Archive, Folder, ImageSet, pack
from gantrain.data.folder import resized_image
from gantrain.data.imageset import numbered_classes
from gantrain.data.intake import BLOCK, audit, refuse_impossible
from gantrain.data.packed import DONE, drafts, read_done, read_head, read_packed, verify
from gantrain.errors import InvalidField, UserError, did_you_mean, one_line
from gantrain.interruption import Interruption, Stopped, exit_status

BUILT_IN = ("cifar10", "cifar100", "stl10", "digits")
# torchvision's sets of labelled images that are read without unpickling, and what each is asked for.
TORCHVISION = {
    "Caltech101": {"target_type": "category"}, "Caltech256": {}, "DTD": {"split": "train"}, "EuroSAT": {}, "FGVCAircraft": {"split": "train"},
    "FashionMNIST": {"train": True}, "Flowers102": {"split": "train"}, "Food101": {"split": "train"}, "Imagenette": {"split": "train"},
    "KMNIST": {"train": True}, "MNIST": {"train": True}, "OxfordIIITPet": {"split": "trainval"}, "SUN397": {}, "SVHN": {"split": "train"},
}  # fmt: skip
# What errors call by its key in a configuration, as it is said here.
IN_OPTIONS = {
    "data.root: ": "", "point data.root at the folder": "give the folder", "set data.labels=false": "give --no-labels",
    "set data.on_error=skip": "give --on-error skip",
}  # fmt: skip


def main() -> None:
    try:
        with Interruption():
            run()
    except UserError as error:
        text = str(error)
        for key, option in IN_OPTIONS.items():
            text = text.replace(key, option)
        raise UserError(text) from None


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="a folder, a .zip, a .hdf5, a data set's name, or torchvision:NAME")
    parser.add_argument("--out", type=Path, help="the folder to be made")
    parser.add_argument("--resolution", type=command.positive, help="height and width of the images")
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), default=3, help="3 for colour (default), 1 for grey; of a folder, a zip or torchvision's"
    )
    parser.add_argument(
        "--filter", choices=("bicubic", "lanczos", "bilinear", "box"), default="lanczos", help="that resizes (default: lanczos)"
    )
    parser.add_argument("--no-labels", action="store_true", help="one class, whatever the source has")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="what an image that does not decode does (default: stop)"
    )
    parser.add_argument("--data", default="data", help="where sets that are fetched are kept (default: data)")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="compare a prepared set with its sums, and do nothing else")
    arguments = parser.parse_args()
    if arguments.verify:
        return check_again(arguments.verify)
    needed = {"a source": arguments.source, "--out": arguments.out, "--resolution": arguments.resolution}
    if missing := [name for name, value in needed.items() if not value]:
        parser.error(f"missing: {', '.join(missing)}")
    images = source_of(arguments)
    if arguments.no_labels:
        images = images.unlabelled()
    refuse_impossible(images, wanted_classes=not arguments.no_labels)
    images.skips = arguments.on_error == "skip"
    try:
        made = pack(images, arguments.out, f"{arguments.source} at {arguments.resolution}, {arguments.filter}", bar("preparing"))
    except (KeyboardInterrupt, Stopped) as stopped:
        done = len(read_done(drafts(arguments.out) / DONE))
        status = exit_status(getattr(stopped, "signal", signal.SIGINT))
        command.leave(f"stopped after {done} of {-(-len(images) // BLOCK)} blocks; the same command goes on", status)
    for line in images.skipped.values():
        print(f"skipped: {line}")
    print(f"{arguments.out}: {made:,} of {len(images):,} images made just now")
    print(audit(read_packed(arguments.out, arguments.resolution)))
    print(f"train with data.name=packed {shlex.quote(f'data.root={arguments.out}')} data.resolution={arguments.resolution}")


def check_again(folder: Path) -> None:
    """Read a prepared set whole and compare it with its sums."""
    head = read_head(folder)
    verify(folder, read_packed(folder, head["resolution"]), head, bar("verifying"), always=True)
    print(f"{folder}: all {head['images']:,} images are what was written")


def bar(title: str):
    """A progress bar, on a terminal only, as data sets take one."""
    return lambda items, total: tqdm(items, total=total, desc=title, unit="block", leave=False, disable=None)


def source_of(arguments: argparse.Namespace) -> ImageSet:
    """The images that a source names.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    source, path = arguments.source, Path(arguments.source).expanduser()
    how = {"resolution": arguments.resolution, "labels": not arguments.no_labels}
    pictures = {**how, "root": str(path), "channels": arguments.channels, "filter": arguments.filter}
    try:
        if source.startswith("torchvision:"):
            return of_torchvision(source.removeprefix("torchvision:"), arguments)
        if path.is_dir():
            return Folder(**pictures).build()
        if path.suffix.lower() == ".zip":
            return Archive(**pictures).build()
        if path.suffix.lower() in (".h5", ".hdf5"):
            return of_hdf5(path, arguments)
        if source in BUILT_IN:
            return DATASETS[source](**how, **({} if source == "digits" else {"root": arguments.data})).build()
    except InvalidField as error:
        raise UserError(f"--{error.field} {error.remedy}, got {error.value!r}") from None
    raise UserError(f"{source}: is no folder, no .zip, no .hdf5 and no data set of gantrain's{did_you_mean(source, BUILT_IN)}")


class Resizing:
    """Decodes image number i of a data set whose items are (picture, class)."""

    def __init__(self, name: str, items, arguments: argparse.Namespace):
        self.name, self.items, self.resolution = name, items, arguments.resolution
        self.mode, self.filter = "RGB" if arguments.channels == 3 else "L", Image.Resampling[arguments.filter.upper()]

    def listing(self) -> str:
        """What the pictures are, as far as it is known before they are read."""
        return f"{self.name} {len(self.items)} {self.mode} {self.resolution} {self.filter.name}"

    def __call__(self, index: int) -> torch.Tensor:
        try:
            return resized_image(self.items[index], self.mode, self.resolution, self.filter)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.name}: image {index} does not decode ({one_line(error)})") from error


class Pictures:
    """The pictures of a torchvision set, without their classes."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image:
        return self.dataset[index][0]


def of_torchvision(name: str, arguments: argparse.Namespace) -> ImageSet:
    """One of torchvision's own sets."""
    from torchvision import datasets

    if name not in TORCHVISION:
        raise UserError(
            f"torchvision:{name}: is none of its sets that are read here{did_you_mean(name, TORCHVISION)}; of another, give its folder"
        )
    try:
        data = getattr(datasets, name)(arguments.data, download=True, **TORCHVISION[name])
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"torchvision:{name}: is not under {arguments.data!r} and cannot be fetched ({one_line(error)}); fetch it where there is network"
        ) from None
    numbers = torch.tensor([int(n) for n in labels_of(data)])
    classes = [str(c) for c in getattr(data, "classes", None) or range(int(numbers.max()) + 1)]
    return ImageSet(
        f"torchvision/{name}",
        numbers,
        classes,
        arguments.channels,
        arguments.resolution,
        decode=Resizing(f"torchvision:{name}", Pictures(data), arguments),
    )


def labels_of(data) -> Iterable[int]:
    """Every item's class: as the set keeps them, or by asking each item."""
    for kept in ("targets", "labels", "_labels", "y"):
        if len(getattr(data, kept, ())) == len(data):
            return getattr(data, kept)
    return [data[i][1] for i in tqdm(range(len(data)), desc="labels", leave=False, disable=None)]


class Rows:
    """The rows of an HDF5 data set as pictures."""

    def __init__(self, images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        pixels = np.asarray(self.images[index])
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def of_hdf5(path: Path, arguments: argparse.Namespace) -> ImageSet:
    """BigGAN-PyTorch's file: `imgs` uint8 `[N, 3, H, W]` and `labels` int64 `[N]`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading HDF5 needs h5py: pip install h5py") from None
    try:
        file = h5py.File(path, "r")
        images, labelled = file["imgs"], not arguments.no_labels and "labels" in file
        labels = torch.from_numpy(np.asarray(file["labels"] if labelled else np.zeros(len(images))).astype(np.int64).reshape(-1))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or len(labels) != len(images) or not len(images):
            raise ValueError(f"imgs is {images.dtype} {images.shape} and labels {len(labels)}")
        if int(labels.min()) < 0:
            raise ValueError(f"a label is {int(labels.min())}")
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no HDF5 as BigGAN-PyTorch's make_hdf5.py writes it ({one_line(error)})") from None
    if not (labelled or arguments.no_labels):
        raise UserError(f"{path}: has no labels; give --no-labels to train without")
    classes = numbered_classes(str(path), int(labels.max()), len(labels))
    return ImageSet(
        f"hdf5/{path.name}", labels, classes, arguments.channels, arguments.resolution, decode=Resizing(str(path), Rows(images), arguments)
    )


if __name__ == "__main__":
    command.run(main)
