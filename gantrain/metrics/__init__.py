"""Metrics, which are pure functions of features, `compute(features_fake, features_real) -> {name: float}`, and feature extractors."""

from __future__ import annotations

from gantrain import torchvision_ops  # noqa: F401 - before torch-fidelity, which imports torchvision
from gantrain.metrics.features import DigitsFeatures, InceptionFeatures
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.fid import Fid
from gantrain.metrics.fid_infinity import FidInfinity
from gantrain.metrics.inception_score import InceptionScore
from gantrain.metrics.kid import Kid
from gantrain.metrics.metric import EXTRACTOR, METRIC, Counts, Extractor, FeatureExtractor, Metric
from gantrain.metrics.precision_recall import PrecisionRecall
from gantrain.metrics.protocols import PROTOCOLS, Protocol
from gantrain.metrics.resampling import SUFFIX, half_widths
from gantrain.score_names import HIGHER_IS_BETTER, SPREADS

METRICS: dict[str, type[Metric]] = {"fid": Fid, "is": InceptionScore, "kid": Kid, "prc": PrecisionRecall, "fid_infinity": FidInfinity}
EXTRACTORS: dict[str, type[FeatureExtractor]] = {"inception": InceptionFeatures, "digits": DigitsFeatures}


__all__ = [
    "EXTRACTOR", "EXTRACTORS", "HIGHER_IS_BETTER", "METRIC", "METRICS", "PROTOCOLS", "SPREADS", "SUFFIX",
    "Counts", "DigitsFeatures", "Extractor", "FeatureExtractor", "FeatureSet", "InceptionFeatures", "InceptionScore", "Metric", "Protocol",
    "half_widths",
]  # fmt: skip
