"""Zips of images in the format of StyleGAN's data set tool, read in place without unpacking."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import weakref
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from gantrain.data.folder import EXTENSIONS, decoded_image
from gantrain.data.imageset import ImageDecoder, ImageSet, Source, numbered_classes
from gantrain.errors import UserError, check, one_line
from gantrain.field_marks import INCIDENTAL

LABELS = "dataset.json"
MOST_BYTES = 2**28  # largest unpacked size of a member: a zip bomb expands a few bytes into gigabytes
LOCAL_HEADER = "<4s22xHH"  # header of each member: signature, ..., lengths of its name and of its extra field
SEEKING = threading.Lock()
ENCRYPTED = -1  # stored instead of the compression method
# zipfile raises RuntimeError for encrypted members and NotImplementedError for unknown compression methods.
BROKEN = (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Archive(Source):
    """A zip of images with `dataset.json` (`{"labels": [["00000/img00000000.png", 3], ...]}`), as StyleGAN's tool writes it.

    Without a `dataset.json`, the folders in the zip are the classes. If it contains `"labels": null`, the images have no classes
    and `labels: false` is required. Images of another size are centre-cropped to a square and resized with antialiasing.

    Attributes:
        root: path of the zip file.
        channels: number of colour channels that images are converted to: 3 (RGB) or 1 (grey).
        filter: resampling filter for resizing: "bicubic", "lanczos", "bilinear" or "box".
    """

    root: str = field(default="", metadata=INCIDENTAL)
    channels: int = 3
    filter: Literal["bicubic", "lanczos", "bilinear", "box"] = "lanczos"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "channels", self.channels in (1, 3), "must be 1 or 3")

    def build(self) -> ImageSet:
        """Index the zip; images are decoded on demand.

        Raises:
            UserError: the zip is missing, unreadable or contains no images, or its labels are invalid.
        """
        if not self.root:
            raise UserError("data.root must be the path of a zip of images, got ''")
        path = Path(self.root).expanduser()
        if not path.is_file():
            raise UserError(f"data.root: {self.root!r} is not a file; pass the path of a zip of images")
        members, description = read_zip(path)
        if not members:
            raise UserError(f"data.root: {self.root!r} contains no images ({', '.join(sorted(EXTENSIONS))})")
        if not self.labels:
            numbers, classes = [0] * len(members), ["all"]
        elif description is not None:
            numbers, classes = labels_of(path, [member.filename for member in members], description["labels"])
        else:
            paths = [PurePosixPath(member.filename) for member in members]
            folders = [path.parts[0] if len(path.parts) > 1 else "." for path in paths]
            classes = sorted(set(folders))
            number = {name: i for i, name in enumerate(classes)}
            numbers = [number[folder] for folder in folders]
        decoder = ZipDecoder(path, members, self.resolution, self.channels, self.filter)
        return ImageSet(f"archive/{path.name}", torch.tensor(numbers), classes, self.channels, self.resolution, decode=decoder)


def read_zip(path: Path) -> tuple[list[zipfile.ZipInfo], dict[str, Any] | None]:
    """Returns (all image members, sorted by name; the `labels` entry of `dataset.json`, or None if there is no such file).

    Raises:
        UserError: the file is not a zip, or its `dataset.json` is unreadable.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            names = sorted(
                m.filename for m in opened.infolist() if not m.is_dir() and PurePosixPath(m.filename).suffix.lower() in EXTENSIONS
            )
            members = [opened.getinfo(name) for name in names]
            if any(not 0 <= n < 2**63 for m in members for n in (m.header_offset, m.compress_size, m.file_size)):
                raise ValueError("its index is damaged")
            if LABELS not in opened.namelist():
                return members, None
            if opened.getinfo(LABELS).file_size > MOST_BYTES:
                raise ValueError(f"{LABELS} is larger than {MOST_BYTES:,} bytes")
            return members, {"labels": json.loads(opened.read(LABELS))["labels"]}
    except (*BROKEN, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a zip of images ({one_line(error)}); replace the file") from None


def labels_of(path: Path, members: list[str], labels: object) -> tuple[list[int], list[str]]:
    """Returns (the class number of each image, the class names) from `dataset.json`.

    Raises:
        UserError: there are no labels, an image has no label, or a label is not a whole number of at least 0.
    """
    remedy = "set data.labels=false to train without labels"
    if labels is None:
        raise UserError(f"{path}: has no labels ({LABELS} contains null); {remedy}")
    try:
        by_name = {str(name): label for name, label in labels}  # type: ignore[attr-defined]  # any JSON value; the except refuses it
    except (TypeError, ValueError):
        raise UserError(f"{path}: the labels in {LABELS} are not pairs of a name and a class; {remedy}") from None
    missing = [name for name in members if name not in by_name]
    if missing:
        raise UserError(f"{path}: {len(missing)} images have no label in {LABELS}, for example {missing[0]!r}; {remedy}")
    numbers = [by_name[name] for name in members]
    strange = next((n for n in numbers if type(n) is not int or not 0 <= n < 2**31), None)
    if strange is not None:
        raise UserError(f"{path}: a label in {LABELS} is {strange!r}, not a class 0, 1, 2, ...; {remedy}")
    return numbers, numbered_classes(str(path), max(numbers), len(numbers))


def read_at(file: int, size: int, offset: int) -> bytes:
    """`size` bytes of an open file from `offset` on."""
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    with SEEKING:  # Windows: every process has opened the file itself, but its threads share the position
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)


class ZipDecoder(ImageDecoder):
    """Decodes member number i to uint8 `[channels, resolution, resolution]`.

    The zip's index has already been parsed, and its file stays open. Reads are positional (`pread`), so threads and forked
    processes can share the open file.
    """

    def __init__(self, path: Path, members: list[zipfile.ZipInfo], resolution: int, channels: int, filter: str):
        self.path, self.resolution = path, resolution
        # Arrays instead of Python objects, for the reason given in `folder.Decoder`.
        self.names = np.array([member.filename.encode() for member in members])
        self.index = np.array(
            [(m.header_offset, m.compress_size, m.file_size, m.CRC, ENCRYPTED if m.flag_bits & 1 else m.compress_type) for m in members]
        )
        self.mode = "RGB" if channels == 3 else "L"
        self.filter = Image.Resampling[filter.upper()]
        self._open()

    def _open(self) -> None:
        self.file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.file)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "file"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._open()

    def listing(self) -> str:
        """SHA-256 of all member names and of the decoding settings."""
        digest = hashlib.sha256(f"{self.mode} {self.resolution} {self.filter.name}".encode())
        digest.update(b"\n".join(self.names.tolist()))
        return digest.hexdigest()

    def state(self, index: int) -> str:
        """A member's size and CRC; while they are unchanged, the member need not be read again."""
        _, _, size, crc, _ = self.index[index].tolist()
        return f"{size} {crc}"

    def __call__(self, index: int) -> torch.Tensor:
        """Decode one image.

        Raises:
            UserError: the member does not decode; the message names it.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple[torch.Tensor, bytes]:
        """Returns (the image, the SHA-256 of the member)."""
        name = f"{self.path}: {bytes(self.names[index]).decode()}"
        try:
            data = self.unpacked(*self.index[index].tolist())
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise UserError(f"{name} cannot be read ({one_line(error)})") from error
        return decoded_image(data, name, self.mode, self.resolution, self.filter), hashlib.sha256(data).digest()

    def unpacked(self, offset: int, packed_size: int, size: int, crc: int, method: int) -> bytes:
        """Returns a member's bytes.

        Raises:
            ValueError, struct.error, zlib.error: the bytes do not match the index, or the member is too large or encrypted.
        """
        if max(size, packed_size) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES:,} bytes")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("encrypted" if method == ENCRYPTED else f"compression method {method} is neither stored nor deflated")
        signature, name_length, extra_length = struct.unpack(LOCAL_HEADER, read_at(self.file, struct.calcsize(LOCAL_HEADER), offset))
        if signature != b"PK\3\4":
            raise ValueError("its header is damaged")
        data = read_at(self.file, packed_size, offset + struct.calcsize(LOCAL_HEADER) + name_length + extra_length)
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)  # bounded, even if the member is a zip bomb
        if len(data) != size or zlib.crc32(data) != crc:
            raise ValueError("Bad CRC-32")
        return data
