"""Make long records and many run folders, as real runs write them, and time `gantrain report`, `watch` and `runs` on them.

    python tools/long_records.py --lines 100000 --runs 500
    python tools/long_records.py --lines 100000 --runs 500 --code ../before     # the same with another copy of gantrain

Prints, for each command, the seconds, the seconds of both CPU modes together, and the largest memory of the best of `--repeat` runs,
each in a process of its own, with everything that it imports. Nothing is trained: the numbers in the records are made up.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from command import positive, run

from gantrain.config.loading import load, to_yaml
from gantrain.errors import UserError
from gantrain.shipped import find_config

EVERY = 32  # images between two training lines
AVERAGES = ("live", "swa", "ema", "ema_short", "power_10")
METRICS = ("digits_fid", "digits_is", "digits_kid")
PROTOCOL = {
    "eval/protocol": None, "eval/num_samples": 1797, "eval/reference": "digits (1797 images)",
    "eval/reference_fingerprint": "700d2e733f095397", "eval/features": f"digits-classifier/64/{'e1c7' * 16}", "eval/is_splits": 10,
    "eval/resamples": None, "eval/batchnorm": "recalibrate", "eval/batchnorm_batches": "16 x 64", "eval/truncation": None,
    "eval/notes": ["digits_is: 10 parts of 179 images each score lower than parts of many images"],
}  # fmt: skip
LAYERS = tuple(f"{player}/blocks.{i}.{layer}" for player in "GD" for i in range(3) for layer in ("conv1", "conv2", "shortcut"))
START = {
    "gantrain": "0.1.0", "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"}, "device": "cpu", "processes": 1, "micro_batch": 16,
    "parameters": {"g": 4361, "d": 3177}, "data_fingerprint": "9e39" * 16, "class_names": [str(i) for i in range(10)], "notes": [],
}  # fmt: skip


def record_lines(count: int, rollbacks: int = 20, seed: int = 0, score_every: int = 1000) -> Iterator[dict[str, Any]]:
    """The lines of a record: `count` lines of training with a checkpoint after each 250, evaluations, swaps with growths of the batch,
    rollbacks, and a single loss that is far above all others.

    Args:
        count: lines with losses, including those of abandoned paths.
        rollbacks: how often the path goes back to the last checkpoint, evenly spaced.
        seed: of the made-up numbers.
        score_every: lines of training between two evaluations.
    """
    random = np.random.default_rng(seed)
    yield {"nimg": 0, "event": "start", "time": "2026-11-30T00:00:00Z", **START}
    yield scores(0, random)
    nimg, saved, batch, spike = 0, 0, 16, count * 2 // 5 // 250 * 250  # at a checkpoint, so that no rollback abandons it
    back = {round((i + 1) * count / (rollbacks + 1)) for i in range(rollbacks)}
    for i in range(1, count + 1):
        nimg += EVERY
        yield training(nimg, batch, i, random, spike=i == spike)
        if i % 250 == 0:
            saved = nimg
            yield {"nimg": nimg, "event": "checkpoint", "path": f"checkpoints/{nimg:012d}", "best_of": []}
        if i % score_every == 0:
            yield scores(nimg, random)
        if i % max(1, count // 4) == 0 and batch < 256:
            yield from swap(nimg, batch, random)
            batch *= 2
        if i in back:
            yield {
                "nimg": nimg, "event": "rollback", "kind": "nonfinite", "words": "loss/d is nan", "to": saved, "attempt": 1,
                "max_rollbacks": 3, "lr_scale": 1.0, "batch/size": batch, "batch/rounds": batch // 16, "batch/micro_batch": 16,
            }  # fmt: skip
            nimg = saved
    yield {"nimg": nimg, "event": "end", "time": "2026-11-30T12:00:00Z"}


def training(nimg: int, batch: int, update: int, random: np.random.Generator, spike: bool = False) -> dict[str, Any]:
    """A training line with the keys of a real one."""
    draw = iter(random.lognormal(size=64).tolist())
    noise = {
        f"noise_scale/{player}/{name}": next(draw) * (60 if name == "b_simple" else 1)
        for player in "DG" for name in ("tr_sigma", "g_squared", "b_simple", "ratio")
    } | {f"noise_scale/{p}/{name}": n for p in "DG" for name, n in (("undecidable", 0), ("unbounded", 0), ("measurements", 3))}  # fmt: skip
    return {
        "nimg": nimg, "grad_norm/d": next(draw), "grad_norm/g": next(draw), "logits/fake": -next(draw), "logits/real": next(draw),
        "loss/d": 1000.0 if spike else next(draw), "loss/g": next(draw), "batch/size": batch, "batch/rounds": batch // 16,
        "batch/micro_batch": 16, "updates": update, "memory/gib": 0.45, **(noise if update % 10 == 0 else {}), "lr/g": 2e-4, "lr/d": 4e-4,
        **{f"orbit/G/{name}/distance": next(draw) for name in AVERAGES[1:]}, "reals_seen": 2 * nimg,
        **{f"singular/{layer}": 1 + next(draw) / 100 for layer in LAYERS},
        "throughput/img_per_s": 400 + next(draw), "throughput/elapsed_s": nimg / 400, "throughput/left_s": 100.0,
        "throughput/data_wait": 0.05,
    }  # fmt: skip


def scores(nimg: int, random: np.random.Generator) -> dict[str, Any]:
    """A line of scores of every average."""
    values = {f"eval/{name}/{metric}{end}": float(random.lognormal()) for name in AVERAGES for metric in METRICS for end in ("", "_std")}
    return {"nimg": nimg, **values, **PROTOCOL}


def swap(nimg: int, batch: int, random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The lines of a swap that doubles the batch."""
    for moment in ("before", "at"):
        live = {metric: float(random.lognormal()) for metric in METRICS}
        size = batch * (1 if moment == "before" else 2)
        more = {"source": "swa", "networks": "gd", "grown": 2.0, "growth": 2.0} if moment == "at" else {}
        rounds = {"batch/size": size, "batch/rounds": size // 16, "batch/micro_batch": 16}
        yield {"nimg": nimg, "event": "swap", "moment": moment, "swap_nimg": nimg, "live": live, **rounds, **more}
    yield {"nimg": nimg, "event": "growth", "from": batch, "to": 2 * batch, "rounds": batch // 8, "reason": "the swap asks for x2"}


@functools.cache
def config_text(seed: int) -> str:
    """The configuration of a run on digits with swaps, as a run folder has it."""
    return to_yaml(load(find_config("digits_swap"), ["run_dir=runs/made", f"seed={seed}"]))


def make_run(folder: Path, count: int, seed: int = 0, rollbacks: int = 20, config: str | None = None, score_every: int = 1000) -> Path:
    """Write a run folder with a configuration, a record of `record_lines`, and two folders of checkpoints without weights."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config or config_text(seed))
    with open(folder / "metrics.jsonl", "w") as file:
        for line in record_lines(count, rollbacks, seed, score_every):
            file.write(json.dumps(line) + "\n")
    for nimg in (EVERY * count // 2, EVERY * count):
        checkpoint = folder / "checkpoints" / f"{nimg:012d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "manifest.json").write_text("{}")
    return folder


def make_runs(folder: Path, runs: int, count: int = 100) -> Path:
    """Write `runs` run folders with `count` training lines each, five to a study."""
    text = config_text(0)
    for i in range(runs):
        config = text.replace("seed: 0", f"seed: {i}", 1)
        make_run(folder / f"study_{i // 5:03d}" / f"seed_{i % 5}", count, seed=i, rollbacks=i % 3, config=config)
    return folder


# Runs a command; a process that starts it from here would show this process's memory as its own largest.
LAUNCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, cpu = time.perf_counter() - began, used.ru_utime + used.ru_stime
print(json.dumps([seconds, cpu, used.ru_maxrss / 1024, done.returncode, done.stderr.decode()]))
"""


def measure(command: list[str], code: Path, repeat: int) -> tuple[float, float, float]:
    """(seconds, CPU seconds, largest MiB) of the fastest of `repeat` runs of a gantrain command."""
    found = []
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    launched = [sys.executable, "-S", "-c", LAUNCH, sys.executable, "-m", "gantrain", *command]
    for _ in range(repeat):
        done = subprocess.run(launched, capture_output=True, text=True, cwd=code, env=environment, check=True)
        *used, status, said = json.loads(done.stdout)
        if status:
            raise UserError(f"gantrain {' '.join(command)}: ended with {status}: {said[-200:]}")
        found.append(tuple(used))
    return min(found)


def main() -> None:
    """Make the folders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=positive, default=100_000, metavar="N", help="training lines of the long record (default: 100000)")
    parser.add_argument("--runs", type=positive, default=500, metavar="N", help="run folders of the listing (default: 500)")
    parser.add_argument("--rollbacks", type=positive, default=1000, metavar="N", help="of the long record (default: 1000)")
    parser.add_argument("--repeat", type=positive, default=5, metavar="N", help="how often each command runs (default: 5)")
    parser.add_argument("--code", type=Path, default=Path(__file__).resolve().parent.parent, help="the folder that contains gantrain/")
    parser.add_argument("--folder", type=Path, help="where the run folders are made, or are already (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        long, many = folder / "long", folder / "many"
        make: list[tuple[Path, Callable[[], object]]] = [
            (long, lambda: make_run(long, arguments.lines, rollbacks=arguments.rollbacks)), (many, lambda: make_runs(many, arguments.runs)),
        ]  # fmt: skip
        for path, write in make:
            if not path.exists():
                write()
        size = (long / "metrics.jsonl").stat().st_size / 1e6
        print(
            f"record of {arguments.lines:,} training lines and {arguments.rollbacks:,} rollbacks, {size:.0f} MB; {arguments.runs} runs; best of {arguments.repeat}"
        )
        print(f"{'command':<24} {'seconds':>8} {'CPU s':>8} {'MiB':>8}")
        for command in (["report", str(long)], ["watch", str(long)], ["runs", str(many)]):
            seconds, cpu, mib = measure(command, arguments.code.resolve(), arguments.repeat)
            print(f"gantrain {command[0]:<15} {seconds:8.2f} {cpu:8.2f} {mib:8.0f}", flush=True)


if __name__ == "__main__":
    run(main)
