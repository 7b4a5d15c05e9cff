"""What the update asks of the results of plug-ins, so that a wrong one is refused by name and not deep inside torch.

Only types and shapes are looked at, which needs no device sync; values that are not finite are the guard's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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
