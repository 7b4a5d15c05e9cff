"""A constant batch."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.batching.state import Batches, BatchState


@dataclass(frozen=True)
class Fixed(Batches):
    """The batch is always `batch_size`."""

    grows = False

    def propose(self, state: BatchState) -> int:
        return self.batch_size
