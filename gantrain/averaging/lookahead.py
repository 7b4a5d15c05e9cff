"""Lookahead: slow weights that the live ones are put back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gantrain.averaging.rule import Rule, check_every, check_start
from gantrain.clock import periods_from
from gantrain.errors import check


@dataclass(frozen=True)
class Lookahead(Rule):
    """Slow weights that move a part of the way to the live ones every so often, and then replace them.

    Lookahead (Zhang et al. 2019); over G and D together, Lookahead-minmax (Chavdarova et al. 2021, Algorithm 1), which
    contracts games that spiral outwards. The optimizers' state is kept, as there. The paper counts generator steps (k = 5
    and more); here the distance is in images. All other averages take the live weights in before they are put back.

    Attributes:
        alpha: part of the way that the slow weights go, in (0, 1].
        every_kimg: distance between two such moves.
        start_kimg: the slow weights begin as a copy of the live ones here; 0 begins from the initial weights.
        networks: "gd" by default, since a game spirals in both players' weights at once.
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
        check(self, "offload", not self.offload, "must be false: the live weights are put back to the average at once")

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        if previous_nimg < self.start_kimg * 1000:
            return 1.0 if nimg >= self.start_kimg * 1000 else 0.0
        return self.alpha if periods_from(self.start_kimg, self.every_kimg, previous_nimg, nimg) else 0.0
