"""A sparse random sketch, which reduces millions of weights to a few hundred numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gantrain.devices import widest_float
from gantrain.randomness import integers, uniform

SEED = 0  # independent of the run's seed, so paths of different runs can be compared


class Sketch:
    """A linear map from named weights, N numbers in total, to `size` numbers that preserves squared distances on average.

    Each output is the sum of sqrt(N) randomly chosen weights with random signs, scaled so that E |S x|^2 = |x|^2 (a very sparse
    random projection, Li, Hastie and Church 2006). Because it is linear, it maps an Ornstein-Uhlenbeck process to one with the same
    rates, and averages of weights to averages of their sketches. If the motion is spread over many weights, |S x|^2 of a single x
    has a relative deviation of about sqrt(2 / size).

    The map depends only on the names and shapes of the weights: it is the same on every process, after every resume, for every
    seed and memory format.

    Args:
        weights: weights by name; only their shapes are used.
        purpose: short name of the network; each network has its own map.
        size: number of outputs.
    """

    def __init__(self, weights: Mapping[str, Tensor], purpose: str, size: int):
        weights = {name: real_parts(weight) for name, weight in weights.items()}
        counts = [t.numel() for t in weights.values()]
        total = sum(counts)
        each = max(1, math.isqrt(total))
        positions = integers(SEED, f"orbit/{purpose}/positions", 0, size * each, total).numpy()
        signs = np.where(uniform(SEED, f"orbit/{purpose}/signs", 0, size * each)[:, 0].numpy() < 0.5, -1.0, 1.0)
        order = np.argsort(positions, kind="stable")  # gather in memory order, then sort back into rows
        pieces = np.split(positions[order], np.searchsorted(positions[order], np.cumsum(counts)[:-1]))
        starts = np.cumsum([0, *counts[:-1]])
        self.size = size
        inside = {name: torch.from_numpy(piece - start) for name, piece, start in zip(weights, pieces, starts) if len(piece)}
        scaled = torch.from_numpy(signs * math.sqrt(total / (each * size))).float().view(size, each)
        self._held = {torch.device("cpu"): (inside, torch.from_numpy(np.argsort(order)), scaled)}

    def _on(self, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Returns the map's tensors on a device, cached per device because averages may be on another device than the weights."""
        if device not in self._held:
            inside, rows, signs = self._held[torch.device("cpu")]
            self._held[device] = {name: index.to(device) for name, index in inside.items()}, rows.to(device), signs.to(device)
        return self._held[device]

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Returns the sketch of weights, fp32 `[size]`, on their device without a device sync, from sums in `widest_float`."""
        inside, rows, signs = self._on(next(iter(weights.values())).device)
        gathered = torch.cat([torch.take(real_parts(weights[name]), index) for name, index in inside.items()])
        return (gathered[rows].view_as(signs) * signs).sum(dim=1, dtype=widest_float(signs.device)).float()


def real_parts(weight: Tensor) -> Tensor:
    """A complex tensor `[...]` as real numbers `[..., 2]`; a real one as it is."""
    return torch.view_as_real(weight) if weight.is_complex() else weight
