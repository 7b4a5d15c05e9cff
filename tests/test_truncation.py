"""gantrain truncation: a sweep's scores are evaluate's, the best points are the best, the picture shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, error_of, every_third
from PIL import Image

from gantrain.commands.truncation import best_of, draw_curves, f1
from gantrain.palette import COLOURS, LIVE_COLOUR, channels, style_of

ALL = "eval.metrics=[fid,is,prc]"


@pytest.fixture(scope="module")
def run(tmp_path_factory, gantrain) -> Path:
    folder = tmp_path_factory.mktemp("truncation") / "run"
    gantrain(
        "train",
        ROOT / "configs" / "digits.yaml",
        f"run_dir={folder}",
        *TINY,
        "total_kimg=0.032",
        "eval.every_kimg=null",
        "eval.metrics=[prc]",
        "averagers.swa=null",
    )
    return folder


def swept(run: Path, number: str = "") -> dict:
    return json.loads((run / "evaluations" / f"truncation-000000000032{number}.json").read_text())


@pytest.fixture(scope="module")
def sweep(run, gantrain) -> tuple[str, dict]:
    """What a sweep of two averages says, and its file."""
    done = gantrain("truncation", run, "--average", "live,ema", "--sweep", "0.3:1.5:2", "--num", 48, ALL)
    return done.stdout, swept(run)


def test_scores_are_those_of_evaluate(run, sweep, gantrain, tmp_path):
    """Each to the last bit, though one generator and one BatchNorm were used for all of them in turn."""
    said, record = sweep
    assert record["nimg"] == 32 and record["eval/truncation"] == [0.3, 1.5] and record["eval/num_samples"] == 48
    gantrain("evaluate", run, "--average", "live,ema", "--num", 48, "--out", tmp_path / "one.json", "eval.truncation=1.5", ALL)
    one = json.loads((tmp_path / "one.json").read_text())
    assert {name: rows["1.5"] for name, rows in record["scores"].items()} == one["scores"]
    assert all(rows["0.3"] != rows["1.5"] for rows in record["scores"].values())
    same = {key: value for key, value in one.items() if key not in ("scores", "eval/truncation")}
    assert same == {key: record[key] for key in same}
    assert (
        "48 samples per truncation, BatchNorm recalibrate" in said
        and "best of ema: digits_fid" in said
        and "best of live: digits_fid" in said
    )
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("0.3 ", "1.5 "))] == ["0.3", "1.5"] * 2


def test_the_best_of_each_score_is_kept_and_drawn(run, sweep):
    _, record = sweep
    for name, rows in record["scores"].items():
        values = {score: {float(t): row[f"digits_{score}"] for t, row in rows.items()} for score in ("fid", "is", "precision", "recall")}
        best = record["best"][name]
        assert best.keys() == {"digits_fid", "digits_is", "digits_precision", "digits_recall", "f1"}
        assert best["digits_fid"]["value"] == min(values["fid"].values()) == values["fid"][best["digits_fid"]["truncation"]]
        for score in ("is", "precision", "recall"):
            assert best[f"digits_{score}"]["value"] == max(values[score].values()) == values[score][best[f"digits_{score}"]["truncation"]]
    picture = np.array(Image.open(run / "evaluations" / "truncation-000000000032.png").convert("RGB")).astype(int)
    for half in np.split(picture, [picture.shape[1] // 2], axis=1):
        for colour in (LIVE_COLOUR, COLOURS[0]):  # a line an average in both plots: live and ema
            assert (np.abs(half - channels(colour)).sum(axis=2) < 30).sum() > 300


@pytest.mark.slow
def test_two_processes_find_the_same(run, sweep, together):
    done = together(2, "-m", "gantrain", "truncation", run, "--average", "live,ema", "--sweep", "0.3:1.5:2", "--num", 48, ALL)
    again = swept(run, "-2")  # beside the first, not over it
    assert again == sweep[1] and done.stdout.count("best of ema") == 1


def test_best_points_and_f1_by_hand():
    """F1 is the harmonic mean; nan is no best; ties go to the first."""
    rows = {
        "0.5": {"fid": 9.0, "is": 5.0, "precision": 0.9, "recall": 0.1},
        "1": {"fid": 4.0, "is": 4.0, "precision": 0.6, "recall": 0.6},
        "1.5": {"fid": math.nan, "is": math.nan, "precision": 0.5, "recall": 0.6},
    }
    best = best_of(rows, [("is", "fid"), ("recall", "precision")])
    assert {score: (point.truncation, point.value) for score, point in best.items()} == {
        "fid": (1, 4.0), "is": (0.5, 5.0), "precision": (0.5, 0.9), "recall": (1, 0.6), "f1": (1, pytest.approx(0.6)),
    }  # fmt: skip
    assert f1(0.9, 0.1) == pytest.approx(2 / (1 / 0.9 + 1 / 0.1)) and f1(0.0, 0.0) == 0
    assert best_of({"1": {"fid": math.nan, "is": math.nan}}, [("is", "fid")]) == {}


def test_a_picture_of_one_curve_and_of_no_numbers(tmp_path):
    rows = {"0.5": {"fid": math.nan, "is": math.nan}, "1": {"fid": 2.0, "is": 3.0}}
    draw_curves({"ema": rows}, {"ema": best_of(rows, [("is", "fid")])}, [("is", "fid")], style_of(["ema"]), "one", tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size == (930, 780)


@pytest.mark.parametrize(
    "arguments, words",
    every_third(
        [
            (
                ["--sweep", "0:2:4"],
                "--sweep: must be LOW:HIGH:COUNT such as 0.2:2:10, with 0 < LOW < HIGH and a COUNT of at least 2, got '0:2:4'",
            ),
            (["--sweep", "0.5:inf:4"], "got '0.5:inf:4'"),
            (["--sweep", "nan:2:4"], "got 'nan:2:4'"),
            (["--sweep", "1:2"], "got '1:2'"),
            (["--num", "8"], "--num: must be at least 16, got 8"),
            (["--average", "live,emma"], "no average 'emma' at 0.032 kimg; did you mean 'ema'?"),
            (["eval.truncation=1"], "eval.truncation=1: --sweep sets the truncations; remove it"),
            (["eval.metrics=[fid,kid]"], "eval.metrics: a curve needs fid and is, or prc, got fid, kid; add 'eval.metrics=[fid,is,prc]'"),
            (["--kimg", "3"], "has no checkpoint at 3 kimg"),
            (["model.ch=3"], "only eval, data and labels can be overridden here"),
        ]
    ),
)
def test_what_cannot_be_swept_is_one_line(arguments, words, run, gantrain):
    before = sorted(run.rglob("*"))
    assert words in error_of(gantrain("truncation", run, *arguments, check=False))
    assert sorted(run.rglob("*")) == before


def test_a_folder_that_is_no_run(gantrain, tmp_path):
    assert "is not a run folder (it has no config.yaml)" in error_of(gantrain("truncation", tmp_path, check=False))
