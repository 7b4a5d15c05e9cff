"""The chart of a report as a Plotly figure: scores, batch, learning rates and noise scale over kimg, with marks for events.

All data are plain lists of numbers, as in the record, so that they can be read from the page and compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gantrain.config.scheduled_keys import PREFIX as SCHEDULE
from gantrain.palette import COLOURS, DASHES, LIVE_COLOUR, MARKS, PLAYERS, Style, channels, nth_style
from gantrain.reporting.charts import batches, drawable, marks, styles_in
from gantrain.reporting.comparison import Curve, Group, build_curves
from gantrain.reporting.drawn_pictures import pick_evenly
from gantrain.reporting.envelope import bin_size, envelope
from gantrain.run_folder.record import Evaluation, Record
from gantrain.score_names import LIVE, better_when_higher

SCORE_HEIGHT, OTHER_HEIGHT, MARKS_HEIGHT = 210, 150, 34  # pixels
HEAD, FOOT, GAP = 70, 50, 46
MOST_TICKS = 6
WIDE_RANGE = 20  # a score that spans more than this factor is drawn on a logarithmic axis
LEAST_SHARE = 1 / 3  # of an axis that the scores after 0 kimg keep; otherwise those at 0 kimg are stated instead of drawn
EDGE = 0.08  # of an axis beyond what is drawn, as a fraction of its span
LONGEST_NAME = 32  # letters of a name in the legend
BETWEEN = " (%{customdata[0]:.5g} to %{customdata[1]:.5g})"  # in the words at a point that is the mean of a bin
MOST_MARKS = 500  # of a kind of event; a browser takes seconds to draw thousands of lines through all rows
SYMBOLS = ("circle", "circle-open")  # of the points of two runs that are drawn one by one


class Stack:
    """A figure of stacked rows that share an axis of kimg, filled from the top."""

    def __init__(self, rows: Sequence[tuple[str, int]], an_average_at_a_time: bool = False):
        inner = sum(height for _, height in rows)
        total = inner + GAP * (len(rows) - 1)
        self.figure = make_subplots(
            rows=len(rows), cols=1, shared_xaxes=True,
            vertical_spacing=GAP / total if len(rows) > 1 else 0, row_heights=[height / inner for _, height in rows],
            subplot_titles=[title for title, _ in rows],
        )  # fmt: skip
        self.rows = {title: i + 1 for i, (title, _) in enumerate(rows)}
        self.figure.update_annotations(x=0, xanchor="left", font_size=13)
        self.figure.update_layout(
            template="none", height=total + HEAD + FOOT, margin={"l": 58, "r": 14, "t": HEAD, "b": FOOT}, hovermode="x unified",
            paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
            legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container"},
        )  # fmt: skip
        self.figure.update_xaxes(showgrid=True, zeroline=False, hoverformat=".6~g", ticks="outside")
        self.figure.update_yaxes(showgrid=True, zeroline=False, automargin=True)
        self.figure.update_xaxes(title_text="kimg", row=len(rows), col=1)
        self._an_average_at_a_time = an_average_at_a_time
        self._named: set[tuple[str, str]] = set()
        self._drawn: dict[str, list[float]] = {}

    def line(
        self, row: str, name: str, x: Sequence[float], y: Sequence[float | None], colour: str, kind: str, group: str = "", **style: Any
    ) -> None:
        """Add a line to a row; each name is in the legend only once."""
        meta = {"kind": kind, "group": group, "row": row, **style.pop("meta", {})}
        key = (name, meta.get("average", "") if self._an_average_at_a_time else "")
        shown = style.pop("named", True) and key not in self._named
        self._named |= {key} if shown else set()
        values = list(map(drawable, y))
        self._drawn.setdefault(row, []).extend(value for value in values if value is not None)
        trace = go.Scatter(
            x=list(x), y=values, name=shorten(name), legendgroup=name, showlegend=shown,
            line={"color": colour, **style.pop("line", {})}, meta=meta, **{"mode": "lines", **style},
        )  # fmt: skip
        self.figure.add_trace(trace, row=self.rows[row], col=1)

    def fit(self, row: str, log: bool) -> None:
        """Make a row's axis hold everything that has been drawn in it; what a logarithmic axis cannot show is not drawn.

        A logarithmic axis has round numbers as ticks, or the values themselves if they are few.
        """
        values = [value for value in self._drawn.get(row, []) if value > 0 or not log]
        if not values:
            return
        low, high = min(values), max(values)
        if not log:
            edge = EDGE * (high - low) or EDGE * abs(high) or 1.0
            if not math.isfinite(low - edge) or not math.isfinite(high + edge):  # Plotly chooses a range
                return
            self.figure.update_yaxes(range=[low - edge, high + edge], row=self.rows[row], col=1)
            return
        ticks = sorted(set(values)) if len(set(values)) <= MOST_TICKS else ladder(low, high)
        edge = max(EDGE * (math.log10(high / low) if math.isfinite(high / low) else math.log10(high) - math.log10(low)), EDGE)
        self.figure.update_yaxes(
            type="log", tickvals=ticks, ticktext=[f"{tick:.6g}" for tick in ticks],
            range=[math.log10(low) - edge, math.log10(high) + edge], row=self.rows[row], col=1,
        )  # fmt: skip

    def remark(self, row: str, words: str) -> None:
        """Write words above a row, at its right edge."""
        axis = str(self.rows[row]) if self.rows[row] > 1 else ""
        self.figure.add_annotation(
            text=words, xref=f"x{axis} domain", yref=f"y{axis} domain", x=1, y=1, xanchor="right", yanchor="bottom",
            showarrow=False, font={"size": 11}, name="remark",
        )  # fmt: skip


def shorten(name: str) -> str:
    """A name for the legend: a long one without its middle."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def ladder(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2 and 5 of each decade within the range, or fewer; at most `MOST_TICKS`."""
    decades = range(max(-307, math.floor(math.log10(low))), min(307, math.ceil(math.log10(high))) + 1)  # 10.0**309 is no float
    for steps, every in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
        ticks = [step * 10.0**decade for decade in decades if decade % every == 0 for step in steps if low <= step * 10.0**decade <= high]
        if 2 <= len(ticks) <= MOST_TICKS:
            return ticks
    return [low, high]


def stack(groups: Sequence[Group], metrics: Sequence[str]) -> go.Figure:
    """Build the figure of a report.

    Args:
        groups: of runs. With one group, each average has a colour; with several, each group has one, and one average is shown at a time.
        metrics: the scores to draw.
    """
    records = [record for group in groups for record in group.records]
    others = others_in(records)
    marked = [record for record in records if record.events(*MARKS)]
    rows = [("", MARKS_HEIGHT)] if marked else []
    rows += [(title_of(metric), SCORE_HEIGHT) for metric in metrics] + [(title, OTHER_HEIGHT) for title, *_ in others]
    if not rows:
        return go.Figure()
    made = Stack(rows, an_average_at_a_time=len(groups) > 1)
    for metric in metrics:
        add_scores(made, groups, metric)
    for title, keys, log in others:
        add_training(made, groups, title, keys, log)
    for record in marked:
        add_marks(made, record, lines=len(records) == 1)
    return made.figure


def title_of(metric: str) -> str:
    """The title of a metric's row."""
    return metric + {True: " (higher is better)", False: " (lower is better)", None: ""}[better_when_higher(metric)]


def add_scores(made: Stack, groups: Sequence[Group], metric: str) -> None:
    """Fill a metric's row: a line per average or group; with several runs, also the interval of their mean, and a faint line per run."""
    row, styles = title_of(metric), styles_in(*(record for group in groups for record in group.records))
    found = [(i, group, curve) for i, group in enumerate(groups) for curve in build_curves(group, metric)]
    swaps = swap_scores(groups[0].records[0], metric) if len(groups) == 1 and not groups[0].several else []
    points = [point for *_, curve in found for run in curve.runs.values() for point in run if math.isfinite(point[1])]
    start = [y for x, y in points if x == 0]
    after = [y for x, y in points if x > 0]
    after += [y for points in swaps for _, y, _ in points if math.isfinite(y)]
    log = is_wide([*start, *after])
    stated = flattens(start, after, log)
    log = is_wide(after) if stated else log
    lowest = min(after if stated else [*start, *after]) / 2 if log else -math.inf
    for i, group, curve in found:
        one = len(groups) == 1
        style = styles[curve.average] if one else nth_style(i)
        shown = without_start(curve) if stated else curve
        add_curve(made, row, shown, curve.average if one else group.name, style, group.name, lowest)
    add_swap_scores(made, row, swaps)
    made.fit(row, log)
    if stated:
        low, high = min(start), max(start)
        values = f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"
        made.remark(row, f"{'↑' if low > min(after) else '↓'} {values} at 0 kimg")


def is_wide(values: Sequence[float]) -> bool:
    """Whether values span so much that they need a logarithmic axis, and can have one."""
    return bool(values) and min(values) > 0 and max(values) > WIDE_RANGE * min(values)


def flattens(start: Sequence[float], after: Sequence[float], log: bool) -> bool:
    """Whether the scores of untrained weights would leave too little of the axis to all later scores."""
    if not start or not after:
        return False
    scale = math.log if log else float
    span = lambda values: scale(max(values)) - scale(min(values))  # noqa: E731
    return span(after) < LEAST_SHARE * span([*start, *after])


def without_start(curve: Curve) -> Curve:
    """A curve without its scores at 0 kimg."""
    kept = [i for i, x in enumerate(curve.kimg) if x > 0]
    pick = lambda values: [values[i] for i in kept]  # noqa: E731
    runs = {run: [point for point in points if point[0] > 0] for run, points in curve.runs.items()}
    half = None if curve.half is None else pick(curve.half)
    return Curve(curve.average, pick(curve.kimg), pick(curve.mean), half, runs)


def add_curve(made: Stack, row: str, curve: Curve, name: str, style: Style, group: str, lowest: float) -> None:
    """Add one average's line. With several runs it is their mean with its band, clipped at `lowest`, since a logarithmic axis has no 0;
    with too few for that, it is a line per run."""
    meta, colour, shown = {"average": curve.average}, style.colour, shorten(name)
    line = {"width": 2.2, "dash": style.dash}
    if curve.drawn_apart:
        for (run, points), symbol in zip(curve.runs.items(), SYMBOLS):
            made.line(
                row, name, [x for x, _ in points], [y for _, y in points], colour, "run", group, mode="lines+markers",
                marker={"size": 6, "symbol": symbol}, line=line, meta={**meta, "run": run},
                hovertemplate=f"{shown}, {shorten(run)} %{{y:.5g}}<extra></extra>",
            )  # fmt: skip
        return
    if curve.half is not None:
        bounds = [(x, max(m - h, lowest), m + h) for x, m, h in zip(curve.kimg, curve.mean, curve.half) if math.isfinite(m + h)]
        there, back = bounds, bounds[::-1]
        made.line(
            row, name, [x for x, *_ in there + back], [low for _, low, _ in there] + [high for *_, high in back], colour,
            "band", group, named=False, fill="toself", fillcolor=faint(colour, 0.12), hoverinfo="skip", line={"width": 0}, meta=meta,
        )  # fmt: skip
        for run, points in curve.runs.items():
            made.line(
                row, name, [x for x, _ in points], [y for _, y in points], faint(colour, 0.45), "run", group,
                named=False, hoverinfo="skip", line={"width": 1}, meta={**meta, "run": run},
            )  # fmt: skip
    x: Sequence[float] = curve.kimg
    y: Sequence[float | None] = curve.mean
    ranges: list[list[float | None]] = []
    spread, half = ("", None) if curve.half is None else (" ± %{customdata:.3g}", [*map(drawable, curve.half)])
    if curve.half is None and bin_size(len(x)) > 1:
        x, y, ranges = add_range(made, row, name, np.array(x), np.array(y, dtype=float), colour, group, meta)
        spread = BETWEEN
    made.line(
        row, name, x, y, colour, "score", group, mode="lines" if bin_size(len(curve.kimg)) > 1 else "lines+markers", marker={"size": 6},
        meta=meta, line=line, customdata=ranges or half,
        hovertemplate=f"{shown} %{{y:.5g}}{spread}<extra></extra>",
    )  # fmt: skip


def swap_scores(record: Record, metric: str) -> list[list[tuple[float, float, str]]]:
    """The live weights' scores around every swap: (kimg, score, moment in words) before, at and some time after it."""
    by_swap: dict[int, list[tuple[float, float, str]]] = {}
    for line in record.events("swap"):
        if metric in line.get("live", {}):
            by_swap.setdefault(line["swap_nimg"], []).append(
                (line["nimg"] / 1000, line["live"][metric], f"{line['moment']} the swap" if line["moment"] != "at" else "at the swap")
            )
    return list(by_swap.values())


def add_swap_scores(made: Stack, row: str, swaps: Sequence[Sequence[tuple[float, float, str]]]) -> None:
    """Add the live weights' scores around every swap; see `swap_scores`."""
    points = [point for one in swaps for point in [*one, (None, None, "")]]
    if points:
        x, y, words = zip(*points)
        made.line(
            row, "live at swaps", x, y, LIVE_COLOUR, "swap", mode="lines+markers", line={"width": 1.2, "dash": "dot"}, text=list(words),
            marker={"size": 7, "symbol": "circle-open"}, hovertemplate="live, %{text} %{y:.5g}<extra></extra>", meta={"average": LIVE},
        )  # fmt: skip


def faint(colour: str, share: float) -> str:
    """A colour `#rrggbb` with an opacity."""
    return "rgba({}, {}, {}, {})".format(*channels(colour), share)


# Rows of training numbers: title, keys with (name, colour, dash), whether the axis is logarithmic.
Row = tuple[str, dict[str, tuple[str, str, str]], bool]
OTHERS: tuple[Row, ...] = (
    ("loss (D dashed)", {"loss/g": ("G", PLAYERS["G"], "solid"), "loss/d": ("D", PLAYERS["D"], "dash")}, False),
    (
        "batch (images) and rounds (dotted)",
        {"batch/size": ("batch", COLOURS[2], "solid"), "batch/rounds": ("rounds", COLOURS[2], "dot")}, True,
    ),
    ("learning rate (D dashed)", {"lr/g": ("G", PLAYERS["G"], "solid"), "lr/d": ("D", PLAYERS["D"], "dash")}, True),
    (
        "gradient noise scale B_simple (images; D dashed)",
        {"noise_scale/G/b_simple": ("G", PLAYERS["G"], "solid"), "noise_scale/D/b_simple": ("D", PLAYERS["D"], "dash")}, True,
    ),
)  # fmt: skip


OF_SOME_RUNS = ("penalty/", "augment/", SCHEDULE)  # prefixes of numbers that a run has by its configuration


def others_in(records: Sequence[Record]) -> list[Row]:
    """The rows of training numbers that some record has: `OTHERS`, and those of penalties, the augmentation and schedules, by own names.

    Every schedule has a row to itself, since their units differ.
    """
    found = [(title, keys, log) for title, keys, log in OTHERS if any(record.numbers.has(*keys) for record in records)]
    for title, prefix in (("penalties", "penalty/"), ("augmentation", "augment/")):
        names = dict.fromkeys(key for record in records for key in record.numbers.values if key.startswith(prefix))
        points = [record.numbers.points(key)[1] for record in records for key in names]
        values = np.concatenate(points) if points else np.zeros(0)
        keys = {key: (key.removeprefix(prefix), nth_style(i).colour, DASHES[i % len(DASHES)]) for i, key in enumerate(names)}
        found += [(title, keys, is_wide(values[np.isfinite(values)].tolist()))] if keys else []
    scheduled = dict.fromkeys(key for record in records for key in record.numbers.values if key.startswith(SCHEDULE))
    for key in scheduled:
        name = key.removeprefix(SCHEDULE)
        found.append((f"schedule of {name}", {key: (name, COLOURS[2], "solid")}, False))
    return found


def add_training(made: Stack, groups: Sequence[Group], title: str, keys: dict[str, tuple[str, str, str]], log: bool) -> None:
    """Fill a row with numbers from training lines: a line per key and run; if it has too many points, with the band of its envelope."""
    for i, group in enumerate(groups):
        for record in group.records:
            for key, (name, colour, dash) in keys.items():
                if key.startswith(OF_SOME_RUNS) and not record.numbers.has(key):
                    continue
                name = name if len(groups) == 1 else f"{group.name} {name}"
                colour = colour if len(groups) == 1 else nth_style(i).colour
                style: dict[str, Any] = {
                    "named": len(groups) == 1,
                    "meta": {"run": record.run.name},
                    "line": {"width": 1 if group.several else 1.6, "dash": dash},
                }
                if key.startswith("batch/"):
                    x, y = batch_points(record, key)
                    style["line"]["shape"] = "hv"
                elif bin_size(len(record.numbers.points(key)[0])) > 1:
                    nimg, values = record.numbers.points(key)
                    values = np.where(values > 0, values, np.nan) if log else values  # a logarithmic axis has no 0
                    x, y, style["customdata"] = add_range(made, title, name, nimg / 1000, values, colour, group.name, style["meta"])
                else:
                    x, y = points_of(record, key)
                alone = len({at for at, value in zip(x, y) if value is not None}) == 1  # a line needs two points to be seen
                between = BETWEEN if "customdata" in style else ""
                made.line(
                    title, name, x, y, colour, key, group.name, mode="markers" if alone else "lines", **style,
                    **({"hoverinfo": "skip"} if group.several else {"hovertemplate": f"{name} %{{y:.5g}}{between}<extra></extra>"}),
                )  # fmt: skip
    made.fit(title, log)


def points_of(record: Record, key: str) -> tuple[list[float], list[float | int | None]]:
    """(kimg, values) of a number in the training lines."""
    nimg, values = record.numbers.points(key)
    return (nimg / 1000).tolist(), record.numbers.plain(key, values)


def batch_points(record: Record, key: str) -> tuple[list[float], list[float | int | None]]:
    """(kimg, values) of the batch or its rounds, which change where the batch grew, not at the next line."""
    found = batches(record)
    return [nimg / 1000 for nimg, *_ in found], [rounds if key == "batch/rounds" else size for _, size, rounds in found]


def add_range(
    made: Stack, row: str, name: str, x: np.ndarray, y: np.ndarray, colour: str, group: str, meta: dict[str, Any]
) -> tuple[list[float], list[float | None], list[list[float | None]]]:  # fmt: skip
    """Add the band of a curve of too many points; returns the places, mean, and [lowest, highest] of its bins, see `Envelope`."""
    found = envelope(x, y)
    band_x, band_y = (one.tolist() for one in found.band)
    made.line(
        row, name, band_x, band_y, colour, "range", group, named=False, fill="toself", fillcolor=faint(colour, 0.2), hoverinfo="skip",
        line={"width": 1, "color": faint(colour, 0.5)}, meta=meta,  # without a line, a single high value is too narrow to be seen
    )  # fmt: skip
    of = lambda values: list(map(drawable, values.tolist()))  # noqa: E731
    return found.x.tolist(), of(found.mean), [list(one) for one in zip(of(found.low), of(found.high))]


def describe_bins(record: Record) -> list[str]:
    """Which rows of a run's chart are drawn in bins, and how long these are, in a sentence for each length; empty if none is."""
    counts = {metric: (sum(metric in row for row in map(first_row, record.comparable)), "evaluations") for metric in record.metrics}
    for title, keys, _ in others_in([record]):
        drawn = [len(record.numbers.points(key)[0]) for key in keys if not key.startswith("batch/")]
        counts[title.partition(" (")[0]] = max(drawn, default=0), "lines of the record"
    rows: dict[str, list[str]] = {}
    for name, (count, what) in counts.items():
        if bin_size(count) > 1:
            rows.setdefault(f"{bin_size(count)} {what}", []).append(name)
    return [
        f"{', '.join(names)}: each point is the mean of {length}, and the band around the line has their lowest and highest values. The"
        " first and the last point are single ones."
        for length, names in rows.items()
    ]


def first_row(one: Evaluation) -> Mapping[str, float]:
    """The scores of what an evaluation has scored first, the live weights."""
    return next(iter(one.scores.values()))


def add_marks(made: Stack, record: Record, lines: bool) -> None:
    """Add swaps, growths and rollbacks: as symbols in the first row and, with `lines`, as lines through all rows, one per time."""
    crossed: set[float] = set()
    happened = marks(record)
    shapes = list(made.figure.layout.shapes)
    for i, (kind, mark) in enumerate(MARKS.items()):
        told = pick_evenly([(nimg / 1000, words) for nimg, one, words in happened if one == kind], MOST_MARKS)
        if not told:
            continue
        made.line(
            "", kind, [kimg for kimg, _ in told], [0.5 - 0.5 * i] * len(told), mark.colour, "mark",
            mode="markers", marker={"symbol": mark.symbol, "size": 10},
            text=[words for _, words in told], hovertemplate=f"{kind}: %{{text}}<extra></extra>", meta={"run": record.run.name},
        )  # fmt: skip
        line = {"color": mark.colour, "width": 1, "dash": "dot"}
        through = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "opacity": 0.7}
        shapes += [through | {"x0": x, "x1": x, "line": line} for x in sorted({at for at, _ in told} - crossed) if lines]
        crossed |= {kimg for kimg, _ in told}
    made.figure.update_layout(shapes=shapes)  # at once: `add_shape` checks all shapes again for each
    made.figure.update_yaxes(visible=False, range=[-1, 1], row=1, col=1)
    made.figure.update_xaxes(showgrid=False, ticks="", row=1, col=1)


def describe_marks(record: Record) -> list[str]:
    """Of which events the chart has only some, in a sentence for each kind; empty if it has all."""
    counts = Counter(kind for _, kind, _ in marks(record))
    return [
        f"Of {counts[kind]:,} {kind}s, {MOST_MARKS:,} are marked, evenly spaced, with the first and the last."
        for kind in MARKS if counts[kind] > MOST_MARKS
    ]  # fmt: skip
