"""Whether a run fits into memory, from its configuration, before anything large is allocated. All bounds are lower bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gantrain.config.config import Config
from gantrain.errors import UserError, counted
from gantrain.memory import explain_allocation, main_memory, memory_of, require_memory
from gantrain.models.architecture import build_networks

FLOAT = 4  # bytes
SMALL = 2**23  # values of networks that are built in order to be counted
PLAYER = 4  # copies of each weight: itself, its gradient, and Adam's two moments
IN_FLIGHT = 2  # copies of a batch of images: real and generated


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
    for key, images in batches_of(config, world).items():
        width = IN_FLIGHT * image + (dim_z if isinstance(dim_z, int) else 0)
        require_memory(f"{key}: {images}", images * width * FLOAT, room, "the images of one pass", f"use a smaller {key}")


def require_room_for_networks(config: Config, generator: int, discriminator: int, room: int, beside: int) -> None:
    """Refuse networks and averages of more than `room` bytes; averages may be kept in `beside` bytes of other memory."""
    playing = FLOAT * (PLAYER * (generator + discriminator) + generator)  # the second generator, which averages are loaded into
    key = f"model: {words_of(config.model)}"
    parameters = f"its networks of {generator + discriminator:,} parameters, with gradients and optimizer,"
    require_memory(key, playing, room, parameters, "use a smaller model")
    averages = FLOAT * (len(config.followed("g")) * generator + len(config.followed("d")) * discriminator)
    count = counted(len(config.followed("g")), "average")
    require_memory("averagers", playing + averages, room + beside, f"{count} and the networks", "use fewer averagers or a smaller model")


def batches_of(config: Config, world: int) -> dict[str, int]:
    """The images that one forward pass takes on a process, by the key that decides it."""
    batching: Any = config.batching
    if batching.micro_batch:
        training = {"batching.micro_batch": batching.micro_batch}
    else:
        training = {"batching.batch_size": batching.first_batch // world}
    return {**training, "eval.batch_size": config.eval.batch_size}


def words_of(model: Any) -> str:
    """The two largest whole numbers among an architecture's fields, such as "ch=100000, dim_z=64"; or its name."""
    numbers = {name: value for name, value in vars(model).items() if isinstance(value, int) and not isinstance(value, bool)}
    return ", ".join(f"{name}={value}" for name, value in sorted(numbers.items(), key=lambda one: -one[1])[:2]) or type(model).__name__


def sizes_of_networks(config: Config, shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """Numbers of values in G and D; None if the architecture cannot be built without allocating them.

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
            return count_values(generator), count_values(discriminator)
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, _LargeError) and explain_allocation(error) is None:
            return None  # the architecture's own error, which its real build will raise
    finally:
        hook.remove()
    return sizes_on_meta(config, shape)


def sizes_on_meta(config: Config, shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """The same without allocating a weight; raises as `sizes_of_networks`."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            generator, discriminator = build_networks(config.model, *shape)
            return count_values(generator), count_values(discriminator)
    except UserError:
        raise
    except Exception as error:  # an architecture from outside may need real values
        if explain_allocation(error) is not None:
            raise UserError(f"model: {words_of(config.model)}: a weight has more values than a tensor can; use a smaller model") from error
        return None


class _LargeError(Exception):
    """Networks are too large to be built only to be counted."""


def count_values(network: nn.Module) -> int:
    """Number of values of a network's parameters and buffers."""
    return sum(one.numel() for one in (*network.parameters(), *network.buffers()))


def require_room_for_scores(config: Config, widths: tuple[int, int]) -> None:
    """Refuse more features than main memory holds.

    Args:
        config: of the run.
        widths: (features, logits) per image.

    Raises:
        UserError: names the key, the need and what there is.
    """
    needed = config.eval.num_samples * sum(widths) * FLOAT
    require_memory(f"eval.num_samples: {config.eval.num_samples}", needed, main_memory(), "their features", "use fewer samples")
