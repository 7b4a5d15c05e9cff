"""A policy that grows the batch while the gradient noise is large."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gantrain.batching.noise_scale import Estimate
from gantrain.batching.state import Batches, BatchState, require_max_batch
from gantrain.clock import images
from gantrain.errors import check

GATES = {"d": ("d",), "g": ("g",), "either": ("d", "g"), "both": ("d", "g")}


@dataclass(frozen=True)
class ByNoiseScale(Batches):
    """Grow the batch when the noise scale in batches, B_simple / B, is significantly above the target.

    At a constant learning rate this rule has no fixed point: near an optimum |G|^2 falls as the batch grows, and B_simple / B
    keeps the value that the rate gives it. So the batch grows in steps, some time apart, up to `max_batch`, which must be set.

    Attributes:
        target: target noise scale, in batches.
        margin: the batch grows only above target x margin.
        gate: whose noise scale counts: "d", "g", "either" of them, or "both". |G|^2 of D goes to 0 as G improves.
        law: "factor" multiplies the batch by `factor`; "sqrt" proposes sqrt(r B_simple) (McCandlish et al. 2018, App. D). It uses
            the lower end of B_simple's interval and ignores the target.
        factor: factor by which the law "factor" multiplies the batch.
        r: for the law "sqrt", in images: the batch at which a step costs as much as its images.
        patience: number of consecutive checks that must agree. Each check is an estimate over `noise_scale.window` measurements
            of its own.
        dwell_kimg: minimum kimg between two growths.
    """

    target: float = 1.0
    margin: float = 1.5
    gate: str = "either"
    law: Literal["factor", "sqrt"] = "factor"
    factor: float = 2.0
    r: float | None = None
    patience: int = 2
    dwell_kimg: float = 10.0

    reads_noise = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "target", 0 < self.target < float("inf"), "must be above 0")
        check(self, "margin", 1 <= self.margin < float("inf"), "must be at least 1")
        check(self, "gate", self.gate in GATES, f"must be one of {', '.join(GATES)}")
        check(self, "factor", 1 < self.factor < float("inf"), "must be above 1")
        check(self, "patience", 1 <= self.patience <= 16, "must be between 1 and 16")
        check(self, "dwell_kimg", 0 <= self.dwell_kimg < float("inf"), "must be at least 0")
        given = self.r is not None and 0 < self.r < float("inf")
        check(self, "r", given or self.law != "sqrt", "must be above 0 with law: sqrt")
        check(self, "r", self.r is None or self.law == "sqrt", "must be null with law: factor")

    def require_fit(self) -> None:
        require_max_batch(self)

    def propose(self, state: BatchState) -> float:
        if not state.proposal:
            return self.batch_size
        wanted = self._wanted(state)
        return state.proposal if wanted is None else max(state.proposal, wanted)

    def reason(self, state: BatchState) -> str:
        last = state.checks[-1]
        players = [p for p in GATES[self.gate] if self._is_noisy(p, state)] or GATES[self.gate]
        found = " and ".join(f"{p.upper()}'s noise scale is {describe_estimate(last[p], state.batch_size)}" for p in players)
        if self.law == "sqrt":
            return f"{found}: sqrt({self.r:g} x B_simple)"
        return f"{found}, above {self.target:g} x {self.margin:g} in {self.patience} check{'s' if self.patience > 1 else ''}"

    def _wanted(self, state: BatchState) -> float | None:
        """The batch that the newest checks ask for; None if there are too few, if it is too soon, or if they disagree."""
        # Only when a check has just been completed: then all processes decide together.
        if not state.checked or len(state.checks) < self.patience or state.since_change < images(self.dwell_kimg):
            return None
        noisy = [player for player in GATES[self.gate] if self._is_noisy(player, state)]
        if not noisy or (self.gate == "both" and len(noisy) < 2):
            return None
        if self.law == "factor":
            return state.proposal * self.factor
        assert self.r is not None  # `__post_init__` requires it with law: sqrt
        each = [min(math.sqrt(self.r * low) for low in self._lows(player, state)) for player in noisy]
        return min(each) if self.gate == "both" else max(each)

    def _newest(self, state: BatchState) -> list[Mapping[str, Estimate]]:
        return list(state.checks[-self.patience :])

    def _is_noisy(self, player: str, state: BatchState) -> bool:
        """Whether all of the newest checks show that this player's noise is significantly above the threshold."""
        threshold = 0.0 if self.law == "sqrt" else self.target * self.margin * state.batch_size
        lows = self._lows(player, state)
        return len(lows) == len(self._newest(state)) and all(low > threshold for low in lows)

    def _lows(self, player: str, state: BatchState) -> list[float]:
        """Lower ends of a player's noise scale in the newest checks; checks without an interval are left out."""
        return [low for checked in self._newest(state) if (low := checked[player].low) is not None]


def describe_estimate(estimate: Estimate, batch_size: int) -> str:
    """The noise scale in words, such as "3.2 batches (2.1 to 4.9)", or "at least 2.1 batches" without an upper end."""
    if estimate.low is None:
        return "undecidable"
    if estimate.b_simple is None or estimate.high is None:
        return f"at least {estimate.low / batch_size:.3g} batches"
    ratio, low, high = (value / batch_size for value in (estimate.b_simple, estimate.low, estimate.high))
    return f"{ratio:.3g} batches ({low:.3g} to {high:.3g})"
