"""Confidence intervals of scores, from the scores of random halves of the generated images.

The half-width of a 95% interval is 1.96 standard errors. The standard error is that of the delete-d jackknife (Shao and Wu 1989,
"A general theory for jackknife variance estimation", Annals of Statistics 17; Efron and Tibshirani 1993, chapter 11). Over R
random subsets of r of the N images, drawn without replacement,

    variance = r / (N - r) * sum_s (score_s - mean)^2 / (R - 1),

where the factor is 1 for halves. A bootstrap draws with replacement, which these scores do not tolerate: a repeated image is its
own nearest neighbour (precision and recall), breaks the independence of pairs (KID), and lowers the rank of the covariance (FID).

The reference is fixed, so the interval does not include the effect of another sample of real images. It does not include bias
either: a score of N images keeps the bias of N images. If the generated images are almost indistinguishable from the reference,
FID is quadratic in the remaining difference and the interval is too wide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gantrain.metrics.featureset import FeatureSet
from gantrain.score_names import INTERVAL_SUFFIX

SUFFIX = INTERVAL_SUFFIX
NORMAL_95 = 1.959963984540054


def half_widths(score: Callable[[FeatureSet], dict[str, float]], fake: FeatureSet, resamples: int, seed: int = 0) -> dict[str, float]:
    """Returns the half-widths of 95% intervals, as `<name>_ci95`, of all scores except `<name>_std`.

    Args:
        score: computes the scores of any number of generated images.
        fake: the features of all generated images, `[N, d]`.
        resamples: number of random halves.
        seed: seed of the halves.
    """
    total, random = len(fake), np.random.default_rng(seed)
    kept = total // 2
    halves = [score(fake.part(random.permutation(total)[:kept])) for _ in range(resamples)]
    factor = kept / (total - kept)
    # A metric may have no score of so few images (`fid_infinity`), and then no interval.
    names = [name for name in halves[0] if not name.endswith("_std") and any(np.isfinite(half[name]) for half in halves)]
    return {name + SUFFIX: float(NORMAL_95 * np.sqrt(factor * np.var([half[name] for half in halves], ddof=1))) for name in names}
