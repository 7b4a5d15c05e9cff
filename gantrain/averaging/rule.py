"""The contract of averaging rules, and the fields of gantrain's own rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from gantrain.contracts import Contract, require_numbers
from gantrain.errors import check

Weights = Mapping[str, Tensor]


class Averager:
    """The rule of an average: the contract of everything in `AVERAGERS`, and of rules from outside.

    A rule has `weight` or `update`. Everything else is optional; a rule that does not inherit from this class gets the same
    defaults. In a configuration a rule is a frozen dataclass, and its fields may set the attributes.

    Attributes:
        networks: "g" follows the generator; "gd" also follows the discriminator.
        offload: whether to keep the average in main memory instead of on the GPU.
        update_every_kimg: interval in kimg between two looks at the live weights; None looks after every update.
        start_kimg: time before which there is no average. gantrain only compares it with other times; the rule itself must wait.
        snapshot_every_kimg: interval in kimg between compact copies of the average, from which `gantrain average` rebuilds others; None
            keeps none. Needs `exponent`.
        writes_back: whether to replace the live weights with the average whenever it has moved. Only one rule of a run may do so.
    """

    networks: Literal["g", "gd"] = "g"
    offload: bool = False
    update_every_kimg: float | None = None
    start_kimg: float = 0.0
    snapshot_every_kimg: float | None = None
    writes_back: bool = False

    @property
    def per_update(self) -> bool:
        """Whether `weight` is meant for one update of the network, even if several lie between two looks. By default it is not."""
        return False

    @property
    def exponent(self) -> float | None:
        """The exponent gamma of a power average, whose weights over the past are known in closed form; None for other rules."""
        return None

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        """How far the average moves towards the live weights now, in [0, 1]: 0 leaves it, 1 copies them.

        Not called if the rule has an `update` of its own.

        Args:
            nimg: images seen, those of the last update included.
            previous_nimg: images seen at the previous look.
            num_averaged: how many times the average has moved; 0 means that it has not started.
        """
        return 0.0

    def update(
        self, shadows: Weights, live: Weights, nimg: int, previous_nimg: int, num_averaged: int, slots: Mapping[str, Weights]
    ) -> bool | None:
        """Move the average, for a rule that is not a step towards the live weights. By default the step is `weight`.

        Args:
            shadows: the averaged tensors by weight name, to be changed in place: fp32, or float64 or complex where the weights are.
            live: the live weights, of the same names and shapes, in their own precision. Integers and booleans are in neither.
            nimg, previous_nimg, num_averaged: as for `weight`.
            slots: the rule's further tensors by slot and weight name, to be changed in place; see `slots`.

        Returns:
            Whether the average has moved; None counts as yes.
        """
        weight = self.weight(nimg, previous_nimg, num_averaged)
        if weight > 0.0:
            lerp(list(shadows.values()), list(live.values()), weight)
        return weight > 0.0

    def slots(self) -> Sequence[str]:
        """Names of further copies of the weights, in the average's precision, that are saved with it. None by default."""
        return ()

    @property
    def moves_by_weight(self) -> bool:
        """Whether the average moves by `weight` alone: the rule has no `update` of its own."""
        return type(self).update is Averager.update

    @property
    def has_known_window(self) -> bool:
        """Whether the weight profile of the average is known in advance: the rule has a `weight` of its own."""
        return type(self).weight is not Averager.weight


AVERAGER: Contract[Averager] = Contract("averager", Averager, one_of=("weight", "update"))


@dataclass(frozen=True, kw_only=True)
class Rule(Averager):
    """The fields that every averager of gantrain has besides its own hyper-parameters.

    Attributes:
        networks: "g" follows the generator; "gd" also follows the discriminator.
        offload: whether to keep the average in main memory instead of on the GPU. Each update then copies the live weights there, so
            set `update_every_kimg` as well.
        update_every_kimg: interval in kimg between two looks at the live weights; null looks after every update. Rules account for the
            images since their last look.
    """

    networks: Literal["g", "gd"] = "g"
    offload: bool = False
    update_every_kimg: float | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        every = self.update_every_kimg
        check(self, "update_every_kimg", every is None or 0 < every < float("inf"), "must be above 0, or null for every update")


class Periodic(Protocol):
    """A rule that looks at the weights at regular intervals."""

    @property
    def every_kimg(self) -> float: ...


def check_start(rule: Averager) -> None:
    """Refuse a start before that of the run.

    Raises:
        InvalidField: for `start_kimg`.
    """
    check(rule, "start_kimg", 0 <= rule.start_kimg < float("inf"), "must be at least 0")


def check_every(rule: Periodic) -> None:
    """Refuse an interval that is not above 0.

    Raises:
        InvalidField: for `every_kimg`.
    """
    check(rule, "every_kimg", 0 < rule.every_kimg < float("inf"), "must be above 0")


def lerp(shadows: list[Tensor], live: list[Tensor], weight: float) -> None:
    """shadows += weight * (live - shadows), in place and in the shadows' precision; weight 1 copies exactly."""
    if weight >= 1.0:
        torch._foreach_copy_(shadows, live)
        return
    if any(tensor.dtype != shadow.dtype for tensor, shadow in zip(live, shadows)):
        live = [tensor.to(shadow.dtype) for tensor, shadow in zip(live, shadows)]
    torch._foreach_lerp_(shadows, live, weight)


def has_moved(answer: object) -> bool:
    """What an `update` has returned, as a bool: None, or nothing, counts as yes."""
    return answer is None or bool(answer)
