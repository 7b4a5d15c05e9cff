"""Features of a set of images, with the statistics that metrics share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Moments = dict[str, np.ndarray]  # mu `[d]` and sigma `[d, d]`, float64


@dataclass
class FeatureSet:
    """Features `[N, d]` and logits `[N, c]`, float32 on the CPU, of N images.

    Attributes:
        given: moments that come with the features, or in their place (N is 0 then), from a file of statistics.
    """

    features: Tensor
    logits: Tensor
    given: Moments | None = None

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> Moments:
        """Mean `[d]` and unbiased covariance `[d, d]`, float64; computed once for a reference that is used often.

        The mean is summed in float32, as torch-fidelity does it: in float64 its seventh digit would be right, and the FID of 50,000
        images would leave torch-fidelity's by more than a millionth.
        """
        if self.given is not None:
            return self.given
        from torch_fidelity.metric_fid import fid_features_to_statistics

        found = fid_features_to_statistics(self.features)
        return {"mu": found["mu"].astype(np.float64), "sigma": found["sigma"]}

    def part(self, indices: np.ndarray) -> FeatureSet:
        """Some of the images, by number."""
        chosen = torch.from_numpy(indices)
        return FeatureSet(self.features[chosen], self.logits[chosen])


def of_moments(moments: Moments) -> FeatureSet:
    """Moments without the features behind them: enough for a metric that `needs` no more."""
    return FeatureSet(torch.empty(0, len(moments["mu"])), torch.empty(0, 0), moments)
