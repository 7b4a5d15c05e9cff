"""Improved precision and recall (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gantrain.errors import check
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.metric import Metric

WHOLE_MATRIX = 10_000  # number of images up to which the whole distance matrix fits into memory


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Share of generated images on the manifold of the real ones (precision) and of real images on the generated one (recall), 0 to 1.

    A manifold is the union of balls around its images. Higher is better.

    Attributes:
        neighbors: the number k; the ball around an image reaches to its k-th nearest neighbour.
        batch_size: number of rows of the distance matrix computed at a time when there are more than 10,000 images.
    """

    scores = ("precision", "recall")  # that can be best
    needs = "features"  # of the reference

    neighbors: int = 3
    batch_size: int = 2500

    def __post_init__(self) -> None:
        check(self, "neighbors", self.neighbors >= 1, "must be at least 1")
        check(self, "batch_size", self.batch_size >= 1, "must be at least 1")

    def fewest(self, width: int) -> int:
        """One more than k: an image has no k-th nearest other without."""
        return self.neighbors + 1

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Returns `precision` and `recall`, computed on a GPU if there is one; nan if either set has no more than k images."""
        if min(len(features_fake), len(features_real)) <= self.neighbors:
            return {"precision": math.nan, "recall": math.nan}
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        device = "cuda" if torch.cuda.is_available() else "cpu"  # the distances of 50,000 images take minutes on one CPU core
        bounded = max(len(features_fake), len(features_real)) > WHOLE_MATRIX
        score = prc_features_to_metric(
            features_fake.features.to(device),
            features_real.features.to(device),
            prc_neighborhood=self.neighbors,
            prc_batch_size=self.batch_size if bounded else WHOLE_MATRIX,
            save_cpu_ram=bounded,
            verbose=False,
        )
        return {"precision": score[KEY_METRIC_PRECISION], "recall": score[KEY_METRIC_RECALL]}
