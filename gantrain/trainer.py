"""The trainer: maintenance first, then one update; one clock."""
from __future__ import annotations

import functools
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from gantrain import __version__, checkpoint, clock, loading, orbit_report, sampling
from gantrain.averaging import LIVE, AverageBank
from gantrain.averaging.average import write_buffers, write_weights
from gantrain.averaging.batchnorm import named_statistics, write_statistics
from gantrain.averaging.posthoc import compact
from gantrain.batching import BatchController, GradientProbe, NoiseMonitor
from gantrain.batching.noise_scale import as_numbers
from gantrain.config import Config, notes
from gantrain.data import RealBatches, audit, prepare
from gantrain.distributed import PRECISIONS, from_main, local_processes, main_first, make_accelerator, mean_of_processes, mean_over_processes
from gantrain.errors import UserError
from gantrain.evaluation import Evaluator, Scores, as_keys, table
from gantrain.images import to_float
from gantrain.plugins import one_line
from gantrain.recording import NothingYet, OrbitRecorder, as_motion, read_record
from gantrain.runfolder import locked, look_into, write_config
from gantrain.swapping import Swapper
from gantrain.tracking import Progress, Tracker, new_run_id
from gantrain.update import Batch, Player, discriminator_phase, generator_phase, load_optimizer_tensors, make_adam, optimizer_tensors, sees_real, set_lr


class Trainer:
    """A run: from its configuration to its last checkpoint. The same configuration and folder resume it.

    Args:
        config: the whole run.
        accelerator: of the program; None makes one.

    Raises:
        UserError: the folder holds another run, the data cannot be right, the batch does not divide over the processes.
    """

    def __init__(self, config: Config, accelerator: Accelerator | None = None):
        self.config = config
        self.accelerator = accelerator or make_accelerator(config.mixed_precision)
        if self.accelerator.mixed_precision != PRECISIONS[config.mixed_precision]:
            raise UserError(f"mixed_precision: the Accelerator of this program computes in {self.accelerator.mixed_precision!r}, not in {config.mixed_precision}")
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.run_dir = Path(config.run_dir).expanduser()
        self.tracker = Tracker(self.run_dir, self.main)
        self.changes = from_main(self.accelerator, look_into(self.run_dir, config) if self.main else None)
        set_performance(config)
        self.images = main_first(self.accelerator, functools.partial(prepare, config.data, self.device, local_processes(), self.bar))
        self.tracker.say(f"data: {audit(self.images)}")
        self.nimg, self.previous_nimg = 0, -1  # -1: before the first image, so that everything periodic is done once at 0
        self.updates = 0
        self.G, self.D, self.averaged = self.build_players()
        self.players = {"g": self.G, "d": self.D}
        world, agree = self.accelerator.num_processes, functools.partial(from_main, self.accelerator)
        self.probes = {key: GradientProbe(self.players[key].network, config.noise_scale.per_layer, world) for key in ("d", "g")}
        self.noise = NoiseMonitor(config.noise_scale, {key: probe.layers for key, probe in self.probes.items()}, mean_of_processes(self.accelerator))
        self.batching = BatchController(config.batching, world, self.noise, agree)
        self.banks = {key: AverageBank(player.network, config.followed(key)) for key, player in self.players.items()}
        self.bank = self.banks["g"]  # the averages that are scored and drawn
        self.evaluator = Evaluator(config, self.images, self.accelerator)
        self.swapper = Swapper(
            config.swap, self.players, self.banks, self.batching, self.score_live, self.evaluator.protocol,
            self.settle_batchnorm, self.record_orbit, agree, self.tracker,
        )  # fmt: skip
        self.orbit = OrbitRecorder(config.orbit, self.banks, self.run_dir, self.main)
        self.store = checkpoint.CheckpointStore(self.run_dir / "checkpoints", config.checkpoint.keep_last, self.tracker.say)
        self.snapshots = checkpoint.CheckpointStore(self.run_dir / sampling.AVERAGES_FOLDER, None, self.tracker.say)
        self.stats: dict[str, Tensor] = {}
        self.stats_count = 0
        self.scores: Scores = {}
        self.scored = 0  # samples behind them
        self.scored_at = -1  # images seen then
        self.lock: IO[str] | None = None
        self.wandb_id = new_run_id()
        self.notes = notes(config)  # what a person should know, said once at the start
        self.notes += self.batching.notes
        b = self.batching.micro_batch
        if getattr(config.batching, "grows", True) and not self.batching.can_grow:
            self.notes.append(f"batching.max_batch={self.batching.highest:g} leaves no room for another round of {b} images x {world}: the batch will not grow")
        if self.measures_halves() and b % 2:
            raise UserError(f"noise_scale.measure_every: one round of {b} images on one process has no halves to compare; give an even micro_batch, or two rounds")

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> Scores:
        """Train to the end; the last scores (on the main process). Whatever is due is done before the next update."""
        c, total = self.config, clock.images(self.config.total_kimg)
        self.start()
        while True:
            done = self.nimg >= total and self.previous_nimg < self.nimg
            if self.due(c.tracking.every_kimg) or self.due(c.checkpoint.every_kimg) or done:
                self.log()
            with self.progress.paused():
                if self.due(c.orbit.every_kimg) or self.due(c.eval.every_kimg) or done:
                    self.record_orbit()
                if self.due(c.eval.every_kimg) or done:
                    self.evaluate()
                if self.due(c.tracking.samples_every_kimg) or done:
                    self.draw_samples()
                self.keep_snapshots(done)
                self.swapper.maintain(self.previous_nimg, self.nimg, done, more=self.nimg < total)
                if self.due(c.checkpoint.every_kimg) or done:
                    self.save()
            if self.nimg >= total:
                break
            self.update()
        self.end()
        return self.scores

    def due(self, every_kimg: float | None) -> bool:
        return clock.due(every_kimg, self.previous_nimg, self.nimg)

    def update(self) -> None:
        """The batch grows if it shall; D phases on fresh data, one G phase, then the averages."""
        c, loss = self.config, self.config.loss
        grown = self.batching.ask(self.nimg)
        if grown:
            self.tracker.say(f"growth at {self.nimg / 1000:g} kimg: {self.tracker.growth(self.nimg, grown)}")
        self.noise.begin(self.updates)
        k, after = self.batching.rounds, self.nimg + self.batching.batch_size
        multiplier = c.optim.lr_tail.multiplier(self.nimg, after) * self.swapper.lr_scale * self.batching.lr_scale
        set_lr(self.G.optimizer, c.optim.lr_g * multiplier)
        set_lr(self.D.optimizer, c.optim.lr_d * multiplier)
        kept: list[Batch] = []  # the last D phase's real images, where the loss of G looks at real ones
        for s in range(c.optim.d_steps):
            kept.clear()
            penalties = self.penalties(self.updates * c.optim.d_steps + s)
            lazy = any(factor > 1 for _, factor in penalties)  # part of this step only: no part of the noise that steps have
            rounds = zip(self.real(k, kept), self.latents(f"d{s}", k))
            self.add_stats(discriminator_phase(self.G, self.D, loss, rounds, k, None if lazy else self.probe("d"), penalties), "d")
        rounds = zip(map(self.as_input, kept) if kept else [None] * k, self.latents("g", k))
        self.add_stats(generator_phase(self.G, self.D, loss, rounds, k, self.probe("g")), "g")
        self.stats_count += 1
        self.updates += 1
        self.previous_nimg, self.nimg = self.nimg, after
        for bank in self.banks.values():
            bank.update(self.nimg)

    def penalties(self, d_step: int) -> list[tuple[Any, float]]:
        """What is added to the loss of D at this of its steps, with its factor: a lazy penalty counts for the steps without."""
        due = [(penalty, getattr(penalty, "every", 1)) for penalty in self.config.penalties.values()]
        return [(penalty, float(every)) for penalty, every in due if d_step % every == 0]

    def measures_halves(self) -> bool:
        """Whether updates as they are now have but one micro-batch and are to be measured."""
        return self.config.noise_scale.measure_every is not None and self.probes["d"].halves(self.batching.rounds)

    def probe(self, player: str) -> GradientProbe | None:
        """The player's probe, if its next gradients are to be measured."""
        return self.probes[player] if player in self.noise.wanted else None

    def real(self, k: int, kept: list[Batch]) -> Iterator[Batch]:
        """This process's k real micro-batches of the next D phase; also put, as bytes, into `kept` if the loss of G wants them."""
        for _ in range(k):
            batch = self.real_batches.next()
            if sees_real(self.config.loss):
                kept.append(batch)
            yield self.as_input(batch)

    def as_input(self, batch: Batch) -> Batch:
        """Images and labels as the networks take them."""
        x, y = to_float(batch[0]), batch[1]
        return x.contiguous(memory_format=torch.channels_last) if self.config.performance.channels_last else x, y

    def latents(self, purpose: str, k: int) -> Iterator[Batch]:
        """This process's k micro-batches of latents and labels, by position in the image stream."""
        g, b, world, rank = self.G.network, self.batching.micro_batch, self.accelerator.num_processes, self.accelerator.process_index
        for j in range(k):
            start = self.nimg + (j * world + rank) * b
            yield sampling.draw(self.config.seed, purpose, start, b, g.dim_z, g.num_classes, self.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(resolution, channels, classes) that the networks are built for."""
        return self.images.resolution, self.images.channels, self.images.num_classes

    # ---- building ----------------------------------------------------------------------------------------------------

    def build_players(self) -> tuple[Player, Player, nn.Module]:
        """(G, D, a generator apart for averages), the same on every process."""
        c = self.config
        shape = self.shape
        torch.manual_seed(c.seed)
        generator, discriminator = c.model.build(*shape)
        with torch.random.fork_rng(devices=[]):
            averaged, _ = c.model.build(*shape)
        layout = torch.channels_last if c.performance.channels_last else torch.contiguous_format
        for network in (generator, discriminator, averaged):
            network.to(self.device, memory_format=layout)
        if c.performance.compile:
            generator.compile()
            discriminator.compile()
        g = self.player(generator, c.optim.lr_g, c.optim.orthogonal_g)
        d = self.player(discriminator, c.optim.lr_d, c.optim.orthogonal_d)
        return g, d, averaged.requires_grad_(False)

    def player(self, network: nn.Module, lr: float, orthogonal: float) -> Player:
        """A network with its optimizer, scaler and wrapper."""
        wrapped = self.accelerator.prepare_model(network)
        return Player(
            network=network,
            wrapped=wrapped,
            optimizer=make_adam(network, lr, self.config.optim.betas, self.config.optim.eps),
            scaler=torch.amp.GradScaler(self.device.type, enabled=self.config.mixed_precision == "fp16"),
            orthogonal=orthogonal,
            exempt=set(getattr(network, "exempt_from_orthogonal", ())),
            no_sync=functools.partial(self.accelerator.no_sync, wrapped),
        )

    def start(self) -> None:
        """Take up the newest whole checkpoint if there is one, and open the record."""
        if self.main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.lock = locked(self.run_dir)
        self.evaluator.extractor  # noqa: B018 - weights that cannot be had are missed now and not after the training
        path = from_main(self.accelerator, self.store.newest() if self.main else None)
        state = self.load(path) if path else {}
        if self.measures_halves():
            half = self.batching.micro_batch // 2
            self.notes.append(f"noise_scale: there is one micro-batch an update, so a measured update goes in two of {half} images, which is what BatchNorm sees then")
        if self.main:
            self.store.clear_drafts()
            self.snapshots.clear_drafts()
            self.snapshots.forget_after(self.nimg)
            sampling.forget_rebuilt_after(self.run_dir, self.nimg)
        if self.main:
            write_config(self.config, self.run_dir)
        self.tracker.open(state.get("metrics_bytes", 0))
        self.orbit.open(state.get("orbit"))
        position = self.nimg * self.config.optim.d_steps
        self.real_batches = RealBatches(
            self.images, self.config.seed, self.batching.micro_batch, self.accelerator.process_index, self.accelerator.num_processes,
            position, self.device, getattr(self.config.data, "flip", False), getattr(self.config.data, "workers", 4),
        )  # fmt: skip
        self.tracker.event(self.nimg, "resume" if path else "start", **self.facts(), **({"changed": self.changes} if self.changes else {}), **({"notes": self.notes} if self.notes else {}))
        self.tracker.say(self.headline(path))
        for note in self.notes:
            self.tracker.say(f"note: {note}")
        self.tracker.start_wandb(self.config.tracking.wandb, self.wandb_id, {**loading.to_dict(self.config), **self.facts()})
        self.progress = Progress(clock.images(self.config.total_kimg), self.nimg)

    def facts(self) -> dict[str, Any]:
        """What a reader of the record needs to know of this program and machine."""
        count = lambda network: sum(p.numel() for p in network.parameters())  # noqa: E731
        return {
            "gantrain": __version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type,
            "processes": self.accelerator.num_processes,
            "micro_batch": self.batching.micro_batch,
            "parameters": {"g": count(self.G.network), "d": count(self.D.network)},
            "data_fingerprint": self.images.fingerprint,
        }

    def headline(self, path: Path | None) -> str:
        f, b = self.facts(), self.batching
        return (
            f"run: {self.run_dir}, {'resumed at' if path else 'from'} {self.nimg / 1000:g} of {self.config.total_kimg:g} kimg;"
            f" G {f['parameters']['g']:,} and D {f['parameters']['d']:,} parameters; batch {b.batch_size} = {b.micro_batch} images"
            f" x {f['processes']} process{'es' if f['processes'] > 1 else ''} x {b.rounds} round{'s' if b.rounds > 1 else ''};"
            f" {f['device']}, {self.config.mixed_precision}; averages: {', '.join(self.bank) or 'none'}"
        )

    # ---- maintenance -------------------------------------------------------------------------------------------------

    def add_stats(self, stats: dict[str, Tensor], player: str) -> None:
        """Sum statistics where they are, on the device: no sync until a line is due."""
        measured = stats.pop("measured", None)
        if measured is not None:
            halved = 2 if self.probes[player].halves(self.batching.rounds) else 1
            self.noise.record(player, self.batching.micro_batch // halved, self.batching.batch_size, measured)
        for name, value in stats.items():
            self.stats[name] = self.stats[name] + value if name in self.stats else value

    def log(self) -> None:
        """A line for the console and the record: means since the last one."""
        if not self.stats_count:
            return
        names = sorted(self.stats)
        steps = torch.tensor([self.config.optim.d_steps if n in ("loss/d", "loss/penalty", "logits/real", "logits/fake", "grad_norm/d") else 1 for n in names])
        sums = torch.stack([self.stats[n] for n in names]).float()
        means = self.accelerator.reduce(sums, reduction="mean").cpu() / (steps * self.stats_count)
        values = dict(zip(names, means.tolist()))
        values |= {**self.batching.numbers(), "updates": self.updates, "memory/gib": memory_gib(self.device)}
        values |= self.noise_scale()
        values |= {"lr/g": self.G.optimizer.param_groups[0]["lr"], "lr/d": self.D.optimizer.param_groups[0]["lr"]}
        self.orbit.flush()
        values |= self.orbit.latest
        values["reals_seen"] = self.nimg * self.config.optim.d_steps
        line, rate = self.progress.line(self.nimg, values)
        self.tracker.say(line)
        self.tracker.log(self.nimg, {**values, "throughput/img_per_s": rate})
        self.stats, self.stats_count = {}, 0

    def noise_scale(self) -> dict[str, float]:
        """The noise scale of both players as it stands, for a line of the record."""
        self.noise.settle()
        values: dict[str, float] = {}
        for player, one in self.noise.estimates().items():
            if one.measurements:
                values |= as_numbers(f"noise_scale/{player.upper()}", one, self.batching.batch_size)
        for player, layers in self.noise.by_layer().items():
            for name, one in layers.items():
                if one.measurements:
                    values |= as_numbers(f"noise_scale/{player.upper()}/{name}", one)
        return values

    def evaluate(self) -> None:
        """Score the live weights and every average that has begun."""
        self.unify_statistics()
        names = [LIVE, *self.bank.started()]
        self.tracker.say(f"scoring {', '.join(names)} at {self.nimg / 1000:g} kimg ({self.config.eval.num_samples} samples each)")
        self.scores = self.evaluator.score(names, self.bank.materialize, self.averaged)
        self.scored, self.scored_at = self.config.eval.num_samples, self.nimg
        if self.main:
            self.tracker.log(self.nimg, {**as_keys(self.scores), **self.evaluator.protocol()})
            if self.nimg < clock.images(self.config.total_kimg):  # the last table is the end's
                self.tracker.say(table(self.scores))
            self.show_orbit()

    def score_live(self) -> dict[str, float]:
        """The live weights' scores as they are now, beside a swap; empty but on the main process."""
        if self.scored_at != self.nimg:
            self.unify_statistics()
            return self.evaluator.score([LIVE], self.bank.materialize, self.averaged)[LIVE]
        self.scored_at = -1  # whoever asks again at this moment has changed the weights
        return self.scores[LIVE]

    def settle_batchnorm(self) -> None:
        """Measure G's BatchNorm statistics anew, after its weights were replaced.

        On the generator apart: the one in training may be compiled, and compiled code calls no hooks. D's statistics, where
        it has any, are read by nothing: in training BatchNorm goes by the batch.
        """
        with self.evaluator.apart():
            self.bank.materialize(LIVE, self.averaged)
            self.evaluator.recalibrate(self.averaged)
        write_statistics(named_statistics(self.averaged), self.G.network)

    def draw_samples(self) -> None:
        """A picture: the same z through the live weights and every average, side by side."""
        self.unify_statistics()
        t = self.config.tracking
        sheets = []
        with self.evaluator.apart():
            z, y, columns = sampling.class_sheet_inputs(self.config.seed, self.averaged.dim_z, self.averaged.num_classes, t.sample_rows, t.sample_classes)
            for name in [LIVE, *self.bank.started()]:
                self.bank.materialize(name, self.averaged, self.config.eval.batchnorm == "average")
                self.evaluator.fit_batchnorm(self.averaged)
                if self.main:
                    images = sampling.generate(self.averaged, z.to(self.device), y.to(self.device), self.config.eval.batch_size)
                    sheets.append((f"{name} at {self.nimg / 1000:g} kimg", sampling.grid(images, columns)))
        if self.main:
            path = self.run_dir / "samples" / f"{self.nimg:012d}.png"
            path.parent.mkdir(exist_ok=True)
            sampling.side_by_side(sheets).save(path)
            self.tracker.image(self.nimg, "samples", path, ", ".join(caption for caption, _ in sheets))

    def save(self) -> None:
        """Write a checkpoint of everything that the run goes on from."""
        self.unify_statistics()
        self.noise.settle()
        if self.main:
            self.tracker.event(self.nimg, "checkpoint", path=f"checkpoints/{self.nimg:012d}")
            self.store.save(self.nimg, self.tensors(), self.state())
        self.accelerator.wait_for_everyone()

    def keep_snapshots(self, done: bool) -> None:
        """Keep compact copies of the averages that others shall be rebuilt from, where one is due; at the end of all."""
        every = {name: getattr(average.averager, "snapshot_every_kimg", None) for name, average in self.bank.averages.items()}
        rebuilds = {name for name, average in self.bank.averages.items() if hasattr(average.averager, "exponent")}
        names = [name for name in rebuilds & every.keys() if every[name] is not None and (self.due(every[name]) or done) and self.bank[name].started]
        if not names:
            return
        self.unify_statistics()
        if self.main:
            tensors = self.bank.tensors()
            groups = {sampling.group_of(name): compact(tensors[name]) for name in sorted(names)}
            groups["buffers"] = dict(self.G.network.named_buffers())
            self.snapshots.save(self.nimg, groups, {"gammas": {name: self.bank[name].averager.exponent for name in sorted(names)}, "shape": list(self.shape)})

    def record_orbit(self, swapped: bool = False) -> None:
        """Take down where the weights and all averages are."""
        lr = {key: player.optimizer.param_groups[0]["lr"] for key, player in self.players.items()}
        self.orbit.record(self.nimg, {"batch_size": self.batching.batch_size, "lr": lr}, swapped)

    def show_orbit(self) -> None:
        """Draw the motion recorded so far and say what it is; of a stretch that is too short yet there is nothing to say."""
        if not self.orbit.on:
            return
        self.orbit.flush()
        profiles = {key: {name: bank.weight_profile(name) for name in bank.started()} for key, bank in self.banks.items()}
        try:
            lines = read_record(self.run_dir)
            found = [orbit_report.analyse(self.run_dir, self.config, key, as_motion(lines, key), profiles[key]) for key in self.players]
            path = orbit_report.picture_path(self.run_dir, found)
            orbit_report.keep(found, path, self.run_dir.name)
        except NothingYet:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, a picture that cannot be had is no reason to stop training
            return self.tracker.say(f"orbit: no picture ({one_line(error)}); `gantrain orbit {self.run_dir}` tries again")
        words = [orbit_report.headline(one) for one in found]
        self.tracker.image(self.nimg, "orbit", path, "; ".join(words))
        for line in words:
            self.tracker.say(f"orbit: {line}")

    def unify_statistics(self) -> None:
        """Replace BatchNorm's running statistics, which each process keeps of its own micro-batches, by their mean."""
        live = [named_statistics(player.network).values() for player in self.players.values()]
        averaged = [bank.statistics() for bank in self.banks.values()]
        mean_over_processes([tensor for tensors in (*live, *averaged) for tensor in tensors], self.accelerator)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds, by group."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, player in self.players.items():
            groups[key] = player.network.state_dict()
            groups[f"optimizer_{key}"] = optimizer_tensors(player.optimizer, player.network)
            groups |= {sampling.group_of(name, key): shadows for name, shadows in self.banks[key].tensors().items()}
            groups |= {sampling.group_of(name, key, slots=True): held for name, held in self.banks[key].slot_tensors().items()}
        return groups

    def state(self) -> dict[str, Any]:
        return {
            "gantrain": __version__,
            "shape": list(self.shape),
            "averages": self.banks["g"].state(),
            "averages_d": self.banks["d"].state(),
            "updates": self.updates,
            "batching": self.batching.state(),
            "swaps": self.swapper.state(),
            "scalers": {"g": self.G.scaler.state_dict(), "d": self.D.scaler.state_dict()},
            "metrics_bytes": self.tracker.position(),
            "orbit": self.orbit.state(),
            "wandb_id": self.wandb_id,
            "data_fingerprint": self.images.fingerprint,
            "data_listing": self.images.listing,
            "scored": self.scored,
            "scores": [[name, list(row.items())] for name, row in self.scores.items()],
        }

    def load(self, path: Path) -> dict[str, Any]:
        """Put everything back from a checkpoint; its state."""
        snapshot = checkpoint.read(path)
        state = snapshot.state
        if state["data_listing"] != self.images.listing:
            raise UserError(f"data: {self.images.name} is not what {self.run_dir} was trained on (other images or labels); use another run_dir")
        if state["data_fingerprint"] != self.images.fingerprint:  # a broken file replaced, say
            self.notes.append(f"the content of {self.images.name} has changed since {path.name}; its names and labels have not")
        seen = state["batching"]["micro_batch"]
        if seen != self.batching.micro_batch:
            self.notes.append(f"BatchNorm saw {seen} images at a time and sees {self.batching.micro_batch} from here on; batching.micro_batch={seen} keeps it")
        for group, player in self.players.items():
            parameters = {name for name, _ in player.network.named_parameters()}
            write_weights({k: v for k, v in snapshot.tensors[group].items() if k in parameters}, player.network)
            write_buffers(((k, v) for k, v in snapshot.tensors[group].items() if k not in parameters), player.network)
            load_optimizer_tensors(player.optimizer, player.network, snapshot.tensors[f"optimizer_{group}"])
            if state["scalers"][group]:
                player.scaler.load_state_dict(state["scalers"][group])
        for (key, bank), saved in zip(self.banks.items(), (state["averages"], state["averages_d"])):
            shadows, slots = ({name: snapshot.tensors.get(sampling.group_of(name, key, slots=s), {}) for name in saved} for s in (False, True))
            bank.load(shadows, saved, slots)
        self.updates = state["updates"]
        self.batching.load(state["batching"])
        self.swapper.load(state["swaps"])
        self.wandb_id, self.scored, self.scores = state["wandb_id"], state["scored"], {name: dict(row) for name, row in state["scores"]}
        self.nimg = self.previous_nimg = snapshot.nimg
        if self.nimg > clock.images(self.config.total_kimg):
            self.notes.append(f"the run is past total_kimg={self.config.total_kimg:g} already; it stays as it is")
        return state

    def end(self) -> None:
        """Close the record with the final table."""
        self.tracker.event(self.nimg, "end")
        self.tracker.summary({f"final/{key.removeprefix('eval/')}": value for key, value in as_keys(self.scores).items()})
        if self.main and self.scores:
            picture = self.run_dir / "samples" / f"{self.nimg:012d}.png"
            if self.swapper.records:
                self.tracker.say(f"\nlive weights at the swaps:\n{self.swapper.report()}")
            self.tracker.say(f"\ndone: {self.run_dir} at {self.nimg / 1000:g} kimg; samples in {picture}; scores of {self.scored} samples:\n{table(self.scores)}")
        self.close()

    def close(self, exit_code: int = 0) -> None:
        """Let go of the record and of the run folder; also after an exception."""
        self.tracker.close(exit_code)
        if self.lock:
            self.lock.close()
            self.lock = None

    def bar(self, items, total: int):
        """A progress bar for long preparations, on a terminal only."""
        return tqdm(items, total=total, desc="data", leave=False, disable=None if self.main else True)


def set_performance(config: Config) -> None:
    """Global switches of torch that belong to speed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.performance.tf32
    torch.backends.cudnn.benchmark = True


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
