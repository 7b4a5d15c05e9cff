"""FID extrapolated to infinitely many generated images (Chong and Forsyth 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gantrain.errors import check
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.fid import distance

SMALLEST = 5000  # number of generated images in the smallest FID, as published for 50,000


@dataclass(frozen=True)
class FidInfinity:
    """The intercept of a line fitted to FIDs of several sample sizes against 1 / size. Lower is better, 0 is best.

    To first order, the bias of FID is a constant over N, and the constant depends on the generator (Chong and Forsyth 2020,
    "Effectively unbiased FID and Inception Score and where to find them", arXiv 1911.07023, section 3). Each FID uses a random
    subset of the generated images, without replacement. The sizes are evenly spaced from a tenth of the images (5,000 at most)
    to all of them. The bias due to the size of the reference remains.

    Attributes:
        points: number of sample sizes; 15 as published.
        seed: seed of the random subsets.
    """

    scores: ClassVar[tuple[str, ...]] = ("fid_infinity",)
    needs: ClassVar[str] = "moments"

    points: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "points", self.points >= 2, "must be at least 2")
        check(self, "seed", self.seed >= 0, "must be at least 0")

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Returns `fid_infinity`."""
        total, random = len(features_fake), np.random.default_rng(self.seed)
        sizes = np.unique(np.linspace(min(SMALLEST, max(2, total // 10)), total, self.points).astype(int))
        parts = [features_fake if size == total else features_fake.part(random.permutation(total)[:size]) for size in sizes]
        fids = [distance(part.moments, features_real.moments) for part in parts]
        return {"fid_infinity": float(np.polynomial.polynomial.polyfit(1 / sizes, fids, 1)[0])}
