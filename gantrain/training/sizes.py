"""Whether a run fits into memory, from its configuration, before anything large is allocated. All bounds are lower bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gantrain.averaging.batchnorm import norms_of
from gantrain.averaging.rule import AVERAGER, Averager
from gantrain.config.config import Config
from gantrain.errors import UserError, counted
from gantrain.memory import explain_allocation, main_memory, memory_of, require_memory
from gantrain.models.architecture import build_networks

FLOAT = 4  # bytes
EVALUATED = "eval.batch_size"
SMALL = 2**23  # values of networks that are built in order to be counted
IN_FLIGHT = {True: 2, False: 1}  # copies of the images of one pass: real and generated ones in training, generated ones in evaluation


@dataclass(frozen=True)
class Size:
    """The size of a network.

    Attributes:
        parameters: number of their values, which averages hold in fp32.
        held: bytes of its parameters and buffers.
        trained: bytes of the parameters that are trained.
        recalibrated: it has BatchNorm statistics.
    """

    parameters: int
    held: int
    trained: int
    recalibrated: bool


def require_room(config: Config, shape: tuple[int, int, int], device: torch.device, processes: int, world: int) -> None:
    """Refuse networks, averages and batches that are larger than the memory.

    Args:
        config: of the run.
        shape: (resolution, channels, classes) of the data.
        device: that the networks train on.
        processes: of this run on this machine, which share its memory.
        world: processes of this run.

    Raises:
        UserError: names the keys, the need and what there is.
    """
    resolution, channels, _ = shape
    shared = processes if device.type == "cpu" else 1
    room, main = memory_of(device) // shared, main_memory() // processes
    image = channels * resolution**2
    dim_z = getattr(config.model, "dim_z", 0)
    sizes = sizes_of_networks(config, shape)
    if sizes:
        require_room_for_networks(config, *sizes, room, main if device.type != "cpu" else 0)
    recalibrated = sizes is not None and sizes[0].recalibrated and config.eval.batchnorm == "recalibrate"
    for key, images in batches_of(config, world).items():
        in_training = key != EVALUATED
        if not in_training and not recalibrated:
            images = min(images, config.eval.num_samples)
        width = IN_FLIGHT[in_training] * image + (dim_z if isinstance(dim_z, int) else 0)
        require_memory(f"{key}: {images}", images * width * FLOAT, room, "the images of one pass", f"use a smaller {key}")


def require_room_for_networks(config: Config, generator: Size, discriminator: Size, room: int, beside: int) -> None:
    """Refuse networks and averages of more than `room` bytes; averages may be kept in `beside` bytes of other memory."""
    playing, averages = bytes_of_networks(config, generator, discriminator)
    key = f"model: {words_of(config.model)}"
    parameters = f"its networks of {generator.parameters + discriminator.parameters:,} parameters, with gradients and optimizer,"
    require_memory(key, playing, room, parameters, "use a smaller model")
    count = counted(len(config.followed("g")), "average")
    require_memory("averagers", playing + averages, room + beside, f"{count} and the networks", "use fewer averagers or a smaller model")


def count_copies(averagers: Mapping[str, Averager]) -> int:
    """How many copies of a network's weights its averages hold, those that a rule keeps besides the average included."""
    return sum(1 + len(AVERAGER.adapt(averager).slots()) for averager in averagers.values())


def bytes_of_networks(config: Config, generator: Size, discriminator: Size) -> tuple[int, int]:
    """(bytes of what is trained and of the generator that averages are loaded into, bytes of the averages)."""
    optim, playing = config.optim, generator.held
    for one, optimizer in ((generator, optim.g), (discriminator, optim.d)):
        playing += one.held + (1 + optimizer.copies) * one.trained  # with its gradient
    averages = count_copies(config.followed("g")) * generator.parameters + count_copies(config.followed("d")) * discriminator.parameters
    return playing, FLOAT * averages


def batches_of(config: Config, world: int) -> dict[str, int]:
    """The images that one forward pass takes on a process, by the key that decides it."""
    batching: Any = config.batching
    if batching.micro_batch:
        training = {"batching.micro_batch": min(batching.micro_batch, batching.first_batch // world)}  # more processes take less each
    else:
        training = {"batching.batch_size": batching.first_batch // world}
    return {**training, EVALUATED: config.eval.batch_size}


def words_of(model: Any) -> str:
    """The two largest whole numbers among an architecture's fields, such as "ch=100000, dim_z=64"; or its name."""
    numbers = {name: value for name, value in vars(model).items() if isinstance(value, int) and not isinstance(value, bool)}
    return ", ".join(f"{name}={value}" for name, value in sorted(numbers.items(), key=lambda one: -one[1])[:2]) or type(model).__name__


def sizes_of_networks(config: Config, shape: tuple[int, int, int]) -> tuple[Size, Size] | None:
    """The sizes of G and D; None if the architecture cannot be built without allocating them.

    Small networks are built, which takes milliseconds; building on the meta device takes seconds.

    Raises:
        UserError: a weight has more values than a tensor can.
    """
    registered = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal registered
        registered += 0 if parameter is None else parameter.numel()
        if registered > SMALL:  # before the weight is initialised, so that its memory is not used yet
            raise _LargeError

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.random.fork_rng(devices=[]):
            generator, discriminator = build_networks(config.model, *shape)
            return size_of(generator), size_of(discriminator)
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, _LargeError) and explain_allocation(error) is None:
            return None  # the architecture's own error, which its real build will raise
    finally:
        hook.remove()
    return sizes_on_meta(config, shape)


def sizes_on_meta(config: Config, shape: tuple[int, int, int]) -> tuple[Size, Size] | None:
    """The same without allocating a weight; raises as `sizes_of_networks`."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            generator, discriminator = build_networks(config.model, *shape)
            return size_of(generator), size_of(discriminator)
    except UserError:
        raise
    except Exception as error:  # an architecture from outside may need real values
        if explain_allocation(error) is not None:
            raise UserError(f"model: {words_of(config.model)}: a weight has more values than a tensor can; use a smaller model") from error
        return None


class _LargeError(Exception):
    """Networks are too large to be built only to be counted."""


def size_of(network: nn.Module) -> Size:
    """The size of a network, which may be on the meta device."""
    parameters, buffers = list(network.parameters()), list(network.buffers())
    return Size(
        parameters=sum(one.numel() for one in parameters),
        held=sum(one.nbytes for one in (*parameters, *buffers)),
        trained=sum(one.nbytes for one in parameters if one.requires_grad),
        recalibrated=bool(norms_of(network)),
    )
