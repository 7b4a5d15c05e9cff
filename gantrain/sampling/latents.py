"""Latents and labels for a generator, as pure functions of (seed, purpose, position)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gantrain import randomness
from gantrain.config.config import Config
from gantrain.data.stream import sent
from gantrain.errors import UserError
from gantrain.models.architecture import is_latent_generator, label_counts_of
from gantrain.run_folder.checkpoint import read_state

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
    label_counts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw latents `[count, dim_z]` and labels int64 `[count]` for positions start .. start + count - 1 of a stream.

    Args:
        seed: of the run.
        purpose: name of the stream; streams are independent.
        truncation: the normal is truncated at this absolute value; None does not truncate.
        label_counts: see `draw_labels`.
    """
    z = randomness.normal(seed, f"{purpose}/z", start, count, dim_z, truncation)
    y = draw_labels(seed, f"{purpose}/y", start, count, num_classes, label_counts)
    return sent(z, device), sent(y, device)


def draw_labels(seed: int, purpose: str, start: int, count: int, num_classes: int, label_counts: Sequence[int] | None = None) -> Tensor:
    """Draw labels int64 `[count]`, each from one uniform number, by inverting the distribution function.

    Args:
        label_counts: a class is drawn in proportion to its count, so never if that is 0; None draws all classes equally often.
        The rest as in `draw`.
    """
    if label_counts is None:
        return randomness.integers(seed, purpose, start, count, num_classes)
    below = torch.tensor(label_counts, dtype=torch.float64).cumsum(0)  # exact up to 2**53 images
    u = randomness.uniform(seed, purpose, start, count)[:, 0]
    return torch.searchsorted(below, u * below[-1], right=True)


def choose_labels(generator: Any, labels: str | None) -> Literal["uniform", "data"]:
    """The `labels` with which a generator from outside is scored: as asked for, or else as it says itself (`label_counts_of`).

    Raises:
        UserError: there is no such choice, or it takes no labels.
    """
    if labels not in (None, "uniform", "data"):
        raise UserError(f"labels: must be uniform, data, or None, got {labels!r}")
    if labels is not None and not is_latent_generator(generator):
        raise UserError(f"labels: only applies to a generator G(z, y) with dim_z and num_classes, got {labels!r}; leave it out")
    return "data" if labels == "data" or (labels is None and label_counts_of(generator)) else "uniform"


def choose_label_counts(labels: str, class_counts: Sequence[int] | None, num_classes: int, where: str) -> tuple[int, ...] | None:
    """The `label_counts` of `draw_labels` that a configuration's `labels` asks for.

    Args:
        labels: "uniform" or "data".
        class_counts: images per class of the data; None or empty if they are not known.
        num_classes: of the generator.
        where: what the counts are of, for the message.

    Raises:
        UserError: the counts are not known, or are not those of the generator's classes.
    """
    if labels == "uniform" or num_classes == 1:
        return None
    counts = tuple(class_counts or ())
    if len(counts) == num_classes and any(counts):
        return counts
    has = f"has {len(counts)} classes, and the generator {num_classes}" if len(counts) > 1 else "does not say it"
    raise UserError(f"labels=data: needs the number of images of each class, and {where} {has}; use labels=uniform")


def label_counts_at(config: Config, path: Path, num_classes: int) -> tuple[int, ...] | None:
    """The `label_counts` with which the generator of a checkpoint is scored: those of the data that it was trained on.

    Raises:
        UserError: the configuration asks for them, and the checkpoint, of an earlier version, does not know them.
    """
    if config.labels == "uniform":
        return None
    return choose_label_counts(config.labels, read_state(path).get("class_counts"), num_classes, f"the checkpoint {path}")


def calibration_batches(
    config: Config, generator: GeneratorModule, truncation: float | None, rank: int = 0, world: int = 1,
    label_counts: Sequence[int] | None = None,
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:  # fmt: skip
    """Draw this process's share of the batches that recalibrate BatchNorm: (index, (z, y)). `label_counts` is that of the scores."""
    size, dim_z, num_classes = config.eval.batch_size, generator.dim_z, generator.num_classes
    device = next(generator.parameters()).device
    for index in range(rank, config.eval.recalibration_batches, world):
        yield index, draw(config.seed, "calibration", index * size, size, dim_z, num_classes, device, truncation, label_counts)


def draw_class_sheet(seed: int, dim_z: int, num_classes: int, rows: int, classes: int) -> tuple[Tensor, Tensor, int]:
    """Draw (z, y, columns) of a sheet with one class per column and fixed z: the same for every average at every time."""
    columns = min(classes, num_classes) if num_classes > 1 else rows
    z = randomness.normal(seed, "sheet/z", 0, rows * columns, dim_z)
    # Spread evenly over all classes if there are more of them than columns.
    shown = torch.arange(columns) * num_classes // columns if num_classes > 1 else torch.zeros(columns, dtype=torch.int64)
    return z, shown.repeat(rows), columns
