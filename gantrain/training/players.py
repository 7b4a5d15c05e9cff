"""The two players: a network with its optimizer, scaler and wrapper."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass
class Player:
    """One network with what its updates need.

    Attributes:
        network: the plain module. The other player's phase calls this one.
        wrapped: what this player's own phase calls: the module, or DistributedDataParallel around it.
        optimizer: of its parameters.
        scaler: of its loss under fp16; otherwise disabled.
        orthogonal: weight of orthogonal regularisation, 0 for none.
        exempt: parameters that orthogonal regularisation leaves alone.
        no_sync: while it lasts, backward passes leave gradients on their own process.
    """

    network: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    orthogonal: float = 0.0
    exempt: set[Tensor] = field(default_factory=set)
    no_sync: Callable[[], AbstractContextManager] = nullcontext


def make_adam(network: nn.Module, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Adam:
    """Adam over a network's parameters, fused where the device has it."""
    parameters = list(network.parameters())
    fused = parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def reset_optimizer(optimizer: torch.optim.Optimizer, how: Literal["keep", "reset_momentum", "reset"]) -> None:
    """Forget nothing of Adam's state, its first moments, or all of it."""
    if how == "reset":
        optimizer.state.clear()
    elif how == "reset_momentum":
        for state in optimizer.state.values():
            state["exp_avg"].zero_()


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """An optimizer's state as tensors named parameter/entry, for saving."""
    return {
        f"{name}/{entry}": value
        for name, parameter in network.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def load_optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved state back, each entry laid out in memory as the optimizer lays it out: like its parameter."""
    parameters = dict(network.named_parameters())
    for full, value in tensors.items():
        name, _, entry = full.rpartition("/")
        parameter = parameters[name]
        like = (
            torch.empty_like(parameter, dtype=value.dtype)
            if value.shape == parameter.shape and value.dim()
            else torch.empty_like(value, device=parameter.device)
        )
        optimizer.state[parameter][entry] = like.copy_(value)
