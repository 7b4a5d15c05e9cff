"""A confidence interval of a ratio of two means: Fieller's, which has no upper end where the denominator may be 0.

For a ratio r, the mean of s - r g is 0 at the true r and at no other. So the interval consists of the r that Student's test of that
mean does not reject (Fieller 1954). The test knows nothing about the denominator, so the interval holds where the denominator drowns
in noise: there it has no upper end. An interval of the logarithm, by the delta method or the jackknife, is too short there.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike, coverage: float) -> tuple[float, float] | None:
    """(low, high) of mean(numerators) / mean(denominators), whose true means are not negative.

    Args:
        numerators, denominators: n >= 2 pairs of finite numbers, each `[n]`; the pairs are independent of each other.
        coverage: between 0 and 1.

    Returns:
        The ends, 0 <= low <= high; high is infinite if the denominator cannot be told from 0. None if nothing can be said: neither
        mean can be told from 0, the denominator is significantly negative, or the ends overflow float64.
    """
    s, g = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    n = len(s)
    units = [float(np.abs(values).max(initial=0.0)) for values in (s, g)]
    if not all(0 < unit < math.inf for unit in units):
        return None
    s, g = s / units[0], g / units[1]  # squares at the ends of float64's range would overflow
    mean_s, mean_g = float(s.mean()), float(g.mean())
    deviations = np.stack([s - mean_s, g - mean_g])
    # Squared half-widths of both means' intervals, and what belongs to their product.
    (ss, sg), (_, gg) = (deviations @ deviations.T * (stdtrit(n - 1, (1 + coverage) / 2) ** 2 / (n * (n - 1)))).tolist()
    # Not rejected: (mean_s - r mean_g)^2 <= ss - 2 r sg + r^2 gg, which is a r^2 - 2 b r + c <= 0.
    a, b, c = mean_g**2 - gg, mean_s * mean_g - sg, mean_s**2 - ss
    root = math.sqrt(max(0.0, b * b - a * c))  # negative only by rounding, unless nothing is rejected
    bounded = a > 0
    if mean_s <= 0 or (bounded and mean_g < 0) or (c <= 0 and not bounded):
        return None
    # The smaller root if bounded, else the positive one, written without cancellation.
    low = c / (b + root) if c > 0 else 0.0
    high = (b + root) / a if bounded else math.inf
    unit = units[0] / units[1]
    return (low * unit, high * unit) if 0 < unit < math.inf and math.isfinite(low * unit) else None
