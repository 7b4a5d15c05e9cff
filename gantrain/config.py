"""The configuration's sections: frozen dataclasses, where every default stands and nowhere else.

Where a section is a plug-in, `name:` chooses the class from its table and the other keys are that class's fields.
`gantrain.loading` makes these from YAML files and `section.key=value` overrides.
"""
from __future__ import annotations

import re
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from gantrain.averaging import AVERAGERS, LIVE, Ema
from gantrain.averaging.batchnorm import POLICIES
from gantrain.averaging.swap import AUTO, Swap, reads_orbit
from gantrain.batching import BATCH_POLICIES, Fixed, NoiseScale
from gantrain.data import DATASETS, Digits
from gantrain.errors import InvalidField, UserError, check, did_you_mean, shown
from gantrain.losses import LOSSES, PENALTIES, Hinge
from gantrain.metrics import EXTRACTORS, METRICS, PROTOCOLS, DigitsFeatures, InceptionScore
from gantrain.models import ARCHITECTURES, BigGAN
from gantrain.plugins import find
from gantrain.schedules import LrTail
from gantrain.theory.sketch import Orbit

FREE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED_NAMES = (LIVE, "all")


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
        lr_g, lr_d: learning rates.
        betas, eps: of Adam.
        d_steps: D updates, each on fresh data, before every G update.
        orthogonal_g, orthogonal_d: weight of orthogonal regularisation (Brock et al. 2019, Eq. 3; published 1e-4 for G).
        lr_tail: what the rates do towards the end.
    """

    lr_g: float = 2e-4
    lr_d: float = 2e-4
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8
    d_steps: int = 1
    orthogonal_g: float = 0.0
    orthogonal_d: float = 0.0
    lr_tail: LrTail = field(default_factory=LrTail)

    def __post_init__(self) -> None:
        check(self, "lr_g", 0 < self.lr_g < float("inf"), "must be above 0")
        check(self, "lr_d", 0 < self.lr_d < float("inf"), "must be above 0")
        check(self, "betas", all(0 <= b < 1 for b in self.betas), "must both be in [0, 1)")
        check(self, "eps", 0 < self.eps < 1, "must be above 0 and below 1")
        check(self, "d_steps", self.d_steps >= 1, "must be at least 1")
        check(self, "orthogonal_g", 0 <= self.orthogonal_g < float("inf"), "must be at least 0")
        check(self, "orthogonal_d", 0 <= self.orthogonal_d < float("inf"), "must be at least 0")


@dataclass(frozen=True)
class Eval:
    """How the live weights and every average are scored.

    Attributes:
        every_kimg: null scores at the end only.
        protocol: counts of published scores by name (`gantrain.metrics.protocols`): sets num_samples, reference_samples and is_splits.
        num_samples: generated images a score.
        reference: real images to score against in place of the data set: an .npz of statistics, a folder or zip of images as they
            are, a prepared set, a run folder or a CONFIG.yaml; relative to the working directory.
        reference_samples: real images of the reference; null takes all. Statistics in a file are taken whole.
        batch_size: images a forward, on each process.
        metrics: names from the table of metrics.
        is_splits: parts over which the inception score is averaged.
        resamples: random halves of the generated images behind a 95% interval of each score; null computes none.
        features: the extractor behind them.
        batchnorm: "recalibrate" measures statistics for the weights at hand; "copy" takes the live ones; "average" takes
            running ones that were averaged like the weights; "batch" normalises every batch by its own.
        recalibration_batches: forwards of `batch_size` images for "recalibrate".
        truncation: draw z from the normal cut at this absolute value; null does not cut.
        asynchronous: (in files `async`) score a checkpoint in a process of its own, on the main process's device, while training goes
            on; the line arrives later, at its kimg. The last evaluation of a run is always waited for.
    """

    every_kimg: float | None = 25.0
    protocol: str | None = None
    num_samples: int = 10_000
    reference: str | None = None
    reference_samples: int | None = 50_000
    batch_size: int = 64
    metrics: tuple[str, ...] = ("fid", "is", "kid", "prc")
    is_splits: int = InceptionScore.splits
    resamples: int | None = None
    features: Any = plugin("feature extractor", EXTRACTORS, DigitsFeatures)
    batchnorm: str = "recalibrate"
    recalibration_batches: int = 16
    truncation: float | None = None
    asynchronous: bool = field(default=False, metadata={"key": "async"})  # a word that Python keeps for itself

    def __post_init__(self) -> None:
        check(self, "every_kimg", self.every_kimg is None or 0 < self.every_kimg < float("inf"), "must be above 0, or null")
        check(self, "num_samples", self.num_samples >= 16, "must be at least 16")
        check(self, "reference_samples", self.reference_samples is None or self.reference_samples >= 16, "must be at least 16, or null")
        check(self, "batch_size", self.batch_size >= 2, "must be at least 2")
        check(self, "metrics", len(self.metrics) > 0, f"must name at least one of {', '.join(METRICS)}")
        for name in self.metrics:
            try:
                find("metric", METRICS, name)
            except UserError as error:
                raise InvalidField("metrics", name, f"must name metrics ({error})") from None
        check(self, "reference", self.reference is None or bool(self.reference) and "\0" not in self.reference, "must name a file or folder, or be null")
        check(self, "is_splits", self.is_splits >= 1, "must be at least 1")
        check(self, "resamples", self.resamples is None or self.resamples >= 8, "must be at least 8, or null")
        check(self, "protocol", self.protocol is None or self.protocol in PROTOCOLS, f"must be one of {', '.join(PROTOCOLS)}, or null")
        for key, value in (PROTOCOLS[self.protocol].keys if self.protocol else {}).items():
            check(self, key, getattr(self, key) == value, f"is {shown(value)} under protocol={self.protocol}; leave one of them out")
        check(self, "batchnorm", self.batchnorm in POLICIES, f"must be one of {', '.join(POLICIES)}")
        check(self, "recalibration_batches", self.recalibration_batches >= 1, "must be at least 1")
        check(self, "truncation", self.truncation is None or 0 < self.truncation < float("inf"), "must be above 0, or null for none")

    @staticmethod
    def decided(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """(the key that decides about others, what it makes of them), for `gantrain.loading`."""
        name = given.get("protocol")
        return "protocol", PROTOCOLS[name].keys if name in PROTOCOLS else {}


@dataclass(frozen=True)
class Checkpoint:
    """How often the run is saved, and which checkpoints are kept.

    Attributes:
        every_kimg: how often one is written.
        keep_last: how many of the newest stay.
        keep_every_kimg: of those that pass a multiple of this, one each stays for good; null keeps none for good.
        keep_best: scores such as "eval/ema/fid"; at the best value of each so far a checkpoint stays in `best/`.
        on_error: what a checkpoint that cannot be written (a full disk) does to the run: "stop" or "continue".
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
        check(self, "keep_best", len(set(self.keep_best)) == len(self.keep_best), "must name every score once")


Action = Literal["stop", "rollback", "warn"]


@dataclass(frozen=True)
class Guard:
    """What is watched while a run trains, and what is done when it goes wrong.

    Attributes:
        on_nonfinite: a loss, gradient or weight is nan or infinite. "stop" ends the run; "rollback" returns to a checkpoint of
            before; "warn" says it and goes on.
        on_saturation: the loss of D stays below `saturation` times what a D that tells nothing has (its loss at logits 0).
        on_worse: `score` is worse than `factor` times the best so far (below its `factor`-th part, where higher is better)
            at `evaluations` evaluations in a row.
        saturation: share of D's loss at logits 0; for the hinge, 0.02 is a loss of 0.04.
        saturation_kimg: for how long.
        score: what `on_worse` watches, such as "eval/ema/fid"; null watches none.
        factor: above 1.
        evaluations: how many in a row.
        rollback_to: "last", the newest checkpoint from before the trouble, or "best", the one with the best `score` (or first of
            `checkpoint.keep_best`, where no score is watched), which is then kept as if `checkpoint.keep_best` named it.
        max_rollbacks: attempts, before the run gives up; counted anew once one leads to beyond where the first began.
        lr_scale: multiplies both learning rates at every rollback; the factors of several multiply.
        growth: multiplies the batch at every rollback, where the batch policy grows at swaps; likewise.
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
        check(self, "max_rollbacks", self.max_rollbacks >= 1, "must be at least 1; on_nonfinite=stop and its like roll back never")
        check(self, "lr_scale", 0 < self.lr_scale <= 1, "must be above 0 and at most 1")
        check(self, "growth", 1 <= self.growth < float("inf"), "must be at least 1")

    @property
    def rolls_back(self) -> bool:
        """Ever."""
        return "rollback" in (self.on_nonfinite, self.on_saturation, self.on_worse)


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases.

    Attributes:
        mode: "auto" goes online where a key is found and offline elsewhere; or "online", "offline", "disabled".
        project: that the run belongs to.
        entity: user or team; null is the account's default.
        name: of the run; null is the run folder's name.
        patience: seconds that the end of a run waits for W&B to take what is left; training never waits.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "gantrain"
    entity: str | None = None
    name: str | None = None
    patience: float = 60.0

    def __post_init__(self) -> None:
        check(self, "patience", 0 < self.patience < float("inf"), "must be above 0")


@dataclass(frozen=True)
class Tracking:
    """What is reported of a run, and how often.

    Attributes:
        every_kimg: a console line and a line in metrics.jsonl.
        samples_every_kimg: a picture of samples of fixed z; null draws one at the end only.
        sample_rows: images a class in that picture.
        sample_classes: at most so many classes in it.
    """

    every_kimg: float = 1.0
    samples_every_kimg: float | None = 25.0
    sample_rows: int = 8
    sample_classes: int = 10
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")
        check(self, "samples_every_kimg", self.samples_every_kimg is None or 0 < self.samples_every_kimg < float("inf"), "must be above 0, or null")
        check(self, "sample_rows", 1 <= self.sample_rows <= 64, "must be between 1 and 64")
        check(self, "sample_classes", 1 <= self.sample_classes <= 100, "must be between 1 and 100")


@dataclass(frozen=True)
class Performance:
    """Switches for speed; none changes what is computed beyond rounding. A run says at its start which are on.

    Attributes:
        auto: a switch that is null is on where it was measured to be fast on the device; false leaves it off.
        channels_last: keep images and convolution weights in NHWC order.
        compile: compile both networks with torch.compile; the first updates then take minutes.
        tf32: let CUDA matrix products and convolutions round their inputs to TF32.
        keep_memory: on a CPU, keep the memory of freed tensors for the next ones instead of giving it back to the system.
    """

    auto: bool = True
    channels_last: bool | None = None
    compile: bool | None = None
    tf32: bool | None = None
    keep_memory: bool | None = None


@dataclass(frozen=True)
class Config:
    """A whole run. Every attribute is a section or key of the YAML file.

    `sync_batchnorm` has BatchNorm take its statistics, in training, over the micro-batches of all processes (on GPUs): the networks then see
    micro_batch x processes images at a time, so that other numbers of processes give other results.
    """

    run_dir: str = "runs/gantrain"
    seed: int = 0
    total_kimg: float = 200.0
    data: Any = plugin("data set", DATASETS, Digits)
    model: Any = plugin("architecture", ARCHITECTURES, BigGAN)
    loss: Any = plugin("loss", LOSSES, Hinge)
    penalties: dict = plugins("penalty", PENALTIES, dict)
    optim: Optim = field(default_factory=Optim)
    batching: Any = plugin("batch policy", BATCH_POLICIES, Fixed)
    noise_scale: NoiseScale = field(default_factory=NoiseScale)
    averagers: dict = plugins("averager", AVERAGERS, lambda: {"ema": Ema()})
    swap: Swap = field(default_factory=Swap)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    guard: Guard = field(default_factory=Guard)
    tracking: Tracking = field(default_factory=Tracking)
    orbit: Orbit = field(default_factory=Orbit)
    mixed_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    sync_batchnorm: bool = False
    performance: Performance = field(default_factory=Performance)

    def __post_init__(self) -> None:
        check(self, "run_dir", bool(self.run_dir) and "\0" not in self.run_dir, "must name a folder")
        check(self, "seed", 0 <= self.seed < 2**63, "must be in [0, 2**63)")
        check(self, "total_kimg", 0 < self.total_kimg < float("inf"), "must be above 0")
        for name in self.averagers:
            if name in RESERVED_NAMES or not FREE_NAME.fullmatch(name):
                raise InvalidField(f"averagers.{name}", name, f"a free name has letters, digits, '_', '.', '-' and is none of {', '.join(RESERVED_NAMES)}")
        writing = [name for name, one in self.averagers.items() if getattr(one, "writes_back", False)]
        if len(writing) > 1:
            raise InvalidField(f"averagers.{writing[1]}", writing[1], f"puts the live weights back to its average as {writing[0]} does: keep one of them")
        if self.penalties and self.performance.compile:
            raise InvalidField("performance.compile", True, "cannot be together with penalties: torch.compile has no gradient of a gradient")
        if self.penalties and self.mixed_precision == "fp16":
            raise InvalidField("mixed_precision", "fp16", "cannot be together with penalties, whose inner gradients would underflow: use bf16 or fp32")
        check_batching(self)
        if self.swap.source is not None:
            check_swap(self)
        check_guard(self)

    def best_scores(self) -> tuple[str, ...]:
        """Scores whose best checkpoints are kept: those asked for, and the one that rollbacks to the best go by."""
        guard = self.guard
        leads = [guard.score] if guard.score and guard.rollback_to == "best" and guard.rolls_back else []
        return tuple(dict.fromkeys([*self.checkpoint.keep_best, *leads]))

    def followed(self, network: Literal["g", "d"]) -> dict:
        """The averagers that follow one of the networks.

        D is followed by those with `networks: gd`, and by what a joint swap needs of it.
        """
        if network == "g":
            return self.averagers
        joint = self.swap.source is not None and self.swap.networks == "gd"
        needed = {self.swap.source} if joint else set()
        if joint and self.swap.growth == AUTO:
            needed |= {name for name, one in self.averagers.items() if reads_orbit(one)}
        return {name: one for name, one in self.averagers.items() if name in needed or getattr(one, "networks", "g") == "gd"}


def check_batching(config: Config) -> None:
    """Refuse a batch policy that cannot be: what its fields cannot see alone.

    Raises:
        InvalidField: with the full key.
    """
    if hasattr(config.batching, "require_fit"):
        try:
            config.batching.require_fit()
        except InvalidField as error:
            raise InvalidField(f"batching.{error.field}", error.value, error.remedy) from None
    b, highest = getattr(config.batching, "micro_batch", None), getattr(config.batching, "max_batch", None)
    if b is not None and highest is not None and highest % b and getattr(config.batching, "grows", True):
        lower = highest - highest % b
        raise InvalidField("batching.max_batch", highest, f"cannot be had in rounds of micro_batch={b} images: choose {lower} or {lower + b}")
    if getattr(config.batching, "reads_noise", False) and config.noise_scale.measure_every is None:
        raise InvalidField("noise_scale.measure_every", None, "must be given, such as 10: the batch policy goes by what it measures")


def check_swap(config: Config) -> None:
    """Refuse a swap that cannot be: what the section cannot see alone.

    Raises:
        InvalidField: with the full key.
    """
    swap, averagers = config.swap, config.averagers
    if swap.source not in averagers:
        raise InvalidField("swap.source", swap.source, f"must name one of averagers ({', '.join(averagers) or 'there are none'})")
    source = averagers[swap.source]
    if getattr(source, "writes_back", False):
        raise InvalidField("swap.source", swap.source, "puts itself into the live weights already: name another average")
    begins = getattr(source, "start_kimg", 0.0)
    if swap.start_kimg < begins:
        raise InvalidField("swap.start_kimg", swap.start_kimg, f"must be at least averagers.{swap.source}.start_kimg ({begins:g}), where that average begins")
    if not swap.grows:
        return
    if not getattr(config.batching, "grows_at_swaps", True):
        raise InvalidField("swap.growth", swap.growth, "above 1 needs a batch that grows at swaps: batching.name=on_swap and batching.max_batch")
    if getattr(config.batching, "max_batch", None) is None:
        raise InvalidField("swap.growth", swap.growth, "above 1 needs batching.max_batch, the largest batch that it may reach")
    if swap.growth == AUTO:
        lives = {one.half_life_kimg for one in averagers.values() if reads_orbit(one)}
        if len(lives) < 2:
            raise InvalidField("swap.growth", swap.growth, "reads the orbit off two averagers of name ema with different half_life_kimg, looking after every update: add one")
        if not hasattr(source, "weight"):
            raise InvalidField("swap.growth", swap.growth, f"needs a source whose window is known in advance, such as ema, swa or power, and {swap.source} is none")


def check_guard(config: Config) -> None:
    """Refuse scores that nothing will compute, and rollbacks that cannot be.

    Raises:
        InvalidField: with the full key.
    """
    guard = config.guard
    for key in config.checkpoint.keep_best:
        require_score("checkpoint.keep_best", key, config)
    if guard.score is not None:
        require_score("guard.score", guard.score, config)
    if guard.score is None and guard.on_worse == "rollback":
        raise InvalidField("guard.score", None, f"must name a score, such as {example_score(config)}: on_worse=rollback goes by it")
    if guard.rollback_to == "best" and guard.rolls_back and not (guard.score or config.checkpoint.keep_best):
        raise InvalidField("guard.rollback_to", "best", f"needs guard.score or checkpoint.keep_best, such as {example_score(config)}")
    if guard.growth > 1 and (not getattr(config.batching, "grows_at_swaps", True) or getattr(config.batching, "max_batch", None) is None):
        raise InvalidField("guard.growth", guard.growth, "above 1 needs a batch that grows at swaps: batching.name=on_swap and batching.max_batch")


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
    """Names of all scores that an evaluation of a run gives each average."""
    prefix = getattr(config.eval.features, "metric_prefix", "")
    return [prefix + name for metric in config.eval.metrics for name in getattr(find("metric", METRICS, metric), "scores", ())]


def example_score(config: Config) -> str:
    """A score of a run, for whoever has named none."""
    return f"eval/{[LIVE, *config.averagers][-1]}/{(scores_of(config) or ['fid'])[0]}"


def batching_notes(config: Config) -> list[str]:
    """Settings of batch and noise scale without effect."""
    noise, batching, total = config.noise_scale, config.batching, config.total_kimg
    parts = {"": batching, **{f".of.{name}": part for name, part in getattr(batching, "of", {}).items()}}
    found = []
    for where, part in parts.items():
        for kimg, _ in getattr(part, "milestones", None) or ():
            if kimg >= total:
                found.append(f"batching{where}.milestones: {kimg:g} is not before total_kimg={total:g}: it will have no effect")
        if getattr(part, "reads_noise", False) and hasattr(part, "dwell_kimg"):
            least = getattr(part, "patience", 1) * noise.window * (noise.measure_every or 1) * batching.batch_size / 1000
            if max(least, part.dwell_kimg) >= total:
                found.append(f"batching{where}: checks and dwell take {max(least, part.dwell_kimg):g} kimg, and total_kimg is {total:g}: the batch will not grow by noise")
    if isinstance(batching, Fixed) and (batching.max_batch is not None or batching.lr_scaling != "none"):
        found.append("batching.name=fixed: the batch stays, max_batch and lr_scaling have no effect")
    if noise.measure_every is None and noise != NoiseScale():
        found.append("noise_scale.measure_every is null: the other settings of noise_scale have no effect")
    return found


def notes(config: Config) -> list[str]:
    """What a user should know of a configuration that is no mistake: settings without effect."""
    total = config.total_kimg
    starts = {
        f"averagers.{name}.{key}": getattr(one, key, None) or 0
        for name, one in config.averagers.items() for key in ("start_kimg", "every_kimg", "update_every_kimg", "snapshot_every_kimg")
    }  # fmt: skip
    if config.orbit.every_kimg is not None:
        starts["orbit.every_kimg"] = config.orbit.every_kimg
    if config.optim.lr_tail.kind != "none":
        starts["optim.lr_tail.start_kimg"] = config.optim.lr_tail.start_kimg
    if config.swap.source is not None:
        starts["swap.start_kimg"] = config.swap.start_kimg
    found = [f"{key}={start:g} is not before total_kimg={total:g}: it will have no effect" for key, start in starts.items() if start >= total]
    if config.swap.source is not None:
        if config.swap.optimizer == "reset_momentum" and config.optim.betas[0] == 0:
            found.append("swap.optimizer=reset_momentum has nothing to reset: optim.betas[0] is 0")
    elif config.swap != Swap():
        found.append("swap.source is null: the other settings of swap have no effect")
    if getattr(config.batching, "grows_at_swaps", False) and not config.swap.grows and config.guard.growth == 1:
        found.append("batching: on_swap grows the batch at swaps, and swap asks for no growth: it has no effect")
    found += batching_notes(config)
    if config.guard.score is not None and config.eval.every_kimg is None:
        found.append("guard.score is watched at evaluations, and eval.every_kimg is null: it has no effect")
    if config.orbit.every_kimg is None and config.orbit != Orbit():
        found.append("orbit.every_kimg is null: the other settings of orbit have no effect")
    if config.swap.growth == AUTO and config.swap.source is not None and getattr(config.batching, "lr_scaling", "none") != "none":
        found.append(f"batching.lr_scaling={config.batching.lr_scaling} raises the rates as the batch grows, and swap.growth=auto reckons with rates that stay")
    for name, penalty in config.penalties.items():
        if getattr(penalty, "every", 1) > 1 and config.noise_scale.measure_every is not None:
            found.append(f"penalties.{name} is lazy: D's noise scale is measured at steps without it")
    kept = [name for name, one in config.averagers.items() if getattr(one, "snapshot_every_kimg", None) is not None]
    if len({config.averagers[name].exponent for name in kept if hasattr(config.averagers[name], "exponent")}) == 1:
        found.append(f"averagers.{kept[0]}: snapshots of one length alone rebuild few others; a second power average of another length widens the range")
    for name, one in config.averagers.items():
        if getattr(one, "offload", False) and getattr(one, "update_every_kimg", None) is None:
            found.append(f"averagers.{name}.offload copies the live weights after every update; update_every_kimg makes that rarer, and the rule goes by the images in between")
    return found
