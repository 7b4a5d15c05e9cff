"""The whole configuration of a run, and the checks that no section can make alone.

Where a field is a plug-in, `name:` chooses the class from its table and the other keys are that class's fields.
`gantrain.config.loading` makes a `Config` from YAML files and `section.key=value` overrides.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

import torch

from gantrain.augment import AUGMENTATIONS, Augmentation, Plain
from gantrain.averaging import AVERAGERS, LIVE, Averager, Ema
from gantrain.averaging.swap_growth import reads_orbit
from gantrain.batching import BATCH_POLICIES, BatchPolicy, Fixed, NoiseScale
from gantrain.config.plugins import adapt_plugins, find, name_of
from gantrain.config.sections import AUTO, Checkpoint, Eval, Guard, Optim, Orbit, Swap, Tracking, plugin, plugins
from gantrain.data import DATASETS, DataSource, Digits
from gantrain.errors import InvalidField, check, did_you_mean
from gantrain.field_marks import INCIDENTAL, MAY_CHANGE, MAY_DIFFER
from gantrain.losses import LOSSES, PENALTIES, Hinge, Loss, Penalty
from gantrain.losses.penalties.consistency import Jittering
from gantrain.losses.penalties.jitter import largest_move, least_shift
from gantrain.metrics import METRICS, Metric
from gantrain.models import ARCHITECTURES, Architecture, BigGAN
from gantrain.performance import Performance
from gantrain.schedule import bounds_of

FREE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED_NAMES = (LIVE, "all")


@dataclass(frozen=True)
class Config:
    """A whole run. Every attribute is a section or key of the YAML file.

    Attributes:
        run_dir: the run folder; the same command with the same folder resumes.
        seed: seed of all random numbers: initial weights, order of the images, latents, labels.
        total_kimg: length of the run, in thousands of images per generator update.
        data: the data set.
        labels: how often each class is drawn for generated images, in training, scores and the recalibration of BatchNorm: "uniform"
            is equally often, "data" is as often as in the data. A loss that pairs labels takes those of the real images in training.
        model: the architecture of both networks.
        loss: the losses of G and D.
        penalties: terms that are added to the losses of D and G, by free names; `NAME: null` removes one.
        augment: the augmentation of all images that D sees, real and generated. Samples and scores never show it.
        optim: the optimizers of G and D.
        batching: the batch policy, which decides how large the batch is.
        noise_scale: measurement of the gradient noise scale.
        averagers: averages that follow the weights, by free names; `NAME: null` removes one.
        swap: swaps of an average into the live weights.
        eval: scoring.
        checkpoint: saving.
        guard: what to do when training goes wrong.
        tracking: reporting.
        orbit: recording of the motion of the weights.
        mixed_precision: "bf16" and "fp16" compute convolutions and products in half precision; losses, averages and scores stay in
            float32.
        sync_batchnorm: in training on GPUs, compute BatchNorm's statistics over the micro-batches of all processes. The networks
            then see micro_batch x processes images at a time, so the results depend on the number of processes.
        performance: switches for speed.
    """

    run_dir: str = field(default="runs/gantrain", metadata=INCIDENTAL)
    seed: int = field(default=0, metadata=MAY_DIFFER)
    total_kimg: float = field(default=200.0, metadata=MAY_CHANGE)
    data: DataSource = plugin("data set", DATASETS, Digits)
    labels: Literal["uniform", "data"] = "uniform"
    model: Architecture = plugin("architecture", ARCHITECTURES, BigGAN)
    loss: Loss = plugin("loss", LOSSES, Hinge)
    penalties: dict[str, Penalty] = plugins("penalty", PENALTIES, dict)
    augment: Augmentation = plugin("augmentation", AUGMENTATIONS, Plain)
    optim: Optim = field(default_factory=Optim)
    batching: BatchPolicy = plugin("batch policy", BATCH_POLICIES, Fixed)
    noise_scale: NoiseScale = field(default_factory=NoiseScale)
    averagers: dict[str, Averager] = plugins("averager", AVERAGERS, lambda: {"ema": Ema()})
    swap: Swap = field(default_factory=Swap)
    eval: Eval = field(default_factory=Eval, metadata=MAY_CHANGE)
    checkpoint: Checkpoint = field(default_factory=Checkpoint, metadata=INCIDENTAL)
    guard: Guard = field(default_factory=Guard, metadata=INCIDENTAL)
    tracking: Tracking = field(default_factory=Tracking, metadata=INCIDENTAL)
    orbit: Orbit = field(default_factory=Orbit, metadata=MAY_DIFFER)
    mixed_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    sync_batchnorm: bool = False
    performance: Performance = field(default_factory=Performance, metadata=INCIDENTAL)

    def __post_init__(self) -> None:
        adapt_plugins(self)
        check(self, "run_dir", bool(self.run_dir) and "\0" not in self.run_dir, "must name a folder")
        check(self, "seed", 0 <= self.seed < 2**63, "must be in [0, 2**63)")
        check(self, "total_kimg", 0 < self.total_kimg < float("inf"), "must be above 0")
        for name in self.averagers:
            if name in RESERVED_NAMES or not FREE_NAME.fullmatch(name):
                raise InvalidField(
                    f"averagers.{name}",
                    name,
                    f"must have only letters, digits, '_', '.', '-', and must not be {' or '.join(RESERVED_NAMES)}",
                )
        for name in self.penalties:
            if "." in name or not FREE_NAME.fullmatch(name):  # it is a part of keys, here and in the record
                raise InvalidField(f"penalties.{name}", name, "must have only letters, digits, '_', '-' in its name")
        writing = [name for name, one in self.averagers.items() if one.writes_back]
        if len(writing) > 1:
            raise InvalidField(
                f"averagers.{writing[1]}", writing[1], f"replaces the live weights with its average, as {writing[0]} does; keep only one"
            )
        check_values(self)
        check_penalties(self)
        check_head(self)
        check_augmentation(self)
        check_batching(self)
        if self.swap.source is not None:
            check_swap(self)
        check_guard(self)

    def best_scores(self) -> tuple[str, ...]:
        """Scores whose best checkpoints are kept: those in `keep_best`, and the one that rollbacks to the best use."""
        guard = self.guard
        leads = [guard.score] if guard.score and guard.rollback_to == "best" and guard.rolls_back else []
        return tuple(dict.fromkeys([*self.checkpoint.keep_best, *leads]))

    def followed(self, network: Literal["g", "d"]) -> dict[str, Averager]:
        """The averagers that follow one of the networks.

        D is followed by those with `networks: gd`, and by what a joint swap needs of it.
        """
        if network == "g":
            return self.averagers
        joint = self.swap.source is not None and self.swap.networks == "gd"
        needed = {self.swap.source} if joint else set()
        if joint and self.swap.growth == AUTO:
            needed |= {name for name, one in self.averagers.items() if reads_orbit(one)}
        return {name: one for name, one in self.averagers.items() if name in needed or one.networks == "gd"}


def check_values(config: Config) -> None:
    """Refuse values of plug-ins that their contracts do not allow. gantrain's own refuse them before; those from outside need not.

    Raises:
        InvalidField: with the full key.
    """
    above_0 = {
        **{f"averagers.{name}.update_every_kimg": one.update_every_kimg for name, one in config.averagers.items()},
        **{f"averagers.{name}.snapshot_every_kimg": one.snapshot_every_kimg for name, one in config.averagers.items()},
    }
    at_least_1 = {
        **{f"penalties.{name}.every": one.every for name, one in config.penalties.items()},
        "batching.micro_batch": config.batching.micro_batch,
        "batching.max_batch": config.batching.max_batch,
    }
    for key, value in above_0.items():
        if value is not None and not 0 < value < float("inf"):
            raise InvalidField(key, value, "must be above 0, or null")
    for key, value in at_least_1.items():
        if value is not None and not 1 <= value < float("inf"):
            raise InvalidField(key, value, "must be at least 1")
    for name, one in config.averagers.items():
        if not 0 <= one.start_kimg < float("inf"):
            raise InvalidField(f"averagers.{name}.start_kimg", one.start_kimg, "must be at least 0")


def check_head(config: Config) -> None:
    """Refuse a sliced head of D with a loss that does not train its direction.

    Raises:
        InvalidField: with the full key.
    """
    if config.model.san and not (config.loss.san and not config.loss.generator_sees_real):
        name, able = name_of(LOSSES, config.loss), [name for name, cls in LOSSES.items() if cls.san]
        raise InvalidField("model.san", True, f"does not work with loss.name={name}; use {' or '.join(able)}, or set model.san=false")


def check_penalties(config: Config) -> None:
    """Refuse penalties that cannot be computed for their player, at this precision, or on images of this size.

    Raises:
        InvalidField: with the full key.
    """
    for name, one in config.penalties.items():
        if one.networks != "d" and type(one).term is Penalty.term:
            raise InvalidField(
                f"penalties.{name}.networks", one.networks, "needs a penalty with a method 'term': 'penalty' is for D's phase; use d"
            )
        if one.differentiates_twice and config.performance.compile:
            raise InvalidField(
                "performance.compile",
                True,
                f"does not work with penalties.{name}: torch.compile cannot differentiate twice; set it to false, or use a penalty of first"
                " order, such as fd_r1 for r1",
            )
        if one.differentiates_twice and config.mixed_precision == "fp16":
            raise InvalidField(
                "mixed_precision",
                "fp16",
                f"does not work with penalties.{name}, whose inner gradients would underflow; use bf16 or fp32, or a penalty of first"
                " order, such as fd_r1 for r1",
            )
        side = config.data.resolution
        if isinstance(one, Jittering) and side is not None and one.shift > 0 and not largest_move(side, one.shift):
            raise InvalidField(
                f"penalties.{name}.shift", one.shift, f"must be 0, or at least {least_shift(side):g}, one pixel of data.resolution={side}"
            )


def check_augmentation(config: Config) -> None:
    """Refuse an augmentation that follows the signs of logits under a loss whose logits have no boundary at 0.

    Raises:
        InvalidField: with the full key.
    """
    if config.augment.reads_sign and not separates_by_sign(config.loss):
        raise InvalidField(
            "loss.name",
            name_of(LOSSES, config.loss),
            "must draw logits to 0 where D cannot tell real from generated images, as hinge and nonsaturating do, since the augmentation"
            " follows their signs; or set augment.p to a number or a schedule",
        )


def separates_by_sign(loss: Loss) -> bool:
    """Whether a loss draws D's logits to 0 where D cannot tell real from generated images.

    It does if D's loss of equal logits c for both is least at 0 and symmetric. Losses of differences of logits have no such point,
    and least squares with targets 0 and 1 have it at 1/2. A loss that fails here fails in training, and is reported there.
    """
    try:
        below, at_0, above = (float(loss.discriminator(logits, logits)) for logits in (torch.full((2,), c) for c in (-2.0, 0.0, 2.0)))
    except Exception:
        return True
    return at_0 < above and math.isclose(below, above, rel_tol=1e-4)


def check_batching(config: Config) -> None:
    """Refuse a batch policy that cannot work with the rest of the configuration.

    Raises:
        InvalidField: with the full key.
    """
    policy = config.batching
    try:
        policy.require_fit()
    except InvalidField as error:
        raise InvalidField(f"batching.{error.field}", error.value, error.remedy) from None
    b, highest = policy.micro_batch, policy.max_batch
    if b is not None and highest is not None and highest % b and policy.grows:
        lower = highest - highest % b
        raise InvalidField("batching.max_batch", highest, f"is not a multiple of micro_batch={b}; use {lower} or {lower + b}")
    if policy.reads_noise and config.noise_scale.measure_every is None:
        raise InvalidField("noise_scale.measure_every", None, "must be set, for example to 10: the batch policy uses the noise scale")


def check_swap(config: Config) -> None:
    """Refuse a swap that cannot work with the rest of the configuration.

    Raises:
        InvalidField: with the full key.
    """
    swap, averagers = config.swap, config.averagers
    if swap.source not in averagers:
        raise InvalidField("swap.source", swap.source, f"must name one of averagers ({', '.join(averagers) or 'there are none'})")
    source = averagers[swap.source]
    if source.writes_back:
        raise InvalidField("swap.source", swap.source, "already replaces the live weights by itself; name another average")
    if swap.start_kimg < source.start_kimg:
        raise InvalidField(
            "swap.start_kimg",
            swap.start_kimg,
            f"must be at least averagers.{swap.source}.start_kimg ({source.start_kimg:g}), the start of that average",
        )
    if not swap.grows:
        return
    if config.batching.grows_at_swaps is False:
        raise InvalidField(
            "swap.growth", swap.growth, "above 1 needs a batch that grows at swaps; set batching.name=on_swap and batching.max_batch"
        )
    if config.batching.max_batch is None:
        raise InvalidField("swap.growth", swap.growth, "above 1 needs batching.max_batch, the largest batch allowed")
    if swap.growth == AUTO:
        lives = {bounds_of(one.half_life_kimg) for one in averagers.values() if reads_orbit(one)}
        if len(lives) < 2:
            raise InvalidField(
                "swap.growth",
                swap.growth,
                "needs two averagers of name ema with different constant half_life_kimg that are updated after every update; add one",
            )
        require_one_law(config)
        if not source.has_known_window:
            raise InvalidField(
                "swap.growth",
                swap.growth,
                f"needs a source whose window is known in advance, such as ema, swa or power; that of {swap.source} is not",
            )


def require_one_law(config: Config) -> None:
    """Refuse a growth of its own accord where the batch acts differently on the two players that are swapped.

    Raises:
        InvalidField: for `swap.growth`.
    """
    optim, swap = config.optim, config.swap
    if swap.networks == "gd" and optim.g.normalizes != optim.d.normalizes:
        raise InvalidField(
            "swap.growth",
            swap.growth,
            "needs optimizers of G and D that both divide the gradient by its size, as adam and rmsprop do, or both do not, as sgd;"
            " set a number, or swap.networks=g",
        )


def check_guard(config: Config) -> None:
    """Refuse scores that nothing will compute, and rollbacks that cannot happen.

    Raises:
        InvalidField: with the full key.
    """
    guard = config.guard
    for key in config.checkpoint.keep_best:
        require_score("checkpoint.keep_best", key, config)
    if guard.score is not None:
        require_score("guard.score", guard.score, config)
    if guard.score is None and guard.on_worse == "rollback":
        raise InvalidField("guard.score", None, f"must name a score, such as {example_score(config)}, for on_worse=rollback")
    if guard.rollback_to == "best" and guard.rolls_back and not (guard.score or config.checkpoint.keep_best):
        raise InvalidField("guard.rollback_to", "best", f"needs guard.score or checkpoint.keep_best, such as {example_score(config)}")
    if guard.growth > 1 and (config.batching.grows_at_swaps is False or config.batching.max_batch is None):
        raise InvalidField(
            "guard.growth", guard.growth, "above 1 needs a batch that grows at swaps; set batching.name=on_swap and batching.max_batch"
        )


def require_score(field: str, key: str, config: Config) -> None:
    """Refuse a score that evaluations of this run do not have.

    Raises:
        InvalidField: for `field`.
    """
    parts, names, metrics = key.split("/"), [LIVE, *config.averagers], scores_of(config)
    if len(parts) != 3 or parts[0] != "eval":
        raise InvalidField(field, key, f"must be eval/AVERAGE/METRIC, such as {example_score(config)}")
    if parts[1] not in names:
        raise InvalidField(field, key, f"must name live or one of averagers{did_you_mean(parts[1], names)}")
    if parts[2] not in metrics:
        raise InvalidField(field, key, f"must name a score of eval.metrics{did_you_mean(parts[2], metrics)}")


def scores_of(config: Config) -> list[str]:
    """Names of all scores that an evaluation computes for each average."""
    prefix = config.eval.features.metric_prefix
    metrics: list[type[Metric]] = [find("metric", METRICS, name) for name in config.eval.metrics]
    return [prefix + name for metric in metrics for name in metric.scores]


def example_score(config: Config) -> str:
    """A score of a run, as an example in messages."""
    return f"eval/{[LIVE, *config.averagers][-1]}/{(scores_of(config) or ['fid'])[0]}"
