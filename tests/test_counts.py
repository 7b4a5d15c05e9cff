"""Counts that were mistyped: no command begins to work for weeks, or for more memory or disk than there is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gantrain import bounds
from gantrain.commands import sample, walk
from gantrain.commands.noise_scale import measure_run
from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.evaluation import room
from gantrain.evaluation.of_runs import RunScorer
from gantrain.parser import parse
from gantrain.sampling.choice import Choice

HUGE = str(9 * 10**18)
OPTIONS = [
    ["evaluate", "RUN", "--num"], ["truncation", "RUN", "--num"], ["average", "RUN", "--sweep", "1:2:3", "--num"],
    ["sample", "RUN", "--num"], ["sample", "RUN", "--sheet", "classes", "--per-class"], ["walk", "RUN", "--num"],
    ["walk", "RUN", "--frames"], ["walk", "RUN", "--fps"], ["noise-scale", "RUN", "--updates"], ["prepare", "digits", "--resolution"],
]  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS, ids=lambda words: f"{words[0]} {words[-1]}")
@pytest.mark.parametrize("number", [HUGE, "1000000001"])
def test_the_grammar_refuses_a_count_that_nobody_means(words, number, capsys):
    """The grammar imports no torch, so the refusal takes no seconds."""
    with pytest.raises(SystemExit) as end:
        parse([*words, number])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {words[-1]}: must be at most" in said and f"got {int(number):,}; use a smaller number; see `gantrain" in said
    assert said.count("\n") == 1


def test_large_counts_that_somebody_may_mean_are_taken():
    assert parse(["evaluate", "RUN", "--num", "1000000"]).num == 10**6
    assert parse(["watch", "RUN", "--last", HUGE]).last == int(HUGE), "all lines"
    assert parse(["sample", "RUN", "--seed", HUGE]).seed == int(HUGE), "a seed is no count"
    assert parse(["noise-scale", "RUN", "--updates", "-5"]).updates == -5, "the command refuses it in its own words"


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("eval.num_samples", bounds.MOST_IMAGES), ("eval.recalibration_batches", bounds.MOST_GRADIENTS),
        ("eval.resamples", bounds.MOST_RESAMPLES), ("optim.d_steps", bounds.MOST_STEPS), ("optim.g_steps", bounds.MOST_STEPS),
        ("model.power_iterations", bounds.MOST_STEPS),
        ("data.resolution", bounds.MOST_SIDE),
    ],
)  # fmt: skip
def test_a_configuration_refuses_counts_without_end(key, most):
    with pytest.raises(UserError, match=rf"{key} must be at most {most:,}, got {HUGE}"):
        load("digits", [f"{key}={HUGE}"])


def test_the_functions_behind_the_commands_refuse_them_too(tmp_path):
    with pytest.raises(UserError, match="--updates: must be at most 1,000,000, got"):
        measure_run(tmp_path, updates=int(HUGE))
    with pytest.raises(UserError, match="--frames: must be at most 1,000,000, got"):
        walk.film_walk(Choice(tmp_path), tmp_path / "a.gif", frames=int(HUGE))
    with pytest.raises(UserError, match="--fps: must be at most 1,000, got"):
        walk.film_walk(Choice(tmp_path), tmp_path / "a.gif", fps=int(HUGE))
    with pytest.raises(UserError, match="--num: must be at most 1,000,000,000, got"):
        RunScorer(tmp_path, int(HUGE))


def test_features_that_memory_does_not_hold_are_refused(monkeypatch):
    """64 + 10 values of an image, of 4 bytes, twice while the parts are put together."""
    monkeypatch.setattr(room, "main_memory", lambda: 1000 * 74 * 8)
    room.require_room_for_features("--num", 1000, (64, 10))
    with pytest.raises(UserError, match=r"^--num: 1001: their features need at least 579 KiB of memory, and there are 579 KiB; use fewer"):
        room.require_room_for_features("--num", 1001, (64, 10))


def test_arrays_that_the_disk_does_not_hold_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "free_bytes", lambda folder: 5000 if folder == tmp_path else None)
    sample.require_space(10, 256, tmp_path / "new" / "a.npz")
    with pytest.raises(UserError, match=r"^--num: 20 images take 6 KiB in .*a.npz, and 4 KiB are free there; draw fewer images, or choose"):
        sample.require_space(20, 256, tmp_path / "new" / "a.npz")
    monkeypatch.setattr(sample, "main_memory", lambda: 100)
    with pytest.raises(UserError, match=r"--num: 20: their labels need at least 160 bytes"):
        sample.require_space(20, 256, tmp_path / "a.npz")


@pytest.mark.slow
def test_a_refused_count_takes_no_time(tmp_path):
    code = "import sys; from gantrain.cli import run\ntry: run(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", str(tmp_path), "--num", HUGE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and done.stdout == "False\n" and "--num: must be at most 1,000,000,000" in done.stderr
