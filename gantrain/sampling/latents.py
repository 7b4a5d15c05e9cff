"""Latents and labels as pure functions of (seed, purpose, position)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gantrain import randomness
from gantrain.config.config import Config
from gantrain.data.stream import sent


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
    """Latents `[count, dim_z]` and uniform labels `[count]` of positions start .. start + count - 1 of a stream."""
    z = randomness.normal(seed, f"{purpose}/z", start, count, dim_z, truncation)
    y = randomness.integers(seed, f"{purpose}/y", start, count, num_classes)
    return sent(z, device), sent(y, device)


def calibration_batches(
    config: Config, generator: nn.Module, truncation: float | None, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """This process's share of the batches for recalibrating BatchNorm: (index, (z, y))."""
    size = config.eval.batch_size
    device = next(generator.parameters()).device
    for index in range(rank, config.eval.recalibration_batches, world):
        yield index, draw(config.seed, "calibration", index * size, size, generator.dim_z, generator.num_classes, device, truncation)


def class_sheet_inputs(seed: int, dim_z: int, num_classes: int, rows: int, classes: int) -> tuple[Tensor, Tensor, int]:
    """(z, y, columns) of a sheet with a class a column and fixed z: the same for every average and at every time."""
    columns = min(classes, num_classes) if num_classes > 1 else rows
    z = randomness.normal(seed, "sheet/z", 0, rows * columns, dim_z)
    # Spread over all classes where there are more of them than columns.
    shown = torch.arange(columns) * num_classes // columns if num_classes > 1 else torch.zeros(columns, dtype=torch.int64)
    return z, shown.repeat(rows), columns
