"""The orbit: its fit on simulated paths, the sketch, the recorder, and `gantrain orbit` on tiny real runs.

Numbers of simulated cases are compared with stated rates: `at_most` and `about` allow five standard errors of a binomial. Slow cases
repeat the same tests on more paths.
"""

from __future__ import annotations

import base64
import functools
import inspect
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import spawning
import torch
from conftest import ROOT, TESTS, TINY, error_of, every_third, here, lines_of
from PIL import Image
from test_swapping import SWAP, TINY as TINY_SWAP
from torch import nn

from gantrain.averaging import AverageBank, Ema, Swa
from gantrain.averaging.average import named_weights
from gantrain.config.loading import load
from gantrain.config.sections import Orbit
from gantrain.errors import UserError
from gantrain.orbit.analysis import analyse, coarsen, select_rows
from gantrain.orbit.motion import build_motion, number_regimes, read_record
from gantrain.orbit.recorder import OrbitRecorder, build_line
from gantrain.orbit.words import format_number
from gantrain.run_folder.layout import is_narrow, narrow_variant
from gantrain.theory.displacement import displacement_of, parts_of
from gantrain.theory.orbit_fit import Direction, OrbitFit, fit_orbit
from gantrain.theory.ornstein_uhlenbeck import ema_ratio, ema_ratio_steps, simulate_ou, simulate_sgd, variance_ratio, variance_steps
from gantrain.theory.path_statistics import autocorrelation_of, principal_directions, slope_of, trend_of
from gantrain.theory.simulated_processes import Finding, Simulated, simulated_at
from gantrain.theory.sketch import Sketch
from gantrain.theory.two_emas import fit_two_emas

DIGITS = ROOT / "configs" / "digits.yaml"


@pytest.fixture(scope="module", autouse=True)
def tables_computed_once():
    """The simulated processes of every set of moments are kept for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gantrain.theory.orbit_fit.simulated_at", functools.cache(simulated_at))
        yield


def read_motion(run: Path, player: str):
    return build_motion(read_record(run), player)


def quick_or_many(quick: int, many: int):
    """Run a test on `quick` paths, and as a slow test on `many`."""
    return pytest.mark.parametrize("count", [quick, pytest.param(many, marks=pytest.mark.slow)])


def at_most(hits: int, of: int, rate: float) -> None:
    assert hits <= of * rate + 5 * math.sqrt(of * rate * (1 - rate)), f"{hits} of {of}, at a rate of {rate:g}"


def about(hits: int, of: int, rate: float) -> None:
    at_most(hits, of, rate)
    at_most(of - hits, of, 1 - rate)


def holds_of(finding: Finding, k: float) -> bool:
    return finding.low <= k <= finding.high


# ---- the fit of an orbit ---------------------------------------------------------------------------------------------


def sgd_paths(dim: int, k: float, rate: float, batch: float, moments: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, float]:
    """(`[count, n, dim]` of isotropic stationary SGD at these updates, its variance V); k is the forgetting rate per update."""
    rng, curvature, noise = np.random.default_rng(seed), -math.expm1(-k) / rate, 1.7
    v = variance_steps(curvature, noise, rate, batch)
    start = rng.standard_normal((count, dim)) * math.sqrt(v)
    path = simulate_sgd(curvature * np.eye(dim), noise * np.eye(dim), rate, batch, start, int(moments[-1]), rng)[moments]
    return np.moveaxis(path, 1, 0) + 3.0, v  # the centre is not zero


EVEN = np.arange(80) * 4
UNEVEN = np.cumsum(np.random.default_rng(5).integers(1, 12, 100))
# Dimensions, directions, learning rate, batch, k per update, moments, paths. k times the measured half is 20, 40, 150 and 18.
SETTINGS = {
    "one weight": (1, 1, 0.1, 8, 20 / 160, EVEN, 150),
    "four, a small rate": (4, 4, 0.02, 64, 40 / 160, EVEN, 50),
    "twenty, a batch of 1": (20, 3, 0.3, 1, 150 / 160, EVEN, 50),
    "recorded unevenly": (3, 3, 0.2, 2, 18 / (UNEVEN[-1] / 2), UNEVEN, 50),
}


@pytest.fixture(scope="module", params=[0.5, pytest.param(1.0, marks=pytest.mark.slow)], ids=["half", "all"])
def fits(request) -> dict[str, tuple[float, float, list[OrbitFit]]]:
    """(k, V, fits) of every setting, for a share of its paths."""
    found = {}
    for seed, (name, (dim, directions, rate, batch, k, moments, count)) in enumerate(SETTINGS.items()):
        paths, v = sgd_paths(dim, k, rate, batch, moments, round(count * request.param), seed)
        found[name] = k, v, [fit_orbit(moments, path, directions) for path in paths]
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_the_interval_of_every_direction_holds_the_rate_as_often_as_it_says(fits, name):
    k, _, found = fits[name]
    each = [d.finding for fit in found for d in fit.directions]
    assert len(each) == SETTINGS[name][1] * len(found)
    at_most(sum(not holds_of(f, k) for f in each), len(each), 0.05)
    at_most(sum(f.low > k for f in each), len(each), 0.025)
    at_most(sum(f.high < k for f in each), len(each), 0.025)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_interval_of_all_directions_together_holds_the_rate_as_often_as_it_says(fits, name):
    k, _, found = fits[name]
    at_most(sum(not holds_of(fit.together, k) for fit in found), len(found), 0.05)
    at_most(sum(not fit.alike for fit in found), len(found), 0.01)


def test_the_estimate_is_as_often_above_the_rate_as_below(fits):
    for k, _, found in fits.values():
        each = [d.finding.rate > k for fit in found for d in fit.directions]
        about(sum(each), len(each), 0.5)
        about(sum(fit.together.rate > k for fit in found), len(found), 0.5)


def test_an_interval_of_half_the_level_misses_half():
    """A level of 50% would show both too many and too few misses."""
    paths, _ = sgd_paths(1, 0.2, 0.1, 4, EVEN, 120, seed=9)
    found = [fit_orbit(EVEN, path, level=0.5) for path in paths]
    about(sum(holds_of(fit.directions[0].finding, 0.2) for fit in found), len(found), 0.5)
    about(sum(holds_of(fit.together, 0.2) for fit in found), len(found), 0.5)


def test_all_directions_together_know_more_than_each():
    """With p directions an interval is about 1 / sqrt(p) as wide, so that an orbit shows that no single direction shows."""
    paths, _ = sgd_paths(20, 8 / 160, 0.1, 4, EVEN, 20, seed=3)
    found = [fit_orbit(EVEN, path) for path in paths]
    assert {len(fit.directions) for fit in found} == {8}
    alone = sum(d.finding.low > 0 for fit in found for d in fit.directions) / (8 * len(found))
    together = sum(fit.together.low > 0 for fit in found) / len(found)
    assert alone < 0.5 and together > alone + 0.2
    widths = [np.log((fit.together.high) / fit.together.low) for fit in found if fit.together.low > 0]
    single = [np.log(d.finding.high / d.finding.low) for fit in found for d in fit.directions if d.finding.low > 0]
    assert np.median(widths) < 0.85 * np.median(single)


def test_an_orbit_holds_and_its_variance_is_found(fits):
    """The mean of `variance_of` over all directions is V within five standard errors."""
    _, v, found = fits["four, a small rate"]
    at_most(sum(not fit.holds for fit in found), len(found), 0.05)
    each = np.array([fit.variance_of(d) for fit in found for d in fit.directions])
    assert abs(each.mean() - v) < 5 * each.std() / math.sqrt(len(each))


def test_an_orbit_faster_than_its_recordings_has_numbers_too():
    """Independent or alternating recordings still give a variance, a ratio and a half-life."""
    rng = np.random.default_rng(0)
    for swing in (0.0, 1.0, 3.0):
        fit = fit_orbit(np.arange(60), rng.standard_normal((60, 1)) + swing * (-1.0) ** np.arange(60)[:, None])
        assert fit.directions[0].finding.rate > 1 and math.inf > fit.directions[0].finding.low > 0
        assert fit.variance_of(fit.directions[0]) == pytest.approx(fit.directions[0].squares, rel=0.2)
        assert math.isfinite(fit.ratio(np.arange(5.0), np.full(5, 0.2))) and math.isfinite(fit.half_life())


def ou_paths(rates, variances, moments: int, duration: float, count: int, seed: int) -> np.ndarray:
    """`[count, moments, n]` of independent stationary OU processes of these rates and variances."""
    rng, k, v = np.random.default_rng(seed), np.array(rates, dtype=float), np.array(variances, dtype=float)
    start = rng.standard_normal((count, len(k))) * np.sqrt(v)
    path = simulate_ou(np.diag(k), np.diag(2 * k * v), 1.0, 1.0, start, duration, moments - 1, rng)
    return np.moveaxis(path, 1, 0)


@quick_or_many(25, 60)
def test_directions_of_two_rates_each_have_their_own(count):
    """Two wide slow directions and two narrow fast ones: each interval holds the rate of its axis, and a common rate is rejected."""
    slow, fast = 0.2, 1.5
    paths, moments = ou_paths([slow, slow, fast, fast], [64, 64, 1, 1], 120, 120.0, count, 4), np.linspace(0, 120, 120)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    found = [fit_orbit(moments, path @ turn.T) for path in paths]
    missed = {slow: 0, fast: 0}
    for fit in found:
        axes = [int(np.argmax(np.abs(turn.T @ d.vector))) for d in fit.directions]
        assert sorted(axes[:2]) == [0, 1]
        for d, axis in zip(fit.directions, axes):
            k = slow if axis < 2 else fast
            missed[k] += not holds_of(d.finding, k)
    for count_of in missed.values():
        at_most(count_of, 2 * count, 0.05)
    assert sum(not fit.alike for fit in found) > 0.5 * count
    at_most(sum(not holds_of(fit.together, slow) for fit in found), count, 0.05)  # directions are weighted by their motion


def test_one_rate_with_many_variances_is_one_rate():
    """The variances of the directions do not matter if the rate is the same."""
    paths, moments = ou_paths([0.4] * 6, 4.0 ** np.arange(6), 100, 100.0, 30, 7), np.linspace(0, 100, 100)
    found = [fit_orbit(moments, path) for path in paths]
    at_most(sum(not holds_of(fit.together, 0.4) for fit in found), len(found), 0.05)
    each = [d.finding for fit in found for d in fit.directions]
    at_most(sum(not holds_of(f, 0.4) for f in each), len(each), 0.05)
    at_most(sum(not fit.alike for fit in found), len(found), 0.01)


class Weights(nn.Module):
    """Three tensors, some thousand weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Parameter(torch.zeros(40, 50)), nn.Parameter(torch.zeros(500)), nn.Parameter(torch.zeros(8, 6, 3, 3))

    def chains(self, keep: dict[str, float], generator: torch.Generator, stationary: bool = False) -> None:
        """Move all weights by one step of AR(1) chains of variance 1; `keep` is the factor of each tensor."""
        with torch.no_grad():
            for name, w in self.named_parameters():
                noise = torch.randn(w.shape, generator=generator)
                w.copy_(noise if stationary else keep[name] * w + math.sqrt(1 - keep[name] ** 2) * noise)


def sketched(keep: dict[str, float], count: int, moments: int, size: int, every: int = 1) -> list[np.ndarray]:
    """Paths `[moments, size]` of the sketches of AR(1) weights that forget at these rates by tensor."""
    network, generator, paths = Weights(), torch.Generator().manual_seed(0), []
    weights = dict(network.named_parameters())
    sketch = Sketch(weights, "g", size)
    for _ in range(count):
        network.chains(keep, generator, stationary=True)
        rows = []
        for _ in range(moments):
            for _ in range(every):
                network.chains(keep, generator)
            rows.append(sketch(weights).numpy())
        paths.append(np.stack(rows))
    return paths


@quick_or_many(20, 40)
def test_a_sketch_of_thousands_of_weights_has_their_rate(count):
    """If all weights are independent orbits of one rate, the intervals of their sketch cover it as often as they state."""
    k = 0.3
    found = [fit_orbit(np.arange(100), path, directions=6) for path in sketched(dict.fromkeys("abc", math.exp(-k)), count, 100, 32)]
    each = [d.finding for fit in found for d in fit.directions]
    assert len(each) == 6 * count
    at_most(sum(not holds_of(f, k) for f in each), len(each), 0.05)
    at_most(sum(not holds_of(fit.together, k) for fit in found), count, 0.05)
    about(sum(f.rate > k for f in each), len(each), 0.5)
    assert sum(fit.holds for fit in found) >= 0.5 * count  # k times the measured half is 15


def test_weights_of_two_rates_under_a_sketch_have_an_effective_rate():
    """Every direction of the sketch mixes both rates and shows one in between."""
    slow, fast = 0.1, 1.5
    found = [
        fit_orbit(np.arange(100), path, directions=6)
        for path in sketched({"a": math.exp(-slow), "b": math.exp(-fast), "c": math.exp(-fast)}, 10, 100, 32)
    ]
    rates = [fit.together.rate for fit in found]
    assert slow < np.median(rates) < fast and all(fit.together.low > 0 for fit in found)


@pytest.mark.parametrize("thin", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_more_recordings_than_are_wanted_are_thinned(thin):
    """Of 1600 recordings every second one is used, and the measured half is still the second half."""
    paths, _ = sgd_paths(2, 0.05, 0.1, 4, np.arange(800 * thin), 1, seed=1)
    fit = fit_orbit(np.arange(800 * thin), paths[0])
    assert len(fit.times) == 400 and fit.times[0] == 400 * thin and fit.times[1] - fit.times[0] == thin
    assert all(d.finding.low < 0.05 < d.finding.high for d in fit.directions) and fit.holds


def test_directions_come_from_the_first_half_and_numbers_from_the_second():
    """Directions, centres, shares and trends are their formulas on the two halves; shifts of time and position change no rate."""
    paths, _ = sgd_paths(6, 0.2, 0.1, 4, EVEN, 1, seed=2)
    path = paths[0] * np.array([4, 2, 1, 1, 1, 1])
    fit = fit_orbit(EVEN, path, directions=2)
    first = path[:40] - path[:40].mean(axis=0)
    _, vectors = np.linalg.eigh(first.T @ first)
    for d, vector in zip(fit.directions, vectors.T[::-1]):
        assert abs(d.vector @ vector) == pytest.approx(1, abs=1e-9) and np.linalg.norm(d.vector) == pytest.approx(1)
        along = path[40:] @ d.vector
        assert d.center == pytest.approx(along.mean()) and d.squares == pytest.approx(along.var())
        assert d.share == pytest.approx(along.var() / path[40:].var(axis=0).sum())
        assert d.finding.trend == pytest.approx(np.corrcoef(EVEN[40:], along)[0, 1] ** 2)
    assert fit.share == pytest.approx(sum(d.share for d in fit.directions)) and fit.duration == EVEN[-1] - EVEN[40]
    moved = fit_orbit(EVEN + 1000.0, path + 50.0, directions=2)
    assert [d.finding.rate for d in moved.directions] == pytest.approx([d.finding.rate for d in fit.directions])


def test_time_is_in_the_unit_that_it_is_given_in():
    paths, _ = sgd_paths(2, 0.2, 0.1, 4, EVEN, 1, seed=2)
    updates, kimg = fit_orbit(EVEN, paths[0]), fit_orbit(EVEN * 0.016, paths[0])
    assert kimg.together.rate == pytest.approx(updates.together.rate / 0.016, rel=1e-6)
    assert kimg.together.low == pytest.approx(updates.together.low / 0.016, rel=1e-6)


# ---- statistics of a path against plain formulas ---------------------------------------------------------------------


def test_statistics_of_a_path_are_their_formulas():
    rng = np.random.default_rng(0)
    times, x = np.sort(rng.random(30)) * 7, rng.standard_normal(30).cumsum()
    m = x.mean()
    expected = sum((a - m) * (b - m) for a, b in itertools.pairwise(x)) / sum((a - m) ** 2 for a in x)
    assert autocorrelation_of(x) == pytest.approx(expected)
    slope, offset = np.polyfit(times, x, 1)
    assert slope_of(times, x) == pytest.approx(slope)
    rest = ((x - slope * times - offset) ** 2).sum()
    assert trend_of(times, x) == pytest.approx(1 - rest / ((x - m) ** 2).sum())
    both = np.stack([x, -2 * x + 1], axis=1)
    for of in (autocorrelation_of, lambda z: slope_of(times, z), lambda z: trend_of(times, z)):
        assert of(both).shape == (2,) and of(both)[0] == pytest.approx(of(x))


@pytest.mark.parametrize("k", [0.1, 2.0])
def test_processes_to_compare_with_stay_at_their_variance_and_forget_at_their_rate(k):
    """4000 processes at uneven moments; the standard error of a mean product of Gaussians is at most sqrt(2 / 4000)."""
    steps = np.random.default_rng(1).random(12) + 0.1
    x = Simulated.paths(k, steps, np.random.default_rng(0).standard_normal((13, 4000)))
    within = 5 * math.sqrt(2 / 4000)
    assert (x**2).mean(axis=1) == pytest.approx(np.ones(13), abs=within)
    assert (x[1:] * x[:-1]).mean(axis=1) == pytest.approx(np.exp(-k * steps), abs=within)
    walk = Simulated.paths(0.0, steps, np.random.default_rng(0).standard_normal((13, 4000)))
    assert (np.diff(walk, axis=0) ** 2).mean(axis=1) == pytest.approx(steps, rel=within)


def test_principal_directions_are_as_many_as_there_are():
    line = np.outer(np.arange(20.0), [3, 4, 0]) + 100
    assert principal_directions(line, 8).shape == (1, 3)
    assert np.abs(principal_directions(line, 8)[0]) == pytest.approx([0.6, 0.8, 0])
    assert principal_directions(np.ones((20, 3)), 8).shape == (0, 3)
    assert principal_directions(np.random.default_rng(0).standard_normal((20, 6)), 4).shape == (4, 6)


@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_displacement_is_that_of_a_double_loop(n):
    rng = np.random.default_rng(0)
    path, times = rng.standard_normal((n, 3)).cumsum(axis=0), np.arange(n) * 0.25 + 4
    lags, found = displacement_of(times, path)
    assert lags[-1] == 0.25 * max(1, n // 2) and lags[0] == 0.25 and len(set(lags)) == len(lags)
    for lag, value in zip(lags, found):
        count = round(lag / 0.25)
        pairs = [sum((path[i + count][j] - path[i][j]) ** 2 for j in range(3)) for i in range(n - count)]
        assert value == pytest.approx(sum(pairs) / len(pairs))


def test_the_displacement_of_an_orbit_levels_out_that_of_a_walk_grows_and_of_a_drift_squares():
    """In the mean over 2000 weights it is 2 V (1 - e^(-k t)), D t and v^2 t^2, with a relative standard error of at most sqrt(2 / 2000)."""
    weights, n = 2000, 60
    rng, within = np.random.default_rng(0), 5 * math.sqrt(2 / 2000)
    orbit = ou_paths([0.3], [2.0], n, n - 1.0, weights, 1)[:, :, 0].T
    lags, found = displacement_of(np.arange(n), orbit)
    assert found / weights == pytest.approx(2 * 2.0 * -np.expm1(-0.3 * lags), rel=within)
    lags, found = displacement_of(np.arange(n), rng.standard_normal((n, weights)).cumsum(axis=0))
    assert found / weights == pytest.approx(lags, rel=within)
    lags, found = displacement_of(np.arange(n), np.outer(np.arange(n), [3.0, 4.0]))
    assert found == pytest.approx(25 * lags**2)


@pytest.mark.parametrize(
    "parts",
    [(0.3, 2.0, 0.0, 0.0), (0.0, 0.0, 1.5, 0.0), (0.0, 0.0, 0.0, 0.7), (0.5, 1.0, 0.2, 0.05)],
    ids=["orbit", "walk", "drift", "all"],
)
def test_a_displacement_comes_apart_into_what_it_is_made_of(parts):
    """Curves without noise are decomposed into their parts; rates come from a grid of ten percent, so V is known to a few percent."""
    k, v, d, velocity = parts
    lags = np.geomspace(0.5, 40, 24)
    found = parts_of(lags, 2 * v * -np.expm1(-k * lags) + d * lags + (velocity * lags) ** 2)
    for lag in (0.5, 5.0, 40.0):
        whole = np.array([2 * v * -math.expm1(-k * lag), d * lag, (velocity * lag) ** 2])
        assert found.shares(lag) == pytest.approx(whole / whole.sum(), abs=0.05)
        assert [float(part) for part in found.at(lag)] == pytest.approx(whole, abs=0.07 * whole.sum())
    if v:
        assert found.rate == pytest.approx(k, rel=0.15) and found.variance == pytest.approx(v, rel=0.1)


# ---- what is computed with a fit ---------------------------------------------------------------------------------------


def found_as(rate: float, verdict: str = "orbit", chance: float = 0.5) -> Finding:
    return Finding(rate, 0.5 * rate if math.isfinite(rate) else 9.0, 2 * rate, 0.1, 0.1, chance, verdict)


def fit_of(
    rates,
    variances,
    velocities=None,
    verdicts=None,
    together: Finding | None = None,
    alike: bool = True,
    chances=None,
    later: Finding | None = None,
    steady: bool = True,
    times: np.ndarray | None = None,
) -> OrbitFit:
    """The fit of directions with these rates and variances; the mean square about the mean is V minus the mean's own variance."""
    times = np.linspace(0, 50, 101) if times is None else times
    count, n = len(rates), len(times)
    plain = np.full(n, 1 / n)
    velocities = [0.0] * count if velocities is None else velocities
    directions = [
        Direction(
            np.eye(count)[i], 0.0, v / sum(variances), v * (1 - variance_ratio(times, plain, k)), velocities[i],
            found_as(k, "orbit" if verdicts is None else verdicts[i], 0.5 if chances is None else chances[i]),
        )
        for i, (k, v) in enumerate(zip(rates, variances))
    ]  # fmt: skip
    usual = found_as(float(np.mean(rates)))
    return OrbitFit(directions, together or usual, later or usual, alike, steady, times, 0.95)


@pytest.mark.parametrize("k", [0.1, 0.5, 5.0])
def test_variance_is_that_about_the_true_centre(k):
    """The mean square about the mean, corrected for the mean's own variance, is V: 20,000 paths, within five standard errors."""
    paths = ou_paths([k], [3.0], 41, 20.0, 20_000, 0)[:, :, 0]
    squares = paths.var(axis=1)
    times = np.linspace(0, 20, 41)
    one = Direction(np.ones(1), 0.0, 1.0, float(squares.mean()), 0.0, found_as(k))
    fit = OrbitFit([one], found_as(2 * k), found_as(2 * k), True, True, times, 0.95)
    scale = fit.variance_of(one) / squares.mean()
    assert fit.variance_of(one) == pytest.approx(3.0, abs=5 * scale * squares.std() / math.sqrt(len(squares)))


def test_an_undecided_direction_has_the_rate_of_all_together():
    fit = fit_of([1.0, 3.0, 4.0], [1.0, 1.0, 1.0], verdicts=["orbit", "walk", "orbit"], together=found_as(7.0))
    assert [fit.rate_of(d) for d in fit.directions] == [1.0, 7.0, 4.0]
    assert found_as(math.inf).safe_rate == 9.0  # too fast to resolve: the lower bound


def test_the_predicted_ratio_of_an_ema_is_its_closed_form():
    """From an EMA's weight profile, with directions weighted by V. Exact for discrete steps, close to the continuous form."""
    bank = AverageBank(nn.Linear(1, 1), {"ema": Ema(half_life_kimg=0.2, ramp_up=None)})
    for i in range(1, 6001):
        bank.update(10 * i)
    positions, weights = bank.weight_profile("ema")
    rates, variances = [2.0, 30.0], [5.0, 1.0]
    fit, mu = fit_of(rates, variances), math.log(2) / 0.2
    steps = [ema_ratio_steps(math.exp(-k * 0.01), math.exp(-mu * 0.01)) for k in rates]
    assert fit.ratio(positions / 1000, weights) == pytest.approx(np.average(steps, weights=variances), rel=1e-6)
    assert fit.ratio(positions / 1000, weights) == pytest.approx(np.average([ema_ratio(k, mu) for k in rates], weights=variances), rel=0.05)
    assert len(coarsen((positions, weights))[0]) == 2000 and coarsen((positions, weights))[1].sum() == pytest.approx(1)
    assert fit.ratio(*coarsen((positions, weights))) == pytest.approx(fit.ratio(positions / 1000, weights), rel=0.01)
    assert [x.tolist() for x in coarsen((positions[:5], weights[:5]))] == [(positions[:5] / 1000).tolist(), weights[:5].tolist()]


def test_the_predicted_ratio_counts_only_directions_whose_rate_is_known():
    fit = fit_of([2.0, 30.0], [5.0, 1.0], verdicts=["orbit", "walk"], alike=False, together=found_as(30.0))
    profile = np.array([0.0, 0.5]), np.array([0.5, 0.5])
    assert fit.ratio(*profile) == pytest.approx(variance_ratio(*profile, 2.0))
    assert [d.finding.rate for d in fit.orbiting] == [2.0]


def test_a_fitted_orbit_predicts_the_ratio_of_an_ema(fits):
    """Predictions from fitted rates scatter around the prediction from the true rate."""
    k, _, found = fits["four, a small rate"]
    mu = 0.02
    positions = np.arange(0, 600.0)
    weights = np.exp(-mu * (600 - positions))
    weights /= weights.sum()
    true = variance_ratio(positions, weights, k)
    assert true == pytest.approx(ema_ratio_steps(math.exp(-k), math.exp(-mu)), rel=1e-4)
    ratios = np.array([fit.ratio(positions, weights) for fit in found])
    assert np.mean(ratios > true) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(len(ratios)))
    assert np.median(ratios) == pytest.approx(true, rel=0.2)


@pytest.mark.parametrize("velocities", [[0.3, 0.0], [2.0, 1.0], [0.02, 0.05]])
def test_the_half_life_is_the_least_of_its_formula(velocities):
    """A grid search over all allowed mu finds the same minimum."""
    rates, variances = [2.0, 0.5], [4.0, 1.0]
    fit = fit_of(rates, variances, velocities)
    grid = np.geomspace(2 / 50, 1e4 * 2 / 50, 200_001)
    spread = sum(v * grid / (k + grid) + (s / grid) ** 2 for k, v, s in zip(rates, variances, velocities))
    assert fit.half_life() == pytest.approx(math.log(2) / grid[spread.argmin()], rel=1e-3)


@pytest.mark.parametrize("duration", [10.0, 300.0])
def test_the_half_life_is_no_longer_than_the_stretch_allows(duration):
    """Without drift a longer half-life is always better, so it is limited by the measured stretch, T = 2 / mu."""
    fit = fit_of([1.0], [1.0], times=np.linspace(5, 5 + duration, 101))
    longest = math.log(2) * duration / 2
    assert 0.99 * longest < fit.half_life() <= longest * (1 + 1e-9)


ORBITS = {"rates": [1.0] * 5, "variances": [1.0] * 5}  # of a fifth of the motion each
UNEQUAL = {"rates": [1.0] * 3, "variances": [6.0, 2.0, 2.0]}


@pytest.mark.parametrize(
    "more, verdict",
    [
        ({}, "orbit"),
        ({"together": found_as(1.0, "walk")}, "walk"),
        ({"together": found_as(1.0, "drift")}, "drift"),
        ({"together": found_as(1.0, "turn")}, "turn"),
        ({"verdicts": ["walk"] * 5}, "orbit"),  # each undecided, of one rate, together decided
        ({"verdicts": ["walk"] * 5, "alike": False}, "mixed"),
        ({**UNEQUAL, "verdicts": ["orbit", "walk", "walk"], "alike": False}, "orbit"),  # it carries 60%
        ({**UNEQUAL, "verdicts": ["walk", "orbit", "orbit"], "alike": False}, "mixed"),  # they carry 40%
        ({**UNEQUAL, "verdicts": ["walk", "orbit", "orbit"]}, "walk"),  # of what carries 60% the others say nothing
        ({**UNEQUAL, "variances": [2.4, 3.8, 3.8], "verdicts": ["walk", "orbit", "orbit"]}, "orbit"),  # it carries less than a quarter
        ({"verdicts": ["drift", *["orbit"] * 4], "chances": [0.02, *[0.5] * 4]}, "orbit"),  # one of five may seem to drift by chance
        ({"verdicts": ["drift", *["orbit"] * 4], "chances": [0.004, *[0.5] * 4]}, "mixed"),
        ({"verdicts": [*["drift"] * 3, "orbit", "orbit"], "chances": [*[0.02] * 3, 0.5, 0.5]}, "mixed"),  # most of the motion
        ({"later": found_as(5.0)}, "mixed"),  # 2.5 to 10, where 0.5 to 2 was read at the short distance
        ({"later": found_as(0.2)}, "mixed"),
        ({"later": found_as(2.0)}, "orbit"),
        ({"later": Finding(0.3, 0.0, 0.6, 0.1, 0.1, 0.5, "walk")}, "walk"),  # in agreement, and not decided
        ({"later": Finding(0.1, 0.0, 0.3, 0.1, 0.1, 0.5, "walk")}, "mixed"),  # noise that rides on a walk
        ({"steady": False}, "mixed"),
    ],
)
def test_the_verdict_of_the_whole_path(more, verdict):
    fit = fit_of(**{**ORBITS, **more})
    assert fit.verdict == verdict and fit.holds == (verdict == "orbit")


# ---- motions that are not orbits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dim, count", [(1, 100), (8, 20), (64, 12), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 300), (8, 60), (64, 40)))]
)
def test_a_random_walk_is_not_an_orbit(dim, count):
    """The interval of a walk excludes 0 in 2.5% of cases; in 2.5% each it looks too straight or has a trend."""
    rng = np.random.default_rng(dim)
    found = [fit_orbit(np.arange(80), rng.standard_normal((80, dim)).cumsum(axis=0)) for _ in range(count)]
    at_most(sum(fit.holds for fit in found), count, 0.025)
    at_most(sum(fit.together.low > 0 for fit in found), count, 0.025)
    at_most(sum(fit.verdict != "walk" for fit in found), count, 0.075)  # 2.5% orbits, 2.5% too straight, 2.5% with a trend
    each = [d.finding for fit in found for d in fit.directions]
    at_most(sum(f.low > 0 for f in each), len(each), 0.025)
    about(sum(f.rate > 0 for f in each), len(each), 0.5)


@quick_or_many(10, 20)
def test_the_sketch_of_a_random_walk_of_thousands_of_weights_is_not_an_orbit(count):
    network, generator, walks = Weights(), torch.Generator().manual_seed(1), []
    weights = dict(network.named_parameters())
    sketch = Sketch(weights, "d", 64)
    for _ in range(count):
        rows = []
        for _ in range(80):
            with torch.no_grad():
                for w in weights.values():
                    w.add_(torch.randn(w.shape, generator=generator))
            rows.append(sketch(weights).numpy())
        walks.append(fit_orbit(np.arange(80), np.stack(rows)))
    at_most(sum(fit.holds for fit in walks), len(walks), 0.025)
    assert all(len(fit.directions) == 8 for fit in walks)


def walks(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    return rng.standard_normal((n, dim)).cumsum(axis=0)


NO_ORBITS = {
    "a walk with white noise on it": lambda rng, n: walks(rng, n, 16) + 0.8 * rng.standard_normal((n, 16)),
    "a walk with an orbit on it": lambda rng, n: (
        walks(rng, n, 16) + 1.5 * ou_paths([0.5] * 16, [1.0] * 16, n, n - 1.0, 1, int(rng.integers(10**6)))[0]
    ),
    "one that walks far among orbits": lambda rng, n: np.hstack(
        [3 * walks(rng, n, 1), ou_paths([0.2] * 30, [1.0] * 30, n, n - 1.0, 1, int(rng.integers(10**6)))[0]]
    ),
    "a spiral outwards": lambda rng, n: (
        np.cos(np.arange(n)[:, None] * np.pi / 4 + rng.uniform(0, 6, 16)) * np.exp(0.01 * np.arange(n))[:, None]
        + 0.01 * rng.standard_normal((n, 16))
    ),
    "an orbit that grows": lambda rng, n: (
        ou_paths([0.3] * 16, [1.0] * 16, n, n - 1.0, 1, int(rng.integers(10**6)))[0] * np.geomspace(0.1, 3, n)[:, None]
    ),
    "a walk that slows down": lambda rng, n: (rng.standard_normal((n, 16)) * np.geomspace(1, 0.05, n)[:, None]).cumsum(axis=0),
    "an orbit that drifts": lambda rng, n: (
        ou_paths([0.3] * 16, [1.0] * 16, n, n - 1.0, 1, int(rng.integers(10**6)))[0] + 0.1 * np.arange(n)[:, None] * rng.standard_normal(16)
    ),
    "to and fro": lambda rng, n: (-1.0) ** np.arange(n)[:, None] * (5 + walks(rng, n, 16) / 10),
}


@quick_or_many(8, 20)
@pytest.mark.parametrize("name", NO_ORBITS)
def test_what_returns_without_being_an_orbit(name, count):
    """No more of these motions are classified as orbits than of random walks: 2.5%, within five standard errors."""
    rng = np.random.default_rng(0)
    found = [fit_orbit(np.arange(160), NO_ORBITS[name](rng, 160)).verdict for _ in range(count)]
    at_most(found.count("orbit"), len(found), 0.025)


@quick_or_many(8, 20)
@pytest.mark.parametrize("k", [0.3, 1.0, 5.0])
def test_orbits_of_many_weights_are_recognised(k, count):
    """At least three quarters of them; k times the measured half is at least 24."""
    found = [fit_orbit(np.arange(160), path).verdict for path in ou_paths([k] * 64, [1.0] * 64, 160, 159.0, count, 0)]
    assert found.count("orbit") >= 0.75 * count


@pytest.mark.parametrize("dim", [1, 5])
def test_pure_drift_is_drift(dim):
    fit = fit_orbit(np.arange(60), np.outer(np.arange(60.0), np.arange(1, dim + 1)))
    assert fit.verdict == "drift" and not fit.holds and fit.together.trend == pytest.approx(1) and len(fit.directions) == 1
    assert fit.directions[0].velocity == pytest.approx(np.linalg.norm(np.arange(1, dim + 1)), rel=0.5)


@pytest.mark.parametrize("noise", ["white", "orbit"])
def test_drift_with_noise_is_drift(noise):
    """In the measured half the line is sixty standard deviations long, far more than chance explains."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        around = rng.standard_normal((80, 1)) if noise == "white" else ou_paths([0.5], [1.0], 80, 79.0, 1, int(rng.integers(1000)))[0]
        fit = fit_orbit(np.arange(80), 1.5 * np.arange(80.0)[:, None] + around)
        assert fit.verdict == "drift" and not fit.holds
        assert fit.directions[0].velocity == pytest.approx(1.5, rel=0.3)


@quick_or_many(12, 30)
def test_a_path_that_is_straighter_than_a_walk_drifts(count):
    """In the cumulative sum of a random walk each step continues in the direction of the last: it is never an orbit, usually a drift."""
    rng = np.random.default_rng(0)
    found = [fit_orbit(np.arange(80), rng.standard_normal((80, 6)).cumsum(axis=0).cumsum(axis=0)) for _ in range(count)]
    assert not any(fit.holds for fit in found) and sum(fit.verdict == "drift" for fit in found) > 0.6 * len(found)
    straighter = [fit.together for fit in found if fit.together.high == 0]
    assert straighter and all((f.rate, f.low, f.verdict) == (0, 0, "drift") for f in straighter)


def test_what_is_too_straight_for_a_walk_is_drift_whatever_its_trend():
    """No straight line explains the motion, but its autocorrelation is higher than that of any process."""
    found = simulated_at(tuple(np.arange(40.0)), 0.95, 0).finding(np.array([0.999]), np.array([0.1]), np.ones(1))
    assert (found.rate, found.low, found.high, found.verdict) == (0, 0, 0, "drift") and found.chance > 0.05


def test_an_orbit_that_drifts_along_slowly_has_its_velocity():
    """The velocity of an orbit that drifts more slowly than its noise shows is found on average; without drift it is small."""
    times = np.arange(400.0)
    speeds, still = [], []
    for seed in range(12):
        path = ou_paths([0.5], [1.0], 400, 399.0, 1, seed)[0]
        for speed, into in ((0.008, speeds), (0.0, still)):
            fit = fit_orbit(times, path + speed * times[:, None])
            into.append(fit.directions[0].velocity)
    # A line's slope over T = 200 of an orbit of V = 1, k = 0.5 has the variance 12 (2 V / k) / T^3.
    error = math.sqrt(12 * 4 / 200**3)
    assert np.mean(speeds) == pytest.approx(0.008, abs=5 * error / math.sqrt(12) + 0.0015)
    assert np.mean(still) < 2 * error and min(still) == 0  # 0 if chance explains more of a line


@pytest.mark.parametrize(
    "path, words",
    [
        (np.zeros((39, 2)) + np.arange(39)[:, None], "at least 40 recordings"),
        (np.zeros((0, 2)), "there are 0"),
        (np.ones((40, 3)), "do not move"),
        (np.r_[np.random.default_rng(0).standard_normal((20, 3)), np.ones((20, 3))], "do not move"),
        (np.r_[np.ones((20, 3)), np.random.default_rng(0).standard_normal((20, 3))], "do not move"),
        (np.where(np.arange(120).reshape(40, 3) == 77, np.nan, 1.0 * np.arange(120).reshape(40, 3)), "contain nan or infinity"),
        (np.where(np.arange(120).reshape(40, 3) == 77, np.inf, 1.0 * np.arange(120).reshape(40, 3)), "contain nan or infinity"),
    ],
    ids=["39", "none", "still", "comes to rest", "starts late", "nan", "inf"],
)
def test_a_path_that_cannot_be_fitted_is_one_line(path, words):
    with pytest.raises(UserError, match=words) as caught:
        fit_orbit(np.arange(len(path)), path)
    assert "\n" not in str(caught.value)


def test_forty_recordings_are_enough():
    found = [fit_orbit(np.arange(40), path).verdict for path in ou_paths([1.0] * 12, [1.0] * 12, 40, 39.0, 20, 0)]
    assert found.count("orbit") > 10 and not {"drift", "mixed"} & set(found[:3])


# ---- two EMAs ----------------------------------------------------------------------------------------------------------


def ema_distances(move, rates, chains: int, settle: int, steps: int, seed: int, runs: int = 1) -> list[np.ndarray]:
    """`[steps, runs]` squared distances of weights `[runs, chains]` to EMAs that look after every step, after `settle` steps."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((runs, chains))
    emas, kept = [x.copy() for _ in rates], [[] for _ in rates]
    for step in range(settle + steps):
        x = move(x, rng)
        for ema, mu, into in zip(emas, rates, kept):
            ema += -math.expm1(-mu) * (x - ema)
            if step >= settle:
                into.append(((x - ema) ** 2).sum(axis=1))
    return [np.stack(into) for into in kept]


def orbit_step(k: float):
    keep = math.exp(-k)
    return lambda x, rng: keep * x + math.sqrt(1 - keep**2) * rng.standard_normal(x.shape)


def test_two_emas_give_the_rate_within_their_interval():
    """200 runs of 10 weights. A jackknife interval is not exact, so the 95% interval has to cover 90%."""
    k, rates, runs = 0.2, (0.15, 0.04), 200
    one, two = ema_distances(orbit_step(k), rates, 10, 200, 800, 0, runs)
    found = [fit_two_emas([one[:, i], two[:, i]], rates, step=1.0) for i in range(runs)]
    known = [f for f in found if f.low is not None]
    assert len(known) > 0.95 * runs
    assert all(f.low < f.rate < f.high for f in known)
    at_most(sum(not f.low <= k <= f.high for f in known), len(known), 0.10)
    narrow = [fit_two_emas([one[:, i], two[:, i]], rates, step=1.0, level=0.5) for i in range(runs)]
    about(sum(f.low <= k <= f.high for f in narrow if f.low is not None), len(known), 0.5)
    assert np.median([f.rate for f in known]) == pytest.approx(k, rel=0.1)
    variances = np.array([f.variance for f in known])
    assert np.median(variances) == pytest.approx(10.0, rel=0.1) and all(0 < f.exponent < 1 for f in known)


def test_two_emas_of_a_bank_give_the_rate():
    """From the bank's own EMAs and distances over 4000 weights, with the step at which they are updated."""
    k, network, generator = 0.2, Weights(), torch.Generator().manual_seed(0)
    bank = AverageBank(network, {"short": Ema(half_life_kimg=0.05, ramp_up=None), "long": Ema(half_life_kimg=0.2, ramp_up=None)})
    kept = {"short": [], "long": []}
    network.chains({}, generator, stationary=True)
    for i in range(1, 401):
        network.chains(dict.fromkeys("abc", math.exp(-k)), generator)
        bank.update(10 * i)
        if i > 150:
            for name, into in kept.items():
                into.append(bank.distance(name).item())
    rates = [math.log(2) / 0.05, math.log(2) / 0.2]
    found = fit_two_emas([np.array(d) for d in kept.values()], rates, step=0.01)
    assert found.low < k / 0.01 < found.high and found.high < 1.3 * found.low
    assert found.variance == pytest.approx(sum(w.numel() for w in network.parameters()), rel=0.1)


def test_two_emas_of_a_drift_give_no_rate():
    rates = (0.2, 0.05)
    drift = fit_two_emas(ema_distances(lambda x, rng: x + 1.0, rates, 5, 300, 100, 0), rates, step=1.0)
    assert (drift.rate, drift.low, drift.high, drift.variance) == (None, None, None, None)
    continuous = fit_two_emas([np.full(40, (1 / mu) ** 2) for mu in rates], rates)
    assert continuous.rate is None and continuous.exponent == pytest.approx(2)


def test_the_exponent_tells_orbit_walk_and_drift_apart():
    """How the squared distance grows with the half-life: not at all for a fast orbit, D / (2 mu) for a walk, (v / mu)^2 for a drift."""
    rates = (0.02, 0.005)
    fast = fit_two_emas(ema_distances(orbit_step(2.0), rates, 500, 1000, 400, 0), rates, step=1.0)
    walk = fit_two_emas(ema_distances(lambda x, rng: x + rng.standard_normal(x.shape), rates, 4000, 1500, 200, 0), rates, step=1.0)
    drift = fit_two_emas(ema_distances(lambda x, rng: x + 1.0, rates, 2, 3000, 50, 0), rates, step=1.0)
    assert (
        fast.exponent == pytest.approx(0, abs=0.05)
        and walk.exponent == pytest.approx(1, abs=0.1)
        and drift.exponent == pytest.approx(2, abs=0.05)
    )


# ---- the sketch ----------------------------------------------------------------------------------------------------------


def small(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in (("conv", (4, 3, 3, 3)), ("bias", (4,)), ("linear", (5, 7)), ("one", ()))
    }


def dense(weights: dict[str, torch.Tensor], purpose: str, size: int) -> np.ndarray:
    """The sketch as a matrix `[size, N]`, from its images of unit vectors."""
    sketch, columns = Sketch(weights, purpose, size), []
    for name, tensor in weights.items():
        for i in range(tensor.numel()):
            unit = {n: torch.zeros_like(t) for n, t in weights.items()}
            unit[name].view(-1)[i] = 1.0
            columns.append(sketch(unit).double().numpy())
    return np.stack(columns, axis=1)


def test_the_sketch_is_the_matrix_of_its_definition():
    """Each row is a signed sum of isqrt(N) weights drawn with replacement, times sqrt(N / (isqrt(N) size)), here drawn independently."""
    from gantrain.randomness import uniform

    weights, size = small(), 16
    total = sum(t.numel() for t in weights.values())
    each = math.isqrt(total)
    expected = np.zeros((size, total))
    for row in range(size):
        for j in range(each):
            position = int(uniform(0, "orbit/g/positions", row * each + j, 1).item() * total)
            sign = 1 if uniform(0, "orbit/g/signs", row * each + j, 1).item() >= 0.5 else -1
            expected[row, position] += sign * math.sqrt(total / (each * size))
    np.testing.assert_allclose(dense(weights, "g", size), expected, rtol=1e-6, atol=1e-7)


def test_the_sketch_is_its_matrix_times_the_weights_in_their_order():
    weights = small()
    flat = np.concatenate([t.double().numpy().ravel() for t in weights.values()])
    for purpose in ("g", "d"):
        np.testing.assert_allclose(Sketch(weights, purpose, 32)(weights).numpy(), dense(weights, purpose, 32) @ flat, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(dense(weights, "g", 32), dense(weights, "d", 32))


def test_the_sketch_is_linear():
    """Up to rounding in fp32."""
    x, y = small(0), small(1)
    sketch = Sketch(x, "g", 64)
    both = sketch({n: 2 * x[n] - 0.5 * y[n] for n in x})
    torch.testing.assert_close(both, 2 * sketch(x) - 0.5 * sketch(y), rtol=1e-4, atol=1e-4)
    assert both.dtype == torch.float32 and both.shape == (64,)


@pytest.mark.parametrize("size", [8, 128])
def test_the_sketch_keeps_squared_lengths_in_the_mean(size):
    """Over 600 independent matrices, within five standard errors; the relative spread is about sqrt(2 / size)."""
    weights = {"a": small()["conv"], "b": small()["linear"] * 3}
    squared = sum((t.double() ** 2).sum().item() for t in weights.values())
    found = np.array([Sketch(weights, f"test {i}", size)(weights).double().square().sum().item() for i in range(600)]) / squared
    assert found.mean() == pytest.approx(1, abs=5 * found.std() / math.sqrt(len(found)))
    assert 0.8 * math.sqrt(2 / size) < found.std() < 2 * math.sqrt(2 / size)


def test_the_sketch_is_the_same_whatever_the_format_the_wrapper_and_the_seed():
    weights = small()
    plain = Sketch(weights, "g", 32)(weights)
    last = {n: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in weights.items()}
    assert not last["conv"].is_contiguous() and torch.equal(Sketch(last, "g", 32)(last), plain)
    assert torch.equal(Sketch(weights, "g", 32)(last), plain)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(Sketch(weights, "g", 32)(weights), plain) and torch.equal(torch.get_rng_state(), before)
    np.random.seed(5)
    assert torch.equal(Sketch(weights, "g", 32)(weights), plain)
    assert not torch.equal(Sketch(weights, "d", 32)(weights), plain)


def test_the_sketch_of_a_wrapped_network_is_that_of_the_network():
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module, name: str = "module"):
            super().__init__()
            setattr(self, name, module)

    found = []
    for wrap in (lambda n: n, Wrapper, lambda n: Wrapper(n, "_orig_mod")):
        torch.manual_seed(0)
        bank = AverageBank(wrap(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))), {})
        one = OrbitRecorder(Orbit(every_kimg=0.25, size=16), {"g": bank}, Path("never"), True)
        found.append(one.sketches["g"](named_weights(bank.network)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_sketch_may_leave_a_small_tensor_out_and_one_weight_is_enough():
    """Each row draws sqrt(N) weights, so a tensor of one weight among thousands may not be drawn."""
    many = {"big": torch.ones(3000), "tiny": torch.ones(1), "bigger": torch.ones(5000)}
    out = Sketch(many, "g", 8)
    assert torch.isfinite(out(many)).all()
    assert Sketch({"w": torch.tensor([2.0])}, "g", 8)({"w": torch.tensor([2.0])}).abs().tolist() == pytest.approx([2 / math.sqrt(8)] * 8)


@pytest.mark.parametrize(
    "field, value",
    [("every_kimg", 0), ("every_kimg", -1.0), ("every_kimg", math.inf), ("every_kimg", math.nan), ("size", 7), ("size", 4097)],
)
def test_settings_that_cannot_be_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        Orbit(**{field: value})
    assert Orbit().every_kimg is None and Orbit(every_kimg=0.25, size=8).size == 8 and Orbit(size=4096)


# ---- the recorder --------------------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def moved(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def two_banks() -> dict[str, AverageBank]:
    return {
        "g": AverageBank(network(0), {"ema": Ema(half_life_kimg=0.02, ramp_up=None), "swa": Swa(start_kimg=0.03, every_kimg=0.01)}),
        "d": AverageBank(network(1), {}),
    }


def numbers_of(code: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(code), dtype="<f4")


FACTS = {"batch_size": 16, "lr": {"g": 1e-3, "d": 2e-3}}


def test_a_line_holds_the_sketches_and_distances_of_its_moment_to_the_bit(tmp_path):
    """The record equals sketches and distances computed by hand; averages appear once started, and only `flush` writes."""
    banks, expected = two_banks(), []
    one = OrbitRecorder(Orbit(every_kimg=0.25, size=16), banks, tmp_path, True)
    one.open()
    sketches = {key: Sketch(dict(bank.network.named_parameters()), key, 16) for key, bank in banks.items()}
    for i in range(6):
        for key, bank in banks.items():
            moved(bank.network, 10 * i + (key == "g"))
            bank.update(10 * i)
        one.record(10 * i, FACTS)
        taken = {"sketch": {}, "distances": {}}
        for key, bank in banks.items():
            live = dict(bank.network.named_parameters())
            averages = {name: {n: bank[name].shadows[n] for n in live} for name in bank.started()}
            taken["sketch"][key] = {
                "live": sketches[key](live).numpy().copy(),
                **{name: sketches[key](tensors).numpy().copy() for name, tensors in averages.items()},
            }
            taken["distances"][key] = {
                name: (bank.distance(name).item(), sum(((live[n] - t).double() ** 2).sum().item() for n, t in tensors.items()))
                for name, tensors in averages.items()
            }
        expected.append(taken)
    assert one.path.read_bytes() == b"" and one.latest == {}
    one.flush()
    lines = [json.loads(text) for text in one.path.read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [0, 10, 20, 30, 40, 50]
    for line, taken in zip(lines, expected, strict=True):
        assert {k: line[k] for k in FACTS} == FACTS and "swap" not in line and line.keys() == {"nimg", *FACTS, "distances", "sketch"}
        for key in "gd":
            assert (
                line["sketch"][key].keys() == taken["sketch"][key].keys()
                and line["distances"][key].keys() == taken["distances"][key].keys()
            )
            for name, sketch in taken["sketch"][key].items():
                np.testing.assert_array_equal(numbers_of(line["sketch"][key][name]), sketch)
            for name, (exact, by_hand) in taken["distances"][key].items():
                assert line["distances"][key][name] == exact == pytest.approx(by_hand, rel=1e-6)
    assert list(lines[0]["sketch"]["g"]) == ["live", "ema"] or list(lines[0]["sketch"]["g"]) == ["live"]
    assert list(lines[-1]["sketch"]["g"]) == ["live", "ema", "swa"] and list(lines[-1]["sketch"]["d"]) == ["live"]
    assert one.latest == {f"orbit/G/{name}/distance": math.sqrt(d) for name, d in lines[-1]["distances"]["g"].items()}
    size = one.path.stat().st_size
    one.flush()
    assert one.path.stat().st_size == size


def test_a_recording_does_not_wait_for_the_device():
    """The functions that record contain no .item(), .cpu() or similar call."""
    for function in (OrbitRecorder.record, Sketch.__call__, AverageBank.distance):
        assert not re.search(r"\.(item|cpu|tolist|numpy|synchronize)\(", inspect.getsource(function))


def test_a_recorder_that_is_off_or_not_on_the_main_process_writes_nothing(tmp_path):
    for every, writes in ((None, True), (0.25, False)):
        one = OrbitRecorder(Orbit(every_kimg=every), two_banks(), tmp_path, writes)
        one.open()
        one.record(0, FACTS)
        one.record(0, FACTS, swapped=True)
        one.flush()
        assert one.state()["bytes"] == 0 and list(tmp_path.iterdir()) == [] and one.sketches == {} and one.latest == {}


def test_the_recording_before_a_swap_is_not_repeated(tmp_path):
    banks = two_banks()
    one = OrbitRecorder(Orbit(every_kimg=0.25, size=8), banks, tmp_path, True)
    one.open()
    one.record(16, FACTS)
    one.record(32, FACTS)
    one.record(32, FACTS)  # before the swap, where a recording was due anyway
    moved(banks["g"].network, 1)
    one.record(32, FACTS, swapped=True)
    one.record(48, FACTS)
    one.record(60, FACTS)  # none was due
    one.record(60, FACTS, swapped=True)
    one.flush()
    lines = [json.loads(text) for text in one.path.read_text().splitlines()]
    assert [(line["nimg"], line.get("swap")) for line in lines] == [(16, None), (32, None), (32, True), (48, None), (60, None), (60, True)]
    motion = read_motion(tmp_path, "g")
    assert motion.swaps == [1, 4] and motion.regime.tolist() == [0, 0, 1, 1, 1, 2]
    known, again = one.heads, OrbitRecorder(Orbit(every_kimg=0.25, size=8), banks, tmp_path, True)
    again.open(one.state())
    assert [(head["nimg"], head["swap"]) for head in again.heads] == [(line["nimg"], line.get("swap") is True) for line in lines]
    assert number_regimes(again.heads).tolist() == number_regimes(known).tolist() == motion.regime.tolist()
    again.record(76, FACTS)
    again.record(76, FACTS)
    assert [head["nimg"] for head in again.heads[6:]] == [76]
    again.open()
    assert list(again.heads) == []
    assert np.array_equal(motion.sketches["live"][0], motion.sketches["live"][1]) and not np.array_equal(
        motion.sketches["live"][1], motion.sketches["live"][2]
    )


@pytest.mark.parametrize("damage", ["torn", "whole lines", "lost", "none"])
def test_opening_cuts_what_the_checkpoint_does_not_know(tmp_path, damage):
    """Lines after the checkpoint are cut off, and so is a line before it that a power cut has torn."""
    banks = two_banks()
    one = OrbitRecorder(Orbit(every_kimg=0.25, size=8), banks, tmp_path, True)
    one.open()
    for nimg in (0, 16):
        banks["g"].update(nimg)
        one.record(nimg, FACTS)
    state = json.loads(json.dumps(one.state()))  # writes them
    kept, latest = one.path.read_bytes(), one.latest
    assert state["bytes"] == len(kept) and kept.count(b"\n") == 2
    one.record(32, FACTS)
    one.flush()
    whole = one.path.read_bytes()
    one.path.write_bytes({"torn": whole[:-20], "whole lines": whole, "lost": kept[:-30], "none": b""}[damage])
    other = OrbitRecorder(Orbit(every_kimg=0.25, size=8), banks, tmp_path, True)
    other.open(state)
    assert other.latest == latest != {}  # metrics.jsonl needs them before the next recording
    assert one.path.read_bytes() == {"torn": kept, "whole lines": kept, "lost": kept.splitlines(keepends=True)[0], "none": b""}[damage]
    other.record(32, FACTS)
    other.flush()
    if damage in ("torn", "whole lines"):
        assert one.path.read_bytes() == whole
    other.open()
    assert one.path.read_bytes() == b""


def test_a_run_that_stops_recording_keeps_its_record_and_may_continue_it_later(tmp_path):
    banks, states = two_banks(), {}
    for nimg, every in ((0, 0.25), (16, None), (32, 0.25)):
        one = OrbitRecorder(Orbit(every_kimg=every, size=8), banks, tmp_path, True)
        one.open(states.get("now"))
        one.record(nimg, FACTS)
        one.flush()
        if every is None:
            one.path.open("ab").write(b"what a run that died had written")
            again = OrbitRecorder(Orbit(every_kimg=every, size=8), banks, tmp_path, True)
            again.open(states["now"])
            one = again
        states["now"] = one.state()
    assert [json.loads(text)["nimg"] for text in one.path.read_text().splitlines()] == [0, 32]


def test_weights_that_are_nan_are_recorded_as_json(tmp_path):
    """A diverged run keeps recording in strict JSON, and reading gives nan."""
    banks = two_banks()
    one = OrbitRecorder(Orbit(every_kimg=0.25, size=8), banks, tmp_path, True)
    one.open()
    banks["g"].update(16)
    with torch.no_grad():
        banks["g"].network[0].weight.fill_(math.nan)
    one.record(16, FACTS)
    one.flush()
    line = json.loads(one.path.read_text(), parse_constant=pytest.fail)
    assert line["distances"]["g"]["ema"] == "nan"
    assert np.isnan(read_motion(tmp_path, "g").distances["ema"]).all()


# ---- reading -------------------------------------------------------------------------------------------------------------


def written(
    run: Path,
    path: np.ndarray,
    every: int = 16,
    start: int = 0,
    changes: dict[int, dict] | None = None,
    distances: dict[str, np.ndarray] | None = None,
) -> Path:
    """A record of this motion of G, and the same of D."""
    lines, nimg = [], start
    for i, x in enumerate(path):
        facts = {**FACTS, **{k: v for row, change in sorted((changes or {}).items()) if row <= i for k, v in change.items() if k != "swap"}}
        if (changes or {}).get(i, {}).get("swap") is not True:
            nimg = start if i == 0 else nimg + every
        if "swap" in (changes or {}).get(i, {}):
            facts["swap"] = changes[i]["swap"]
        names, values = [], []
        for key in "gd":
            names.append(("sketch", key, "live"))
            values.append(x)
            for name, d in (distances or {}).items():
                if np.isfinite(d[i]):
                    names += [("sketch", key, name), ("distances", key, name)]
                    values += [x + 1, [d[i]]]
        lines.append(build_line({"nimg": nimg, **facts}, names, np.concatenate(values), path.shape[1]))
    (run / "orbit").mkdir(parents=True)
    (run / "orbit" / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def orbit_path(n: int, size: int = 8, k: float = 1.0, seed: int = 0) -> np.ndarray:
    return ou_paths([k] * size, [1.0] * size, n, n - 1.0, 1, seed)[0].astype(np.float32)


def test_a_record_is_read_as_it_was_written(tmp_path):
    path, far = orbit_path(12), np.r_[np.full(4, np.nan), np.arange(8.0)]
    motion = read_motion(written(tmp_path, path, distances={"ema": far}), "d")
    np.testing.assert_array_equal(motion.sketches["live"], path)
    np.testing.assert_array_equal(motion.sketches["ema"][4:], path[4:] + 1)
    assert np.isnan(motion.sketches["ema"][:4]).all() and motion.sketches.keys() == {"live", "ema"}
    np.testing.assert_array_equal(motion.distances["ema"], far)
    assert motion.nimg.tolist() == [16 * i for i in range(12)] and motion.batch_size.tolist() == [16] * 12
    assert motion.regime.tolist() == [0] * 12 and motion.swaps == []


@pytest.mark.parametrize(
    "change, jumps",
    [
        ({"batch_size": 32}, True),
        ({"lr": {"g": 1.2e-3, "d": 2e-3}}, True),
        ({"lr": {"g": 1e-3, "d": 1e-3}}, True),
        ({"lr": {"g": 1.05e-3, "d": 1.9e-3}}, False),  # a schedule changes slowly
        ({"lr": {"g": 0.0, "d": 2e-3}}, True),
    ],
)
def test_another_batch_or_a_jump_of_a_rate_is_another_regime(tmp_path, change, jumps):
    motion = read_motion(written(tmp_path, orbit_path(10), changes={5: change}), "g")
    assert motion.regime.tolist() == [0] * 5 + [int(jumps)] * 5


SWAPPED = {100: {"swap": True}, 150: {"swap": True}}


@pytest.fixture(scope="module")
def swap_record(tmp_path_factory) -> Path:
    """170 recordings with swaps at 1.584 kimg (rows 99 and 100) and 2.368 kimg (rows 149 and 150); 20 follow the second."""
    return written(
        tmp_path_factory.mktemp("record"), orbit_path(170), changes=SWAPPED, distances={"ema": np.where(np.arange(170) < 60, np.nan, 1.0)}
    )


@pytest.mark.parametrize(
    "start, end, first, last",
    [
        (None, None, 100, 149),  # 20 recordings after the last swap are too few
        (None, 1.6, 0, 99),  # one after the swap
        (None, 1.584, 0, 99),  # up to a swap is up to the moment before it
        (None, 2.368, 100, 149),
        (None, 1.0, 0, 62),
        (0.5, 1.2, 32, 75),
        (1.584, 2.368, 100, 149),  # from a swap is from the moment after it
        (2.368, None, 150, 169),
        (0.0, 0.1, 0, 6),
    ],
)
def test_the_stretch_is_that_between_the_moments_or_the_last_long_one_without_jumps(swap_record, start, end, first, last):
    assert select_rows(read_motion(swap_record, "g"), start, end).tolist() == list(range(first, last + 1))


@pytest.mark.parametrize(
    "start, end, words",
    [
        (1.0, 2.0, "--from-kimg: 1: the stretch contains a swap, growth or jump of a learning rate, at 1.584 kimg"),
        (1.0, None, "at 1.584, 2.368 kimg"),
        (9.0, None, "--from-kimg: 9: nothing was recorded there; recordings span 0 to 2.672 kimg"),
        (None, -1.0, "--to-kimg: -1: nothing was recorded there"),
        (2.0, 1.0, "--from-kimg: 2 is not before --to-kimg 1"),
        (1.0, 1.0, "is not before"),
        (math.nan, None, "--from-kimg: nan: nothing was recorded there"),
    ],
)
def test_an_impossible_stretch_is_refused_in_one_line(swap_record, start, end, words):
    with pytest.raises(UserError) as caught:
        select_rows(read_motion(swap_record, "g"), start, end)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def config():
    return load(
        DIGITS,
        [
            *TINY,
            "run_dir=never",
            "averagers.ema={half_life_kimg: 0.15, ramp_up: null}",
            "averagers.ema_short={half_life_kimg: 0.02, ramp_up: null}",
        ],
    )


def analysis(run: Path, config, player: str, *more):
    return analyse(run, config, player, read_motion(run, player), *more)


def test_an_analysis_is_over_its_stretch_only(swap_record, config):
    """The fit is that of the rows of the stretch alone."""
    motion = read_motion(swap_record, "g")
    found = analysis(swap_record, config, "g", {}, None, None, 1.584)
    again = fit_orbit(motion.nimg[:100] / 1000, motion.sketches["live"][:100])
    assert (found.start, found.end, len(found.rows)) == (0.0, 1.584, 100)
    assert [d.finding for d in found.fit.directions] == [d.finding for d in again.directions] and found.fit.together == again.together
    assert found.fit.holds and 0.8 * found.fit.together.low < 1 / 0.016 < 1.25 * found.fit.together.high
    assert (
        [s.name for s in found.standings] == ["ema"]
        and found.standings[0].distance == pytest.approx(1.0)
        and found.standings[0].ratio is None
    )
    lags, displaced = displacement_of(motion.nimg[50:100] / 1000, motion.sketches["live"][50:100])
    assert found.parts == parts_of(lags, displaced)
    assert found.metric == "" and found.scored_at is None and found.live_score is None
    profile = np.array([0.0, 1.0, 2.0]), np.array([0.2, 0.3, 0.5])
    predicted = analysis(swap_record, config, "g", {"ema": profile}, None, None, 1.584).standings[0].ratio
    assert predicted == pytest.approx(found.fit.ratio(profile[0] / 1000, profile[1]))


@pytest.mark.parametrize(
    "names, end, words",
    [
        (["ema"], 0.9, "ema had not started at 0.896 kimg; choose a later --to-kimg, or from none"),
        (None, 0.5, "at least 40 recordings without a jump, got 32 between 0 and 0.496 kimg"),
    ],
)
def test_an_impossible_analysis_is_refused_in_one_line(swap_record, config, names, end, words):
    with pytest.raises(UserError) as caught:
        analysis(swap_record, config, "g", {}, names, None, end)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_two_emas_are_read_where_they_have_settled_in_the_stretch(tmp_path, config):
    """An EMA is used if three half-lives, 0.45 kimg here, of the stretch have passed before the measured half."""
    n, k = 100, 60.0
    far = {}
    for name, half_life in (("ema", 0.15), ("ema_short", 0.02)):
        b, f = 0.5 ** (0.016 / half_life), math.exp(-k * 0.016)
        far[name] = np.full(n, 2 * b * b * (1 - f) / ((1 + b) * (1 - b * f)))
    run = written(tmp_path / "run", orbit_path(n), distances=far)
    found = analysis(run, config, "g", {})
    assert found.ema_names == ("ema_short", "ema") and found.two_emas.rate == pytest.approx(k) and found.two_emas.low == pytest.approx(k)
    assert (
        analysis(run, config, "d", {}).ema_names == () and analysis(run, config, "d", {}).two_emas is None
    )  # no averager of D is configured
    assert analysis(run, config, "g", {}, None, 0.5).two_emas is not None and analysis(run, config, "g", {}, None, 0.8).two_emas is None
    far["ema"][60:] = np.nan
    assert analysis(written(tmp_path / "other", orbit_path(n), distances=far), config, "g", {}).two_emas is None


@pytest.mark.parametrize("damage", ["no json", "no sketch", "bad base64", "another size", "odd bytes", "no live", "null"])
def test_a_damaged_line_is_left_out(tmp_path, damage):
    run = written(tmp_path, orbit_path(6), distances={"ema": np.ones(6)})
    path = run / "orbit" / "record.jsonl"
    lines = path.read_text().splitlines()
    line = json.loads(lines[3])
    if damage == "no sketch":
        del line["sketch"]
    if damage == "bad base64":
        line["sketch"]["g"]["ema"] = "?" + line["sketch"]["g"]["ema"][1:]
    if damage == "another size":
        line["sketch"]["g"]["ema"] = base64.b64encode(np.zeros(9, "<f4").tobytes()).decode()
    if damage == "odd bytes":
        line["sketch"]["g"]["live"] = base64.b64encode(b"12345").decode()
    if damage == "no live":
        del line["sketch"]["g"]["live"]
    lines[3] = {"no json": lines[3][:50], "null": "null"}.get(damage) or json.dumps(line)
    path.write_text("\n".join(lines) + "\n")
    assert len(read_motion(run, "g").nimg) == 5 and read_record(run).unreadable == 1


@pytest.mark.parametrize("damage", ["no nimg", "no lr", "a list", "no distances", "no d", "not utf-8"])
def test_a_line_that_lacks_more_is_left_out_too(tmp_path, damage):
    run = written(tmp_path, orbit_path(6), distances={"ema": np.ones(6)})
    path = run / "orbit" / "record.jsonl"
    lines = path.read_bytes().splitlines()
    line = json.loads(lines[3])
    line.pop(damage.removeprefix("no "), None)
    if damage == "no d":
        del line["sketch"]["d"]
    if damage == "a list":
        line["sketch"]["g"] = []
    lines[3] = lines[3][:30] + b"\xff\xfe" + lines[3][30:] if damage == "not utf-8" else json.dumps(line).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert len(read_motion(run, "d").nimg) == 5 and read_record(run).unreadable == 1


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    run = written(tmp_path, orbit_path(6))
    path = run / "orbit" / "record.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert len(read_motion(run, "g").nimg) == 5


@pytest.mark.parametrize("content", [None, "", '{"nimg": 0, "batch'], ids=["no file", "empty", "a first line that is being written"])
def test_nothing_recorded_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "orbit").mkdir()
        (tmp_path / "orbit" / "record.jsonl").write_text(content)
    with pytest.raises(UserError, match="has recorded no orbit; train it, or continue training it, with orbit.every_kimg"):
        read_motion(tmp_path, "g")


# ---- whole runs ----------------------------------------------------------------------------------------------------------

# Sixty updates with a recording each; the EMAs are short enough for an estimate of the rate.
RUN = [
    *TINY, "total_kimg=0.96", "optim.d_steps=1", "orbit.every_kimg=0.016", "orbit.size=32", "eval.every_kimg=0.48", "eval.metrics=[fid]",
    "eval.num_samples=32", "tracking.samples_every_kimg=null", "averagers.ema={half_life_kimg: 0.08, ramp_up: null}",
    "averagers.ema_short={half_life_kimg: 0.02, ramp_up: null}", "averagers.swa={start_kimg: 0.8, every_kimg: 0.032}",
]  # fmt: skip


def run_here(*arguments: object) -> subprocess.CompletedProcess:
    return here([sys.executable, "-m", "gantrain", *map(str, arguments)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The reference cache of `conftest`, for runs that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "gantrain-cache"))
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, cache) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("recorded") / "run"
    done = run_here("train", DIGITS, f"run_dir={run}", *RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    return run, done.stdout


def record_of(run: Path) -> list[dict]:
    return [json.loads(text) for text in (run / "orbit" / "record.jsonl").read_text().splitlines()]


def test_a_run_records_and_says_what_its_weights_do(recorded):
    """It records after every update, and at the end prints a line per player and draws the picture."""
    run, said = recorded
    lines = record_of(run)
    assert [line["nimg"] for line in lines] == list(range(0, 961, 16))
    assert all(line["batch_size"] == 16 and line["lr"] == {"g": 4e-4, "d": 4e-4} and "swap" not in line for line in lines)
    assert (
        list(lines[0]["sketch"]["g"]) == ["live"]
        and set(lines[-1]["distances"]["g"]) == {"ema", "ema_short", "swa"}
        and lines[-1]["distances"]["d"] == {}
    )
    assert all(len(numbers_of(line["sketch"][key]["live"])) == 32 for line in lines for key in "gd")
    words = [line for line in said.splitlines() if re.match("orbit: [GD] from", line)]
    assert [w.split()[1] for w in words] == ["G", "D"] and all(
        "to 0.9" in w and re.search("orbit|walk|drift", w.split("kimg:")[1]) for w in words
    )
    pictures = list((run / "orbit").glob("*.png"))
    (wide,) = (path for path in pictures if not is_narrow(path))
    assert wide.with_suffix(".json").is_file() and pictures == [p for p in pictures if p in (wide, narrow_variant(wide))]
    assert len(pictures) == 2 and Image.open(narrow_variant(wide)).width < 800 < Image.open(wide).width  # for phones, and for desktops


def test_a_run_that_records_does_not_say_that_it_does_not(recorded):
    assert "has recorded no orbit" not in recorded[1]


def test_the_last_line_holds_the_checkpoints_weights(recorded):
    """Sketches of the last checkpoint's live weights and averages equal those of the last recording to the bit."""
    from safetensors.torch import load_file

    run, _ = recorded
    newest, last = sorted((run / "checkpoints").iterdir())[-1], record_of(run)[-1]
    for key, names in (("g", ["ema", "ema_short", "swa"]), ("d", [])):
        live = load_file(newest / f"{key}.safetensors")
        saved_config = load(run / "config.yaml")
        built = dict(zip("gd", saved_config.model.build(16, 1, 10)))[key]
        order = [name for name, _ in built.named_parameters()]
        sketch = Sketch({n: live[n] for n in order}, key, 32)
        np.testing.assert_array_equal(sketch({n: live[n] for n in order}).numpy(), numbers_of(last["sketch"][key]["live"]))
        for name in names:
            average = load_file(newest / f"average.{name}.safetensors")
            np.testing.assert_array_equal(sketch({n: average[n] for n in order}).numpy(), numbers_of(last["sketch"][key][name]))
            exact = sum(((live[n] - average[n]).double() ** 2).sum().item() for n in order)
            assert last["distances"][key][name] == pytest.approx(exact, rel=1e-5)


def test_metrics_have_the_distances_of_the_last_recording(recorded):
    """A line of metrics.jsonl is written before the recording that is due at the same time."""
    run, _ = recorded
    lines, seen = record_of(run), 0
    for line in lines_of(run):
        keys = {key: value for key, value in line.items() if key.startswith("orbit/")}
        if "loss/d" in line:
            before = [one for one in lines if one["nimg"] < line["nimg"]][-1]
            assert keys == {f"orbit/G/{name}/distance": math.sqrt(d) for name, d in before["distances"]["g"].items()}
            seen += len(keys)
        else:
            assert keys == {}
    assert seen > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "kept, status, words",
    [
        (55, 0, "note: {run}: 1 line of orbit/record.jsonl cannot be read and is left out"),
        (20, 2, "needs at least 40 recordings without a jump, got 20 between"),
        (0, 2, "record.jsonl: no line can be read; restore the file"),
    ],
)
def test_the_command_says_what_it_could_not_read(recorded, tmp_path, kept, status, words):
    """Also where too little is left to analyse. Garbage in the record of scores does not stop it either."""
    run = shutil.copytree(recorded[0], tmp_path / "run")
    path = run / "orbit" / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)[:kept]
    path.write_bytes(b"".join([*lines[:5], b"\xff\x00garbage\n", *lines[5:]]))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"nimg": 9, "eval/live/digits_fid": \n[[[\n{"nimg": 9, "eval/live/digits_fid": {}}\n')
    done = run_here("orbit", run)
    assert done.returncode == status and words.format(run=run) in done.stdout + done.stderr and "Traceback" not in done.stderr
    if status:
        assert done.stderr.count("\n") == 1 and (not kept or "; 1 line" in done.stderr.replace(f"{run}: ", ""))


@pytest.fixture(scope="module")
def analysed(recorded) -> tuple[Path, str, dict]:
    """The report of the run, its picture and its numbers."""
    done = run_here("orbit", recorded[0])
    assert done.returncode == 0, done.stdout + done.stderr
    target = recorded[0] / "orbit" / "000000000960.png"
    return target, done.stdout, json.loads(target.with_suffix(".json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_the_command_draws_a_picture(analysed):
    target, said, _ = analysed
    picture = np.asarray(Image.open(target).convert("L")).astype(float)
    assert picture.shape[0] > 500 and picture.shape[1] > 1000 and picture.std() > 10
    thirds = np.array_split(picture, 3, axis=1)
    assert all(part[half].std() > 5 for part in thirds for half in (slice(0, len(picture) // 2), slice(len(picture) // 2, None)))
    assert f"picture: {target}, numbers: {target.with_suffix('.json')}" in said


def shown(value: float | str | None) -> str:
    return "fast" if value == "inf" else format_number(value)


def test_the_numbers_beside_the_picture_are_those_of_the_table(analysed):
    _, said, record = analysed
    assert list(record) == ["G", "D"]
    for player, text in zip("GD", said.split("\n\n")):
        of, rows = record[player], text.splitlines()
        assert f": {player} from {of['measured_from_kimg']:g} to {of['to_kimg']:g} kimg: " in rows[0] and (
            of["from_kimg"],
            of["to_kimg"],
        ) == (0.0, 0.96)
        assert rows[1].startswith(f"{of['recordings']} recordings from 0 kimg on, batch {of['batch_size']}.") and of["recordings"] == 61
        table = [row for row in rows[3:] if re.match(r"\d+ |together", row)]
        findings = [*of["directions"], {**of["together"], "share": of["share"]}]
        assert len(table) == len(findings) == 9
        for row, one in zip(table, findings):
            cells = row.split()
            low, high = shown(one["low"]), shown(one["high"])
            interval = ["straighter"] if one["high"] == 0 else ["above", low] if one["high"] == "inf" else [low, "to", high]
            assert cells[1:3] == [f"{one['share']:.1%}", shown(one["k_per_kimg"])] and cells[3 : 3 + len(interval)] == interval
            assert (
                cells[3 + len(interval) :][:3] == [f"{one['trend']:.0%}", f"{one['trend_limit']:.0%}", one["verdict"]]
                or cells[-1] == "chance"
            )
        for name, one in of["averages"].items():
            cells = next(row for row in rows if row.startswith(f"{name} ")).split()
            assert cells[1:4] == [format_number(one["variance_ratio"]), format_number(one["g_star"]), format_number(one["distance"])]
            assert cells[4:] == ([] if one["score"] is None else [f"{one['score']:.4f}"])
        if of["two_emas"]:
            assert f"squared distance grows like half-life^{of['two_emas']['exponent']:.2f}" in text
    assert record["G"]["averages"].keys() == {"ema", "ema_short", "swa"} and record["D"]["averages"] == {}
    assert "no averages of D" in said and record["G"]["two_emas"]["averages"] == ["ema_short", "ema"]


def test_scores_stand_beside_the_averages(recorded, analysed):
    scores = [line for line in lines_of(recorded[0]) if "eval/live/digits_fid" in line][-1]
    of = analysed[2]["G"]
    assert (of["metric"], of["scored_at_kimg"], of["live"]["score"]) == ("digits_fid", 0.96, scores["eval/live/digits_fid"])
    assert {name: one["score"] for name, one in of["averages"].items()} == {
        name: scores[f"eval/{name}/digits_fid"] for name in of["averages"]
    }


def test_a_shorter_stretch_of_one_player_goes_where_it_is_told(recorded, gantrain, tmp_path):
    """Scores are the last ones within the stretch; distances are those of its second half."""
    out = tmp_path / "new" / "picture.png"
    done = gantrain("orbit", recorded[0], "--networks", "g", "--average", "ema_short,ema", "--to-kimg", 0.8, "--out", out)
    record = json.loads(out.with_suffix(".json").read_text())
    assert list(record) == ["G"] and record["G"]["to_kimg"] == 0.8 and record["G"]["recordings"] == 51
    assert list(record["G"]["averages"]) == ["ema_short", "ema"] and record["G"]["scored_at_kimg"] == 0.48
    lines = [line for line in record_of(recorded[0]) if line["nimg"] <= 800][51 // 2 :]
    for name, one in record["G"]["averages"].items():
        assert one["distance"] == pytest.approx(math.sqrt(np.mean([line["distances"]["g"][name] for line in lines])))
    assert out.stat().st_size > 10_000 and "D from" not in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    every_third(
        [
            (["--average", "ema_shor"], "did you mean 'ema_short'?"),
            (["--average", "swa", "--to-kimg", "0.7"], "swa had not started at 0.688 kimg"),
            (["--from-kimg", "0.9"], "at least 40 recordings without a jump, got 4"),
            (["--from-kimg", "5"], "--from-kimg: 5: nothing was recorded there; recordings span 0 to 0.96 kimg"),
            (["--from-kimg", "0.8", "--to-kimg", "0.2"], "--from-kimg: 0.8 is not before --to-kimg 0.2"),
            (["--out", "FOLDER"], "--out: 'FOLDER' must end in .png"),
            (["--out", "FOLDER/is.png"], "--out: 'FOLDER/is.png' is a folder or inside a file"),
            (["--out", "FOLDER/file/picture.png"], "--out: 'FOLDER/file/picture.png' is a folder or inside a file"),
            (["--out", "FOLDER/picture.json"], "must end in .png"),
            (["--networks", "x"], "--networks"),
        ]
    ),
)
def test_impossible_arguments_are_refused_in_one_line(recorded, gantrain, tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "is.png").mkdir()
    arguments = [a.replace("FOLDER", str(tmp_path)) for a in arguments]
    assert words.replace("FOLDER", str(tmp_path)) in error_of(gantrain("orbit", recorded[0], *arguments, check=False))


def test_a_run_without_an_orbit_and_a_folder_without_a_run_are_refused_in_one_line(recorded, gantrain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(recorded[0], run)
    shutil.rmtree(run / "orbit")
    assert "has recorded no orbit; train it, or continue training it, with orbit.every_kimg" in error_of(
        gantrain("orbit", run, check=False)
    )
    assert "nowhere: does not exist; pass the run_dir of a `gantrain train`" in error_of(
        gantrain("orbit", tmp_path / "nowhere", check=False)
    )


# ---- through a swap, a kill and a resume -------------------------------------------------------------------------------

THROUGH = [
    *TINY_SWAP, "optim.d_steps=1", "orbit.every_kimg=0.032", "orbit.size=16", "eval.every_kimg=null", "eval.metrics=[fid]",
    "total_kimg=0.56", "checkpoint.every_kimg=0.08",
    "averagers={swa: {name: swa, start_kimg: 0.16, every_kimg: 0.032, networks: gd}, ema: {name: ema, half_life_kimg: 0.05}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def through(tmp_path_factory, cache) -> Path:
    """An uninterrupted run with a swap at 0.32 kimg."""
    run = tmp_path_factory.mktemp("through") / "run"
    done = run_here("train", SWAP, f"run_dir={run}", *THROUGH)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def test_a_swap_is_recorded_before_and_after(through):
    """The recording due at that time is made before the swap; after it the weights are those of the average, in a new regime."""
    lines = record_of(through)
    assert [(line["nimg"], line.get("swap")) for line in lines] == [
        *((n, None) for n in range(0, 320, 32)),
        (320, None),
        (320, True),
        *((n, None) for n in range(352, 577, 32)),
    ]
    before, after = (line for line in lines if line["nimg"] == 320)
    for key in "gd":
        assert before["sketch"][key]["live"] != after["sketch"][key]["live"] == after["sketch"][key]["swa"] == before["sketch"][key]["swa"]
        assert before["distances"][key]["swa"] > 0 == after["distances"][key]["swa"]
    assert (before["batch_size"], after["batch_size"]) == (16, 32)
    motion = read_motion(through, "d")
    assert motion.swaps == [10] and motion.regime.tolist() == [0] * 11 + [1] * 9
    assert motion.batch_size.tolist() == [16] * 11 + [32] * 9


@pytest.mark.slow
def test_killed_and_resumed_the_record_is_the_same_to_the_byte(through, gantrain, tmp_path):
    """SIGKILL soon after the swap: lines after the checkpoint are recorded again, and a torn one is cut off."""
    run = tmp_path / "run"
    command = ["train", str(SWAP), f"run_dir={run}", *THROUGH]
    process = spawning.Spawned(["-m", "gantrain", *command], os.environ)
    while process.poll() is None and not (run / "checkpoints" / "000000000416").is_dir():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with open(run / "orbit" / "record.jsonl", "ab") as file:
        file.write(b'{"nimg": 4')
    gantrain(*command)
    assert (run / "orbit" / "record.jsonl").read_bytes() == (through / "orbit" / "record.jsonl").read_bytes()


def distances_told(run: Path) -> dict[int, dict]:
    return {line["nimg"]: {k: v for k, v in line.items() if k.startswith("orbit/")} for line in lines_of(run) if "loss/d" in line}


@pytest.mark.slow
def test_an_extended_run_has_the_record_of_the_longer_run(through, gantrain, tmp_path):
    """So are the distances in metrics.jsonl before the next recording. A torn line after the checkpoint is cut off."""
    run = tmp_path / "run"
    gantrain("train", SWAP, f"run_dir={run}", *THROUGH, "total_kimg=0.4")
    with open(run / "orbit" / "record.jsonl", "ab") as file:
        file.write(b'{"nimg": 4')
    gantrain("train", SWAP, f"run_dir={run}", *THROUGH)
    assert (run / "orbit" / "record.jsonl").read_bytes() == (through / "orbit" / "record.jsonl").read_bytes()
    assert {n: d for n, d in distances_told(run).items() if n > 416} == {n: d for n, d in distances_told(through).items() if n > 416}


@pytest.mark.slow
def test_a_swap_due_at_the_end_is_recorded_when_the_run_is_extended(through, gantrain, tmp_path):
    """The run ends where a swap and a recording are due: extended, it swaps, and that recording is the one before the swap."""
    run = tmp_path / "run"
    gantrain("train", SWAP, f"run_dir={run}", *THROUGH, "total_kimg=0.32")
    gantrain("train", SWAP, f"run_dir={run}", *THROUGH, "total_kimg=0.4")
    expected = (through / "orbit" / "record.jsonl").read_bytes().splitlines()
    assert (run / "orbit" / "record.jsonl").read_bytes().splitlines() == expected[: len(record_of(run))]


@pytest.mark.slow
def test_two_processes_record_the_same_once(together, tmp_path):
    """Both hold the same sketches at every recording, but only one writes."""
    run = tmp_path / "run"
    together(
        2,
        TESTS / "workers.py",
        "orbit",
        tmp_path,
        DIGITS,
        f"run_dir={run}",
        *RUN,
        "total_kimg=0.08",
        "eval.every_kimg=null",
        "eval.num_samples=32",
        "batching.micro_batch=8",
    )
    told = sorted(p.read_text() for p in tmp_path.glob("orbit-*"))
    assert told == ["rank 0 of 2: 6 recordings", "rank 1 of 2: 6 recordings"]
    assert [line["nimg"] for line in record_of(run)] == [0, 16, 32, 48, 64, 80]
