"""Which tensors can be averaged, in which precision, and which values count as numbers."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gantrain.errors import UserError


def averaged_dtype(tensor: Tensor) -> torch.dtype:
    """The precision in which a tensor is averaged.

    float32; float64 and complex tensors keep theirs (complex32 becomes complex64). Integers and booleans have no mean: they
    keep their type and are copied.
    """
    if tensor.dtype == torch.complex32:
        return torch.complex64
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        return torch.float32
    return tensor.dtype


def has_mean(tensor: Tensor) -> bool:
    """Whether a tensor can be averaged: real or complex numbers, not integers or booleans."""
    return tensor.is_floating_point() or tensor.is_complex()


def require_values(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose values cannot be averaged here.

    Raises:
        UserError: it has no values yet, or only a part of them, or they are not stored as a plain array.
    """
    if is_lazy(tensor):
        raise UserError(f"weight {name!r} has no shape yet; run one forward pass of the lazy network before building its averages")
    if tensor.is_meta:
        raise UserError(f"weight {name!r} is on the meta device and has no values; materialise the network before building its averages")
    if type(tensor).__module__.startswith("torch.distributed") or "_fsdp_wrapped_module" in name:
        kind = type(tensor).__name__
        raise UserError(
            f"weight {name!r} is sharded over processes ({kind}), and averages of sharded weights are not supported;"
            " use DistributedDataParallel, or average an unsharded copy of the network"
        )
    if tensor.is_quantized or tensor.layout != torch.strided:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise UserError(f"weight {name!r} is {kind}, and such tensors cannot be averaged; average the network before it is converted")


def is_boolean(value: Any) -> bool:
    """Whether a value is a truth value: of Python, NumPy, or a tensor."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def whole_number(field: str, value: Any) -> int:
    """An integer as a Python int: of Python, NumPy, or a tensor of one element, which is read now (on a GPU this waits for it).

    Raises:
        UserError: it is not an integer, or it is a boolean.
    """
    if type(value) is int:
        return value
    try:
        if is_boolean(value):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(f"{field}: must be a whole number, got {value!r}; pass an int") from None


def fraction(field: str, value: Any, or_boolean: bool = False) -> float:
    """A number in [0, 1] as a Python float.

    Args:
        field: its name in the message.
        value: of Python, NumPy, or a tensor of one element.
        or_boolean: whether False and True are taken for 0 and 1.

    Raises:
        UserError: it is not such a number.
    """
    try:
        if is_boolean(value) and not or_boolean:
            raise TypeError
        number = value if type(value) is float else float("nan" if isinstance(value, str) else value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise UserError(f"{field}: must be a number in [0, 1], got {value!r}")
    return number
