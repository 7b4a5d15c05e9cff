"""Speed: switches that `performance:` leaves null are chosen for the device, and the process is set up accordingly."""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What was measured to be faster (docs/performance.md), by device type. Switches not named here are off unless configured.
PICKS: dict[str, dict[str, bool]] = {
    "cpu": {"channels_last": True, "keep_memory": True},
    "cuda": {"channels_last": True, "tf32": True},
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def pick(performance: Performance, device: torch.device) -> Performance:
    """The same with no switch left null: those that are null become what `PICKS` has for the device, or false if `auto` is false."""
    known = PICKS.get(device.type, {}) if performance.auto else {}
    choices: dict[str, Any] = {
        f.name: known.get(f.name, False) for f in dataclasses.fields(performance) if getattr(performance, f.name) is None
    }
    return dataclasses.replace(performance, **choices)


def describe(performance: Performance, asked: Performance, device: torch.device) -> str:
    """One line that says which switches a run uses, and who chose them."""
    switches = [f.name for f in dataclasses.fields(performance) if isinstance(getattr(performance, f.name), bool) and f.name != "auto"]
    by_us = [name for name in switches if getattr(asked, name) is None and getattr(performance, name)]
    by_user = [f"{name}={str(getattr(asked, name)).lower()}" for name in switches if getattr(asked, name) is not None]
    parts = [f"{', '.join(by_us)} picked for {device.type}" if by_us else f"nothing picked for {device.type}"]
    return "; ".join([*parts, *([f"as configured {', '.join(by_user)}"] if by_user else [])])


def set_up(performance: Performance, device: torch.device) -> None:
    """Set what applies to the whole process. `performance` has no switch left null."""
    assert performance.tf32 is not None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = performance.tf32
    torch.backends.cudnn.benchmark = True
    if performance.keep_memory and device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Make the C library reuse the memory of freed tensors; return whether it can.

    By default, glibc maps every tensor above 32 MiB anew, which the system clears page by page at first touch, and unmaps it when it
    is freed. On a CPU that takes a quarter of an update.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library; on Windows, None is no library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def memory_format(performance: Performance) -> torch.memory_format:
    """The memory format of images, features and convolution weights."""
    return torch.channels_last if performance.channels_last else torch.contiguous_format


def lay_out(x: Tensor, performance: Performance) -> Tensor:
    """Images in the memory format that the networks use."""
    return x.contiguous(memory_format=memory_format(performance))


def place(network: nn.Module, performance: Performance, device: torch.device) -> nn.Module:
    """Move a network to its device, with its convolution weights in their memory format."""
    return network.to(device, memory_format=memory_format(performance))  # type: ignore[call-overload]  # which torch does not declare


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
