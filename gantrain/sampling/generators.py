"""Latents and labels, generators from run folders, and pictures of samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gantrain.averaging import LIVE, recalibrate
from gantrain.averaging.average import named_weights, write_buffers, write_weights
from gantrain.averaging.bank import split
from gantrain.averaging.batchnorm import POLICIES, normalise_by_batch, write_statistics
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.images import to_uint8
from gantrain.models.architecture import build_networks
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import group_of, open_run, rebuilt_of, require_average, run_of
from gantrain.run_folder.layout import AVERAGES_FOLDER
from gantrain.sampling.latents import calibration_batches
from gantrain.spectral_norm import refresh_spectral_norms

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


def ready(
    config: Config, path: Path, average: str, policy: str, device: torch.device | str = "cpu", truncation: float | None = None
) -> nn.Module:
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
        generator, _ = build_networks(config.model, *snapshot.state["shape"])
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


# ---- pictures --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor, y: Tensor, batch_size: int = 64) -> Tensor:
    """Images of latents and labels as uint8 `[N, C, H, W]` on the CPU, batch by batch."""
    return torch.cat([to_uint8(generator(*part)).cpu() for part in zip(z.split(batch_size), y.split(batch_size))])
