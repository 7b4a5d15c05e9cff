"""Features of the real images, kept on disk by what they were made from."""
from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from gantrain.metrics.featureset import FeatureSet


def cache_folder() -> Path:
    """`$GANTRAIN_CACHE`, or `~/.cache/gantrain`."""
    return Path(os.environ.get("GANTRAIN_CACHE") or Path.home() / ".cache" / "gantrain")


def fingerprint(images: str, count: int, extractor: str) -> str:
    """What a reference is: SHA-256 (16 hex digits) of the images' fingerprint, how many, and the extractor's identity."""
    return hashlib.sha256(f"{images}/{count}/{extractor}".encode()).hexdigest()[:16]


def cached(print_: str) -> FeatureSet | None:
    """The features kept under a fingerprint, None where there are none or they cannot be read."""
    try:
        tensors = from_bytes((cache_folder() / f"reference-{print_}.safetensors").read_bytes())
        return FeatureSet(tensors["features"], tensors["logits"])
    except (OSError, SafetensorError, KeyError):
        return None


def keep(print_: str, features: FeatureSet) -> None:
    """Keep features for the next run. A cache that cannot be written is no error: the next run computes them again."""
    folder = cache_folder()
    draft = folder / f".reference-{print_}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(to_bytes({"features": features.features.contiguous(), "logits": features.logits.contiguous()}))
        os.replace(draft, folder / f"reference-{print_}.safetensors")
    except OSError:
        with suppress(OSError):
            draft.unlink()
