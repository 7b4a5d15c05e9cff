"""A batch that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.batching.state import Batches, BatchState


@dataclass(frozen=True)
class Fixed(Batches):
    """Always `batch_size`."""

    grows = False

    def propose(self, state: BatchState) -> int:
        return self.batch_size
