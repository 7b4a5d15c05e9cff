"""Path length regularisation of G (Karras et al. 2020, StyleGAN2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gantrain.errors import UserError
from gantrain.losses.objective import Penalty, PenaltyBatch
from gantrain.losses.penalties import moving_mean
from gantrain.losses.penalties.checks import check_above_0, check_every, check_weight
from gantrain.schedule import Scheduled, value_at


@dataclass(frozen=True)
class PathLength(Penalty):
    """weight E (|J^T y| - a)^2 (Karras et al. 2020, Eq. 4): steps of equal length in the latent space change images equally much.

    J is the Jacobian of the image with respect to the latent, y an image of standard normal noise over sqrt(H W), and a the
    exponential moving mean of the lengths |J^T y|: that before the step, where published code counts the step's own batch too. The
    first time there is no mean, and the penalty is 0. The mean is saved in checkpoints.

    The latent is w of a generator that has a mapping network, and z of any other. A generator has one if it has two attributes that can
    be called: `mapping(z, y) -> w`, of shape `[N, dim]` or `[N, layers, dim]`, and `synthesis(w) -> images`. With layers, |J^T y|^2 is
    the mean over them, as in StyleGAN2's code.

    Its forward pass of G is its own, and G is differentiated twice. In a G with BatchNorm an image depends on the latents of its
    whole micro-batch, and so does its length.

    Attributes:
        weight: factor of the penalty; published: 2.
        half_life_kimg: half-life of the moving mean in thousands of images. Published is a decay of 0.99 at each application, of which
            one in 4 steps of 32 images: 4 * 32 log 2 / -log 0.99 = 8,828 images.
        every: the penalty is applied at every n-th step of G and multiplied by n; published: 4.
    """

    weight: Scheduled = 2.0
    half_life_kimg: float = 8.8
    every: int = 4

    networks = "g"

    def __post_init__(self) -> None:
        check_weight(self, "weight")
        check_above_0(self, "half_life_kimg")
        check_every(self)

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        lengths = path_lengths(batch)
        amount = (lengths - moving_mean.mean_of(batch.state, "length").to(lengths)).square().mean()
        factor = value_at(self.weight, batch.nimg) * moving_mean.has_begun(batch.state).to(amount)
        return factor * amount, {"length": lengths.detach().mean()}

    def initial_state(self) -> dict[str, float]:
        return moving_mean.begin("length")

    def next_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
        return moving_mean.follow(state, observed, images, self.half_life_kimg)


def path_lengths(batch: PenaltyBatch) -> Tensor:
    """|J^T y| of each image: `[N]`, differentiable.

    Raises:
        UserError: the images do not depend on the latents.
    """
    mapping, synthesis = part_of(batch.generator, "mapping"), part_of(batch.generator, "synthesis")
    latent = batch.z.detach().requires_grad_(True)
    if mapping is not None and synthesis is not None:
        latent = mapping(latent, batch.y_fake)
        x = synthesis(latent)
    else:
        x = batch.generator(latent, batch.y_fake)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    noise = batch.draws.normal("noise", *x.shape[1:]).to(x.dtype) / math.sqrt(x.shape[-2] * x.shape[-1])
    slope = torch.autograd.grad((x * noise).sum(), latent, create_graph=True, allow_unused=True)[0] if x.requires_grad else None
    if slope is None:
        raise UserError("penalties: path_length needs a generator whose images depend on z; remove it, or change model")
    return torch.linalg.vector_norm(slope.flatten(1), dim=1) / math.sqrt(math.prod(slope.shape[1:-1]))


def part_of(generator: Any, name: str) -> Callable[..., Tensor] | None:
    """What a generator, or the network in its wrapper for several processes, can be called by under a name; None without it."""
    for one in (generator, getattr(generator, "module", None)):
        found = getattr(one, name, None)
        if callable(found):
            return found
    return None
