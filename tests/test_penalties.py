"""Every penalty against a formula of its own in numpy; its gradient; however a batch is cut; its state; what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS, TINY, slow_but
from game import networks, player
from own_terms import Wobble, play, terms
from penalty_batches import DIM_Z, SHAPE, SIZE, LinearD, QuadraticD, SmoothD, SmoothG, make_batch
from penalty_workers import CUTS, played
from safetensors.torch import load_file
from torch import nn
from torch.func import functional_call

from gantrain.config.loading import ConfigError, load
from gantrain.config.notes import notes
from gantrain.errors import InvalidField, UserError
from gantrain.losses import PENALTIES, PENALTY, R1, R2, Hinge, NonSaturating
from gantrain.losses.penalties import (
    DRAGAN,
    WGANGP,
    BalancedConsistency,
    Consistency,
    FiniteDifferenceR1,
    FiniteDifferenceR2,
    LatentConsistency,
    LeCam,
    PathLength,
)  # fmt: skip
from gantrain.losses.penalties.jitter import jitter
from gantrain.randomness import Draws
from gantrain.run_folder import checkpoint
from gantrain.schedule import Schedule
from gantrain.training.trainer import Trainer

STATES = {"lecam": {"real": 0.3, "fake": -0.2, "weight": 0.8}, "path_length": {"length": 0.5, "weight": 0.4}}
# (name, player, settings): every penalty in every phase that it has a part in.
CASES = [
    ("r1", "d", {"gamma": 0.3}),
    ("r2", "d", {"gamma": 0.3}),
    ("fd_r1", "d", {"gamma": 0.3, "sigma": 0.2}),
    ("fd_r2", "d", {"gamma": 0.3, "sigma": 0.2, "reuse_logits": False}),
    ("wgan_gp", "d", {"weight": 3.0, "target": 0.5}),
    ("dragan", "d", {"weight": 3.0, "noise": 0.7}),
    ("lecam", "d", {"weight": 0.4}),
    ("cr", "d", {"weight": 2.0, "shift": 0.25}),
    ("bcr", "d", {"weight_real": 2.0, "weight_fake": 3.0, "shift": 0.5}),
    ("zcr", "d", {"weight_d": 2.0, "sigma": 0.4}),
    ("zcr", "g", {"weight_g": 2.0, "sigma": 0.4}),
    ("path_length", "g", {"weight": 2.0}),
]
NAMES = [f"{name}-{player}" for name, player, _ in CASES]
every_penalty = pytest.mark.parametrize("name, player, settings", CASES, ids=NAMES)


def quick(*names):
    """Every penalty, slow but for these."""
    return pytest.mark.parametrize(
        "name, player, settings", slow_but([case for case, of in zip(CASES, NAMES) if of in names], CASES), ids=NAMES
    )


def penalty_of(name, settings):
    return PENALTIES[name](**settings)


def moved(x: np.ndarray, draws: Draws, flip: bool, shift: float) -> np.ndarray:
    """Flip and shift, image by image, with numpy's own reflection."""
    flips, moves = draws.uniform("flip", 1, 1, 1).flatten().numpy(), draws.uniform("shift", 2).numpy()
    found = []
    for image, f, (down, right) in zip(x, flips, moves):
        image = image[:, :, ::-1] if flip and f < 0.5 else image
        most = int(image.shape[1] * shift)
        i, j = (int(u * (2 * most + 1)) for u in (down, right))
        padded = np.pad(image, ((0, 0), (most, most), (most, most)), mode="reflect")
        found.append(padded[:, i : i + image.shape[1], j : j + image.shape[2]])
    return np.stack(found)


def expected(name, player, p, batch, D, G) -> float:
    """The formula, in numpy."""
    n = SimpleNamespace(**{f: v.detach().numpy() for f, v in vars(batch).items() if isinstance(v, torch.Tensor)})
    draws, N = batch.draws, len(n.x_real)
    real, fake = n.x_real.reshape(N, -1), n.x_fake.reshape(N, -1)

    def slopes(x, y):
        return np.sqrt((D.numpy(x, y)[1] ** 2).sum(axis=1))

    def change(x, other, y):
        return ((D.numpy(x, y)[0] - D.numpy(other, y)[0]) ** 2).mean()

    if name in ("r1", "r2"):
        x, y = (real, n.y_real) if name == "r1" else (fake, n.y_fake)
        return p.gamma / 2 * (slopes(x, y) ** 2).mean()
    if name in ("fd_r1", "fd_r2"):
        x, y = (real, n.y_real) if name == "fd_r1" else (fake, n.y_fake)
        return p.gamma / 2 * change(x, x + p.sigma * draws.normal("noise", *SHAPE).double().numpy().reshape(N, -1), y) / p.sigma**2
    if name == "wgan_gp":
        u = draws.uniform("interpolation", 1, 1, 1).double().numpy().reshape(N, 1)
        return p.weight * ((slopes(u * real + (1 - u) * fake, n.y_real) - p.target) ** 2).mean()
    if name == "dragan":
        a, u = (draws.uniform(*of).double().numpy().reshape(N, -1) for of in (("way", 1, 1, 1), ("noise", *SHAPE)))
        return p.weight * ((slopes(real + a * p.noise * real.std(axis=1, keepdims=True) * u, n.y_real) - p.target) ** 2).mean()
    if name == "lecam":
        a_real, a_fake = 0.3 / 0.8, -0.2 / 0.8
        above, below = np.maximum(0, n.logits_real - a_fake), np.maximum(0, a_real - n.logits_fake)
        return p.weight * ((above**2).mean() + (below**2).mean())
    if name in ("cr", "bcr"):
        at_real = change(n.x_real, moved(n.x_real, draws.of("real"), p.flip, p.shift), n.y_real)
        if name == "cr":
            return p.weight * at_real
        return p.weight_real * at_real + p.weight_fake * change(n.x_fake, moved(n.x_fake, draws.of("fake"), p.flip, p.shift), n.y_fake)
    if name == "zcr":
        near = G.numpy(n.z + p.sigma * draws.normal("latent", DIM_Z).double().numpy(), n.y_fake)[0]
        return p.weight_d * change(fake, near, n.y_fake) if player == "d" else -p.weight_g * ((fake - near) ** 2).mean()
    assert name == "path_length"
    y = draws.normal("noise", *SHAPE).double().numpy().reshape(N, -1) / math.sqrt(16)
    lengths = np.sqrt((np.einsum("ni,nij->nj", y, G.numpy(n.z, n.y_fake)[1]) ** 2).sum(axis=1))
    return p.weight * ((lengths - 0.5 / 0.4) ** 2).mean()


@every_penalty
def test_value(name, player, settings):
    D, G, penalty = SmoothD(), SmoothG(), penalty_of(name, settings)
    batch = make_batch(D, G, range(6), player, STATES.get(name))
    value, _ = penalty.term(batch, player)
    assert value.shape == () and value.dtype == torch.float64
    assert value.item() == pytest.approx(expected(name, player, penalty, batch, D, G), rel=1e-9)


@quick("wgan_gp-d", "path_length-g")
def test_gradient(name, player, settings):
    """Through the player's parameters: for a penalty that depends on a gradient, through a second derivative of the network."""
    D, G, penalty = SmoothD(width=3), SmoothG(), penalty_of(name, settings)
    trained = D if player == "d" else G
    names, values = zip(*trained.named_parameters())

    def value(*values):
        def called(*inputs):
            return functional_call(trained, dict(zip(names, values)), inputs)

        networks = (called, G) if player == "d" else (D, called)
        return penalty.term(make_batch(*networks, range(2), player, STATES.get(name)), player)[0]

    assert torch.autograd.gradcheck(value, values, fast_mode=True)


@quick("fd_r1-d", "lecam-d", "path_length-g")
@pytest.mark.parametrize("augmented", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rounds_make_one_batch(name, player, settings, augmented):
    """Value, gradient and observations of 8 images, of 2 rounds of 4 and of 4 rounds of 2: equal to 1e-9."""

    def augment(x, kind, positions):  # of every image by its position, and otherwise for real images than for generated ones
        return x * (1 + 0.1 * positions.view(-1, 1, 1, 1)) + (0.3 if kind == "real" else -0.2)

    penalties = [penalty_of(name, settings)]
    if name.startswith("fd"):
        penalties += [dataclasses.replace(penalties[0], share=share) for share in (0.5, 0.25)]  # 4 does not divide 2
    for penalty in penalties:
        whole = measured(penalty, name, player, [range(8)], augment if augmented else None)
        for cut in ([range(4), range(4, 8)], [range(i, i + 2) for i in range(0, 8, 2)]):
            parts = measured(penalty, name, player, cut, augment if augmented else None)
            for a, b in zip(whole, parts, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def measured(penalty, name, player, cut, augment):
    """(value, gradients ..., observations ...), each the mean over the rounds of a cut."""
    D, G = SmoothD(), SmoothG()
    found = []
    for positions in cut:
        value, observed = penalty.term(make_batch(D, G, positions, player, STATES.get(name), augment=augment), player)
        slopes = torch.autograd.grad(value, list((D if player == "d" else G).parameters()), allow_unused=True)
        found.append([value.detach(), *(s for s in slopes if s is not None), *observed.values()])
    return [torch.stack(parts).mean(dim=0) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("name", PENALTIES)
def test_every_penalty_keeps_the_contract(name):
    cls = PENALTIES[name]
    penalty = cls(**({"shift": 0.25} if name in ("cr", "bcr") else {}))  # of images of 4 pixels
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen and name in {case[0] for case in CASES}
    assert PENALTY.adapt(penalty) is penalty and penalty.every >= 1
    assert penalty.differentiates_twice == (name in ("r1", "r2", "wgan_gp", "dragan", "path_length"))
    assert penalty.networks == {"zcr": "gd", "path_length": "g"}.get(name, "d")
    state = penalty.initial_state()
    assert bool(state) == (name in STATES) and set(state) == set(STATES.get(name, {}))
    observed = penalty.term(make_batch(SmoothD(), SmoothG(), range(2), player := penalty.networks[0], state), player)[1]
    assert set(observed) == set(state) - {"weight"} and not any(value.requires_grad for value in observed.values())


@quick("fd_r1-d", "zcr-g")
def test_bf16_and_channels_last(name, player, settings):
    """Autocast: finite, and as near as 8 bits allow; the other layout: the same."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 1))
    G = nn.Sequential(nn.Linear(DIM_Z, 32), nn.Unflatten(1, (32, 1, 1)), nn.ConvTranspose2d(32, 2, 4), nn.Tanh())
    found = []
    penalty = penalty_of(name, settings)
    for mode in ("plain", "channels_last", "bf16"):
        layout = torch.channels_last if mode == "channels_last" else torch.contiguous_format
        d, g = D.to(memory_format=layout), G.to(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
            images = Draws(1, "x", torch.arange(8)).uniform("x", *SHAPE).to(memory_format=layout)
            batch = make_batch(lambda x, y, d=d: d(x).squeeze(1).float(), lambda z, y, g=g: g(z), range(8), player,
                               STATES.get(name), images=images)  # fmt: skip
            value = penalty.term(batch, player)[0]
        D.zero_grad(), G.zero_grad()
        value.backward()
        slopes = [p.grad for p in (D if player == "d" else G).parameters() if p.grad is not None]
        assert value.dtype == torch.float32 and torch.isfinite(value) and all(torch.isfinite(s).all() for s in slopes) and slopes
        found.append(torch.cat([value.detach().view(1), *(s.flatten() for s in slopes)]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5 * found[0].abs().max().item())
    assert (found[2] - found[0]).norm() <= 0.1 * found[0].norm() and not torch.equal(found[2], found[0])


# ---- R1 and R2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [R1, R2])
def test_r1_and_r2_are_to_the_bit_what_they_were(cls):
    D, G = SmoothD().float(), SmoothG().float()
    images = Draws(0, "x", torch.arange(6)).uniform("x", *SHAPE)
    batch = make_batch(D, G, range(6), images=images)
    x, y = (batch.x_real, batch.y_real) if cls is R1 else (batch.x_fake, batch.y_fake)
    x = x.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(D(x, y).sum(), x, create_graph=True)
    before = 0.5 * 0.3 * slope.square().sum(dim=(1, 2, 3)).mean()
    assert torch.equal(cls(gamma=0.3).term(batch, "d")[0], before)
    assert torch.equal(cls(gamma=0.3).penalty(D, batch.x_real, batch.x_fake, batch.y_real, batch.y_fake), before)


@pytest.mark.parametrize("cls", [R1, R2])
def test_a_subclass_with_a_penalty_of_its_own_is_asked_for_that(cls):
    class Mine(cls):
        def penalty(self, D, x_real, x_fake, y_real, y_fake):
            return D(x_real, y_real).mean()

    batch = make_batch(SmoothD(), SmoothG(), range(3))
    assert Mine().term(batch, "d")[0] == batch.logits_real.mean()


@pytest.mark.parametrize("name", ["r1", "r2", "fd_r1", "fd_r2"])
def test_the_gradient_is_that_before_the_augmentation(name):
    """D behind the augmentation x -> 3 x of real and x -> 5 x of generated images has slopes 3 w and 5 w."""
    w = torch.arange(1.0, SIZE + 1, dtype=torch.float64) / 10
    D = LinearD(w)
    scale = {"real": 3.0, "fake": 5.0}
    batch = make_batch(D, SmoothG(), torch.arange(4000 if "fd" in name else 2), augment=lambda x, kind, _: scale[kind] * x)
    value = PENALTIES[name](gamma=2.0).term(batch, "d")[0].item()
    exact = (w * scale["real" if name.endswith("1") else "fake"]).square().sum().item()
    assert value == pytest.approx(exact, rel=1e-12 if "fd" not in name else 5 * math.sqrt(2 / 4000))


# ---- finite differences ----------------------------------------------------------------------------------------------

MANY = 40_000


def squares(D, sigma: float, x=0.0) -> torch.Tensor:
    """The squared quotients of many draws at one image."""
    images = torch.full((MANY, 1, 2, 2), x, dtype=torch.float64)
    labels = torch.zeros(MANY, dtype=torch.int64)
    kept = []

    def logits_of(images, labels):
        kept.append(D(images, labels))
        return kept[-1]

    penalty = FiniteDifferenceR1(gamma=2.0, sigma=sigma)
    value = penalty.at(logits_of, images, labels, D(images, labels), Draws(0, "d0/penalties/fd", torch.arange(MANY)), 0)
    found = ((kept[0] - D(images, labels)) / sigma).square()
    torch.testing.assert_close(value, found.mean())
    return found


def test_finite_differences_of_a_linear_d():
    """No bias at any sigma, and the variance 2 |g|^4; the gradient with respect to w is unbiased too: that of |w|^2, 2 w."""
    w = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
    D = LinearD(w)
    exact = w.square().sum()
    for sigma in (0.01, 1.0):
        found = squares(D, sigma)
        assert abs(found.mean() - exact) < 4 * exact * math.sqrt(2 / MANY)
        assert found.detach().var().item() == pytest.approx(2 * exact.item() ** 2, rel=0.05)
        (slope,) = torch.autograd.grad(found.mean(), D.w)
        torch.testing.assert_close(slope, 2 * w, rtol=0, atol=0.15)


@pytest.mark.parametrize("sigma", slow_but([1.0], [0.05, 0.3, 1.0]))
def test_bias_and_variance_of_finite_differences_of_a_quadratic_d(sigma):
    """|g|^2 + sigma^2 / 4 ((tr H)^2 + 2 |H|^2), and the variance up to sigma^2, for a matrix H with a trace."""
    source = torch.Generator().manual_seed(4)
    g = torch.randn(4, generator=source, dtype=torch.float64)
    H = torch.randn(4, 4, generator=source, dtype=torch.float64)
    H = (H + H.T) / 2 + 0.5 * torch.eye(4, dtype=torch.float64)
    found = squares(QuadraticD(g, H), sigma).detach()
    t, squared = H.trace(), H.square().sum()
    bias = sigma**2 / 4 * (t**2 + 2 * squared)
    assert abs(found.mean() - (g @ g + bias)) < 4 * found.std() / math.sqrt(MANY)
    if sigma == 1.0:
        assert bias > 8 * found.std() / math.sqrt(MANY)  # so that it was seen
    along = g @ H @ g
    second = (g @ g) * (t**2 + 2 * squared) + 6 * (t * along + 2 * (g @ H @ H @ g))
    if sigma <= 0.3:
        assert found.var().item() == pytest.approx((2 * (g @ g) ** 2 + sigma**2 * second).item(), rel=0.08)


def test_finite_differences_near_exact_r1_on_a_smooth_d():
    D = SmoothD()
    batch = make_batch(D, SmoothG(), torch.arange(MANY // 4))
    exact, near = R1(gamma=0.3).term(batch, "d")[0].item(), FiniteDifferenceR1(gamma=0.3, sigma=0.01).term(batch, "d")[0].item()
    norms = np.square(D.numpy(batch.x_real.numpy(), batch.y_real.numpy())[1]).sum(axis=1)
    assert abs(near - exact) < 4 * 0.15 * math.sqrt(2 * (norms**2).mean() / len(norms))


def test_a_share_of_the_images_goes_through_d_only_where_it_can():
    D, G, seen = SmoothD(), SmoothG(), []

    def counted(x, y):
        seen.append(len(x))
        return D(x, y)

    for share, positions, passed in ((1.0, range(8), 8), (0.25, range(8), 2), (0.33, range(6), 2), (0.25, range(6), 6)):
        batch = make_batch(counted, G, positions)
        seen.clear()
        value = FiniteDifferenceR1(share=share).term(batch, "d")[0]
        assert seen == [passed]
        n = round(1 / share)
        chosen = make_batch(D, G, range(0, len(positions), n))
        alone = FiniteDifferenceR1().term(chosen, "d")[0]
        torch.testing.assert_close(value, alone * len(chosen.z) * n / len(positions) if len(positions) % n else alone)


# ---- WGAN-GP and DRAGAN ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [WGANGP, DRAGAN])
def test_a_linear_d_has_its_slope_everywhere(cls):
    for length in (0.0, 0.5, 3.0):
        w = torch.zeros(SIZE, dtype=torch.float64)
        w[3] = length
        D = LinearD(w)
        value = cls(weight=2.0).term(make_batch(D, SmoothG(), range(4)), "d")[0]
        assert value.item() == pytest.approx(2 * (length - 1) ** 2)
        value.backward()
        assert torch.isfinite(D.w.grad).all()  # where the norm is 0 too, at which the square root has no derivative


def test_dragan_moves_by_the_standard_deviation_that_is_asked_for():
    """A flat image is moved only if the deviation of the data is given; all images are moved by at most noise times it."""
    images = torch.full((4, *SHAPE), 0.5, dtype=torch.float64)
    for std, reach in ((None, 0.0), (0.4, 0.2)):
        seen = []

        def look(x, y, seen=seen):
            seen.append(x.detach())
            return x.flatten(1).sum(dim=1)

        DRAGAN(std=std).term(make_batch(look, SmoothG(), range(4), images=images), "d")
        away = seen[-1] - images
        assert away.min() >= 0 and away.max() <= reach and (away.max() > reach / 4) == (reach > 0)


# ---- means over the past ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty, names", [(LeCam(half_life_kimg=2), ["real", "fake"]), (PathLength(half_life_kimg=2), ["length"])])
def test_a_moving_mean_is_a_matter_of_images(penalty, names):
    """After observations x_i of n_i images: sum of x_i (1 - 2^(-n_i/h)) 2^(-later/h) over the same sum without x_i."""
    images, seen = [64, 128, 64, 1000], [1.5, -2.0, 0.25, 3.0]
    state = {name: torch.tensor(value, dtype=torch.float64) for name, value in penalty.initial_state().items()}
    for n, x in zip(images, seen):
        state = penalty.next_state(state, {name: torch.tensor(x) for name in names}, n)
    later = [sum(images[i + 1 :]) for i in range(4)]
    shares = [(1 - 0.5 ** (n / 2000)) * 0.5 ** (after / 2000) for n, after in zip(images, later)]
    assert state["weight"].item() == pytest.approx(1 - 0.5 ** (sum(images) / 2000))
    for name in names:
        mean = state[name] / state["weight"]
        assert mean.item() == pytest.approx(sum(s * x for s, x in zip(shares, seen)) / sum(shares))
    # One observation is the mean, and the same value seen in two steps or in one is the same state.
    first = {name: torch.tensor(value, dtype=torch.float64) for name, value in penalty.initial_state().items()}
    value = {name: torch.tensor(0.7, dtype=torch.float64) for name in names}
    once, twice = penalty.next_state(first, value, 128), penalty.next_state(penalty.next_state(first, value, 64), value, 64)
    for name in state:
        torch.testing.assert_close(once[name], twice[name], rtol=1e-12, atol=0)


def test_published_decays_are_the_default_half_lives():
    assert LeCam().half_life_kimg * 1000 == pytest.approx(64 * math.log(2) / -math.log(0.99), rel=0.01)
    assert PathLength().half_life_kimg * 1000 == pytest.approx(4 * 32 * math.log(2) / -math.log(0.99), rel=0.01)
    assert LeCam().start_kimg * 1000 == 1000 * 64


def test_lecam_waits_for_its_start_and_its_first_means():
    D, G = SmoothD(), SmoothG()
    for penalty, state, nimg, applied in (
        (LeCam(), STATES["lecam"], 63_999, False),
        (LeCam(), STATES["lecam"], 64_000, True),
        (LeCam(start_kimg=0), LeCam().initial_state(), 0, False),
    ):
        batch = make_batch(D, G, range(4), state=state, nimg=nimg)
        value, observed = penalty.term(batch, "d")
        assert (value != 0).item() == applied and torch.isfinite(value)
        assert observed["real"] == batch.logits_real.mean() and observed["fake"] == batch.logits_fake.mean()
        (batch.logits_fake.sum() + value).backward()
        assert all(torch.isfinite(p.grad).all() for p in D.parameters())


def test_lecam_without_the_relu_is_the_papers_formula():
    batch = make_batch(SmoothD(), SmoothG(), range(6), state=STATES["lecam"])
    plain = (batch.logits_real + 0.25).square().mean() + (batch.logits_fake - 0.375).square().mean()
    torch.testing.assert_close(LeCam(weight=1.0, rectified=False).term(batch, "d")[0], plain)
    assert LeCam(weight=1.0).term(batch, "d")[0] < plain


# ---- consistency -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_jitter_moves_whole_pixels_and_keeps_the_layout(layout):
    x = torch.rand(200, 3, 8, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    draws = Draws(0, "t", torch.arange(200))
    found = jitter(x, draws, True, 0.25)
    assert found.is_contiguous(memory_format=layout)
    assert np.array_equal(found.numpy(), rectangle(x.numpy(), draws))
    assert torch.equal(jitter(x, draws, False, 0.0), x)
    for shift, words in ((0.12, "shift=0.12 is less than a pixel of 8; use 0.125 or more, or 0"), (0.15, "shift=0.15 .* 6; use 0.1667 or")):
        with pytest.raises(UserError, match=f"^penalties: {words}"):
            jitter(x, draws, True, shift)


def rectangle(x: np.ndarray, draws: Draws) -> np.ndarray:
    """Flip, and shifts of up to 2 rows of 8 and 1 column of 6, pixel by pixel; every shift and flip occurs."""
    flips, moves = draws.uniform("flip", 1).numpy()[:, 0] < 0.5, draws.uniform("shift", 2).numpy()
    rows, columns = (moves[:, 0] * 5).astype(int) - 2, (moves[:, 1] * 3).astype(int) - 1
    assert {*rows} == {-2, -1, 0, 1, 2} and {*columns} == {-1, 0, 1} and 70 < flips.sum() < 130
    found = np.empty_like(x)
    for n in range(len(x)):
        image = x[n][:, :, ::-1] if flips[n] else x[n]
        for i in range(8):
            for j in range(6):
                a, b = abs(i + rows[n]), abs(j + columns[n])
                found[n, :, i, j] = image[:, min(a, 14 - a), min(b, 10 - b)]
    return found


def test_a_shift_of_less_than_a_pixel_is_refused_before_the_run():
    words = r"penalties.p.shift must be 0, or at least 0.0625, one pixel of data.resolution=16, got 0.05"
    with pytest.raises(ConfigError, match=words):
        load(ROOT / "configs" / "digits.yaml", ["penalties={p: {name: bcr, shift: 0.05}}"])
    for shift in (0, 0.0625):
        load(ROOT / "configs" / "digits.yaml", [f"penalties={{p: {{name: bcr, shift: {shift}}}}}"])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_d_sees_the_strides_of_the_images(layout):
    """So that a compiled D is not compiled once more; images of one channel are contiguous in both layouts, whatever their strides."""
    x, draws = torch.rand(6, 1, 8, 8).to(memory_format=layout), Draws(0, "p", torch.arange(6))
    x = x if layout == torch.contiguous_format else x.as_strided(x.shape, (64, 1, 8, 1))
    seen = [jitter(x, draws, True, 0.25)]

    def look(images, labels):
        seen.append(images)
        return images.sum(dim=(1, 2, 3))

    FiniteDifferenceR1().at(look, x, draws.positions, torch.zeros(6), draws, 0)
    assert [images.stride() for images in seen] == [x.stride()] * 2


def test_a_d_that_ignores_the_transforms_is_consistent():
    def blind(x, y):
        return x.square().sum(dim=(1, 2, 3)) * 0 + x.amax(dim=(1, 2, 3))

    centre = torch.zeros(4, *SHAPE, dtype=torch.float64)
    centre[:, :, 1:3, 1:3] = 1.0  # a shift by one pixel, or a flip, leaves its maximum where it is
    value = Consistency(shift=0.25).term(make_batch(blind, SmoothG(), range(4), images=centre), "d")[0]
    assert value == 0


def test_zcr_has_no_gradient_to_g_in_ds_phase():
    D, G = SmoothD(), SmoothG()
    LatentConsistency().term(make_batch(D, G, range(4), "d"), "d")[0].backward()
    assert all(p.grad is None for p in G.parameters()) and all(p.grad is not None for p in (D.W, D.v))
    value = LatentConsistency().term(make_batch(D, G, range(4), "g"), "g")[0]
    assert value < 0 and all(s is not None for s in torch.autograd.grad(value, (G.A, G.C)))


# ---- path length -----------------------------------------------------------------------------------------------------


class Mapped(nn.Module):
    """G(z, y) = S M z with a mapping network M, whose latent may be repeated for layers."""

    def __init__(self, layers: int = 0):
        super().__init__()
        source = torch.Generator().manual_seed(2)
        self.layers = layers
        self.M = nn.Parameter(torch.randn(3, DIM_Z, generator=source, dtype=torch.float64))
        self.S = nn.Parameter(torch.randn(max(layers, 1), SIZE, 3, generator=source, dtype=torch.float64))

    def mapping(self, z, y):
        w = z @ self.M.T
        return w.unsqueeze(1).expand(-1, self.layers, -1) if self.layers else w

    def synthesis(self, w):
        w = w if self.layers else w.unsqueeze(1)
        return torch.einsum("nld,lsd->ns", w, self.S).unflatten(1, SHAPE)

    def forward(self, z, y):
        return self.synthesis(self.mapping(z, y))


@pytest.mark.parametrize("layers, wrapped", slow_but([(3, True), (0, False)], itertools.product([0, 3], [False, True])))
def test_path_length_starts_at_w_where_there_is_a_mapping_network(layers, wrapped):
    """|S^T y| of the latent w, with layers the root of the mean over them; also behind a wrapper that has the network as `module`."""
    G = Mapped(layers)

    def wrapper(z, y):
        raise AssertionError("called, though it has a mapping network")

    wrapper.module = G
    batch = make_batch(SmoothD(), G, range(5), "g", PathLength().initial_state(), generator=wrapper if wrapped else None)
    value, observed = PathLength().term(batch, "g")
    y = batch.draws.normal("noise", *SHAPE).double().flatten(1) / 4
    each = torch.einsum("ns,lsd->nld", y, G.S).square().sum(dim=2).mean(dim=1).sqrt()
    torch.testing.assert_close(observed["length"], each.mean().detach())
    assert value == 0  # there is no mean yet


def test_path_length_is_zero_for_a_g_whose_steps_are_all_as_long_as_the_mean():
    G = SmoothG()
    batch = make_batch(SmoothD(), G, [5], "g", PathLength().initial_state())
    length = PathLength().term(batch, "g")[1]["length"]
    batch = dataclasses.replace(batch, state={"length": 0.3 * length, "weight": torch.tensor(0.3, dtype=torch.float64)})
    value = PathLength(weight=5.0).term(batch, "g")[0]
    assert value.item() == pytest.approx(0, abs=1e-20) and torch.isfinite(torch.autograd.grad(value, G.A)[0]).all()


class Deaf(nn.Module):
    """Images that are parameters, or nothing of z at all."""

    def __init__(self, trained: bool):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(SHAPE, dtype=torch.float64), requires_grad=trained)

    def forward(self, z, y):
        return self.x.expand(len(z), *SHAPE)


@pytest.mark.parametrize("trained", [True, False])
def test_path_length_refuses_a_g_that_is_deaf_to_z(trained):
    batch = make_batch(SmoothD(), Deaf(trained), range(2), "g", PathLength().initial_state())
    with pytest.raises(UserError, match=r"^penalties: path_length needs a generator whose images depend on z; remove it, or change model$"):
        PathLength().term(batch, "g")


# ---- values and schedules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls, wrong, words",
    [
        (R1, {"gamma": Schedule(0.0, 0.0, 1.0)}, "gamma: must be above 0, got Schedule"),
        (R1, {"gamma": Schedule(-1.0, 1.0, 1.0)}, "gamma: must be above 0, got Schedule"),
        (R2, {"gamma": float("nan")}, "gamma: must be above 0, got nan"),
        (WGANGP, {"weight": -1.0}, "weight: must be above 0, got -1.0"),
        (WGANGP, {"target": -0.5}, "target: must be at least 0, got -0.5"),
        (WGANGP, {"every": 0}, "every: must be at least 1, got 0"),
        (DRAGAN, {"noise": 0.0}, "noise: must be above 0, got 0.0"),
        (DRAGAN, {"std": 0.0}, "std: must be above 0, or null, got 0.0"),
        (LeCam, {"half_life_kimg": 0.0}, "half_life_kimg: must be above 0, got 0.0"),
        (LeCam, {"start_kimg": -1.0}, "start_kimg: must be at least 0, got -1.0"),
        (Consistency, {"shift": 0.6}, r"shift: must be in \[0, 0.5\], got 0.6"),
        (BalancedConsistency, {"flip": False, "shift": 0.0}, "shift: must be above 0 where flip is false, got 0.0"),
        (BalancedConsistency, {"weight_fake": 0.0}, "weight_fake: must be above 0, got 0.0"),
        (LatentConsistency, {"sigma": math.inf}, "sigma: must be above 0, got inf"),
        (PathLength, {"half_life_kimg": -1.0}, "half_life_kimg: must be above 0, got -1.0"),
        (FiniteDifferenceR1, {"sigma": 0.0}, "sigma: must be above 0, got 0.0"),
        (FiniteDifferenceR1, {"share": 0.0}, "share: must be above 0 and at most 1, got 0.0"),
        (FiniteDifferenceR1, {"share": 0.4}, "share: must be one n-th, such as 0.5, 0.33 or 0.25, got 0.4"),
        (FiniteDifferenceR2, {"share": 1.5}, "share: must be above 0 and at most 1, got 1.5"),
    ],
)
def test_values_out_of_range_are_refused_by_key(cls, wrong, words):
    with pytest.raises(InvalidField, match=f"^{words}"):
        cls(**wrong)


@quick("fd_r1-d", "zcr-d", "lecam-d")
def test_a_weight_may_follow_a_schedule(name, player, settings):
    """Half-way between 2 and 6 it is 4; at 0, where a schedule may start, the penalty is 0."""
    fields = [f.name for f in dataclasses.fields(PENALTIES[name]) if f.name.startswith(("gamma", "weight"))]
    scheduled = {**settings, **dict.fromkeys(fields, Schedule(0.0, 8.0, 200.0, 100.0))}
    for nimg, weight in ((0, 0.0), (150_000, 4.0), (300_000, 8.0)):
        nimg += 64_000 * (name == "lecam" and nimg == 0)
        batch = make_batch(SmoothD(), SmoothG(), range(3), player, STATES.get(name), nimg)
        found = penalty_of(name, scheduled).term(batch, player)[0]
        plain = penalty_of(name, {**settings, **dict.fromkeys(fields, 1.0)}).term(batch, player)[0]
        torch.testing.assert_close(found, weight * plain)


@pytest.mark.parametrize(
    "settings, words",
    [
        (["penalties={p: {name: bcr}}"], ["penalties.p.flip is true and data.flip is false: D learns to ignore left and right"]),
        (["penalties={p: {name: cr}}", "data.flip=true"], []),
        (["penalties={p: {name: cr, flip: false}}"], []),
        (
            ["penalties={p: {name: fd_r2}}", "mixed_precision=bf16"],
            ["penalties.p.sigma=0.01 is small for mixed_precision=bf16: the rounding"],
        ),
        (["penalties={p: {name: fd_r2, sigma: 0.05}}", "mixed_precision=bf16"], []),
        (["penalties={p: {name: fd_r1}}", "mixed_precision=fp16"], []),
        (["penalties={p: {name: path_length}}"], ["penalties.p: G has BatchNorm, so an image depends on all latents of its micro-batch"]),
        (["penalties={p: {name: lecam}}", "total_kimg=50"], ["penalties.p.start_kimg=64 is not before total_kimg=50"]),
    ],
)
def test_notes_at_the_start(settings, words):
    found = [note for note in notes(load(ROOT / "configs" / "digits.yaml", settings)) if "penalties" in note]
    assert len(found) == len(words) and all(note.startswith(start) for note, start in zip(found, words))


# ---- in an update ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", slow_but([{"spectral_norm": True}], [{"spectral_norm": True}, {"spectral_norm": False}, {"san": True}]))
@pytest.mark.parametrize("share", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_logits_of_the_loss_are_those_that_d_would_compute_again(kwargs, share):
    """In a phase of two rounds whose spectral norms iterate in the first, and behind an augmentation."""
    found = []
    for reuse in (True, False):
        g, d = (player(n) for n in networks(**kwargs))
        penalties = {
            "a": FiniteDifferenceR1(5.0, reuse_logits=reuse, every=1, share=share),
            "b": FiniteDifferenceR2(5.0, reuse_logits=reuse),
        }
        found.append(play(g, d, Hinge(), terms(Wobble(), **penalties), 4, 2, updates=1))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("san", [False, True])
def test_first_order_penalties_go_with_compiled_networks(san):
    """Same gradients, and few enough variants of each network: beyond 8, torch would run the others uncompiled."""
    penalties = {name: dataclasses.replace(PENALTIES[name](), every=1) for name in ("fd_r1", "lecam", "bcr", "zcr")}
    penalties |= {"fd_r1": FiniteDifferenceR1(every=1, share=0.5), "lecam": LeCam(start_kimg=0)}
    found, graphs = [], {"g": [], "d": []}
    for compiles in (False, True):
        torch.compiler.reset()
        both = networks(san=san)
        for network, kept in zip(both, graphs.values()):
            if compiles:
                network.compile(backend=lambda graph, inputs, kept=kept: kept.append(graph) or graph.forward)
        found.append(play(*map(player, both), NonSaturating(), terms(**penalties), 4, 2, g_steps=1))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert all(0 < len(kept) <= 6 for kept in graphs.values())


@pytest.mark.slow
def test_two_processes_and_rounds_have_the_gradients_and_states_of_one_batch(launch, tmp_path):
    """With all penalties of both players at once, and an augmentation: after two updates, to 1e-9."""
    launch(2, TESTS / "penalty_workers.py", tmp_path)
    one = played(16, 1)
    for found in (played(8, 2), played(2, 8), *(load_file(tmp_path / f"{b}-{k}.safetensors") for b, k in CUTS)):
        assert found.keys() == one.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, one[name], rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


# ---- in training -----------------------------------------------------------------------------------------------------

GAME = [
    *TINY,
    *["batching.micro_batch=8", "optim.d_steps=2", "eval.every_kimg=null", "tracking.every_kimg=0.016", "tracking.samples_every_kimg=null"],
]
IN_TRAINING = {
    "r1": "every: 1",
    "r2": "every: 3",
    "fd_r1": "gamma: 0.5, share: 0.25",
    "fd_r2": "every: 3, reuse_logits: false",
    "wgan_gp": "weight: 1.0",
    "dragan": "std: 0.6, every: 2",
    "lecam": "start_kimg: 0.03",
    "cr": "flip: false",
    "bcr": "flip: false, every: 2",
    "zcr": "sigma: 0.1",
    "path_length": "every: 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
def test_a_run_trains_and_resumes_to_the_bit(name, tmp_path):
    """Six updates of two rounds at once, and in two parts, have the same weights and the same state; the record has the penalty."""

    def train(run, updates, upto):
        settings = [*GAME, f"penalties={{p: {{name: {name}, {IN_TRAINING[name]}}}}}", f"run_dir={tmp_path / run}"]
        trainer = Trainer(load(ROOT / "configs" / "digits.yaml", settings))
        try:
            trainer.start()
            for _ in range(updates):
                trainer.maintain()
                trainer.update()
            trainer.maintain()
            assert trainer.run.nimg == 16 * upto
            trainer.saving.save()
            trainer.keeper.collect(trainer.run.nimg, wait=True)
        finally:
            trainer.close()
        return checkpoint.read(trainer.keeper.checkpoints.newest())

    whole = train("whole", 6, 6)
    train("parts", 3, 3)
    parts = train("parts", 3, 6)
    assert parts.state.get("terms") == whole.state.get("terms") and bool(whole.state.get("terms")) == (name in STATES)
    for key, tensors in whole.tensors.items():
        for place, tensor in tensors.items():
            assert torch.equal(tensor, parts.tensors[key][place]) and tensor.isfinite().all()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    for key in {"zcr": ["penalty/p/d", "penalty/p/g"]}.get(name, ["penalty/p"]):
        values = [line[key] for line in lines if key in line]
        assert values and all(map(math.isfinite, values)) and any(values)
