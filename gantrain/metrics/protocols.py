"""Counts that published scores were computed with, by name, so that a number can be set beside theirs.

A protocol says how many images, which real ones, and how IS is split. It does not bring another network: gantrain's features are
torch-fidelity's inception-v3-compat (or the digits'), whatever the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What a library's scores are computed with.

    Attributes:
        source: where that is written.
        differs: what of it gantrain does not reproduce; "" where nothing.
        num_samples: generated images.
        reference_samples: real images; None is all of the split.
        split: of the data set that they come from, where it has splits.
        is_splits: parts over which IS is averaged.
    """

    source: str
    differs: str = ""
    num_samples: int = 50_000
    reference_samples: int | None = None
    split: str = "train"
    is_splits: int = 10

    @property
    def keys(self) -> dict[str, int | None]:
        """The keys of `eval` that it sets."""
        return {"num_samples": self.num_samples, "reference_samples": self.reference_samples, "is_splits": self.is_splits}


PROTOCOLS: dict[str, Protocol] = {
    # input1_model_num_samples 50000 against cifar10-train; isc_splits 10 is its default.
    "torch-fidelity": Protocol("torch-fidelity's README, 'Usage examples', and the defaults of calculate_metrics"),
    # `-ref train` is its default, `num_eval` 50,000 for it; loader.py and worker.py have `splits=1`, as compare_gan.
    "studiogan": Protocol(
        "PyTorch-StudioGAN, src/main.py (-ref), src/worker.py (num_eval), src/loader.py and src/evaluate.py (splits)",
        "resizers 'clean' and 'tailored' and other backbones (its 'legacy' InceptionV3_tf is like torch-fidelity's); images cut to bytes without"
        " rounding; precision and recall with k = 5",
        is_splits=1,
    ),
    # --num_inception_images 50000; moments of the whole training set by calculate_inception_moments.py; num_splits=10.
    "biggan": Protocol(
        "BigGAN-PyTorch, utils.py (--num_inception_images), calculate_inception_moments.py, inception_utils.py (num_splits)",
        "torchvision's Inception weights, images resized with align_corners and not cut to bytes: its FID and IS are other numbers than"
        " TensorFlow's, as its README says, and than these",
    ),
}
