"""What `gantrain sample` does: images of a run into a grid, a folder or an archive, shared out over the processes."""
from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from gantrain import checkpoint, randomness
from gantrain.config import Config
from gantrain.distributed import main_first, make_accelerator, on_any_process, on_main, together
from gantrain.errors import UserError
from gantrain.images import to_uint8
from gantrain.sampling import chosen, ready
from gantrain.sheets import grid, to_pil

CHUNK = 64  # images drawn together: with batchnorm=batch an image depends on these, and on no others


@dataclass(frozen=True)
class Choice:
    """Which generator is drawn from, and with what.

    Attributes:
        run: a run folder.
        average: a name of `averages_of`.
        labels: classes, taken in turn; None takes all of the run's.
        truncation: z is drawn from the normal cut at this absolute value; None does not cut.
        seed: of the latents.
        kimg, batchnorm: as `load_generator`.
    """

    run: str | Path
    average: str = "ema"
    labels: Sequence[int] | None = None
    truncation: float | None = None
    seed: int = 0
    kimg: float | None = None
    batchnorm: str | None = None

    def open(self) -> Chosen:
        """What was chosen, once all of it is known to be there.

        Raises:
            UserError: an option that cannot be, or as `load_generator`.
        """
        require_truncation(self.truncation)
        if self.seed < 0:
            raise UserError(f"--seed: must be at least 0, got {self.seed}")
        config, path, policy = chosen(self.run, self.average, self.kimg, self.batchnorm)
        num_classes = checkpoint.read(path, groups=[]).state["shape"][2]
        for label in self.labels or ():
            if not 0 <= label < num_classes:
                known = f"0 to {num_classes - 1}" if num_classes > 1 else "no classes"
                raise UserError(f"--labels: there is no class {label}; the run has {known}")
        return Chosen(self, config, path, policy, torch.tensor(list(self.labels or range(num_classes))), num_classes)


@dataclass(frozen=True)
class Chosen:
    """A choice that there is.

    Attributes:
        config, path, policy: of the run, of its checkpoint, of BatchNorm.
        classes: labels that are taken in turn, int64.
        num_classes: of the run.
    """

    choice: Choice
    config: Config
    path: Path
    policy: str
    classes: Tensor
    num_classes: int

    @property
    def average(self) -> str:
        return self.choice.average

    def generator(self, device: torch.device | str, average: str | None = None) -> nn.Module:
        """The generator, or that of another average."""
        return ready(self.config, self.path, average or self.average, self.policy, device, self.choice.truncation)

    def labels(self, count: int, start: int = 0) -> Tensor:
        """Labels of positions start .. start + count - 1, int64."""
        return self.classes[torch.arange(start, start + count) % len(self.classes)]

    def latents(self, generator: nn.Module, count: int, start: int = 0) -> Tensor:
        """Latents `[count, dim_z]` of positions start .. start + count - 1."""
        return randomness.normal(self.choice.seed, "sample/z", start, count, generator.dim_z, self.choice.truncation)

    def floats(self, generator: nn.Module) -> Callable[[int, int], Tensor]:
        """A function of (start, count) to what the generator puts out for these positions, `[count, C, H, W]` on its device."""
        device = next(generator.parameters()).device
        return lambda start, count: generator(self.latents(generator, count, start).to(device), self.labels(count, start).to(device))

    def images(self, generator: nn.Module) -> Callable[[int, int], Tensor]:
        """The same as images, uint8 on the CPU."""
        floats = self.floats(generator)
        return lambda start, count: to_uint8(floats(start, count)).cpu()


def require_truncation(truncation: float | None, option: str = "--truncation") -> None:
    """Refuse what a normal cannot be cut at."""
    if truncation is not None and not 0 < truncation < float("inf"):
        raise UserError(f"{option}: must be above 0, got {truncation:g}")


def require_count(num: int, option: str = "--num", least: int = 1) -> None:
    if num < least:
        raise UserError(f"{option}: must be at least {least}, got {num}")


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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, what the disk refuses has the name of the file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under, which is called `path` once it is whole, and deleted where it will not be."""
    draft = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        with naming(path):
            yield draft
            os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink()


def save(picture: Image.Image, path: Path) -> None:
    with whole(path) as draft:
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
            with naming(path := self.folder / f"{i:06d}.png"):
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
    together(accelerator, error)


def columns_of(num: int, classes: int) -> int:
    """Of a grid: a class a column, few classes repeated until it is about square; about square where there are many."""
    return min(num, classes * max(1, round(num**0.5 / classes))) if classes <= 16 else max(1, round(num**0.5))


def sample_run(choice: Choice, out: Out, num: int = 64) -> tuple[str, Accelerator]:
    """Draw `num` images into a grid (.png), numbered PNGs (folder/) or an archive (.npz).

    Returns:
        A line that says what was written, and the Accelerator that was used.

    Raises:
        UserError: a label, a number or a path that cannot be.
    """
    require_count(num)
    require_kind(out)
    there = choice.open()  # before a folder is made for nothing
    accelerator = make_accelerator()
    main_first(accelerator, out.make)  # nobody writes before everybody has looked
    images = there.images(there.generator(accelerator.device))
    if out.folder:
        draw_all(images, num, Pngs(out.path), accelerator)
    elif out.suffix == ".npz":
        write_archive(images, there.labels(num), out.path, accelerator)
    else:
        kept = Kept()
        draw_all(images, num, kept, accelerator)
        on_main(accelerator, lambda: save(grid(torch.cat(kept.parts), columns_of(num, len(there.classes))), out.path))
    shared = f", on {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return f"{num} images of {choice.average} in {out.path}{'/' if out.folder else ''}{shared}", accelerator


def require_kind(out: Out) -> None:
    """Refuse files of other kinds than images are drawn into."""
    if out.suffix not in ("/", ".png", ".npz"):
        name = str(out.path)
        if out.path.is_dir():
            raise UserError(f"--out: {name!r} is a folder; end it with / for numbered files")
        raise UserError(
            f"--out: {name!r} is neither a .png nor a folder; write {name + '.png'!r} for a grid or {name + '/'!r} for numbered files,"
            f" or {name + '.npz'!r} for arrays"
        )


def write_archive(images: Callable[[int, int], Tensor], labels: Tensor, path: Path, accelerator: Accelerator) -> None:
    """Draw as many images as there are labels into an .npz, which the main process writes.

    Raises:
        UserError, OSError: as `draw_all`.
    """
    with whole(path) if accelerator.is_main_process else nullcontext(path) as draft:
        archive = Archive(draft, labels)
        try:
            draw_all(images, len(labels), archive, accelerator)
            on_main(accelerator, archive.close)
        finally:
            archive.abandon()
