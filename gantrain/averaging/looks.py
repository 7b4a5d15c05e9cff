"""Where an average has looked at the live weights, and how much each look counts in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gantrain.averaging.precision import whole_number
from gantrain.averaging.rule import AVERAGER, Averager, has_moved


class Looks:
    """The positions at which an average has looked at the live weights, stored as runs of equal distance.

    Looks after every update are a single run while the batch is constant, so millions of them take a few numbers. If the
    batch does not divide the interval between looks, every change of distance starts a new run.

    A run is [first position, distance, number of looks, updates of the network per look].
    """

    def __init__(self, runs: Sequence[Sequence[int]] = ()):
        self.runs = [[whole_number("a look of a saved average", number) for number in run] for run in runs]

    def add(self, nimg: int, updates: int) -> None:
        """Record a look at `nimg` images, `updates` updates of the network after the previous look."""
        if self.runs:
            first, distance, count, each = self.runs[-1]
            if each == updates and (count == 1 or nimg == first + distance * count):
                self.runs[-1] = [first, nimg - first if count == 1 else distance, count + 1, each]
                return
        self.runs.append([nimg, 0, 1, updates])

    @property
    def last_distance(self) -> int:
        """Images between the last two looks; 0 before there were two."""
        if not self.runs:
            return 0
        first, distance, count, _ = self.runs[-1]
        if count > 1 or len(self.runs) == 1:
            return distance
        before, step, many, _ = self.runs[-2]
        return first - (before + step * (many - 1))

    def unrolled(self) -> list[tuple[int, int]]:
        """(position, updates since the previous look) of every look."""
        return [(first + distance * i, updates) for first, distance, count, updates in self.runs for i in range(count)]


def weight_profile(averager: Averager, looks: Sequence[int | tuple[int, int]], first_nimg: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The effective weight that a rule gives to the live weights of each position at which it looks.

    Takes time and memory quadratic in the number of looks for rules that have an `update` of their own.

    Args:
        averager: the rule.
        looks: positions in images, or pairs (position, updates of the network since the previous look).
        first_nimg: where the average was created.

    Returns:
        (positions `[n + 1]`, weights `[n + 1]`); the first entry is that of the initial weights.
    """
    pairs = [look if isinstance(look, tuple) else (look, 1) for look in looks]
    positions = np.array([first_nimg, *(nimg for nimg, _ in pairs)], dtype=np.int64)
    weights = np.zeros(len(positions))
    averager = AVERAGER.adapt(averager)
    if not averager.moves_by_weight:
        return positions, _profile_by_running(averager, pairs, first_nimg)
    moves, num_averaged, previous = np.zeros(len(positions)), 0, first_nimg
    for i, (nimg, updates) in enumerate(pairs, start=1):
        moves[i] = averager.weight(nimg, previous, num_averaged)
        if updates > 1 and averager.per_update:
            moves[i] = 1.0 - (1.0 - moves[i]) ** updates
        num_averaged, previous = num_averaged + (moves[i] > 0.0), nimg
    moves[0] = 1.0
    # Each later look keeps the fraction 1 - move of what look i contributed.
    kept = np.cumprod(np.append(1.0, 1.0 - moves[:0:-1]))[::-1]
    weights[:] = moves * kept
    return positions, weights


@torch.no_grad()
def _profile_by_running(averager: Averager, pairs: Sequence[tuple[int, int]], first_nimg: int) -> np.ndarray:
    """The same for any linear rule: its average of weights that are 1 at one position each and 0 at all others."""
    like = lambda: {"w": torch.zeros(len(pairs) + 1, dtype=torch.float64)}  # noqa: E731
    live, shadows, slots = like(), like(), {slot: like() for slot in averager.slots()}
    for tensors in (shadows, *slots.values()):
        tensors["w"][0] = 1.0
    num_averaged, previous = 0, first_nimg
    for i, (nimg, _) in enumerate(pairs, start=1):
        live["w"].zero_()[i] = 1.0
        num_averaged += has_moved(averager.update(shadows, live, nimg, previous, num_averaged, slots))
        previous = nimg
    return shadows["w"].numpy()
