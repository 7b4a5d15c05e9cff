"""A few hundred numbers in place of millions of weights: a fixed sparse random sketch, and its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gantrain.randomness import integers, uniform

SEED = 0  # not the run's: paths of several runs can be laid over each other


class Sketch:
    """A linear map of named weights, N numbers in all, to `size` numbers that keeps squared distances in the mean.

    Each of the numbers is the sum of sqrt(N) of the weights, drawn at random, with random signs, and scaled so that
    E |S x|^2 = |x|^2: a very sparse random projection (Li, Hastie and Church 2006). Being linear it turns an
    Ornstein-Uhlenbeck process into one of the same rates, and averages of weights into averages of their sketches. |S x|^2 of
    one x deviates by about sqrt(2 / size) of itself where the motion is spread over many weights.

    The same for networks of the same names and shapes: on every process, after every resume, under every seed, in whatever
    memory format.

    Args:
        weights: by name; their shapes count.
        purpose: which network this is, in a word; each has a sketch of its own.
        size: numbers out.
    """

    def __init__(self, weights: Mapping[str, Tensor], purpose: str, size: int):
        counts = [t.numel() for t in weights.values()]
        total = sum(counts)
        each = max(1, math.isqrt(total))
        positions = integers(SEED, f"orbit/{purpose}/positions", 0, size * each, total).numpy()
        signs = np.where(uniform(SEED, f"orbit/{purpose}/signs", 0, size * each)[:, 0].numpy() < 0.5, -1.0, 1.0)
        order = np.argsort(positions, kind="stable")  # gathered in the order in which they lie, then put back into rows
        pieces = np.split(positions[order], np.searchsorted(positions[order], np.cumsum(counts)[:-1]))
        starts = np.cumsum([0, *counts[:-1]])
        self.size = size
        inside = {name: torch.from_numpy(piece - start) for name, piece, start in zip(weights, pieces, starts) if len(piece)}
        scaled = torch.from_numpy(signs * math.sqrt(total / (each * size))).float().view(size, each)
        self._held = {torch.device("cpu"): (inside, torch.from_numpy(np.argsort(order)), scaled)}

    def _on(self, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What is gathered, and how, on a device; kept on each, since some averages may live on another."""
        if device not in self._held:
            inside, rows, signs = self._held[torch.device("cpu")]
            self._held[device] = {name: index.to(device) for name, index in inside.items()}, rows.to(device), signs.to(device)
        return self._held[device]

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The sketch of weights, fp32 `[size]`, on their device and without a sync; sums are float64."""
        inside, rows, signs = self._on(next(iter(weights.values())).device)
        gathered = torch.cat([torch.take(weights[name], index) for name, index in inside.items()])
        return (gathered[rows].view_as(signs) * signs).sum(dim=1, dtype=torch.float64).float()
