"""Reads .npz files from anywhere: the header of each array is read first, and nothing that the memory does not hold is unpacked.

A file of 3 MB may say that it unpacks to gigabytes, and its arrays may be of any shape and type. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np

from gantrain.array_header import read_header
from gantrain.errors import UserError, brief, in_words
from gantrain.memory import free_memory
from gantrain.regular_file import open_regular

SMALL = 2**28  # bytes of arrays up to which neither their compression nor the free memory is checked
# Largest ratio of a large array and its place in the zip: deflate reaches 1,032 for a constant, and real numbers and pictures about 10.
MOST_RATIO = 500
SUFFIX = ".npy"
NAMED = 5  # arrays that a message names


@dataclass(frozen=True)
class Header:
    """What the header of an array says.

    Attributes:
        dtype, shape: of the array.
        member: its place in the zip.
        begin: bytes of the header.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    member: zipfile.ZipInfo
    begin: int

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]


class Npz:
    """An open .npz.

    Args:
        path: of the file, for messages.
        opened: the zip.
        wanted: names of the arrays that may be read; the others are not looked at.

    Attributes:
        names: of all arrays.
        headers: of those that are wanted.

    Raises:
        UserError: a header is damaged, or says something else than the zip's index.
    """

    def __init__(self, path: Path, opened: zipfile.ZipFile, wanted: Collection[str]):
        self.path, self.opened = path, opened
        members = {member.filename.removesuffix(SUFFIX): member for member in opened.infolist()}
        self.names = list(members)
        self.headers = {name: self.header(name, members[name]) for name in self.names if name in wanted}

    def header(self, name: str, member: zipfile.ZipInfo) -> Header:
        """Reads the header of an array.

        Raises:
            UserError: it is damaged, holds pickled objects, or says something else than the zip's index.
        """
        with translate_errors(self.path, name), self.opened.open(member) as file:
            shape, dtype = read_header(file)
            found = Header(dtype, shape, member, file.tell())
        if found.begin + found.nbytes != member.file_size:
            says = f"{name} is {dtype} {list(shape)}, but has {member.file_size:,} bytes"
            refuse_npz(self.path, says)
        return found

    def read(self) -> dict[str, np.ndarray]:
        """Reads all arrays that are wanted.

        Raises:
            UserError: the memory does not hold them, or one is damaged.
        """
        for name, header in self.headers.items():
            if header.nbytes > max(SMALL, MOST_RATIO * header.member.compress_size):
                packed, whole = in_words(header.member.compress_size), in_words(header.nbytes)
                refuse_npz(self.path, f"{name} would be unpacked from {packed} to {whole}, so it is a constant or a bomb")
        needed = sum(header.nbytes for header in self.headers.values())
        if needed > SMALL and needed > (free := free_memory()):
            refuse_npz(self.path, f"its arrays need {in_words(needed)} of memory, and only {in_words(free, down=True)} are free")
        arrays = {}
        for name, header in self.headers.items():
            with translate_errors(self.path, name), self.opened.open(header.member) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


@contextmanager
def open_npz(path: Path, wanted: Collection[str]) -> Iterator[Npz]:
    """Opens an .npz; arguments and errors as of `Npz`.

    Raises:
        UserError: it is not a regular file, or not an .npz.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        refuse_npz(path, error.strerror or brief(error))
    with file:
        with translate_errors(path):
            alone = file.read(6) == np.lib.format.MAGIC_PREFIX
            file.seek(0)
            if not alone:
                opened = zipfile.ZipFile(file)
        if alone:
            refuse_npz(path, "a single array")
        with opened:
            yield Npz(path, opened, wanted)


@contextmanager
def translate_errors(path: Path, name: str = "") -> Iterator[None]:
    """Within this context, around calls of zipfile and numpy, everything raised becomes the UserError of a damaged file.

    At a damaged one they raise almost anything: BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, RuntimeError.
    """
    try:
        yield
    except Exception as error:
        plain = isinstance(error, (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile))
        why = brief(error) if plain else f"{type(error).__name__}: {brief(error)}"
        refuse_npz(path, f"{name}: {why}" if name else why)


def refuse_npz(path: Path, why: str) -> NoReturn:
    """Refuse an .npz that cannot be read.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{path}: cannot be read as an .npz of statistics ({why}); save its arrays with numpy.savez, or write one with `gantrain reference`"
    ) from None
