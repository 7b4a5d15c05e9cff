"""No augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gantrain.augment.augmentation import Augmentation
from gantrain.randomness import Draws


@dataclass(frozen=True)
class Plain(Augmentation):
    """D sees the images as they are."""

    def apply(self, x: Tensor, draws: Draws, state: Mapping[str, Tensor], nimg: int) -> Tensor:
        return x
