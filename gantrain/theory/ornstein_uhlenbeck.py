"""SGD near an optimum as an Ornstein-Uhlenbeck process: simulations, stationary states, and what averages of it are.

Near an optimum x* of the loss 1/2 (x - x*)' A (x - x*), minibatches of S images whose gradients have the covariance C / S,
and a learning rate eps, make of SGD

    x <- x - eps A (x - x*) + eps / sqrt(S) B w,        B B' = C, w standard normal,                                   (1)

which for small eps A is the Ornstein-Uhlenbeck (OU) process, t counted in updates,

    dx = -eps A (x - x*) dt + eps / sqrt(S) B dW                                                                       (2)

(Mandt, Hoffman and Blei 2017, "Stochastic gradient descent as approximate Bayesian inference"). Assumptions, all of
them: the loss is quadratic and the noise Gaussian, of the same covariance throughout the orbit; gradients of different
updates are independent given x. The functions below take x* for the origin.

In one dimension, or along an eigenvector of A where C has it too: (2) forgets at the rate k = eps a and has the variance V; (1)
keeps phi = 1 - eps a of itself an update. An exponential moving average (EMA) forgets at the rate mu, that is, it keeps
beta = e^(-mu) an update. Rates and times may have any unit, one and the same in a call: `k` and `mu` per kimg go with
`window` in kimg. Numbers may be NumPy arrays, except where a rate is read off.

Functions that end in `_steps` are exact for (1), at any rate; those without are for (2).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import linalg

Array = np.ndarray


# ---- stationary states -----------------------------------------------------------------------------------------------


def stationary_covariance(curvature: Array, noise: Array, rate: float, batch: float) -> Array:
    """Covariance of the OU process's stationary density: A Sigma + Sigma A' = (eps / S) C.

    Mandt et al. 2017. Where C = c A it is (eps c / 2 S) times the identity. Growing S by g divides it by g.

    Args:
        curvature: A, `[n, n]`; all its eigenvalues have a positive real part. It need not be symmetric: that of a game is not.
        noise: C, `[n, n]`, symmetric, of one image's gradient.
        rate: eps, the learning rate.
        batch: S, images.

    Raises:
        ValueError: there is no stationary state.
    """
    A = np.atleast_2d(np.asarray(curvature, dtype=float))
    if np.linalg.eigvals(A).real.min() <= 0:
        raise ValueError("curvature: has an eigenvalue whose real part is not above 0; nothing pulls there and no state is stationary")
    return linalg.solve_continuous_lyapunov(A, rate / batch * np.atleast_2d(noise))


def stationary_covariance_steps(curvature: Array, noise: Array, rate: float, batch: float) -> Array:
    """Covariance of SGD's own stationary state: Sigma = (1 - eps A) Sigma (1 - eps A)' + (eps^2 / S) C, exactly.

    Multiplied out: A Sigma + Sigma A' - eps A Sigma A' = (eps / S) C. In one dimension it is by 1 / (1 - eps a / 2) above the OU
    process's. Arguments as `stationary_covariance`.

    Raises:
        ValueError: SGD diverges at this learning rate.
    """
    A = np.atleast_2d(np.asarray(curvature, dtype=float))
    step = np.eye(len(A)) - rate * A
    if np.abs(np.linalg.eigvals(step)).max() >= 1:
        raise ValueError(
            f"rate: SGD with learning rate {rate:g} diverges on this curvature; take a smaller one, if every eigenvalue's real part is above 0"
        )
    return linalg.solve_discrete_lyapunov(step, rate**2 / batch * np.atleast_2d(noise))


def stationary_density(points: Array, covariance: Array) -> Array:
    """The stationary state's density, that of a normal about the origin: `[...]` for points `[..., n]`."""
    covariance = np.atleast_2d(covariance)
    half = linalg.solve_triangular(np.linalg.cholesky(covariance), np.reshape(points, (-1, len(covariance))).T, lower=True)
    log_volume = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    return np.exp(-0.5 * (half**2).sum(axis=0) - log_volume).reshape(np.shape(points)[:-1])


def excess_loss(curvature: Array, covariance: Array) -> float:
    """How much higher the loss is on the orbit than at its optimum: 1/2 tr(A Sigma), which for the OU process is eps tr(C) / 4 S."""
    return 0.5 * float(np.trace(np.atleast_2d(curvature) @ np.atleast_2d(covariance)))


def variance(curvature: float, noise: float, rate: float, batch: float) -> float:
    """V of the OU process in one dimension, eps c / (2 S a)."""
    return rate * noise / (2 * batch * curvature)


def variance_steps(curvature: float, noise: float, rate: float, batch: float) -> float:
    """V of SGD in one dimension, eps c / (S a (2 - eps a)); for eps a < 2."""
    return rate * noise / (batch * curvature * (2 - rate * curvature))


def adam_variance(curvature: float, noise: float, rate: float, batch: float) -> float:
    """V in one dimension under Adam with beta_1 = 0 whose second moment is all noise: (lr / 2 a) sqrt(c / S) 2 / (2 - k).

    Adam divides the gradient by the root of its mean square. Where noise makes up that mean square, sqrt(c / S), Adam is SGD
    of the learning rate lr sqrt(S / c), hence `variance_steps` with it: V falls with the square root of the batch, and
    noise that shall fall by g takes a batch grown by g^2. The gradient's own part of the second moment is left out, so that
    for larger k it reads high, by a few percent at k = 0.16.
    """
    k = adam_rate(curvature, noise, rate, batch)
    return rate * np.sqrt(noise / batch) / (2 * curvature) * 2 / (2 - k)


def adam_rate(curvature: float, noise: float, rate: float, batch: float) -> float:
    """k an update of the same: lr a sqrt(S / c)."""
    return rate * curvature * np.sqrt(batch / noise)


# ---- simulations -----------------------------------------------------------------------------------------------------


def simulate_sgd(curvature: Array, noise: Array, rate: float, batch: float, start: Array, updates: int, rng: np.random.Generator) -> Array:
    """Paths of SGD, equation (1).

    Args:
        curvature, noise, rate, batch: as `stationary_covariance`.
        start: where they begin, `[..., n]`: as many paths as there are rows.
        updates: steps.
        rng: of the noise.

    Returns:
        `[updates + 1, ..., n]`, the start first.
    """
    A = np.atleast_2d(np.asarray(curvature, dtype=float))
    return _recursion(np.eye(len(A)) - rate * A, rate**2 / batch * np.atleast_2d(noise), start, updates, rng)


def simulate_ou(
    curvature: Array, noise: Array, rate: float, batch: float, start: Array, duration: float, points: int, rng: np.random.Generator
) -> Array:
    """Paths of the OU process, equation (2), at `points` equally spaced moments; exact at whatever distance.

    Over a time t the process keeps F = e^(-eps A t) of itself and gathers noise of covariance Sigma - F Sigma F'. Where
    nothing pulls (A = 0) that is t (eps^2 / S) C, Brownian motion; between the two Van Loan's matrix exponential (1978,
    "Computing integrals involving the matrix exponential") gives it for any A.

    Args:
        curvature, noise, rate, batch, start, rng: as `simulate_sgd`; `curvature` may be singular.
        duration: in updates.
        points: moments after the start.

    Returns:
        `[points + 1, ..., n]`, the start first.
    """
    A, C = np.atleast_2d(np.asarray(curvature, dtype=float)), np.atleast_2d(noise)
    n, t = len(A), duration / points
    halvings = max(0, math.ceil(math.log2(max(np.linalg.norm(rate * A, 1) * t, 1.0))))  # e^(+eps A t) would outgrow all digits
    block = linalg.expm(np.block([[rate * A, rate**2 / batch * C], [np.zeros((n, n)), -rate * A.T]]) * (t / 2**halvings))
    keeps = block[n:, n:].T
    gathered = keeps @ block[:n, n:]
    for _ in range(halvings):
        gathered, keeps = gathered + keeps @ gathered @ keeps.T, keeps @ keeps
    return _recursion(keeps, (gathered + gathered.T) / 2, start, points, rng)


def _recursion(keeps: Array, covariance: Array, start: Array, steps: int, rng: np.random.Generator) -> Array:
    """x <- keeps x + noise of this covariance."""
    start = np.asarray(start, dtype=float)
    values, vectors = np.linalg.eigh(covariance)  # a Cholesky would refuse noise that is confined to some directions
    root = vectors * np.sqrt(np.clip(values, 0, None))
    path = np.empty((steps + 1, *start.shape))
    path[0] = start
    for i in range(steps):
        path[i + 1] = path[i] @ keeps.T + rng.standard_normal(start.shape) @ root.T
    return path


# ---- averages of an orbit: variances in units of the live V -----------------------------------------------------------


def autocorrelation(k: float, lag: float) -> float:
    """e^(-k t): what the orbit still knows of itself after a time. Mandt et al. 2017, in one dimension."""
    return np.exp(-k * np.abs(lag))


def uniform_ratio(k: float, window: float) -> float:
    """V_average / V of the uniform average over a window: 2 / (k T) [1 - (1 - e^(-k T)) / (k T)].

    The double integral of e^(-k |s - t|) over the window. For long windows it tends to 2 / (k T), so that the average's
    variance itself no longer depends on the learning rate: `uniform_limit`. Averaging along a trajectory is SWA's (Izmailov et
    al. 2018, "Averaging weights leads to wider optima and better generalization").
    """
    x = np.asarray(k * window, dtype=float)
    small = x < 1e-4  # the bracket cancels; its series is x/2 - x^2/6
    safe = np.where(small, 1.0, x)
    return np.where(small, 1 - x / 3, 2 / safe * (1 + np.expm1(-safe) / safe))[()]


def uniform_ratio_steps(phi: float, count: int) -> float:
    """The same for n successive points of (1): (1/n) [(1 + phi) / (1 - phi) - 2 phi (1 - phi^n) / (n (1 - phi)^2)]; phi < 1.

    The bracket cancels: of sixteen digits it loses those of 1 / (n (1 - phi)^2).
    """
    return ((1 + phi) / (1 - phi) - 2 * phi * (1 - phi**count) / (count * (1 - phi) ** 2)) / count


def uniform_limit(curvature: Array, noise: Array, batch: float, updates: float) -> Array:
    """Covariance `[n, n]` that a long uniform average tends to: A^-1 C A^-T / (S T), whatever the learning rate.

    It is what Polyak and Juditsky (1992, "Acceleration of stochastic approximation by averaging") prove to be the best that
    any use of T S gradients can do.
    """
    inverse = np.linalg.inv(np.atleast_2d(np.asarray(curvature, dtype=float)))
    return inverse @ np.atleast_2d(noise) @ inverse.T / (batch * updates)


def ema_ratio(k: complex, mu: float) -> float:
    """V_average / V of an EMA: Re[mu / (k + mu)].

    `k` may be complex, rho + i omega, for an orbit that turns by omega while it forgets at rho, as the players of a game do:
    mu (rho + mu) / ((rho + mu)^2 + omega^2). The faster it turns, the more an average gains.
    """
    return np.real(mu / (k + mu))


def ema_ratio_steps(phi: float, beta: float) -> float:
    """The same for (1): (1 - beta) (1 + beta phi) / ((1 + beta) (1 - beta phi)).

    An EMA that looks at every K-th update has the same form with phi^K and beta^K.
    """
    return (1 - beta) * (1 + beta * phi) / ((1 + beta) * (1 - beta * phi))


def ema_with_live(k: float, mu: float) -> float:
    """Cov(EMA, live) / V = mu / (k + mu), the EMA's own variance: the live weights are the EMA plus what it knows nothing of."""
    return mu / (k + mu)


def ema_with_live_steps(phi: float, beta: float) -> float:
    """The same for (1): (1 - beta) / (1 - beta phi)."""
    return (1 - beta) / (1 - beta * phi)


def ema_distance(k: float, mu: float) -> float:
    """E (live - EMA)^2 / V = k / (k + mu), from the two above."""
    return k / (k + mu)


def ema_distance_steps(phi: float, beta: float) -> float:
    """The same for (1): 2 beta^2 (1 - phi) / ((1 + beta) (1 - beta phi))."""
    return 2 * beta**2 * (1 - phi) / ((1 + beta) * (1 - beta * phi))


def two_emas(k: float, mu_1: float, mu_2: float) -> float:
    """Cov(EMA_1, EMA_2) / V = mu_1 mu_2 / (mu_1 + mu_2) [1 / (k + mu_1) + 1 / (k + mu_2)]."""
    return mu_1 * mu_2 / (mu_1 + mu_2) * (1 / (k + mu_1) + 1 / (k + mu_2))


def two_emas_steps(phi: float, beta_1: float, beta_2: float) -> float:
    """The same for (1): the stationary P of P = b_1 b_2 P + (1 - b_1)(1 - b_2) [1 + b_1 phi / (1 - b_1 phi) + b_2 phi / (1 - b_2 phi)]."""
    known = 1 + beta_1 * phi / (1 - beta_1 * phi) + beta_2 * phi / (1 - beta_2 * phi)
    return (1 - beta_1) * (1 - beta_2) * known / (1 - beta_1 * beta_2)


def equal_window(mu: float) -> float:
    """The uniform window of an EMA's variance where both are long: T = 2 / mu, from 2 / (k T) = mu / k."""
    return 2 / mu


def variance_ratio(positions: Array, weights: Array, k: float) -> float:
    """V_average / V of any average: sum_ij w_i w_j e^(-k |t_i - t_j|).

    Args:
        positions: when the live weights were taken, ascending.
        weights: how much each counts.
        k: the process's rate.
    """
    decays = np.exp(-k * np.diff(positions, prepend=positions[:1]))
    earlier, total = 0.0, 0.0
    for weight, decay, last in zip(weights, decays, np.append(0.0, weights[:-1])):
        earlier = decay * (earlier + last)  # all earlier weights, each by how much of it this moment still remembers
        total += weight * weight + 2.0 * weight * earlier
    return float(total)


def bema_ratio(k: float, mu: float, alpha: float) -> float:
    """V_average / V of EMA + alpha (live - start), long after the start: mu (1 + 2 alpha) / (k + mu) + alpha^2.

    The practical form of BEMA (Block et al. 2025): what it takes off the bias it pays for with the orbit's own noise.
    """
    return mu * (1 + 2 * alpha) / (k + mu) + alpha**2


def bema_limit(k: float, diffusion: float, duration: float) -> float:
    """Variance of the OU process's most likely centre, (x_T - x_0) / (k T) + mean of x: s^2 / (k^2 T), with no bias.

    `diffusion` is s^2 = eps^2 c / S. The plain mean has, from a start x_0, the bias `uniform_mean`.
    """
    return diffusion / (k**2 * duration)


# ---- on the way from a start -------------------------------------------------------------------------------------------


def live_mean(start: float, k: float, time: float) -> float:
    """E x(t) = x_0 e^(-k t)."""
    return start * np.exp(-k * time)


def ema_mean(start: float, k: float, mu: float, time: float) -> float:
    """E EMA(t) = x_0 (mu e^(-k t) - k e^(-mu t)) / (mu - k), for an EMA that starts at x_0 too; it lags behind.

    At mu = k it is x_0 (1 + k t) e^(-k t).
    """
    d = np.asarray(mu - k, dtype=float)
    since = np.where(d == 0, time, -np.expm1(-d * time) / np.where(d == 0, 1.0, d))  # the fraction, without its cancellation near mu = k
    return (start * np.exp(-k * time) * (1 + k * since))[()]


def uniform_mean(start: float, k: float, duration: float) -> float:
    """E of the plain mean over [0, T]: x_0 (1 - e^(-k T)) / (k T); for k T above 0."""
    return -start * np.expm1(-k * duration) / (k * duration)


def drift_lag(velocity: float, mu: float) -> float:
    """How far an EMA trails behind weights that drift steadily, v / mu: its mean age times their velocity."""
    return velocity / mu


# ---- swaps -------------------------------------------------------------------------------------------------------------


def variance_after_swap(k: float, swapped: float, quiet: float, time: float) -> float:
    """V(t) = V_new + (V_swapped - V_new) e^(-2 k t), after an average was put in place of the live weights.

    In the mean over such swaps. With (1) e^(-k) is phi.

    Args:
        k: the rate after the swap.
        swapped: variance of the average, in any unit.
        quiet: the variance that the noise after the swap keeps up; V / g where the minibatch was grown by g (Smith et al.
            2018, "Don't decay the learning rate, increase the batch size", for growing it instead of cooling the rate).
        time: since the swap.
    """
    return quiet + (swapped - quiet) * np.exp(-2 * k * time)


def least_growth(ratio: float) -> float:
    """g* = V / V_average: the least fall of the noise at which weights swapped in do not heat up; 1 + k / mu for an EMA."""
    return 1 / ratio


def reheating_half_time(k: float) -> float:
    """After ln 2 / (2 k) half of what a swap without growth gained is lost."""
    return math.log(2) / (2 * k)


# ---- turning -----------------------------------------------------------------------------------------------------------


def cycle_gain(omega: float, mu: float) -> float:
    """Amplitude of the EMA of a pure cycle, in units of the live one: mu / sqrt(mu^2 + omega^2)."""
    return mu / np.hypot(mu, omega)


def cycle_after_swap(gain: float, joint: bool) -> float:
    """Mean squared radius, in units of r^2, of a two-player cycle after an average is swapped in.

    gain^2 where both players get theirs; (1 + gain^2) / 2 where one does: the other's coordinate keeps the mean square that it
    had.
    """
    return gain**2 if joint else (1 + gain**2) / 2


def lookahead_factor(eigenvalue: complex, steps: int, alpha: float) -> float:
    """|1 - alpha + alpha lambda^k|: what Lookahead multiplies a mode by in a round of k steps of factor lambda (Zhang et al. 2019).

    Where |lambda| > 1 but lambda turns, as in simultaneous gradient play of a bilinear game, it may be below 1.
    """
    return abs(1 - alpha + alpha * eigenvalue**steps)


# ---- reading the rate off ----------------------------------------------------------------------------------------------


def rate_of_two(distance_1: float, mu_1: float, distance_2: float, mu_2: float, step: float = 0.0) -> float | None:
    """The rate k at which an orbit forgets itself, from its mean squared distances to two of its EMAs.

    With D_i = E (live - EMA_i)^2 = V k / (k + mu_i): k = (D_2 mu_2 - D_1 mu_1) / (D_1 - D_2). Where the averages look only
    every `step`, with decays b_i = e^(-mu_i step), exactly: q_i = D_i (1 + b_i) / (2 b_i^2) = V (1 - f) / (1 - b_i f) for
    f = e^(-k step), so f = (q_2 - q_1) / (q_2 b_2 - q_1 b_1). Exact for one mode; for weights with many it is an effective
    value.

    Args:
        distance_1, distance_2: squared distances between the live weights and the two averages.
        mu_1, mu_2: the averages' rates of forgetting, different ones, in the unit that the result is wanted in.
        step: time between looks; 0 for averages that look all the time.

    Returns:
        k, or None where no process of this kind has these distances: while the weights still drift, the longer average
        lags further behind than any orbit explains.
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
    """V from the same and the rate that they gave: D (k + mu) / k."""
    if step > 0:
        return distance / ema_distance_steps(np.exp(-k * step), np.exp(-mu * step))
    return distance / ema_distance(k, mu)
