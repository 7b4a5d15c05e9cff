"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gantrain.contracts import require_numbers
from gantrain.optimizers.optimizer import Betas, Optimizer, betas_at, check_own, is_fusable
from gantrain.schedule import Scheduled


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), by torch, fused where the device supports it.

    Where the second of betas is a schedule, the bias correction is that of its current value.

    Attributes:
        betas: decay rates of the first and of the second moment; the second may be a schedule. Null takes `optim.betas`.
        eps: added to the root of the second moment; null takes `optim.eps`.
        weight_decay: weight of an L2 penalty whose gradient, `weight_decay` times the weights, is added to the clipped gradient.
    """

    betas: tuple[float, Scheduled] | None = None
    eps: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(self)
        check_own(self, "betas", "eps", "weight_decay")

    def build(self, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
        return self._made_by(torch.optim.Adam, parameters, lr, betas, eps)

    def _made_by(
        self, cls: type[torch.optim.Adam], parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float
    ) -> torch.optim.Optimizer:
        return cls(
            list(parameters), lr=lr, betas=betas_at(self.betas or betas, 0), eps=eps if self.eps is None else self.eps,
            weight_decay=self.weight_decay, fused=is_fusable(parameters),
        )  # fmt: skip

    def settings(self, nimg: int, betas: tuple[float, float]) -> Mapping[str, Any]:
        chosen: Betas = self.betas or betas
        return {"betas": betas_at(chosen, nimg)}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), by torch, fused where the device supports it.

    Attributes:
        weight_decay: in every step, each weight is first multiplied by 1 - learning rate x `weight_decay`; the gradient is not changed.
    """

    weight_decay: float = 0.01

    def build(self, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
        return self._made_by(torch.optim.AdamW, parameters, lr, betas, eps)
