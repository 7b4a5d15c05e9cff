"""The two players: each a network with its optimizer, scaler, wrapper and averages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gantrain import performance
from gantrain.averaging import LIVE, AverageBank
from gantrain.averaging.average import Mismatch, write_buffers, write_weights
from gantrain.averaging.batchnorm import named_statistics, write_statistics
from gantrain.averaging.birth import begin, since_birth
from gantrain.distributed import local_processes, mean_over_processes
from gantrain.evaluation.evaluator import Evaluator
from gantrain.models.architecture import build_networks, exempt_from_orthogonal
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.run_folder.contents import group_of
from gantrain.sampling.latents import GeneratorModule
from gantrain.training.context import Context
from gantrain.training.sizes import require_room


@dataclass
class Player:
    """One network and what its updates need.

    Attributes:
        network: the plain module, which the other player's phase calls.
        wrapped: what this player's own phase calls: the module, or a DistributedDataParallel around it.
        optimizer: of its parameters.
        scaler: scales its loss under fp16; disabled otherwise.
        orthogonal: weight of orthogonal regularisation; 0 for none.
        exempt: parameters that orthogonal regularisation skips.
        no_sync: a context in which backward passes do not exchange gradients between processes.
    """

    network: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    orthogonal: float = 0.0
    exempt: set[Tensor] = field(default_factory=set)
    no_sync: Callable[[], AbstractContextManager] = nullcontext


def make_adam(network: nn.Module, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Adam:
    """Adam over a network's parameters, fused where the device supports it."""
    parameters = list(network.parameters())
    fused = parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def reset_optimizer(optimizer: torch.optim.Optimizer, how: Literal["keep", "reset_momentum", "reset"]) -> None:
    """Keep Adam's state, zero its first moments, or discard all of it."""
    if how == "reset":
        optimizer.state.clear()
    elif how == "reset_momentum":
        for state in optimizer.state.values():
            state["exp_avg"].zero_()


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """An optimizer's state as tensors named PARAMETER/ENTRY, for saving."""
    return {
        f"{name}/{entry}": value
        for name, parameter in network.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def load_optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore saved state. Each entry gets the memory layout of its parameter, as the optimizer itself would give it.

    Raises:
        Mismatch: an entry is missing, or is not one of these parameters.
    """
    parameters = dict(network.named_parameters())
    require_entries(parameters, tensors)
    for full, value in tensors.items():
        name, _, entry = full.rpartition("/")
        parameter = parameters[name]
        like = (
            torch.empty_like(parameter, dtype=value.dtype)
            if value.shape == parameter.shape and value.dim()
            else torch.empty_like(value, device=parameter.device)
        )
        optimizer.state[parameter][entry] = like.copy_(value)


def require_entries(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a saved state of Adam that is not one of these parameters.

    Raises:
        Mismatch: names the first entry that is missing or wrong.
    """
    entries = {full.rpartition("/")[2] for full in tensors}
    owners = dict.fromkeys(full.rpartition("/")[0] for full in tensors)
    for full in (f"{name}/{entry}" for name in owners for entry in sorted(entries)):
        if full not in tensors:
            raise Mismatch(f"optimizer: entry {full!r} is missing")
        name, _, entry = full.rpartition("/")
        shape = () if entry == "step" else getattr(parameters.get(name), "shape", None)
        if name not in parameters or tensors[full].shape != shape or not (tensors[full].is_floating_point() or tensors[full].is_complex()):
            raise Mismatch(f"optimizer: entry {full!r} does not belong to any parameter")


class Players:
    """G and D, their averages, and a second generator that averages are loaded into for scores and samples.

    All processes build the same networks.

    Args:
        context: of the run.
        shape: (resolution, channels, classes) of the data.

    Attributes:
        G, D: the two players; `by_key` has them as "g" and "d".
        averaged: the second generator. It is never trained, wrapped or compiled.
        banks: the averages of each player, by "g" and "d".
        bank: the averages of G, which are scored and drawn.
        added: averages that the last loaded checkpoint does not have, and that begin there.
        dim_z, num_classes: size of G's latents, and number of its classes.
    """

    def __init__(self, context: Context, shape: tuple[int, int, int]):
        self.context, self.shape = context, shape
        c = context.config
        require_room(c, shape, context.device, local_processes(), context.world)
        torch.manual_seed(c.seed)
        generator, discriminator = build_networks(c.model, *shape)
        with torch.random.fork_rng(devices=[]):
            averaged, _ = build_networks(c.model, *shape)
        if c.sync_batchnorm:
            generator, discriminator = map(nn.SyncBatchNorm.convert_sync_batchnorm, (generator, discriminator))
        for network in (generator, discriminator, averaged):
            performance.place(network, context.performance, context.device)
        if context.performance.compile:
            generator.compile()
            discriminator.compile()
        self.G = self._player(generator, c.optim.lr_g, c.optim.orthogonal_g)
        self.D = self._player(discriminator, c.optim.lr_d, c.optim.orthogonal_d)
        self.by_key = {"g": self.G, "d": self.D}
        self.averaged: nn.Module = averaged.requires_grad_(False)
        sampled: GeneratorModule = self.averaged
        self.dim_z, self.num_classes = sampled.dim_z, sampled.num_classes
        self.banks = {
            "g": AverageBank(self.G.network, c.followed("g")),
            "d": AverageBank(self.D.network, c.followed("d")),
        }
        self.bank = self.banks["g"]
        self.added: list[str] = []
        self._weights = {key: [p.detach() for p in player.network.parameters()] for key, player in self.by_key.items()}

    def _player(self, network: nn.Module, lr: float, orthogonal: float) -> Player:
        """A network with its optimizer, scaler and wrapper."""
        accelerator, config = self.context.accelerator, self.context.config
        wrapped = accelerator.prepare_model(network)
        return Player(
            network=network,
            wrapped=wrapped,
            optimizer=make_adam(network, lr, config.optim.betas, config.optim.eps),
            scaler=torch.amp.GradScaler(self.context.device.type, enabled=config.mixed_precision == "fp16"),
            orthogonal=orthogonal,
            exempt=exempt_from_orthogonal(network),
            no_sync=functools.partial(accelerator.no_sync, wrapped),
        )

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates of the last update, by player."""
        return {key: player.optimizer.param_groups[0]["lr"] for key, player in self.by_key.items()}

    def set_rates(self, multiplier: float) -> None:
        """Set both learning rates to the configured ones times `multiplier`."""
        optim = self.context.config.optim
        set_lr(self.G.optimizer, optim.lr_g * multiplier)
        set_lr(self.D.optimizer, optim.lr_d * multiplier)

    def average(self, nimg: int) -> None:
        """Update every average with the weights at `nimg` images. No device sync."""
        for bank in self.banks.values():
            bank.update(nimg)

    def weight_norms(self) -> dict[str, Tensor]:
        """The Euclidean norm of each player's weights, as scalars on the device."""
        return {f"weights/{key}": nn.utils.get_total_norm(weights) for key, weights in self._weights.items()}

    def unify_statistics(self) -> None:
        """Replace BatchNorm's running statistics, which each process keeps for its own micro-batches, by their mean.

        Every process must call it at the same time.
        """
        live = [named_statistics(player.network).values() for player in self.by_key.values()]
        averaged = [bank.statistics() for bank in self.banks.values()]
        mean_over_processes([tensor for tensors in (*live, *averaged) for tensor in tensors], self.context.accelerator)

    def settle_batchnorm(self, evaluator: Evaluator) -> None:
        """Recompute G's BatchNorm statistics after its weights were replaced.

        They are measured on `averaged`, since G may be compiled, and compiled code does not call hooks. D's statistics are never read,
        since BatchNorm normalises by the batch in training.
        """
        with evaluator.isolated():
            self.bank.materialize(LIVE, self.averaged)
            evaluator.recalibrate(self.averaged)
        write_statistics(named_statistics(self.averaged), self.G.network)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of a checkpoint, by group and name."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, player in self.by_key.items():
            groups[key] = player.network.state_dict()
            groups[f"optimizer_{key}"] = optimizer_tensors(player.optimizer, player.network)
            groups |= {group_of(name, key): shadows for name, shadows in self.banks[key].tensors().items()}
            groups |= {group_of(name, key, slots=True): held for name, held in self.banks[key].slot_tensors().items()}
        return groups

    def state(self) -> dict[str, Any]:
        """The players' state other than `tensors`, as JSON values."""
        return {
            "shape": list(self.shape),
            "averages": self.banks["g"].state(),
            "averages_d": self.banks["d"].state(),
            "scalers": {key: player.scaler.state_dict() for key, player in self.by_key.items()},
        }

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore weights, buffers, optimizers, scalers and averages. An average that was not saved begins with the weights as they are."""
        for key, player in self.by_key.items():
            tensors, scaler = snapshot.tensors[key], snapshot.state["scalers"][key]
            names = {name for name, _ in player.network.named_parameters()}
            write_weights({name: value for name, value in tensors.items() if name in names}, player.network)
            write_buffers(((name, value) for name, value in tensors.items() if name not in names), player.network)
            player.optimizer.state.clear()
            load_optimizer_tensors(player.optimizer, player.network, snapshot.tensors[f"optimizer_{key}"])
            if scaler:
                player.scaler.load_state_dict(scaler)
        self.added = []
        for (key, bank), saved in zip(self.banks.items(), (snapshot.state["averages"], snapshot.state["averages_d"])):
            shadows, slots = ({name: snapshot.tensors.get(group_of(name, key, slots=s), {}) for name in saved} for s in (False, True))
            missing = [name for name in bank if name not in saved]
            begun = {name: begin(bank, name, snapshot.nimg) for name in missing}
            bank.load(
                shadows | {name: one.tensors()[name] for name, one in begun.items()},
                saved | {name: one.state()[name] for name, one in begun.items()},
                slots | {name: one.slot_tensors().get(name, {}) for name, one in begun.items()},
            )
            for name in bank:
                bank[name].averager = since_birth(self.context.config.averagers[name], bank[name].first_nimg)
            self.added += [name for name in missing if name not in self.added]
