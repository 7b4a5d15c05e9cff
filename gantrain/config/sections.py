"""The sections of the configuration that are not plug-ins: frozen dataclasses, the only place where their defaults are defined."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from gantrain.averaging.batchnorm import POLICIES
from gantrain.bounds import MOST_GRADIENTS, MOST_IMAGES, MOST_RESAMPLES, MOST_STEPS
from gantrain.clock import periods_from
from gantrain.config.lr_tail import LrTail
from gantrain.config.plugins import adapt_plugins, find
from gantrain.errors import InvalidField, UserError, check, shown
from gantrain.field_marks import MAY_CHANGE, MAY_DIFFER
from gantrain.metrics import EXTRACTORS, METRICS, PROTOCOLS, DigitsFeatures, FeatureExtractor, InceptionScore


@dataclass(frozen=True)
class Orbit:
    """Recording of the motion of the weights; off while `every_kimg` is null.

    Attributes:
        every_kimg: interval in kimg between recordings, at least one update; null records nothing. Evaluations are recorded too. A
            recording takes a line of 0.7 KB for each network and average: ten thousand in a run are plenty.
        size: length of the sketch of a network's weights, live or averaged.
    """

    every_kimg: float | None = field(default=None, metadata=MAY_CHANGE)
    size: int = 128

    def __post_init__(self) -> None:
        check(
            self, "every_kimg", self.every_kimg is None or 0 < self.every_kimg < float("inf"), "must be above 0, or null to record nothing"
        )
        check(self, "size", 8 <= self.size <= 4096, "must be between 8 and 4096")


AUTO = "auto"


@dataclass(frozen=True)
class Swap:
    """When and how an average replaces the live weights; off while `source` is null.

    Attributes:
        source: name of the average, one of `averagers`; null switches swaps off.
        every_kimg: interval in kimg between swaps.
        start_kimg: time of the first swap.
        networks: "g" swaps the generator alone; "gd" also swaps the discriminator, whose average is then followed too. In a game
            that rotates, a swap of one player keeps the other's half of the motion.
        alpha: 1 replaces the live weights; a smaller value moves them this fraction of the way.
        optimizer: what happens to the state of Adam: "keep", "reset_momentum" (its first moment, which belongs to the weights
            before the swap) or "reset" (all of it). A second moment that is kept makes small steps for a while after the swap;
            with a fresh one, the weights heat up again within a few steps.
        growth: factor by which the minibatch grows at each swap. "auto" takes g* from the distances of the live weights to two EMAs,
            squared because under Adam at a fixed rate the variance falls only with the square root of the batch. Above 1 it needs
            `batching: {name: on_swap, max_batch: ...}`.
        lr_scale: factor for both learning rates at each swap; those of several swaps multiply.
        after_kimg: the live weights are scored just before a swap, right after it, and again this many kimg later.
    """

    source: str | None = None
    every_kimg: float = 50.0
    start_kimg: float = 100.0
    networks: Literal["g", "gd"] = "gd"
    alpha: float = 1.0
    optimizer: Literal["keep", "reset_momentum", "reset"] = "keep"
    growth: Any = field(default=1, metadata={"type": "a number or auto"})
    lr_scale: float = 1.0
    after_kimg: float = 5.0

    def __post_init__(self) -> None:
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")
        check(self, "start_kimg", 0 <= self.start_kimg < float("inf"), "must be at least 0")
        check(self, "alpha", 0 < self.alpha <= 1, "must be above 0 and at most 1")
        number = isinstance(self.growth, (int, float)) and not isinstance(self.growth, bool)
        check(
            self,
            "growth",
            self.growth == AUTO or (number and 1 <= self.growth < float("inf")),
            f"must be a number of at least 1, or {AUTO}",
        )
        check(self, "lr_scale", 0 < self.lr_scale < float("inf"), "must be above 0")
        check(self, "after_kimg", 0 < self.after_kimg <= self.every_kimg, f"must be above 0 and at most every_kimg ({self.every_kimg:g})")

    @property
    def grows(self) -> bool:
        return self.source is not None and self.growth != 1

    def due(self, before: int, after: int) -> bool:
        """Whether a swap falls into (before, after] images."""
        return self.source is not None and periods_from(self.start_kimg, self.every_kimg, before, after) > 0


def plugin(kind: str, table: dict[str, type], default: type) -> Any:
    """A field that holds one plug-in."""
    return field(default_factory=default, metadata={"kind": kind, "table": table})


def plugins(kind: str, table: dict[str, type], default: typing.Callable[[], dict]) -> Any:
    """A field that holds plug-ins by free name."""
    return field(default_factory=default, metadata={"kind": kind, "table": table, "mapping": True})


@dataclass(frozen=True)
class Optim:
    """Adam for both players.

    Attributes:
        lr_g: learning rate of the generator.
        lr_d: learning rate of the discriminator.
        betas: Adam's decay rates of the first and of the second moment.
        eps: Adam's epsilon.
        d_steps: steps of D in every update, each on fresh images and latents.
        g_steps: steps of G in every update, each on fresh latents; kimg count the images of an update, whatever this is.
        first: the player whose steps come first in an update; "d" trains G against the D that has just been trained.
        orthogonal_g: weight of G's orthogonal regularisation (Brock et al. 2019, Eq. 3; published with 1e-4).
        orthogonal_d: weight of D's orthogonal regularisation.
        lr_tail: the learning rates late in a run.
    """

    lr_g: float = 2e-4
    lr_d: float = 2e-4
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8
    d_steps: int = 1
    g_steps: int = 1
    first: Literal["d", "g"] = "d"
    orthogonal_g: float = 0.0
    orthogonal_d: float = 0.0
    lr_tail: LrTail = field(default_factory=LrTail)

    def __post_init__(self) -> None:
        check(self, "lr_g", 0 < self.lr_g < float("inf"), "must be above 0")
        check(self, "lr_d", 0 < self.lr_d < float("inf"), "must be above 0")
        check(self, "betas", all(0 <= b < 1 for b in self.betas), "must both be in [0, 1)")
        check(self, "eps", 0 < self.eps < 1, "must be above 0 and below 1")
        check(self, "d_steps", self.d_steps >= 1, "must be at least 1")
        check(self, "d_steps", self.d_steps <= MOST_STEPS, f"must be at most {MOST_STEPS:,}")
        check(self, "g_steps", self.g_steps >= 1, "must be at least 1")
        check(self, "g_steps", self.g_steps <= MOST_STEPS, f"must be at most {MOST_STEPS:,}")
        check(self, "orthogonal_g", 0 <= self.orthogonal_g < float("inf"), "must be at least 0")
        check(self, "orthogonal_d", 0 <= self.orthogonal_d < float("inf"), "must be at least 0")


@dataclass(frozen=True)
class Eval:
    """How the live weights and all averages are scored.

    Attributes:
        every_kimg: interval in kimg between evaluations; null evaluates at the end only.
        protocol: counts of published scores by name (`gantrain.metrics.protocols`): sets num_samples, reference_samples and is_splits.
        num_samples: generated images per score.
        reference: real images to score against instead of the data set: an .npz of statistics, a folder or zip of images as they
            are, a prepared set, a run folder or a CONFIG.yaml; relative to the working directory.
        reference_samples: real images of the reference; null uses all. Statistics in a file are used as they are.
        batch_size: images per forward pass, on each process.
        metrics: what is computed; the first metric is the one that listings and charts show.
        is_splits: number of parts over which the inception score is averaged.
        resamples: number of random halves of the generated images behind a 95% interval of each score; null computes no interval.
        features: the extractor of the features from which scores are computed.
        batchnorm: BatchNorm's statistics in averages: "recalibrate" measures them for the weights; "copy" takes the live ones;
            "average" takes running ones that were averaged like the weights; "batch" normalises every batch by its own.
        recalibration_batches: forward passes of `batch_size` images for "recalibrate".
        truncation: draw z from a normal distribution cut at this absolute value; null does not cut.
        asynchronous: score a checkpoint in a separate process, on the main process's device, while training continues. The
            scores arrive later, with the kimg of the checkpoint; a run waits for its last evaluation.
    """

    every_kimg: float | None = field(default=25.0, metadata=MAY_DIFFER)
    protocol: str | None = None
    num_samples: int = 10_000
    reference: str | None = None
    reference_samples: int | None = 50_000
    batch_size: int = 64
    metrics: tuple[str, ...] = field(default=("fid", "is", "kid", "prc"), metadata={"kind": "metric", "chosen_from": METRICS})
    is_splits: int = InceptionScore.splits
    resamples: int | None = None
    features: FeatureExtractor = plugin("feature extractor", EXTRACTORS, DigitsFeatures)
    batchnorm: str = "recalibrate"
    recalibration_batches: int = 16
    truncation: float | None = None
    asynchronous: bool = field(default=False, metadata={"key": "async", **MAY_DIFFER})  # a reserved word of Python

    def __post_init__(self) -> None:
        adapt_plugins(self)
        check(self, "every_kimg", self.every_kimg is None or 0 < self.every_kimg < float("inf"), "must be above 0, or null")
        check(self, "num_samples", self.num_samples >= 16, "must be at least 16")
        check(self, "num_samples", self.num_samples <= MOST_IMAGES, f"must be at most {MOST_IMAGES:,}")
        check(self, "reference_samples", self.reference_samples is None or self.reference_samples >= 16, "must be at least 16, or null")
        check(self, "batch_size", self.batch_size >= 2, "must be at least 2")
        check(self, "metrics", len(self.metrics) > 0, f"must name at least one of {', '.join(METRICS)}")
        for name in self.metrics:
            try:
                find("metric", METRICS, name)
            except UserError as error:
                raise InvalidField("metrics", name, f"must name metrics ({error})") from None
        check(
            self,
            "reference",
            self.reference is None or (bool(self.reference) and "\0" not in self.reference),
            "must name a file or folder, or be null",
        )
        check(self, "is_splits", self.is_splits >= 1, "must be at least 1")
        check(self, "resamples", self.resamples is None or self.resamples >= 8, "must be at least 8, or null")
        check(self, "resamples", self.resamples is None or self.resamples <= MOST_RESAMPLES, f"must be at most {MOST_RESAMPLES:,}")
        check(self, "protocol", self.protocol is None or self.protocol in PROTOCOLS, f"must be one of {', '.join(PROTOCOLS)}, or null")
        for key, value in (PROTOCOLS[self.protocol].keys if self.protocol else {}).items():
            check(self, key, getattr(self, key) == value, f"is {shown(value)} under protocol={self.protocol}; remove one of them")
        check(self, "batchnorm", self.batchnorm in POLICIES, f"must be one of {', '.join(POLICIES)}")
        check(self, "recalibration_batches", self.recalibration_batches >= 1, "must be at least 1")
        check(self, "recalibration_batches", self.recalibration_batches <= MOST_GRADIENTS, f"must be at most {MOST_GRADIENTS:,}")
        check(self, "truncation", self.truncation is None or 0 < self.truncation < float("inf"), "must be above 0, or null for none")

    @staticmethod
    def decided(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """(the key that sets other keys, the values that it sets), for `gantrain.config.loading`."""
        name = given.get("protocol")
        return "protocol", PROTOCOLS[name].keys if name in PROTOCOLS else {}


@dataclass(frozen=True)
class Checkpoint:
    """How often the run is saved, and which checkpoints are kept.

    Attributes:
        every_kimg: interval in kimg between checkpoints.
        keep_last: how many of the newest checkpoints are kept.
        keep_every_kimg: also keep, permanently, the first checkpoint at or after each multiple of this; null keeps none permanently.
        keep_best: scores such as "eval/ema/fid"; the checkpoint with the best value of each so far is kept in `best/`.
        on_error: whether a checkpoint that cannot be written (a full disk) ends the run: "stop" or "continue".
    """

    every_kimg: float = 25.0
    keep_last: int = 2
    keep_every_kimg: float | None = None
    keep_best: tuple[str, ...] = ()
    on_error: Literal["stop", "continue"] = "stop"

    def __post_init__(self) -> None:
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")
        check(self, "keep_last", self.keep_last >= 1, "must be at least 1")
        check(self, "keep_every_kimg", self.keep_every_kimg is None or 0 < self.keep_every_kimg < float("inf"), "must be above 0, or null")
        check(self, "keep_best", len(set(self.keep_best)) == len(self.keep_best), "must not name a score twice")


Action = Literal["stop", "rollback", "warn"]


@dataclass(frozen=True)
class Guard:
    """What is watched during training, and what is done when it goes wrong.

    Attributes:
        on_nonfinite: what to do when a loss, gradient or weight is nan or infinite: "stop" ends the run, "rollback" returns to an
            earlier checkpoint, "warn" prints a line and continues.
        on_saturation: what to do when D's loss stays below `saturation` times the loss of an uninformative D (all logits 0).
        on_worse: what to do when `score` is worse than `factor` times the best so far (below 1 / `factor` of it if higher is better)
            at `evaluations` evaluations in a row.
        saturation: fraction of D's loss at logits 0; for the hinge loss, 0.02 is a loss of 0.04.
        saturation_kimg: how long D's loss must stay that low.
        score: what `on_worse` watches, such as "eval/ema/fid"; null watches nothing.
        factor: how much worse `score` must be.
        evaluations: how many evaluations in a row must be that bad.
        rollback_to: "last" is the newest checkpoint from before the trouble; "best" is the one with the best `score` (or with the
            first of `checkpoint.keep_best` if no score is watched), which is then kept as if `checkpoint.keep_best` named it.
        max_rollbacks: attempts before the run gives up; the count restarts once a run gets past the point where the trouble began.
        lr_scale: factor for both learning rates at every rollback; those of several rollbacks multiply.
        growth: factor for the batch at every rollback, if the batch policy grows at swaps; those of several rollbacks multiply.
    """

    on_nonfinite: Action = "rollback"
    on_saturation: Action = "warn"
    on_worse: Action = "warn"
    saturation: float = 0.02
    saturation_kimg: float = 10.0
    score: str | None = None
    factor: float = 2.0
    evaluations: int = 3
    rollback_to: Literal["last", "best"] = "last"
    max_rollbacks: int = 3
    lr_scale: float = 1.0
    growth: float = 1.0

    def __post_init__(self) -> None:
        check(self, "saturation", 0 <= self.saturation < 1, "must be in [0, 1)")
        check(self, "saturation_kimg", 0 < self.saturation_kimg < float("inf"), "must be above 0")
        check(self, "factor", 1 < self.factor < float("inf"), "must be above 1")
        check(self, "evaluations", self.evaluations >= 1, "must be at least 1")
        check(
            self,
            "max_rollbacks",
            self.max_rollbacks >= 1,
            "must be at least 1; to never roll back, set on_nonfinite, on_saturation and on_worse to stop or warn",
        )
        check(self, "lr_scale", 0 < self.lr_scale <= 1, "must be above 0 and at most 1")
        check(self, "growth", 1 <= self.growth < float("inf"), "must be at least 1")

    @property
    def rolls_back(self) -> bool:
        """Whether any kind of trouble leads to a rollback."""
        return "rollback" in (self.on_nonfinite, self.on_saturation, self.on_worse)


@dataclass(frozen=True)
class Wandb:
    """Reporting to Weights & Biases.

    Attributes:
        mode: "online", "offline" or "disabled"; "auto" is online if an API key is found, and offline otherwise.
        project: the project of the run.
        entity: the user or team; null is the account's default.
        name: the name of the run; null is the run folder's name.
        group: the group of the run, 1 to 128 characters; null names it after the network, the data and the rest of the configuration,
            so that runs which differ only in their seed are in one group. WANDB_RUN_GROUP wins.
        tags: tags of the run, each of 1 to 64 characters. WANDB_TAGS, separated by commas, wins.
        patience: seconds to wait for W&B at the end of a run, until it has sent everything; training never waits.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "gantrain"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    patience: float = 60.0

    def __post_init__(self) -> None:
        named = self.group is None or (1 <= len(self.group) <= 128 and bool(self.group.strip()))
        check(self, "group", named, "must have 1 to 128 characters, or be null for a name of the configuration")
        check(self, "tags", all(1 <= len(tag) <= 64 and tag.strip() for tag in self.tags), "must each have 1 to 64 characters")
        check(self, "tags", len(set(self.tags)) == len(self.tags), "must not name a tag twice")
        check(self, "patience", 0 < self.patience < float("inf"), "must be above 0")


@dataclass(frozen=True)
class Tracking:
    """What a run reports, and how often.

    Attributes:
        every_kimg: interval in kimg between lines on the console and in metrics.jsonl.
        samples_every_kimg: interval in kimg between sheets of samples, always of the same z; null draws a sheet at the end only.
        sample_rows: images per class on a sheet.
        sample_classes: the largest number of classes on a sheet.
        wandb: reporting to Weights & Biases.
        tensorboard: whether to write an event file into RUN/tensorboard; needs `pip install 'gantrain[tensorboard]'`.
    """

    every_kimg: float = 1.0
    samples_every_kimg: float | None = 25.0
    sample_rows: int = 8
    sample_classes: int = 10
    tensorboard: bool = False
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")
        check(
            self,
            "samples_every_kimg",
            self.samples_every_kimg is None or 0 < self.samples_every_kimg < float("inf"),
            "must be above 0, or null",
        )
        check(self, "sample_rows", 1 <= self.sample_rows <= 64, "must be between 1 and 64")
        check(self, "sample_classes", 1 <= self.sample_classes <= 100, "must be between 1 and 100")
