"""Features of a set of images, with the statistics that metrics share."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor


@dataclass
class FeatureSet:
    """Features `[N, d]` and logits `[N, c]`, float32 on the CPU, of N images."""

    features: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> dict[str, Any]:
        """Mean `[d]` and unbiased covariance `[d, d]` in float64; computed once for a reference that is used often."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        return fid_features_to_statistics(self.features.double())
