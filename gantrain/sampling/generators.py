"""Loading a generator from a run folder, and drawing with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gantrain.averaging import LIVE, recalibrate
from gantrain.averaging.average import named_buffers, named_weights, write_buffers, write_weights
from gantrain.averaging.bank import split
from gantrain.averaging.batchnorm import POLICIES, normalise_by_batch, write_statistics
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.images import to_uint8
from gantrain.models.architecture import build_networks
from gantrain.python_words import python_remedies
from gantrain.run_folder import checkpoint
from gantrain.run_folder.best_average import resolve_best
from gantrain.run_folder.contents import (
    class_names_of,
    fitting,
    group_of,
    look_again,
    moment_of_rebuilt,
    open_held,
    rebuilt_of,
    require_average,
    run_of,
)
from gantrain.run_folder.finite import require_finite, require_finite_images
from gantrain.run_folder.held import Held, closed_on_error
from gantrain.run_folder.layout import AVERAGES_FOLDER
from gantrain.run_folder.manifest import hold
from gantrain.sampling.latents import GeneratorModule, calibration_batches, label_counts_at
from gantrain.spectral_norm import refresh_spectral_norms


def load_generator(
    run: str | Path,
    average: str = "ema",
    kimg: float | None = None,
    device: torch.device | str = "cpu",
    batchnorm: str | None = None,
    truncation: float | None = None,
) -> nn.Module:
    """Load a trained generator, ready to sample.

        generator = gantrain.load_generator("runs/digits", average="ema")
        z = torch.randn(16, generator.dim_z)                   # latents [N, dim_z], standard normal
        y = torch.randint(generator.num_classes, (16,))        # labels [N], int64 in [0, num_classes)
        x = generator(z, y)                                    # images [N, channels, resolution, resolution] in [-1, 1]

    Args:
        run: a run folder.
        average: name of an average in the run's configuration, or of one rebuilt by `gantrain average`, or "live" for the
            weights that were trained, or "best" for those with the best score (see `gantrain.run_folder.best_average`).
        kimg: which checkpoint, in thousands of images; None loads the newest. A rebuilt average has its own time.
        device: where the generator goes.
        batchnorm: "recalibrate", "copy", "average" or "batch" (see `gantrain.averaging.batchnorm`; with "batch" an image
            depends on the others in its batch); None uses the policy of the run's evaluation.
        truncation: the truncation that you will sample with, for "recalibrate"; None uses that of the run's evaluation.

    Returns:
        The architecture's generator in evaluation mode, without gradients, with attributes `dim_z`, `num_classes`,
        `resolution`, `channels`, `class_names`: the names of the classes, by label, or None if the run does not know them, and
        `label_counts`: images per class of the data if the run draws labels like them (`labels: data`), or None.

    Raises:
        UserError: not a run folder, no such checkpoint or average, or a damaged checkpoint; or weights with nan or infinity in them,
            since all images of such a generator are black as bytes, which no later step notices.
    """
    with python_remedies(), closed_on_error():

        def load() -> nn.Module:
            (name,), time = resolve_best(run, [average], kimg)
            config, held, policy = find_average(run, name, time, batchnorm)
            return prepare_generator(config, held.folder, name, policy, device, truncation)

        return look_again(load)


def find_average(run: str | Path, average: str, kimg: float | None = None, batchnorm: str | None = None) -> tuple[Config, Held, str]:
    """Find what an average is loaded from: the run's configuration, the open files of the checkpoint, and the BatchNorm policy.

    Raises:
        UserError: see `load_generator`.
    """
    config, held = open_held(run, kimg)
    require_average(config, held.folder, average, kimg)
    hold_rebuilt(held, [average])
    policy = config.eval.batchnorm if batchnorm is None else batchnorm
    if policy not in POLICIES:
        raise UserError(f"batchnorm: must be one of {', '.join(POLICIES)}, got {policy!r}")
    return config, held, policy


def hold_rebuilt(held: Held, averages: Sequence[str]) -> None:
    """Open the files of rebuilt averages, for as long as those of a checkpoint of their run are open.

    Args:
        held: the files of the checkpoint.
        averages: names; those that were not rebuilt are in the checkpoint itself.

    Raises:
        Gone: one was deleted or replaced meanwhile.
    """
    run = run_of(held.folder)
    there = rebuilt_of(run)
    held.others += [hold(run / AVERAGES_FOLDER / name) for name in averages if name in there]


def prepare_generator(
    config: Config, path: Path, average: str, policy: str, device: torch.device | str = "cpu", truncation: float | None = None
) -> nn.Module:
    """Load a generator from a checkpoint and apply a BatchNorm policy; the result is that of `load_generator`."""
    generator: GeneratorModule = load_weights(config, path, average, policy == "average")
    require_finite(path, average, named_weights(generator))
    generator.to(device).requires_grad_(False)
    generator.label_counts = counts = label_counts_at(config, path, generator.num_classes)
    if policy == "recalibrate":
        cut = config.eval.truncation if truncation is None else truncation
        recalibrate(generator, calibration_batches(config, generator, cut, label_counts=counts), config.eval.recalibration_batches)
    generator.eval()
    if policy == "batch":
        normalise_by_batch(generator)
    else:
        require_finite(path, average, named_buffers(generator), f"BatchNorm statistics for {average}")
    return generator


def load_weights(config: Config, path: Path, average: str, averaged_statistics: bool = False) -> nn.Module:
    """Load a generator with an average's weights and the buffers of the live weights, BatchNorm statistics among them.

    Args:
        config: of the run.
        path: a checkpoint of the run.
        average: one of `averages_of(path)`.
        averaged_statistics: load the average's own BatchNorm statistics instead of the live ones.

    Raises:
        Damaged: a file is missing, truncated or altered, or a rebuilt average has the name of another one.
    """
    rebuilt = average in rebuilt_of(run_of(path))
    group = "average" if rebuilt else group_of(average)
    folder = run_of(path) / AVERAGES_FOLDER / average if rebuilt else path
    buffers_group = "buffers" if rebuilt else "g"
    if rebuilt:
        moment_of_rebuilt(run_of(path), average)  # its name may be that of another one
    snapshot = checkpoint.read(folder, [buffers_group] if average == LIVE else [buffers_group, group])
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten
        built, _ = build_networks(config.model, *snapshot.state["shape"])
    generator: GeneratorModule = built
    generator.class_names = class_names_of(path)
    live, names = snapshot.tensors[buffers_group], named_weights(generator)
    with fitting(folder):
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


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor, y: Tensor, batch_size: int = 64, name: str | None = None) -> Tensor:
    """Generate images from latents `[N, dim_z]` and labels `[N]` batch by batch: uint8 `[N, C, H, W]` on the CPU.

    Args:
        generator: called as `generator(z, y)`.
        z, y: of the images.
        batch_size: images generated at a time.
        name: whose images they are; None draws images with nan or infinity in them as they come, which is black.

    Raises:
        NotFinite: images of `name` are not finite.
    """
    drawn = (generator(*part) for part in zip(z.split(batch_size), y.split(batch_size)))
    return torch.cat([to_uint8(x if name is None else require_finite_images(x, name)).cpu() for x in drawn])
