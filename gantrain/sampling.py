"""Latents and labels, generators from run folders, and pictures of samples."""
from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from gantrain import checkpoint, randomness
from gantrain.averaging import LIVE, recalibrate
from gantrain.averaging.average import named_weights, write_buffers, write_weights
from gantrain.averaging.bank import split
from gantrain.averaging.batchnorm import POLICIES, normalise_by_batch, write_statistics
from gantrain.averaging.spectral import refresh_spectral_norms
from gantrain.config import FREE_NAME, Config
from gantrain.data.stream import sent
from gantrain.errors import UserError, did_you_mean
from gantrain.images import to_uint8
from gantrain.loading import load
from gantrain.names import CONFIG_FILE

AVERAGES_FOLDER = "averages"  # of a run: snapshots under numbers, averages rebuilt from them under names
BEST_FOLDER = "best"  # of a run: a folder a score, with the checkpoint that was best by it


def draw(
    seed: int, purpose: str, start: int, count: int, dim_z: int, num_classes: int, device: torch.device | str = "cpu", truncation: float | None = None
) -> tuple[Tensor, Tensor]:
    """Latents `[count, dim_z]` and uniform labels `[count]` of positions start .. start + count - 1 of a stream."""
    z = randomness.normal(seed, f"{purpose}/z", start, count, dim_z, truncation)
    y = randomness.integers(seed, f"{purpose}/y", start, count, num_classes)
    return sent(z, device), sent(y, device)


# ---- generators from run folders -------------------------------------------------------------------------------------


def load_generator(
    run: str | Path,
    average: str = "ema",
    kimg: float | None = None,
    device: torch.device | str = "cpu",
    batchnorm: str | None = None,
    truncation: float | None = None,
) -> nn.Module:
    """A trained generator, ready to sample.

        generator = gantrain.load_generator("runs/digits", average="ema")
        z = torch.randn(16, generator.dim_z)                   # latents [N, dim_z], standard normal
        y = torch.randint(generator.num_classes, (16,))        # labels [N], int64 in [0, num_classes)
        x = generator(z, y)                                    # images [N, channels, resolution, resolution] in [-1, 1]

    Args:
        run: a run folder.
        average: name of an average in the run's configuration or of one that `gantrain average` has rebuilt, or "live" for
            the weights that were trained.
        kimg: which checkpoint, in thousands of images; None is the newest. A rebuilt average has its own time.
        device: where the generator goes.
        batchnorm: "recalibrate", "copy", "average" or "batch" (see `gantrain.averaging.batchnorm`; with "batch" an image
            depends on those it is drawn with); None is what the run's evaluation uses.
        truncation: the truncation that will be sampled with, for "recalibrate"; None is the run's evaluation's.

    Returns:
        The architecture's generator in evaluation mode, without gradients, carrying `dim_z`, `num_classes`,
        `resolution` and `channels`.

    Raises:
        UserError: not a run folder, no such checkpoint or average, or a damaged checkpoint.
    """
    config, path, policy = chosen(run, average, kimg, batchnorm)
    return ready(config, path, average, policy, device, truncation)


def ready(config: Config, path: Path, average: str, policy: str, device: torch.device | str = "cpu", truncation: float | None = None) -> nn.Module:
    """A generator of a checkpoint as `load_generator` gives it."""
    generator = load_weights(config, path, average, policy == "average").to(device).requires_grad_(False)
    if policy == "recalibrate":
        cut = config.eval.truncation if truncation is None else truncation
        recalibrate(generator, calibration_batches(config, generator, cut), config.eval.recalibration_batches)
    generator.eval()
    if policy == "batch":
        normalise_by_batch(generator)
    return generator


def chosen(run: str | Path, average: str, kimg: float | None = None, batchnorm: str | None = None) -> tuple[Config, Path, str]:
    """A run's configuration, the checkpoint that an average is taken from, and the BatchNorm policy.

    Raises:
        UserError: as `load_generator`.
    """
    config, path = open_run(run, kimg)
    require_average(config, path, average, kimg)
    policy = config.eval.batchnorm if batchnorm is None else batchnorm
    if policy not in POLICIES:
        raise UserError(f"batchnorm: must be one of {', '.join(POLICIES)}, got {policy!r}")
    return config, path, policy


def require_average(config: Config, path: Path, average: str, kimg: float | None = None) -> None:
    """Refuse an average that there is none of at a checkpoint; where `kimg` asks for its time, one of another."""
    run, names = run_of(path), averages_of(path)
    if average not in names and average in config.averagers:
        raise UserError(f"{run}: average {average!r} has not begun at {int(path.name) / 1000:g} kimg; there are {', '.join(names)}")
    if average not in names:
        raise UserError(f"{run}: no average {average!r} at {int(path.name) / 1000:g} kimg{did_you_mean(average, names)}")
    if kimg is not None and average in rebuilt_of(run):
        require_time(average, checkpoint.read_manifest(run / AVERAGES_FOLDER / average)["nimg"], kimg)


def configuration_of(run: Path) -> Config:
    """What a run was trained with.

    Raises:
        UserError: not a run folder.
    """
    if not (run / CONFIG_FILE).is_file():
        above = next((p for p in run.absolute().parents if (p / CONFIG_FILE).is_file()), None)
        if above:  # one of its checkpoints, say
            inside = next((p.name for p in (run, *sorted(run.glob("*"))) if p.name.isdigit()), None)
            kimg = f", and --kimg {int(inside) / 1000:g} for this checkpoint" if inside else ""
            raise UserError(f"{run}: is no run folder but a part of one; give {above}{kimg}")
        raise UserError(f"{run}: is no run folder (it has no {CONFIG_FILE}); give the run_dir of a `gantrain train`")
    return load(run / CONFIG_FILE)


def open_run(run: str | Path, kimg: float | None = None, say: Callable[[str], None] = lambda line: None) -> tuple[Config, Path]:
    """A run's configuration and one of its checkpoints, the newest whole one unless `kimg` says which.

    Raises:
        UserError: not a run folder, or no such checkpoint.
    """
    run = Path(run)
    config = configuration_of(run)
    store = checkpoint.CheckpointStore(run / "checkpoints", say=say)
    if kimg is None:
        path = store.newest()
        if path is None:
            raise UserError(f"{run}: has no checkpoint yet")
        return config, path
    best = [checkpoint.CheckpointStore(folder) for folder in sorted((run / BEST_FOLDER).glob("*"))]
    there = {int(path.name): path for one in [*best, store] for path in one.paths()}
    path = there.get(round(kimg * 1000)) if math.isfinite(kimg) else None
    if path is None:
        found = ", ".join(f"{nimg / 1000:g}" for nimg in sorted(there))
        raise UserError(f"{run}: has no checkpoint at {kimg:g} kimg; it has {found or 'none'}")
    return config, path


def run_of(path: Path) -> Path:
    """The run folder that a checkpoint lies in: RUN/checkpoints/<nimg> or RUN/best/<score>/<nimg>."""
    above = path.parent.parent
    return above.parent if above.name == BEST_FOLDER and path.parent.name != "checkpoints" else above


def group_of(name: str, network: str = "g", slots: bool = False) -> str:
    """A checkpoint's group of tensors of an average: of its shadows, or of what else it holds."""
    return f"{'slots' if slots else 'average'}{'' if network == 'g' else f'_{network}'}.{name}"


def averages_of(path: Path) -> list[str]:
    """What a run can be sampled from at a checkpoint: "live", every average that has begun, and whatever was rebuilt."""
    state = checkpoint.read(path, groups=[]).state
    return [LIVE, *(name for name, one in state["averages"].items() if one["num_averaged"] > 0), *rebuilt_of(run_of(path))]


def rebuilt_of(run: Path) -> list[str]:
    """Names of the averages that `gantrain average` has left in a run's folder."""
    folder = run / AVERAGES_FOLDER
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p.name for p in there if FREE_NAME.fullmatch(p.name) and not p.name.isdigit() and (p / checkpoint.MANIFEST).is_file()]


def forget_rebuilt_after(run: Path, nimg: int) -> None:
    """Delete rebuilt averages of a time that a run, taken up again from before it, has not come to."""
    for name in rebuilt_of(run):
        with contextlib.suppress(checkpoint.Damaged):
            if checkpoint.read_manifest(run / AVERAGES_FOLDER / name)["nimg"] > nimg:
                shutil.rmtree(run / AVERAGES_FOLDER / name, ignore_errors=True)


def require_time(name: str, nimg: int, kimg: float) -> None:
    """Refuse to take a rebuilt average for one of another time."""
    if nimg != round(kimg * 1000):
        raise UserError(f"--kimg: {name} was rebuilt at {nimg / 1000:g} kimg and is of no other time, got {kimg:g}; leave --kimg out")


def load_weights(config: Config, path: Path, average: str, averaged_statistics: bool = False) -> nn.Module:
    """A generator with an average's weights and the buffers of the live one, BatchNorm statistics among them.

    Args:
        config: the run's.
        path: a checkpoint of the run.
        average: one of `averages_of(path)`.
        averaged_statistics: take the average's own BatchNorm statistics in place of the live ones.

    Raises:
        Damaged: a file is missing, cut, or altered.
    """
    rebuilt = average in rebuilt_of(run_of(path))
    group = "average" if rebuilt else group_of(average)
    folder = run_of(path) / AVERAGES_FOLDER / average if rebuilt else path
    buffers_group = "buffers" if rebuilt else "g"
    snapshot = checkpoint.read(folder, [buffers_group] if average == LIVE else [buffers_group, group])
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and then overwritten
        generator, _ = config.model.build(*snapshot.state["shape"])
    live, names = snapshot.tensors[buffers_group], named_weights(generator)
    write_buffers(((k, v) for k, v in live.items() if k not in names), generator)
    if average == LIVE:
        write_weights({k: v for k, v in live.items() if k in names}, generator)
        return generator
    weights, statistics = split(snapshot.tensors[group], generator)
    write_weights(weights, generator)
    refresh_spectral_norms(generator)
    if averaged_statistics:
        write_statistics(statistics, generator)
    return generator


def calibration_batches(
    config: Config, generator: nn.Module, truncation: float | None, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """This process's share of the batches for recalibrating BatchNorm: (index, (z, y))."""
    size = config.eval.batch_size
    device = next(generator.parameters()).device
    for index in range(rank, config.eval.recalibration_batches, world):
        yield index, draw(config.seed, "calibration", index * size, size, generator.dim_z, generator.num_classes, device, truncation)


# ---- pictures --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor, y: Tensor, batch_size: int = 64) -> Tensor:
    """Images of latents and labels as uint8 `[N, C, H, W]` on the CPU, batch by batch."""
    return torch.cat([to_uint8(generator(*part)).cpu() for part in zip(z.split(batch_size), y.split(batch_size))])


def class_sheet_inputs(seed: int, dim_z: int, num_classes: int, rows: int, classes: int) -> tuple[Tensor, Tensor, int]:
    """(z, y, columns) of a sheet with a class a column and fixed z: the same for every average and at every time."""
    columns = min(classes, num_classes) if num_classes > 1 else rows
    z = randomness.normal(seed, "sheet/z", 0, rows * columns, dim_z)
    # Spread over all classes where there are more of them than columns.
    shown = torch.arange(columns) * num_classes // columns if num_classes > 1 else torch.zeros(columns, dtype=torch.int64)
    return z, shown.repeat(rows), columns
