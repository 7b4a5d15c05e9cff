"""Weights that are not finite: what is wrong with them in one line, and which weights of the same run can be used instead.

A generator with a single nan in its weights draws black pictures, since nan becomes 0 as a byte, and nothing else tells them from a
picture of the night.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gantrain.averaging import LIVE
from gantrain.errors import UserError
from gantrain.run_folder import checkpoint
from gantrain.run_folder.checkpoint import Damaged
from gantrain.run_folder.contents import averages_of, checkpoints_of, group_of, rebuilt_of, run_of, times_of_rebuilt

TRIED = 8  # checkpoints, from the last on, that are searched for finite weights
NO_OTHER = "no other weights that are left in the run are finite; use a copy of an earlier checkpoint, or train again"


class NotFinite(UserError):
    """Weights or images with nan or infinite values in them."""


def count_nonfinite(tensors: Mapping[str, Tensor]) -> str:
    """What is not finite among some tensors: "3 of 1,200 values are nan or infinite, the first in conv.weight"; "" if all are finite."""
    total, wrong, first = 0, 0, ""
    for name, tensor in tensors.items():
        total += tensor.numel()
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        count = tensor.numel() - int(torch.isfinite(tensor).sum())
        first = first or (name if count else "")
        wrong += count
    return f"{wrong:,} of {total:,} values are nan or infinite, the first in {first}" if wrong else ""


def require_finite(path: Path, average: str, weights: Mapping[str, Tensor], whose: str | None = None) -> None:
    """Refuse weights that are not finite.

    Args:
        path: the checkpoint.
        average: whose weights they are.
        weights: by name.
        whose: what they are called in the message; None is "weights of AVERAGE".

    Raises:
        NotFinite: with the number and the first of them, and which other weights of the run are finite.
    """
    if words := count_nonfinite(weights):
        nimg = times_of_rebuilt(run_of(path)).get(average, int(path.name))
        raise refusal(path, average, f"the {whose or f'weights of {average}'} at {nimg / 1000:g} kimg are not finite ({words})")


def require_finite_images(images: Tensor, name: str) -> Tensor:
    """The images, unless some are not finite, as of weights that are too large.

    Args:
        images: float `[N, C, H, W]`.
        name: whose images they are, for the message.

    Raises:
        NotFinite: says how many, and that the weights themselves are finite.
    """
    if images.is_floating_point() and not bool((good := torch.isfinite(images).flatten(1).all(dim=1)).all()):
        wrong = len(images) - int(good.sum())
        raise NotFinite(
            f"{name}: {wrong} of {len(images)} images have nan or infinite pixels, although its weights are finite: they are too large"
            " for its layers; use an earlier checkpoint (--kimg), another average (--average), or another --batchnorm"
        )
    return images


def refusal(path: Path, average: str, words: str) -> NotFinite:
    """The error for weights that are not finite, with a remedy."""
    return NotFinite(f"{run_of(path)}: {words}; {remedy(path, average)}")


def remedy(path: Path, average: str) -> str:
    """Which weights of a run can be used instead of those of an average at a checkpoint."""
    nimg = int(path.name)
    others = [name for name in names_in(path) if name != average and is_finite(path, name)]
    earlier = next((one for one in checkpoints_before(path) if average in names_in(one) and is_finite(one, average)), None)
    found = [f"--average {others[0]}, which is finite at {nimg / 1000:g} kimg"] if others else []
    earlier = None if average in rebuilt_of(run_of(path)) else earlier
    found += [f"--kimg {int(earlier.name) / 1000:g}, where {average} is finite"] if earlier else []
    return f"use {', or '.join(found)}" if found else NO_OTHER


def checkpoints_before(path: Path) -> Iterator[Path]:
    """Some checkpoints of a run before this one, the last first."""
    there = checkpoints_of(run_of(path))
    yield from [there[nimg] for nimg in sorted(there, reverse=True) if nimg < int(path.name)][:TRIED]


def names_in(path: Path) -> list[str]:
    """The averages in a checkpoint, without those that were rebuilt; none if it is damaged."""
    try:
        there = averages_of(path)
    except Damaged:
        return []
    rebuilt = rebuilt_of(run_of(path))
    return [name for name in there if name not in rebuilt]


def is_finite(path: Path, average: str) -> bool:
    """Whether all tensors of an average of `names_in` are finite; False if they cannot be read."""
    group = "g" if average == LIVE else group_of(average)
    try:
        return not count_nonfinite(checkpoint.read(path, [group]).tensors[group])
    except Damaged:
        return False
