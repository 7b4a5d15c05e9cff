"""What a run says of itself: metrics.jsonl, the console, and what becomes of them on a full disk."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT, lines_of

from gantrain.metrics import HIGHER_IS_BETTER
from gantrain.reporting.console import Progress, console_line, duration, format_fixed
from gantrain.reporting.tracker import Tracker
from gantrain.run_folder.json_values import as_json
from gantrain.score_names import better_when_higher

# ---- metrics.jsonl ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tracker(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.open()
    yield tracker
    tracker.close()


def strict(text: str) -> list[dict]:
    """Lines of JSON as the standard has it: without NaN and Infinity."""

    def refuse(word: str):
        raise ValueError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_one_flushed_line_of_strict_json_a_call(tracker):
    """On disk at once, before anything is closed: a kill loses nothing. What is no number in JSON is a word."""
    tracker.log(1500, {"loss/d": 0.5, "loss/g": math.nan, "batch/size": 16, "eval/reference": "digits"})
    assert tracker.path.read_text().endswith("}\n")
    assert strict(tracker.path.read_text()) == [
        {"nimg": 1500, "loss/d": 0.5, "loss/g": "nan", "batch/size": 16, "eval/reference": "digits"}
    ]
    tracker.event(1600, "growth", sizes=(16, math.inf), nested={"low": -math.inf, "none": None})
    assert strict(tracker.path.read_text())[1:] == [
        {"nimg": 1600, "event": "growth", "sizes": [16, "inf"], "nested": {"low": "-inf", "none": None}}
    ]


def test_names_of_any_script_are_kept(tracker):
    tracker.event(0, "start", folder="läufe/数字")
    assert strict(tracker.path.read_text(encoding="utf-8"))[0]["folder"] == "läufe/数字"


def test_as_json_touches_only_what_is_not_finite():
    value = {"a": [1, 2.5, True, None, "nan"], "b": (math.nan, {"c": math.inf})}
    assert as_json(value) == {"a": [1, 2.5, True, None, "nan"], "b": ["nan", {"c": "inf"}]}


def test_position_is_where_a_resumed_run_goes_on(tracker, tmp_path):
    assert tracker.position() == 0
    tracker.event(0, "start", who="é")
    assert tracker.position() == tracker.path.stat().st_size > 0
    tracker.close()
    assert tracker.position() == 0
    again = Tracker(tmp_path)
    again.open(tracker.path.stat().st_size)
    assert again.position() == tracker.path.stat().st_size
    again.close()


@pytest.mark.parametrize("cut", [0, 9], ids=["whole", "cut in the middle of a line"])
def test_what_stands_behind_the_checkpoint_is_moved_away(cut, tmp_path):
    """The lines that will be written again go to metrics.superseded.jsonl, with those of earlier resumes; none is lost, none is double."""
    first = Tracker(tmp_path)
    first.open()
    first.log(100, {"x": 1})
    kept = first.position()
    first.log(200, {"x": 2})
    first.log(300, {"x": 3})
    first.close()
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[: len(whole) - cut])  # as a kill while writing leaves it
    second = Tracker(tmp_path)
    second.open(kept)
    second.log(200, {"x": 22})
    second.close()
    assert [line["x"] for line in lines_of(tmp_path)] == [1, 22]
    superseded = tmp_path / "metrics.superseded.jsonl"
    tail = whole[kept : len(whole) - cut].decode()
    assert superseded.read_text() == (tail if tail.endswith("\n") else tail + "\n")
    third = Tracker(tmp_path)
    third.open(kept)
    third.log(200, {"x": 222})
    third.close()
    assert [line["x"] for line in lines_of(tmp_path)] == [1, 222]
    rows = superseded.read_text().splitlines()
    assert [json.loads(row)["x"] for row in (rows[0], rows[-1])] == [2, 22] and len(rows) == 3


def test_a_resume_at_the_very_end_moves_nothing(tracker, tmp_path):
    tracker.log(100, {"x": 1})
    tracker.close()
    before = tracker.path.read_bytes()
    tracker.open(len(before))
    tracker.close()
    assert tracker.path.read_bytes() == before and not (tmp_path / "metrics.superseded.jsonl").exists()


def test_a_record_that_is_shorter_than_the_checkpoint_says(tmp_path):
    """After a power cut the checkpoint, which is synced, may know more than the record: what is there stays, and every line is whole."""
    first = Tracker(tmp_path)
    first.open()
    first.log(100, {"x": 1})
    first.log(200, {"x": 2})
    position = first.position()
    first.close()
    first.path.write_bytes(first.path.read_bytes()[:-5])
    second = Tracker(tmp_path)
    second.open(position)
    second.log(300, {"x": 3})
    second.close()
    assert [line["x"] for line in strict(second.path.read_text())] == [1, 3]


def test_a_process_that_is_not_the_main_one_writes_and_says_nothing(tmp_path, capsys):
    silent = Tracker(tmp_path, enabled=False)
    silent.open(10)
    silent.say("hello")
    silent.log(0, {"x": 1})
    silent.event(0, "start")
    silent.image(0, "samples", tmp_path / "none.png", "none")
    silent.summary({"x": 1})
    silent.close()
    assert silent.position() == 0 and list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


# ---- small things ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HIGHER_IS_BETTER)
def test_better_when_higher_knows_every_metric_by_the_end_of_its_name(name):
    """Under any average and any extractor's prefix, and never the spread."""
    for key in (name, f"eval/live/{name}", f"eval/my_ema/digits_{name}", f"eval/ema/inception192_{name}"):
        assert better_when_higher(key) is HIGHER_IS_BETTER[name]
    assert better_when_higher(f"eval/ema/{name}_std") is None


@pytest.mark.parametrize(
    "key", ["eval/num_samples", "eval/batchnorm", "eval/fid/x", "loss/d", "", "eval/ema/this", "eval/ema/fidelity", "analysis"]
)
def test_better_when_higher_is_silent_on_what_is_no_score(key):
    assert better_when_higher(key) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (42, "42s"), (59.9, "59s"), (60, "1m00s"), (185, "3m05s"), (3599, "59m59s")),
        *((3600, "1h00m"), (7620, "2h07m"), (86399, "23h59m"), (86400, "1d00h"), (356400, "4d03h")),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_progress_line_says_where_and_how_fast(monkeypatch):
    """From 100 to 300 of 1,000 images in four seconds, the last 100 of them in one."""
    now = [0.0]
    monkeypatch.setattr("gantrain.reporting.console.time.monotonic", lambda: now[0])
    progress = Progress(1000, 100)
    now[0] = 3.0
    assert progress.line(200, {"batch/size": 16})[1]["throughput/img_per_s"] == pytest.approx(100 / 3)
    now[0] = 4.0
    text, times = progress.line(300, {"loss/d": 1.25, "loss/g": -0.5, "logits/real": 2.0, "logits/fake": -3.0, "batch/size": 16})
    assert times == pytest.approx({"throughput/img_per_s": 100, "throughput/elapsed_s": 4, "throughput/left_s": 14})
    for words in (
        "0.3 kimg",
        " 30%",
        "4s",
        "    14s to go",
        "100 img/s",
        "D  1.250",
        "G -0.500",
        "D(real)   2.00",
        "D(fake)  -3.00",
        "batch 16",
    ):
        assert words in text
    assert "\n" not in text


NUMBERS = (0.0, 0.0004, -0.5, 1.25, -99.9996, 123.456, -123.456, 12345.6, -1234567.0, 3.4e38, -3.4e38, math.nan, math.inf, -math.inf)


def test_columns_stand_where_they_stand_through_a_whole_run():
    """Whatever the numbers become; the noise, which is measured from some time on, is the last column."""
    times = ((0, 0, 1), (59, 3599, 12345), (356400, 86400 * 99, 0.5), (86400 * 120, 0, 99999))
    places = set()
    for i, number in enumerate(NUMBERS):
        elapsed, left, rate = times[i % len(times)]
        values = dict.fromkeys(("loss/d", "loss/g", "logits/real", "logits/fake"), number)
        values |= {"batch/size": 8 * 4**i if i < 7 else 2048, "memory/gib": 0.05 * 3**i if i < 8 else 78.2}
        values |= {"throughput/img_per_s": rate, "throughput/elapsed_s": elapsed, "throughput/left_s": left}
        for noise in ({}, {"D": 5.2, "G": None}, {"D": 123456.0, "G": 12345678.0}):
            of = {
                f"noise_scale/{p}/{key}": v
                for p, b in noise.items()
                for key, v in (("undecidable", int(b is None)), ("b_simple", b))
                if v is not None
            }
            text = console_line((80, 999_999, 25_000_000)[i % 3], 25_000_000, values | of)
            places |= {tuple(j for j, c in enumerate(text) if c == "|")[:6]}
            assert text.count("|") == (7 if noise else 6) and text == text.rstrip() and "\n" not in text
            if noise.get("D") and number:
                unbounded = {"noise_scale/D/unbounded": 1, "noise_scale/D/b_simple_low": 84.3}
                assert " noise D >84 " in console_line(80, 100, {**values, **of, **unbounded})
            if noise:
                assert text.rpartition("| noise")[0].rstrip().endswith("GiB")
    assert len(places) == 1
    assert console_line(5, 10, {}).count("?") == 2  # times that a line of an older record does not have


@pytest.mark.parametrize(
    "value, width, decimals, text",
    [
        (1.25, 6, 3, " 1.250"),
        (-123.456, 6, 3, "-123.5"),
        (99.9996, 6, 3, "100.00"),
        (1234567, 6, 3, " 1e+06"),
        (math.nan, 6, 3, "   nan"),
        (123456.4, 6, 0, "123456"),
    ],
)
def test_a_number_keeps_its_width(value, width, decimals, text):
    assert format_fixed(value, width, decimals) == text


# ---- the console and a full disk ------------------------------------------------------------------------------------


def test_what_two_threads_say_is_lines():
    """Each whole, on a pipe, however often they speak."""
    code = (
        "import sys, threading; from pathlib import Path; from gantrain.reporting.tracker import Tracker; sys.setswitchinterval(1e-6)\n"
        "speak = lambda word: [Tracker(Path('.')).say(word * 50) for _ in range(3000)]\n"
        "threads = [threading.Thread(target=speak, args=(word,)) for word in 'abcd']\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(word * 50 for word in "abcd" for _ in range(3000))


class Full:
    """A file that takes so many more bytes of a write, and then has no room until `full` is taken off."""

    def __init__(self, file):
        self.file, self.full = file, True

    def write(self, data):
        if not self.full:
            return self.file.write(data)
        if len(data) > 5:
            return self.file.write(data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_line_that_does_not_fit_is_not_there_in_part(tracker):
    tracker.log(1, {"x": 1})
    before = tracker.path.read_bytes()
    tracker._file._file = Full(tracker._file._file)
    with pytest.raises(OSError, match="No space left") as error:
        tracker.log(2, {"x": 2})
    assert error.value.filename == str(tracker.path) and tracker.path.read_bytes() == before


def test_a_persistent_record_waits_for_room_and_loses_nothing(tmp_path, capsys):
    tracker = Tracker(tmp_path, persistent=True)
    tracker.open()
    disk = tracker._file._file = Full(tracker._file._file)
    for i in range(3):
        tracker.log(i, {"x": "é" * i})
        assert tracker.path.read_bytes() == b""
    at = tracker.position()
    disk.full = False
    tracker.log(3, {})
    assert [line["nimg"] for line in lines_of(tmp_path)] == [0, 1, 2, 3]
    assert tracker.path.read_bytes()[:at].count(b"\n") == 3 and tracker.path.read_bytes()[at:] == b'{"nimg": 3}\n'
    disk.full = True
    tracker.log(4, {})
    tracker.log(5, {})
    tracker.close()
    assert capsys.readouterr().out.splitlines() == [
        f"{tracker.path}: cannot be written (No space left on device); lines are kept in memory until there is space",
        f"{tracker.path}: can be written again; nothing is lost",
        f"{tracker.path}: cannot be written (No space left on device); lines are kept in memory until there is space",
        f"{tracker.path}: still cannot be written (No space left on device); its last 2 lines are lost",
    ]
