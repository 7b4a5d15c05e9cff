"""Statistics of a recorded path of weights: principal directions, autocorrelation, spread and trend."""

from __future__ import annotations

import numpy as np


def principal_directions(path: np.ndarray, count: int) -> np.ndarray:
    """Returns the directions `[at most count, m]` in which a path `[n, m]` has the most variance, in descending order."""
    moved = path - path.mean(axis=0)
    _, sizes, vectors = np.linalg.svd(moved, full_matrices=False)
    return vectors[:count][sizes[:count] > 1e-12 * max(np.abs(path).max(), 1e-300)]


def autocorrelation_of(x: np.ndarray, lag: int = 1) -> np.ndarray:
    """Returns the autocorrelation about the mean at a lag of `lag` recordings, `[...]` for `[n, ...]`."""
    moved = x - x.mean(axis=0)
    return (moved[lag:] * moved[:-lag]).sum(axis=0) / (moved**2).sum(axis=0)


def spread_of(x: np.ndarray) -> np.ndarray:
    """Returns the log of the mean square about the mean in the last third over that in the first third, `[...]` for `[n, ...]`."""
    moved, third = x - x.mean(axis=0), len(x) // 3
    return np.log((moved[-third:] ** 2).mean(axis=0) / (moved[:third] ** 2).mean(axis=0))


def slope_of(times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the slope of the least-squares line, `[...]` for `[n, ...]`."""
    t = times - times.mean()
    return np.tensordot(t, x, axes=(0, 0)) / (t**2).sum()


def trend_of(times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns R^2 of the least-squares line, the share of the motion that it explains: `[...]` for `[n, ...]`."""
    t = times - times.mean()
    return slope_of(times, x) ** 2 * (t**2).sum() / ((x - x.mean(axis=0)) ** 2).sum(axis=0)
