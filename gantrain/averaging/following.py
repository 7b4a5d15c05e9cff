"""The network behind averages: which tensors it holds now, looked up by name, and whether it still holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gantrain.averaging.average import named_weights, plain_name, unwrapped
from gantrain.averaging.batchnorm import named_statistics, norms_of
from gantrain.averaging.precision import require_values
from gantrain.errors import UserError

REMEDY = "build a new AverageBank after the change (`bank.tensors()` still holds the averages of before)"


class Followed:
    """The tensors of a network that its averages follow: weights and BatchNorm's running statistics, at one moment.

    Training changes these tensors in place, and nothing needs to be looked up. Moving or converting a network, loading with
    `assign=True`, `p.data = ...` and replacing layers put others in their place, or give them other storage; `is_stale` then says so.

    Args:
        network: wrapped or not.

    Raises:
        UserError: a weight has no values that could be averaged; names it.
    """

    def __init__(self, network: nn.Module):
        self.weights, self.statistics = named_weights(network), named_statistics(network)
        self.tensors: dict[str, Tensor] = {**self.weights, **self.statistics}
        for name, tensor in self.tensors.items():
            require_values(name, tensor)
        self._held: list[tuple[Mapping[str, Any], str, Any]] = []  # what each module holds under each name
        self._sizes: list[tuple[Mapping[str, Any], int]] = []
        for module in network.modules():
            if isinstance(module, torch.jit.ScriptModule):  # its parts are fixed, and its tensors are converted in place
                continue
            for holder in (module._parameters, module._modules):
                self._held += [(holder, key, value) for key, value in holder.items()]
                self._sizes.append((holder, len(holder)))
        for norm in norms_of(network).values():
            self._held += [(norm._buffers, key, norm._buffers[key]) for key in ("running_mean", "running_var")]
        self._seen = [(tensor, tensor.data_ptr(), tensor.shape, tensor.dtype) for tensor in self.tensors.values()]

    def is_stale(self) -> bool:
        """Whether the network holds other tensors now, or the same ones with other storage. Without a device sync."""
        for holder, key, value in self._held:
            if holder.get(key) is not value:
                return True
        for holder, size in self._sizes:
            if len(holder) != size:
                return True
        for tensor, pointer, shape, dtype in self._seen:
            if tensor.data_ptr() != pointer or tensor.dtype is not dtype or tensor.shape != shape:
                return True
        return False

    def require_same(self, shapes: Mapping[str, torch.Size], network: nn.Module) -> None:
        """Refuse a network that no longer has the weights and statistics that averages were built for.

        Args:
            shapes: those of the averages, by name.
            network: the network that this was made of.

        Raises:
            UserError: names the first tensor that is gone, new, or of another shape, and the remedy.
        """
        gone, new = [n for n in shapes if n not in self.tensors], [n for n in self.tensors if n not in shapes]
        if gone:
            shared = shared_with(gone[0], network)
            because = f"shares its tensor with {shared!r} now" if shared else "is gone from the network"
            instead = f", which has {new[0]!r} instead" if new and not shared else ""
            raise UserError(f"averages: {gone[0]!r} {because}{instead}; {REMEDY}")
        if new:
            raise UserError(f"averages: {new[0]!r} was added to the network and has no average; {REMEDY}")
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape:
                found = list(self.tensors[name].shape)
                raise UserError(f"averages: {name!r} has shape {found} now, and its average has {list(shape)}; {REMEDY}")


def shared_with(name: str, network: nn.Module) -> str | None:
    """The name under which a tied parameter is listed, if that is another one."""
    tied = {plain_name(n): p for n, p in unwrapped(network).named_parameters(remove_duplicate=False)}
    return next((n for n, p in tied.items() if p is tied.get(name) and n != name), None)
