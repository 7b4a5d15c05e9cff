"""A disk cache for the features of real images, keyed by a fingerprint of what they were computed from."""

from __future__ import annotations

import hashlib

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes, save as to_bytes

from gantrain.cache import cache_folder, keep_file
from gantrain.metrics.featureset import FeatureSet


def fingerprint(images: str, count: int | None, extractor: str) -> str:
    """Identifies a reference: SHA-256 (16 hex digits) of the images' fingerprint, their count, and the extractor's identity."""
    return hashlib.sha256(f"{images}/{count}/{extractor}".encode()).hexdigest()[:16]


def cached(print_: str) -> FeatureSet | None:
    """Returns the features cached under a fingerprint, or None if there are none or the file is unreadable."""
    try:
        tensors = from_bytes((cache_folder() / f"reference-{print_}.safetensors").read_bytes())
        return FeatureSet(tensors["features"], tensors["logits"])
    except (OSError, SafetensorError, KeyError):
        return None


def keep(print_: str, features: FeatureSet) -> None:
    """Cache features under a fingerprint."""
    tensors = {"features": features.features.contiguous(), "logits": features.logits.contiguous()}
    keep_file(f"reference-{print_}.safetensors", to_bytes(tensors))
