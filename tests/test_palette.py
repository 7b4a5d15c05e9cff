"""One average has one colour wherever it is drawn; and text tables."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from gantrain.averaging import Ema, Swa
from gantrain.commands.average import draw_sweep
from gantrain.commands.truncation import best_of, draw_curves
from gantrain.config.config import Config
from gantrain.orbit.picture import draw_averages
from gantrain.palette import COLOURS, LINESTYLES, LIVE_COLOUR, MARKS, nth_style, style_of
from gantrain.reporting import charts
from gantrain.reporting.comparison import Group
from gantrain.reporting.page_figures import stack
from gantrain.run_folder.record import Outline, Record
from gantrain.text_table import align, join_columns

CONFIG = Config(averagers={"ema": Ema(), "ema_short": Ema(), "swa": Swa()})
NAMES = ["live", "swa", "ema"]  # the order of appearance, and not that of the configuration: ema, ema_short, swa


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> list[Figure]:
    """Figures of Matplotlib; their files are empty."""
    figures: list[Figure] = []

    def savefig(figure: Figure, path: Path) -> None:
        path.touch()
        figures.append(figure)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def of_figure(figure) -> dict[str, tuple[str, str]]:
    """Colour and dash of the averages' lines in a figure of Plotly."""
    return {one.name: (one.line.color, one.line.dash) for one in figure.data if one.name in NAMES and one.mode == "lines+markers"}


def of_axes(axes) -> dict[str, tuple[str, str]]:
    """The same of Matplotlib's lines, which are labelled with the names."""
    dashes = {mine: plotly for plotly, mine in LINESTYLES.items()}
    return {line.get_label(): (line.get_color(), dashes.get(line.get_linestyle(), "")) for line in axes.lines}


def test_an_average_has_one_colour_everywhere(drawn):
    """In W&B, on the page, in the orbit's picture and in the curves of truncations; whichever averages each of them shows."""
    wanted = {"live": LIVE_COLOUR, "swa": COLOURS[2], "ema": COLOURS[0]}
    lines = [{"nimg": 1000 * i, **{f"eval/{name}/fid": 1.0 + i for name in NAMES}, "eval/num_samples": 16} for i in range(2)]
    record = Record(Path("run"), CONFIG, lines)
    wandb, page = of_figure(charts.scores_figure(record, "fid")), of_figure(stack([Group("run", [record])], ["fid"]))
    assert wandb == page and {name: colour for name, (colour, _) in wandb.items()} == wanted
    long = Record(Path("run"), Outline(1.0, {"averagers": {name: {} for name in CONFIG.averagers}}), lines)  # of a long run
    assert of_figure(charts.scores_figure(long, "fid")) == wandb

    axes = Figure().add_subplot()
    sketches = {name: np.arange(6.0).reshape(3, 2) + i for i, name in enumerate(NAMES)}
    standings = [SimpleNamespace(name=name) for name in NAMES[1:]]
    analysis = SimpleNamespace(averagers=tuple(CONFIG.averagers), standings=standings, motion=SimpleNamespace(sketches=sketches))
    draw_averages(axes, analysis, np.eye(2), np.zeros(2), np.arange(3), size=5)
    assert {name: colour for name, (colour, _) in of_axes(axes).items() if name in NAMES} == wanted

    rows = {"0.5": {"fid": 2.0, "is": 3.0}, "1": {"fid": 1.0, "is": 4.0}}
    scores = dict.fromkeys(NAMES, rows)
    curves = [("is", "fid")]
    draw_curves(
        scores, {name: best_of(rows, curves) for name in NAMES}, curves, style_of(CONFIG.averagers, scores), "run", Path("curves.png")
    )
    (axes,) = drawn[0].axes
    assert [line.get_color() for line in axes.lines if len(line.get_xdata()) > 1] == list(wanted.values())


def test_an_average_that_was_rebuilt_later_takes_the_next_style():
    styles = style_of(["ema", "swa"], ["live", "swa", "sigma_0.1", "ema"])
    assert list(styles) == ["live", "ema", "swa", "sigma_0.1"] and styles["sigma_0.1"] == nth_style(2)
    many = [nth_style(i) for i in range(24)]
    assert len({(one.colour, one.dash) for one in many}) == 24 and {one.linestyle for one in many} == {"-", "--", ":", "-."}


def test_a_sweep_marks_its_best_in_a_colour_of_the_palette(drawn):
    scores = {f"{s:g}": {"fid": s, "fid_std": 0.1} for s in (0.05, 0.1)}
    draw_sweep([0.05, 0.1], scores, "fid", 0.05, "run", Path("sweep.png"))
    (axes,) = drawn[0].axes
    assert [line.get_color() for line in axes.lines] == [COLOURS[0], COLOURS[1], COLOURS[1]]


def test_events_have_colours_of_their_own():
    colours = [mark.colour for mark in MARKS.values()]
    assert len(set(colours)) == 3 and not set(colours) & {*COLOURS, LIVE_COLOUR}


# ---- text tables -----------------------------------------------------------------------------------------------------


def test_columns_are_as_wide_as_their_longest_cell():
    names, numbers = align(["average", "a", "a_long_name"]), align(["fid", "1.5", "10.25"], right=True, least=6)
    assert join_columns([names, numbers]).splitlines() == ["average         fid", "a               1.5", "a_long_name   10.25"]
    assert join_columns([align(["a", ""], least=3), ["b", ""]], gap="") == "a  b\n"
    assert align([]) == [] and join_columns([]) == ""


def test_columns_of_different_lengths_are_a_mistake():
    with pytest.raises(ValueError, match="longer"):
        join_columns([["a"], ["a", "b"]])
