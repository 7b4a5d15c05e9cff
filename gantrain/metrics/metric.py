"""The contracts of metrics and feature extractors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from gantrain.contracts import Contract
from gantrain.metrics.featureset import FeatureSet


@dataclass(frozen=True)
class Counts:
    """How many images a score is of.

    Attributes:
        fake: generated images.
        real: real images; None if a file of statistics does not say.
        width: features per image.
        classes: logits per image; 0 if there are none.
    """

    fake: int
    real: int | None
    width: int
    classes: int = 0


class Metric(ABC):
    """Scores generated images: the contract of everything in `METRICS`, and of metrics from outside.

    Only `compute` is required. A metric that does not inherit from this class gets the same defaults. It is a frozen dataclass
    whose fields all have defaults.

    Attributes:
        scores: those names that `compute` gives which can be best or worse, for `checkpoint.keep_best` and `guard.score`.
            Empty by default: the metric is recorded, and nothing goes by it.
        needs: what of the reference: "features" (of every real image), "moments" (mean and covariance, which a file of
            statistics has), or "nothing". "features" by default, of which the others follow.
        of_eval: fields of the metric by the key of `eval:` that sets them, such as {"splits": "is_splits"}; none by default.
    """

    scores: Sequence[str] = ()
    needs: Literal["features", "moments", "nothing"] = "features"
    of_eval: Mapping[str, str] = MappingProxyType({})

    def fewest(self, width: int) -> int:
        """The fewest generated images with features of that width that it can be computed from; 2 by default.

        With fewer, a run does not start.
        """
        return 2

    def caveats(self, counts: Counts) -> Sequence[str]:
        """What a reader must know about scores of so few images, one sentence each; empty by default.

        They stand beside the scores, in the record and in tables.
        """
        return ()

    @abstractmethod
    def compute(self, features_fake: FeatureSet, features_real: FeatureSet) -> dict[str, float]:
        """Numbers by name, a pure function of features `[N, d]` and logits `[N, c]` of generated and of real images.

        A name that ends in "_std" says how sure the score before it is, and is no score itself.
        """


@dataclass(frozen=True)
class Extractor:
    """What a feature extractor's `build` returns.

    Attributes:
        extract: uint8 `[N, C, H, W]` on the device to (features `[N, d]`, logits `[N, c]`), float32.
        identity: names the network and its weights; part of a reference's fingerprint.
    """

    extract: Callable[[Tensor], tuple[Tensor, Tensor]]
    identity: str


class FeatureExtractor(ABC):
    """Makes the network behind the scores: the contract of everything in `EXTRACTORS`, and of extractors from outside.

    Only `build` is required. An extractor that does not inherit from this class gets the same defaults. In a configuration it is
    a frozen dataclass.

    Attributes:
        made_for: name of the only data set whose images its features describe, such as "digits"; its scores of others carry a note.
            None, the default: they describe any images.
    """

    made_for: str | None = None

    @property
    def metric_prefix(self) -> str:
        """What stands before every metric's name; the class's name in lower case and "_" by default.

        Bare names such as "fid" belong to Inception-v3's 2048 features, whose scores are compared across papers.
        """
        return f"{type(self).__name__.lower()}_"

    def fetch(self) -> None:  # noqa: B027 - by default there is nothing to download
        """Download what is needed and missing. One process of a machine calls it before the others."""

    @abstractmethod
    def build(self, device: torch.device) -> Extractor:
        """The extractor, on a device.

        Raises:
            UserError: its weights are not there or not right.
        """


METRIC: Contract[Metric] = Contract("metric", Metric)
EXTRACTOR: Contract[FeatureExtractor] = Contract("feature extractor", FeatureExtractor)
