"""What `gantrain sample` does: images of a run into a grid, a folder or an archive, shared out over the processes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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

CHUNK = 64  # images drawn together: with batchnorm=batch an image depends on these, and on no others


# ---- where images go -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Out:
    """Where what is drawn goes.

    Attributes:
        path: as --out says.
        folder: it is a folder, whatever its name ends in.
    """

    path: Path
    folder: bool = False

    @classmethod
    def parse(cls, text: str) -> Out:
        """An --out; a folder where it ends in a slash."""
        return cls(Path(text), text.endswith(("/", os.sep)))

    @property
    def suffix(self) -> str:
        """What the file's name ends in, in lower case; "/" for a folder."""
        return "/" if self.folder else self.path.suffix.lower()

    def make(self) -> None:
        """Make the folders, of whoever may write into them then.

        Raises:
            UserError: there is something else, or PNGs are there already.
        """
        if not self.folder and self.path.is_dir():
            raise UserError(f"--out: {str(self.path)!r} is a folder; end it with / for numbered files")
        folder = self.path if self.folder else self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out: {str(folder)!r} is or lies below a file, not a folder") from None
        if self.folder and any(self.path.glob("*.png")):  # older ones among them would end up in somebody's FID
            raise UserError(f"--out: {str(self.path)!r} holds PNGs already; empty it or choose another folder")


def save(picture: Image.Image, path: Path) -> None:
    with open_draft(path) as draft:
        picture.save(draft)


class Sink(Protocol):
    """Takes images, uint8 `[count, C, H, W]`, of positions start .. start + count - 1.

    Attributes:
        everywhere: each process gives it what it has drawn; else the main process gives it all, in order.
    """

    everywhere: bool

    def take(self, start: int, images: Tensor) -> None: ...


class Pngs:
    """Numbered PNGs in a folder."""

    everywhere = True

    def __init__(self, folder: Path):
        self.folder = folder

    def take(self, start: int, images: Tensor) -> None:
        for i, image in enumerate(images, start):
            with attribute_errors(path := self.folder / f"{i:06d}.png"):
                to_pil(image).save(path)


class Kept:
    """Images in memory."""

    everywhere = False

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def take(self, start: int, images: Tensor) -> None:
        self.parts.append(images)


class Archive:
    """An .npz as guided-diffusion's evaluator reads it (Dhariwal and Nichol 2021): `arr_0` uint8 `[N, H, W, C]`, `arr_1` labels int64 `[N]`.

    Written as the images come, in memory of a few, and to the same bytes whenever it is written.
    """

    everywhere = False

    def __init__(self, path: Path, labels: Tensor):
        self.path, self.labels = path, labels
        self._zip: zipfile.ZipFile | None = None
        self._images: Any = None

    def member(self, name: str) -> Any:
        """An open file in the archive, dated as the oldest that a zip knows."""
        return self._zip.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)

    def take(self, start: int, images: Tensor) -> None:
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path, "w")
            self._images = self.member("arr_0")
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(self.labels), *pixels.shape[1:])}
            np.lib.format.write_array_header_1_0(self._images, header)
        self._images.write(pixels.data)

    def close(self) -> None:
        """Write what is left."""
        self._images.close()
        with self.member("arr_1") as file:
            np.lib.format.write_array(file, self.labels.numpy(), allow_pickle=False)
        self._zip.close()

    def abandon(self) -> None:
        """Let go of the file, as it is."""
        for part in (self._images, self._zip):
            with suppress(Exception):
                part.close()


# ---- drawing ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_all(images: Callable[[int, int], Tensor], num: int, sink: Sink, accelerator: Accelerator) -> None:
    """Images 0 .. num - 1 into a sink, each process drawing every W-th chunk of them: the same images for any number of processes.

    Raises:
        UserError, OSError: a sink, here or on another process, could not take them.
    """
    world, rank, main = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    chunks, error = -(-num // CHUNK), None
    with tqdm(total=num, desc="sample", unit="image", leave=False, disable=None if main else True) as bar:
        for turn in range(-(-chunks // world)):
            first = turn * world
            parts = [(first + rank) * CHUNK] if sink.everywhere else [(first + r) * CHUNK for r in range(world)]
            # Where there is no chunk left for this process it draws the last one again, since all take part in the gathering.
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


def columns_of(num: int, classes: int) -> int:
    """Of a grid: a class a column, few classes repeated until it is about square; about square where there are many."""
    return min(num, classes * max(1, round(num**0.5 / classes))) if classes <= 16 else max(1, round(num**0.5))
