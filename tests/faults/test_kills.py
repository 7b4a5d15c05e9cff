"""SIGKILL at seeded random moments of a digits run, each resumed: in the end the bits of a run that nobody disturbed.

The moments fall into training, evaluation, drawing, and the writing and renaming of checkpoints, each of which they name.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import spawning
from conftest import lines_of
from test_commands import newest, same_run
from test_preemption import arguments, environment

# Best checkpoints, snapshots of averages and the orbit beside all that a run writes by default.
RICH = [
    "checkpoint.keep_best=[eval/ema/digits_fid,eval/live/digits_is]", "checkpoint.keep_every_kimg=0.4", "guard.score=eval/ema/digits_fid",
    "averagers.power={name: power, sigma_rel: 0.1, snapshot_every_kimg: 0.16}", "orbit.every_kimg=0.064",
]  # fmt: skip

# What an update may consist of: whatever remembers something or changes with the images seen, on rounds of 8 images.
WORDS = [
    "total_kimg=0.48", "augment={name: ada, target: -0.9, every: 32, length_kimg: 1}", "labels=data", "batching.micro_batch=8",
    "penalties.r1={name: r1, every: 5, gamma: {from: 1.0, to: 0.1, until_kimg: 0.4, shape: cosine}}",
    "penalties.lecam={name: lecam, start_kimg: 0.1, half_life_kimg: 0.2}",
    "penalties.lengths={name: path_length, every: 3, weight: {from: 0, to: 2, until_kimg: 0.6}, half_life_kimg: 0.2}",
    "optim.g={name: adamw, betas: [0.5, {from: 0.9, to: 0.99, until_kimg: 0.45}]}", "optim.d={name: adamw, weight_decay: 0.02}",
    "optim.g_steps=2", "optim.clip_d=5", "optim.lr_g={from: 4.0e-4, to: 1.0e-4, until_kimg: 0.45, shape: cosine}",
    "optim.lr_d={from: 4.0e-4, shape: constant, warmup_kimg: 0.2}", "averagers.ema.half_life_kimg={from: 0, to: 1, until_kimg: 0.4}",
]  # fmt: skip

# What a process does at the moment that it is killed: it stops itself, at the n-th call of something it does.
KILL = """
import os, signal, sys
from gantrain import cli
from gantrain.evaluation import evaluator
from gantrain.reporting.tracker import Tracker
from gantrain.run_folder import checkpoint, replacing
from gantrain.training import pictures, trainer
place, left = sys.argv[1], int(sys.argv[2])
owner, name = {
    "training": (trainer.Trainer, "update"),
    "scoring": (evaluator.Evaluator, "generate_features"),
    "drawing": (pictures, "save_side_by_side"),
    "writing": (checkpoint, "write_synced"),
    "renaming": (replacing.os, "rename"),
    "linking": (checkpoint.os, "link"),
    "pruning": (replacing.shutil, "rmtree"),
    "recording": (Tracker, "_write"),
    "syncing": (replacing, "sync"),
}[place]
call = getattr(owner, name)
def killed(*arguments, **kwargs):
    global left
    left -= 1
    if left == 0 and sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    found = call(*arguments, **kwargs)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
setattr(owner, name, killed)
cli.main(sys.argv[4:])
"""
# How often each is called in a whole run, at least.
CALLS = {
    "training": 60,
    "scoring": 30,
    "drawing": 7,
    "writing": 200,
    "renaming": 18,
    "linking": 30,
    "pruning": 20,
    "recording": 35,
    "syncing": 40,
}


def moments(count: int) -> list[tuple[str, int, str]]:
    """(what is going on, at which call, before or after it), every place in turn."""
    dice = random.Random(2026)
    places = list(CALLS)
    return [(place, dice.randint(1, CALLS[place]), dice.choice(["before", "after"])) for place in (places * count)[:count]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert spawning.run(["-m", "gantrain", *arguments(run, *RICH)], environment()).returncode == 0
    return run


def killed_and_resumed(run: Path, moment: tuple[str, int, str], overrides: Sequence[str] = RICH) -> None:
    """Killed at the moment, then trained to the end."""
    place, number, side = moment
    command = ["-c", KILL, place, str(number), side, *arguments(run, *overrides)]
    done = spawning.run(command, environment())
    assert done.returncode == -signal.SIGKILL, f"{moment} never came: {done.stdout}{done.stderr}"
    done = spawning.run(["-m", "gantrain", *arguments(run, *overrides)], environment())
    assert done.returncode == 0, done.stdout + done.stderr


def same_in_all(a: Path, b: Path) -> None:
    """The newest checkpoint and scores to the bit; also which checkpoints, bests and snapshots are kept, and what is in them."""
    same_run(a, b)
    for folder in ("checkpoints", "best/eval.ema.digits_fid", "best/eval.live.digits_is", "averages", "orbit", "samples"):
        one, other = (sorted(p.relative_to(run) for p in (run / folder).rglob("*") if p.is_file()) for run in (a, b))
        assert one == other, folder
        for file in one:
            if file.suffix in (".safetensors", ".png", ".jsonl") and folder != "orbit/":
                assert (a / file).read_bytes() == (b / file).read_bytes(), file


@pytest.mark.slow
def test_killed_here_and_there(undisturbed, tmp_path):
    """One run killed in training, in renaming a checkpoint and in scoring, one after the other."""
    run = tmp_path / "run"
    for place, number, side in [("training", 9, "after"), ("renaming", 3, "before"), ("scoring", 2, "before")]:
        command = ["-c", KILL, place, str(number), side, *arguments(run, *RICH)]
        done = spawning.run(command, environment())
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    done = spawning.run(["-m", "gantrain", *arguments(run, *RICH)], environment())
    assert done.returncode == 0, done.stdout + done.stderr
    same_in_all(undisturbed, run)
    assert lines_of(run)[-1].items() >= {"nimg": 960, "event": "end"}.items()


@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(30), ids=lambda m: "-".join(map(str, m)))
def test_killed_at_thirty_moments(undisturbed, tmp_path, moment):
    killed_and_resumed(tmp_path / "run", moment)
    same_in_all(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed_with_words(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("words") / "run"
    done = spawning.run(["-m", "gantrain", *arguments(run, *WORDS)], environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return run


@pytest.mark.slow
@pytest.mark.parametrize("moment", [("training", 17, "after"), ("writing", 60, "before")], ids=lambda m: "-".join(map(str, m)))
def test_killed_with_every_word(undisturbed_with_words, tmp_path, moment):
    """Augmentation, penalties, optimizers and schedules go on where they were, in an update and within a checkpoint."""
    killed_and_resumed(tmp_path / "run", moment, WORDS)
    same_run(undisturbed_with_words, tmp_path / "run")
    states = [json.loads((newest(run) / "state.json").read_text()) for run in (undisturbed_with_words, tmp_path / "run")]
    assert states[0]["terms"] == states[1]["terms"] and 0 < states[0]["terms"]["augment"]["p"] < 1
    assert list(states[0]["terms"]["penalties"]) == ["lecam", "lengths"]
    shown = ("loss/", "penalty/", "augment/", "lr/", "schedule/", "grad_norm/")
    lines = [
        [{k: v for k, v in line.items() if k.startswith(shown)} for line in lines_of(run) if "loss/d" in line]
        for run in (undisturbed_with_words, tmp_path / "run")
    ]
    assert lines[0] == lines[1] and all({"augment/p", "penalty/r1", "penalty/lengths"} <= line.keys() for line in lines[0])
