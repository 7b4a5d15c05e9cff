"""Architectures: `build(resolution, channels, num_classes) -> (G, D)`; their contract is in `gantrain.models.architecture`."""

from __future__ import annotations

from gantrain.models.architecture import ARCHITECTURE, Architecture
from gantrain.models.biggan import BigGAN

ARCHITECTURES: dict[str, type[Architecture]] = {"biggan": BigGAN}
__all__ = ["ARCHITECTURE", "ARCHITECTURES", "Architecture", "BigGAN"]
