"""FID extrapolated to infinitely many generated images (Chong and Forsyth 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gantrain.errors import check
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.fid import distance, singular
from gantrain.metrics.metric import Counts, Metric

SMALLEST = 5000  # number of generated images in the smallest FID, as published for 50,000
LEAST_PER_FEATURE = SMALLEST / 2048  # as published, for Inception's features
SPAN = 2  # at least, from the smallest size to the largest
EXCESS = 0.09  # share of the bias that the line may remove in excess: see `FidInfinity`


@dataclass(frozen=True)
class FidInfinity(Metric):
    """The intercept of a line fitted to FIDs of several sample sizes against 1 / size. Lower is better, 0 is best.

    To first order, the bias of FID is a constant over N, and the constant depends on the generator (Chong and Forsyth 2020,
    "Effectively unbiased FID and Inception Score and where to find them", arXiv 1911.07023, section 3). Each FID uses a random
    subset of the generated images, without replacement. The sizes are evenly spaced from a tenth of the images (5,000 at most),
    but from 2.44 times the number of features at least, to all of them. The bias due to the size of the reference remains.

    The first order holds for covariances far from singular only. 2.44 is 5,000 / 2,048, the published smallest size. For Gaussians of
    96 features with flat and with falling spectra, lines from 2.44 d removed 101% to 108% of the bias, from 1.5 d 105% to 126%, from d
    115% to 130%, and from d / 2, where covariances are singular, 133% to 157%: too much, so that scores become too good or negative.

    What is left of this error, `EXCESS` of the bias, can exceed the score of a good generator, and so can the noise of the draw.
    `fid_infinity_std` is a standard error for both. For Gaussians of 64 features with flat and with falling spectra (k^0 to k^-2), 314
    to 1,797 images and distances of 0.003 to 5, the root mean square error was 0.5 to 1.4 times `fid_infinity_std`.

    Attributes:
        points: number of sample sizes; 15 as published.
        seed: seed of the random subsets.
    """

    scores = ("fid_infinity",)
    needs = "moments"

    points: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "points", self.points >= 2, "must be at least 2")
        check(self, "seed", self.seed >= 0, "must be at least 0")

    def smallest(self, width: int) -> int:
        """The smallest size whose FID is still on the line."""
        return math.ceil(LEAST_PER_FEATURE * width)

    def fewest(self, width: int) -> int:
        """Twice the smallest size: sizes that are alike determine no line."""
        return SPAN * self.smallest(width)

    def caveats(self, counts: Counts) -> Sequence[str]:
        """The reference keeps its bias."""
        return singular("fid_infinity", counts)

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Returns `fid_infinity` and its standard error `fid_infinity_std`; nan if there are fewer images than `fewest`."""
        total, width, random = len(features_fake), features_fake.features.shape[1], np.random.default_rng(self.seed)
        if total < self.fewest(width):
            return {"fid_infinity": math.nan, "fid_infinity_std": math.nan}
        first = max(self.smallest(width), min(SMALLEST, total // 10))
        sizes = np.unique(np.linspace(first, total, self.points).astype(int))
        parts = [features_fake if size == total else features_fake.part(random.permutation(total)[:size]) for size in sizes]
        fids = [distance(part.moments, features_real.moments) for part in parts]
        found, noise = intercept(sizes, np.array(fids))
        return {"fid_infinity": found, "fid_infinity_std": math.hypot(noise, EXCESS * (fids[-1] - found))}


def intercept(sizes: np.ndarray, fids: np.ndarray) -> tuple[float, float]:
    """The intercept of the line through FIDs against 1 / size, and the standard error that the draw of the images gives it.

    To first order, the FID of n of the N images is a mean of n influences: given the N images it deviates from theirs with the
    variance s^2 (1 / n - 1 / N), and theirs from the expected one with s^2 / N. The line's residuals show the first part only and
    determine s^2. The second part is common to all sizes and adds to the intercept as a whole. nan for two sizes, which leave no
    residual.

    Args:
        sizes: increasing, the last being N, `[points]`.
        fids: of random subsets of these sizes, `[points]`.
    """
    line = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    solve = np.linalg.pinv(line)
    apart = 1 / sizes - 1 / sizes[-1]
    if len(sizes) < 3:
        return float(solve[0] @ fids), math.nan
    left = ((fids - line @ (solve @ fids)) ** 2).sum()
    variance = left / ((1 - np.diag(line @ solve)) * apart).sum()
    return float(solve[0] @ fids), math.sqrt(variance * (1 / sizes[-1] + (solve[0] ** 2 * apart).sum()))
