"""Names of scores, and which direction of each is better."""

from __future__ import annotations

import math
from collections.abc import Iterable

LIVE = "live"  # the name of the weights that are trained, among the averages
# Whether a higher score is better, for tables that mark the best.
HIGHER_IS_BETTER = {"fid": False, "is": True, "kid": False, "precision": True, "recall": True, "fid_infinity": False}
INTERVAL_SUFFIX = "_ci95"  # of the name of a score's half-width: half of its 95% interval
SPREADS = ("_std", INTERVAL_SUFFIX)  # ends of names that are not scores but say how sure one is
Scores = dict[str, dict[str, float]]  # average -> metric -> value


def as_keys(scores: Scores) -> dict[str, float]:
    """Scores by their full names, eval/AVERAGE/METRIC."""
    return {f"eval/{name}/{metric}": value for name, metrics in scores.items() for metric, value in metrics.items()}


def better_when_higher(key: str) -> bool | None:
    """Whether a higher value of a key such as eval/ema/digits_fid is better; None if it is not a score."""
    name = key.rpartition("/")[2]
    for metric, higher in HIGHER_IS_BETTER.items():
        if name == metric or name.endswith("_" + metric):
            return higher
    return None


def can_be_best(nimg: int) -> bool:
    """Whether the scores of weights that have seen `nimg` images can be a run's best: not those of an untrained network at 0 kimg.

    Some scores of noise are high by accident, such as the precision of features that were made for other pictures.
    """
    return nimg > 0


def best_value(metric: str, values: Iterable[float | None]) -> float | None:
    """The best of a column of scores, to be marked; None if no value stands out, or higher is neither better nor worse.

    Args:
        metric: a score's name, such as digits_fid.
        values: one per row; None and nan are rows without a score.
    """
    rows, higher = list(values), better_when_higher(metric)
    there = [value for value in rows if value is not None and math.isfinite(value)]
    if higher is None or len(rows) < 2 or not (len(set(there)) > 1 or len(there) == 1):
        return None
    return (max if higher else min)(there)
