"""The rate of an orbit from the distances between the live weights and two of their EMAs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from gantrain.theory.ornstein_uhlenbeck import rate_of_two, variance_of_two

BLOCKS = 6  # number of jackknife blocks; few and long, so that they are nearly independent


@dataclass(frozen=True)
class TwoEmas:
    """The rate of an orbit, computed from the distances between the live weights and two of their EMAs.

    Attributes:
        rate: k; None if no orbit has these distances, for example while the weights still drift.
        low, high: confidence interval of `rate`; None if it cannot be computed.
        variance: V of all weights together; None if `rate` is None.
        exponent: the power of the half-life with which the squared distance grows from one EMA to the other: below 1 for an
            orbit (0 if both EMAs average it out), 1 for a random walk, 2 for a steady drift.
    """

    rate: float | None
    low: float | None
    high: float | None
    variance: float | None
    exponent: float


def fit_two_emas(distances: Sequence[np.ndarray], rates: Sequence[float], step: float = 0.0, level: float = 0.95) -> TwoEmas:
    """Estimates the orbit's rate from two EMAs, with an interval from a jackknife over blocks of time.

    This is independent of the fit along directions: it uses no autocorrelation, only the distances of two averages from the live
    weights.

    Args:
        distances: squared distances to the two EMAs, `[n]` each, at the same moments.
        rates: mu of the two EMAs, per unit of time.
        step: time between two updates of the EMAs; 0 for continuous updates.
        level: confidence level of the interval.
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
        rate = rate_of_two(one[keep].mean(), rates[0], two[keep].mean(), rates[1], step)
        if rate is None:
            return TwoEmas(whole, None, None, variance, exponent)
        without.append(rate)
    logs = np.log(without)
    spread = math.sqrt((BLOCKS - 1) / BLOCKS * ((logs - logs.mean()) ** 2).sum()) * special.stdtrit(BLOCKS - 1, (1 + level) / 2)
    return TwoEmas(whole, whole * math.exp(-spread), whole * math.exp(spread), variance, exponent)
