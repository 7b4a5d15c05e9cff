"""Latents and labels for a generator, as pure functions of (seed, purpose, position)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gantrain import randomness
from gantrain.config.config import Config
from gantrain.data.stream import sent

# An architecture's G(z, y): an nn.Module with dim_z, num_classes, resolution and channels, which the type nn.Module does not have.
GeneratorModule = Any


def draw(
    seed: int,
    purpose: str,
    start: int,
    count: int,
    dim_z: int,
    num_classes: int,
    device: torch.device | str = "cpu",
    truncation: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw latents `[count, dim_z]` and uniform labels int64 `[count]` for positions start .. start + count - 1 of a stream.

    Args:
        seed: of the run.
        purpose: name of the stream; streams are independent.
        truncation: the normal is truncated at this absolute value; None does not truncate.
    """
    z = randomness.normal(seed, f"{purpose}/z", start, count, dim_z, truncation)
    y = randomness.integers(seed, f"{purpose}/y", start, count, num_classes)
    return sent(z, device), sent(y, device)


def calibration_batches(
    config: Config, generator: GeneratorModule, truncation: float | None, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Draw this process's share of the batches that recalibrate BatchNorm: (index, (z, y))."""
    size = config.eval.batch_size
    device = next(generator.parameters()).device
    for index in range(rank, config.eval.recalibration_batches, world):
        yield index, draw(config.seed, "calibration", index * size, size, generator.dim_z, generator.num_classes, device, truncation)


def draw_class_sheet(seed: int, dim_z: int, num_classes: int, rows: int, classes: int) -> tuple[Tensor, Tensor, int]:
    """Draw (z, y, columns) of a sheet with one class per column and fixed z: the same for every average at every time."""
    columns = min(classes, num_classes) if num_classes > 1 else rows
    z = randomness.normal(seed, "sheet/z", 0, rows * columns, dim_z)
    # Spread evenly over all classes if there are more of them than columns.
    shown = torch.arange(columns) * num_classes // columns if num_classes > 1 else torch.zeros(columns, dtype=torch.int64)
    return z, shown.repeat(rows), columns
