"""Plot how much the weights at each past image count in every kind of average, while the batch grows.

    python tools/weight_profiles.py --out docs/weight_profiles.png

The batch doubles at the two dotted lines. No profile has a kink there, because every rule is defined in images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import command
import numpy as np
from matplotlib.figure import Figure

from gantrain.averaging import Bema, Ema, EmaSteps, Lawa, Lookahead, Power, Swa, weight_profile

TOTAL, GROWS_AT, BATCHES = 100_000, (50_000, 80_000), (64, 128, 256)
BIN = 2000  # images; wide enough that a rule which samples rarely does not look like a comb
RULES = {
    "ema: half-life 10 kimg": Ema(half_life_kimg=10, ramp_up=None),
    "ema_steps: decay 0.9956 at batch 64": EmaSteps(decay=0.9956, batch_size=64),
    "swa: from 40 kimg on": Swa(start_kimg=40, every_kimg=1),
    "lawa: the last 20, 1 kimg apart": Lawa(k=20, every_kimg=1),
    "power: sigma_rel 0.10": Power(sigma_rel=0.10),
    "bema: looks every 2 kimg": Bema(every_kimg=2),
    "lookahead: alpha 0.2, every 4 kimg": Lookahead(alpha=0.2, every_kimg=4),
}


def positions() -> list[int]:
    """Returns the number of images seen after every update."""
    nimg, ends = 0, []
    while nimg < TOTAL:
        nimg += BATCHES[sum(nimg >= at for at in GROWS_AT)]
        ends.append(nimg)
    return ends


def density(averager: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns (centres of the bins in kimg, weight per kimg) of the live weights in an average over the whole run."""
    ends, weights = weight_profile(averager, positions())
    edges = np.arange(0, TOTAL + BIN, BIN)
    # Sampled weights represent all images since the previous sample; the initial weights represent no images.
    looks, weight = ends[1:][weights[1:] != 0.0], weights[1:][weights[1:] != 0.0]
    knots = np.append(max(0, 2 * looks[0] - looks[1]), looks)
    share = np.diff(np.interp(edges, knots, np.append(0.0, np.cumsum(weight))))
    share[0] += weights[0]
    return (edges[:-1] + BIN / 2) / 1000, share / (BIN / 1000)


def main() -> None:
    """Parse the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=command.writable, default=Path("weight_profiles.png"), metavar="PNG")
    out = parser.parse_args().out
    figure = Figure(figsize=(13, 5.2), layout="constrained", dpi=130)
    for i, (name, averager) in enumerate(RULES.items()):
        axes = figure.add_subplot(2, 4, i + 1)
        kimg, weight = density(averager)
        axes.fill_between(kimg, weight, step="mid", color="#1f5fa8", alpha=0.25, linewidth=0)
        axes.step(kimg, weight, where="mid", color="#1f5fa8", linewidth=1.6)
        for at in GROWS_AT:
            axes.axvline(at / 1000, color="#c2410c", linewidth=1, linestyle=":")
        axes.set_title(name, fontsize=11)
        axes.set_xlim(0, TOTAL / 1000)
        axes.set_ylim(min(0, 1.1 * weight.min()), 1.15 * weight.max())
        axes.set_xlabel("kimg", fontsize=9)
        axes.set_ylabel("weight per kimg", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    note = figure.add_subplot(2, 4, len(RULES) + 1)
    note.axis("off")
    text = (
        "How much the weights at\neach past image count in\nseven averages after\n100 kimg.\n\n"
        "Dotted: the batch doubles,\n64, 128, 256. The profiles\nhave no kink there: every\nrule is defined in images."
    )
    note.text(0.05, 0.95, text, va="top", fontsize=11, linespacing=1.35)
    figure.savefig(out)
    print(f"drawn in {out}")


if __name__ == "__main__":
    command.run(main)
