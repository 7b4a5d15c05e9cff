"""Pictures of the recorded motion: the path of the weights with its averages and swaps, the orbit, and how far it strays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import FuncFormatter, NullFormatter

from gantrain.orbit.analysis import PLAYERS, Analysis
from gantrain.orbit.recorder import FOLDER
from gantrain.orbit.words import as_record, headline
from gantrain.palette import COLOURS, FAINT, MARKS, style_of
from gantrain.run_folder.json_values import as_json
from gantrain.score_names import LIVE
from gantrain.theory.displacement import displacement_of
from gantrain.theory.path_statistics import principal_directions

TIME = "viridis"  # Matplotlib's colours of a path, from its beginning to its end
SWAP = MARKS["swap"].colour
ALL, FITTED = COLOURS[-1], COLOURS[-3]  # of directions, not of averages
DEVIATIONS = 2  # of the ellipse


def draw(analyses: Sequence[Analysis], path: Path, title: str) -> None:
    """Draw what was found, a row a player.

    Left the whole record in its own two principal directions; in the middle the stretch that was measured, along the two first
    directions of the fit; right how far the weights get from where they were.
    """
    figure = Figure(figsize=(15, 0.7 + 4.9 * len(analyses)), layout="constrained", dpi=110)
    rows = figure.subfigures(len(analyses), 1, squeeze=False)[:, 0]
    for part, analysis in zip(rows, analyses):
        part.suptitle(f"{title}: {headline(analysis)}", fontsize=11)
        left, middle, right = part.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
        draw_whole(left, analysis)
        draw_stretch(middle, analysis)
        draw_displacement(right, analysis)
        for axes in (left, middle, right):
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def path_line(axes: Axes, points: np.ndarray, kimg: np.ndarray) -> None:
    """A path `[n, 2]` coloured by time, which a bar beside it says; a jump is left open."""
    moves = np.diff(kimg) > 0
    line = LineCollection(list(np.stack([points[:-1], points[1:]], axis=1)[moves]), cmap=TIME, linewidths=1.2, zorder=3)
    line.set_array(kimg[1:][moves])
    axes.add_collection(line)
    axes.autoscale_view()
    bar = axes.figure.colorbar(line, ax=axes, shrink=0.8, pad=0.01, aspect=30)
    bar.set_label("kimg", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def averages_in(axes: Axes, a: Analysis, plane: np.ndarray, center: np.ndarray, rows: np.ndarray, size: float) -> None:
    """The averages' own paths over these rows, faint, and marks where the last of them finds them."""
    styles = style_of(a.averagers)
    for standing in a.standings:
        style = styles[standing.name]
        points = (a.motion.sketches[standing.name][rows] - center) @ plane.T
        axes.plot(*points.T, color=style.colour, linestyle=style.linestyle, linewidth=0.9, alpha=0.55, zorder=4)
        axes.plot(
            *points[-1],
            style.marker,
            color=style.colour,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=size,
            label=standing.name,
            zorder=6,
        )
    axes.plot(
        *((a.motion.sketches[LIVE][rows[-1]] - center) @ plane.T),
        styles[LIVE].marker,
        color=styles[LIVE].colour,
        markeredgecolor="white",
        markeredgewidth=0.6,
        markersize=size + 1,
        label=LIVE,
        zorder=7,
    )


def draw_whole(axes: Axes, a: Analysis) -> None:
    """The record up to the end of the stretch, with swaps as arrows."""
    rows = np.arange(a.rows[-1] + 1)
    live = a.motion.sketches[LIVE][rows]
    center, plane = live.mean(axis=0), principal_directions(live, 2)
    points = (live - center) @ plane.T
    path_line(axes, points, a.kimg[rows])
    axes.plot(*points[0], "o", markerfacecolor="white", markeredgecolor="black", markersize=7, zorder=6, label="start")
    swaps = [row for row in a.motion.swaps if row < a.rows[-1]]
    if swaps:
        arrows_in(axes, points, swaps, size=7)
        axes.plot([], [], color=SWAP, linewidth=1.3, label="swap")
        near_swaps(axes, points, swaps)
    marks, words = axes.get_legend_handles_labels()
    averages_in(axes, a, plane, center, rows, size=5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(marks, words, fontsize=8, frameon=False)
    axes.set_title(f"{PLAYERS[a.player]}: the path so far, in its two principal directions", fontsize=9)
    shares = [((points[:, i]) ** 2).sum() / ((live - center) ** 2).sum() for i in range(points.shape[1])]
    for axis, share in zip((axes.xaxis, axes.yaxis), shares):
        axis.set_label_text(f"{share:.0%} of the motion", fontsize=8)


def arrows_in(axes: Axes, points: np.ndarray, swaps: Sequence[int], size: float) -> None:
    """Where swaps put the weights."""
    for row in swaps:
        look = {"arrowstyle": "-|>", "color": SWAP, "linewidth": 1.1, "mutation_scale": size, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[row + 1], points[row], arrowprops=look, zorder=8)


def near_swaps(axes: Axes, points: np.ndarray, swaps: Sequence[int]) -> None:
    """The same around the swaps, enlarged, in room that is made for it below the path."""
    low, high = points[:, 1].min(), points[:, 1].max()
    height = max(high - low, 0.5 * np.ptp(points[:, 0]))
    axes.update_datalim([(points[0, 0], low - 1.1 * height)])
    axes.autoscale_view()
    ends = points[[row + i for row in swaps for i in (0, 1)]]
    middle, reach = (ends.max(axis=0) + ends.min(axis=0)) / 2, 0.75 * np.ptp(ends, axis=0).max()
    inset = axes.inset_axes((0.03, 0.02, 0.55, 0.4), zorder=9)
    inset.plot(*points.T, color=FAINT, linewidth=0.9)
    arrows_in(inset, points, swaps, size=11)
    inset.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - 0.9 * reach, middle[1] + 0.9 * reach), xticks=[], yticks=[])
    inset.set_title("around the swaps", fontsize=8, pad=3)


def draw_stretch(axes: Axes, a: Analysis) -> None:
    """The stretch along the two first directions of the fit, with its ellipse where it orbits."""
    fit, live = a.fit, a.motion.sketches[LIVE][a.rows]
    plane = np.stack([d.vector for d in fit.directions[:2]])
    if len(plane) < 2:  # a path that moves along one direction only
        plane = np.stack([plane[0], np.zeros_like(plane[0])])
    center = np.zeros(live.shape[1])
    points, kimg = live @ plane.T, a.kimg[a.rows]
    half = len(points) // 2
    axes.plot(*points[: half + 1].T, color=FAINT, linewidth=0.8, zorder=2, label="first half: gives the directions")
    path_line(axes, points[half:], kimg[half:])
    averages_in(axes, a, plane, center, a.rows, size=8)
    if fit.holds and len(fit.directions) > 1:
        one, two = fit.directions[:2]
        moved = points[half:] - points[half:].mean(axis=0)
        scale = np.sqrt([fit.variance_of(d) / d.squares for d in (one, two)])
        values, vectors = np.linalg.eigh(np.cov(moved.T, bias=True) * np.outer(scale, scale))
        angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
        shape: dict[str, Any] = {
            "fill": False,
            "color": "black",
            "linestyle": "--",
            "linewidth": 1.2,
            "zorder": 5,
            "label": "fitted orbit, 2 standard deviations",
        }
        axes.add_patch(Ellipse((one.center, two.center), *(2 * DEVIATIONS * np.sqrt(values)), angle=angle, **shape))
        axes.plot(one.center, two.center, "+", color="black", markersize=11, zorder=5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(f"{a.start:g} to {a.end:g} kimg, along the first two directions", fontsize=9)
    for i, (axis, d) in enumerate(zip((axes.xaxis, axes.yaxis), fit.directions), start=1):
        axis.set_label_text(f"direction {i}: {d.finding.verdict}, {d.share:.1%} of the motion", fontsize=8)


def draw_displacement(axes: Axes, a: Analysis) -> None:
    """How far the weights are from where they were, after so long: an orbit levels out, a walk and a drift go on."""
    fit, kimg = a.fit, a.kimg[a.rows]
    live = a.motion.sketches[LIVE][a.rows]
    half = len(live) // 2
    lags, whole = displacement_of(kimg[half:], live[half:])
    plane = np.stack([d.vector for d in fit.directions])
    _, along = displacement_of(kimg[half:], live[half:] @ plane.T)
    axes.loglog(lags, whole, "o", color=ALL, markersize=4, label="all directions")
    axes.loglog(lags, along, "s", color=FITTED, markersize=4, label="those of the fit")
    if fit.holds:
        expected = sum(2 * fit.variance_of(d) * -np.expm1(-fit.rate_of(d) * lags) for d in fit.directions)
        axes.loglog(lags, expected, "--", color=FITTED, linewidth=1.2, label="the fitted orbit")
    axes.loglog(lags, sum(a.parts.at(lags)), "--", color=ALL, linewidth=1.1, label="orbit + walk + drift")
    axes.loglog(lags, whole[0] * lags / lags[0], color=FAINT, linewidth=1, label="a random walk: like t")
    axes.loglog(lags, whole[0] * (lags / lags[0]) ** 2, ":", color=FAINT, linewidth=1.2, label="a drift: like t²")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0.5 * min(along.min(), whole.min()), 4 * whole.max())
    axes.set_xlabel("kimg later", fontsize=8)
    axes.set_ylabel("mean squared displacement", fontsize=8)
    axes.set_title("how far from where they were", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.2)


def picture_path(run: Path, found: Sequence[Analysis]) -> Path:
    """Where a run's picture of a stretch goes."""
    return run / FOLDER / f"{found[0].motion.nimg[found[0].rows[-1]]:012d}.png"


def keep(found: Sequence[Analysis], picture: Path, title: str) -> Path:
    """Draw what was found and write its numbers beside the picture; where these are."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(found, picture, title)
    record = picture.with_suffix(".json")
    record.write_text(json.dumps(as_json({a.player.upper(): as_record(a) for a in found}), indent=1) + "\n")
    return record
