"""Record the convolutions and matrix products of a piece of work and run them alone: their time is a lower bound.

    with Roofline() as bound:
        trainer.update()
    bound.run()  # the same operations, with the same shapes, memory formats and precisions

A faster trainer could at best avoid the rest of an update: normalisation, activations, pooling, spectral norms, the optimizer,
the averages, and Python.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

COUNTED = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")  # prefixes of operator names after "aten::"


class Like(NamedTuple):
    """The properties of a tensor, without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        """A tensor with these properties; floating-point values are random."""
        there = [1 if stride == 0 else size for size, stride in zip(self.shape, self.strides)]  # expanded dimensions are stored once
        tensor = torch.empty_strided(there, self.strides, dtype=self.dtype, device=self.device)
        return (tensor.normal_() if tensor.is_floating_point() else tensor.zero_()).expand(self.shape)


class Roofline(TorchDispatchMode):
    """A context that records every convolution and matrix product.

    Attributes:
        calls: (operator, args, kwargs) in order, with a `Like` instead of each tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []
        self._tensors: dict[Like, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name.startswith(COUNTED) and not name.startswith("mm_"):
            described = tree_map(
                lambda one: Like(tuple(one.shape), one.stride(), one.dtype, one.device) if isinstance(one, Tensor) else one,
                (args, kwargs or {}),
            )
            self.calls.append((func, *described))
        return func(*args, **(kwargs or {}))

    def filled(self, described: Any) -> Any:
        """Returns arguments with each `Like` replaced by a tensor; equal `Like`s share one tensor."""
        if isinstance(described, Like):
            if described not in self._tensors:
                self._tensors[described] = described.make()
            return self._tensors[described]
        if isinstance(described, (tuple, list)):
            return type(described)(self.filled(one) for one in described)
        return {key: self.filled(one) for key, one in described.items()} if isinstance(described, dict) else described

    @torch.no_grad()
    def run(self) -> None:
        """Run the recorded operations."""
        for func, args, kwargs in self.calls:
            func(*self.filled(args), **self.filled(kwargs))
