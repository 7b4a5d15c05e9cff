"""The last layer of a slicing adversarial network (Takida et al. 2024, "SAN: Inducing metrizability of GAN with discriminative
normalized linear layer").

D's logit is <w / |w|, h(x)>: features h(x) along a direction of length 1. In D's phase the two are trained apart. The features minimise
D's loss with the direction held fixed; the direction minimises another loss with the features held fixed, see
`gantrain.losses.direction`. So D gives its logits twice there, equal in value: once for each of the two to learn from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantrain.spectral_norm import disable_autocast


class SlicedHead(nn.Module):
    """Projects features on a direction. It has no weights of its own: w may be a parameter, or a sum of one and a class embedding.

    The direction gets a gradient only from the second logits inside `split_logits`. Everywhere else, as in penalties, it is fixed, so
    that nothing but its own loss turns it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.splits = False

    def forward(self, h: Tensor, w: Tensor) -> Tensor:
        """Logits of features `[N, C]` along the directions of w, `[N, C]` or `[1, C]`, in the precision of w.

        Returns:
            `[N]`; inside `split_logits` `[2, N]`, with a gradient to h in the first row and to w in the second.
        """
        with disable_autocast(h.device):
            direction = F.normalize(w, dim=1)
            value = (h * direction.detach()).sum(dim=1)
            return torch.stack([value, (h.detach() * direction).sum(dim=1)]) if self.splits else value


def find_heads(discriminator: nn.Module) -> list[SlicedHead]:
    """The sliced heads of a discriminator: one, or none."""
    return [module for module in discriminator.modules() if isinstance(module, SlicedHead)]


@contextmanager
def split_logits(discriminator: nn.Module) -> Iterator[bool]:
    """Inside, a discriminator with a sliced head returns its logits twice, `[2, N]`; any other one is not changed.

    Yields:
        Whether it has such a head.
    """
    heads = find_heads(discriminator)
    for head in heads:
        head.splits = True
    try:
        yield bool(heads)
    finally:
        for head in heads:
            head.splits = False
