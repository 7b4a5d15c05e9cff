"""Is this path an orbit? Fits of the Ornstein-Uhlenbeck process to the recorded motion of real weights.

A path of weights falls into directions. Along each there are three things that it may do, and they look alike in a picture:
it may orbit a centre (an Ornstein-Uhlenbeck process, which an average finds the middle of), walk at random (no centre: an
average only lags), or drift (the centre is elsewhere still). The fit says which, from the path alone:

1. The first half of the path gives the directions, its principal ones; the second half is what is measured along them. Of one
   and the same stretch the principal directions would be those that happened to stray, and even a random walk shows
   cosines there (Antognini and Sohl-Dickstein 2018, "PCA of high dimensional random walks with comparison to neural network
   training").
2. Along a direction the autocorrelation at one recording, r = sum (x_i - m)(x_i+1 - m) / sum (x_i - m)^2, is e^(-k t) but for
   a bias and a spread that are large just where a walk and an orbit are hard to tell apart. So r is compared with the r of
   simulated processes of every rate k, recorded at the same moments: the interval is all k whose r lies in the middle 95%,
   the estimate the k whose median it is (Andrews 1993, "Exactly median-unbiased estimation of first order
   autoregressive/unit root models"). k = 0, the random walk, is among them: an interval that reaches down to it says that no
   pull can be told. Whatever the number and spacing of recordings this is exact for Gaussian noise, a direction of one rate,
   and a motion that begins anywhere on its orbit; where the second half begins is known a little from the first, so that
   intervals of orbits slower than k x (measured half) = 8 cover 88% rather than 95%.
3. The share of the motion that a straight line explains is compared with what processes of the lowest rate of the interval
   show by chance: more than 97.5% of them show is drift. So is a path that is straighter, from one recording to the next,
   than 97.5% of walks.
4. Directions that are each undecided may be decided together: the means of r and of the trend over all directions, each with the
   weight of its variance in the first half, are compared with the same means over as many independent processes of one rate. Whether
   they may have one rate is tested too: a few fast directions among others that walk are no orbit.
5. What comes back from one recording to the next need not stay: noise that rides on a walk comes back as well. So the same is
   asked at a distance of many recordings (a sixteenth of the measured half), where it must give a rate above 0, and none that the
   first excludes. And the spread must not change more from the first third of the measured half to the last than an orbit's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special
from tqdm import tqdm

from gantrain.errors import UserError
from gantrain.theory.ornstein_uhlenbeck import drift_lag, ema_ratio, equal_window, rate_of_two, variance_of_two, variance_ratio

FEWEST = 40  # recordings: twenty to find directions in and twenty to measure along them
MOST = 800  # of more, every so many are enough: rates up to a thousand in the measured half can be told
PATHS, RATES = 4000, 48  # simulated for every rate; rates
FASTEST = 8.0  # k times the distance of recordings; e^-8 is no autocorrelation that could be seen
MUCH = 0.25  # of the motion along all directions: one that carries more must be decided by itself
LATER = 16  # of the measured half, the longer distance at which a motion is asked whether it comes back
BLOCKS = 6  # of the jackknife: long ones, so that they know little of each other
ORBIT, WALK, DRIFT, TURN, MIXED = "orbit", "walk", "drift", "turn", "mixed"
UNLIKE = 0.01  # what one orbit shows less often than this is not one


@dataclass(frozen=True)
class Finding:
    """What a motion is. Rates are per unit of the times that the fit was given.

    Attributes:
        rate: k, the median-unbiased estimate; 0 if more like a walk than any orbit, inf if faster than the recordings can tell.
        low, high: its interval; `low` is 0 where a random walk cannot be excluded, and `high` too where the path is
            straighter than a walk.
        trend: share of the motion that a straight line explains.
        limit: what chance shows at most: 97.5% of processes of the rate `low` have no larger share. Above it is drift.
        chance: how often a process of the rate `low` shows as much.
        verdict: "orbit", "walk", "drift", or "turn" where it swings to and fro as no orbit of a real rate does.
    """

    rate: float
    low: float
    high: float
    trend: float
    limit: float
    chance: float
    verdict: str

    @property
    def safe_rate(self) -> float:
        """A rate to compute with: `rate`, or where the recordings are too far apart for one, the least that it can be."""
        return self.rate if math.isfinite(self.rate) else self.low


@dataclass(frozen=True)
class Direction:
    """A principal direction of the path's first half, and the motion along it in the second.

    Attributes:
        vector: `[m]`, of length 1.
        center: the mean of the motion.
        share: of the whole motion, 0 to 1.
        squares: mean square of the motion about its mean.
        velocity: of its straight line, per unit of time, what a process of the rate found shows by chance taken off; 0 or above.
        finding: of this direction alone.
    """

    vector: np.ndarray
    center: float
    share: float
    squares: float
    velocity: float
    finding: Finding


@dataclass(frozen=True)
class OrbitFit:
    """What a path is.

    Attributes:
        directions: the principal ones, that which moved most in the first half first.
        together: of all directions, as though they had one rate, each with the weight of its motion in the first half: many
            that are undecided may together be decided, and one that moves more than the others decides.
        later: the same as `together` from the autocorrelation at many recordings' distance.
        alike: whether the directions may have one rate: whether their autocorrelations spread no more than chance lets
            those of one rate.
        steady: whether their spread stays the same through the measured half.
        times: of the measured half, `[n]`.
        level: of the intervals.
    """

    directions: list[Direction]
    together: Finding
    later: Finding
    alike: bool
    steady: bool
    times: np.ndarray
    level: float

    @property
    def verdict(self) -> str:
        """Of the whole path: that of all directions together, or "mixed" where these come back but are not one orbit.

        One orbit comes back at every distance alike and is steady; none of its directions drifts (at a level divided by their
        number, which many comparisons want), nor do such that carry half of the motion at the level itself; its directions have
        one rate, or those that orbit by themselves carry more than half of the motion; and a direction that carries more than
        a quarter orbits by itself, since the others say nothing of it.
        """
        if self.together.verdict != ORBIT:
            return self.together.verdict
        drifts = any(d.finding.chance < (1 - self.level) / 2 / len(self.directions) for d in self.directions)
        drifting, known = (
            sum(d.share for d in some) for some in ([d for d in self.directions if d.finding.verdict == DRIFT], self.orbiting)
        )
        agree = self.later.low <= self.together.high and self.together.low <= self.later.high
        if not (agree and self.steady and not drifts and drifting <= 0.5 * self.share and known > 0.5 * self.share):
            return MIXED
        decided = self.later.low > 0 and all(d.finding.verdict == ORBIT for d in self.directions if d.share > MUCH * self.share)
        return ORBIT if decided else WALK

    @property
    def holds(self) -> bool:
        """Whether the Ornstein-Uhlenbeck picture does."""
        return self.verdict == ORBIT

    @property
    def orbiting(self) -> list[Direction]:
        """The directions whose rate is known: all, if they may have one rate, or else those that orbit by themselves."""
        return self.directions if self.alike else [d for d in self.directions if d.finding.verdict == ORBIT]

    @property
    def share(self) -> float:
        """Of the whole motion, what the directions carry."""
        return sum(d.share for d in self.directions)

    @property
    def duration(self) -> float:
        return float(self.times[-1] - self.times[0])

    def rate_of(self, direction: Direction) -> float:
        """k along a direction: its own where it orbits by itself, that of all together where it is undecided."""
        return (direction.finding if direction.finding.verdict == ORBIT else self.together).safe_rate

    def variance_of(self, direction: Direction) -> float:
        """V of the orbit along a direction.

        The mean of the recordings goes with the orbit, so that what they show about it falls short of V by the mean's own
        variance.
        """
        n = len(self.times)
        return direction.squares / (1 - variance_ratio(self.times, np.full(n, 1 / n), self.rate_of(direction)))

    def ratio(self, positions: np.ndarray, weights: np.ndarray) -> float:
        """Predicted V_average / V_live of an average by its weight profile, over the directions whose rate is known.

        As though the orbit had been the same for as long as the average reaches back. Only where the picture holds.
        """
        variances = [self.variance_of(d) for d in self.orbiting]
        return sum(v * variance_ratio(positions, weights, self.rate_of(d)) for v, d in zip(variances, self.orbiting)) / sum(variances)

    def half_life(self) -> float:
        """The EMA half-life that makes variance and lag least: min over mu of sum_j V_j mu / (k_j + mu) + (v_j / mu)^2.

        At longest that whose uniform window, T = 2 / mu, is the measured stretch: no more of the orbit was seen. Only where the
        picture holds.
        """
        orbits = [(self.rate_of(d), self.variance_of(d), d.velocity) for d in self.orbiting]

        def spread(log_mu: float) -> float:
            mu = math.exp(log_mu)
            return sum(v * ema_ratio(k, mu) + drift_lag(velocity, mu) ** 2 for k, v, velocity in orbits)

        least = equal_window(self.duration)  # mu = 2 / T, the equation is its own inverse
        found = optimize.minimize_scalar(spread, bounds=(math.log(least), math.log(1e4 * least)), method="bounded")
        return math.log(2) / math.exp(found.x)


def fit_orbit(times: np.ndarray, path: np.ndarray, directions: int = 8, level: float = 0.95, seed: int = 0) -> OrbitFit:
    """Tell orbit, walk and drift apart along the principal directions of a path.

    Args:
        times: `[n]`, ascending; recordings need not be equally far apart.
        path: `[n, m]`, the weights or a linear sketch of them.
        directions: how many, at most; fewer where the first half of the path has no more.
        level: of the intervals, and of the test of drift.
        seed: of the simulated processes.

    Raises:
        UserError: fewer than 40 recordings, or a path that does not move or is not finite.
    """
    times, path = np.asarray(times, dtype=float), np.asarray(path, dtype=float)
    if len(times) < FEWEST:
        raise UserError(f"an orbit wants at least {FEWEST} recordings of weights that are trained alike, there are {len(times)}")
    if not np.isfinite(path).all():
        raise UserError("the recorded weights are no finite numbers")
    thin = math.ceil(len(times) / MOST)
    times, path = times[::thin], path[::thin]
    half = len(times) // 2
    first, times, second = path[:half], times[half:], path[half:]
    vectors = principal_directions(first, directions)
    weights = ((first - first.mean(axis=0)) @ vectors.T).var(axis=0)
    moved = second - second.mean(axis=0)
    if not len(vectors) or not moved.any():
        raise UserError("the recorded weights do not move")
    along = second @ vectors.T
    simulated = simulated_at(tuple(times), level, seed)
    r, later, trend, slope = (
        autocorrelation_of(along),
        autocorrelation_of(along, simulated.lag),
        trend_of(times, along),
        slope_of(times, along),
    )
    weights = weights / weights.sum()
    together = simulated.finding(r, trend, weights)
    squares, whole = ((along - along.mean(axis=0)) ** 2).mean(axis=0), (moved**2).sum(axis=1).mean()
    found = []
    for j, vector in enumerate(vectors):
        finding = simulated.finding(r[j : j + 1], trend[j : j + 1], np.ones(1))
        by_chance = simulated.trend_of_rate((finding if finding.verdict == ORBIT else together).rate)
        velocity = abs(slope[j]) * math.sqrt(max(0.0, 1 - by_chance / trend[j])) if trend[j] > 0 else 0.0
        found.append(Direction(vector, float(along[:, j].mean()), float(squares[j] / whole), float(squares[j]), float(velocity), finding))
    alike, steady = simulated.alike(r, together.rate), simulated.steady(spread_of(along), weights, together.rate)
    return OrbitFit(found, together, simulated.finding(later, trend, weights, late=True), alike, steady, times, level)


def principal_directions(path: np.ndarray, count: int) -> np.ndarray:
    """The directions `[at most count, m]` along which a path `[n, m]` has most of its variance, that with most first."""
    moved = path - path.mean(axis=0)
    _, sizes, vectors = np.linalg.svd(moved, full_matrices=False)
    return vectors[:count][sizes[:count] > 1e-12 * max(np.abs(path).max(), 1e-300)]


def autocorrelation_of(x: np.ndarray, lag: int = 1) -> np.ndarray:
    """Between one recording and the one `lag` later, about the mean: for `[n, ...]`, `[...]`."""
    moved = x - x.mean(axis=0)
    return (moved[lag:] * moved[:-lag]).sum(axis=0) / (moved**2).sum(axis=0)


def spread_of(x: np.ndarray) -> np.ndarray:
    """The logarithm of the last third's mean square about the mean over the first third's: for `[n, ...]`, `[...]`."""
    moved, third = x - x.mean(axis=0), len(x) // 3
    return np.log((moved[-third:] ** 2).mean(axis=0) / (moved[:third] ** 2).mean(axis=0))


def slope_of(times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of the straight line of least squares."""
    t = times - times.mean()
    return np.tensordot(t, x, axes=(0, 0)) / (t**2).sum()


def trend_of(times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The share of the motion that a straight line explains, R^2."""
    t = times - times.mean()
    return slope_of(times, x) ** 2 * (t**2).sum() / ((x - x.mean(axis=0)) ** 2).sum(axis=0)


def displacement_of(times: np.ndarray, path: np.ndarray, lags: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """(lags in time, mean squared displacement after each): how far from where it was a path `[n, m]` is.

    Of an orbit it is 2 V (1 - e^(-k t)), which levels out; of a random walk it grows like t, of a drift like t^2. Lags go up to half
    of the path; its recordings are taken for equally far apart.
    """
    counts = np.unique(np.geomspace(1, max(1, len(path) // 2), lags).astype(int))
    spacing = (times[-1] - times[0]) / (len(times) - 1)
    return counts * spacing, np.array([((path[lag:] - path[:-lag]) ** 2).sum(axis=1).mean() for lag in counts])


@dataclass(frozen=True)
class Parts:
    """What a squared displacement after a time t is made of: 2 V (1 - e^(-k t)) + D t + v^2 t^2.

    Attributes:
        rate, variance: k and V of an orbit; V is 0 where there is none to be seen.
        diffusion: D, of a random walk.
        velocity: v, of a drift.
    """

    rate: float
    variance: float
    diffusion: float
    velocity: float

    def at(self, lag: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(orbit's, walk's, drift's) squared displacement after a time."""
        lag = np.asarray(lag, dtype=float)
        return -2 * self.variance * np.expm1(-self.rate * lag), self.diffusion * lag, (self.velocity * lag) ** 2

    def shares(self, lag: float) -> tuple[float, float, float]:
        """The same as shares of their sum."""
        parts = self.at(lag)
        return tuple(float(part / sum(parts)) for part in parts)


def parts_of(lags: np.ndarray, displacement: np.ndarray) -> Parts:
    """The orbit, walk and drift that a measured displacement is most nearly the sum of, by relative least squares.

    A description and no test: lags of one path are not independent. An orbit much slower than the longest lag is part of the
    walk, one much faster than the shortest is part of nothing else.
    """
    best: tuple[float, Parts] | None = None
    for k in np.geomspace(1 / lags[-1], 2 / lags[0], RATES):
        columns = np.stack([-2 * np.expm1(-k * lags), lags, lags**2], axis=1) / displacement[:, None]
        (variance, diffusion, squared), error = optimize.nnls(columns, np.ones(len(lags)))
        if best is None or error < best[0]:
            best = error, Parts(float(k), float(variance), float(diffusion), math.sqrt(squared))
    return best[1]


@functools.lru_cache(maxsize=4)
def simulated_at(times: tuple[float, ...], level: float, seed: int) -> Simulated:
    """The simulation for these moments; G and D are recorded at the same ones."""
    return Simulated(np.array(times), level, seed)


class Simulated:
    """What processes of every rate show when they are recorded at the same moments.

    Args:
        times: of the recordings, `[n]`.
        level: of intervals.
        seed: of the noise, the same for all rates, so that quantiles change smoothly from one to the next.
    """

    def __init__(self, times: np.ndarray, level: float, seed: int):
        self.level, self.seed = level, seed
        steps = np.diff(times)
        self.duration = times[-1] - times[0]
        self.rates = np.append(0.0, np.geomspace(0.05 / self.duration, FASTEST / np.median(steps), RATES - 1))
        noise = np.random.default_rng(seed).standard_normal((len(times), PATHS))
        self.lag = max(2, len(times) // LATER)
        shown = []
        for x in (self.paths(k, steps, noise) for k in tqdm(self.rates, desc="orbit", leave=False, disable=None)):
            shown.append((autocorrelation_of(x), autocorrelation_of(x, self.lag), trend_of(times, x), spread_of(x)))
        self.autocorrelations, self.later, self.trends, self.spreads = (np.array(kind) for kind in zip(*shown))

    @staticmethod
    def paths(k: float, steps: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Processes `[n, PATHS]` of the rate k and of variance 1, or where k is 0 random walks."""
        keeps = np.exp(-k * steps)
        gathers = np.sqrt(-np.expm1(-2 * k * steps)) if k else np.sqrt(steps)
        x = np.empty_like(noise)
        x[0] = noise[0]
        for i in range(len(steps)):
            np.multiply(x[i], keeps[i], out=x[i + 1])
            x[i + 1] += gathers[i] * noise[i + 1]
        return x

    def groups_of(self, count: int, shown: np.ndarray) -> np.ndarray:
        """What groups of so many independent processes show, `[..., many, count]`, from what single ones do, `[..., PATHS]`."""
        rng = np.random.default_rng([self.seed, count])
        groups = np.concatenate([rng.permutation(PATHS)[: PATHS // count * count].reshape(-1, count) for _ in range(count)])
        return shown[..., groups]

    def near(self, rate: float) -> int:
        """The simulated rate that comes next to one."""
        return min(int(np.searchsorted(self.rates, rate)), len(self.rates) - 1)

    def alike(self, autocorrelations: np.ndarray, rate: float) -> bool:
        """Whether motions that showed these `[p]` may have this one rate."""
        groups = self.groups_of(len(autocorrelations), self.autocorrelations[self.near(rate)])
        spread, slowest = (groups.std(axis=-1) >= autocorrelations.std()).mean(), (groups.max(axis=-1) >= autocorrelations.max()).mean()
        return bool(min(spread, slowest) >= UNLIKE)

    def steady(self, spreads: np.ndarray, weights: np.ndarray, rate: float) -> bool:
        """Whether motions whose spread changed by these `[p]` may be orbits of this rate."""
        groups = self.groups_of(len(spreads), self.spreads[self.near(rate)]) @ weights
        return float((np.abs(groups) >= abs(spreads @ weights)).mean()) >= UNLIKE

    def finding(self, autocorrelations: np.ndarray, trends: np.ndarray, weights: np.ndarray, late: bool = False) -> Finding:
        """What motions that showed these `[p]` are, together, with weights that add up to 1.

        Autocorrelations are those at one recording, or with `late` those at `lag`.
        """
        count, r, trend = len(trends), float(autocorrelations @ weights), float(trends @ weights)
        tail = (1 - self.level) / 2
        shown = self.groups_of(count, self.later if late else self.autocorrelations) @ weights
        # Each falls with k, but for the noise of the simulation.
        curves = np.minimum.accumulate(np.quantile(shown, [tail, 0.5, 1 - tail], axis=1), axis=1)
        low, rate, high = (self.rate_where(curve, r) for curve in curves)
        turns, low = not late and math.isinf(low), min(low, float(self.rates[-1]))
        # At the simulated rate just below the lowest of the interval, where chance shows the most trend.
        by_chance = self.groups_of(count, self.trends[max(0, np.searchsorted(self.rates, low, side="right") - 1)]) @ weights
        chance, limit = float((by_chance >= trend).mean()), float(np.quantile(by_chance, 1 - tail))
        straighter = high == 0  # than a walk would be: its steps go on in the direction of those before
        verdict = TURN if turns else DRIFT if straighter or chance < tail else WALK if low == 0 else ORBIT
        return Finding(rate, low, high, trend, limit, chance, verdict)

    def trend_of_rate(self, k: float) -> float:
        """The share of the motion that a straight line explains of a process of this rate, in the mean."""
        return float(self.trends[self.near(k)].mean())

    def rate_where(self, curve: np.ndarray, r: float) -> float:
        """The k at which a curve that falls with k is r: 0 where r lies above all of it, inf where below."""
        if r >= curve[0]:
            return 0.0
        if r <= curve[-1]:
            return math.inf
        stretched = np.log1p(self.rates * self.duration)  # neither end is far off there
        return float(np.expm1(np.interp(-r, -curve, stretched)) / self.duration)


# ---- from two EMAs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoEmas:
    """The rate read off the distances between the live weights and two of their EMAs.

    Attributes:
        rate: k, or None where no orbit has these distances, as while the weights still drift.
        low, high: its interval; None where there is none.
        variance: V, all weights together; None without a rate.
        exponent: with which power of the half-life the squared distance grows from one EMA to the other: below 1 for an
            orbit (0 for one that both have long averaged out), 1 for a random walk, 2 for a steady drift.
    """

    rate: float | None
    low: float | None
    high: float | None
    variance: float | None
    exponent: float


def fit_two_emas(distances: Sequence[np.ndarray], rates: Sequence[float], step: float = 0.0, level: float = 0.95) -> TwoEmas:
    """The orbit's rate from two EMAs, with an interval from a jackknife over blocks of time.

    Independent of the fit along directions: no autocorrelation enters, only how far two averages lie from the live weights.

    Args:
        distances: squared, `[n]` each, at the same moments of one stretch.
        rates: mu of the two EMAs, per unit of time.
        step: time between two looks of the EMAs; 0 for all the time.
        level: of the interval.
    """
    one, two = (np.asarray(d, dtype=float) for d in distances)
    whole = rate_of_two(one.mean(), rates[0], two.mean(), rates[1], step)
    exponent = math.log(one.mean() / two.mean()) / math.log(rates[1] / rates[0])
    if whole is None:
        return TwoEmas(None, None, None, None, exponent)
    variance = variance_of_two(one.mean(), rates[0], whole, step)
    without = []
    for block in np.array_split(np.arange(len(one)), BLOCKS):
        keep = np.delete(np.arange(len(one)), block)
        without.append(rate_of_two(one[keep].mean(), rates[0], two[keep].mean(), rates[1], step))
    if None in without:
        return TwoEmas(whole, None, None, variance, exponent)
    logs = np.log(without)
    spread = math.sqrt((BLOCKS - 1) / BLOCKS * ((logs - logs.mean()) ** 2).sum()) * special.stdtrit(BLOCKS - 1, (1 + level) / 2)
    return TwoEmas(whole, whole * math.exp(-spread), whole * math.exp(spread), variance, exponent)
