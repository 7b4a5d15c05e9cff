"""What a batch policy is told before every update."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchState:
    """`nimg`: images seen so far; `batch_size`: of the last update."""

    nimg: int
    batch_size: int
