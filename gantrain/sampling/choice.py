"""Which generator of a run to draw from, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gantrain import randomness
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.images import to_uint8
from gantrain.run_folder import checkpoint
from gantrain.sampling.generators import chosen, ready


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
