"""The mechanism of an average: fp32 shadows of named weights, moved towards the live ones by a rule's weight."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gantrain.errors import UserError

WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put in front of names


class Averager(Protocol):
    """The rule of an average; a frozen dataclass listed in `AVERAGERS`.

    One that is no step towards the live weights has, instead of `weight`, a method
    `update(shadows, live, nimg, previous_nimg, num_averaged)` that changes the shadows (fp32 tensors by name) in place.
    """

    def weight(self, nimg: int, previous_nimg: int, num_averaged: int) -> float:
        """How far the average moves to the live weights now, in [0, 1].

        Args:
            nimg: images seen, the update just done included.
            previous_nimg: images seen when this was last asked.
            num_averaged: how many times the average has moved; 0 means that it has not begun.
        """
        ...


def plain_name(name: str) -> str:
    """A parameter's name without the wrappers of DistributedDataParallel and torch.compile."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def named_weights(network: nn.Module) -> dict[str, Tensor]:
    """The parameters of a network, wrapped or not, by plain name."""
    return {plain_name(name): parameter for name, parameter in network.named_parameters()}


def match(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise unless both have the same names with the same shapes.

    Raises:
        UserError: names the first weight that is missing, extra, or of another shape.
    """
    for name in wanted.keys() - found.keys():
        raise UserError(f"{what}: weight {name!r} is missing")
    for name in found.keys() - wanted.keys():
        raise UserError(f"{what}: there is no weight {name!r} to receive it")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise UserError(f"{what}: weight {name!r} has shape {list(found[name].shape)}, {list(tensor.shape)} is wanted")


class Average:
    """One average of one network's weights.

    The shadows are fp32 whatever the live weights are: a bf16 average of decay 0.9999 would never move. They live beside
    the live weights and move with one foreach kernel and no device sync.

    Args:
        averager: the rule.
        weights: the live weights by name. The very tensors are kept and read at every update.
        nimg: images seen when the average is created.
    """

    def __init__(self, averager: Averager, weights: Mapping[str, Tensor], nimg: int = 0):
        self.averager = averager
        self._live = {plain_name(name): tensor.detach() for name, tensor in weights.items()}
        self.shadows = {name: tensor.detach().clone().float() for name, tensor in self._live.items()}
        self.previous_nimg = nimg
        self.num_averaged = 0

    @property
    def started(self) -> bool:
        """Whether anything has been averaged yet."""
        return self.num_averaged > 0

    @torch.no_grad()
    def update(self, nimg: int) -> None:
        """Take in the live weights as they stand at `nimg` images."""
        if hasattr(self.averager, "update"):  # an average that is no step towards the live weights
            self.averager.update(self.shadows, self._live, nimg, self.previous_nimg, self.num_averaged)
            self.previous_nimg, self.num_averaged = nimg, self.num_averaged + 1
            return
        weight = self.averager.weight(nimg, self.previous_nimg, self.num_averaged)
        self.previous_nimg = nimg
        if weight <= 0.0:
            return
        lerp(list(self.shadows.values()), list(self._live.values()), weight)
        self.num_averaged += 1

    @torch.no_grad()
    def load(self, shadows: Mapping[str, Tensor], previous_nimg: int, num_averaged: int) -> None:
        """Continue from saved values, copied into the existing tensors."""
        match(self.shadows, shadows, "saved average")
        for name, tensor in self.shadows.items():
            tensor.copy_(shadows[name])
        self.previous_nimg, self.num_averaged = previous_nimg, num_averaged

    def state(self) -> dict[str, Any]:
        """What `load` needs beside the shadows, as JSON values."""
        return {"previous_nimg": self.previous_nimg, "num_averaged": self.num_averaged}


def lerp(shadows: list[Tensor], live: list[Tensor], weight: float) -> None:
    """shadows += weight * (live - shadows), in place; weight 1 copies exactly."""
    if weight >= 1.0:
        torch._foreach_copy_(shadows, live)
        return
    if any(tensor.dtype != torch.float32 for tensor in live):
        live = [tensor.float() for tensor in live]
    torch._foreach_lerp_(shadows, live, weight)


@torch.no_grad()
def write_weights(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Copy named weights into a network of the same structure, strictly by name and shape.

    Raises:
        UserError: a weight is missing, extra, or of another shape.
    """
    targets = named_weights(network)
    match(targets, weights, f"weights for {type(network).__name__}")
    for name, target in targets.items():
        target.copy_(weights[name])


@torch.no_grad()
def write_buffers(buffers: Iterable[tuple[str, Tensor]], network: nn.Module) -> None:
    """Copy named buffers (spectral norms' vectors, BatchNorm statistics, counters) into a network, strictly by name."""
    sources = {plain_name(name): tensor for name, tensor in buffers}
    targets = {plain_name(name): tensor for name, tensor in network.named_buffers()}
    match(targets, sources, f"buffers for {type(network).__name__}")
    for name, target in targets.items():
        target.copy_(sources[name])
