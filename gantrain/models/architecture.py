"""The contract of architectures, and what is asked of their networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from gantrain.contracts import Contract
from gantrain.errors import UserError
from gantrain.models.san import find_heads
from gantrain.plugin_errors import describe_value, refuse_result


class Architecture(ABC):
    """Makes both networks: the contract of everything in `ARCHITECTURES`, and of architectures from outside.

    An architecture that does not inherit from this class gets the same defaults. In a configuration it is a frozen dataclass.

    Attributes:
        san: whether D ends in a `gantrain.models.san.SlicedHead`. False by default.
    """

    san: bool = False

    @abstractmethod
    def build(self, resolution: int, channels: int, num_classes: int) -> tuple[nn.Module, nn.Module]:
        """(G, D), freshly initialised by torch's default random generator.

        `G(z, y)` takes latents `[N, dim_z]`, standard normal, and labels int64 `[N]` to images
        `[N, channels, resolution, resolution]` in [-1, 1], and carries `dim_z`, `num_classes`, `resolution` and `channels`.
        `D(x, y)` takes such images and labels to logits `[N]`.

        Args:
            resolution: height and width of the images.
            channels: 1 or 3.
            num_classes: at least 1.
        """

    def require_resolution(self, resolution: int) -> None:  # noqa: B027 - by default there is nothing to refuse
        """Refuse a resolution before any data is read. By default every resolution is accepted, until `build`.

        Raises:
            UserError: names the key, such as data.resolution.
        """


class LatentGenerator(Protocol):
    """What can be sampled: called as `G(z, y)`, it says how long z is and how many classes y has.

    Attributes:
        dim_z: length of a latent.
        num_classes: of its labels.
    """

    dim_z: int
    num_classes: int

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Images `[N, C, H, W]` in [-1, 1] of latents `[N, dim_z]` and labels int64 `[N]`."""
        ...


CARRIED = ("dim_z", "num_classes", "resolution", "channels")  # by every generator that an architecture builds
ARCHITECTURE: Contract[Architecture] = Contract("architecture", Architecture)


# Networks are anybody's modules, often wrapped: `torch.compile` and others pass attributes on by `__getattr__`, which an
# `isinstance` with a runtime protocol does not see. So what a network may have is asked for here, with its one default.


def build_networks(architecture: Architecture, resolution: int, channels: int, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """(G, D) of an architecture, as `Architecture.build` says.

    Raises:
        UserError: it returns something else, G does not carry what every generator does, or `san` is wrong about D; names it.
    """
    built = architecture.build(resolution, channels, num_classes)
    if not (isinstance(built, (tuple, list)) and len(built) == 2 and all(isinstance(network, nn.Module) for network in built)):
        refuse_result(architecture, "build", "(G, D), two modules of torch", built)
    generator, discriminator = built
    for part in CARRIED:
        if not hasattr(generator, part):
            name = type(architecture).__name__
            raise UserError(f"model: {name}.build must return a generator with {part}, and {type(generator).__name__} has none")
    says = getattr(architecture, "san", Architecture.san)
    if says != bool(find_heads(discriminator)):
        name, has = type(discriminator).__name__, "no SlicedHead" if says else "a SlicedHead"
        raise UserError(f"model: {type(architecture).__name__} has san={says}, but its {name} has {has}; they must agree")
    return generator, discriminator


def is_latent_generator(network: Any) -> TypeGuard[LatentGenerator]:
    """Whether something can be called as `G(z, y)` and says how long z is and how many classes y has."""
    return callable(network) and hasattr(network, "dim_z") and hasattr(network, "num_classes")


def accepts_mixtures(generator: Any) -> bool:
    """Whether y may be weights of classes, float `[N, num_classes]`; False for a generator that does not say.

    Without the attribute `accepts_mixtures` labels are all that is known to work.
    """
    return bool(getattr(generator, "accepts_mixtures", False))


def label_counts_of(generator: Any) -> Sequence[int] | None:
    """Images per class of the data, if labels are to be drawn like them: the attribute `label_counts`; None, by default, is uniformly.

    Raises:
        UserError: they are not whole numbers, one for each class.
    """
    counts: Any = getattr(generator, "label_counts", None)
    if counts is None:
        return None
    try:  # a list, a tensor such as that of bincount, or an array
        found = torch.as_tensor(counts).tolist()
    except (TypeError, ValueError, RuntimeError):
        found = None
    numbers = found if isinstance(found, list) and len(found) == generator.num_classes else []
    if any(numbers) and all(isinstance(one, (int, float)) and one >= 0 and float(one).is_integer() for one in numbers):
        return tuple(map(int, numbers))
    raise UserError(
        f"label_counts: must be the number of images of each class, whole numbers for num_classes={generator.num_classes},"
        f" got {describe_value(counts)}"
    )


def exempt_from_orthogonal(network: nn.Module) -> set[Tensor]:
    """Parameters that orthogonal regularisation leaves alone: the attribute `exempt_from_orthogonal`, none by default."""
    exempt: Iterable[Tensor] = getattr(network, "exempt_from_orthogonal", ())
    return set(exempt)
