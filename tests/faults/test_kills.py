"""SIGKILL at seeded random moments of a digits run, each resumed: in the end the bits of a run that nobody disturbed.

The moments fall into training, evaluation, drawing, and the writing and renaming of checkpoints, each of which they name.
"""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest
import spawning
from conftest import lines_of
from test_commands import same_run
from test_preemption import arguments, environment

# Best checkpoints, snapshots of averages and the orbit beside all that a run writes by default.
RICH = [
    "checkpoint.keep_best=[eval/ema/digits_fid,eval/live/digits_is]", "checkpoint.keep_every_kimg=0.4", "guard.score=eval/ema/digits_fid",
    "averagers.power={name: power, sigma_rel: 0.1, snapshot_every_kimg: 0.16}", "orbit.every_kimg=0.064",
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


def killed_and_resumed(run: Path, moment: tuple[str, int, str]) -> None:
    """Killed at the moment, then trained to the end."""
    place, number, side = moment
    command = ["-c", KILL, place, str(number), side, *arguments(run, *RICH)]
    done = spawning.run(command, environment())
    assert done.returncode == -signal.SIGKILL, f"{moment} never came: {done.stdout}{done.stderr}"
    done = spawning.run(["-m", "gantrain", *arguments(run, *RICH)], environment())
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
