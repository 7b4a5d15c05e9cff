"""The report: every number on the page is the record's, runs that are not whole say so, and the page needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT, error_of, lines_of
from PIL import Image
from test_listing import MARKS, SAME, warn
from test_swapping import TINY

from gantrain.reporting.comparison import half_width, match_times
from gantrain.reporting.drawn_pictures import pick_evenly
from gantrain.reporting.page import render_page
from gantrain.reporting.page_figures import ladder
from gantrain.run_folder import record

DIGITS = ROOT / "configs" / "digits_swap.yaml"
# Two swaps, two growths, four evaluations of five averages, pictures, noise scale.
SETTINGS = [
    *TINY, "eval.metrics=[fid,is,kid]", "tracking.samples_every_kimg=0.32", "noise_scale={measure_every: 2, window: 8}",
    "averagers.ema_long=null",
    "averagers.power_05=null", "orbit.every_kimg=0.032",
]  # fmt: skip
SCORES = ("digits_fid", "digits_is", "digits_kid")


class Page(HTMLParser):
    """A page's scripts of JSON, tables as rows of (text, data-value, class), pictures and addresses."""

    def __init__(self, path: Path):
        super().__init__()
        self.json: dict[str, object] = {}
        self.tables: list[list[list[tuple[str, float | None, str]]]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._script: str | None = None
        self._cell: list | None = None
        self._hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href") and value]
        if tag in ("script", "style"):
            self._hidden, self._script = True, found.get("id") if found.get("type") == "application/json" else None
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ["", float(found["data-value"]) if "data-value" in found else None, found.get("class", "")]

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._hidden, self._script = False, None
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(tuple(self._cell))
            self._cell = None

    def handle_data(self, data):
        if self._script:
            self.json[self._script] = json.loads(data)
        elif self._cell is not None:
            self._cell[0] += data
        elif not self._hidden:
            self.text += data

    def table(self, first: str) -> tuple[list[str], list[list[tuple[str, float | None, str]]]]:
        """(heads, rows) of the first table whose head begins with a word."""
        rows = next(rows for rows in self.tables if rows[0][0][0] == first)
        return [cell[0] for cell in rows[0]], rows[1:]

    def traces(self, kind: str, row: str = "") -> list[dict]:
        return [trace for trace in self.json["figure"]["data"] if trace["meta"]["kind"] == kind and trace["meta"]["row"].startswith(row)]


def reported(gantrain, *runs: Path, out: Path) -> Page:
    done = gantrain("report", *runs, "--out", out)
    assert done.stdout.startswith(f"report of {len(runs)} run") and str(out) in done.stdout and done.stderr == ""
    return Page(out)


@pytest.fixture(scope="module")
def runs(gantrain, tmp_path_factory) -> list[Path]:
    """A run, also scored under two BatchNorm policies; two more as if of other seeds, and a fourth as if without swaps."""
    folder = tmp_path_factory.mktemp("reports")
    gantrain("train", DIGITS, f"run_dir={folder / 'swap_0'}", *SETTINGS)
    gantrain("evaluate", folder / "swap_0", "--average", "live,swa", "--batchnorm", "copy,recalibrate")
    for name, (more, factor) in {
        "swap_1": (["seed=1"], 1.1),
        "swap_2": (["seed=2"], 0.7),
        "plain": (["swap.source=null", "averagers.swa=null"], 1.2),
    }.items():
        shutil.copytree(folder / "swap_0", folder / name, ignore=shutil.ignore_patterns("checkpoints", "evaluations", "wandb"))
        (folder / name / "config.yaml").write_text(
            gantrain("config", folder / "swap_0" / "config.yaml", f"run_dir={folder / name}", *more).stdout
        )
        lines = [{k: v * factor if k.endswith(SCORES) else v for k, v in line.items()} for line in lines_of(folder / "swap_0")]
        lines = [
            {k: v for k, v in line.items() if name != "plain" or "/swa/" not in k}
            for line in lines
            if name != "plain" or line.get("event") != "swap"
        ]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [folder / name for name in ("swap_0", "swap_1", "swap_2", "plain")]


@pytest.fixture(scope="module")
def one(gantrain, runs) -> SimpleNamespace:
    """The page of one run, and its record as the file has it."""
    gantrain("report", runs[0])
    return SimpleNamespace(run=runs[0], page=Page(runs[0] / "report.html"), lines=lines_of(runs[0]))


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_the_score_of_live_and_every_average_is_the_records_at_every_evaluation(one):
    evaluations = [line for line in one.lines if "eval/live/digits_fid" in line]
    assert len(evaluations) == 4
    for metric in SCORES:
        traces = {trace["meta"]["average"]: trace for trace in one.page.traces("score", metric)}
        assert list(traces) == ["live", "swa", "ema", "ema_short", "power_10"]
        for name, trace in traces.items():
            wanted = [(line["nimg"] / 1000, line[f"eval/{name}/{metric}"]) for line in evaluations if f"eval/{name}/{metric}" in line]
            assert list(zip(trace["x"], trace["y"])) == wanted and len(wanted) >= 3
            assert "%{y:.5g}" in trace["hovertemplate"]


def test_losses_rates_and_noise_are_those_of_the_training_lines(one):
    training = [line for line in one.lines if "loss/d" in line]
    for key in ("loss/g", "loss/d", "lr/g", "lr/d", "noise_scale/G/b_simple", "noise_scale/D/b_simple"):
        (trace,) = one.page.traces(key)
        wanted = [(line["nimg"] / 1000, line[key]) for line in training if key in line]
        assert list(zip(trace["x"], trace["y"])) == wanted and wanted, key


def test_the_batch_grows_where_the_events_say_on_the_axis_of_the_scores(one):
    grown = [line for line in one.lines if line.get("event") == "growth"]
    (batch,), (rounds,) = one.page.traces("batch/size"), one.page.traces("batch/rounds")
    assert (
        list(zip(batch["x"], batch["y"])) == [(0, 16), *((line["nimg"] / 1000, line["to"]) for line in grown), (0.976, 48)]
        and batch["line"]["shape"] == "hv"
    )
    assert rounds["y"] == [1, 2, 3, 3] and len(grown) == 2
    layout = one.page.json["figure"]["layout"]
    assert {axis["matches"] for name, axis in layout.items() if name.startswith("xaxis") and "matches" in axis} <= {
        name.replace("axis", "") for name in layout if name.startswith("xaxis")
    }
    assert (
        sum(name.startswith("xaxis") for name in layout)
        == sum("matches" in axis for name, axis in layout.items() if name.startswith("xaxis")) + 1
    )


def test_swaps_and_growths_are_marked_at_their_images(one):
    for kind, wanted in {"swap": [0.32, 0.64], "growth": [0.32, 0.64]}.items():
        (trace,) = [trace for trace in one.page.traces("mark") if trace["name"] == kind]
        assert (
            trace["x"]
            == wanted
            == [line["nimg"] / 1000 for line in one.lines if line.get("event") == kind and line.get("moment", "at") == "at"]
        )
    words = [t for trace in one.page.traces("mark") if trace["name"] == "swap" for t in trace["text"]]
    assert len(words) == 2 and all(one.startswith("swa replaces the live weights of G and D; batch ") for one in words)
    assert [shape["x0"] for shape in one.page.json["figure"]["layout"]["shapes"]] == [0.32, 0.64]


def test_the_swaps_scores_stand_in_chart_and_table(one):
    told = [line for line in one.lines if line.get("event") == "swap"]
    heads, rows = one.page.table("swap at kimg")
    assert heads == ["swap at kimg", "batch", "moment (kimg)", *SCORES] and len(rows) == len(told) == 6
    for row, line in zip(rows, told):
        assert [cell[0] for cell in row[:3]] == [
            f"{line['swap_nimg'] / 1000:g}",
            str(line["batch/size"]),
            f"{line['moment']} ({line['nimg'] / 1000:g})",
        ]
        assert [cell[1] for cell in row[3:]] == [line["live"][m] for m in SCORES]
    (trace,) = one.page.traces("swap", "digits_fid")
    assert [y for y in trace["y"] if y is not None] == [line["live"]["digits_fid"] for line in told]
    assert [x for x in trace["x"] if x is not None] == [line["nimg"] / 1000 for line in told]


def test_tables_have_the_records_scores_with_the_best_marked_and_their_protocol(one):
    """Averager x BatchNorm x metric: first the run's last evaluation, then the one by gantrain evaluate."""
    last = [line for line in one.lines if "eval/live/digits_fid" in line][-1]
    body = json.loads(next((one.run / "evaluations").glob("0*.json")).read_text())
    tables = [rows for rows in one.page.tables if rows[0][0][0] == "average"]
    wanted = [
        {(name, "recalibrate"): {m: last[f"eval/{name}/{m}"] for m in SCORES} for name in ("live", "swa", "ema", "ema_short", "power_10")},
        {
            (name, policy): {m: body["scores_by_batchnorm"][policy][name][m] for m in SCORES}
            for name in ("live", "swa")
            for policy in ("copy", "recalibrate")
        },
    ]
    assert len(tables) == len(wanted)
    for rows, table in zip(tables, wanted):
        assert {(row[0][0], row[1][0]): {m: cell[1] for m, cell in zip(SCORES, row[2:])} for row in rows[1:]} == table
        for i, (m, best) in enumerate(zip(SCORES, (min, max, min))):
            value = best(row[m] for row in table.values())
            for row in rows[1:]:
                text, number, style = row[2 + i]
                assert ("best" in style) == (number == value) and text == f"{number:.4f}"
    for words in (
        "64 generated images",
        f"fingerprint {last['eval/reference_fingerprint']}",
        "BatchNorm statistics of 2 x 32",
        "no truncation",
        "digits (64 images)",
    ):
        assert words in one.page.text


def test_the_head_says_what_the_run_is_and_its_best_scores(one):
    start = one.lines[0]
    for words in (
        "done",
        "0.976 of 0.96 kimg",
        "48 images (3 rounds) at the end",
        f"G {start['parameters']['g']:,}",
        f"torch {start['versions']['torch']}",
        start["data_fingerprint"][:16],
        "swap_0",
    ):
        assert words in one.page.text
    assert (one.run / "config.yaml").read_text() in one.page.text
    _, rows = one.page.table("score")
    assert [row[0][0] for row in rows] == list(SCORES)
    for (metric, *_), (_, value, _), (name, *_), (kimg, *_) in rows:
        better = max if metric == "digits_is" else min
        scores = [
            (v, k.split("/")[1], line["nimg"] / 1000)
            for line in one.lines
            if "event" not in line
            for k, v in line.items()
            if k.startswith("eval/") and k.endswith("/" + metric)
        ]
        assert (value, name, float(kimg)) == better(scores, key=lambda score: score[0])


def test_samples_are_the_run_folders_cut_into_averages_without_loss(one):
    data = one.page.json["samples"]
    assert {source["average"] for source in data["sources"]} == {"live", "swa", "ema", "ema_short", "power_10"}
    assert data["times"] == [0, 0.32, 0.64, 0.976]
    assert data["sources"][data["left"]]["average"] == "live" and data["sources"][data["right"]]["average"] != "live"
    for source in data["sources"]:
        for moment in source["moments"]:
            path = one.run / "samples" / f"{round(moment['kimg'] * 1000):012d}.png"
            said = json.loads(Image.open(path).text["gantrain"])["sheets"]
            (sheet,) = [sheet for sheet in said if sheet["name"] == source["average"]]
            shown = Image.open(io.BytesIO(base64.b64decode(moment["src"].partition(",")[2]))).convert("RGB")
            drawn = Image.open(path).convert("RGB").crop(sheet["box"])
            assert (
                np.array_equal(np.asarray(shown)[-drawn.height :], np.asarray(drawn))  # below the names of its columns
                and moment["caption"] == sheet["caption"]
                and np.asarray(drawn).std() > 5
            )


def test_the_page_needs_nothing_else(one):
    """No address but data: Plotly, pictures and numbers are in it; it has a viewport, and both themes."""
    assert all(address.startswith("data:image/") for address in one.page.addresses)
    assert not {"link", "iframe", "object"} & set(one.page.tags)
    text = (one.run / "report.html").read_text()
    assert "plotly.js v" in text and 'name="viewport"' in text and "prefers-color-scheme: dark" in text and "overflow-x: auto" in text


# ---- several runs ----------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_are_a_mean_with_students_interval(gantrain, runs, tmp_path):
    page = reported(gantrain, *runs[:3], out=tmp_path / "three.html")
    assert "3 runs, seeds 0, 1, 2" in page.text and "95% interval" in page.text
    lines = [[line for line in lines_of(run) if "eval/live/digits_fid" in line] for run in runs[:3]]
    for name in ("live", "swa", "ema"):
        (trace,) = [trace for trace in page.traces("score", "digits_fid") if trace["meta"]["average"] == name]
        values = np.array([[line[f"eval/{name}/digits_fid"] for line in one if f"eval/{name}/digits_fid" in line] for one in lines])
        halves = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(values)
        np.testing.assert_allclose(trace["y"], values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(trace["customdata"], halves, rtol=1e-9)
        (band,) = [band for band in page.traces("band", "digits_fid") if band["meta"]["average"] == name]
        np.testing.assert_allclose(band["y"][len(halves) :][::-1], values.mean(axis=0) + halves, rtol=1e-9)
        seeds = {trace["meta"]["run"]: trace["y"] for trace in page.traces("run", "digits_fid") if trace["meta"]["average"] == name}
        assert seeds == {run.name: row.tolist() for run, row in zip(runs, values)}
    _, rows = page.table("runs")
    for row in rows:
        values = [one[-1][f"eval/{row[1][0]}/digits_fid"] for one in lines]
        assert row[0][0] == "swap" and row[2][0] == "3" and row[3][1] == pytest.approx(np.mean(values), rel=1e-12)
        assert row[3][0] == f"{np.mean(values):.4f} ± {scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(values):.2g}"


def test_runs_of_other_configurations_are_groups_of_their_own(gantrain, runs, tmp_path):
    page = reported(gantrain, *runs[:2], runs[3], out=tmp_path / "groups.html")
    assert "differs from swap in" in page.text and "swap.source: swa → null" in page.text and "averagers.swa (in swap only)" in page.text
    both = lambda metric="": [*page.traces("score", metric), *page.traces("run", metric)]  # noqa: E731 - the two seeds are drawn one by one
    names = {trace["meta"]["group"] for trace in both()}
    assert names == {"swap", "plain"} and "select" in page.tags
    shown = [(trace["name"], trace["meta"]["average"]) for trace in both("digits_fid") if trace["showlegend"]]
    assert ("swap", "ema") in shown and ("plain", "ema") in shown
    order = re.search(r'<select id="average">(.*?)</select>', (tmp_path / "groups.html").read_text()).group(1)
    assert re.findall(r"<option>(\w+)</option>", order)[-1] == "swa"  # which only one group has
    assert {source["run"] for source in page.json["samples"]["sources"]} == {"swap_0", "swap_1", "plain"}


def test_a_seed_that_puts_out_no_numbers_leaves_the_others_their_page(gantrain, runs, tmp_path):
    sick = altered(runs[1], tmp_path, lambda lines: [{k: "nan" if k.endswith(SCORES) else v for k, v in line.items()} for line in lines])
    page = reported(gantrain, runs[0], sick, runs[2], out=tmp_path / "page.html")
    (trace,) = [trace for trace in page.traces("score", "digits_fid") if trace["meta"]["average"] == "ema"]
    assert set(trace["y"]) == {None} and [row[3][0] for row in page.table("runs")[1] if row[1][0] == "ema"] == ["nan"]
    shown = {trace["meta"]["run"]: trace["y"] for trace in page.traces("run", "digits_fid") if trace["meta"]["average"] == "ema"}
    assert list(shown) == ["swap_0", "copy", "swap_2"] and set(shown["copy"]) == {None} and None not in shown["swap_2"]
    assert "copy: digits_fid is not finite at some evaluations" in page.text


def test_runs_in_folders_of_one_name_are_told_apart(gantrain, runs, tmp_path):
    for name, run in zip("xy", runs):
        shutil.copytree(run, tmp_path / name / "run", ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    page = reported(gantrain, tmp_path / "x" / "run", tmp_path / "y" / "run", out=tmp_path / "page.html")
    assert (
        {trace["meta"]["run"] for trace in page.traces("run")}
        == {"x/run", "y/run"}
        == {source["run"] for source in page.json["samples"]["sources"]}
    )
    assert {row[2][0] for row in page.table("runs")[1]} == {"2"} and not page.traces("score") and not page.traces("band")  # only the runs


def test_by_default_several_runs_are_reported_where_they_lie_together(gantrain, runs):
    done = gantrain("report", *runs[:2], runs[0])
    assert (runs[0].parent / "report.html").is_file() and done.stdout.startswith("report of 2 runs in ")


def test_moments_are_match_times_by_the_nearest():
    """A batch that grew shifts an evaluation; what has no partner within half a period is left out."""
    rows = match_times([[(0, 1.0), (100, 2.0), (200, 3.0)], [(0, 4.0), (104, 5.0), (207, 6.0), (300, 7.0)]])
    assert rows == [[(0, 1.0), (0, 4.0)], [(100, 2.0), (104, 5.0)], [(200, 3.0), (207, 6.0)]]
    assert match_times([[(0, 1.0), (100, 2.0)], [(0, 1.0), (60, 2.0), (400, 3.0)]]) == [[(0, 1.0), (0, 1.0)], [(100, 2.0), (60, 2.0)]]
    assert match_times([[(0, 1.0), (100, 2.0)], [(0, 1.0), (170, 2.0), (400, 3.0)]]) == [[(0, 1.0), (0, 1.0)]]
    assert match_times([[(5, 1.0)], []]) == []
    shifted = [[(0, 1.0), (320, 2.0), (640, 3.0), (960, 4.0), (976, 5.0)], [(0, 1.0), (420, 2.0), (740, 3.0), (960, 4.0), (976, 5.0)]]
    assert [[nimg for nimg, _ in row] for row in match_times(shifted)] == [
        [0, 0],
        [320, 420],
        [640, 740],
        [960, 960],
        [976, 976],
    ]  # a short last period


def test_half_width_is_students():
    values = [1.0, 2.0, 4.0, 4.5]
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-10)
    assert math.isnan(half_width([1.0])) and math.isnan(half_width([1.0, math.nan])) and math.isnan(half_width([1.0, math.inf]))


def test_few_round_numbers_on_a_logarithmic_axis():
    assert ladder(1.2, 60) == [2, 5, 10, 20, 50] and ladder(0.1, 1000) == [0.1, 1, 10, 100, 1000]
    assert ladder(3e-7, 4e5) == pytest.approx([1e-6, 1e-4, 1e-2, 1, 100, 1e4]) and ladder(3, 4) == [3, 4]


def test_pictures_are_spread_over_the_run():
    paths = [Path(str(i)) for i in range(100)]
    assert [path.name for path in pick_evenly(paths, 5)] == ["0", "25", "50", "74", "99"]
    assert pick_evenly(paths[:3], 5) == paths[:3] and len(set(pick_evenly(paths, 40))) == 40


# ---- runs that are not whole -----------------------------------------------------------------------------------------


def altered(run: Path, folder: Path, change) -> Path:
    """A copy of a run whose record's lines went through `change`."""
    copy = folder / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "wandb", "report.html"))
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in change(lines_of(run))))
    return copy


def without(start: str, lines: list[dict], keep: Callable[[str], bool] = lambda key: False) -> list[dict]:
    """The lines without keys that start so, but for those to keep."""
    return [{k: v for k, v in line.items() if not k.startswith(start) or keep(k)} for line in lines]


CHANGES = {
    "cut short": (lambda lines: lines[:-4], "cut short: it was killed or ended by an error"),
    "no evaluation": (
        lambda lines: without("eval/", [line for line in lines if line.get("event") != "swap"]), "Nothing has been evaluated yet",
    ),
    "one average": (
        lambda lines: without("eval/", lines, keep=lambda key: "/live/" in key or key.count("/") == 1),
        "Only live was scored, so there is no comparison",
    ),
    "empty": (lambda lines: [], "nothing has been written yet"),
    "only begun": (lambda lines: lines[:1], "No training line has been written yet"),
    "no noise scale": (lambda lines: without("noise", lines), "The gradient noise scale was not measured"),
    "another protocol": (
        lambda lines: [{**line, "eval/num_samples": 32} if line["nimg"] < 300 and "eval/num_samples" in line else line for line in lines],
        "1 earlier evaluation left out: eval was changed at a resume",
    ),
    "rolled back": (
        lambda lines: [
            *lines, {"nimg": 976, "event": "rollback", "to": 640, "words": "loss/d is nan", "batch/size": 48, "batch/rounds": 3},
        ],
        "of paths abandoned by rollbacks are not drawn",
    ),
    "nan": (
        lambda lines: [{**line, **({"eval/live/digits_fid": "nan"} if "eval/live/digits_fid" in line else {})} for line in lines], "done",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_what_is_missing_is_said(gantrain, one, tmp_path, what):
    change, words = CHANGES[what]
    page = reported(gantrain, altered(one.run, tmp_path, change), out=tmp_path / "page.html")
    assert words in page.text
    lines = change(one.lines)
    if what in ("cut short", "only begun"):
        assert ("its last line" in page.text) and (what != "cut short" or " 0s from" not in page.text)
    if what == "no evaluation":
        assert not page.traces("score") and page.traces("loss/d") and "No score yet." in page.text
    if what == "empty":
        assert page.json["figure"] is None and len(page.tables) == 1  # of what gantrain evaluate has left
    if what == "one average":
        assert {trace["meta"]["average"] for trace in page.traces("score")} == {"live"}
        assert not [cell for row in page.table("average")[1] for cell in row if "best" in cell[2]]
    if what == "another protocol":
        assert all(0 not in trace["x"] for trace in page.traces("score"))
    if what == "rolled back":
        assert max(x for trace in page.traces("score") for x in trace["x"]) <= 0.64 < max(line["nimg"] for line in lines) / 1000
        assert [trace["x"] for trace in page.traces("mark") if trace["name"] == "rollback"] == [[0.976]]
    if what == "nan":
        (trace,) = [trace for trace in page.traces("score", "digits_fid") if trace["meta"]["average"] == "live"]
        assert trace["y"] == [None] * 4 and page.table("average")[1][0][2][0] == "nan"


def test_a_run_that_goes_on_and_a_damaged_picture(gantrain, one, tmp_path):
    from gantrain.lock import acquire

    copy = altered(one.run, tmp_path, lambda lines: lines[:-2])
    (copy / "samples" / "000000000640.png").write_bytes(b"no picture")
    with open(copy / "metrics.jsonl", "a") as record:
        record.write('{"nimg": 976, "loss/')
    with acquire(copy):
        page = reported(gantrain, copy, out=tmp_path / "page.html")
    assert "still running; this page shows the run so far" in page.text and page.json["samples"]["times"] == [0, 0.32, 0.976]
    (loss,) = page.traces("loss/g")
    assert len(loss["x"]) == len([line for line in lines_of(one.run) if "loss/g" in line])


def test_the_newest_orbit_and_the_pictures_of_evaluations_are_in_the_page(gantrain, one, tmp_path):
    copy = altered(one.run, tmp_path, lambda lines: lines)
    (copy / "orbit").mkdir(exist_ok=True)
    for name, colour in {
        "orbit/000000000320.png": "red",
        "orbit/000000000640.png": "green",
        "evaluations/sweep-000000000976.png": "blue",
    }.items():
        Image.new("RGB", (8, 8), colour).save(copy / name)
    page = reported(gantrain, copy, out=tmp_path / "page.html")
    shown = [base64.b64decode(address.partition(",")[2]) for address in page.addresses]
    assert shown == [(copy / "orbit" / "000000000640.png").read_bytes(), (copy / "evaluations" / "sweep-000000000976.png").read_bytes()]
    assert "orbit at 0.64 kimg" in page.text and "sweep-000000000976" in page.text


def test_evaluations_that_are_damaged_are_passed_over_and_a_record_without_a_line_is_damaged(gantrain, one, tmp_path):
    copy = altered(one.run, tmp_path, lambda lines: lines)
    for i, text in enumerate(
        [
            "{",
            '{"nimg": 960.5, "scores": {}}',
            '{"nimg": 960, "scores": {"live": {"digits_fid": "low"}}}',
            '{"nimg": 960, "scores": 3}',
            "[]",
        ]
    ):
        (copy / "evaluations" / f"000000000960-{i + 5}.json").write_text(text)
    page = reported(gantrain, copy, out=tmp_path / "page.html")
    assert len([rows for rows in page.tables if rows[0][0][0] == "average"]) == 2
    (copy / "metrics.jsonl").write_bytes((bytes(range(128, 256)) + b"\n") * 20)
    assert "damaged: no line of metrics.jsonl can be read" in reported(gantrain, copy, out=tmp_path / "page.html").text


def test_a_page_bears_so_many_pictures(gantrain, one, tmp_path):
    copy = altered(one.run, tmp_path, lambda lines: lines)
    for i in range(40):
        Image.new("RGB", (8, 8), (i, i, i)).save(copy / "evaluations" / f"sweep-{i:012d}.png")
    assert sum(address.startswith("data:image/png") for address in reported(gantrain, copy, out=tmp_path / "page.html").addresses) == 20


def test_names_are_text_and_no_markup(gantrain, one, tmp_path):
    folder = tmp_path / "<b>&amp;'\"<i>"
    altered(
        one.run,
        tmp_path,
        lambda lines: [
            {**line, **({"words": "</script><script>alert(1)</script>"} if line.get("event") == "growth" else {})} for line in lines
        ],
    ).rename(folder)
    page = reported(gantrain, folder, out=tmp_path / "page.html")
    assert "<b>&amp;'\"<i>" in page.text and "b" not in page.tags and page.tags.count("script") == 5


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_a_run_warns_about_is_on_the_page(tmp_path):
    """In words in the notes, and as badges at the title of a page of one run and in the table of several."""
    warn(tmp_path)
    (tmp_path / "lossy" / "config.yaml").write_text("total_kimg: 2\n")  # not of the same configuration and seed as the other
    page = tmp_path / "page.html"
    page.write_text(render_page([record.read(tmp_path / "collapsed")]), encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert '<span class="badge collapsed">collapsed</span>' in text and f"<b>collapsed has collapsed: {SAME}.</b>" in text
    assert f"<li>Collapse, 2 times from 0.128 to 0.256 kimg; the last: {SAME}.</li>" in text
    page.write_text(render_page([record.read(tmp_path / name) for name in ("guarded", "lossy")]), encoding="utf-8")
    _, rows = Page(page).table("run")
    marks = {row[0][0]: row[1][0].split("cut short")[1].strip() for row in rows}
    assert marks == {name: MARKS[name].replace(", ", " ") for name in ("guarded", "lossy")}
    for words in (
        "guarded: Guard warning (saturation), 2 times from 0.016 to 0.032 kimg; the last: loss/d is low since 32.",
        "guarded: Guard warning (worse) at 0.048 kimg: fid 3 is above 2.",
        "lossy: Skipped image, 2 times at 0 kimg; the last: b.png: truncated.",
    ):
        assert words in Page(page).text


def test_what_cannot_be_reported_is_said_in_one_line(gantrain, runs, tmp_path):
    assert "is not a run folder (it has no config.yaml)" in error_of(gantrain("report", tmp_path, check=False))
    assert "report.html" in error_of(gantrain("report", runs[0], "--out", tmp_path, check=False))
    assert "is not an .html file; write for example" in error_of(gantrain("report", runs[0], "--out", tmp_path / "page.png", check=False))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in error_of(gantrain("report", runs[0], "--out", tmp_path / "file" / "page.html", check=False))
    shutil.copytree(runs[0], tmp_path / "again", ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    said = error_of(gantrain("report", runs[0], tmp_path / "again", check=False))
    assert f"has the same configuration and seed 0 as {runs[0]}" in said and "remove one of them" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, value", [("num_samples", 32), ("reference_fingerprint", "0" * 16), ("truncation", 0.5), ("batchnorm", "copy"), ("is_splits", 1)]
)
def test_scores_that_do_not_compare_are_no_one_page(gantrain, runs, tmp_path, key, value):
    other = altered(
        runs[1], tmp_path, lambda lines: [{**line, f"eval/{key}": value} if "eval/num_samples" in line else line for line in lines]
    )
    said = error_of(gantrain("report", runs[0], other, "--out", tmp_path / "page.html", check=False))
    assert (
        "scores are not comparable with" in said and f"(eval/{key} is {value!r} here and" in said and not (tmp_path / "page.html").exists()
    )
