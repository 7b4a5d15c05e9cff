"""Exponential moving means of observed scalars, by images: the state of penalties that compare with the past.

A mean starts without a value. Its sum and the weight of all that it has seen are kept apart, as Adam keeps its moments (Kingma and
Ba 2015, section 3), so that the mean of the first observations is not pulled towards 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

WEIGHT = "weight"  # of all observations so far, in [0, 1]; it is 1 - 2^(-images / half-life)


def begin(*names: str) -> dict[str, float]:
    """The state of means of these names before the first observation."""
    return {**dict.fromkeys(names, 0.0), WEIGHT: 0.0}


def follow(state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int, half_life_kimg: float) -> dict[str, Tensor]:
    """The state after an observation that stands for so many images; it never reads a value back to the host."""
    decay = 0.5 ** (images / (1000 * half_life_kimg))
    followed = {name: decay * state[name] + (1 - decay) * seen.to(state[name]) for name, seen in observed.items()}
    return {**state, **followed, WEIGHT: decay * state[WEIGHT] + (1 - decay)}


def mean_of(state: Mapping[str, Tensor], name: str) -> Tensor:
    """The moving mean; 0 before the first observation."""
    return state[name] / state[WEIGHT].clamp_min(1e-30)


def has_begun(state: Mapping[str, Tensor]) -> Tensor:
    """1 after the first observation, 0 before, as a scalar on the device."""
    return (state[WEIGHT] > 0).to(state[WEIGHT].dtype)
