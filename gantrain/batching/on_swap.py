"""A batch that grows when an average is put in place of the live weights."""
from __future__ import annotations

from dataclasses import dataclass

from gantrain.batching.state import Batches, BatchState


@dataclass(frozen=True)
class OnSwap(Batches):
    """`batch_size` at first, multiplied at every swap by the factor that the swap asks for (`swap.growth`)."""

    def propose(self, state: BatchState) -> int:
        return round(state.batch_size * state.growth) if state.batch_size else self.batch_size
