"""What stands beside scores: whether the features fit the images, whose class frequencies are compared, and what few images do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from gantrain.config.sections import Eval
from gantrain.data import Digits
from gantrain.data.class_balance import describe_mixture
from gantrain.evaluation.references import Reference
from gantrain.metrics import Counts, Metric

LOOKED_AT = 64  # images that are compared with the digits
DIGITS = "digits"  # as `made_for` of an extractor


def describe_features(settings: Eval, named: Sequence[str], known: bool) -> list[str]:
    """A note if the features describe one data set only, and the images are not known to be of it.

    Args:
        settings: the `eval` section.
        named: what the images are called.
        known: whether they are of the data set that the features are made for.
    """
    made_for, prefix = settings.features.made_for, settings.features.metric_prefix
    if made_for is None or known:
        return []
    return [
        f"{prefix}*: the features are made for {made_for}, and {' and '.join(dict.fromkeys(named))} is not known to be {made_for};"
        " for other images these scores do not measure quality; set eval.features.name=inception"
    ]


def shows(made_for: str, reference: Reference) -> bool:
    """Whether real images are known to be of the data set that features are made for: by content, or as a file of statistics says."""
    file = reference.statistics
    if reference.take is not None and reference.shape is not None:
        if made_for == DIGITS:
            return are_digits(reference.take, reference.taken, reference.shape)
        return reference.name == made_for
    return file is not None and (file.data == made_for if file.data is not None else file.name == made_for)


def are_digits(take: Callable[[int, int], Tensor], count: int, shape: tuple[int, int, int]) -> bool:
    """Whether images are digits of the data set `digits`, pixel by pixel, at their resolution, grey or as grey RGB.

    Args:
        take: reads images: (start, count) to uint8 `[count, C, H, W]`.
        count: how many there are; the first 64 are compared.
        shape: (C, H, W) of the images.
    """
    if shape[1] != shape[2] or count == 0:
        return False
    images = take(0, min(LOOKED_AT, count)).cpu()
    grey = images[:, :1]
    return bool((images == grey).all()) and {one.numpy().tobytes() for one in grey} <= known_digits(shape[1])


@functools.lru_cache(maxsize=2)
def known_digits(resolution: int) -> frozenset[bytes]:
    """The pixels of every digit at a resolution."""
    pixels = Digits(resolution=resolution).build().pixels
    assert pixels is not None, "the digits are in memory"
    return frozenset(one.contiguous().numpy().tobytes() for one in pixels)


def describe_counts(settings: Eval, metrics: Sequence[Metric], counts: Counts) -> list[str]:
    """What metrics say about the numbers of images, with the prefix of their scores."""
    prefix = settings.features.metric_prefix
    return [
        *too_few(settings, metrics, counts),
        *(prefix + words for metric in metrics if metric.fewest(counts.width) <= counts.fake for words in metric.caveats(counts)),
    ]


def too_few(settings: Eval, metrics: Sequence[Metric], counts: Counts) -> list[str]:
    """The metrics that cannot be computed from so few generated images, with the number that would do."""
    found = []
    for name, metric in zip(settings.metrics, metrics):
        fewest = metric.fewest(counts.width)
        if counts.fake < fewest:
            found.append(
                f"eval.metrics: {name} of {counts.width:,} features needs at least {fewest:,} generated images, got {counts.fake:,};"
                f" use {fewest:,}, or leave {name} out"
            )
    return found


def describe_labels(reference: Reference, num_classes: int) -> list[str]:
    """Whose class frequencies are compared, if the reference is unbalanced and the generator has classes."""
    mixture = describe_mixture(reference.class_counts) if num_classes > 1 else ""
    return [mixture] if mixture else []
