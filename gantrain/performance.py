"""Speed: switches that `performance:` leaves null are chosen for the device, and the process is set up accordingly."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# What was measured to be faster (docs/performance.md), by device type. Switches not named here are off unless configured.
PICKS: dict[str, dict[str, bool]] = {
    "cpu": {"channels_last": True, "keep_memory": True},
    "cuda": {"channels_last": True, "tf32": True},
}
# Flags of a CPU that computes in bfloat16, as Linux calls them (x86, then ARM) and as torch does.
BF16_UNITS = {"amx_bf16", "avx512_bf16", "bf16", "svebf16", "sve_bf16"}
CPU_INFO = Path("/proc/cpuinfo")
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


def read_cpu_flags() -> set[str] | None:
    """The names of what the CPU can do, as Linux or torch calls them; None if neither says."""
    with suppress(OSError), CPU_INFO.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(flags.split())
    known = getattr(torch.cpu, "get_capabilities", None)  # not in all supported versions of torch
    with suppress(RuntimeError):
        return None if known is None else {name for name, able in known().items() if able is True} or None
    return None


def describe_slow_bf16(mixed_precision: str, device: torch.device, flags: Collection[str] | None) -> str:
    """A warning if bf16 is computed on a CPU that has no units for it; empty otherwise.

    Args:
        mixed_precision: as in the configuration.
        device: that the run trains on.
        flags: see `read_cpu_flags`; nothing is said if they are not known.
    """
    if mixed_precision != "bf16" or device.type != "cpu" or not flags or BF16_UNITS & set(flags):
        return ""
    return (
        "mixed_precision=bf16: this CPU has no units for bfloat16 (amx_bf16 or avx512_bf16; bf16 on ARM), so it is emulated: on such a CPU,"
        " an update that took 14 s in fp32 took minutes; set mixed_precision=fp32"
    )


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
