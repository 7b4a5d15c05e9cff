"""Spectral norm (Miyato et al. 2018) that the rounds of an update share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm


class SpectralNorm(_SpectralNorm):
    """torch's parametrization W / sigma, sigma = u^T W v, in the weight's own precision, and kept for as long as `held` lasts.

    Under autocast on a GPU torch's own takes sigma in half precision: three digits of it.
    """

    holding = False
    kept: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The normed weight; in training mode after one more power iteration."""
        if self.kept is not None and not self.training:
            return self.kept
        with full_precision(weight.device):
            normed = super().forward(weight)
        if self.holding and not normed.requires_grad and not torch.compiler.is_compiling():  # no graph keeps what a module keeps
            self.kept = normed
        return normed


def full_precision(device: torch.device) -> AbstractContextManager:
    """Inside, autocast lowers nothing."""
    lowers = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if lowers else nullcontext()  # which costs less, and is entered in every forward


def with_spectral_norm(layer: nn.Module, iterations: int, eps: float) -> nn.Module:
    """Norm a layer's weight, its first axis against the others."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, iterations, dim=0, eps=eps))
    return layer


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """While it lasts, frozen forwards take normed weights that an earlier forward has computed, where no gradient goes through them.

    The weights must stand still meanwhile. Where a gradient goes through them the quotient is a part of each round's graph: to
    gather the rounds' gradients at the normed weights would save a tenth where rounds are very small, and k rounds would no
    longer be k processes to the bit.
    """
    norms = [m for m in network.modules() if isinstance(m, SpectralNorm)]
    for norm in norms:
        norm.holding = True
    try:
        yield
    finally:
        for norm in norms:
            norm.holding, norm.kept = False, None
