"""torch-fidelity as an oracle: its scores under gantrain's names, and the digits extractor registered with it."""

from __future__ import annotations

import torch

from gantrain.metrics import DigitsFeatures

DIGITS_NAME = "digits-classifier"


def fidelity_scores(fake, real, subset_size: int, splits: int, **kwargs) -> dict[str, float]:
    """`torch_fidelity.calculate_metrics` under gantrain's names."""
    import torch_fidelity

    with torch.random.fork_rng(devices=[]):
        scores = torch_fidelity.calculate_metrics(
            input1=fake, input2=real, isc=True, fid=True, kid=True, prc=True, isc_splits=splits, kid_subset_size=subset_size,
            cuda=False, cache=False, save_cpu_ram=True, verbose=False, **kwargs,
        )  # fmt: skip
    return {
        "fid": scores["frechet_inception_distance"],
        "is": scores["inception_score_mean"],
        "is_std": scores["inception_score_std"],
        "kid": scores["kernel_inception_distance_mean"],
        "kid_std": scores["kernel_inception_distance_std"],
        "precision": scores["precision"],
        "recall": scores["recall"],
    }


def registered_digits() -> str:
    """The name under which torch-fidelity finds the digits extractor."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    extract = DigitsFeatures().build(torch.device("cpu")).extract

    class ForFidelity(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return "64", "logits_unbiased"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits_unbiased" if metric == "isc" else "64"

        def forward(self, images):
            both = dict(zip(self.get_provided_features_list(), extract(images)))
            return tuple(both[name] for name in self.features_list)

    if DIGITS_NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(DIGITS_NAME, ForFidelity)
    return DIGITS_NAME
