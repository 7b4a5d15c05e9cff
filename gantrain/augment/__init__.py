"""Augmentations of what D sees; their contract is in `gantrain.augment.augmentation`."""

from __future__ import annotations

from gantrain.augment.augmentation import AUGMENTATION, Augmentation
from gantrain.augment.plain import Plain

AUGMENTATIONS: dict[str, type[Augmentation]] = {"none": Plain}
__all__ = ["AUGMENTATION", "AUGMENTATIONS", "Augmentation", "Plain"]
