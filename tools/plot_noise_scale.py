"""Plot the gradient noise scale that runs have measured, and their batch size, from metrics.jsonl.

    python tools/plot_noise_scale.py runs/digits_noise_scale --out noise_scale.png

Each run has a column. Top: B_simple of D and of G with its 95% interval, and the batch size, in images. Where the gradient cannot be
told from 0, B_simple has no upper end: the band reaches the top, and its lower end is dotted instead of the line. Both have gaps where
fewer than 8 measurements are available (at the start and after a swap). Bottom: tr Sigma and |G|^2, whose ratio is B_simple.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import command
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gantrain.errors import UserError
from gantrain.palette import PLAYERS
from gantrain.run_folder.record_lines import describe_unreadable, stream


def read(run: Path) -> list[dict]:
    """Returns the lines of a run's record that contain a noise scale.

    Raises:
        UserError: the folder is not a run folder, or the run has not measured the noise scale.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run}: is not a run folder (it has no metrics.jsonl); pass the run_dir of a `gantrain train`")
    lines, unreadable = [], 0
    for line in stream(run):
        if line is None:
            unreadable += 1
        elif "noise_scale/D/tr_sigma" in line:
            lines.append(line)
    if unreadable:
        print(f"note: {describe_unreadable(unreadable, run)}")
    if not lines:
        raise UserError(f"{run}: has not measured the noise scale; train with noise_scale.measure_every=10")
    return lines


def series(lines: list[dict], key: str) -> np.ndarray:
    """Returns the value of `key` in every line, nan where a line lacks it."""
    return np.array([line.get(key, np.nan) for line in lines], dtype=float)


def draw_scale(axes: Axes, lines: list[dict]) -> None:
    """Plot B_simple of both players and the batch size."""
    kimg = series(lines, "nimg") / 1000
    ends = [series(lines, f"noise_scale/{player}/b_simple_{end}") for player in PLAYERS for end in ("low", "high")]
    top = 10 * np.nanmax([series(lines, "batch/size"), *ends])
    for player, colour in PLAYERS.items():
        low, high = (series(lines, f"noise_scale/{player}/b_simple_{end}") for end in ("low", "high"))
        decided = np.where(np.isnan(high), np.nan, series(lines, f"noise_scale/{player}/b_simple"))
        axes.fill_between(kimg, low, np.where(np.isnan(high), top, high), color=colour, alpha=0.18, linewidth=0)
        axes.plot(kimg, np.where(np.isnan(high), low, np.nan), color=colour, linewidth=1.0, linestyle=":")
        axes.plot(kimg, decided, color=colour, linewidth=1.5, label=f"B_simple of {player}")
    axes.step(kimg, series(lines, "batch/size"), where="pre", color="black", linewidth=1.3, linestyle="--", label="batch")
    axes.set_yscale("log")
    axes.set_ylabel("images", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def draw_parts(axes: Axes, lines: list[dict]) -> None:
    """Plot tr Sigma and |G|^2 of both players."""
    kimg = series(lines, "nimg") / 1000
    for player, colour in PLAYERS.items():
        axes.plot(kimg, series(lines, f"noise_scale/{player}/tr_sigma"), color=colour, linewidth=1.5, label=f"tr Σ of {player}")
        squared = series(lines, f"noise_scale/{player}/g_squared")
        axes.plot(kimg, np.where(squared > 0, squared, np.nan), color=colour, linewidth=1.3, linestyle=":", label=f"|G|² of {player}")
    axes.set_yscale("log")
    axes.set_xlabel("kimg", fontsize=9)
    axes.set_ylabel("squared gradient", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=2)


def main() -> None:
    """Parse the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=command.writable, default=Path("noise_scale.png"), metavar="PNG")
    arguments = parser.parse_args()
    records = [read(run) for run in arguments.runs]
    figure = Figure(figsize=(1.2 + 5.2 * len(records), 6.4), layout="constrained", dpi=130)
    grid = figure.subplots(2, len(records), sharex="col", sharey="row", squeeze=False)
    for (above, below), run, lines in zip(grid.T, arguments.runs, records):
        draw_scale(above, lines)
        draw_parts(below, lines)
        above.set_title(run.resolve().name, fontsize=10)
        for axes in (above, below):
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.2)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.out)
    print(f"drawn in {arguments.out}")


if __name__ == "__main__":
    command.run(main)
