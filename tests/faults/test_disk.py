"""A disk that fills up: the system refuses files over a size, as a full disk refuses bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import spawning
from conftest import ROOT, TINY, error_of, lines_of
from test_commands import newest, same_run
from test_preemption import environment

DIGITS = ROOT / "configs" / "digits.yaml"


def train(run: Path, *overrides: str, largest: int | None = None) -> subprocess.CompletedProcess:
    """The command, in a process that may write files of so many bytes."""
    return spawning.run(["-m", "gantrain", "train", DIGITS, f"run_dir={run}", *TINY, *overrides], environment(), largest)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_or_is_waited_out(tmp_path):
    """`stop` says what a checkpoint needs and what is free; `continue` trains on, says so at each, and the ones before stay whole."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(run, "total_kimg=0.16").returncode == 0
    kept = newest(run)
    line = error_of(train(run, "total_kimg=0.32", largest=20_000))
    assert f"{run / 'checkpoints' / '000000000240'}: the checkpoint could not be written (File too large; it needs 1" in line
    assert " are free); the one at 0.16 kimg is intact; free some space and run the same command again" in line
    assert newest(run) == kept and not list((run / "checkpoints").glob(".writing-*"))
    done = train(run, "total_kimg=0.4", "checkpoint.on_error=continue", largest=20_000)
    assert done.stdout.count("continuing (checkpoint.on_error=continue)") >= 2 and newest(run) == kept
    assert "done:" not in done.stdout  # there is nothing to show for it
    assert f"{run / 'checkpoints' / '000000000400'}: the checkpoint could not be written" in error_of(done)
    assert next(one["nimg"] for one in lines_of(run) if one.get("event") == "not_written") in (240, 256)
    assert train(run, "total_kimg=0.32").returncode == train(whole, "total_kimg=0.32").returncode == 0
    same_run(whole, run)


@pytest.mark.slow
def test_lines_that_the_disk_does_not_take_wait_for_room(tmp_path):
    """metrics.jsonl itself is too large: the run goes on to its end, which is too large as well; no line is torn."""
    run = tmp_path / "run"
    settings = [
        "checkpoint.on_error=continue",
        "total_kimg=0.32",
        "eval.every_kimg=null",
        "eval.metrics=[fid]",
        "tracking.samples_every_kimg=null",
    ]
    done = train(run, *settings, largest=3_000)
    assert "the checkpoint could not be written" in error_of(done) and "100%" in done.stdout
    assert f"{run / 'metrics.jsonl'}: cannot be written (File too large); lines are kept in memory until there is space" in done.stdout
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n") and lines_of(run)[0]["event"] == "start"
    line = error_of(train(tmp_path / "other", *settings, "checkpoint.on_error=stop", largest=3_000))
    assert "File too large" in line


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_log_on_a_full_disk_ends_nothing(tmp_path):
    """Standard output that takes no byte: the run is trained, and its exit status says so."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "gantrain",
        "train",
        str(DIGITS),
        f"run_dir={run}",
        *TINY,
        "total_kimg=0.16",
        "eval.every_kimg=null",
        "eval.metrics=[fid]",
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), timeout=120)
    assert done.returncode == 0
    lost = "cannot write to standard output (No space left on device); training continues, and metrics.jsonl is complete"
    assert done.stderr == f"gantrain: note: {lost}\n"
    assert lines_of(run)[-1].items() >= {"nimg": 160, "event": "end"}.items()
