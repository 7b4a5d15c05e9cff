"""Closed forms for weights that orbit an optimum: variances, swaps and growth, compared with simulations of the real averages.

The orbit is an AR(1) process x <- phi x + s noise, an Ornstein-Uhlenbeck process sampled at every update, with forgetting
rate k = -ln phi per update. One "weight" holds thousands of independent chains, so that a mean over it is an expectation.
Chains are Gaussian, so that the mean square of N of them has the standard error sqrt(2 / N) of itself, and the mean product
of two quantities sqrt((V_1 V_2 + C^2) / N); tests allow five standard errors.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gantrain.averaging import AverageBank, Bema, Ema, EmaSteps, Lawa, Lookahead, Power, Swa, refresh_spectral_norms, weight_profile
from gantrain.averaging.swap_growth import growth_that_holds, identified_rate
from gantrain.config.sections import Swap
from gantrain.errors import UserError
from gantrain.theory.ornstein_uhlenbeck import rate_of_two, variance_ratio

CHAINS = 40_000
BATCH = 64


def within(variance: float = 1.0) -> float:
    """Five standard errors of a mean square."""
    return 5 * math.sqrt(2 / CHAINS) * variance


def ema_of(beta: float, **more) -> Ema:
    """The EMA that keeps `beta` at every update."""
    return Ema(half_life_kimg=BATCH * math.log(0.5) / math.log(beta) / 1000, ramp_up=None, **more)


class Vector(nn.Module):
    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.w = nn.Parameter(values.clone())


class Orbit:
    """Chains of an AR(1) process of stationary variance 1 as the only weight of a network, and a bank that follows them.

    `quieter` divides the variance of the noise, as a batch grown by that factor does.
    """

    def __init__(self, phi: float, averagers: dict, seed: int = 0, start: float = 1.0):
        self.generator = torch.Generator().manual_seed(seed)
        self.phi, self.nimg = phi, 0
        self.network = Vector(torch.randn(CHAINS, generator=self.generator) * start)
        self.live = self.network.w.detach()
        self.bank = AverageBank(self.network, averagers)

    def run(self, steps: int, quieter: float = 1.0) -> Orbit:
        s = math.sqrt((1 - self.phi**2) / quieter)
        for _ in range(steps):
            self.live.mul_(self.phi).add_(torch.randn(CHAINS, generator=self.generator), alpha=s)
            self.nimg += BATCH
            self.bank.update(self.nimg)
        return self

    def of(self, name: str) -> torch.Tensor:
        return self.bank[name].shadows["w"]


def mean(values: torch.Tensor) -> float:
    return values.double().mean().item()


# The exact forms for AR(1), in units of the live variance; an average takes the live weights in after they have moved.


def ema_variance(phi: float, beta: float) -> float:
    return (1 - beta) * (1 + beta * phi) / ((1 + beta) * (1 - beta * phi))


def ema_with_live(phi: float, beta: float) -> float:
    return (1 - beta) / (1 - beta * phi)


def ema_from_live(phi: float, beta: float) -> float:
    """E (live - EMA)^2 = 1 + ema_variance - 2 ema_with_live."""
    return 2 * beta**2 * (1 - phi) / ((1 + beta) * (1 - beta * phi))


def two_emas(phi: float, a: float, b: float) -> float:
    """Covariance of two EMAs: what is left of C = ab C + a (1-b) E[A x'] + b (1-a) E[B x'] + (1-a)(1-b), with E[A x'] = phi E[A x]."""
    return (1 - a) * (1 - b) * (1 + a * phi / (1 - a * phi) + b * phi / (1 - b * phi)) / (1 - a * b)


def uniform_variance(phi: float, n: int) -> float:
    return ((1 + phi) / (1 - phi) - 2 * phi * (1 - phi**n) / (n * (1 - phi) ** 2)) / n


def brute_variance(phi: float, steps: np.ndarray, weights: np.ndarray) -> float:
    """Variance of sum w_i x(step_i), by the full double sum."""
    return float(weights @ phi ** np.abs(steps[:, None] - steps[None, :]) @ weights)


# ---- variances -------------------------------------------------------------------------------------------------------


def test_the_forms_agree_with_each_other():
    """The closed forms above equal the double sum over an EMA's weights, which reach back until they are negligible."""
    for phi, a, b in [(0.6, 0.8, 0.5), (0.9, 0.97, 0.9), (0.3, 0.9, 0.9)]:
        back = np.arange(2000)
        weights = {beta: (1 - beta) * beta**back for beta in (a, b)}
        toeplitz = phi ** np.abs(back[:, None] - back[None, :])
        assert weights[a] @ toeplitz @ weights[a] == pytest.approx(ema_variance(phi, a), rel=1e-9)
        assert weights[a] @ toeplitz[0] == pytest.approx(ema_with_live(phi, a), rel=1e-9)
        assert weights[a] @ toeplitz @ weights[b] == pytest.approx(two_emas(phi, a, b), rel=1e-9)
        assert 1 + ema_variance(phi, a) - 2 * ema_with_live(phi, a) == pytest.approx(ema_from_live(phi, a), rel=1e-9)
        assert two_emas(phi, a, a) == pytest.approx(ema_variance(phi, a), rel=1e-9)
    for n in (1, 2, 30):
        assert brute_variance(0.8, np.arange(n), np.full(n, 1 / n)) == pytest.approx(uniform_variance(0.8, n), rel=1e-9)


@pytest.mark.parametrize("phi, s", [(0.6, 1.0), (0.9, 0.3)])
def test_the_live_variance_builds_up(phi, s):
    """From 0 it approaches s^2 / (1 - phi^2), up to a share phi^(2t)."""
    orbit = Orbit(phi, {"ema": Ema()}, start=0.0)
    stationary = s**2 / (1 - phi**2)
    for t in (1, 3, 10, 60):
        orbit.run(t - orbit.nimg // BATCH, quieter=(1 - phi**2) / s**2)
        expected = stationary * (1 - phi ** (2 * t))
        assert mean(orbit.live**2) == pytest.approx(expected, abs=within(expected))


@pytest.mark.parametrize("phi, a, b", [(0.6, 0.8, 0.5), (0.9, 0.97, 0.9), (0.97, 0.98, 0.8)])
def test_emas_have_the_variances_of_the_exact_forms(phi, a, b):
    """Variance, covariance with the live weights and with another EMA, and distance from the live weights."""
    orbit = Orbit(phi, {"a": ema_of(a), "b": ema_of(b)}).run(math.ceil(math.log(1e-4) / math.log(max(a, phi))))
    live, x, y = orbit.live, orbit.of("a"), orbit.of("b")
    assert mean(live**2) == pytest.approx(1.0, abs=within())
    for beta, name, average in ((a, "a", x), (b, "b", y)):
        v, c, d = ema_variance(phi, beta), ema_with_live(phi, beta), ema_from_live(phi, beta)
        assert mean(average**2) == pytest.approx(v, abs=within(v))
        assert mean(average * live) == pytest.approx(c, abs=5 * math.sqrt((v + c**2) / CHAINS))
        assert mean((live - average) ** 2) == pytest.approx(d, abs=within(d))
        assert orbit.bank.distance(name).item() / CHAINS == pytest.approx(mean((live - average) ** 2), rel=1e-5)
    c = two_emas(phi, a, b)
    assert mean(x * y) == pytest.approx(c, abs=5 * math.sqrt((ema_variance(phi, a) * ema_variance(phi, b) + c**2) / CHAINS))


def test_an_ema_that_looks_every_k_updates_has_the_same_form():
    """With phi^K and beta^K instead of phi and beta, just after a look."""
    phi, beta, every = 0.9, 0.96, 5
    orbit = Orbit(phi, {"ema": ema_of(beta, update_every_kimg=every * BATCH / 1000)}).run(300)
    v, c = ema_variance(phi**every, beta**every), ema_with_live(phi**every, beta**every)
    assert mean(orbit.of("ema") ** 2) == pytest.approx(v, abs=within(v))
    assert mean(orbit.of("ema") * orbit.live) == pytest.approx(c, abs=5 * math.sqrt((v + c**2) / CHAINS))


@pytest.mark.parametrize("phi, n", [(0.6, 5), (0.9, 40), (0.97, 100)])
def test_the_uniform_window_has_the_variance_of_the_exact_form(phi, n):
    """SWA over n updates, and LAWA over the latest n."""
    orbit = Orbit(phi, {"swa": Swa(start_kimg=BATCH / 1000, every_kimg=BATCH / 1000)}).run(n)
    v = uniform_variance(phi, n)
    assert mean(orbit.of("swa") ** 2) == pytest.approx(v, abs=within(v))
    if n == 5:
        orbit = Orbit(phi, {"lawa": Lawa(k=n, every_kimg=BATCH / 1000)}, seed=1).run(4 * n)
        assert mean(orbit.of("lawa") ** 2) == pytest.approx(v, abs=within(v))


def test_bema_puts_live_noise_back():
    """At a fixed alpha its variance is EMA's + 2 alpha Cov(EMA, live - start) + alpha^2 V(live - start)."""
    phi, beta, alpha, steps = 0.9, 0.96, 0.3, 250
    # gamma = 0 holds t at rho: beta_t = 1 - beta and alpha_t = alpha for ever.
    powers = {"rho": 2.0, "gamma": 0.0, "kappa": -math.log2(1 - beta), "eta": -math.log2(alpha)}
    orbit = Orbit(phi, {"bema": Bema(start_kimg=BATCH / 1000, every_kimg=BATCH / 1000, **powers)}).run(steps)
    # start and everything after are independent by now: live - start has twice the variance and the same covariance.
    v = ema_variance(phi, beta) + 2 * alpha * ema_with_live(phi, beta) + 2 * alpha**2
    assert mean(orbit.of("bema") ** 2) == pytest.approx(v, abs=within(v))


# ---- the swap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", ["none", "half of g*", "g*", "twice g*"])
def test_weights_swapped_in_relax_as_the_closed_form_says(growth):
    """V(t) = V/g + (V_ema - V/g) phi^(2t): it heats up to V without growth, stays constant at g*, and cools down beyond."""
    phi, beta = 0.9, 0.96
    held = ema_variance(phi, beta)
    g = {"none": 1.0, "half of g*": 0.5 / held, "g*": 1 / held, "twice g*": 2 / held}[growth]
    orbit = Orbit(phi, {"ema": ema_of(beta)}).run(200)
    assert mean(orbit.live**2) == pytest.approx(1.0, abs=within())
    orbit.bank.write_back("ema")
    assert torch.equal(orbit.live, orbit.of("ema"))
    variances, before = [], 0
    for t in (0, 1, 2, 5, 10, 20, 60):
        orbit.run(t - before, quieter=g)
        before = t
        expected = 1 / g + (held - 1 / g) * phi ** (2 * t)
        variances.append(mean(orbit.live**2))
        assert variances[-1] == pytest.approx(expected, abs=within(expected))
    # phi^120 is 3e-6: the end is V / g, wherever it began.
    assert variances[-1] == pytest.approx(1 / g, abs=within(1 / g))
    if growth == "g*":
        assert variances == pytest.approx([held] * len(variances), abs=within(held))
    else:
        assert (variances[-1] > variances[0]) == (g < 1 / held)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_a_part_of_the_way_mixes_both_variances(alpha):
    """(1-a)^2 V + a^2 V_ema + 2 a (1-a) Cov(EMA, live)."""
    phi, beta = 0.9, 0.96
    orbit = Orbit(phi, {"ema": ema_of(beta)}).run(200)
    orbit.bank.write_back("ema", alpha)
    expected = (1 - alpha) ** 2 + alpha**2 * ema_variance(phi, beta) + 2 * alpha * (1 - alpha) * ema_with_live(phi, beta)
    assert mean(orbit.live**2) == pytest.approx(expected, abs=within(expected))


SOURCES = {
    "ema": ema_of(0.99),
    "ema with a ramp": Ema(half_life_kimg=1000.0, ramp_up=0.08),
    "ema_steps": EmaSteps(decay=0.99),
    "swa": Swa(start_kimg=26.0, every_kimg=0.64),
    "lawa": Lawa(k=6, every_kimg=1.0),
    "power": Power(sigma_rel=0.08),
    "bema": Bema(every_kimg=0.64, eta=2.0),
}


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("source", SOURCES)
def test_the_growth_that_holds_does_hold(source, alpha):
    """The variance of swapped-in weights, of any average or part of the way to it, is V / g and stays V / g."""
    phi = 0.97
    orbit = Orbit(phi, {source: SOURCES[source]}).run(700)
    g = growth_that_holds(orbit.bank, source, -math.log(phi) / BATCH, orbit.nimg, alpha)
    assert g > 1.5
    orbit.bank.write_back(source, alpha)
    # EMAs with a half-life use the continuous form, which is off by up to k / 2 = 1.5%. A half-life that ramps up was a little
    # shorter in the past, which adds a few percent.
    off = {"ema": 0.015, "ema with a ramp": 0.06}.get(source, 0.0)
    assert mean(orbit.live**2) == pytest.approx(1 / g, abs=within(1 / g) + off / g)
    orbit.run(60, quieter=g)
    assert mean(orbit.live**2) == pytest.approx(1 / g, abs=within(1 / g) + off / g * phi**120)


def test_growth_for_an_ema_is_one_plus_k_over_mu():
    """For a full swap; without any movement no growth is needed."""
    bank = AverageBank(Vector(torch.zeros(1)), {"ema": Ema(half_life_kimg=2.0, ramp_up=None), "ramp": Ema(half_life_kimg=2.0, ramp_up=0.1)})
    k, mu = 3e-3, math.log(2) / 2000
    assert growth_that_holds(bank, "ema", k, 10**6) == pytest.approx(1 + k / mu, rel=1e-12)
    assert growth_that_holds(bank, "ramp", k, 10**6) == pytest.approx(1 + k / mu, rel=1e-12)
    assert growth_that_holds(bank, "ramp", k, 5000) == pytest.approx(1 + k * 500 / math.log(2), rel=1e-12)  # ramp 0.1 of 5000 images
    assert growth_that_holds(bank, "ema", k, 10**6, alpha=1e-9) == pytest.approx(1.0, abs=1e-6)


def test_growth_counts_what_the_live_weights_have_moved_since_the_last_look():
    """A partial swap starts from the live weights now, not from where the average last looked at them."""
    phi, alpha = 0.97, 0.5
    k = -math.log(phi) / BATCH
    orbit = Orbit(phi, {"swa": Swa(start_kimg=BATCH / 1000, every_kimg=BATCH / 1000, update_every_kimg=20 * BATCH / 1000)}).run(115)
    # Looks at 20, 40, .. 100; the live weights are those of 115.
    mixture = np.array([alpha / 5] * 5 + [1 - alpha])
    expected = brute_variance(phi, np.array([20, 40, 60, 80, 100, 115]), mixture)
    g = growth_that_holds(orbit.bank, "swa", k, orbit.nimg, alpha)
    orbit.bank.write_back("swa", alpha)
    assert mean(orbit.live**2) == pytest.approx(expected, abs=within(expected))
    assert g == pytest.approx(1 / expected, rel=1e-6)


# ---- the ratio of variances from a weight profile --------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        ema_of(0.9),
        EmaSteps(decay=0.8),
        Swa(start_kimg=0.5, every_kimg=0.2),
        Lawa(k=4, every_kimg=0.3),
        Power(sigma_rel=0.1),
        Bema(every_kimg=0.2, start_kimg=0.2),
        Lookahead(),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_the_ratio_is_the_double_sum(rule):
    """The single pass equals sum_ij w_i w_j e^(-k |t_i - t_j|), with a growing batch and with negative weights."""
    positions, weights = weight_profile(rule, list(itertools.accumulate([64] * 20 + [128] * 10 + [300] * 5)), 30)
    for k in (1e-4, 1e-3, 1e-2):
        expected = weights @ np.exp(-k * np.abs(positions[:, None] - positions[None, :])) @ weights
        assert variance_ratio(positions, weights, k) == pytest.approx(expected, rel=1e-10)
    assert variance_ratio(positions, weights, 0.0) == pytest.approx(1.0, rel=1e-10)  # weights that stand still


def test_the_ratio_of_an_ema_tends_to_mu_over_k_plus_mu():
    """At steps of d images it is tanh(mu d / 2) / tanh((k + mu) d / 2), which approaches the limit like d^2."""
    k, mu = 1e-3, 4e-4
    rule = Ema(half_life_kimg=math.log(2) / mu / 1000, ramp_up=None)
    errors = []
    for d in (256, 128, 64, 32):
        ratio = variance_ratio(*weight_profile(rule, range(d, 60_000, d)), k)  # e^-24 is left of the start
        assert ratio == pytest.approx(math.tanh(mu * d / 2) / math.tanh((k + mu) * d / 2), rel=1e-8)
        assert ratio == pytest.approx(ema_variance(math.exp(-k * d), math.exp(-mu * d)), rel=1e-8)
        errors.append(abs(ratio - mu / (k + mu)))
    assert errors[-1] < 1e-4
    assert [a / b for a, b in itertools.pairwise(errors)] == pytest.approx([4.0] * 3, rel=0.05)


def test_the_ratio_of_swa_is_the_uniform_windows():
    k, d = 5e-4, 64
    for n in (1, 7, 50):
        ratio = variance_ratio(*weight_profile(Swa(start_kimg=d / 1000, every_kimg=d / 1000), range(d, n * d + 1, d)), k)
        assert ratio == pytest.approx(uniform_variance(math.exp(-k * d), n), rel=1e-9)
    # The continuous form for a window of T images: 2 / (kT) [1 - (1 - e^(-kT)) / (kT)], which is s^2/(k^2 T) [...] over s^2/(2k).
    n, window = 4000, 4000.0
    ratio = variance_ratio(*weight_profile(Swa(start_kimg=0.001, every_kimg=0.001), range(1, n + 1)), k)
    assert ratio == pytest.approx(2 / (k * window) * (1 - (1 - math.exp(-k * window)) / (k * window)), rel=2e-3)


# ---- the rate from two averages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, mu_1, mu_2", [(1.0, 0.1, 0.5), (1e-4, 1e-5, 1e-3), (3e-3, 2e-3, 1e-3), (5.0, 1e-3, 1e-2)])
@pytest.mark.parametrize("variance", [1.0, 3e5])
def test_the_rate_from_expected_distances_is_exact(k, mu_1, mu_2, variance):
    """D = V k / (k + mu) gives k for any V and in either order, and V = D (k + mu) / k follows."""
    one, two = (variance * k / (k + mu) for mu in (mu_1, mu_2))
    found = rate_of_two(one, mu_1, two, mu_2)
    # The relative precision that the difference of the distances leaves.
    digits = 1e-14 * max(one, two) / abs(one - two)
    assert found == pytest.approx(k, rel=max(1e-9, digits)) and rate_of_two(two, mu_2, one, mu_1) == found
    assert one * (found + mu_1) / found == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize(
    "distances",
    [(1 / 0.1**2, 1 / 0.5**2), (0.0, 0.0), (1.0, 1.0), (1.0, 2.0), (math.nan, 1.0), (math.inf, 1.0), (5.0, 1.0)],
    ids=["straight line", "nothing moves", "equal", "longer nearer", "nan", "inf", "on the edge"],
)
def test_distances_that_no_orbit_has_give_no_rate(distances):
    """On a straight line an average lags by v / mu, so the longer one lags by more than the ratio of the rates."""
    assert rate_of_two(distances[0], 0.1, distances[1], 0.5) is None


@pytest.mark.parametrize("phi, a, b", [(0.97, 0.99, 0.95), (0.5, 0.999, 0.8), (0.9, 0.6, 0.98)])
def test_the_rate_from_the_distances_of_averages_that_look_rarely_is_exact(phi, a, b):
    """For the distances of AR(1) at steps of 64 images, in either order."""
    one, two = (3.0 * ema_from_live(phi, beta) for beta in (a, b))
    mu_a, mu_b = -math.log(a) / 64, -math.log(b) / 64
    assert rate_of_two(one, mu_a, two, mu_b, step=64) == pytest.approx(-math.log(phi) / 64, rel=1e-8)
    assert rate_of_two(two, mu_b, one, mu_a, step=64) == pytest.approx(-math.log(phi) / 64, rel=1e-8)
    # The continuous form is the limit of small steps.
    assert rate_of_two(5.0, 0.1, 4.0, 0.2, step=1e-6) == pytest.approx(rate_of_two(5.0, 0.1, 4.0, 0.2), rel=1e-4)


def simulated_rate(phi: float, a: float, b: float) -> tuple[float, float]:
    """(rate an update of the orbit, five standard errors of one from simulated distances).

    First order, the derivatives by central differences: the mean squares have variances 2 D^2 / N and the covariance
    2 c^2 / N, c being that of the two differences.
    """
    d_a, d_b = ema_from_live(phi, a), ema_from_live(phi, b)
    c = 1 - ema_with_live(phi, a) - ema_with_live(phi, b) + two_emas(phi, a, b)

    def rate(at_a: float, at_b: float) -> float:
        q_a, q_b = at_a * (1 + a) / (2 * a * a), at_b * (1 + b) / (2 * b * b)
        return -math.log((q_b - q_a) / (q_b * b - q_a * a))

    by_a = (rate(d_a * 1.00001, d_b) - rate(d_a * 0.99999, d_b)) / (2e-5 * d_a)
    by_b = (rate(d_a, d_b * 1.00001) - rate(d_a, d_b * 0.99999)) / (2e-5 * d_b)
    return -math.log(phi), 5 * math.sqrt(2 / CHAINS * (by_a**2 * d_a**2 + by_b**2 * d_b**2 + 2 * by_a * by_b * c**2))


@pytest.mark.parametrize("phi, a, b", [(0.97, 0.99, 0.95), (0.99, 0.99, 0.97), (0.9, 0.98, 0.9)])
def test_the_rate_is_identified_from_a_bank(phi, a, b):
    """Within sampling error of the orbit's own."""
    averagers = {"middle": ema_of(0.5 * (a + b)), "short": ema_of(b), "steps": EmaSteps(), "long": ema_of(a), "power": Power()}
    orbit = Orbit(phi, averagers).run(math.ceil(math.log(1e-4) / math.log(max(a, phi))))
    k, read_off = identified_rate({"g": orbit.bank}, orbit.nimg)
    expected, error = simulated_rate(phi, a, b)
    assert k * BATCH == pytest.approx(expected, abs=error)
    assert error < 0.2 * expected
    assert read_off["distances"] == {"long": orbit.bank.distance("long").item(), "short": orbit.bank.distance("short").item()}
    for name, beta in (("long", a), ("short", b)):
        assert read_off["distances"][name] / CHAINS == pytest.approx(ema_from_live(phi, beta), abs=within(ema_from_live(phi, beta)))
        assert read_off["half_lives_kimg"][name] == pytest.approx(averagers[name].half_life_kimg, rel=1e-12)


def test_distances_are_those_of_both_players_together():
    """Only averages that follow both players are used."""
    a, b, phi = 0.98, 0.9, 0.95
    emas = {"long": ema_of(a), "short": ema_of(b)}
    g, d = Orbit(phi, {"longer": ema_of(0.999), **emas}, seed=1).run(300), Orbit(phi, emas, seed=2).run(300)
    k, read_off = identified_rate({"g": g.bank, "d": d.bank}, g.nimg)
    assert read_off["distances"].keys() == read_off["half_lives_kimg"].keys() == {"long", "short"}
    for name in emas:
        both = (g.bank.distance(name) + d.bank.distance(name)).item()
        assert read_off["distances"][name] == pytest.approx(both, rel=1e-12)
    expected, error = simulated_rate(phi, a, b)
    assert k * BATCH == pytest.approx(expected, abs=error / math.sqrt(2))  # twice the chains


def test_no_rate_is_identified_while_weights_drift():
    """On a straight line, on an orbit whose centre moves faster than the orbit is wide, and while two EMAs ramp up alike."""
    emas = {"long": ema_of(0.99), "short": ema_of(0.9)}
    for phi, speed in ((1.0, 1.0), (0.95, 1.0)):
        orbit = Orbit(phi, emas)
        centre = 0.0
        for _ in range(400):
            orbit.live.sub_(centre)
            centre += speed
            orbit.live.mul_(phi).add_(torch.randn(CHAINS, generator=orbit.generator), alpha=math.sqrt(1 - phi**2)).add_(centre)
            orbit.nimg += BATCH
            orbit.bank.update(orbit.nimg)
        k, read_off = identified_rate({"g": orbit.bank}, orbit.nimg)
        assert k is None and read_off["distances"].keys() == {"long", "short"}
    ramps = Orbit(0.9, {name: Ema(half_life_kimg=h, ramp_up=0.05) for name, h in (("long", 1000.0), ("short", 500.0))}).run(50)
    assert identified_rate({"g": ramps.bank}, ramps.nimg)[0] is None  # both still ramp up: they are the same average


def test_identified_and_held():
    """growth: auto from end to end: k from two EMAs, g* from k, and the variance of the long EMA is held after the swap."""
    phi, beta = 0.97, 0.99
    orbit = Orbit(phi, {"long": ema_of(beta), "short": ema_of(0.97)}, seed=3).run(900)
    k, _ = identified_rate({"g": orbit.bank}, orbit.nimg)
    g = growth_that_holds(orbit.bank, "long", k, orbit.nimg)
    held = ema_variance(phi, beta)
    orbit.bank.write_back("long")
    orbit.run(80, quieter=g)
    # V / (1 + k / mu) is off by no larger a share than k is: by sampling, and by the discreteness of the steps.
    ran, error = simulated_rate(phi, beta, 0.97)
    share = error / ran + abs(ran / -math.log(phi) - 1)
    assert share < 0.2  # the weights swapped in had a quarter of V
    assert mean(orbit.live**2) == pytest.approx(held, abs=within(held) + share * held)


# ---- rotation --------------------------------------------------------------------------------------------------------


class Rotation:
    """Two players, one weight each, on circles of radius 3 at all phases at once: x is G's and y is D's."""

    def __init__(self, omega: float, rule, phases: int = 360):
        angles = torch.arange(phases, dtype=torch.float64) * (2 * math.pi / phases)
        self.z = 3.0 * torch.polar(torch.ones(phases, dtype=torch.float64), angles)
        self.turn = complex(math.cos(omega), math.sin(omega))
        self.networks = Vector(self.z.real.float()), Vector(self.z.imag.float())
        self.banks = [AverageBank(network, {"it": rule}) for network in self.networks]
        self.nimg = 0

    def run(self, steps: int) -> Rotation:
        x, y = (network.w.detach() for network in self.networks)
        z = torch.complex(x.double(), y.double())
        for _ in range(steps):
            z = z * self.turn  # in float64, so that the radius stays
            x.copy_(z.real)
            y.copy_(z.imag)
            self.nimg += BATCH
            for bank in self.banks:
                bank.update(self.nimg)
        return self

    def radius_squared(self) -> float:
        x, y = (network.w.detach() for network in self.networks)
        return mean(x.double() ** 2 + y.double() ** 2)

    def amplitude(self) -> torch.Tensor:
        return torch.hypot(*(bank["it"].shadows["w"] for bank in self.banks))


def exact_gain(omega: float, beta: float) -> float:
    return abs((1 - beta) / (1 - beta * complex(math.cos(omega), -math.sin(omega))))


def limit_gain(omega: float, beta: float) -> float:
    mu = -math.log(beta)
    return mu / math.hypot(mu, omega)


@pytest.mark.parametrize("omega, beta", [(0.05, 0.98), (0.02, 0.99), (0.5, 0.8), (1.0, 0.9)])
def test_an_ema_of_a_rotation_is_a_smaller_circle(omega, beta):
    """Relative to the live circle its radius is |(1-beta) / (1 - beta e^(-i omega))| at every phase.

    In the limit of small steps that is mu / sqrt(mu^2 + omega^2).
    """
    rotation = Rotation(omega, ema_of(beta)).run(math.ceil(math.log(1e-7) / math.log(beta)))
    assert rotation.radius_squared() == pytest.approx(9.0, rel=1e-5)
    gain = mean(rotation.amplitude() / 3)
    # fp32, and 1e-7 of the start.
    torch.testing.assert_close(rotation.amplitude() / 3, torch.full((360,), exact_gain(omega, beta)), rtol=1e-4, atol=0)
    assert gain == pytest.approx(limit_gain(omega, beta), rel=omega - math.log(beta))
    assert abs(gain - exact_gain(omega, beta)) < abs(gain - limit_gain(omega, beta))


def test_the_limit_is_approached_as_steps_become_small():
    """With the same rotation and forgetting per image, each halving of the steps halves the gap to the limit."""
    gaps = [abs(exact_gain(0.4 * d, math.exp(-0.2 * d)) / limit_gain(0.4, math.exp(-0.2)) - 1) for d in (1, 1 / 2, 1 / 4, 1 / 8)]
    assert all(b < 0.51 * a for a, b in itertools.pairwise(gaps)) and gaps[-1] < 0.02


def test_a_swap_of_one_player_leaves_half_of_the_rotation():
    """The mean squared radius becomes r^2 (1 + gain^2) / 2, or r^2 gain^2 for a joint swap, and stays there."""
    omega, beta = 0.05, 0.99
    gain = exact_gain(omega, beta)
    assert gain < 0.25
    for swapped, expected in (((0,), 9 * (1 + gain**2) / 2), ((1,), 9 * (1 + gain**2) / 2), ((0, 1), 9 * gain**2)):
        rotation = Rotation(omega, ema_of(beta)).run(1700)  # beta^1700 is 4e-8
        for i in swapped:
            rotation.banks[i].write_back("it")
        assert rotation.radius_squared() == pytest.approx(expected, rel=1e-4)
        assert rotation.run(100).radius_squared() == pytest.approx(expected, rel=1e-4)


# ---- spectral norms --------------------------------------------------------------------------------------------------


def weight_with_gap(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Random weights whose largest singular value is 1.25 times the second, of scale 3."""
    generator = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(torch.randn(like.shape, generator=generator).flatten(1), full_matrices=False)
    s = 3 * torch.linspace(0.8, 0.1, len(s))
    s[0] = 3.0
    return (u * s @ v).reshape(like.shape)


LAYERS = {
    "linear": lambda: nn.Linear(20, 30),
    "conv": lambda: nn.Conv2d(6, 16, 3),
    "embedding": lambda: nn.Embedding(10, 16),
}


def largest(weight: torch.Tensor) -> float:
    """Its largest singular value."""
    return torch.linalg.matrix_norm(weight.detach().flatten(1).double(), ord=2).item()


def sn_layer(name: str) -> nn.Module:
    torch.manual_seed(0)
    return spectral_norm(LAYERS[name]())


@pytest.mark.parametrize("name", LAYERS)
def test_singular_vectors_follow_new_weights(name):
    """After a refresh the norm is the largest singular value of the new weights; before it, it is not.

    Each power iteration shrinks the error by the squared ratio of the first two singular values, here 0.64: 15 of them leave
    0.0012 in the vectors, and the square of that in the norm.
    """
    layer = sn_layer(name).eval()
    parametrization = layer.parametrizations.weight
    with torch.no_grad():
        parametrization.original.copy_(weight_with_gap(parametrization.original, seed=1))
        assert largest(layer.weight) > 1.05
        refresh_spectral_norms(layer)
        assert largest(layer.weight) == pytest.approx(1.0, abs=1e-3)
        norm = parametrization[0]
        found = (norm._u @ parametrization.original.flatten(1) @ norm._v).item()
        assert found == pytest.approx(largest(parametrization.original), rel=1e-3)
        assert norm._u.norm().item() == pytest.approx(1.0, abs=1e-5) and norm._v.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_a_refresh_is_a_plain_power_iteration():
    """It equals fifteen rounds of u <- W v, v <- W^T u in numpy, starting from the old vectors, for any weights."""
    layer = sn_layer("linear")
    norm, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    with torch.no_grad():
        original.copy_(torch.randn(original.shape, generator=torch.Generator().manual_seed(4)))
    w, u, v = (t.detach().double().numpy() for t in (original, norm._u, norm._v))
    for _ in range(15):
        u = w @ v / np.linalg.norm(w @ v)
        v = w.T @ u / np.linalg.norm(w.T @ u)
    refresh_spectral_norms(layer)
    np.testing.assert_allclose(norm._u, u, rtol=0, atol=1e-4)
    np.testing.assert_allclose(norm._v, v, rtol=0, atol=1e-4)


def test_a_refresh_is_deterministic_and_draws_nothing():
    """The same weights and vectors give the same vectors to the bit; random state, weights and modes do not change."""
    nets = [nn.Sequential(sn_layer("linear"), nn.ReLU(), sn_layer("embedding"), nn.Linear(3, 3)).train() for _ in range(2)]
    for net in nets:
        for layer in (net[0], net[2]):
            with torch.no_grad():
                layer.parametrizations.weight.original.copy_(weight_with_gap(layer.parametrizations.weight.original, seed=2))
    weights = {n: p.detach().clone() for n, p in nets[0].named_parameters()}
    state = torch.get_rng_state()
    for net in nets:
        refresh_spectral_norms(net)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, one), (_, two) in zip(nets[0].named_buffers(), nets[1].named_buffers()):
        assert torch.equal(one, two), name
    assert all(torch.equal(p, weights[n]) for n, p in nets[0].named_parameters()) and nets[0].training


@pytest.mark.parametrize("where", ["swapped in", "written into another network"])
def test_norms_are_consistent_where_an_average_is_used(where):
    """After a swap, and in a network for scoring, every normalised weight has norm 1."""
    net, other = (nn.Sequential(sn_layer("linear"), nn.Unflatten(1, (30, 1)), nn.Flatten()) for _ in range(2))
    original = net[0].parametrizations.weight.original
    bank = AverageBank(net, {"ema": Ema(half_life_kimg=0.1, ramp_up=None)})
    for step in range(1, 20):
        with torch.no_grad():
            original.copy_(weight_with_gap(original, seed=5) * step + weight_with_gap(original, seed=6))
        bank.update(64 * step)
    with torch.no_grad():
        original.copy_(weight_with_gap(original, seed=7))
    if where == "swapped in":
        bank.write_back("ema")
        target = net.eval()
    else:
        bank.materialize("ema", other)
        target = other.eval()
    assert torch.equal(target[0].parametrizations.weight.original, bank["ema"].shadows["0.parametrizations.weight.original"])
    assert largest(target[0].weight) == pytest.approx(1.0, abs=1e-3)


# ---- times of swaps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start, every", [(1.0, 0.5), (0.7, 0.3), (0.0, 0.64), (2.0, 1.7)])
def test_a_swap_is_due_at_its_start_and_periodically_from_there(start, every):
    """It is due once, in the update that passes a moment, even while the batch grows."""
    swap = Swap(source="ema", start_kimg=start, every_kimg=every, after_kimg=0.1)
    moments = [round(1000 * start) + i * round(1000 * every) for i in range(40)]
    positions = list(itertools.accumulate([64] * 30 + [128] * 15 + [256] * 8))
    assert positions[-1] < moments[-1]
    due = [b for a, b in zip([0, *positions], positions) if swap.due(a, b)]
    assert due == [b for a, b in zip([0, *positions], positions) if any(a < moment <= b for moment in moments)]
    passed = [m for m in moments if 0 < m <= positions[-1]]
    assert len(due) == len(passed) >= 3  # no update is longer than the distance
    assert all(0 <= at - moment < 256 for at, moment in zip(due, passed))


def test_a_swap_is_due_once_if_an_update_passes_several_moments():
    swap = Swap(source="ema", start_kimg=1.0, every_kimg=0.1, after_kimg=0.1)
    assert swap.due(1000, 2000) is True and not swap.due(0, 999) and swap.due(999, 1000) and not swap.due(1000, 1099)


def test_without_a_source_there_is_no_swap():
    """By default a swap is never due, and nothing grows."""
    assert not any(Swap().due(n, n + 5000) for n in range(0, 400_000, 5000)) and not Swap(growth=2).grows
    assert not Swap(source="ema").grows and Swap(source="ema", growth=2).grows and Swap(source="ema", growth="auto").grows


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"every_kimg": 0}, "every_kimg: must be above 0, got 0"),
        ({"every_kimg": math.inf}, "every_kimg: must be above 0, got inf"),
        ({"start_kimg": -1}, "start_kimg: must be at least 0, got -1"),
        ({"start_kimg": math.nan}, "start_kimg: must be at least 0, got nan"),
        ({"alpha": 0}, "alpha: must be above 0 and at most 1, got 0"),
        ({"alpha": 1.5}, "alpha: must be above 0 and at most 1, got 1.5"),
        ({"growth": 0.5}, "growth: must be a number of at least 1, or auto, got 0.5"),
        ({"growth": "automatic"}, "growth: must be a number of at least 1, or auto, got 'automatic'"),
        ({"growth": True}, "growth: must be a number of at least 1, or auto, got True"),
        ({"growth": None}, "growth: must be a number of at least 1, or auto, got null"),
        ({"growth": math.inf}, "growth: must be a number of at least 1, or auto, got inf"),
        ({"lr_scale": 0.0}, "lr_scale: must be above 0, got 0.0"),
        ({"after_kimg": 0}, "after_kimg: must be above 0 and at most every_kimg (50), got 0"),
        ({"after_kimg": 3.0, "every_kimg": 2.0}, "after_kimg: must be above 0 and at most every_kimg (2), got 3.0"),
    ],
)
def test_impossible_swaps_are_refused(fields, words):
    with pytest.raises(UserError) as refused:
        Swap(**fields)
    assert str(refused.value) == words
