"""The provenance of a run's numbers: versions of libraries, the time, an identity."""

from __future__ import annotations

import platform
import uuid
from datetime import datetime, timezone
from importlib import metadata

LIBRARIES = ("torch", "torchvision", "accelerate", "torch-fidelity", "numpy", "scipy", "wandb")


def new_run_id() -> str:
    """A random identity of eight hexadecimal digits."""
    return uuid.uuid4().hex[:8]


def utc_now() -> str:
    """The current time for the record, such as 2026-01-31T12:00:00Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on, without importing them."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}
