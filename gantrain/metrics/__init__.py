"""Metrics, which are pure functions of features, `compute(features_fake, features_real) -> {name: float}`, and feature extractors."""

from __future__ import annotations

from gantrain import torchvision_ops  # noqa: F401 - before torch-fidelity, which imports torchvision
from gantrain.metrics.features import DigitsFeatures, Extractor, InceptionFeatures
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.fid import Fid
from gantrain.metrics.fid_infinity import FidInfinity
from gantrain.metrics.inception_score import InceptionScore
from gantrain.metrics.kid import Kid
from gantrain.metrics.precision_recall import PrecisionRecall
from gantrain.metrics.protocols import PROTOCOLS, Protocol
from gantrain.metrics.resampling import SUFFIX, half_widths
from gantrain.score_names import HIGHER_IS_BETTER

METRICS: dict[str, type] = {"fid": Fid, "is": InceptionScore, "kid": Kid, "prc": PrecisionRecall, "fid_infinity": FidInfinity}
EXTRACTORS: dict[str, type] = {"inception": InceptionFeatures, "digits": DigitsFeatures}
SPREADS = ("_std", SUFFIX)  # suffixes of names that are not scores but the uncertainty of one


def needs(metric: object) -> str:
    """Returns what a metric needs from its reference: "features", "moments" (mean and covariance), or "nothing"."""
    return getattr(metric, "needs", "features")


__all__ = [
    "EXTRACTORS", "HIGHER_IS_BETTER", "METRICS", "PROTOCOLS", "SPREADS", "SUFFIX",
    "DigitsFeatures", "Extractor", "FeatureSet", "InceptionFeatures", "InceptionScore", "Protocol", "half_widths", "needs",
]  # fmt: skip
