"""Fréchet inception distance (Heusel et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gantrain.metrics.featureset import FeatureSet, Moments


@dataclass(frozen=True)
class Fid:
    """Squared Fréchet distance between Gaussians fitted to both sets of features. Lower is better, 0 is best; it decreases with N."""

    scores: ClassVar[tuple[str, ...]] = ("fid",)  # that can be best
    needs: ClassVar[str] = "moments"  # of the reference

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Returns `fid`."""
        return {"fid": distance(features_fake.moments, features_real.moments)}


def distance(fake: Moments, real: Moments) -> float:
    """|mu - mu'|^2 + tr(sigma + sigma' - 2 (sigma sigma')^(1/2)) (Heusel et al. 2017, Eq. 6)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(fake, real, verbose=False)[KEY_METRIC_FID])
