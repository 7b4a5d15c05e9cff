"""A run folder whose checkpoints are gone is refused; one that had none yet begins again at 0, with a note."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, error_of, slow_but

from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.run_folder.checkpoint import CheckpointStore
from gantrain.run_folder.claim import claim_folder
from gantrain.run_folder.contents import open_run
from gantrain.run_folder.lost_checkpoints import SAVED_FILE, Past, begin_again, describe_loss, mark_saved, read_past
from gantrain.run_folder.own_config import write_config

DIGITS = ROOT / "configs" / "digits.yaml"


def event(nimg: int, name: str, **fields: object) -> dict:
    return {"nimg": nimg, "event": name, **fields}


def losses(nimg: int) -> dict:
    return {"nimg": nimg, "loss/d": 1.0, "loss/g": 1.0}


def saves(nimg: int, path: str = "checkpoints/x") -> dict:
    return event(nimg, "checkpoint", path=path, best_of=[])


START = event(0, "start")
# Lines of a record, and what they say.
RECORDS = [
    ([], Past(0, False)),
    ([START], Past(0, False)),
    ([START, {"nimg": 0, "eval/live/fid": 9.0}], Past(0, False)),
    ([START, saves(0), losses(80), {"nimg": 160, "eval/live/fid": 9.0}], Past(160, False)),
    ([START, losses(80), saves(80)], Past(80, False)),  # killed while it was written
    ([START, losses(80), saves(80), losses(160)], Past(160, False)),  # the same, or a disk that was full
    ([START, saves(80), losses(160), saves(160)], Past(160, False)),  # which the second save would report
    ([START, saves(80), losses(160), saves(160), losses(240)], Past(240, True)),
    ([START, saves(80), saves(160), event(160, "not_written", words="w"), losses(240)], Past(240, False)),
    ([START, saves(80), saves(160), saves(240)], Past(240, True)),
    ([START, saves(80), saves(160), event(160, "not_written", words="w"), saves(240), event(240, "not_written", words="w"), losses(241)],
     Past(241, False)),
    ([START, saves(80, "best"), losses(81), saves(160, "best"), losses(161)], Past(161, False)),
    ([START, event(80, "interrupted", signal="SIGTERM"), saves(80)], Past(80, False)),
    ([event(80, "resume"), losses(96)], Past(96, True)),
    ([event(80, "fork", **{"from": "x", "changed": {}})], Past(80, True)),
    ([START, saves(80), event(160, "rollback", to=80)], Past(80, True)),
    ([START, saves(0), saves(80), saves(90), event(160, "rollback", to=0)], Past(0, False)),
    ([START, saves(320), event(320, "end")], Past(320, True)),
]  # fmt: skip


def record(run: Path, lines: list[dict], more: bytes = b"") -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + more)


def test_a_record_says_how_far_a_run_was_and_whether_it_had_saved(tmp_path):
    for lines, past in RECORDS:
        record(tmp_path, lines)
        assert read_past(tmp_path) == past, lines
        record(tmp_path, lines, b"\0\0 \n[]\n" + b'{"nimg": 99999, "event": "en')  # lines that cannot be read
        assert read_past(tmp_path) == past, lines


@pytest.fixture
def config(tmp_path) -> Config:
    config = load(DIGITS, [*TINY, f"run_dir={tmp_path / 'run'}"])
    write_config(config, tmp_path / "run")
    return config


def test_a_folder_whose_checkpoints_are_gone_is_refused(config, tmp_path):
    run = tmp_path / "run"
    record(run, [START, saves(320), event(2432, "end")])
    words = "metrics.jsonl goes to 2.432 kimg, but there is no checkpoint in .*run/checkpoints; restore the checkpoints from a copy, use"
    for change in (lambda: None, (run / "checkpoints").mkdir, (run / "checkpoints" / ".lock").touch):
        change()
        with pytest.raises(UserError, match=f"^run_dir: .*{words} another run_dir, or delete .*run to start over$"):
            claim_folder(config)
    (run / "best" / "fid" / f"{320:012d}").mkdir(parents=True)
    with pytest.raises(UserError, match="from a copy, continue from .*/best by `gantrain fork .*run --kimg 0.32 --out NEW`, use another"):
        claim_folder(config)
    (run / "metrics.jsonl").unlink()
    claim_folder(config).release()  # nothing says that something was trained


def test_a_run_notes_its_first_checkpoint_in_its_folder(config, tmp_path):
    """With one save, the record alone cannot tell whether it was complete."""
    run = tmp_path / "run"
    record(run, [START, saves(80), losses(160)])
    claim_folder(config).release()
    mark_saved(run, 0)
    claim_folder(config).release()
    mark_saved(run, 80)
    with pytest.raises(UserError, match="goes to 0.16 kimg, but there is no checkpoint"):
        claim_folder(config)
    assert begin_again(run).startswith(f"{run} has a record of 0.16 kimg and no checkpoint: the run begins again at 0")
    assert not (run / SAVED_FILE).exists() and begin_again(tmp_path) == ""


def test_a_reader_says_that_checkpoints_are_gone(config, tmp_path):
    """That there is none "yet" would send the user away to wait."""
    run = tmp_path / "run"
    record(run, [START, losses(48)])
    with pytest.raises(UserError, match="run: has no checkpoint yet$"):
        open_run(run)
    record(run, [START, saves(320), event(2432, "end")])
    words = "metrics.jsonl goes to 2.432 kimg, but there is no checkpoint in .*run/checkpoints; restore the checkpoints from a copy"
    for kimg in (None, 0.32):
        with pytest.raises(UserError, match=f"{words}$"):
            open_run(run, kimg)
    (run / "checkpoints").symlink_to("/nosuch/disk")
    with pytest.raises(UserError, match=r"run/checkpoints \(a link to /nosuch/disk, which does not exist\); restore"):
        open_run(run)
    (run / "checkpoints").unlink()
    (run / "best" / "fid" / f"{320:012d}").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{words}, or pass --kimg 0.32 for the last one in .*run/best$"):
        open_run(run)


def test_a_whole_draft_of_the_only_checkpoint_is_no_loss(tmp_path):
    """A kill may have come before it had its name; training gives it that. Half a draft is a loss."""
    record(tmp_path, [START, saves(320), event(2432, "end")])
    path = CheckpointStore(tmp_path / "checkpoints", keep_last=1).save(320, {"g": {"w": torch.ones(2)}}, {})
    path.rename(path.with_name(f".writing-{path.name}"))
    assert describe_loss(tmp_path) == ""
    (path.with_name(f".writing-{path.name}") / "g.safetensors").write_bytes(b"half")
    assert "there is no checkpoint" in describe_loss(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("gone", slow_but([], ["checkpoints", "checkpoints/*"]))
def test_whole_runs(gone, tmp_path, gantrain):
    run = tmp_path / "run"
    gantrain("train", DIGITS, *TINY, f"run_dir={run}")
    before = (run / "metrics.jsonl").read_bytes()
    for path in list(tmp_path.glob(f"run/{gone}")):
        shutil.rmtree(path)
    line = error_of(gantrain("train", DIGITS, *TINY, f"run_dir={run}", check=False))
    assert f"{run}/metrics.jsonl goes to 0.32 kimg, but there is no checkpoint in {run}/checkpoints; restore" in line
    assert (run / "metrics.jsonl").read_bytes() == before and not (run / "metrics.superseded.jsonl").exists()


@pytest.mark.slow
def test_a_run_that_had_saved_nothing_begins_again_with_a_note(tmp_path, gantrain):
    run = tmp_path / "run"
    record(run, [START, losses(48)])
    write_config(load(DIGITS, [*TINY, f"run_dir={run}"]), run)
    done = gantrain("train", DIGITS, *TINY, f"run_dir={run}")
    assert f"note: {run} has a record of 0.048 kimg and no checkpoint: the run begins again at 0" in done.stdout
    assert len((run / "metrics.superseded.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_all_processes_refuse_alike(tmp_path, together):
    run = tmp_path / "run"
    record(run, [START, saves(320), event(2432, "end")])
    write_config(load(DIGITS, [*TINY, f"run_dir={run}"]), run)
    done = together(2, "-m", "gantrain", "train", DIGITS, *TINY, f"run_dir={run}", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("goes to 2.432 kimg, but there is no checkpoint in") == 1, done.stderr
