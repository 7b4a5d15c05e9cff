"""`gantrain runs`: what is found, in which order, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, error_of
from test_record import by_hand, event, score, train

from gantrain import lock as locks
from gantrain.commands import runs as listing

NOW = 1_800_000_000.0


@pytest.fixture
def folder(tmp_path) -> Path:
    """Runs in every state, at every depth, among what is none."""
    runs = tmp_path / "runs"
    (runs / "studies" / "swap").mkdir(parents=True)
    by_hand(runs / "b", event(0, "start"), score(500, 3.0, swa=2.5), train(1000), score(1000, 2.75), event(1000, "end"))
    by_hand(runs / "a", event(0, "start"), train(40), total_kimg=80)
    by_hand(
        runs / "studies" / "c",
        event(0, "start"),
        {"nimg": 16, "eval/live/digits_is": 7.0, "eval/ema/digits_is": 8.125},
        event(16, "interrupted"),
    )
    by_hand(runs / "studies" / "swap" / "d", event(0, "start"), score(700, 12.5), event(700, "gave_up"), total_kimg=25000)
    (by_hand(runs / "empty") / "metrics.jsonl").write_text("")
    (by_hand(runs / "torn", event(0, "start")) / "config.yaml").write_text("")
    (runs / "b" / "checkpoints").mkdir()
    by_hand(runs / "b" / "checkpoints" / "inside", event(0, "start"))  # in a run no others are looked for
    (runs / "studies" / "swap" / "e").mkdir()
    by_hand(runs / "studies" / "swap" / "e" / "deep", event(0, "start"))
    by_hand(runs / ".hidden", event(0, "start"))
    (runs / "notes").mkdir()
    (runs / "notes" / "config.yaml").write_text("total_kimg: 1\n")  # a configuration alone is no run
    for age, name in ((5, "a"), (200, "b"), (8000, "studies/c"), (90_000, "studies/swap/d"), (0, "empty"), (100, "torn")):
        os.utime(runs / name / "metrics.jsonl", (NOW - age,) * 2)
    return runs


TABLE = """\
run             status       kimg          best score       average  at kimg  last change
a               cut short    0.04 of 80    -                -              -  5 s ago
b               done            1 of 1     fid       2.5000 swa          0.5  3 min ago
empty           empty           0 of 1     -                -              -  0 s ago
studies/c       interrupted 0.016 of 1     digits_is  8.1250 ema        0.016  2 h ago
studies/swap/d  gave up       0.7 of 25000 fid 12.5000      ema          0.7  2027-01-14
"""


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_row_a_run(folder):
    rows = listing.list_runs([str(folder)])
    text = listing.listing(rows, NOW)
    *whole, torn = text.splitlines()
    assert (
        torn == f"torn            damaged      {folder / 'torn' / 'config.yaml'}: is damaged (it is empty); restore it from a"
        f" copy, or write it again from what the run was started with: gantrain config CONFIG OVERRIDES > {folder / 'torn' / 'config.yaml'}"
    )
    date = time.strftime("%Y-%m-%d", time.localtime(NOW - 90_000))
    assert cells("\n".join(whole)) == cells(TABLE.replace("2027-01-14", date))
    assert [row.run for row in rows] == ["a", "b", "empty", "studies/c", "studies/swap/d", "torn"]


def test_columns_are_aligned(folder):
    """What stands right of a number is where it is in every other row."""
    lines = listing.listing(listing.list_runs([str(folder)]), NOW).splitlines()[:-1]
    head, rows = lines[0], lines[1:]
    for name in ("status", "kimg", "best score", "average", "last change"):
        at = head.index(name)
        assert all(row[at - 2 : at] == "  " and (row[at] != " " or name == "kimg") for row in rows), name
    assert (
        len({row.index(" of ") for row in rows}) == 1
        and len({row.index(".", row.index(" of ") + 10) for row in rows if "fid" in row or "digits_is" in row}) == 1
    )
    end = head.index("at kimg") + len("at kimg")
    assert all(row[end - 1] != " " and row[end : end + 2] == "  " for row in rows) and not any(line != line.rstrip() for line in lines)


def test_a_run_itself_and_several_folders(folder):
    assert [row.run for row in listing.list_runs([str(folder / "b")])] == [str(folder / "b")]
    both = listing.list_runs([str(folder / "studies"), str(folder / "a")])
    assert [row.run for row in both] == [str(folder / name) for name in ("studies/c", "studies/swap/d", "studies/swap/e/deep", "a")]
    assert [row.run for row in listing.list_runs([str(folder / "studies")])] == [
        "c",
        "swap/d",
        "swap/e/deep",
    ]  # three folders down from there


@pytest.mark.parametrize(
    "by, order, wanted",
    [
        ("fid", "score", ["b", "studies/swap/d"]),
        ("digits_is", "score", ["studies/c"]),
        (None, "kimg", ["b", "studies/swap/d", "a", "studies/c"]),
        (None, "time", ["empty", "a", "torn", "b", "studies/c", "studies/swap/d"]),
    ],
)
def test_orders(folder, by, order, wanted):
    rows = listing.list_runs([str(folder)], by, order)
    assert [row.run for row in rows][: len(wanted)] == wanted and len(rows) == 6
    if by:
        assert all(row.score is None for row in rows[len(wanted) :]) and rows[0].metric == by


def test_higher_is_better_where_it_is(tmp_path):
    for name, value in (("x", 7.0), ("y", 9.0), ("z", 8.0)):
        by_hand(tmp_path / name, event(0, "start"), {"nimg": 16, "eval/ema/is": value})
    assert [row.run for row in listing.list_runs([str(tmp_path)], order="score")] == ["y", "z", "x"]


def test_one_trains_now(folder, gantrain):
    held = locks.acquire(folder / "a")
    assert [row.status for row in listing.list_runs([str(folder / "a")])] == ["running"]
    held.close()


def test_for_scripts(folder, gantrain):
    objects = [json.loads(line) for line in gantrain("runs", folder, "--json").stdout.splitlines()]
    assert [Path(one["run"]).name for one in objects] == ["a", "b", "empty", "c", "d", "torn"] and all(
        Path(one["run"]).is_dir() for one in objects
    )
    assert objects[1] == {
        "run": str(folder / "b"), "status": "done", "kimg": 1.0, "total_kimg": 1.0,
        "metric": "fid", "score": 2.5, "average": "swa", "at_kimg": 0.5, "changed": "2027-01-15T07:56:40Z",
    }  # fmt: skip
    assert (
        objects[0]["score"] is objects[0]["metric"] is objects[0]["at_kimg"] is None
        and "error" in objects[5]
        and objects[5]["status"] == "damaged"
    )


@pytest.mark.parametrize(
    "ago, text",
    [(-60, "0 s ago"), (0, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (3599, "59 min ago"), (3600, "1 h ago"), (86399, "23 h ago")],
)
def test_when(ago, text):
    assert listing.format_time(NOW - ago, NOW) == text and listing.format_time(None, NOW) == "-"


@pytest.mark.parametrize("width", [16, 17, 18, 40])
def test_a_long_name_loses_its_middle(width):
    name = "studies/batch/0123456789/lr_0.0004_seed_3"
    short = listing.shorten_middle(name, width)
    assert len(short) == min(width, len(name)) and name.startswith(short.split("...")[0]) and name.endswith(short.split("...")[-1])
    assert listing.shorten_middle(name, None) == name and listing.shorten_middle("short", width) == "short"


def test_names_are_shortened_on_a_terminal_only(tmp_path):
    by_hand(tmp_path / ("n" * 60), event(0, "start"), score(16, 1.0))
    rows = listing.list_runs([str(tmp_path)])
    assert max(map(len, listing.listing(rows, NOW, width=100).splitlines())) <= 100 and "n" * 60 in listing.listing(rows, NOW)
    assert "n...n" in listing.listing(rows, NOW, width=20)


SAME = "live: the output is constant"


def warn(folder: Path) -> None:
    """Runs that have warned about something, each in a way of its own."""
    collapse = [event(nimg, "collapse", words=SAME, averages={"live": SAME}) for nimg in (128, 256)]
    scores = [score(nimg, 88.0) for nimg in (128, 256)]
    by_hand(folder / "collapsed", event(0, "start"), scores[0], collapse[0], scores[1], collapse[1], event(256, "end", collapsed=SAME))
    by_hand(folder / "recovered", event(0, "start"), scores[0], collapse[0], scores[1], event(256, "end"))
    by_hand(folder / "left", event(0, "start"), scores[0], collapse[0], event(256, "rollback", kind="worse", words="fid is high", to=64))
    saturated = [event(nimg, "warning", kind="saturation", words=f"loss/d is low since {nimg}") for nimg in (16, 32)]
    by_hand(folder / "guarded", event(0, "start"), *saturated, event(48, "warning", kind="worse", words="fid 3 is above 2"), scores[0])
    skipped = [event(0, "skipped", image=f"{name}.png: truncated") for name in "ab"]
    by_hand(folder / "lossy", event(0, "start"), *skipped, event(16, "not_written", words="no space"), event(16, "not_written"))
    by_hand(folder / "gave_up", event(0, "start"), event(16, "gave_up", kind="nonfinite", words="loss/d is not finite"))
    by_hand(folder / "well", event(0, "start"), scores[0], event(128, "end"))


MARKS = {
    "collapsed": "collapsed",
    "gave_up": "-",  # its status says so
    "guarded": "guard: saturation, guard: worse",
    "left": "1 rollback",  # the weights that had collapsed were abandoned
    "lossy": "2 failed writes, 2 skipped images",
    "recovered": "collapsed earlier",
    "well": "-",
}


def test_what_a_run_warns_about_is_marked(tmp_path):
    warn(tmp_path)
    rows = listing.list_runs([str(tmp_path)])
    head, *lines = listing.listing(rows, NOW).splitlines()
    assert {line.split()[0]: line[head.index("warnings") :] for line in lines} == MARKS
    found = {row.run: json.loads(text) for row, text in zip(rows, listing.as_json_lines(rows).splitlines())}
    assert {name for name, one in found.items() if "collapsed" in one} == {"collapsed"} and found["collapsed"]["collapsed"] == SAME
    assert found["collapsed"]["warnings"] == [
        {"event": "collapse", "kind": None, "times": 2, "first_kimg": 0.128, "last_kimg": 0.256, "words": SAME}
    ]
    assert [(one["kind"], one["times"], one["words"]) for one in found["guarded"]["warnings"]] == [
        ("saturation", 2, "loss/d is low since 32"), ("worse", 1, "fid 3 is above 2"),
    ]  # fmt: skip
    assert [one["event"] for one in found["gave_up"]["warnings"]] == ["gave_up"] and "warnings" not in found["well"]


def test_mistakes_are_one_line(folder, tmp_path, gantrain):
    (tmp_path / "nothing").mkdir()
    for arguments, words in (
        (
            [tmp_path / "nothing"],
            "contains no runs (config.yaml next to metrics.jsonl), down to 3 levels; pass the folder that contains the runs",
        ),
        ([tmp_path / "missing"], "missing: does not exist; pass the folder that contains the runs"),
        ([folder, "--by", "digits_si"], "--by: no run has a score 'digits_si'; did you mean 'digits_is'?"),
        ([folder, "--sort", "score"], "the runs are scored by digits_is, fid, which are not comparable; choose one with --by"),
        ([folder, "--sort", "name"], "argument --sort: invalid choice: 'name'"),
    ):
        assert words in error_of(gantrain("runs", *arguments, check=False))


def test_the_list_does_not_wait_for_torch(folder):
    code = "import sys; from gantrain import cli; status = cli.run(['runs', sys.argv[1]]); print(status, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
