"""The swap: putting an average in place of the live weights, and how far the minibatch must grow for it to stay there.

Near an optimum the live weights orbit it with a variance V that the gradient noise keeps up; an average lies closer, with
V_average < V. Put in place of the live weights it is thrown out to V again, at the rate k at which the orbit forgets
itself, unless the noise falls in the same moment: with V / g the variance after the swap is

    V(t) = V / g + (V_average - V / g) e^(-2 k t),

which never rises if g >= g* = V / V_average. For an exponential moving average that forgets at the rate mu, the
Ornstein-Uhlenbeck process has V_average / V = mu / (k + mu) and so g* = 1 + k / mu.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gantrain.averaging.bank import AverageBank
from gantrain.averaging.ema import Ema
from gantrain.clock import periods_from
from gantrain.errors import check
from gantrain.theory.ornstein_uhlenbeck import rate_of_two, variance_ratio

AUTO = "auto"


@dataclass(frozen=True)
class Swap:
    """When and how an average takes the place of the live weights; off while `source` is null.

    Attributes:
        source: name of the average.
        every_kimg: distance between swaps.
        start_kimg: the first one.
        networks: "g" swaps the generator alone, "gd" the discriminator with it (its average is then followed too). In a
            game that rotates, a swap of one player leaves the other's half of the motion.
        alpha: 1 replaces the live weights, less moves them this part of the way.
        optimizer: "keep" the state of Adam, "reset_momentum" (its first moment, which points from where the weights were),
            or "reset" (all of it). A second moment that is kept holds the step small for a while after the swap; one that
            starts anew heats the weights again within steps.
        growth: what the minibatch is multiplied by at each swap; "auto" takes g* from the distances of the live weights to
            two EMAs, squared because under Adam at a fixed rate the variance falls with the square root of the batch only.
            Above 1 it needs `batching: {name: on_swap, max_batch: ...}`.
        lr_scale: what both learning rates are multiplied by at each swap, from there on.
        after_kimg: the live weights are scored just before a swap, at it, and again so many kimg later.
    """

    source: str | None = None
    every_kimg: float = 50.0
    start_kimg: float = 100.0
    networks: Literal["g", "gd"] = "gd"
    alpha: float = 1.0
    optimizer: Literal["keep", "reset_momentum", "reset"] = "keep"
    growth: Any = 1
    lr_scale: float = 1.0
    after_kimg: float = 5.0

    def __post_init__(self) -> None:
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")
        check(self, "start_kimg", 0 <= self.start_kimg < float("inf"), "must be at least 0")
        check(self, "alpha", 0 < self.alpha <= 1, "must be above 0 and at most 1")
        number = isinstance(self.growth, (int, float)) and not isinstance(self.growth, bool)
        check(self, "growth", self.growth == AUTO or (number and 1 <= self.growth < float("inf")), f"must be a number of at least 1, or {AUTO}")
        check(self, "lr_scale", 0 < self.lr_scale < float("inf"), "must be above 0")
        check(self, "after_kimg", 0 < self.after_kimg <= self.every_kimg, f"must be above 0 and at most every_kimg ({self.every_kimg:g})")

    @property
    def grows(self) -> bool:
        return self.source is not None and self.growth != 1

    def due(self, before: int, after: int) -> bool:
        """Whether a swap falls into (before, after] images."""
        return self.source is not None and periods_from(self.start_kimg, self.every_kimg, before, after) > 0


def reads_orbit(averager: Any) -> bool:
    """Whether the orbit's rate can be read off an average's distance: an EMA by half-life that looks after every update."""
    return isinstance(averager, Ema) and averager.update_every_kimg is None


def identified_rate(banks: Mapping[str, AverageBank], nimg: int) -> tuple[float | None, dict[str, Any]]:
    """The orbit's rate k per image from the EMAs of the shortest and the longest half-life, and what it was read off.

    The distances are over the weights of all the banks together. One device sync.
    """
    shared = set.intersection(*(set(bank) for bank in banks.values()))
    emas = {name: a.averager for name, a in next(iter(banks.values())).averages.items() if reads_orbit(a.averager) and name in shared}
    shortest = min(emas, key=lambda name: emas[name].half_life_kimg)
    longest = max(emas, key=lambda name: emas[name].half_life_kimg)
    mu = {name: math.log(2) / emas[name].half_life(nimg) for name in (shortest, longest)}
    distance = {name: float(sum(bank.distance(name) for bank in banks.values())) for name in mu}
    step = next(iter(banks.values()))[shortest].distance_of_looks
    k = rate_of_two(distance[longest], mu[longest], distance[shortest], mu[shortest], step)
    return k, {"distances": distance, "half_lives_kimg": {name: math.log(2) / rate / 1000 for name, rate in mu.items()}, "step": step}


def growth_that_holds(bank: AverageBank, source: str, k: float, nimg: int, alpha: float = 1.0) -> float:
    """g* = V / V_swapped for an orbit of rate `k` per image: the least fall of noise at which the swapped weights stay.

    1 + k / mu for an EMA by half-life that takes the place of the live weights entirely; for other rules from their weight
    profile. With `alpha` below 1 the weights are moved a part of the way only, and what they keep of their own orbit counts.
    """
    averager = bank[source].averager
    if reads_orbit(averager):
        ratio = 1.0 / (1.0 + k * averager.half_life(nimg) / math.log(2))
        # Cov(EMA, live) equals V_EMA, so a mixture has (1 - a)^2 V + (1 - (1 - a)^2) V_EMA.
        return 1.0 / ((1 - alpha) ** 2 + (1 - (1 - alpha) ** 2) * ratio)
    positions, weights = bank.weight_profile(source)
    # The share that stays is the live weights' of now, which the average may not have looked at yet.
    return 1.0 / variance_ratio(np.append(positions, nimg), np.append(alpha * weights, 1.0 - alpha), k)
