"""The Ornstein-Uhlenbeck module: every closed form, solver and simulation against an independent computation.

Oracles are quadrature, ODE integration, the Lyapunov equation of the joint process of an orbit and its averages, plain double
sums and simulated chains. Chains are Gaussian, so for N chains a mean has the standard error sqrt(V / N), a mean square
sqrt(2 / N) V and a mean product sqrt((V_1 V_2 + C^2) / N); tests allow five standard errors. Elsewhere the tolerance is that of
the oracle (quadrature and ODEs 1e-7, linear algebra 1e-9), or the size of what a limit neglects, derived in the test.
"""

from __future__ import annotations

import inspect
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.integrate import dblquad, quad, solve_ivp
from scipy.optimize import brentq

from gantrain.theory import ornstein_uhlenbeck as ou

CHAINS = 40_000
EXACT, INTEGRATED = 1e-9, 1e-7

turn = np.array([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
BOWL = turn @ np.diag([2.0, 0.5]) @ turn.T  # symmetric, a loss's
GAME = np.array([[0.6, 1.3], [-0.9, 0.4]])  # not symmetric: eigenvalues 0.5 +- 1.08i, the orbit turns
NOISE = np.array([[1.5, 0.4], [0.4, 0.7]])
ALONG = np.outer([1.0, -2.0], [1.0, -2.0])  # noise of one direction only
LANDSCAPES = [
    pytest.param(BOWL, NOISE, id="bowl"),
    pytest.param(GAME, NOISE, id="game"),
    pytest.param(GAME, ALONG, id="game, singular noise"),
]
RATE, BATCH = 0.2, 8.0

public_functions = sorted(n for n, f in inspect.getmembers(ou, inspect.isfunction) if f.__module__ == ou.__name__ and not n.startswith("_"))


# ---- oracles ---------------------------------------------------------------------------------------------------------


def integrated(slope, start, duration: float, **more):
    """The ODE y' = slope(y), at the end, or at `t_eval`."""
    start = np.atleast_1d(start)
    result = solve_ivp(lambda t, y: slope(y), (0, duration), start, method="DOP853", rtol=1e-11, atol=1e-13, **more)
    return result.y if "t_eval" in more else result.y[:, -1]


def iterated(step, noise, updates: int, start=None) -> np.ndarray:
    """P <- step P step' + noise, `updates` times."""
    p = np.zeros_like(np.asarray(noise, dtype=float)) if start is None else np.array(start, dtype=float)
    for _ in range(updates):
        p = step @ p @ step.T + noise
    return p


def of_steps(phi: float, *betas: float) -> np.ndarray:
    """Stationary covariance of (live, EMA_1, ...): live <- phi live + noise, then EMA <- beta EMA + (1 - beta) live; V = 1."""
    takes = np.array([1.0, *(1 - b for b in betas)])
    keeps = np.diag([0.0, *betas])
    keeps[:, 0] += takes * phi
    return linalg.solve_discrete_lyapunov(keeps, (1 - phi**2) * np.outer(takes, takes))


def of_flow(k: float, *mus: float) -> np.ndarray:
    """Stationary covariance of (live, EMA_1, ...): dx = -k x dt + sqrt(2 k) dW, dEMA = mu (x - EMA) dt; V = 1."""
    pull = np.diag([k, *mus])
    pull[1:, 0] = -np.array(mus)
    noise = np.zeros_like(pull)
    noise[0, 0] = 2 * k
    return linalg.solve_continuous_lyapunov(pull, noise)


def double_sum(times, weights, k: float) -> float:
    return float(weights @ np.exp(-k * np.abs(np.subtract.outer(times, times))) @ weights)


def uniform_by_quadrature(k: float, window: float) -> float:
    """(1 / T^2) times the double integral of e^(-k |s - t|), summed over lags: 2 / T^2 int_0^T (T - lag) e^(-k lag)."""
    ends = [min(window, v / k) for v in (0, 1, 5, 20, 60)]  # what is beyond is e^(-60)
    pieces = [quad(lambda lag: (window - lag) * math.exp(-k * lag), a, b, epsabs=0, epsrel=1e-12)[0] for a, b in pairwise(ends) if b > a]
    return 2 / window**2 * sum(pieces)


def assert_product(x, y, expected, of_x, of_y) -> None:
    """Mean products of chains `[N, n]` of these covariances, within five standard errors."""
    allowed = 5 * np.sqrt((np.outer(np.diag(of_x), np.diag(of_y)) + expected**2) / len(x))
    assert (np.abs(x.T @ y / len(x) - expected) <= allowed + 1e-12).all()


def assert_covariance(x, expected) -> None:
    assert_product(x, x, expected, expected, expected)


def assert_mean(points, expected, covariance) -> None:
    allowed = 5 * np.sqrt(np.diag(covariance) / len(points))
    assert (np.abs(points.mean(axis=0) - expected) <= allowed + 1e-12).all()


def of_ou(curvature, noise, rate, batch, start, duration):
    """Mean and covariance of the OU process from a point, by integrating the ODEs of both; and what is kept of the start."""
    n = len(curvature)

    def slope(y):
        kept, p = y.reshape(2, n, n)
        return np.concatenate(
            [(-rate * curvature @ kept).ravel(), (-rate * (curvature @ p + p @ curvature.T) + rate**2 / batch * noise).ravel()]
        )

    kept, p = integrated(slope, np.concatenate([np.eye(n).ravel(), np.zeros(n * n)]), duration).reshape(2, n, n)
    return kept @ start, p, kept


# ---- stationary states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("A, C", LANDSCAPES)
def test_stationary_covariance_solves_its_equation(A, C):
    """Against the equation written out with Kronecker products, and against the moments' ODE run until it stands still."""
    sigma = ou.stationary_covariance(A, C, RATE, BATCH)
    eye = np.eye(2)
    solved = np.linalg.solve(np.kron(A, eye) + np.kron(eye, A), (RATE / BATCH * C).ravel()).reshape(2, 2)
    np.testing.assert_allclose(sigma, solved, rtol=EXACT)
    np.testing.assert_allclose(sigma, of_ou(A, C, RATE, BATCH, np.zeros(2), 300)[1], rtol=INTEGRATED)


@pytest.mark.parametrize("A, C", LANDSCAPES)
def test_stationary_covariance_steps_is_what_the_recursion_settles_on(A, C):
    """Against the recursion of the second moment, and against the equation multiplied out, with Kronecker products."""
    sigma = ou.stationary_covariance_steps(A, C, RATE, BATCH)
    eye = np.eye(2)
    np.testing.assert_allclose(sigma, iterated(eye - RATE * A, RATE**2 / BATCH * C, 600), rtol=EXACT)
    solved = np.linalg.solve(np.kron(A, eye) + np.kron(eye, A) - RATE * np.kron(A, A), (RATE / BATCH * C).ravel()).reshape(2, 2)
    np.testing.assert_allclose(sigma, solved, rtol=EXACT)


def test_noise_that_follows_the_curvature_makes_a_round_orbit():
    """C = c A: eps c / 2 S times the identity."""
    np.testing.assert_allclose(
        ou.stationary_covariance(BOWL, 3 * BOWL, RATE, BATCH), RATE * 3 / (2 * BATCH) * np.eye(2), rtol=EXACT, atol=1e-12
    )


@pytest.mark.parametrize("covariance", [ou.stationary_covariance, ou.stationary_covariance_steps])
@pytest.mark.parametrize("growth", [2.0, 3.0, 8.2])
def test_a_batch_grown_by_g_divides_the_covariance_by_exactly_g(covariance, growth):
    np.testing.assert_allclose(covariance(GAME, NOISE, RATE, growth * BATCH) * growth, covariance(GAME, NOISE, RATE, BATCH), rtol=1e-13)


@pytest.mark.parametrize("rate", [0.3, 0.03, 0.003])
def test_the_gap_between_sgd_and_its_process_is_half_the_rate_times_the_curvature(rate):
    """Along an eigenvector of both A and C the process's variance is by eps lambda / 2 below SGD's; so it vanishes with the rate."""
    A, C = BOWL, BOWL @ BOWL + np.eye(2)  # they share their eigenvectors, the columns of `turn`
    steps, flow = (np.diag(turn.T @ f(A, C, rate, BATCH) @ turn) for f in (ou.stationary_covariance_steps, ou.stationary_covariance))
    np.testing.assert_allclose(1 - flow / steps, rate * np.array([2.0, 0.5]) / 2, rtol=1e-8)


@pytest.mark.parametrize("A", [[[-1.0]], [[0.0]], [[1.0, 0.0], [0.0, -0.1]], [[0.0, 1.0], [-1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
def test_without_a_pull_there_is_no_stationary_state(A):
    with pytest.raises(ValueError, match="curvature: has an eigenvalue whose real part is not above 0.*no state is stationary"):
        ou.stationary_covariance(A, np.eye(len(A)), RATE, BATCH)


@pytest.mark.parametrize(
    "A, rate", [([[1.0]], 2.0), ([[1.0]], 2.5), (BOWL, 1.01), (GAME, 0.71), ([[0.0, 1.0], [-1.0, 0.0]], 0.1), ([[-1.0]], 0.1)]
)
def test_a_rate_at_which_sgd_diverges_is_refused(A, rate):
    """The bowl's steepest curvature is 2; the game's |1 - eps lambda| = 1 is at eps = 2 Re lambda / |lambda|^2 = 1 / 1.41."""
    with pytest.raises(ValueError, match=f"rate: SGD with learning rate {rate:g} diverges on this curvature"):
        ou.stationary_covariance_steps(A, np.eye(len(A)), rate, BATCH)


@pytest.mark.parametrize("A, rate", [([[1.0]], 1.99), (BOWL, 0.99), (GAME, 0.70)])
def test_a_rate_just_below_divergence_is_accepted(A, rate):
    step = np.eye(len(A)) - rate * np.asarray(A)
    expected = iterated(step, rate**2 / BATCH * np.eye(len(A)), 4000)
    np.testing.assert_allclose(ou.stationary_covariance_steps(A, np.eye(len(A)), rate, BATCH), expected, rtol=1e-7)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_stationary_density_is_a_normal(n, shape):
    """Against SciPy's, for any shape of points."""
    rng = np.random.default_rng(n)
    root = rng.standard_normal((n, n))
    covariance, points = root @ root.T + 0.1 * np.eye(n), rng.standard_normal((*shape, n))
    density = ou.stationary_density(points, covariance)
    assert np.shape(density) == shape
    expected = stats.multivariate_normal(np.zeros(n), covariance).pdf(points.reshape(-1, n))
    np.testing.assert_allclose(np.ravel(density), np.ravel(expected), rtol=EXACT)


@pytest.mark.parametrize("A", [BOWL, GAME])
def test_excess_loss_is_the_mean_loss_on_the_orbit(A):
    """Against a Monte Carlo mean, within five of its standard errors; and eps tr(C) / 4 S for the OU process, of a game too."""
    sigma = ou.stationary_covariance(A, NOISE, RATE, BATCH)
    x = np.random.default_rng(0).multivariate_normal(np.zeros(2), sigma, size=400_000)
    losses = 0.5 * np.einsum("ni,ij,nj->n", x, A, x)
    assert ou.excess_loss(A, sigma) == pytest.approx(losses.mean(), abs=5 * losses.std() / math.sqrt(len(x)))
    assert ou.excess_loss(A, sigma) == pytest.approx(RATE * 2.2 / (4 * BATCH), rel=EXACT)
    assert ou.excess_loss(3.0, 0.5) == pytest.approx(0.75)


SCALARS = [(1.3, 0.7, 0.2, 8.0), (0.4, 2.0, 0.05, 32.0), (2.5, 0.1, 0.6, 1.0)]  # curvature, noise, rate, batch


@pytest.mark.parametrize("a, c, rate, batch", SCALARS)
def test_variances_in_one_dimension(a, c, rate, batch):
    """The process's against the ODE of its variance, SGD's against the recursion of its own."""
    flow = integrated(lambda v: -2 * rate * a * v + rate**2 * c / batch, 0.0, 30 / (rate * a))[0]
    assert ou.variance(a, c, rate, batch) == pytest.approx(flow, rel=INTEGRATED)
    steps = iterated(np.array([[1 - rate * a]]), np.array([[rate**2 * c / batch]]), 1500)[0, 0]
    assert ou.variance_steps(a, c, rate, batch) == pytest.approx(steps, rel=EXACT)


@pytest.mark.parametrize("a, c, rate, batch", [(1.3, 0.7, 0.2, 8.0), (0.4, 2.0, 0.05, 32.0), (1.0, 9.0, 0.6, 4.0)])
def test_adam_whose_second_moment_is_all_noise(a, c, rate, batch):
    """x <- x - lr (a x + sqrt(c / S) w) / sqrt(c / S): the rate from one step without noise, V from the recursion of its variance."""
    root = math.sqrt(c / batch)
    kept = 1 - rate * a * 1.0 / root
    assert ou.adam_rate(a, c, rate, batch) == pytest.approx(1 - kept, rel=EXACT)
    assert ou.adam_variance(a, c, rate, batch) == pytest.approx(iterated(np.array([[kept]]), np.array([[rate**2]]), 4000)[0, 0], rel=EXACT)


def run_adam(a, c, rate, batch, updates, lag, rng):
    """Chains of Adam itself, beta_1 = 0 and beta_2 = 0.999, from the optimum: the last weights and those `lag` before."""
    x, second, beta_2 = np.zeros(CHAINS), np.full(CHAINS, c / batch), 0.999
    for t in range(updates):
        if t == updates - lag:
            before = x.copy()
        gradient = a * x + math.sqrt(c / batch) * rng.standard_normal(CHAINS)
        second *= beta_2
        second += (1 - beta_2) * gradient**2
        x -= rate * gradient / np.sqrt(second)
    return x, before


def test_adam_itself():
    """Simulated at two batches, one four times the other: the variance, how it falls, and how fast the orbit forgets.

    The orbit adds a^2 V to the mean square of the gradient, k / 2 of it, which takes k / 4 off Adam's rate and V; beta_2 =
    0.999 leaves the second moment fluctuations of a variance of 2 (1 - beta_2) / (1 + beta_2) = 0.001 of its square, which put up
    the mean of its reciprocal by as much. With k = 0.02 and 0.04 that is at most 1.1 %, allowed beside five standard errors, 3.5 %;
    the ratio's are sqrt(2) as large, and 2 / (2 - k) and k / 4 move it by 1.5 %. 300 and 150 updates leave e^(-12) of the start.
    """
    a, c, rate = 1.0, 1.0, 0.01
    rng, seen = np.random.default_rng(0), []
    for batch, lag in ((4.0, 50), (16.0, 25)):
        x, before = run_adam(a, c, rate, batch, 6 * lag, lag, rng)
        left_out = ou.adam_rate(a, c, rate, batch) / 4 + 0.001
        assert (x**2).mean() == pytest.approx(ou.adam_variance(a, c, rate, batch), rel=5 * math.sqrt(2 / CHAINS) + left_out)
        kept = (1 - ou.adam_rate(a, c, rate, batch)) ** lag  # e^-1; of a change of k by k / 4 it changes by (k / 4) k lag = k / 4
        assert (x @ before) / (before @ before) == pytest.approx(kept, abs=5 * math.sqrt((1 - kept**2) / CHAINS) + left_out)
        seen.append((x**2).mean())
    assert seen[0] / seen[1] == pytest.approx(2.0, rel=5 * math.sqrt(4 / CHAINS) + 0.02)


def test_adams_variance_falls_with_the_square_root_of_the_batch():
    """By g it falls with a batch grown by g^2, where k is small: the rest, 2 / (2 - k), is below k = 1e-5 here."""
    for g in (2.0, 5.0):
        assert ou.adam_variance(1.0, 1.0, 1e-6, 4.0) / ou.adam_variance(1.0, 1.0, 1e-6, 4.0 * g**2) == pytest.approx(g, rel=1e-5)


# ---- simulations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("A, C", LANDSCAPES)
def test_simulated_sgd_has_its_exact_moments(A, C):
    """Mean and covariance after 3 and 12 updates from a point, and the covariance of the two moments."""
    start, step = np.array([0.3, -0.2]), np.eye(2) - RATE * A
    path = ou.simulate_sgd(A, C, RATE, BATCH, np.tile(start, (CHAINS, 1)), 12, np.random.default_rng(1))
    assert path.shape == (13, CHAINS, 2) and (path[0] == start).all()
    then, now = (iterated(step, RATE**2 / BATCH * C, t) for t in (3, 12))
    means = [np.linalg.matrix_power(step, t) @ start for t in (3, 12)]
    for x, m, p in zip((path[3], path[12]), means, (then, now)):
        assert_mean(x, m, p)
        assert_covariance(x - m, p)
    lagged = np.linalg.matrix_power(step, 9) @ then
    assert_product(path[12] - means[1], path[3] - means[0], lagged, now, then)


def test_simulated_sgd_stays_in_its_stationary_state():
    """Started there, on the game: the covariance stays, and that of two moments is step^lag Sigma."""
    sigma = ou.stationary_covariance_steps(GAME, NOISE, RATE, BATCH)
    rng = np.random.default_rng(2)
    path = ou.simulate_sgd(GAME, NOISE, RATE, BATCH, rng.multivariate_normal(np.zeros(2), sigma, size=CHAINS), 20, rng)
    step = np.eye(2) - RATE * GAME
    for t in (1, 5, 20):
        assert_covariance(path[t], sigma)
        assert_product(path[20], path[t], np.linalg.matrix_power(step, 20 - t) @ sigma, sigma, sigma)


def test_simulations_take_one_path_and_one_dimension():
    """A scalar curvature, a single start and any number of leading axes."""
    rng = np.random.default_rng(0)
    assert ou.simulate_sgd(1.0, 0.0, 0.25, 1.0, np.array([1.0]), 3, rng)[:, 0] == pytest.approx([1.0, 0.75, 0.75**2, 0.75**3])
    assert ou.simulate_sgd(GAME, NOISE, RATE, BATCH, np.zeros((3, 4, 2)), 5, rng).shape == (6, 3, 4, 2)
    assert ou.simulate_ou(1.0, 0.0, 0.25, 1.0, np.array([1.0]), 6.0, 3, rng)[:, 0] == pytest.approx(np.exp([0.0, -0.5, -1.0, -1.5]))
    assert ou.simulate_ou(GAME, NOISE, RATE, BATCH, np.zeros((3, 4, 2)), 5.0, 2, rng).shape == (3, 3, 4, 2)


SINGULAR = np.outer([1.0, 2.0], [1.0, 0.5])  # pulls in one direction and lets the other go


@pytest.mark.parametrize("points", [1, 2, 16])
@pytest.mark.parametrize(
    "A, C",
    [
        *LANDSCAPES,
        pytest.param(np.zeros((2, 2)), NOISE, id="brownian"),
        pytest.param(SINGULAR, NOISE, id="flat in one direction"),
        pytest.param(np.array([[0.0, 2.0], [-2.0, 0.0]]), NOISE, id="only turns"),
    ],
)
def test_simulated_ou_has_the_moments_of_its_odes_in_steps_of_any_size(A, C, points):
    """After 7 updates' time in one big step, two or sixteen; and the covariance with halfway there."""
    start = np.array([0.3, -0.2])
    path = ou.simulate_ou(A, C, RATE, BATCH, np.tile(start, (CHAINS, 1)), 7.0, points, np.random.default_rng(3))
    assert path.shape == (points + 1, CHAINS, 2) and (path[0] == start).all()
    mean, p, _ = of_ou(A, C, RATE, BATCH, start, 7.0)
    assert_mean(path[-1], mean, p)
    assert_covariance(path[-1] - mean, p)
    if points > 1:
        middle, then, kept = of_ou(A, C, RATE, BATCH, start, 3.5)
        assert_product(path[-1] - mean, path[points // 2] - middle, kept @ then, p, then)


def test_without_a_pull_the_process_is_brownian_motion():
    """t (eps^2 / S) C, at each moment."""
    path = ou.simulate_ou(0.0, 0.7, RATE, BATCH, np.zeros((CHAINS, 1)), 10.0, 5, np.random.default_rng(4))
    for i in range(1, 6):
        assert_covariance(path[i], np.array([[2.0 * i * RATE**2 / BATCH * 0.7]]))


@pytest.mark.parametrize("A", [BOWL, GAME])
def test_without_noise_the_process_flows_exactly(A):
    """Against the ODE, which samples nothing and so leaves nothing to a standard error."""
    path = ou.simulate_ou(A, np.zeros((2, 2)), RATE, BATCH, np.array([0.3, -0.2]), 9.0, 4, np.random.default_rng(0))
    for i in range(5):
        np.testing.assert_allclose(path[i], of_ou(A, NOISE, RATE, BATCH, path[0], 2.25 * i)[0] if i else [0.3, -0.2], rtol=INTEGRATED)


@pytest.mark.parametrize("steepest", [5.0, 8.0, 200.0])
def test_a_step_may_be_long_beside_the_steepest_curvature(steepest):
    """One step of 100 updates, eps A t = 50 to 2000 along the steepest direction and 0.5 along the flattest."""
    A = turn @ np.diag([steepest, 0.05]) @ turn.T
    path = ou.simulate_ou(A, NOISE, 0.1, 4.0, np.zeros((CHAINS, 2)), 100.0, 1, np.random.default_rng(5))
    sigma, kept = ou.stationary_covariance(A, NOISE, 0.1, 4.0), turn @ np.diag([math.exp(-10 * steepest), math.exp(-0.5)]) @ turn.T
    assert_covariance(path[1], sigma - kept @ sigma @ kept.T)


def test_simulations_of_both_kinds_agree_where_the_rate_is_small():
    """SGD and the process after 60 updates: the gap is eps lambda / 2, at most 0.5 % here, beside five standard errors."""
    sgd = ou.simulate_sgd(BOWL, NOISE, 0.005, BATCH, np.zeros((CHAINS, 2)), 60, np.random.default_rng(6))[-1]
    flow = ou.simulate_ou(BOWL, NOISE, 0.005, BATCH, np.zeros((CHAINS, 2)), 60.0, 1, np.random.default_rng(7))[-1]
    ratio = (sgd**2).mean(axis=0) / (flow**2).mean(axis=0)
    assert ratio == pytest.approx([1.0, 1.0], abs=5 * math.sqrt(4 / CHAINS) + 0.005)


# ---- averages of an orbit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.05, 0.7])
def test_autocorrelation(k):
    """Against the ODE of the covariance with the start, c' = -k c, and simulated: both directions in time."""
    lags = np.array([0.0, 0.3, 2.0, 9.0])
    expected = integrated(lambda c: -k * c, 1.0, 9.0, t_eval=lags)[0]
    np.testing.assert_allclose(ou.autocorrelation(k, lags), expected, rtol=INTEGRATED)
    np.testing.assert_allclose(ou.autocorrelation(k, -lags), expected, rtol=INTEGRATED)
    rng = np.random.default_rng(8)
    path = ou.simulate_ou(k, 2 * k, 1.0, 1.0, rng.standard_normal((CHAINS, 1)), 3.0, 1, rng)[..., 0]  # stationary, V = 1
    rho = ou.autocorrelation(k, 3.0)
    assert path[0] @ path[1] / CHAINS == pytest.approx(rho, abs=5 * math.sqrt((1 + rho**2) / CHAINS))


@pytest.mark.parametrize("k, window", [(0.5, 0.2), (0.5, 3.0), (2.0, 4.0), (0.01, 30.0)])
def test_uniform_ratio_is_the_double_integral(k, window):
    """Over the triangle s < t and twice, where e^(-k |s - t|) has no edge."""
    half = dblquad(lambda s, t: math.exp(-k * (t - s)), 0, window, 0, lambda t: t, epsabs=1e-11, epsrel=1e-10)[0]
    assert ou.uniform_ratio(k, window) == pytest.approx(2 * half / window**2, rel=INTEGRATED)
    assert uniform_by_quadrature(k, window) == pytest.approx(2 * half / window**2, rel=INTEGRATED)


def test_uniform_ratio_of_short_and_long_windows():
    """Near 0, on both sides of where the series takes over, which leaves out x^2 / 12 < 1e-9, and far off: against quadrature."""
    for x in (1e-12, 1e-8, 1e-6, 5e-5, 9.99e-5, 1.001e-4, 1e-3, 0.1, 1.0, 30.0, 1e4):
        assert ou.uniform_ratio(x, 1.0) == pytest.approx(uniform_by_quadrature(x, 1.0), rel=1e-9)
        assert ou.uniform_ratio(0.1, 10 * x) == pytest.approx(uniform_by_quadrature(x, 1.0), rel=1e-9)
        assert 1 - ou.uniform_ratio(x, 1.0) == pytest.approx(1 - uniform_by_quadrature(x, 1.0), abs=1e-9)
    assert ou.uniform_ratio(0.0, 5.0) == ou.uniform_ratio(0.3, 0.0) == 1.0
    assert np.ndim(ou.uniform_ratio(0.3, 2.0)) == 0
    mixed = [1.0, uniform_by_quadrature(1.0, 1.0), uniform_by_quadrature(0.5, 1.0)]
    np.testing.assert_allclose(ou.uniform_ratio(np.array([0.0, 1.0, 0.5]), 1.0), mixed, rtol=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.95, -0.5])
@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_uniform_ratio_steps_is_the_double_sum(phi, count):
    lags = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    assert ou.uniform_ratio_steps(phi, count) == pytest.approx((float(phi) ** lags).mean(), rel=EXACT)


def of_mean(A, C, rate, updates: int) -> np.ndarray:
    """Covariance of the mean of SGD's weights, from the optimum on: the recursion of (weights, their sum)."""
    step, noise = np.eye(2) - rate * A, rate**2 / BATCH * C
    joint = np.block([[step, np.zeros((2, 2))], [step, np.eye(2)]])
    return iterated(joint, np.block([[noise, noise], [noise, noise]]), updates)[2:, 2:] / updates**2


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("A, C", LANDSCAPES)
def test_uniform_limit_is_what_long_averages_tend_to_at_any_rate(A, C, rate):
    """Against the exact recursion. What a window of n leaves out is 1 / n of it, once (1 - eps A)^n is gone: twice n halves it, and
    from two windows it is extrapolated away."""
    short, long = (n * of_mean(A, C, rate, n) for n in (1500, 3000))
    limit = ou.uniform_limit(A, C, BATCH, 1.0)
    np.testing.assert_allclose(limit, 2 * long - short, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(long - limit, (short - limit) / 2, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(ou.uniform_limit(A, C, BATCH, 50.0) * 50, limit, rtol=EXACT)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_uniform_limit_against_simulated_averages(rate):
    """4,000 runs of 600 updates on the game from the optimum: five standard errors, beside what that window leaves out, twice what
    one of 1,200 does."""
    path = ou.simulate_sgd(GAME, NOISE, rate, BATCH, np.zeros((4000, 2)), 600, np.random.default_rng(9))
    means, limit = path[1:].mean(axis=0), ou.uniform_limit(GAME, NOISE, BATCH, 600)
    left_out = 2 * np.abs(of_mean(GAME, NOISE, rate, 600) - 2 * of_mean(GAME, NOISE, rate, 1200))
    allowed = 5 * np.sqrt((np.outer(np.diag(limit), np.diag(limit)) + limit**2) / 4000) + left_out
    assert (np.abs(means.T @ means / 4000 - limit) <= allowed).all()


def test_uniform_limit_is_the_ratio_times_the_variance_of_long_windows():
    """In one dimension and from the quadrature: V 2 / (k T), up to 1 / (k T)."""
    a, c, rate, batch, window = 0.8, 1.7, 0.1, 4.0, 1e6
    mean = ou.variance(a, c, rate, batch) * uniform_by_quadrature(rate * a, window)
    assert mean == pytest.approx(ou.uniform_limit(a, c, batch, window)[0, 0], rel=2 / (rate * a * window))


STEPS = [(0.6, 0.8, 0.5), (0.9, 0.97, 0.9), (0.3, 0.9, 0.2), (0.99, 0.5, 0.999), (-0.4, 0.7, 0.95), (0.8, 0.9, 0.9)]
FLOWS = [(0.5, 0.2, 1.0), (0.1, 0.03, 0.3), (2.0, 0.5, 0.01), (0.4, 0.4, 0.7), (0.3, 0.05, 0.05)]


@pytest.mark.parametrize("phi, beta_1, beta_2", STEPS)
def test_emas_of_sgd_against_the_joint_recursion(phi, beta_1, beta_2):
    """Variance, covariance with the live weights and with another EMA, and distance from the live weights."""
    p = of_steps(phi, beta_1, beta_2)
    assert p[0, 0] == pytest.approx(1.0)
    for i, beta in ((1, beta_1), (2, beta_2)):
        assert ou.ema_ratio_steps(phi, beta) == pytest.approx(p[i, i], rel=EXACT)
        assert ou.ema_with_live_steps(phi, beta) == pytest.approx(p[0, i], rel=EXACT)
        assert ou.ema_distance_steps(phi, beta) == pytest.approx(p[0, 0] + p[i, i] - 2 * p[0, i], rel=EXACT)
    assert ou.two_emas_steps(phi, beta_1, beta_2) == pytest.approx(p[1, 2], rel=EXACT)


@pytest.mark.parametrize("k, mu_1, mu_2", FLOWS)
def test_emas_of_the_process_against_the_joint_equation(k, mu_1, mu_2):
    """The same for the process."""
    p = of_flow(k, mu_1, mu_2)
    assert p[0, 0] == pytest.approx(1.0)
    for i, mu in ((1, mu_1), (2, mu_2)):
        assert ou.ema_ratio(k, mu) == pytest.approx(p[i, i], rel=EXACT)
        assert ou.ema_with_live(k, mu) == pytest.approx(p[0, i], rel=EXACT)
        assert ou.ema_distance(k, mu) == pytest.approx(p[0, 0] + p[i, i] - 2 * p[0, i], rel=EXACT)
    assert ou.two_emas(k, mu_1, mu_2) == pytest.approx(p[1, 2], rel=EXACT)


@pytest.mark.parametrize("rho, omega, mu", [(0.2, 0.5, 0.1), (0.05, 1.0, 0.3), (0.5, -0.2, 0.4), (0.3, 0.0, 0.2)])
def test_an_ema_of_a_rotating_orbit(rho, omega, mu):
    """k = rho + i omega, against the joint covariance of two players and their two EMAs; it gains the more the faster they turn."""
    pull = np.zeros((4, 4))
    pull[:2, :2] = [[rho, omega], [-omega, rho]]
    pull[2:, 2:], pull[2:, :2] = mu * np.eye(2), -mu * np.eye(2)
    p = linalg.solve_continuous_lyapunov(pull, np.diag([1.0, 1.0, 0.0, 0.0]))
    ratio = ou.ema_ratio(rho + 1j * omega, mu)
    assert ratio == pytest.approx(p[2, 2] / p[0, 0], rel=EXACT) == pytest.approx(p[3, 3] / p[1, 1], rel=EXACT)
    assert ratio == pytest.approx(mu * (rho + mu) / ((rho + mu) ** 2 + omega**2), rel=EXACT)
    assert ou.ema_ratio(rho + 2j * max(abs(omega), 0.1), mu) < ratio


def test_an_ema_of_every_kth_update_has_the_same_form():
    """The weights that reach back, summed in full."""
    phi, beta, every = 0.9, 0.96, 5
    looks = np.arange(200)
    weights = (1 - beta**every) * beta ** (every * looks)
    assert double_sum(every * looks, weights, -math.log(phi)) == pytest.approx(ou.ema_ratio_steps(phi**every, beta**every), rel=1e-8)


@pytest.mark.parametrize("k, mu, nu", [(0.5, 0.2, 1.0), (0.1, 0.3, 0.02)])
def test_steps_tend_to_the_process_as_they_get_small(k, mu, nu):
    """phi = e^(-k h), beta = e^(-mu h) with h -> 0: the gap is of the order h and halves with it."""
    pairs = [
        (lambda h: ou.ema_ratio_steps(math.exp(-k * h), math.exp(-mu * h)), ou.ema_ratio(k, mu)),
        (lambda h: ou.ema_with_live_steps(math.exp(-k * h), math.exp(-mu * h)), ou.ema_with_live(k, mu)),
        (lambda h: ou.ema_distance_steps(math.exp(-k * h), math.exp(-mu * h)), ou.ema_distance(k, mu)),
        (lambda h: ou.two_emas_steps(math.exp(-k * h), math.exp(-mu * h), math.exp(-nu * h)), ou.two_emas(k, mu, nu)),
        (lambda h: ou.variance_steps(k, 1.0, h, 1.0) / h, ou.variance(k, 1.0, 1.0, 1.0)),
        (lambda h: ou.uniform_ratio_steps(math.exp(-k * h), round(20 / h)), ou.uniform_ratio(k, 20.0)),
    ]
    for steps, flow in pairs:
        gaps = [abs(steps(h) - flow) for h in (0.002, 0.001)]
        assert gaps[0] < 0.002 * max(1.0, flow) * 2 and gaps[1] <= 0.51 * gaps[0] + 1e-9


@pytest.mark.parametrize("mu", [1e-3, 1e-4])
def test_equal_window_is_the_uniform_average_of_an_emas_variance(mu):
    """Solved for, k = 1: with windows of 2 / mu both are long, and 2 / mu is right up to mu / k."""
    variance = of_flow(1.0, mu)[1, 1]
    window = brentq(lambda t: uniform_by_quadrature(1.0, t) - variance, 0.1 / mu, 10 / mu)
    assert ou.equal_window(mu) == pytest.approx(window, rel=mu)


@pytest.mark.parametrize("k", [0.01, 0.5, 3.0])
def test_variance_ratio_is_the_double_sum(k):
    """Positions at random distances, weights at random, and one of both."""
    rng = np.random.default_rng(10)
    positions, weights = np.cumsum(rng.exponential(size=60)) + 5, rng.dirichlet(np.ones(60))
    assert ou.variance_ratio(positions, weights, k) == pytest.approx(double_sum(positions, weights, k), rel=EXACT)
    assert ou.variance_ratio(positions - 5000, weights, k) == pytest.approx(
        double_sum(positions, weights, k), rel=EXACT
    )  # only distances count
    assert ou.variance_ratio([3.0, 4.0], [0.25, 0.75], k) == pytest.approx(0.0625 + 0.5625 + 0.375 * math.exp(-k))
    assert ou.variance_ratio(np.array([7.0]), np.array([0.5]), k) == pytest.approx(0.25)


@pytest.mark.parametrize("k, mu, alpha", [(0.5, 0.2, 0.1), (0.1, 0.03, 0.5), (0.4, 1.0, 0.0)])
def test_bema_ratio_against_the_joint_equation(k, mu, alpha):
    """EMA + alpha live, the start being a constant: a combination of the joint covariance."""
    mix = np.array([alpha, 1.0])
    assert ou.bema_ratio(k, mu, alpha) == pytest.approx(mix @ of_flow(k, mu) @ mix, rel=EXACT)


def orbit_and_integral(k, s2, start, centre, duration, rng):
    """x(T) and the mean of x over [0, T] of chains about a centre: the process of (x, integral of x) has a singular A."""
    pull, noise = np.array([[k, 0.0], [-1.0, 0.0]]), np.diag([s2, 0.0])
    end = ou.simulate_ou(pull, noise, 1.0, 1.0, np.tile([start - centre, 0.0], (CHAINS, 1)), duration, 1, rng)[-1]
    return end[:, 0] + centre, end[:, 1] / duration + centre


@pytest.mark.parametrize("duration", [3.0, 20.0])
def test_bemas_centre_is_unbiased_and_the_plain_mean_is_not(duration):
    """From a start 2 away: simulated, and by the joint ODE of (x, its integral), which samples nothing."""
    k, s2, start, centre = 0.4, 0.09, 2.5, 0.5
    x, mean = orbit_and_integral(k, s2, start, centre, duration, np.random.default_rng(11))
    variance = ou.bema_limit(k, s2, duration)
    estimate = (x - start) / (k * duration) + mean
    assert estimate.mean() == pytest.approx(centre, abs=5 * math.sqrt(variance / CHAINS))
    assert ((estimate - centre) ** 2).mean() == pytest.approx(variance, rel=5 * math.sqrt(2 / CHAINS))
    expected, p, _ = of_ou(np.array([[k, 0.0], [-1.0, 0.0]]), np.diag([s2, 0.0]), 1.0, 1.0, np.array([start - centre, 0.0]), duration)
    mix = np.array([1 / (k * duration), 1 / duration])
    assert mix @ p @ mix == pytest.approx(variance, rel=INTEGRATED)
    bias = ou.uniform_mean(start - centre, k, duration)
    assert mean.mean() - centre == pytest.approx(bias, abs=5 * math.sqrt(p[1, 1] / duration**2 / CHAINS))
    assert expected[1] / duration == pytest.approx(bias, rel=INTEGRATED)


# ---- on the way from a start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, mu", [(0.5, 0.2), (0.2, 0.5), (0.3, 0.3), (0.3, 0.3003), (0.01, 2.0)])
def test_means_during_the_approach_from_a_start(k, mu):
    """Live, EMA and plain mean against the ODE of (x, EMA, integral of x)."""
    times = np.array([0.5, 3.0, 12.0])
    x, ema, area = integrated(lambda y: np.array([-k * y[0], mu * (y[0] - y[1]), y[0]]), [1.7, 1.7, 0.0], 12.0, t_eval=times)
    np.testing.assert_allclose(ou.live_mean(1.7, k, times), x, rtol=INTEGRATED)
    np.testing.assert_allclose(ou.ema_mean(1.7, k, mu, times), ema, rtol=INTEGRATED)
    np.testing.assert_allclose(ou.uniform_mean(1.7, k, times), area / times, rtol=INTEGRATED)
    assert (ou.ema_mean(1.7, k, mu, times) > ou.live_mean(1.7, k, times)).all()  # it lags
    assert ou.live_mean(1.7, k, 0.0) == ou.ema_mean(1.7, k, mu, 0.0) == pytest.approx(1.7)
    assert np.ndim(ou.ema_mean(1.7, k, mu, 1.0)) == 0


@pytest.mark.parametrize("velocity, mu", [(0.3, 0.2), (-2.0, 1.5)])
def test_drift_lag(velocity, mu):
    """Against the ODE of an EMA of weights that drift from 0, 40 of its memories on: what is left of the start is e^(-40)."""
    time = 40 / mu
    x, ema = integrated(lambda y: np.array([velocity, mu * (y[0] - y[1])]), [0.0, 0.0], time)
    assert ou.drift_lag(velocity, mu) == pytest.approx(x - ema, rel=INTEGRATED)


# ---- swaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, swapped, quiet", [(0.3, 0.1, 1.0), (0.05, 0.5, 0.2), (0.7, 2.0, 0.0)])
def test_variance_after_swap(k, swapped, quiet):
    """The process's against its ODE; the recursion's at whole updates, with e^(-k) = phi."""
    times = np.array([0.0, 0.7, 3.0, 10.0])
    flow = integrated(lambda v: 2 * k * (quiet - v), swapped, 10.0, t_eval=times)[0]
    np.testing.assert_allclose(ou.variance_after_swap(k, swapped, quiet, times), flow, rtol=INTEGRATED)
    phi = math.exp(-k)
    for t in (0, 1, 2, 9):
        expected = iterated(np.array([[phi]]), np.array([[(1 - phi**2) * quiet]]), t, [[swapped]])[0, 0]
        assert ou.variance_after_swap(k, swapped, quiet, t) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("phi, beta", [(0.6, 0.8), (0.9, 0.97), (0.95, 0.5)])
def test_least_growth_is_the_border_of_reheating(phi, beta):
    """Swapped in at the EMA's variance: with noise divided by g the recursion falls at once just above g*, and rises just below."""
    swapped = of_steps(phi, beta)[1, 1]
    least = ou.least_growth(ou.ema_ratio_steps(phi, beta))
    for growth, sign in ((least * (1 + 1e-6), -1), (least / (1 + 1e-6), 1)):
        v = [iterated(np.array([[phi]]), np.array([[(1 - phi**2) / growth]]), t, [[swapped]])[0, 0] for t in range(20)]
        assert (sign * np.diff(v) > 0).all()
    k, mu = -math.log(phi), -math.log(beta)
    assert (
        ou.least_growth(ou.ema_ratio(k, mu)) == pytest.approx(1 / of_flow(k, mu)[1, 1], rel=EXACT) == pytest.approx(1 + k / mu, rel=EXACT)
    )


def test_a_simulated_swap_relaxes_as_predicted():
    """Chains and their EMAs, swapped, on with quieter noise: V(t); above g* it stays below where it began, below g* it heats up."""
    phi, beta = 0.9, 0.97
    rng = np.random.default_rng(12)
    live, ema = rng.multivariate_normal(np.zeros(2), of_steps(phi, beta), size=CHAINS).T
    for _ in range(20):  # stationary from the start; the EMA is the real one
        live = phi * live + math.sqrt(1 - phi**2) * rng.standard_normal(CHAINS)
        ema = beta * ema + (1 - beta) * live
    ratio = ou.ema_ratio_steps(phi, beta)
    assert (ema**2).mean() == pytest.approx(ratio, rel=5 * math.sqrt(2 / CHAINS))
    least = ou.least_growth(ratio)
    for growth in (1.0, least / 1.5, least * 1.5):
        x = ema.copy()
        for t in range(1, 31):
            x = phi * x + math.sqrt((1 - phi**2) / growth) * rng.standard_normal(CHAINS)
            if t in (1, 4, 12, 30):
                expected = ou.variance_after_swap(-math.log(phi), ratio, 1 / growth, t)
                assert (x**2).mean() == pytest.approx(expected, rel=5 * math.sqrt(2 / CHAINS))
        assert ((x**2).mean() > (ema**2).mean()) == (growth < least)


@pytest.mark.parametrize("k, swapped", [(0.3, 0.1), (0.02, 0.7)])
def test_reheating_half_time(k, swapped):
    """When the ODE of a swap without growth passes half way from the average's variance to the live one."""

    def half(t, v):
        return v[0] - (1 + swapped) / 2

    path = solve_ivp(lambda t, v: 2 * k * (1 - v), (0, 10 / k), [swapped], events=half, method="DOP853", rtol=1e-11, atol=1e-13)
    assert ou.reheating_half_time(k) == pytest.approx(path.t_events[0][0], rel=INTEGRATED)


# ---- turning ---------------------------------------------------------------------------------------------------------


def cycle(omega: float, mu: float):
    """Two players that circle at radius 1 and their EMAs, `[2, 64]` each, over one turn, once 40 of the EMAs' memories are over."""
    times = 40 / mu + np.arange(64) / 64 * 2 * math.pi / omega
    slopes = np.array([[0, -omega, 0, 0], [omega, 0, 0, 0], [mu, 0, -mu, 0], [0, mu, 0, -mu]])
    path = integrated(lambda y: slopes @ y, [1.0, 0.0, 1.0, 0.0], times[-1], t_eval=times)
    return path[:2], path[2:]


@pytest.mark.parametrize("omega, mu", [(1.0, 0.5), (0.3, 1.0), (2.0, 0.2)])
def test_cycles_and_swaps_on_them(omega, mu):
    """The EMA's amplitude; and the mean squared radius with both players' averages swapped in, and with one's, either one's."""
    live, ema = cycle(omega, mu)
    gain = ou.cycle_gain(omega, mu)
    np.testing.assert_allclose(np.hypot(*ema), gain, rtol=1e-6)
    assert ou.cycle_after_swap(gain, joint=True) == pytest.approx((ema**2).sum(axis=0).mean(), rel=1e-6)
    assert ou.cycle_after_swap(gain, joint=False) == pytest.approx((ema[0] ** 2 + live[1] ** 2).mean(), rel=1e-6)
    assert ou.cycle_after_swap(gain, joint=False) == pytest.approx((live[0] ** 2 + ema[1] ** 2).mean(), rel=1e-6)


@pytest.mark.parametrize("rate, steps, alpha", [(0.1, 20, 0.5), (0.3, 5, 0.5), (0.2, 3, 0.8), (0.1, 60, 0.3), (0.1, 7, 1.0)])
def test_lookahead_factor_on_the_bilinear_game(rate, steps, alpha):
    """min_x max_y x y, played: both step at once, z = x + i y turns and grows by 1 + i rate; the slow weights take alpha of the way."""
    slow = np.array([0.6, -1.1])
    for _ in range(3):
        x, y = slow
        for _ in range(steps):
            x, y = x - rate * y, y + rate * x
        taken = slow + alpha * (np.array([x, y]) - slow)
        assert ou.lookahead_factor(1 + 1j * rate, steps, alpha) == pytest.approx(np.hypot(*taken) / np.hypot(*slow), rel=EXACT)
        slow = taken
    assert ou.lookahead_factor(0.9, 2, 0.5) == pytest.approx(0.5 + 0.5 * 0.81)


def test_lookahead_calms_a_game_that_diverges():
    """A half turn a round: the fast weights grow, the slow ones shrink."""
    assert ou.lookahead_factor(1 + 0.1j, 20, 1.0) > 1 > ou.lookahead_factor(1 + 0.1j, 20, 0.5)


# ---- reading the rate off --------------------------------------------------------------------------------------------


def distances(p) -> list[float]:
    return [p[0, 0] + p[i, i] - 2 * p[0, i] for i in (1, 2)]


@pytest.mark.parametrize("k, mu_1, mu_2", [flow for flow in FLOWS if flow[1] != flow[2]])
@pytest.mark.parametrize("step", [0.0, 0.01, 0.5, 2.0])
def test_the_rate_and_the_variance_follow_from_two_distances(k, mu_1, mu_2, step):
    """From the joint covariance with V = 3.7, of averages that look all the time and of ones that look every `step`; in either order."""
    p = 3.7 * (of_steps(*(math.exp(-v * step) for v in (k, mu_1, mu_2))) if step else of_flow(k, mu_1, mu_2))
    d_1, d_2 = distances(p)
    assert ou.rate_of_two(d_1, mu_1, d_2, mu_2, step) == pytest.approx(k, rel=1e-7)
    assert ou.rate_of_two(d_2, mu_2, d_1, mu_1, step) == pytest.approx(k, rel=1e-7)
    for d, mu in ((d_1, mu_1), (d_2, mu_2)):
        assert ou.variance_of_two(d, mu, k, step) == pytest.approx(3.7, rel=1e-7)
    if step == 0:
        assert ou.rate_of_two(d_1, mu_1, d_2, mu_2) == ou.rate_of_two(d_1, mu_1, d_2, mu_2, 0.0)
        assert ou.variance_of_two(d_1, mu_1, k) == ou.variance_of_two(d_1, mu_1, k, 0.0)


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_distances_that_no_orbit_has_give_no_rate(step):
    """Of a drift, where EMAs trail by velocity / mu; equal ones; none at all; and the wrong way round."""
    mu_1, mu_2 = 0.4, 0.1
    drift = [ou.drift_lag(1.0, mu) ** 2 for mu in (mu_1, mu_2)]
    assert ou.rate_of_two(drift[0], mu_1, drift[1], mu_2, step) is None
    assert ou.rate_of_two(1.0, mu_1, 1.0, mu_2, 0.0) is None
    assert ou.rate_of_two(0.0, mu_1, 0.0, mu_2, step) is None
    d_1, d_2 = distances(of_flow(0.3, mu_1, mu_2) if step == 0 else of_steps(*(math.exp(-v * step) for v in (0.3, mu_1, mu_2))))
    assert ou.rate_of_two(d_1, mu_2, d_2, mu_1, step) is None  # the average of the shorter memory trails further
    assert ou.rate_of_two(2.0, mu_1, 1.0, mu_2, step) is None
    if step:  # of weights that jump to and fro: phi = -0.4 a look
        d_1, d_2 = distances(of_steps(-0.4, math.exp(-mu_1 * step), math.exp(-mu_2 * step)))
        assert ou.rate_of_two(d_1, mu_1, d_2, mu_2, step) is None


# ---- arrays, and that nothing is left out ----------------------------------------------------------------------------

ELEMENTWISE = {  # arguments that an array may stand for, one after the other
    "variance": (1.3, 0.7, 0.2, 8.0),
    "variance_steps": (1.3, 0.7, 0.2, 8.0),
    "autocorrelation": (0.4, 2.0),
    "uniform_ratio": (0.4, 2.0),
    "uniform_ratio_steps": (0.9, 7),
    "ema_ratio": (0.4, 0.3),
    "ema_ratio_steps": (0.9, 0.8),
    "ema_with_live": (0.4, 0.3),
    "ema_with_live_steps": (0.9, 0.8),
    "ema_distance": (0.4, 0.3),
    "ema_distance_steps": (0.9, 0.8),
    "two_emas": (0.4, 0.3, 0.1),
    "two_emas_steps": (0.9, 0.8, 0.7),
    "equal_window": (0.3,),
    "bema_ratio": (0.4, 0.3, 0.1),
    "bema_limit": (0.4, 0.3, 9.0),
    "live_mean": (1.5, 0.4, 2.0),
    "ema_mean": (1.5, 0.4, 0.3, 2.0),
    "uniform_mean": (1.5, 0.4, 2.0),
    "drift_lag": (0.4, 0.3),
    "variance_after_swap": (0.4, 0.3, 0.1, 2.0),
    "least_growth": (0.4,),
    "reheating_half_time": (0.4,),
    "cycle_gain": (0.4, 0.3),
    "lookahead_factor": (1 + 0.1j, 20, 0.5),
}


def factors(value) -> np.ndarray:
    return np.array([1, 2, 3]) if isinstance(value, int) else np.array([1.0, 0.9, 0.75])


def check_arrays(name: str, arguments: tuple) -> None:
    """Every argument in turn as an array, then the first as a column and the last as a row: each element is what it is alone."""
    function = getattr(ou, name)
    for i, value in enumerate(arguments):
        values = value * factors(value)
        alone = [function(*arguments[:i], v, *arguments[i + 1 :]) for v in values]
        result = function(*arguments[:i], values, *arguments[i + 1 :])
        assert np.shape(result) == (3,)
        np.testing.assert_allclose(result, alone, rtol=1e-12)
    if len(arguments) > 1:
        first, *middle, last = arguments
        column, row = first * np.array([[1.0], [0.8]]), last * factors(last)
        np.testing.assert_allclose(
            function(column, *middle, row), [[function(a, *middle, b) for b in row] for a in column[:, 0]], rtol=1e-12
        )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_numbers_may_be_arrays(name):
    check_arrays(name, ELEMENTWISE[name])


@pytest.mark.parametrize("name, arguments", [("adam_variance", (1.3, 0.7, 0.02, 8.0)), ("adam_rate", (1.3, 0.7, 0.02, 8.0))])
def test_numbers_may_be_arrays_for_adam_too(name, arguments):
    check_arrays(name, arguments)


def test_every_public_function_is_called_by_a_test_here():
    """By name, in this file's own source."""
    source = Path(__file__).read_text()
    assert len(public_functions) > 35
    assert [name for name in public_functions if not re.search(rf"\bou\.{name}\b", source)] == []
