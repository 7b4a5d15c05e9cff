"""How long an update takes, and what a setting costs or saves.

    python tools/benchmark.py configs/digits.yaml
    python tools/benchmark.py configs/digits.yaml --against performance.channels_last=false --against "averagers.swa=null averagers.ema_short=null"

Every `--against` is the same configuration with overrides (several with spaces between). The variants take turns, A B A B,
so that a machine that slows down slows them all. Prints medians and spreads over the turns; `--json PATH` writes them.
"""
from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import tempfile
import time
from pathlib import Path

import torch

from gantrain import __version__
from gantrain.loading import load
from gantrain.distributed import finish, make_accelerator
from gantrain.trainer import Trainer

QUIET = ["tracking.wandb.mode=disabled"]


def ready(config: str, overrides: list[str], folder: Path, accelerator) -> Trainer:
    """A trainer that has made two updates, so that everything is allocated."""
    trainer = Trainer(load(config, [*QUIET, *overrides, f"run_dir={folder}"]), accelerator)
    trainer.start()
    for _ in range(2):
        trainer.update()
    return trainer


def seconds(trainer: Trainer, updates: int) -> float:
    """Seconds an update, over some updates."""
    wait = torch.cuda.synchronize if trainer.device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    for _ in range(updates):
        trainer.update()
    wait()
    return (time.perf_counter() - begin) / updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every variant")
    parser.add_argument("--against", action="append", default=[], metavar="'KEY=VALUE ...'", help="another variant; may be given often")
    parser.add_argument("--updates", type=int, default=10, help="updates a turn (default: 10)")
    parser.add_argument("--turns", type=int, default=5, help="turns of every variant (default: 5)")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own)")
    parser.add_argument("--json", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    accelerator = make_accelerator(load(arguments.config, arguments.overrides).mixed_precision)
    names = ["as configured", *arguments.against]
    with tempfile.TemporaryDirectory() as folder:
        trainers = [
            ready(arguments.config, [*arguments.overrides, *shlex.split(variant)], Path(folder) / str(i), accelerator)
            for i, variant in enumerate(["", *arguments.against])
        ]
        times: list[list[float]] = [[] for _ in trainers]
        for _ in range(arguments.turns):
            for taken, trainer in zip(times, trainers):
                taken.append(seconds(trainer, arguments.updates))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(f"\n{arguments.config}: {device}; gantrain {__version__}, torch {torch.__version__}; {arguments.turns} turns of {arguments.updates} updates")
    width = max(map(len, names))
    print(f"{'variant':{width}}  {'ms/update':>10} {'min':>9} {'max':>9} {'img/s':>9} {'time':>7}")
    rows = []
    for name, taken, trainer in zip(names, times, trainers):
        median = statistics.median(taken)
        ratio = statistics.median(t / base for t, base in zip(taken, times[0]))
        rows.append({"variant": name, "seconds": taken, "median": median, "ratio": ratio, "batch_size": trainer.batch_size})
        print(f"{name:{width}}  {median * 1e3:10.2f} {min(taken) * 1e3:9.2f} {max(taken) * 1e3:9.2f} {trainer.batch_size / median:9.0f} {ratio:6.2f}x")
    if arguments.json:
        record = {"config": arguments.config, "overrides": arguments.overrides, "device": device, "torch": torch.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    finish(accelerator)


if __name__ == "__main__":
    main()
