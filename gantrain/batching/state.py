"""The contract of batch policies, the state that they are given, and the fields of gantrain's own policies."""

from __future__ import annotations

import functools
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gantrain.batching.noise_scale import Estimate
from gantrain.contracts import Contract
from gantrain.errors import InvalidField, check
from gantrain.plugin_errors import WrongResult, describe_value, place_of

POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # of the batch, by `lr_scaling`


@dataclass(frozen=True)
class BatchState:
    """What a policy is told when it is asked for a batch.

    Attributes:
        nimg: images seen so far.
        batch_size: of the last update, 0 before the first.
        growth: factor that a swap or rollback at this moment asks for; 1 otherwise.
        proposal: the last proposal of the policy, limited to `highest` but not yet rounded to whole rounds; 0 before the first.
        since_change: images since the proposal last rose, or since the start.
        checks: the noise scale of "d" and "g" at every check since the proposal last rose or the weights were swapped, newest
            last. Each check has measurements of its own.
        checked: whether the newest check was completed just now.
    """

    nimg: int
    batch_size: int
    growth: float = 1.0
    proposal: float = 0.0
    since_change: int = 0
    checks: Sequence[Mapping[str, Estimate]] = ()
    checked: bool = False


class BatchPolicy(ABC):
    """The contract of batch policies: of everything in `BATCH_POLICIES`, and of policies from outside.

    Only `propose` is required. A policy that does not inherit from this class gets the same defaults for the rest. In a
    configuration a policy is a frozen dataclass, and its fields may set the attributes. All batches are images per generator
    update, over all processes and rounds.

    Attributes:
        micro_batch: images per process and round; None is the first batch divided by the number of processes, in one round.
        max_batch: upper limit of the batch; None sets no limit.
        lr_scaling: effect of growth on both learning rates: "none", or a factor (batch / first batch) to the power 1/2 ("sqrt")
            or 1 ("linear").
        grows: whether the batch can grow. True by default, since a policy that does not say may grow it.
    """

    micro_batch: int | None = None
    max_batch: int | None = None
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    grows: bool = True

    @property
    def grows_at_swaps(self) -> bool | None:
        """Whether the batch grows by the factor that a swap or rollback asks for (`BatchState.growth`); None if unknown.

        None by default, since only the policy knows what it does with a factor. With False, a swap that asks for growth is refused.
        With True, a note says so if no swap asks for growth. Neither may be based on a guess.
        """
        return None

    @property
    def reads_noise(self) -> bool | None:
        """Whether the policy uses the noise scale (`BatchState.checks`); None if unknown.

        None by default. Such a policy gets the checks, since it may use them. A run that does not measure the noise scale is
        refused only with True.
        """
        return None

    @abstractmethod
    def propose(self, state: BatchState) -> float:
        """The batch of the next update, at least 1. Called before every update, on all processes alike.

        The controller limits it to `highest`, rounds it down to whole rounds, and never shrinks the batch.
        """

    @functools.cached_property
    def first_batch(self) -> int:
        """The batch at the start of a run: the proposal before the first image, limited to `highest`. The policy is asked once.

        Raises:
            UserError: the proposal is not a batch.
        """
        return int(min(proposal_of(self, BatchState(0, 0)), self.highest))

    @property
    def highest(self) -> float:
        """The upper limit of the batch. By default `max_batch`, or infinity."""
        return float("inf") if self.max_batch is None else self.max_batch

    def require_fit(self) -> None:  # noqa: B027 - by default there is nothing to refuse
        """Refuse values that do not fit together. By default, all are accepted.

        Raises:
            InvalidField: names the field.
        """

    def named(self) -> dict[str, list[int]]:
        """Batches other than the first that the configuration names, by key, which should be whole rounds. By default `max_batch`."""
        return {"max_batch": [] if self.max_batch is None else [self.max_batch]}

    def lr_scale(self, batch_size: int) -> float:
        """The factor of both learning rates at a batch. By default `lr_scaling` decides, relative to the first batch."""
        return 1.0 if self.lr_scaling == "none" else (batch_size / self.first_batch) ** POWERS[self.lr_scaling]

    def reason(self, state: BatchState) -> str:
        """Why the policy proposes a larger batch than before, as a clause for messages."""
        return f"{type(self).__name__} proposes it"


BATCH_POLICY: Contract[BatchPolicy] = Contract("batch policy", BatchPolicy)


def proposal_of(policy: BatchPolicy, state: BatchState) -> float:
    """The proposal of a policy, checked.

    Raises:
        UserError: it is not a number of images.
    """
    asked: Any = policy.propose(state)
    if isinstance(asked, bool) or not isinstance(asked, numbers.Real) or not 1 <= float(asked) < float("inf"):
        wrong = f"batching: {type(policy).__name__}.propose must return a number of images, at least 1, got {describe_value(asked)}"
        raise WrongResult(wrong + place_of(policy, "propose"))
    return float(asked)


@dataclass(frozen=True)
class Batches(BatchPolicy):
    """Fields that all batch policies of gantrain share.

    Attributes:
        batch_size: images per generator update over all processes and rounds, B = micro_batch x processes x rounds; the first
            batch if the policy grows it.
        micro_batch: images per process and round, over which BatchNorm computes its statistics; null is batch_size / processes, in
            one round.
        max_batch: upper limit of the batch; null is the largest batch that the policy itself names.
        lr_scaling: effect of growth on both learning rates: "none", or a factor (batch / batch_size) to the power 1/2 ("sqrt") or 1
            ("linear").
    """

    batch_size: int = 64
    micro_batch: int | None = None
    max_batch: int | None = None
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"

    @property
    def grows_at_swaps(self) -> bool | None:
        """Whether the batch grows by the factor of a swap or rollback. By default it does not."""
        return False

    @property
    def reads_noise(self) -> bool | None:
        """Whether the policy uses the noise scale. By default it does not."""
        return False

    def lr_scale(self, batch_size: int) -> float:
        """The factor of both learning rates at a batch: `lr_scaling` decides, relative to `self.batch_size`.

        The first batch of `largest` may differ from `batch_size`.
        """
        return (batch_size / self.batch_size) ** POWERS[self.lr_scaling]

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


def require_max_batch(policy: BatchPolicy) -> None:
    """Refuse a policy that would grow without a limit.

    Raises:
        InvalidField: for `max_batch`.
    """
    if policy.max_batch is None:
        raise InvalidField("max_batch", None, "must be set, the largest batch allowed: without it, this policy never stops growing")
