"""A batch that stays as it is."""
from __future__ import annotations

from dataclasses import dataclass

from gantrain.batching.state import BatchState
from gantrain.errors import InvalidField, check


@dataclass(frozen=True)
class Fixed:
    """Always `batch_size`.

    Attributes:
        batch_size: images per generator update over all processes and rounds, B = micro_batch x processes x rounds.
        micro_batch: images per process and round, what BatchNorm sees; null is batch_size / processes, one round.
    """

    batch_size: int = 64
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        check(self, "batch_size", self.batch_size >= 1, "must be at least 1")
        if self.micro_batch is not None:
            check(self, "micro_batch", self.micro_batch >= 1, "must be at least 1")
            if self.batch_size % self.micro_batch:
                raise InvalidField("micro_batch", self.micro_batch, f"must divide batch_size ({self.batch_size})")

    def propose(self, state: BatchState) -> int:
        return self.batch_size
