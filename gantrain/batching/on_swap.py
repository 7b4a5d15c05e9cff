"""A batch that grows when an average replaces the live weights."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.batching.state import Batches, BatchState


@dataclass(frozen=True)
class OnSwap(Batches):
    """The batch starts at `batch_size` and is multiplied by `swap.growth` at every swap."""

    grows_at_swaps = True

    def propose(self, state: BatchState) -> float:
        # From the last proposal and not from the batch: factors too small for a whole round accumulate.
        return state.proposal * state.growth if state.proposal else self.batch_size

    def reason(self, state: BatchState) -> str:
        return f"the swap asks for x{state.growth:.3g}"
