"""The choice of a generator, latents and labels to draw from: the options, and what they refer to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gantrain import randomness
from gantrain.bounds import MOST_IMAGES
from gantrain.config.config import Config
from gantrain.distributed import from_main, main_first
from gantrain.errors import UserError
from gantrain.images import to_uint8
from gantrain.run_folder.best_average import resolve_best
from gantrain.run_folder.checkpoint import read_state
from gantrain.run_folder.contents import look_again
from gantrain.run_folder.finite import require_finite_images
from gantrain.run_folder.held import Held
from gantrain.sampling.classes import Classes
from gantrain.sampling.generators import find_average, prepare_generator
from gantrain.sampling.latents import GeneratorModule


@dataclass(frozen=True)
class Choice:
    """The options that choose what is drawn.

    Attributes:
        run: a run folder.
        average: one of the names of `averages_of`, or "best".
        labels: classes, used in turn, as numbers or as texts that `--labels` takes; None uses all classes of the run.
        truncation: z is drawn from the normal truncated at this absolute value; None does not truncate.
        seed: of the latents.
        kimg, batchnorm: see `load_generator`.
    """

    run: str | Path
    average: str = "ema"
    labels: Sequence[int | str] | None = None
    truncation: float | None = None
    seed: int = 0
    kimg: float | None = None
    batchnorm: str | None = None

    def open(self) -> ImageSource:
        """Check the options, and open what they lead to.

        Raises:
            UserError: an option is out of range; or see `load_generator`.
        """
        require_truncation(self.truncation)
        if self.seed < 0:
            raise UserError(f"--seed: must be at least 0, got {self.seed}")
        return look_again(self._open)

    def _open(self) -> ImageSource:
        """What `open` returns; raises `Gone` if the run deletes the checkpoint before its files are open."""
        (average,), kimg = resolve_best(self.run, [self.average], self.kimg)
        chosen = replace(self, average=average, kimg=kimg)
        config, held, policy = find_average(self.run, average, kimg, self.batchnorm)
        known = Classes.at(held.folder, self.run)
        labels = known.parse(self.labels) if self.labels else range(known.count)
        resolution, channels, _ = read_state(held.folder)["shape"]
        return ImageSource(chosen, config, held, policy, torch.tensor(list(labels)), known, resolution, channels)


@dataclass(frozen=True)
class ImageSource:
    """What images are drawn from: a choice whose run, checkpoint and average exist.

    Attributes:
        choice: the options.
        config: of the run.
        held: the open files of the checkpoint, which the run may delete.
        policy: of BatchNorm.
        classes: labels that are used in turn, int64.
        known: the classes of the run.
        resolution, channels: of its images.
    """

    choice: Choice
    config: Config
    held: Held
    policy: str
    classes: Tensor
    known: Classes
    resolution: int
    channels: int

    @property
    def image_bytes(self) -> int:
        """Bytes of an image as uint8."""
        return self.channels * self.resolution**2

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.held.folder

    def agree(self, accelerator: Accelerator) -> ImageSource:
        """The same source on every process, at the checkpoint of the main one: a run that trains may have saved between two looks.

        Raises:
            UserError: that checkpoint is gone; on every process.
        """
        nimg = from_main(accelerator, int(self.path.name))
        again = replace(self.choice, kimg=nimg / 1000)
        return main_first(accelerator, lambda: self if int(self.path.name) == nimg else again.open())

    @property
    def average(self) -> str:
        """Name of the chosen average."""
        return self.choice.average

    def load_generator(self, device: torch.device | str, average: str | None = None) -> GeneratorModule:
        """Load the generator of the chosen average, or of another one."""
        return prepare_generator(self.config, self.path, average or self.average, self.policy, device, self.choice.truncation)

    def labels(self, count: int, start: int = 0) -> Tensor:
        """Labels int64 `[count]` of positions start .. start + count - 1."""
        return self.classes[torch.arange(start, start + count) % len(self.classes)]

    def latents(self, generator: GeneratorModule, count: int, start: int = 0) -> Tensor:
        """Latents `[count, dim_z]` of positions start .. start + count - 1."""
        return randomness.normal(self.choice.seed, "sample/z", start, count, generator.dim_z, self.choice.truncation)

    def float_sampler(self, generator: GeneratorModule) -> Callable[[int, int], Tensor]:
        """A function of (start, count) that generates these positions: `[count, C, H, W]` in [-1, 1] on the generator's device."""
        device = next(generator.parameters()).device
        return lambda start, count: generator(self.latents(generator, count, start).to(device), self.labels(count, start).to(device))

    def image_sampler(self, generator: GeneratorModule) -> Callable[[int, int], Tensor]:
        """The same function, giving images uint8 `[count, C, H, W]` on the CPU; it raises `NotFinite` for images that are not finite."""
        sample = self.float_sampler(generator)
        return lambda start, count: to_uint8(require_finite_images(sample(start, count), self.average)).cpu()


def require_truncation(truncation: float | None, option: str = "--truncation") -> None:
    """Refuse a truncation that is not a positive finite number."""
    if truncation is not None and not 0 < truncation < float("inf"):
        raise UserError(f"{option}: must be above 0, got {truncation:g}")


def require_count(num: int, option: str = "--num", least: int = 1, most: int = MOST_IMAGES) -> None:
    """Refuse a number below `least` or above `most`, which was mistyped."""
    if num < least:
        raise UserError(f"{option}: must be at least {least}, got {num}")
    if num > most:
        raise UserError(f"{option}: must be at most {most:,}, got {num:,}; use a smaller number")
