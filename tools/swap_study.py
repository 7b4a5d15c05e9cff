"""Compare training with and without swaps and batch growth, over several seeds and at equal numbers of images.

    python tools/swap_study.py configs/digits_swap.yaml --seeds 3 --folder runs/swap_study --out docs/swap_study.png

Trains every arm with every seed, `--jobs` runs at a time with one thread each; finished runs are read and not trained again.
Prints the final scores of every arm (mean and standard deviation over seeds) and the live score just before, at and after
the swaps, and plots the live score against the images seen.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import command
from matplotlib.figure import Figure

from gantrain.clock import images
from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.palette import LIVE_COLOUR, MARKS
from gantrain.run_folder.record_lines import stream


def arms_of(config: Config) -> dict[str, list[str]]:
    """Returns the overrides of each arm, for a configuration that swaps and doubles the batch at every swap."""
    swap, batching = config.swap, config.batching
    at = [swap.start_kimg + i * swap.every_kimg for i in range(99) if swap.start_kimg + i * swap.every_kimg < config.total_kimg]
    milestones = [[kimg, min(batching.batch_size * 2 ** (i + 1), batching.max_batch)] for i, kimg in enumerate(at)]
    return {
        "no swap": ["swap.source=null"],
        "no swap, batch x2": ["swap.source=null", "batching.name=schedule", f"batching.milestones={milestones}"],
        "no swap, batch by noise": ["swap.source=null", "batching.name=noise_scale", "noise_scale={measure_every: 4, window: 16}"],
        "swap G and D": ["swap.growth=1"],
        "swap G, batch x2": ["swap.networks=g", "swap.growth=2"],
        "swap G and D, batch x2": ["swap.growth=2"],
        "swap G and D, batch auto": ["swap.growth=auto"],
    }


def train(config: str, overrides: list[str], run: Path) -> None:
    """Train one run in its own process with one thread; its output is written to a log next to the run folder.

    Raises:
        UserError: the training failed.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "gantrain", "train", config, f"run_dir={run}", "tracking.wandb.mode=disabled", *overrides]
    with open(run.with_suffix(".log"), "w") as log:
        done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"{run}: the training failed; see {run.with_suffix('.log')}")
    print(f"trained {run}", flush=True)


def read(run: Path) -> list[dict]:
    """Returns all lines of a run's metrics.jsonl that can be read."""
    return [line for line in stream(run) if line is not None]


def final(lines: list[dict]) -> dict[str, float]:
    """Returns the last line with scores."""
    return [line for line in lines if any(key.startswith("eval/live/") for key in line)][-1]


def path_of(lines: list[dict], metric: str) -> list[tuple[float, float]]:
    """Returns (kimg, live score) of every evaluation in order; a swap has two at the same kimg."""
    points: list[tuple[float, float]] = []
    for line in lines:
        value = line["live"][metric] if line.get("event") == "swap" else line.get(f"eval/live/{metric}")
        if isinstance(value, float) and (not points or points[-1] != (line["nimg"] / 1000, value)):
            points.append((line["nimg"] / 1000, value))
    return points


def cell(values: list[float]) -> str:
    """Mean and standard deviation, for a table."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def draw(records: dict[str, list[list[dict]]], metric: str, skip_kimg: float, out: Path) -> None:
    """Plot the live score of every seed, one panel per arm, with the swaps as dotted lines."""
    figure = Figure(figsize=(3.3 * len(records), 3.6), layout="constrained", dpi=130)
    shown = [v for runs in records.values() for lines in runs for kimg, v in path_of(lines, metric) if kimg >= skip_kimg]
    last = 1.02 * max(kimg for runs in records.values() for lines in runs for kimg, _ in path_of(lines, metric))
    for i, (arm, runs) in enumerate(records.items()):
        axes = figure.add_subplot(1, len(records), i + 1)
        for lines in runs:
            points = [p for p in path_of(lines, metric) if p[0] >= skip_kimg]
            axes.plot(*zip(*points), color=LIVE_COLOUR, linewidth=1.3, alpha=0.8, marker="o", markersize=2.5)
        swaps = sorted({line["nimg"] / 1000 for lines in runs for line in lines if line.get("event") == "swap" and line["moment"] == "at"})
        for kimg in swaps:
            axes.axvline(kimg, color=MARKS["swap"].colour, linewidth=0.8, linestyle=":")
        axes.set_xlim(skip_kimg, last)
        axes.set_ylim(0.9 * min(shown), 1.05 * max(shown))
        axes.set_title(arm, fontsize=10)
        axes.set_xlabel("kimg", fontsize=9)
        axes.set_ylabel(f"live {metric}" if i == 0 else "", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def main() -> None:
    """Parse the arguments, train the runs, print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="applied to every run")
    parser.add_argument("--seeds", type=command.positive, default=3, metavar="N", help="use the seeds 0 .. N - 1 (default: 3)")
    parser.add_argument("--jobs", type=command.positive, default=os.cpu_count() or 1, help="runs at a time (default: one per core)")
    parser.add_argument("--folder", type=Path, default=Path("runs/swap_study"), help="folder of the runs (default: runs/swap_study)")
    parser.add_argument("--out", type=command.writable, default=Path("swap_study.png"), metavar="PNG")
    arguments = parser.parse_intermixed_args()
    config = load(arguments.config, arguments.overrides)
    if config.swap.source is None:
        raise UserError(f"{arguments.config}: swap.source is null; set it to the average that the study should swap in")
    if config.batching.max_batch is None:
        raise UserError(f"{arguments.config}: batching.max_batch is null; set it to the largest batch that the study may use")
    if any(override.partition("=")[0] in ("seed", "run_dir") for override in arguments.overrides):
        raise UserError("seed and run_dir are set by the study; use --seeds and --folder instead")
    arms = arms_of(config)
    todo = [
        (
            arguments.config,
            [*arguments.overrides, *overrides, f"seed={seed}"],
            arguments.folder / f"{arm.replace(' ', '_').replace(',', '')}-{seed}",
        )
        for seed in range(arguments.seeds)
        for arm, overrides in arms.items()
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda job: train(*job), todo))
    records: dict[str, list[list[dict]]] = {arm: [] for arm in arms}
    for (_, _, run), arm in zip(todo, [arm for _ in range(arguments.seeds) for arm in arms]):
        records[arm].append(read(run))
        if records[arm][-1][-1]["nimg"] > images(config.total_kimg) + 10 * images(config.batching.batch_size / 1000):
            raise UserError(f"{run}: was trained for more than {config.total_kimg:g} kimg; use another --folder")
    metric = next(key.removeprefix("eval/live/") for key in final(records["no swap"][0]) if key.startswith("eval/live/"))
    ended = [final(lines) for runs in records.values() for lines in runs]
    names = [name for name in ["live", *config.averagers] if all(f"eval/{name}/{metric}" in end for end in ended)]
    print(f"| arm | batch at the end | {' | '.join(names)} |")
    print("|---|---|" + "---|" * len(names))
    for arm, runs in records.items():
        ends = [final(lines) for lines in runs]
        batches = [[line["batch/size"] for line in lines if "loss/d" in line][-1] for lines in runs]
        cells = [cell([end[f"eval/{name}/{metric}"] for end in ends]) for name in names]
        print(f"| {arm} | {', '.join(map(str, dict.fromkeys(batches)))} | {' | '.join(cells)} |")
    print(f"\n{metric} at {config.total_kimg:g} kimg, mean ± standard deviation over {arguments.seeds} seeds")
    print("\n| arm | before the swap | at | after |\n|---|---|---|---|")
    for arm, runs in records.items():
        events = [line for lines in runs for line in lines if line.get("event") == "swap"]
        if events:
            print(
                f"| {arm} | "
                + " | ".join(cell([e["live"][metric] for e in events if e["moment"] == m]) for m in ("before", "at", "after"))
                + " |"
            )
    print(f"\nlive {metric} around all swaps of an arm; after: {config.swap.after_kimg:g} kimg later")
    # The first scores are those of noise and would flatten everything else in the picture.
    draw(records, metric, 0.499 * config.swap.start_kimg, arguments.out)
    print(f"drawn in {arguments.out}")


if __name__ == "__main__":
    command.run(main)
