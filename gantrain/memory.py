"""Memory: how much there is, and errors of one line where there is too little."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from gantrain.errors import UserError, in_words, one_line

if TYPE_CHECKING:
    import torch

# Files of a container's memory, in cgroup v2 and v1: its limit, what it uses, and of what that consists.
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
CACHED = re.compile(r"^((?:total_)?(?:in)?active_file) (\d+)$", re.MULTILINE)  # bytes of files, which the system drops when it needs room
# How torch says that it could not allocate: on a CPU, on a GPU (also cuDNN and cuBLAS), and for sizes beyond 64 bits.
FAILED = re.compile(
    r"can't allocate memory|not enough memory|out of memory|storage size calculation overflowed|numel: integer multiplication overflow"
    r"|invalid buffer size|cublas_status_alloc_failed|unable to allocate",
    re.IGNORECASE,
)


def read_small(path: str) -> str:
    """The text of a file of the system."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def main_memory() -> int:
    """Bytes of main memory of this machine, or that this container may use, and of swap space."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit, _, _ in CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no limit
            total = min(total, int(read_small(limit)))
    with suppress(OSError, RuntimeError):  # some systems hide it
        total += int(psutil.swap_memory().total)
    return total


def free_memory() -> int:
    """Bytes of main memory that are free on this machine, or that this container may still take."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used, parts in CGROUPS:
        with suppress(OSError, ValueError):
            room = int(read_small(limit)) - int(read_small(used))
            cached: dict[str, str] = dict(CACHED.findall(read_small(parts)))
            room += sum(int(cached.get(f"total_{name}", cached.get(name, "0"))) for name in ("active_file", "inactive_file"))
            free = min(free, max(0, room))
    return free


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    return main_memory()


def require_memory(key: str, needed: int, available: int, what: str, remedy: str) -> None:
    """Refuse what no memory can hold.

    Args:
        key: with its value, such as "model.ch: 100000".
        needed: bytes, as a lower bound.
        available: bytes in all; whether others use them now does not matter.
        what: needs it, such as "the networks".
        remedy: completes the message.

    Raises:
        UserError: needed is above available.
    """
    if needed > available:
        raise UserError(f"{key}: {what} need at least {in_words(needed)} of memory, and there are {in_words(available)}; {remedy}")


def explain_allocation(error: BaseException) -> str | None:
    """One line about an allocation that failed; None if the error has another cause."""
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and FAILED.search(str(error))):
        return None
    text = one_line(error)
    text = text if len(text) <= 200 else f"{text[:200]} ..."
    return (
        f"out of memory ({text}); use a smaller batching.micro_batch (the same batch in more rounds), eval.batch_size or model, fewer"
        " averagers or data.workers, or averagers.NAME.offload=true; training resumes from its last checkpoint, if there is one"
    )
