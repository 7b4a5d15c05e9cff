"""The colours of all charts: an average has the same colour in Weights & Biases, the report, the orbit, sweeps and curves.

The colours are those of Okabe and Ito (2008, "Color universal design"), which colour-blind people can tell apart, without the yellow,
which is hard to see on white.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gantrain.score_names import LIVE

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("solid", "dash", "dot", "dashdot")  # after all colours are used, they repeat with the next dash; Plotly's names
LINESTYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}  # Plotly's names to Matplotlib's
MARKERS = ("o", "s", "D", "^", "v", "P")  # Matplotlib's, one per colour
LIVE_COLOUR, LIVE_MARKER = "#808080", "X"
FAINT = "#9ca3af"  # background lines
PLAYERS = {"D": "#d55e00", "G": "#0072b2"}


@dataclass(frozen=True)
class Style:
    """How an average is drawn.

    Attributes:
        colour: as #rrggbb.
        dash: of its line, a name of Plotly's.
        marker: of its points, a name of Matplotlib's.
    """

    colour: str
    dash: str
    marker: str

    @property
    def line(self) -> dict[str, str]:
        """The line style for Plotly."""
        return {"color": self.colour, "dash": self.dash}

    @property
    def linestyle(self) -> str:
        """The dash for Matplotlib."""
        return LINESTYLES[self.dash]


@dataclass(frozen=True)
class Mark:
    """How an event is drawn: a vertical line with a symbol. Each kind has its own height, since a swap and its growth coincide.

    Attributes:
        colour: as #rrggbb.
        dash: of the line, a name of Plotly's.
        symbol: a name of Plotly's.
        height: of the symbol, as a fraction of the chart's height.
    """

    colour: str
    dash: str
    symbol: str
    height: float


MARKS = {
    "swap": Mark("#8a63c9", "dash", "diamond", 0.98),
    "growth": Mark("#b8860b", "dot", "triangle-up", 0.91),
    "rollback": Mark("#d62728", "dashdot", "x", 0.84),
}


def channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour `#rrggbb`, from 0 to 255."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def style_of(averages: Iterable[str], *more: Iterable[str]) -> dict[str, Style]:
    """A style for every average, and grey for the live weights.

    Args:
        averages: a run's averagers in the order of its configuration, which determines the styles. A name then has the same style
            in every chart, whichever averages that chart shows.
        more: further names, such as averages rebuilt after the run; each new one gets the next style.
    """
    names = [name for name in dict.fromkeys(name for part in (averages, *more) for name in part) if name != LIVE]
    styles = {name: nth_style(i) for i, name in enumerate(names)}
    return {LIVE: Style(LIVE_COLOUR, "dot", LIVE_MARKER), **styles}


def nth_style(n: int) -> Style:
    """The n-th style, from 0: colours change first, then dashes."""
    return Style(COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)], MARKERS[n % len(MARKERS)])
