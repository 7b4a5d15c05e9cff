"""A small game in float64 for tests of the update: players and micro-batches, the same wherever they are built."""

from __future__ import annotations

import functools

import torch
from plain_networks import PlainBigGAN

from gantrain import randomness
from gantrain.optimizers import Adam
from gantrain.training.players import Player

CLASSES, DIM_Z = 3, 6


def networks(spectral_norm: bool = True, san: bool = False):
    torch.manual_seed(0)
    config = PlainBigGAN(ch=2, dim_z=DIM_Z, init="orthogonal", spectral_norm=spectral_norm, san=san)
    return [network.double() for network in config.build(8, 1, CLASSES)]


def player(network, accelerator=None, **kwargs) -> Player:
    wrapped = accelerator.prepare_model(network) if accelerator else network
    no_sync = {"no_sync": functools.partial(accelerator.no_sync, wrapped)} if accelerator else {}
    scaler = kwargs.pop("scaler", torch.amp.GradScaler("cpu", enabled=False))
    return Player(network, wrapped, Adam().build([*network.parameters()], 1e-3, (0.0, 0.99), 1e-8), scaler, **no_sync, **kwargs)


def real(start: int, count: int):
    """Real images `[count, 1, 8, 8]` and labels of stream positions."""
    x = randomness.uniform(0, "real", start, count, 64).view(count, 1, 8, 8) * 2 - 1
    return x, randomness.integers(0, "real/y", start, count, CLASSES)


def noise(start: int, count: int):
    return randomness.normal(0, "z", start, count, DIM_Z).double(), randomness.integers(0, "y", start, count, CLASSES)


def rounds(b: int, k: int, world: int = 1, rank: int = 0, with_real: bool = True):
    """One process's k micro-batches of an update of b x world x k images."""
    for j in range(k):
        start = (j * world + rank) * b
        yield (real(start, b) if with_real else None), noise(start, b)


def gradients(network) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters()}
