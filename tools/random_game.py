"""Both players of a configuration on random images, without a trainer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import nn

from gantrain import performance
from gantrain.batching import GradientProbe
from gantrain.config.config import Config
from gantrain.distributed import make_accelerator
from gantrain.training.players import Player, build_optimizer
from gantrain.training.update import discriminator_phase, generator_phase


class Game:
    """Both players of a configuration, and random images in place of data.

    Args:
        rounds: micro-batches an update; None is the configuration's.
    """

    def __init__(self, config: Config, arguments: argparse.Namespace, rounds: int | None = None):
        self.config = config
        self.device = device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.shape = (config.data.resolution, arguments.channels, arguments.classes)
        self.switches = switches = performance.pick(config.performance, device)
        performance.set_up(switches, device)
        self.accelerator = make_accelerator(config.mixed_precision)
        self.micro_batch = b = config.batching.micro_batch or config.batching.batch_size
        self.rounds = config.batching.batch_size // b if rounds is None else rounds
        networks = self.build(config)
        optim = config.optim
        optimizers = [
            build_optimizer(rule, net, lr, optim) for rule, net, lr in zip((optim.g, optim.d), networks, (optim.lr_g, optim.lr_d))
        ]
        self.players = self.players_of(config, networks, optimizers)
        self.probes = [GradientProbe(network) for network in networks]
        real = performance.lay_out(
            torch.rand(b, arguments.channels, config.data.resolution, config.data.resolution, device=device).mul(2).sub(1), switches
        )
        self.real = real, torch.zeros(b, dtype=torch.int64, device=device)
        self.noise = torch.randn(b, networks[0].dim_z, device=device), torch.zeros(b, dtype=torch.int64, device=device)

    def build(self, config: Config) -> list[nn.Module]:
        """New networks of G and of D, of the configuration's precision."""
        networks = config.model.build(*self.shape)
        for network in networks:
            performance.place(network, self.switches, self.device)
            self.accelerator.prepare_model(network)  # in place; one process
        return list(networks)

    def players_of(self, config: Config, networks: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> list[Player]:
        """G and D of these networks and optimizers."""
        optim, fp16 = config.optim, config.mixed_precision == "fp16"
        return [
            Player(network, network, one, torch.amp.GradScaler(self.device.type, enabled=fp16), rule=rule, clip=clip)
            for network, one, rule, clip in zip(networks, optimizers, (optim.g, optim.d), (optim.clip_g, optim.clip_d))
        ]

    @property
    def batch_size(self) -> int:
        return self.micro_batch * self.rounds

    def update(self, measured: bool = False) -> None:
        """All D steps and the G step; one of D's and G's gradients measured if asked, as in training."""
        loss, k = self.config.loss, self.rounds
        g, d = self.probes if measured else (None, None)
        for s in range(self.config.optim.d_steps):
            discriminator_phase(*self.players, loss, [(self.real, self.noise)] * k, k, d if s == 0 else None)
        generator_phase(*self.players, loss, [(self.real if loss.generator_sees_real else None, self.noise)] * k, k, g)
