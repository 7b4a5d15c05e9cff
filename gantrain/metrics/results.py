"""Calls of metrics and extractors whose results are checked, so that a wrong one is refused by name and not deep inside torch."""

from __future__ import annotations

import numbers
from typing import Any

from torch import Tensor

from gantrain.metrics.featureset import FeatureSet
from gantrain.metrics.metric import Extractor, FeatureExtractor, Metric
from gantrain.plugin_errors import describe_value, refuse_result


def require_extractor(built: Any, plugin: FeatureExtractor) -> None:
    """Refuse what a `build` has returned if it is no extractor.

    Raises:
        WrongResult: names the class.
    """
    if not (callable(getattr(built, "extract", None)) and isinstance(getattr(built, "identity", None), str)):
        refuse_result(plugin, "build", "an Extractor with extract and identity", built)


def extract_features(extractor: Extractor, images: Tensor, plugin: FeatureExtractor) -> tuple[Tensor, Tensor]:
    """(features `[N, d]`, logits `[N, c]`) of uint8 images `[N, C, H, W]`.

    Raises:
        WrongResult: the extractor returns something else; names the class that has built it.
    """
    found: Any = extractor.extract(images)
    pair = isinstance(found, (tuple, list)) and len(found) == 2
    if not (pair and all(isinstance(one, Tensor) and one.dim() == 2 and len(one) == len(images) for one in found)):
        got, n = " and ".join(map(describe_value, found)) if pair else None, len(images)
        refuse_result(plugin, "build", f"an extractor of features [{n}, d] and logits [{n}, c] from {n} images", found, got)
    return found[0], found[1]


def compute_metric(metric: Metric, fake: FeatureSet, real: FeatureSet) -> dict[str, float]:
    """The numbers of a metric by name.

    Raises:
        WrongResult: it returns something else.
    """
    found: Any = metric.compute(fake, real)
    if not (isinstance(found, dict) and all(isinstance(name, str) and isinstance(value, numbers.Real) for name, value in found.items())):
        refuse_result(metric, "compute", "a dict of numbers by name", found)
    return {name: value if isinstance(value, (int, float)) else float(value) for name, value in found.items()}  # JSON has no NumPy
