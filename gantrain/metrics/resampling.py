"""How sure a score is: the spread of the scores of random halves of the generated images.

The half-width of a 95% interval is 1.96 standard errors, and the standard error is the delete-d jackknife's (Shao and Wu 1989,
"A general theory for jackknife variance estimation", Annals of Statistics 17; Efron and Tibshirani 1993, chapter 11): over R
random parts of r of the N images, drawn without replacement,

    variance = r / (N - r) * sum_s (score_s - mean)^2 / (R - 1),

whose factor is 1 for halves. A bootstrap, which draws with replacement, would not do: an image that comes twice is its own
nearest neighbour (precision, recall), is no independent pair (KID), and takes rank from the covariance (FID).

The reference is held fixed: what another sample of real images would change is not in the interval; nor is bias (a score of N images
is biased as scores of N images are). Where a generator cannot be told from the reference, FID is quadratic in what is left and
the interval is too wide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gantrain.metrics.featureset import FeatureSet
from gantrain.score_names import INTERVAL_SUFFIX

SUFFIX = INTERVAL_SUFFIX
NORMAL_95 = 1.959963984540054


def half_widths(score: Callable[[FeatureSet], dict[str, float]], fake: FeatureSet, resamples: int, seed: int = 0) -> dict[str, float]:
    """Half-widths of 95% intervals, as `<name>_ci95`, of every score that is no spread itself.

    Args:
        score: of any number of generated images.
        fake: all of them, `[N, d]`.
        resamples: random halves.
        seed: of the halves.
    """
    total, random = len(fake), np.random.default_rng(seed)
    kept = total // 2
    halves = [score(fake.part(random.permutation(total)[:kept])) for _ in range(resamples)]
    factor = kept / (total - kept)
    names = [name for name in halves[0] if not name.endswith("_std")]
    return {name + SUFFIX: float(NORMAL_95 * np.sqrt(factor * np.var([half[name] for half in halves], ddof=1))) for name in names}
