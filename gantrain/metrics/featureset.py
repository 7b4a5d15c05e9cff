"""The features of a set of images and the statistics that several metrics need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Moments = dict[str, np.ndarray]  # mu `[d]` and sigma `[d, d]`, float64


@dataclass
class FeatureSet:
    """Features `[N, d]` and logits `[N, c]` of N images, float32 on the CPU.

    Attributes:
        given: moments from a file of statistics, in addition to the features or instead of them (then N is 0).
    """

    features: Tensor
    logits: Tensor
    given: Moments | None = None

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> Moments:
        """Mean `[d]` and unbiased covariance `[d, d]`, float64, cached because a reference is used many times.

        The mean is summed in float32, as torch-fidelity does. A float64 sum would be more accurate, but the FID of 50,000 images
        would then differ from torch-fidelity's by more than one part in a million.
        """
        if self.given is not None:
            return self.given
        from torch_fidelity.metric_fid import fid_features_to_statistics

        found = fid_features_to_statistics(self.features)
        return {"mu": found["mu"].astype(np.float64), "sigma": found["sigma"]}

    def part(self, indices: np.ndarray) -> FeatureSet:
        """The features of some of the images, given by index."""
        chosen = torch.from_numpy(indices)
        return FeatureSet(self.features[chosen], self.logits[chosen])


def of_moments(moments: Moments) -> FeatureSet:
    """Wraps moments without features, for metrics that need only moments."""
    return FeatureSet(torch.empty(0, len(moments["mu"])), torch.empty(0, 0), moments)
