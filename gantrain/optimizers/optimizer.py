"""The contract of optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gantrain.contracts import Contract
from gantrain.errors import check
from gantrain.schedule import Schedule, Scheduled, check_scheduled, value_at

Betas = tuple[float, Scheduled]  # decay rates of the first and of the second moment


class Optimizer(ABC):
    """How a player's gradient becomes a step: the contract of everything in `OPTIMIZERS`, and of optimizers from outside.

    An optimizer that does not inherit from this class gets the same defaults. In a configuration it is a frozen dataclass.

    Attributes:
        momentum_entries: entries of its state that are a mean of past gradients or steps, which belong to the weights before a swap;
            `swap.optimizer: reset_momentum` sets them to 0.
        normalizes: whether it divides the gradient by its size, as Adam does. Near an optimum, the variance of the weights then falls
            with the square root of the batch, and otherwise with the batch; `swap.growth: auto` depends on it.
    """

    momentum_entries: Sequence[str] = ("exp_avg", "momentum_buffer")
    normalizes: bool = True

    @property
    def copies(self) -> int:
        """How many further numbers it keeps for each weight, to estimate the memory. By default 2, as Adam."""
        return 2

    @abstractmethod
    def build(self, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
        """The optimizer of a player's parameters.

        Its state is saved: tensors and numbers in `state`, and numbers in `param_groups` that it changes.

        Args:
            parameters: of the network, which may be on any device.
            lr: the learning rate, which gantrain sets anew in all `param_groups` before every step.
            betas: `optim.betas` at the start of the run, for an optimizer that has no such numbers of its own.
            eps: `optim.eps`, likewise.
        """

    def settings(self, nimg: int, betas: tuple[float, float]) -> Mapping[str, Any]:
        """Entries of `param_groups` other than `lr` that change during a run, as they are in an update; none by default.

        Args:
            nimg: images seen before this update.
            betas: `optim.betas` in this update.
        """
        return {}


OPTIMIZER: Contract[Optimizer] = Contract("optimizer", Optimizer)


def betas_at(betas: Betas, nimg: int) -> tuple[float, float]:
    """Decay rates of the moments at so many images."""
    return betas[0], value_at(betas[1], nimg)


def is_fusable(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether torch has fused optimizers for the device of these parameters."""
    return parameters[0].device.type in ("cuda", "cpu")


def check_betas(section: Any) -> None:
    """Refuse decay rates of moments that are not in [0, 1), at any time.

    Raises:
        InvalidField: for `betas`, or for an end of a schedule within it.
    """
    betas: Betas | None = section.betas
    numbers = [beta for beta in betas or () if not isinstance(beta, Schedule)]
    check(section, "betas", all(0 <= beta < 1 for beta in numbers), "must both be in [0, 1)")
    for i, beta in enumerate(betas or ()):
        if isinstance(beta, Schedule):
            check_scheduled(section, "betas", beta, lambda number: 0 <= number < 1, "must be in [0, 1)", key=f"betas[{i}]")


def check_own(section: Any, *fields: str) -> None:
    """Refuse settings of an optimizer that are out of range, among `betas`, `eps`, `weight_decay` and `momentum`.

    Raises:
        InvalidField: for the field.
    """
    if "betas" in fields:
        check_betas(section)
    if "eps" in fields:
        check(section, "eps", section.eps is None or 0 < section.eps < 1, "must be above 0 and below 1, or null")
    if "weight_decay" in fields:
        check(section, "weight_decay", 0 <= section.weight_decay < float("inf"), "must be at least 0")
    if "momentum" in fields:
        check(section, "momentum", 0 <= section.momentum < 1, "must be in [0, 1)")
