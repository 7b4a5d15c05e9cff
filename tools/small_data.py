"""Train on few digits, with and without augmentation, and score every run against all digits.

    python tools/small_data.py --seeds 3 --csv docs/small_data.csv --out docs/small_data.png

Every arm is trained on each number of images with every seed, `--jobs` runs at a time with one thread each. A run's row is appended to
the CSV when it ends, and runs that have a row are not trained again, whether their folders exist or not. Prints a table of means and
standard deviations over seeds, and plots the scores against the images seen.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import command
from matplotlib.figure import Figure

from gantrain.errors import UserError
from gantrain.run_folder.record_lines import stream

ALL = 1797
ARMS = {
    "none": ["augment={name: none}"],
    "diffaugment": ["augment={name: diffaugment}"],
    "ada": ["augment={name: ada, length_kimg: 20}"],
}
METRICS = ("digits_fid", "digits_precision", "digits_recall")
COLUMNS = ("arm", "images", "seed", "kimg", "average", *METRICS)


class Job(NamedTuple):
    """A run of the study."""

    arm: str
    images: int
    seed: int

    def folder(self, runs: Path) -> Path:
        """Its run folder."""
        return runs / f"{self.arm}-{self.images}-{self.seed}"


def train(job: Job, config: str, overrides: Iterable[str], run: Path) -> None:
    """Train one run in its own process with one thread; its output is written to a log next to the run folder.

    Raises:
        UserError: the training failed.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    size = [] if job.images == ALL else [f"data.num_images={job.images}"]
    words = [
        sys.executable, "-m", "gantrain", "train", config, f"run_dir={run}", f"seed={job.seed}", *size, *ARMS[job.arm],
        "eval.reference=digits", "eval.num_samples=1797", "tracking.wandb.mode=disabled", *overrides,
    ]  # fmt: skip
    with open(run.with_suffix(".log"), "w") as log:
        done = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"{run}: the training failed; see {run.with_suffix('.log')}")


def rows_of(job: Job, run: Path) -> list[dict[str, object]]:
    """A row for each average at each evaluation of a run."""
    rows = []
    for line in (line for line in stream(run) if line is not None):
        names = {key.split("/")[1] for key in line if key.startswith("eval/") and key.endswith(f"/{METRICS[0]}")}
        for name in sorted(names):
            scores = {metric: f"{line[f'eval/{name}/{metric}']:.5g}" for metric in METRICS}
            rows.append({"arm": job.arm, "images": job.images, "seed": job.seed, "kimg": line["nimg"] / 1000, "average": name, **scores})
    return rows


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV; none if it does not exist.

    Raises:
        UserError: its columns are others.
    """
    if not path.exists():
        return []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: has other columns than {', '.join(COLUMNS)}; use another --csv")
        return list(reader)


def append_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to the CSV, which is begun if it does not exist."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict[str, str]], sizes: Iterable[int], average: str) -> str:
    """Last scores of an average: mean and standard deviation over seeds, a row for each number of images and arm."""
    lines = [f"| images | arm | seeds | {' | '.join(METRICS)} |", "|---|---|---|" + "---|" * len(METRICS)]
    for size in sizes:
        for arm in ARMS:
            of_arm = [row for row in rows if (row["arm"], row["images"], row["average"]) == (arm, str(size), average)]
            last = {row["seed"]: row for row in sorted(of_arm, key=lambda row: float(row["kimg"]))}
            if last:
                cells = [cell([float(row[metric]) for row in last.values()]) for metric in METRICS]
                lines.append(f"| {size:,} | {arm} | {len(last)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Mean and standard deviation, for a table."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def draw(rows: list[dict[str, str]], sizes: list[int], average: str, out: Path) -> None:
    """Plot the first metric of an average against the images seen: a panel for each number of images, a line for each seed."""
    figure = Figure(figsize=(4.2 * len(sizes), 3.8), layout="constrained", dpi=130)
    colours = dict(zip(ARMS, ("#0072b2", "#d55e00", "#009e73")))
    kept = [row for row in rows if row["average"] == average and float(row["kimg"]) > 0]
    for i, size in enumerate(sizes):
        axes = figure.add_subplot(1, len(sizes), i + 1)
        for arm, colour in colours.items():
            for j, seed in enumerate(sorted({row["seed"] for row in kept})):
                line = [row for row in kept if (row["arm"], row["images"], row["seed"]) == (arm, str(size), seed)]
                points = sorted((float(row["kimg"]), float(row[METRICS[0]])) for row in line)
                if points:
                    axes.plot(*zip(*points), color=colour, linewidth=1.3, marker="o", markersize=2.5, label=arm if j == 0 else None)
        axes.set_title(f"{size:,} digits", fontsize=10)
        axes.set_xlabel("kimg", fontsize=9)
        axes.set_ylabel(f"{METRICS[0]} of {average}" if i == 0 else "", fontsize=9)
        axes.set_yscale("log")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.2, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(out)


def main() -> None:
    """Parse the arguments, train the runs that have no rows yet, print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="applied to every run")
    parser.add_argument("--config", default="digits", help="a configuration whose data set is digits (default: digits)")
    parser.add_argument(
        "--sizes", type=command.positive, nargs="+", default=[100, 300, ALL], metavar="N", help="images (default: 100 300 1797)"
    )
    parser.add_argument("--seeds", type=command.positive, default=3, metavar="N", help="use the seeds 0 .. N - 1 (default: 3)")
    parser.add_argument("--jobs", type=command.positive, default=os.cpu_count() or 1, help="runs at a time (default: one per core)")
    parser.add_argument("--average", default="ema", help="the average of the table and the picture (default: ema)")
    parser.add_argument("--folder", type=Path, default=Path("runs/small_data"), help="folder of the runs (default: runs/small_data)")
    parser.add_argument("--csv", type=Path, default=Path("small_data.csv"), metavar="CSV")
    parser.add_argument("--out", type=command.writable, default=Path("small_data.png"), metavar="PNG")
    arguments = parser.parse_intermixed_args()
    if any(override.partition("=")[0] in ("seed", "run_dir", "augment", "data.num_images") for override in arguments.overrides):
        raise UserError("seed, run_dir, augment and data.num_images are set by the study; use its options instead")
    done = {(row["arm"], row["images"], row["seed"]) for row in read_rows(arguments.csv)}
    jobs = [Job(arm, size, seed) for seed in range(arguments.seeds) for size in arguments.sizes for arm in ARMS]
    todo = [job for job in jobs if (job.arm, str(job.images), str(job.seed)) not in done]
    lock, count = threading.Lock(), len(jobs) - len(todo)

    def run(job: Job) -> None:
        nonlocal count
        folder = job.folder(arguments.folder)
        train(job, arguments.config, arguments.overrides, folder)
        with lock:
            append_rows(arguments.csv, rows_of(job, folder))
            count += 1
            print(f"{count} of {len(jobs)}: {folder}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, todo))
    rows = read_rows(arguments.csv)
    print(f"\nlast scores of {arguments.average} against all digits, mean ± standard deviation over seeds\n")
    print(table(rows, arguments.sizes, arguments.average))
    draw(rows, arguments.sizes, arguments.average, arguments.out)
    print(f"\ndrawn in {arguments.out}")


if __name__ == "__main__":
    command.run(main)
