"""Adaptive discriminator augmentation (Karras et al. 2020, "Training generative adversarial networks with limited data")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gantrain.augment.augmentation import Augmentation
from gantrain.augment.blits import apply_blits, draw_blits
from gantrain.augment.colors import apply_colors, draw_colors
from gantrain.augment.corruptions import add_noise, apply_gains, cut_out, draw_gains
from gantrain.augment.gates import Probability, as_given, in_full
from gantrain.augment.geometry import apply_warp, draw_warp
from gantrain.bounds import MOST_IMAGES
from gantrain.errors import check
from gantrain.randomness import Draws
from gantrain.schedule import Scheduled, bounds_of, value_at

GROUPS = ("blit", "geometric", "color", "filter", "noise", "cutout")


@dataclass(frozen=True)
class Ada(Augmentation):
    """ADA (Karras et al. 2020): transforms of strengths as published, each applied to an image with probability p.

    Attributes:
        p: the probability; null adapts it, from 0, to how far D overfits.
        target: mean sign of D's logits at augmented real images to which p is adapted; it is 1 if D takes all of them to be real.
        length_kimg: how long p would take from 0 to 1 if it always rose.
        every: interval in images between two adjustments of p.
        blit: mirror, turn by quarters and move by whole pixels: the probability of each transform, as a share of p; 0 switches the group
            off.
        geometric: scale, rotate, stretch and move; likewise.
        color: change brightness, contrast, the sign of the luma, hue and saturation; likewise.
        filter: amplify bands of frequencies; likewise.
        noise: add noise; likewise.
        cutout: set a rectangle of half the image's size to 0, which is mid-grey; likewise.
    """

    p: Scheduled | None = None
    target: float = 0.6
    length_kimg: float = 500.0
    every: int = 256
    blit: float = 1.0
    geometric: float = 1.0
    color: float = 1.0
    filter: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        low, high = (0.0, 1.0) if self.p is None else bounds_of(self.p)
        check(self, "p", 0 <= low <= high <= 1, "must be in [0, 1] at all times, or null to adapt it")
        check(self, "target", -1 < self.target < 1, "must be above -1 and below 1")
        check(self, "length_kimg", 0 < self.length_kimg < float("inf"), "must be above 0")
        check(self, "every", self.every >= 1, "must be at least 1")
        check(self, "every", self.every <= MOST_IMAGES, f"must be at most {MOST_IMAGES:,}")
        for group in GROUPS:
            check(self, group, 0 <= getattr(self, group) <= 1, "must be in [0, 1], a share of p")
        some = any(getattr(self, group) for group in GROUPS)
        check(self, "blit", some, f"must be above 0 if {', '.join(GROUPS[1:])} are all 0; or use name=none")

    @property
    def reads_sign(self) -> bool:
        return self.p is None

    def apply(self, x: Tensor, draws: Draws, state: Mapping[str, Tensor], nimg: int) -> Tensor:
        p: Probability = state["p"] if self.p is None else value_at(self.p, nimg)
        if not isinstance(p, Tensor) and p == 0:
            return x
        with torch.autocast(x.device.type, enabled=False):  # places and colors need all digits
            return as_given(self.transform(in_full(x), draws, p), x)

    def transform(self, x: Tensor, draws: Draws, p: Probability) -> Tensor:
        """The pipe: the groups that are switched on, in the published order."""
        height, width = x.shape[2:]
        if self.blit:
            x = apply_blits(x, draw_blits(draws, self.blit * p, height, width))
        if self.geometric:
            x = apply_warp(x, draw_warp(draws, self.geometric * p, height, width))
        if self.color:
            x = apply_colors(x, draw_colors(draws, self.color * p, x.shape[1]))
        if self.filter:
            x = apply_gains(x, *draw_gains(draws, self.filter * p))
        if self.noise:
            x = add_noise(x, draws, self.noise * p)
        if self.cutout:
            x = cut_out(x, draws, self.cutout * p)
        return x

    def initial_state(self) -> dict[str, float]:
        """p; the mean sign over the last interval; the sum of signs and the images of this one; and images seen where it began."""
        return dict.fromkeys(("p", "sign_real", "signs", "images", "since"), 0.0) if self.p is None else {}

    def observe(self, logits_real: Tensor) -> Mapping[str, Tensor]:
        # A logit that is nan has no sign; p would stay nan for good.
        return {"sign": logits_real.sign().nan_to_num(0.0).mean()} if self.p is None else {}

    def next_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor], images: int, nimg: int) -> dict[str, Tensor]:
        """p moves towards 1 if the mean sign is above the target, else towards 0, at the speed of `length_kimg`.

        Time is that of the run: images per update of G, of which D sees `d_steps` times as many.
        """
        if self.p is not None:
            return dict(state)
        signs, seen = state["signs"] + observed["sign"] * images, state["images"] + images
        passed = torch.minimum(nimg + images - state["since"], seen)  # a run that continues another one begins late
        due = passed >= self.every
        mean = signs / seen
        p = (state["p"] + (mean - self.target).sign() * passed / (self.length_kimg * 1000)).clamp(0, 1)
        return {
            "p": torch.where(due, p, state["p"]),
            "sign_real": torch.where(due, mean, state["sign_real"]),
            "signs": torch.where(due, 0.0, signs),
            "images": torch.where(due, 0.0, seen),
            "since": torch.where(due, nimg + images, state["since"]),
        }

    def shown(self, state: Mapping[str, Tensor], nimg: int) -> dict[str, Tensor | float]:
        if self.p is not None:
            return {"p": value_at(self.p, nimg)}
        begun = float(state["since"]) > 0  # there is no mean sign before the first interval has passed
        return {"p": state["p"], **({"sign_real": state["sign_real"]} if begun else {})}
