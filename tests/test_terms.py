"""What is added to the losses: penalties with state, the augmentation of what D sees, paired labels, and the order of the phases."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import slow_but
from game import gradients, networks, noise, player, real
from own_terms import EVERYTHING, Memory, Paired, PairedHinge, Wobble, flat, play, positioned, terms
from torch import Tensor

from gantrain.augment import Augmentation
from gantrain.losses import R1, R2, Hinge, Penalty, Relativistic
from gantrain.plugin_errors import WrongResult
from gantrain.training.inputs import Inputs
from gantrain.training.terms import Due
from gantrain.training.update import discriminator_phase, generator_phase


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("loss", slow_but([PairedHinge()], [Paired(), PairedHinge()]), ids=["relativistic", "hinge"])
def test_rounds_with_every_word_are_one_batch(loss):
    """Penalties with state of both players, one of them lazy, an augmentation that draws and follows D, paired labels, two G steps
    before D's: gradients after two updates, and all states, to float64 rounding."""
    found = []
    for b, k in [(6, 1), (3, 2)]:
        (g, d), own = (player(n) for n in networks()), terms(**EVERYTHING)
        found.append((play(g, d, loss, own, b, k), flat(own.states)))
    same(found[1][0], found[0][0])
    same(found[1][1], found[0][1])
    states = found[0][1]
    assert states["penalties/memory/images"] == 36 and states["penalties/lazy/images"] == 12  # of 2 D and 4 G steps; of one, for two
    assert states["augment/p"] != pytest.approx(Wobble.strength, abs=1e-6) and states["penalties/memory/mean"] != 0.25


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
    play(g, d, Paired(), own, 5, 1, updates=1, g_steps=1)
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
    stats = discriminator_phase(g, d, Paired(), positioned(6, 1, 0), 1, None, own.due("d", 0), own.setting("d0", 0))
    same(gradients(D), gradients(judge))
    assert stats["loss/d"].item() == pytest.approx(value.item()) and stats["loss/penalty"].item() == pytest.approx(penalty.item())
    assert stats["penalty/r1"] + stats["penalty/r2"] == pytest.approx(penalty.item())
    judge.load_state_dict(D.state_dict())  # D has moved
    judge.requires_grad_(False)
    torch.log1p(torch.exp(judge(x, y) - judge(mirror(z, y), y))).mean().backward()
    generator_phase(g, d, Paired(), positioned(6, 1, 0, loss=Paired()), 1, None, own.due("g", 0), own.setting("g", 0))
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


# ---- real images for both phases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss, needs", [(Hinge(), None), (PairedHinge(), "labels"), (Paired(), "all"), (Relativistic(), "all")])
def test_g_gets_of_the_real_images_what_its_loss_needs(loss, needs):
    """Those of the last D phase, or of the first one that comes after it; each is trained on once."""
    config = SimpleNamespace(loss=loss)
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
