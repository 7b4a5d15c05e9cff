"""The figures of a run: what they draw is what the record says."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from gantrain.config.config import Config
from gantrain.palette import COLOURS, LIVE_COLOUR, MARKS, style_of
from gantrain.reporting import charts
from gantrain.run_folder.record import Record, split_abandoned


def scores(nimg: int, **values: float) -> dict:
    """A line of scores; ema__is=1 is eval/ema/is."""
    return {"nimg": nimg, **{f"eval/{key.replace('__', '/')}": value for key, value in values.items()}, "eval/num_samples": 16}


def training(nimg: int, size: int, rounds: int, **more: float) -> dict:
    return {"nimg": nimg, "loss/d": 1.0, "batch/size": size, "batch/rounds": rounds, "lr/g": 2e-4, "lr/d": 4e-4, **more}


def swap(nimg: int, moment: str) -> dict:
    return {"nimg": nimg, "event": "swap", "moment": moment, "source": "swa", "networks": "gd"}


def growth(nimg: int, before: int, after: int, rounds: int) -> dict:
    return {"nimg": nimg, "event": "growth", "from": before, "to": after, "rounds": rounds, "reason": "so"}


def rollback(nimg: int, to: int, size: int, rounds: int) -> dict:
    return {"nimg": nimg, "event": "rollback", "to": to, "words": "loss/d not finite", "batch/size": size, "batch/rounds": rounds}


def record(*lines: dict) -> Record:
    kept, left = split_abandoned(lines)
    return Record(Path("run"), Config(), kept, left)


def traces(figure) -> dict[str, list]:
    """Of what a browser gets: traces by name, those that repeat on other panels left out; nothing in it is base64."""
    text = figure.to_json()
    assert "bdata" not in text
    found: dict = {}
    for one in json.loads(text)["data"]:
        found.setdefault(one.get("name"), one)
    return found


RUN = [
    scores(0, live__fid=30.0, live__fid_std=1.0),
    training(8000, 64, 1), scores(10000, live__fid=9.0, swa__fid=math.nan, ema__fid=8.0),
    growth(12000, 64, 128, 2), training(16000, 128, 2), swap(20000, "before"), swap(20000, "at"),
    scores(20000, live__fid=6.0, swa__fid=5.0, ema__fid=4.0),
    swap(25000, "after"), training(26000, 128, 2), scores(30000, live__fid=99.0),
    rollback(31000, 22000, 128, 2), training(32000, 128, 2), scores(40000, ema__fid=3.0),
]  # fmt: skip


def test_scores_of_every_average_are_drawn_at_their_time():
    """What is no number is a gap, spreads are not drawn, and what a rollback has left is not there."""
    found = traces(charts.scores_figure(record(*RUN), "fid"))
    assert list(found) == ["live", "ema", "swa", "swap", "growth", "rollback"]
    drawn = {name: (found[name]["x"], found[name]["y"]) for name in ("live", "swa", "ema")}
    assert drawn == {"live": ([0, 10, 20], [30.0, 9.0, 6.0]), "swa": ([10, 20], [None, 5.0]), "ema": ([10, 20, 40], [8.0, 4.0, 3.0])}


def test_live_is_grey_and_an_average_keeps_its_colour():
    """By its place in the configuration, which here has ema alone, whichever a metric has; and no two lines of a dozen look alike."""
    found = traces(charts.scores_figure(record(*RUN), "fid"))
    assert [found[name]["line"]["color"] for name in ("live", "swa", "ema")] == [LIVE_COLOUR, COLOURS[1], COLOURS[0]]
    later = traces(charts.scores_figure(record(*RUN, scores(50000, ema__is=2.0)), "is"))
    assert later["ema"]["line"] == found["ema"]["line"] and "swa" not in later
    styles = style_of(["live", *map(str, range(12))])
    assert len({(style.colour, style.dash) for style in styles.values()}) == 13


def test_swaps_growths_and_rollbacks_are_marked():
    """Each once, where it happened, with words to be pointed at; of a swap's three lines only the moment counts."""
    for figure in (charts.scores_figure(record(*RUN), "fid"), charts.batch_figure(record(*RUN))):
        found = traces(figure)
        assert {kind: found[kind]["x"] for kind in MARKS} == {
            "swap": [20, 20, 20, None],
            "growth": [12, 12, 12, None],
            "rollback": [31, 31, 31, None],
        }
        assert found["swap"]["text"][1] == "swap at 20 kimg<br>swa replaces the live weights of G and D"
        assert found["growth"]["text"][1] == "growth at 12 kimg<br>batch 64 -> 128: so"
        assert found["rollback"]["text"][1] == "rollback at 31 kimg<br>loss/d not finite; back to 22 kimg"
        for kind in MARKS:  # in every panel, in the legend once, on an axis from 0 to 1 over the panel's own
            mine = [one for one in figure.data if one.name == kind]
            assert [one.showlegend for one in mine] == [True, False, False][: len(mine)]
            for one in mine:
                axis = figure.layout[one.yaxis.replace("y", "yaxis")]
                assert (
                    tuple(axis.range) == (0, 1)
                    and axis.overlaying == ("y" if one is mine[0] else f"y{mine.index(one) + 1}")
                    and not axis.visible
                )
        assert "swap" not in traces(charts.scores_figure(record(*RUN[:4]), "fid"))


@pytest.mark.parametrize(
    ("values", "kind"), [((30.0, 0.5), "log"), ((30.0, 4.0), None), ((30.0, -0.001), None), ((30.0, 0.0), None), ((math.nan,), None)]
)
def test_scores_that_span_much_are_drawn_on_a_log_axis(values, kind):
    """Unless one of them has no place on it."""
    figure = charts.scores_figure(record(*(scores(i, live__kid=value) for i, value in enumerate(values))), "kid")
    assert figure.layout.yaxis.type == kind


def test_batch_changes_where_it_was_grown():
    """Not at the next line of losses; a growth before the first of these, and what a rollback has grown, too."""
    assert charts.batches(record(*RUN)) == [(0, 64, 1), (12000, 128, 2), (32000, 128, 2)]
    lines = [
        growth(1000, 64, 256, 4),
        training(2000, 256, 4),
        growth(3000, 256, 512, 8),
        training(4000, 512, 8),
        rollback(4000, 2000, 300, 5),
        training(5000, 300, 5),
    ]
    assert charts.batches(record(*lines)) == [(0, 64, 1), (1000, 256, 4), (2000, 300, 5), (5000, 300, 5)]
    assert charts.batches(record()) == [] and charts.batches(record(scores(0, live__fid=1.0))) == []
    found = traces(charts.batch_figure(record(*RUN)))
    assert found["batch"]["line"]["shape"] == found["rounds"]["line"]["shape"] == "hv"
    assert (found["batch"]["x"], found["batch"]["y"], found["rounds"]["y"]) == ([0, 12, 32], [64, 128, 128], [1, 2, 2])
    assert found["learning rate of G"]["y"] == [2e-4] * 3 and found["learning rate of D"]["y"] == [4e-4] * 3


def test_noise_scale_has_gaps_where_nothing_is_known():
    """Its line and its band alike: a line without an interval is undecidable."""
    scale = lambda value: {f"noise_scale/D/b_simple{end}": value * factor for end, factor in (("", 1), ("_low", 0.5), ("_high", 2))}  # noqa: E731
    drowned = {"noise_scale/D/b_simple": 7.0}
    lines = [
        training(1000, 64, 1, **scale(10)),
        training(2000, 64, 1, **scale(20)),
        training(3000, 64, 1, **drowned),
        training(4000, 64, 1, **scale(40)),
    ]
    figure = charts.batch_figure(record(*lines))
    found = traces(figure)
    assert (
        found["noise scale of D"]["x"] == [1, 2, 3, 4]
        and found["noise scale of D"]["y"] == [10, 20, None, 40]
        and "noise scale of G" not in found
    )
    (band,) = [one for one in figure.data if one.fill == "toself"]
    assert list(band.x) == [1, 2, 2, 1, None, 4, 4, None] and list(band.y) == [5, 10, 40, 20, None, 20, 80, None]
    assert figure.layout.yaxis.type == "log"


def test_a_noise_scale_without_an_upper_end_is_a_band_to_the_top():
    """A decade above the largest batch or end that is drawn; the estimate itself, which is noise, is not drawn."""
    bounded = {"noise_scale/D/b_simple": 100.0, "noise_scale/D/b_simple_low": 50.0, "noise_scale/D/b_simple_high": 300.0}
    lines = [
        training(1000, 64, 1, **bounded),
        training(2000, 64, 1, **{"noise_scale/D/b_simple": 5000.0, "noise_scale/D/b_simple_low": 90.0}),
        training(3000, 64, 1, **{"noise_scale/D/b_simple_low": 80.0}),
    ]
    figure = charts.batch_figure(record(*lines))
    (band,) = [one for one in figure.data if one.fill == "toself"]
    assert list(band.x) == [1, 2, 3, 3, 2, 1, None] and list(band.y) == [50, 90, 80, 3000, 3000, 300, None]
    assert traces(figure)["noise scale of D"]["y"] == [100, None, None]


def test_long_runs_are_thinned_evenly_and_keep_their_end():
    lines = [training(i, 64, 1) for i in range(5001)]
    few = record(*lines).numbers.rows(1000)
    assert len(few) <= 1000 and few[-1]["nimg"] == 5000 and len({b["nimg"] - a["nimg"] for a, b in itertools.pairwise(few)}) == 1
    assert [one["nimg"] for one in record(*lines[:7]).numbers.rows(1000)] == list(range(7)) and record().numbers.rows(1000) == []


def test_panels_lie_below_each_other():
    figure = charts.batch_figure(record(*RUN))
    (_, top), (low, high), (bottom, below) = (figure.layout[name].domain for name in ("yaxis", "yaxis2", "yaxis3"))
    assert (
        top == 1
        and bottom == pytest.approx(0, abs=1e-9)
        and below < low < high < figure.layout.yaxis.domain[0]
        and figure.layout.xaxis.anchor == "y3"
    )
