"""Spectral norms whose weights were replaced from outside.

torch has no public way to iterate a norm's vectors without a forward in training mode; `_power_method` is what its own
constructor calls (torch 2.13), and a test holds it to the largest singular value.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList


@torch.no_grad()
def refresh_spectral_norms(network: nn.Module, iterations: int = 15) -> None:
    """Bring the singular vectors of all spectral norms to the weights as they are now, by power iteration.

    Deterministic, so that processes with the same weights keep the same vectors.
    """
    for module in network.modules():
        if isinstance(module, ParametrizationList):
            for norm in module:
                if isinstance(norm, _SpectralNorm) and module.original.dim() > 1:
                    norm._power_method(norm._reshape_weight_to_matrix(module.original), iterations)
