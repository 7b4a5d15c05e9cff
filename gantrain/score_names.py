"""Names of scores, and which direction of each is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

LIVE = "live"  # the name of the weights that are trained, among the averages
# Whether a higher score is better, for tables that mark the best.
HIGHER_IS_BETTER = {"fid": False, "is": True, "kid": False, "precision": True, "recall": True, "fid_infinity": False}
INTERVAL_SUFFIX = "_ci95"  # of the name of a score's half-width: half of its 95% interval
SPREADS = ("_std", INTERVAL_SUFFIX)  # ends of names that are not scores but say how sure one is
EXTRAPOLATED = "fid_infinity"  # a score that noise can make negative; its `_std` is a standard error
UNSURE = 0.25  # share of a score from which on its standard error is said beside it
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


def doubts(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What must be said beside extrapolated scores: those that are negative, or whose standard error is not small against them.

    Args:
        scores: average -> metric -> value; records made before there was a standard error have none.

    Returns:
        A sentence for each such score, with its value and standard error.
    """
    found = []
    for name, row in scores.items():
        for metric, value in row.items():
            if metric != EXTRAPOLATED and not metric.endswith("_" + EXTRAPOLATED):
                continue
            error = row.get(metric + "_std", math.nan)
            of = f"{metric} of {name}: {value:.4f}" + (f" with a standard error of {error:.4f}" if math.isfinite(error) else "")
            if value < 0:
                found.append(f"{of} is negative, which no distance is: noise and the bias removed in excess outweigh it; use more images")
            elif error > UNSURE * value:
                found.append(f"{of} is uncertain: smaller differences mean nothing; use more images")
    return found


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
