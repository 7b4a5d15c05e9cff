"""Swaps, growth, snapshots and rebuilt averages in whole runs of configs/digits_swap.yaml at tiny size."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import spawning
import torch
from conftest import ROOT, TESTS, error_of, every_third, lines_of, slow_but
from PIL import Image
from safetensors.torch import load_file
from test_commands import newest, same_run

from gantrain import load_generator
from gantrain.batching import BatchController, OnSwap
from gantrain.config.loading import load
from gantrain.palette import COLOURS, channels
from gantrain.training.trainer import Trainer

SWAP = ROOT / "configs" / "digits_swap.yaml"
# The configuration in two seconds: swaps at 320 and 640 of 960 images, the batch 16, 32 and then 48, its cap.
TINY = [
    "model.ch=2",
    "model.dim_z=8",
    "batching.batch_size=16",
    "batching.micro_batch=16",
    "batching.max_batch=48",
    "optim.d_steps=2",
    "total_kimg=0.96",
    "eval.every_kimg=0.32",
    "eval.num_samples=64",
    "eval.batch_size=32",
    "eval.reference_samples=64",
    "eval.recalibration_batches=2",
    "eval.metrics=[fid,is]",
    "checkpoint.every_kimg=0.16",
    "tracking.every_kimg=0.16",
    "tracking.samples_every_kimg=null",
    "tracking.sample_rows=1",
    "averagers.swa.start_kimg=0.16",
    "averagers.swa.every_kimg=0.032",
    "averagers.power_05.snapshot_every_kimg=0.08",
    "averagers.power_10.snapshot_every_kimg=0.08",
    "swap.start_kimg=0.32",
    "swap.every_kimg=0.32",
    "swap.after_kimg=0.1",
]


def command(run: Path, *overrides: str) -> list[str]:
    return ["train", str(SWAP), f"run_dir={run}", *TINY, *overrides]


def trainer_at(tmp_path: Path, nimg: int, *overrides: str) -> Trainer:
    """A trainer that has trained this far and done nothing else."""
    trainer = Trainer(load(SWAP, [*TINY, f"run_dir={tmp_path / 'run'}", *overrides]))
    trainer.start()
    while trainer.run.nimg < nimg:
        trainer.update()
    return trainer


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@pytest.fixture(scope="module")
def swapped(gantrain, tmp_path_factory) -> tuple[Path, str]:
    """An undisturbed run and what it said."""
    run = tmp_path_factory.mktemp("swapped") / "run"
    return run, gantrain(*command(run)).stdout


def test_every_swap_has_three_scores_and_the_batch_grows_to_its_cap(swapped):
    lines = lines_of(swapped[0])
    events = [line for line in lines if line.get("event") == "swap"]
    assert [(e["moment"], e["swap_nimg"]) for e in events] == [(m, n) for n in (320, 640) for m in ("before", "at", "after")]
    assert [e["nimg"] for e in events] == [320, 320, 448, 640, 640, 784]  # the first update ends behind swap + 100 images
    assert [(e["batch/size"], e["batch/rounds"]) for e in events] == [(16, 1), (32, 2), (32, 2), (32, 2), (48, 3), (48, 3)]
    for event in events:
        assert set(event["live"]) == {"digits_fid", "digits_is", "digits_is_std"}
        assert event["eval/num_samples"] == 64 and event["eval/batchnorm"] == "recalibrate"
    at = [e for e in events if e["moment"] == "at"]
    for event in at:
        assert (event["source"], event["networks"], event["alpha"], event["optimizer"], event["growth"]) == ("swa", "gd", 1.0, "keep", 2.0)
    growth = [line for line in lines if line.get("event") == "growth"]
    assert [(g["nimg"], g["from"], g["to"], g["rounds"]) for g in growth] == [(320, 16, 32, 2), (640, 32, 48, 3)]
    assert growth[0]["reason"] == "the swap asks for x2" and growth[1]["reason"].endswith("cut to max_batch and whole rounds")
    sizes = {line["nimg"]: line["batch/size"] for line in lines if "loss/d" in line}
    assert sizes[320] == 16 and sizes[640] == 32 and sizes[max(sizes)] == 48


def test_at_the_swap_the_live_weights_have_the_score_of_the_average(swapped):
    """To the last digit: the weights, the singular vectors of spectral norm and the BatchNorm statistics are those of the average."""
    lines = lines_of(swapped[0])
    scores = {line["nimg"]: line for line in lines if "eval/swa/digits_fid" in line}
    for event in [line for line in lines if line.get("event") == "swap" and line["moment"] != "after"]:
        name = "live" if event["moment"] == "before" else "swa"
        assert event["live"]["digits_fid"] == scores[event["nimg"]][f"eval/{name}/digits_fid"]
    assert all(line["eval/live/digits_fid"] != line["eval/swa/digits_fid"] for line in scores.values())


def test_the_report_shows_the_scores_before_at_and_after_and_the_batch(swapped):
    run, said = swapped
    events = [line for line in lines_of(run) if line.get("event") == "swap"]
    report = said[said.index("live weights at the swaps:") : said.index("done:")].splitlines()
    assert report[1].split() == ["swap", "at", "kimg", "batch", "live", "digits_fid", "digits_is"]
    assert report[2].split()[:4] == ["0.32", "16", "->", "32"] and report[5].split()[:4] == ["0.64", "32", "->", "48"]
    for row, event in zip(report[2:8], events):
        assert row.split()[-3:] == [event["moment"], f"{event['live']['digits_fid']:.4f}", f"{event['live']['digits_is']:.4f}"]


def test_snapshots_are_keyed_by_images_through_growth(swapped):
    run = swapped[0]
    kept = sorted(p.name for p in (run / "averages").iterdir())
    updates = [*range(16, 321, 16), *range(352, 641, 32), *range(688, 1008, 48)]
    expected = [n for before, n in zip([0, *updates], updates) if n // 80 != before // 80]
    assert [int(name) for name in kept] == sorted({*expected, updates[-1]})
    for name in kept:
        files = {p.name for p in (run / "averages" / name).iterdir()}
        assert files == {
            "average.power_05.safetensors",
            "average.power_10.safetensors",
            "buffers.safetensors",
            "manifest.json",
            "state.json",
        }
    half = load_file(run / "averages" / kept[-1] / "average.power_10.safetensors")
    full = load_file(newest(run) / "average.power_10.safetensors")
    for name, tensor in full.items():
        assert half[name].dtype == torch.float16
        torch.testing.assert_close(half[name].float(), tensor, rtol=2**-10, atol=2**-24)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_bits(swapped, gantrain, tmp_path):
    """SIGKILL soon after a swap, soon after a snapshot and somewhere in between; weights, averages, snapshots and swaps are the same."""
    run, dice = tmp_path / "run", random.Random(1)

    def killed(ready) -> bool:
        process = spawning.Spawned(["-m", "gantrain", *command(run)], os.environ)
        while process.poll() is None:
            if ready():
                time.sleep(dice.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        return process.wait() == -signal.SIGKILL

    def told(text: str):
        return lambda: (run / "metrics.jsonl").is_file() and text in (run / "metrics.jsonl").read_text()

    assert killed(told('"moment": "at"'))
    assert killed(lambda: (run / "averages" / "000000000576").is_dir())
    assert killed(told('"swap_nimg": 640'))
    gantrain(*command(run))
    same_run(swapped[0], run)

    def state(run: Path) -> dict:
        whole = json.loads((newest(run) / "state.json").read_text())
        return {key: whole[key] for key in ("averages", "averages_d", "batching", "swaps", "scores")}

    assert state(swapped[0]) == state(run)
    expected = {"batch_size": 48, "micro_batch": 16, "proposal": 48.0, "last_change": 640}
    assert {key: state(run)["batching"][key] for key in expected} == expected and len(state(run)["swaps"]["records"]) == 2
    assert [p.name for p in sorted((run / "averages").iterdir())] == [p.name for p in sorted((swapped[0] / "averages").iterdir())]
    for path in (swapped[0] / "averages").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (run / path.relative_to(swapped[0])).read_bytes(), path

    def events(run: Path) -> list[dict]:
        return [line for line in lines_of(run) if line.get("event") in ("swap", "growth")]

    assert events(swapped[0]) == events(run)


@pytest.mark.slow
def test_snapshots_later_than_the_checkpoint_are_taken_anew(swapped, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    shutil.rmtree(newest(run))
    gantrain(*command(run))
    same_run(swapped[0], run)
    for path in (swapped[0] / "averages").rglob("*.safetensors"):
        assert path.read_bytes() == (run / path.relative_to(swapped[0])).read_bytes()


# ---- what a swap does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("networks, alpha", slow_but([("gd", 0.25)], [("g", 1.0), ("g", 0.25), ("gd", 1.0), ("gd", 0.25)]))
def test_a_swap_moves_the_live_weights_to_the_average_in_place(tmp_path, networks, alpha):
    trainer = trainer_at(tmp_path, 320, f"swap.networks={networks}", f"swap.alpha={alpha}")
    before = {key: weights_of(p.network) for key, p in trainer.players.by_key.items()}
    addresses = {key: [p.data_ptr() for p in player.network.parameters()] for key, player in trainer.players.by_key.items()}
    averages = {key: {n: t.clone() for n, t in trainer.players.banks[key]["swa"].shadows.items()} for key in networks}
    trainer.swapper.swap(trainer.run.nimg)
    for key, player in trainer.players.by_key.items():
        assert [p.data_ptr() for p in player.network.parameters()] == addresses[key]
        for name, live in weights_of(player.network).items():
            start = before[key][name]
            if key not in networks or alpha == 1.0:
                assert torch.equal(live, averages[key][name] if key in networks else start)
            else:
                torch.testing.assert_close(live, start + alpha * (averages[key][name] - start), rtol=0, atol=1e-6)
    # The averages carry on from where they were, and training goes on.
    for key in networks:
        assert all(torch.equal(averages[key][n], t) for n, t in trainer.players.banks[key]["swa"].shadows.items())
    trainer.update()
    assert trainer.players.G.network.training and all(torch.isfinite(p).all() for p in trainer.players.G.network.parameters())
    trainer.close()


def test_batchnorm_and_spectral_norm_fit_the_weights_after_a_swap(tmp_path):
    trainer = trainer_at(tmp_path, 320)
    trainer.swapper.swap(trainer.run.nimg)
    live = {k: v.clone() for k, v in trainer.players.G.network.state_dict().items()}
    trainer.swapper.settle()
    for name, tensor in trainer.players.G.network.state_dict().items():
        assert torch.equal(tensor, live[name]), f"{name} was not that of the weights"
    layer = trainer.players.D.network.get_submodule("blocks.0.conv1")
    matrix = layer.weight.detach().flatten(1)
    assert torch.linalg.matrix_norm(matrix, ord=2).item() == pytest.approx(1.0, rel=0.02)
    trainer.close()


@pytest.mark.parametrize("optimizer", slow_but(["reset_momentum"], ["keep", "reset_momentum", "reset"]))
def test_a_swap_keeps_or_forgets_the_state_of_adam(tmp_path, optimizer):
    trainer = trainer_at(tmp_path, 320, f"swap.optimizer={optimizer}", "optim.betas=[0.5,0.9]", "swap.lr_scale=0.5", "swap.growth=1")

    def state(player):
        return [
            {k: v.clone() for k, v in player.optimizer.state[p].items()} for p in player.network.parameters() if p in player.optimizer.state
        ]

    before = {key: state(player) for key, player in trainer.players.by_key.items()}
    trainer.swapper.swap(trainer.run.nimg)
    for key, player in trainer.players.by_key.items():
        after = state(player)
        if optimizer == "reset":
            assert after == []
            continue
        for old, new in zip(before[key], after, strict=True):
            assert torch.equal(old["exp_avg_sq"], new["exp_avg_sq"]) and torch.equal(old["step"], new["step"])
            assert torch.equal(new["exp_avg"], old["exp_avg"] if optimizer == "keep" else torch.zeros_like(old["exp_avg"]))
    trainer.update()
    assert trainer.players.G.optimizer.param_groups[0]["lr"] == trainer.players.D.optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)
    assert trainer.swapper.state()["lr_scale"] == 0.5
    trainer.close()


@pytest.mark.slow
def test_growth_auto_says_what_it_was_read_off(gantrain, tmp_path):
    """k from two distances, g* from k and the source's window, the factor (g* x lr_scale)^2; all recomputed here from the event."""
    run = tmp_path / "run"
    gantrain(
        *command(
            run,
            "swap.growth=auto",
            "swap.source=ema_short",
            "averagers.ema_short.half_life_kimg=0.02",
            "averagers.ema_short.ramp_up=null",
            "averagers.ema.half_life_kimg=0.04",
            "averagers.ema.ramp_up=null",
            "averagers.ema_long=null",
            "batching.max_batch=4096",
        )
    )
    at = [line for line in lines_of(run) if line.get("moment") == "at"]
    assert len(at) == 2
    for event in at:
        assert event["half_lives_kimg"] == pytest.approx({"ema_short": 0.02, "ema": 0.04})
        q, b = {}, {}
        for name, half_life in (("ema_short", 0.02), ("ema", 0.04)):
            b[name] = 0.5 ** (event["step"] / 1000 / half_life)
            q[name] = event["distances"][name] * (1 + b[name]) / (2 * b[name] ** 2)
        f = (q["ema_short"] - q["ema"]) / (q["ema_short"] * b["ema_short"] - q["ema"] * b["ema"])
        if 0 < f < 1:
            k = -np.log(f) / event["step"] * 1000
            assert event["k_per_kimg"] == pytest.approx(k) and event["g_star"] == pytest.approx(1 + k * 0.02 / np.log(2))
            assert event["growth"] == pytest.approx(event["g_star"] ** 2)
        else:
            assert event["growth"] == 1.0 and "drift" in event["undecidable"]


AUTO = [
    "swap.growth=auto",
    "swap.source=ema",
    "averagers.ema={half_life_kimg: 0.04, ramp_up: null}",
    "averagers.ema_long=null",
    "batching.max_batch=4096",
    "averagers.ema_short={half_life_kimg: 0.02, ramp_up: null}",
]


def test_growth_auto_grows_the_batch_where_the_distances_are_an_orbits(tmp_path):
    """Averages at the distances of an orbit with k per look: g* = 1 + k / mu of the source, the batch g*^2 in whole rounds."""
    trainer = trainer_at(tmp_path, 320, *AUTO)
    phi, decay = 0.5, {name: 0.5 ** (16 / half_life) for name, half_life in (("ema", 40), ("ema_short", 20))}
    for bank in trainer.players.banks.values():
        for name, b in decay.items():
            far = (2 * b * b * (1 - phi) / ((1 + b) * (1 - b * phi))) ** 0.5  # root of the AR(1) distance, V = 1
            for weight in bank.weight_names:
                bank[name].shadows[weight].copy_(bank[name].live[weight] + 0.01 * far)
    trainer.swapper.swap(trainer.run.nimg)
    trainer.tracker.close()
    at, growth = (
        next(line for line in lines_of(tmp_path / "run") if match(line))
        for match in (lambda x: x.get("moment") == "at", lambda x: x.get("event") == "growth")
    )
    k = -np.log(phi) / 16
    g_star = 1 + k * 40 / np.log(2)
    assert at["k_per_kimg"] == pytest.approx(1000 * k, rel=1e-3) and at["g_star"] == pytest.approx(g_star, rel=1e-3)
    assert at["growth"] == pytest.approx(g_star**2, rel=1e-3) and "undecidable" not in at
    assert trainer.batching.batch_size == growth["to"] == int(16 * g_star**2 // 16) * 16 > 16
    trainer.close()


@pytest.mark.slow
def test_growth_auto_says_when_the_two_averages_still_ramp_up_alike(tmp_path):
    trainer = trainer_at(tmp_path, 320, *AUTO, "averagers.ema={ramp_up: 0.05}", "averagers.ema_short={ramp_up: 0.05}")
    trainer.swapper.swap(trainer.run.nimg)
    trainer.tracker.close()
    at = next(line for line in lines_of(tmp_path / "run") if line.get("moment") == "at")
    assert at["undecidable"] == "growth undecidable: the two EMAs are still in the same ramp-up"
    assert at["growth"] == 1.0 and at["grown"] == 1.0
    trainer.close()


@pytest.mark.slow
def test_a_swap_that_follows_closely_scores_the_one_before_it_first(gantrain, tmp_path):
    """Swaps every 100 images, batches of 16: the clock reaches a swap before 100 images have passed since the last one."""
    run = tmp_path / "run"
    gantrain(*command(run, "swap.start_kimg=0.42", "swap.every_kimg=0.1", "swap.after_kimg=0.1", "swap.growth=1", "total_kimg=0.8"))
    events = [line for line in lines_of(run) if line.get("event") == "swap"]
    assert [e["moment"] for e in events] == ["before", "at", "after"] * (len(events) // 3) and len(events) >= 9
    for after, before in zip(events[2::3], events[3::3]):
        assert after["nimg"] == before["nimg"] and after["live"] == before["live"]


@pytest.mark.slow
def test_metrics_may_change_between_swaps(gantrain, tmp_path):
    run = tmp_path / "run"
    gantrain(*command(run, "total_kimg=0.64"))
    said = gantrain(*command(run, "eval.metrics=[is,kid]")).stdout
    report = said[said.index("live weights at the swaps:") : said.index("done:")].splitlines()
    assert report[1].split()[5:] == ["digits_fid", "digits_is", "digits_kid"] and report[2].split()[-1] == report[6].split()[1] == "nan"


OUTSIDE = """
from dataclasses import dataclass

from gantrain.averaging import Ema

@dataclass(frozen=True)
class Half:
    offload: bool = True
    snapshot_every_kimg: float = 0.08

    def weight(self, nimg, previous_nimg, num_averaged):
        return 0.5

@dataclass(frozen=True)
class Mine(Ema):
    more: int = 1

@dataclass(frozen=True)
class Steep:
    max_batch: int = 32

    def propose(self, state):
        return 16 if state.nimg < 64 else 64
"""


@pytest.mark.slow
def test_rules_and_policies_from_outside_need_nothing_but_their_contract(gantrain, tmp_path):
    (tmp_path / "outside.py").write_text(OUTSIDE)
    run = tmp_path / "run"
    rules = (
        "averagers={half: {name: 'outside:Half'}, a: {name: 'outside:Mine', half_life_kimg: 0.02},"
        " b: {name: 'outside:Mine', half_life_kimg: 0.04}}"
    )
    overrides = [
        rules,
        "averagers.ema=null",
        "averagers.ema_short=null",
        "averagers.ema_long=null",
        "swap.growth=auto",
        "batching={name: 'outside:Steep'}",
    ]
    config = tmp_path / "c.yaml"
    text = SWAP.read_text().replace("batching: {name: on_swap, batch_size: 64, micro_batch: 64, max_batch: 256}\n", "")
    config.write_text(text)
    words = [word for word in command(run, *overrides) if not word.startswith(("batching.", "config"))]
    words[1] = str(config)
    gantrain(*words, cwd=tmp_path)
    lines = lines_of(run)
    assert any("eval/half/digits_fid" in line and "eval/a/digits_fid" in line for line in lines)
    grown = [line for line in lines if line.get("event") == "growth"]
    assert [(g["nimg"], g["from"], g["to"], g["reason"]) for g in grown] == [
        (64, 16, 32, "Steep proposes it, cut to max_batch and whole rounds")
    ]


@pytest.mark.slow
def test_the_last_swap_is_scored_at_the_end_when_no_time_is_left(gantrain, tmp_path):
    run = tmp_path / "run"
    gantrain(*command(run, "swap.start_kimg=0.9", "swap.after_kimg=0.3"))
    events = [line for line in lines_of(run) if line.get("event") == "swap"]
    assert [e["moment"] for e in events] == ["before", "at", "after"]
    last = [line for line in lines_of(run) if "eval/live/digits_fid" in line][-1]
    assert events[-1]["nimg"] == last["nimg"] and events[-1]["live"]["digits_fid"] == last["eval/live/digits_fid"]


@pytest.mark.slow
def test_two_processes_swap_to_the_same_weights_and_the_same_batch(together, tmp_path):
    """Both processes hold bit-identical weights, statistics and batch right after each swap, of G and D."""
    together(
        2,
        TESTS / "workers.py",
        "swap",
        tmp_path,
        *command(tmp_path / "run", "batching.micro_batch=8", "total_kimg=0.7", "eval.metrics=[fid]")[1:],
    )
    told = sorted(p.read_text() for p in tmp_path.glob("swap-*"))
    assert len(told) == 4  # two swaps on two processes
    assert {text.split(" ", 1)[1] for text in told} == {"world 2, at 320: batch 32, rounds 2", "world 2, at 640: batch 48, rounds 3"}


# ---- every averager in a run -----------------------------------------------------------------------------------------

EVERY = [
    "averagers={lawa: {name: lawa, k: 3, every_kimg: 0.032}, bema: {name: bema, every_kimg: 0.032, step_kimg: 0.016, networks: gd},"
    " look: {name: lookahead, every_kimg: 0.08}, steps: {name: ema_steps, decay: 0.9, networks: gd},"
    " away: {name: ema, half_life_kimg: 0.1, offload: true, update_every_kimg: 0.05, networks: gd}}",
    "total_kimg=0.64",
]


@pytest.mark.slow
def test_every_averager_follows_a_run_over_both_networks_and_resumes_in_the_same_bits(gantrain, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    gantrain(*command(whole, *EVERY))
    for total in ("0.32", "0.64"):
        gantrain(*command(halves, *EVERY[:1], f"total_kimg={total}"))
    files = {p.name for p in newest(whole).glob("*.safetensors")}
    names = {"lawa", "bema", "look", "steps", "away", "swa", "ema", "ema_short", "ema_long", "power_05", "power_10"}
    assert {f"average.{name}.safetensors" for name in names} <= files
    assert {f for f in files if f.startswith("average_d.")} == {
        f"average_d.{n}.safetensors" for n in ("bema", "look", "steps", "away", "swa")
    }
    assert {f for f in files if f.startswith("slots")} == {"slots.lawa.safetensors", "slots.bema.safetensors", "slots_d.bema.safetensors"}
    for name in files:
        assert (newest(whole) / name).read_bytes() == (newest(halves) / name).read_bytes(), f"{name} differs"
    last = [line for line in lines_of(whole) if "eval/live/digits_fid" in line][-1]
    assert names <= {key.split("/")[1] for key in last if key.startswith("eval/")}


# ---- rebuilt averages ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rebuilt_average_is_the_tracked_one_and_is_sampled_and_scored_by_name(swapped, gantrain, tmp_path):
    """sigma_rel 0.10 is one of the stored profiles, so that rebuilding it must give the tracked average up to half precision."""
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    said = gantrain("average", run, "--sigma-rel", "0.1").stdout
    assert said.startswith("sigma_rel_0.1_at_0.976: sigma_rel 0.1 at 0.976 kimg from ") and "relative profile error 0.00%" in said
    assert f"gantrain sample {run} --average sigma_rel_0.1_at_0.976" in said
    rebuilt, tracked = (weights_of(load_generator(run, name)) for name in ("sigma_rel_0.1_at_0.976", "power_10"))
    for name, tensor in tracked.items():
        torch.testing.assert_close(rebuilt[name], tensor, rtol=2**-10, atol=1e-6)
    gantrain("sample", run, "--average", "sigma_rel_0.1_at_0.976", "--num", "4", "--out", tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] > 48
    gantrain("evaluate", run, "--average", "power_10,sigma_rel_0.1_at_0.976", "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["sigma_rel_0.1_at_0.976"]["digits_fid"] == pytest.approx(scores["power_10"]["digits_fid"], rel=1e-2)
    assert "sigma_rel_0.1_at_0.976" in gantrain("evaluate", run, "--num", "16").stdout


@pytest.mark.slow
def test_another_length_at_another_time_under_another_name(swapped, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    said = gantrain("average", run, "--sigma-rel", "0.12", "--at-kimg", "0.64", "--name", "mine").stdout
    assert said.startswith("mine: sigma_rel 0.12 at 0.64 kimg from 16 snapshots of power_05, power_10;")
    state = json.loads((run / "averages" / "mine" / "state.json").read_text())
    assert state["sigma_rel"] == 0.12 and sum(state["coefficients"].values()) == pytest.approx(1.0) and len(state["coefficients"]) == 16
    assert 0 < state["profile_error"] < 0.02
    assert "mine" not in gantrain("evaluate", run, "--num", "16").stdout  # it belongs to another moment than the checkpoint
    assert "mine" in gantrain("evaluate", run, "--num", "16", "--average", "mine").stdout


@pytest.mark.slow
def test_a_sweep_scores_draws_and_keeps_the_best(swapped, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    said = gantrain("average", run, "--sweep", "0.01:0.21:5", "--num", "32").stdout
    assert "sigma_rel 0.01 is left out: the profile would be off by" in said
    record = json.loads((run / "evaluations" / "sweep-000000000976.json").read_text())
    assert record["sigma_rel"] == [0.06, 0.11, 0.16, 0.21] and record["eval/num_samples"] == 32 and record["by"] == "digits_fid"
    fids = {float(s): row["digits_fid"] for s, row in record["scores"].items()}
    assert record["best"] == min(fids, key=fids.get)
    name = f"sigma_rel_{record['best']:g}_at_0.976"
    assert f"best digits_fid: sigma_rel {record['best']:g}, stored as {name}" in said
    assert load_generator(run, name) is not None
    # The curve is the scores of averages rebuilt one by one.
    gantrain("average", run, "--sigma-rel", "0.16")
    gantrain("evaluate", run, "--average", "sigma_rel_0.16_at_0.976", "--num", "32", "--out", tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["scores"]["sigma_rel_0.16_at_0.976"] == record["scores"]["0.16"]
    picture = np.asarray(Image.open(run / "evaluations" / "sweep-000000000976.png").convert("RGB")).astype(int)
    assert picture.shape[1] > 800 and (abs(picture - channels(COLOURS[0])).sum(-1) < 30).sum() > 200  # the curve is there


def test_the_last_whole_snapshot_is_the_last(swapped, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    before, last = sorted((run / "averages").iterdir())[-2:]
    (last / "average.power_10.safetensors").write_bytes(b"")
    said = gantrain("average", run, "--sigma-rel", "0.1").stdout
    assert f"{last.name}/average.power_10.safetensors" in said
    assert f"sigma_rel 0.1 at {int(before.name) / 1000:g} kimg from" in said


def test_the_nearest_snapshot_is_taken_and_said(swapped, gantrain, tmp_path):
    """Growth moves snapshots off round numbers, which nobody knows by heart."""
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    assert gantrain("average", run, "--sigma-rel", "0.1", "--at-kimg", "0.65").stdout.startswith(
        "sigma_rel_0.1_at_0.64: sigma_rel 0.1 at 0.64 kimg"
    )


@pytest.mark.slow
def test_a_rebuilt_average_keeps_its_name_and_its_time(swapped, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    gantrain("average", run, "--sigma-rel", "0.12", "--at-kimg", "0.64", "--name", "mine")
    error = error_of(gantrain("average", run, "--sigma-rel", "0.12", "--name", "mine", check=False))
    assert "--name: 'mine' is already an average of sigma_rel 0.12 at 0.64 kimg" in error
    said = gantrain("evaluate", run, "--average", "live,mine", "--num", "16", "--out", tmp_path / "scores.json").stdout
    assert f"{run} at 0.976 kimg; mine at 0.64 kimg, 16 samples, BatchNorm recalibrate" in said
    assert json.loads((tmp_path / "scores.json").read_text())["nimg_of_rebuilt"] == {"mine": 640}
    for verb in ("evaluate", "sample"):
        error = error_of(gantrain(verb, run, "--average", "mine", "--kimg", "0.976", check=False))
        assert "--kimg: mine was rebuilt at 0.64 kimg, so --kimg 0.976 does not apply; omit --kimg" in error


def test_a_damaged_snapshot_is_named_and_left_out(swapped, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    broken = run / "averages" / "000000000480" / "average.power_05.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    said = gantrain("average", run, "--sigma-rel", "0.12").stdout
    assert "000000000480/average.power_05.safetensors" in said and "skipped" in said and "relative profile error" in said


BAD = [
    (["--sigma-rel", "0.5"], "--sigma-rel: must be above 0 and at most 0.2887"),
    (["--sigma-rel", "nan"], "--sigma-rel: must be above 0 and at most 0.2887"),
    (["--sigma-rel", "0.01"], "kimg: the profile would be off by"),
    (["--sigma-rel", "0.01"], "they can give 0.0"),
    (["--sigma-rel", "0.1", "--at-kimg", "5"], "--at-kimg: {run} has no snapshot near 5 kimg; it has 12, from 0.08 to 0.976 kimg"),
    (["--sigma-rel", "0.1", "--at-kimg", "nan"], "--at-kimg: {run} has no snapshot near nan kimg"),
    (["--sigma-rel", "0.1", "--name", "ema"], "--name: 'ema' is not possible"),
    (["--sigma-rel", "0.1", "--name", "../x"], "--name: '../x' is not possible"),
    (["--sigma-rel", "0.1", "--name", "12"], "--name: '12' is not possible"),
    (["--sweep", "0.1:0.05:3"], "--sweep: must be LOW:HIGH:COUNT such as 0.02:0.25:8"),
    (["--sweep", "0.1"], "--sweep: must be LOW:HIGH:COUNT"),
    (["--sweep", "0.001:0.002:2"], "--sweep: 0.001 cannot be rebuilt from"),
    (["--sweep", "0.1:0.2:2", "--name", "x"], "--name: 'x' only applies to --sigma-rel"),
    (["--sigma-rel", "0.1", "--num", "64"], "--num: only applies to --sweep"),
    ([], "one of the arguments --sigma-rel --sweep is required"),
    (["--sigma-rel", "0.1", "--sweep", "0.1:0.2:2"], "not allowed with argument"),
]


@pytest.mark.parametrize("arguments, words", every_third(BAD), ids=[" ".join(a) for a, _ in BAD])
def test_what_cannot_be_rebuilt_is_one_line(swapped, gantrain, arguments, words):
    assert words.format(run=swapped[0]) in error_of(gantrain("average", swapped[0], *arguments, check=False))


@pytest.mark.slow
def test_a_run_without_snapshots_says_how_to_keep_some(gantrain, tmp_path):
    run = tmp_path / "run"
    gantrain(*command(run, "averagers.power_05=null", "averagers.power_10=null", "swap.source=null", "total_kimg=0.16"))
    error = error_of(gantrain("average", run, "--sigma-rel", "0.1", check=False))
    assert f"{run}: has no snapshots" in error and "snapshot_every_kimg" in error


# ---- BatchNorm policies ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_average_under_every_policy(swapped, gantrain, tmp_path):
    out = tmp_path / "all.json"
    said = gantrain("evaluate", swapped[0], "--average", "live,swa", "--batchnorm", "all", "--num", "64", "--out", out).stdout
    blocks = said.split("\n\n")
    assert len(blocks) == 2
    assert blocks[0].splitlines()[1].split() == ["digits_fid", "recalibrate", "copy", "average", "batch"]
    assert [line.split()[0] for line in blocks[0].splitlines()[2:]] == ["live", "swa"]
    record = json.loads(out.read_text())
    assert record["eval/batchnorm"] == ["recalibrate", "copy", "average", "batch"]
    assert record["eval/batchnorm_batches"] == {"recalibrate": "2 x 32", "copy": None, "average": None, "batch": "32"}
    fid = {policy: {name: row["digits_fid"] for name, row in scores.items()} for policy, scores in record["scores_by_batchnorm"].items()}
    assert fid["copy"]["live"] == fid["average"]["live"]  # the live weights' own running statistics
    assert len({fid[policy]["swa"] for policy in fid}) == 4
    # Each column is what that policy alone gives.
    for policy in ("copy", "average", "batch"):
        gantrain("evaluate", swapped[0], "--average", "swa", "--batchnorm", policy, "--num", "64", "--out", tmp_path / f"{policy}.json")
        alone = json.loads((tmp_path / f"{policy}.json").read_text())
        assert alone["scores"]["swa"]["digits_fid"] == fid[policy]["swa"] and alone["eval/batchnorm"] == policy


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["average", "batch"])  # the other two are in test_evaluation.py
def test_a_run_scores_and_draws_under_each_policy_as_evaluate_does(gantrain, tmp_path, policy):
    run = tmp_path / "run"
    gantrain(*command(run, f"eval.batchnorm={policy}", "total_kimg=0.32", "swap.source=null"))
    line = [line for line in lines_of(run) if "eval/swa/digits_fid" in line][-1]
    assert line["eval/batchnorm"] == policy
    gantrain("evaluate", run, "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    for name in ("live", "swa", "ema"):
        assert scores[name]["digits_fid"] == line[f"eval/{name}/digits_fid"]


def test_the_generator_of_each_policy_draws_what_the_policy_says(swapped):
    """copy and average differ in the statistics alone; batch normalises by the batch at hand and leaves the running ones."""
    networks = {policy: load_generator(swapped[0], "swa", batchnorm=policy) for policy in ("copy", "average", "batch")}
    live = load_generator(swapped[0], "live", batchnorm="copy")
    averaged = load_file(newest(swapped[0]) / "average.swa.safetensors")
    assert torch.equal(networks["copy"].last_norm.running_mean, live.last_norm.running_mean)
    assert torch.equal(networks["average"].last_norm.running_mean, averaged["last_norm.running_mean"])
    generator = networks["batch"]
    z, y = torch.randn(8, generator.dim_z), torch.zeros(8, dtype=torch.int64)
    before = generator.last_norm.running_mean.clone()
    with torch.no_grad():
        whole, half = generator(z, y), generator(z[:4], y[:4])
    assert torch.equal(before, generator.last_norm.running_mean) and not torch.allclose(whole[:4], half)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["evaluate", "--batchnorm", "standing"], "--batchnorm: there is no policy 'standing'"),
        (["sample", "--batchnorm", "standing"], "batchnorm: must be one of recalibrate, copy, average, batch, got 'standing'"),
    ],
)
def test_an_unknown_policy_is_one_line(swapped, gantrain, arguments, words):
    verb, *options = arguments
    assert words in error_of(gantrain(verb, swapped[0], *options, check=False))


# ---- what cannot be --------------------------------------------------------------------------------------------------

REFUSED = [
    (["swap.source=sva"], "swap.source must name one of averagers (swa, ema, ema_short, ema_long, power_05, power_10), got 'sva'"),
    (["averagers.swa=null"], "swap.source must name one of averagers"),
    (["batching.max_batch=null"], "swap.growth above 1 needs batching.max_batch, the largest batch allowed, got 2"),
    (
        ["batching.name=fixed"],
        "above 1 needs a batch that grows at swaps; set batching.name=on_swap and batching.max_batch, got 2",
    ),
    (["batching.max_batch=16", "batching.batch_size=64"], "batching.max_batch must be at least batch_size (64), or null, got 16"),
    (["swap.start_kimg=0.1"], "swap.start_kimg must be at least averagers.swa.start_kimg (0.16), the start of that average, got 0.1"),
    (["swap.growth=0.5"], "swap.growth must be a number of at least 1, or auto, got 0.5"),
    (["swap.growth=much"], "swap.growth must be a number of at least 1, or auto, got 'much'"),
    (
        ["swap.growth=auto", "averagers.ema=null", "averagers.ema_long=null"],
        "swap.growth needs two averagers of name ema with different constant half_life_kimg",
    ),
    (["swap.alpha=0"], "swap.alpha must be above 0 and at most 1, got 0"),
    (["swap.networks=dg"], "swap.networks must be one of g, gd, got 'dg'"),
    (["swap.optimizer=drop"], "swap.optimizer must be one of keep, reset_momentum, reset, got 'drop'"),
    (["swap.after_kimg=0.5"], "swap.after_kimg must be above 0 and at most every_kimg (0.32), got 0.5"),
    (["swap.lr_scale=0"], "swap.lr_scale must be above 0, got 0"),
    (
        ["swap.source=look", "averagers.look={name: lookahead}"],
        "swap.source already replaces the live weights by itself; name another average, got 'look'",
    ),
    (
        ["averagers.a={name: lookahead}", "averagers.b={name: lookahead}"],
        "averagers.b replaces the live weights with its average, as a does; keep only one",
    ),
    (["averagers.power_05.gamma=3"], "averagers.power_05.gamma cannot be combined with sigma_rel; set only one of them, got 3"),
    (
        ["averagers.power_05.sigma_rel=0.3"],
        "averagers.power_05.sigma_rel must be above 0 and at most 0.2887, the width of the plain mean, got 0.3",
    ),
    (["averagers.look={name: lookahead, offload: true}"], "averagers.look.offload must be false"),
    (["averagers.ema.networks=d"], "averagers.ema.networks must be one of g, gd, got 'd'"),
    (["averagers.ema.update_every_kimg=0"], "averagers.ema.update_every_kimg must be above 0, or null for every update, got 0"),
    (["eval.batchnorm=standing"], "eval.batchnorm must be one of recalibrate, copy, average, batch, got 'standing'"),
]


@pytest.mark.parametrize("overrides, words", every_third(REFUSED), ids=[" ".join(o) for o, _ in REFUSED])
def test_what_cannot_be_trained_is_one_line(gantrain, tmp_path, overrides, words):
    error = error_of(gantrain(*command(tmp_path / "run", *overrides), check=False))
    assert words in error and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_settings_without_effect_are_said(gantrain, tmp_path):
    said = gantrain(
        *command(
            tmp_path / "run",
            "swap.growth=1",
            "swap.start_kimg=3",
            "averagers.power_05=null",
            "averagers.ema.offload=true",
            "total_kimg=0.032",
        )
    ).stdout
    assert "note: swap.start_kimg=3 is not before total_kimg=0.032" in said
    assert "note: batching: on_swap grows the batch at swaps, and swap.growth is 1" in said
    assert "note: averagers.power_10: snapshots of a single length rebuild few others" in said
    assert "note: averagers.ema.offload copies the live weights after every update" in said


@pytest.mark.slow
def test_growth_without_room_and_swaps_without_a_source_are_said(gantrain, tmp_path):
    said = gantrain(*command(tmp_path / "a", "batching.max_batch=16", "swap.optimizer=reset_momentum", "total_kimg=0.032")).stdout
    assert "note: batching.max_batch=16 leaves no room for another round of 16 images x 1: the batch will not grow" in said
    assert "note: swap.optimizer=reset_momentum has nothing to reset: optim.betas[0] is 0" in said
    said = gantrain(*command(tmp_path / "b", "swap.source=null", "total_kimg=0.032")).stdout
    assert "note: swap.source is null: the other settings of swap have no effect" in said


@pytest.mark.slow
def test_the_report_is_in_order_after_a_resume_and_extension(swapped, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swapped[0], run)
    said = gantrain(*command(run, "total_kimg=1.1")).stdout
    report = said[said.index("live weights at the swaps:") : said.index("done:")].splitlines()
    first = swapped[1][swapped[1].index("live weights at the swaps:") : swapped[1].index("done:")].splitlines()
    assert report[:8] == first[:8] and report[8].split()[0] == "0.976"  # the swap that was due at the old end


def test_growth_by_less_than_a_round_adds_up():
    """16 -> 24 -> 36 -> 54 asked for; whole rounds of 16 are 16, 32, 48, and never more than the cap."""
    controller = BatchController(OnSwap(batch_size=16, micro_batch=16, max_batch=48), world=1)
    sizes = []
    for nimg in range(100, 500, 100):
        controller.ask(nimg, growth=1.5)
        controller.ask(nimg + 50)  # an update without a swap changes nothing
        sizes.append((controller.batch_size, controller.rounds, round(controller.proposal, 3)))
    assert sizes == [(16, 1, 24.0), (32, 2, 36.0), (48, 3, 48.0), (48, 3, 48.0)]
    again = BatchController(OnSwap(batch_size=16, micro_batch=16, max_batch=48), world=1)
    again.load(json.loads(json.dumps(controller.state())))
    assert (again.batch_size, again.rounds, again.proposal) == (48, 3, 48.0)
