"""What is added to the losses: penalties with state, the augmentation of what D sees, paired labels, and the order of the phases."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, lines_of, slow_but
from game import gradients, networks, noise, player, real
from own_terms import EVERYTHING, Memory, PairedHinge, Wobble, flat, play, positioned, terms
from safetensors.torch import load_file
from torch import Tensor

from gantrain.augment import Augmentation, Plain
from gantrain.batching import GradientProbe
from gantrain.config.loading import load
from gantrain.losses import LOSSES, R1, R2, Hinge, Penalty, Relativistic
from gantrain.plugin_errors import WrongResult
from gantrain.run_folder.forking import kept_terms
from gantrain.schedule import value_at
from gantrain.training import trainer as trainer_module
from gantrain.training.inputs import Inputs
from gantrain.training.measurements import Measurements
from gantrain.training.terms import Due, Terms
from gantrain.training.trainer import Trainer
from gantrain.training.update import discriminator_phase, generator_phase


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("loss", slow_but([PairedHinge()], [Relativistic(), PairedHinge()]), ids=["relativistic", "hinge"])
def test_rounds_with_every_word_are_one_batch(loss):
    """Penalties with state of both players, one of them lazy, an augmentation that draws and follows D, paired labels, two G steps
    before D's: gradients after two updates, and all states, to float64 rounding."""
    found = []
    for b, k in [(4, 1), (2, 2)]:
        (g, d), own = (player(n) for n in networks()), terms(**EVERYTHING)
        found.append((play(g, d, loss, own, b, k), flat(own.states)))
    same(found[1][0], found[0][0])
    same(found[1][1], found[0][1])
    states = found[0][1]
    assert states["penalties/memory/images"] == 24 and states["penalties/lazy/images"] == 8  # of 2 D and 4 G steps; of one, for two
    assert states["augment/p"] != pytest.approx(Wobble.strength, abs=1e-6) and states["penalties/memory/mean"] != 0.25


@pytest.mark.parametrize("key", ["d", "g"])
def test_a_measured_round_is_halved_with_its_positions(key):
    """One round of 4 images with a probe is two rounds of 2: the same draws, labels, gradients and observations, to the bit."""
    found = []
    for b, k in [(4, 1), (2, 2)]:
        (g, d), own = (player(n) for n in networks()), terms(**EVERYTHING)
        network, phase = {"d": (d, discriminator_phase), "g": (g, generator_phase)}[key]
        rounds = positioned(b, k, 0, loss=PairedHinge() if key == "g" else None)
        stats = phase(g, d, PairedHinge(), rounds, k, GradientProbe(network.network), own.due(key, 0), own.setting("s", 0))
        own.follow(stats, own.due(key, 0), 4, 0)
        found.append(gradients(network.network) | flat(own.states) | stats)
    assert found[0].keys() == found[1].keys() and "measured" in found[0]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_penalties_see_images_as_the_loss_sees_them():
    """The i-th image of every N has the transform of the i-th in the loss; real and generated images have different ones."""
    seen = []

    @dataclass(frozen=True)
    class Looks(Penalty):
        networks = "gd"

        def term(self, batch, player):
            again = batch.d_real(torch.cat([batch.x_real] * 2), torch.cat([batch.y_real] * 2)).chunk(2)
            crossed = batch.d_fake(batch.x_real, batch.y_real)
            fake = batch.d_fake(batch.x_fake, batch.y_fake)
            seen.append((player, *again, batch.logits_real, fake, batch.logits_fake, crossed))
            images = batch.generator(batch.z, batch.y_fake)
            assert torch.equal(images, batch.x_fake) and images.requires_grad == (player == "g")
            assert fake.requires_grad and again[0].requires_grad == (player == "d") and torch.equal(batch.y_fake, batch.y_real)
            return batch.logits_fake.mean(), {}

    own = terms(Wobble(), looks=Looks())
    g, d = (player(n) for n in networks())
    play(g, d, Relativistic(), own, 5, 1, updates=1, g_steps=1)
    assert [one[0] for one in seen] == ["g", "d"]
    for _, first, second, loss_real, fake, loss_fake, crossed in seen:
        torch.testing.assert_close(first, loss_real)
        torch.testing.assert_close(second, loss_real)
        torch.testing.assert_close(fake, loss_fake)
        assert (crossed - loss_real).abs().max() > 1e-6


def test_what_is_drawn_depends_on_the_step_and_the_position():
    """Different in every phase of an update, and for every image."""
    seen: dict[str, Tensor] = {}

    @dataclass(frozen=True)
    class Keeps(Augmentation):
        def apply(self, x, draws, state, nimg):
            seen[f"{draws.purpose}/{nimg}"] = draws.uniform("u")[:, None].view(-1)
            return x

    g, d = (player(n) for n in networks())
    play(g, d, Hinge(), terms(Keeps()), 4, 1, updates=2)
    drawn = torch.cat(list(seen.values()))
    assert [*seen][:4] == ["g0/augment/fake/0", "g1/augment/fake/0", "d0/augment/real/0", "d0/augment/fake/0"]
    assert len(drawn) == 32 == len(drawn.unique())


def test_the_step_of_r3gan_is_that_of_the_paper():
    """Huang et al. 2024: E f(D(G(z)) - D(x)) with f(t) = log(1 + e^t) for D, its mirror for G, images of one class paired, and gamma / 2
    times the squared gradients at real and at generated images for D; both phases, differentiated on copies."""
    gamma = 0.7
    G, D = networks(spectral_norm=False)
    (x, y), (z, _) = real(0, 6), noise(0, 6)
    assert len(y.unique()) > 1
    mirror, judge = copy.deepcopy(G), copy.deepcopy(D)
    fake = mirror(z, y).detach().requires_grad_(True)
    real_ = x.clone().requires_grad_(True)
    at_real, at_fake = judge(real_, y), judge(fake, y)
    penalty = 0.0
    for logits, images in ((at_real, real_), (at_fake, fake)):
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        penalty = penalty + gamma / 2 * gradient.flatten(1).norm(dim=1).square().mean()
    value = torch.log1p(torch.exp(at_fake - at_real)).mean()
    (value + penalty).backward()
    g, d, own = player(G), player(D), terms(r1=R1(gamma, every=1), r2=R2(gamma, every=1))
    stats = discriminator_phase(g, d, Relativistic(), positioned(6, 1, 0), 1, None, own.due("d", 0), own.setting("d0", 0))
    same(gradients(D), gradients(judge))
    assert stats["loss/d"].item() == pytest.approx(value.item()) and stats["loss/penalty"].item() == pytest.approx(penalty.item())
    assert stats["penalty/r1"] + stats["penalty/r2"] == pytest.approx(penalty.item())
    judge.load_state_dict(D.state_dict())  # D has moved
    judge.requires_grad_(False)
    torch.log1p(torch.exp(judge(x, y) - judge(mirror(z, y), y))).mean().backward()
    generator_phase(g, d, Relativistic(), positioned(6, 1, 0, loss=Relativistic()), 1, None, own.due("g", 0), own.setting("g", 0))
    same(gradients(G), gradients(mirror))


def test_a_penalty_with_the_method_penalty_alone_is_added_to_d():
    """An adapted class that inherits nothing, as in the guide; its D sees augmented images."""
    from gantrain.losses import PENALTY

    class Old:
        def penalty(self, D, x_real, x_fake, y_real, y_fake):
            return D(x_real, y_real).square().mean()

    own = terms(Wobble(), old=PENALTY.adapt(Old()))
    g, d = (player(n) for n in networks())
    assert not own.due("g", 0)
    stats = discriminator_phase(g, d, Hinge(), positioned(6, 1, 0), 1, None, own.due("d", 0), own.setting("d0", 0))
    _, D = networks()
    with torch.no_grad():
        D(torch.cat([real(0, 6)[0]] * 2), torch.cat([real(0, 6)[1]] * 2))
    D.eval()  # the norms have iterated once
    x = own.setting("d0", 0).augmented(real(0, 6)[0], "real", torch.arange(6))
    assert stats["penalty/old"].item() == pytest.approx(D(x, real(0, 6)[1]).square().mean().item(), rel=1e-9)


def test_lazy_penalties_count_the_steps_of_their_own_player():
    own = terms(d=R1(every=3), g=Memory(every=2, networks="g"), both=Memory(every=4))
    found = {key: [[(one.name, one.factor) for one in own.due(key, step)] for step in range(4)] for key in "dg"}
    assert found["d"] == [[("d", 3.0), ("both", 4.0)], [], [], [("d", 3.0)]]
    assert found["g"] == [[("g", 2.0), ("both", 4.0)], [], [("g", 2.0)], []]
    assert not own.due("d", None) and not own.due("g", None)
    assert [Due(one, 1.0, "a").shown_as("g") for one in (Memory(), Memory(networks="g"))] == ["penalty/a/g", "penalty/a"]


# ---- states in checkpoints -------------------------------------------------------------------------------------------


def test_states_go_through_a_checkpoint_to_the_bit():
    own = terms(**EVERYTHING)
    g, d = (player(n) for n in networks())
    play(g, d, PairedHinge(), own, 4, 1)
    saved = json.loads(json.dumps(own.state(), allow_nan=False))
    assert (
        list(saved) == ["terms"]
        and set(saved["terms"]) == {"penalties", "augment"}
        and set(saved["terms"]["penalties"]) == {"memory", "lazy"}
    )
    later = terms(**EVERYTHING, new=Memory())
    later.load(SimpleNamespace(state=saved), rolls_back=False)
    for key, state in own.states.items():
        assert state == later.states[key]
    assert later.states["penalties/new"]["mean"] == 0.25
    play(g, d, PairedHinge(), own, 4, 1)
    own.load(SimpleNamespace(state=saved), rolls_back=True)
    assert own.state() == saved
    own.load(SimpleNamespace(state={}), rolls_back=False)  # of a run from before there were states
    assert flat(own.states) == flat(terms(**EVERYTHING).states)


def test_a_state_that_is_not_finite_is_saved_and_restored():
    own = terms(memory=Memory())
    own.states["penalties/memory"]["mean"] = torch.tensor(float("nan"))
    saved = json.loads(json.dumps(own.state(), allow_nan=False))
    own.load(SimpleNamespace(state=saved), rolls_back=False)
    assert own.states["penalties/memory"]["mean"].isnan()


def test_without_states_a_checkpoint_has_no_key_for_them():
    own = terms(r1=R1())
    assert own.state() == {} and own.shown(0) == {} and own.augmentation is None
    assert terms(Wobble()).shown(0) == {"augment/p": pytest.approx(0.2)}


def test_a_fork_keeps_what_plug_ins_of_the_same_kind_remember():
    saved = {"penalties": {"a": {"mean": 1.0}, "b": {"mean": 2.0}, "c": {"mean": 3.0}}, "augment": {"p": 0.4}}
    old = SimpleNamespace(penalties={"a": Memory(), "b": Memory(), "c": Memory()}, augment=Wobble())
    new = SimpleNamespace(penalties={"a": Memory(weight=2.0), "b": R1(), "d": Memory()}, augment=Wobble(0.1))
    assert kept_terms(saved, old, new) == {"penalties": {"a": {"mean": 1.0}}, "augment": {"p": 0.4}}
    assert kept_terms(saved, old, SimpleNamespace(penalties={}, augment=Plain())) == {}


def test_a_penalty_is_shown_as_its_mean_over_the_steps_that_had_it():
    """And what each player's every step has, as the mean over that player's steps."""
    optim = SimpleNamespace(d_steps=2, g_steps=3)
    part = Measurements(SimpleNamespace(config=SimpleNamespace(optim=optim)), *[None] * 9)
    for update in range(2):
        for player_, steps in (("d", 2), ("g", 3)):
            for step in range(steps):
                lazy = {"penalty/a": torch.tensor(6.0)} if player_ == "g" and (update * 3 + step) % 4 == 0 else {}
                part.add({f"loss/{player_}": torch.tensor(1.0), **lazy}, player_, {})
        part.count_update()
    assert {name: total.item() / part._steps(name) for name, total in part._sums.items()} == {"loss/d": 1, "loss/g": 1, "penalty/a": 6}
    part._settled = []
    saved = json.loads(json.dumps(part.state()))
    assert saved["stats_counts"] == {"penalty/a": 2}


# ---- real images for both phases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss, needs", [(Hinge(), None), (PairedHinge(), "labels"), (Relativistic(), "all")])
def test_g_gets_of_the_real_images_what_its_loss_needs(loss, needs):
    """Those of the last D phase, or of the first one that comes after it; each is trained on once."""
    config = SimpleNamespace(loss=loss, labels="uniform")
    inputs = Inputs(SimpleNamespace(config=config, performance=SimpleNamespace(channels_last=False)), None, None, None, None, None)
    batches = [(torch.full((1, 1, 2, 2), i, dtype=torch.uint8), torch.tensor([i])) for i in range(8)]
    inputs.real_batches = SimpleNamespace(next=iter(batches).__next__, skipped=[])
    kept: list = []
    after = [y.item() for _, y in inputs.real(2, kept)]
    assert after == [0, 1]
    for of in (kept, inputs.ahead(2)):
        shown = list(inputs.of_g(of, 2))
        assert len(shown) == 2
        if needs is None:
            assert shown == [None, None]
        else:
            first = 0 if of is kept else 2
            assert [y.item() for _, y in shown] == [first, first + 1]
            assert all((x is not None and x.dtype == torch.float32) == (needs == "all") for x, _ in shown)
    kept.clear()
    assert [y.item() for _, y in inputs.real(2, kept)] == [2, 3] and len(kept) == (2 if needs else 0)
    assert [y.item() for _, y in inputs.real(1, kept)] == [4]


# ---- what is refused -------------------------------------------------------------------------------------------------


def wrong(**parts: Any) -> Penalty:
    """A penalty of which some methods return something else."""
    return type("Wrong", (Memory,), {name: returning(value) for name, value in parts.items()})()


def returning(value: Any):
    return lambda self, *arguments: value


ZERO = torch.zeros((), requires_grad=True)
REFUSED = [
    (wrong(term=ZERO), "term must return the penalty, and a dict of what it has observed, got"),
    (wrong(term=(torch.zeros(1), {})), r"term must return a scalar tensor \(without dimensions\), got a Tensor of torch.float32 \[1\]"),
    (wrong(term=(ZERO, {"a": 1.0})), "term must return a scalar tensor of floating point as 'a', got 1.0"),
    (wrong(next_state={"mean": torch.zeros(())}), r"next_state must return a dict of images, mean, got \['mean'\]"),
    (
        wrong(next_state={"mean": torch.zeros(()), "images": 3}),
        "next_state must return a scalar tensor of floating point as 'images', got 3",
    ),
    (wrong(initial_state=[1]), r"initial_state must return a dict of numbers, got \[1\]"),
    (wrong(initial_state={"mean": True}), "initial_state must return a number as 'mean', got True"),
]


@pytest.mark.parametrize("penalty, words", REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_result_of_a_penalty_is_refused(penalty, words):
    g, d = (player(n) for n in networks())
    with pytest.raises(WrongResult, match=f"Wrong: {words}"):
        own = terms(one=penalty)
        play(g, d, Hinge(), own, 2, 1, updates=1, g_steps=1)


@pytest.mark.parametrize(
    "part, value, words",
    [
        ("apply", torch.zeros(2, 1, 4, 4), r"apply must return images \[2, 1, 8, 8\] of torch.float64, got a Tensor of torch.float32"),
        ("observe", {"sign": torch.zeros(2)}, "observe must return a scalar tensor of floating point as 'sign', got a Tensor"),
        ("next_state", None, "next_state must return a dict of scalar tensors, got None"),
    ],
)
def test_a_wrong_result_of_an_augmentation_is_refused(part, value, words):
    g, d = (player(n) for n in networks())
    other = type("Wrong", (Wobble,), {part: returning(value)})()
    with pytest.raises(WrongResult, match=f"Wrong: {words}"):
        play(g, d, Hinge(), terms(other), 2, 1, updates=1, g_steps=1)


def test_an_augmentation_through_which_g_learns_nothing_is_refused():
    g, d = (player(n) for n in networks())
    other = type("Cut", (Wobble,), {"apply": lambda self, x, draws, state, nimg: x.detach() * 0.5})()
    with pytest.raises(WrongResult, match="Cut: apply must return images that depend on the images differentiably, as G is trained"):
        play(g, d, Hinge(), terms(other), 2, 1, updates=1, g_steps=1)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_penalty_that_passes_d_a_part_of_the_images_is_told_so(count):
    """Which transforms are theirs cannot be known. Without an augmentation there are none, and nothing is asked."""

    @dataclass(frozen=True)
    class Part(Penalty):
        def penalty(self, D, x_real, x_fake, y_real, y_fake):
            return D(torch.cat([x_real] * 2)[:count], torch.cat([y_real] * 2)[:count]).mean()

    for augmentation in (None, Wobble()):
        g, d = (player(n) for n in networks())
        with (
            nullcontext() if augmentation is None else pytest.raises(ValueError, match=f"D was passed {count} images, and with .* the 4 of")
        ):
            play(g, d, Hinge(), terms(augmentation, part=Part()), 4, 1, updates=1, g_steps=1)


def test_a_loss_without_a_gradient_is_refused_beside_a_penalty_too():
    @dataclass(frozen=True)
    class Detached(Hinge):
        def discriminator(self, logits_real, logits_fake):
            return super().discriminator(logits_real, logits_fake).detach()

    g, d = (player(n) for n in networks())
    with pytest.raises(WrongResult, match="Detached: discriminator must return a tensor that depends on the logits"):
        play(g, d, Detached(), terms(r1=R1(every=1)), 2, 1, updates=1, g_steps=1, first="d")


# ---- whole runs ------------------------------------------------------------------------------------------------------

# Of 20 updates of 16 images. p rises by 0.032 at each step of D that takes at least one of the 16 real images to be real.
ADA = ["augment={name: ada, target: -0.9, every: 16, length_kimg: 0.5}"]
FOLDED = ["augment={name: diffaugment}"]
RATES = [
    "optim.lr_g={from: 4.0e-4, to: 1.0e-4, until_kimg: 0.3, shape: cosine}", "optim.lr_d={from: 4.0e-4, shape: constant, warmup_kimg: 0.1}",
]  # fmt: skip
R1_LAZY = "r1: {name: r1, every: 4, gamma: {from: 1.0, to: 0.1, until_kimg: 0.3}}"
LECAM = "lecam: {name: lecam, start_kimg: 0.05, half_life_kimg: 0.1}"
LAZY = [f"penalties={{{R1_LAZY}, {LECAM}}}", *RATES]
OF_G = ["optim.d_steps=1", "optim.g_steps=2", "optim.first=g"]
PAIRED = [*OF_G, "loss.name=relativistic"]
LENGTHS = [f"penalties={{{R1_LAZY}, {LECAM}, lengths: {{name: path_length, every: 3, half_life_kimg: 0.1}}}}", *RATES]
SHORT = [*TINY, "eval.every_kimg=null", "eval.metrics=[fid]", "tracking.samples_every_kimg=null"]
DIGITS = ROOT / "configs" / "digits.yaml"


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def state_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text())


def alike(one: Path, other: Path) -> None:
    """Two checkpoints, tensors and what the penalties and the augmentation remember, to the bit."""
    assert one.name == other.name
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files == sorted(path.name for path in other.glob("*.safetensors")) and len(files) > 3
    for name in files:
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    states = state_of(one), state_of(other)
    assert states[0]["terms"] == states[1]["terms"] and states[0]["stats"] == states[1]["stats"]


class Killed(BaseException):
    """Ends a run without a word, and without a checkpoint."""


@pytest.mark.slow
@pytest.mark.parametrize("words", [[*ADA, *LAZY], [*FOLDED, *PAIRED, *LAZY], [*ADA, *OF_G, *LENGTHS]], ids=["ada", "paired", "lengths"])
def test_a_killed_run_resumes_to_the_bit(gantrain, tmp_path, monkeypatch, words):
    """Killed between two checkpoints and between two applications of the lazy penalty; the record has the same lines, too."""
    words = ["train", DIGITS, *SHORT, *words, "batching.micro_batch=8"]
    gantrain(*words, f"run_dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patch:
        update = Trainer.update

        def killed(trainer):
            if trainer.run.nimg == 13 * 16:
                raise Killed
            update(trainer)

        patch.setattr(Trainer, "update", killed)
        with suppress(Killed):
            gantrain(*words, f"run_dir={tmp_path / 'killed'}", check=False)
    assert newest(tmp_path / "killed").name == f"{160:012d}"
    gantrain(*words, f"run_dir={tmp_path / 'killed'}")
    alike(newest(tmp_path / "killed"), newest(tmp_path / "whole"))
    shown = ("loss/", "penalty/", "augment/", "logits/", "lr/", "schedule/")
    own = [
        [{k: v for k, v in line.items() if k.startswith(shown)} for line in lines_of(run) if "loss/d" in line]
        for run in (tmp_path / "killed", tmp_path / "whole")
    ]
    assert own[0] == own[1] and all("penalty/r1" in line and "schedule/penalties.r1.gamma" in line for line in own[0])
    assert own[0][-1]["penalty/lecam"] > 0 and len({line["lr/g"] for line in own[0]}) == len(own[0])
    ada = words[len(SHORT) + 2] == ADA[0]
    assert not ada or own[0][-1]["augment/p"] > 0
    assert ("penalty/lengths" in own[0][-1]) == ("lengths" in state_of(newest(tmp_path / "whole"))["terms"]["penalties"])


@pytest.mark.slow
def test_an_update_plays_its_phases_in_order_on_fresh_data(tmp_path, monkeypatch):
    """Two updates of two G steps before two D steps: no latents twice, every real position once, and G sees those of D's first step."""
    words = [*SHORT, *FOLDED, *PAIRED, "optim.d_steps=2", f"run_dir={tmp_path}", "batching.micro_batch=8"]
    trainer = Trainer(load(DIGITS, words))
    trainer.start()
    seen: list[tuple[str, Tensor, Tensor, Tensor, str]] = []

    def noting(key, phase):
        def run(G, D, loss, rounds, k, probe, penalties, setting):
            pairs = list(rounds)
            real_, latents = ([torch.cat(parts) for parts in zip(*of)] for of in zip(*pairs))
            seen.append((key, real_[0], latents[0], latents[2], setting.purpose))
            return phase(G, D, loss, iter(pairs), k, probe, penalties, setting)

        return run

    monkeypatch.setattr(trainer_module, "discriminator_phase", noting("d", discriminator_phase))
    monkeypatch.setattr(trainer_module, "generator_phase", noting("g", generator_phase))
    for _ in range(2):
        trainer.update()
    trainer.close()
    assert [(key, purpose) for key, *_, purpose in seen] == [("g", "g"), ("g", "g1"), ("d", "d0"), ("d", "d1")] * 2
    assert torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[0][1], seen[2][1]) and not torch.equal(seen[2][1], seen[3][1])
    latents = torch.cat([z for _, _, z, *_ in seen])
    assert len(latents) == 8 * 16 == len(latents.unique(dim=0))
    reals = torch.cat([x for key, x, *_ in seen if key == "d"])
    assert len(reals) == 4 * 16 == len(reals.flatten(1).unique(dim=0))
    assert [positions.tolist() for *_, positions, _ in seen] == [list(range(16))] * 4 + [list(range(16, 32))] * 4


@pytest.mark.slow
@pytest.mark.parametrize("augment", [ADA, FOLDED], ids=["ada", "diffaugment"])
def test_noise_scale_swap_and_growth_with_every_word(gantrain, tmp_path, augment):
    """D is measured at steps without the lazy penalty; swaps and growth leave alone what penalties and augmentation remember."""
    run = tmp_path / "run"
    words = [
        "noise_scale.measure_every=1", "batching={name: on_swap, batch_size: 16, micro_batch: 8, max_batch: 64}",
        "swap={source: ema, start_kimg: 0.1, every_kimg: 0.1, after_kimg: 0.05, growth: 2}", "optim.d_steps=1",
    ]  # fmt: skip
    gantrain("train", DIGITS, *SHORT, *augment, *LAZY, *words, f"run_dir={run}")
    lines = lines_of(run)
    sizes = [line["to"] for line in lines if line.get("event") == "growth"]
    assert sizes == [32, 64] and sum(line.get("event") == "swap" and line["moment"] == "at" for line in lines) == 2
    trained = [line for line in lines if "loss/d" in line]
    for player_ in "DG":
        assert trained[-1][f"noise_scale/{player_}/measurements"] > 0 and math.isfinite(trained[-1][f"noise_scale/{player_}/tr_sigma"])
    assert [trained[0][f"noise_scale/{key}/measurements"] for key in "DG"] == [3, 5]  # of five updates, before the first swap
    state, config = state_of(newest(run)), load(run / "config.yaml")
    # Half of the weight of the past is forgotten every 100 images, whatever the batch: no update is counted twice or left out.
    lecam = state["terms"]["penalties"]["lecam"]
    assert list(state["terms"]["penalties"]) == ["lecam"]
    assert lecam["weight"] == pytest.approx(1 - 0.5 ** (int(newest(run).name) / 100), rel=1e-12)
    assert ("augment" in state["terms"]) == (augment is ADA)
    if augment is ADA:
        shown = [line["augment/p"] for line in trained]
        assert 0 < shown[-1] < 1 and len(set(shown)) == len(shown) and shown[-1] == pytest.approx(state["terms"]["augment"]["p"])
    for line in trained:  # by images: where the batch has grown, the numbers are those of the place in the run
        before = line["nimg"] - line["batch/size"]
        assert line["lr/g"] == pytest.approx(config.optim.lr_g.at(before))
        assert line["schedule/penalties.r1.gamma"] == pytest.approx(config.penalties["r1"].gamma.at(before))


@pytest.mark.slow
@pytest.mark.parametrize("augment", [ADA, FOLDED], ids=["ada", "diffaugment"])
def test_a_rollback_restores_what_was_remembered(gantrain, tmp_path, monkeypatch, augment):
    """To the checkpoint's, though the steps after it had changed it; and it goes on from there as a run does that begins there."""
    run, seen = tmp_path / "run", []
    discriminator, loaded = Hinge.discriminator, Terms.load
    calls = [0]

    def spoilt(self, logits_real, logits_fake):
        calls[0] += len(logits_real) == 16
        return discriminator(self, logits_real, logits_fake) * (float("nan") if calls[0] == 14 else 1.0)

    def load_(self, snapshot, rolls_back):
        before = flat(self.states)
        loaded(self, snapshot, rolls_back)
        seen.append((rolls_back, snapshot.nimg, before, flat(self.states), snapshot.state["terms"]))

    monkeypatch.setattr(Hinge, "discriminator", spoilt)
    monkeypatch.setattr(Terms, "load", load_)
    gantrain("train", DIGITS, *SHORT, *augment, *LAZY, "optim.d_steps=1", "guard.on_nonfinite=rollback", f"run_dir={run}")
    ((rolls_back, nimg, before, after, saved),) = seen
    assert rolls_back and nimg == 160 and all(value.isfinite() for value in after.values())
    for name in ("real", "fake", "weight"):
        assert after[f"penalties/lecam/{name}"] == saved["penalties"]["lecam"][name]
    assert before["penalties/lecam/weight"].isnan() or before["penalties/lecam/weight"] > after["penalties/lecam/weight"]
    if augment is ADA:
        assert before["augment/p"] != after["augment/p"] == saved["augment"]["p"] > 0
    end = state_of(newest(run))["terms"]["penalties"]["lecam"]
    assert end["weight"] == pytest.approx(1 - 0.5**3.2, rel=1e-12) and all(math.isfinite(value) for value in end.values())
    assert [line["to"] for line in lines_of(run) if line.get("event") == "rollback"] == [160]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[*ADA, *OF_G], [*FOLDED, *PAIRED]], ids=["ada", "paired"])
def test_the_noise_of_a_checkpoint_is_that_of_the_run(gantrain, tmp_path, monkeypatch, words):
    """`noise-scale RUN` augments with the checkpoint's state, adds the penalties of every step with theirs and with the numbers that
    schedules have there, pairs labels, leaves lazy penalties out, and changes nothing."""
    from gantrain.commands import noise_scale as measuring

    run, seen = tmp_path / "run", []
    always = "always: {name: r2, every: 1, gamma: {from: 1.0, to: 0.5, until_kimg: 0.64}}"
    words = [*words, f"penalties={{{R1_LAZY}, {LECAM}, {always}}}", *RATES]
    gantrain("train", DIGITS, *SHORT, *words, f"run_dir={run}")
    files = {path: path.read_bytes() for path in newest(run).iterdir()}
    state = state_of(newest(run))["terms"]

    def noting(key, phase):
        def run_(G, D, loss, rounds, k, probe, penalties, setting):
            pairs = list(rounds)
            found = phase(G, D, loss, iter(pairs), k, probe, penalties, setting)
            seen.append((key, penalties, setting, torch.cat([latents[2] for _, latents in pairs]), found))
            return found

        return run_

    monkeypatch.setattr(measuring, "discriminator_phase", noting("d", discriminator_phase))
    monkeypatch.setattr(measuring, "generator_phase", noting("g", generator_phase))
    said = gantrain("noise-scale", run, "--updates", 8).stdout
    assert "gradients of 8 updates of 32 images" in said and [key for key, *_ in seen] == ["d", "g"] * 8
    for key, due, setting, _, found in seen:
        assert [(one.name, one.factor) for one in due] == ([("lecam", 1.0), ("always", 1.0)] if key == "d" else [])
        assert setting.nimg == 320 and setting.augmentation is not None and found["measured"].isfinite().all()
        assert {name: value.item() for name, value in setting.state.items()} == state.get("augment", {})
        if key == "d":
            assert {name: value.item() for name, value in due[0].state.items()} == state["penalties"]["lecam"]
            assert found["penalty/always"] > 0 and value_at(due[1].penalty.gamma, setting.nimg) == 0.75
    positions = torch.cat([positions for key, _, _, positions, _ in seen if key == "d"])
    assert positions.tolist() == list(range(320, 320 + 8 * 32))
    assert {path: path.read_bytes() for path in newest(run).iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["{name: r1, every: 1}", "{name: fd_r1, every: 1, sigma: 0.05}"], ids=["r1", "fd_r1"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_in_bf16_and_channels_last(tmp_path, loss, penalty):
    words = ["mixed_precision=bf16", "performance.channels_last=true", "total_kimg=0.032", "checkpoint.every_kimg=9"]
    trainer = Trainer(load(DIGITS, [*SHORT, *words, f"loss.name={loss}", f"penalties.p={penalty}", f"run_dir={tmp_path}"]))
    trainer.train()
    line = [line for line in lines_of(tmp_path) if "loss/d" in line][-1]
    assert (
        line["nimg"] == 32
        and line["penalty/p"] > 0
        and all(math.isfinite(line[f"{what}/{key}"]) for what in ("loss", "grad_norm") for key in "dg")
    )
    for player_ in trainer.players.by_key.values():
        assert all(tensor.isfinite().all() for tensor in player_.network.state_dict().values())
        filters = [tensor for tensor in player_.network.parameters() if tensor.dim() == 4]
        assert filters and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in filters)


@pytest.fixture(scope="module")
def inductor():
    """Skips where torch.compile cannot build a program, or takes more than a minute for the smallest."""
    code = "import torch; torch.compile(lambda x: (x.sin() + 1).sum())(torch.ones(3, requires_grad=True)).backward()"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("torch.compile takes more than 60 s here")
    if done.returncode:
        pytest.skip(f"torch.compile does not work here: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.slow
def test_what_is_of_first_order_works_compiled(gantrain, inductor, tmp_path):
    """Finite differences and DiffAugment with compiled networks: the statistics of a run that is not compiled, up to rounding."""
    from torch._dynamo.utils import counters  # takes seconds to import

    words = [*FOLDED, "penalties.p={name: fd_r1, every: 1, sigma: 0.05}", "total_kimg=0.032", "optim.d_steps=1", "checkpoint.every_kimg=9"]
    lines = []
    for on in ("false", "true"):
        counters.clear()
        gantrain("train", DIGITS, *SHORT, *words, f"performance.compile={on}", f"run_dir={tmp_path / on}")
        assert (counters["stats"]["unique_graphs"] > 0) == (on == "true")
        torch.compiler.reset()
        lines.append([line for line in lines_of(tmp_path / on) if "loss/d" in line][-1])
    for name in ("loss/d", "loss/g", "penalty/p", "grad_norm/d", "grad_norm/g"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=0.01), name
