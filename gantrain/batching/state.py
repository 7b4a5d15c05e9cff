"""What a batch policy is told, and what every policy of gantrain's own can be told."""
from __future__ import annotations

from dataclasses import dataclass

from gantrain.errors import InvalidField, check


@dataclass(frozen=True)
class BatchState:
    """The moment at which a policy is asked.

    Attributes:
        nimg: images seen so far.
        batch_size: of the last update, 0 before the first.
        growth: what a swap at this very moment asks the batch to be multiplied by; 1 otherwise.
        proposal: what the policy proposed last, cut to its largest batch but not yet to whole rounds; 0 before the first.
    """

    nimg: int
    batch_size: int
    growth: float = 1.0
    proposal: float = 0.0


@dataclass(frozen=True)
class Batches:
    """The fields of every batch policy.

    Attributes:
        batch_size: images per generator update over all processes and rounds, B = micro_batch x processes x rounds; for a
            policy that grows it, where it begins.
        micro_batch: images per process and round, what BatchNorm sees; null is batch_size / processes, one round.
        max_batch: what the batch never exceeds; null is batch_size.
    """

    batch_size: int = 64
    micro_batch: int | None = None
    max_batch: int | None = None

    def __post_init__(self) -> None:
        check(self, "batch_size", self.batch_size >= 1, "must be at least 1")
        if self.micro_batch is not None:
            check(self, "micro_batch", self.micro_batch >= 1, "must be at least 1")
            if self.batch_size % self.micro_batch:
                raise InvalidField("micro_batch", self.micro_batch, f"must divide batch_size ({self.batch_size})")
        check(self, "max_batch", self.max_batch is None or self.max_batch >= self.batch_size, f"must be at least batch_size ({self.batch_size}), or null")
