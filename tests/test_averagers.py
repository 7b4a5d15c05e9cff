"""Every averager of the table: against closed forms, plain-numpy implementations, and each other."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gantrain.averaging import AVERAGERS, Average, AverageBank, Bema, Ema, EmaSteps, Lawa, Lookahead, Power, Swa, weight_profile
from gantrain.averaging.power import gamma_of, sigma_rel_of
from gantrain.errors import InvalidField, UserError

# One of each, with hyper-parameters that make something happen within a few dozen updates.
RULES = {
    "ema": Ema(half_life_kimg=0.5, ramp_up=0.3),
    "ema_steps": EmaSteps(decay=0.9, start_kimg=0.3),
    "swa": Swa(start_kimg=0.3, every_kimg=0.2),
    "lawa": Lawa(k=3, every_kimg=0.2, start_kimg=0.3),
    "power": Power(sigma_rel=0.12),
    "bema": Bema(start_kimg=0.2, every_kimg=0.2, step_kimg=0.064, rho=2.0),
    "lookahead": Lookahead(alpha=0.5, every_kimg=0.3, start_kimg=0.2),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
offloadable = pytest.mark.parametrize("rule", [r for n, r in RULES.items() if n != "lookahead"], ids=[n for n in RULES if n != "lookahead"])

# The batch doubles twice; 41 updates, 5.2 kimg.
GROWING = list(itertools.accumulate([64] * 17 + [128] * 13 + [256] * 10 + [100]))


def growing(batches: dict[int, int]) -> list[int]:
    """Positions in images after so many updates of each batch."""
    return list(itertools.accumulate(batch for batch, updates in batches.items() for _ in range(updates)))


def followed(rule, positions: list[int], first: int = 0) -> Average:
    """An average whose live "weights" are one-hot in time, so that it is its own profile: [start, update 1, update 2, ...]."""
    live = torch.zeros(len(positions) + 1)
    live[0] = 1.0
    average = Average(rule, {"w": live}, first)
    for i, nimg in enumerate(positions, start=1):
        live.zero_()[i] = 1.0
        average.update(nimg)
    return average


def walk(live: dict[str, torch.Tensor], step: int) -> None:
    """Move the weights by a step of a random walk that depends on `step` alone."""
    generator = torch.Generator().manual_seed(step)
    for tensor in live.values():
        tensor.add_((torch.randn(tensor.shape, generator=generator) * 0.1).to(tensor))


def weights_of(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(shape, generator=generator).to(device, dtype) for n, shape in (("a.weight", (4, 3)), ("a.bias", (4,)), ("scale", ()))
    }


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def everything(average: Average) -> dict[str, torch.Tensor]:
    """Copies of all tensors of an average."""
    return copies({**average.shadows, **average.slot_tensors()})


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor.cpu(), b[name].cpu()), name


def test_no_averager_is_left_out_here():
    assert RULES.keys() == AVERAGERS.keys()
    assert all(type(rule) is AVERAGERS[name] for name, rule in RULES.items())


# ---- the power average -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule, gamma",
    [(Power(sigma_rel=s), None) for s in (0.03, 0.05, 0.10, 0.15, 0.25)]
    + [(Power(sigma_rel=None, gamma=g), g) for g in (0.0, 1.0, 6.94, 40.0)],
)
def test_power_weights_are_exact_through_a_growing_batch(rule, gamma):
    """The live weights of (t', t] count (t/T)^(gamma+1) - (t'/T)^(gamma+1), and the initial weights nothing."""
    if gamma is None:
        # Karras et al. 2024, algorithm 2: the root found without gantrain's function.
        gamma = max(np.roots([1, 7, 16 - rule.sigma_rel**-2, 12 - rule.sigma_rel**-2]).real)
    ends = np.array([0, *GROWING], dtype=np.float64) / GROWING[-1]
    expected = np.append(0.0, np.diff(ends ** (gamma + 1)))
    positions, weights = weight_profile(rule, GROWING)
    assert positions.tolist() == [0, *GROWING]
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    # fp32 rounds each of 41 steps by 2^-24 of a value below 1.
    np.testing.assert_allclose(followed(rule, GROWING).shadows["w"], expected, rtol=0, atol=41 * 2**-24)


def test_gamma_zero_is_the_plain_mean():
    """At a fixed batch every update counts alike."""
    _, weights = weight_profile(Power(sigma_rel=None, gamma=0.0), range(64, 64 * 30 + 1, 64))
    np.testing.assert_allclose(weights, [0.0] + [1 / 30] * 30, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0, 6.94, 16.97, 100.0, 1000.0])
def test_width_and_exponent_are_inverse(gamma):
    assert gamma_of(sigma_rel_of(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)
    assert sigma_rel_of(gamma_of(sigma_rel_of(gamma))) == pytest.approx(sigma_rel_of(gamma), rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.10, 0.20, 0.28])
def test_width_and_centre_of_a_finely_integrated_profile(sigma_rel):
    """Mean (gamma + 1) / (gamma + 2) and standard deviation sigma_rel of the window, as a share of the run."""
    n = 20_000
    positions, weights = weight_profile(Power(sigma_rel=sigma_rel), range(1, n + 1))
    middles = (positions - 0.5) / n
    gamma = gamma_of(sigma_rel)
    mean = (weights * middles).sum()
    # The middle of an interval in place of its own mean: an error of order 1/n^2 times (gamma + 1)^2 < 3000.
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-5)
    assert math.sqrt((weights * (middles - mean) ** 2).sum()) == pytest.approx(sigma_rel, abs=1e-5)


def test_power_with_rare_looks_keeps_its_exponent():
    """Looking rarely makes the steps coarse and changes nothing else: not where the window lies, whatever the distance."""
    gamma = gamma_of(0.10)
    for every in (0.2, 0.5, 1.3):
        positions, weights = followed(Power(sigma_rel=0.10, update_every_kimg=every), GROWING).weight_profile()
        ends = positions / positions[-1]
        np.testing.assert_allclose(weights, np.append(0.0, np.diff(ends ** (gamma + 1))), rtol=1e-9, atol=1e-12)


# ---- exponential averages --------------------------------------------------------------------------------------------


batches = st.lists(st.integers(1, 3000), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(batches=batches, half_life=st.floats(0.2, 50.0), every=st.none() | st.floats(0.05, 5.0), first=st.integers(0, 10**6))
def test_images_ema_has_total_weight_whatever_the_schedule(batches, half_life, every, first):
    """After n images the new weights count 1 - 2^(-n/H) and the start 2^(-n/H), n up to the last look."""
    positions = [first + n for n in itertools.accumulate(batches)]
    rule = Ema(half_life_kimg=half_life, ramp_up=None, update_every_kimg=every)
    distance = 1 if every is None else round(every * 1000)
    looks = [b for a, b in zip([first, *positions], positions) if b // distance > a // distance]
    kept = 0.5 ** ((looks[-1] - first) / (1000 * half_life)) if looks else 1.0
    average = followed(rule, positions, first)
    at, weights = average.weight_profile()
    assert at.tolist() == [first, *looks]
    assert weights[0] == pytest.approx(kept, rel=1e-9, abs=1e-15) and weights[1:].sum() == pytest.approx(1 - kept, rel=1e-9, abs=1e-12)
    # fp32 in at most 30 steps.
    assert average.shadows["w"][0].item() == pytest.approx(kept, abs=30 * 2**-24)
    assert average.shadows["w"][1:].sum().item() == pytest.approx(1 - kept, abs=900 * 2**-24)


def test_images_ema_that_looks_rarely_forgets_as_much():
    """At every look it has kept the same share of its start as one that looks after every update."""
    live = torch.ones(1)
    often, rarely = (Average(Ema(half_life_kimg=1.0, ramp_up=None, update_every_kimg=e), {"w": live}) for e in (None, 0.256))
    live.zero_()  # from here on the averages show what is left of their start
    compared = 0
    for nimg in GROWING:
        often.update(nimg)
        if rarely.update(nimg):
            compared += 1
            assert rarely.shadows["w"].item() == pytest.approx(often.shadows["w"].item(), rel=41 * 2**-23)
            assert rarely.shadows["w"].item() == pytest.approx(2 ** (-nimg / 1000), rel=41 * 2**-23)
    assert 10 < compared < len(GROWING)


def test_steps_ema_with_its_batch_decays_by_images():
    """d images keep decay^(d / B0), whatever the batch; at the batch B0 that is the published decay per update."""
    decay, published = 0.97, 64
    positions, weights = weight_profile(EmaSteps(decay=decay, batch_size=published), GROWING)
    assert weights[0] == pytest.approx(decay ** (positions[-1] / published), rel=1e-12)  # of the initial weights, as in BigGAN
    for i in range(1, len(weights)):
        brought = 1 - decay ** ((positions[i] - positions[i - 1]) / published)
        assert weights[i] == pytest.approx(brought * decay ** ((positions[-1] - positions[i]) / published), rel=1e-12)
    fixed = range(64, 64 * 40 + 1, 64)
    np.testing.assert_allclose(
        weight_profile(EmaSteps(decay=decay, batch_size=64), fixed)[1], weight_profile(EmaSteps(decay=decay), fixed)[1], rtol=1e-12
    )


def test_steps_ema_with_its_batch_and_rare_looks():
    """decay^(d / B0) holds over the images between looks."""
    positions, weights = followed(EmaSteps(decay=0.97, batch_size=64, update_every_kimg=0.4), GROWING).weight_profile()
    assert len(positions) < len(GROWING) / 2
    assert weights[0] == pytest.approx(0.97 ** (positions[-1] / 64), rel=1e-12)
    # With a start that lies before the first look, the weights of that look are the oldest.
    positions, weights = followed(EmaSteps(decay=0.97, batch_size=64, update_every_kimg=0.4, start_kimg=0.1), GROWING).weight_profile()
    assert weights[0] == 0.0 and weights[1] == pytest.approx(0.97 ** ((positions[-1] - positions[1]) / 64), rel=1e-12)


def test_steps_ema_counts_updates_between_rare_looks():
    """Looking once at n updates of unchanged weights is n updates: decay^n is kept, though the batch grows."""
    decay = 0.9
    live = torch.ones(1)
    often, rarely = (Average(EmaSteps(decay=decay, update_every_kimg=e), {"w": live}) for e in (None, 0.256))
    since, compared = 0, set()
    for nimg in GROWING:
        before = rarely.num_averaged
        often.update(nimg)
        looked = rarely.update(nimg)
        since += before > 0
        if looked and before == 0:
            live.zero_()  # both have copied a 1 now, and see 0 from here on
        elif looked:
            assert rarely.shadows["w"].item() == pytest.approx(decay**since, rel=41 * 2**-23)
            assert often.shadows["w"].item() == pytest.approx(decay**since, rel=41 * 2**-23)
            compared.add(rarely.state()["looks"][-1][3])
    assert compared == {4, 3, 2, 1}  # updates per look: of 64, over the first growth, of 128, and of 256


# ---- means of collected weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "k, every, start, look", [(1, 0.2, 0.0, None), (4, 0.2, 0.3, None), (4, 0.15, 0.5, 0.1), (7, 0.064, 0.0, None), (5, 0.7, 1.0, None)]
)
def test_lawa_is_the_mean_of_the_last_k_collected(k, every, start, look):
    """Against a deque, after every update: before there are k, with k, and while the batch grows."""
    live = {"w": torch.randn(6, generator=torch.Generator().manual_seed(1))}
    average = Average(Lawa(k=k, every_kimg=every, start_kimg=start, update_every_kimg=look), live)
    every, start = round(every * 1000), round(start * 1000)
    moments = [start + i * every for i in range(GROWING[-1] // every + 1)]
    window, collected, last = collections.deque(maxlen=k), 0, 0
    for step, nimg in enumerate(GROWING):
        walk(live, step)
        average.update(nimg)
        if look is None or nimg // round(look * 1000) > last // round(look * 1000):
            if any(last < moment <= nimg for moment in moments):
                window.append(live["w"].double().numpy().copy())
                collected += 1
            last = nimg
        assert average.started == (collected > 0)
        if window:
            np.testing.assert_allclose(average.shadows["w"], np.mean(window, axis=0), rtol=0, atol=1e-6)
    assert collected > k


def test_lawa_with_a_window_for_all_is_swa():
    live = {"w": torch.zeros(6)}
    lawa, swa = Average(Lawa(k=100, every_kimg=0.2, start_kimg=0.3), live), Average(Swa(every_kimg=0.2, start_kimg=0.3), live)
    for step, nimg in enumerate(GROWING):
        walk(live, step)
        assert lawa.update(nimg) == swa.update(nimg)
        torch.testing.assert_close(lawa.shadows["w"], swa.shadows["w"], rtol=0, atol=1e-6)
    assert lawa.num_averaged > 10


# ---- BEMA ------------------------------------------------------------------------------------------------------------


def published_bema(path: np.ndarray, tau: int, phi: int, kappa: float, eta: float, gamma: float, rho: float) -> np.ndarray:
    """Algorithm 1 of Block and Zhang 2025 in float64, in optimizer steps: path[t] are the weights after t steps, t from tau counted."""
    start = ema = average = path[tau]
    for t in range(phi, len(path) - tau, phi):
        theta = path[tau + t]
        beta, alpha = (rho + gamma * t) ** -kappa, (rho + gamma * t) ** -eta
        ema = (1 - beta) * ema + beta * theta
        average = alpha * (theta - start) + ema
    return average


@pytest.mark.parametrize("tau, phi", [(1, 1), (10, 4), (25, 7)])
@pytest.mark.parametrize("powers", [{}, {"kappa": 0.8, "eta": 0.5, "gamma": 0.3, "rho": 2.0}, {"kappa": 0.0, "eta": 0.0}])
def test_bema_is_algorithm_1_at_a_fixed_batch(tau, phi, powers):
    batch, steps = 32, 100
    powers = {"kappa": 0.5, "eta": 0.2, "gamma": 1.0, "rho": 10.0, **powers}
    rule = Bema(start_kimg=tau * batch / 1000, every_kimg=phi * batch / 1000, step_kimg=batch / 1000, **powers)
    live = {"w": torch.zeros(6)}
    average, path = Average(rule, live), [np.zeros(6)]
    for step in range(1, steps + 1):
        walk(live, step)
        path.append(live["w"].double().numpy().copy())
        average.update(step * batch)
        assert average.started == (step >= tau)
        if step >= tau:
            expected = published_bema(np.array(path), tau, phi, **powers)
            np.testing.assert_allclose(average.shadows["w"], expected, rtol=0, atol=1e-5)  # fp32, values of a few units


def test_bema_does_not_see_the_batch():
    """Looks at the same images see the same weights: whatever the batch in between, the average is the same to the last bit."""
    results = []
    for positions in (growing({64: 96}), growing({64: 32, 128: 16, 256: 8}), growing({512: 12})):
        live = {"w": torch.zeros(6)}
        average = Average(Bema(start_kimg=0.512, every_kimg=0.512, step_kimg=0.064), live)
        assert positions[-1] == 6144
        for nimg in positions:
            live["w"].copy_(torch.sin(torch.arange(6) + nimg / 1000))
            average.update(nimg)
        results.append(everything(average))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_bema_after_several_distances_takes_that_many_steps():
    """Batch 1024 with looks due every 256 images: on weights that stand still from a look on, (1 - beta)^4 is kept."""
    rule = Bema(start_kimg=1.024, every_kimg=0.256, eta=50.0)
    live = {"w": torch.ones(1)}
    average = Average(rule, live)
    average.update(1024)
    live["w"].zero_()
    average.update(2048)
    assert average.shadows["w"].item() == pytest.approx((1 - (10 + 1024 / 64) ** -0.5) ** 4, rel=1e-5)


def test_bema_without_correction_is_its_ema():
    """A very large eta leaves the plain EMA."""
    live = {"w": torch.zeros(6)}
    average = Average(Bema(start_kimg=0.064, every_kimg=0.128, eta=1000.0), live)
    for step, nimg in enumerate(GROWING):
        walk(live, step)
        average.update(nimg)
    assert average.num_averaged > 20 and torch.equal(average.shadows["w"], average.slots["ema"]["w"])
    assert not torch.equal(average.shadows["w"], live["w"])


def test_bema_at_its_extremes_doubles_the_way():
    """alpha = beta = 1: theta + (theta - theta_0)."""
    live = {"w": torch.zeros(6)}
    average = Average(Bema(start_kimg=0.064, every_kimg=0.064, eta=0.0, kappa=0.0), live)
    for step, nimg in enumerate(GROWING):
        walk(live, step)
        if step == 0:
            start = live["w"].clone()
        average.update(nimg)
        torch.testing.assert_close(average.shadows["w"], live["w"] + (live["w"] - start), rtol=0, atol=1e-6)


# ---- Lookahead -------------------------------------------------------------------------------------------------------


class Player(nn.Module):
    """One vector; each of its entries plays a game of its own."""

    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.w = nn.Parameter(values.clone())


def bilinear_game(averagers: dict, rounds: int, k: int, batch: int, eta: float = 0.1) -> tuple[list[torch.Tensor], list[AverageBank]]:
    """min over x, max over y of x y by simultaneous descent-ascent; the radii of all entries after every k steps, and the banks."""
    generator = torch.Generator().manual_seed(3)
    g, d = (Player(torch.randn(20, generator=generator)) for _ in range(2))
    banks = [AverageBank(player, averagers) for player in (g, d)]
    steps = torch.optim.SGD(g.parameters(), lr=eta), torch.optim.SGD(d.parameters(), lr=eta, maximize=True)
    radii = []
    for step in range(1, rounds * k + 1):
        for optimizer in steps:
            optimizer.zero_grad()
        (g.w * d.w).sum().backward()
        for optimizer in steps:
            optimizer.step()
        for bank in banks:
            bank.update(step * batch)
        if step % k == 0:
            radii.append(torch.hypot(g.w.detach(), d.w.detach()))
    return radii, banks


def test_lookahead_contracts_the_bilinear_game_that_diverges_without():
    """Factor |1 - alpha + alpha lambda^k| an outer step, lambda = 1 + i eta, where plain descent-ascent grows by |lambda^k|."""
    eta, k, alpha, batch = 0.1, 20, 0.5, 64
    turn = (1 + 1j * eta) ** k
    assert abs(turn) == pytest.approx(1.105, abs=5e-4) and abs(1 - alpha + alpha * turn) == pytest.approx(0.573, abs=5e-4)
    rule = Lookahead(alpha=alpha, every_kimg=k * batch / 1000, start_kimg=k * batch / 1000)
    radii, _ = bilinear_game({"lookahead": rule}, 6, k, batch, eta)
    for before, after in itertools.pairwise(radii):  # the slow weights begin at the end of the first round
        torch.testing.assert_close(after / before, torch.full((20,), abs(1 - alpha + alpha * turn)), rtol=1e-4, atol=0)
    radii, _ = bilinear_game({"ema": Ema()}, 6, k, batch, eta)
    for before, after in itertools.pairwise(radii):
        torch.testing.assert_close(after / before, torch.full((20,), abs(turn)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("order", [("probe", "lookahead"), ("lookahead", "probe")])
def test_other_averages_see_the_live_weights_before_they_are_put_back(order):
    """Decay 0 copies what it sees: the fast weights, wherever in the mapping it stands."""
    averagers = {"probe": EmaSteps(decay=0.0), "lookahead": Lookahead(alpha=0.5, every_kimg=0.256, start_kimg=0.128)}
    player = Player(torch.zeros(3))
    bank = AverageBank(player, {name: averagers[name] for name in order})
    put_back = 0
    for step, nimg in enumerate(GROWING):
        walk({"w": player.w.detach()}, step)
        fast = player.w.detach().clone()
        bank.update(nimg)
        assert torch.equal(bank["probe"].shadows["w"], fast)
        if not torch.equal(player.w.detach(), fast):
            put_back += 1
            assert torch.equal(player.w.detach(), bank["lookahead"].shadows["w"])
    assert put_back > 10


def test_averages_that_do_not_write_back_leave_the_live_weights_alone():
    player = Player(torch.zeros(3))
    bank = AverageBank(player, {name: rule for name, rule in RULES.items() if name != "lookahead"})
    for step, nimg in enumerate(GROWING):
        walk({"w": player.w.detach()}, step)
        before = player.w.detach().clone()
        bank.update(nimg)
        assert torch.equal(player.w.detach(), before)


def test_slow_weights_start_anew_where_another_average_was_put_in():
    player = Player(torch.zeros(3))
    bank = AverageBank(player, {"ema": Ema(half_life_kimg=1.0), "lookahead": Lookahead(every_kimg=10.0)})
    for step, nimg in enumerate(GROWING):
        walk({"w": player.w.detach()}, step)
        bank.update(nimg)
    ema = bank["ema"].shadows["w"].clone()
    bank.write_back("ema")
    assert torch.equal(player.w.detach(), ema) and torch.equal(bank["ema"].shadows["w"], ema)
    assert torch.equal(bank["lookahead"].shadows["w"], ema)


def test_two_rules_that_write_back_are_refused():
    with pytest.raises(UserError, match="averagers: fast and slow each replace the live weights with their average; keep only one"):
        AverageBank(Player(torch.zeros(1)), {"fast": Lookahead(), "ema": Ema(), "slow": Lookahead(every_kimg=5.0)})


# ---- the weight profile ----------------------------------------------------------------------------------------------


@every_rule
def test_the_profile_is_what_the_average_does(rule):
    """One-hot weights in time show it; it adds up to 1."""
    positions, weights = weight_profile(rule, GROWING)
    assert positions.tolist() == [0, *GROWING]
    average = followed(rule, GROWING)
    np.testing.assert_allclose(weights, average.shadows["w"], rtol=0, atol=1e-6)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert (np.abs(weights[:-1]) > 1e-9).sum() >= 2, "nothing has been averaged"
    at, recorded = average.weight_profile()
    assert at.tolist() == positions.tolist() and recorded.tolist() == weights.tolist()


@every_rule
def test_before_anything_is_averaged_the_start_is_all_there_is(rule):
    """Without a look, and for rules with a start with looks before it."""
    assert [v.tolist() for v in weight_profile(rule, [], 7)] == [[7], [1.0]]
    average = followed(rule, [64, 128, 192])
    if not average.started:
        assert average.weight_profile()[1].tolist() == average.shadows["w"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert average.started == (type(rule) in (Ema, EmaSteps, Power))


@every_rule
@pytest.mark.parametrize("every", [0.2, 0.3, 1.1])
def test_the_profile_of_an_average_that_looks_rarely(rule, every):
    """The recorded positions are those at which a multiple of the distance had been passed, and only those weights count."""
    average = followed(dataclasses.replace(rule, update_every_kimg=every), GROWING)
    direct = average.shadows["w"].double().numpy()
    looked = [i for i, (a, b) in enumerate(zip([0, *GROWING], GROWING)) if b // round(every * 1000) > a // round(every * 1000)]
    positions, weights = average.weight_profile()
    assert positions.tolist() == [0, *(GROWING[i] for i in looked)]
    np.testing.assert_allclose(weights, direct[[0, *(i + 1 for i in looked)]], rtol=0, atol=1e-6)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert direct.sum() == pytest.approx(1.0, abs=1e-5)  # so that no weight is on an update that was not looked at


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.sampled_from([0, 1, 64, 64, 64, 128, 256, 1000]), min_size=1, max_size=40),
    every=st.none() | st.sampled_from([0.064, 0.2, 1.0]),
)
def test_looks_are_recorded_as_runs(batches, every):
    """Any schedule, with updates that were skipped (0 images): what was looked at is what unrolls, with the updates in between."""
    positions = list(itertools.accumulate(batches))
    average = Average(EmaSteps(decay=0.9, update_every_kimg=every), {"w": torch.zeros(1)})
    looks, unseen, last = [], 0, 0
    for nimg in positions:
        unseen += 1
        average.update(nimg)
        if every is None or nimg // round(every * 1000) > last // round(every * 1000):
            looks.append((nimg, unseen))
            unseen, last = 0, nimg
    runs = average.state()["looks"]
    assert [(first + i * distance, updates) for first, distance, count, updates in runs for i in range(count)] == looks
    assert average.weight_profile()[0].tolist() == [0, *(nimg for nimg, _ in looks)]


def test_a_long_run_is_recorded_in_a_few_numbers():
    average = Average(Ema(), {"w": torch.zeros(1)})
    for nimg in growing({64: 5000, 128: 3000}):
        average.update(nimg)
    assert average.state()["looks"] == [[64, 64, 5000, 1], [320_128, 128, 3000, 1]]


# ---- saving ----------------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("every", [None, 0.2])
@pytest.mark.parametrize("stop", [2, 9, 21])
def test_save_load_continue_is_bit_equal(rule, every, stop):
    """Tensors, slots and state, through JSON; before the average has begun, with a part of its window, and later. The profile too."""
    rule = dataclasses.replace(rule, update_every_kimg=every)
    live = weights_of()
    average = Average(rule, live)
    for step, nimg in enumerate(GROWING):
        if step == stop:
            saved = copies(average.shadows), json.dumps(average.state()), copies(average.slot_tensors())
            twin = copies(live)
        walk(live, step)
        average.update(nimg)
    mine = {name: torch.randn_like(tensor) for name, tensor in live.items()}
    other = Average(rule, mine)
    other.update(500)  # whatever it holds goes
    other.load(saved[0], json.loads(saved[1]), saved[2])
    assert json.dumps(other.state()) == saved[1]
    for name, tensor in mine.items():
        tensor.copy_(twin[name])
    for step, nimg in enumerate(GROWING):
        if step >= stop:
            walk(mine, step)
            other.update(nimg)
    assert_same(everything(other), everything(average))
    assert other.state() == average.state()
    for mine, theirs in zip(other.weight_profile(), average.weight_profile()):
        assert mine.tolist() == theirs.tolist()


def test_a_bank_of_all_saves_and_continues_bit_equal():
    """Through the bank's own methods, a rule that writes back included."""
    player, twin = Player(torch.zeros(5)), Player(torch.ones(5))
    bank, other = AverageBank(player, RULES), AverageBank(twin, RULES)
    for step, nimg in enumerate(GROWING):
        if step == 20:
            twin.load_state_dict(player.state_dict())
            tensors, slots = ({name: copies(its) for name, its in of_all.items()} for of_all in (bank.tensors(), bank.slot_tensors()))
            other.load(tensors, json.loads(json.dumps(bank.state())), slots)
        for each, net in ((bank, player), (other, twin)):
            if each is bank or step >= 20:
                walk({"w": net.w.detach()}, step)
                each.update(nimg)
    assert torch.equal(player.w, twin.w)
    assert bank.slot_tensors().keys() == {"lawa", "bema"}
    for name in RULES:
        assert_same(everything(bank[name]), everything(other[name]))
    assert bank.state() == other.state()


@pytest.mark.parametrize("rule, slot", [(RULES["bema"], "ema"), (RULES["lawa"], "copy001")], ids=["bema", "lawa"])
def test_a_wrong_tensor_or_slot_is_refused_by_name(rule, slot):
    average = Average(rule, weights_of())
    shadows, state, slots = dict(average.shadows), average.state(), average.slot_tensors()

    def without(tensors: dict, name: str) -> dict:
        return {n: t for n, t in tensors.items() if n != name}

    for load, words in [
        ((without(shadows, "a.bias"), state, slots), "saved average: weight 'a.bias' is missing"),
        (({**shadows, "more": torch.zeros(1)}, state, slots), "saved average: weight 'more' is unexpected"),
        (({**shadows, "a.bias": torch.zeros(2)}, state, slots), r"saved average: weight 'a.bias' has shape \[2\], expected \[4\]"),
        ((shadows, state, without(slots, f"{slot}/scale")), f"saved average's slots: weight '{slot}/scale' is missing"),
        ((shadows, state, None), "saved average's slots: weight '.*' is missing"),
        (
            (shadows, state, {**slots, "other/scale": torch.zeros(())}),
            "saved average's slots: weight 'other/scale' is unexpected",
        ),
        (
            (shadows, state, {**slots, f"{slot}/scale": torch.zeros(7)}),
            rf"saved average's slots: weight '{slot}/scale' has shape \[7\], expected \[\]",
        ),
    ]:
        with pytest.raises(UserError, match=words):
            average.load(*load)
    average.load(shadows, state, slots)
    with pytest.raises(UserError, match="saved average's slots: weight 'ema/scale' is unexpected"):
        Average(Ema(), weights_of()).load(shadows, state, {"ema/scale": torch.zeros(())})


# ---- main memory -----------------------------------------------------------------------------------------------------


@offloadable
@pytest.mark.parametrize("every", [None, 0.2])
@pytest.mark.parametrize("read", [1, 5, 1000])
def test_offload_is_bit_equal(rule, every, read):
    """Whenever it is read: after every update, after every fifth, or at the end only."""
    rule = dataclasses.replace(rule, update_every_kimg=every)
    live = weights_of()
    near, far = Average(rule, live), Average(dataclasses.replace(rule, offload=True), live)
    for step, nimg in enumerate(GROWING, start=1):
        walk(live, step)
        moved, moves = near.update(nimg), far.update(nimg)
        assert moves == moved or (moves and hasattr(rule, "update"))  # one that is no step cannot say before it has moved
        if step % read == 0:
            assert_same(everything(near), everything(far))
            assert near.num_averaged == far.num_averaged and near.started == far.started
    assert_same(everything(near), everything(far))
    assert near.state() == far.state()
    assert not any(tensor.data_ptr() == far.live[name].data_ptr() for name, tensor in far.shadows.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@offloadable
def test_offload_from_a_gpu(rule):
    """The tensors are in main memory, and hold what they hold on the GPU up to the last bit that its kernels round otherwise."""
    live = weights_of("cuda")
    near, far = Average(rule, live), Average(dataclasses.replace(rule, offload=True), live)
    for step, nimg in enumerate(GROWING, start=1):
        walk(live, step)
        near.update(nimg)
        far.update(nimg)
        if step % 5 == 0:
            here, there = everything(near), everything(far)
            assert all(t.device.type == "cpu" and t.dtype == torch.float32 for t in there.values()) and all(
                t.is_cuda for t in here.values()
            )
            torch.testing.assert_close({n: t.cpu() for n, t in here.items()}, there, rtol=1e-5, atol=1e-6)
    assert near.state() == far.state()


@offloadable
@pytest.mark.parametrize("first", ["state", "shadows", "slots"])
def test_what_has_yet_to_arrive_is_saved(rule, first):
    """Saved right after an update, whichever part is asked for first, an offloaded average holds what one on the device does."""
    live = weights_of()
    near, far = Average(rule, live), Average(dataclasses.replace(rule, offload=True), live)
    for step, nimg in enumerate(GROWING):
        walk(live, step)
        near.update(nimg)
        far.update(nimg)
        parts = {"state": far.state, "shadows": lambda: copies(far.shadows), "slots": lambda: copies(far.slot_tensors())}
        saved = {first: parts[first]()}
        saved |= {name: part() for name, part in parts.items() if name != first}
        assert saved["state"] == near.state()
        other = Average(dataclasses.replace(rule, offload=True), live)
        other.update(1)  # something underway, which loading must drop
        other.load(saved["shadows"], saved["state"], saved["slots"])
        assert_same(everything(other), everything(near))


def test_an_offloaded_average_is_written_back():
    """All the way and part of it."""
    for alpha in (1.0, 0.25):
        nets = Player(torch.zeros(5)), Player(torch.zeros(5))
        banks = [AverageBank(net, {"ema": Ema(half_life_kimg=0.5, offload=offload)}) for net, offload in zip(nets, (False, True))]
        for net, bank in zip(nets, banks):
            for step, nimg in enumerate(GROWING):
                walk({"w": net.w.detach()}, step)
                bank.update(nimg)
        expected = torch.lerp(nets[0].w.detach(), banks[0]["ema"].shadows["w"], alpha)
        assert torch.equal(banks[1].distance("ema"), banks[0].distance("ema"))
        for net, bank in zip(nets, banks):
            bank.write_back("ema", alpha)
            assert torch.equal(net.w.detach(), expected)


def test_lookahead_refuses_main_memory():
    with pytest.raises(UserError, match="offload: must be false: the live weights are reset to the average at once, got True"):
        Lookahead(offload=True)


# ---- half precision --------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_move_fp32_averages(rule, dtype):
    """Exactly as fp32 weights of the same values do, to values that half precision has not got."""
    live = weights_of(dtype=dtype)
    same = {name: tensor.float() for name, tensor in live.items()}
    average, reference = Average(rule, live), Average(rule, same)
    start = {name: tensor.clone() for name, tensor in average.shadows.items()}
    for step, nimg in enumerate(GROWING):
        walk(live, step)
        for name, tensor in same.items():
            tensor.copy_(live[name])
        average.update(nimg)
        reference.update(nimg)
    assert all(tensor.dtype == torch.float32 for tensor in everything(average).values())
    assert_same(everything(average), everything(reference))
    for name, shadow in average.shadows.items():
        assert not torch.equal(shadow, start[name])
    assert not torch.equal(average.shadows["a.weight"], average.shadows["a.weight"].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_below_half_precision_add_up(dtype):
    """Each moves the average by less than half precision shows: in it the average would stand still for ever."""
    live = torch.ones(4, dtype=dtype)
    rules = {
        "ema": Ema(half_life_kimg=100.0, ramp_up=None),
        "ema_steps": EmaSteps(decay=0.9995),
        "lookahead": Lookahead(alpha=0.0005, every_kimg=0.064),
    }
    averages = {name: Average(rule, {"w": live}) for name, rule in rules.items()}
    expected = dict.fromkeys(rules, 1.0)
    for average in averages.values():
        average.update(64)
    live.fill_(1.5)
    share = {"ema": 1 - 0.5**0.00064, "ema_steps": 0.0005, "lookahead": 0.0005}
    assert all(torch.lerp(torch.ones(1, dtype=dtype), live[:1], w).item() == 1.0 for w in share.values())
    for i in range(2, 1002):
        for average in averages.values():
            average.update(64 * i)
    for name, average in averages.items():
        expected = 1.0 + 0.5 * (1 - (1 - share[name]) ** 1000)
        assert average.shadows["w"][0].item() == pytest.approx(expected, abs=1000 * 2**-24)


# ---- wrapped networks ------------------------------------------------------------------------------------------------


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


@pytest.fixture
def one_process_group(tmp_path):
    """A gloo group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")


WRAPPERS = {"ddp": DistributedDataParallel, "compiled": compiled, "ddp of compiled": lambda n: DistributedDataParallel(compiled(n))}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_wrapped_networks_are_followed_by_the_same_names(wrap, one_process_group):
    """Trained through the wrapper, every average is what it is around the plain network."""
    plain, inner = normed(), normed()
    wrapped = wrap(inner)
    assert [n for n, _ in wrapped.named_parameters()] != [n for n, _ in plain.named_parameters()]
    banks = []
    for network in (plain, wrapped):
        bank = AverageBank(network, RULES)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(5)
        for nimg in GROWING[:25]:
            optimizer.zero_grad()
            network(torch.randn(8, 5, generator=generator)).square().sum().div(8).backward()
            optimizer.step()
            bank.update(nimg)
        banks.append(bank)
    assert banks[1].weight_names == banks[0].weight_names == [n for n, _ in plain.named_parameters()]
    assert banks[1].statistic_names == banks[0].statistic_names == ["1.running_mean", "1.running_var"]
    for name in RULES:
        for key, tensor in everything(banks[0][name]).items():
            torch.testing.assert_close(everything(banks[1][name])[key], tensor, rtol=1e-5, atol=1e-6)
    target = normed()
    banks[1].materialize("ema", target, averaged_statistics=True)
    assert torch.equal(target[0].weight, banks[1]["ema"].shadows["0.weight"])
    banks[1].materialize("ema", wrap(normed()))
    banks[1].write_back("power")
    assert torch.equal(inner[2].weight, banks[1]["power"].shadows["2.weight"])


class Inner(nn.Module):
    """A network of its own with a part that is called as DistributedDataParallel's is."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.module = nn.Module()
        self.module.w = nn.Parameter(torch.ones(2))


def test_a_part_called_module_is_followed_too():
    """Not every "module." is a wrapper's: no weight may be lost behind another of the same name without it."""
    network, target = Inner(), Inner()
    bank = AverageBank(network, {"ema": Ema()})
    assert len(bank.weight_names) == 2
    with torch.no_grad():
        network.w.fill_(3.0)
        network.module.w.fill_(5.0)
    bank.update(64)  # the first update of an EMA that ramps up is a copy
    bank.materialize("ema", target)
    assert target.w.tolist() == [3.0, 3.0] and target.module.w.tolist() == [5.0, 5.0]


# ---- BatchNorm statistics --------------------------------------------------------------------------------------------


@every_rule
def test_batchnorm_statistics_are_averaged_by_the_same_rule(rule):
    """As an average of nothing but them does it; where the weights are put back, the statistics are not."""
    network = normed()
    norm = network[1]
    bank, alone = AverageBank(network, {"it": rule}), Average(rule, {"mean": norm.running_mean, "var": norm.running_var})
    for step, nimg in enumerate(GROWING):
        walk({n: p.detach() for n, p in network.named_parameters()}, step)
        network(torch.randn(16, 5, generator=torch.Generator().manual_seed(step)) * 3 + 1)
        mean = norm.running_mean.clone()
        bank.update(nimg)
        alone.update(nimg)
        assert torch.equal(norm.running_mean, mean)
    shadows = bank["it"].shadows
    assert torch.equal(shadows["1.running_mean"], alone.shadows["mean"]) and torch.equal(shadows["1.running_var"], alone.shadows["var"])
    assert not torch.equal(shadows["1.running_mean"], norm.running_mean)
    averaged, live = normed(), normed()
    bank.materialize("it", averaged, averaged_statistics=True)
    bank.materialize("it", live)
    assert torch.equal(averaged[1].running_mean, shadows["1.running_mean"]) and torch.equal(
        averaged[1].running_var, shadows["1.running_var"].clamp(min=0)
    )
    assert torch.equal(live[1].running_mean, norm.running_mean) and torch.equal(live[1].running_var, norm.running_var)
    for target in (averaged, live):
        assert torch.equal(target[0].weight, shadows["0.weight"]) and torch.equal(target[1].num_batches_tracked, norm.num_batches_tracked)


def test_a_negative_variance_becomes_zero():
    """BEMA goes on along the way travelled: from 10 by -9 to 1 it is at -8."""
    network = normed()
    norm = network[1]
    bank = AverageBank(network, {"bema": Bema(start_kimg=0.064, every_kimg=0.064, eta=0.0, kappa=0.0)})
    norm.running_var.fill_(10.0)
    bank.update(64)
    norm.running_var.fill_(1.0)
    norm.running_var[3] = 30.0
    norm.running_mean.fill_(-2.0)
    bank.update(128)
    target = normed()
    bank.materialize("bema", target, averaged_statistics=True)
    assert bank["bema"].shadows["1.running_var"].tolist() == [-8.0, -8.0, -8.0, 50.0, -8.0, -8.0, -8.0]
    assert target[1].running_var.tolist() == [0.0, 0.0, 0.0, 50.0, 0.0, 0.0, 0.0]
    assert target[1].running_mean.tolist() == [-4.0] * 7  # only variances cannot be negative


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Ema(update_every_kimg=0), "update_every_kimg: must be above 0, or null for every update, got 0"),
        (lambda: Swa(update_every_kimg=-1.0), "update_every_kimg: must be above 0, or null for every update, got -1.0"),
        (lambda: Power(update_every_kimg=math.inf), "update_every_kimg: must be above 0, or null for every update, got inf"),
        (lambda: EmaSteps(batch_size=0), "batch_size: must be at least 1, or null, got 0"),
        (lambda: EmaSteps(start_kimg=-0.1), "start_kimg: must be at least 0, got -0.1"),
        (lambda: Lawa(k=0), "k: must be from 1 to 10000, got 0"),
        (lambda: Lawa(every_kimg=0), "every_kimg: must be above 0, got 0"),
        (lambda: Lawa(start_kimg=-1), "start_kimg: must be at least 0, got -1"),
        (lambda: Power(sigma_rel=0.0), "sigma_rel: must be above 0 and at most 0.2887, the width of the plain mean, got 0.0"),
        (lambda: Power(sigma_rel=0.29), "sigma_rel: must be above 0 and at most 0.2887, the width of the plain mean, got 0.29"),
        (lambda: Power(sigma_rel=0.1, gamma=3.0), "gamma: cannot be combined with sigma_rel; set only one of them, got 3.0"),
        (lambda: Power(sigma_rel=None, gamma=-0.5), "gamma: must be at least 0, or null, got -0.5"),
        (lambda: Power(sigma_rel=None, gamma=math.nan), "gamma: must be at least 0, or null, got nan"),
        (lambda: Power(snapshot_every_kimg=0), "snapshot_every_kimg: must be above 0, or null for none, got 0"),
        (lambda: Bema(start_kimg=-1), "start_kimg: must be at least 0, got -1"),
        (lambda: Bema(every_kimg=0), "every_kimg: must be above 0, got 0"),
        (lambda: Bema(step_kimg=0), "step_kimg: must be above 0, got 0"),
        (lambda: Bema(kappa=-0.1), "kappa: must be at least 0, got -0.1"),
        (lambda: Bema(eta=-0.1), "eta: must be at least 0, got -0.1"),
        (lambda: Bema(gamma=-1), "gamma: must be at least 0, got -1"),
        (lambda: Bema(rho=0.5), "rho: must be at least 1, so that no weight exceeds 1, got 0.5"),
        (lambda: Bema(rho=math.nan), "rho: must be at least 1, so that no weight exceeds 1, got nan"),
        (lambda: Lookahead(alpha=0), "alpha: must be above 0 and at most 1, got 0"),
        (lambda: Lookahead(alpha=1.1), "alpha: must be above 0 and at most 1, got 1.1"),
        (lambda: Lookahead(every_kimg=-1), "every_kimg: must be above 0, got -1"),
        (lambda: Lookahead(start_kimg=math.inf), "start_kimg: must be at least 0, got inf"),
    ],
)
def test_impossible_hyper_parameters_are_refused(make, words):
    with pytest.raises(UserError) as refused:
        make()
    assert str(refused.value) == words


def test_who_follows_whom():
    """The generator alone by default; Lookahead both players, since a game spirals in both at once."""
    assert {name: cls().networks for name, cls in AVERAGERS.items()} == {name: "gd" if name == "lookahead" else "g" for name in AVERAGERS}


# ---- fields ----------------------------------------------------------------------------------------------------------


def numbers_of_rules() -> list[tuple[str, str, str]]:
    """(rule, field, its type) of every field of a rule that is a number or a bool."""
    return [(n, f.name, str(f.type)) for n, rule in AVERAGERS.items() for f in dataclasses.fields(rule) if f.name != "networks"]


@pytest.mark.parametrize(("name", "field", "kind"), numbers_of_rules())
def test_fields_of_rules_are_numbers(name, field, kind):
    """A tensor could change later; text and True are no numbers."""
    start = "true or false" if "bool" in kind else "a whole number" if "int" in kind else "a number"
    start += " or a schedule" if kind == "Scheduled" else ""
    words = re.escape(f"{field}: must be {start}{' or null' if 'None' in kind else ''}, got ")
    wrong = [torch.tensor(1.0), "1", torch.tensor([True]), np.array([0.5, 1.0]), 1 if "bool" in kind else True]
    for value in wrong:
        with pytest.raises(InvalidField, match=words) as caught:
            AVERAGERS[name](**{field: value})
        assert "\n" not in str(caught.value)
    if kind in ("int", "float", "bool", "Scheduled"):
        with pytest.raises(InvalidField, match=words):
            AVERAGERS[name](**{field: None})


def test_fields_of_rules_may_be_numbers_of_numpy():
    assert Ema(half_life_kimg=np.float32(1.5), ramp_up=None).half_life(0) == 1500 and Lawa(k=np.int64(3), every_kimg=1).k == 3


def test_rules_from_outside_keep_fields_of_other_types():
    @dataclasses.dataclass(frozen=True)
    class Mine(Ema):
        name: str = "a"
        table: dict[str, float] = dataclasses.field(default_factory=dict)
        share: float = 0.5

    assert Mine(name="b", table={"c": 1.0}).share == 0.5
    with pytest.raises(InvalidField, match="share: must be a number, got 'x'"):
        Mine(share="x")


@pytest.mark.parametrize("alpha", [True, np.bool_(True), torch.tensor(True), "0.5", None])
def test_the_fraction_of_a_write_back_is_a_number(alpha):
    network = nn.Linear(2, 2)
    bank = AverageBank(network, {"e": Ema()})
    bank.update(9)
    with pytest.raises(UserError, match=r"alpha: must be a number in \[0, 1\], got "):
        bank.write_back("e", alpha)
