"""Charts of a run as Plotly figures, for Weights & Biases and for the report: scores of every average, batch and noise scale.

All data in a figure are plain lists: Plotly would write arrays as base64, which is unreadable. Backgrounds are transparent and text
is grey, so that a figure works on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from plotly import graph_objects as go

from gantrain.config.scheduled_keys import PREFIX as SCHEDULE
from gantrain.palette import MARKS, PLAYERS, Style, style_of
from gantrain.reporting.event_words import what_happened
from gantrain.run_folder.record import Record
from gantrain.run_folder.record_lines import goes_back
from gantrain.score_names import better_when_higher

TEXT = "#808080"
GRID = "rgba(128,128,128,0.25)"
POINTS = 1000  # of a line; more would not be visible, and W&B is sent all of them at every evaluation
LOG_SPAN = 10  # largest score over smallest; above it the axis is logarithmic
PANEL_GAP = 0.06  # between panels, as a fraction of the height


# ---- from a record -------------------------------------------------------------------------------------------------------


def styles_in(*records: Record) -> dict[str, Style]:
    """The style of all that some runs score: by the averagers of their configurations, which is the same in every chart."""
    return style_of(*(record.config.averagers for record in records), *(record.averages for record in records))


def marks(record: Record) -> list[tuple[int, str, str]]:
    """(images seen, kind, what happened) of every swap, growth and rollback, in the order in which they happened."""
    found = [(line["nimg"], line["event"], what_happened(line)) for line in record.events(*MARKS)]
    return [one for one in found if one[2]]


def batches(record: Record) -> list[tuple[int, int, int]]:
    """(images seen, batch, rounds) wherever they change, and at the last line; each holds until the next."""
    found: list[tuple[int, int, int]] = []
    for line in batch_lines(record):
        if line.get("event") == "growth":
            rounds = line.get("rounds", 1)
            point = (line["nimg"], line["to"], rounds)
            found = found or [(0, line["from"], max(1, line["from"] * rounds // line["to"]))]
        elif "batch/size" in line and "batch/rounds" in line:
            point = (line["to"] if goes_back(line) else line["nimg"], line["batch/size"], line["batch/rounds"])
        else:
            continue
        found = found or [(0, *point[1:])]
        if point[1:] != found[-1][1:]:
            found.append(point)
    numbers = record.numbers
    return [*found, (max(int(numbers.nimg[-1]), found[-1][0]), *found[-1][1:])] if found and len(numbers) else found


def batch_lines(record: Record) -> list[dict[str, Any]]:
    """Growths, rollbacks, and the training lines whose batch may differ from that of the line before them, in order."""
    told = [(place, line) for place, line in record.placed if line.get("event") in ("growth", "rollback")]
    numbers = record.numbers
    if numbers.has("batch/size") and numbers.has("batch/rounds"):
        sizes = np.stack([numbers.values["batch/size"], numbers.values["batch/rounds"]])
        changes = np.flatnonzero((sizes[:, 1:] != sizes[:, :-1]).any(axis=0)) + 1
        after = np.searchsorted(numbers.places, [place for place, _ in told])  # the first line after each event
        told += [(int(numbers.places[i]), numbers.row(i)) for i in sorted({0, *changes.tolist(), *after.tolist()}) if i < len(numbers)]
    return [line for _, line in sorted(told, key=lambda one: one[0])]


def drawable(value: Any) -> float | int | None:
    """The value if it is a finite number; None, which leaves a gap, otherwise."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


# ---- figures -------------------------------------------------------------------------------------------------------------


def scores_figure(record: Record, metric: str) -> go.Figure:
    """A metric of the live weights and of every average over kimg, with swaps, growths and rollbacks."""
    figure = make_panels([f"{metric} ({'higher' if better_when_higher(metric) else 'lower'} is better)"])
    evaluations = record.evaluations
    values = [row[metric] for one in evaluations for row in one.scores.values() if drawable(row.get(metric)) is not None]
    if values and min(values) > 0 and max(values) > LOG_SPAN * min(values):  # otherwise the first scores would flatten the rest
        figure.update_layout(yaxis={"type": "log"})
    for name, style in styles_in(record).items():
        shown = [(one.nimg / 1000, drawable(one.scores[name][metric])) for one in evaluations if metric in one.scores.get(name, {})]
        if shown:
            figure.add_scatter(
                x=[kimg for kimg, _ in shown], y=[value for _, value in shown],
                name=name, mode="lines+markers", line=style.line, marker={"size": 6},
                hovertemplate=f"{name} %{{y:.5g}} at %{{x:g}} kimg<extra></extra>",
            )  # fmt: skip
    add_marks(figure, record, panels=1)
    return figure


def batch_figure(record: Record) -> go.Figure:
    """Three panels over kimg: the batch and both players' noise scales with their intervals; rounds; learning rates."""
    figure = make_panels(["images", "rounds", "learning rate"], weights=[2, 1, 1])
    batch, lines = batches(record), record.numbers.rows(POINTS)
    kimg = [line["nimg"] / 1000 for line in lines]
    add = lambda panel, name, x, y, line, **more: figure.add_scatter(  # noqa: E731
        x=x,
        y=y,
        name=name,
        mode="lines",
        line=line,
        yaxis=axis_id(panel),
        hovertemplate=f"{name} %{{y:.4g}} at %{{x:g}} kimg<extra></extra>",
        **more,
    )
    top = top_of(lines, [size for _, size, _ in batch])
    add(0, "batch", [nimg / 1000 for nimg, _, _ in batch], [size for _, size, _ in batch], {"color": TEXT, "shape": "hv"})
    for player, colour in PLAYERS.items():
        prefix = f"noise_scale/{player}/b_simple"
        decided = [line if drawable(line.get(f"{prefix}_low")) is not None else {} for line in lines]
        if any(decided):
            figure.add_scatter(**band(kimg, decided, prefix, top), yaxis=axis_id(0), fillcolor=colour, opacity=0.2, legendgroup=player)
            # Without an upper end of the interval, the estimate is only noise.
            drawn = [drawable(line.get(prefix)) if drawable(line.get(f"{prefix}_high")) is not None else None for line in decided]
            add(0, f"noise scale of {player}", kimg, drawn, {"color": colour}, legendgroup=player)
    add(
        1,
        "rounds",
        [nimg / 1000 for nimg, _, _ in batch],
        [rounds for _, _, rounds in batch],
        {"color": TEXT, "shape": "hv", "dash": "dot"},
    )
    for player, colour in PLAYERS.items():
        rates = [drawable(line.get(f"lr/{player.lower()}")) for line in lines]
        add(2, f"learning rate of {player}", kimg, rates, {"color": colour, "dash": "solid" if player == "D" else "dash"})
    figure.update_layout(yaxis={"type": "log"}, yaxis2={"rangemode": "tozero"}, yaxis3={"rangemode": "tozero", "exponentformat": "power"})
    add_marks(figure, record, panels=3)
    return figure


def schedules_in(record: Record) -> list[str]:
    """The keys of training lines that are numbers of schedules, the learning rates left out."""
    return [key for key in record.numbers.values if key.startswith(SCHEDULE)]


def schedules_figure(record: Record) -> go.Figure:
    """A panel over kimg for every scheduled key, the learning rates left out."""
    keys, lines = schedules_in(record), record.numbers.rows(POINTS)
    figure = make_panels([key.removeprefix(SCHEDULE) for key in keys])
    for panel, key in enumerate(keys):
        name = key.removeprefix(SCHEDULE)
        figure.add_scatter(
            x=[line["nimg"] / 1000 for line in lines], y=[drawable(line.get(key)) for line in lines], name=name, mode="lines",
            line={"color": TEXT}, yaxis=axis_id(panel), showlegend=False,
            hovertemplate=f"{name} %{{y:.5g}} at %{{x:g}} kimg<extra></extra>",
        )  # fmt: skip
    add_marks(figure, record, panels=len(keys))
    return figure


def top_of(lines: Sequence[dict[str, Any]], sizes: Sequence[float]) -> float:
    """Where the bands of noise scales without an upper end stop: a decade above everything else in the panel."""
    ends = (drawable(line.get(f"noise_scale/{player}/b_simple_{end}")) for line in lines for player in PLAYERS for end in ("low", "high"))
    return 10 * max([1.0, *sizes, *(end for end in ends if end is not None)])


def band(kimg: Sequence[float], lines: Sequence[dict[str, Any]], prefix: str, top: float) -> dict[str, Any]:
    """A trace that fills the area between `prefix`_low and `prefix`_high, with one polygon per stretch without gaps.

    An interval without an upper end is filled up to `top`.
    """
    x: list[float | None] = []
    y: list[float | None] = []
    stretch: list[tuple[float, float, float]] = []
    for at, line in [*zip(kimg, lines), (0.0, {})]:
        low, high = drawable(line.get(f"{prefix}_low")), drawable(line.get(f"{prefix}_high"))
        if low is not None:
            stretch.append((at, max(low, 1e-3), top if high is None else high))  # a logarithmic axis has no 0
            continue
        if stretch:
            x += [*(s[0] for s in stretch), *(s[0] for s in stretch[::-1]), None]
            y += [*(s[1] for s in stretch), *(s[2] for s in stretch[::-1]), None]
        stretch = []
    return {"x": x, "y": y, "fill": "toself", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}


def axis_id(panel: int) -> str:
    """Plotly's name of a panel's y axis."""
    return "y" if panel == 0 else f"y{panel + 1}"


def make_panels(titles: Sequence[str], weights: Sequence[float] | None = None) -> go.Figure:
    """An empty figure with stacked panels that share an axis of kimg.

    Args:
        titles: of the panels' y axes, from the top.
        weights: relative heights of the panels; None makes them equal.
    """
    weights = weights or [1.0] * len(titles)
    room = 1 - PANEL_GAP * (len(titles) - 1)
    figure, top = go.Figure(), 1.0
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": TEXT, "automargin": True}
    for panel, (title, weight) in enumerate(zip(titles, weights)):
        below = top - room * weight / sum(weights)
        figure.layout[f"yaxis{panel + 1 if panel else ''}"] = {**axis, "title": {"text": title}, "domain": [max(0.0, below), top]}
        top = below - PANEL_GAP
    figure.update_layout(
        xaxis={**axis, "title": {"text": "kimg"}, "anchor": axis_id(len(titles) - 1)}, template="none", font={"color": TEXT, "size": 12},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest", margin={"l": 70, "r": 20, "t": 50, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )  # fmt: skip
    return figure


def add_marks(figure: go.Figure, record: Record, panels: int) -> None:
    """Add vertical lines through all panels. Each kind is in the legend once; hovering over a line shows what happened."""
    happened = marks(record)
    for kind, mark in MARKS.items():
        mine = [(nimg / 1000, words) for nimg, one, words in happened if one == kind]
        for panel in range(panels if mine else 0):
            over = panels + 1 + panel
            figure.layout[f"yaxis{over}"] = {"overlaying": axis_id(panel), "range": [0, 1], "visible": False, "fixedrange": True}
            figure.add_scatter(
                x=[x for kimg, _ in mine for x in (kimg, kimg, kimg, None)], y=[0, mark.height, 1, None] * len(mine), yaxis=f"y{over}",
                name=kind, legendgroup=kind, showlegend=panel == 0,
                mode="lines+markers", line={"color": mark.colour, "dash": mark.dash, "width": 1.5},
                marker={"symbol": mark.symbol, "size": [0, 9, 0, 0] * len(mine), "color": mark.colour, "opacity": 1},
                text=[t for kimg, words in mine for t in (*(f"{kind} at {kimg:g} kimg<br>{words}",) * 3, "")],
                hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
