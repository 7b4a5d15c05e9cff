"""SAN's head of D (Takida et al. 2024): its gradients in closed form, and that everything around it goes on as before."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, lines_of, slow_but
from game import gradients, networks, noise, player, real, rounds
from plain_networks import PlainBigGAN
from torch import nn

from gantrain.batching.noise_scale import GradientProbe
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.losses import LOSSES, PENALTIES, R1, R2, Hinge, NonSaturating
from gantrain.losses.direction import direction_loss
from gantrain.models import BigGAN
from gantrain.models.architecture import build_networks
from gantrain.models.san import SlicedHead, split_logits
from gantrain.training.update import discriminator_phase, generator_phase

SAN_LOSSES = [Hinge(), NonSaturating()]
IDS = ["hinge", "nonsaturating"]
CLASSES, FEATURES = 3, 4
OTHERS = [PENALTIES[name]() for name in ("wgan_gp", "fd_r1", "cr", "zcr")]


class LinearD(nn.Module):
    """Features A x of an image x, along the direction of a common vector and one of the class."""

    def __init__(self, sliced: bool = True):
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.features = nn.Parameter(torch.randn(FEATURES, 4, generator=draw, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(1, FEATURES, generator=draw, dtype=torch.float64) * 3)
        self.embed = nn.Parameter(torch.randn(CLASSES, FEATURES, generator=draw, dtype=torch.float64))
        self.head = SlicedHead() if sliced else None

    def forward(self, x, y):
        h, w = x.flatten(1) @ self.features.T, self.last + self.embed[y]
        return self.head(h, w) if self.head else (h * F.normalize(w, dim=1)).sum(1)


class LinearG(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64))

    def forward(self, z, y):
        return torch.tanh(z @ self.weight.T).view(-1, 1, 2, 2)


def small_rounds(count: int):
    """One round of images 2 x 2, whose first halves of the game's pixels are enough here."""
    (x, y), (z, c) = real(0, count), noise(0, count)
    return [((x[:, :, :2, :2] * 1.5, y), (z, c))]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# By loss: the slopes of D's loss at a real and at a generated logit, and the weights of the direction's Wasserstein loss.
SLOPES = {
    "hinge": (lambda f: -1.0 * (f < 1.0), lambda f: 1.0 * (f > -1.0), np.ones_like),
    "nonsaturating": (lambda f: -sigmoid(-f), sigmoid, lambda f: sigmoid(-f)),
}


@pytest.mark.parametrize("loss, name", list(zip(SAN_LOSSES, IDS)), ids=IDS)
def test_features_and_direction_have_the_gradients_of_their_own_losses(loss, name):
    """A linear D, differentiated by hand: features as with the plain loss and a fixed direction, the direction by the projected gradient
    of a (weighted) Wasserstein loss. The sum of both is not the gradient of either loss."""
    D, G = LinearD(), LinearG()
    A, last, embed = (p.detach().numpy().copy() for p in (D.features, D.last, D.embed))
    (((x, y), (z, c)),) = small_rounds(12)
    fake = G(z, c).detach()
    stats = discriminator_phase(player(G), player(D), loss, small_rounds(12), 1)

    of_real, of_fake, weight = SLOPES[name]
    grad_A, grad_w, wasserstein = np.zeros_like(A), np.zeros_like(embed), 0.0
    for images, labels, slope, sign in ((x, y, of_real, -1.0), (fake, c, of_fake, 1.0)):
        for pixels, label in zip(images.flatten(1).numpy(), labels.numpy()):
            w = last[0] + embed[label]
            length, h = np.linalg.norm(w), A @ pixels
            omega = w / length
            f = omega @ h
            grad_A += slope(f) * np.outer(omega, pixels) / 12
            grad_w[label] += sign * weight(f) * (np.eye(FEATURES) - np.outer(omega, omega)) @ h / length / 12
            wasserstein += sign * (f if name == "hinge" else -np.logaddexp(0, -f)) / 12
    np.testing.assert_allclose(D.features.grad.numpy(), grad_A, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(D.embed.grad.numpy(), grad_w, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(D.last.grad.numpy()[0], grad_w.sum(0), rtol=1e-12, atol=1e-14)
    assert stats["loss/direction"].item() == pytest.approx(wasserstein, rel=1e-12)
    plain = LinearD(sliced=False)
    expected = loss.discriminator(plain(x, y), plain(fake, c))
    assert stats["loss/d"].item() == pytest.approx(expected.item(), rel=1e-12)  # what the guard and the console judge
    expected.backward()
    torch.testing.assert_close(D.features.grad, plain.features.grad, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(D.last.grad, plain.last.grad)


def test_the_direction_of_the_hinge_loss_has_the_loss_of_a_wasserstein_gan():
    logits = torch.randn(2, 6, dtype=torch.float64)
    assert direction_loss(Hinge(), *logits).item() == LOSSES["wasserstein"]().discriminator(*logits).item()


def test_both_logits_are_those_of_a_normalised_layer():
    """And of the network around it: the other layers are those of the same seed without SAN, with the same iterations of their norms."""
    (_, plain), (_, D) = networks(), networks(san=True)
    x, y = real(0, 6)
    with split_logits(D) as sliced:
        pair = D(x, y)
    assert sliced and pair.shape == (2, 6) and torch.equal(pair[0], pair[1])
    features = []
    plain.last.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    plain(x, y)
    w = D.last.weight + D.embed.weight[y]
    torch.testing.assert_close(pair[0], (features[0] * w).sum(1) / w.square().sum(1).sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(D.eval()(x, y), pair[0])
    with split_logits(plain) as sliced:
        assert not sliced and plain(x, y).shape == (6,)
    own = {key: value for key, value in D.state_dict().items() if not key.startswith(("last.", "embed."))}
    assert set(D.state_dict()) - set(own) == {"last.weight", "embed.weight"}
    assert all(torch.equal(value, plain.state_dict()[key]) or key.endswith(("_u", "_v")) for key, value in own.items())


def test_the_other_layers_iterate_their_norms_as_without_san():
    states = []
    for san in (False, True):
        g, d = (player(n) for n in networks(san=san))
        d.optimizer.param_groups[0]["lr"] = 0.0
        discriminator_phase(g, d, Hinge(), rounds(4, 3), 3)
        own = {key: value for key, value in d.network.state_dict().items() if key.endswith(("_u", "_v"))}
        states.append({key: value for key, value in own.items() if key.startswith("blocks.")})
    assert states[0] and all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("loss", slow_but(SAN_LOSSES[:1], SAN_LOSSES), ids=IDS)
def test_rounds_leave_the_gradients_what_they_were(loss):
    """k rounds of b images are one batch of b k, for features and direction, with penalties; so they are where a probe halves a round."""
    found = []
    for b, k in [(12, 1), (4, 3)]:
        g, d = (player(n) for n in networks(san=True))
        probe = GradientProbe(d.network) if (b, k) == (12, 1) else None
        discriminator_phase(g, d, loss, rounds(b, k), k, probe, penalties=[(R1(gamma=0.5), 4.0), (R2(gamma=0.2), 1.0)])
        found.append(gradients(d.network))
    for one in found[1:]:
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, found[0][name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    "penalty", slow_but([R1(gamma=50.0)], [R1(gamma=50.0), R2(gamma=50.0), *OTHERS]), ids=lambda one: type(one).__name__
)
def test_a_penalty_leaves_the_direction_alone(penalty):
    """It sees the value of the logits, of which only the features may learn: else it would turn the direction to where D is flat."""
    found = []
    for penalties in ([], [(penalty, 1.0)]):
        g, d = (player(n) for n in networks(san=True))
        discriminator_phase(g, d, Hinge(), rounds(6, 1), 1, penalties=penalties)
        found.append(gradients(d.network))
    same = {name for name, gradient in found[0].items() if torch.equal(gradient, found[1][name])}
    assert {"last.weight", "embed.weight"} <= same and not any("weight" in name for name in same if name.startswith("blocks."))


def test_the_generator_follows_the_normalised_logit():
    G, D = networks(spectral_norm=False, san=True)
    g_copy, (z, c) = copy.deepcopy(G), noise(0, 10)
    D.requires_grad_(False)
    (-D(g_copy(z, c), c).mean()).backward()
    D.requires_grad_(True)
    generator_phase(player(G), player(D), Hinge(), rounds(10, 1, with_real=False), 1)
    for name, gradient in gradients(G).items():
        torch.testing.assert_close(gradient, gradients(g_copy)[name], rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in D.parameters())


def test_orthogonal_regularisation_leaves_the_direction_alone():
    (_, plain), (_, D) = networks(), networks(san=True)
    assert plain.exempt_from_orthogonal == [] and {id(p) for p in D.exempt_from_orthogonal} == {id(D.last.weight), id(D.embed.weight)}


def test_the_head_keeps_full_precision_under_autocast():
    D = PlainBigGAN(ch=2, dim_z=6, san=True).build(8, 1, CLASSES)[1]
    x, y = (part.float() if part.is_floating_point() else part for part in real(0, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16), split_logits(D):
        pair = D(x, y)
    assert pair.dtype == torch.float32 and torch.equal(pair[0], pair[1])
    pair.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in D.parameters())
    zero = SlicedHead()(torch.ones(2, 3), torch.zeros(1, 3, requires_grad=True))
    assert zero.tolist() == [0, 0]  # no direction at all is no logit, and not nan


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_cannot_train_a_direction_are_refused(name):
    loss = LOSSES[name]()
    if loss in SAN_LOSSES:
        assert Config(model=BigGAN(san=True), loss=loss).model.san
        return
    with pytest.raises(UserError) as error:
        Config(model=BigGAN(san=True), loss=loss)
    assert str(error.value) == (
        f"model.san: does not work with loss.name={name}; use hinge or nonsaturating, or set model.san=false, got True"
    )


@pytest.mark.parametrize("says, head", [(True, None), (False, SlicedHead())])
def test_an_architecture_that_is_wrong_about_its_head_is_refused(says, head):
    G, D = BigGAN(ch=2).build(8, 1, 1)
    D.head = head
    architecture = SimpleNamespace(san=says, build=lambda *shape: (G, D))
    with pytest.raises(UserError, match=f"has san={says}, but its Discriminator has {'a' if head else 'no'} SlicedHead"):
        build_networks(architecture, 8, 1, 1)


# ---- whole runs ------------------------------------------------------------------------------------------------------

DIGITS = ROOT / "configs" / "digits.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["loss.name=nonsaturating", "mixed_precision=bf16"]], ids=["hinge", "nonsaturating-bf16"])
def test_a_run_with_san_swaps_resumes_and_scores(gantrain, tmp_path, more):
    """Killed half-way it comes to the same bits; averages of both players, a joint swap, growth, noise scale and a lazy penalty."""
    words = [
        *TINY, "model.san=true", "penalties={r1: {name: r1, every: 3}}", "noise_scale.measure_every=2", "eval.metrics=[fid]",
        "batching={name: on_swap, batch_size: 16, max_batch: 64}", "averagers.ema={name: ema, half_life_kimg: 0.1, networks: gd}",
        "swap={source: ema, start_kimg: 0.1, every_kimg: 0.1, networks: gd, growth: 2, after_kimg: 0.05}", *more,
    ]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    gantrain("train", DIGITS, f"run_dir={whole}", *words)
    gantrain("train", DIGITS, f"run_dir={parts}", *words, "total_kimg=0.16")
    gantrain("train", DIGITS, f"run_dir={parts}", *words)
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in (whole, parts)]
    for name in ("g", "d", "optimizer_d", "average.ema", "average_d.ema"):
        files = [path / f"{name}.safetensors" for path in newest]
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes(), name
    lines = lines_of(whole)
    assert any("loss/direction" in line for line in lines) and any(line.get("event") == "swap" for line in lines)
    assert any("eval/ema/digits_fid" in line for line in lines)
    gantrain("evaluate", whole, "--num", "64", "eval.metrics=[fid]")
    gantrain("sample", whole, "--out", tmp_path / "sheet.png")


@pytest.mark.slow
def test_a_compiled_d_splits_its_logits():
    _, D = networks(san=True)
    x, y = real(0, 6)
    expected = D.eval()(x, y)
    D.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(D(x, y), expected)
        with split_logits(D):
            assert D(x, y).shape == (2, 6)
