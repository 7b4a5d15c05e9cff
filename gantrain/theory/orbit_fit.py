"""Is this path an orbit? Fits of the Ornstein-Uhlenbeck process to the recorded motion of real weights.

Along each direction, a path of weights can do three things that look alike in a picture. It can orbit a centre (an
Ornstein-Uhlenbeck process, whose centre an average finds), walk at random (no centre; an average only lags), or drift (the
centre is still elsewhere). The fit tells them apart from the path alone:

1. The principal directions of the first half of the path are the directions along which the second half is measured. If both came
   from the same half, the principal directions would be those that happened to stray, and even a random walk traces cosines
   along its own principal directions (Antognini and Sohl-Dickstein 2018, "PCA of high dimensional random walks with comparison to
   neural network training").
2. Along a direction, the autocorrelation at a lag of one recording, r = sum (x_i - m)(x_i+1 - m) / sum (x_i - m)^2, estimates
   e^(-k t), but its bias and spread are large exactly where a walk and an orbit are hard to distinguish. So r is compared with the
   r of simulated processes of every rate k, recorded at the same moments. The interval is all k for which r lies in the middle
   95%, and the estimate is the k whose median is r (Andrews 1993, "Exactly median-unbiased estimation of first order
   autoregressive/unit root models"). The random walk, k = 0, is included: if the interval contains it, no pull is detected. For
   any number and spacing of recordings this is exact for Gaussian noise, a single rate, and a motion that starts anywhere on its
   orbit. The first half contains some information about where the second half starts, so intervals of orbits slower than
   k x (measured half) = 8 cover 88% instead of 95%.
3. The share of the motion that a straight line explains is compared with the share in processes of the lowest rate of the
   interval. A share above their 97.5% quantile is a drift. So is a path that is straighter, from one recording to the next, than
   97.5% of walks.
4. Directions that are each undecided can be decided together. The means of r and of the trend over all directions, weighted by
   their variances in the first half, are compared with the same means over equally many independent processes of one rate. It is
   also tested whether the directions can have one rate: a few fast directions among others that walk are not an orbit.
5. A motion that reverts from one recording to the next need not stay near a centre: noise on top of a walk reverts too. So the
   same comparison is made at a longer lag (a sixteenth of the measured half). It must give a rate above 0 that is compatible with
   the first. And the spread must not change more from the first to the last third of the measured half than that of an orbit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from gantrain.errors import UserError
from gantrain.theory.ornstein_uhlenbeck import drift_lag, ema_ratio, equal_window, variance_ratio
from gantrain.theory.path_statistics import autocorrelation_of, principal_directions, slope_of, spread_of, trend_of
from gantrain.theory.simulated_processes import DRIFT, MIXED, ORBIT, WALK, Finding, simulated_at

FEWEST_RECORDINGS = 40  # twenty to find the directions and twenty to measure the motion along them
MOST = 800  # longer records are thinned to this; rates up to a thousand per measured half can still be resolved
MUCH = 0.25  # a direction with more than this share of the motion must be an orbit by itself


@dataclass(frozen=True)
class Direction:
    """A principal direction of the first half of the path, and the motion along it in the second half.

    Attributes:
        vector: unit vector, `[m]`.
        center: mean of the motion.
        share: share of the whole motion, 0 to 1.
        squares: mean square of the motion about its mean.
        velocity: speed of the straight line through the motion, per unit of time, after subtracting what a process of the
            estimated rate shows by chance; at least 0.
        finding: classification of this direction alone.
    """

    vector: np.ndarray
    center: float
    share: float
    squares: float
    velocity: float
    finding: Finding


@dataclass(frozen=True)
class OrbitFit:
    """The classification of a path.

    Attributes:
        directions: the principal directions, in descending order of their motion in the first half.
        together: classification of all directions together, as if they had one rate, weighted by their motion in the first half.
            Many undecided directions can be decided together, and a direction that moves more counts more.
        later: as `together`, but from the autocorrelation at the longer lag.
        alike: whether the directions can have one rate, that is, whether their autocorrelations differ no more than by chance.
        steady: whether the spread stays the same throughout the measured half.
        times: times of the measured half, `[n]`.
        level: confidence level of the intervals.
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
        """The verdict on the whole path: that of all directions together, or "mixed" if they revert but are not one orbit.

        One orbit has the same rate at both lags and is steady. None of its directions drifts at the level divided by the number
        of directions (a Bonferroni correction), and directions that drift at the level itself carry at most half of the motion. Its
        directions have one rate, or those that are orbits by themselves carry more than half of the motion. A direction that
        carries more than a quarter must be an orbit by itself, since the others say nothing about it.
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
        """Whether the Ornstein-Uhlenbeck picture holds."""
        return self.verdict == ORBIT

    @property
    def orbiting(self) -> list[Direction]:
        """The directions whose rate is known: all if they can have one rate, otherwise those that are orbits by themselves."""
        return self.directions if self.alike else [d for d in self.directions if d.finding.verdict == ORBIT]

    @property
    def share(self) -> float:
        """The share of the whole motion that the directions carry, 0 to 1."""
        return sum(d.share for d in self.directions)

    @property
    def duration(self) -> float:
        """The length of the measured half, in units of time."""
        return float(self.times[-1] - self.times[0])

    def rate_of(self, direction: Direction) -> float:
        """Returns k along a direction: its own if it is an orbit by itself, otherwise that of all directions together."""
        return (direction.finding if direction.finding.verdict == ORBIT else self.together).safe_rate

    def variance_of(self, direction: Direction) -> float:
        """Returns V of the orbit along a direction.

        The mean of the recordings follows the orbit, so their mean square about it is smaller than V by the variance of the mean.
        """
        n = len(self.times)
        return direction.squares / (1 - variance_ratio(self.times, np.full(n, 1 / n), self.rate_of(direction)))

    def ratio(self, positions: np.ndarray, weights: np.ndarray) -> float:
        """Predicts V_average / V_live of an average from its weight profile, over the directions whose rate is known.

        It assumes that the orbit has been the same for as long as the average reaches back. Valid only if `holds`.
        """
        variances = [self.variance_of(d) for d in self.orbiting]
        return sum(v * variance_ratio(positions, weights, self.rate_of(d)) for v, d in zip(variances, self.orbiting)) / sum(variances)

    def half_life(self) -> float:
        """Returns the best EMA half-life: the minimum over mu of variance plus squared lag, sum_j V_j mu / (k_j + mu) + (v_j / mu)^2.

        It is limited to the half-life whose equivalent uniform window, T = 2 / mu, is the measured half, because no more of the
        orbit was observed. Valid only if `holds`.
        """
        orbits = [(self.rate_of(d), self.variance_of(d), d.velocity) for d in self.orbiting]

        def spread(log_mu: float) -> float:
            """Variance plus squared lag of the EMA that forgets at the rate mu."""
            mu = math.exp(log_mu)
            return sum(v * ema_ratio(k, mu) + drift_lag(velocity, mu) ** 2 for k, v, velocity in orbits)

        least = equal_window(self.duration)  # mu = 2 / T: the relation is its own inverse
        found = optimize.minimize_scalar(spread, bounds=(math.log(least), math.log(1e4 * least)), method="bounded")
        return math.log(2) / math.exp(found.x)


def fit_orbit(times: np.ndarray, path: np.ndarray, directions: int = 8, level: float = 0.95, seed: int = 0) -> OrbitFit:
    """Tell orbit, walk and drift apart along the principal directions of a path.

    Args:
        times: times of the recordings, `[n]`, ascending; they need not be equally spaced.
        path: the weights or a linear sketch of them, `[n, m]`.
        directions: maximal number of directions; there are fewer if the first half of the path spans fewer.
        level: confidence level of the intervals and of the test for drift.
        seed: seed of the simulated processes.

    Raises:
        UserError: there are fewer than 40 recordings, or the path does not move or is not finite.
    """
    times, path = np.asarray(times, dtype=float), np.asarray(path, dtype=float)
    if len(times) < FEWEST_RECORDINGS:
        raise UserError(
            f"fitting an orbit needs at least {FEWEST_RECORDINGS} recordings without a change of the training, there are {len(times)}"
        )
    if not np.isfinite(path).all():
        raise UserError("the recorded weights contain nan or infinity")
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
