"""The trainer: maintenance first, then one update; one clock."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

from accelerate import Accelerator

from gantrain import clock, command_signals, performance
from gantrain.batching import BatchController, GradientProbe, NoiseMonitor
from gantrain.config.config import Config
from gantrain.config.schema import group_name
from gantrain.distributed import PRECISIONS, make_accelerator, mean_of_processes
from gantrain.errors import UserError
from gantrain.evaluation.collapse import in_one_line
from gantrain.evaluation.evaluator import Evaluator, Interrupted
from gantrain.home import expand_user
from gantrain.interruption import Interruption
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.reporting.event_words import on_console
from gantrain.reporting.score_table import table
from gantrain.reporting.time_left import SWAPS
from gantrain.reporting.tracker import Tracker
from gantrain.reporting.views import open_views, require_views
from gantrain.run_folder.claim import Claim, examine
from gantrain.run_folder.provenance import utc_now
from gantrain.score_names import Scores, as_keys
from gantrain.training.additions import report_added
from gantrain.training.context import Context
from gantrain.training.facts import Facts
from gantrain.training.forecast import Forecast
from gantrain.training.guard import Sentry, Trouble
from gantrain.training.inputs import Inputs, open_images
from gantrain.training.keeper import Keeper
from gantrain.training.measurements import Measurements
from gantrain.training.pictures import Pictures
from gantrain.training.players import Players
from gantrain.training.recovery import Recovery, dispensable
from gantrain.training.run_state import RunState
from gantrain.training.saving import KeyedPart, Saving
from gantrain.training.scoreboard import Scoreboard
from gantrain.training.swapper import Swapper
from gantrain.training.terms import PlayerKey, Terms
from gantrain.training.update import RealOfG, Stats, discriminator_phase, generator_phase


class Trainer:
    """A run, from its configuration to its last checkpoint. The same configuration and folder resume it.

    The parts, each of which knows only those before it: `run` (the clock), `players`, `guard`, `inputs`, `terms`,
    `measurements`, `saving`, `pictures`, `scoreboard`, `swapper`, `recovery`, `facts`.

    Args:
        config: the whole run.
        accelerator: of the program; None makes one.
        interruption: knows when the process is asked to stop; None listens for signals while `train` runs.
        changed_data: whether a run that is resumed may continue on other images than before.
        claim: to the run folder, on the main process; the trainer releases it. None takes it when training starts, and then refuses a
            folder that has changed since.

    Raises:
        UserError: the folder contains another run, the data set is invalid, or the batch does not divide over the processes.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator | None = None, interruption: Interruption | None = None, changed_data: bool = False,
        claim: Claim | None = None,
    ):  # fmt: skip
        self.config, self.interruption = config, interruption or Interruption()
        self.accelerator = accelerator or make_accelerator(config.mixed_precision)
        self.context = context = prepared(config, self.accelerator, changed_data)
        self.tracker = context.tracker
        found = None if not context.main else claim.found if claim else examine(config)
        self.changed = context.from_main(found.changed if found else {})
        performance.set_up(context.performance, context.device)
        self.images = images = open_images(context)
        self.run = run = RunState(clock.images(config.total_kimg))
        self.players = players = Players(context, (images.resolution, images.channels, images.num_classes))
        probes = {key: GradientProbe(players.by_key[key].network, config.noise_scale.per_layer, context.world) for key in ("d", "g")}
        layers = {key: probe.layers for key, probe in probes.items()}
        noise = NoiseMonitor(config.noise_scale, layers, mean_of_processes(self.accelerator))
        self.keeper = keeper = Keeper(context.run_dir, config.checkpoint, config.best_scores(), self.tracker)
        resumes = context.from_main(bool(keeper.checkpoints.paths()))
        self.batching = batching = BatchController(config.batching, context.world, noise, context.from_main, resumes)
        self.evaluator = evaluator = Evaluator(config, images, self.accelerator)
        persistent = config.checkpoint.on_error == "continue"
        self.orbit = orbit = OrbitRecorder(config.orbit, players.banks, context.run_dir, context.main, persistent)
        self.guard = guard = Sentry(context, run, keeper, self.interruption)
        self.inputs = inputs = Inputs(context, run, images, players, batching, guard)
        self.terms = terms = Terms(config, context.device, mean_of_processes(self.accelerator), context.world)
        self.measurements = measurements = Measurements(context, run, players, batching, inputs, terms, guard, orbit, probes, noise)
        self.saving = saving = Saving(context, run, players, measurements, guard, keeper, orbit)
        saving.claim, saving.traces = claim, found.traces if found else {}
        self.pictures = pictures = Pictures(context, run, players, batching, images, evaluator, orbit)
        self.scoreboard = scoreboard = Scoreboard(context, run, players, guard, keeper, evaluator, saving, pictures)
        self.swapper = swapper = Swapper(
            config.swap, players.by_key, players.banks, batching, scoreboard.live, evaluator.protocol,
            lambda: players.settle_batchnorm(evaluator), pictures.record_orbit, context.from_main, self.tracker,
        )  # fmt: skip
        self.recovery = Recovery(context, run, batching, inputs, measurements, guard, keeper, saving, orbit)
        measurements.forecast = Forecast(context, run, players, batching, swapper, orbit).plan
        self.facts = Facts(context, run, players, batching, images, measurements)
        self.facts.notes += [found.edited] if found and found.edited else []
        if config.eval.reference is not None:
            self.facts.notes += [f"eval.reference: {note}" for note in evaluator.real.notes]
        saving.parts = [
            inputs,
            KeyedPart("batching", batching),
            players,
            KeyedPart("swaps", swapper),
            scoreboard,
            run,
            measurements,
            guard,
            terms,
        ]
        if not resumes:
            self.facts.note_batch()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> Scores:
        """Train to the end, or until asked to stop; the last scores (on the main process).

        Raises:
            GaveUp: training went wrong, and the guard was not allowed to recover, or could not.
        """
        with self.interruption:
            self.start()
            self.interruption.patient = True
            while True:
                try:
                    self.guard.listen()
                    if self.stopping:
                        return self.stop()
                    done = self.maintain()
                except Trouble as trouble:
                    self.recovery.recover(trouble)
                except Interrupted:
                    return self.stop()
                else:
                    if done:
                        return self.end()
                    self.update()

    def maintain(self) -> bool:
        """Do whatever is due before the next update. Whether there is no next update."""
        c, run, before = self.config, self.run, self.run.previous_nimg
        ends, more = run.ends, not run.done
        if run.due(c.tracking.every_kimg) or run.due(c.checkpoint.every_kimg) or ends:
            line = self.measurements.log()
            if line:
                self.scoreboard.receive()
                self.guard.check_losses(line.since, line.loss_d)
        with self.measurements.progress.paused():
            if run.due(c.orbit.every_kimg) or run.due(c.eval.every_kimg) or ends:
                self.pictures.record_orbit()
            swaps = self.swapper.swaps_now(before, run.nimg, more)
            if run.due(c.eval.every_kimg) or ends:
                self.scoreboard.evaluate(swaps)
            if run.due(c.tracking.samples_every_kimg) or ends:
                with dispensable(self.context, run, "samples"):
                    self.pictures.draw_samples(self.scoreboard.scores, self.scoreboard.scores_of)
            self.saving.keep_snapshots(ends)
            with self.context.costs.measure(SWAPS, swaps):
                self.swapper.maintain(before, run.nimg, ends, more)
            if run.due(c.checkpoint.every_kimg) or ends or self.saving.wanted:
                self.saving.save()
        return run.done

    def update(self) -> None:
        """Grow the batch if it is time; the phases of both players, then the averages."""
        c, run, measurements = self.config, self.run, self.measurements
        grown = self.batching.ask(run.nimg)
        if grown:
            self.tracker.tell(run.nimg, "growth", **grown)
        measurements.begin_update()
        k, images = self.batching.rounds, self.batching.batch_size
        multiplier = c.optim.lr_tail.multiplier(run.nimg, run.nimg + images)
        self.players.set_rates(multiplier * self.swapper.lr_scale * self.batching.lr_scale * self.guard.watch.lr_scale, run.nimg)
        seen: Stats = {}  # for the guard
        kept: list[RealOfG] = []  # what the loss of G needs of the real images: of the last D phase, or of the first one after G's
        if c.optim.first == "g":
            kept += self.inputs.ahead(k)
            self.train_g(k, kept, seen)
        self.train_d(k, kept, seen)
        if c.optim.first == "d":
            self.train_g(k, kept, seen)
        measurements.count_update()
        run.advance(images)
        self.players.average(run.nimg)
        self.guard.send(seen | self.players.weight_norms())

    def train_d(self, k: int, kept: list[RealOfG], seen: Stats) -> None:
        """D's phases of an update, each on fresh data."""
        c, inputs = self.config, self.inputs
        for s in range(c.optim.d_steps):
            kept.clear()
            purpose = f"d{s}"
            rounds = zip(inputs.real(k, kept), inputs.latents(purpose, k))
            self.play(discriminator_phase, "d", self.run.updates * c.optim.d_steps + s, purpose, rounds, k, seen)

    def train_g(self, k: int, kept: list[RealOfG], seen: Stats) -> None:
        """G's phases of an update, each on fresh latents."""
        c, inputs = self.config, self.inputs
        for s in range(c.optim.g_steps):
            purpose = f"g{s}" if s else "g"
            rounds = zip(inputs.of_g(kept, k), inputs.latents(purpose, k))
            self.play(generator_phase, "g", self.run.updates * c.optim.g_steps + s, purpose, rounds, k, seen)

    def play(self, phase: Callable[..., Stats], player: PlayerKey, step: int, purpose: str, rounds: Iterable, k: int, seen: Stats) -> None:
        """One phase: a step of a player, of this number and with random numbers of this purpose, on k rounds."""
        terms, measurements, nimg = self.terms, self.measurements, self.run.nimg
        due = terms.due(player, step)
        lazy = any(one.factor > 1 for one in due)  # not applied in every step, so it is not part of the noise per step
        probe = None if lazy else measurements.probe(player)
        stats = phase(self.players.G, self.players.D, self.config.loss, rounds, k, probe, due, terms.setting(purpose, nimg))
        terms.follow(stats, due, self.batching.batch_size, nimg)
        measurements.add(stats, player, seen)

    # ---- start and end -----------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> signal.Signals | None:
        """The signal that has ended `train`, or None."""
        return self.guard.stopping

    def start(self) -> None:
        """Resume from the newest undamaged checkpoint if there is one, and open the record and the views."""
        saving, facts = self.saving, self.facts
        saving.lock()
        self.evaluator.remarks.require_room()  # it loads the extractor, which may fail here, but not after training
        rollback, path = saving.find()
        state = saving.load(path) if path else {}
        few = self.evaluator.remarks.too_few()
        if few and not path:
            raise UserError(few[0])
        facts.notes += self.evaluator.remarks.notes
        if path:
            facts.note_resume(path, state)
            if self.inputs.changed and self.config.eval.reference is None:
                self.guard.watch.forget_scores()  # those before were against the earlier images
            if rollback:
                self.recovery.resume(rollback, state)
        if self.batching.resumes:
            if not path:  # all checkpoints were of an abandoned path
                self.batching.load(self.batching.state())
            facts.note_batch()
        facts.note_noise_scale()
        facts.note_loss()
        facts.note_machine()
        saving.tidy(path, self.scoreboard.scoring)
        self.tracker.open(state.get("metrics_bytes", 0))
        self.orbit.open(state.get("orbit"))
        self.inputs.reopen()
        facts.announce(path, self.changed)
        report_added(self.context, self.run, self.players)
        self.inputs.name_unreadable(list(self.images.skipped.values()))
        shown = facts.describe(self.evaluator.protocol())
        if self.context.main:
            self.tracker.views += open_views(
                self.config.tracking, saving.wandb_id, shown, self.context.run_dir, self.tracker.say, group_name(self.config)
            )
        self.measurements.start()

    def stop(self) -> Scores:
        """Stop between two updates: save everything. After a resume, the run does what was due at this moment."""
        name = (self.stopping or self.interruption.asked or signal.SIGTERM).name  # the last if the signal came to another process
        self.guard.stopping = signal.Signals[name]
        run, say = self.run, self.tracker.say
        try:
            self.guard.listen(all=True)
        except Trouble as trouble:
            say(f"guard: {trouble.words}; not saved; the previous checkpoint is kept")
        else:
            self.inputs.report_skipped()
            self.tracker.event(run.nimg, "interrupted", time=utc_now(), signal=name)
            if run.saved_at != run.nimg:
                self.saving.save(pending=True)
        saved = self.keeper.collect(run.nimg, wait=True) and run.saved_at == run.nimg
        where = "here" if saved else "the previous checkpoint"
        say(on_console({"nimg": run.nimg, "event": "interrupted", "signal": name, "resumes_from": where}))
        command_signals.State.explained = True
        self.close()
        return self.scoreboard.scores

    def end(self) -> Scores:
        """End the record with the final table; returns the scores."""
        run, tracker, scores = self.run, self.tracker, self.scoreboard.scores
        self.keeper.collect(run.nimg, wait=True, last=True)
        self.guard.stopping = None  # a request to stop no longer matters: the run is done
        if self.context.main:
            self.keeper.scoring.clear()
        if self.guard.watch.warned:
            tracker.say(f"guard: not healthy at the end: {', '.join(sorted(self.guard.watch.warned))}")
        collapsed = in_one_line(self.scoreboard.collapsed)
        tracker.event(run.nimg, "end", time=utc_now(), **({"collapsed": collapsed} if collapsed else {}))
        tracker.summary({f"final/{key.removeprefix('eval/')}": value for key, value in as_keys(scores).items()})
        if self.context.main and scores:
            folder = self.context.run_dir
            picture = folder / "samples" / f"{run.nimg:012d}.png"
            if self.swapper.records:
                tracker.say(f"\nlive weights at the swaps:\n{self.swapper.report()}")
            tracker.say(
                f"\ndone: {folder} at {run.kimg:g} kimg; samples in {picture};"
                f" scores of {self.scoreboard.samples} samples:\n{table(scores, notes=self.evaluator.remarks.on_features)}"
            )
        if collapsed:
            tracker.say(f"warning: the run has collapsed: {collapsed}")
        self.close()
        return scores

    def close(self, exit_code: int = 0, wait: bool = True) -> None:
        """Release the record and the run folder, also after an exception.

        Args:
            exit_code: passed to W&B.
            wait: wait until everything is written and sent.
        """
        self.keeper.scoring.cancel()
        if wait:
            self.keeper.close()
        self.inputs.close()
        self.tracker.close(exit_code, wait)
        self.saving.unlock()


def prepared(config: Config, accelerator: Accelerator, changed_data: bool = False) -> Context:
    """The context that all parts of a run share.

    Raises:
        UserError: the Accelerator or the device cannot train this configuration.
    """
    device = accelerator.device
    if accelerator.mixed_precision != PRECISIONS[config.mixed_precision]:
        raise UserError(
            f"mixed_precision: must be that of the given Accelerator, {accelerator.mixed_precision!r}, got {config.mixed_precision}"
        )
    if config.sync_batchnorm and device.type == "cpu" and accelerator.num_processes > 1:
        raise UserError(
            "sync_batchnorm: torch synchronises BatchNorm on GPUs only; set sync_batchnorm=false, or a larger batching.micro_batch"
        )
    require_views(config.tracking)
    run_dir = expand_user(config.run_dir, "run_dir")
    tracker = Tracker(run_dir, accelerator.is_main_process, persistent=config.checkpoint.on_error == "continue")
    return Context(config, accelerator, run_dir, tracker, performance.pick(config.performance, device), changed_data)
