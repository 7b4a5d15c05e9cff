"""A batch that grows when an average replaces the live weights."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.batching.state import Batches, BatchState


@dataclass(frozen=True)
class OnSwap(Batches):
    """`batch_size` at first, multiplied at every swap by the factor that the swap asks for (`swap.growth`)."""

    grows_at_swaps = True

    def propose(self, state: BatchState) -> float:
        # From the last proposal: factors below a whole round add up until one is full.
        return state.proposal * state.growth if state.proposal else self.batch_size

    def reason(self, state: BatchState) -> str:
        return f"the swap asks for x{state.growth:.3g}"
