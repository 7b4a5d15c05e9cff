"""Evaluation protocols of published scores: sample counts, reference and IS splits, so that a score can be compared with theirs.

A protocol does not change the network: features are those of torch-fidelity's inception-v3-compat (or of the digits classifier)
under every protocol.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """The settings of another library's scores.

    Attributes:
        source: where the settings are documented.
        differs: what gantrain does not reproduce; "" if nothing.
        num_samples: number of generated images.
        reference_samples: number of real images; None uses the whole split.
        split: split of the data set that the real images come from, if it has splits.
        is_splits: number of parts over which IS is averaged.
    """

    source: str
    differs: str = ""
    num_samples: int = 50_000
    reference_samples: int | None = None
    split: str = "train"
    is_splits: int = 10

    @property
    def keys(self) -> dict[str, int | None]:
        """The keys of `eval` that the protocol sets."""
        return {"num_samples": self.num_samples, "reference_samples": self.reference_samples, "is_splits": self.is_splits}


PROTOCOLS: dict[str, Protocol] = {
    # input1_model_num_samples 50000 against cifar10-train; isc_splits is 10 by default.
    "torch-fidelity": Protocol("torch-fidelity's README, 'Usage examples', and the defaults of calculate_metrics"),
    # The default is `-ref train`, for which `num_eval` is 50,000; loader.py and worker.py use `splits=1`, as compare_gan does.
    "studiogan": Protocol(
        "PyTorch-StudioGAN, src/main.py (-ref), src/worker.py (num_eval), src/loader.py and src/evaluate.py (splits)",
        "resizers 'clean' and 'tailored' and other backbones (its 'legacy' InceptionV3_tf is like torch-fidelity's); images truncated to"
        " bytes without rounding; precision and recall with k = 5",
        is_splits=1,
    ),
    # --num_inception_images 50000; moments of the whole training set by calculate_inception_moments.py; num_splits=10.
    "biggan": Protocol(
        "BigGAN-PyTorch, utils.py (--num_inception_images), calculate_inception_moments.py, inception_utils.py (num_splits)",
        "torchvision's Inception weights, and images resized with align_corners and not converted to bytes; as its README says, its FID and"
        " IS differ from TensorFlow's, and they differ from gantrain's",
    ),
}
