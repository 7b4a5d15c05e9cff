"""What orbits and random walks of every rate show when they are recorded like a path, and what that says about the path.

Steps 2 to 5 of the method that `gantrain.theory.orbit_fit` describes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from gantrain.theory.path_statistics import autocorrelation_of, spread_of, trend_of

PATHS, RATES = 4000, 48  # number of simulated paths per rate, and number of rates
FASTEST = 8.0  # largest rate times the distance of recordings; the autocorrelation e^-8 is invisible
LATER = 16  # the longer lag of the autocorrelation is the measured half divided by this
ORBIT, WALK, DRIFT, TURN, MIXED = "orbit", "walk", "drift", "turn", "mixed"
UNLIKE = 0.01  # significance level: a motion that an orbit shows less often than this is not an orbit


@dataclass(frozen=True)
class Finding:
    """The classification of a motion. Rates are per unit of the times that the fit was given.

    Attributes:
        rate: the median-unbiased estimate of k; 0 if the motion resembles a walk more than any orbit, inf if it is faster than
            the recordings can resolve.
        low, high: confidence interval of k; `low` is 0 if a random walk cannot be excluded, and `high` is also 0 if the path is
            straighter than a walk.
        trend: share of the motion that a straight line explains.
        limit: the share that 97.5% of the processes of rate `low` do not exceed; a larger `trend` is a drift.
        chance: how often a process of rate `low` has at least this trend.
        verdict: "orbit", "walk", "drift", or "turn" if the motion oscillates as no orbit with a real rate does.
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
        """A finite rate: `rate`, or its lower bound if the recordings are too far apart to resolve it."""
        return self.rate if math.isfinite(self.rate) else self.low


@functools.lru_cache(maxsize=4)
def simulated_at(times: tuple[float, ...], level: float, seed: int) -> Simulated:
    """Returns the simulation for these moments, cached because G and D are recorded at the same ones."""
    return Simulated(np.array(times), level, seed)


class Simulated:
    """The statistics of simulated processes of every rate, recorded at the same moments as a path.

    Args:
        times: times of the recordings, `[n]`.
        level: confidence level of intervals.
        seed: seed of the noise; all rates share the noise, so quantiles change smoothly with the rate.
    """

    def __init__(self, times: np.ndarray, level: float, seed: int):
        self.level, self.seed = level, seed
        steps = np.diff(times)
        self.duration = times[-1] - times[0]
        self.rates = np.append(0.0, np.geomspace(0.05 / self.duration, FASTEST / np.median(steps), RATES - 1))
        noise = np.random.default_rng(seed).standard_normal((len(times), PATHS))
        self.lag = max(2, len(times) // LATER)
        shown = [
            (autocorrelation_of(x), autocorrelation_of(x, self.lag), trend_of(times, x), spread_of(x))
            for x in (self.paths(k, steps, noise) for k in tqdm(self.rates, desc="orbit", leave=False, disable=None))
        ]
        self.autocorrelations, self.later, self.trends, self.spreads = (np.array(kind) for kind in zip(*shown))
        self._single: dict[bool, np.ndarray] = {}  # the curves of a single motion, which every direction of a fit needs

    @staticmethod
    def paths(k: float, steps: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Returns processes `[n, PATHS]` of rate k and variance 1, or random walks if k is 0."""
        keeps = np.exp(-k * steps)
        gathers = np.sqrt(-np.expm1(-2 * k * steps)) if k else np.sqrt(steps)
        x = np.empty_like(noise)
        x[0] = noise[0]
        for i in range(len(steps)):
            np.multiply(x[i], keeps[i], out=x[i + 1])
            x[i + 1] += gathers[i] * noise[i + 1]
        return x

    def groups_of(self, count: int, shown: np.ndarray) -> np.ndarray:
        """Returns the statistics `[..., PATHS]` of single processes as those of groups of `count` of them, `[..., many, count]`."""
        rng = np.random.default_rng([self.seed, count])
        groups = np.concatenate([rng.permutation(PATHS)[: PATHS // count * count].reshape(-1, count) for _ in range(count)])
        return shown[..., groups]

    def near(self, rate: float) -> int:
        """Returns the index of the first simulated rate that is not below `rate`."""
        return min(int(np.searchsorted(self.rates, rate)), len(self.rates) - 1)

    def alike(self, autocorrelations: np.ndarray, rate: float) -> bool:
        """Whether motions with these autocorrelations `[p]` may all have this rate."""
        groups = self.groups_of(len(autocorrelations), self.autocorrelations[self.near(rate)])
        spread, slowest = (groups.std(axis=-1) >= autocorrelations.std()).mean(), (groups.max(axis=-1) >= autocorrelations.max()).mean()
        return bool(min(spread, slowest) >= UNLIKE)

    def steady(self, spreads: np.ndarray, weights: np.ndarray, rate: float) -> bool:
        """Whether motions with these changes of spread `[p]` may be orbits of this rate."""
        groups = self.groups_of(len(spreads), self.spreads[self.near(rate)]) @ weights
        return float((np.abs(groups) >= abs(spreads @ weights)).mean()) >= UNLIKE

    def finding(self, autocorrelations: np.ndarray, trends: np.ndarray, weights: np.ndarray, late: bool = False) -> Finding:
        """Classifies several motions together.

        Args:
            autocorrelations: at a lag of one recording, or of `self.lag` recordings if `late`: `[p]`.
            trends: share of each motion that a straight line explains, `[p]`.
            weights: weight of each motion, `[p]`; they sum to 1.
            late: which of the two lags the autocorrelations have.
        """
        count, r, trend = len(trends), float(autocorrelations @ weights), float(trends @ weights)
        tail = (1 - self.level) / 2
        low, rate, high = (self.rate_where(curve, r) for curve in self.curves_of(weights, late))
        turns, low = not late and math.isinf(low), min(low, float(self.rates[-1]))
        # Use the simulated rate just below the interval, where chance produces the most trend.
        by_chance = self.groups_of(count, self.trends[max(0, np.searchsorted(self.rates, low, side="right") - 1)]) @ weights
        chance, limit = float((by_chance >= trend).mean()), float(np.quantile(by_chance, 1 - tail))
        straighter = high == 0  # straighter than a walk: steps tend to continue in the direction of the previous one
        verdict = TURN if turns else DRIFT if straighter or chance < tail else WALK if low == 0 else ORBIT
        return Finding(rate, low, high, trend, limit, chance, verdict)

    def curves_of(self, weights: np.ndarray, late: bool) -> np.ndarray:
        """Returns the lower, middle and upper quantile of the weighted autocorrelation at every rate, `[3, RATES]`.

        Those of a single motion of weight 1 are computed once: they do not depend on the path.
        """
        alone = len(weights) == 1 and weights[0] == 1
        if alone and late in self._single:
            return self._single[late]
        tail = (1 - self.level) / 2
        shown = self.groups_of(len(weights), self.later if late else self.autocorrelations) @ weights
        # Each quantile decreases with k, except for the noise of the simulation.
        curves = np.minimum.accumulate(np.quantile(shown, [tail, 0.5, 1 - tail], axis=1), axis=1)
        if alone:
            self._single[late] = curves
        return curves

    def trend_of_rate(self, k: float) -> float:
        """Returns the mean share of the motion that a straight line explains, for processes of this rate."""
        return float(self.trends[self.near(k)].mean())

    def rate_where(self, curve: np.ndarray, r: float) -> float:
        """Returns the k at which a decreasing curve has the value r; 0 if r is above the curve, inf if it is below."""
        if r >= curve[0]:
            return 0.0
        if r <= curve[-1]:
            return math.inf
        stretched = np.log1p(self.rates * self.duration)  # interpolate on a scale that suits both small and large rates
        return float(np.expm1(np.interp(-r, -curve, stretched)) / self.duration)
