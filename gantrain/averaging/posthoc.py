"""Post-hoc EMA: averages of any length, rebuilt after the run from snapshots of two (Karras et al. 2024, section 3.2).

The weights of a power average over the past are known in closed form: its profile is p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on
[0, t]. A sum of snapshots has the sum of their profiles, so the coefficients whose profile is nearest to the wanted one give
the average itself, whatever the weights were. Everything here is counted in images, so batches may have grown in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gantrain.averaging.average import match
from gantrain.averaging.precision import has_mean

LARGEST_ERROR = 0.10  # relative error above which a profile is refused


@dataclass(frozen=True)
class Profile:
    """The profile of a power average of exponent `gamma` after `nimg` images."""

    nimg: int
    gamma: float


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """Integrals of the products of profiles `[len(a), len(b)]`, in 1 / images."""
    t, u = (np.array([p.nimg for p in ps], dtype=np.float64) for ps in (a, b))
    g, h = (np.array([p.gamma for p in ps], dtype=np.float64) for ps in (a, b))
    t, g, u, h = t[:, None], g[:, None], u[None, :], h[None, :]
    # The integral ends at the earlier of the two times. In logarithms, since exponents reach hundreds.
    log = (g + h + 1) * np.log(np.minimum(t, u)) - (g + 1) * np.log(t) - (h + 1) * np.log(u)
    return (g + 1) * (h + 1) / (g + h + 1) * np.exp(log)


def coefficients(snapshots: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """The combination of snapshots whose profile is nearest to the wanted one.

    Least squares over the profiles, with coefficients that add up to 1, so that constant weights are rebuilt exactly.

    Args:
        snapshots: none later than the wanted one; at least one.
        wanted: the profile to rebuild.

    Returns:
        (coefficients `[len(snapshots)]`, relative error): the error is the L2 norm of the difference of the two profiles
        over the norm of the wanted one.
    """
    gram, rhs = inner_products(snapshots, snapshots), inner_products(snapshots, [wanted])[:, 0]
    norm = inner_products([wanted], [wanted])[0, 0]
    scale = 1 / np.sqrt(np.diag(gram))  # to profiles of norm 1, which is better conditioned
    unit = gram * scale[:, None] * scale[None, :]
    # Lagrange: the unconstrained solution, moved along G^-1 1 until the coefficients add up to 1.
    free, towards = np.linalg.lstsq(unit, np.stack([rhs * scale, scale], axis=1), rcond=1e-13)[0].T
    c = scale * (free + towards * (1 - scale @ free) / (scale @ towards))
    squared = c @ gram @ c - 2 * c @ rhs + norm
    return c, float(np.sqrt(max(squared, 0.0) / norm))


@torch.no_grad()
def combine(parts: Iterable[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The weighted sum of named tensors, accumulated in float64 and returned in float32; complex ones in complex64.

    Integers and booleans are not summed: they are those of the last part.

    Args:
        parts: (coefficient, tensors), read one after the other, so that only one snapshot at a time is in memory.

    Raises:
        Mismatch: they differ in names or shapes.
    """
    total: dict[str, Tensor] = {}
    for coefficient, tensors in parts:
        if total:
            match(total, tensors, "snapshots of one run")
        for name, tensor in tensors.items():
            if not has_mean(tensor):
                total[name] = tensor
                continue
            term = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64) * coefficient
            total[name] = total[name].add_(term) if name in total else term
    returned = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    return {name: tensor.to(returned.get(tensor.dtype, tensor.dtype)) for name, tensor in total.items()}


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in half precision, in main memory.

    Tensors with values beyond its range are copied in single precision, and so are complex ones; integers and booleans as they are.
    """
    copies = {}
    for name, tensor in tensors.items():
        if tensor.is_complex() or not has_mean(tensor):
            copies[name] = tensor.detach().to("cpu", torch.complex64 if tensor.is_complex() else tensor.dtype, copy=True)
            continue
        copies[name] = tensor.detach().to("cpu", torch.float16, copy=True)
        if not torch.isfinite(copies[name]).all():
            copies[name] = tensor.detach().to("cpu", torch.float32, copy=True)
    return copies
