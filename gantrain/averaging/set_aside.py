"""A network whose weights are replaced for a while and then come back to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gantrain.averaging.average import unwrapped
from gantrain.errors import UserError

# The average that a network holds in place of its own weights. Known to all banks: another one of the same network must not follow it.
HELD: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def require_live(network: nn.Module, call: str) -> None:
    """Refuse a call that reads or changes the live weights while `AverageBank.applied` has put an average in their place.

    Raises:
        UserError: names the call and the average.
    """
    held = held_by(network)
    if held is not None:
        raise UserError(f"{call}: the network holds the average {held!r}; leave the `with bank.applied({held!r})` block first")


def held_by(network: nn.Module) -> str | None:
    """The name of the average that has been put into a network, wrapped or not; None if it holds its own weights."""
    return HELD.get(unwrapped(network))


class SetAside:
    """Copies of all weights and buffers of a network, its parts, and their training modes."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.modes = [(module, module.training) for module in network.modules()]
        self.parts: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (holder, dict(holder))
            for module in network.modules()
            if not isinstance(module, torch.jit.ScriptModule)  # its parts are fixed
            for holder in (module._modules, module._parameters, module._buffers)
        ]
        self.parameters = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        self.buffers = {name: tensor.clone() for name, tensor in network.named_buffers()}
        self._written: dict[str, tuple[Tensor, int]] = {}

    def watch(self) -> None:
        """From here on, `changed` notices what is written to the weights."""
        self._written = {name: (tensor, version_of(tensor)) for name, tensor in self.network.named_parameters()}

    def changed(self) -> str | None:
        """The name of a weight that was written to, replaced, added or removed since `watch`."""
        now = dict(self.network.named_parameters())
        for name in {**self._written, **now}:
            tensor, version = self._written.get(name, (None, 0))
            if now.get(name) is not tensor or (tensor is not None and version_of(tensor) != version):
                return name
        return None

    @torch.no_grad()
    def put_back(self) -> None:
        """Write everything back, into the modules and tensors of before: an optimizer has these, and not those that replaced them."""
        for holder, parts in self.parts:
            holder.clear()
            holder.update(parts)
        for module, training in self.modes:
            module.training = training
        parameters, buffers = dict(self.network.named_parameters()), dict(self.network.named_buffers())
        for held, now in ((self.parameters, parameters), (self.buffers, buffers)):
            for name in held.keys() & now.keys():
                put(held[name], now[name])


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to in place; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def put(value: Tensor, into: Tensor) -> None:
    """Copy a value into a tensor; one that was converted or moved meanwhile gets its old precision and device with it."""
    same = (into.dtype, into.device, into.shape) == (value.dtype, value.device, value.shape)
    if same and 0 not in into.stride():  # an expanded tensor cannot be written to
        into.copy_(value)
    else:
        into.data = value


@contextmanager
def set_aside(network: nn.Module, average: str) -> Iterator[SetAside]:
    """Yield what is set aside for an average, and put it back at the end of the block, also after an exception.

    Raises:
        UserError: weights were trained or replaced inside the block after `SetAside.watch`; that is undone, too.
    """
    aside, key = SetAside(network), unwrapped(network)
    HELD[key] = average
    changed: str | None = None
    try:
        yield aside
        changed = aside.changed()
    finally:
        del HELD[key]
        aside.put_back()
    if changed is not None:
        raise UserError(
            f"bank.applied: weight {changed!r} was changed inside the block, and that change is undone; train outside of the block,"
            " or replace the live weights by bank.write_back"
        )
