"""What a player's optimizer remembers, as tensors and numbers for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gantrain.averaging.average import Mismatch
from gantrain.errors import UserError

# A number in a parameter's state is saved as a tensor of no dimension, whose name has its type at the end.
NUMBERS: dict[type, tuple[str, torch.dtype]] = {
    bool: (":bool", torch.bool), int: (":int", torch.int64), float: (":float", torch.float64)
}  # fmt: skip


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """An optimizer's state as tensors named PARAMETER/ENTRY, for saving. An entry that is None is left out.

    Raises:
        UserError: an optimizer from outside has something else in its state.
    """
    saved = {}
    for name, parameter in network.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and "/" not in entry:
                saved[f"{name}/{entry}"] = value
            elif type(value) in NUMBERS and "/" not in entry:
                ending, dtype = NUMBERS[type(value)]
                saved[f"{name}/{entry}{ending}"] = torch.tensor(value, dtype=dtype)
            elif value is not None:
                raise UserError(
                    f"optimizer {type(optimizer).__name__}: entry {entry!r} of its state is {type(value).__name__}, which is not saved;"
                    " use tensors and numbers, by names without '/'"
                )
    return saved


@torch.no_grad()
def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True
) -> None:  # fmt: skip
    """Restore saved state. Each entry gets the memory layout of its parameter, as the optimizer itself would give it.

    Args:
        strict: every parameter that has entries has the same ones, each of its shape, besides `step`.

    Raises:
        Mismatch: an entry is missing, or is not one of these parameters.
    """
    parameters = dict(network.named_parameters())
    require_entries(parameters, tensors, strict)
    counts_there = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)  # as torch's own loading
    for full, value in tensors.items():
        name, _, entry = full.rpartition("/")
        parameter = parameters[name]
        kind = next((one for one, (ending, _) in NUMBERS.items() if entry.endswith(ending)), None)
        if kind is not None:
            optimizer.state[parameter][entry.removesuffix(NUMBERS[kind][0])] = kind(value.item())
            continue
        device = value.device if entry == "step" and not counts_there else parameter.device
        like = (
            torch.empty_like(parameter, dtype=value.dtype)
            if value.shape == parameter.shape and value.dim()
            else torch.empty_like(value, device=device)
        )
        optimizer.state[parameter][entry] = like.copy_(value)


def require_entries(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Refuse a saved state of an optimizer that is not one of these parameters.

    Args:
        strict: see `load_optimizer_tensors`.

    Raises:
        Mismatch: names the first entry that is missing or wrong.
    """
    entries = {full.rpartition("/")[2] for full in tensors} if strict else set()
    owners = dict.fromkeys(full.rpartition("/")[0] for full in tensors)
    for full in (f"{name}/{entry}" for name in owners for entry in sorted(entries)):
        if full not in tensors:
            raise Mismatch(f"optimizer: entry {full!r} is missing")
        name, _, entry = full.rpartition("/")
        shape = () if entry == "step" else getattr(parameters.get(name), "shape", None)
        if name not in parameters or tensors[full].shape != shape or not (tensors[full].is_floating_point() or tensors[full].is_complex()):
            raise Mismatch(f"optimizer: entry {full!r} does not belong to any parameter")
    for full, tensor in tensors.items():
        number = any(full.endswith(ending) for ending, _ in NUMBERS.values())
        if full.rpartition("/")[0] not in parameters or (number and tensor.dim()):
            raise Mismatch(f"optimizer: entry {full!r} does not belong to any parameter")


def own_settings(optimizer: torch.optim.Optimizer, given: Sequence[str]) -> list[dict[str, float]]:
    """Numbers that an optimizer itself keeps in its parameter groups, such as a count of steps, by group; empty if there are none.

    Args:
        optimizer: any of torch's form.
        given: entries that are set from outside before every step.
    """
    found = [
        {
            key: value
            for key, value in group.items()
            if type(value) in (int, float) and key not in given and optimizer.defaults.get(key) != value
        }
        for group in optimizer.param_groups
    ]
    return found if any(found) else []


def load_own_settings(optimizer: torch.optim.Optimizer, given: Sequence[str], saved: Sequence[Mapping[str, Any]]) -> None:
    """Restore what `own_settings` gave; what was not saved is as at the start."""
    for group, now in zip(optimizer.param_groups, own_settings(optimizer, given)):
        for key in now:
            group.pop(key)
            group.update({key: optimizer.defaults[key]} if key in optimizer.defaults else {})
    for group, before in zip(optimizer.param_groups, saved):
        group.update(before)
