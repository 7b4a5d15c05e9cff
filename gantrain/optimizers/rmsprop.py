"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gantrain.contracts import require_numbers
from gantrain.errors import check
from gantrain.optimizers.optimizer import Optimizer, check_own
from gantrain.schedule import Schedule, Scheduled, bounds_of, check_scheduled, value_at


@dataclass(frozen=True)
class RmsProp(Optimizer):
    """RMSprop (Tieleman and Hinton 2012), by torch. `optim.betas` has no effect on it.

    Attributes:
        alpha: decay rate of the mean squared gradient, which begins at 0 and is not corrected for that; may be a schedule.
        eps: added to the root of the mean squared gradient; null takes `optim.eps`.
        momentum: decay factor of the momentum m <- momentum m + gradient / root, which is what the learning rate multiplies; 0 switches it
            off.
        centered: divide by the standard deviation of the gradient, not by the root of its mean square (Graves 2013). A weight whose
            gradient never changes becomes nan in time, since torch subtracts two rounded numbers; needs `alpha` above 0.
        weight_decay: weight of an L2 penalty whose gradient, `weight_decay` times the weights, is added to the clipped gradient.
    """

    alpha: Scheduled = 0.99
    eps: float | None = None
    momentum: float = 0.0
    centered: bool = False
    weight_decay: float = 0.0

    momentum_entries = ("momentum_buffer",)

    def __post_init__(self) -> None:
        require_numbers(self)
        check_own(self, "eps", "momentum", "weight_decay")
        check_scheduled(self, "alpha", self.alpha, lambda number: 0 <= number < 1, "must be in [0, 1)")
        starts_at_0 = isinstance(self.alpha, Schedule) and self.alpha.warmup_kimg > 0
        check(self, "centered", not (self.centered and (starts_at_0 or bounds_of(self.alpha)[0] == 0)), "needs alpha above 0 at all times")

    @property
    def copies(self) -> int:
        return 1 + (self.momentum > 0) + self.centered

    def build(self, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(
            list(parameters), lr=lr, alpha=value_at(self.alpha, 0), eps=eps if self.eps is None else self.eps, momentum=self.momentum,
            centered=self.centered, weight_decay=self.weight_decay,
        )  # fmt: skip

    def settings(self, nimg: int, betas: tuple[float, float]) -> Mapping[str, Any]:
        return {"alpha": value_at(self.alpha, nimg)}
