"""Spectral norm (Miyato et al. 2018) whose result the rounds of an update can share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm


class SpectralNorm(_SpectralNorm):
    """torch's parametrization W / sigma, sigma = u^T W v, computed in the weight's precision and cached inside `held`.

    Under autocast on a GPU, torch's own implementation computes sigma in half precision, that is, to three digits.
    """

    holding = False
    kept: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the normalised weight, in training mode after one more power iteration."""
        if self.kept is not None and not self.training:
            return self.kept
        with full_precision(weight.device):
            normed = super().forward(weight)
        if self.holding and not normed.requires_grad and not torch.compiler.is_compiling():  # a compiled graph cannot cache on the module
            self.kept = normed
        return normed


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context in which autocast is off."""
    lowers = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if lowers else nullcontext()  # nullcontext is cheaper, and every forward enters it


def with_spectral_norm(layer: nn.Module, iterations: int, eps: float) -> nn.Module:
    """Add spectral norm to a layer's weight, viewed as a matrix of its first axis by all others. Returns the layer."""
    assert isinstance(layer.weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, iterations, dim=0, eps=eps))
    return layer


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """A context in which frozen forward passes reuse the normalised weights of an earlier forward pass that needed no gradient.

    The weights must not change inside. If a gradient flows through the weights, the division stays in the graph of each round.
    Accumulating the rounds' gradients at the normalised weights would save about a tenth when rounds are very small, but then
    k rounds would no longer equal k processes bit for bit.
    """
    norms = [m for m in network.modules() if isinstance(m, SpectralNorm)]
    for norm in norms:
        norm.holding = True
    try:
        yield
    finally:
        for norm in norms:
            norm.holding, norm.kept = False, None
