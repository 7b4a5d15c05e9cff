"""What a run says of itself: metrics.jsonl, Weights & Biases really run offline and read back, and what happens when W&B fails."""
from __future__ import annotations

import errno
import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY, lines_of
from PIL import Image

from gantrain import loading as configuration
from gantrain.config import Wandb
from gantrain.metrics import HIGHER_IS_BETTER
from gantrain.dashboard import WandbRun, WandbThread, has_key
from gantrain.tracking import Progress, Tracker, as_json, better_when_higher, duration

DIGITS = ROOT / "configs" / "digits.yaml"

# Two D steps and few samples: a second of training between W&B's start and end.
SMALL = [*TINY, "eval.num_samples=16", "eval.batch_size=16", "eval.recalibration_batches=1"]


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
    assert strict(tracker.path.read_text()) == [{"nimg": 1500, "loss/d": 0.5, "loss/g": "nan", "batch/size": 16, "eval/reference": "digits"}]
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
    silent.start_wandb(Wandb(mode="offline"), "abc", {})
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


@pytest.mark.parametrize("key", ["eval/num_samples", "eval/batchnorm", "eval/fid/x", "loss/d", "", "eval/ema/this", "eval/ema/fidelity", "analysis"])
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
    monkeypatch.setattr("gantrain.tracking.time.monotonic", lambda: now[0])
    progress = Progress(1000, 100)
    now[0] = 3.0
    assert progress.line(200, {})[1] == pytest.approx(100 / 3)
    now[0] = 4.0
    text, rate = progress.line(300, {"loss/d": 1.25, "loss/g": -0.5, "logits/real": 2.0, "logits/fake": -3.0, "batch/size": 16})
    assert rate == pytest.approx(100)
    for words in ("0.3 kimg", " 30%", "4s", "    14s to go", "100 img/s", "D  1.250", "G -0.500", "D(real)   2.00", "D(fake)  -3.00", "batch 16"):
        assert words in text
    assert "\n" not in text


# ---- a key for W&B ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_key(tmp_path, monkeypatch) -> Path:
    """An empty home and no W&B variables; the home."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


NETRC = "machine api.wandb.ai\n  login user\n  password {key}\n"


def test_key_in_the_environment_or_nowhere(no_key, monkeypatch):
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_key()


@pytest.mark.parametrize("name", [".netrc", "_netrc"])
def test_key_in_the_netrc_of_the_home(name, no_key, monkeypatch):
    """As `wandb login` writes it; another machine's key is none, and of a damaged file nothing is known."""
    path = no_key / name
    path.write_text(NETRC.format(key="0" * 40))
    path.chmod(0o600)
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    path.write_text(NETRC.replace("api.wandb.ai", "wandb.example.org").format(key="0" * 40))
    assert has_key()
    path.write_text("nonsense from the first word on")
    assert not has_key()


def test_netrc_entry_without_a_password_is_no_key(no_key):
    """W&B passes over it and would ask for a key."""
    (no_key / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password \"\"\n")
    (no_key / ".netrc").chmod(0o600)
    assert not has_key()


@pytest.mark.parametrize("host", [None, "http://localhost:8080"], ids=["cloud", "own server"])
def test_key_after_wandb_login(host, no_key, tmp_path):
    """What the installed W&B's own `wandb login` leaves behind is found, under whatever machine's name it has written it."""
    command = [sys.executable, "-m", "wandb", "login", "--no-verify", *(["--host", host] if host else []), "0" * 40]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and (no_key / ".netrc").is_file(), done.stdout + done.stderr
    assert has_key(), (no_key / ".netrc").read_text().splitlines()[0]


def test_key_of_a_server_with_a_port(no_key, monkeypatch):
    """`wandb login --host http://localhost:8080` writes the port into the machine's name, and looks for it there."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:8080")
    (no_key / ".netrc").write_text(NETRC.replace("api.wandb.ai", "localhost:8080").format(key="0" * 40))
    (no_key / ".netrc").chmod(0o600)
    assert has_key()


def test_netrc_variable_comes_before_the_home(no_key, tmp_path, monkeypatch):
    """W&B reads the file that NETRC names and no other: a key at home does not count then, or W&B would ask for one."""
    (no_key / ".netrc").write_text(NETRC.format(key="0" * 40))
    (no_key / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    assert not has_key()
    (tmp_path / "elsewhere").write_text(NETRC.format(key="0" * 40))
    (tmp_path / "elsewhere").chmod(0o600)
    assert has_key()


# ---- W&B offline, really run and read back ---------------------------------------------------------------------------

BLOCK = 32 * 1024  # the file is cut into blocks, as LevelDB's log is


def wandb_records(path: Path) -> Iterator:
    """The records of a .wandb file: a header of seven bytes, then LevelDB's log with CRC-32 sums over type and data."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    at, begun = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits: filled with zeros
            at += BLOCK - at % BLOCK
            continue
        total, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece = data[at + 7 : at + 7 + length]
        assert len(piece) == length and zlib.crc32(bytes([kind]) + piece) == total
        at, begun = at + 7 + length, begun + piece
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(begun)
            begun = b""
    assert not begun


def read_wandb(folder: Path) -> SimpleNamespace:
    """What the .wandb file in an offline run's folder holds: run, config, history, metrics, summary, exit code."""
    found = SimpleNamespace(run=None, config={}, history=[], metrics={}, summary={}, exit_code=None)
    (path,) = folder.glob("*.wandb")
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.history.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "summary":
            found.summary |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.summary.update}
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def start(run_dir: Path, *overrides: str, cache: Path, code: str = "", **environment: str | None) -> subprocess.CompletedProcess:
    """`gantrain train` in a home without keys, with nobody at the keyboard.

    `code` runs first, in the same process; variables of None are taken away.
    """
    home = run_dir.parent / "home"
    home.mkdir(exist_ok=True)
    variables = {**os.environ, "GANTRAIN_CACHE": str(cache), "HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_API_KEY": None, **environment}
    variables = {key: value for key, value in variables.items() if value is not None}
    command = [sys.executable, "-c", f"{code}\nfrom gantrain.cli import main\nmain()", "train", str(DIGITS), f"run_dir={run_dir}", *SMALL, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp() / "gantrain-cache"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, cache) -> SimpleNamespace:
    """A run in two parts: WANDB_MODE=offline to 0.24 kimg; then without the variable and without a key, mode auto, to the end."""
    run_dir = tmp_path_factory.mktemp("tracking") / "tiny"
    more = ["noise_scale.measure_every=2", "batching={name: schedule, micro_batch: 8, milestones: [[0.16, 40]]}"]
    first = start(run_dir, *more, "total_kimg=0.24", "tracking.wandb.mode=online", "tracking.wandb.project=tests", cache=cache, WANDB_MODE="offline")
    (part,) = (run_dir / "wandb").glob("offline-run-*")
    second = start(run_dir, *more, "total_kimg=0.32", "tracking.wandb.project=tests", cache=cache, WANDB_MODE=None)
    (other,) = set((run_dir / "wandb").glob("offline-run-*")) - {part}
    return SimpleNamespace(dir=run_dir, said=(first.stdout, second.stdout), folders=(part, other), parts=(read_wandb(part), read_wandb(other)))


def test_wandb_run_is_named_and_configured(resumed):
    """The chosen project, the folder's name, an id, the nested configuration as the run folder has it, and the machine's facts."""
    found = resumed.parts[0]
    assert found.run.project == "tests" and found.run.display_name == "tiny" and found.run.run_id in resumed.folders[0].name
    wanted = json.loads(json.dumps(configuration.to_dict(configuration.load(resumed.dir / "config.yaml"))))
    changed = {"total_kimg": 0.24, "tracking": {**wanted["tracking"], "wandb": {**wanted["tracking"]["wandb"], "mode": "online"}}}
    assert {key: found.config[key] for key in wanted} == {**wanted, **changed}
    assert found.config["model"]["ch"] == 2 and found.config["parameters"]["g"] > 0 and found.config["data_fingerprint"]


def test_wandb_history_is_that_of_metrics_jsonl(resumed):
    """Every line of numbers is a row with kimg as a value; W&B counts its steps itself, and they only rise."""
    lines = [line for line in lines_of(resumed.dir) if "event" not in line]
    rows = [row for part in resumed.parts for row in part.history if "samples/path" not in row and "event/growth" not in row]
    assert any(row.get("noise_scale/G/measurements") == 7 for row in rows) and [row["batch/size"] for row in rows if "loss/d" in row] == [16, 16, 40, 40]
    assert len(rows) == len(lines) > 4
    for row, line in zip(rows, lines):
        assert row["kimg"] == pytest.approx(line["nimg"] / 1000)
        assert {k: v for k, v in row.items() if not k.startswith("_") and k != "kimg"} == {k: v for k, v in line.items() if k != "nimg"}
    scored = [row for row in rows if "eval/live/digits_fid" in row]
    assert [row["kimg"] for row in scored] == [0, 0.16, 0.24, 0.32] and "eval/swa/digits_fid" in scored[-1]
    for part in resumed.parts:
        steps = [row["_step"] for row in part.history]
        assert steps == sorted(set(steps)) and [row["kimg"] for row in part.history] == sorted(row["kimg"] for row in part.history)


def test_wandb_has_each_growth_in_words(resumed):
    (grown,) = [line for line in lines_of(resumed.dir) if line.get("event") == "growth"]
    (row,) = [row for part in resumed.parts for row in part.history if "event/growth" in row]
    assert row["kimg"] == pytest.approx(grown["nimg"] / 1000) and row["event/growth"] == f"batch 16 -> 40: {grown['reason']}"


def test_wandb_has_the_sample_pictures(resumed):
    """The very pictures of the run folder, captioned."""
    for folder, part, times in zip(resumed.folders, resumed.parts, ([0, 0.16, 0.24], [0.32])):
        rows = [row for row in part.history if "samples/path" in row]
        assert [row["kimg"] for row in rows] == times
        for row in rows:
            shown, drawn = folder / "files" / row["samples/path"], resumed.dir / "samples" / f"{round(row['kimg'] * 1000):012d}.png"
            assert Image.open(shown).tobytes() == Image.open(drawn).tobytes()
            assert "live at" in row["samples/caption"] and ("ema at" in row["samples/caption"]) == (row["kimg"] > 0)


def test_wandb_axes_and_directions_are_defined(resumed):
    """Everything is drawn over kimg; a score's summary is its best, by its direction; other numbers have none."""
    metrics = resumed.parts[0].metrics
    assert metrics["*"].step_metric == "kimg"
    for average in ("live", "ema", "swa"):
        fid, score = metrics[f"eval/{average}/digits_fid"], metrics[f"eval/{average}/digits_is"]
        assert fid.step_metric == score.step_metric == "kimg"
        assert fid.summary.min and not fid.summary.max and score.summary.max and not score.summary.min
    assert not any(name.endswith("_std") or name.startswith(("loss", "eval/num")) for name in metrics)


def test_wandb_run_ends_with_its_summary_and_exit_code(resumed):
    last = [line for line in lines_of(resumed.dir) if "eval/live/digits_fid" in line][-1]
    summary = resumed.parts[1].summary
    assert summary["final/live/digits_fid"] == last["eval/live/digits_fid"] and summary["final/swa/digits_is"] == last["eval/swa/digits_is"]
    assert [part.exit_code for part in resumed.parts] == [0, 0]


def test_wandb_resumed_run_is_the_same_run(resumed):
    """One id through both parts, and in the checkpoint; the second part begins where the first ended."""
    first, second = resumed.parts
    assert first.run.run_id == second.run.run_id
    state = json.loads((resumed.dir / "checkpoints" / "000000000320" / "state.json").read_text())
    assert state["wandb_id"] == first.run.run_id
    assert first.history[-1]["kimg"] == 0.24 < second.history[0]["kimg"]


def test_wandb_goes_offline_without_a_key_and_says_how_to_show_the_run(resumed):
    """WANDB_MODE decides over the configuration; auto without a key asks nobody. One line each."""
    for said, folder in zip(resumed.said, resumed.folders):
        assert [line for line in said.splitlines() if line.startswith("wandb:")] == [f"wandb: offline; show the run with `wandb sync {folder}`"]


def test_wandb_key_without_network_goes_on_offline(tmp_path, cache):
    """One line says so; the run is whole, in metrics.jsonl and in W&B's file."""
    code = "import gantrain.dashboard; gantrain.dashboard.WANDB_PATIENCE = 1"
    nowhere = {"WANDB_MODE": None, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = start(tmp_path / "tiny", "tracking.wandb.mode=online", "total_kimg=0.2", cache=cache, code=code, **nowhere)
    said = [line for line in done.stdout.splitlines() if line.startswith("wandb:")]
    (folder,) = (tmp_path / "tiny" / "wandb").glob("offline-run-*")
    assert said.pop(0) == "wandb: connecting ..."
    assert len(said) == 2 and said[0].startswith("wandb: cannot go online (") and said[0].endswith("); going on offline")
    assert said[1] == f"wandb: offline; show the run with `wandb sync {folder}`"
    assert "Traceback" not in done.stdout + done.stderr
    found, lines = read_wandb(folder), lines_of(tmp_path / "tiny")
    assert lines[-1]["event"] == "end" and found.exit_code == 0
    assert sum("loss/d" in row for row in found.history) == sum("loss/d" in line for line in lines) == 3


def test_wandb_that_fails_is_let_go_and_the_run_is_whole(tmp_path, cache):
    """From the third call on `log` raises: one line says so, and every line of the record and every picture is there."""
    code = (
        "from wandb.sdk.wandb_run import Run\n"
        "log, calls = Run.log, []\n"
        "def failing(self, *args, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 2: raise RuntimeError('the server\\nis on fire')\n"
        "    return log(self, *args, **kwargs)\n"
        "Run.log = failing\n"
    )
    done = start(tmp_path / "tiny", cache=cache, code=code, WANDB_MODE="offline")
    said = [line for line in done.stdout.splitlines() if line.startswith("wandb:")]
    assert said[1:] == ["wandb: stopped (the server is on fire); training goes on, metrics.jsonl has everything"] and "Traceback" not in done.stderr
    lines = lines_of(tmp_path / "tiny")
    assert [line["nimg"] for line in lines if "loss/d" in line] == [80, 160, 240, 320]
    assert [line["nimg"] for line in lines if "eval/live/digits_fid" in line] == [0, 160, 320] and lines[-1]["event"] == "end"
    assert [p.name for p in sorted((tmp_path / "tiny" / "samples").iterdir())] == ["000000000000.png", "000000000160.png", "000000000320.png"]


@pytest.mark.parametrize("method", ["log", "image", "summary", "finish"])
def test_wandb_is_called_no_more_once_a_call_has_failed(method):
    """Whichever call fails first."""
    calls, said = [], []

    class Failing:
        def __getattr__(self, name):
            calls.append(name)
            raise OSError("no space left")

    run = WandbRun(Failing(), SimpleNamespace(Image=lambda path, caption: path), said.append)
    arguments = {"log": ({"kimg": 0},), "image": ("samples", Path("x.png"), "caption", {"kimg": 0}), "summary": ({},), "finish": (0,)}
    for name in (method, *arguments):
        getattr(run, name)(*arguments[name])
    assert len(calls) == 1 and said == ["wandb: stopped (no space left); training goes on, metrics.jsonl has everything"]


def test_disabled_wandb_leaves_nothing(tmp_path, monkeypatch, capsys):
    """By the configuration, or by WANDB_MODE over it."""
    tracker = Tracker(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker.start_wandb(Wandb(mode="online"), "abc", {})
    monkeypatch.delenv("WANDB_MODE")
    tracker.start_wandb(Wandb(mode="disabled"), "abc", {})
    tracker.image(0, "samples", tmp_path / "none.png", "none")
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_wandb_that_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", None)  # so that its import fails
    tracker = Tracker(tmp_path)
    tracker.start_wandb(Wandb(), "abc", {})
    tracker.log(0, {"x": 1})
    tracker.close()
    out = capsys.readouterr().out
    assert out.startswith("wandb: not available (") and out.endswith("); metrics.jsonl has everything\n") and out.count("\n") == 1


# ---- at arm's length ---------------------------------------------------------------------------------------------------


class Recorded:
    """A W&B run that takes down its calls, each only when it is let."""

    def __init__(self):
        self.calls, self.let, self.ended = [], threading.Event(), False

    def __getattr__(self, name):
        def call(*arguments):
            self.let.wait()
            self.calls.append((name, *arguments))

        return call


def test_calls_are_made_in_order_and_nobody_waits_but_the_end():
    run, said = Recorded(), []
    thread = WandbThread(lambda: run, 30, said.append)
    for i in range(1000):
        thread.call("log", i)
    assert run.calls == []  # all were taken at once all the same
    threading.Timer(0.2, run.let.set).start()
    thread.finish(0)
    assert run.calls == [*(("log", i) for i in range(1000)), ("finish", 0)] and said == []


def test_what_waits_for_a_slow_run_is_bounded_and_left_out_is_said_once(monkeypatch):
    monkeypatch.setattr("gantrain.dashboard.WANDB_WAITING", 8)
    run, said = Recorded(), []
    thread = WandbThread(lambda: run, 30, said.append)
    for i in range(100):
        thread.call("log", i)
    assert said == ["wandb: does not keep up; what comes while it is behind is left out there, metrics.jsonl has everything"]
    run.let.set()
    thread.finish(0)
    assert run.calls[-1] == ("finish", 0) and [i for _, i in run.calls[:-1]] == list(range(len(run.calls) - 1)) and 8 <= len(run.calls) - 1 <= 9


def test_a_run_that_hangs_is_let_go_when_patience_ends(monkeypatch):
    hung, run, said = [], Recorded(), []
    monkeypatch.setattr("gantrain.dashboard.HUNG", hung)
    thread = WandbThread(lambda: run, 0.2, said.append)
    thread.call("log", 1)
    thread.finish(0)
    assert said == ["wandb: did not take everything within 0.2 seconds and is let go; metrics.jsonl has everything"] and len(hung) == 1
    run.let.set()


def test_nothing_waits_for_a_run_that_could_not_be_had():
    thread = WandbThread(lambda: None, 30, lambda text: None)
    until = time.monotonic() + 20
    thread.finish(0)
    thread.call("log", 1)
    assert time.monotonic() < until


def test_what_two_threads_say_is_lines():
    """Each whole, on a pipe, however often they speak."""
    code = (
        "import sys, threading; from pathlib import Path; from gantrain.tracking import Tracker; sys.setswitchinterval(1e-6)\n"
        "speak = lambda word: [Tracker(Path('.')).say(word * 50) for _ in range(3000)]\n"
        "threads = [threading.Thread(target=speak, args=(word,)) for word in 'abcd']\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert sorted(done.stdout.splitlines()) == sorted(word * 50 for word in "abcd" for _ in range(3000))


# ---- a full disk -------------------------------------------------------------------------------------------------------


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
        f"{tracker.path}: cannot be written (No space left on device); its lines wait in memory for room",
        f"{tracker.path}: can be written again; nothing is lost",
        f"{tracker.path}: cannot be written (No space left on device); its lines wait in memory for room",
        f"{tracker.path}: still cannot be written (No space left on device); its last 2 lines are lost",
    ]
