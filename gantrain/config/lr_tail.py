"""Learning-rate tails: the learning rates while averages collect weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gantrain.clock import images
from gantrain.errors import check


@dataclass(frozen=True)
class LrTail:
    """The learning-rate tail of Izmailov et al. 2018 (section 3.2): a constant rate, or cycles that each fall linearly.

    Both rates are multiples of the configured ones, the same for G and D. Off by default.

    Attributes:
        kind: "none" keeps the configured rates; "constant" and "cyclical" change them from `start_kimg` on.
        start_kimg: where the tail begins; give the `swa` averager the same start.
        anneal_kimg: length of the linear transition from the configured rate to `high`, which ends at `start_kimg`.
        high: rate of a constant tail, and highest rate of a cycle (the paper's alpha_1), as a multiple of the configured rate.
        low: lowest rate of a cycle (the paper's alpha_2), as a multiple of the configured rate.
        cycle_kimg: length of a cycle; give `swa` the same `every_kimg`, so that it collects where the rate is lowest.
    """

    kind: Literal["none", "constant", "cyclical"] = "none"
    start_kimg: float = 100.0
    anneal_kimg: float = 0.0
    high: float = 0.5
    low: float = 0.05
    cycle_kimg: float = 10.0

    def __post_init__(self) -> None:
        check(self, "start_kimg", 0 <= self.start_kimg < float("inf"), "must be at least 0")
        check(self, "anneal_kimg", 0 <= self.anneal_kimg <= self.start_kimg, f"must be between 0 and start_kimg ({self.start_kimg})")
        check(self, "high", 0 < self.high < float("inf"), "must be above 0")
        check(self, "low", 0 < self.low <= self.high, f"must be above 0 and at most high ({self.high})")
        check(self, "cycle_kimg", 0 < self.cycle_kimg < float("inf"), "must be above 0")

    def multiplier(self, before: int, after: int) -> float:
        """Factor for the learning rates in the update that takes the clock from `before` to `after` images."""
        if self.kind == "none":
            return 1.0
        start, anneal = round(self.start_kimg * 1000), round(self.anneal_kimg * 1000)
        if after <= start:
            way = max(0, after - (start - anneal)) / anneal if anneal else 0.0
            return 1.0 + (self.high - 1.0) * way
        if self.kind == "constant":
            return self.high
        # The paper's t(i) = (mod(i - 1, c) + 1) / c, in images; an update that crosses the end of a cycle closes it, so
        # that an average that collects there gets the weights of the lowest rate.
        cycle = images(self.cycle_kimg)
        t = min(1.0, ((max(before, start) - start) % cycle + after - before) / cycle)
        return (1.0 - t) * self.high + t * self.low
