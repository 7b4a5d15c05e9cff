"""Problems whose gradient noise scale is known in closed form, measured by the update's own code, in one process or several."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gantrain import randomness
from gantrain.batching import GradientProbe, NoiseMonitor, NoiseScale
from gantrain.losses import Hinge
from gantrain.training.players import Player
from gantrain.training.update import discriminator_phase, generator_phase, step


@dataclass
class Oracle:
    """A problem at fixed weights.

    Attributes:
        trace, squared: tr Sigma of one image's gradient and |G|^2, in closed form.
        covariance, mean: Sigma and G themselves, where they are wanted.
        network: whose gradients they are.
        draw: (start, count) to the tensors that images start .. start + count - 1 of the stream are made of.
        phase: one update of micro-batches of them: (rounds, k, probe) to its statistics.
    """

    trace: float
    squared: float
    network: nn.Module
    draw: Callable[[int, int], tuple[Tensor, ...]]
    phase: Callable[..., dict[str, Tensor]]
    covariance: Tensor | None = None
    mean: Tensor | None = None

    @property
    def b_simple(self) -> float:
        return self.trace / self.squared


class Weights(nn.Module):
    """A vector of weights, for a loss that is written in the test."""

    def __init__(self, w: Tensor):
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self) -> Tensor:
        return self.w


class Affine(nn.Module):
    """G(z) = A z + theta."""

    def __init__(self, a: Tensor, theta: Tensor, matrix_is_trained: bool):
        super().__init__()
        self.a, self.theta = nn.Parameter(a.clone(), requires_grad=matrix_is_trained), nn.Parameter(theta.clone())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return z @ self.a.T + self.theta


class Projection(nn.Module):
    """D(x) = psi . x."""

    def __init__(self, psi: Tensor):
        super().__init__()
        self.psi = nn.Parameter(psi.clone())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ self.psi


def normal(purpose: str, start: int, count: int, width: int) -> Tensor:
    return randomness.normal(0, purpose, start, count, width).double()


def sgd(network: nn.Module, accelerator=None, lr: float = 0.0) -> Player:
    """A player of plain SGD; at a rate of 0 its weights stay what they are."""
    wrapped = accelerator.prepare_model(network) if accelerator else network
    no_sync = {"no_sync": functools.partial(accelerator.no_sync, wrapped)} if accelerator else {}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=lr)
    return Player(network, wrapped, optimizer, torch.amp.GradScaler("cpu", enabled=False), **no_sync)


NOBODY = sgd(Weights(torch.zeros(1)))


def linear_regression(delta: Sequence[float], h: Sequence[float], s: float, accelerator=None) -> Oracle:
    """1/2 (w.x - y)^2 with x ~ N(0, H), H = diag(h), y = w*.x + s e, and delta = w - w*.

    An image's gradient is x (x.delta - s e), so G = H delta; by Isserlis' theorem E (x.delta)^2 x x' is (delta'H delta) H +
    2 H delta delta' H, hence Sigma = (delta'H delta + s^2) H + H delta delta' H. (Without the factor 1/2 of the loss
    both tr Sigma and |G|^2 are four times as large.)
    """
    delta, h = torch.tensor(delta, dtype=torch.float64), torch.tensor(h, dtype=torch.float64)
    optimum = torch.linspace(-1, 1, len(h), dtype=torch.float64)
    own = sgd(Weights(optimum + delta), accelerator)

    def term(batch):
        x, e = batch
        residual = x @ own.wrapped() - (x @ optimum + s * e[:, 0])
        return residual.square().mean() / 2, {}

    def draw(start: int, count: int) -> tuple[Tensor, Tensor]:
        return normal("x", start, count, len(h)) * h.sqrt(), normal("e", start, count, 1)

    mean, quadratic = h * delta, (h * delta * delta).sum()
    covariance = (quadratic + s**2) * torch.diag(h) + torch.outer(mean, mean)
    trace, squared = h.sum() * (quadratic + s**2) + mean.square().sum(), mean.square().sum()
    return Oracle(
        trace.item(),
        squared.item(),
        own.network,
        draw,
        lambda rounds, k, probe: step(own, NOBODY, term, rounds, k, probe),
        covariance,
        mean,
    )


def white_regression(ratio: float, dim: int = 20, accelerator=None) -> Oracle:
    """Linear regression with H = I and s^2 = ratio |delta|^2, where B_simple = dim (1 + ratio) + 1."""
    return linear_regression([1 / math.sqrt(dim)] * dim, [1.0] * dim, math.sqrt(ratio), accelerator)


def affine_game(which: str, dim: int = 12, dim_z: int = 8, accelerator=None) -> Oracle:
    """The hinge game of D = psi.x and G = A z + theta, where D stays within the margins; x ~ N(mu, Sigma_x), z ~ N(0, I).

    An image is a real and a generated one. D's gradient is G(z) - x, whatever psi: its mean is theta - mu and its
    covariance Sigma_x + A A'. G's is -psi by theta and -psi z' by A: the mean is -psi by theta alone, and the covariance
    has a trace of |psi|^2 dim z, all of it by A.

    Args:
        which: "d"; "g" with A and theta to train, or "theta" with theta alone.
    """
    generator = torch.Generator().manual_seed(1)
    a, mu, theta, psi = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((dim, dim_z), (dim,), (dim,), (dim,)))
    psi, scale = psi * 1e-3, torch.linspace(0.5, 2, dim, dtype=torch.float64)
    G = Affine(a, theta, which != "theta")
    D = Projection(psi)
    g, d = sgd(G, accelerator if which != "d" else None), sgd(D, accelerator if which == "d" else None)

    def draw(start: int, count: int) -> tuple[Tensor, Tensor]:
        return mu + scale * normal("x", start, count, dim), normal("z", start, count, dim_z)

    def phase(rounds, k, probe):
        labelled = (tuple((t, torch.zeros(len(t), dtype=torch.int64)) for t in one) for one in rounds)
        if which == "d":
            return discriminator_phase(g, d, Hinge(), labelled, k, probe)
        return generator_phase(g, d, Hinge(), ((None, z) for _, z in labelled), k, probe)

    if which == "d":
        return Oracle((scale.square().sum() + a.square().sum()).item(), (mu - theta).square().sum().item(), D, draw, phase)
    return Oracle(psi.square().sum().item() * (dim_z if which == "g" else 0), psi.square().sum().item(), G, draw, phase)


def general_regression(accelerator=None) -> Oracle:
    """Linear regression with curvatures that differ."""
    return linear_regression([0.3, -0.5, 0.2, 0.4] * 4, [1.0, 2.0, 0.5, 3.0] * 4, 0.7, accelerator)


def of_several_processes(accelerator=None) -> dict[str, Oracle]:
    """Every problem with a closed form and noise, each a player of its own."""
    games = {which: affine_game(which, accelerator=accelerator) for which in ("d", "g")}
    return {"white": white_regression(0.2, accelerator=accelerator), "general": general_regression(accelerator), **games}


def cut(tensors: Sequence[Tensor], b: int, k: int, world: int = 1, rank: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """One process's k micro-batches of an update of b x world x k images."""
    for j in range(k):
        start = (j * world + rank) * b
        yield tuple(t[start : start + b] for t in tensors)


def monitor_of(probe: GradientProbe, window: int, player: str = "d", mean=lambda t: t) -> NoiseMonitor:
    return NoiseMonitor(NoiseScale(1, window), {player: probe.layers}, mean)


def windows(oracle: Oracle, b: int, k: int, window: int, repeats: int, world: int = 1, rank: int = 0, mean=lambda t: t):
    """Estimates over `repeats` windows of measurements on fresh images, and all measurements: float64 `[count, 2]` of (S, G2).

    As the trainer does it: measured in the update, recorded, settled, estimated.
    """
    probe = GradientProbe(oracle.network, processes=world)
    monitor = monitor_of(probe, window, mean=mean)
    found, single, batch, halved, start = [], [], b * k * world, 2 if probe.halves(k) else 1, 0
    for _ in range(repeats):
        for _ in range(window):
            stats = oracle.phase(cut(oracle.draw(start, batch), b, k, world, rank), k, probe)
            monitor.record("d", b // halved, batch, stats["measured"])
            start += batch
        monitor.settle()
        found.append(monitor.estimates()["d"])
        single += [[s, g] for (s,), (g,) in monitor.windows["d"]]
        monitor.forget()
    return found, np.array(single)
