"""Latent consistency regularisation of both players: zCR (Zhao et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gantrain.losses.objective import Penalty, PenaltyBatch
from gantrain.losses.penalties.checks import check_above_0, check_every, check_weight
from gantrain.schedule import Scheduled, value_at


@dataclass(frozen=True)
class LatentConsistency(Penalty):
    """zCR (Zhao et al. 2021, Algorithm 2): D ignores small changes of a latent, to which G responds.

    D: weight_d E (D(G(z)) - D(G(z + s)))^2. G: -weight_g E |G(z) - G(z + s)|^2, with s from N(0, sigma^2). The squared distance of two
    images is the mean over their values, as in StudioGAN; a sum would outweigh the loss. G's part is a reward: the value is negative.
    Each part costs a forward pass of G on the changed latents. In a G with BatchNorm these have statistics of their own.

    Attributes:
        weight_d: the paper's lambda_dis (StudioGAN's configuration for CIFAR-10: 20).
        weight_g: the paper's lambda_gen.
        sigma: standard deviation of the change of a latent (StudioGAN: 0.05).
        every: each part is applied at every n-th step of its player and multiplied by n; published: 1.
        networks: the players that get their part: "gd", or one of them.
    """

    weight_d: Scheduled = 5.0
    weight_g: Scheduled = 0.5
    sigma: float = 0.03
    every: int = 1
    networks: Literal["d", "g", "gd"] = "gd"

    differentiates_twice = False

    def __post_init__(self) -> None:
        check_weight(self, "weight_d")
        check_weight(self, "weight_g")
        check_above_0(self, "sigma")
        check_every(self)

    def term(self, batch: PenaltyBatch, player: Literal["d", "g"]) -> tuple[Tensor, Mapping[str, Tensor]]:
        z = batch.z + self.sigma * batch.draws.normal("latent", *batch.z.shape[1:]).to(batch.z.dtype)
        if player == "d":
            with torch.no_grad():
                near = batch.generator(z, batch.y_fake)
            change = (batch.logits_fake - batch.d_fake(near, batch.y_fake)).square().mean()
            return value_at(self.weight_d, batch.nimg) * change, {}
        near = batch.generator(z, batch.y_fake)
        wide = torch.promote_types(near.dtype, torch.float32)
        distance = (batch.x_fake.to(wide) - near.to(wide)).square().mean()
        return -value_at(self.weight_g, batch.nimg) * distance, {}
