"""How long an update takes and how near that is to what the machine can do, and what each part of gantrain costs.

    python tools/benchmark.py train configs/digits.yaml
    python tools/benchmark.py train configs/cifar10_biggan.yaml --images 10000 --against mixed_precision=bf16
    python tools/benchmark.py evaluate configs/digits.yaml --processes 2 --threads 1
    python tools/benchmark.py data configs/digits.yaml
    python tools/benchmark.py sample configs/cifar10_biggan.yaml
    python tools/benchmark.py startup configs/digits.yaml
    python tools/benchmark.py averaging configs/cifar10_biggan.yaml
    python tools/benchmark.py noise-scale configs/cifar10_biggan.yaml
    python tools/benchmark.py orbit configs/cifar10_biggan.yaml
    python tools/benchmark.py rounds configs/cifar10_biggan.yaml
    python tools/benchmark.py guard configs/cifar10_biggan.yaml
    python tools/benchmark.py words configs/cifar10_biggan.yaml
    python tools/benchmark.py tracker configs/digits.yaml

`train` times whole updates, each variant in a process of its own, beside the same convolutions and matrix products alone, which are
written down while an update is made: the bound. Every `--against` is the same configuration with overrides (several with spaces
between). `--images N` trains on random images instead of the data; what they show does not change the time.

`evaluate` times the scores of several averages beside sampling and extraction of one, on one process and on `--processes`.

`data` times the real images of a micro-batch beside a copy of as many bytes (into pinned memory where there is a GPU).

`sample` times a generator's images beside its convolutions and matrix products alone.

`startup` times the command: to its help, and to the line after the first update.

`averaging` times what the averages of the generator take: several of them in the bank, one after the other by the loop that
most trainers have (`e.copy_(e * d + p * (1 - d))`), a copy of as many bytes (the bound), and a whole update of the game, of
which it prints the share. Caches are full of other things before each, as after an update.

`noise-scale` times updates whose gradients are measured and updates whose are not, and prints what measuring one in so many
costs a training.

`orbit` times one recording of the weights of G, of D and of all their averages, and writing it, beside an update.

`rounds` sets a batch of one micro-batch beside one of several: time an image, and the peak memory of a process that trains with
it.

`guard` times what looks at an update's losses, gradients and weights, beside an update.

`words` times an update with each loss, penalty (at every step, and at the interval that it has by default), augmentation and
optimizer, with SAN's head and with clipping, each alone added to the configuration, and prints what it adds as a share of the update
as configured. All are timed in one process at the same weights, which do not move: learning rates are 0. A penalty that is applied at
every n-th step is timed over as many updates as it takes to come round. The update as configured is timed again before every fourth
variant, which is compared with the nearest one before it. `--only` chooses kinds or words.

The last six, and `sample`, need no data: images are random.

`tracker` times updates, each with a line of the record, without W&B and with one whose every call raises or hangs.

Variants take turns, A B A B, so that a machine that slows down slows them all. Prints medians and spreads over the turns;
`--json PATH` writes them, with the machine and the versions.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import command
import torch
from accelerate import Accelerator
from random_game import Game
from roofline import Roofline
from timing import Variant, answer, in_turns, machine, seconds_cold, seconds_of, versions
from update_words import KINDS, PLAIN, Word, WordGame, words_of

from gantrain import performance
from gantrain.averaging import AverageBank, Ema
from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.config.sections import Orbit
from gantrain.data import RealBatches, prepare
from gantrain.distributed import finish, make_accelerator
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.metrics import FeatureSet
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.reporting.view_thread import ViewThread
from gantrain.reporting.wandb_run import WandbRun
from gantrain.sampling.generators import generate
from gantrain.training.guard import Pulse
from gantrain.training.measurements import memory_gib
from gantrain.training.trainer import Trainer

QUIET = ["tracking.wandb.mode=disabled"]
UPDATE = "one update of the game"
COPY = "copying as many bytes"


def ready(config: str, overrides: list[str], folder: Path, accelerator: Accelerator) -> tuple[Trainer, float]:
    """(a trainer that has done two updates, so that everything is allocated; seconds that the first took)."""
    trainer = Trainer(load(config, [*QUIET, *overrides, f"run_dir={folder}"]), accelerator)
    trainer.start()
    began = time.perf_counter()
    trainer.update()
    first = time.perf_counter() - began
    trainer.update()
    return trainer, first


def on_random_images(arguments: argparse.Namespace) -> list[str]:
    """Overrides that replace the data, and what scores would need, by so many random images."""
    if arguments.images is None:
        return []
    resolution = load(arguments.config, arguments.overrides).data.resolution
    data = {
        "name": "random_images:RandomImages",
        "resolution": resolution,
        "size": arguments.images,
        "channels": arguments.channels,
        "num_classes": arguments.classes,
    }
    return [*(f"data.{key}={value}" for key, value in data.items()), "eval.features.name=digits"]


def kept_apart(text: str) -> str:
    """Overrides of a variant as one argument; an argparse type."""
    try:
        if shlex.split(text):
            return text
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {str(error).lower()}") from None
    raise argparse.ArgumentTypeError("is empty; write for example --against performance.channels_last=false")


def spread(taken: list[float]) -> dict[str, Any]:
    """Every turn's seconds, and what is said of them."""
    return {"seconds": taken, "median": statistics.median(taken), "min": min(taken), "max": max(taken)}


def updates_of(connection: Connection, folder: Path, config: str, overrides: list[str]) -> None:
    """Answer what whole updates take, in a process of its own."""
    accelerator = make_accelerator(load(config, overrides).mixed_precision)
    answer_updates(connection, *ready(config, overrides, folder, accelerator))  # the trainer must be gone before the processes part
    finish(accelerator)


def answer_updates(connection: Connection, trainer: Trainer, first: float) -> None:
    """A trainer's "updates", their operators "alone", its peak "memory", and the time spent "waiting" for data.

    Args:
        first: seconds that its first update took.
    """
    bound, players, device = Roofline(), trainer.players.by_key.values(), trainer.context.device
    cycle = max([1, *(one.every for one in trainer.config.penalties.values())])  # updates until all penalties had their turn
    if not trainer.context.performance.compile:  # compiled code shows no operators
        weights = [(player, player.orthogonal) for player in players]
        for player in players:
            player.orthogonal = 0.0  # a regulariser's products are no part of the game
        with bound:
            for _ in range(cycle):
                trainer.update()
        for player, weight in weights:
            player.orthogonal = weight
        bound.run()

    def update() -> None:
        trainer.update()
        trainer.guard.listen()  # as after every update

    connection.send({"batch_size": trainer.batching.batch_size, "operators": len(bound.calls) // cycle, "first": first})
    trainer.inputs.data_wait = 0.0
    answer(connection, {
        "updates": lambda updates: seconds_of(update, updates, device),
        "alone": lambda times: seconds_of(bound.run, times, device) / cycle if bound.calls else None,
        "memory": lambda _: memory_gib(device),
        "waiting": lambda _: trainer.inputs.data_wait,
    })  # fmt: skip
    trainer.close(wait=False)


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole updates of one configuration and of variants of it, and what their convolutions and matrix products take alone."""
    names, data = ["as configured", *arguments.against], on_random_images(arguments)
    overrides = {name: [*data, *arguments.overrides, *shlex.split(name if name in arguments.against else "")] for name in names}
    for of in overrides.values():
        load(arguments.config, of)  # what is wrong is said before anything is started
    variants = {name: Variant(updates_of, (arguments.config, of), arguments.threads) for name, of in overrides.items()}
    if arguments.processes > 1:
        names.append(f"{arguments.processes} processes")
        variants[names[-1]] = Variant(updates_of, (arguments.config, overrides[names[0]]), arguments.threads, arguments.processes)
    asks = {"updates": arguments.updates, "alone": 1}
    times = in_turns(
        {(name, what): functools.partial(one.ask, what, number) for name, one in variants.items() for what, number in asks.items()},
        arguments.turns,
    )
    print(f"\n{arguments.config}: {machine(arguments.threads)}; {arguments.turns} turns of {arguments.updates} updates")
    width = max(map(len, names))
    print(
        f"{'variant':{width}}  {'ms/update':>10} {'min':>9} {'max':>9} {'img/s':>9} {'speed':>7} {'bound ms':>10} {'reached':>8}"
        f" {'data':>7} {'GiB':>6} {'first s':>8}"
    )
    rows, base = [], times[names[0], "updates"]
    for name, variant in variants.items():
        taken, alone, batch = times[name, "updates"], times[name, "alone"], variant.facts["batch_size"]
        median, speed = statistics.median(taken), statistics.median(b / t for t, b in zip(taken, base))
        known = None not in alone
        reached = statistics.median(a / t for t, a in zip(taken, alone)) if known else None
        rows.append({
            "variant": name, **spread(taken), "speed": speed, "batch_size": batch, "bound": spread(alone) if known else None,
            "reached": reached, "operators": variant.facts["operators"], "first_update": variant.facts["first"],
            "peak_gib": variant.ask("memory"), "data_wait": variant.ask("waiting") / (sum(taken) * arguments.updates),
        })  # fmt: skip
        beside = f"{statistics.median(alone) * 1e3:10.2f} {reached:8.1%}" if known else f"{'-':>10} {'-':>8}"
        print(
            f"{name:{width}}  {median * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {batch / median:9.1f} {speed:6.2f}x"
            f" {beside} {rows[-1]['data_wait']:7.2%} {rows[-1]['peak_gib']:6.2f} {variant.facts['first']:8.2f}"
        )
        variant.end()
    print(
        "bound: the update's convolutions and matrix products alone, in a process of the same settings, of the same shapes and precisions;"
    )
    print("reached: its share of the update; speed: updates beside those as configured;", end=" ")
    print("data: the share of the time in which updates stood still for their real images; first: the first update, which may compile")
    return {"rows": rows}


def scoring_of(connection: Connection, folder: Path, config: str, overrides: list[str], averages: int) -> None:
    """An evaluator: the "reference", sampling and extraction of "one", scores of "all" averages, and their "metrics" alone."""
    os.environ["GANTRAIN_CACHE"] = str(folder)
    c = load(config, [*QUIET, *overrides, f"run_dir={folder}"])
    accelerator = make_accelerator(c.mixed_precision)
    switches = performance.pick(c.performance, accelerator.device)
    performance.set_up(switches, accelerator.device)
    images = prepare(c.data, accelerator.device)
    torch.manual_seed(c.seed)
    live, apart = (
        performance.place(c.model.build(images.resolution, images.channels, images.num_classes)[0], switches, accelerator.device)
        for _ in range(2)
    )
    bank = AverageBank(live, {f"ema{i}": Ema(half_life_kimg=10.0 * 2**i, ramp_up=None) for i in range(averages)})
    bank.update(c.batching.batch_size)
    evaluator = Evaluator(c, images, accelerator, show_progress=False)
    evaluator.extractor  # noqa: B018 - built, and its weights read, before anything is timed

    def one() -> FeatureSet | None:
        bank.materialize(names[0], apart)
        evaluator.fit_batchnorm(apart)
        return evaluator.generate_features(apart, names[0])

    names = bank.started()
    with evaluator.isolated():
        reference_seconds = seconds_of(evaluator.reference, 1, accelerator.device)
        found, reference = one(), evaluator.reference()
        connection.send({"reference": reference_seconds, "samples": c.eval.num_samples, "references": evaluator.num_reference})
        answer(connection, {
            "one": lambda times: seconds_of(one, times, accelerator.device),
            "all": lambda times: seconds_of(lambda: evaluator.score(names, bank.materialize, apart), times, accelerator.device),
            "metrics": lambda times: seconds_of(lambda: evaluator.compute_metrics(found, reference), times, accelerator.device),
        })  # fmt: skip
    finish(accelerator)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores of several averages beside sampling and extraction of one, on one process and on several."""
    several = {f"{arguments.processes} processes": arguments.processes} if arguments.processes > 1 else {}
    worlds, n = {"one process": 1, **several}, arguments.averages
    overrides = [*on_random_images(arguments), *arguments.overrides]
    variants = {
        name: Variant(scoring_of, (arguments.config, overrides, n), arguments.threads, processes) for name, processes in worlds.items()
    }
    times = in_turns(
        {(name, what): functools.partial(one.ask, what) for name, one in variants.items() for what in ("one", "all", "metrics")},
        arguments.turns,
    )
    facts = variants["one process"].facts
    print(
        f"\n{arguments.config}: {facts['samples']} samples an average, {facts['references']} real images;"
        f" {machine(arguments.threads)} a process; {arguments.turns} turns"
    )
    width = max(map(len, worlds))
    print(
        f"{'':{width}}  {'one: s':>9} {f'{n} scored: s':>12} {'min':>8} {'max':>8} {f'/ {n} x one':>10} {'metrics: s':>11}"
        f" {'reference: s':>13} {'speed':>7}"
    )
    rows = []
    for name, variant in variants.items():
        one, scored, metrics = (times[name, what] for what in ("one", "all", "metrics"))
        ratio = statistics.median(a / (n * o) for a, o in zip(scored, one))
        speed = statistics.median(b / a for a, b in zip(scored, times["one process", "all"]))
        rows.append(
            {
                "variant": name,
                "one": spread(one),
                "scored": spread(scored),
                "metrics": spread(metrics),
                "ratio": ratio,
                "speed": speed,
                **variant.facts,
            }
        )
        print(
            f"{name:{width}}  {statistics.median(one):9.3f} {statistics.median(scored):12.3f} {min(scored):8.3f} {max(scored):8.3f}"
            f" {ratio:10.3f} {statistics.median(metrics):11.3f} {variant.facts['reference']:13.3f} {speed:6.2f}x"
        )
        variant.end()
    print("one: BatchNorm, sampling and features of one average, without metrics; metrics: of one;", end=" ")
    print("reference: features of the real images, once")
    return {"averages": n, "rows": rows}


def data(arguments: argparse.Namespace) -> dict[str, Any]:
    """How fast real images come, as configured and otherwise, beside copying as many bytes."""
    names, device = ["as configured", *arguments.against], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured: dict[str, Callable[[], float]] = {}
    b = facts = None
    streams = []
    for name in names:
        config = load(
            arguments.config, [*on_random_images(arguments), *arguments.overrides, *shlex.split(name if name in arguments.against else "")]
        )
        images, b = prepare(config.data, device), config.batching.micro_batch or config.batching.batch_size
        facts = facts or f"{images.channels} x {images.resolution} x {images.resolution}"
        streams.append(RealBatches(images, config.seed, b, 0, 1, 0, device, config.data.flip, config.data.workers))
        for _ in range(8):  # what was decoded ahead before the clock began
            streams[-1].next()
        measured[name] = functools.partial(seconds_of, streams[-1].next, arguments.batches, device)
    shape = (b, images.channels, images.resolution, images.resolution)
    size = math.prod(shape)
    # So many that no cache holds them: real images come from memory, too.
    buffers = [
        (torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda"))
        for _ in range(2**28 // size + 1)
    ]
    turn = itertools.cycle(buffers)

    def copy() -> None:
        source, target = next(turn)
        target.copy_(source)

    measured[COPY] = functools.partial(seconds_of, copy, arguments.batches, torch.device("cpu"))
    times = in_turns(measured, arguments.turns)
    print(f"\n{arguments.config}: micro-batches of {b}, {facts}; {machine()}; {arguments.turns} turns of {arguments.batches}")
    width = max(map(len, measured))
    print(f"{'':{width}}  {'ms':>9} {'min':>9} {'max':>9} {'img/s':>10} {'MB/s':>9} {'reached':>8}")
    rows = []
    for name, taken in times.items():
        median, reached = statistics.median(taken), statistics.median(c / t for t, c in zip(taken, times[COPY]))
        rows.append({"variant": name, **spread(taken), "img_per_s": b / median, "bytes_per_s": size / median, "reached": reached})
        print(
            f"{name:{width}}  {median * 1e3:9.3f} {min(taken) * 1e3:9.3f} {max(taken) * 1e3:9.3f} {b / median:10.0f}"
            f" {size / median / 1e6:9.0f} {reached:8.1%}"
        )
    for stream in streams:
        stream.close()
    return {"micro_batch": b, "rows": rows}


def sample(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images that a generator makes, beside its convolutions and matrix products alone."""
    game = Game(load(arguments.config, arguments.overrides), arguments)
    generator, n = game.players[0].network.eval(), arguments.num
    z, y = torch.randn(n, generator.dim_z, device=game.device), torch.arange(n, device=game.device) % arguments.classes

    @torch.no_grad()
    def draw() -> None:
        generate(generator, z, y, arguments.batch)

    draw()
    with Roofline() as bound:
        draw()
    bound.run()
    times = in_turns(
        {what: functools.partial(seconds_of, call, 1, game.device) for what, call in (("sampling", draw), ("alone", bound.run))},
        arguments.turns,
    )
    median, reached = statistics.median(times["sampling"]), statistics.median(a / s for s, a in zip(times["sampling"], times["alone"]))
    print(f"\n{arguments.config}: {n} images in batches of {arguments.batch}; {machine()}; {arguments.turns} turns")
    print(f"{'img/s':>9} {'ms/image':>9} {'min':>9} {'max':>9} {'bound':>9} {'reached':>8}")
    each = [t / n * 1e3 for t in times["sampling"]]
    print(
        f"{n / median:9.1f} {median / n * 1e3:9.3f} {min(each):9.3f} {max(each):9.3f}"
        f" {statistics.median(times['alone']) / n * 1e3:9.3f} {reached:8.1%}"
    )
    return {"images": n, **spread(times["sampling"]), "bound": spread(times["alone"]), "reached": reached}


def startup(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the command to its help, and to the line after the first update, with the data prepared."""
    config = load(arguments.config, arguments.overrides)
    first = config.batching.batch_size / 1000
    overrides = [
        *on_random_images(arguments),
        *arguments.overrides,
        *QUIET,
        f"tracking.every_kimg={first}",
        "tracking.samples_every_kimg=null",
        "eval.every_kimg=null",
    ]

    def command_line(*words: str) -> float:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "gantrain", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            said = []
            for line in process.stdout:
                said.append(line)
                if " kimg " in line and "loss D" in line:
                    process.kill()
                    return time.perf_counter() - began
            if process.wait():
                raise UserError(f"the command failed: {''.join(said)[-500:]}")
        return time.perf_counter() - began

    def train_once() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return command_line("train", arguments.config, *overrides, f"run_dir={folder}")

    train_once()  # so that files are where the system keeps what it has read, and the data is prepared
    times = in_turns({"gantrain --help": lambda: command_line("--help"), "first update": train_once}, arguments.turns)
    print(f"\n{arguments.config}: {machine(arguments.threads)}; {arguments.turns} turns")
    print(f"{'':16}  {'s':>8} {'min':>8} {'max':>8}")
    for name, taken in times.items():
        print(f"{name:16}  {statistics.median(taken):8.2f} {min(taken):8.2f} {max(taken):8.2f}")
    return {name: spread(taken) for name, taken in times.items()}


class Failing:
    """A W&B run whose every call raises, or hangs."""

    def __init__(self, hangs: bool):
        self.hangs = hangs

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any, **kwargs: Any) -> None:
            if self.hangs:
                time.sleep(1e6)
            raise ConnectionError("W&B cannot be reached")

        return call


def tracker(arguments: argparse.Namespace) -> dict[str, Any]:
    """Updates, each with its line of the record, without W&B, with one that raises at every call, and with one that hangs."""
    accelerator = make_accelerator(load(arguments.config, arguments.overrides).mixed_precision)
    names = {"without W&B": None, "every call raises": False, "every call hangs": True}

    def update_and_line(trainer: Trainer) -> None:
        trainer.update()
        trainer.measurements.log()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # of their lines
        trainers = {
            name: ready(arguments.config, arguments.overrides, Path(folder) / str(i), accelerator)[0] for i, name in enumerate(names)
        }
        for name, hangs in names.items():
            if hangs is not None:
                start = functools.partial(WandbRun, Failing(hangs), None, Path(folder), lambda line: None)
                trainers[name].tracker.views.append(ViewThread("wandb", start, 1.0, lambda line: None))
        times = in_turns(
            {
                name: functools.partial(seconds_of, functools.partial(update_and_line, t), arguments.updates, t.context.device)
                for name, t in trainers.items()
            },
            arguments.turns,
        )
        for trainer in trainers.values():
            trainer.close(wait=False)
    base = times["without W&B"]
    print(f"\n{arguments.config}: {machine()}; {arguments.turns} turns of {arguments.updates} updates, a line of the record each")
    print(f"{'variant':18}  {'ms/update':>10} {'min':>9} {'max':>9} {'time':>7}")
    rows = []
    for name, taken in times.items():
        rows.append({"variant": name, **spread(taken), "ratio": statistics.median(t / b for t, b in zip(taken, base))})
        print(f"{name:18}  {rows[-1]['median'] * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {rows[-1]['ratio']:6.3f}x")
    del trainers, trainer
    finish(accelerator)
    return {"rows": rows}


def noise_scale(arguments: argparse.Namespace) -> dict[str, Any]:
    """What measuring the gradient noise scale costs."""
    config = load(arguments.config, arguments.overrides)
    game, every = Game(config, arguments), arguments.every or config.noise_scale.measure_every or 10
    game.update(True)
    variants = {
        name: functools.partial(seconds_of, functools.partial(game.update, measured), 1, game.device)
        for name, measured in (("plain", False), ("measured", True))
    }
    times = in_turns(variants, arguments.turns)
    more = [measured - plain for plain, measured in zip(times["plain"], times["measured"])]
    plain = statistics.median(times["plain"])
    share = statistics.median(more) / every / plain
    halves = ", measured in two halves" if game.probes[0].halves(game.rounds) else ""
    print(
        f"\n{arguments.config}: batch {game.batch_size} = {game.rounds} x {game.micro_batch}{halves}, {config.optim.d_steps} D steps;"
        f" {machine()}; {arguments.turns} turns"
    )
    print(f"{'':10}{'ms':>10} {'min':>9} {'max':>9}")
    for name, taken in times.items():
        print(f"{name:10}{statistics.median(taken) * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f}")
    print(f"one update in {every} measured: {share:+.2%} of training time")
    return {
        **{name: spread(taken) for name, taken in times.items()},
        "every": every,
        "share": share,
        "rounds": game.rounds,
        "micro_batch": game.micro_batch,
    }


def peak_memory(config: str, overrides: list[str], channels: int, classes: int, threads: int, rounds: int, answer: Any) -> None:
    """In a process of its own: two updates, and the most memory there was, in MiB."""
    torch.set_num_threads(threads)
    game = Game(load(config, overrides), argparse.Namespace(channels=channels, classes=classes), rounds)
    for _ in range(2):
        game.update()
    on_device = torch.cuda.max_memory_allocated() / 2**20 if game.device.type == "cuda" else None
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 if on_device is None else on_device)


def rounds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time an image and peak memory of one round and of several."""
    config = load(arguments.config, arguments.overrides)
    games = {k: Game(config, arguments, k) for k in (1, arguments.rounds)}
    for game in games.values():
        game.update()
    times = in_turns(
        {str(k): functools.partial(seconds_of, game.update, arguments.rounds // k, game.device) for k, game in games.items()},
        arguments.turns,
    )
    spawn, memory = multiprocessing.get_context("spawn"), {}
    for k in games:
        answer = spawn.Queue()
        process = spawn.Process(
            target=peak_memory,
            args=(arguments.config, arguments.overrides, arguments.channels, arguments.classes, torch.get_num_threads(), k, answer),
        )
        process.start()
        process.join()
        memory[k] = answer.get()
    print(
        f"\n{arguments.config}: rounds of {games[1].micro_batch} images, {config.optim.d_steps} D steps; {machine()};"
        f" {arguments.turns} turns"
    )
    print(f"{'rounds':>8}{'batch':>8}{'ms/image':>11} {'min':>9} {'max':>9} {'time':>7} {'peak MiB':>10} {'memory':>7}")
    rows = []
    for k, game in games.items():
        taken = [t / game.batch_size for t in times[str(k)]]
        ratio = statistics.median(t / (base / games[1].batch_size) for t, base in zip(taken, times["1"]))
        rows.append({"rounds": k, "batch_size": game.batch_size, "an_image": spread(taken), "ratio": ratio, "peak_mib": memory[k]})
        print(
            f"{k:8}{game.batch_size:8}{statistics.median(taken) * 1e3:11.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {ratio:6.2f}x"
            f" {memory[k]:10.0f} {memory[k] / memory[1]:6.3f}x"
        )
    return {"rows": rows}


def averaging(arguments: argparse.Namespace) -> dict[str, Any]:
    """What averages of the generator cost beside an update."""
    config = load(arguments.config, arguments.overrides)
    game = Game(config, arguments)
    generator, device, update = game.players[0].network, game.device, game.update
    count = arguments.averages
    bank = AverageBank(generator, {f"ema{i}": Ema(half_life_kimg=10.0 * 2**i, ramp_up=None) for i in range(count)})
    position = itertools.count(config.batching.batch_size, config.batching.batch_size)
    live = [p.detach() for p in generator.parameters()]
    naive = [[p.clone() for p in live] for _ in range(count)]
    decays = [0.5 ** (config.batching.batch_size / (10_000 * 2**i)) for i in range(count)]

    def by_loop() -> None:
        for tensors, d in zip(naive, decays):
            for e, p in zip(tensors, live):
                e.copy_(e * d + p * (1 - d))

    def copies() -> None:
        for tensors in naive:
            torch._foreach_copy_(tensors, live)

    update()
    bank.update(next(position))
    variants = {
        f"{count} averages in the bank": functools.partial(seconds_cold, lambda: bank.update(next(position)), arguments.repeats, device),
        f"{count} averages by a naive loop": functools.partial(seconds_cold, by_loop, arguments.repeats, device),
        f"{count} copies of the weights": functools.partial(seconds_cold, copies, arguments.repeats, device),
        UPDATE: functools.partial(seconds_of, update, 1, device),
    }
    parameters = sum(p.numel() for p in live)
    rows = beside_an_update(variants, config, arguments, f"G of {parameters:,} parameters in {len(live)} tensors")
    return {"parameters": parameters, "rows": rows}


def beside_an_update(
    variants: Mapping[str, Callable[[], float]], config: Config, arguments: argparse.Namespace, what: str
) -> list[dict[str, Any]]:
    """Time variants, of which one is `UPDATE`, and print each with its share of that."""
    times = in_turns(variants, arguments.turns)
    whole = statistics.median(times[UPDATE])
    print(
        f"\n{arguments.config}: {what}, batch {config.batching.batch_size}, {config.optim.d_steps} D steps; {machine()};"
        f" {arguments.turns} turns"
    )
    width = max(map(len, times))
    print(f"{'':{width}}  {'ms':>10} {'min':>9} {'max':>9} {'of an update':>13}")
    rows = []
    for name, taken in times.items():
        median = statistics.median(taken)
        rows.append({"variant": name, **spread(taken), "share": median / whole})
        print(f"{name:{width}}  {median * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {median / whole:12.2%}")
    return rows


def orbit(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a recording of the orbit costs beside an update."""
    config = load(arguments.config, arguments.overrides)
    game = Game(config, arguments)
    averagers = {f"ema{i}": Ema(half_life_kimg=10.0 * 2**i, ramp_up=None) for i in range(arguments.averages)}
    banks = {key: AverageBank(player.network, averagers) for key, player in zip("gd", game.players)}
    game.update()
    for bank in banks.values():
        bank.update(game.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        recorder = OrbitRecorder(Orbit(every_kimg=1.0), banks, Path(folder), writes=True)
        recorder.open()
        facts = {"batch_size": game.batch_size, "lr": {key: one.optimizer.param_groups[0]["lr"] for key, one in zip("gd", game.players)}}

        position = itertools.count()  # a moment is recorded once

        def record_and_write() -> None:
            recorder.record(next(position), facts)
            recorder.flush()

        variants = {
            f"one recording, {arguments.averages} averages each": functools.partial(
                seconds_cold, record_and_write, arguments.repeats, game.device
            ),
            UPDATE: functools.partial(seconds_of, game.update, 1, game.device),
        }
        sizes = [sum(p.numel() for p in player.network.parameters()) for player in game.players]
        rows = beside_an_update(variants, config, arguments, "G and D of {:,} and {:,} parameters".format(*sizes))
        recordings = len(recorder.path.read_text().splitlines())
    return {"parameters": sizes, "recordings": recordings, "rows": rows}


def guard(arguments: argparse.Namespace) -> dict[str, Any]:
    """What it costs to look at every update's losses, gradients and weights."""
    config = load(arguments.config, arguments.overrides)
    game, pulse = Game(config, arguments), Pulse(make_accelerator(config.mixed_precision))
    game.update()
    weights = {key: [p.detach() for p in player.network.parameters()] for key, player in zip("gd", game.players)}
    known = {
        name: torch.ones((), device=game.device) for name in ("loss/d", "loss/g", "grad_norm/d", "grad_norm/g")
    }  # an update has them anyway

    def look() -> None:
        norms = {f"weights/{key}": torch.nn.utils.get_total_norm(of) for key, of in weights.items()}
        pulse.send(0, 1, known | norms, None)
        pulse.receive()

    variants = {
        "looking at one update": functools.partial(seconds_cold, look, arguments.repeats, game.device),
        UPDATE: functools.partial(seconds_of, game.update, 1, game.device),
    }
    return {"rows": beside_an_update(variants, config, arguments, "losses, gradients and weights finite on one process")}


def words(arguments: argparse.Namespace) -> dict[str, Any]:
    """What each word adds to an update."""
    config = load(arguments.config, arguments.overrides)
    found, refused = words_of(arguments.config, arguments.overrides, config, arguments.only)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(reasons or f"--only: there is nothing of this name to add; use {', '.join(KINDS)}, or a name such as r1")
    game = WordGame(config, arguments)
    plain = Word(PLAIN, PLAIN, "", config, 1)
    for word in (plain, *found):
        game.time(word, 1)  # everything is allocated, and every optimizer has its state
    times: dict[str, list[float]] = {word.name: [] for word in found}
    shares: dict[str, list[float]] = {word.name: [] for word in found}
    base: list[float] = []
    for _ in range(arguments.turns):
        for i, word in enumerate(found):
            if i % 4 == 0:
                base.append(game.time(plain, plain.cycle))
            times[word.name].append(game.time(word, word.cycle))
            shares[word.name].append(times[word.name][-1] / base[-1] - 1)
    optim = config.optim
    print(
        f"\n{arguments.config}: batch {config.batching.batch_size}, {optim.d_steps} D and {optim.g_steps} G steps; {machine()};"
        f" {arguments.turns} turns"
    )
    width = max(len(name) for name in (PLAIN, *times))
    print(f"{'':{width}}  {'ms/update':>10} {'min':>9} {'max':>9} {'more':>8} {'min':>8} {'max':>8} {'updates':>8}")
    print(f"{PLAIN:{width}}  {statistics.median(base) * 1e3:10.2f} {min(base) * 1e3:9.2f} {max(base) * 1e3:9.2f}")
    rows: list[dict[str, Any]] = [{"variant": PLAIN, **spread(base)}]
    for word in found:
        taken, share = times[word.name], shares[word.name]
        more = {"median": statistics.median(share), "min": min(share), "max": max(share)}
        rows.append({
            "variant": word.name, "kind": word.kind, "overrides": word.overrides, "updates": word.cycle, **spread(taken), "more": more,
        })  # fmt: skip
        print(
            f"{word.name:{width}}  {statistics.median(taken) * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f}"
            f" {more['median']:+8.1%} {more['min']:+8.1%} {more['max']:+8.1%} {word.cycle:8}"
        )
    for name, reason in refused.items():
        print(f"{name}: left out: {reason}")
    print("more: what it adds, as a share of the update as configured that was timed last before it; updates: timed as one, a turn")
    return {"rows": rows, "left_out": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("config")
    shared.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every variant")
    shared.add_argument("--turns", type=command.positive, default=5, help="turns of every variant (default: 5)")
    shared.add_argument("--threads", type=command.positive, help="torch threads (default: torch's own)")
    shared.add_argument("--json", type=command.writable, metavar="PATH")
    images = argparse.ArgumentParser(add_help=False)
    images.add_argument("--channels", type=command.positive, default=3, help="of the images (default: 3)")
    images.add_argument("--classes", type=command.positive, default=10, help="of the data (default: 10)")
    random = argparse.ArgumentParser(add_help=False, parents=[images])
    random.add_argument("--images", type=command.positive, metavar="N", help="use N random images instead of the data")
    others = argparse.ArgumentParser(add_help=False)
    others.add_argument(
        "--against", action="append", default=[], type=kept_apart, metavar="'KEY=VALUE ...'", help="another variant; may be given often"
    )
    whole = kinds.add_parser("train", parents=[shared, random, others], help="whole updates beside their convolutions and products alone")
    whole.add_argument("--updates", type=command.positive, default=10, help="updates a turn (default: 10)")
    whole.add_argument("--processes", type=command.positive, default=1, help="also as configured on so many (default: 1)")
    whole.set_defaults(call=train)
    scores = kinds.add_parser("evaluate", parents=[shared, random], help="scores of averages, on one process and on several")
    scores.add_argument("--averages", type=command.positive, default=6, help="how many (default: 6)")
    scores.add_argument("--processes", type=command.positive, default=1, help="also on so many (default: 1)")
    scores.set_defaults(call=evaluate)
    stream = kinds.add_parser("data", parents=[shared, random, others], help="how fast real images come")
    stream.add_argument("--batches", type=command.positive, default=50, help="micro-batches a turn (default: 50)")
    stream.set_defaults(call=data)
    draws = kinds.add_parser("sample", parents=[shared, images], help="how fast a generator makes images")
    draws.add_argument("--num", type=command.positive, default=256, help="images a turn (default: 256)")
    draws.add_argument("--batch", type=command.positive, default=64, help="images a forward (default: 64)")
    draws.set_defaults(call=sample)
    begins = kinds.add_parser("startup", parents=[shared, random], help="from the command to its first update")
    begins.set_defaults(call=startup)
    failing = kinds.add_parser("tracker", parents=[shared], help="updates with a W&B that raises or hangs")
    failing.add_argument("--updates", type=command.positive, default=20, help="updates a turn (default: 20)")
    failing.set_defaults(call=tracker)
    averages = kinds.add_parser("averaging", parents=[shared, images], help="averages of the generator beside an update")
    averages.add_argument("--averages", type=command.positive, default=5, help="how many (default: 5)")
    averages.add_argument("--repeats", type=command.positive, default=20, help="updates of the averages a turn (default: 20)")
    averages.set_defaults(call=averaging)
    noise = kinds.add_parser("noise-scale", parents=[shared, images], help="measured updates beside others")
    noise.add_argument(
        "--every", type=command.positive, metavar="N", help="one update in N is measured (default: the configuration's, else 10)"
    )
    noise.set_defaults(call=noise_scale)
    path = kinds.add_parser("orbit", parents=[shared, images], help="a recording of the orbit beside an update")
    path.add_argument("--averages", type=command.positive, default=5, help="of each network (default: 5)")
    path.add_argument("--repeats", type=command.positive, default=5, help="recordings a turn (default: 5)")
    path.set_defaults(call=orbit)
    watch = kinds.add_parser("guard", parents=[shared, images], help="what the guard looks at beside an update")
    watch.add_argument("--repeats", type=command.positive, default=5, help="looks a turn (default: 5)")
    watch.set_defaults(call=guard)
    each = kinds.add_parser("words", parents=[shared, images], help="each loss, penalty, augmentation and optimizer beside an update")
    each.add_argument(
        "--only", action="append", default=[], metavar="WORD", help=f"a kind ({', '.join(KINDS)}) or a name, such as r1; may be given often"
    )
    each.set_defaults(call=words, turns=3)
    several = kinds.add_parser("rounds", parents=[shared, images], help="time and memory of a batch in rounds")
    several.add_argument("--rounds", type=command.positive, default=16, help="of the larger batch (default: 16)")
    several.set_defaults(call=rounds)
    arguments, rest = parser.parse_known_args()  # overrides may stand behind options, too
    if any(word.startswith("-") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides += rest
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    record = arguments.call(arguments)
    if arguments.json:
        head = {"config": arguments.config, "overrides": arguments.overrides, "machine": machine(arguments.threads), "versions": versions()}
        arguments.json.write_text(json.dumps({**head, **record}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    command.run(main)
