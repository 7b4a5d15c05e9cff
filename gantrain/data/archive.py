"""Zips of images in the format of StyleGAN's data set tool, read in place without unpacking."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from PIL import Image

from gantrain.cache import state_of_file
from gantrain.data.classes import (
    Labelled,
    label_by_folder,
    label_by_list,
    lists_around,
    most_label_bytes,
    note_splits,
    note_unused,
    read_labels,
)
from gantrain.data.decoding import Traits, Undecodable, decoded_image, reason, room_for_file, traits_of, translate_errors
from gantrain.data.folder import seen_from
from gantrain.data.imageset import ImageDecoder, ImageSet, Source, printable
from gantrain.data.listing import Listing, is_folder, list_members, zip_components
from gantrain.errors import UserError, check, in_words
from gantrain.field_marks import INCIDENTAL
from gantrain.home import expand_user
from gantrain.regular_file import check_regular, open_regular

MOST_MEMBER = 2**28  # largest unpacked size of a member: a zip bomb expands a few bytes into gigabytes
LOCAL_HEADER = "<4s22xHH"  # header of each member: signature, ..., lengths of its name and of its extra field
SEEKING = threading.Lock()
ENCRYPTED = -1  # stored instead of the compression method
REPLACE = "replace the file"


@dataclass(frozen=True, kw_only=True)
class Archive(Source):
    """A zip of images with `dataset.json` (`{"labels": [["00000/img00000000.png", 3], ...]}`), as StyleGAN's tool writes it.

    Without a `dataset.json`, the folders in the zip are the classes; a folder around all of them is passed through. If it contains
    `"labels": null`, the images have no classes and `labels: false` is required. Images of another size are centre-cropped to a
    square and resized with antialiasing.

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
            UserError: the zip is missing, unreadable or contains no images, its folders are not classes, or its labels are invalid.
        """
        if not self.root:
            raise UserError("data.root must be the path of a zip of images, got ''")
        path = expand_user(self.root, "data.root")
        if is_folder(path, "data.root: ") or not path.exists():
            raise UserError(f"data.root: {self.root!r} is not a file{seen_from(path)}; pass the path of a zip of images")
        with opened_zip(path) as opened:
            listing = list_images(path, opened)
            listing.require(f"data.root: {self.root!r}")
            paths = [zip_components(name) for name in listing.files]
            if self.labels:
                labelled = label_members(path, opened, listing, paths)
            else:
                labelled = Labelled(list(range(len(paths))), [0] * len(paths), ["all"], notes=note_splits(paths))
        members = [listing.members[i] for i in labelled.chosen]
        if not members:
            raise UserError(f"data.root: {self.root!r} has no folders for classes; set data.labels=false to train without labels")
        return ImageSet(
            f"archive/{path.name}", torch.tensor(labelled.labels), labelled.names, self.channels, self.resolution,
            decode=ZipDecoder(path, members, self.resolution, self.channels, self.filter), notes=[*listing.notes(), *labelled.notes],
            named=labelled.named,
        )  # fmt: skip


def read_zip(path: Path) -> Listing:
    """Lists the images of a zip.

    Raises:
        UserError: the file is not a zip.
    """
    with opened_zip(path) as opened:
        return list_images(path, opened)


def list_images(path: Path, opened: zipfile.ZipFile) -> Listing:
    """Lists the images of an open zip.

    Args:
        path: of the zip, for messages.

    Raises:
        UserError: a number in its index is impossible.
    """
    listing = list_members(opened.infolist())
    if any(not 0 <= n < 2**63 for m in listing.members for n in (m.header_offset, m.compress_size, m.file_size)):
        refuse_zip(path, "its index is damaged")
    return listing


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip for reading its index.

    Raises:
        UserError: it is not a regular file, or not a zip.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        refuse_zip(path, reason(error))
    with file:
        try:
            with translate_errors():  # zipfile raises nearly anything at a damaged index
                opened = zipfile.ZipFile(file)
        except Undecodable as error:
            refuse_zip(path, str(error))
        with opened:
            yield opened


def refuse_zip(path: Path, why: str) -> NoReturn:
    """Refuse a zip that is damaged.

    Raises:
        UserError: always.
    """
    raise UserError(f"{printable(str(path))}: cannot be read as a zip of images ({why}); {REPLACE}") from None


def label_members(path: Path, opened: zipfile.ZipFile, listing: Listing, paths: Sequence[Sequence[str]]) -> Labelled:
    """The classes of the images in a zip: from the outermost `dataset.json`, or the folders in the zip.

    Args:
        path: of the zip.
        opened: the zip.
        listing: its images.
        paths: components of their names.

    Raises:
        UserError: the folders are not classes, or the labels are invalid, damaged or too large.
    """
    around = lists_around(listing, paths)
    if not around:
        return label_by_folder(listing, paths, repr(str(path)), lambda folders: zip_remedy("/".join(folders)), unwraps=True)
    name = around[0]
    size, most = opened.getinfo(name).file_size, most_label_bytes(len(paths))
    if size > most:
        refuse_zip(path, f"its {printable(name)} has {in_words(size)}, and {in_words(most)} is the most")
    try:
        with translate_errors():
            text = opened.read(name)
    except Undecodable as error:
        refuse_zip(path, f"{printable(name)}: {error}")
    depth = len(zip_components(name)) - 1
    labelled = label_by_list(str(path), ["/".join(one[depth:]) for one in paths], read_labels(f"{path}: {printable(name)}", text))
    labelled.notes += note_unused(listing, name)
    return labelled


def zip_remedy(folder: str) -> str:
    """What to do with a zip of which only one folder is wanted."""
    return f"make a zip of its folder {folder!r} alone, or unpack it and use that folder"


def read_at(file: int, size: int, offset: int) -> bytes:
    """`size` bytes of an open file from `offset` on; fewer at its end."""
    if hasattr(os, "pread"):
        data = os.pread(file, size, offset)
        while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):  # a network may give less
            data += more
        return data
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
        self.names = np.array([member.filename.encode(errors="surrogateescape") for member in members])
        self.index = np.array(
            [(m.header_offset, m.compress_size, m.file_size, m.CRC, ENCRYPTED if m.flag_bits & 1 else m.compress_type) for m in members]
        )
        self.mode = "RGB" if channels == 3 else "L"
        self.filter = Image.Resampling[filter.upper()]
        self._open()

    def _open(self) -> None:
        check_regular(self.path)
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

    def state(self, index: int) -> str | None:
        """The state of the zip and a member's place in it; while they are unchanged, the member need not be read again."""
        file = state_of_file(self.path, self.file)
        return None if file is None else f"{file} {self.index[index].tolist()}"

    def __call__(self, index: int) -> torch.Tensor:
        """Decode one image.

        Raises:
            UserError: the member does not decode; the message names it.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple[torch.Tensor, bytes]:
        """Returns (the image, the SHA-256 of the member)."""
        name = f"{self.path}: {printable(bytes(self.names[index]).decode(errors='surrogateescape'))}"
        try:
            with self.member(index) as data:
                return decoded_image(data, name, self.mode, self.resolution, self.filter), hashlib.sha256(data).digest()
        except OSError as error:
            raise UserError(f"{name} cannot be read ({reason(error)})") from error

    def traits(self, index: int) -> Traits | None:
        """What decoding changes in a member."""
        try:
            with self.member(index) as data:
                return traits_of(data)
        except OSError:
            return None

    @contextmanager
    def member(self, index: int) -> Iterator[bytes]:
        """A member's bytes. Large ones are read one at a time; the room lasts as long as the context.

        Raises:
            OSError: the bytes do not match the index, or the member is too large or encrypted; or the zip cannot be read.
        """
        entry = self.index[index].tolist()
        with room_for_file(max(entry[1:3])):
            try:
                data = self.unpacked(*entry)
            except (ValueError, struct.error, zlib.error, OverflowError) as error:
                raise OSError(reason(error)) from error
            yield data

    def unpacked(self, offset: int, packed_size: int, size: int, crc: int, method: int) -> bytes:
        """Returns a member's bytes.

        Raises:
            ValueError, struct.error, zlib.error, OverflowError: the bytes do not match the index, or the member is too large or
                encrypted.
            OSError: the zip cannot be read.
        """
        if max(size, packed_size) > MOST_MEMBER:
            raise ValueError(f"larger than {MOST_MEMBER:,} bytes")
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
