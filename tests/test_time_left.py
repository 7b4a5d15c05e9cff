"""The time left: what is announced is what passes, on a clock of the test's own, in runs whose every cost is constant."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import slow_but

from gantrain.batching import BatchController
from gantrain.config import loading
from gantrain.orbit.motion import TooFewRecordings
from gantrain.reporting.console import Progress, console_line
from gantrain.reporting.event_words import Teller
from gantrain.reporting.time_left import CHECKPOINTS, ORBIT_LINES, ORBIT_PICTURES, SAMPLES, SCORING, SNAPSHOTS, Costs, Pace
from gantrain.training import pictures
from gantrain.training.forecast import Forecast
from gantrain.training.run_state import RunState
from gantrain.training.swapper import Swapper
from gantrain.training.trainer import Trainer

# Seconds of every piece of work. No two are multiples of each other, so that a wrong count shows.
PER_IMAGE, PER_WEIGHTS, PER_SHEET, PER_CHECKPOINT, PER_SWAP, PER_SNAPSHOT = 0.013, 3.1, 0.71, 0.37, 1.9, 0.23
PER_RECORDING, PER_PICTURE = 0.017, 5.3


class Clock:
    """A clock that only work moves."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def spend(self, seconds: float) -> None:
        self.now += seconds


class Bank(dict):
    """Averages that start when their configuration says so."""

    def __init__(self, rules, run):
        super().__init__({name: SimpleNamespace(averager=rule, name=name, started=True) for name, rule in rules.items()})
        self.run = run

    def started(self) -> list[str]:
        return [name for name, one in self.items() if self.run.nimg > 0 and self.run.nimg >= one.averager.start_kimg * 1000]

    def write_back(self, source: str, alpha: float) -> None:
        pass


class Scores:
    """The scoreboard, as far as it takes time: `Scoreboard` keeps its scores at a moment for the first question after it."""

    def __init__(self, trainer):
        self.trainer, self.scores, self.scores_of, self.scored_at = trainer, {}, -1, -1

    def evaluate(self, swaps: bool) -> None:
        trainer = self.trainer
        if trainer.config.eval.asynchronous and not trainer.run.done:
            return
        self._score(1 + len(trainer.bank.started()))
        trainer.show_orbit()
        self.scored_at = trainer.run.nimg

    def live(self) -> dict[str, float]:
        if self.scored_at == self.trainer.run.nimg:
            self.scored_at = -1
        else:
            self._score(1)
        return {"fid": 1.0}

    def _score(self, count: int) -> None:
        with self.trainer.context.costs.measure(SCORING, count):
            self.trainer.clock.spend(PER_WEIGHTS * count)

    def receive(self) -> None:
        pass


class Simulated:
    """A trainer whose `maintain` is the real one, and whose parts take constant times."""

    def __init__(self, clock: Clock, *settings: str, per_update: float = 0.0):
        config = loading.load(None, ["run_dir=none", "data.name=digits", "tracking.every_kimg=0.1", *settings])
        self.clock, self.config, self.per_update = clock, config, per_update
        self.announced: list[tuple[float, dict[str, Any]]] = []
        self.run = run = RunState(round(config.total_kimg * 1000))
        self.context = context = SimpleNamespace(config=config, costs=Costs())
        self.bank = Bank(config.averagers, run)
        self.batching = BatchController(config.batching, 1)
        self.scoreboard = Scores(self)
        nothing = lambda *a, **b: {}  # noqa: E731
        tracker = SimpleNamespace(event=lambda nimg, name, **fields: {"nimg": nimg, "event": name, **fields}, say=nothing, tell=nothing)
        players = {key: SimpleNamespace(optimizer=None) for key in "gd"}
        self.orbit = SimpleNamespace(heads=[])
        self.longest = self.length = self.pictures_drawn = 0  # recordings without a jump
        self.swapper = Swapper(
            config.swap, players, dict.fromkeys("gd", self.bank), self.batching, self.scoreboard.live, dict, self._settle,
            self._record_orbit, lambda value: value, tracker,
        )  # fmt: skip
        forecast = Forecast(context, run, SimpleNamespace(bank=self.bank), self.batching, self.swapper, self.orbit)
        progress = Progress(run.total, 0, forecast.plan, context.costs)
        self.measurements = SimpleNamespace(log=self._log, progress=progress)
        self.guard = SimpleNamespace(check_losses=nothing)
        self.pictures = SimpleNamespace(record_orbit=self._record_orbit, draw_samples=self._draw)
        self.saving = SimpleNamespace(keep_snapshots=self._snapshots, save=self._save, wanted=False)
        self.tracker = tracker

    def _settle(self) -> None:
        self.clock.spend(PER_SWAP)

    def _record_orbit(self, swapped: bool = False) -> None:
        heads, batch = self.orbit.heads, self.batching.batch_size
        if self.config.orbit.every_kimg is None or (not swapped and heads and heads[-1]["nimg"] == self.run.nimg):
            return
        rate = 1.0 if self.config.optim.lr_tail.kind == "none" or self.run.nimg <= 1000 else 0.5
        head = {"nimg": self.run.nimg, "batch_size": batch, "lr": {"g": rate, "d": rate}, "swap": swapped}
        jumps = bool(heads) and (swapped or batch != heads[-1]["batch_size"] or rate != heads[-1]["lr"]["g"])
        self.length = 1 if jumps else self.length + 1
        self.longest = max(self.longest, self.length)
        heads.append(head)
        with self.context.costs.measure(ORBIT_LINES):
            self.clock.spend(PER_RECORDING)

    def show_orbit(self) -> None:
        """As `Pictures.show_orbit`: forty recordings without a jump are drawn."""
        if self.config.orbit.every_kimg is not None:
            with self.context.costs.measure(ORBIT_PICTURES) as work:
                work.units = int(self.longest >= 40)
                self.pictures_drawn += work.units
                self.clock.spend(PER_PICTURE * work.units)

    def _log(self) -> None:
        if self.run.updates:
            _, times = self.measurements.progress.line(self.run.nimg, {"batch/size": self.batching.batch_size})
            self.announced.append((self.clock.now, times))

    def _draw(self, *_) -> None:
        count = 1 + len(self.bank.started())
        with self.context.costs.measure(SAMPLES, count):
            self.clock.spend(PER_SHEET * count)

    def _save(self) -> None:
        with self.context.costs.measure(CHECKPOINTS):
            self.clock.spend(PER_CHECKPOINT)

    def _snapshots(self, ends: bool) -> None:
        rules = [one.averager for one in self.bank.values() if self.run.nimg > 0]
        count = sum(r.snapshot_every_kimg is not None and (self.run.due(r.snapshot_every_kimg) or ends) for r in rules)
        if count:
            with self.context.costs.measure(SNAPSHOTS, count):
                self.clock.spend(PER_SNAPSHOT * count)

    def train(self) -> list[tuple[float, dict[str, Any]]]:
        """Train; returns (seconds that then passed, the times of the line) for every line."""
        while not Trainer.maintain(self):  # type: ignore[arg-type]  # it has what `maintain` uses
            self.batching.ask(self.run.nimg)
            self.clock.spend(PER_IMAGE * self.batching.batch_size + self.per_update)
            self.run.advance(self.batching.batch_size)
        return [(self.clock.now - at, times) for at, times in self.announced]


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


BATCH = "batching={batch_size: 16, micro_batch: 16, max_batch: 16}"
GROWS = "batching={name: on_swap, batch_size: 16, micro_batch: 16, max_batch: 64}"
EMAS = "averagers={ema: {name: ema, half_life_kimg: 1}, swa: {name: swa, start_kimg: 0.9, every_kimg: 0.1}}"
EVERY = ("eval.every_kimg=0.4", "tracking.samples_every_kimg=0.5", "checkpoint.every_kimg=0.3", "total_kimg=2")
RUNS = {
    "evaluations and samples": (BATCH, EMAS, *EVERY),
    "periods that the batch does not divide": (
        "batching={batch_size: 48, micro_batch: 48, max_batch: 48}", EMAS, "eval.every_kimg=0.11", "tracking.samples_every_kimg=0.37",
        "checkpoint.every_kimg=0.29", "total_kimg=1.7",
    ),
    "periods shorter than an update": (
        "batching={batch_size: 64, micro_batch: 64, max_batch: 64}", EMAS, "eval.every_kimg=0.05", "checkpoint.every_kimg=0.01",
        "total_kimg=1",
    ),
    "swaps that grow the batch": (
        GROWS, EMAS, *EVERY, "swap={source: ema, start_kimg: 0.6, every_kimg: 0.5, growth: 2, after_kimg: 0.15}",
    ),
    "swaps at evaluations, scored again at the next": (
        BATCH, EMAS, *EVERY, "swap={source: ema, start_kimg: 0.4, every_kimg: 0.4, after_kimg: 0.4}",
    ),
    "swaps between evaluations, scored again at the next swap": (
        BATCH, EMAS, *EVERY, "swap={source: ema, start_kimg: 0.3, every_kimg: 0.25, after_kimg: 0.25}",
    ),
    "a swap whose last score is that of the end": (
        BATCH, EMAS, *EVERY, "swap={source: ema, start_kimg: 1.8, every_kimg: 0.5, after_kimg: 0.4}",
    ),
    "a schedule of batches": (
        "batching={name: schedule, batch_size: 16, micro_batch: 16, max_batch: 64, milestones: [[0.8, 32], [1.5, 64]]}", EMAS, *EVERY,
    ),
    "snapshots": (
        BATCH, "averagers={a: {name: power, sigma_rel: 0.1, snapshot_every_kimg: 0.2}, b: {name: power, sigma_rel: 0.05}}", *EVERY,
    ),
    "no average": (BATCH, "averagers={}", *EVERY),
    "scores in the background": (BATCH, EMAS, *EVERY, "eval.async=true"),
    "everything at the end only": (BATCH, EMAS, "eval.every_kimg=null", "tracking.samples_every_kimg=null", "total_kimg=2"),
}  # fmt: skip


QUICK = ["evaluations and samples", "swaps that grow the batch", "a schedule of batches", "everything at the end only"]


@pytest.mark.parametrize("what", slow_but(QUICK, RUNS))
def test_what_is_announced_is_what_passes(what, clock):
    """At every line at which all that is to come has been measured; until then, the line names what has not, and is short by just that."""
    lines = Simulated(clock, *RUNS[what]).train()
    whole = [(passed, times["throughput/left_s"]) for passed, times in lines if "throughput/left_excludes" not in times]
    assert len(lines) > 8 and (whole or what in ("everything at the end only", "scores in the background"))
    for passed, announced in whole:
        assert announced == pytest.approx(passed, rel=1e-9, abs=1e-6)
    for passed, times in lines:
        if "throughput/left_excludes" in times:
            assert times["throughput/left_s"] < passed


ORBITS = {  # settings; whether there are ever forty recordings without a jump, and so pictures
    "a short run": (("orbit.every_kimg=0.5", BATCH), False),
    "enough in the middle": (("orbit.every_kimg=0.04", BATCH), True),
    "enough at the end": (("orbit.every_kimg=0.053", BATCH), True),
    "swaps too close to each other": (
        ("orbit.every_kimg=0.04", GROWS, "swap={source: ema, start_kimg: 0.6, every_kimg: 0.7, growth: 2, after_kimg: 0.15}"), False,
    ),
    "swaps far from each other": (
        ("orbit.every_kimg=0.02", GROWS, "swap={source: ema, start_kimg: 0.3, every_kimg: 1.6, growth: 2, after_kimg: 0.15}"), True,
    ),
    "a batch that grows": (
        (
            "orbit.every_kimg=0.04",
            "batching={name: schedule, batch_size: 16, micro_batch: 16, max_batch: 64, milestones: [[0.8, 32], [1.5, 64]]}",
        ), False,
    ),
    "rates that fall": (("orbit.every_kimg=0.04", BATCH, "optim.lr_tail={kind: constant, start_kimg: 1, high: 0.5}"), False),
}  # fmt: skip


@pytest.mark.parametrize("what", slow_but(["a short run", "enough in the middle", "swaps far from each other"], ORBITS))
def test_pictures_of_the_orbit_are_due_once_there_is_enough_to_draw(what, clock):
    """A run that draws none is never said to lack their cost; before the first, a line is short by exactly those that come."""
    settings, draws = ORBITS[what]
    run = Simulated(clock, EMAS, *EVERY, *settings)
    lines = run.train()
    assert bool(run.pictures_drawn) == draws
    excludes = [str(times.get("throughput/left_excludes", "")) for _, times in lines]
    assert any(ORBIT_PICTURES in one for one in excludes) == draws
    for (passed, times), unknown in zip(lines, excludes):
        if unknown in ("", ORBIT_PICTURES):
            lacks = PER_PICTURE * run.pictures_drawn if unknown else 0
            assert times["throughput/left_s"] + lacks == pytest.approx(passed, rel=1e-9, abs=1e-6)
    assert any(unknown in ("", ORBIT_PICTURES) for unknown in excludes)


@pytest.mark.parametrize("error, cost", [(TooFewRecordings("forty"), None), (OSError("disk full"), PER_PICTURE)])
def test_a_picture_that_fails_costs_what_the_next_one_will(error, cost, clock, monkeypatch):
    """Otherwise its cost would be unknown forever; one that was not tried yet says nothing about it."""

    def fail(*_):
        clock.spend(PER_PICTURE)
        raise error

    monkeypatch.setattr(pictures, "require_recordings", fail)
    tracker = SimpleNamespace(say=lambda words: None)
    context, players = SimpleNamespace(costs=Costs(), run_dir=None, tracker=tracker), SimpleNamespace(banks={})
    orbit = SimpleNamespace(on=True, flush=lambda: None, recordings=None)
    pictures.Pictures(context, None, players, None, None, None, orbit).show_orbit()  # type: ignore[arg-type]  # what it uses
    assert context.costs.per_unit(ORBIT_PICTURES) == cost


def test_the_issues_case_scoring_and_sampling_are_counted(clock):
    """25 s were announced and 87 passed. Here 1,000 images are left at 13 ms, and 3 evaluations of 3 weights at 3.1 s each."""
    lines = Simulated(clock, BATCH, EMAS, "eval.every_kimg=0.5", "tracking.samples_every_kimg=0.5", "total_kimg=2").train()
    passed, times = next((passed, times) for passed, times in lines if passed < 70)
    assert times["throughput/left_s"] == pytest.approx(passed) and passed > 2 * 0.013 * 1000


def test_what_has_not_been_measured_is_named(clock):
    lines = Simulated(clock, *RUNS["everything at the end only"]).train()
    assert all(times["throughput/left_excludes"] == "scoring, samples" for _, times in lines)
    passed, times = lines[4]
    assert passed - times["throughput/left_s"] == pytest.approx(3 * PER_WEIGHTS + 3 * PER_SHEET)
    text = console_line(500, 2000, times)
    assert f"~{int(times['throughput/left_s'])}s to go" in text and text.endswith("| to go: plus scoring, samples")


def test_a_batch_that_grows_costs_what_larger_updates_cost(clock):
    """An update takes a second and 13 ms an image: from the second batch on, both are known, and so is what a third will cost."""
    growth = "batching={name: schedule, batch_size: 16, micro_batch: 16, max_batch: 64, milestones: [[0.8, 32], [1.504, 64]]}"
    lines = Simulated(clock, growth, EMAS, *EVERY, per_update=1.0).train()
    between = [(passed, times["throughput/left_s"]) for passed, times in lines[10:14]]
    assert all(announced == pytest.approx(passed, rel=0.03) for passed, announced in between)
    rough = lines[5]  # before the batch has grown, a larger one is assumed to cost the same per image
    assert rough[1]["throughput/left_s"] > rough[0]


def test_watch_has_the_runs_own_figure(clock):
    lines = Simulated(clock, *RUNS["evaluations and samples"]).train()
    teller, (_, times) = Teller(2.0), lines[3]
    teller.text({"nimg": 400, "loss/d": 1.0, **times})
    assert teller.rest().endswith(f"{console_line(400, 2000, times).split('+')[1].split('to go')[0].strip()} to go")
    teller.text({"nimg": 500, "loss/d": 1.0, "throughput/left_s": 25.0, "throughput/left_excludes": "scoring"})
    assert teller.rest().endswith("~25s to go, plus scoring")


def test_what_is_inside_is_not_counted_twice(clock):
    costs = Costs()
    with costs.measure("outer"):
        clock.spend(1)
        with costs.measure("inner", 2):
            clock.spend(10)
        clock.spend(2)
    assert costs.per_unit("outer") == 3 and costs.per_unit("inner") == 5


def test_work_that_fails_or_was_not_done_teaches_nothing(clock):
    costs = Costs()
    with pytest.raises(KeyError), costs.measure("a"):
        raise KeyError
    with costs.measure("a") as work:
        clock.spend(5)
        work.units = 0
    assert costs.per_unit("a") is None and costs.of({"a": 3, "b": 0}) == (0, ["a"])


def test_the_first_measurement_counts_until_there_is_a_second(clock):
    """It contains what happens only once, such as compilation."""
    costs = Costs()
    for seconds, expected in ((100, 100), (2, 2), (4, 3)):
        with costs.measure("a"):
            clock.spend(seconds)
        assert costs.per_unit("a") == expected


def test_pace_knows_the_batches_it_has_seen():
    pace = Pace()
    assert pace.of([(100, 16)]) is None and pace.of([]) == 0
    pace.add(160, 1.6, 16)
    assert pace.of([(100, 16), (100, 64)]) == pytest.approx(2.0)
    pace.add(320, 2.4, 32)  # 10 ms an image at 16, 7.5 at 32: 80 ms an update and 5 ms an image
    assert pace.of([(100, 16)]) == pytest.approx(1.0) and pace.of([(64, 64)]) == pytest.approx(0.08 + 0.32)
