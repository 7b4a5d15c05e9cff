"""What a rule of averaging is, and what every rule of gantrain's own can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from gantrain.errors import check

Weights = Mapping[str, Tensor]


class Averager(Protocol):
    """The rule of an average; a frozen dataclass listed in `AVERAGERS`.

    One that is no step towards the live weights has, instead of `weight`, a method

        update(shadows, live, nimg, previous_nimg, num_averaged, slots) -> bool | None

    that changes the shadows in place and says whether it did (None counts as yes). `shadows` and `live` are tensors by
    weight name; `slots` are further fp32 tensors like the shadows, by slot and weight name, that belong to the average and
    are saved with it: their names are what the rule's method `slots()` returns.

    What else a rule may have, all optional: the fields of `Rule`; `per_update = True` if its weight is meant for one update
    of the network, however far apart the average looks; `writes_back = True` if the live weights are to be replaced by the
    average whenever it has moved.
    """

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        """How far the average moves to the live weights now, in [0, 1].

        Args:
            nimg: images seen, the update just done included.
            previous_nimg: images seen when this was last asked.
            num_averaged: how many times the average has moved; 0 means that it has not begun.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What every averager of gantrain can be told beside its own hyper-parameters.

    Attributes:
        networks: "g" follows the generator, "gd" the discriminator too.
        offload: keep the average in main memory instead of on the GPU. Each look then copies the live weights there, so
            give `update_every_kimg` with it.
        update_every_kimg: look at the live weights only every so many thousand images; null looks after every update.
            Nothing else changes: every rule goes by the images that have passed since it last looked.
    """

    networks: Literal["g", "gd"] = "g"
    offload: bool = False
    update_every_kimg: float | None = None

    def __post_init__(self) -> None:
        every = self.update_every_kimg
        check(self, "update_every_kimg", every is None or 0 < every < float("inf"), "must be above 0, or null for every update")


def check_start(rule: Rule) -> None:
    """Refuse a start before the beginning."""
    check(rule, "start_kimg", 0 <= rule.start_kimg < float("inf"), "must be at least 0")


def check_every(rule: Rule) -> None:
    """Refuse a distance that is none."""
    check(rule, "every_kimg", 0 < rule.every_kimg < float("inf"), "must be above 0")
