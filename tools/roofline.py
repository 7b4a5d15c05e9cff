"""The convolutions and matrix products of a piece of work, written down as they happen and then done alone: the time they take is a bound.

    with Roofline() as bound:
        trainer.update()
    bound.run()  # the same convolutions and products, of the same shapes, orders in memory and precisions, one after the other

What else an update does (normalisation, activations, pooling, spectral norms, the optimizer, the averages, Python) is what a
faster trainer could save; these it cannot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

COUNTED = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")  # how their names begin, behind "aten::"


class Like(NamedTuple):
    """What is known of a tensor without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        there = [1 if stride == 0 else size for size, stride in zip(self.shape, self.strides)]  # what was expanded lies there once
        tensor = torch.empty_strided(there, self.strides, dtype=self.dtype, device=self.device)
        return (tensor.normal_() if tensor.is_floating_point() else tensor.zero_()).expand(self.shape)


class Roofline(TorchDispatchMode):
    """Inside, every convolution and matrix product is written down.

    Attributes:
        calls: (operator, its arguments with a `Like` in place of each tensor), in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []
        self._tensors: dict[Like, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name.startswith(COUNTED) and not name.startswith("mm_"):
            described = tree_map(
                lambda one: Like(tuple(one.shape), one.stride(), one.dtype, one.device) if isinstance(one, Tensor) else one,
                (args, kwargs or {}),
            )
            self.calls.append((func, *described))
        return func(*args, **(kwargs or {}))

    def filled(self, described: Any) -> Any:
        """The arguments with a tensor in place of each `Like`: one for all that are alike."""
        if isinstance(described, Like):
            if described not in self._tensors:
                self._tensors[described] = described.make()
            return self._tensors[described]
        if isinstance(described, (tuple, list)):
            return type(described)(self.filled(one) for one in described)
        return {key: self.filled(one) for key, one in described.items()} if isinstance(described, dict) else described

    @torch.no_grad()
    def run(self) -> None:
        """Do them all, and nothing else."""
        for func, args, kwargs in self.calls:
            func(*self.filled(args), **self.filled(kwargs))
