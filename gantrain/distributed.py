"""One Accelerator for the whole program: devices, processes, precision."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast, broadcast_object_list
from torch import Tensor

from gantrain import launch_environment, other_processes
from gantrain.errors import USER_ERROR, UserError, one_line
from gantrain.launch_environment import Place

T = TypeVar("T")
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # our names -> Accelerate's
# Metrics of many samples keep one process busy while the others wait.
PATIENCE = timedelta(hours=2)
ANSWER = timedelta(minutes=5)  # until torch's store answers
logger = logging.getLogger(__name__)


DEVICE = "ACCELERATE_TORCH_DEVICE"  # Accelerate's own variable for the device


def make_accelerator(mixed_precision: str = "fp32") -> Accelerator:
    """The Accelerator for the environment that `accelerate launch` or `torchrun` set up; of one process without them.

    The device is a CUDA GPU if there is one, else the CPU. ACCELERATE_USE_CPU=1 asks for the CPU, and ACCELERATE_TORCH_DEVICE for a
    device by name. Apple's GPU ("mps") is used only where it is asked for in this way.

    Raises:
        UserError: the device is not available, or does not support this precision; or the processes cannot form a group.
    """
    asked = asked_device()
    cpu = asked == "cpu" or (asked is None and not torch.cuda.is_available())
    place = launch_environment.read_place(cpu)
    if not cpu and torch.cuda.is_available():
        launch_environment.require_devices(place, torch.cuda.device_count(), "CUDA")
    join_group(place, "gloo" if cpu else "nccl" if torch.cuda.is_available() else None)
    # Each rank keeps its own BatchNorm statistics while training; they are averaged where they are read.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    # Accelerate cannot pass the argument that replaces broadcast_buffers in newer releases of torch yet.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=PRECISIONS[mixed_precision],
            kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        if "precision" in str(error):
            raise UserError(f"mixed_precision: {mixed_precision} does not run here ({one_line(error)}); use fp32 or bf16") from error
        wrong = f"Accelerate cannot start ({one_line(error)})"
        raise UserError(f"{wrong}; check the environment variables whose names begin with ACCELERATE_, or unset them") from error
    if mixed_precision != "fp32" and not accelerator.native_amp:  # Accelerate silently ignores fp16 on a CPU
        raise UserError(f"mixed_precision: {mixed_precision} does not run on {accelerator.device.type}; use fp32 or bf16")
    return accelerator


def join_group(place: Place, backend: str | None) -> None:
    """Form the group of processes; `Accelerator` then finds it. It does so itself where a launcher watches the processes.

    torch waits for as long as an operation of the group may take until all processes are there. This waits for minutes, and names those
    that are missing.

    Args:
        place: of this process.
        backend: of torch.distributed; None for a device of which only Accelerate knows the backend.

    Raises:
        UserError: a process does not come, or does not fit the others.
    """
    if dist.is_available() and dist.is_initialized():
        return
    watch = other_processes.join(place)
    if watch is None or backend is None:
        return

    def note(line: str) -> None:
        logger.warning(f"gantrain: process {place.rank}: {line}")

    if place.rank == 0:
        watch.wait_for_all(note)
        store = dist.TCPStore(place.address, 0, None, is_master=True, timeout=ANSWER, wait_for_workers=False)
        watch.publish_store(store.port)
    else:
        port = watch.wait_for_store(note)
        store = dist.TCPStore(place.address, port, None, is_master=False, timeout=ANSWER, wait_for_workers=False)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=PATIENCE)
    watch.formed = True


def asked_device() -> str | None:
    """The type of device that ACCELERATE_TORCH_DEVICE asks for; None if it is not set.

    Raises:
        UserError: torch does not know it, or cannot use it here.
    """
    value = os.environ.get(DEVICE)
    if not value:
        os.environ.pop(DEVICE, None)  # Accelerate takes an empty value for a device
        return None
    try:
        kind = torch.device(value).type
    except RuntimeError:
        raise UserError(f"{DEVICE}: {value!r} is not a device of torch; use cpu, cuda or mps, or unset it") from None
    available: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if kind in available and not available[kind]():
        raise UserError(f"{DEVICE}: {value!r} is not available to torch on this machine; unset it to let gantrain choose")
    return kind


def leaves_apples_gpu(device: torch.device) -> bool:
    """Whether a CPU was chosen on a machine whose Apple GPU nobody has asked for or declined."""
    declined = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on")
    return device.type == "cpu" and DEVICE not in os.environ and not declined and torch.backends.mps.is_available()


def local_processes() -> int:
    """The number of processes of this run on this machine."""
    return launch_environment.process_local_world()


def sum_over_processes(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """A function that sums a tensor over all processes."""
    return lambda tensor: accelerator.reduce(tensor, reduction="sum")


def mean_of_processes(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """A function that averages a tensor over all processes."""
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
    """The main process's tensors, on the CPU of every process; the arguments of the others are ignored."""
    if accelerator.num_processes == 1:
        return tensors
    kinds = from_main(accelerator, [(tuple(t.shape), t.dtype) for t in tensors])
    mine = tensors if accelerator.is_main_process else [torch.empty(shape, dtype=dtype) for shape, dtype in kinds]
    return [broadcast(t.to(accelerator.device)).cpu() for t in mine]


def on_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true on at least one process; the same answer on all of them."""
    if accelerator.num_processes == 1:
        return flag
    return bool(sum_over_processes(accelerator)(torch.tensor([float(flag)], device=accelerator.device)).item())


def main_first(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """Run `do` on each machine's first process, then on the others, so that one downloads and the others find the files.

    Returns:
        What `do` returned on this process.

    Raises:
        UserError, OSError: it failed on this process, or on another one, for which this one would wait forever.
    """
    done: list[T] = []
    error: UserError | OSError | None = None
    with accelerator.local_main_process_first():
        try:
            done.append(do())
        except (UserError, OSError) as caught:
            error = caught
    raise_everywhere(accelerator, error)
    return done[0]


def on_main(accelerator: Accelerator, do: Callable[[], T]) -> T | None:
    """Run `do` on the main process while the others wait.

    Returns:
        What `do` returned; None on the other processes.

    Raises:
        UserError, OSError: it failed; raised on every process.
    """
    done: T | None = None
    error: UserError | OSError | None = None
    if accelerator.is_main_process:
        try:
            done = do()
        except (UserError, OSError) as caught:
            error = caught
    raise_everywhere(accelerator, error)
    return done


def raise_everywhere(accelerator: Accelerator, error: Exception | None) -> None:
    """Raise on every process if one of them ran into an error; the one that did raises its own."""
    if on_any_process(accelerator, error is not None):
        raise error or other_processes.PeerFailed("another process failed; see its error message", USER_ERROR)


def finish(accelerator: Accelerator) -> None:
    """Leave the process group together, with no references to it left.

    A process that exits while the group's threads run may abort after all its work is done. The caller must have dropped all
    references to what was prepared (players, trainers).
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    accelerator.free_memory()  # Accelerate keeps every network that it wrapped, and each of them keeps the group
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
