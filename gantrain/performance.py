"""Speed: what `performance:` leaves open is picked for the device, and the process is set up for it."""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# What was measured to be fast (docs/performance.md), by type of device. What is not named here is off unless it is asked for.
PICKS: dict[str, dict[str, bool]] = {
    "cpu": {"channels_last": True, "keep_memory": True},
    "cuda": {"channels_last": True, "tf32": True},
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def pick(performance: Performance, device: torch.device) -> Performance:
    """The same with nothing left open: what is null is as `PICKS` has it for the device, or off where `auto` is."""
    known = PICKS.get(device.type, {}) if performance.auto else {}
    open_ones = [f.name for f in dataclasses.fields(performance) if getattr(performance, f.name) is None]
    return dataclasses.replace(performance, **{name: known.get(name, False) for name in open_ones})


def describe(performance: Performance, asked: Performance, device: torch.device) -> str:
    """One line on what a run computes with, and who chose it."""
    switches = [f.name for f in dataclasses.fields(performance) if isinstance(getattr(performance, f.name), bool) and f.name != "auto"]
    by_us = [name for name in switches if getattr(asked, name) is None and getattr(performance, name)]
    by_user = [f"{name}={str(getattr(asked, name)).lower()}" for name in switches if getattr(asked, name) is not None]
    parts = [f"{', '.join(by_us)} picked for {device.type}" if by_us else f"nothing picked for {device.type}"]
    return "; ".join([*parts, *([f"as configured {', '.join(by_user)}"] if by_user else [])])


def set_up(performance: Performance, device: torch.device) -> None:
    """Set what holds for the whole process. `performance` has nothing left open."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = performance.tf32
    torch.backends.cudnn.benchmark = True
    if performance.keep_memory and device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have the C library keep the memory of freed tensors for the next ones; whether it can.

    As glibc comes, every tensor above 32 MiB is mapped anew from the system, which clears it page by page at first touch, and
    given back when it is freed: a quarter of an update on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def memory_format(performance: Performance) -> torch.memory_format:
    """Of images, features and convolution weights."""
    return torch.channels_last if performance.channels_last else torch.contiguous_format


def lay_out(x: Tensor, performance: Performance) -> Tensor:
    """Images in the order in which the networks take them."""
    return x.contiguous(memory_format=memory_format(performance))


def place(network: nn.Module, performance: Performance, device: torch.device) -> nn.Module:
    """A network on its device, its convolution weights in their order."""
    return network.to(device, memory_format=memory_format(performance))


@dataclass(frozen=True)
class Performance:
    """Switches for speed; none changes results beyond rounding. A run logs at start-up which are on.

    Attributes:
        auto: turn on the switches left null that were measured to be faster on the device; false leaves them off.
        channels_last: keep images and convolution weights in NHWC order.
        compile: compile both networks with torch.compile; the first updates then take minutes.
        tf32: let CUDA matrix products and convolutions round their inputs to TF32.
        keep_memory: on a CPU, reuse the memory of freed tensors instead of returning it to the system.
    """

    auto: bool = True
    channels_last: bool | None = None
    compile: bool | None = None
    tf32: bool | None = None
    keep_memory: bool | None = None
