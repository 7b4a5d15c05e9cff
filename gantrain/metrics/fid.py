"""Fréchet inception distance (Heusel et al. 2017)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gantrain.metrics.featureset import FeatureSet


@dataclass(frozen=True)
class Fid:
    """Squared Fréchet distance between Gaussians fitted to both sets of features; 0 is best, it falls with N."""

    scores: ClassVar[tuple[str, ...]] = ("fid",)  # that can be best

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        return {"fid": float(fid_statistics_to_metric(features_fake.moments, features_real.moments, verbose=False)[KEY_METRIC_FID])}
