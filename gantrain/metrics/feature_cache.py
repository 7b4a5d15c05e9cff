"""A disk cache for the features of real images, keyed by a fingerprint of what they were computed from."""

from __future__ import annotations

import hashlib

import torch
from safetensors.torch import load as from_bytes, save as to_bytes

from gantrain.cache import keep_file, kept_file
from gantrain.memory import free_memory
from gantrain.metrics.featureset import FeatureSet

# Part of every file's name. Raise it when other features may belong to a fingerprint: when images are decoded in another way, or if
# features may have been kept under a wrong fingerprint (as before 2, when the key of a folder was names, sizes and times). Before 4, files
# had no checksum.
VERSION = 4


def fingerprint(images: str, count: int | None, extractor: str) -> str:
    """Identifies a reference: SHA-256 (16 hex digits) of the images' fingerprint, their count, and the extractor's identity."""
    return hashlib.sha256(f"{images}/{count}/{extractor}".encode()).hexdigest()[:16]


def file_of(print_: str) -> str:
    """The name of the cache file of a fingerprint."""
    return f"reference-{print_}-{VERSION}.features"


def cached(print_: str) -> FeatureSet | None:
    """Returns the features cached under a fingerprint, or None if there are none, or if the file is damaged or not a cached one."""
    data = kept_file(file_of(print_), free_memory() // 2)  # two copies: the file and its tensors
    if data is None:
        return None
    try:
        tensors = from_bytes(data)
    except Exception:  # at a damaged file safetensors raises errors of several kinds
        return None
    if not {"features", "logits"} <= tensors.keys():
        return None
    features, logits = tensors["features"], tensors["logits"]
    are_tables = all(one.dtype == torch.float32 and one.dim() == 2 for one in (features, logits))
    return FeatureSet(features, logits) if are_tables and len(features) == len(logits) else None


def keep(print_: str, features: FeatureSet) -> None:
    """Cache features under a fingerprint."""
    tensors = {"features": features.features.contiguous(), "logits": features.logits.contiguous()}
    keep_file(file_of(print_), to_bytes(tensors))
