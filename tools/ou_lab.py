"""Draw why averaging weights works: SGD near an optimum as an Ornstein-Uhlenbeck process, simulated and in closed form.

    python tools/ou_lab.py --out docs/
    python tools/ou_lab.py --out docs/ --only swap laws

Every picture sets simulations of gantrain/theory/ornstein_uhlenbeck.py beside its closed forms, which are dashed. Most share one
process: curvature 1 at learning rate 0.05, so that an update forgets k = 0.05 of the weights, batches of 64 images, and the
image noise that gives the live weights the variance V = 1. Distances are in units of its root and times in updates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import command
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Ellipse
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.signal import lfilter

from gantrain.errors import UserError
from gantrain.theory import ornstein_uhlenbeck as ou

LIVE, AVERAGE, THIRD = "#1f5fa8", "#c2410c", "#3d3d3d"
PALE_LIVE, PALE_AVERAGE, GREY = "#8fb1d8", "#eba37f", "#9a9a9a"
CLOSED = {"color": "black", "linewidth": 1.1, "linestyle": (0, (5, 3))}
LIGHT = {"linewidth": 3.5, "alpha": 0.55}  # a simulated line, wide enough to see a dashed one inside

CURVATURE, RATE, BATCH = 1.0, 0.05, 64
K = RATE * CURVATURE
PHI = 1 - K
EXACT_K = -np.log(PHI)  # e^(-k t) of the process in continuous time is phi^t with it
NOISE = BATCH * CURVATURE * (2 - K) / RATE  # for which SGD's own V is 1

# In two dimensions: the same curvature across a valley and a quarter of it along, turned by 30 degrees; round noise.
TURN = np.deg2rad(30)
ACROSS_ALONG = np.array([CURVATURE, CURVATURE / 4])
AXES = np.array([[-np.sin(TURN), np.cos(TURN)], [np.cos(TURN), np.sin(TURN)]])  # columns: across the valley, along it
VALLEY = AXES @ np.diag(ACROSS_ALONG) @ AXES.T
ROUND = NOISE * np.eye(2)

# ---- simulations -----------------------------------------------------------------------------------------------------


def chains(rng: np.random.Generator, updates: int, many: int, start: float | np.ndarray | None = None, batch: float = BATCH) -> np.ndarray:
    """`[updates + 1, many]`: runs of SGD in one dimension, from a start or from the stationary state."""
    first = rng.standard_normal(many) if start is None else np.broadcast_to(start, many)
    return ou.simulate_sgd(CURVATURE, NOISE, RATE, batch, first[:, None], updates, rng)[..., 0]


def adam_chains(rng: np.random.Generator, rate: float, batch: int, updates: int, many: int) -> np.ndarray:
    """`[many]`: where runs of Adam(0, 0.999) on the same loss are after so many updates, begun near their stationary state."""
    x = np.sqrt(ou.adam_variance(CURVATURE, NOISE, rate, batch)) * rng.standard_normal(many)
    square = np.full(many, NOISE / batch)
    for _ in range(updates):
        gradient = CURVATURE * x + np.sqrt(NOISE / batch) * rng.standard_normal(many)
        square = 0.999 * square + 0.001 * gradient**2
        x = x - rate * gradient / np.sqrt(square)
    return x


def decay_of(half_life: float | np.ndarray) -> float | np.ndarray:
    """What an EMA keeps an update."""
    return 2.0 ** (-1 / np.asarray(half_life, dtype=float))


def rate_of(half_life: float | np.ndarray) -> float | np.ndarray:
    """mu, the rate at which an EMA forgets."""
    return np.log(2) / np.asarray(half_life, dtype=float)


def ema(path: np.ndarray, half_life: float) -> np.ndarray:
    """The EMA along a path's first axis; it begins as the path does."""
    beta = decay_of(half_life)
    return lfilter([1 - beta], [1, -beta], path, axis=0, zi=beta * path[:1])[0]


def uniform(path: np.ndarray) -> np.ndarray:
    """The mean of all points so far along a path's first axis."""
    count = np.arange(1, len(path) + 1).reshape(-1, *[1] * (path.ndim - 1))
    return np.cumsum(path, axis=0) / count


def mean_square(x: np.ndarray) -> tuple[float, float]:
    """Over independent chains: the mean square about zero, and two standard errors of it."""
    return float(np.mean(x**2)), float(2 * np.std(x**2) / np.sqrt(x.size))


# ---- drawing ---------------------------------------------------------------------------------------------------------


def sheet(lesson: str, height: float) -> Figure:
    """An empty picture with its lesson above."""
    figure = Figure(figsize=(9, height), layout="constrained", dpi=150)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    figure.suptitle(lesson, fontsize=12)
    return figure


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """A panel's words and its quiet frame."""
    axes.set_title(title, fontsize=9.5, color=THIRD)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, closed: bool = True, **where) -> None:
    """What the panel's labels name, and the dashes where they are drawn."""
    handles = axes.get_legend_handles_labels()[0] + closed * [Line2D([], [], label="closed form", **CLOSED)]
    axes.legend(handles=handles, fontsize=8, frameon=False, handlelength=2.1, **where)


def logarithmic(axes: Axes, which: str) -> None:
    """Log axes ("x", "y" or "xy") whose ticks are plain numbers."""
    for letter in which:
        axes.set(**{f"{letter}scale": "log"})
        getattr(axes, f"{letter}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def dots(axes: Axes, x: np.ndarray, samples: list[np.ndarray], **look) -> None:
    """Mean squares of samples over x as points with two standard errors each way."""
    value, error = np.array([mean_square(sample) for sample in samples]).T
    axes.errorbar(x, value, error, fmt="o", markersize=4, elinewidth=1.2, zorder=3, **look)


def ellipses(axes: Axes, covariance: np.ndarray, **look) -> None:
    """The 1 and 2 sigma ellipses of a normal about the origin."""
    values, vectors = np.linalg.eigh(covariance)
    for sigmas in (1, 2):
        width, height = 2 * sigmas * np.sqrt(values)
        axes.add_patch(Ellipse((0, 0), width, height, angle=np.degrees(np.arctan2(*vectors[::-1, 0])), fill=False, **look))


def shade_density(axes: Axes, covariance: np.ndarray, reach: float) -> None:
    """The stationary density as a pale wash under what is drawn on it."""
    line = np.linspace(-reach, reach, 241)
    density = ou.stationary_density(np.stack(np.meshgrid(line, line), axis=-1), covariance)
    axes.contourf(line, line, density / density.max(), levels=np.linspace(0.02, 1, 9), cmap="Blues", alpha=0.55, zorder=0)


def plane(axes: Axes, reach: float, title: str, x: str = "first weight, σ", y: str = "second weight, σ") -> None:
    """A square panel whose axes are two weights."""
    dress(axes, title, x, y)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw_forces(rng: np.random.Generator) -> Figure:
    """Nine paths from 5 sigma under the pull alone (k = 0.05), under the noise alone and under both, each with the same noise.

    Shaded: mean and standard deviation in closed form; under noise alone the variance after t updates is t eps^2 c / S.
    """
    start, updates, time = 5.0, 160, np.arange(161)
    seed = rng.integers(2**32)
    spread = {
        "the pull alone: falls to the optimum": (CURVATURE, 0.0, ou.live_mean(start, EXACT_K, time), 0 * time),
        "the noise alone: wanders off": (0.0, NOISE, start + 0 * time, time * RATE**2 * NOISE / BATCH),
        "both: falls, then orbits": (CURVATURE, NOISE, ou.live_mean(start, EXACT_K, time), ou.variance_after_swap(EXACT_K, 0, 1, time)),
    }
    figure = sheet("An orbit is a pull and a noise in balance", 3.3)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (title, (curvature, noise, mean, variance)) in zip(panels, spread.items()):
        paths = ou.simulate_sgd(curvature, noise, RATE, BATCH, np.full((9, 1), start), updates, np.random.default_rng(seed))[..., 0]
        low, high = mean - np.sqrt(variance), mean + np.sqrt(variance)
        axes.fill_between(time, low, high, color=PALE_AVERAGE, alpha=0.35, linewidth=0, label="± standard deviation")
        axes.plot(time, paths[:, 1:], color=PALE_LIVE, linewidth=0.7, alpha=0.7)
        axes.plot(time, paths[:, 0], color=LIVE, linewidth=1.5, label="one path of nine")
        axes.plot(time, mean, **CLOSED)
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        dress(axes, title, "updates", "")
        axes.set_xlim(0, updates)
    panels[0].set_ylabel("distance from the optimum, σ", fontsize=9)
    legend(panels[2], loc="upper right")
    return figure


def draw_density(rng: np.random.Generator) -> Figure:
    """SGD in a valley, curvature 1 across and 1/4 along: three paths fall in; one orbit of 40,000 updates fills the stationary density.

    The ellipses are 1 and 2 sigma of SGD's own stationary covariance; of a normal 39% and 86% are inside.
    """
    covariance = ou.stationary_covariance_steps(VALLEY, ROUND, RATE, BATCH)
    figure = sheet("The weights do not come to rest: they fall into an orbit that has a shape", 5.0)
    left, right = figure.subplots(1, 2)
    starts = np.array([[-8.5, 5.5], [9.0, -1.0], [0.5, -9.0]])
    falls = ou.simulate_sgd(VALLEY, ROUND, RATE, BATCH, starts, 260, rng)
    for axes in (left, right):
        shade_density(axes, covariance, 10)
        ellipses(axes, covariance, edgecolor="black", linewidth=1, linestyle=(0, (5, 3)), zorder=4)
    for i, colour in enumerate((LIVE, AVERAGE, THIRD)):
        left.plot(*falls[:, i].T, color=colour, linewidth=0.9)
        left.plot(*starts[i], "o", color=colour, markersize=6)
    plane(left, 10, "three starts, 260 updates each")
    orbit = ou.simulate_sgd(VALLEY, ROUND, RATE, BATCH, falls[-1, 0], 40_000, rng)
    radius = np.sqrt(np.einsum("ti,ij,tj->t", orbit, np.linalg.inv(covariance), orbit))
    right.plot(*orbit[::10].T, ".", color=LIVE, markersize=2, alpha=0.35)
    for sigmas in (1, 2):
        text = f"{sigmas}σ: {100 * np.mean(radius < sigmas):.0f}% inside\nnormal: {100 * (1 - np.exp(-(sigmas**2) / 2)):.0f}%"
        top = sigmas * covariance[:, 1] / np.sqrt(covariance[1, 1])  # the ellipse's highest point
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8}
        right.annotate(text, top, xytext=(-6.5, 6.3 - 1.9 * (sigmas == 1)), fontsize=8, va="top", arrowprops=line, zorder=5)
    plane(right, 7, "one orbit of 40,000 updates, every tenth")
    return figure


def draw_near_far(rng: np.random.Generator) -> Figure:
    """Where noise wins and where the pull does: fans of 12 updates from four distances, and what one update does to r^2.

    Round curvature 1. The pull takes k (2 - k) r^2 off the squared distance and the noise adds 2 eps^2 c / S whatever r is: equal
    at r = sqrt(2 V), the orbit's radius. Points: 40,000 simulated updates from each distance.
    """
    round_curvature = CURVATURE * np.eye(2)
    orbit = np.sqrt(np.trace(ou.stationary_covariance_steps(round_curvature, ROUND, RATE, BATCH)))
    figure = sheet("Near the centre the noise wins, far out the pull does; the orbit lies where they are even", 4.5)
    left, right = figure.subplots(1, 2)
    grid = np.stack(np.meshgrid(np.arange(-8, 9, 2.0), np.arange(-8, 9, 2.0)), axis=-1).reshape(-1, 2)
    left.quiver(*grid.T, *(-4 * K * grid).T, angles="xy", scale_units="xy", scale=1, color=PALE_LIVE, width=0.005, zorder=1)
    for distance, angle in ((0, 0), (4, 175), (6, 60), (8, 320)):
        start = distance * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
        fan = ou.simulate_sgd(round_curvature, ROUND, RATE, BATCH, np.tile(start, (25, 1)), 12, rng)
        left.plot(*np.moveaxis(fan, 2, 0), color=AVERAGE, linewidth=0.6, alpha=0.55, zorder=2)
        left.plot(*start, "o", color="black", markersize=4, zorder=3)
        left.plot(*fan.mean(axis=1).T, color="black", linewidth=1.6, zorder=3)
    left.add_patch(Circle((0, 0), orbit, fill=False, linestyle=(0, (5, 3)), linewidth=1.2, zorder=4))
    plane(left, 8.9, "arrows: the pull; 25 runs of 12 updates, and means")
    r = np.linspace(0, 3, 200)
    gain = 2 * RATE**2 * NOISE / BATCH
    right.plot(r, gain + 0 * r, color=AVERAGE, linewidth=1.8, label="the noise adds")
    right.plot(r, K * (2 - K) * r**2, color=LIVE, linewidth=1.8, label="the pull takes off")
    for distance in np.arange(0.25, 3, 0.25):
        after = ou.simulate_sgd(round_curvature, ROUND, RATE, BATCH, np.tile([distance, 0.0], (40_000, 1)), 1, rng)[-1]
        right.plot(distance, after.var(axis=0).sum(), "o", color=AVERAGE, markersize=4)
        right.plot(distance, distance**2 - (after.mean(axis=0) ** 2).sum(), "o", color=LIVE, markersize=4)
    right.axvline(orbit, color="black", linewidth=1, linestyle=(0, (5, 3)), ymax=0.62)
    right.text(orbit, 0.585, "the orbit's radius,\n√2 σ in two dimensions", fontsize=8, ha="center", va="bottom")
    right.text(0.1, 0.06, "driven\noutwards", fontsize=8, color=AVERAGE)
    right.text(2.3, 0.06, "pulled\ninwards", fontsize=8, color=LIVE)
    dress(right, "what one update does to the squared distance", "distance from the centre, σ", "change of the squared distance, V")
    right.set(xlim=(0, 3), ylim=(0, 0.9))
    legend(right, closed=False, loc="upper left")
    return figure


def level(variance_ratio: Callable[[float], float]) -> float:
    """Root mean square distance from the valley's centre of an average, by its V_average / V at a phi."""
    each = [ou.variance_steps(a, NOISE, RATE, BATCH) * variance_ratio(1 - RATE * a) for a in ACROSS_ALONG]
    return np.sqrt(sum(each))


def draw_average(rng: np.random.Generator) -> Figure:
    """In the valley, from the stationary state: one orbit of 4,000 updates, its EMA of half-life 300 and its uniform average.

    Beside it the root mean square distance from the centre over 500 runs (thin: the one run) of the live weights, EMAs of half-lives
    30 and 300 and the uniform average; an EMA's closed form is that of one whose start is forgotten.
    """
    updates = 4000
    starts = rng.multivariate_normal(np.zeros(2), ou.stationary_covariance_steps(VALLEY, ROUND, RATE, BATCH), 500)
    paths = ou.simulate_sgd(VALLEY, ROUND, RATE, BATCH, starts, updates, rng)
    time = np.arange(1, updates + 1)
    lines = {
        "live": (paths, LIVE, level(lambda phi: 1.0) + 0 * time),
        "EMA, half-life 30": (ema(paths, 30), PALE_AVERAGE, level(lambda phi: ou.ema_ratio_steps(phi, decay_of(30))) + 0 * time),
        "EMA, half-life 300": (ema(paths, 300), AVERAGE, level(lambda phi: ou.ema_ratio_steps(phi, decay_of(300))) + 0 * time),
        "uniform": (uniform(paths), THIRD, level(lambda phi: ou.uniform_ratio_steps(phi, time + 1))),
    }
    # The run shown is a usual one: it ends about as far out as the root mean square, live and in every average.
    ends = [np.log(np.linalg.norm(path[-1], axis=-1) / expected[-1]) ** 2 for path, _, expected in lines.values()]
    run = int(np.argmin(np.sum(ends, axis=0)))
    looks = {"live": {"linewidth": 0.5, "alpha": 0.4}, "EMA, half-life 300": {"linewidth": 1.2}, "uniform": {"linewidth": 1.2}}
    figure = sheet("The centre of the orbit is the optimum, and an average finds it", 4.5)
    left, right = figure.subplots(1, 2)
    for name, (path, colour, expected) in lines.items():
        distance = np.linalg.norm(path[1:], axis=-1)
        right.plot(time, np.sqrt(np.mean(distance**2, axis=1)), color=colour, label=name, **LIGHT)
        right.plot(time, expected, **CLOSED)
        if name in looks:  # the short EMA is too restless for one run of it to be told from the live weights
            left.plot(*path[:, run].T, color=colour, **looks[name])
            left.plot(*path[-1, run], "o", color=colour, markersize=6, label=name, zorder=4)
            right.plot(time[::5], distance[::5, run], color=colour, zorder=1, **(looks[name] | {"linewidth": 0.5}))
    left.plot(0, 0, "+", color="black", markersize=11, markeredgewidth=1.6, label="the optimum", zorder=5)
    plane(left, 7, "one run of 4,000 updates; dots: where it ends")
    legend(left, closed=False, loc="upper left")
    dress(right, "root mean square over 500 runs; thin: the run on the left", "updates", "distance from the optimum, σ")
    logarithmic(right, "y")
    right.set(xlim=(0, updates), ylim=(0.08, 30))
    legend(right, loc="upper left", ncols=2)
    return figure


def draw_swap(rng: np.random.Generator) -> Figure:
    """4,000 runs whose EMA (half-life 100) takes the live weights' place: variance with the batch kept, doubled and grown by g* = 8.4.

    Dashed: V(t) = V/g + (V_ema - V/g) phi^(2 t). To the right one run of each, with the same noise, over the band of its final sigma.
    """
    before, after, many, half_life = 1000, 140, 4000, 100
    ratio = ou.ema_ratio_steps(PHI, decay_of(half_life))
    star = ou.least_growth(ratio)
    past = chains(rng, before, many)
    average, seed, time = ema(past, half_life)[-1], rng.integers(2**32), np.arange(after + 1)
    figure = sheet("Swapped-in weights stay quiet only if the noise falls with them", 4.4)
    panels = figure.subplot_mosaic([["all", "a"], ["all", "b"], ["all", "c"]], width_ratios=[1.25, 1])
    figure.get_layout_engine().set(wspace=0.06)
    shown = 60  # updates of the past
    run = int(np.argmin(np.hypot(past[-1] + 1.8, average + 0.2)))  # one that was well out on its orbit, with a usual average
    panels["all"].plot(np.arange(-shown, 1), np.mean(past[-shown - 1 :] ** 2, axis=1), color=GREY, **LIGHT)
    panels["all"].plot([0, 0], [1, ratio], color=GREY, linewidth=1, linestyle=":")
    panels["all"].text(-3, 0.55, "the EMA\nis swapped in", fontsize=8, color=THIRD, ha="right")
    for name, growth, colour in (("a", 1.0, AVERAGE), ("b", 2.0, THIRD), ("c", star, LIVE)):
        path = chains(np.random.default_rng(seed), after, many, start=average, batch=BATCH * growth)
        label = f"batch × {growth:.2g}" + (" = g*" if growth == star else "") if growth > 1 else "batch kept"
        panels["all"].plot(time, np.mean(path**2, axis=1), color=colour, label=label, **LIGHT)
        panels["all"].plot(time, ou.variance_after_swap(EXACT_K, ratio, 1 / growth, time), **CLOSED)
        axes = panels[name]
        axes.axhspan(-(growth**-0.5), growth**-0.5, color=colour, alpha=0.12, linewidth=0)
        axes.plot(np.arange(-shown, 1), past[-shown - 1 :, run], color=GREY, linewidth=0.9)
        axes.plot([0, 0], [past[-1, run], average[run]], color=GREY, linewidth=1, linestyle=":")
        axes.plot(time, path[:, run], color=colour, linewidth=1.1)
        dress(axes, "", "updates since the swap" if name == "c" else "", "")
        axes.set_title(f"one run, {label}", fontsize=9, color=colour)
        axes.set(xlim=(-shown, after), ylim=(-2.9, 2.9))
        axes.tick_params(labelbottom=name == "c")
    panels["b"].set_ylabel("distance from the optimum, σ", fontsize=9)
    dress(panels["all"], f"variance over {many:,} runs", "updates since the swap", "variance, V")
    panels["all"].set(xlim=(-shown, after), ylim=(0, 1.15))
    legend(panels["all"], loc="upper right", bbox_to_anchor=(1.0, 0.82))
    return figure


def draw_laws(rng: np.random.Generator) -> Figure:
    """Variance against batch for SGD at rates 0.05 and 0.2 and Adam(0, 0.999) at 0.25; and V_average / V against an average's length.

    Points: mean squares over 1,000 runs with two standard errors; dashed: closed forms (SGD's falls as 1 / S, Adam's as 1 / sqrt(S)).
    """
    many, batches = 1000, 2.0 ** np.arange(3, 11)
    figure = sheet("Larger batches and longer averages quiet the weights, by laws", 4.3)
    left, right = figure.subplots(1, 2)
    for rate, colour in ((0.2, PALE_LIVE), (RATE, LIVE)):
        closed = ou.variance_steps(CURVATURE, NOISE, rate, batches)
        ends = [ou.simulate_sgd(CURVATURE, NOISE, rate, batch, np.zeros((many, 1)), 200, rng)[-1] for batch in batches]
        left.plot(batches, closed, **CLOSED)
        dots(left, batches, ends, color=colour, label=f"SGD, rate {rate:g}")
    left.plot(batches, [ou.adam_variance(CURVATURE, NOISE, 0.25, batch) for batch in batches], **CLOSED)
    dots(left, batches, [adam_chains(rng, 0.25, batch, 400, many) for batch in batches], color=AVERAGE, label="Adam, rate 0.25")
    left.text(22, 15, "∝ 1 / S", fontsize=8.5, color=LIVE)
    left.text(9, 1.05, "∝ 1 / √S", fontsize=8.5, color=AVERAGE)
    dress(left, "variance against batch", "batch S, images", "variance of the live weights, V")
    logarithmic(left, "xy")
    left.set_xticks(batches, [f"{b:.0f}" for b in batches])
    left.minorticks_off()
    legend(left, loc="upper right")
    lengths = np.array([4, 10, 25, 60, 150, 400, 1000])
    fine = np.geomspace(3, 1300, 200)
    past = chains(rng, 10 * lengths[-1], many)
    right.plot(fine, ou.uniform_ratio_steps(PHI, fine), **CLOSED)
    dots(right, lengths, [past[-n:].mean(axis=0) for n in lengths], color=THIRD, label="uniform: its window")
    right.plot(fine, ou.ema_ratio_steps(PHI, decay_of(fine)), **CLOSED)
    dots(right, lengths, [ema(past, n)[-1] for n in lengths], color=AVERAGE, label="EMA: its half-life")
    dress(right, f"variance against the average's length, k = {K:g}", "length, updates", "V of the average / V")
    logarithmic(right, "xy")
    legend(right, loc="lower left")
    return figure


FORGETS, TURNS = 0.01, 0.1  # a game's rho and omega an update: a turn takes 63 updates
GAME_NOISE = 2 * BATCH * FORGETS / RATE**2 * np.eye(2)  # for which each player's V is 1


def game(rng: np.random.Generator, turns: float, start: np.ndarray, updates: int) -> np.ndarray:
    """`[updates + 1, many, 2]`: G and D of a game whose gradient field turns by so much an update, from `[many, 2]`."""
    field = np.array([[FORGETS, -turns], [turns, FORGETS]]) / RATE
    return ou.simulate_ou(field, GAME_NOISE, RATE, BATCH, start, updates, updates, rng)


def draw_rotation(rng: np.random.Generator) -> Figure:
    """A game of rho = 0.01 and omega = 0.1 an update: its path and EMA (half-life 100); the squared radius after swaps; V_ema / V by omega.

    The swaps are means over 4,000 runs with V(t) at the rate rho dashed; the points on the right 2,000 runs each, half-lives 25 and 100.
    """
    figure = sheet("Two players chase each other around the solution: average both, or half of the motion stays", 3.45)
    left, middle, right = figure.subplots(1, 3)
    half_life, updates, after = 100, 1000, 160
    past = game(rng, TURNS, rng.standard_normal((4000, 2)), updates)
    average = ema(past, half_life)
    run = int(np.argmin(np.abs(np.linalg.norm(past[-400:], axis=-1).mean(axis=0) - 1.6)))
    left.plot(*past[-400:, run].T, color=LIVE, linewidth=0.9, label="live")
    left.plot(*average[-400:, run].T, color=AVERAGE, linewidth=1.6, label="EMA of both")
    plane(left, 3.6, "400 updates, 63 a turn", "G's weight, σ", "D's weight, σ")
    legend(left, closed=False, loc="upper left")
    time, ratio = np.arange(after + 1), ou.ema_ratio(FORGETS + 1j * TURNS, rate_of(half_life))
    swaps = {
        "no swap": (GREY, past[-1], 1.0),
        "of G alone": (LIVE, np.stack([average[-1, :, 0], past[-1, :, 1]], axis=1), ou.cycle_after_swap(np.sqrt(ratio), joint=False)),
        "of both": (AVERAGE, average[-1], ou.cycle_after_swap(np.sqrt(ratio), joint=True)),
    }
    for name, (colour, start, level) in swaps.items():
        path = game(rng, TURNS, start, after)
        middle.plot(time, np.mean(path**2, axis=(1, 2)), color=colour, label=name if name == "no swap" else f"swap {name}", **LIGHT)
        middle.plot(time, ou.variance_after_swap(FORGETS, level, 1.0, time), **CLOSED)
    dress(middle, "the motion after a swap", "updates since the swap", "mean squared radius, 2 V")
    middle.set(xlim=(0, after), ylim=(0, 1.25))
    legend(middle, loc="lower right")
    omegas, fine = np.geomspace(0.002, 0.25, 7), np.geomspace(0.0015, 0.32, 200)
    for length, colour in ((25, PALE_AVERAGE), (100, AVERAGE)):
        right.plot(fine, ou.ema_ratio(FORGETS + 1j * fine, rate_of(length)), **CLOSED)
        ends = [ema(game(rng, omega, rng.standard_normal((2000, 2)), 10 * length), length)[-1] for omega in omegas]
        dots(right, omegas, ends, color=colour, label=f"half-life {length}")
    right.axvline(FORGETS, color=GREY, linewidth=0.8, linestyle=":", ymin=0.32)
    right.text(FORGETS * 1.12, 0.0085, "ω = ρ", fontsize=8, color=THIRD)
    dress(right, "fast turns average out best", "ω, radians an update", "V of the EMA / V")
    logarithmic(right, "xy")
    legend(right, loc="lower left")
    for axes in (left, middle, right):
        axes.set_box_aspect(1)
    return figure


def draw_lag(rng: np.random.Generator) -> Figure:
    """A fall from 10 sigma: mean of 2,000 runs, live and EMAs of half-lives 30 and 100; and weights that drift: error by half-life.

    Drifts of 0.0002 and 0.001 sigma an update: the squared error of the EMA, V mu / (k + mu) + (v / mu)^2, is least at one half-life.
    """
    start, updates, time = 10.0, 500, np.arange(501)
    figure = sheet("An average lives in the past: while weights still move, there is a best length", 4.3)
    left, right = figure.subplots(1, 2)
    falls = chains(rng, updates, 2000, start=start)
    shown = {
        "live": (falls, LIVE, ou.live_mean(start, EXACT_K, time)),
        "EMA, half-life 30": (ema(falls, 30), PALE_AVERAGE, ou.ema_mean(start, EXACT_K, rate_of(30), time)),
        "EMA, half-life 100": (ema(falls, 100), AVERAGE, ou.ema_mean(start, EXACT_K, rate_of(100), time)),
        "uniform": (uniform(falls), THIRD, ou.uniform_mean(start, EXACT_K, time + 1)),
    }
    for name, (path, colour, closed) in shown.items():
        left.plot(time, path.mean(axis=1), color=colour, label=name, **LIGHT)
        left.plot(time, closed, **CLOSED)
    dress(left, "weights that fall from a start: mean of 2,000 runs", "updates", "distance from the optimum, σ")
    left.set(xlim=(0, updates), ylim=(-0.4, start))
    legend(left, loc="upper right")
    lengths, fine = np.array([10, 30, 70, 240, 700, 2000]), np.geomspace(7, 2800, 4000)
    orbit = chains(rng, 16_000, 300)
    noise = ou.ema_ratio_steps(PHI, decay_of(fine))
    right.plot(fine, noise, color=GREY, linewidth=1.2, label="noise alone")
    for velocity, colour in ((0.001, AVERAGE), (0.0002, LIVE)):
        lag = ou.drift_lag(velocity, rate_of(fine)) ** 2
        at = np.argmin(noise + lag)
        drift = velocity * np.arange(len(orbit))[:, None]
        right.plot(fine, lag, color=colour, linewidth=1.1, linestyle=":")
        right.plot(fine, noise + lag, **CLOSED)
        right.plot(fine[at], (noise + lag)[at], "*", color=colour, markersize=13, zorder=4)
        right.text(fine[at], 1.5 * (noise + lag)[at], f"best: {fine[at]:.0f}", fontsize=8, ha="center", color=colour)
        dots(right, lengths, [(ema(orbit + drift, n) - drift)[-1] for n in lengths], color=colour, label=f"drift {velocity:g} σ an update")
    dress(right, "weights that drift; dotted: the lag's part", "half-life of the EMA, updates", "mean squared error, V")
    logarithmic(right, "xy")
    right.set(ylim=(0.006, 12))
    legend(right, loc="upper left", bbox_to_anchor=(0.0, 1.02))
    return figure


PICTURES = {
    "forces": draw_forces,
    "density": draw_density,
    "near_far": draw_near_far,
    "average": draw_average,
    "swap": draw_swap,
    "laws": draw_laws,
    "rotation": draw_rotation,
    "lag": draw_lag,
}


def seed(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where ou_<name>.png go; it must be there")
    parser.add_argument(
        "--only", nargs="+", choices=PICTURES, default=list(PICTURES), metavar="NAME", help=f"some of {', '.join(PICTURES)}"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N")
    arguments = parser.parse_args()
    if not arguments.out.is_dir():
        raise UserError(f"{arguments.out}: is not a folder; create it first")
    for i, (name, draw) in enumerate(PICTURES.items()):
        if name in arguments.only:
            path = arguments.out / f"ou_{name}.png"
            draw(np.random.default_rng([arguments.seed, i])).savefig(path)  # its own numbers, whichever others are drawn
            print(f"drawn in {path}", flush=True)


if __name__ == "__main__":
    command.run(main)
