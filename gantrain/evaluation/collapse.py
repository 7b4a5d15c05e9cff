"""Whether a generator has collapsed although its weights are finite: a constant output, or one that ignores z or y.

A few images say so: eight latents, each with up to four classes, spread evenly over all. A single class that ignores z, two classes that
look alike, or a few pictures that are repeated (mode collapse) are not seen. Two images count as the same picture if no value differs by
more than one level of 255, which is what rounding to bytes alone can do; nothing that is visible is below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gantrain import randomness
from gantrain.data.stream import sent
from gantrain.images import to_uint8
from gantrain.sampling.latents import GeneratorModule

LATENTS, CLASSES = 8, 4  # docs/scores.md names them
SAME = 1  # level of 255
SATURATED = 0.99  # share of real values at the ends of the range, as in drawings, beyond which generated ones may be there too


@torch.no_grad()
def describe_collapse(
    generator: GeneratorModule, seed: int, device: torch.device, batch_size: int, truncation: float | None = None,
    real: Callable[[], Tensor] | None = None,
) -> str:  # fmt: skip
    """Say how a generator has collapsed; empty if it has not, or if its images are not finite, which scores show.

    Args:
        generator: `G(z, y)` in evaluation mode, with `dim_z` and `num_classes`.
        seed: of the latents.
        device: of the generator.
        batch_size: images per forward pass.
        truncation: of z.
        real: returns some real images, uint8; None if there are none.
    """
    count = min(generator.num_classes, CLASSES)
    z = randomness.normal(seed, "collapse/z", 0, LATENTS, generator.dim_z, truncation).repeat_interleave(count, dim=0)
    y = (torch.arange(count) * generator.num_classes // count).repeat(LATENTS)
    z, y = sent(z, device), sent(y, device)
    images = torch.cat([generator(*part) for part in zip(z.split(batch_size), y.split(batch_size))])
    if images.is_floating_point() and not torch.isfinite(images).all():
        return ""
    levels = (to_uint8(images) if images.is_floating_point() else images).int().reshape(LATENTS, count, -1)
    return describe_levels(levels, real, generator.num_classes)


def describe_levels(levels: Tensor, real: Callable[[], Tensor] | None, num_classes: int | None = None) -> str:
    """The same for images `[latents, classes, values]`, in levels of 0..255, of `num_classes` classes; None if these are all."""
    classes, compared = levels.shape[1] > 1, levels.shape[1]
    some = f"; {compared} of {num_classes:,} classes compared" if num_classes is not None and num_classes > compared else ""
    if spread(levels.flatten(0, 1), 0) <= SAME:
        found = f"the output is constant (the same picture for every z{' and y' if classes else ''}{some})"
    elif spread(levels, 0) <= SAME:
        found = f"the output does not depend on z (one picture per class{some})"
    elif classes and spread(levels, 1) <= SAME:
        found = f"the output does not depend on y (the same picture for every class{some})"
    else:
        found = ""
    if share_at_ends(levels) == 1 and (found if real is None else share_at_ends(real()) < SATURATED):
        found += f"{' and' if found else 'the output is'} saturated (every value is -1 or 1)"
    return found


def spread(levels: Tensor, dim: int) -> int:
    """The largest difference between two pictures along a dimension."""
    return int((levels.amax(dim) - levels.amin(dim)).max())


def share_at_ends(levels: Tensor) -> float:
    """The share of values at 0 or 255."""
    return float(((levels == 0) | (levels == 255)).float().mean())


def in_one_line(collapsed: Mapping[str, str]) -> str:
    """What several averages have become: equal ones together; empty if none has collapsed."""
    by_words: dict[str, list[str]] = {}
    for name, words in collapsed.items():
        if words:
            by_words.setdefault(words, []).append(name)
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in by_words.items())
