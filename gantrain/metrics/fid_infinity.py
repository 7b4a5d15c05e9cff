"""FID extrapolated to infinitely many generated images (Chong and Forsyth 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gantrain.errors import check
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.fid import distance
from gantrain.metrics.metric import Metric

SMALLEST = 5000  # generated images of the smallest FID, as published for 50,000


@dataclass(frozen=True)
class FidInfinity(Metric):
    """Where a line through FIDs of several sizes, against 1 / size, meets 0; 0 is best.

    FID is biased by a constant over N, to first order, and the constant depends on the generator (Chong and Forsyth 2020,
    "Effectively unbiased FID and Inception Score and where to find them", arXiv 1911.07023, section 3). Each FID is of a random
    part of the generated set, without replacement; sizes go evenly from a tenth of it (5,000 at most) to all. The bias from
    the reference's own size stays.

    Attributes:
        points: sizes, 15 as published.
        seed: of the random parts.
    """

    scores = ("fid_infinity",)
    needs = "moments"

    points: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, "points", self.points >= 2, "must be at least 2")
        check(self, "seed", self.seed >= 0, "must be at least 0")

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        total, random = len(features_fake), np.random.default_rng(self.seed)
        sizes = np.unique(np.linspace(min(SMALLEST, max(2, total // 10)), total, self.points).astype(int))
        parts = [features_fake if size == total else features_fake.part(random.permutation(total)[:size]) for size in sizes]
        fids = [distance(part.moments, features_real.moments) for part in parts]
        return {"fid_infinity": float(np.polynomial.polynomial.polyfit(1 / sizes, fids, 1)[0])}
