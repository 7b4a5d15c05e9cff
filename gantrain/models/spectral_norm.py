"""Spectral norm (Miyato et al. 2018), computed once in an update of many rounds."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm


@dataclass
class Rounds:
    """Backward passes between which a network's weights stand still.

    Attributes:
        gather: leave the gradient of the normed weights with them until the last round; otherwise every round brings the weights its own.
        last: the last round is on.
    """

    gather: bool
    last: bool = False


@dataclass
class Kept:
    """What a norm has computed in the first of its rounds: N = W / sigma, with sigma = u^T W v."""

    normed: Tensor
    sigma: Tensor
    u: Tensor
    v: Tensor


class SpectralNorm(_SpectralNorm):
    """torch's parametrization W / sigma, sigma = u^T W v, in the weight's own precision, and kept for as long as `held` lasts.

    Under autocast on a GPU torch's own takes sigma in half precision: three digits of it.
    """

    rounds: Rounds | None = None
    kept: Kept | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The normed weight; in training mode after one more power iteration."""
        if not self.rounds or torch.compiler.is_compiling():
            return self.divided(weight)[0]
        if not self.kept or self.training:
            with torch.no_grad():
                self.kept = Kept(*self.divided(weight))
            self.kept.normed.requires_grad_(weight.requires_grad)
        if weight.requires_grad and torch.is_grad_enabled() and (self.rounds.last or not self.rounds.gather):
            return Brought.apply(weight, self.kept)
        return self.kept.normed

    def divided(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W / sigma, sigma, u and v."""
        with full_precision(weight.device):
            matrix = self._reshape_weight_to_matrix(weight)
            if self.training:
                self._power_method(matrix, self.n_power_iterations)
            u, v = self._u.clone(), self._v.clone()  # the next iteration writes over them, and backward wants these
            sigma = torch.vdot(u, torch.mv(matrix, v))
            return weight / sigma, sigma, u, v


class Brought(torch.autograd.Function):
    """Normed weights that were kept, of the weights they came from: what gradient they have gathered goes back with this pass's."""

    @staticmethod
    def forward(ctx, weight: Tensor, kept: Kept) -> Tensor:
        ctx.kept = kept
        return kept.normed.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        """With u and v constant d sigma / dW = u v^T, so dL/dW = (dL/dN - <dL/dN, N> u v^T) / sigma."""
        kept = ctx.kept
        if kept.normed.grad is not None:  # once, however many passes bring theirs
            gradient, kept.normed.grad = gradient + kept.normed.grad, None
        along = (gradient * kept.normed.detach()).sum()
        rows = (kept.u * along).view(-1, *[1] * (gradient.dim() - 1))
        columns = kept.v.view(1, *gradient.shape[1:])
        return torch.addcmul(gradient, rows, columns, value=-1).div_(kept.sigma), None


def full_precision(device: torch.device) -> AbstractContextManager:
    """Inside, autocast lowers nothing, on devices that know autocast."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def with_spectral_norm(layer: nn.Module, iterations: int, eps: float) -> nn.Module:
    """Norm a layer's weight, its first axis against the others."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, iterations, dim=0, eps=eps))
    return layer


@contextmanager
def held(network: nn.Module, rounds: Rounds) -> Iterator[None]:
    """While it lasts, frozen forwards take the normed weights that the first forward has computed; the weights must stand still.

    A compiled network computes them anew: what a module keeps from one call to the next is in no graph.
    """
    norms = [m for m in network.modules() if isinstance(m, SpectralNorm)]
    for norm in norms:
        norm.rounds = rounds
    try:
        yield
    finally:
        for norm in norms:
            norm.rounds = norm.kept = None
