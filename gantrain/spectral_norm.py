"""Spectral norm (Miyato et al. 2018) on top of torch's parametrization, and all that gantrain needs of torch's private parts.

torch has no public way to read a norm's singular vectors or to iterate them without a forward in training mode. `_SpectralNorm`,
`_u`, `_v`, `_power_method` and `_reshape_weight_to_matrix` (torch 2.6 to 2.13) are used in this file and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList


class SpectralNorm(_SpectralNorm):
    """torch's parametrization W / sigma with sigma = u^T W v, computed in the weight's own precision.

    torch's own computes sigma in half precision under autocast on a GPU, which leaves three digits of it. While
    `reuse_normed_weights` is active, the normed weight is kept and reused.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Of the instance from the start: torch.compile compiles anew when an attribute of the class becomes one of the instance.
        self.holding = False
        self.kept: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The normed weight; in training mode after one more power iteration."""
        if self.kept is not None and not self.training:
            return self.kept
        with disable_autocast(weight.device):
            normed = super().forward(weight)
        if self.holding and not normed.requires_grad and not torch.compiler.is_compiling():  # no graph keeps what a module keeps
            self.kept = normed
        return normed


def disable_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which autocast lowers no precision."""
    lowers = device.type != "meta" and torch.is_autocast_enabled(device.type)
    # A nullcontext where autocast is off: it is cheaper, and every forward enters it.
    return torch.autocast(device.type, enabled=False) if lowers else nullcontext()


def add_spectral_norm(layer: nn.Module, iterations: int, eps: float) -> nn.Module:
    """Norm a layer's weight, taking its first axis against the others."""
    assert isinstance(layer.weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, iterations, dim=0, eps=eps))
    return layer


@contextmanager
def reuse_normed_weights(network: nn.Module) -> Iterator[None]:
    """Inside, frozen forwards reuse normed weights that an earlier forward computed, if no gradient flows through them.

    The weights must not change meanwhile. If a gradient flows through them, the quotient is part of each round's graph: gathering
    the rounds' gradients at the normed weights would save a tenth of the time for very small rounds, but k rounds would no
    longer equal k processes bit for bit.
    """
    norms = [m for m in network.modules() if isinstance(m, SpectralNorm)]
    for norm in norms:
        norm.holding = True
    try:
        yield
    finally:
        for norm in norms:
            norm.holding, norm.kept = False, None


@contextmanager
def frozen_power_iteration(network: nn.Module) -> Iterator[None]:
    """Inside, a forward in training mode uses the spectral norms as they are instead of iterating them once more.

    An update of k rounds then iterates as often as an update of one round, so that splitting a batch into rounds does not
    change its gradient.
    """
    norms = [m for m in network.modules() if isinstance(m, _SpectralNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def normed_weights(network: nn.Module) -> Iterator[tuple[str, _SpectralNorm, Tensor]]:
    """(name, norm, weight before it is normed) of every spectrally normed weight; the name of a layer's `weight` is the layer's."""
    for name, module in network.named_modules():
        for kind, chain in getattr(module, "parametrizations", {}).items():
            for norm in chain if isinstance(chain, ParametrizationList) else ():
                if isinstance(norm, _SpectralNorm) and chain.original.dim() > 1:  # torch only scales a vector
                    yield name if kind == "weight" else f"{name}.{kind}", norm, chain.original


@torch.no_grad()
def singular_values(network: nn.Module) -> dict[str, Tensor]:
    """The first singular value of every spectrally normed weight before it is normed, by layer; scalars on the device.

    u^T W v with the vectors that the power iteration has reached, as Brock et al. 2019 (section 4.1) follow them.
    """
    values = {}
    for name, norm, weight in normed_weights(network):
        values[name] = torch.vdot(norm._u, torch.mv(norm._reshape_weight_to_matrix(weight), norm._v))
    return values


@torch.no_grad()
def refresh_spectral_norms(network: nn.Module, iterations: int = 15) -> None:
    """Fit the singular vectors of all spectral norms to the current weights, by power iteration.

    To be called when weights were replaced from outside. Deterministic, so processes with equal weights keep equal vectors.
    """
    for _, norm, weight in normed_weights(network):
        norm._power_method(norm._reshape_weight_to_matrix(weight), iterations)
