"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gantrain.contracts import require_numbers
from gantrain.errors import check
from gantrain.optimizers.optimizer import Optimizer, check_own, is_fusable


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Stochastic gradient descent, by torch. `optim.betas` and `optim.eps` have no effect on it.

    It is fused without momentum only: if fp16's scaler skips the first step, torch's fused kernel leaves the momentum uninitialised, and
    the next step adds whatever was in that memory.

    Attributes:
        momentum: decay factor of the momentum m <- momentum m + gradient, which is what the learning rate multiplies; 0 switches it off.
        nesterov: look ahead along the momentum (Sutskever et al. 2013); needs `momentum`.
        weight_decay: weight of an L2 penalty whose gradient, `weight_decay` times the weights, is added to the clipped gradient.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    normalizes = False

    def __post_init__(self) -> None:
        require_numbers(self)
        check_own(self, "momentum", "weight_decay")
        check(self, "nesterov", not self.nesterov or self.momentum > 0, "needs momentum above 0, such as momentum=0.9")

    @property
    def copies(self) -> int:
        return int(self.momentum > 0)

    def build(self, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            list(parameters), lr=lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay,
            fused=self.momentum == 0 and is_fusable(parameters),
        )  # fmt: skip
