"""Kernel inception distance (Bińkowski et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gantrain.errors import check
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.metric import Counts, Metric


@dataclass(frozen=True)
class Kid(Metric):
    """Unbiased squared MMD with a cubic kernel, averaged over random subsets. Lower is better, 0 is best; noise can make it negative.

    Attributes:
        subsets: number of random subsets.
        subset_size: number of images in each subset; reduced to half of the smaller image set if that is less.
    """

    scores = ("kid",)  # that can be best
    needs = "features"  # of the reference

    subsets: int = 100
    subset_size: int = 1000

    def __post_init__(self) -> None:
        check(self, "subsets", self.subsets >= 1, "must be at least 1")
        check(self, "subset_size", self.subset_size >= 2, "must be at least 2")

    def size(self, fake: int, real: int) -> int:
        """Images in each subset."""
        return min(self.subset_size, fake // 2, real // 2)

    def caveats(self, counts: Counts) -> Sequence[str]:
        """Much smaller subsets are as unbiased, but noisier."""
        size = self.size(counts.fake, counts.fake if counts.real is None else counts.real)
        few = size < self.subset_size / 2
        return [f"kid: subsets of {size:,} images instead of {self.subset_size:,}, so kid_std is larger"] if few else []

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Returns `kid` and `kid_std`, the standard deviation over the subsets."""
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        size = self.size(len(features_fake), len(features_real))
        score = kid_features_to_metric(
            features_fake.features, features_real.features, kid_subsets=self.subsets, kid_subset_size=size, verbose=False
        )
        return {"kid": score[KEY_METRIC_KID_MEAN], "kid_std": score[KEY_METRIC_KID_STD]}
