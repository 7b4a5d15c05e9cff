"""A folder of images with one sub-folder per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from gantrain.cache import state_of_file
from gantrain.data.classes import (
    UNLABELLED,
    Labelled,
    label_by_folder,
    label_by_list,
    lists_around,
    most_label_bytes,
    note_splits,
    note_unused,
    read_labels,
)
from gantrain.data.decoding import Traits, decoded_image, file_bytes, reason, traits_of
from gantrain.data.imageset import ImageDecoder, ImageSet, Source, printable
from gantrain.data.listing import Listing, components, is_folder, list_folder
from gantrain.errors import UserError, check
from gantrain.field_marks import INCIDENTAL
from gantrain.home import expand_user
from gantrain.regular_file import read_regular


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Images under `root/CLASS/**`, centre-cropped to a square and resized with antialiasing.

    Classes are the sub-folders of `root` in sorted order, or the labels in `root/dataset.json` if StyleGAN's tool wrote the folder.
    With `labels: false` the images may also be in `root` itself.

    Attributes:
        root: path of the folder.
        channels: number of colour channels that images are converted to: 3 (RGB) or 1 (grey).
        filter: resampling filter for resizing: "bicubic", "lanczos", "bilinear" or "box"; all antialias when they shrink.
    """

    root: str = field(default="", metadata=INCIDENTAL)
    channels: int = 3
    filter: Literal["bicubic", "lanczos", "bilinear", "box"] = "lanczos"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "channels", self.channels in (1, 3), "must be 1 or 3")

    def build(self) -> ImageSet:
        """List the files; images are decoded on demand.

        Raises:
            UserError: the folder is missing or contains no images, its sub-folders are not classes, or its labels are invalid.
        """
        if not self.root:
            raise UserError("data.root must be the path of a folder of images, got ''")
        root = expand_user(self.root, "data.root")
        if not is_folder(root, "data.root: "):
            raise UserError(f"data.root: {self.root!r} is not a folder{seen_from(root)}; pass the folder that contains the images")
        listing = list_folder(root)
        labelled = label_files(root, listing) if self.labels else all_in_one(listing)
        files = [listing.files[i] for i in labelled.chosen]
        if not files:
            flat = ", or set data.labels=false for images without classes" if self.labels else ""
            listing.files = []
            listing.require(f"data.root: {self.root!r}", f"; put them in one sub-folder per class{flat}")
        return ImageSet(
            name=f"folder/{os.path.basename(os.path.abspath(root))}",
            labels=torch.tensor(labelled.labels),
            class_names=labelled.names,
            channels=self.channels,
            resolution=self.resolution,
            decode=Decoder(root, files, self.resolution, self.channels, self.filter),
            named=labelled.named,
            notes=[*listing.notes(), *labelled.notes],
        )


def label_files(root: Path, listing: Listing) -> Labelled:
    """The classes of the images in a folder.

    Raises:
        UserError: the sub-folders are not classes, or the labels are invalid.
    """
    paths = [components(file) for file in listing.files]
    around = lists_around(listing, paths)
    if around and "/" not in around[0]:
        path = root / around[0]
        try:
            text = read_regular(path, most_label_bytes(len(listing.files)))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({reason(error)}); replace it, delete it if the folders are the classes, or {UNLABELLED}"
            ) from None
        listing.require(f"data.root: {str(root)!r}")
        labelled = label_by_list(str(root), listing.files, read_labels(str(path), text))
        labelled.notes += note_unused(listing, around[0])
        return labelled
    if around and paths:
        raise UserError(
            f"data.root: {str(root)!r} has its labels one folder or more below, in {printable(around[0])};"
            f" set data.root={root / around[0].rpartition('/')[0]}, or data.labels=false to train without labels"
        )

    def into(folders: Sequence[str]) -> str:
        return f"set data.root={root.joinpath(*folders)}"

    return label_by_folder(listing, paths, repr(str(root)), into, unwraps=False)


def all_in_one(listing: Listing) -> Labelled:
    """One class for all images of a folder, those in the folder itself first."""
    paths = [components(file) for file in listing.files]
    order = sorted(range(len(paths)), key=lambda i: (len(paths[i]) > 1, i))
    return Labelled(order, [0] * len(order), ["all"], notes=note_splits(paths))


def seen_from(path: Path) -> str:
    """Where a relative path that does not lead anywhere was looked for, in words; "" for an absolute one."""
    return "" if path.is_absolute() else f" in {os.getcwd()}, where relative paths start"


class Decoder(ImageDecoder):
    """Decodes file number i to uint8 `[channels, resolution, resolution]`.

    File names are one block of bytes instead of Python objects: updating the reference counts of a million objects would
    make every worker process copy their pages.

    Args:
        root: the folder.
        files: paths of the files relative to it.
        resolution: height and width of the decoded images.
        channels: 3 or 1.
        filter: name of the resampling filter.
    """

    def __init__(self, root: Path, files: Sequence[str], resolution: int, channels: int, filter: str):
        self.root, self.resolution = root, resolution
        self.names = np.array([os.fsencode(file) for file in files])
        self.mode = "RGB" if channels == 3 else "L"
        self.filter = Image.Resampling[filter.upper()]

    def path(self, index: int) -> Path:
        """Path of file number `index`."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def listing(self) -> str:
        """SHA-256 of all file names and of the decoding settings."""
        digest = hashlib.sha256(f"{self.mode} {self.resolution} {self.filter.name}".encode())
        digest.update(b"\n".join(self.names.tolist()))
        return digest.hexdigest()

    def state(self, index: int) -> str | None:
        """The state of a file; while it is unchanged, the file need not be read again. See `state_of_file`."""
        return state_of_file(self.path(index))

    def __call__(self, index: int) -> torch.Tensor:
        """Decode one image.

        Raises:
            UserError: the file does not decode; the message names it.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple[torch.Tensor, bytes]:
        """Returns (the image, the SHA-256 of the file)."""
        path = self.path(index)
        name = printable(str(path))
        try:
            with file_bytes(path) as data:
                return decoded_image(data, name, self.mode, self.resolution, self.filter), hashlib.sha256(data).digest()
        except OSError as error:
            raise UserError(f"{name}: does not decode as an image ({link_to_nothing(path) or reason(error)})") from error

    def traits(self, index: int) -> Traits | None:
        """What decoding changes in a file."""
        try:
            with file_bytes(self.path(index)) as data:
                return traits_of(data)
        except OSError:
            return None


def link_to_nothing(path: Path) -> str:
    """Where a link that leads nowhere points to, in words; "" for anything else."""
    try:
        return f"a link to {printable(os.readlink(path))}, which does not exist" if path.is_symlink() and not path.exists() else ""
    except OSError:  # a folder on the way may not be read
        return ""
