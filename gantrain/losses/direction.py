"""What the direction of a sliced head learns (Takida et al. 2024; see `gantrain.models.san`)."""

from __future__ import annotations

from torch import Tensor

from gantrain.losses.objective import Loss


def direction_loss(loss: Loss, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """G's loss of real images minus that of generated ones: minimising it finds the direction in which G has most to gain.

    With the hinge loss it is E D(G(z)) - E D(x), the loss of a Wasserstein GAN. With the non-saturating loss, whose slope for G is
    -sigmoid(-D), its gradient is that of E D(G(z)) - E D(x) with each image weighted by sigmoid(-D). The paper divides these weights by
    their mean over all images of a kind. Here they are not divided, as in the authors' later work (Shibuya et al. 2024, "BigVSAN"), so
    that the mean of k rounds is that of their whole batch. Generated images then count for more than real ones as D gets better; with
    the hinge loss both always count the same.

    Args:
        loss: with `san`.
        logits_real, logits_fake: `[N]`, with a gradient to the direction alone.
    """
    return loss.generator(None, logits_real) - loss.generator(None, logits_fake)
