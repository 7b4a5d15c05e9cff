"""The report's chart and tables on records of every kind: all that is drawn lies inside, and what is left out is said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence

import pytest
from conftest import slow_but

from gantrain.config import loading
from gantrain.reporting.comparison import build_curves, describe_gaps, group_runs, require_comparable
from gantrain.reporting.page import render_page
from gantrain.reporting.page_figures import LONGEST_NAME, others_in, shorten, stack
from gantrain.reporting.page_tables import means_table
from gantrain.run_folder.record import Record, read

PROTOCOL = {"eval/num_samples": 64, "eval/reference": "digits", "eval/reference_fingerprint": "f" * 16, "eval/features": "digits"}
FID, KID, IS = "digits_fid", "digits_kid", "digits_is"
TIMES = (0, 4000, 8000, 12_000, 16_000)
FALLING = (40.0, 5.0, 3.0, 2.0, 1.5)


def scored(nimg: int, **averages: dict[str, float]) -> dict:
    """A line of scores of some averages."""
    return {"nimg": nimg, **{f"eval/{name}/{metric}": v for name, row in averages.items() for metric, v in row.items()}, **PROTOCOL}


def trained(nimg: int, batch: int = 64) -> dict:
    """A training line."""
    return {
        "nimg": nimg, "loss/d": 1.0, "loss/g": 0.5, "batch/size": batch, "batch/rounds": batch // 64, "lr/g": 1e-4, "lr/d": 1e-4,
        "throughput/img_per_s": 100.0, "throughput/elapsed_s": nimg / 100,
    }  # fmt: skip


def swapped(nimg: int, moment: str, at: int, value: float) -> dict:
    """A swap's event with a score of the live weights."""
    return {
        "nimg": at, "event": "swap", "moment": moment, "swap_nimg": nimg, "live": {FID: value}, "batch/size": 64, "batch/rounds": 1,
        "source": "ema", "networks": "gd",
    }  # fmt: skip


def rolled_back(nimg: int, to: int) -> dict:
    """A rollback."""
    return {"nimg": nimg, "event": "rollback", "to": to, "words": "loss/d is nan", "batch/size": 64, "batch/rounds": 1}


def falling(times: Sequence[int] = TIMES, factor: float = 1.0, names: Sequence[str] = ("live", "ema"), kid: bool = True) -> Iterator[dict]:
    """Training and evaluations in which FID falls; KID ends below 0."""
    for i, nimg in enumerate(times):
        row = {FID: FALLING[i] * factor, IS: 2.0 + i / 10}
        yield trained(nimg)
        yield scored(nimg, **{name: row | ({KID: 0.8 if nimg == 0 else 0.01 - 0.005 * i} if kid else {}) for name in names})


def with_terms(lines: Iterator[dict]) -> Iterator[dict]:
    """The same with penalties, one of them lazy and of both players, and an augmentation's probability."""
    for i, line in enumerate(lines):
        lazy = {"penalty/r1": 3.0 / 10**i, "penalty/memory/g": 2.0} if i % 4 == 0 else {}
        yield {**line, "augment/p": i / 10, **lazy} if "loss/d" in line else line


@pytest.fixture
def record(tmp_path):
    """Make the record of a run from its lines; `settings` go into its configuration."""

    def make(lines, name: str = "run_0", seed: int = 0, *settings: str) -> Record:
        run = tmp_path / name
        run.mkdir()
        config = loading.load(None, [f"run_dir={run}", f"seed={seed}", "total_kimg=16", "data.name=digits", *settings])
        (run / "config.yaml").write_text(loading.to_yaml(config))
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"nimg": 0, "event": "start"}, *lines]))
        return read(run)

    return make


NAN = {"nimg": 8000, **{key: "nan" for key in scored(8000, live={FID: 0, IS: 0, KID: 0}) if key.count("/") == 2}, **PROTOCOL}
LONG = "an_average_whose_name_" + "goes_on_" * 8
KINDS = {
    "one seed": [[*falling()]],
    "a swap whose scores lie outside the evaluations": [
        [*falling(), swapped(8000, "before", 8000, 90.0), swapped(8000, "at", 8000, 0.1), swapped(8000, "after", 9000, 1.0)]
    ],
    "a swap at the last moment": [[*falling(), swapped(16_000, "before", 16_000, 30.0), swapped(16_000, "at", 16_000, 1.0)]],
    "a swap before the first evaluation that counts": [[*falling(TIMES[:1]), swapped(2000, "before", 2000, 70.0)]],
    "only at 0": [[*falling(TIMES[:1])]],
    "without evaluation": [[trained(nimg) for nimg in TIMES]],
    "nothing": [[]],
    "nan": [[*falling(), NAN]],
    "all nan": [[trained(0), trained(8000), NAN]],
    "negative scores": [[trained(0), *(scored(nimg, live={KID: value}) for nimg, value in zip(TIMES, (-1.0, -2.0, 0.0, -3.0, -2.5)))]],
    "constant": [[trained(0), *(scored(nimg, live={FID: 0.0, IS: 1.0}) for nimg in TIMES)]],
    "long names and twelve averages": [[*falling(names=["live", LONG, *(f"average_{i}" for i in range(11))])]],
    "a rollback": [[*falling(), rolled_back(16_000, 8000), trained(12_000), scored(12_000, live={FID: 300.0})]],
    "two seeds": [[*falling()], [*falling(factor=3)]],
    "two seeds of different lengths": [[*falling()], [*falling(TIMES[:3], factor=3)]],
    "three seeds far apart": [[*falling()], [*falling(factor=9)], [*falling(factor=0.01)]],
    "three seeds without a metric in one": [[*falling()], [*falling(factor=2)], [*falling(kid=False)]],
    "three seeds with one average in one": [[*falling()], [*falling(factor=2)], [*falling(names=["live"])]],
    "three seeds with nan in one": [[*falling()], [*falling(factor=2)], [*falling(), NAN]],
    "four seeds, one of them empty": [[*falling()], [*falling(factor=2)], [*falling(factor=3)], []],
}  # fmt: skip


def axis(layout: dict, trace: dict) -> dict:
    """The y axis of a trace."""
    return layout[trace.get("yaxis", "y").replace("y", "yaxis", 1)]


QUICK = ["all nan", "three seeds far apart"]  # and the case of a swap in a test of its own


@pytest.mark.parametrize("kind", slow_but(QUICK, KINDS))
def test_everything_that_is_drawn_lies_inside(record, kind):
    """Evaluations, scores around swaps, intervals, single runs and marks: each within the range of its axis."""
    runs = [record(lines, f"run_{i}", i) for i, lines in enumerate(KINDS[kind])]
    groups, metrics = group_runs(runs), list(dict.fromkeys(m for run in runs for m in run.metrics))
    figure = json.loads(stack(groups, metrics).to_json())
    drawn = 0
    for trace in figure["data"]:
        shown = axis(figure["layout"], trace)
        for y in filter(lambda y: y is not None, trace["y"]):
            low, high = shown["range"]
            assert low <= (math.log10(y) if shown.get("type") == "log" else y) <= high, (trace["meta"], y, shown["range"])
            drawn += 1
    assert drawn or not any(KINDS[kind])
    if kind not in QUICK:
        assert render_page(runs)


def test_a_swaps_scores_are_within_the_range(record):
    """The case of the issue: before the swap the live weights are far worse than at any evaluation."""
    (group,) = group_runs([record(KINDS["a swap whose scores lie outside the evaluations"][0])])
    figure = stack([group], [FID])
    (trace,) = [trace for trace in figure.data if trace.meta["kind"] == "swap"]
    shown = axis(figure.to_dict()["layout"], trace.to_plotly_json())
    assert [y for y in trace.y if y is not None] == [90.0, 0.1, 1.0]
    assert 10 ** shown["range"][0] < 0.1 and 10 ** shown["range"][1] > 90


def test_penalties_and_the_augmentation_have_rows(record):
    """Where a line has them; a run without them has no such rows."""
    rows = others_in([record(with_terms(falling()))])
    drawn = [(title, list(keys), log) for title, keys, log in rows if title in ("penalties", "augmentation")]
    assert drawn == [("penalties", ["penalty/memory/g", "penalty/r1"], True), ("augmentation", ["augment/p"], False)]
    plain = record(falling(), "plain")
    assert [title for title, *_ in others_in([plain])] == [title for title, *_ in rows if title not in ("penalties", "augmentation")]


@pytest.mark.slow
def test_penalties_are_drawn_where_they_were_applied(record):
    traces = {trace.name: (list(trace.x), list(trace.y)) for trace in stack(group_runs([record(with_terms(falling()))]), []).data}
    assert traces["r1"] == ([0, 8, 16], [3.0, 0.0003, pytest.approx(3e-8)]) and traces["memory/g"][1] == [2.0, 2.0, 2.0]
    assert traces["p"] == ([0, 4, 8, 12, 16], [0.0, 0.2, 0.4, 0.6, 0.8])


def test_untrained_scores_that_would_flatten_the_rest_are_words(record):
    groups = group_runs([record([*falling()])])
    figure = stack(groups, [FID, KID, IS])
    words = [note.text for note in figure.layout.annotations if note.name == "remark"]
    assert words == ["↑ 0.8 at 0 kimg"]  # KID has values below 0, and no logarithmic axis shows them; FID and IS need no words
    assert [min(t.x) for t in figure.data if t.meta["kind"] == "score" and t.meta["average"] == "ema"] == [0, 4, 0]
    (only,) = group_runs([record([*falling(TIMES[:1])], "only")])
    assert not [note for note in stack([only], [FID]).layout.annotations if note.name == "remark"]  # there is no rest


def test_two_runs_are_drawn_as_they_are(record):
    """Student's t at one degree of freedom is 12.7 standard errors: no band, no mean, two lines, in full length."""
    (group,) = group_runs([record([*falling()]), record([*falling(TIMES[:3], factor=3)], "run_1", 1)])
    traces = [trace for trace in stack([group], [FID]).data if trace.meta["row"].startswith(FID) and trace.meta["average"] == "ema"]
    assert [trace.meta["kind"] for trace in traces] == ["run", "run"]
    assert [list(trace.x) for trace in traces] == [[0, 4, 8, 12, 16], [0, 4, 8]]
    assert list(traces[0].y) == list(FALLING) and list(traces[1].y) == [3 * y for y in FALLING[:3]]
    assert [trace.showlegend for trace in traces] == [True, False]  # one name, two symbols
    assert {trace.marker.symbol for trace in traces} == {"circle", "circle-open"}
    assert all(curve.half is None for curve in build_curves(group, FID))
    page = render_page(group.records)
    assert "Two are drawn as they are" in page and "two runs give no useful interval" in page


def test_the_table_of_two_runs_has_their_values_and_that_of_three_an_interval(record):
    runs = [record([*falling(factor=factor)], f"run_{i}", i) for i, factor in enumerate((1, 2, 3))]
    two, three = means_table(group_runs(runs[:2]), [FID]), means_table(group_runs(runs), [FID])
    assert two.rows[0][1][0].text == "2.2500 (1.5, 3)" and "without an interval" in two.note and "Student" not in two.note
    half = 4.302652729911275 * 1.5 / math.sqrt(3)  # t of 2 degrees of freedom; 1.5, 3 and 4.5 have the standard deviation 1.5
    assert three.rows[0][1][0].half == pytest.approx(half, rel=1e-9) and "Student's t" in three.note and "brackets" not in three.note


def test_three_seeds_keep_the_mean_of_those_that_have_a_score(record):
    """A metric or an average that one run lacks is drawn from the others, and said; it used to vanish without a word."""
    runs = [record(lines, f"run_{i}", i) for i, lines in enumerate(KINDS["three seeds without a metric in one"])]
    (group,) = group_runs(runs)
    assert {name for curve in build_curves(group, KID) for name in curve.runs} == {"run_0", "run_1"}
    assert describe_gaps(group, [FID, KID]) == [f"{KID} is missing in run_2; it is drawn from the other runs of run."]
    assert means_table([group], [FID, KID]).rows[0][1][1].text == "-0.0100 (-0.01, -0.01)"
    assert f"{KID} is missing in run_2" in render_page(runs)


@pytest.mark.slow
def test_an_average_that_one_run_lacks_and_scores_that_are_not_finite_are_said(record):
    runs = [record(lines, f"run_{i}", i) for i, lines in enumerate(KINDS["three seeds with one average in one"])]
    assert describe_gaps(*group_runs(runs), [FID]) == [f"{FID} of ema is missing in run_2; it is drawn from the other runs of run."]
    sick = record([*falling(), NAN], "run_3", 3)
    assert f"run_3: {FID} is not finite at some evaluations; these points, and means over them, are not drawn." in render_page(
        [*runs, sick]
    )


@pytest.mark.parametrize(
    "lines, words", [([*falling(TIMES[:1])], "only the untrained weights have been scored, at 0 kimg"), ([], "No score yet.")]
)
def test_untrained_weights_are_never_a_best_score(record, lines, words):
    found = record(lines)
    assert found.best() is None and words in render_page([found])


def test_the_best_score_is_of_trained_weights(record):
    """Untrained weights have the highest precision here, as digit features give them on colour pictures."""
    lines = [scored(nimg, live={"digits_precision": value}) for nimg, value in ((0, 0.976), (4000, 0.3), (8000, 0.4))]
    assert record(lines).best("digits_precision") == (0.4, "live", 8000)


def test_every_card_has_a_title(record):
    """Sentences about what a run lacks stand where it would be, or in a card with a title."""
    for i, lines in enumerate(([], [trained(0)], [*falling()], [*falling(), {"nimg": 16_000, "event": "interrupted"}])):
        page = render_page([record(lines, f"run_{i}")])
        cards = re.findall(r"<section[^>]*>(.*?)</section>", page, flags=re.DOTALL)
        assert len(cards) >= 3 and all(re.match(r"\s*<h[23]>", card) for card in cards), [card[:80] for card in cards]
        (chart,) = [card for card in cards if "Over the run" in card]
        if i:
            assert "The gradient noise scale was not measured" in chart
    assert "The run is incomplete" in next(card for card in cards if "Notes" in card)


@pytest.mark.slow
def test_what_holds_for_all_runs_is_said_once(record):
    page = render_page([record([*falling()], f"run_{i}", i) for i in range(3)])
    assert page.count("The gradient noise scale was not measured") == 1


@pytest.mark.slow
def test_a_long_name_is_shortened_in_the_chart_alone(record):
    assert shorten("ema") == "ema" and len(shorten(LONG)) <= LONGEST_NAME and shorten(LONG)[:10] == LONG[:10]
    found = record([*falling(names=["live", LONG])])
    (trace, *_) = [trace for trace in stack(group_runs([found]), [FID]).data if trace.meta.get("average") == LONG]
    assert trace.name == shorten(LONG) and trace.legendgroup == LONG and f"<td class=stays>{LONG}</td>" in render_page([found])


def test_notes_on_the_scores_stand_at_the_best_scores(record):
    """What must stand beside the scores, such as that the features were made for other images."""
    note = "digits_* scores are made for digits, and cats are not known to be digits"
    found = record([{**line, "eval/notes": [note]} if "eval/num_samples" in line else line for line in falling()])
    card = re.search(r"<h3>Best scores</h3>.*?</div>\n</div>", render_page([found]), flags=re.DOTALL)
    assert card and f"Note: {note}." in card.group()
    other = record([{**line, "eval/notes": [note]} if "eval/num_samples" in line else line for line in falling()], "run_1", 1)
    assert f"<li>Scores: {note}.</li>" in render_page([found, other])


def test_what_scrolls_sideways_shows_that_it_does(record):
    """A shadow at the edge by CSS alone; what covers it moves with the content (background-attachment: local)."""
    page = render_page([record([*falling()])])
    style = re.search(r"\.scroll \{[^}]*\}", page)
    assert style and style.group().count("local") == 2 and style.group().count("var(--shade)") == 2 and "overflow-x: auto" in style.group()
    body = page[page.index("<main>") :]
    assert body.count("<table>") == body.count('<div class="scroll" tabindex="0"><table>') >= 1


@pytest.mark.slow
def test_runs_whose_scores_do_not_compare_are_still_refused(record):
    runs = [
        record([*falling()]),
        record([{**line, **({"eval/num_samples": 32} if "eval/num_samples" in line else {})} for line in falling()], "b", 1),
    ]
    with pytest.raises(ValueError, match="are not comparable"):
        require_comparable(runs)


def test_pictures_for_phones_come_with_the_wide_ones(record):
    from PIL import Image

    from gantrain.run_folder.layout import is_narrow, narrow_variant

    found = record([*falling()])
    for folder, name in (("orbit", "000000016000"), ("evaluations", "sweep-000000016000"), ("evaluations", "old")):
        (found.run / folder).mkdir(exist_ok=True)
        picture = found.run / folder / f"{name}.png"
        Image.new("RGB", (90, 9), "red").save(picture)
        if name != "old":
            Image.new("RGB", (9, 90), "blue").save(narrow_variant(picture))
            assert is_narrow(narrow_variant(picture)) and not is_narrow(picture)
    page = render_page([found])
    assert page.count('<source media="(max-width: 640px)"') == 2 and page.count('<img class="wide" style="--pixels: 90"') == 1
    assert page.count("<figcaption>") == 3 and "narrow</figcaption>" not in page
