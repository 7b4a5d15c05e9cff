"""Picture of the motion: the path of the weights with averages and swaps, the fitted orbit, and the displacement over time."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import FuncFormatter, NullFormatter

from gantrain.atomic_file import open_draft, write_atomically
from gantrain.orbit.analysis import PLAYERS, Analysis
from gantrain.orbit.recordings import FOLDER
from gantrain.orbit.words import build_record, summarise
from gantrain.palette import COLOURS, FAINT, MARKS, style_of
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.layout import narrow_variant
from gantrain.score_names import LIVE
from gantrain.theory.displacement import displacement_of
from gantrain.theory.orbit_fit import OrbitFit
from gantrain.theory.path_statistics import principal_directions

TIME = "viridis"  # Matplotlib's colour map for a path, from start to end
SWAP = MARKS["swap"].colour
ALL, FITTED = COLOURS[-1], COLOURS[-3]  # colours of directions, not of averages
NARROW_WIDTH, LETTERS = 3.6, 46  # inches of a picture for phones, and letters of a line of its titles
MOST_DRAWN = 4000  # recordings of a path; a longer one is thinned to about as many, which no eye can tell from all
DEVIATIONS = 2  # radius of the ellipse in standard deviations


def picture_path(run: Path, analyses: Sequence[Analysis]) -> Path:
    """Name the picture of a run's stretch, RUN/orbit/<nimg at its end>.png."""
    return run / FOLDER / f"{analyses[0].motion.nimg[analyses[0].rows[-1]]:012d}.png"


def save_analyses(analyses: Sequence[Analysis], picture: Path, title: str) -> Path:
    """Draw the picture and its variant for phones, write its numbers next to it as JSON, and return the path of the JSON."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    with open_draft(picture) as draft:
        draw_picture(analyses, draft, title)
    with open_draft(narrow_variant(picture)) as draft:
        draw_narrow_picture(analyses, draft, title)
    record = picture.with_suffix(".json")
    write_atomically(record, json.dumps(as_json({a.player.upper(): build_record(a) for a in analyses}), indent=1) + "\n")
    return record


def draw_picture(analyses: Sequence[Analysis], path: Path, title: str) -> None:
    """Draw a row of three panels per player.

    Left, the whole record in its two principal directions; centre, the stretch along the first two directions of the fit; right,
    the mean squared displacement over time.
    """
    figure = Figure(figsize=(15, 0.7 + 4.9 * len(analyses)), layout="constrained", dpi=110)
    rows = figure.subfigures(len(analyses), 1, squeeze=False)[:, 0]
    for part, analysis in zip(rows, analyses):
        part.suptitle(f"{title}: {summarise(analysis)}", fontsize=11)
        left, middle, right = part.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
        draw_whole(left, analysis)
        draw_stretch(middle, analysis)
        draw_displacement(right, analysis)
        for axes in (left, middle, right):
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def draw_narrow_picture(analyses: Sequence[Analysis], path: Path, title: str) -> None:
    """Draw the same panels below each other, for a phone: a figure of 3.6 inches is shown there at about its own size."""
    figure = Figure(figsize=(NARROW_WIDTH, 11.6 * len(analyses)), layout="constrained", dpi=220)
    rows = figure.subfigures(len(analyses), 1, squeeze=False)[:, 0]
    for part, analysis in zip(rows, analyses):
        part.suptitle(textwrap.fill(f"{title}: {summarise(analysis)}", LETTERS, break_long_words=True), fontsize=9)
        for axes, draw in zip(part.subplots(3, 1, height_ratios=(1.15, 1.15, 1)), (draw_whole, draw_stretch, draw_displacement)):
            draw(axes, analysis)
            axes.set_title(textwrap.fill(axes.get_title(), LETTERS), fontsize=9)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(handles, labels, fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path)


def draw_path(axes: Axes, points: np.ndarray, kimg: np.ndarray) -> None:
    """Draw a path `[n, 2]` coloured by time, with a colour bar. Jumps leave a gap."""
    moves = np.diff(kimg) > 0
    line = LineCollection(list(np.stack([points[:-1], points[1:]], axis=1)[moves]), cmap=TIME, linewidths=1.2, zorder=3)
    line.set_array(kimg[1:][moves])
    axes.add_collection(line)
    axes.autoscale_view()
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(line, ax=axes, shrink=0.8, pad=0.01, aspect=30)
    bar.set_label("kimg", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def draw_averages(axes: Axes, a: Analysis, plane: np.ndarray, center: np.ndarray, rows: np.ndarray, size: float) -> None:
    """Draw the averages' paths over these rows as faint lines, and mark their ends and the end of the live weights."""
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    styles = style_of(a.averagers)
    for standing in a.standings:
        style = styles[standing.name]
        points = (a.motion.sketches[standing.name][rows] - center) @ plane.T
        axes.plot(*points.T, color=style.colour, linestyle=style.linestyle, linewidth=0.9, alpha=0.55, zorder=4)
        axes.plot(*points[-1], style.marker, color=style.colour, markersize=size, label=standing.name, zorder=6, **edge)
    live = (a.motion.sketches[LIVE][rows[-1]] - center) @ plane.T
    axes.plot(*live, styles[LIVE].marker, color=styles[LIVE].colour, markersize=size + 1, label=LIVE, zorder=7, **edge)


def draw_whole(axes: Axes, a: Analysis) -> None:
    """Draw the record up to the end of the stretch, with swaps as arrows."""
    jumps = [row for row in a.motion.swaps if row < a.rows[-1]]
    rows = thin(np.arange(a.rows[-1] + 1), [row + i for row in jumps for i in (0, 1)])
    live = a.motion.sketches[LIVE][rows]
    center, plane = live.mean(axis=0), principal_directions(live, 2)
    points = (live - center) @ plane.T
    draw_path(axes, points, a.kimg[rows])
    axes.plot(*points[0], "o", markerfacecolor="white", markeredgecolor="black", markersize=7, zorder=6, label="start")
    swaps = np.searchsorted(rows, jumps).tolist()
    if swaps:
        draw_swaps(axes, points, swaps, size=7)
        axes.plot([], [], color=SWAP, linewidth=1.3, label="swap")
        draw_inset_of_swaps(axes, points, swaps)
    marks, words = axes.get_legend_handles_labels()
    draw_averages(axes, a, plane, center, rows, size=5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(marks, words, fontsize=8, frameon=False)
    axes.set_title(f"{PLAYERS[a.player]}: the path so far, in its two principal directions", fontsize=9)
    shares = [((points[:, i]) ** 2).sum() / ((live - center) ** 2).sum() for i in range(points.shape[1])]
    label_axes(axes, [f"{share:.0%} of the motion" for share in shares])


def thin(rows: np.ndarray, also: Sequence[int] = ()) -> np.ndarray:
    """The rows to draw of a path, ascending: all, or about `MOST_DRAWN` of them with the first, the last and `also`."""
    if len(rows) <= MOST_DRAWN:
        return rows
    return np.unique([rows[0], *rows[:: -math.ceil(len(rows) / MOST_DRAWN)], *also])


def label_axes(axes: Axes, words: Sequence[str]) -> None:
    """Label the x axis, and the y axis if there are two words."""
    for axis, word in zip((axes.xaxis, axes.yaxis), words):
        axis.set_label_text(word, fontsize=8)


def draw_swaps(axes: Axes, points: np.ndarray, swaps: Sequence[int], size: float) -> None:
    """Draw an arrow for each swap, from the weights before it to those after it."""
    for row in swaps:
        look = {"arrowstyle": "-|>", "color": SWAP, "linewidth": 1.1, "mutation_scale": size, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[row + 1], points[row], arrowprops=look, zorder=8)


def draw_inset_of_swaps(axes: Axes, points: np.ndarray, swaps: Sequence[int]) -> None:
    """Draw the region around the swaps enlarged, in an inset below the path."""
    low, high = points[:, 1].min(), points[:, 1].max()
    height = max(high - low, 0.5 * np.ptp(points[:, 0]))
    axes.update_datalim([(points[0, 0], low - 1.1 * height)])
    axes.autoscale_view()
    ends = points[[row + i for row in swaps for i in (0, 1)]]
    middle, reach = (ends.max(axis=0) + ends.min(axis=0)) / 2, 0.75 * np.ptp(ends, axis=0).max()
    inset = axes.inset_axes((0.03, 0.02, 0.55, 0.4), zorder=9)
    inset.plot(*points.T, color=FAINT, linewidth=0.9)
    draw_swaps(inset, points, swaps, size=11)
    inset.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - 0.9 * reach, middle[1] + 0.9 * reach), xticks=[], yticks=[])
    inset.set_title("around the swaps", fontsize=8, pad=3)


def draw_stretch(axes: Axes, a: Analysis) -> None:
    """Draw the stretch along the first two directions of the fit, with the ellipse of an orbit."""
    fit, live = a.fit, a.motion.sketches[LIVE][a.rows]
    plane = np.stack([d.vector for d in fit.directions[:2]])
    if len(plane) < 2:  # the path moves along a single direction
        plane = np.stack([plane[0], np.zeros_like(plane[0])])
    center = np.zeros(live.shape[1])
    points, kimg = live @ plane.T, a.kimg[a.rows]
    half = len(points) // 2
    axes.plot(*points[: half + 1].T, color=FAINT, linewidth=0.8, zorder=2, label="first half: gives the directions")
    drawn = thin(np.arange(half, len(points)))
    draw_path(axes, points[drawn], kimg[drawn])
    draw_averages(axes, a, plane, center, thin(a.rows), size=8)
    if fit.holds and len(fit.directions) > 1:
        draw_ellipse(axes, fit, points[half:])
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(f"{a.start:g} to {a.end:g} kimg, along the first two directions", fontsize=9)
    labels = [f"direction {i}: {d.finding.verdict}, {d.share:.1%} of the motion" for i, d in enumerate(fit.directions[:2], start=1)]
    label_axes(axes, labels)


def draw_ellipse(axes: Axes, fit: OrbitFit, points: np.ndarray) -> None:
    """Draw the fitted orbit of the measured half `[n, 2]` around its centre."""
    one, two = fit.directions[:2]
    moved = points - points.mean(axis=0)
    scale = np.sqrt([fit.variance_of(d) / d.squares for d in (one, two)])
    values, vectors = np.linalg.eigh(np.cov(moved.T, bias=True) * np.outer(scale, scale))
    width, height = 2 * DEVIATIONS * np.sqrt(values)
    ellipse = Ellipse(
        (one.center, two.center), width, height, angle=float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))), fill=False,
        color="black", linestyle="--", linewidth=1.2, zorder=5, label=f"fitted orbit, {DEVIATIONS} standard deviations",
    )  # fmt: skip
    axes.add_patch(ellipse)
    axes.plot(one.center, two.center, "+", color="black", markersize=11, zorder=5)


def draw_displacement(axes: Axes, a: Analysis) -> None:
    """Draw the mean squared displacement over time: that of an orbit levels off, those of a walk and a drift keep growing."""
    fit, kimg = a.fit, a.kimg[a.rows]
    live = a.motion.sketches[LIVE][a.rows]
    half = len(live) // 2
    lags, whole = displacement_of(kimg[half:], live[half:])
    plane = np.stack([d.vector for d in fit.directions])
    _, along = displacement_of(kimg[half:], live[half:] @ plane.T)
    axes.loglog(lags, whole, "o", color=ALL, markersize=4, label="all directions")
    axes.loglog(lags, along, "s", color=FITTED, markersize=4, label="directions of the fit")
    if fit.holds:
        expected = sum(2 * fit.variance_of(d) * -np.expm1(-fit.rate_of(d) * lags) for d in fit.directions)
        axes.loglog(lags, expected, "--", color=FITTED, linewidth=1.2, label="the fitted orbit")
    axes.loglog(lags, sum(a.parts.at(lags)), "--", color=ALL, linewidth=1.1, label="orbit + walk + drift")
    axes.loglog(lags, whole[0] * lags / lags[0], color=FAINT, linewidth=1, label="a random walk: ~ t")
    axes.loglog(lags, whole[0] * (lags / lags[0]) ** 2, ":", color=FAINT, linewidth=1.2, label="a drift: ~ t²")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0.5 * min(along.min(), whole.min()), 4 * whole.max())
    axes.set_xlabel("time in kimg", fontsize=8)
    axes.set_ylabel("mean squared displacement", fontsize=8)
    axes.set_title("displacement over time", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.2)
