"""Records of 10^5 lines and listings of 500 runs: linear in time, flat in memory, and nothing that stands out is lost in a chart."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from conftest import ROOT, error_of
from test_record import by_hand, event, score, train

from gantrain.commands import runs as listing, watch as watching
from gantrain.commands.watch import Follower, Past
from gantrain.plain_yaml import load_plain
from gantrain.reporting import page
from gantrain.reporting.comparison import group_runs
from gantrain.reporting.envelope import BINS, MOST_POINTS, bin_size, envelope
from gantrain.reporting.event_words import Teller
from gantrain.reporting.page_figures import MOST_MARKS, describe_bins, describe_marks, stack
from gantrain.run_folder import condensed, record
from gantrain.run_folder.condensed import Condenser, read_condensed
from gantrain.run_folder.record_lines import goes_back, has_scores, split_abandoned
from gantrain.strict_yaml import StrictLoader


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """`tools/long_records.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import long_records

    return long_records


@pytest.fixture(scope="module")
def long(tool, tmp_path_factory) -> Path:
    """A run with more lines of losses than a chart draws, six rollbacks, and one loss far above all others."""
    return tool.make_run(tmp_path_factory.mktemp("long") / "run", MOST_POINTS + 700, rollbacks=6)


# ---- envelopes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [MOST_POINTS + 1, 12_345])
def test_an_envelope_has_the_means_and_every_extreme_at_its_place(count):
    dice = np.random.default_rng(count)
    x, y = np.sort(dice.uniform(0, 100, count)), dice.normal(size=count)
    y[[count // 2, count // 5]] = 1e4, -1e4
    found = envelope(x, y)
    n = bin_size(count)
    assert n == found.per_bin == -(-count // BINS) and len(found.x) <= BINS + 2
    bins = [(x[i : i + n], y[i : i + n]) for i in range(0, count, n)]
    np.testing.assert_allclose(found.mean, [y[0], *(b.mean() for _, b in bins), y[-1]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.x, [x[0], *(a.mean() for a, _ in bins), x[-1]])
    assert found.low[1:-1].tolist() == [b.min() for _, b in bins] and found.high[1:-1].tolist() == [b.max() for _, b in bins]
    band = set(zip(*(one.tolist() for one in found.band)))
    assert {(x[count // 2], 1e4), (x[count // 5], -1e4)} <= band <= set(zip(x.tolist(), y.tolist()))
    assert found.not_finite == 0 and bin_size(MOST_POINTS) == 1


def test_an_envelope_leaves_out_what_is_not_finite():
    y = np.arange(4000.0)
    y[:8], y[100], y[-1] = math.nan, math.inf, 1e308
    found = envelope(np.arange(4000.0), y)
    assert found.not_finite == 9 and np.isfinite(found.band[1]).all() and found.band[1].max() == 1e308
    assert np.isnan(found.mean[[0, 1, 2]]).all() and np.isfinite(found.mean[3:]).all() and found.mean[-1] == 1e308
    assert found.mean[26] == np.mean([101, 102, 103])  # the bin of the infinity, without it


@pytest.mark.slow
def test_the_page_of_a_long_record_hides_no_peak_and_says_how_it_is_drawn(long):
    found = read_condensed(long)
    (spike,) = [line for line in record.read(long).training if line["loss/d"] == 1000.0]
    traces = stack(group_runs([found]), found.metrics).data
    (band,) = [one for one in traces if one.meta["kind"] == "range" and 1000.0 in one.y]
    assert band.x[band.y.index(1000.0)] == spike["nimg"] / 1000 and band.line.width == 1
    (line,) = [one for one in traces if one.meta["kind"] == "loss/d"]
    losses = [(one["nimg"] / 1000, one["loss/d"]) for one in record.read(long).training]
    assert ((line.x[0], line.y[0]), (line.x[-1], line.y[-1])) == (losses[0], losses[-1]) and len(line.x) < len(losses) / 2
    assert line.customdata[1][0] == min(value for _, value in losses[:3])
    (words,) = describe_bins(found)
    assert words.startswith("loss, learning rate: each point is the mean of 3 lines of the record, and the band around the line has")
    assert words in page.chart_lacks(found)


@pytest.mark.slow
def test_a_record_up_to_the_bound_is_drawn_line_by_line(tool, tmp_path, monkeypatch):
    """The page of a condensed record is that of the whole one, to the letter."""
    run = tool.make_run(tmp_path / "run", 60, rollbacks=2)
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    monkeypatch.setattr(page, "utc_now", lambda: "now")
    whole, brief = record.read(run), read_condensed(run)
    assert page.render_page([whole]) == page.render_page([brief]) and not describe_bins(brief)
    for trace in stack(group_runs([brief]), brief.metrics).data:
        key = trace.meta["kind"]
        if key.startswith(("loss/", "lr/", "noise_scale/")):
            assert list(zip(trace.x, trace.y)) == [(line["nimg"] / 1000, line[key]) for line in whole.training if key in line]
    assert brief.num_abandoned == len(whole.abandoned) > 0 and brief.nimg == whole.nimg and brief.status == whole.status


def test_thousands_of_marks_are_thinned_and_said(tmp_path):
    found = record.Record(
        tmp_path, record.Outline(1.0), [event(i, "growth", **{"from": 1, "to": 2, "rounds": 1, "reason": "x"}) for i in range(2000)]
    )
    assert describe_marks(found) == [f"Of 2,000 growths, {MOST_MARKS} are marked, evenly spaced, with the first and the last."]


# ---- reading ---------------------------------------------------------------------------------------------------------


def split_by_definition(lines: list[dict]) -> list[dict]:
    """What stays, by a look at all lines at every rollback."""
    kept: list[dict] = []
    for line in lines:
        if goes_back(line):
            to = line["to"]
            saved = max((i for i, one in enumerate(kept) if one["nimg"] == to and one.get("event") == "checkpoint"), default=len(kept))
            kept = [
                one for i, one in enumerate(kept)
                if one.get("event") in ("start", "resume", "rollback") or one["nimg"] < to
                or (one["nimg"] == to and (i <= saved or has_scores(one)))
            ]  # fmt: skip
        kept.append(line)
    return kept


def test_paths_of_rollbacks_are_those_of_the_definition():
    for seed in range(400):
        dice = random.Random(seed)
        kinds: list = [
            train,
            lambda n: score(n, 1.0),
            *(lambda n, name=name: event(n, name) for name in ("checkpoint", "checkpoint", "growth", "start")),
        ]
        kinds += [lambda n, dice=dice: event(n, "rollback", to=dice.randrange(5))]
        lines = [dice.choice(kinds)(dice.randrange(5)) | {"i": i} for i in range(dice.randrange(1, 25))]
        kept, left = split_abandoned(lines)
        assert kept == split_by_definition(lines), seed
        assert sorted(line["i"] for line in kept + left) == list(range(len(lines)))


def test_a_growing_record_is_read_once(tmp_path, monkeypatch):
    """By the view in W&B, at every evaluation; half a line waits for its other half, and a rollback reaches back."""
    run, read, parse = by_hand(tmp_path / "run", event(0, "start"), train(16)), [], condensed.parse
    monkeypatch.setattr(condensed, "parse", lambda data: (read.append(data), parse(data))[1])
    condenser = Condenser(run)
    lines = [event(16, "checkpoint"), train(32), event(48, "rollback", to=16), train(64, **{"loss/g": 2.0})]
    for line in lines:
        condenser.read_on()
        text = json.dumps(line)
        for part in (text[:9], text[9:], "\n"):
            with open(run / "metrics.jsonl", "a") as file:
                file.write(part)
            condenser.read_on()
    with open(run / "metrics.jsonl", "a") as file:
        file.write("garbage\n")
    condenser.read_on()
    found = condenser.record(record.Outline(1.0))
    assert found.numbers.nimg.tolist() == [16, 64] and found.num_abandoned == 1 and found.unreadable == 1 and found.nimg == 64
    assert found.numbers.last() == {"nimg": 64, "loss/d": 1.0, "loss/g": 2.0}
    assert len(read) <= 3 * len(lines) + 3 + len(lines)  # not all of the file each time
    (run / "metrics.jsonl").unlink()
    condenser.read_on()


def test_watch_holds_the_last_lines_only():
    past = Past(Teller(1.0), 3)
    for n in range(1, 2001):
        past.add(json.dumps(train(n, **{"batch/size": 8})).encode() + b"\n")
        if n % 500 == 0:
            past.add(json.dumps(event(n, "party")).encode() + b"\n")
        assert len(past._waiting) <= 12
    for n in range(10_000):
        past.add(json.dumps(event(n, "checkpoint")).encode() + b"\n")
        assert len(past._waiting) <= watching.MOST_WAITING + 1
    assert past.first_batch == 8 and len(past.end()) == 3 and past.lines == 12_004
    assert [text.split()[0] for text in past.texts] == ["2.0", "2.0", "party"]


def test_a_follower_that_has_forgotten_the_cut_goes_on_from_the_last_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "REMEMBERED", 5)
    path, follower = tmp_path / "metrics.jsonl", Follower(tmp_path / "metrics.jsonl")
    lines = [b"%d\n" % i for i in range(100)]
    path.write_bytes(b"".join(lines))
    assert list(follower.new()) == lines and len(follower._sums) < 10
    path.write_bytes(b"".join([*lines[:97], b"new\n"]))  # within what is remembered
    assert list(follower.new()) == [b"new\n"]
    again = [b'{"nimg": 8, "event": "resume"}\n', b"a\n", b"b\n"]
    path.write_bytes(b"".join(lines[:20] + again))
    assert list(follower.new()) == again and list(follower.new()) == []


# ---- configurations --------------------------------------------------------------------------------------------------

BOMB = "a: &a {k: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in itertools.pairwise("abcdefghijklmnopqrstuvwxyz"))
LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijklmnopqrstuvwxyz"))
TEXTS = [
    "", "a", "[]", "a: [1, 0x1f, 1:30, 1e3, 1.5e+3, .inf, ~, yes, 2026-11-30]",
    "a: &x {k: 1}\nb: {<<: *x, j: 2}\nc: {<<: [*x, {k: 3, l: 4}], l: 5}",
    "'<<': 3", "? a\n: b", "a: !!str 1", "a: !!int '3'", "- 1\n- {a: b}",
    "a: [0o17, 010, -.INF, .nan, 1_000, 0xfF, +.5, no, True, ! 5, !!float 5, !!null '']",
    "a: &x k\n*x : 2\nc: {*x : <<}",
]  # fmt: skip


@pytest.mark.parametrize("text", [*(path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))[:2]), *TEXTS])
def test_plain_values_are_those_of_configurations(text):
    assert repr(load_plain(text.encode())) == repr(yaml.load(text, StrictLoader))


@pytest.mark.parametrize(
    "text",
    [
        "a: !x 3",
        "--- 1\n--- 2",
        "a: *y",
        "? [1]\n: 2",
        "{<<: 3}",
        "[" * 10**4,
        "[" * 200 + "]" * 200,
        "\0",
        "a: [",
        "!x {}",
        "{a: 1, a: 2}",
        "{1: 2}",
        "a: &a [*a]",
        "a: &x 1\nb: &x 2",
        "{<<: {a: 1}, <<: {b: 1}}",
        "!!set {a}",
        "!!int x",
        "a: " + "9" * 500,
        "k" * 300 + ": 1",
        BOMB,
        LAUGHS,
    ],
)
def test_what_is_not_plain_is_refused(text):
    with pytest.raises((yaml.YAMLError, ValueError)):
        load_plain(text.encode())
    with pytest.raises((yaml.YAMLError, ValueError, RecursionError)):
        yaml.load(text, StrictLoader)


# ---- a listing with damaged runs -------------------------------------------------------------------------------------

DAMAGED = {
    "total_kimg: .inf": "total_kimg must be a number above 0, got inf", "total_kimg: .nan": "got nan", "total_kimg: -1": "got -1",
    "total_kimg: 1e400": "got inf", "total_kimg: long": "got 'long'", "total_kimg: [1]": "got a section or a list",
    "total_kimg: {a: 1}": "got a section or a list", "total_kimg:": "got null", "total_kimg: true": "got True",
    f"total_kimg: 1{'0' * 4400}": "no total_kimg",
    f"total_kimg: 1{'0' * 390}": "got a number of more than 30 digits", "seed: 1": "it has no total_kimg", "a: [": "it has no total_kimg",
    "": "is damaged (it is empty)", f"{LAUGHS}total_kimg: *z": "it has no total_kimg",
    f"{BOMB}total_kimg: 7": "it has no total_kimg", "\xff\0": "is damaged (parts of it are zeros)",
    "FIFO": "it is a named pipe, not a file", "LINK": "No such file", "FOLDER": "Is a directory", "ZERO": "it is a device, not a file",
}  # fmt: skip


def spoil(path: Path, how: str) -> None:
    """Replace a file by what `DAMAGED` names, or by a text."""
    path.unlink()
    special = {
        "FIFO": os.mkfifo,
        "FOLDER": os.mkdir,
        "LINK": lambda path: path.symlink_to("nowhere"),
        "ZERO": lambda path: path.symlink_to("/dev/zero"),
    }
    special.get(how, lambda path: path.write_text(how, encoding="latin-1"))(path)


def test_one_damaged_run_does_not_take_the_listing_down(tmp_path):
    for i, how in enumerate(DAMAGED):
        run = by_hand(tmp_path / f"bad_{i:02d}", event(0, "start"), score(16, 1.0))
        spoil(run / "config.yaml", how)
    by_hand(tmp_path / "good", event(0, "start"), score(16, 1.5))
    bomb = by_hand(tmp_path / "long", event(0, "start"), "garbage", "[1]")
    (bomb / "config.yaml").write_text("a: &a {k: 1}\nb: {<<: [*a, *a]}\ntotal_kimg: 7")
    for name in ("metrics.jsonl", ".lock"):
        (by_hand(tmp_path / f"pipe{name}", event(0, "start")) / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / f"pipe{name}" / name)
    began = time.monotonic()
    rows = {row.run: row for row in listing.list_runs([str(tmp_path)])}
    assert time.monotonic() - began < 10 and len(rows) == len(DAMAGED) + 4
    for i, (how, words) in enumerate(DAMAGED.items()):
        row = rows[f"bad_{i:02d}"]
        assert row.status == "damaged" and words in row.error and str(tmp_path / row.run / "config.yaml") in row.error, (how, row.error)
        assert len(row.error) < 300 + len(str(tmp_path))
    assert rows["good"].score == 1.5 and rows["long"].total_kimg == 7 and rows["long"].unreadable == 2
    assert rows["pipemetrics.jsonl"].status == "damaged" and "named pipe" in rows["pipemetrics.jsonl"].error
    assert rows["pipe.lock"].status == "cut short"
    text = listing.listing(list(rows.values()))
    assert "2 unreadable lines" in text and len(
        [json.loads(line) for line in listing.as_json_lines(list(rows.values())).splitlines()]
    ) == len(rows)


def test_folders_that_may_not_be_listed_are_said_once(tmp_path, monkeypatch):
    by_hand(tmp_path / "good", event(0, "start"))
    for i in range(5):
        (tmp_path / f"closed_{i}").mkdir()
    scandir, said = os.scandir, []

    def refuse(path):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [row.run for row in listing.list_runs([str(tmp_path)], say=said.append)] == ["good"]
    (words,) = said
    assert words.startswith(f"5 folders could not be listed; runs in there are missing here: {tmp_path / 'closed_0'} (Permission denied), ")
    assert words.endswith(" and 2 more")


def test_odd_times_of_files_do_not_end_a_listing(tmp_path):
    run = by_hand(tmp_path / "run", event(0, "start"))
    row = listing.list_runs([str(run)])[0]
    for moment in (-1e18, 1e18):
        odd = listing.Row(**{**vars(row), "changed": moment})
        listing.listing([odd], now=0.0), listing.as_json_lines([odd])


@pytest.mark.slow
def test_one_broken_run_of_several_is_named(tool, tmp_path, gantrain):
    """And there is no page: a comparison that lacks a run without a word would mislead."""
    text = tool.config_text(0)
    good = [tool.make_run(tmp_path / f"run_{i}", 5, config=text.replace("seed: 0", f"seed: {i}", 1)) for i in (0, 1)]
    bad = tool.make_run(tmp_path / "bad", 5, config=text)
    (bad / "config.yaml").write_text("total_kimg: .inf\n")
    words = error_of(gantrain("report", *good, bad, "--out", tmp_path / "all.html", check=False))
    assert f"{bad / 'config.yaml'}" in words and "total_kimg" in words and not (tmp_path / "all.html").exists()
    with open(good[0] / "metrics.jsonl", "a") as file:
        file.write('{"nimg": true}\n')
    said = gantrain("report", *good, "--out", tmp_path / "all.html").stdout.splitlines()
    assert said[1:] == [f"{good[0]}: 1 line of metrics.jsonl cannot be read and is left out"]


@pytest.mark.slow
def test_pictures_and_results_that_are_none_do_not_end_a_report(tool, tmp_path, monkeypatch):
    run = tool.make_run(tmp_path / "run", 5)
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    for folder in ("samples", "orbit", "evaluations"):
        (run / folder).mkdir()
        for name, make in {
            "000000000016.png": os.mkfifo, "000000000032.png": lambda path: path.symlink_to("nowhere"),
            "000000000048.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n garbage"), "000000000064.png": os.mkdir,
            "²³.png": Path.touch,
        }.items():  # fmt: skip
            make(run / folder / name)
    odd = ["[1]", "{}", '{"nimg": 1e400}', f'{{"nimg": 1{"0" * 400}, "scores": {{"ema": {{"fid": 1}}}}}}', "[" * 10**5]
    odd += [
        f'{{"nimg": 16, "scores": {{"ema": {{"fid": {value}}}}}, "eval/notes": {value}}}'
        for value in ("null", "[1]", '"x"', "{}", f"1{'0' * 400}")
    ]
    for i, text in enumerate(odd):
        (run / "evaluations" / f"{i:012d}.json").write_text(text)
    os.mkfifo(run / "evaluations" / "000000000099.json")
    assert 'id="figure"' in page.render_page([read_condensed(run)])


# ---- how long it takes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_record_of_100000_lines_takes_seconds_and_no_memory(tool, tmp_path):
    """CPU seconds, since other work runs beside the tests; the memory beyond that of a record of 1,000 lines."""
    for name, count in (("short", 1000), ("long", 100_000)):
        tool.make_run(tmp_path / name, count, rollbacks=count // 100)
    for command, seconds in (("report", 15), ("watch", 4)):
        used = {name: tool.measure([command, str(tmp_path / name)], ROOT, 1) for name in ("short", "long")}
        assert used["long"][1] < seconds and used["long"][2] < used["short"][2] + 100, (command, used)


@pytest.mark.slow
def test_500_runs_are_listed_in_seconds(tool, tmp_path):
    assert tool.measure(["runs", str(tool.make_runs(tmp_path / "many", 500))], ROOT, 2)[1] < 2.5


def test_the_tool_prints_a_table(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "measure", lambda command, code, repeat: (1.0, 0.5, 20.0))
    monkeypatch.setattr("sys.argv", ["long_records.py", "--lines", "3", "--runs", "2", "--folder", str(tmp_path)])
    tool.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("record of 3 training lines") and [line.split()[1] for line in said[3:]] == ["report", "watch", "runs"]
    with contextlib.suppress(FileNotFoundError):
        assert len(list((tmp_path / "many").rglob("config.yaml"))) == 2
