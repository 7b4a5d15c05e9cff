"""Where a run's numbers come from: library versions, the time of day, an identity."""

from __future__ import annotations

import platform
import uuid
from datetime import datetime, timezone
from importlib import metadata

LIBRARIES = ("torch", "torchvision", "accelerate", "torch-fidelity", "numpy", "scipy", "wandb")


def new_run_id() -> str:
    return uuid.uuid4().hex[:8]


def utc_now() -> str:
    """The time of day for the record, such as 2026-01-31T12:00:00Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Python and the libraries that numbers depend on, without importing any of them."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}
