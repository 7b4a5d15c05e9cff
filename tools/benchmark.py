"""How long an update takes, what a setting costs or saves, and what averaging, measuring noise, recording the orbit and rounds cost.

    python tools/benchmark.py train configs/digits.yaml
    python tools/benchmark.py train configs/digits.yaml --against performance.channels_last=false --against "averagers.swa=null averagers.ema_short=null"
    python tools/benchmark.py averaging configs/cifar10_biggan.yaml
    python tools/benchmark.py noise-scale configs/cifar10_biggan.yaml
    python tools/benchmark.py orbit configs/cifar10_biggan.yaml
    python tools/benchmark.py rounds configs/cifar10_biggan.yaml
    python tools/benchmark.py guard configs/cifar10_biggan.yaml
    python tools/benchmark.py tracker configs/digits.yaml

`train` times whole updates. Every `--against` is the same configuration with overrides (several with spaces between).

`averaging` times what the averages of the generator take: several of them in the bank, one after the other by the loop that
most trainers have (`e.copy_(e * d + p * (1 - d))`), a copy of as many bytes (the bound), and a whole update of the game, of
which it prints the share. Caches are full of other things before each, as after an update.

`noise-scale` times updates whose gradients are measured and updates whose are not, and prints what measuring one in so many
costs a training.

`orbit` times one recording of the weights of G, of D and of all their averages, and writing it, beside an update.

`rounds` sets a batch of one micro-batch beside one of several: time an image, and the peak memory of a process that trains with
it.

`guard` times what looks at an update's losses, gradients and weights, beside an update. These five need no data: images are
random.

`tracker` times updates, each with a line of the record, without W&B and with one whose every call raises or hangs.

Variants take turns, A B A B, so that a machine that slows down slows them all. Prints medians and spreads over the turns;
`--json PATH` writes them.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import platform
import resource
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import command

from gantrain import __version__
from gantrain.averaging import AverageBank, Ema
from gantrain.batching import GradientProbe
from gantrain.config import Config
from gantrain.distributed import finish, make_accelerator
from gantrain.guard import Pulse
from gantrain.loading import load
from gantrain.recording import OrbitRecorder
from gantrain.theory.sketch import Orbit
from gantrain.tracking import WandbRun, WandbThread
from gantrain.trainer import Trainer
from gantrain.update import Player, discriminator_phase, generator_phase, make_adam, sees_real

QUIET = ["tracking.wandb.mode=disabled"]
UPDATE = "one update of the game"


def ready(config: str, overrides: list[str], folder: Path, accelerator) -> Trainer:
    """A trainer that has made two updates, so that everything is allocated."""
    trainer = Trainer(load(config, [*QUIET, *overrides, f"run_dir={folder}"]), accelerator)
    trainer.start()
    for _ in range(2):
        trainer.update()
    return trainer


def seconds(trainer: Trainer, updates: int) -> float:
    """Seconds an update, over some updates."""
    return seconds_of(trainer.update, updates, trainer.device)


def seconds_of(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds a call, over some calls."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - begin) / repeats


def seconds_cold(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The same with caches full of something else before every call, as an update leaves them."""
    scratch = torch.zeros(2**26, device=device)  # 256 MiB
    taken = 0.0
    for _ in range(repeats):
        scratch.add_(1.0)
        taken += seconds_of(call, 1, device)
    return taken / repeats


def machine() -> str:
    """The device and its software, for a table's head."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{device}; gantrain {__version__}, torch {torch.__version__}"


def in_turns(variants: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Every variant's seconds at every turn, A B A B."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, measure in variants.items():
            times[name].append(measure())
    return times


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole updates of one configuration and of variants of it."""
    accelerator = make_accelerator(load(arguments.config, arguments.overrides).mixed_precision)
    names = ["as configured", *arguments.against]
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: ready(arguments.config, [*arguments.overrides, *shlex.split(name if name in arguments.against else "")], Path(folder) / str(i), accelerator)
            for i, name in enumerate(names)
        }
        times = in_turns({name: functools.partial(seconds, trainer, arguments.updates) for name, trainer in trainers.items()}, arguments.turns)
        batch = {name: trainer.batching.batch_size for name, trainer in trainers.items()}
    print(f"\n{arguments.config}: {machine()}; {arguments.turns} turns of {arguments.updates} updates")
    width = max(map(len, names))
    print(f"{'variant':{width}}  {'ms/update':>10} {'min':>9} {'max':>9} {'img/s':>9} {'time':>7}")
    rows = []
    for name, taken in times.items():
        median = statistics.median(taken)
        ratio = statistics.median(t / base for t, base in zip(taken, times[names[0]]))
        rows.append({"variant": name, "seconds": taken, "median": median, "ratio": ratio, "batch_size": batch[name]})
        print(f"{name:{width}}  {median * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {batch[name] / median:9.0f} {ratio:6.2f}x")
    del trainers
    finish(accelerator)
    return {"rows": rows}


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
        trainer.log()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # of their lines
        trainers = {name: ready(arguments.config, arguments.overrides, Path(folder) / str(i), accelerator) for i, name in enumerate(names)}
        for name, hangs in names.items():
            if hangs is not None:
                start = functools.partial(WandbRun, Failing(hangs), None, lambda line: None)
                trainers[name].tracker._wandb = WandbThread(start, 1.0, lambda line: None)
        times = in_turns({name: functools.partial(seconds_of, functools.partial(update_and_line, t), arguments.updates, t.device) for name, t in trainers.items()}, arguments.turns)
        for trainer in trainers.values():
            trainer.close(wait=False)
    base = times["without W&B"]
    print(f"\n{arguments.config}: {machine()}; {arguments.turns} turns of {arguments.updates} updates, a line of the record each")
    print(f"{'variant':18}  {'ms/update':>10} {'min':>9} {'max':>9} {'time':>7}")
    rows = []
    for name, taken in times.items():
        rows.append({"variant": name, "seconds": taken, "median": statistics.median(taken), "ratio": statistics.median(t / b for t, b in zip(taken, base))})
        print(f"{name:18}  {rows[-1]['median'] * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {rows[-1]['ratio']:6.3f}x")
    del trainers, trainer
    finish(accelerator)
    return {"rows": rows}


class Game:
    """Both players of a configuration, and random images in place of data.

    Args:
        rounds: micro-batches an update; None is the configuration's.
    """

    def __init__(self, config: Config, arguments: argparse.Namespace, rounds: int | None = None):
        self.config = config
        self.device = device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        resolution, channels, classes = config.data.resolution, arguments.channels, arguments.classes
        layout = torch.channels_last if config.performance.channels_last else torch.contiguous_format
        self.micro_batch = b = config.batching.micro_batch or config.batching.batch_size
        self.rounds = config.batching.batch_size // b if rounds is None else rounds
        self.players = []
        networks = config.model.build(resolution, channels, classes)
        for network, lr in zip(networks, (config.optim.lr_g, config.optim.lr_d)):
            network.to(device, memory_format=layout)
            self.players.append(Player(network, network, make_adam(network, lr, config.optim.betas, config.optim.eps), torch.amp.GradScaler(device.type, enabled=False)))
        self.probes = [GradientProbe(network) for network in networks]
        real = torch.rand(b, channels, resolution, resolution, device=device).mul(2).sub(1).contiguous(memory_format=layout)
        self.real = real, torch.zeros(b, dtype=torch.int64, device=device)
        self.noise = torch.randn(b, networks[0].dim_z, device=device), torch.zeros(b, dtype=torch.int64, device=device)

    @property
    def batch_size(self) -> int:
        return self.micro_batch * self.rounds

    def update(self, measured: bool = False) -> None:
        """All D steps and the G step; one of D's and G's gradients measured if asked, as in training."""
        loss, k = self.config.loss, self.rounds
        g, d = self.probes if measured else (None, None)
        for s in range(self.config.optim.d_steps):
            discriminator_phase(*self.players, loss, [(self.real, self.noise)] * k, k, d if s == 0 else None)
        generator_phase(*self.players, loss, [(self.real if sees_real(loss) else None, self.noise)] * k, k, g)


def noise_scale(arguments: argparse.Namespace) -> dict[str, Any]:
    """What measuring the gradient noise scale costs."""
    config = load(arguments.config, arguments.overrides)
    game, every = Game(config, arguments), arguments.every or config.noise_scale.measure_every or 10
    game.update(True)
    variants = {name: functools.partial(seconds_of, functools.partial(game.update, measured), 1, game.device) for name, measured in (("plain", False), ("measured", True))}
    times = in_turns(variants, arguments.turns)
    more = [measured - plain for plain, measured in zip(times["plain"], times["measured"])]
    plain = statistics.median(times["plain"])
    share = statistics.median(more) / every / plain
    halves = ", measured in two halves" if game.probes[0].halves(game.rounds) else ""
    print(f"\n{arguments.config}: batch {game.batch_size} = {game.rounds} x {game.micro_batch}{halves}, {config.optim.d_steps} D steps; {machine()}; {arguments.turns} turns")
    print(f"{'':10}{'ms':>10} {'min':>9} {'max':>9}")
    for name, taken in times.items():
        print(f"{name:10}{statistics.median(taken) * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f}")
    print(f"one update in {every} measured: {share:+.2%} of training time")
    return {"seconds": times, "every": every, "share": share, "rounds": game.rounds, "micro_batch": game.micro_batch}


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
    times = in_turns({str(k): functools.partial(seconds_of, game.update, arguments.rounds // k, game.device) for k, game in games.items()}, arguments.turns)
    spawn, memory = multiprocessing.get_context("spawn"), {}
    for k in games:
        answer = spawn.Queue()
        process = spawn.Process(target=peak_memory, args=(arguments.config, arguments.overrides, arguments.channels, arguments.classes, torch.get_num_threads(), k, answer))
        process.start()
        process.join()
        memory[k] = answer.get()
    print(f"\n{arguments.config}: rounds of {games[1].micro_batch} images, {config.optim.d_steps} D steps; {machine()}; {arguments.turns} turns")
    print(f"{'rounds':>8}{'batch':>8}{'ms/image':>11} {'min':>9} {'max':>9} {'time':>7} {'peak MiB':>10} {'memory':>7}")
    rows = []
    for k, game in games.items():
        taken = [t / game.batch_size for t in times[str(k)]]
        ratio = statistics.median(t / (base / games[1].batch_size) for t, base in zip(taken, times["1"]))
        rows.append({"rounds": k, "batch_size": game.batch_size, "seconds_an_image": taken, "ratio": ratio, "peak_mib": memory[k]})
        print(f"{k:8}{game.batch_size:8}{statistics.median(taken) * 1e3:11.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {ratio:6.2f}x {memory[k]:10.0f} {memory[k] / memory[1]:6.3f}x")
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


def beside_an_update(variants: Mapping[str, Callable[[], float]], config: Config, arguments: argparse.Namespace, what: str) -> list[dict[str, Any]]:
    """Time variants, of which one is `UPDATE`, and print each with its share of that."""
    times = in_turns(variants, arguments.turns)
    whole = statistics.median(times[UPDATE])
    print(f"\n{arguments.config}: {what}, batch {config.batching.batch_size}, {config.optim.d_steps} D steps; {machine()}; {arguments.turns} turns")
    width = max(map(len, times))
    print(f"{'':{width}}  {'ms':>10} {'min':>9} {'max':>9} {'of an update':>13}")
    rows = []
    for name, taken in times.items():
        median = statistics.median(taken)
        rows.append({"variant": name, "seconds": taken, "median": median, "share": median / whole})
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
        facts = {"batch_size": game.batch_size, "lr": {"g": config.optim.lr_g, "d": config.optim.lr_d}}

        position = itertools.count()  # a moment is recorded once

        def record_and_write() -> None:
            recorder.record(next(position), facts)
            recorder.flush()

        variants = {
            f"one recording, {arguments.averages} averages each": functools.partial(seconds_cold, record_and_write, arguments.repeats, game.device),
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
    known = {name: torch.ones((), device=game.device) for name in ("loss/d", "loss/g", "grad_norm/d", "grad_norm/g")}  # an update has them anyway

    def look() -> None:
        norms = {f"weights/{key}": torch.nn.utils.get_total_norm(of) for key, of in weights.items()}
        pulse.send(0, 1, known | norms, None)
        pulse.receive()

    variants = {
        "looking at one update": functools.partial(seconds_cold, look, arguments.repeats, game.device),
        UPDATE: functools.partial(seconds_of, game.update, 1, game.device),
    }
    return {"rows": beside_an_update(variants, config, arguments, "losses, gradients and weights finite on one process")}


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
    whole = kinds.add_parser("train", parents=[shared], help="whole updates")
    whole.add_argument("--against", action="append", default=[], metavar="'KEY=VALUE ...'", help="another variant; may be given often")
    whole.add_argument("--updates", type=command.positive, default=10, help="updates a turn (default: 10)")
    whole.set_defaults(call=train)
    failing = kinds.add_parser("tracker", parents=[shared], help="updates with a W&B that raises or hangs")
    failing.add_argument("--updates", type=command.positive, default=20, help="updates a turn (default: 20)")
    failing.set_defaults(call=tracker)
    averages = kinds.add_parser("averaging", parents=[shared, images], help="averages of the generator beside an update")
    averages.add_argument("--averages", type=command.positive, default=5, help="how many (default: 5)")
    averages.add_argument("--repeats", type=command.positive, default=20, help="updates of the averages a turn (default: 20)")
    averages.set_defaults(call=averaging)
    noise = kinds.add_parser("noise-scale", parents=[shared, images], help="measured updates beside others")
    noise.add_argument("--every", type=command.positive, metavar="N", help="one update in N is measured (default: the configuration's, else 10)")
    noise.set_defaults(call=noise_scale)
    path = kinds.add_parser("orbit", parents=[shared, images], help="a recording of the orbit beside an update")
    path.add_argument("--averages", type=command.positive, default=5, help="of each network (default: 5)")
    path.add_argument("--repeats", type=command.positive, default=5, help="recordings a turn (default: 5)")
    path.set_defaults(call=orbit)
    watch = kinds.add_parser("guard", parents=[shared, images], help="what the guard looks at beside an update")
    watch.add_argument("--repeats", type=command.positive, default=5, help="looks a turn (default: 5)")
    watch.set_defaults(call=guard)
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
        head = {"config": arguments.config, "overrides": arguments.overrides, "machine": machine()}
        arguments.json.write_text(json.dumps({**head, **record}, indent=1) + "\n")


if __name__ == "__main__":
    command.run(main)
