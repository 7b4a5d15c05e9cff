"""Output of drawn images: a grid, a folder or an archive. Processes share the drawing."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gantrain.atomic_file import attribute_errors, open_draft
from gantrain.distributed import on_any_process, raise_everywhere
from gantrain.errors import UserError
from gantrain.sampling.sheets import to_pil

CHUNK = 64  # images drawn together; with batchnorm=batch an image depends on the others in its chunk


# ---- the --out option ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """What --out names.

    Attributes:
        path: of the file or folder.
        folder: whether it is a folder, whatever its name ends in.
    """

    path: Path
    folder: bool = False

    @classmethod
    def parse(cls, text: str) -> Output:
        """Parse --out: a trailing slash means a folder."""
        return cls(Path(text), text.endswith(("/", os.sep)))

    @property
    def suffix(self) -> str:
        """Ending of the file name in lower case; "/" for a folder."""
        return "/" if self.folder else self.path.suffix.lower()

    def make_folders(self) -> None:
        """Create the folder that will be written into, and its parents.

        Raises:
            UserError: the path cannot be used, or the folder already contains PNGs.
        """
        if not self.folder and self.path.is_dir():
            raise UserError(f"--out: {str(self.path)!r} is a folder; end it with / for numbered files")
        folder = self.path if self.folder else self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out: {str(folder)!r} is a file or inside a file; choose another path") from None
        except OSError as error:
            raise not_written(folder, error) from error
        self._require_writable(folder)
        if self.folder and any(self.path.glob("*.png")):  # old ones would distort an FID of the folder
            raise UserError(f"--out: {str(self.path)!r} already contains PNGs; empty it or choose another folder")

    def _require_writable(self, folder: Path) -> None:
        """Refuse a folder in which no file can be made, before images are drawn for it.

        Raises:
            UserError: says why.
        """
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise not_written(self.path, error) from error


def not_written(path: Path, error: OSError) -> UserError:
    """The error for an --out that cannot be written."""
    return UserError(f"--out: {str(path)!r} cannot be written ({error.strerror or error}); choose another path")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture; an older file at `path` is replaced only once the new one is complete."""
    with open_draft(path) as draft:
        picture.save(draft)


# ---- sinks -----------------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """Receives images.

    Attributes:
        everywhere: whether each process writes the images that it drew; otherwise the main process writes all, in order.
    """

    everywhere: bool

    def take(self, start: int, images: Tensor) -> None:
        """Receive images uint8 `[count, C, H, W]` of positions start .. start + count - 1."""


class PngFolder:
    """Writes numbered PNGs into a folder."""

    everywhere = True

    def __init__(self, folder: Path):
        self.folder = folder

    def take(self, start: int, images: Tensor) -> None:
        """Write each image to its own file."""
        for i, image in enumerate(images, start):
            with attribute_errors(path := self.folder / f"{i:06d}.png"):
                to_pil(image).save(path)


class MemorySink:
    """Collects images in memory, as `parts`."""

    everywhere = False

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def take(self, start: int, images: Tensor) -> None:
        """Append the images."""
        self.parts.append(images)


class NpzFile:
    """Writes an .npz that guided-diffusion's evaluator reads (Dhariwal and Nichol 2021).

    It holds `arr_0`, images uint8 `[N, H, W, C]`, and `arr_1`, labels int64 `[N]`. Images are written as they arrive, so that memory
    holds only a few, and the same images always give the same bytes.
    """

    everywhere = False

    def __init__(self, path: Path, labels: Tensor):
        self.path, self.labels = path, labels
        self._zip: zipfile.ZipFile | None = None
        self._images: IO[bytes] | None = None

    def take(self, start: int, images: Tensor) -> None:
        """Append the images, which must arrive in order."""
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        if self._zip is None or self._images is None:
            self._zip = zipfile.ZipFile(self.path, "w")
            self._images = open_member(self._zip, "arr_0")
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(self.labels), *pixels.shape[1:])}
            np.lib.format.write_array_header_1_0(self._images, header)
        self._images.write(pixels.data)

    def close(self) -> None:
        """Write the labels and finish the file."""
        assert self._zip is not None and self._images is not None, "close() comes after the images"
        self._images.close()
        with open_member(self._zip, "arr_1") as file:
            np.lib.format.write_array(file, self.labels.numpy(), allow_pickle=False)
        self._zip.close()

    def abandon(self) -> None:
        """Close the file as it is; does nothing after `close`."""
        for part in (self._images, self._zip):
            with suppress(Exception):
                if part is not None:
                    part.close()


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an array's file in an archive for writing; the date is fixed at 1980 so that the bytes do not depend on the time."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


# ---- drawing ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_all(images: Callable[[int, int], Tensor], num: int, sink: Sink, accelerator: Accelerator) -> None:
    """Draw images 0 .. num - 1 into a sink. Each of W processes draws every W-th chunk, so W does not change the images.

    Args:
        images: a function of (start, count), as `ImageSource.image_sampler` gives it.

    Raises:
        UserError, OSError: a sink on this process, or on another one, failed.
    """
    world, rank, main = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    chunks = -(-num // CHUNK)
    error: OSError | None = None
    with tqdm(total=num, desc="sample", unit="image", leave=False, disable=None if main else True) as bar:
        for turn in range(-(-chunks // world)):
            first = turn * world
            parts = [(first + rank) * CHUNK] if sink.everywhere else [(first + r) * CHUNK for r in range(world)]
            # A process without a chunk of its own draws the last one again, because all of them take part in the gather.
            start = min(first + rank, chunks - 1) * CHUNK
            drawn = images(start, min(CHUNK, num - start))
            if not sink.everywhere and world > 1:
                padded = drawn.new_zeros(CHUNK, *drawn.shape[1:])
                padded[: len(drawn)] = drawn
                drawn = accelerator.gather(padded.to(accelerator.device)).cpu()
            try:
                for start, part in zip(parts, drawn.split(CHUNK)) if main or sink.everywhere else ():
                    if start < num:
                        sink.take(start, part[: num - start])
            except OSError as caught:
                error = caught
            if on_any_process(accelerator, error is not None):
                break
            bar.update(min(num, (first + world) * CHUNK) - bar.n)
    raise_everywhere(accelerator, error)


def choose_columns(num: int, classes: int) -> int:
    """Choose the columns of a grid: one per class, repeated until the grid is about square; about square if there are many classes."""
    return min(num, classes * max(1, round(num**0.5 / classes))) if classes <= 16 else max(1, round(num**0.5))
