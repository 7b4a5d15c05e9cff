"""Batches that grow in whole runs of configs/digits.yaml at tiny size: what stays as it was, who decides, and what is said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spawning
import torch
from conftest import ROOT, TESTS, TINY, error_of, lines_of, slow_but
from test_commands import newest

from gantrain.batching.noise_scale import layer_of
from gantrain.commands.noise_scale import format_images
from gantrain.config.loading import load
from gantrain.data import RealBatches, prepare
from gantrain.images import to_float
from gantrain.losses import R1, Hinge
from gantrain.run_folder import checkpoint, contents
from gantrain.sampling import latents
from gantrain.sampling.sheets import to_pil
from gantrain.training import trainer as trainer_module, update
from gantrain.training.trainer import Trainer

DIGITS = ROOT / "configs" / "digits.yaml"
# From 16 images to 48 and 80, in rounds of 16; nothing periodic divides anything.
GROWS = "batching={name: schedule, batch_size: 16, micro_batch: 16, milestones: [[0.1, 48], [0.3, 80]]}"
SIZES = [16] * 7 + [48] * 4 + [80] * 9  # 112 images, 304, and on to 1024
ENDS = np.cumsum(SIZES).tolist()


class Watched(Trainer):
    """A trainer that keeps what happens in it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen: list[dict] = []
        self.did: list[tuple[str, int]] = []
        self.scoreboard.evaluate = self.noting("evaluate", self.scoreboard.evaluate)
        self.saving.save = self.noting("save", self.saving.save)
        self.pictures.draw_samples = self.noting("samples", self.pictures.draw_samples)

    def update(self) -> None:
        phases, drawn = [], []
        original = trainer_module.discriminator_phase, latents.draw

        def phase(G, D, loss, rounds, k, probe, penalties, setting):
            pairs = list(rounds)
            phases.append(
                {"k": k, "images": torch.cat([real[0] for real, _ in pairs]), "penalties": penalties, "measured": probe is not None}
            )
            return original[0](G, D, loss, iter(pairs), k, probe, penalties, setting)

        def draw(*arguments, **kwargs):
            drawn.append(original[1](*arguments, **kwargs)[0])
            return original[1](*arguments, **kwargs)

        trainer_module.discriminator_phase, latents.draw = phase, draw
        try:
            super().update()
        finally:
            trainer_module.discriminator_phase, latents.draw = original
        rates = list(self.players.rates.values())
        weights = {name: p.detach().clone() for name, p in self.players.G.network.named_parameters()}
        self.seen.append({"nimg": self.run.nimg, "phases": phases, "latents": torch.cat(drawn), "rates": rates, "weights": weights})

    def noting(self, what: str, do):
        """The same function; each call of it is noted."""

        def noted(*arguments, **kwargs):
            self.did.append((what, self.run.nimg))
            return do(*arguments, **kwargs)

        return noted


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Watched:
    """A run through two growths, with everything on that goes by images."""
    settings = [
        *TINY, GROWS, "total_kimg=1", "eval.every_kimg=0.13", "eval.metrics=[fid]", "checkpoint.every_kimg=0.11",
        "tracking.samples_every_kimg=0.21",
        "averagers.ema={half_life_kimg: 0.2, ramp_up: null}", "swap={source: swa, start_kimg: 0.2, every_kimg: 0.25, after_kimg: 0.1}",
        "optim.lr_tail={kind: cyclical, start_kimg: 0.2, cycle_kimg: 0.15}", "optim.d_steps=2", "noise_scale.measure_every=3",
        "penalties={r1: {name: r1, gamma: 0.5, every: 3}, always: {name: r2, every: 1}}", "data.flip=true",
    ]  # fmt: skip
    trainer = Watched(load(DIGITS, [*settings, f"run_dir={tmp_path_factory.mktemp('grown') / 'run'}"]))
    trainer.train()
    return trainer


# ---- what stays as it was --------------------------------------------------------------------------------------------


def test_the_batch_grows_by_rounds_at_its_images(grown):
    assert [seen["nimg"] for seen in grown.seen] == ENDS
    assert [[phase["k"] for phase in seen["phases"]] for seen in grown.seen] == [[size // 16] * 2 for size in SIZES]
    growth = [line for line in lines_of(grown.context.run_dir) if line.get("event") == "growth"]
    assert [(g["nimg"], g["from"], g["to"], g["rounds"], g["reason"]) for g in growth] == [
        (112, 16, 48, 3, "the schedule sets 48 from 0.1 kimg on"), (304, 48, 80, 5, "the schedule sets 80 from 0.3 kimg on"),
    ]  # fmt: skip


def test_half_lives_stay_in_images(grown):
    """Every update's weights count half as much 200 images later, whatever the batch was: worked out from the weights themselves."""
    swaps = {line["nimg"] for line in lines_of(grown.context.run_dir) if line.get("event") == "swap" and line["moment"] == "at"}
    assert len(swaps) == 3
    torch.manual_seed(grown.config.seed)
    expected = {
        name: p.detach() for name, p in grown.config.model.build(16, 1, 10)[0].named_parameters()
    }  # the average begins as the initial weights
    for seen, size in zip(grown.seen, SIZES):
        half = 0.5 ** (size / 200)
        expected = {name: half * e + (1 - half) * seen["weights"][name] for name, e in expected.items()}
    found = grown.players.bank["ema"].shadows
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_learning_rates_go_by_images(grown):
    """Izmailov et al.'s cycle from 200 images on, 150 long: the rate an update has is that of the image it ends at."""
    begins = [0, *ENDS[:-1]]
    for seen, before, after in zip(grown.seen, begins, ENDS):
        if after <= 200:
            multiplier = 1.0
        else:
            into = (max(before, 200) - 200) % 150 + after - before
            multiplier = 0.5 + min(1.0, into / 150) * (0.05 - 0.5)
        assert seen["rates"] == pytest.approx([multiplier * grown.config.optim.lr_g, multiplier * grown.config.optim.lr_d])


@pytest.mark.parametrize("what, every", [("evaluate", 130), ("save", 110), ("samples", 210)])
def test_evaluations_checkpoints_and_samples_are_due_by_images(grown, what, every):
    expected = [0, *(after for before, after in zip([0, *ENDS], ENDS) if after // every != before // every)]
    assert [nimg for did, nimg in grown.did if did == what] == list(dict.fromkeys([*expected, ENDS[-1]]))


def test_swaps_are_due_by_images(grown):
    at = [line["nimg"] for line in lines_of(grown.context.run_dir) if line.get("event") == "swap" and line["moment"] == "at"]
    assert at == [next(end for end in ENDS if end >= due) for due in (200, 450, 700)]  # that of 950 falls on the end


def test_the_stream_has_no_gap_and_nothing_twice(grown):
    """Two D steps an update: the images of all positions in order, as one process with one round would draw them."""
    shown = torch.cat([phase["images"] for seen in grown.seen for phase in seen["phases"]])
    images = prepare(grown.config.data, torch.device("cpu"))
    stream = RealBatches(images, grown.config.seed, len(shown), 0, 1, 0, torch.device("cpu"), flip=True)
    assert len(shown) == 2 * ENDS[-1] and torch.equal(shown, to_float(stream.next()[0]))


def test_latents_are_those_of_their_positions(grown):
    for seen, size in zip(grown.seen, SIZES):
        start = seen["nimg"] - size
        parts = [
            latents.draw(grown.config.seed, purpose, start, size, grown.players.G.network.dim_z, 10)[0] for purpose in ("d0", "d1", "g")
        ]
        order = torch.cat([seen["latents"]])
        assert torch.equal(order, torch.cat(parts))


def test_lazy_penalties_come_every_so_many_steps_and_count_for_those_without(grown):
    steps = [phase for seen in grown.seen for phase in seen["phases"]]
    lazy, always = grown.config.penalties["r1"], grown.config.penalties["always"]
    for i, phase in enumerate(steps):
        assert [one[:2] for one in phase["penalties"]] == ([(lazy, 3.0)] if i % 3 == 0 else []) + [(always, 1.0)]


def test_noise_is_measured_every_third_update_at_a_step_without_a_lazy_penalty(grown):
    """Updates 0, 3, 6, ...: of D's two steps the first that has no lazy penalty."""
    for number, seen in enumerate(grown.seen):
        steps = [2 * number, 2 * number + 1]
        free = next(i for i, step in enumerate(steps) if step % 3)
        assert [phase["measured"] for phase in seen["phases"]] == [number % 3 == 0 and i == free for i in range(2)]
    line = [line for line in lines_of(grown.context.run_dir) if "loss/d" in line][-1]
    last_swap = next(i for i, end in enumerate(ENDS) if end >= 700)
    since = sum(1 for number in range(last_swap + 1, len(SIZES)) if number % 3 == 0)
    assert line.get("noise_scale/G/measurements", 0) == since  # a swap forgets what was measured before


def test_the_penalty_is_r1_and_enters_the_gradient_with_its_factor():
    """gamma / 2 E |grad D(x)|^2 at real images, differentiated by hand, in rounds: the mean over all of them."""
    from game import gradients, networks, player, real, rounds

    from gantrain.training.update import discriminator_phase

    G, D = networks(spectral_norm=False)
    x, y = real(0, 8)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(x, y).sum(), x, create_graph=True)
    expected = torch.autograd.grad(3.0 * 0.7 / 2 * gradient.square().flatten(1).sum(1).mean(), list(D.parameters()), allow_unused=True)
    found = []
    for penalties in ([], [(R1(gamma=0.7), 3.0)]):
        G, D = networks(spectral_norm=False)
        discriminator_phase(player(G), player(D), Hinge(), rounds(4, 2), 2, penalties=penalties)
        found.append(gradients(D))
    vectors = []
    for penalties in ([], [(R1(gamma=0.7), 3.0)]):  # spectral norms iterate once a phase, with or without
        G, D = networks()
        stats = discriminator_phase(player(G), player(D), Hinge(), rounds(4, 2), 2, penalties=penalties)
        vectors.append({name: tensor for name, tensor in D.state_dict().items() if name.endswith(("._u", "._v"))})
    assert stats["loss/penalty"] > 0 and all(torch.equal(tensor, vectors[1][name]) for name, tensor in vectors[0].items())
    for (name, plain), more, extra in zip(found[0].items(), found[1].values(), expected):
        torch.testing.assert_close(
            more - plain,
            torch.zeros_like(plain) if extra is None else extra,
            rtol=1e-8,
            atol=1e-10,
            msg=lambda m, name=name: f"{name}: {m}",
        )


# ---- who decides -----------------------------------------------------------------------------------------------------

NOISY = [
    "noise_scale={measure_every: 1, window: 8}", "total_kimg=1.3", "eval.every_kimg=null", "eval.metrics=[fid]",
    "tracking.samples_every_kimg=null",
    "batching={name: noise_scale, batch_size: 16, micro_batch: 8, max_batch: 64, target: 0.3, gate: g, dwell_kimg: 0.2, patience: 2}",
]  # fmt: skip


def events_of(run: Path) -> list[dict]:
    return [line for line in lines_of(run) if line.get("event") == "growth"]


@pytest.fixture(scope="module")
def undisturbed(gantrain, tmp_path_factory) -> Path:
    """A run whose noise doubles its batch twice, up to the cap."""
    run = tmp_path_factory.mktemp("noisy") / "run"
    (run.parent / "said").write_text(gantrain("train", DIGITS, f"run_dir={run}", *TINY, *NOISY).stdout)
    return run


@pytest.fixture(scope="module")
def of_two_processes(together, tmp_path_factory) -> dict[str, Path]:
    """The same training by two processes, as it is and with a policy on the second that asks for more: their folders."""
    folders = {case: tmp_path_factory.mktemp(case) for case in ("command", "disagree")}
    settings = {case: [DIGITS, f"run_dir={folder / 'run'}", *TINY, *NOISY] for case, folder in folders.items()}
    words = ["command", folders["command"], "train", *settings["command"], "--", "disagree", folders["disagree"], *settings["disagree"]]
    together(2, TESTS / "workers.py", *words)
    assert all(sorted(p.read_text() for p in folder.glob("world-*")) == ["2", "2"] for folder in folders.values())
    return folders


@pytest.mark.slow
def test_noise_grows_the_batch_when_two_checks_agree_and_a_dwell_has_passed(undisturbed):
    """A check is over 8 updates: 128 images at first, 256 with the batch of 32. The first three are below 0.45 batches."""
    growth = events_of(undisturbed)
    assert [(g["nimg"], g["from"], g["to"], g["rounds"]) for g in growth] == [(5 * 128, 16, 32, 4), (5 * 128 + 2 * 256, 32, 64, 8)]
    for one in growth:
        assert one["reason"].startswith("G's noise scale is ") and one["reason"].endswith("above 0.3 x 1.5 in 2 checks")


@pytest.mark.slow
def test_two_processes_decide_as_one_does(of_two_processes, undisturbed):
    """Two rounds of 8 on one process, one round of 8 on each of two: the same growth at the same image for the same reason."""
    run = of_two_processes["command"] / "run"
    assert lines_of(run)[0]["processes"] == 2 and lines_of(undisturbed)[0]["processes"] == 1
    told = [[(g["nimg"], g["from"], g["to"]) for g in events_of(one)] for one in (run, undisturbed)]
    assert told[0] == told[1] and len(told[0]) == 2
    assert [g["rounds"] for g in events_of(run)] == [2, 4]
    found, expected = ([line for line in lines_of(one) if "noise_scale/D/tr_sigma" in line] for one in (run, undisturbed))
    for ours, theirs in zip(found[:4], expected[:4]):  # rounding grows with time
        assert ours["nimg"] == theirs["nimg"]
        for key in ("noise_scale/D/tr_sigma", "noise_scale/D/g_squared", "noise_scale/G/tr_sigma", "noise_scale/G/g_squared"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-2, abs=1e-3 * abs(theirs[key.replace("g_squared", "tr_sigma")]))


@pytest.mark.slow
def test_the_main_process_has_the_word(of_two_processes):
    """The other process's policy is made to ask for more: it gets what the main one says."""
    folder = of_two_processes["disagree"]
    said = sorted(p.read_text() for p in folder.glob("batch-*"))
    assert len(said) == 2 and said[0] == said[1] and json.loads(said[0])["world"] == 2
    assert [[g["from"], g["to"]] for g in events_of(folder / "run")] == json.loads(said[0])["sizes"] == [[16, 32], [32, 64]]


@pytest.mark.slow
def test_killed_in_a_dwell_it_decides_as_if_nothing_had_happened(undisturbed, gantrain, tmp_path):
    """SIGKILL between the growths, with measurements and a check's part in hand; then to the same bits."""
    run = tmp_path / "run"
    words = ["train", str(DIGITS), f"run_dir={run}", *TINY, *NOISY, "checkpoint.every_kimg=0.05"]
    code = (
        "import os, signal, sys; from gantrain import cli; from gantrain.training.trainer import Trainer; update = Trainer.update\n"
        "def killed(trainer):\n"
        "    if trainer.run.nimg >= 1000: trainer.keeper.collect(trainer.run.nimg, wait=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    update(trainer)\n"
        "Trainer.update = killed; cli.main(sys.argv[1:])"
    )
    assert spawning.run(["-c", code, *words], os.environ).returncode == -signal.SIGKILL
    at = checkpoint.CheckpointStore(run / "checkpoints").newest()
    noise = checkpoint.read(at, groups=[]).state["batching"]["noise"]
    assert (
        at.name == "000000001024" and noise["fresh"] == {"d": 4, "g": 4} and len(noise["checks"]) == 1 and len(noise["windows"]["d"]) == 8
    )
    assert "resumed at" in gantrain(*words).stdout
    a, b = events_of(undisturbed), events_of(run)
    assert a == b
    files = sorted(p.name for p in newest(run).glob("*.safetensors"))
    assert newest(run).name == newest(undisturbed).name
    for name in files:
        assert (newest(run) / name).read_bytes() == (newest(undisturbed) / name).read_bytes(), f"{name} differs"
    states = [json.loads((newest(one) / "state.json").read_text())["batching"] for one in (run, undisturbed)]
    assert states[0] == states[1] and states[0]["batch_size"] == 64


# ---- what a person sees ----------------------------------------------------------------------------------------------


def noise_shown(line: dict, of: str) -> str:
    """A noise scale as the console line ends with it."""
    if line[f"{of}/undecidable"]:
        return "?"
    return f">{line[f'{of}/b_simple_low']:.0f}" if line[f"{of}/unbounded"] else f"{line[f'{of}/b_simple']:.0f}"


@pytest.mark.slow
def test_the_record_and_the_console_tell_of_batch_and_noise(undisturbed):
    lines = [line for line in lines_of(undisturbed) if "loss/d" in line]
    for line in lines:
        assert line["batch/size"] == line["batch/micro_batch"] * line["batch/rounds"]
        for player in ("D", "G"):
            of = {
                key.removeprefix(f"noise_scale/{player}/"): value for key, value in line.items() if key.startswith(f"noise_scale/{player}/")
            }
            assert of["undecidable"] in (0, 1) and of["measurements"] <= 8
            if of["g_squared"] > 0 and of["tr_sigma"] > 0:
                assert of["b_simple"] == pytest.approx(of["tr_sigma"] / of["g_squared"]) and of["ratio"] == pytest.approx(
                    of["b_simple"] / line["batch/size"]
                )
            else:
                assert "b_simple" not in of and (of["undecidable"] or of["unbounded"])
            assert ("b_simple_high" in of) == (not of["undecidable"] and not of["unbounded"]) == ("ratio_high" in of)
            if not of["undecidable"] and not of["unbounded"]:
                assert of["ratio_low"] < of["ratio"] < of["ratio_high"] and of["b_simple_low"] < of["b_simple"] < of["b_simple_high"]
    assert any(not line["noise_scale/G/undecidable"] for line in lines)
    said = (undisturbed.parent / "said").read_text().splitlines()
    shown = [line for line in said if " kimg " in line and "loss D" in line]
    for text, line in zip(shown, lines):
        d, g = (noise_shown(line, f"noise_scale/{p}") for p in ("D", "G"))
        assert re.search(rf"\| batch {line['batch/size']} +\|.* GiB \| noise D {re.escape(d)} +G {re.escape(g)}( \| to go: .+)?$", text)
    told = [line for line in said if line.startswith("growth at ")]
    assert told == [
        "growth at {at:g} kimg: batch {from} -> {to}: {reason}".format(at=g["nimg"] / 1000, **g) for g in events_of(undisturbed)
    ]


@pytest.mark.slow
def test_one_process_with_one_round_is_measured_in_halves_and_says_so(gantrain, tmp_path):
    said = gantrain("train", DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, "noise_scale.measure_every=2", "eval.every_kimg=null").stdout
    halves = "a measured update is computed in two halves of 8 images, and BatchNorm sees half a micro-batch"
    assert f"note: noise_scale: an update has one micro-batch, so {halves}" in said
    line = [line for line in lines_of(tmp_path / "run") if "loss/d" in line][-1]
    assert line["noise_scale/D/measurements"] == line["noise_scale/G/measurements"] == 10
    state = json.loads((newest(tmp_path / "run") / "state.json").read_text())["batching"]["noise"]
    assert state["micro_batch"] == {"d": 8, "g": 8}


def test_an_odd_micro_batch_has_no_halves(gantrain, tmp_path):
    done = gantrain(
        "train", DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, "batching.batch_size=15", "noise_scale.measure_every=2", check=False
    )
    words = "one round of 15 images on one process cannot be split into halves; use an even micro_batch, or two rounds"
    assert f"noise_scale.measure_every: {words}" in error_of(done)


@pytest.mark.slow
def test_layers_are_told_of_where_asked(gantrain, tmp_path):
    gantrain(
        "train",
        DIGITS,
        f"run_dir={tmp_path / 'run'}",
        *TINY,
        "noise_scale={measure_every: 2, per_layer: true}",
        "eval.every_kimg=null",
        "total_kimg=0.16",
    )
    line = [line for line in lines_of(tmp_path / "run") if "loss/d" in line][-1]
    networks = dict(zip("GD", load(DIGITS, TINY).model.build(16, 1, 10)))
    for player, network in networks.items():
        layers = {layer_of(name) for name, _ in network.named_parameters()}
        assert "blocks.0.conv1" in layers
        for value in ("tr_sigma", "g_squared"):
            parts = [line[f"noise_scale/{player}/{layer}/{value}"] for layer in layers]
            assert sum(parts) == pytest.approx(line[f"noise_scale/{player}/{value}"], rel=1e-9)


@pytest.mark.slow
def test_measuring_changes_nothing_where_there_are_rounds(gantrain, tmp_path):
    """The same weights to the last bit, measured or not."""
    for name, more in (("plain", []), ("measured", ["noise_scale.measure_every=1"])):
        gantrain(
            "train",
            DIGITS,
            f"run_dir={tmp_path / name}",
            *TINY,
            "batching.micro_batch=8",
            "tracking.samples_every_kimg=null",
            "total_kimg=0.16",
            *more,
        )
    same_networks(tmp_path / "plain", tmp_path / "measured")


def same_networks(a: Path, b: Path) -> None:
    for name in ("g", "d", "optimizer_g", "optimizer_d", "average.ema"):
        assert (newest(a) / f"{name}.safetensors").read_bytes() == (newest(b) / f"{name}.safetensors").read_bytes(), f"{name} differs"


@pytest.mark.slow
def test_a_relativistic_game_with_a_policy_of_several_resumes_in_the_same_bits(gantrain, tmp_path):
    """G's loss looks at the real images of every round; noise, schedule and swap each have a part in the batch; penalties lazy."""
    several = (
        "batching={name: largest, batch_size: 16, micro_batch: 8, max_batch: 96, lr_scaling: sqrt,"
        " of: {steps: {name: schedule, milestones: [[0.2, 32]]},"
        " swaps: {name: on_swap}, noise: {name: noise_scale, target: 0.01, dwell_kimg: 0.2, patience: 1}}}"
    )
    words = [
        *TINY,
        several,
        "loss.name=relativistic",
        "noise_scale={measure_every: 1, window: 8}",
        "penalties={r1: {name: r1, every: 3}, r2: {name: r2, every: 3}}",
    ]
    words += [
        "swap={source: swa, start_kimg: 0.4, every_kimg: 0.4, growth: 1.5, after_kimg: 0.1}",
        "eval.every_kimg=0.4",
        "eval.metrics=[fid]",
    ]
    gantrain("train", DIGITS, f"run_dir={tmp_path / 'whole'}", *words, "total_kimg=0.9")
    gantrain("train", DIGITS, f"run_dir={tmp_path / 'parts'}", *words, "total_kimg=0.5")
    gantrain("train", DIGITS, f"run_dir={tmp_path / 'parts'}", *words, "total_kimg=0.9")
    reasons = " ".join(g["reason"] for g in events_of(tmp_path / "whole"))
    assert "the schedule sets" in reasons and "the swap asks" in reasons and "noise scale is" in reasons
    lines = [line for line in lines_of(tmp_path / "whole") if "loss/d" in line]
    for line in lines:
        assert line["lr/g"] == line["lr/d"] == pytest.approx(4e-4 * (line["batch/size"] / 16) ** 0.5)
    same_networks(tmp_path / "whole", tmp_path / "parts")
    growth = [[(g["nimg"], g["to"], g["reason"]) for g in events_of(tmp_path / run)] for run in ("whole", "parts")]
    assert growth[0] == growth[1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_batch(tmp_path):
    """Peak memory of training with sixteen rounds is within 2% of one round's, though G's loss wants the real images of all of them.

    Each trains in a process of its own, forked before torch has done anything.
    """
    code = (
        "import os, sys, resource, torch; torch.set_num_threads(1)\n"
        "from gantrain.config.loading import load; from gantrain.training.trainer import Trainer\n"
        "for rounds in (1, 16):\n"
        "    if os.fork() == 0:\n"
        "        words = [f'run_dir={sys.argv[2]}/{rounds}', f'batching.batch_size={64 * rounds}']\n"
        "        t = Trainer(load(sys.argv[1], [*sys.argv[3:], *words])); t.start()\n"
        "        for _ in range(2): t.update()\n"
        "        print(t.batching.rounds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True); os._exit(0)\n"
        "    assert os.wait()[1] == 0"
    )
    # What is in use, not what the allocator keeps for later, which differs from run to run by more than 2%.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    settings = ["model.ch=8", "loss.name=relativistic", "optim.d_steps=1", "batching.micro_batch=64", "performance.keep_memory=false"]
    words = [sys.executable, "-c", code, str(DIGITS), str(tmp_path), *settings]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True, env=environment)
    found = [[int(word) for word in line.split()] for line in done.stdout.splitlines() if line[:1].isdigit()]
    (few, alone), (many, peak) = found
    assert (few, many) == (1, 16) and peak <= 1.02 * alone, found


# ---- gantrain noise-scale --------------------------------------------------------------------------------------------

PLAIN = [
    "model.name=plain_networks:PlainBigGAN",
    "batching.micro_batch=4",
    "averagers.ema.networks=gd",
    "eval.every_kimg=null",
    "tracking.samples_every_kimg=null",
]


@pytest.fixture(scope="module")
def plain(gantrain, tmp_path_factory) -> Path:
    """A finished run without BatchNorm, of 16 images in four rounds."""
    run = tmp_path_factory.mktemp("plain") / "run"
    gantrain("train", DIGITS, f"run_dir={run}", *TINY, *PLAIN, "eval.metrics=[fid]")
    return run


@pytest.mark.parametrize("average", slow_but(["ema"], ["live", "ema", "swa"]))
def test_the_noise_scale_of_a_checkpoint_is_that_of_its_gradients(plain, gantrain, tmp_path, average):
    """Against the gradients of every micro-batch by plain autograd and the U-statistic, at the weights that were asked for."""
    arguments = [] if average == "live" else ["--average", average]
    said = gantrain("noise-scale", plain, "--updates", 8, "--out", tmp_path / "n.json", *arguments).stdout
    record = json.loads((tmp_path / "n.json").read_text())
    config, path = contents.open_run(plain)
    networks = dict(zip("gd", config.model.build(16, 1, 10)))
    for key, network in networks.items():
        averaged = average != "live" and (key == "g" or average == "ema")  # D is followed by ema alone
        state = checkpoint.read(path, [key]).tensors[key]
        network.load_state_dict(state)
        if averaged:
            network.load_state_dict(
                {**state, **checkpoint.read(path, [contents.group_of(average, key)]).tensors[contents.group_of(average, key)]}
            )
        network.eval()  # no BatchNorm here; spectral norms stand still
    if average != "live":
        from gantrain.spectral_norm import refresh_spectral_norms

        for key in "gd" if average == "ema" else "g":
            refresh_spectral_norms(networks[key])
    assert record["d_is_averaged"] == (average == "ema")
    G, D = networks["g"], networks["d"]
    nimg, loss = int(path.name), Hinge()
    images, cpu = prepare(config.data, torch.device("cpu")), torch.device("cpu")
    stream = RealBatches(images, config.seed, 4, 0, 1, nimg * config.optim.d_steps, cpu, independent=True)

    def flat(value, network):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(network.parameters()))]).double()

    of = {"D": [], "G": []}
    for i in range(8):
        gradients = {"D": [], "G": []}
        for j in range(4):
            x, y = stream.next()
            z, c = latents.draw(config.seed, "d0", nimg + i * 16 + j * 4, 4, G.dim_z, 10)
            gradients["D"].append(flat(loss.discriminator(D(to_float(x), y), D(G(z, c).detach(), c)), D))
            z, c = latents.draw(config.seed, "g", nimg + i * 16 + j * 4, 4, G.dim_z, 10)
            gradients["G"].append(flat(loss.generator(None, D(G(z, c), c)), G))
        for player, each in gradients.items():
            g = torch.stack(each)
            gram = g @ g.T
            of[player].append((4 * g.var(0).sum().item(), (gram.sum() - gram.trace()).item() / 12))
    for player, values in of.items():
        found, (trace, squared) = record["noise_scale"][player], np.mean(values, axis=0)
        assert found["tr_sigma"] == pytest.approx(trace, rel=1e-3) and found["g_squared"] == pytest.approx(
            squared, rel=1e-3, abs=1e-3 * trace
        )
        assert found["measurements"] == 8
        row = next(line for line in said.splitlines() if line.startswith(f"{player} "))
        assert row.split()[1] == f"{found['tr_sigma']:.5g}"
    whose = {
        "live": "live weights",
        "ema": "ema weights of G and of D",
        "swa": "swa weights of G, live weights of D, which the run does not average",
    }[average]
    assert f"{plain} at 0.32 kimg, {whose}: gradients of 8 updates of 16 images = 4 x 4; also in {tmp_path / 'n.json'}" in said


@pytest.mark.slow
def test_it_suggests_a_batch_with_what_another_costs(plain, gantrain):
    said = gantrain("noise-scale", plain, "--updates", 32, "--per-layer").stdout
    written = sorted((plain / "evaluations").glob("noise_scale-*.json"))[-1]
    record = json.loads(written.read_text())
    assert f"also in {written}" in said
    for player in ("D", "G"):
        one = record["noise_scale"][player]
        text = next(line for line in said.splitlines() if line.startswith(f"{player}: "))
        if one["undecidable"]:
            assert "no batch can be suggested, since gradients of 16 images give no interval" in text
            continue
        if one["unbounded"]:
            assert text.startswith(
                f"{player}: suggests a batch of at least {format_images(one['b_simple_low'])}; |G|^2 cannot be told from 0"
            )
            continue
        b = one["b_simple"]
        assert text.startswith(f"{player}: suggests a batch of {max(1, round(b / 4)) * 4:,}")
        assert f"the run's 16 takes {1 + b / 16:.3g} times the minimum of updates and {1 + 16 / b:.3g} times the minimum of images" in text
    layers = record["layers"]["D"]
    assert "D, layer" in said and all(name in said for name in layers)
    assert sum(one["tr_sigma"] for one in layers.values()) == pytest.approx(record["noise_scale"]["D"]["tr_sigma"])


@pytest.mark.slow
def test_one_round_is_measured_against_a_second_and_the_game_is_the_runs(gantrain, tmp_path, monkeypatch):
    """A relativistic G sees real images; penalties of every step belong to D's gradient, lazy ones do not; nothing moves."""
    from gantrain.commands import noise_scale as measuring

    run, seen = tmp_path / "run", []
    game = ["loss.name=relativistic", "penalties={a: {name: r1, every: 1}, b: {name: r2, every: 4}}"]
    gantrain(
        "train", DIGITS, f"run_dir={run}", *TINY, *game, "eval.every_kimg=null", "tracking.samples_every_kimg=null", "eval.metrics=[fid]"
    )
    d, g = update.discriminator_phase, update.generator_phase

    def d_phase(G, D, loss, rounds, k, probe, penalties, setting):
        seen.append(
            (k, [(type(one.penalty).__name__, one.factor) for one in penalties], {n: p.clone() for n, p in D.network.state_dict().items()})
        )
        return d(G, D, loss, rounds, k, probe, penalties, setting)

    def g_phase(G, D, loss, rounds, k, probe, penalties, setting):
        pairs = list(rounds)
        assert len(pairs) == 2 and all(real[0].shape == (16, 1, 16, 16) for real, _ in pairs)
        return g(G, D, loss, iter(pairs), k, probe, penalties, setting)

    monkeypatch.setattr(measuring, "discriminator_phase", d_phase)
    monkeypatch.setattr(measuring, "generator_phase", g_phase)
    said = gantrain("noise-scale", run, "--updates", 8).stdout
    assert "gradients of 8 updates of 32 images = 2 x 16" in said
    assert [(k, penalties) for k, penalties, _ in seen] == [(2, [("R1", 1.0)])] * 8
    assert all(torch.equal(tensor, seen[-1][2][name]) for name, tensor in seen[0][2].items())


@pytest.mark.slow
@pytest.mark.parametrize("moment, kimg", {"while it is opened": 0.24, "while it is read": 0.32}.items())
def test_a_checkpoint_that_the_run_replaces_meanwhile_is_no_error(plain, gantrain, tmp_path, monkeypatch, moment, kimg):
    """The one before it is measured, or its own files, which are open."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(plain, run)
    first, owner, name = newest(run), *{"while it is opened": (checkpoint, "hold"), "while it is read": (checkpoint, "read")}[moment]
    call, gone = getattr(owner, name), []

    def vanishing(path, groups=None):
        if path == first and path.exists() and groups != []:
            gone.append(path.rename(run / "checkpoints" / "gone"))
        return call(path) if groups is None else call(path, groups)

    monkeypatch.setattr(owner, name, vanishing)
    assert f"at {kimg:g} kimg, live weights" in gantrain("noise-scale", run, "--updates", 8).stdout
    assert len(gone) == 1


@pytest.mark.parametrize("override", slow_but([], ["data.labels=false", "data.resolution=32", "data.name=folder"]))
def test_it_wants_the_data_that_the_run_was_trained_on(gantrain, tmp_path, override):
    run = tmp_path / "run"
    settings = [*TINY, "eval.every_kimg=null", "tracking.samples_every_kimg=null", "total_kimg=0.032", "checkpoint.every_kimg=1"]
    if override == "data.resolution=32":
        gantrain("train", DIGITS, f"run_dir={run}", *settings)
    else:
        for name in ("a", "b"):
            (tmp_path / "images" / name).mkdir(parents=True)
            for i in range(8):
                to_pil(torch.full((3, 16, 16), 16 * i, dtype=torch.uint8)).save(tmp_path / "images" / name / f"{i}.png")
        folder = [
            "data.name=folder",
            f"data.root={tmp_path / 'images'}",
            "data.resolution=16",
            "data.workers=0",
            "eval.num_samples=16",
            "eval.reference_samples=16",
        ]
        gantrain("train", DIGITS, f"run_dir={run}", *settings, *folder, "eval.metrics=[kid]")
        if override == "data.name=folder":
            (tmp_path / "images" / "b" / "7.png").unlink()
            override = "data.workers=0"
    error = error_of(gantrain("noise-scale", run, "--updates", 8, override, check=False))
    assert "is not what the run was trained on (other images, labels or resolution)" in error


def test_it_leaves_the_run_as_it_is_and_looks_at_one_that_goes_on(plain, gantrain, tmp_path):
    from gantrain.run_folder.ownership import acquire_lock

    files = [p for p in plain.rglob("*") if p.is_file() and "evaluations" not in p.parts and p.name != ".lock"]
    before = {path: path.read_bytes() for path in files}
    lock = acquire_lock(plain)  # as a training holds it
    gantrain("noise-scale", plain, "--updates", 8, "--kimg", 0.24, "--out", tmp_path / "n.json")
    lock.close()
    assert json.loads((tmp_path / "n.json").read_text())["nimg"] == 240
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--updates", "4"], "--updates: must be at least 8, which an interval needs, got 4"),
        (["--average", "emma"], "has no average 'emma' at 0.32 kimg; did you mean 'ema'?"),
        (["--kimg", "7"], "has no checkpoint at 7 kimg; it has 0.24, 0.32"),
        (["model.ch=4"], "model.ch=4: only data and mixed_precision can be overridden here; remove it to use the run's own value"),
        (["--out", "."], "--out: '.' must be a new .json file"),
    ],
)
def test_what_it_cannot_measure_is_one_line(plain, gantrain, arguments, words):
    assert words in error_of(gantrain("noise-scale", plain, *arguments, check=False))


@pytest.mark.slow
def test_weights_and_gradients_that_are_no_numbers_are_one_line(plain, gantrain, tmp_path):
    """Weights before anything is measured, with those that can be used instead; gradients that overflow at finite weights after it."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(plain, run)
    path = newest(run)
    for value, words in {
        float("nan"): r"the live weights of G at 0.32 kimg are not finite \(.* of .* values are nan or infinite, the first in .*\);"
        " use --average ema, which is finite at 0.32 kimg, or --kimg 0.24, where live is finite",
        3e38: "the gradients of D at 0.32 kimg are not finite numbers; choose another checkpoint with --kimg",
    }.items():
        read = checkpoint.read(plain / "checkpoints" / path.name)
        read.tensors["g"]["first.bias"].fill_(value)
        checkpoint.write(path, read.nimg, read.tensors, read.state)
        assert re.search(words, error_of(gantrain("noise-scale", run, "--updates", 8, check=False)))


def test_it_says_that_one_process_is_enough(plain, gantrain, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "noise-scale: runs in one process; start it without `accelerate launch`" in error_of(gantrain("noise-scale", plain, check=False))
