"""Several real processes: the same gradients, weights and scores as one."""

from __future__ import annotations

import json

import own_terms
import pytest
import torch
from conftest import ROOT, TESTS, TINY, lines_of
from game import gradients, networks, player, rounds
from safetensors.torch import load_file

from gantrain.data import Digits, pack
from gantrain.losses import R1, R2, Hinge, Relativistic
from gantrain.training.update import discriminator_phase, generator_phase

DIGITS = ROOT / "configs" / "digits.yaml"


PLAIN = ["model.name=plain_networks:PlainBigGAN"]


def worlds(folder) -> list[str]:
    return sorted(p.read_text() for p in folder.glob("world-*"))


def twenty_updates(runs, name: str, *overrides: str) -> list:
    """The case of a training run, as `workers.py` takes it; its folder is `runs / name / "run"`."""
    settings = [*TINY, "total_kimg=0.32", "eval.every_kimg=null", "eval.metrics=[fid]", "tracking.samples_every_kimg=null", *overrides]
    return ["command", runs / name, "train", DIGITS, f"run_dir={runs / name / 'run'}", *settings]


def scores_of(runs, processes: int) -> list:
    """The case of an evaluation; 101 samples in chunks of 16: neither divides over two or three processes."""
    folder = runs / f"scores-{processes}"
    words = ["--num", "101", "--out", folder / "scores.json", "eval.batch_size=16", "eval.metrics=[fid,is,kid,prc]", "labels=data"]
    return ["command", folder, "evaluate", runs / "one" / "run", *words]


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory):
    """What one, two and three processes make of these cases, each in its folder: a launch for each number of processes.

    A case that fails keeps those after it from running: the tests see by `world-RANK` which came to their ends.
    """
    runs = tmp_path_factory.mktemp("runs")
    # An epsilon well above the gradients' rounding: with beta_1 = 0 Adam would turn rounding into whole steps.
    plain, norm = [*PLAIN, "optim.eps=1e-3"], ["batching.micro_batch=8", "optim.eps=1e-3", "labels=data"]
    # With penalties and 20 updates of two steps, rounding would grow to a hundredth of what the weights move by at that epsilon.
    steady = [*PLAIN, "optim.eps=0.1"]
    # A penalty of both players that remembers: none of gantrain's own is both.
    words = [
        *steady,
        "loss.name=relativistic",
        "augment={name: diffaugment}",
        "penalties={memory: {name: 'own_terms:Memory'}, r1: {name: r1, every: 3}}",
        "optim.g_steps=2",
        "optim.first=g",
    ]
    adaptive = [
        *steady,
        "augment={name: ada, target: -0.9, every: 16, length_kimg: 1}",
        "penalties.lecam={name: lecam, start_kimg: 0.05, half_life_kimg: 0.1}",
        "penalties.r1={name: r1, every: 3, gamma: {from: 1.0, to: 0.1, until_kimg: 0.3}}",
        "optim.lr_g={from: 4.0e-4, to: 1.0e-4, until_kimg: 0.3, shape: cosine}",
        "labels=data",
    ]
    never = [
        "eval.every_kimg=null",
        "checkpoint.every_kimg=9",
        "tracking.samples_every_kimg=null",
        "total_kimg=0.064",
        "eval.batchnorm=copy",
    ]
    statistics = [
        ["statistics", runs / method, DIGITS, f"run_dir={runs / method / 'run'}", *TINY, *never, when]
        for method, when in (("evaluate", "eval.every_kimg=0.032"), ("save", "checkpoint.every_kimg=0.032"))
    ]
    cases = {
        1: [
            twenty_updates(runs, "one", *plain),
            twenty_updates(runs, "bn-one", *norm),
            twenty_updates(runs, "words-one", *words),
            twenty_updates(runs, "adaptive-one", *adaptive),
            scores_of(runs, 1),
        ],
        2: [
            ["gradient", runs / "gradient"],
            ["terms", runs / "terms"],
            ["helpers", runs / "helpers-2"],
            *statistics,
            scores_of(runs, 2),
            twenty_updates(runs, "bn-two", *norm),
            twenty_updates(runs, "two", *plain),
            twenty_updates(runs, "rounds", *plain, "batching.micro_batch=4"),
            twenty_updates(runs, "words-two", *words),
            twenty_updates(runs, "adaptive-two", *adaptive),
            twenty_updates(runs, "adaptive-rounds", *adaptive, "batching.micro_batch=4"),
        ],
        3: [["helpers", runs / "helpers-3"], scores_of(runs, 3)],
    }
    for processes, of in cases.items():
        words = [word for case in of for word in ("--", *case)]
        done = launch(processes, TESTS / "workers.py", *words, check=False)
        (runs / f"said-{processes}").write_text(f"exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return runs


def done(runs, name: str, processes: int):
    """The folder of a case that so many processes have brought to its end."""
    assert worlds(runs / name) == [str(processes)] * processes, (runs / f"said-{processes}").read_text()
    return runs / name


@pytest.mark.slow
def test_a_run_that_accelerate_launches_on_two_processes(launch, tmp_path):
    """Through the real launcher: one record, which says that there are two; the batch is shared out."""
    never = ["eval.every_kimg=null", "eval.metrics=[fid]", "eval.num_samples=32", "checkpoint.every_kimg=9", "total_kimg=0.064"]
    launch(2, "-m", "gantrain", "train", DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, *never)
    lines = lines_of(tmp_path / "run")
    assert lines[0]["processes"] == 2 and lines[0]["micro_batch"] == 8 and [line["event"] for line in lines if "event" in line][-1] == "end"


@pytest.mark.slow
def test_every_launch_ends_well(runs):
    assert [(runs / f"said-{processes}").read_text().splitlines()[0] for processes in (1, 2, 3)] == ["exit status 0"] * 3


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(runs):
    """2 x b x k images over two processes and k rounds give the gradient of one batch to float64 rounding, for G and for D, with and
    without penalties."""
    folder = done(runs, "gradient", 2)
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
            found = load_file(folder / f"{name}-{b}-{k}.safetensors")
            assert found.keys() == tensors.keys()
            for key, tensor in tensors.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_where_d_returns_its_logits_twice(runs):
    """SAN's head, with a penalty that sees them once."""
    g, d = (player(n) for n in networks(san=True))
    discriminator_phase(g, d, Hinge(), rounds(16, 1), 1, penalties=[(R1(gamma=0.5), 4.0)])
    found = load_file(done(runs, "gradient", 2) / "san.safetensors")
    for key, tensor in gradients(d.network).items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Relativistic(), own_terms.PairedHinge()])
def test_two_processes_with_every_word_are_one(runs, loss):
    """Penalties with state of both players, an augmentation, paired labels, two G steps before D's: gradients and states of one batch."""
    folder = done(runs, "terms", 2)
    for b, k in [(6, 1), (3, 2)]:
        g, d, own = player(networks()[0]), player(networks()[1]), own_terms.terms(**own_terms.EVERYTHING)
        expected = own_terms.play(g, d, loss, own, 2 * b * k, 1) | own_terms.flat(own.states)
        found = load_file(folder / f"{type(loss).__name__}-{b}-{k}.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
def test_a_run_with_penalties_of_both_players_is_the_same_on_two_processes(runs):
    """Twenty updates of two G steps and two D steps: weights, and what the penalties remember."""
    newest = [checkpoint_of(runs, "words-one", 1), checkpoint_of(runs, "words-two", 2)]
    one, two = map(weights_of, newest)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
    states = [json.loads((path / "state.json").read_text())["terms"]["penalties"]["memory"] for path in newest]
    assert states[0]["images"] == states[1]["images"] == 20 * 4 * 16 and states[0]["mean"] == pytest.approx(states[1]["mean"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["two", "rounds"])
def test_a_run_with_ada_and_lecam_is_the_same_on_two_processes(runs, other):
    """Twenty updates of two D steps, in one round and in two: weights, averages, p to the bit, and LeCam's means."""
    newest = [checkpoint_of(runs, "adaptive-one", 1), checkpoint_of(runs, f"adaptive-{other}", 2)]
    one, two = map(weights_of, newest)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
    ours, theirs = (json.loads((path / "state.json").read_text())["terms"] for path in newest)
    assert ours["augment"] == theirs["augment"] and ours["augment"]["p"] > 0.1
    assert theirs["penalties"]["lecam"] == pytest.approx(ours["penalties"]["lecam"], rel=1e-4)
    assert ours["penalties"]["lecam"]["weight"] == pytest.approx(1 - 0.5**6.4, rel=1e-12)  # 2 x 320 images of D, half-lives of 100


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_helpers_speak_over_all_processes(runs, processes):
    done(runs, f"helpers-{processes}", processes)


def checkpoint_of(runs, name: str, processes: int):
    """The newest checkpoint of a run that so many processes have trained."""
    run = done(runs, name, processes) / "run"
    start = lines_of(run)[0]
    assert start["event"] == "start" and start["processes"] == processes
    return sorted((run / "checkpoints").iterdir())[-1]


def weights_of(newest) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint but BatchNorm's running statistics, which each cut measures differently."""
    files = [f for f in newest.glob("*.safetensors") if not f.name.startswith("optimizer")]
    tensors = {f"{f.stem}/{k}": v for f in files for k, v in load_file(f).items()}
    return {k: v for k, v in tensors.items() if "running_" not in k and "num_batches" not in k}


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(runs):
    """20 updates of the digits BigGAN without BatchNorm: one process with 16 images, two with 8, two with two rounds of 4."""
    one = weights_of(checkpoint_of(runs, "one", 1))
    for other in ("two", "rounds"):
        found = weights_of(checkpoint_of(runs, other, 2))
        assert found.keys() == one.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
def test_with_batchnorm_the_weights_depend_on_the_micro_batch_alone(runs):
    """With 8 images a micro-batch, two rounds on one process are one round on two."""
    newest = [checkpoint_of(runs, "bn-one", 1), checkpoint_of(runs, "bn-two", 2)]
    one, two = map(weights_of, newest)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
    # Running statistics: two processes see half as many forwards each, and what is saved is their mean.
    running = [load_file(path / "g.safetensors")["last_norm.running_mean"] for path in newest]
    assert not torch.equal(*running)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["evaluate", "save"])
def test_batchnorm_statistics_are_those_of_all_processes(runs, method):
    """Averaged before they are scored and before they are saved, at 32 images, where they had come to differ."""
    folder = done(runs, method, 2)
    assert {(folder / f"{method}-{rank}").exists() for rank in (0, 1)} == {True}


@pytest.mark.slow
def test_one_two_and_three_processes_score_alike(runs):
    scores = [json.loads((done(runs, f"scores-{processes}", processes) / "scores.json").read_text())["scores"] for processes in (1, 2, 3)]
    assert set(scores[0]) == {"live", "ema", "ema_short", "swa"} and len(scores[0]["ema"]) == 7
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.slow
def test_what_one_process_alone_runs_into_is_said(launch, tmp_path):
    """An image that breaks in the second process's share."""
    from PIL import Image

    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.effect_noise((16, 16), 60).save(tmp_path / "data" / name / f"{i}.png")
    settings = [
        f"data={{name: folder, root: '{tmp_path / 'data'}', resolution: 16, keep_in: disk, workers: 0}}",
        "eval.reference_samples=16",
    ]
    done = launch(2, TESTS / "workers.py", "spoil", tmp_path, DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, *settings, check=False)
    assert done.returncode != 0 and "process 1: " in done.stderr and "does not decode as an image" in done.stderr


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_by_every_process(launch, tmp_path):
    done = launch(2, "-m", "gantrain", "train", DIGITS, f"run_dir={tmp_path / 'run'}", "batching.batch_size=15", check=False)
    assert done.returncode != 0
    assert "batching.batch_size: 15 cannot be split evenly over 2 processes; use a multiple of 2" in done.stderr
    assert done.stderr.count("gantrain: error:") == 1


OF_ONE = """
import os, sys, time
from gantrain import cli
from gantrain.data import Digits
from gantrain.errors import UserError
from gantrain.training import trainer
controller = trainer.BatchController
def refuse(*arguments):
    raise UserError("data: its disk is not mounted")
def late(*arguments):
    time.sleep(1.5)
    return controller(*arguments)
if os.environ["RANK"] == "1":
    if sys.argv[1] == "alone":
        Digits.build = refuse
    trainer.BatchController = late
cli.main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("refuses", ["alone", "late"])
def test_the_launcher_stops_no_process_before_its_own_error_is_said_and_none_says_that_it_was_stopped(launch, tmp_path, refuses):
    (tmp_path / "of_one.py").write_text(OF_ONE)
    words = ["train", DIGITS, f"run_dir={tmp_path / 'run'}", *(["batching.batch_size=15"] if refuses == "late" else [])]
    done = launch(2, tmp_path / "of_one.py", refuses, *words, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("gantrain: error:")]
    if refuses == "late":
        words = "gantrain: error: batching.batch_size: 15 cannot be split evenly over 2 processes; use a multiple of 2"
        assert said == [words], done.stderr
    else:
        assert said == [
            "gantrain: error: another process failed; see its error message", "gantrain: error: process 1: data: its disk is not mounted",
        ], done.stderr  # fmt: skip


def test_data_that_is_refused_is_refused_in_a_line_by_all_processes(together, tmp_path):
    """Not by one, with the others left to find out that it has gone."""
    pack(Digits().build(), tmp_path / "data", "digits")
    images = tmp_path / "data" / "images.npy"
    images.write_bytes(images.read_bytes()[:-1] + b"\x99")
    words = [
        *TINY,
        "data={name: packed, resolution: 16}",
        f"data.root={tmp_path / 'data'}",
        "batching.micro_batch=8",
        f"run_dir={tmp_path / 'run'}",
    ]
    done = together(2, "-m", "gantrain", "train", DIGITS, *words, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "gantrain: error: " in line]
    assert (
        lines[0].startswith("gantrain: error: ")
        and str(images) in lines[0]
        and all(line.startswith("gantrain: error: process 1: ") for line in lines[1:])
    )
