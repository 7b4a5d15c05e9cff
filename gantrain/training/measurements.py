"""What a run measures as it trains, summed between two lines of the record."""

from __future__ import annotations

import resource
import sys

import torch


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
