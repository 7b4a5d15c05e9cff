"""Inception score (Salimans et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from gantrain.errors import check
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.metric import Counts, Metric

FEW = 100  # images in a part; the score of n images is at most n, and far below that of many images


@dataclass(frozen=True)
class InceptionScore(Metric):
    """exp of the mean KL divergence of p(y|x) from p(y). Higher is better, from 1 to the number of classes.

    Attributes:
        splits: number of parts of the generated images whose scores are averaged; 10 as published. `eval.is_splits` sets it.
    """

    scores = ("is",)  # that can be best
    needs = "nothing"  # of the reference
    of_eval = MappingProxyType({"splits": "is_splits"})  # fields that keys of `eval` set

    splits: int = 10

    def __post_init__(self) -> None:
        check(self, "splits", self.splits >= 1, "must be at least 1")

    def caveats(self, counts: Counts) -> Sequence[str]:
        """Parts of few images score too low."""
        splits = min(self.splits, counts.fake)
        if counts.fake // splits >= FEW:
            return []
        fewer = f" (instead of {self.splits})" if splits < self.splits else ""
        return [f"is: {splits} parts{fewer} of {counts.fake // splits} images each score lower than parts of many images"]

    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Returns `is` and `is_std`, the standard deviation over the splits; the real features are not used."""
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        splits = min(self.splits, len(features_fake))
        score = isc_features_to_metric(features_fake.logits, splits=splits)
        return {"is": score[KEY_METRIC_ISC_MEAN], "is_std": score[KEY_METRIC_ISC_STD]}
