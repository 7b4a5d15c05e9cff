"""Latest weight averaging: the plain mean of the last k collected weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gantrain.averaging.rule import Rule, Weights, check_every, check_start
from gantrain.clock import periods_from
from gantrain.errors import check

MOST_COPIES = 10_000  # far above the memory of any machine for networks of today; each copy has a name and lists of tensors besides


@dataclass(frozen=True)
class Lawa(Rule):
    """Uniform average of the last `k` collected weights (Kaddour 2022; Sanyal et al. 2023): SWA with a window.

    It keeps the k collected copies, in the average's precision, besides their mean; `offload` moves them to main memory.

    Attributes:
        k: number of copies in the window; until that many are collected, the mean is over those collected so far.
        every_kimg: interval in kimg between two collections.
        start_kimg: time of the first collection; before, the average does not exist and is not scored.
    """

    k: int = 10
    every_kimg: float = 1.0
    start_kimg: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "k", 1 <= self.k <= MOST_COPIES, f"must be from 1 to {MOST_COPIES}")
        check_every(self)
        check_start(self)

    def slots(self) -> list[str]:
        return [f"copy{i:03d}" for i in range(self.k)]

    def update(
        self, shadows: Weights, live: Weights, nimg: int, previous_nimg: int, num_averaged: int, slots: Mapping[str, Weights]
    ) -> bool:
        if not periods_from(self.start_kimg, self.every_kimg, previous_nimg, nimg):
            return False
        window = [list(copy.values()) for copy in slots.values()]
        torch._foreach_copy_(window[num_averaged % self.k], list(live.values()))
        there = window[: num_averaged + 1]
        # Summed from scratch each time, so that rounding errors do not accumulate.
        mean = list(shadows.values())
        torch._foreach_copy_(mean, there[0])
        for copy in there[1:]:
            torch._foreach_add_(mean, copy)
        torch._foreach_div_(mean, len(there))
        return True
