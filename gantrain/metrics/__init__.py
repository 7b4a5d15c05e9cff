"""Metrics: pure functions of features, `compute(features_fake, features_real) -> {name: float}`; and what extracts features."""
from gantrain import torchvision_ops  # noqa: F401 - before torch-fidelity, which imports torchvision
from gantrain.metrics.features import DigitsFeatures, Extractor, InceptionFeatures
from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.fid import Fid
from gantrain.metrics.inception_score import InceptionScore
from gantrain.metrics.kid import Kid
from gantrain.metrics.precision_recall import PrecisionRecall
from gantrain.names import HIGHER_IS_BETTER

METRICS: dict[str, type] = {"fid": Fid, "is": InceptionScore, "kid": Kid, "prc": PrecisionRecall}
EXTRACTORS: dict[str, type] = {"inception": InceptionFeatures, "digits": DigitsFeatures}

__all__ = ["EXTRACTORS", "HIGHER_IS_BETTER", "METRICS", "DigitsFeatures", "Extractor", "FeatureSet", "InceptionFeatures"]
