"""What the update asks of the results of plug-ins, so that a wrong one is refused by name and not deep inside torch.

Only types and shapes are looked at, which needs no device sync; values that are not finite are the guard's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gantrain.augment import Augmentation
from gantrain.losses import Loss, Penalty
from gantrain.plugin_errors import refuse_result


def require_scalar(value: Any, plugin: Loss | Penalty, method: str) -> None:
    """Refuse what is not a number without dimensions; numbers in `[1]` do not add up with others.

    Raises:
        WrongResult: names the class and its method.
    """
    if not (isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()):
        refuse_result(plugin, method, "a scalar tensor (without dimensions)", value)


def require_gradient(value: Tensor, loss: Loss, method: str) -> None:
    """Refuse a loss that no gradient leads from, such as one that was detached.

    Raises:
        WrongResult: names the class and its method.
    """
    if not value.requires_grad:
        refuse_result(loss, method, "a tensor that depends on the logits", value)


def require_images(x_fake: Any, like: Tensor, generator: nn.Module) -> None:
    """Refuse generated images of another shape than the real ones.

    Raises:
        WrongResult: names the class of the generator.
    """
    if not (isinstance(x_fake, Tensor) and x_fake.shape == like.shape and x_fake.is_floating_point()):
        refuse_result(generator, "forward", f"images {list(like.shape)}", x_fake)


def require_logits(logits: Any, count: int, discriminator: nn.Module) -> None:
    """Refuse anything but one row of logits per image.

    Raises:
        WrongResult: names the class of the discriminator.
    """
    if not (isinstance(logits, Tensor) and logits.dim() > 0 and len(logits) == count and logits.is_floating_point()):
        refuse_result(discriminator, "forward", f"logits [{count}]", logits)


def require_term(found: Any, penalty: Penalty) -> None:
    """Refuse anything but a penalty's value and what it has observed.

    Raises:
        WrongResult: names the class and its method.
    """
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        refuse_result(penalty, "term", "the penalty, and a dict of what it has observed", found)
    require_scalar(found[0], penalty, "penalty" if type(penalty).term is Penalty.term else "term")
    require_observed(found[1], penalty, "term")


def require_observed(found: Any, plugin: Penalty | Augmentation, method: str) -> None:
    """Refuse anything but scalars by name.

    Raises:
        WrongResult: names the class and its method.
    """
    if not isinstance(found, Mapping):
        refuse_result(plugin, method, "a dict of scalar tensors", found)
    for name, value in found.items():
        if not (isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()):
            refuse_result(plugin, method, f"a scalar tensor of floating point as {name!r}", value)


def require_state(found: Any, before: Mapping[str, Tensor], plugin: Penalty | Augmentation) -> None:
    """Refuse a next state with other names than the state before.

    Raises:
        WrongResult: names the class and its method.
    """
    require_observed(found, plugin, "next_state")
    if found.keys() != before.keys():
        refuse_result(plugin, "next_state", f"a dict of {', '.join(sorted(before))}", sorted(found))


def require_numbers(found: Any, plugin: Penalty | Augmentation, method: str) -> None:
    """Refuse anything but numbers by name.

    Raises:
        WrongResult: names the class and its method.
    """
    if not isinstance(found, Mapping):
        refuse_result(plugin, method, "a dict of numbers", found)
    for name, value in found.items():
        scalar = isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()
        if not (scalar or (isinstance(value, (int, float)) and not isinstance(value, bool))):
            refuse_result(plugin, method, f"a number as {name!r}", value)


def require_augmented(found: Any, x: Tensor, augmentation: Augmentation) -> None:
    """Refuse augmented images of another shape or type than the images, or through which G would learn nothing.

    Raises:
        WrongResult: names the class and its method.
    """
    if not (isinstance(found, Tensor) and found.shape == x.shape and found.dtype == x.dtype):
        refuse_result(augmentation, "apply", f"images {list(x.shape)} of {x.dtype}", found)
    if x.requires_grad and not found.requires_grad:
        refuse_result(augmentation, "apply", "images that depend on the images differentiably, as G is trained through them", found)
