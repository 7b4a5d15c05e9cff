"""Augmentations of what D sees; their contract is in `gantrain.augment.augmentation`."""

from __future__ import annotations

from gantrain.augment.ada import Ada
from gantrain.augment.augmentation import AUGMENTATION, Augmentation
from gantrain.augment.diffaugment import DiffAugment
from gantrain.augment.plain import Plain

AUGMENTATIONS: dict[str, type[Augmentation]] = {"none": Plain, "diffaugment": DiffAugment, "ada": Ada}
__all__ = ["AUGMENTATION", "AUGMENTATIONS", "Ada", "Augmentation", "DiffAugment", "Plain"]
