"""Weights & Biases really run offline and read back, what it is shown, and what happens when it fails."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, error_of, lines_of
from PIL import Image
from wandb_file import read_wandb

import gantrain as library
from gantrain.config import loading as configuration
from gantrain.config.config import Config
from gantrain.config.schema import group_name
from gantrain.config.sections import Tracking, Wandb
from gantrain.reporting import wandb_run as dashboard
from gantrain.reporting.tracker import Tracker
from gantrain.reporting.view_thread import ViewThread
from gantrain.reporting.views import open_views
from gantrain.reporting.wandb_key import has_key
from gantrain.reporting.wandb_run import WandbRun
from gantrain.run_folder import best_generator
from gantrain.run_folder.record import Record, read
from gantrain.sampling.sheets import Sheet, make_grid, read_side_by_side, regroup_by_class
from gantrain.score_names import better_when_higher
from gantrain.training.pictures import caption

DIGITS = ROOT / "configs" / "digits.yaml"

# Two D steps and few samples: a second of training between W&B's start and end.
SMALL = [*TINY, "eval.num_samples=16", "eval.batch_size=16", "eval.recalibration_batches=1"]


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
    (no_key / ".netrc").write_text('machine api.wandb.ai\n  login user\n  password ""\n')
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


def start(run_dir: Path, *overrides: str, cache: Path, code: str = "", **environment: str | None) -> subprocess.CompletedProcess:
    """`gantrain train` in a home without keys, with nobody at the keyboard.

    `code` runs first, in the same process; variables of None are taken away.
    """
    home = run_dir.parent / "home"
    home.mkdir(exist_ok=True)
    variables = {
        **os.environ,
        "GANTRAIN_CACHE": str(cache),
        "HOME": str(home),
        "NETRC": str(home / "netrc"),
        "WANDB_API_KEY": None,
        **environment,
    }
    variables = {key: value for key, value in variables.items() if value is not None}
    command = [
        sys.executable,
        "-c",
        f"{code}\nfrom gantrain.cli import main\nmain()",
        "train",
        str(DIGITS),
        f"run_dir={run_dir}",
        *SMALL,
        *overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Adding directory" not in done.stdout + done.stderr  # behind the final table
    return done


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp() / "gantrain-cache"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, cache) -> SimpleNamespace:
    """A run in two parts: WANDB_MODE=offline to 0.24 kimg; then without the variable and without a key, mode auto, to the end.

    It swaps, grows, measures its noise scale and keeps its best.
    """
    run_dir = tmp_path_factory.mktemp("tracking") / "tiny"
    more = [
        "noise_scale.measure_every=2",
        "batching={name: schedule, micro_batch: 8, milestones: [[0.16, 40]]}",
        "checkpoint.keep_best=[eval/ema/digits_fid]",
    ]
    more += ["swap={source: swa, start_kimg: 0.2, every_kimg: 10, after_kimg: 0.04}", "checkpoint.keep_last=1"]
    first = start(
        run_dir, *more, "total_kimg=0.24", "tracking.wandb.mode=online", "tracking.wandb.project=tests", cache=cache, WANDB_MODE="offline"
    )
    (part,) = (run_dir / "wandb").glob("offline-run-*")
    second = start(run_dir, *more, "total_kimg=0.32", "tracking.wandb.project=tests", cache=cache, WANDB_MODE=None)
    (other,) = set((run_dir / "wandb").glob("offline-run-*")) - {part}
    return SimpleNamespace(
        dir=run_dir, said=(first.stdout, second.stdout), folders=(part, other), parts=(read_wandb(part), read_wandb(other))
    )


@pytest.mark.slow
def test_wandb_run_is_named_and_configured(resumed):
    """The chosen project, the folder's name, an id, the nested configuration as the run folder has it, and the machine's facts."""
    found = resumed.parts[0]
    assert found.run.project == "tests" and found.run.display_name == "tiny" and found.run.run_id in resumed.folders[0].name
    wanted = json.loads(json.dumps(configuration.to_dict(configuration.load(resumed.dir / "config.yaml"))))
    changed = {"total_kimg": 0.24, "tracking": {**wanted["tracking"], "wandb": {**wanted["tracking"]["wandb"], "mode": "online"}}}
    assert {key: found.config[key] for key in wanted} == {**wanted, **changed}
    assert found.config["model"]["ch"] == 2 and found.config["parameters"]["g"] > 0 and found.config["data_fingerprint"]
    scored = next(line for line in lines_of(resumed.dir) if "eval/reference" in line)
    assert (
        found.config["reference"] == scored["eval/reference"]
        and found.config["reference_fingerprint"] == scored["eval/reference_fingerprint"]
    )
    assert found.config["versions"]["torch"] == torch.__version__ and {"python", "wandb", "numpy"} <= found.config["versions"].keys()
    assert found.config["class_names"] == list("0123456789")


SHOWN = ("samples", "event", "overview", "final")  # what is no line of numbers


@pytest.mark.slow
def test_wandb_history_is_that_of_metrics_jsonl(resumed):
    """Every line of numbers is a row with kimg as a value; W&B counts its steps itself, and they only rise."""
    lines = [line for line in lines_of(resumed.dir) if "event" not in line]
    rows = [row for part in resumed.parts for row in part.history if not any(key.startswith(SHOWN) for key in row)]
    assert any(row.get("noise_scale/G/measurements") == 5 for row in rows) and [row["batch/size"] for row in rows if "loss/d" in row] == [
        16,
        16,
        40,
        40,
    ]
    assert len(rows) == len(lines) > 4
    for row, line in zip(rows, lines):
        assert row["kimg"] == pytest.approx(line["nimg"] / 1000)
        assert {k: v for k, v in row.items() if not k.startswith("_") and k != "kimg"} == {k: v for k, v in line.items() if k != "nimg"}
    scored = [row for row in rows if "eval/live/digits_fid" in row]
    assert [row["kimg"] for row in scored] == [0, 0.16, 0.24, 0.32] and "eval/swa/digits_fid" in scored[-1]
    for part in resumed.parts:
        steps = [row["_step"] for row in part.history]
        assert steps == sorted(set(steps)) and [row["kimg"] for row in part.history] == sorted(row["kimg"] for row in part.history)


@pytest.mark.slow
def test_wandb_has_each_event_in_words_and_as_a_mark(resumed):
    (grown,) = [line for line in lines_of(resumed.dir) if line.get("event") == "growth"]
    (swapped,) = [line for line in lines_of(resumed.dir) if line.get("event") == "swap" and line["moment"] == "at"]
    rows = [row for part in resumed.parts for row in part.history]
    told = {
        "growth": (grown, f"batch 16 -> 40: {grown['reason']}"),
        "swap": (swapped, "swa replaces the live weights of G and D; batch 40 -> 40"),
    }
    for kind, (line, words) in told.items():
        (row,) = [row for row in rows if f"event/{kind}" in row]
        assert row["kimg"] == pytest.approx(line["nimg"] / 1000) and row[f"event/{kind}"] == words and row[f"mark/{kind}"] == 1


def cut(path: Path) -> list[Image.Image]:
    """The sheets of a run folder's picture, each below the names of its columns."""
    return [sheet.headed for sheet in read_side_by_side(path)]


def score_before(lines: list[dict], nimg: int, average: str, metric: str) -> float:
    return [line[f"eval/{average}/{metric}"] for line in lines if f"eval/{average}/{metric}" in line and line["nimg"] <= nimg][-1]


@pytest.mark.slow
def test_wandb_has_every_sheet_of_samples_with_its_score(resumed):
    """The very pictures of the run folder, one a sheet; captions carry the moment and the score that the record has of it."""
    lines = lines_of(resumed.dir)
    for folder, part, times in zip(resumed.folders, resumed.parts, ([0, 0.16, 0.24], [0.32])):
        rows = [row for row in part.history if "samples/filenames" in row]
        assert [row["kimg"] for row in rows] == times
        for row in rows:
            nimg = round(row["kimg"] * 1000)
            names = ["live", "ema", "ema_short", "swa"] if nimg else ["live"]
            wanted = [f"{name} at {nimg / 1000:g} kimg, digits_fid {score_before(lines, nimg, name, 'digits_fid'):.4f}" for name in names]
            assert row["samples/captions"] == wanted
            drawn = resumed.dir / "samples" / f"{nimg:012d}.png"
            assert [sheet.caption for sheet in read_side_by_side(drawn)] == wanted
            shown = [Image.open(folder / "files" / name) for name in row["samples/filenames"]]
            assert [one.tobytes() for one in shown] == [one.tobytes() for one in cut(drawn)]


@pytest.mark.slow
def test_wandb_has_a_picture_of_every_class(resumed):
    """Ten classes; the right end of the second row of class 7 is the second image of the second average's sheet, class 7."""
    row = [row for row in resumed.parts[1].history if "samples/classes/filenames" in row][-1]
    assert row["samples/classes/captions"] == [f"class {name} at 0.32 kimg" for name in range(10)]
    picture = Image.open(resumed.folders[1] / "files" / row["samples/classes/filenames"][7])
    sheet = read_side_by_side(resumed.dir / "samples" / "000000000320.png")[1].picture
    step = 50  # 16 pixels three times, and a gap of two
    tile = picture.crop((picture.width - step, step + 2, picture.width - 2, 2 * step))
    assert tile.tobytes() == sheet.crop((7 * step + 2, step + 2, 8 * step, 2 * step)).convert("RGB").tobytes()


def test_a_class_is_a_picture_with_a_row_for_every_sheet():
    """Images whose colour says sheet, class and number: each is where it belongs, and nothing else is."""

    def image(sheet: int, number: int, label: int) -> torch.Tensor:
        return torch.tensor([50 + 60 * sheet, 40 * number, 70 * label], dtype=torch.uint8)[:, None, None].expand(3, 64, 64)

    sheets = [
        Sheet(name, "", make_grid(torch.stack([image(i, n, y) for n in range(4) for y in range(3)]), 3))
        for i, name in enumerate(("live", "a_long_name"))
    ]
    pictures = regroup_by_class(sheets, ["cat", "dog", "owl"])
    assert [(one.name, one.caption) for one in pictures] == [("cat", "class cat"), ("dog", "class dog"), ("owl", "class owl")]
    for y, one in enumerate(pictures):
        left = one.picture.width - 4 * 66 - 2
        for i in range(2):
            for n in range(4):
                x, top = left + n * 66 + 2, i * 66 + 2
                assert one.picture.crop((x, top, x + 64, top + 64)).getcolors() == [(64 * 64, (50 + 60 * i, 40 * n, 70 * y))]
        beside = one.picture.crop((0, 66, left, 132)).convert("L")  # the second name, whole: white all around it
        x0, y0, x1, y1 = beside.point(lambda value: 255 - value).getbbox()
        assert 0 < x0 < x1 < left and 0 < y0 < y1 < 66


@pytest.mark.parametrize(
    ("scores", "scored", "words"),
    [
        ({}, -1, "ema at 80 kimg"),
        ({"live": {"fid": 1.0}}, 80000, "ema at 80 kimg"),
        ({"ema": {"fid": 3.54119, "is": 9.0}}, 80000, "ema at 80 kimg, fid 3.5412"),
        ({"ema": {"fid": 3.54119}}, 60000, "ema at 80 kimg, fid 3.5412 at 60 kimg"),
    ],
)
def test_a_caption_says_of_which_moment_its_score_is(scores, scored, words):
    """Which with eval.async is an earlier one."""
    assert caption("ema", 80000, scores, scored) == words


@pytest.mark.slow
def test_wandb_draws_every_score_of_the_record(resumed):
    """A figure a metric at each evaluation; the last has every value of metrics.jsonl, a line an average, in plain numbers."""
    lines = [line for line in lines_of(resumed.dir) if "eval/live/digits_fid" in line]
    rows = [row for part in resumed.parts for row in part.history if "overview/digits_fid/path" in row]
    assert [row["kimg"] for row in rows] == [0, 0.16, 0.24, 0.32]
    for metric in ("digits_fid", "digits_is"):
        figure = json.loads((resumed.folders[1] / "files" / rows[-1][f"overview/{metric}/path"]).read_text())
        drawn = {one["name"]: dict(zip(one["x"], one["y"])) for one in figure["data"]}
        for name in ("live", "ema", "ema_short", "swa"):
            assert drawn[name] == {line["nimg"] / 1000: line[f"eval/{name}/{metric}"] for line in lines if f"eval/{name}/{metric}" in line}
        assert {0.16, None} == set(drawn["growth"]) and {0.2, None} == set(drawn["swap"])
    batch = json.loads((resumed.folders[1] / "files" / rows[-1]["overview/batch/path"]).read_text())
    drawn = {one.get("name"): (one["x"], one["y"]) for one in batch["data"]}
    assert drawn["batch"] == ([0, 0.16, 0.32], [16, 40, 40]) and drawn["rounds"] == ([0, 0.16, 0.32], [2, 5, 5])


def table_of(folder: Path, row: dict, key: str) -> tuple[list, list]:
    content = json.loads((folder / "files" / row[f"{key}/path"]).read_text())
    return content["columns"], content["data"]


@pytest.mark.slow
def test_wandb_has_a_table_of_what_happened(resumed):
    row = [row for row in resumed.parts[1].history if "events/path" in row][-1]
    columns, rows = table_of(resumed.folders[1], row, "events")
    (grown,) = [line for line in lines_of(resumed.dir) if line.get("event") == "growth"]
    assert columns == ["kimg", "event", "what"]
    assert rows == [  # without the first part's end, which was none
        [0.16, "growth", f"batch 16 -> 40: {grown['reason']}"],
        [0.2, "swap", "swa replaces the live weights of G and D; batch 40 -> 40"],
        [0.24, "resume", "resumed"], [0.32, "end", "done"],
    ]  # fmt: skip


@pytest.mark.slow
def test_wandb_ends_with_a_table_of_scores(resumed):
    """The numbers of the last evaluation; the best of each metric is named beside its average."""
    last = [line for line in lines_of(resumed.dir) if "eval/live/digits_fid" in line][-1]
    row = [row for row in resumed.parts[1].history if "final/scores/path" in row][-1]
    columns, rows = table_of(resumed.folders[1], row, "final/scores")
    assert columns == ["average", "digits_fid", "digits_is", "best by"] and [one[0] for one in rows] == ["live", "ema", "ema_short", "swa"]
    assert all(one[1:3] == [last[f"eval/{one[0]}/digits_fid"], last[f"eval/{one[0]}/digits_is"]] for one in rows)
    best = {min(rows, key=lambda one: one[1])[0]: "digits_fid"}
    is_best = max(rows, key=lambda one: one[2])[0]
    best[is_best] = f"{best[is_best]}, digits_is" if is_best in best else "digits_is"
    assert {one[0]: one[3] for one in rows if one[3]} == best


@pytest.mark.slow
def test_wandb_axes_and_directions_are_defined(resumed):
    """Everything is drawn over kimg; a score's summary is its best, by its direction; other numbers have none."""
    metrics = resumed.parts[0].metrics
    assert metrics["*"].step_metric == "kimg"
    for average in ("live", "ema", "swa"):
        fid, score = metrics[f"eval/{average}/digits_fid"], metrics[f"eval/{average}/digits_is"]
        assert fid.step_metric == score.step_metric == "kimg"
        assert fid.summary.min and not fid.summary.max and score.summary.max and not score.summary.min
        assert metrics[f"eval/{average}/digits_is_std"].options.hidden and not (fid.options.hidden or score.options.hidden)
    assert all(metrics[name].options.hidden for name in ("kimg", "updates", "reals_seen", "batch/micro_batch", "eval/num_samples"))
    assert not any(metric.summary.min or metric.summary.max for name, metric in metrics.items() if better_when_higher(name) is None)


@pytest.mark.slow
def test_wandb_run_ends_with_its_summary_and_exit_code(resumed):
    last = [line for line in lines_of(resumed.dir) if "eval/live/digits_fid" in line][-1]
    summary = resumed.parts[1].summary
    assert summary["final/live/digits_fid"] == last["eval/live/digits_fid"] and summary["final/swa/digits_is"] == last["eval/swa/digits_is"]
    assert [part.exit_code for part in resumed.parts] == [0, 0]


@pytest.mark.slow
def test_wandb_summary_has_the_best_of_the_whole_run(resumed):
    """As it stood at the end of either part."""
    scored = [line for line in lines_of(resumed.dir) if "eval/live/digits_fid" in line]
    for part, until in zip(resumed.parts, (240, 320)):
        for metric, better in (("digits_fid", min), ("digits_is", max)):
            keys = [
                (line[f"eval/{name}/{metric}"], name, line["nimg"] / 1000)
                for line in scored
                for name in ("live", "ema", "ema_short", "swa")
                if f"eval/{name}/{metric}" in line and 0 < line["nimg"] <= until  # never untrained weights
            ]
            value, average, kimg = better(keys, key=lambda one: one[0])
            assert [part.summary[f"best/{metric}{end}"] for end in ("", "_average", "_kimg")] == [value, average, kimg]


@pytest.mark.slow
def test_wandb_resumed_run_is_the_same_run(resumed):
    """One id through both parts, and in the checkpoint; the second part begins where the first ended."""
    first, second = resumed.parts
    assert first.run.run_id == second.run.run_id
    state = json.loads((resumed.dir / "checkpoints" / "000000000320" / "state.json").read_text())
    assert state["wandb_id"] == first.run.run_id
    assert first.history[-1]["kimg"] == 0.24 < second.history[0]["kimg"]


# ---- the best averaged generator ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_artifact_is_the_best_averaged_generator(resumed):
    """Of all that was scored and is kept, at the end of either part; with aliases, scores and the protocol."""
    kept = {
        int(path.name) for path in [*(resumed.dir / "checkpoints").iterdir(), *(resumed.dir / "best").glob("*/*")] if path.name.isdigit()
    }
    lines = {line["nimg"]: line for line in lines_of(resumed.dir) if "eval/live/digits_fid" in line and line["nimg"] in kept}
    fid, nimg, average = min(
        (line[f"eval/{name}/digits_fid"], nimg, name)
        for nimg, line in lines.items()
        for name in ("ema", "ema_short", "swa")
        if f"eval/{name}/digits_fid" in line
    )
    for part in resumed.parts:
        (model,) = [one for one in part.artifacts if one.type == "model"]
        assert model.name == f"generator-{part.run.run_id}" and {"best", "latest"} < set(model.aliases) and len(model.aliases) == 4
    told = json.loads(model.metadata)
    assert set(model.aliases) == {"best", "latest", average, f"{nimg / 1000:g}kimg"}
    assert (told["average"], told["nimg"], told["metric"], told["scored_at_kimg"]) == (average, nimg, "digits_fid", nimg / 1000)
    assert (
        told["scores"] == {key.rpartition("/")[2]: value for key, value in lines[nimg].items() if key.startswith(f"eval/{average}/")}
        and told["scores"]["digits_fid"] == fid
    )
    assert told["protocol"]["num_samples"] == 16 and told["protocol"]["reference_fingerprint"] == lines[nimg]["eval/reference_fingerprint"]


@pytest.mark.slow
def test_offline_runs_are_whole_in_the_run_folder(resumed):
    """Every file that W&B's file points to is there, with the sum that it says, and none is in the home folder."""
    for part in resumed.parts:
        files = [file for artifact in part.artifacts for file in artifact.manifest.contents]
        assert {"config.yaml", "events.table.json"} <= {file.path for file in files}
        for file in files:
            data = Path(file.local_path).read_bytes()
            assert Path(file.local_path).is_relative_to(resumed.dir / "wandb") and len(data) == file.size
            assert base64.b64encode(hashlib.md5(data).digest()).decode() == file.digest
    assert not [path for path in (resumed.dir.parent / "home").rglob("*") if path.is_file() and "artifacts" in path.parts]


def exported_of(resumed: SimpleNamespace) -> tuple[Path, str, float]:
    """(folder, average, kimg) of the last artifact."""
    (model,) = [one for one in resumed.parts[1].artifacts if one.type == "model"]
    told = json.loads(model.metadata)
    return resumed.dir / "wandb" / "generators" / f"{told['nimg']:012d}-{told['average']}", told["average"], told["kimg"]


@pytest.mark.slow
def test_exported_generator_is_that_of_the_run(resumed, gantrain, tmp_path):
    """To the bit, under either policy that needs its buffers; and `gantrain sample` takes the folder."""
    folder, average, kimg = exported_of(resumed)
    for policy in ("recalibrate", "copy"):
        ours, theirs = (
            library.load_generator(run, average, batchnorm=policy, kimg=at) for run, at in ((folder, None), (resumed.dir, kimg))
        )
        z, y = torch.randn(8, ours.dim_z, generator=torch.Generator().manual_seed(0)), torch.arange(8)
        assert torch.equal(ours(z, y), theirs(z, y))
    assert sorted(path.name for path in (folder / "checkpoints" / f"{round(kimg * 1000):012d}").iterdir()) == [
        f"average.{average}.safetensors",
        "g.safetensors",
        "manifest.json",
        "state.json",
    ]
    done = gantrain("sample", folder, "--average", average, "--num", 4, "--out", tmp_path / "four.png")
    assert done.stdout == f"4 images of {average} in {tmp_path / 'four.png'}\n"
    refused = gantrain("sample", folder, "--average", "power", "--out", tmp_path / "no.png", check=False)
    assert "no average 'power'" in error_of(refused)


@pytest.fixture
def scored(tmp_path) -> Record:
    """A record of two evaluations, and empty checkpoint folders: at the first as the best, at neither as the last."""
    (tmp_path / "best" / "eval.ema.fid" / "000000001000").mkdir(parents=True)
    (tmp_path / "checkpoints" / "000000002500").mkdir(parents=True)

    def row(live: float, ema: float, swa: float) -> dict[str, float]:
        return {
            "eval/live/fid": live,
            "eval/ema/fid": ema,
            "eval/swa/fid": swa,
            "eval/ema/is": 3.0,
            "eval/num_samples": 16,
        }

    return Record(tmp_path, Config(), [{"nimg": 1000, **row(1.0, 3.0, math.nan)}, {"nimg": 2000, **row(2.0, 5.0, 4.0)}])


def test_candidates_are_averages_whose_scores_are_of_their_checkpoint_then_the_last(scored):
    found = [(int(one.path.name), one.average, one.scored.nimg, one.scores["fid"]) for one in best_generator.candidates(scored)]
    assert found == [(1000, "ema", 1000, 3.0), (2500, "swa", 2000, 4.0), (2500, "ema", 2000, 5.0)]
    assert [one.metric for one in best_generator.candidates(scored)] == ["fid"] * 3


def test_candidates_of_a_score_that_shall_be_high(scored):
    lines = [
        {key.replace("fid", "is") if "fid" in key else f"{key}_": value for key, value in line.items() if key != "nimg"}
        | {"nimg": line["nimg"]}
        for line in scored.lines
    ]
    assert [one.average for one in best_generator.candidates(replace(scored, lines=lines))] == ["ema", "ema", "swa"]


def test_candidates_without_averages_or_evaluations(scored):
    alone = [{"nimg": 1000, "eval/live/fid": 1.0}]
    assert [one.average for one in best_generator.candidates(replace(scored, lines=alone))] == ["live", "live"]
    assert list(best_generator.candidates(replace(scored, lines=[]))) == []


def test_what_was_best_on_a_path_that_was_left_is_still_known(scored):
    left = replace(scored, lines=scored.lines[1:], abandoned=scored.lines[:1])
    assert [one.scored.nimg for one in best_generator.candidates(left)] == [1000, 2000, 2000]


def test_averages_come_before_live_weights_that_were_better(scored):
    """Scored alone before averages began, at a checkpoint that is still there."""
    protocol = {key: value for key, value in scored.lines[1].items() if key.startswith("eval/") and key.count("/") == 1}
    lines = [{"nimg": 1000, **protocol, "eval/live/fid": 1.0}, scored.lines[1], {**scored.lines[1], "nimg": 2500, "eval/swa/fid": 6.0}]
    found = [(one.nimg, one.average, one.scores["fid"]) for one in best_generator.candidates(replace(scored, lines=lines))]
    assert found[:3] == [(2500, "ema", 5.0), (2500, "swa", 6.0), (1000, "live", 1.0)]


def test_scores_of_the_path_count_and_not_those_that_were_left_at_the_same_moment(scored):
    left = {**scored.lines[0], "eval/ema/fid": 0.5, "eval/swa/fid": 0.1}
    found = [(one.nimg, one.average, one.scores["fid"]) for one in best_generator.candidates(replace(scored, abandoned=[left]))]
    assert found == [(1000, "ema", 3.0), (2500, "swa", 4.0), (2500, "ema", 5.0)]


def fake_wandb(run_dir: Path, said: list, **more) -> WandbRun:
    """A W&B run that takes everything."""
    run = SimpleNamespace(id="abc", offline=True, logged=[], summary={}, artifacts=[], **more)
    run.log, run.log_artifact = run.logged.append, lambda artifact, aliases: run.artifacts.append(aliases)
    run.finish = lambda exit_code: None
    module = SimpleNamespace(
        Plotly=lambda figure: figure,
        Table=lambda columns, data: data,
        Artifact=lambda *a, **k: SimpleNamespace(add_file=lambda *a, **k: None),
    )
    return WandbRun(run, module, run_dir, said.append)


@pytest.fixture
def copied(resumed, tmp_path) -> Path:
    """The run's folder to break, without W&B's."""
    return shutil.copytree(resumed.dir, tmp_path / "copied", ignore=shutil.ignore_patterns("wandb"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_for_the_next_best(copied):
    first, *others = best_generator.candidates(read(copied))
    (first.path / f"average.{first.average}.safetensors").write_bytes(b"nonsense")
    said: list[str] = []
    run = fake_wandb(copied, said)
    run.conclude()
    (aliases,) = run._run.artifacts
    assert aliases[:1] == ["best"] and aliases[1:] == [others[0].average, f"{others[0].nimg / 1000:g}kimg"] and said == []
    for path in {one.path for one in others}:
        (path / "manifest.json").unlink()
    run = fake_wandb(copied, said)
    run.conclude()
    assert run._run.artifacts == []


@pytest.mark.slow
def test_a_full_disk_costs_the_generator_and_a_line(copied, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gantrain.reporting.wandb_run.export", full)
    said: list[str] = []
    run = fake_wandb(copied, said)
    run.conclude()
    assert said == ["wandb: no generator ([Errno 28] No space left on device); the rest continues"]
    assert [sorted(row) for row in run._run.logged] == [["events", "final/scores", "kimg"]] and run._run.artifacts == []


@pytest.mark.slow
@pytest.mark.parametrize("offline", [True, False])
def test_an_exported_generator_stays_until_wandb_has_it(copied, offline):
    run = fake_wandb(copied, [])
    run._run.offline = offline
    run.conclude()
    (folder,) = (copied / "wandb" / "generators").iterdir()
    run.finish(0)
    assert folder.exists() == offline


def test_an_overview_that_cannot_be_made_is_one_line_for_all(tmp_path):
    said: list[str] = []
    run = fake_wandb(tmp_path, said)
    for _ in range(2):
        run.overview(1000)
        run.samples(1000, tmp_path / "none.png", [])
    assert len(said) == 2 and said[0].startswith("wandb: no overview (") and said[1].startswith("wandb: no samples (")
    assert run._run.logged == []


@pytest.mark.slow
def test_a_table_is_logged_again_only_when_it_has_changed(resumed):
    """W&B keeps every one as a version."""
    run = fake_wandb(resumed.dir, [])
    for _ in range(2):
        run.overview(1000)
    assert ["events" in row for row in run._run.logged] == [True, False] and "WANDB_DATA_DIR" not in os.environ


def test_a_folder_that_the_user_has_named_is_left_to_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", "/elsewhere")
    with dashboard.staged_in(tmp_path):
        assert os.environ["WANDB_DATA_DIR"] == "/elsewhere"
    assert os.environ["WANDB_DATA_DIR"] == "/elsewhere"


# ---- where W&B cannot be had ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_goes_offline_without_a_key_and_says_how_to_show_the_run(resumed):
    """WANDB_MODE decides over the configuration; auto without a key asks nobody. One line each."""
    for said, folder in zip(resumed.said, resumed.folders):
        assert [line for line in said.splitlines() if line.startswith("wandb:")] == [
            f"wandb: offline; upload the run with `wandb sync {folder}`"
        ]


@pytest.mark.slow
def test_wandb_key_without_network_goes_on_offline(tmp_path, cache):
    """One line says so; the run is whole, in metrics.jsonl and in W&B's file."""
    code = "import gantrain.reporting.wandb_run; gantrain.reporting.wandb_run.WANDB_PATIENCE = 1"
    nowhere = {"WANDB_MODE": None, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = start(tmp_path / "tiny", "tracking.wandb.mode=online", "total_kimg=0.2", cache=cache, code=code, **nowhere)
    said = [line for line in done.stdout.splitlines() if line.startswith("wandb:")]
    (folder,) = (tmp_path / "tiny" / "wandb").glob("offline-run-*")
    assert said.pop(0) == "wandb: connecting ..."
    assert len(said) == 2 and said[0].startswith("wandb: cannot go online (") and said[0].endswith("); continuing offline")
    assert said[1] == f"wandb: offline; upload the run with `wandb sync {folder}`"
    assert "Traceback" not in done.stdout + done.stderr
    found, lines = read_wandb(folder), lines_of(tmp_path / "tiny")
    assert lines[-1]["event"] == "end" and found.exit_code == 0
    assert sum("loss/d" in row for row in found.history) == sum("loss/d" in line for line in lines) == 3


@pytest.mark.slow
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
    assert (
        said[1:] == ["wandb: stopped (the server is on fire); training continues; metrics.jsonl is complete"]
        and "Traceback" not in done.stderr
    )
    lines = lines_of(tmp_path / "tiny")
    assert [line["nimg"] for line in lines if "loss/d" in line] == [80, 160, 240, 320]
    assert [line["nimg"] for line in lines if "eval/live/digits_fid" in line] == [0, 160, 320] and lines[-1]["event"] == "end"
    assert [p.name for p in sorted((tmp_path / "tiny" / "samples").iterdir())] == [
        "000000000000.png",
        "000000000160.png",
        "000000000320.png",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["log", "event", "image", "summary", "finish", "overview", "conclude"])
def test_wandb_is_called_no_more_once_a_call_has_failed(method, resumed, monkeypatch):
    """Whichever call fails first; W&B's exit handler may hang then."""
    hung: list[threading.Thread] = []
    monkeypatch.setattr("gantrain.reporting.view_thread.HUNG", hung)
    calls, said = [], []

    class Failing:
        def __getattr__(self, name):
            calls.append(name)
            raise OSError("no space left")

    made = lambda *arguments, **named: None  # noqa: E731
    run = WandbRun(Failing(), SimpleNamespace(Image=made, Plotly=made, Table=made), resumed.dir, said.append)
    arguments = {"log": (0, {}), "image": (0, "samples", Path("x.png"), "caption"), "summary": ({},), "finish": (0,)}
    arguments |= {"overview": (0,), "conclude": (), "event": (0, "swap", "words", {})}
    thread = ViewThread("wandb", lambda: run, 30, said.append, hangs=True)
    for name in (method, *arguments):
        getattr(thread, name)(*arguments[name])
    thread._thread.join(20)
    assert len(calls) == 1 and len(hung) == 1 and said == ["wandb: stopped (no space left); training continues; metrics.jsonl is complete"]


def test_disabled_wandb_leaves_nothing(tmp_path, monkeypatch, capsys):
    """By the configuration, or by WANDB_MODE over it."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert open_views(Tracking(wandb=Wandb(mode="online")), "abc", {}, tmp_path, print) == []
    monkeypatch.delenv("WANDB_MODE")
    assert open_views(Tracking(wandb=Wandb(mode="disabled")), "abc", {}, tmp_path, print) == []
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_wandb_that_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", None)  # so that its import fails
    tracker = Tracker(tmp_path)
    tracker.views += open_views(Tracking(), "abc", {}, tmp_path, tracker.say)
    tracker.log(0, {"x": 1})
    tracker.close()
    out = capsys.readouterr().out
    assert out.startswith("wandb: not available (") and out.endswith("); metrics.jsonl is complete\n") and out.count("\n") == 1


def opened(monkeypatch, tmp_path, settings: Wandb, group: str | None = None) -> dict[str, Any]:
    """The arguments that W&B's `init` gets."""
    seen: dict[str, Any] = {}

    class Fake(ModuleType):
        Settings = staticmethod(lambda **settings: settings)

        def init(self, **arguments):
            seen.update(arguments)
            return SimpleNamespace(define_metric=lambda *a, **b: None, dir=str(tmp_path / "run" / "files"), url=None)

    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert WandbRun.start(settings, "abc", {}, tmp_path, print, group) is not None
    return seen


@pytest.mark.parametrize(
    "settings, environment, group, tags",
    [
        ({}, {}, "biggan-digits-00", None),
        ({"group": "mine", "tags": ("a", "b c")}, {}, "mine", ["a", "b c"]),
        ({"group": "mine", "tags": ("a",)}, {"WANDB_RUN_GROUP": "theirs"}, None, ["a"]),  # None: W&B reads its variable
        ({"group": "mine", "tags": ("a",)}, {"WANDB_TAGS": "x,y"}, "mine", None),
    ],
)
def test_wandb_gets_group_and_tags(settings, environment, group, tags, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.delenv("WANDB_TAGS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = opened(monkeypatch, tmp_path, Wandb(**settings), "biggan-digits-00")
    assert (seen["group"], seen["tags"]) == (group, tags)


def test_seeds_of_one_configuration_share_a_group():
    """The groups of W&B are those of `gantrain report`: what may differ between repeats does not matter, everything else does."""
    named = lambda *settings: group_name(configuration.load(DIGITS, list(settings)))  # noqa: E731
    name = named()
    assert re.fullmatch(r"biggan-digits-[0-9a-f]{8}", name) and named("seed=7", "run_dir=elsewhere", "eval.every_kimg=3") == name
    others = [named(change) for change in ("optim.lr_g=1e-4", "total_kimg=81", "averagers.ema.half_life_kimg=9", "model.ch=16")]
    assert len({name, *others}) == 5


@pytest.mark.parametrize(
    "setting, words",
    [
        ("tags=['']", "tracking.wandb.tags must each have 1 to 64 characters"),
        ("tags=['" + "x" * 65 + "']", "tracking.wandb.tags must each have 1 to 64 characters"),
        ("tags=[a,a]", "tracking.wandb.tags must not name a tag twice"),
        ("group=' '", "tracking.wandb.group must have 1 to 128 characters"),
        ("group=" + "x" * 129, "tracking.wandb.group must have 1 to 128 characters"),
    ],
)
def test_groups_and_tags_that_wandb_would_refuse_are_refused_at_the_start(setting, words):
    with pytest.raises(ValueError, match=words):
        configuration.load(DIGITS, [f"tracking.wandb.{setting}"])


# ---- at arm's length ---------------------------------------------------------------------------------------------------


class Recorded:
    """A W&B run that takes down its calls, each only when it is let."""

    def __init__(self):
        self.calls, self.let = [], threading.Event()

    def __getattr__(self, name):
        def call(*arguments):
            self.let.wait()
            self.calls.append((name, *arguments))

        return call


def test_calls_are_made_in_order_and_nobody_waits_but_the_end():
    run, said = Recorded(), []
    thread = ViewThread("wandb", lambda: run, 30, said.append)
    for i in range(1000):
        thread.log(i, {})
    assert run.calls == []  # all were taken at once all the same
    threading.Timer(0.2, run.let.set).start()
    thread.finish(0)
    assert run.calls == [*(("log", i, {}) for i in range(1000)), ("finish", 0)] and said == []


def test_what_waits_for_a_slow_run_is_bounded_and_left_out_is_said_once(monkeypatch):
    monkeypatch.setattr("gantrain.reporting.view_thread.WAITING", 8)
    run, said = Recorded(), []
    thread = ViewThread("wandb", lambda: run, 30, said.append)
    for i in range(100):
        thread.log(i, {})
    assert said == ["wandb: cannot keep up; updates are dropped until it catches up; metrics.jsonl is complete"]
    run.let.set()
    thread.finish(0)
    assert (
        run.calls[-1] == ("finish", 0)
        and [call[1] for call in run.calls[:-1]] == list(range(len(run.calls) - 1))
        and 8 <= len(run.calls) - 1 <= 9
    )


def test_a_run_that_hangs_is_let_go_when_patience_ends(monkeypatch):
    hung, run, said = [], Recorded(), []
    monkeypatch.setattr("gantrain.reporting.view_thread.HUNG", hung)
    thread = ViewThread("wandb", lambda: run, 0.2, said.append, hangs=True)
    thread.log(1, {})
    thread.finish(0)
    assert said == ["wandb: did not finish within 0.2 seconds; giving up; metrics.jsonl is complete"] and len(hung) == 1
    run.let.set()


def test_a_view_that_cannot_be_opened_costs_one_line():
    def start():
        raise ImportError("another\nprotobuf")

    said: list[str] = []
    thread = ViewThread("tensorboard", start, 30, said.append)
    thread.log(1, {})
    thread.finish(0)
    assert said == ["tensorboard: stopped (another protobuf); training continues; metrics.jsonl is complete"]


def test_nothing_waits_for_a_run_that_could_not_be_had():
    thread = ViewThread("wandb", lambda: None, 30, lambda text: None)
    until = time.monotonic() + 20
    thread.finish(0)
    thread.log(1, {})
    assert time.monotonic() < until
