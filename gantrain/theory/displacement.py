"""The mean squared displacement of a recorded path, and its decomposition into an orbit, a random walk and a drift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize

RATES = 48  # how many rates of an orbit are tried


def displacement_of(times: np.ndarray, path: np.ndarray, lags: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Returns (lags in units of time, mean squared displacement of a path `[n, m]` after each lag).

    For an orbit it is 2 V (1 - e^(-k t)), which saturates; for a random walk it grows like t, and for a drift like t^2. Lags go up to
    half of the path. The recordings are assumed to be equally spaced.
    """
    counts = np.unique(np.geomspace(1, max(1, len(path) // 2), lags).astype(int))
    spacing = (times[-1] - times[0]) / (len(times) - 1)
    return counts * spacing, np.array([((path[lag:] - path[:-lag]) ** 2).sum(axis=1).mean() for lag in counts])


@dataclass(frozen=True)
class Parts:
    """The components of a squared displacement after a time t: 2 V (1 - e^(-k t)) + D t + v^2 t^2.

    Attributes:
        rate, variance: k and V of the orbit; V is 0 if no orbit is visible.
        diffusion: D of the random walk.
        velocity: v of the drift.
    """

    rate: float
    variance: float
    diffusion: float
    velocity: float

    def at(self, lag: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the squared displacement after a time that is due to (the orbit, the walk, the drift)."""
        lag = np.asarray(lag, dtype=float)
        return -2 * self.variance * np.expm1(-self.rate * lag), self.diffusion * lag, (self.velocity * lag) ** 2

    def shares(self, lag: float) -> tuple[float, float, float]:
        """As `at`, but as shares of the sum."""
        orbit, walk, drift = self.at(np.asarray(lag))
        whole = orbit + walk + drift
        return float(orbit / whole), float(walk / whole), float(drift / whole)


def parts_of(lags: np.ndarray, displacement: np.ndarray) -> Parts:
    """Decomposes a measured displacement into an orbit, a walk and a drift, by least squares of the relative error.

    This is a description, not a test: the lags of one path are not independent. An orbit much slower than the longest lag is
    counted as a walk.
    """
    best: tuple[float, Parts] | None = None
    for k in np.geomspace(1 / lags[-1], 2 / lags[0], RATES):
        columns = np.stack([-2 * np.expm1(-k * lags), lags, lags**2], axis=1) / displacement[:, None]
        (variance, diffusion, squared), error = optimize.nnls(columns, np.ones(len(lags)))
        if best is None or error < best[0]:
            best = error, Parts(float(k), float(variance), float(diffusion), math.sqrt(squared))
    assert best is not None
    return best[1]
