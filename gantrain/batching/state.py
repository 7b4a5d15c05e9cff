"""What a batch policy is told, and what every policy of gantrain's own can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from gantrain.batching.noise_scale import Estimate
from gantrain.errors import InvalidField, check


@dataclass(frozen=True)
class BatchState:
    """The moment at which a policy is asked.

    Attributes:
        nimg: images seen so far.
        batch_size: of the last update, 0 before the first.
        growth: what a swap at this very moment asks the batch to be multiplied by; 1 otherwise.
        proposal: what the policy proposed last, cut to its largest batch but not yet to whole rounds; 0 before the first.
        since_change: images since the proposal last rose (the batch, but for whole rounds), or since the start.
        checks: the noise scale of "d" and "g" at every check since then, or since the weights were swapped, the newest last;
            each is over measurements of its own.
        checked: whether the newest check was completed just now.
    """

    nimg: int
    batch_size: int
    growth: float = 1.0
    proposal: float = 0.0
    since_change: int = 0
    checks: Sequence[Mapping[str, Estimate]] = ()
    checked: bool = False


@dataclass(frozen=True)
class Batches:
    """The fields of every batch policy.

    Attributes:
        batch_size: images per generator update over all processes and rounds, B = micro_batch x processes x rounds; for a
            policy that grows it, where it begins.
        micro_batch: images per process and round, what BatchNorm sees; null is batch_size / processes, one round.
        max_batch: what the batch never exceeds; null is the largest that the policy itself names.
        lr_scaling: what growth does to both learning rates: "none", or times (batch / first batch) to the power 1/2 ("sqrt")
            or 1 ("linear").
    """

    batch_size: int = 64
    micro_batch: int | None = None
    max_batch: int | None = None
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"

    grows: ClassVar[bool] = True  # ever
    grows_at_swaps: ClassVar[bool] = False
    reads_noise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, "batch_size", self.batch_size >= 1, "must be at least 1")
        b = self.micro_batch
        check(self, "micro_batch", b is None or b >= 1, "must be at least 1, or null")
        check(self, "micro_batch", b is None or self.batch_size % b == 0, f"must divide batch_size ({self.batch_size})")
        check(
            self,
            "max_batch",
            self.max_batch is None or self.max_batch >= self.batch_size,
            f"must be at least batch_size ({self.batch_size}), or null",
        )

    @property
    def highest(self) -> float:
        """What the batch never exceeds."""
        return float("inf") if self.max_batch is None else self.max_batch

    def require_fit(self) -> None:
        """Refuse what the policy's own fields and those above make impossible together.

        Raises:
            InvalidField: with the key.
        """

    def named(self) -> dict[str, list[int]]:
        """The batches that the configuration names besides the first, by key."""
        return {"max_batch": [] if self.max_batch is None else [self.max_batch]}

    def lr_scale(self, batch_size: int) -> float:
        """What both learning rates are multiplied by at a batch."""
        return (batch_size / self.batch_size) ** {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.lr_scaling]

    def reason(self, state: BatchState) -> str:
        """Why the policy proposes what it proposes, where that is a growth."""
        return f"{type(self).__name__} proposes it"


def require_max_batch(policy: Batches) -> None:
    """Refuse a policy that would grow without end."""
    if policy.max_batch is None:
        raise InvalidField("max_batch", None, "must be given, the largest batch that it may reach: by itself this policy grows without end")
