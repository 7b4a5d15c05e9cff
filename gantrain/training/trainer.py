"""The trainer: maintenance first, then one update; one clock."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from gantrain import clock, performance
from gantrain.averaging import LIVE, AverageBank
from gantrain.averaging.average import write_buffers, write_weights
from gantrain.averaging.batchnorm import named_statistics, write_statistics
from gantrain.averaging.posthoc import compact
from gantrain.batching import BatchController, GradientProbe, NoiseMonitor
from gantrain.batching.noise_scale import as_numbers
from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.config.notes import notes
from gantrain.data import RealBatches, audit, prepare
from gantrain.distributed import (
    PRECISIONS,
    from_main,
    local_processes,
    main_first,
    make_accelerator,
    mean_of_processes,
    mean_over_processes,
)
from gantrain.errors import OF_THE_MACHINE, GaveUp, UserError, one_line
from gantrain.evaluation.evaluator import Evaluator, Interrupted
from gantrain.images import to_float
from gantrain.interruption import Interruption
from gantrain.models.layers import singular_values
from gantrain.orbit.analysis import analyse
from gantrain.orbit.motion import TooFewRecordings, build_motion, read_record
from gantrain.orbit.picture import picture_path, save_analyses
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.orbit.words import summarise
from gantrain.reporting.console import Progress
from gantrain.reporting.score_table import table
from gantrain.reporting.tracker import Tracker
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import group_of
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.layout import BEST_FOLDER
from gantrain.run_folder.ownership import locked, look_into, read_rollback, write_config, write_rollback
from gantrain.run_folder.provenance import new_run_id, utc_now, versions
from gantrain.sampling.generators import generate
from gantrain.sampling.latents import draw, draw_class_sheet
from gantrain.sampling.sheets import Sheet, make_grid, save_side_by_side
from gantrain.score_names import Scores, as_keys
from gantrain.training.guard import Pulse, Trouble, Watch
from gantrain.training.inputs import SHOWN
from gantrain.training.keeper import Keeper
from gantrain.training.measurements import memory_gib
from gantrain.training.players import Player, load_optimizer_tensors, make_adam, optimizer_tensors, set_lr
from gantrain.training.swapper import Swapper
from gantrain.training.update import Batch, discriminator_phase, generator_phase, sees_real
from gantrain.version import __version__


class Trainer:
    """A run: from its configuration to its last checkpoint. The same configuration and folder resume it.

    Args:
        config: the whole run.
        accelerator: of the program; None makes one.
        interruption: tells when the process is asked to stop; None listens for signals while `train` runs.

    Attributes:
        stopping: the signal that has ended `train`, or None.

    Raises:
        UserError: the folder holds another run, the data cannot be right, the batch does not divide over the processes.
    """

    def __init__(self, config: Config, accelerator: Accelerator | None = None, interruption: Interruption | None = None):
        self.config = config
        self.interruption = interruption or Interruption()
        self.stopping: signal.Signals | None = None
        self.accelerator = accelerator or make_accelerator(config.mixed_precision)
        if self.accelerator.mixed_precision != PRECISIONS[config.mixed_precision]:
            raise UserError(
                f"mixed_precision: the Accelerator of this program computes in {self.accelerator.mixed_precision!r}, not in {config.mixed_precision}"
            )
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        if config.sync_batchnorm and self.device.type == "cpu" and self.accelerator.num_processes > 1:
            raise UserError(
                "sync_batchnorm: torch synchronises BatchNorm on GPUs only; set sync_batchnorm=false, or a larger batching.micro_batch"
            )
        self.run_dir = Path(config.run_dir).expanduser()
        self.tracker = Tracker(self.run_dir, self.main, persistent=config.checkpoint.on_error == "continue")
        self.changes = from_main(self.accelerator, look_into(self.run_dir, config) if self.main else None)
        self.performance = performance.picked(config.performance, self.device)
        performance.set_up(self.performance, self.device)
        self.images = main_first(self.accelerator, functools.partial(prepare, config.data, self.device, local_processes(), self.bar))
        self.tracker.say(f"data: {audit(self.images)}")
        self.nimg, self.previous_nimg = 0, -1  # -1: before the first image, so that everything periodic is done once at 0
        self.updates = 0
        self.G, self.D, self.averaged = self.build_players()
        self.players = {"g": self.G, "d": self.D}
        world, agree = self.accelerator.num_processes, functools.partial(from_main, self.accelerator)
        self.probes = {key: GradientProbe(self.players[key].network, config.noise_scale.per_layer, world) for key in ("d", "g")}
        self.noise = NoiseMonitor(
            config.noise_scale, {key: probe.layers for key, probe in self.probes.items()}, mean_of_processes(self.accelerator)
        )
        c = config.checkpoint
        self.keeper = Keeper(self.run_dir, c, config.best_scores(), self.tracker)
        self.batching = BatchController(config.batching, world, self.noise, agree, resumes=agree(bool(self.keeper.checkpoints.paths())))
        self.banks = {key: AverageBank(player.network, config.followed(key)) for key, player in self.players.items()}
        self.bank = self.banks["g"]  # the averages that are scored and drawn
        self.evaluator = Evaluator(config, self.images, self.accelerator)
        self.swapper = Swapper(
            config.swap, self.players, self.banks, self.batching, self.score_live, self.evaluator.protocol,
            self.settle_batchnorm, self.record_orbit, agree, self.tracker,
        )  # fmt: skip
        self.orbit = OrbitRecorder(config.orbit, self.banks, self.run_dir, self.main, persistent=c.on_error == "continue")
        self.pulse = Pulse(self.accelerator)
        self.weights = {key: [p.detach() for p in player.network.parameters()] for key, player in self.players.items()}
        nothing = torch.zeros(1)
        self.watch = Watch(
            config.guard, tuple(dict.fromkeys([*config.best_scores(), *([config.guard.score] if config.guard.score else [])])),
            fp16=config.mixed_precision == "fp16", silence=float(config.loss.discriminator(nothing, nothing)),
        )  # fmt: skip
        self.improved: list[str] = []  # scores whose best checkpoint is this one, once it is written
        self.saved_at = -1  # images seen at the checkpoint that there is of now
        self.logged_at = 0
        self.unreadable: set[str] = set()
        self.real_batches: RealBatches | None = None
        self.stats: dict[str, Tensor] = {}
        self.stats_count = 0
        self.data_wait = 0.0  # seconds since the last line that updates stood still for their real images
        self.scores: Scores = {}
        self.scored = 0  # samples behind them
        self.scored_at = -1  # images seen then
        self.scores_of = -1  # the same, which a swap at that moment does not unsay
        self.to_score = False  # whether the next checkpoint is to be scored in the background
        self.scoring: int | None = None  # images seen at the checkpoint that is being scored in the background
        self.lock: IO[str] | None = None
        self.wandb_id = new_run_id()
        self.notes = notes(config)  # what a person should know, said once at the start
        if not self.batching.resumes:
            self.look_at_batch()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> Scores:
        """Train to the end, or until asked to stop; the last scores (on the main process).

        Raises:
            GaveUp: the training went wrong, and the guard is not to, or could not, save it.
        """
        with self.interruption:
            self.start()
            self.interruption.patient = True
            while True:
                try:
                    self.listen()
                    if self.stopping:
                        return self.stop()
                    done = self.maintain()
                except Trouble as trouble:
                    self.recover(trouble)
                except Interrupted:
                    return self.stop()
                else:
                    if done:
                        return self.end()
                    self.update()

    def maintain(self) -> bool:
        """Do whatever is due before the next update; whether there is none."""
        c, total = self.config, clock.images(self.config.total_kimg)
        done = self.nimg >= total and self.previous_nimg < self.nimg
        if self.due(c.tracking.every_kimg) or self.due(c.checkpoint.every_kimg) or done:
            self.log()
        with self.progress.paused():
            if self.due(c.orbit.every_kimg) or self.due(c.eval.every_kimg) or done:
                self.record_orbit()
            if self.due(c.eval.every_kimg) or done:
                self.evaluate()
            if self.due(c.tracking.samples_every_kimg) or done:
                with self.dispensable("samples"):
                    self.draw_samples()
            self.keep_snapshots(done)
            self.swapper.maintain(self.previous_nimg, self.nimg, done, more=self.nimg < total)
            if self.due(c.checkpoint.every_kimg) or done or self.improved or self.to_score:
                self.save()
        return self.nimg >= total

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
        multiplier = c.optim.lr_tail.multiplier(self.nimg, after) * self.swapper.lr_scale * self.batching.lr_scale * self.watch.lr_scale
        set_lr(self.G.optimizer, c.optim.lr_g * multiplier)
        set_lr(self.D.optimizer, c.optim.lr_d * multiplier)
        seen: dict[str, Tensor] = {}  # what the guard looks at
        kept: list[Batch] = []  # the last D phase's real images, where the loss of G looks at real ones
        for s in range(c.optim.d_steps):
            kept.clear()
            penalties = self.penalties(self.updates * c.optim.d_steps + s)
            lazy = any(factor > 1 for _, factor in penalties)  # part of this step only: no part of the noise that steps have
            rounds = zip(self.real(k, kept), self.latents(f"d{s}", k))
            self.add_stats(discriminator_phase(self.G, self.D, loss, rounds, k, None if lazy else self.probe("d"), penalties), "d", seen)
        rounds = zip(map(self.as_input, kept) if kept else [None] * k, self.latents("g", k))
        self.add_stats(generator_phase(self.G, self.D, loss, rounds, k, self.probe("g")), "g", seen)
        self.stats_count += 1
        self.updates += 1
        self.previous_nimg, self.nimg = self.nimg, after
        for bank in self.banks.values():
            bank.update(self.nimg)
        seen |= {f"weights/{key}": nn.utils.get_total_norm(weights) for key, weights in self.weights.items()}
        self.pulse.send(self.previous_nimg, self.nimg, seen, self.interruption.asked)

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
            began = time.perf_counter()
            batch = self.real_batches.next()
            self.data_wait += time.perf_counter() - began
            if sees_real(self.config.loss):
                kept.append(batch)
            yield self.as_input(batch)

    def as_input(self, batch: Batch) -> Batch:
        """Images and labels as the networks take them."""
        x, y = to_float(batch[0]), batch[1]
        return performance.laid_out(x, self.performance), y

    def latents(self, purpose: str, k: int) -> Iterator[Batch]:
        """This process's k micro-batches of latents and labels, by position in the image stream."""
        g, b, world, rank = self.G.network, self.batching.micro_batch, self.accelerator.num_processes, self.accelerator.process_index
        for j in range(k):
            start = self.nimg + self.watch.skipped + (j * world + rank) * b
            yield draw(self.config.seed, purpose, start, b, g.dim_z, g.num_classes, self.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(resolution, channels, classes) that the networks are built for."""
        return self.images.resolution, self.images.channels, self.images.num_classes

    def look_at_batch(self) -> None:
        """Note what a person should know of the batch as it is on these processes.

        Raises:
            UserError: it cannot be measured.
        """
        self.notes += self.batching.notes
        b, world = self.batching.micro_batch, self.accelerator.num_processes
        if self.config.sync_batchnorm and world == 1:
            self.notes.append("sync_batchnorm: there is one process, whose micro-batches are all that BatchNorm can see")
        if getattr(self.config.batching, "grows", True) and not self.batching.can_grow:
            self.notes.append(
                f"batching.max_batch={self.batching.highest:g} leaves no room for another round of {b} images x {world}: the batch will not grow"
            )
        if self.measures_halves() and b % 2:
            raise UserError(
                f"noise_scale.measure_every: one round of {b} images on one process has no halves to compare; give an even micro_batch, or two rounds"
            )

    # ---- building ----------------------------------------------------------------------------------------------------

    def build_players(self) -> tuple[Player, Player, nn.Module]:
        """(G, D, a generator apart for averages), the same on every process."""
        c = self.config
        shape = self.shape
        torch.manual_seed(c.seed)
        generator, discriminator = c.model.build(*shape)
        with torch.random.fork_rng(devices=[]):
            averaged, _ = c.model.build(*shape)
        if c.sync_batchnorm:
            generator, discriminator = map(nn.SyncBatchNorm.convert_sync_batchnorm, (generator, discriminator))
        for network in (generator, discriminator, averaged):
            performance.place(network, self.performance, self.device)
        if self.performance.compile:
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
        rollback, path = from_main(self.accelerator, self.find() if self.main else None)
        state = self.load(path) if path else {}
        if path and rollback and rollback["guard"]["rollbacks"] > self.watch.rollbacks:  # the checkpoint is from before it
            self.watch.count(rollback["guard"])
            if rollback["to"] == self.nimg:
                self.batching.load(rollback["batching"])
                state["metrics_bytes"] = rollback["metrics_bytes"]
        if self.batching.resumes:
            if not path:  # every one was of a path that was rolled back from
                self.batching.load(self.batching.state())
            self.look_at_batch()
        if self.measures_halves():
            half = self.batching.micro_batch // 2
            self.notes.append(
                f"noise_scale: there is one micro-batch an update, so a measured update goes in two of {half} images, which is what BatchNorm sees then"
            )
        if self.main:
            self.keeper.scoring.clear(but=self.scoring)
            self.keeper.tidy(self.nimg, path, {name: one.nimg for name, one in self.watch.best.items()})
            write_config(self.config, self.run_dir)
        self.tracker.open(state.get("metrics_bytes", 0))
        self.orbit.open(state.get("orbit"))
        self.open_stream()
        self.tracker.event(
            self.nimg,
            "resume" if path else "start",
            time=utc_now(),
            **self.facts(),
            **({"changed": self.changes} if self.changes else {}),
            **({"notes": self.notes} if self.notes else {}),
        )
        self.tracker.say(self.headline(path))
        self.tracker.say(f"performance: {performance.described(self.performance, self.config.performance, self.device)}")
        for note in self.notes:
            self.tracker.say(f"note: {note}")
        self.name_unreadable(list(self.images.skipped.values()))
        reference = {key: self.evaluator.protocol()[f"eval/{key}"] for key in ("reference", "reference_fingerprint")}
        self.tracker.start_wandb(self.config.tracking.wandb, self.wandb_id, {**loading.to_dict(self.config), **self.facts(), **reference})
        self.progress = Progress(clock.images(self.config.total_kimg), self.nimg)

    def find(self) -> tuple[dict[str, Any] | None, Path | None]:
        """(the last rollback, the checkpoint to go on from), each None where there is none."""
        rollback = read_rollback(self.run_dir)
        return rollback, self.keeper.resumes_from(rollback)

    def open_stream(self) -> None:
        """Real images from where the run stands; what rollbacks have left out is behind it."""
        if self.real_batches:  # its threads and its batches ahead would stay until the garbage collector comes
            self.real_batches.close()
        position = (self.nimg + self.watch.skipped) * self.config.optim.d_steps
        self.real_batches = RealBatches(
            self.images, self.config.seed, self.batching.micro_batch, self.accelerator.process_index, self.accelerator.num_processes,
            position, self.device, getattr(self.config.data, "flip", False), getattr(self.config.data, "workers", 4),
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What a reader of the record needs to know of this program and machine."""
        count = lambda network: sum(p.numel() for p in network.parameters())  # noqa: E731
        return {
            "gantrain": __version__,
            "versions": versions(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type,
            "processes": self.accelerator.num_processes,
            "micro_batch": self.batching.micro_batch,
            "parameters": {"g": count(self.G.network), "d": count(self.D.network)},
            "data_fingerprint": self.images.fingerprint,
            "switches": dataclasses.asdict(self.performance),
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

    def add_stats(self, stats: dict[str, Tensor], player: str, seen: dict[str, Tensor]) -> None:
        """Sum statistics where they are, on the device: over the update in `seen`, and until a line is due."""
        measured = stats.pop("measured", None)
        if measured is not None:
            halved = 2 if self.probes[player].halves(self.batching.rounds) else 1
            self.noise.record(player, self.batching.micro_batch // halved, self.batching.batch_size, measured)
        for name, value in stats.items():
            for sums in (seen, self.stats):
                sums[name] = sums[name] + value if name in sums else value

    def sums(self) -> list[tuple[str, float]]:
        """The statistics since the last line, the mean of all processes', by name. Every process must call it at the same time."""
        names = sorted(self.stats)
        if not names:
            return []
        sums = torch.stack([self.stats[n] for n in names]).float()
        return list(zip(names, self.accelerator.reduce(sums, reduction="mean").cpu().tolist()))

    def log(self) -> None:
        """A line for the console and the record: means since the last one."""
        self.listen(all=True)
        if not self.stats_count:
            return
        of_d = ("loss/d", "loss/penalty", "logits/real", "logits/fake", "grad_norm/d")
        values = {n: total / (self.stats_count * (self.config.optim.d_steps if n in of_d else 1)) for n, total in self.sums()}
        values |= {**self.batching.numbers(), "updates": self.updates, "memory/gib": memory_gib(self.device)}
        values |= self.noise_scale()
        values |= {"lr/g": self.G.optimizer.param_groups[0]["lr"], "lr/d": self.D.optimizer.param_groups[0]["lr"]}
        self.orbit.flush()
        values |= self.orbit.latest
        values["reals_seen"] = self.nimg * self.config.optim.d_steps
        values |= self.singular_values()
        values |= self.report_skipped()
        line, times = self.progress.line(self.nimg, values)
        self.tracker.say(line)
        waited = self.data_wait / self.progress.seconds
        self.tracker.log(self.nimg, {**values, **times, "throughput/data_wait": waited})
        self.stats, self.stats_count, self.data_wait = {}, 0, 0.0
        before, self.logged_at = self.logged_at, self.nimg
        self.receive_scores()
        self.face(self.watch.losses(before, self.nimg, values["loss/d"]))

    def singular_values(self) -> dict[str, float]:
        """The first singular value of every spectrally normed layer, for a line of the record."""
        values = {
            f"singular/{key.upper()}/{layer}": v
            for key, player in self.players.items()
            for layer, v in singular_values(player.network).items()
        }
        return dict(zip(values, torch.stack(list(values.values())).cpu().tolist())) if values else {}

    def report_skipped(self) -> dict[str, int]:
        """Name the images that could not be read since the last line; how many, for the record."""
        if getattr(self.config.data, "on_error", "stop") != "skip":
            return {}
        mine, self.real_batches.skipped = self.real_batches.skipped, []
        if not self.accelerator.reduce(torch.tensor([len(mine)], device=self.device), reduction="sum").item():
            return {"data/skipped": 0}
        found = gather_object(mine)
        self.name_unreadable([*found, *self.images.skipped.values()])
        return {"data/skipped": len(found)}

    def name_unreadable(self, found: list[str]) -> None:
        """Say, once of each, which images could not be read; others of their class stand in for them."""
        new = [line for line in dict.fromkeys(found) if line not in self.unreadable]
        for i, line in enumerate(new):
            self.unreadable.add(line)
            if i < SHOWN:
                self.tracker.say(f"data: skipped: {line}")
            self.tracker.event(self.nimg, "skipped", image=line)
        if len(new) > SHOWN:
            self.tracker.say(f"data: skipped: {len(new) - SHOWN} more, each named in metrics.jsonl")

    # ---- what can go wrong -------------------------------------------------------------------------------------------

    def listen(self, all: bool = False) -> None:
        """Hear what all processes have found in the updates before the last one, or in all of them, and who was asked to stop.

        Raises:
            Trouble: something is not finite, and that is not merely to be said.
        """
        self.keeper.collect(self.nimg)
        if self.accelerator.num_processes == 1:
            self.stopping = self.interruption.asked
        for beat in self.pulse.receive(all):
            self.stopping = self.stopping or beat.asked
            self.face(self.watch.beat(beat, self.accelerator.num_processes))

    def face(self, trouble: Trouble | None) -> None:
        """Say a trouble that is merely to be said; raise another."""
        if trouble is None:
            return
        if getattr(self.config.guard, f"on_{trouble.kind}") != "warn":
            raise trouble
        self.tracker.event(self.nimg, "warning", trouble.words, kind=trouble.kind, words=trouble.words, **trouble.evidence)
        self.tracker.say(f"guard: {trouble.words}; guard.on_{trouble.kind}=warn goes on")

    def recover(self, trouble: Trouble) -> None:
        """Return to a checkpoint of before the trouble, and go on from there another way.

        Raises:
            GaveUp: that is not wanted, or there is no such checkpoint, or it was tried as often as it may be.
        """
        g, bad = self.config.guard, self.nimg
        self.pulse.receive(all=True)  # of the path that is left
        self.report_skipped()
        wanted = getattr(g, f"on_{trouble.kind}") == "rollback"
        path = from_main(self.accelerator, self.checkpoint_before(trouble) if self.main and wanted else None)
        tried = self.watch.attempts
        if path:
            self.watch.rolled_back(bad, int(path.name))
        if path is None or self.watch.attempts > g.max_rollbacks:
            self.give_up(trouble, path, tried)
        state = self.load(path, rolls_back=True)
        if self.scoring is not None and self.scoring > self.nimg:  # of the path that is left
            self.scoring = None
            self.keeper.scoring.cancel()
        growth = self.watch.growth / state["guard"]["growth"]  # the checkpoint's batch has had its part
        grown = self.batching.ask(self.nimg, growth) if growth > 1 else None
        self.stats, self.stats_count, self.data_wait, self.improved, self.to_score = {}, 0, 0.0, [], False
        attempt = f"attempt {self.watch.attempts} of {g.max_rollbacks}"
        words = f"{trouble.words}; back to {self.nimg / 1000:g} kimg, {attempt}, on other images"
        words += f", learning rates x {self.watch.lr_scale:g}" if self.watch.lr_scale != 1 else ""
        words += f", batch {grown['from']} -> {grown['to']}" if grown else ""
        self.tracker.event(
            bad, "rollback", words, kind=trouble.kind, words=trouble.words, to=self.nimg, attempt=self.watch.attempts, skipped=self.watch.skipped,
            lr_scale=self.watch.lr_scale, **self.batching.numbers(), **trouble.evidence,
        )  # fmt: skip
        self.tracker.say(f"guard: {words}")
        if self.main:
            body = {
                "to": self.nimg,
                "guard": self.watch.state(),
                "batching": self.batching.state(),
                "metrics_bytes": self.tracker.position(),
            }
            write_rollback(self.run_dir, body)
            self.keeper.forget_after(self.nimg)
        self.orbit.open(state["orbit"])
        self.open_stream()
        self.progress.back_to(self.nimg)

    def give_up(self, trouble: Trouble, path: Path | None, tried: int) -> None:
        """End the run with a clear word."""
        key = f"guard.on_{trouble.kind}"
        action = getattr(self.config.guard, key.removeprefix("guard."))
        if action == "stop":
            why = f"{key}=stop ends the run; change what led here in another run_dir, or set {key}=rollback and run the same command again"
        elif path is None:
            why = "no whole checkpoint of before is kept to go back to; a larger checkpoint.keep_last keeps more"
        else:
            why = f"{tried} rollbacks have not led past it; the same command with a larger guard.max_rollbacks goes on, guard.lr_scale and guard.growth may change with it"
        self.tracker.event(
            self.nimg, "gave_up", trouble.words, time=utc_now(), kind=trouble.kind, words=trouble.words, rollbacks=tried, **trouble.evidence
        )
        raise GaveUp(f"guard: {trouble.words}; {why}")

    def checkpoint_before(self, trouble: Trouble) -> Path | None:
        """The checkpoint that a rollback leads to, among those of the run from now on; None where there is none."""
        self.keeper.collect(self.nimg, wait=True)
        best = None
        if self.config.guard.rollback_to == "best":
            best = self.config.guard.score or self.config.best_scores()[0]
        return self.keeper.newest(trouble.healthy, best)

    def stop(self) -> Scores:
        """Asked to stop between two updates: keep everything, what is due at this moment included, for the same command."""
        self.stopping = self.stopping or self.interruption.asked or signal.SIGTERM  # of another process
        try:
            self.listen(all=True)
        except Trouble as trouble:
            self.tracker.say(f"guard: {trouble.words}; not saved, the checkpoint before stands")
        else:
            self.report_skipped()
            self.tracker.event(self.nimg, "interrupted", time=utc_now(), signal=self.stopping.name)
            if self.saved_at != self.nimg:
                self.save(pending=True)
        saved = self.keeper.collect(self.nimg, wait=True) and self.saved_at == self.nimg
        goes_on = "from there" if saved else "from the checkpoint before"
        self.tracker.say(f"stopped by {self.stopping.name} at {self.nimg / 1000:g} kimg; the same command goes on {goes_on}")
        self.close()
        return self.scores

    @contextlib.contextmanager
    def dispensable(self, what: str) -> Iterator[None]:
        """Inside, what a full disk does not take is said and left out, where the run is to go on all the same."""
        try:
            yield
        except OSError as error:
            if self.config.checkpoint.on_error == "stop" or error.errno not in OF_THE_MACHINE:
                raise
            self.tracker.say(f"{what} at {self.nimg / 1000:g} kimg: not written ({error.strerror}); checkpoint.on_error=continue goes on")

    # ---- ... and what is done in any case ----------------------------------------------------------------------------

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
        """Score the live weights and every average that has begun, unless that was done, or begun, at this moment."""
        last = self.nimg >= clock.images(self.config.total_kimg)
        self.receive_scores(wait=last or self.scoring not in (None, self.nimg))
        if self.nimg in (self.scored_at, self.scoring):
            return
        if self.scoring is not None:  # a full disk has taken it
            self.tracker.say(f"the evaluation at {self.scoring / 1000:g} kimg is lost: its checkpoint was not written")
        if self.config.eval.asynchronous and not last:
            self.tracker.say(f"scoring {', '.join([LIVE, *self.bank.started()])} at {self.nimg / 1000:g} kimg in the background")
            self.scoring, self.to_score = self.nimg, True
            if self.swapper.swaps_now(self.previous_nimg, self.nimg, more=self.nimg < clock.images(self.config.total_kimg)):
                self.save(pending=True)  # what is to be scored, before a swap replaces it
            return
        self.scoring = None
        self.listen(all=True)
        self.unify_statistics()
        names = [LIVE, *self.bank.started()]
        self.tracker.say(f"scoring {', '.join(names)} at {self.nimg / 1000:g} kimg ({self.config.eval.num_samples} samples each)")
        with self.evaluator.interruptible(lambda: self.interruption.asked is not None):
            self.scores = self.evaluator.score(names, self.bank.materialize, self.averaged)
        self.scored, self.scored_at, self.scores_of = self.config.eval.num_samples, self.nimg, self.nimg
        self.record_scores(self.nimg, self.evaluator.protocol())
        improved, trouble = self.watch.scores(self.nimg, from_main(self.accelerator, as_keys(self.scores)))
        self.improved = [name for name in improved if name in self.keeper.best]
        self.face(trouble)
        if self.improved and self.swapper.swaps_now(self.previous_nimg, self.nimg, more=self.nimg < clock.images(self.config.total_kimg)):
            self.save(pending=True, best_only=True)  # what was scored, before a swap replaces it

    def receive_scores(self, wait: bool = False) -> None:
        """Take up what was scored in the background, if it is there; every process must ask at the same time.

        Raises:
            Interrupted: asked to stop while waiting.
            Trouble: the scores say so.
        """
        if self.scoring is None:
            return
        found = from_main(self.accelerator, self.result(wait) if self.main else None)
        if found is None:
            return
        if found == Interrupted.__name__:
            raise Interrupted
        nimg, self.scoring = self.scoring, None
        self.scores = {name: dict(row) for name, row in found["scores"]}
        self.scored, self.scored_at, self.scores_of = self.config.eval.num_samples, nimg, nimg
        self.record_scores(nimg, found["protocol"])
        improved, trouble = self.watch.scores(nimg, as_keys(self.scores))
        best_of = [name for name in improved if name in self.keeper.best]
        if self.main and best_of:
            self.tracker.event(nimg, "best", best_of=best_of)
            self.keeper.keep_best(nimg, best_of)
        self.face(trouble)

    def result(self, wait: bool) -> dict[str, Any] | str | None:
        """What the background has to say to this; a word where the run was asked to stop meanwhile."""
        self.keeper.collect(self.nimg, wait=wait)
        asked = lambda: self.interruption.asked is not None  # noqa: E731
        try:
            found = self.keeper.scoring.result(self.scoring, False, asked)
            if found is None and wait and self.keeper.scoring.path(self.scoring).is_dir():
                self.tracker.say(
                    f"training waits for the scores at {self.scoring / 1000:g} kimg: one evaluation goes on beside it at a time"
                )
                found = self.keeper.scoring.result(self.scoring, True, asked)
            return found
        except Interrupted:
            return Interrupted.__name__

    def record_scores(self, nimg: int, protocol: dict[str, object]) -> None:
        """A line of the record, a table on the console, and what the orbit looks like by now."""
        if not self.main:
            return
        self.tracker.log(nimg, {**as_keys(self.scores), **protocol})
        self.tracker.overview(nimg)
        if nimg < clock.images(self.config.total_kimg):  # the last table is the end's
            self.tracker.say(table(self.scores, f"at {nimg / 1000:g} kimg" if nimg < self.nimg else "average"))
        self.show_orbit()

    def score_live(self) -> dict[str, float]:
        """The live weights' scores as they are now, beside a swap; empty but on the main process."""
        if self.scored_at != self.nimg:
            self.listen(all=True)
            self.unify_statistics()
            return self.evaluator.score([LIVE], self.bank.materialize, self.averaged)[LIVE]
        self.scored_at = -1  # whoever asks again at this moment has changed the weights
        return self.scores[LIVE]

    def settle_batchnorm(self) -> None:
        """Measure G's BatchNorm statistics anew, after its weights were replaced.

        On the generator apart: the one in training may be compiled, and compiled code calls no hooks. D's statistics, where
        it has any, are read by nothing: in training BatchNorm goes by the batch.
        """
        with self.evaluator.isolated():
            self.bank.materialize(LIVE, self.averaged)
            self.evaluator.recalibrate(self.averaged)
        write_statistics(named_statistics(self.averaged), self.G.network)

    def draw_samples(self) -> None:
        """A picture: the same z through the live weights and every average, side by side."""
        self.unify_statistics()
        t = self.config.tracking
        sheets = []
        with self.evaluator.isolated():
            z, y, columns = draw_class_sheet(
                self.config.seed, self.averaged.dim_z, self.averaged.num_classes, t.sample_rows, t.sample_classes
            )
            for name in [LIVE, *self.bank.started()]:
                self.bank.materialize(name, self.averaged, self.config.eval.batchnorm == "average")
                self.evaluator.fit_batchnorm(self.averaged)
                if self.main:
                    images = generate(self.averaged, z.to(self.device), y.to(self.device), self.config.eval.batch_size)
                    sheets.append(Sheet(name, self.caption(name), make_grid(images, columns)))
        if self.main:
            path = self.run_dir / "samples" / f"{self.nimg:012d}.png"
            path.parent.mkdir(exist_ok=True)
            save_side_by_side(sheets, path)
            classes = [self.images.class_names[label] for label in y[:columns].tolist()] if self.averaged.num_classes > 1 else []
            self.tracker.samples(self.nimg, path, classes)

    def caption(self, name: str) -> str:
        """What stands above a sheet of samples: whose it is, when, and the last score that there is of it."""
        metric, score = next(iter(self.scores.get(name, {}).items()), (None, None))
        when = f"{self.nimg / 1000:g} kimg"
        if metric is None or self.scores_of < 0:
            return f"{name} at {when}"
        return f"{name} at {when}, {metric} {score:.4f}" + ("" if self.scores_of == self.nimg else f" at {self.scores_of / 1000:g} kimg")

    def save(self, pending: bool = False, best_only: bool = False) -> None:
        """Write a checkpoint of everything that the run goes on from, in the background.

        Args:
            pending: what is due at this moment has not been done, and shall be when the run is taken up again.
            best_only: keep it as the best of the scores that are at their best, and not as the newest.
        """
        self.listen(all=True)  # what is not well is not kept
        self.unify_statistics()
        self.noise.settle()
        stats = self.sums()
        if self.main:
            self.tracker.event(
                self.nimg, "checkpoint", path=f"checkpoints/{self.nimg:012d}" if not best_only else BEST_FOLDER, best_of=self.improved
            )
            self.keeper.collect(self.nimg, wait=True)  # before the copies are made: one of each is in memory
            tensors = {group: checkpoint.plain(named) for group, named in self.tensors().items()}
            self.keeper.save(self.nimg, tensors, self.state(stats, pending), self.improved, best_only, self.watch.well_until, self.to_score)
        self.improved, self.to_score = [], False
        if not best_only:
            self.saved_at = self.nimg

    def keep_snapshots(self, done: bool) -> None:
        """Keep compact copies of the averages that others shall be rebuilt from, where one is due; at the end of all."""
        every = {name: getattr(average.averager, "snapshot_every_kimg", None) for name, average in self.bank.averages.items()}
        rebuilds = {name for name, average in self.bank.averages.items() if hasattr(average.averager, "exponent")}
        names = [
            name
            for name in rebuilds & every.keys()
            if every[name] is not None and (self.due(every[name]) or done) and self.bank[name].started
        ]
        if not names:
            return
        self.listen(all=True)
        self.unify_statistics()
        if self.main:
            self.keeper.collect(self.nimg, wait=True)
            tensors = self.bank.tensors()
            groups = {group_of(name): compact(tensors[name]) for name in sorted(names)}
            groups["buffers"] = checkpoint.plain(dict(self.G.network.named_buffers()))
            state = {"gammas": {name: self.bank[name].averager.exponent for name in sorted(names)}, "shape": list(self.shape)}
            self.keeper.snapshot(self.nimg, groups, state)

    def record_orbit(self, swapped: bool = False) -> None:
        """Take down where the weights and all averages are."""
        lr = {key: player.optimizer.param_groups[0]["lr"] for key, player in self.players.items()}
        self.orbit.record(self.nimg, {"batch_size": self.batching.batch_size, "lr": lr}, swapped)

    def show_orbit(self) -> None:
        """Draw the motion recorded so far and say what it is; of a stretch that is too short yet there is nothing to say."""
        if not self.orbit.on:
            return None
        self.orbit.flush()
        profiles = {key: {name: bank.weight_profile(name) for name in bank.started()} for key, bank in self.banks.items()}
        try:
            lines = read_record(self.run_dir)
            found = [analyse(self.run_dir, self.config, key, build_motion(lines, key), profiles[key]) for key in self.players]
            path = picture_path(self.run_dir, found)
            save_analyses(found, path, self.run_dir.name)
        except TooFewRecordings:
            return None
        except Exception as error:
            return self.tracker.say(f"orbit: no picture ({one_line(error)}); `gantrain orbit {self.run_dir}` tries again")
        words = [summarise(one) for one in found]
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
            groups |= {group_of(name, key): shadows for name, shadows in self.banks[key].tensors().items()}
            groups |= {group_of(name, key, slots=True): held for name, held in self.banks[key].slot_tensors().items()}
        return groups

    def state(self, stats: list[tuple[str, float]], pending: bool) -> dict[str, Any]:
        """Everything else that a checkpoint holds, as JSON values.

        Args:
            stats: the statistics since the last line.
            pending: what is due at this moment is still to be done.
        """
        return {
            "previous_nimg": self.previous_nimg if pending else self.nimg,
            "stats": as_json(stats),
            "stats_count": self.stats_count,
            "logged_at": self.logged_at,
            "scored_at": self.scored_at,
            "scores_of": self.scores_of,
            "scoring": self.scoring,
            "guard": self.watch.state(),
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

    def load(self, path: Path, rolls_back: bool = False) -> dict[str, Any]:
        """Put everything back from a checkpoint; its state.

        Args:
            rolls_back: keep what was counted of rollbacks, and who the run is to W&B.
        """
        snapshot = checkpoint.read(path)
        state = snapshot.state
        if state["data_listing"] != self.images.listing:
            raise UserError(
                f"data: {self.images.name} is not what {self.run_dir} was trained on (other images or labels); put back what is missing, or use another run_dir"
            )
        if state["data_fingerprint"] != self.images.fingerprint:  # a broken file replaced, say
            self.notes.append(f"the content of {self.images.name} has changed since {path.name}; its names and labels have not")
        self.batching.load(state["batching"])
        seen, b, world = state["batching"]["micro_batch"], self.batching, self.accelerator.num_processes
        if seen != b.micro_batch and not rolls_back:
            self.notes.append(
                f"BatchNorm saw {seen} images at a time and sees {b.micro_batch} from here on: on {world} process{'es' if world > 1 else ''}"
                f" a batch of {b.batch_size} has micro-batches of {b.micro_batch}, at most {b.first_micro_batch}"
            )
        for group, player in self.players.items():
            parameters = {name for name, _ in player.network.named_parameters()}
            write_weights({k: v for k, v in snapshot.tensors[group].items() if k in parameters}, player.network)
            write_buffers(((k, v) for k, v in snapshot.tensors[group].items() if k not in parameters), player.network)
            player.optimizer.state.clear()
            load_optimizer_tensors(player.optimizer, player.network, snapshot.tensors[f"optimizer_{group}"])
            if state["scalers"][group]:
                player.scaler.load_state_dict(state["scalers"][group])
        for (key, bank), saved in zip(self.banks.items(), (state["averages"], state["averages_d"])):
            shadows, slots = ({name: snapshot.tensors.get(group_of(name, key, slots=s), {}) for name in saved} for s in (False, True))
            bank.load(shadows, saved, slots)
        self.updates = state["updates"]
        self.swapper.load(state["swaps"])
        self.scored, self.scores = state["scored"], {name: dict(row) for name, row in state["scores"]}
        self.nimg, self.previous_nimg, self.saved_at = snapshot.nimg, state["previous_nimg"], snapshot.nimg
        self.stats = {name: torch.tensor(float(value), device=self.device) for name, value in state["stats"]}
        self.stats_count, self.logged_at, self.scored_at = state["stats_count"], state["logged_at"], state["scored_at"]
        self.scores_of = state.get("scores_of", self.scored_at)
        if rolls_back:
            self.watch.go_back(state["guard"])
            return state
        self.scoring = state.get("scoring")
        self.watch.load(state["guard"])
        self.wandb_id = state["wandb_id"]
        if self.nimg > clock.images(self.config.total_kimg):
            self.notes.append(f"the run is past total_kimg={self.config.total_kimg:g} already; it stays as it is")
        return state

    def end(self) -> Scores:
        """Close the record with the final table; the scores."""
        self.keeper.collect(self.nimg, wait=True, last=True)
        self.stopping = None  # whoever asked: there is nothing left to do
        if self.main:
            self.keeper.scoring.clear()
        if self.watch.warned:
            self.tracker.say(f"guard: not well at the end: {', '.join(sorted(self.watch.warned))}")
        self.tracker.event(self.nimg, "end", time=utc_now())
        self.tracker.summary({f"final/{key.removeprefix('eval/')}": value for key, value in as_keys(self.scores).items()})
        if self.main and self.scores:
            picture = self.run_dir / "samples" / f"{self.nimg:012d}.png"
            if self.swapper.records:
                self.tracker.say(f"\nlive weights at the swaps:\n{self.swapper.report()}")
            self.tracker.say(
                f"\ndone: {self.run_dir} at {self.nimg / 1000:g} kimg; samples in {picture}; scores of {self.scored} samples:\n{table(self.scores)}"
            )
        self.close()
        return self.scores

    def close(self, exit_code: int = 0, wait: bool = True) -> None:
        """Let go of the record and of the run folder; also after an exception. `wait` for what is being written and sent."""
        self.keeper.scoring.cancel()
        if wait:
            self.keeper.close()
        if self.real_batches:
            self.real_batches.close()
        self.tracker.close(exit_code, wait)
        if self.lock:
            self.lock.close()
            self.lock = None

    def bar(self, items, total: int):
        """A progress bar for long preparations, on a terminal only."""
        return tqdm(items, total=total, desc="data", leave=False, disable=None if self.main else True)
