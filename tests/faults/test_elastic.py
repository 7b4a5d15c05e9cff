"""A run that moves between machines: saved on two processes, taken up on one, then on three."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, lines_of
from safetensors.torch import load_file
from test_commands import newest

DIGITS = ROOT / "configs" / "digits.yaml"
# Without BatchNorm, and with an epsilon well above the gradients' rounding: Adam with beta_1 = 0 would turn rounding into whole steps.
# The batch grows twice, at 192 and at 384 images, and rounds of 4 images fit one, two and three processes.
PLAIN = [
    "model.name=plain_networks:PlainBigGAN",
    "optim.eps=1e-3",
    "eval.every_kimg=0.24",
    "eval.metrics=[fid]",
    "tracking.samples_every_kimg=null",
    "tracking.sample_rows=1",
    "batching={name: schedule, batch_size: 24, micro_batch: 4, milestones: [[0.192, 48], [0.384, 72]]}",
    "noise_scale.measure_every=2",
    "checkpoint.keep_best=[eval/ema/digits_fid]",
    "guard.score=eval/ema/digits_fid",
]


def train(together, run: Path, processes: int, *overrides: str) -> None:
    together(processes, "-m", "gantrain", "train", DIGITS, f"run_dir={run}", *TINY, *PLAIN, *overrides)
    said = [line for line in lines_of(run) if line.get("event") in ("start", "resume")][-1]
    assert said["processes"] == processes and said["micro_batch"] == 4


def close(a: Path, b: Path) -> None:
    files = sorted(p.name for p in newest(a).glob("*.safetensors"))
    assert files == sorted(p.name for p in newest(b).glob("*.safetensors"))
    for name in files:
        one, other = load_file(newest(a) / name), load_file(newest(b) / name)
        for key, tensor in one.items():
            if "exp_avg_sq" not in key:  # of gradients near nothing: its rounding is relative to the largest
                torch.testing.assert_close(tensor, other[key], rtol=1e-4, atol=2e-6, msg=lambda m, where=f"{name}, {key}": f"{where}: {m}")


@pytest.mark.slow
def test_two_then_one_then_three_processes_are_one(together, tmp_path):
    """Weights, optimizers, averages to rounding; the batch's growth, its decisions and which scores were best the same."""
    moved, alone = tmp_path / "moved", tmp_path / "alone"
    train(together, alone, 1, "total_kimg=0.6")
    for processes, until in ((2, 0.2), (1, 0.4), (3, 0.6)):
        train(together, moved, processes, f"total_kimg={until}")
    close(alone, moved)
    for run in (alone, moved):
        sizes = [(line["nimg"], line["batch/size"]) for line in lines_of(run) if "loss/d" in line]
        assert {size for _, size in sizes} == {24, 48, 72}
    one, other = (
        [{k: line[k] for k in ("nimg", "from", "to", "reason")} for line in lines_of(run) if line.get("event") == "growth"]
        for run in (alone, moved)
    )
    assert one == other and len(one) == 2
    losses = [{line["nimg"]: line["loss/d"] for line in lines_of(run) if "loss/d" in line} for run in (alone, moved)]
    shared = losses[0].keys() & losses[1].keys()
    assert len(shared) >= 6
    for nimg in shared:
        torch.testing.assert_close(losses[0][nimg], losses[1][nimg], rtol=1e-4, atol=1e-5)
    states = [json.loads((newest(run) / "state.json").read_text()) for run in (alone, moved)]
    assert states[0]["averages"] == states[1]["averages"] and states[0]["guard"]["best"][0][2] == states[1]["guard"]["best"][0][2]
    assert [states[i]["batching"]["first_micro_batch"] for i in (0, 1)] == [4, 4]


@pytest.mark.slow
def test_a_micro_batch_that_must_change_is_said_and_comes_back(launch, gantrain, tmp_path):
    """16 images in one round of one process; on two processes rounds of 8 are the most; on one again 16. Three do not share 16."""
    run = tmp_path / "run"
    settings = [
        "train",
        DIGITS,
        f"run_dir={run}",
        *TINY,
        "eval.every_kimg=null",
        "eval.metrics=[fid]",
        "tracking.samples_every_kimg=null",
        "tracking.sample_rows=1",
    ]
    gantrain(*settings, "total_kimg=0.08")
    done = launch(2, "-m", "gantrain", *settings, "total_kimg=0.16")
    assert (
        done.stdout.count(
            "note: BatchNorm saw 16 images at a time; from here on it sees 8:"
            " on 2 processes a batch of 16 has micro-batches of 8, at most 16"
        )
        == 1
    )
    done = gantrain(*settings, "total_kimg=0.24")
    assert (
        "note: BatchNorm saw 8 images at a time; from here on it sees 16: on 1 process a batch of 16 has micro-batches of 16, at most 16"
        in done.stdout
    )
    done = launch(3, "-m", "gantrain", *settings, "total_kimg=0.32", check=False)
    assert done.returncode != 0
    assert "the run's batch of 16 cannot be split evenly over 3 processes; resume on 2 or 4" in done.stderr
    assert newest(run).name == "000000000240"


@pytest.mark.slow
def test_a_micro_batch_that_was_not_named_is_held_all_the_same(launch, gantrain, tmp_path):
    """Two processes of 8 images each, then one: two rounds of 8."""
    run = tmp_path / "run"
    settings = [
        "train",
        DIGITS,
        f"run_dir={run}",
        *TINY,
        "eval.every_kimg=null",
        "eval.metrics=[fid]",
        "tracking.samples_every_kimg=null",
        "tracking.sample_rows=1",
    ]
    launch(2, "-m", "gantrain", *settings, "total_kimg=0.08")
    done = gantrain(*settings, "total_kimg=0.16")
    assert "batch 16 = 8 images x 1 process x 2 rounds" in done.stdout and "BatchNorm saw" not in done.stdout
