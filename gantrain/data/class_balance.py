"""Whether the classes of a data set have equally many images, and what is said about it if they do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import chdtrc

TOLERATED = 0.05  # total variation distance to equal frequencies: the share of images that would have to change their class
BY_CHANCE = 1e-3  # probability of frequencies as unequal as these, were the classes drawn uniformly


def is_unbalanced(counts: Sequence[int]) -> bool:
    """Whether classes are so unequal that it matters for scores, and more so than a random sample of equal classes would be.

    The first is a total variation distance above 5%, the second Pearson's chi-squared test.

    Args:
        counts: images per class.
    """
    found = np.asarray(counts, dtype=np.float64)
    total, classes = found.sum(), len(found)
    if classes < 2 or total == 0:
        return False
    expected = total / classes
    distance = np.abs(found - expected).sum() / (2 * total)
    return bool(distance > TOLERATED and chdtrc(classes - 1, ((found - expected) ** 2).sum() / expected) < BY_CHANCE)


def describe_mixture(counts: Sequence[int]) -> str:
    """What scores compare, if the classes are unbalanced; empty if they are balanced.

    Args:
        counts: images per class of the real images.
    """
    if not is_unbalanced(counts):
        return ""
    few, many, total = min(counts), max(counts), sum(counts)
    ratio = f"{many / few:.3g} to 1" if few else f"{many:,} to 0"
    return (
        f"labels of generated images are uniform over {len(counts)} classes, while the real images keep the frequencies of the data"
        f" ({few / total:.2%} to {many / total:.2%} a class, {ratio}); a perfect generator of every class would not reach a FID of 0"
    )
