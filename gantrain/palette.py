"""The colours of every chart: one average has one colour in Weights & Biases, the report, the orbit, sweeps and curves.

Colours are Okabe and Ito's (2008, "Color universal design"), which people who see colours differently can tell apart, without
the yellow that drowns on white.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gantrain.score_names import LIVE

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("solid", "dash", "dot", "dashdot")  # the next round through the colours, in Plotly's words
LINESTYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}  # the same in Matplotlib's
MARKERS = ("o", "s", "D", "^", "v", "P")  # of Matplotlib, one a colour
LIVE_COLOUR, LIVE_MARKER = "#808080", "X"
FAINT = "#9ca3af"  # what stands behind the rest
PLAYERS = {"D": "#d55e00", "G": "#0072b2"}


@dataclass(frozen=True)
class Style:
    """How an average is drawn.

    Attributes:
        colour: as #rrggbb.
        dash: of its line, in Plotly's words.
        marker: of its points, in Matplotlib's.
    """

    colour: str
    dash: str
    marker: str

    @property
    def line(self) -> dict[str, str]:
        """Its line for Plotly."""
        return {"color": self.colour, "dash": self.dash}

    @property
    def linestyle(self) -> str:
        """The dash for Matplotlib."""
        return LINESTYLES[self.dash]


@dataclass(frozen=True)
class Mark:
    """How an event is drawn: a vertical line with a sign at a height of its own, since a swap and its growth are one moment.

    Attributes:
        colour: as #rrggbb.
        dash: of the line, in Plotly's words.
        symbol: of the sign, in Plotly's words.
        height: of the sign, a share of the chart's.
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
    """The style of every name, and of the live weights, which are grey.

    Args:
        averages: names in the order that decides: a run's averagers as its configuration lists them, so that a name has
            the same style in every chart, whichever averages that chart shows.
        more: further names, such as those of averages rebuilt after the run; each new one takes the next style.
    """
    names = [name for name in dict.fromkeys(name for part in (averages, *more) for name in part) if name != LIVE]
    styles = {name: nth_style(i) for i, name in enumerate(names)}
    return {LIVE: Style(LIVE_COLOUR, "dot", LIVE_MARKER), **styles}


def nth_style(n: int) -> Style:
    """The n-th style from 0: through the colours first, then through the dashes."""
    return Style(COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)], MARKERS[n % len(MARKERS)])
