"""One update of the game, in one process; tests/test_distributed.py has the same with several."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, slow_but
from game import gradients, networks, noise, player, real, rounds
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from gantrain.batching.noise_scale import GradientProbe
from gantrain.config.loading import load
from gantrain.losses import LOSSES, Hinge, Relativistic
from gantrain.losses.penalties import R1, R2
from gantrain.optimizers import Adam
from gantrain.sampling import latents as latents_module
from gantrain.spectral_norm import SpectralNorm, add_spectral_norm
from gantrain.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from gantrain.training.trainer import Trainer
from gantrain.training.update import add_orthogonal_gradient, discriminator_phase, generator_phase

CUTS = [(24, 1), (12, 2), (6, 4), (3, 8), (1, 24)]


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("b, k", CUTS[1:])
@pytest.mark.parametrize("loss", [Hinge(), LOSSES["nonsaturating"]()], ids=["hinge", "nonsaturating"])
def test_rounds_leave_the_gradient_what_it_was(b, k, loss):
    """k rounds of b images are one batch of b k, for D and for G, spectral norm included, to float64 rounding."""
    found = []
    for cut in (CUTS[0], (b, k)):
        g, d = (player(n) for n in networks())
        discriminator_phase(g, d, loss, rounds(*cut), cut[1])
        of_d = gradients(d.network)
        generator_phase(g, d, loss, rounds(*cut, with_real=False), cut[1])
        found.append((of_d, gradients(g.network)))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])


def test_the_gradients_are_those_of_the_hinge_game():
    """Against the loss written out and differentiated on copies, without the update's code."""
    G, D = networks(spectral_norm=False)
    (x, y), (z, c) = real(0, 10), noise(0, 10)
    g_copy, d_copy = copy.deepcopy(G), copy.deepcopy(D)
    fake = g_copy(z, c)
    value = F.relu(1 - d_copy(x, y)).mean() + F.relu(1 + d_copy(fake.detach(), c)).mean()
    value.backward()
    g, d = player(G), player(D)
    stats = discriminator_phase(g, d, Hinge(), rounds(10, 1), 1)
    close(gradients(D), gradients(d_copy))
    assert stats["loss/d"].item() == pytest.approx(value.item(), rel=1e-6)
    assert stats["logits/real"].item() == pytest.approx(d_copy(x, y).mean().item(), rel=1e-6)
    norm = torch.sqrt(sum(p.grad.square().sum() for p in d_copy.parameters()))
    assert stats["grad_norm/d"].item() == pytest.approx(norm.item(), rel=1e-6)
    d_copy.load_state_dict(D.state_dict())  # D has moved
    d_copy.requires_grad_(False)
    (-d_copy(fake, c).mean()).backward()
    generator_phase(g, d, Hinge(), rounds(10, 1, with_real=False), 1)
    close(gradients(G), gradients(g_copy))


@pytest.mark.parametrize("paired", slow_but([True], [True, False]))
def test_the_step_of_r3gan(paired):
    """Both phases, for classes: softplus of the difference within a pair, and gamma / 2 times each of R1 and R2 (Huang et al. 2024, Eqs. 2
    to 4 and Algorithm 1), written out on copies. With paired labels G is given the real images' classes; the latents' own are not used."""
    G, D = networks(spectral_norm=False)
    (x, y), (z, c) = real(0, 10), noise(0, 10)
    g_copy, d_copy = copy.deepcopy(G), copy.deepcopy(D)
    c = y if paired else c
    fake = g_copy(z, c)
    at = [image.detach().clone().requires_grad_() for image in (x, fake)]
    judged = [d_copy(image, label) for image, label in zip(at, (y, c))]
    squares = [torch.autograd.grad(one.sum(), image, create_graph=True)[0].square().sum((1, 2, 3)) for one, image in zip(judged, at)]
    value = torch.log1p(torch.exp(judged[1] - judged[0])).mean()
    (value + 0.05 / 2 * (squares[0].mean() + squares[1].mean())).backward()
    stats = discriminator_phase(
        player(G), player(D), Relativistic(paired_labels=paired), rounds(10, 1), 1, penalties=[(R1(gamma=0.05), 1.0), (R2(gamma=0.05), 1.0)]
    )
    close(gradients(D), gradients(d_copy))
    assert stats["loss/d"].item() == pytest.approx(value.item(), rel=1e-9)
    D.load_state_dict(d_copy.state_dict())  # it has moved
    d_copy.requires_grad_(False)
    value = torch.log1p(torch.exp(d_copy(x, y) - d_copy(fake, c))).mean()
    value.backward()
    stats = generator_phase(player(G), player(D), Relativistic(paired_labels=paired), rounds(10, 1), 1)
    close(gradients(G), gradients(g_copy))
    assert stats["loss/g"].item() == pytest.approx(value.item(), rel=1e-9)


def test_a_phase_leaves_the_other_player_alone():
    g, d = (player(n) for n in networks())
    weights_g = copy.deepcopy(dict(g.network.named_parameters()))
    discriminator_phase(g, d, Hinge(), rounds(4, 2), 2)
    assert all(p.grad is None for p in g.network.parameters())
    assert all(torch.equal(p, weights_g[n]) for n, p in g.network.named_parameters())
    weights_d, grads_d = copy.deepcopy(dict(d.network.named_parameters())), gradients(d.network)
    generator_phase(g, d, Hinge(), rounds(4, 2, with_real=False), 2)
    assert all(torch.equal(p, weights_d[n]) for n, p in d.network.named_parameters())
    close(gradients(d.network), grads_d)


def test_d_is_thawed_after_an_exception():
    g, d = (player(n) for n in networks())
    frozen = next(d.network.parameters()).requires_grad_(False)

    def broken():
        raise RuntimeError("no batch")
        yield

    with pytest.raises(RuntimeError, match="no batch"):
        generator_phase(g, d, Hinge(), broken(), 1)
    assert not frozen.requires_grad and sum(p.requires_grad for p in d.network.parameters()) == len(list(d.network.parameters())) - 1


def test_spectral_norms_iterate_once_a_phase_however_many_rounds():
    vectors = []
    for cut in CUTS[:3]:
        g, d = (player(n) for n in networks())
        discriminator_phase(g, d, Hinge(), rounds(*cut), cut[1])
        vectors.append({k: v for n in (g, d) for k, v in n.network.state_dict().items() if k.endswith(("._u", "._v"))})
    start = {k: v for n in networks() for k, v in n.state_dict().items() if k.endswith(("._u", "._v"))}
    for other in vectors[1:]:
        assert all(torch.equal(vectors[0][k], other[k]) for k in other)
    assert any(not torch.equal(vectors[0][k], start[k]) for k in start)


def torchs_own(network: nn.Module) -> nn.Module:
    """The same network with the spectral norm that torch comes with."""
    for module in network.modules():
        if isinstance(module, SpectralNorm):
            module.__class__ = _SpectralNorm
    return network


@pytest.mark.parametrize("k", [1, 2, 8])
def test_the_other_players_weights_are_normed_once_a_phase_and_all_is_as_with_torchs_own_norm(k, monkeypatch):
    """To the bit, with two penalties and a probe of every round's gradient; one player's own weights are normed in every forward."""
    penalties = [(R1(gamma=0.3), 1.0), (R2(gamma=0.2), 2.0)]
    found = []
    counted, forward = Counter(), _SpectralNorm.forward
    monkeypatch.setattr(_SpectralNorm, "forward", lambda self, weight: counted.update([self]) or forward(self, weight))
    for form in (torchs_own, lambda network: network):
        g, d = (player(form(n)) for n in networks())
        probes = [GradientProbe(p.network, processes=2) for p in (d, g)]
        counted.clear()  # torch calls a norm when it is registered
        stats = discriminator_phase(g, d, Hinge(), rounds(24 // k, k), k, probes[0], penalties)
        in_d_phase = [{counted[m] for m in p.network.modules() if isinstance(m, _SpectralNorm)} for p in (g, d)]
        of_d = gradients(d.network)
        counted.clear()
        more = generator_phase(g, d, Hinge(), rounds(24 // k, k, with_real=False), k, probes[1])
        in_g_phase = [{counted[m] for m in p.network.modules() if isinstance(m, _SpectralNorm)} for p in (g, d)]
        found.append({**{f"d.{key}": x for key, x in of_d.items()}, **gradients(g.network), "d": stats["measured"], "g": more["measured"]})
    assert in_d_phase == [{1}, {3 * k}] and in_g_phase == [{k}, {1}]
    assert all(torch.equal(ours, found[0][key]) for key, ours in found[1].items())
    assert not any(m.holding or m.kept is not None for p in (g, d) for m in p.network.modules() if isinstance(m, SpectralNorm))


def test_a_norm_is_computed_in_full_precision_under_autocast(monkeypatch):
    """A GPU's autocast has matrix-vector products in half precision."""
    layer, mv, lowered = add_spectral_norm(nn.Linear(64, 48), 1, 1e-8), torch.mv, []
    monkeypatch.setattr(torch, "mv", lambda *args: lowered.append(torch.is_autocast_enabled("cpu")) or mv(*args))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(2, 64)).dtype == torch.bfloat16
    assert lowered == [False] * 3  # two of an iteration, one of sigma


def test_the_orthogonal_gradient_is_that_of_the_papers_penalty():
    """beta ||W W^T o (1 - I)||_F^2, differentiated by torch (Brock et al. 2019, Eq. 3)."""
    beta = 3e-3
    g, _ = networks()
    exempt = {g.blocks[0].norm1.gain.weight}
    p = player(g, orthogonal=beta, exempt=exempt)
    penalised = [w for w in g.parameters() if w.dim() > 1 and w not in exempt]
    for w in g.parameters():
        w.grad = torch.ones_like(w)
    add_orthogonal_gradient(p)
    for w in g.parameters():
        expected = torch.ones_like(w)
        if any(w is one for one in penalised):
            leaf = w.detach().clone().requires_grad_(True)
            gram = leaf.flatten(1) @ leaf.flatten(1).T
            (beta * (gram * (1 - torch.eye(len(gram)))).square().sum()).backward()
            expected = expected + leaf.grad
        torch.testing.assert_close(w.grad, expected)


def test_a_scaled_loss_gives_the_same_step_and_an_overflow_skips_it():
    """fp16's scaler, one a player: the scale is taken out before anything reads the gradient."""
    found = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        g, d = networks()
        d = player(d, scaler=scaler)
        stats = discriminator_phase(player(g), d, Hinge(), rounds(4, 3), 3)
        found.append((gradients(d.network), copy.deepcopy(d.network.state_dict()), stats["grad_norm/d"]))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])
    assert found[0][2] == pytest.approx(found[1][2].item())
    before = copy.deepcopy(dict(d.network.named_parameters()))
    poisoned = [((torch.full((4, 1, 8, 8), float("inf"), dtype=torch.float64), torch.zeros(4, dtype=torch.int64)), noise(0, 4))]
    discriminator_phase(player(g), d, Hinge(), poisoned, 1)
    assert all(torch.equal(p, before[n]) for n, p in d.network.named_parameters())
    assert d.scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_an_update_draws_fresh_latents_and_images_for_every_phase(loss, tmp_path, monkeypatch):
    """Two updates of 3 D steps and one G step: no latents twice, every position of the real stream once."""
    trainer = Trainer(
        load(
            ROOT / "configs" / "digits.yaml",
            [*TINY, "optim.d_steps=3", f"loss.name={loss}", f"run_dir={tmp_path}", "batching.micro_batch=8"],
        )
    )
    trainer.start()
    latents, positions = [], []
    draw = latents_module.draw
    monkeypatch.setattr(latents_module, "draw", lambda *a, **k: latents.append(draw(*a, **k)[0]) or draw(*a, **k))
    taken = trainer.inputs.real_batches.sampler.positions
    monkeypatch.setattr(
        trainer.inputs.real_batches.sampler, "positions", lambda turn: positions.extend(taken(turn).tolist()) or taken(turn)
    )
    for _ in range(2):
        trainer.update()
    rows = torch.cat(latents)
    assert len(rows) == 2 * 4 * 16 == len(rows.unique(dim=0))
    assert positions == list(range(2 * 3 * 16))
    trainer.close()


def test_a_checkpoint_restores_the_scalers(tmp_path):
    """Through the trainer's own save and load."""
    settings = [*TINY, f"run_dir={tmp_path}"]
    scales = []
    for _ in range(2):
        trainer = Trainer(load(ROOT / "configs" / "digits.yaml", settings))
        for player_, scale in ((trainer.players.G, 2.0**5), (trainer.players.D, 2.0**7)):
            player_.scaler = torch.amp.GradScaler("cpu", init_scale=scale if not scales else 1.0)
            player_.scaler.scale(torch.zeros(()))  # a scaler begins at its first use
        trainer.start()
        scales.append(tuple(player_.scaler.get_scale() for player_ in trainer.players.by_key.values()))
        trainer.saving.save()
        trainer.close()
    assert scales == [(2.0**5, 2.0**7)] * 2


def test_a_scaler_goes_through_a_checkpoint():
    """As JSON, which is how the trainer saves it: the same scale and the same distance to the next growth."""
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3) for _ in range(2))
    (G, D), scales = networks(), []
    for _ in range(2):
        discriminator_phase(player(G), player(D, scaler=scaler), Hinge(), rounds(4, 1), 1)
    other.load_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert other.state_dict() == scaler.state_dict()
    for one in (scaler, other):
        discriminator_phase(player(G), player(D, scaler=one), Hinge(), rounds(4, 1), 1)
        scales.append(one.get_scale())
    assert scales == [2.0**9, 2.0**9]


def test_adam_is_fused_and_is_adam():
    torch.manual_seed(0)
    a = nn.Linear(4, 3).double()
    b = copy.deepcopy(a)
    ours, theirs = (
        Adam().build([*a.parameters()], 1e-2, (0.0, 0.99), 1e-8),
        torch.optim.Adam(b.parameters(), lr=1e-2, betas=(0.0, 0.99), eps=1e-8, foreach=False),
    )
    assert ours.param_groups[0]["fused"]
    for step in range(5):
        x = torch.full((2, 4), 1.0 + step, dtype=torch.float64)
        for network, optimizer in ((a, ours), (b, theirs)):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-12, atol=0)


def test_optimizer_state_goes_through_tensors_bit_for_bit():
    """Also with convolutions in channels_last order, whose moments must lie in memory as the weights do."""
    torch.manual_seed(0)
    a = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    first = Adam().build([*a.parameters()], 1e-2, (0.5, 0.99), 1e-8)

    def step(network, optimizer):
        optimizer.zero_grad()
        torch.manual_seed(1)
        network(torch.randn(2, 4, 6, 6)).square().sum().backward()
        optimizer.step()

    step(a, first)
    b = copy.deepcopy(a)
    second = Adam().build([*b.parameters()], 1e-2, (0.5, 0.99), 1e-8)
    saved = {k: v.clone().contiguous() for k, v in optimizer_tensors(first, a).items()}
    load_optimizer_tensors(second, b, saved)
    assert second.state[b.weight]["exp_avg"].stride() == b.weight.stride() == first.state[a.weight]["exp_avg"].stride()
    for _ in range(3):
        step(a, first)
        step(b, second)
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
