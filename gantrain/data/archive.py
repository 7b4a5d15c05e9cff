"""A zip of images as StyleGAN's data set tool writes it, read in place: nothing is unpacked."""
from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image

from gantrain.data.folder import EXTENSIONS, decoded_image
from gantrain.data.imageset import ImageSet, Source
from gantrain.errors import UserError, check
from gantrain.plugins import one_line

LABELS = "dataset.json"
MOST_BYTES = 2**28  # of a member, unpacked: a few bytes of a zip can become many
BROKEN = (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError)  # encrypted and unknown compressions among them


@dataclass(frozen=True, kw_only=True)
class Archive(Source):
    """A zip of images with `dataset.json` (`{"labels": [["00000/img00000000.png", 3], ...]}`), as StyleGAN's tool makes it.

    Without such labels (null, or no `dataset.json`) the folders in the zip are the classes. Images are centre-cropped to a
    square and resized with antialiasing, where they have another size.

    Attributes:
        root: the zip file.
        channels: 3 (RGB) or 1 (grey); images are converted.
        filter: "bicubic", "lanczos", "bilinear" or "box".
    """

    root: str = ""
    channels: int = 3
    filter: Literal["bicubic", "lanczos", "bilinear", "box"] = "lanczos"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "channels", self.channels in (1, 3), "must be 1 or 3")

    def build(self) -> ImageSet:
        if not self.root:
            raise UserError("data.root must name the zip of images, got ''")
        path = Path(self.root).expanduser()
        if not path.is_file():
            raise UserError(f"data.root: there is no file {self.root!r}")
        members, labels = read_zip(path)
        if not members:
            raise UserError(f"data.root: no image in {self.root!r} ({', '.join(sorted(EXTENSIONS))})")
        if not self.labels:
            numbers, classes = [0] * len(members), ["all"]
        elif labels is not None:
            numbers, classes = labels_of(path, members, labels)
        else:
            folders = [PurePosixPath(name).parts[0] if len(PurePosixPath(name).parts) > 1 else "." for name in members]
            classes = sorted(set(folders))
            number = {name: i for i, name in enumerate(classes)}
            numbers = [number[folder] for folder in folders]
        decoder = ZipDecoder(path, members, self.resolution, self.channels, self.filter)
        return ImageSet(f"archive/{path.name}", torch.tensor(numbers), classes, self.channels, self.resolution, decode=decoder)


def read_zip(path: Path) -> tuple[list[str], object]:
    """(names of all images in order, what `dataset.json` says of labels or None).

    Raises:
        UserError: it is no zip, or its `dataset.json` cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            members = sorted(m.filename for m in opened.infolist() if not m.is_dir() and PurePosixPath(m.filename).suffix.lower() in EXTENSIONS)
            if LABELS not in opened.namelist():
                return members, None
            if opened.getinfo(LABELS).file_size > MOST_BYTES:
                raise ValueError(f"{LABELS} is larger than {MOST_BYTES:,} bytes")
            return members, json.loads(opened.read(LABELS))["labels"]
    except (*BROKEN, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a zip of images ({one_line(error)})") from None


def labels_of(path: Path, members: list[str], labels: object) -> tuple[list[int], list[str]]:
    """(a class for each image, the classes' names) from `dataset.json`.

    Raises:
        UserError: an image has no class, or classes are no whole numbers.
    """
    try:
        by_name = {str(name): label for name, label in labels}
    except (TypeError, ValueError):
        raise UserError(f"{path}: the labels of its {LABELS} are no pairs of a name and a class; set data.labels=false to train without") from None
    missing = [name for name in members if name not in by_name]
    if missing:
        raise UserError(f"{path}: {len(missing)} images have no label in its {LABELS}, {missing[0]!r} among them; set data.labels=false to train without")
    numbers = [by_name[name] for name in members]
    strange = next((n for n in numbers if type(n) is not int or not 0 <= n < 2**31), None)
    if strange is not None:
        raise UserError(f"{path}: a label of its {LABELS} is {strange!r}, not a class 0, 1, 2, ...; set data.labels=false to train without")
    return numbers, [str(i) for i in range(max(numbers) + 1)]


class ZipDecoder:
    """Decodes member number i to uint8 `[channels, resolution, resolution]`. Every thread of every process opens the zip for itself."""

    def __init__(self, path: Path, members: list[str], resolution: int, channels: int, filter: str):
        self.path, self.resolution = path, resolution
        self.names = np.array([name.encode() for name in members])  # one block of bytes: as `folder.Decoder` says
        self.mode = "RGB" if channels == 3 else "L"
        self.filter = Image.Resampling[filter.upper()]
        self._open = threading.local()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= {**state, "_open": threading.local()}

    def archive(self) -> zipfile.ZipFile:
        """The zip as this thread of this process has it open: a forked one would share its parent's place in the file."""
        if getattr(self._open, "pid", None) != os.getpid():
            self._open.zip, self._open.pid = zipfile.ZipFile(self.path), os.getpid()
        return self._open.zip

    def listing(self) -> str:
        """SHA-256 of the names of all members and of how they are decoded."""
        digest = hashlib.sha256(f"{self.mode} {self.resolution} {self.filter.name}".encode())
        digest.update(b"\n".join(self.names.tolist()))
        return digest.hexdigest()

    def state(self, index: int) -> str:
        """A member's size and sum: while they stay, it need not be read again."""
        try:
            member = self.archive().getinfo(bytes(self.names[index]).decode())
        except BROKEN as error:
            raise OSError(one_line(error)) from error
        return f"{member.file_size} {member.CRC}"

    def __call__(self, index: int) -> torch.Tensor:
        """The image.

        Raises:
            UserError: the member does not decode; it is named.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple[torch.Tensor, bytes]:
        """(the image, SHA-256 of the member)."""
        name = bytes(self.names[index]).decode()
        try:
            if self.archive().getinfo(name).file_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES:,} bytes")
            data = self.archive().read(name)
        except (*BROKEN, KeyError, zlib.error) as error:
            raise UserError(f"{self.path}: {name} cannot be read ({one_line(error)})") from error
        return decoded_image(data, f"{self.path}: {name}", self.mode, self.resolution, self.filter), hashlib.sha256(data).digest()
