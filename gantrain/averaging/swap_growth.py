"""The swap: an average replaces the live weights, and the minibatch grows so that they stay there.

Near an optimum, gradient noise makes the live weights orbit it with a variance V; an average lies closer, with V_average < V.
Weights replaced by the average are driven out to V again, at the rate k at which the orbit forgets its past, unless the noise
falls at the same moment. If it falls to an orbit of variance V / g, the variance after the swap is

    V(t) = V / g + (V_average - V / g) e^(-2 k t),

which never rises if g >= g* = V / V_average. For an exponential moving average that forgets at the rate mu, the
Ornstein-Uhlenbeck process has V_average / V = mu / (k + mu) and so g* = 1 + k / mu.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from gantrain.averaging.bank import AverageBank
from gantrain.averaging.ema import Ema
from gantrain.averaging.rule import Averager
from gantrain.schedule import Schedule, bounds_of
from gantrain.theory.ornstein_uhlenbeck import rate_of_two, variance_ratio


def reads_orbit(averager: Averager) -> TypeGuard[Ema]:
    """Whether the orbit's rate can be read off an average's distance: an EMA by a constant half-life that looks after every update."""
    return isinstance(averager, Ema) and averager.update_every_kimg is None and not isinstance(averager.half_life_kimg, Schedule)


def identified_rate(banks: Mapping[str, AverageBank], nimg: int) -> tuple[float | None, dict[str, Any]]:
    """The orbit's rate k per image from the EMAs of the shortest and the longest half-life, and what it was read off.

    The distances are over the weights of all banks together. One device sync.
    """
    shared = set.intersection(*(set(bank) for bank in banks.values()))
    emas = {name: a.averager for name, a in next(iter(banks.values())).averages.items() if reads_orbit(a.averager) and name in shared}
    shortest = min(emas, key=lambda name: bounds_of(emas[name].half_life_kimg))
    longest = max(emas, key=lambda name: bounds_of(emas[name].half_life_kimg))
    mu = {name: math.log(2) / emas[name].half_life(nimg) for name in (shortest, longest)}
    distance = {name: float(sum(bank.distance(name) for bank in banks.values())) for name in mu}
    step = next(iter(banks.values()))[shortest].distance_of_looks
    k = rate_of_two(distance[longest], mu[longest], distance[shortest], mu[shortest], step)
    return k, {"distances": distance, "half_lives_kimg": {name: math.log(2) / rate / 1000 for name, rate in mu.items()}, "step": step}


def growth_that_holds(bank: AverageBank, source: str, k: float, nimg: int, alpha: float = 1.0) -> float:
    """g* = V / V_swapped for an orbit of rate `k` per image: the smallest reduction of noise at which the swapped weights stay.

    1 + k / mu for an EMA by half-life that replaces the live weights entirely; for other rules, from their weight profile.
    With `alpha` below 1 the weights keep the fraction 1 - alpha of their own orbit, which is taken into account.
    """
    averager = bank[source].averager
    if reads_orbit(averager):
        ratio = 1.0 / (1.0 + k * averager.half_life(nimg) / math.log(2))
        # Cov(EMA, live) equals V_EMA, so a mixture has (1 - a)^2 V + (1 - (1 - a)^2) V_EMA.
        return 1.0 / ((1 - alpha) ** 2 + (1 - (1 - alpha) ** 2) * ratio)
    positions, weights = bank.weight_profile(source)
    # The fraction that stays is of the current live weights, at which the average may not have looked yet.
    return 1.0 / variance_ratio(np.append(positions, nimg), np.append(alpha * weights, 1.0 - alpha), k)
