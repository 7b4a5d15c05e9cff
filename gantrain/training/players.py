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
from gantrain.averaging.average import write_buffers, write_weights
from gantrain.averaging.batchnorm import named_statistics, write_statistics
from gantrain.averaging.birth import begin, since_birth
from gantrain.config.sections import Optim
from gantrain.distributed import local_processes, mean_over_processes
from gantrain.evaluation.evaluator import Evaluator
from gantrain.models.architecture import build_networks, exempt_from_orthogonal
from gantrain.optimizers import OPTIMIZERS, Adam, Optimizer, betas_at
from gantrain.plugin_errors import refuse_result
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.run_folder.contents import group_of
from gantrain.sampling.latents import GeneratorModule
from gantrain.schedule import Scheduled, bounds_of, value_at
from gantrain.training.context import Context
from gantrain.training.optimizer_state import load_optimizer_tensors, load_own_settings, optimizer_tensors, own_settings
from gantrain.training.sizes import require_room


@dataclass
class Player:
    """One network and what its updates need.

    Attributes:
        network: the plain module, which the other player's phase calls.
        wrapped: what this player's own phase calls: the module, or a DistributedDataParallel around it.
        optimizer: of its parameters.
        rule: the optimizer as the configuration has it.
        clip: the largest norm of its gradient; None does not clip.
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
    rule: Optimizer = field(default_factory=Adam)
    clip: float | None = None


def set_groups(optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> None:
    """Set the learning rate, or other hyper-parameters, of all parameters."""
    for group in optimizer.param_groups:
        group.update(settings)


@torch.no_grad()
def reset_optimizer(player: Player, how: Literal["keep", "reset_momentum", "reset"]) -> None:
    """Keep the state of a player's optimizer, zero its momentum (Adam's first moments), or discard all of it."""
    if how == "reset":
        player.optimizer.state.clear()
        load_own_settings(player.optimizer, given_to(player), [])
    elif how == "reset_momentum":
        for state in player.optimizer.state.values():
            for entry in player.rule.momentum_entries:
                if isinstance(state.get(entry), Tensor):
                    state[entry].zero_()


def build_optimizer(rule: Optimizer, network: nn.Module, lr: Scheduled, optim: Optim) -> torch.optim.Optimizer:
    """The optimizer of a network, with the learning rate at the start of the run.

    Raises:
        UserError: an optimizer from outside builds something else, or sets what is not in its parameter groups.
    """
    betas = betas_at(optim.betas, 0)
    found = rule.build(list(network.parameters()), bounds_of(lr)[1], betas, optim.eps)  # not the 0 of a warm-up, which many refuse
    if not isinstance(found, torch.optim.Optimizer):
        refuse_result(rule, "build", "an optimizer of torch", found)
    taken = {p for group in found.param_groups for p in group["params"]}
    left = [name for name, p in network.named_parameters() if p.requires_grad and p not in taken]
    if left:
        refuse_result(rule, "build", f"an optimizer of all parameters, such as {left[0]}", found)
    settings = rule.settings(0, betas)
    if not isinstance(settings, Mapping) or not all(key in group for key in settings for group in found.param_groups):
        refuse_result(rule, "settings", f"entries of param_groups ({', '.join(found.defaults)})", settings)
    set_groups(found, {"lr": value_at(lr, 0)})
    return found


def given_to(player: Player) -> list[str]:
    """Entries of parameter groups that gantrain sets before every step."""
    return ["lr", *player.rule.settings(0, (0.0, 0.0))]


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
        self.G = self._player("g", generator)
        self.D = self._player("d", discriminator)
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

    def _player(self, key: Literal["g", "d"], network: nn.Module) -> Player:
        """A network with its optimizer, scaler and wrapper."""
        accelerator, config = self.context.accelerator, self.context.config
        wrapped = accelerator.prepare_model(network)
        rule: Optimizer = getattr(config.optim, key)
        return Player(
            network=network,
            wrapped=wrapped,
            optimizer=build_optimizer(rule, network, getattr(config.optim, f"lr_{key}"), config.optim),
            rule=rule,
            clip=getattr(config.optim, f"clip_{key}"),
            scaler=torch.amp.GradScaler(self.context.device.type, enabled=config.mixed_precision == "fp16"),
            orthogonal=getattr(config.optim, f"orthogonal_{key}"),
            exempt=exempt_from_orthogonal(network),
            no_sync=functools.partial(accelerator.no_sync, wrapped),
        )

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates of the last update, by player."""
        return {key: player.optimizer.param_groups[0]["lr"] for key, player in self.by_key.items()}

    def set_rates(self, multiplier: float, nimg: int) -> None:
        """Set both learning rates to the configured ones at `nimg` images times `multiplier`, and whatever else is scheduled."""
        optim = self.context.config.optim
        betas = betas_at(optim.betas, nimg)
        for player, lr in ((self.G, optim.lr_g), (self.D, optim.lr_d)):
            set_groups(player.optimizer, {**player.rule.settings(nimg, betas), "lr": value_at(lr, nimg) * multiplier})

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
        settings = {key: own_settings(player.optimizer, given_to(player)) for key, player in self.by_key.items()}
        return {
            **({"optimizers": settings} if any(settings.values()) else {}),
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
            strict = type(player.rule) in OPTIMIZERS.values()
            load_optimizer_tensors(player.optimizer, player.network, snapshot.tensors[f"optimizer_{key}"], strict)
            load_own_settings(player.optimizer, given_to(player), snapshot.state.get("optimizers", {}).get(key, []))
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
