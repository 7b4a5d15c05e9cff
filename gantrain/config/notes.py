"""Notes about a configuration that are printed before the run starts."""

from __future__ import annotations

import dataclasses
from typing import Any

from gantrain.augment import Ada
from gantrain.batching import BatchPolicy, ByNoiseScale, Fixed, Largest, NoiseScale, Schedule
from gantrain.config.config import Config
from gantrain.config.scheduled_keys import RATES, find_schedules, schedule_notes
from gantrain.config.sections import AUTO, Guard, Optim, Orbit, Swap
from gantrain.losses import Penalty, Wasserstein
from gantrain.losses.penalties import LatentConsistency, LeCam, PathLength
from gantrain.losses.penalties.consistency import Jittering
from gantrain.losses.penalties.finite_differences import SIGMA_OF_BF16, FiniteDifference
from gantrain.models import BigGAN
from gantrain.optimizers import Adam, RmsProp, Sgd
from gantrain.schedule import bounds_of

STARTS = (
    "start_kimg",
    "every_kimg",
    "update_every_kimg",
    "snapshot_every_kimg",
)  # times that should come before the end

MOST_P = 0.8  # below which augmentations were not seen to leak (Karras et al. 2020, section 3)
LEAST_RISE = 0.5  # a p that cannot rise this far is worth a note


def batching_notes(config: Config) -> list[str]:
    """Notes about settings of the batch and the noise scale without effect."""
    noise, batching, total = config.noise_scale, config.batching, config.total_kimg
    parts: dict[str, BatchPolicy] = {"": batching}
    if isinstance(batching, Largest):
        parts |= {f".of.{name}": part for name, part in batching.of.items()}
    found = []
    # `milestones`, `patience` and `dwell_kimg` are keys of gantrain's own policies and no part of the contract: in a policy from outside
    # they may mean something else, so no note is made of them.
    for where, part in parts.items():
        if isinstance(part, Schedule):
            found += [
                f"batching{where}.milestones: {kimg:g} is not before total_kimg={total:g}: it will have no effect"
                for kimg, _ in part.milestones or ()
                if kimg >= total
            ]
        if isinstance(part, ByNoiseScale):
            checks = part.patience * noise.window * (noise.measure_every or 1) * batching.first_batch / 1000
            least = max(checks, part.dwell_kimg)
            if least >= total:
                found.append(
                    f"batching{where}: the first growth takes at least {least:g} kimg, and total_kimg is {total:g}:"
                    " the batch will not grow by noise"
                )
    if isinstance(batching, Fixed) and (batching.max_batch is not None or batching.lr_scaling != "none"):
        found.append("batching.name=fixed: the batch is constant, so max_batch and lr_scaling have no effect")
    if noise.measure_every is None and noise != NoiseScale():
        found.append("noise_scale.measure_every is null: the other settings of noise_scale have no effect")
    return found


def penalty_notes(config: Config) -> list[str]:
    """Notes about settings of penalties that may not do what is wanted."""
    found = []
    for name, penalty in config.penalties.items():
        if penalty.every > 1 and config.noise_scale.measure_every is not None:
            whose = {"d": "D's noise scale is", "g": "G's noise scale is", "gd": "both noise scales are"}[penalty.networks]
            found.append(f"penalties.{name} is lazy: {whose} measured at steps without it")
        if isinstance(penalty, Jittering) and penalty.flip and not config.data.flip:
            found.append(
                f"penalties.{name}.flip is true and data.flip is false: D learns to ignore left and right;"
                f" set penalties.{name}.flip=false if mirrored images are not images of the data"
            )
        if isinstance(penalty, FiniteDifference) and config.mixed_precision == "bf16" and penalty.sigma < SIGMA_OF_BF16:
            found.append(
                f"penalties.{name}.sigma={penalty.sigma:g} is small for mixed_precision=bf16: the rounding of a logit may outweigh"
                f" its change; {SIGMA_OF_BF16:g} or more is safer"
            )
        if isinstance(penalty, PathLength) and isinstance(config.model, BigGAN):  # others need not have BatchNorm
            found.append(
                f"penalties.{name}: G has BatchNorm, so an image depends on all latents of its micro-batch, and its path length does too;"
                " path_length was published for generators without it"
            )
    return found


def averager_notes(config: Config) -> list[str]:
    """Notes about settings of averagers that are not useful."""
    found = []
    kept = {name: one for name, one in config.averagers.items() if one.snapshot_every_kimg is not None}
    if len({one.exponent for one in kept.values() if one.exponent is not None}) == 1:
        found.append(
            f"averagers.{next(iter(kept))}: snapshots of a single length rebuild few others;"
            " a second power average of another length widens the range"
        )
    found += [
        f"averagers.{name}.offload copies the live weights after every update; set update_every_kimg to do so less often"
        " (the rule accounts for the images in between)"
        for name, one in config.averagers.items()
        if one.offload and one.update_every_kimg is None
    ]
    return found


def loss_notes(config: Config) -> list[str]:
    """Notes about a loss that nothing keeps in bounds, or that the guard cannot judge."""
    found = []
    if isinstance(config.loss, Wasserstein):
        # Spectral norm is a key of gantrain's own networks; others may bound D's slope in some other way, and so may other penalties.
        if isinstance(config.model, BigGAN) and not config.model.spectral_norm and all(map(leaves_slope_free, config.penalties.values())):
            found.append(
                "loss.name=wasserstein: nothing bounds D's slope, so its loss may fall without end; add a gradient penalty or set"
                " model.spectral_norm=true"
            )
        if any(getattr(config.guard, name) != getattr(Guard(), name) for name in ("on_saturation", "saturation", "saturation_kimg")):
            found.append("guard.on_saturation has no effect with loss.name=wasserstein: D's loss has no lower bound to come near to")
    return found


def leaves_slope_free(penalty: Penalty) -> bool:
    """Whether a penalty is one of gantrain's that do not bound D's slope."""
    return isinstance(penalty, (LeCam, Jittering, LatentConsistency, PathLength))


def augmentation_notes(config: Config) -> list[str]:
    """Notes about a probability of ADA's transforms that is too high, or that cannot rise."""
    rule, total = config.augment, config.total_kimg
    if not isinstance(rule, Ada):
        return []
    if rule.p is None and total < LEAST_RISE * rule.length_kimg:
        return [
            f"augment.length_kimg={rule.length_kimg:g}: p starts at 0 and cannot exceed {total / rule.length_kimg:.2g} by the end,"
            f" at total_kimg={total:g}"
        ]
    highest = 0.0 if rule.p is None else bounds_of(rule.p)[1]
    if highest > MOST_P:
        return [f"augment.p reaches {highest:g}: above {MOST_P:g}, generated images may show the augmentation"]
    return []


def starts_of(name: str, averager: Any) -> dict[str, float]:
    """The times of an averager that should come before the end of the run, by full key."""
    named = [f.name for f in dataclasses.fields(averager) if f.name in STARTS]
    return {f"averagers.{name}.{key}": getattr(averager, key) or 0 for key in sorted(named, key=STARTS.index)}


def late_effect(key: str) -> str:
    """What comes of a time that is not before the end: the last update ends at or after it."""
    if key.endswith(".snapshot_every_kimg"):
        return "there will be one snapshot, at the end"
    return "it will have no effect before the end" if key.endswith("every_kimg") else "it will have no effect"


def optimizer_notes(config: Config) -> list[str]:
    """Notes about settings of the optimizers without effect."""
    optim, default = config.optim, Optim()
    plain = {key: one for key, one in (("g", optim.g), ("d", optim.d)) if type(one) is Sgd}
    own = {key for key, one in (("g", optim.g), ("d", optim.d)) if getattr(one, "betas", None) is not None or type(one) is RmsProp}
    found = []
    if optim.betas != default.betas and {*plain, *own} == {"g", "d"}:
        found.append("optim.betas has no effect: the optimizers of G and D do not use it")
    if optim.eps != default.eps and all(key in plain or getattr(one, "eps", None) for key, one in (("g", optim.g), ("d", optim.d))):
        found.append("optim.eps has no effect: the optimizers of G and D do not use it")
    if config.swap.source is not None and config.swap.growth == AUTO:
        scheduled = [key for key, one in find_schedules(config).items() if key in RATES and one.changes]
        found += [f"{key} changes during the run, and swap.growth=auto assumes constant rates" for key in scheduled]
    return found


def momentum_notes(config: Config) -> list[str]:
    """A note if a swap would reset a momentum that no player has."""
    if config.swap.optimizer != "reset_momentum":
        return []
    found = {}
    for key in config.swap.networks:
        one: Any = getattr(config.optim, key)
        if isinstance(one, Adam):
            found["optim.betas[0]" if one.betas is None else f"optim.{key}.betas[0]"] = (one.betas or config.optim.betas)[0]
        elif isinstance(one, (Sgd, RmsProp)):
            found[f"optim.{key}.momentum"] = one.momentum
        else:
            return []
    if any(found.values()):
        return []
    return [f"swap.optimizer=reset_momentum has nothing to reset: {' and '.join(found)} {'are' if len(found) > 1 else 'is'} 0"]


def notes(config: Config) -> list[str]:
    """Notes about valid settings that have no effect, or an unexpected one."""
    total = config.total_kimg
    starts = {key: start for name, one in config.averagers.items() for key, start in starts_of(name, one).items()}
    if config.optim.lr_tail.kind != "none":
        starts["optim.lr_tail.start_kimg"] = config.optim.lr_tail.start_kimg
    if config.swap.source is not None:
        starts["swap.start_kimg"] = config.swap.start_kimg
    starts |= {f"penalties.{name}.start_kimg": one.start_kimg for name, one in config.penalties.items() if isinstance(one, LeCam)}
    found = [f"{key}={start:g} is not before total_kimg={total:g}: {late_effect(key)}" for key, start in starts.items() if start >= total]
    if config.orbit.every_kimg is not None and config.orbit.every_kimg >= total:
        found.append(
            f"orbit.every_kimg={config.orbit.every_kimg:g} is not before total_kimg={total:g}: there will be two recordings, at the start"
            " and at the end"
        )
    if config.swap.source is not None:
        found += momentum_notes(config)
    elif config.swap != Swap():
        found.append("swap.source is null: the other settings of swap have no effect")
    if config.batching.grows_at_swaps and not config.swap.grows and config.guard.growth == 1:
        found.append("batching: on_swap grows the batch at swaps, and swap.growth is 1: it has no effect")
    found += batching_notes(config)
    found += augmentation_notes(config)
    if config.guard.score is not None and config.eval.every_kimg is None:
        found.append("guard.score is watched at evaluations, and eval.every_kimg is null: it has no effect")
    if config.orbit.every_kimg is None and config.orbit != Orbit():
        found.append("orbit.every_kimg is null: the other settings of orbit have no effect")
    if config.swap.growth == AUTO and config.swap.source is not None and config.batching.lr_scaling != "none":
        found.append(
            f"batching.lr_scaling={config.batching.lr_scaling} raises the rates as the batch grows,"
            " and swap.growth=auto assumes constant rates"
        )
    found += penalty_notes(config)
    found += loss_notes(config)
    found += [*optimizer_notes(config), *schedule_notes(config)]
    found += averager_notes(config)
    return found
