"""Whether the classes of a data set have equally many images, and what is said about it if they do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import chdtrc

FAR = 2  # images of the largest class for each of the smallest, above which a run says how it draws labels
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
    return (
        f"labels of generated images are uniform over {len(counts)} classes, while the real images keep the frequencies of the data"
        f" ({describe_range(counts)}); a perfect generator of every class would not reach a FID of 0"
    )


def describe_range(counts: Sequence[int]) -> str:
    """The shares of the smallest and of the largest class, and their ratio, such as "9.09% to 90.91% a class, 10 to 1"."""
    few, many, total = min(counts), max(counts), sum(counts)
    ratio = f"{many / few:.3g} to 1" if few else f"{many:,} to 0"
    return f"{few / total:.2%} to {many / total:.2%} a class, {ratio}"


def describe_choice(counts: Sequence[int], labels: str) -> str:
    """How a run draws the labels of generated images, and what this means for its scores; empty if the classes are nearly balanced.

    Args:
        counts: images per class of the data.
        labels: "uniform" or "data", as in the configuration.
    """
    if len(counts) < 2 or not (is_unbalanced(counts) or max(counts) > FAR * min(counts)):
        return ""
    head = f"unbalanced classes ({describe_range(counts)}): labels={labels} draws the labels of generated images"
    if labels == "data":
        return (
            f"{head} with the frequencies of the data, in training and for scores: scores against these images compare equal mixtures of"
            " classes, and a rare class has little weight in them"
        )
    return (
        f"{head} uniformly over {len(counts)} classes, while the real images keep the frequencies of the data: scores compare two mixtures"
        " of classes, so a perfect generator of every class would not reach a FID of 0, and averages are ranked by the balanced mixture;"
        " labels=data draws labels with the frequencies of the data"
    )


def differ(counts: Sequence[int], others: Sequence[int]) -> bool:
    """Whether two sets of images of the same classes mix them so differently that it matters for scores, and not by chance.

    The first is a total variation distance above 5%, the second Pearson's chi-squared test of homogeneity.

    Args:
        counts, others: images per class of each set.
    """
    if not any(counts) or not any(others):
        return False
    table = np.asarray([counts, others], dtype=np.float64)
    table = table[:, table.sum(0) > 0]
    shares = table / table.sum(1, keepdims=True)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    distance = np.abs(shares[0] - shares[1]).sum() / 2
    return bool(distance > TOLERATED and chdtrc(table.shape[1] - 1, ((table - expected) ** 2 / expected).sum()) < BY_CHANCE)


def describe_other_mixture(counts: Sequence[int], drawn: Sequence[int]) -> str:
    """What scores compare, if the reference mixes the classes in another way than the data; empty if it mixes them alike.

    Args:
        counts: images per class of the reference.
        drawn: images per class of the data, from which labels are drawn.
    """
    if not differ(counts, drawn):
        return ""
    return (
        f"labels of generated images have the class frequencies of the data ({describe_range(drawn)}), and the reference has others"
        f" ({describe_range(counts)}); a perfect generator of every class would not reach a FID of 0"
    )
