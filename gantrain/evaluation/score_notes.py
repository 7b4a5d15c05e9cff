"""What stands beside scores: whether the features fit the images, whose class frequencies are compared, and what few images do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gantrain.config.sections import Eval
from gantrain.data import Digits, ImageSet
from gantrain.data.class_balance import describe_mixture
from gantrain.errors import UserError
from gantrain.evaluation.references import Reference, wrap_dataset
from gantrain.evaluation.room import require_room_for_features
from gantrain.metrics import Counts, Metric

LOOKED_AT = 64  # images that are compared with the digits, of the real and of the scored ones
DIGITS = "digits"  # as `made_for` of an extractor
GREY = 16  # levels of 255: mean difference of the channels of RGB images up to which they count as grey, as JPEG and networks leave them
ALIKE = 0.3  # correlation with the digits' mean image; any single digit has at least 0.41, noise about 0
SCORED = "the scored images"


def describe_features(settings: Eval, foreign: Sequence[str], what: str = "scores") -> list[str]:
    """A note if the features describe one data set only, and some images are not known to be of it.

    Args:
        settings: the `eval` section.
        foreign: names of these images.
        what: what is computed from the features.
    """
    made_for, prefix = settings.features.made_for, settings.features.metric_prefix
    if not foreign:
        return []
    are, measure = "is" if len(foreign) == 1 and SCORED not in foreign else "are", "quality" if what == "scores" else "likeness"
    return [
        f"{prefix}* {what} are made for {made_for}, and {' and '.join(foreign)} {are} not known to be {made_for}; of other images they do"
        f" not measure {measure}: set eval.features.name=inception"
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


def resemble_digits(images: Tensor) -> bool:
    """Whether images, generated ones perhaps, may be digits: square, grey, and with a mean image like that of the digits.

    Args:
        images: uint8 `[N, C, H, W]`; a few, of several classes if possible.
    """
    levels = images.cpu().float()
    if images.shape[2] != images.shape[3] or (levels.amax(1) - levels.amin(1)).mean() > GREY:
        return False
    both = torch.stack([levels.mean((0, 1)).flatten(), mean_digit(images.shape[2]).flatten()])
    return bool(torch.corrcoef(both)[0, 1] >= ALIKE)  # nan, of a constant image, is not


@functools.lru_cache(maxsize=2)
def mean_digit(resolution: int) -> Tensor:
    """The mean image of the digits `[H, W]`."""
    pixels = Digits(resolution=resolution).build().pixels
    assert pixels is not None, "the digits are in memory"
    return pixels.float().mean((0, 1))


@functools.lru_cache(maxsize=2)
def known_digits(resolution: int) -> frozenset[bytes]:
    """The pixels of every digit at a resolution."""
    pixels = Digits(resolution=resolution).build().pixels
    assert pixels is not None, "the digits are in memory"
    return frozenset(one.contiguous().numpy().tobytes() for one in pixels)


def describe_classes(counts: Sequence[int], num_classes: int) -> str:
    """What scores compare if generated and real images have, or may have, other frequencies of classes; empty if they have the same.

    Args:
        counts: images per class of the reference; fewer than two if its classes are not known.
        num_classes: of the generator; with 1, nothing is said.
    """
    if num_classes == 1:
        return ""
    if len(counts) == num_classes:
        return describe_mixture(counts)
    uniform = f"labels of generated images are uniform over {num_classes} classes"
    if len(counts) < 2:
        return (
            f"the class frequencies of the reference are unknown, while {uniform}; unless its classes are balanced too, a perfect"
            " generator of every class would not reach a FID of 0"
        )
    return f"the reference has {len(counts)} classes, while {uniform}; a perfect generator of every class may not reach a FID of 0"


@dataclass(frozen=True)
class Remarks:
    """What must stand beside the scores of an evaluator. All processes must ask for it, the first time.

    Attributes:
        settings: the `eval` section.
        metrics: those of the settings.
        real: the reference.
        trained_on: the data set of the run, if the reference is another.
        num_classes: classes of the generator, whose labels are drawn uniformly; 1 for images as they are.
        widths: returns the numbers of features and logits per image.
        scored: returns some of the scored images, uint8; None if they are not looked at, since they are of a run whose data are.
    """

    settings: Eval
    metrics: Sequence[Metric]
    real: Reference
    trained_on: ImageSet | None
    num_classes: int
    widths: Callable[[], tuple[int, int]]
    scored: Callable[[], Tensor] | None = None

    @cached_property
    def foreign(self) -> list[str]:
        """Names of the real images, and of the scored ones, that are not known to be what the features are made for."""
        made_for = self.settings.features.made_for
        if made_for is None:
            return []
        real = [self.real, *([wrap_dataset(self.trained_on, None)] if self.trained_on else [])]
        found = list(dict.fromkeys(one.name for one in real if not shows(made_for, one)))
        strange = made_for == DIGITS and self.scored is not None and not resemble_digits(self.scored())
        return [*found, SCORED] if strange else found

    @property
    def on_features(self) -> list[str]:
        """The note that the features were made for other images; none if they fit."""
        return describe_features(self.settings, self.foreign)

    @property
    def counts(self) -> Counts:
        """How many images and features the scores are of."""
        real = self.real.taken if self.real.take is not None else self.real.count
        return Counts(self.settings.num_samples, real, *self.widths())

    def too_few(self) -> list[str]:
        """The metrics that cannot be computed from so few generated images, with the number that would do; their scores are nan."""
        found, counts = [], self.counts
        for name, metric in zip(self.settings.metrics, self.metrics):
            fewest = metric.fewest(counts.width)
            if counts.fake < fewest:
                found.append(
                    f"eval.metrics: {name} of {counts.width:,} features needs at least {fewest:,} generated images, got {counts.fake:,};"
                    f" use {fewest:,}, or leave {name} out"
                )
        return found

    def require_enough(self) -> None:
        """Refuse metrics that cannot be computed from so few generated images.

        Raises:
            UserError: names the metric and the number that would do.
        """
        for words in self.too_few():
            raise UserError(words)

    def require_room(self, key: str = "eval.num_samples") -> None:
        """Refuse more generated images than main memory holds features of.

        Args:
            key: what has set their number.

        Raises:
            UserError: names the key, the need and what there is.
        """
        require_room_for_features(key, self.settings.num_samples, self.widths())

    @cached_property
    def notes(self) -> list[str]:
        """Everything, a sentence each."""
        counts, prefix = self.counts, self.settings.features.metric_prefix
        mixture = describe_classes(self.real.class_counts, self.num_classes)
        able = [metric for metric in self.metrics if metric.fewest(counts.width) <= counts.fake]
        return [
            *self.on_features,
            *([mixture] if mixture else []),
            *self.too_few(),
            *(prefix + words for metric in able for words in metric.caveats(counts)),
        ]

    def as_protocol(self) -> dict[str, object]:
        """Keys of the record of a score; none if there is nothing to remark."""
        made_for = {"eval/features_made_for": self.settings.features.made_for} if self.foreign else {}
        return {**made_for, **({"eval/notes": self.notes} if self.notes else {})}
