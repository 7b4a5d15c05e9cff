"""One Accelerator for the whole program: devices, processes, precision."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast, broadcast_object_list
from torch import Tensor

from gantrain.errors import UserError, one_line

T = TypeVar("T")
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # our names and Accelerate's
# Metrics of many samples keep one process busy while the others wait for it.
PATIENCE = timedelta(hours=2)


def make_accelerator(mixed_precision: str = "fp32") -> Accelerator:
    """The Accelerator that `accelerate launch` or `torchrun` has prepared the environment for; one process otherwise.

    Raises:
        UserError: the device cannot compute in this precision.
    """
    # Each rank keeps its own BatchNorm statistics while training; they are averaged where they are read.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    # Accelerate cannot yet pass the argument that replaces broadcast_buffers in newer releases of torch.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=PRECISIONS[mixed_precision],
            kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        raise UserError(f"mixed_precision: {mixed_precision} does not run here ({one_line(error)}); use fp32 or bf16") from error
    if mixed_precision != "fp32" and not accelerator.native_amp:  # Accelerate leaves fp16 on a CPU out without a word
        raise UserError(f"mixed_precision: {mixed_precision} does not run on {accelerator.device.type}; use fp32 or bf16")
    return accelerator


def local_processes() -> int:
    """How many processes of this run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def sum_over_processes(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """A function that sums a tensor over all processes."""
    return lambda tensor: accelerator.reduce(tensor, reduction="sum")


def mean_of_processes(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """A function that gives the mean of a tensor over all processes."""
    return lambda tensor: accelerator.reduce(tensor, reduction="mean")


@torch.no_grad()
def mean_over_processes(tensors: list[Tensor], accelerator: Accelerator) -> None:
    """Replace tensors, in place, by their means over all processes."""
    if accelerator.num_processes == 1 or not tensors:
        return
    flat = torch.cat([t.flatten().to(accelerator.device) for t in tensors])
    mean = sum_over_processes(accelerator)(flat) / accelerator.num_processes
    for tensor, value in zip(tensors, mean.split([t.numel() for t in tensors])):
        tensor.copy_(value.view_as(tensor))


def from_main(accelerator: Accelerator, value: T) -> T:
    """The main process's `value`, on every process."""
    box: list[Any] = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(box)
    return box[0]


def tensors_from_main(accelerator: Accelerator, tensors: list[Tensor]) -> list[Tensor]:
    """The main process's tensors, on the CPU of every process; what the others give is not looked at."""
    if accelerator.num_processes == 1:
        return tensors
    kinds = from_main(accelerator, [(tuple(t.shape), t.dtype) for t in tensors])
    mine = tensors if accelerator.is_main_process else [torch.empty(shape, dtype=dtype) for shape, dtype in kinds]
    return [broadcast(t.to(accelerator.device)).cpu() for t in mine]


def on_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true on one of the processes, on every one of them."""
    if accelerator.num_processes == 1:
        return flag
    return bool(sum_over_processes(accelerator)(torch.tensor([float(flag)], device=accelerator.device)).item())


def main_first(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """`do()` on each machine's first process, then on the others: so that one downloads and the others find it there.

    Raises:
        UserError, OSError: it failed here; or elsewhere, and this process would wait for the other in vain.
    """
    done = error = None
    with accelerator.local_main_process_first():
        try:
            done = do()
        except (UserError, OSError) as caught:
            error = caught
    raise_everywhere(accelerator, error)
    return done


def on_main(accelerator: Accelerator, do: Callable[[], T]) -> T | None:
    """`do()` on the main process while the others wait for it; None there.

    Raises:
        UserError, OSError: it failed, on every process.
    """
    done = error = None
    if accelerator.is_main_process:
        try:
            done = do()
        except (UserError, OSError) as caught:
            error = caught
    raise_everywhere(accelerator, error)
    return done


def raise_everywhere(accelerator: Accelerator, error: Exception | None) -> None:
    """Raise on every process where one of them has run into an error, its own where this is the one."""
    if on_any_process(accelerator, error is not None):
        raise error or UserError("another process has come to an end; what it says stands beside this")


def finish(accelerator: Accelerator) -> None:
    """Leave the process group together, with nothing left that holds on to it.

    A process that reaches its end with the group's threads running aborts, after all its work is done: in some runs and not
    in others. The caller must have let go of what was prepared (players, trainers).
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    accelerator.free_memory()  # Accelerate keeps every network that it wrapped, and each keeps the group
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
