"""What a person should know about a configuration before the run starts."""

from __future__ import annotations

from gantrain.batching import Fixed, NoiseScale
from gantrain.config.config import Config
from gantrain.config.sections import AUTO, Orbit, Swap


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
                found.append(
                    f"batching{where}: checks and dwell take {max(least, part.dwell_kimg):g} kimg, and total_kimg is {total:g}: the batch will not grow by noise"
                )
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
    found = [
        f"{key}={start:g} is not before total_kimg={total:g}: it will have no effect" for key, start in starts.items() if start >= total
    ]
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
        found.append(
            f"batching.lr_scaling={config.batching.lr_scaling} raises the rates as the batch grows, and swap.growth=auto reckons with rates that stay"
        )
    for name, penalty in config.penalties.items():
        if getattr(penalty, "every", 1) > 1 and config.noise_scale.measure_every is not None:
            found.append(f"penalties.{name} is lazy: D's noise scale is measured at steps without it")
    kept = [name for name, one in config.averagers.items() if getattr(one, "snapshot_every_kimg", None) is not None]
    if len({config.averagers[name].exponent for name in kept if hasattr(config.averagers[name], "exponent")}) == 1:
        found.append(
            f"averagers.{kept[0]}: snapshots of one length alone rebuild few others; a second power average of another length widens the range"
        )
    for name, one in config.averagers.items():
        if getattr(one, "offload", False) and getattr(one, "update_every_kimg", None) is None:
            found.append(
                f"averagers.{name}.offload copies the live weights after every update; update_every_kimg makes that rarer, and the rule goes by the images in between"
            )
    return found
