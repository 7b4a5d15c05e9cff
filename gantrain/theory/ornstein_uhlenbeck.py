"""SGD near an optimum as an Ornstein-Uhlenbeck process: simulations, stationary states, and the variances of averages.

Near an optimum x* of the loss 1/2 (x - x*)' A (x - x*), SGD with minibatches of S images, gradient noise of covariance C / S and
learning rate eps is

    x <- x - eps A (x - x*) + eps / sqrt(S) B w,        B B' = C, w standard normal,                                   (1)

which for small eps A is the Ornstein-Uhlenbeck (OU) process, t counted in updates,

    dx = -eps A (x - x*) dt + eps / sqrt(S) B dW                                                                       (2)

(Mandt, Hoffman and Blei 2017, "Stochastic gradient descent as approximate Bayesian inference"). The assumptions: the loss is
quadratic, the noise is Gaussian with the same covariance throughout the orbit, and gradients of different updates are
independent given x. The functions below place x* at the origin.

In one dimension, or along a common eigenvector of A and C, (2) forgets at the rate k = eps a and has the variance V, and (1)
keeps a share phi = 1 - eps a of itself per update. An exponential moving average (EMA) forgets at the rate mu, that is, it keeps
a share beta = e^(-mu) per update. Rates and times may have any unit, as long as it is the same within a call: `k` and `mu` per
kimg go with `window` in kimg. Numbers may be NumPy arrays, except in functions that estimate a rate.

Functions whose names end in `_steps` are exact for (1) at any learning rate; the others are for (2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import linalg

Array = np.ndarray
Number = Any  # a float (complex where a docstring says so), or an array of them; the result is then an array too


# ---- stationary states -----------------------------------------------------------------------------------------------


def stationary_covariance(curvature: Array, noise: Array, rate: float, batch: float) -> Array:
    """Covariance of the stationary density of the OU process: A Sigma + Sigma A' = (eps / S) C (Mandt et al. 2017).

    If C = c A, it is (eps c / 2 S) times the identity. Increasing S by a factor g divides it by g.

    Args:
        curvature: A, `[n, n]`; all eigenvalues must have a positive real part. It need not be symmetric; that of a game is not.
        noise: C, the covariance of the gradient of one image, `[n, n]`, symmetric.
        rate: eps, the learning rate.
        batch: S, the number of images per update.

    Raises:
        ValueError: there is no stationary state.
    """
    A = np.atleast_2d(np.asarray(curvature, dtype=float))
    if np.linalg.eigvals(A).real.min() <= 0:
        raise ValueError("curvature: has an eigenvalue whose real part is not above 0, so no state is stationary")
    return linalg.solve_continuous_lyapunov(A, rate / batch * np.atleast_2d(noise))


def stationary_covariance_steps(curvature: Array, noise: Array, rate: float, batch: float) -> Array:
    """Covariance of the stationary state of SGD itself: Sigma = (1 - eps A) Sigma (1 - eps A)' + (eps^2 / S) C.

    Expanded: A Sigma + Sigma A' - eps A Sigma A' = (eps / S) C. In one dimension it is 1 / (1 - eps a / 2) times that of the OU
    process. Arguments as in `stationary_covariance`.

    Raises:
        ValueError: SGD diverges at this learning rate.
    """
    A = np.atleast_2d(np.asarray(curvature, dtype=float))
    step = np.eye(len(A)) - rate * A
    if np.abs(np.linalg.eigvals(step)).max() >= 1:
        raise ValueError(
            f"rate: SGD with learning rate {rate:g} diverges on this curvature; use a smaller rate, which helps if all eigenvalues"
            " have a positive real part"
        )
    return linalg.solve_discrete_lyapunov(step, rate**2 / batch * np.atleast_2d(noise))


def stationary_density(points: Array, covariance: Array) -> Array:
    """Density of the stationary state, a normal distribution centred at the origin: `[...]` for points `[..., n]`."""
    covariance = np.atleast_2d(covariance)
    half = linalg.solve_triangular(np.linalg.cholesky(covariance), np.reshape(points, (-1, len(covariance))).T, lower=True)
    log_volume = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    return np.exp(-0.5 * (half**2).sum(axis=0) - log_volume).reshape(np.shape(points)[:-1])


def excess_loss(curvature: Array, covariance: Array) -> float:
    """Mean excess of the loss on the orbit over its minimum: 1/2 tr(A Sigma), which is eps tr(C) / 4 S for the OU process."""
    return 0.5 * float(np.trace(np.atleast_2d(curvature) @ np.atleast_2d(covariance)))


def variance(curvature: Number, noise: Number, rate: Number, batch: Number) -> Number:
    """V of the OU process in one dimension, eps c / (2 S a)."""
    return rate * noise / (2 * batch * curvature)


def variance_steps(curvature: Number, noise: Number, rate: Number, batch: Number) -> Number:
    """V of SGD in one dimension, eps c / (S a (2 - eps a)), for eps a < 2."""
    return rate * noise / (batch * curvature * (2 - rate * curvature))


def adam_variance(curvature: Number, noise: Number, rate: Number, batch: Number) -> Number:
    """V in one dimension under Adam with beta_1 = 0, if the second moment is pure noise: (lr / 2 a) sqrt(c / S) 2 / (2 - k).

    Adam divides the gradient by its root mean square. If that is all noise, sqrt(c / S), Adam is SGD with the learning rate
    lr sqrt(S / c), which gives `variance_steps`. V decreases with the square root of the batch, so reducing the noise by a factor
    g takes a batch g^2 times as large. The formula neglects the contribution of the mean gradient to the second moment, so it is
    too high for larger k, by a few percent at k = 0.16.
    """
    k = adam_rate(curvature, noise, rate, batch)
    return rate * np.sqrt(noise / batch) / (2 * curvature) * 2 / (2 - k)


def adam_rate(curvature: Number, noise: Number, rate: Number, batch: Number) -> Number:
    """k per update of the same process: lr a sqrt(S / c)."""
    return rate * curvature * np.sqrt(batch / noise)


# ---- simulations -----------------------------------------------------------------------------------------------------


def simulate_sgd(
    curvature: Array | float, noise: Array | float, rate: float, batch: float, start: Array, updates: int, rng: np.random.Generator
) -> Array:
    """Simulates paths of SGD, equation (1).

    Args:
        curvature, noise, rate, batch: as in `stationary_covariance`; numbers stand for `[1, 1]`.
        start: start of each path, `[..., n]`.
        updates: number of updates.
        rng: source of the noise.

    Returns:
        `[updates + 1, ..., n]`, beginning with the start.
    """
    A = np.atleast_2d(np.asarray(curvature, dtype=float))
    return _recursion(np.eye(len(A)) - rate * A, rate**2 / batch * np.atleast_2d(noise), start, updates, rng)


def simulate_ou(
    curvature: Array, noise: Array, rate: float, batch: float, start: Array, duration: float, points: int, rng: np.random.Generator
) -> Array:
    """Simulates paths of the OU process, equation (2), at `points` equally spaced moments; exact for any spacing.

    Over a time t the process keeps F = e^(-eps A t) of itself and gathers noise of covariance Sigma - F Sigma F'. Without a pull
    (A = 0) the noise is t (eps^2 / S) C, that of Brownian motion. Van Loan's matrix exponential (1978, "Computing integrals
    involving the matrix exponential") gives the covariance for any A.

    Args:
        curvature, noise, rate, batch, start, rng: as in `simulate_sgd`; `curvature` may be singular.
        duration: duration in updates.
        points: number of moments after the start.

    Returns:
        `[points + 1, ..., n]`, beginning with the start.
    """
    A, C = np.atleast_2d(np.asarray(curvature, dtype=float)), np.atleast_2d(noise)
    n, t = len(A), duration / points
    halvings = max(0, math.ceil(math.log2(max(np.linalg.norm(rate * A, 1) * t, 1.0))))  # otherwise e^(+eps A t) would lose all precision
    block = linalg.expm(np.block([[rate * A, rate**2 / batch * C], [np.zeros((n, n)), -rate * A.T]]) * (t / 2**halvings))
    keeps = block[n:, n:].T
    gathered = keeps @ block[:n, n:]
    for _ in range(halvings):
        gathered, keeps = gathered + keeps @ gathered @ keeps.T, keeps @ keeps
    return _recursion(keeps, (gathered + gathered.T) / 2, start, points, rng)


def _recursion(keeps: Array, covariance: Array, start: Array, steps: int, rng: np.random.Generator) -> Array:
    """Iterates x <- keeps x + noise with the given covariance."""
    start = np.asarray(start, dtype=float)
    values, vectors = np.linalg.eigh(covariance)  # Cholesky fails for a singular covariance
    root = vectors * np.sqrt(np.clip(values, 0, None))
    path = np.empty((steps + 1, *start.shape))
    path[0] = start
    for i in range(steps):
        path[i + 1] = path[i] @ keeps.T + rng.standard_normal(start.shape) @ root.T
    return path


# ---- averages of an orbit: variances in units of the live V -----------------------------------------------------------


def autocorrelation(k: Number, lag: Number) -> Number:
    """Autocorrelation of the orbit after a time: e^(-k t) (Mandt et al. 2017, in one dimension)."""
    return np.exp(-k * np.abs(lag))


def uniform_ratio(k: Number, window: Number) -> Number:
    """V_average / V of the uniform average over a window: 2 / (k T) [1 - (1 - e^(-k T)) / (k T)].

    It is the double integral of e^(-k |s - t|) over the window. For long windows it tends to 2 / (k T), so the variance of the
    average becomes independent of the learning rate, see `uniform_limit`. Averaging along a trajectory is the idea of SWA
    (Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization").
    """
    x = np.asarray(k * window, dtype=float)
    small = x < 1e-4  # the bracket would cancel; its series is x/2 - x^2/6
    safe = np.where(small, 1.0, x)
    return np.where(small, 1 - x / 3, 2 / safe * (1 + np.expm1(-safe) / safe))[()]


def uniform_ratio_steps(phi: Number, count: Number) -> Number:
    """The same for n successive points of (1), phi < 1: (1/n) [(1 + phi) / (1 - phi) - 2 phi (1 - phi^n) / (n (1 - phi)^2)].

    The bracket cancels: of its sixteen digits, it loses as many as 1 / (n (1 - phi)^2) has.
    """
    return ((1 + phi) / (1 - phi) - 2 * phi * (1 - phi**count) / (count * (1 - phi) ** 2)) / count


def uniform_limit(curvature: Array, noise: Array, batch: float, updates: float) -> Array:
    """Covariance `[n, n]` of a long uniform average: A^-1 C A^-T / (S T), independent of the learning rate.

    Polyak and Juditsky (1992, "Acceleration of stochastic approximation by averaging") prove that no method does better with T S
    gradients.
    """
    inverse = np.linalg.inv(np.atleast_2d(np.asarray(curvature, dtype=float)))
    return inverse @ np.atleast_2d(noise) @ inverse.T / (batch * updates)


def ema_ratio(k: Number, mu: Number) -> Number:
    """V_average / V of an EMA: Re[mu / (k + mu)].

    `k` may be complex, rho + i omega, for an orbit that rotates at omega while it forgets at rho, as in a two-player game. Then it
    is mu (rho + mu) / ((rho + mu)^2 + omega^2). The faster the rotation, the more an average gains.
    """
    return np.real(mu / (k + mu))


def ema_ratio_steps(phi: Number, beta: Number) -> Number:
    """The same for (1): (1 - beta) (1 + beta phi) / ((1 + beta) (1 - beta phi)).

    For an EMA that is updated only every K-th step, use phi^K and beta^K.
    """
    return (1 - beta) * (1 + beta * phi) / ((1 + beta) * (1 - beta * phi))


def ema_with_live(k: Number, mu: Number) -> Number:
    """Cov(EMA, live) / V = mu / (k + mu). It equals the variance of the EMA: live - EMA is uncorrelated with the EMA."""
    return mu / (k + mu)


def ema_with_live_steps(phi: Number, beta: Number) -> Number:
    """The same for (1): (1 - beta) / (1 - beta phi)."""
    return (1 - beta) / (1 - beta * phi)


def ema_distance(k: Number, mu: Number) -> Number:
    """E (live - EMA)^2 / V = k / (k + mu), from the two above."""
    return k / (k + mu)


def ema_distance_steps(phi: Number, beta: Number) -> Number:
    """The same for (1): 2 beta^2 (1 - phi) / ((1 + beta) (1 - beta phi))."""
    return 2 * beta**2 * (1 - phi) / ((1 + beta) * (1 - beta * phi))


def two_emas(k: Number, mu_1: Number, mu_2: Number) -> Number:
    """Cov(EMA_1, EMA_2) / V = mu_1 mu_2 / (mu_1 + mu_2) [1 / (k + mu_1) + 1 / (k + mu_2)]."""
    return mu_1 * mu_2 / (mu_1 + mu_2) * (1 / (k + mu_1) + 1 / (k + mu_2))


def two_emas_steps(phi: Number, beta_1: Number, beta_2: Number) -> Number:
    """The same for (1): the stationary P of P = b_1 b_2 P + (1 - b_1)(1 - b_2) [1 + b_1 phi / (1 - b_1 phi) + b_2 phi / (1 - b_2 phi)]."""
    known = 1 + beta_1 * phi / (1 - beta_1 * phi) + beta_2 * phi / (1 - beta_2 * phi)
    return (1 - beta_1) * (1 - beta_2) * known / (1 - beta_1 * beta_2)


def equal_window(mu: Number) -> Number:
    """The uniform window with the same variance as a long EMA: T = 2 / mu, from 2 / (k T) = mu / k."""
    return 2 / mu


def variance_ratio(positions: Array, weights: Array, k: float) -> float:
    """V_average / V of any average: sum_ij w_i w_j e^(-k |t_i - t_j|).

    Args:
        positions: times of the averaged weights, ascending.
        weights: coefficient of each in the average.
        k: rate of the process.
    """
    decays = np.exp(-k * np.diff(positions, prepend=positions[:1]))
    earlier, total = 0.0, 0.0
    for weight, decay, last in zip(weights, decays, np.append(0.0, weights[:-1])):
        earlier = decay * (earlier + last)  # sum of all earlier coefficients, each times its correlation with this moment
        total += weight * weight + 2.0 * weight * earlier
    return float(total)


def bema_ratio(k: Number, mu: Number, alpha: Number) -> Number:
    """V_average / V of EMA + alpha (live - start), long after the start: mu (1 + 2 alpha) / (k + mu) + alpha^2.

    This is the practical form of BEMA (Block et al. 2025), which reduces bias at the cost of the orbit's noise.
    """
    return mu * (1 + 2 * alpha) / (k + mu) + alpha**2


def bema_limit(k: Number, diffusion: Number, duration: Number) -> Number:
    """Variance of the maximum-likelihood centre of the OU process, (x_T - x_0) / (k T) + mean of x: s^2 / (k^2 T), without bias.

    `diffusion` is s^2 = eps^2 c / S. The plain mean of a path that starts at x_0 has the bias `uniform_mean`.
    """
    return diffusion / (k**2 * duration)


# ---- the approach from a start -----------------------------------------------------------------------------------------


def live_mean(start: Number, k: Number, time: Number) -> Number:
    """E x(t) = x_0 e^(-k t)."""
    return start * np.exp(-k * time)


def ema_mean(start: Number, k: Number, mu: Number, time: Number) -> Number:
    """E EMA(t) = x_0 (mu e^(-k t) - k e^(-mu t)) / (mu - k), for an EMA that also starts at x_0; it lags behind the live weights.

    At mu = k it is x_0 (1 + k t) e^(-k t).
    """
    d = np.asarray(mu - k, dtype=float)
    since = np.where(d == 0, time, -np.expm1(-d * time) / np.where(d == 0, 1.0, d))  # the fraction, without cancellation near mu = k
    return (start * np.exp(-k * time) * (1 + k * since))[()]


def uniform_mean(start: Number, k: Number, duration: Number) -> Number:
    """E of the plain mean over [0, T], for k T above 0: x_0 (1 - e^(-k T)) / (k T)."""
    return -start * np.expm1(-k * duration) / (k * duration)


def drift_lag(velocity: Number, mu: Number) -> Number:
    """Lag of an EMA behind weights that drift at a constant velocity, v / mu: the EMA's mean age times the velocity."""
    return velocity / mu


# ---- swaps -------------------------------------------------------------------------------------------------------------


def variance_after_swap(k: Number, swapped: Number, quiet: Number, time: Number) -> Number:
    """Mean variance of the live weights after an average replaced them: V(t) = V_new + (V_swapped - V_new) e^(-2 k t).

    For (1), e^(-k) is phi.

    Args:
        k: rate after the swap.
        swapped: variance of the average, in any unit.
        quiet: V_new, the stationary variance after the swap: V / g if the minibatch was grown by a factor g (Smith et al. 2018,
            "Don't decay the learning rate, increase the batch size").
        time: time since the swap.
    """
    return quiet + (swapped - quiet) * np.exp(-2 * k * time)


def least_growth(ratio: Number) -> Number:
    """g* = V / V_average: the smallest growth of the minibatch at which swapped-in weights do not heat up; 1 + k / mu for an EMA."""
    return 1 / ratio


def reheating_half_time(k: Number) -> Number:
    """The time until half of the gain of a swap without growth is lost: ln 2 / (2 k)."""
    return math.log(2) / (2 * k)


# ---- rotation ----------------------------------------------------------------------------------------------------------


def cycle_gain(omega: Number, mu: Number) -> Number:
    """Amplitude of the EMA of a pure cycle, relative to the live one: mu / sqrt(mu^2 + omega^2)."""
    return mu / np.hypot(mu, omega)


def cycle_after_swap(gain: Number, joint: bool) -> Number:
    """Mean squared radius of a two-player cycle after an average is swapped in, in units of r^2.

    It is gain^2 if both players are swapped and (1 + gain^2) / 2 if one is, because the coordinate of the other keeps its mean
    square.
    """
    return gain**2 if joint else (1 + gain**2) / 2


def lookahead_factor(eigenvalue: complex, steps: int, alpha: float) -> float:
    """|1 - alpha + alpha lambda^k|: the factor of a mode per Lookahead round of k steps with factor lambda (Zhang et al. 2019).

    It can be below 1 although |lambda| > 1 if lambda is complex, as in simultaneous gradient play of a bilinear game.
    """
    return abs(1 - alpha + alpha * eigenvalue**steps)


# ---- estimating the rate -----------------------------------------------------------------------------------------------


def rate_of_two(distance_1: float, mu_1: float, distance_2: float, mu_2: float, step: float = 0.0) -> float | None:
    """Estimates the rate k of an orbit from its mean squared distances to two of its EMAs.

    With D_i = E (live - EMA_i)^2 = V k / (k + mu_i), k = (D_2 mu_2 - D_1 mu_1) / (D_1 - D_2). If the EMAs are updated only every
    `step`, with decays b_i = e^(-mu_i step), then q_i = D_i (1 + b_i) / (2 b_i^2) = V (1 - f) / (1 - b_i f) with f = e^(-k step),
    so f = (q_2 - q_1) / (q_2 b_2 - q_1 b_1). Both are exact for one mode. For weights with many modes the result is an
    effective rate.

    Args:
        distance_1, distance_2: mean squared distances between the live weights and the two EMAs.
        mu_1, mu_2: rates of the two EMAs, which must differ, in the unit wanted for the result.
        step: time between updates of the EMAs; 0 for continuous updates.

    Returns:
        k, or None if no OU process has these distances: while the weights still drift, the longer EMA lags further behind than
        any orbit explains.
    """
    if step > 0:
        b_1, b_2 = math.exp(-mu_1 * step), math.exp(-mu_2 * step)
        q_1, q_2 = (d * (1 + b) / (2 * b * b) for d, b in ((distance_1, b_1), (distance_2, b_2)))
        below = q_2 * b_2 - q_1 * b_1
        f = (q_2 - q_1) / below if below else math.nan
        return -math.log(f) / step if 0 < f < 1 else None
    falls = distance_1 - distance_2
    k = (distance_2 * mu_2 - distance_1 * mu_1) / falls if falls else math.nan
    return k if 0 < k < math.inf else None


def variance_of_two(distance: float, mu: float, k: float, step: float = 0.0) -> float:
    """Returns V from the distance to one EMA and the rate that `rate_of_two` returned: D (k + mu) / k."""
    if step > 0:
        return distance / ema_distance_steps(np.exp(-k * step), np.exp(-mu * step))
    return distance / ema_distance(k, mu)
