"""`gantrain noise-scale`: measure the gradient noise scale at a run's weights, without training."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from gantrain import performance
from gantrain.averaging import LIVE
from gantrain.averaging.average import write_buffers, write_weights
from gantrain.averaging.bank import split
from gantrain.batching import Estimate, GradientProbe, NoiseMonitor, NoiseScale
from gantrain.batching.noise_scale import FEWEST_MEASUREMENTS, as_numbers
from gantrain.bounds import MOST_GRADIENTS
from gantrain.commands.arguments import averages_of_choice
from gantrain.data import RealBatches, prepare
from gantrain.distributed import make_accelerator
from gantrain.errors import UserError, did_you_mean
from gantrain.images import to_float
from gantrain.launch_environment import process_world
from gantrain.models.architecture import build_networks
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import averages_of, fitting, group_of, look_again, open_held, rebuilt_of
from gantrain.run_folder.finite import require_finite
from gantrain.run_folder.result_file import keep_result, target_of
from gantrain.run_folder.start_folder import require_images_of
from gantrain.sampling.latents import draw
from gantrain.spectral_norm import frozen_power_iteration, refresh_spectral_norms
from gantrain.text_table import align, join_columns
from gantrain.training.players import Player
from gantrain.training.terms import Terms
from gantrain.training.update import Batch, Latents, RealOfG, discriminator_phase, generator_phase


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    a = arguments
    (average,), kimg = averages_of_choice(a.run, [a.average], a.kimg)
    print(measure_run(a.run, average, a.updates, kimg, a.per_layer, a.out, a.overrides))


class Still(torch.optim.SGD):
    """An optimizer that never changes anything, so that the training phases leave the weights unchanged."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # never returns a loss
        """Do nothing."""


class Bench:
    """Both players of a checkpoint, with fixed weights, and the run's data, whose images are drawn independently.

    Args:
        run: a run folder.
        average: the average whose weights G gets, and D too if the run averages D.
        kimg: which checkpoint; None is the newest.
        overrides: `data.KEY=VALUE` if the data is elsewhere on this machine, `mixed_precision=fp32` if it lacks the run's precision.

    Raises:
        UserError: no such run, checkpoint or average.
    """

    def __init__(self, run: str | Path, average: str, kimg: float | None, overrides: Sequence[str]):
        for override in overrides:
            if not override.startswith(("data.", "mixed_precision=")):
                raise UserError(f"{override}: only data and mixed_precision can be overridden here; remove it to use the run's own value")
        self.config, held = open_held(run, kimg, overrides=overrides)
        path = held.folder
        self.path, self.nimg = path, int(path.name)
        require_images_of(Path(run), self.config, overrides, reads_data=True)
        known = [name for name in averages_of(path) if name not in rebuilt_of(Path(run))]
        if average not in known:
            raise UserError(f"--average: {run} has no average {average!r} at {self.nimg / 1000:g} kimg{did_you_mean(average, known)}")
        self.average, self.overrides = average, list(overrides)
        groups = {key: group_of(average, key) for key in ("g", "d")}
        self.averaged = {key for key, group in groups.items() if average != LIVE and group in checkpoint.groups_of(path)}
        self.saved = checkpoint.read(path, ["g", "d", *(groups[key] for key in self.averaged)])
        for key in ("d", "g"):
            averaged = key in self.averaged
            tensors = self.saved.tensors[groups[key] if averaged else key]
            weights = {name: tensor for name, tensor in tensors.items() if "running_" not in name}  # of BatchNorm, which are not read here
            whose = f"weights of {average} of {key.upper()}" if averaged else f"live weights of {key.upper()}"
            require_finite(path, average if averaged else LIVE, weights, whose)
        self.micro_batch, self.batch_size = (self.saved.state["batching"][key] for key in ("micro_batch", "batch_size"))
        self.rounds = max(2, self.batch_size // self.micro_batch)  # the estimate compares at least two micro-batches

    def prepare(self, accelerator: Accelerator, bar: Callable) -> None:
        """Load the data and build the networks.

        Raises:
            UserError: the data is not what the run was trained on.
        """
        c, self.device = self.config, accelerator.device
        self.performance = performance.pick(c.performance, self.device)
        performance.set_up(self.performance, self.device)
        state = self.saved.state
        images = prepare(c.data, self.device, 1, bar, state)
        known = state["data_listing"] in (None, images.listing)  # None in a fork with other data that has not been trained yet
        if not known or [images.resolution, images.channels, images.num_classes] != state["shape"]:
            raise UserError(
                f"data: {images.name} is not what the run was trained on (other images, labels or resolution);"
                " set data.root to the path of its data on this machine"
            )
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten
            G, D = build_networks(c.model, *state["shape"])
        with fitting(self.path):
            self.fill(D, "d")
            self.fill(G, "g")
        players = {}
        for key, network in (("g", G), ("d", D)):
            wrapped = accelerator.prepare_model(performance.place(network, self.performance, self.device).train())
            scaler = torch.amp.GradScaler(self.device.type, enabled=c.mixed_precision == "fp16")
            players[key] = Player(network, wrapped, Still(network.parameters()), scaler)
        self.G, self.D = players["g"], players["d"]
        self.terms = Terms(c, self.device)
        self.terms.load(self.saved, rolls_back=False)
        self.real_batches = RealBatches(
            images,
            c.seed,
            self.micro_batch,
            0,
            1,
            self.nimg * c.optim.d_steps,
            self.device,
            c.data.flip,
            c.data.workers,
            independent=True,  # an epoch's images are not, which lowers |G|^2 by tr Sigma / N
        )

    def fill(self, network: nn.Module, key: str) -> None:
        """Load the average's weights into a network, or the live ones if the run does not average it."""
        live, names = self.saved.tensors[key], {name for name, _ in network.named_parameters()}
        write_weights({k: v for k, v in live.items() if k in names}, network)
        write_buffers(((k, v) for k, v in live.items() if k not in names), network)
        if key in self.averaged:
            write_weights(split(self.saved.tensors[group_of(self.average, key)], network)[0], network)
            refresh_spectral_norms(network)

    def measure(self, updates: int, per_layer: bool, bar: Callable) -> NoiseMonitor:
        """Measure the gradients of this many updates at these weights.

        Args:
            updates: how many.
            per_layer: also measure each layer.
            bar: wraps an iterable of known length in a progress bar.
        """
        c, k, batch = self.config, self.rounds, self.micro_batch * self.rounds
        probes = {"d": GradientProbe(self.D.network, per_layer), "g": GradientProbe(self.G.network, per_layer)}
        settings = NoiseScale(measure_every=1, window=updates, per_layer=per_layer)
        monitor = NoiseMonitor(settings, {key: probe.layers for key, probe in probes.items()})
        due = {"d": self.terms.due("d", None), "g": self.terms.due("g", None)}
        where = {"d": self.terms.setting("d0", self.nimg), "g": self.terms.setting("g", self.nimg)}
        for i in bar(range(updates), updates):
            start = self.nimg + i * batch
            with frozen_power_iteration(self.G.network), frozen_power_iteration(self.D.network):
                rounds = zip(self.real(), self.latents("d0", start))
                stats = discriminator_phase(self.G, self.D, c.loss, rounds, k, probes["d"], due["d"], where["d"])
                monitor.record("d", self.micro_batch, batch, stats["measured"])
                of_g = zip(self.real_of_g(), self.latents("g", start))
                stats = generator_phase(self.G, self.D, c.loss, of_g, k, probes["g"], due["g"], where["g"])
                monitor.record("g", self.micro_batch, batch, stats["measured"])
        monitor.settle()
        return monitor

    def real(self) -> Iterator[Batch]:
        """The micro-batches of real images of an update."""
        for _ in range(self.rounds):
            x, y = self.real_batches.next()
            yield performance.lay_out(to_float(x), self.performance), y

    def real_of_g(self) -> Iterator[RealOfG | None]:
        """What the loss of G needs of further micro-batches of real images."""
        loss = self.config.loss
        if not (loss.generator_sees_real or loss.paired_labels):
            return itertools.repeat(None, self.rounds)
        return ((x if loss.generator_sees_real else None, y) for x, y in self.real())

    def latents(self, purpose: str, start: int) -> Iterator[Latents]:
        """The micro-batches of latents, labels and positions of an update that starts at position `start` of the stream."""
        b, g = self.micro_batch, self.G.network
        assert isinstance(g.dim_z, int) and isinstance(g.num_classes, int)
        for j in range(self.rounds):
            first = start + j * b
            z, y = draw(self.config.seed, purpose, first, b, g.dim_z, g.num_classes, self.device)
            yield z, y, torch.arange(first, first + b, device=self.device)


def measure_run(
    run: str | Path,
    average: str = LIVE,
    updates: int = 64,
    kimg: float | None = None,
    per_layer: bool = False,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Measure the noise scale of both players at a run's checkpoint and save it as JSON.

    Args:
        average: the average whose weights are measured.
        updates: number of gradients to measure, each of the run's batch.
        out: where the results are saved; None is RUN/evaluations/noise_scale-<nimg>.json, with a number appended if that exists.
        The rest as in `Bench`.

    Returns:
        The results as text.

    Raises:
        UserError: no such run, checkpoint or average; too few updates; several processes; gradients that are not finite.
    """
    if updates < FEWEST_MEASUREMENTS:
        raise UserError(f"--updates: must be at least {FEWEST_MEASUREMENTS}, which an interval needs, got {updates}")
    if updates > MOST_GRADIENTS:
        raise UserError(f"--updates: must be at most {MOST_GRADIENTS:,}, got {updates:,}; use a smaller number")
    if process_world() > 1:
        raise UserError("noise-scale: runs in one process; start it without `accelerate launch`")
    bench = look_again(lambda: Bench(run, average, kimg, overrides))
    target = target_of(out, Path(run) / "evaluations", f"noise_scale-{bench.path.name}")

    def bar(items: Iterable, total: int) -> Iterable:
        return tqdm(items, total=total, desc="noise scale", leave=False, disable=None)

    bench.prepare(make_accelerator(bench.config.mixed_precision), bar)
    monitor = bench.measure(updates, per_layer, bar)
    found = monitor.estimates()
    for player, one in found.items():
        if one.measurements < FEWEST_MEASUREMENTS:
            where = f"the gradients of {player.upper()} at {bench.nimg / 1000:g} kimg"
            raise UserError(f"{run}: {where} are not finite numbers; choose another checkpoint with --kimg")
    target = keep_result(target, record_of(bench, updates, found, monitor.by_layer()), out)
    whose = f"{average} weights of G" + (" and of D" if "d" in bench.averaged else ", live weights of D, which the run does not average")
    whose = "live weights" if average == LIVE else whose
    head = (
        f"{run} at {bench.nimg / 1000:g} kimg, {whose}: gradients of {updates} updates of {bench.micro_batch * bench.rounds} images"
        f" = {bench.rounds} x {bench.micro_batch}{''.join(f', {override}' for override in overrides)}; also in {target}"
    )
    advice = [advise(player.upper(), one, bench) for player, one in found.items()]
    if any(one.high is not None for one in found.values()):
        advice.append(
            "(B_simple takes twice the minimum of updates and images; smaller batches take more updates, larger ones more images."
            " G and D share one batch.)"
        )
    layers = [f"\n{layer_table(player.upper(), of)}" for player, of in monitor.by_layer().items()]
    return "\n".join([head, estimate_table(found, bench.batch_size), *advice, *layers])


def record_of(bench: Bench, updates: int, found: dict[str, Estimate], layers: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    """The results, for a JSON file."""

    def of(one: Estimate) -> dict[str, float]:
        return {key.removeprefix("/"): value for key, value in as_numbers("", one, bench.batch_size).items()}

    return {
        "nimg": bench.nimg,
        "average": bench.average,
        "d_is_averaged": "d" in bench.averaged,
        "overrides": bench.overrides,
        "updates": updates,
        "micro_batch": bench.micro_batch,
        "rounds": bench.rounds,
        "batch_size": bench.batch_size,
        "noise_scale": {player.upper(): of(one) for player, one in found.items()},
        **(
            {"layers": {player.upper(): {name: of(one) for name, one in each.items()} for player, each in layers.items()}} if layers else {}
        ),
    }


def estimate_table(found: dict[str, Estimate], batch_size: int) -> str:
    """A table with a row per player."""
    ratios = ["-" if one.b_simple is None else f"{one.b_simple / batch_size:.3g}" for one in found.values()]
    players = align(["", *(player.upper() for player in found)], least=4)
    ratio = align([f"in batches of {batch_size}", *ratios], right=True, least=24)
    return join_columns([players, *estimate_columns(list(found.values()), digits=5), ratio], gap="")


def layer_table(player: str, layers: dict[str, Estimate]) -> str:
    """A table with a row per layer, the noisiest first."""
    noisiest = dict(sorted(layers.items(), key=lambda item: -(item[1].b_simple or math.inf)))
    names = align([f"{player}, layer", *noisiest], least=max(map(len, layers)) + 3)
    return join_columns([names, *estimate_columns(list(noisiest.values()), digits=4)], gap="")


def estimate_columns(found: Sequence[Estimate], digits: int) -> list[list[str]]:
    """The columns that both tables share; tr Sigma has `digits` digits."""
    columns = [
        (12, "tr Sigma", [f"{one.trace:.{digits}g}" for one in found]),
        (12, "|G|^2", [f"{one.squared:.4g}" for one in found]),
        (10, "B_simple", [format_images(one.b_simple) for one in found]),
        (20, "95% interval", [interval(one) for one in found]),
    ]
    return [align([head, *cells], right=True, least=width) for width, head, cells in columns]


def format_images(value: float | None) -> str:
    """A batch size in images, as text."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def interval(one: Estimate) -> str:
    """The 95% interval of an estimate, as text."""
    if one.undecidable:
        return "undecidable"
    return f"at least {format_images(one.low)}" if one.unbounded else f"{format_images(one.low)} to {format_images(one.high)}"


def advise(player: str, one: Estimate, bench: Bench) -> str:
    """The batch that an estimate suggests, and the cost of the run's own batch.

    With B_simple as the critical batch, a batch B takes 1 + B_simple / B times the minimum of updates and 1 + B / B_simple times the
    minimum of images (McCandlish et al. 2018, Eq. 2.11).
    """
    if one.undecidable:
        images = bench.micro_batch * bench.rounds
        return f"{player}: no batch can be suggested, since gradients of {images} images give no interval; try more --updates"
    if one.unbounded:
        return (
            f"{player}: suggests a batch of at least {format_images(one.low)}; |G|^2 cannot be told from 0, so there is no upper end:"
            " try more --updates"
        )
    assert one.b_simple is not None and one.low is not None and one.high is not None
    step, now = bench.micro_batch, bench.batch_size
    rounded = [max(1, round(value / step)) * step for value in (one.b_simple, one.low, one.high)]
    between = f" (between {rounded[1]:,} and {rounded[2]:,})" if rounded[1] != rounded[2] else ""
    return (
        f"{player}: suggests a batch of {rounded[0]:,}{between};"
        f" the run's {now:,} takes {1 + one.b_simple / now:.3g} times the minimum of updates"
        f" and {1 + now / one.b_simple:.3g} times the minimum of images"
    )
