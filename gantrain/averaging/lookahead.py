"""Lookahead: slow weights to which the live weights are reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gantrain.averaging.rule import Rule, check_every, check_start
from gantrain.clock import periods_from
from gantrain.errors import check


@dataclass(frozen=True)
class Lookahead(Rule):
    """Slow weights that regularly move a fraction of the way to the live weights, and then replace them.

    Lookahead (Zhang et al. 2019); over G and D together, Lookahead-minmax (Chavdarova et al. 2021, Algorithm 1), which
    contracts games that spiral outwards. The optimizers' state is kept, as in the papers. They count generator steps (k = 5
    and more); here the interval is in images. All other averages see the live weights before these are reset.

    Attributes:
        alpha: fraction of the way that the slow weights move, in (0, 1].
        every_kimg: interval in kimg between two moves.
        start_kimg: time at which the slow weights start as a copy of the live weights; 0 starts from the initial weights.
        networks: "g" follows the generator; "gd", the default, follows both players, since the game spirals in both.
    """

    alpha: float = 0.5
    every_kimg: float = 0.32
    start_kimg: float = 0.0
    networks: Literal["g", "gd"] = "gd"
    writes_back = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "alpha", 0 < self.alpha <= 1, "must be above 0 and at most 1")
        check_every(self)
        check_start(self)
        check(self, "offload", not self.offload, "must be false: the live weights are reset to the average at once")

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        if previous_nimg < self.start_kimg * 1000:
            return 1.0 if nimg >= self.start_kimg * 1000 else 0.0
        return self.alpha if periods_from(self.start_kimg, self.every_kimg, previous_nimg, nimg) else 0.0
