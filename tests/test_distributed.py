"""Several real processes: the same gradients, weights and scores as one."""
from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT, TESTS, TINY, lines_of
from game import gradients, networks, player, rounds
from safetensors.torch import load_file

from gantrain.losses import R1, R2, Hinge
from gantrain.update import discriminator_phase, generator_phase

DIGITS = ROOT / "configs" / "digits.yaml"


def worlds(folder) -> list[str]:
    return sorted(p.read_text() for p in folder.glob("world-*"))


def test_two_processes_have_the_gradient_of_one(launch, tmp_path):
    """2 x b x k images over two processes and k rounds give the gradient of one batch, for D, with penalties and without, and for G, to float64 rounding."""
    launch(2, TESTS / "workers.py", "gradient", tmp_path)
    assert worlds(tmp_path) == ["2", "2"]
    for b, k in [(4, 1), (4, 2), (4, 4), (3, 3)]:
        G, D = networks()
        g, d, start = player(G), player(D), {k: v.clone() for k, v in D.state_dict().items()}
        discriminator_phase(g, d, Hinge(), rounds(2 * b * k, 1), 1)
        expected = {"d": gradients(D)}
        D.load_state_dict(start)
        discriminator_phase(g, d, Hinge(), rounds(2 * b * k, 1), 1, penalties=[(R1(gamma=0.5), 4.0), (R2(gamma=0.2), 1.0)])
        expected["p"] = gradients(D)
        D.load_state_dict(start)
        generator_phase(g, d, Hinge(), rounds(2 * b * k, 1, with_real=False), 1)
        expected["g"] = gradients(G)
        for name, tensors in expected.items():
            found = load_file(tmp_path / f"{name}-{b}-{k}.safetensors")
            assert found.keys() == tensors.keys()
            for key, tensor in tensors.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("processes", [2, 3])
def test_helpers_speak_over_all_processes(launch, tmp_path, processes):
    launch(processes, TESTS / "workers.py", "helpers", tmp_path)
    assert worlds(tmp_path) == [str(processes)] * processes


def checkpoints(run) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint but BatchNorm's running statistics, which each cut measures differently."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    files = [f for f in newest.glob("*.safetensors") if not f.name.startswith("optimizer")]
    tensors = {f"{f.stem}/{k}": v for f in files for k, v in load_file(f).items()}
    return {k: v for k, v in tensors.items() if "running_" not in k and "num_batches" not in k}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def twenty_updates(launch, run, processes: int, *overrides: str) -> None:
    settings = [*TINY, "total_kimg=0.32", "eval.every_kimg=null", "eval.metrics=[fid]", "tracking.samples_every_kimg=null", *overrides]
    launch(processes, "-m", "gantrain", "train", DIGITS, f"run_dir={run}", *settings)
    start = lines_of(run)[0]
    assert start["event"] == "start" and start["processes"] == processes


def test_two_processes_train_to_the_weights_of_one(launch, runs):
    """20 updates of the digits BigGAN without BatchNorm: one process with 16 images, two with 8, two with two rounds of 4."""
    # An epsilon well above the gradients' rounding: with beta_1 = 0 Adam would turn rounding into whole steps.
    plain = ["model.name=plain_networks:PlainBigGAN", "optim.eps=1e-3"]
    twenty_updates(launch, runs / "one", 1, *plain)
    twenty_updates(launch, runs / "two", 2, *plain)
    twenty_updates(launch, runs / "rounds", 2, *plain, "batching.micro_batch=4")
    one = checkpoints(runs / "one")
    for other in ("two", "rounds"):
        found = checkpoints(runs / other)
        assert found.keys() == one.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_with_batchnorm_the_weights_depend_on_the_micro_batch_alone(launch, runs):
    """With 8 images a micro-batch, two rounds on one process are one round on two."""
    twenty_updates(launch, runs / "bn-one", 1, "batching.micro_batch=8", "optim.eps=1e-3")
    twenty_updates(launch, runs / "bn-two", 2, "batching.micro_batch=8", "optim.eps=1e-3")
    one, two = checkpoints(runs / "bn-one"), checkpoints(runs / "bn-two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
    # Running statistics: two processes see half as many forwards each, and what is saved is their mean.
    running = [load_file(sorted((runs / name / "checkpoints").iterdir())[-1] / "g.safetensors")["last_norm.running_mean"] for name in ("bn-one", "bn-two")]
    assert not torch.equal(*running)


@pytest.mark.parametrize("when, method", [("eval.every_kimg=0.032", "evaluate"), ("checkpoint.every_kimg=0.032", "save")])
def test_batchnorm_statistics_are_those_of_all_processes(launch, tmp_path, when, method):
    """Averaged before they are scored and before they are saved, at 32 images, where they had come to differ."""
    never = ["eval.every_kimg=null", "checkpoint.every_kimg=9", "tracking.samples_every_kimg=null", "total_kimg=0.064"]
    alone = ["eval.batchnorm=copy"]
    launch(2, TESTS / "workers.py", "statistics", tmp_path, DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, *never, *alone, when)
    assert {(tmp_path / f"{method}-{rank}").exists() for rank in (0, 1)} == {True}


def test_one_two_and_three_processes_score_alike(launch, runs):
    if not (runs / "one").is_dir():
        twenty_updates(launch, runs / "one", 1, "model.name=plain_networks:PlainBigGAN")
    scores = []
    for processes in (1, 2, 3):
        out = runs / f"scores-{processes}.json"
        # 101 samples in chunks of 16: neither divides over two or three processes.
        launch(processes, "-m", "gantrain", "evaluate", runs / "one", "--num", "101", "--out", out, "eval.batch_size=16", "eval.metrics=[fid,is,kid,prc]")
        scores.append(json.loads(out.read_text())["scores"])
    assert set(scores[0]) == {"live", "ema", "ema_short", "swa"} and len(scores[0]["ema"]) == 7
    assert scores[0] == scores[1] == scores[2]


def test_what_one_process_alone_runs_into_is_said(launch, tmp_path):
    """An image that breaks in the second process's share."""
    from PIL import Image

    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.effect_noise((16, 16), 60).save(tmp_path / "data" / name / f"{i}.png")
    settings = [f"data={{name: folder, root: '{tmp_path / 'data'}', resolution: 16, keep_in: disk, workers: 0}}", "eval.reference_samples=16"]
    done = launch(2, TESTS / "workers.py", "spoil", tmp_path, DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, *settings, check=False)
    assert done.returncode != 0 and "process 1: " in done.stderr and "does not decode as an image" in done.stderr


def test_a_batch_that_does_not_divide_is_refused_by_every_process(launch, tmp_path):
    done = launch(2, "-m", "gantrain", "train", DIGITS, f"run_dir={tmp_path / 'run'}", "batching.batch_size=15", check=False)
    assert done.returncode != 0
    assert "batching.batch_size: 15 does not divide over 2 processes; choose a multiple of 2" in done.stderr
    assert done.stderr.count("gantrain: error:") == 1
