"""Drawing helpers of tools/ou_lab.py: colours, panels, legends, and points with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gantrain.theory import ornstein_uhlenbeck as ou

LIVE, AVERAGE, THIRD = "#1f5fa8", "#c2410c", "#3d3d3d"
PALE_LIVE, PALE_AVERAGE, GREY = "#8fb1d8", "#eba37f", "#9a9a9a"
CLOSED: dict[str, Any] = {"color": "black", "linewidth": 1.1, "linestyle": (0, (5, 3))}
LIGHT: dict[str, Any] = {"linewidth": 3.5, "alpha": 0.55}  # a simulated line, wide enough that a dashed line is visible on it


def mean_square(x: np.ndarray) -> tuple[float, float]:
    """Returns (the mean square about zero over independent chains, two standard errors of it)."""
    return float(np.mean(x**2)), float(2 * np.std(x**2) / np.sqrt(x.size))


def sheet(lesson: str, height: float, wspace: float = 0.02) -> Figure:
    """Returns an empty picture of `height` inches with a lesson as its title; `wspace` is the gap between columns."""
    figure = Figure(figsize=(9, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=wspace), dpi=150)
    figure.suptitle(lesson, fontsize=12)
    return figure


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title and labels of a panel and hide the upper and right frame."""
    axes.set_title(title, fontsize=9.5, color=THIRD)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, closed: bool = True, **where: Any) -> None:
    """Draw the legend of a panel, with an entry for dashed lines if `closed`."""
    handles = [*axes.get_legend_handles_labels()[0], *closed * [Line2D([], [], label="closed form", **CLOSED)]]
    axes.legend(handles=handles, fontsize=8, frameon=False, handlelength=2.1, **where)


def logarithmic(axes: Axes, which: str) -> None:
    """Make axes ("x", "y" or "xy") logarithmic, with plain numbers as tick labels."""
    for letter in which:
        axes.set(**{f"{letter}scale": "log"})
        getattr(axes, f"{letter}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def dots(axes: Axes, x: np.ndarray, samples: Sequence[np.ndarray], **look: Any) -> None:
    """Plot the mean squares of samples over x, with error bars of two standard errors."""
    value, error = np.array([mean_square(sample) for sample in samples]).T
    axes.errorbar(x, value, error, fmt="o", markersize=4, elinewidth=1.2, zorder=3, **look)


def ellipses(axes: Axes, covariance: np.ndarray, **look: Any) -> None:
    """Draw the 1 and 2 sigma ellipses of a normal distribution centred at the origin."""
    values, vectors = np.linalg.eigh(covariance)
    for sigmas in (1, 2):
        width, height = 2 * sigmas * np.sqrt(values)
        axes.add_patch(Ellipse((0, 0), width, height, angle=np.degrees(np.arctan2(*vectors[::-1, 0])), fill=False, **look))


def shade_density(axes: Axes, covariance: np.ndarray, reach: float) -> None:
    """Shade the stationary density in the background."""
    line = np.linspace(-reach, reach, 241)
    density = ou.stationary_density(np.stack(np.meshgrid(line, line), axis=-1), covariance)
    axes.contourf(line, line, density / density.max(), levels=np.linspace(0.02, 1, 9), cmap="Blues", alpha=0.55, zorder=0)


def plane(axes: Axes, reach: float, title: str, x: str = "first weight, σ", y: str = "second weight, σ") -> None:
    """Format a square panel whose axes are two weights."""
    dress(axes, title, x, y)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
