"""What devices differ in, beyond speed."""

from __future__ import annotations

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """The type for long sums on a device: float64, or float32 on Apple's GPU, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
