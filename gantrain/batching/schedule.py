"""A batch that grows at set times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from gantrain.batching.state import Batches, BatchState, require_max_batch
from gantrain.clock import images
from gantrain.errors import InvalidField, check


@dataclass(frozen=True)
class Schedule(Batches):
    """Grow the batch at set times, where others decay the learning rate (Smith et al. 2018).

    Attributes:
        milestones: pairs [kimg, batch]: each batch applies from its time on.
        factor: instead of milestones: the batch is multiplied by this factor at every `every_kimg`, up to `max_batch`.
        every_kimg: interval in kimg between two growths by `factor`.
    """

    milestones: Any = field(
        default=None,
        metadata={"type": "a list of [kimg, batch] pairs, or null", "range": "kimg above 0 and increasing; batches never shrink"},
    )
    factor: float | None = None
    every_kimg: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        factor, every = self.factor, self.every_kimg
        check(self, "factor", factor is None or 1 < factor < float("inf"), "must be above 1, or null")
        check(self, "every_kimg", every is None or 0 < every < float("inf"), "must be above 0, or null")
        if self.milestones is None:
            if factor is None:
                raise InvalidField("factor", None, "must be set together with every_kimg; or set milestones instead")
            if every is None:
                raise InvalidField("every_kimg", None, "must be set together with factor")
            return
        if factor is not None or every is not None:
            raise InvalidField("milestones", self.milestones, "cannot be combined with factor and every_kimg; set one or the other")
        is_list = isinstance(self.milestones, (list, tuple)) and self.milestones
        check(
            self,
            "milestones",
            bool(is_list) and all(map(is_milestone, self.milestones)),
            "must be a list of pairs [kimg above 0, whole number of images]",
        )
        pairs = tuple((kimg, batch) for kimg, batch in self.milestones)
        object.__setattr__(self, "milestones", pairs)
        for (kimg, batch), (later, larger) in pairwise(pairs):
            if later <= kimg:
                raise InvalidField("milestones", [later, larger], f"must be in order of time: the one before is [{kimg:g}, {batch}]")
            if larger < batch:
                raise InvalidField("milestones", [later, larger], f"must not shrink: the one before is [{kimg:g}, {batch}]")

    def require_fit(self) -> None:
        if self.milestones is None:
            require_max_batch(self)
            return
        for kimg, batch in self.milestones:
            if batch < self.batch_size:
                raise InvalidField("milestones", [kimg, batch], f"must not shrink: batch_size is {self.batch_size}")
            if self.max_batch is not None and batch > self.max_batch:
                raise InvalidField("milestones", [kimg, batch], f"must be at most max_batch ({self.max_batch})")
            if batch % (self.micro_batch or 1):
                raise InvalidField("milestones", [kimg, batch], f"must be a multiple of micro_batch ({self.micro_batch})")

    def named(self) -> dict[str, list[int]]:
        return {"milestones": [batch for _, batch in self.milestones or ()], **super().named()}

    @property
    def highest(self) -> float:
        return self.milestones[-1][1] if self.max_batch is None and self.milestones else super().highest

    def propose(self, state: BatchState) -> float:
        if self.milestones is not None:
            return max([self.batch_size, *(batch for kimg, batch in self.milestones if images(kimg) <= state.nimg)])
        factor, every_kimg = self._geometric()
        times = state.nimg // images(every_kimg)
        most = math.log(self.highest / self.batch_size) / math.log(factor)  # a larger power could overflow
        return self.highest if times > most else self.batch_size * factor**times

    def reason(self, state: BatchState) -> str:
        if self.milestones is None:
            _, every_kimg = self._geometric()
            since = state.nimg // images(every_kimg) * every_kimg
        else:
            since = max(kimg for kimg, _ in self.milestones if images(kimg) <= state.nimg)
        return f"the schedule sets {self.propose(state):g} from {since:g} kimg on"

    def _geometric(self) -> tuple[float, float]:
        """`factor` and `every_kimg`, which `__post_init__` requires without milestones."""
        assert self.factor is not None and self.every_kimg is not None
        return self.factor, self.every_kimg


def is_milestone(value: Any) -> bool:
    """Whether a value is [kimg, batch]."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or any(isinstance(v, bool) for v in value):
        return False
    kimg, batch = value
    return isinstance(kimg, (int, float)) and 0 < kimg < float("inf") and isinstance(batch, int) and batch >= 1
