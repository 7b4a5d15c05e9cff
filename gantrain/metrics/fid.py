"""Fréchet inception distance (Heusel et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gantrain.metrics.featureset import FeatureSet, Moments
from gantrain.metrics.metric import Counts, Metric


@dataclass(frozen=True)
class Fid(Metric):
    """Squared Fréchet distance between Gaussians fitted to both sets of features. Lower is better, 0 is best; it decreases with N."""

    scores = ("fid",)  # that can be best
    needs = "moments"  # of the reference

    def caveats(self, counts: Counts) -> Sequence[str]:
        """A covariance of fewer images than features is singular."""
        return singular("fid", counts)

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Returns `fid`; 0 instead of a negative number within rounding, as of a set against itself."""
        fake, real = features_fake.moments, features_real.moments
        found = distance(fake, real)
        return {"fid": 0.0 if -rounding(fake, real) <= found < 0 else found}


def singular(name: str, counts: Counts) -> list[str]:
    """The caveat of a score called `name` whose covariances are singular."""
    few = {"generated": counts.fake, "real": counts.width + 1 if counts.real is None else counts.real}
    few = {which: count for which, count in few.items() if count <= counts.width}
    if not few:
        return []
    images = " and ".join(f"{count:,} {which}" for which, count in few.items())
    return [f"{name}: {images} images have a singular covariance of {counts.width:,} features, which raises it a lot"]


def distance(fake: Moments, real: Moments) -> float:
    """|mu - mu'|^2 + tr(sigma + sigma' - 2 (sigma sigma')^(1/2)) (Heusel et al. 2017, Eq. 6)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(fake, real, verbose=False)[KEY_METRIC_FID])


def rounding(fake: Moments, real: Moments) -> float:
    """A bound of the rounding in `distance` near 0, in float64.

    An eigenvalue of sigma sigma' that should be 0 comes out as some eps |sigma| |sigma'|, and its square root is added; the formula
    takes 2 of these for each of d features. Frobenius norms bound the spectral ones.
    """
    size = float(np.linalg.norm(fake["sigma"]) * np.linalg.norm(real["sigma"]))
    return 2 * len(fake["mu"]) * float(np.sqrt(np.finfo(np.float64).eps * size))
