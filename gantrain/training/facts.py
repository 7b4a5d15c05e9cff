"""What a run says at its start: its program, machine and batch, and what its user should know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gantrain import performance
from gantrain.batching import BatchController
from gantrain.config import loading
from gantrain.config.notes import notes
from gantrain.data import ImageSet
from gantrain.errors import UserError
from gantrain.reporting.views import open_views
from gantrain.run_folder.provenance import utc_now, versions
from gantrain.training.context import Context
from gantrain.training.measurements import Measurements
from gantrain.training.players import Players
from gantrain.training.run_state import RunState
from gantrain.version import __version__


class Facts:
    """Collects notes while a run is prepared, and announces the run.

    Args:
        context: of the run.
        run: its clock.
        players: whose parameters are counted.
        batching: the batch as it is.
        images: the data set.
        measurements: know whether an update is measured in halves.

    Attributes:
        notes: what the user should know, printed once at the start.
    """

    def __init__(
        self, context: Context, run: RunState, players: Players, batching: BatchController, images: ImageSet, measurements: Measurements
    ):  # fmt: skip
        self.context, self.run, self.players, self.batching = context, run, players, batching
        self.images, self.measurements = images, measurements
        self.notes = notes(context.config)

    # ---- notes -------------------------------------------------------------------------------------------------------

    def note_resume(self, path: Path, state: Mapping[str, Any]) -> None:
        """Note what differs from the run that wrote a checkpoint, which has just been loaded."""
        batching, world, total = self.batching, self.context.world, self.context.config.total_kimg
        if state["data_fingerprint"] != self.images.fingerprint:  # a broken file was replaced, say
            self.notes.append(f"the content of {self.images.name} has changed since {path.name}; its names and labels have not")
        seen = state["batching"]["micro_batch"]
        if seen != batching.micro_batch:
            self.notes.append(
                f"BatchNorm saw {seen} images at a time and sees {batching.micro_batch} from here on: on {processes(world)}"
                f" a batch of {batching.batch_size} has micro-batches of {batching.micro_batch}, at most {batching.first_micro_batch}"
            )
        if self.run.nimg > self.run.total:
            self.notes.append(f"the run is past total_kimg={total:g} already; it stays as it is")

    def note_batch(self) -> None:
        """Note what the user should know of the batch on these processes.

        Raises:
            UserError: its noise cannot be measured.
        """
        self.notes += self.batching.notes
        config, b, world = self.context.config, self.batching.micro_batch, self.context.world
        if config.sync_batchnorm and world == 1:
            self.notes.append("sync_batchnorm: there is one process, so BatchNorm sees its micro-batches only")
        if config.batching.grows and not self.batching.can_grow:
            self.notes.append(
                f"batching.max_batch={self.batching.highest:g} leaves no room for another round of {b} images x {world}:"
                " the batch will not grow"
            )
        if self.measurements.measures_halves and b % 2:
            raise UserError(
                f"noise_scale.measure_every: one round of {b} images on one process cannot be measured in halves;"
                " use an even micro_batch, or two rounds"
            )

    def note_halves(self) -> None:
        """Note that measured updates go in two halves, if they do."""
        if self.measurements.measures_halves:
            self.notes.append(
                "noise_scale: there is one micro-batch an update, so a measured update is done in two halves"
                f" of {self.batching.micro_batch // 2} images, which is what BatchNorm sees then"
            )

    # ---- the announcement --------------------------------------------------------------------------------------------

    def announce(self, path: Path | None, changed: Mapping[str, Any]) -> None:
        """Write the start into the record, and print what the run is.

        Args:
            path: the checkpoint that it resumes from, or None.
            changed: configuration keys that differ from those it had before, with both values.
        """
        context = self.context
        more: dict[str, Any] = {key: value for key, value in (("changed", changed), ("notes", self.notes)) if value}
        context.tracker.event(self.run.nimg, "resume" if path else "start", time=utc_now(), **self.known(), **more)
        context.tracker.say(self.headline(path))
        context.tracker.say(f"performance: {performance.describe(context.performance, context.config.performance, context.device)}")
        for note in self.notes:
            context.tracker.say(f"note: {note}")

    def open_views(self, run_id: str, protocol: Mapping[str, Any]) -> None:
        """Show the run in W&B and TensorBoard, where they are wanted; on the main process.

        Args:
            run_id: the identity of the run in W&B.
            protocol: what its scores are quoted with; the reference is shown.
        """
        context, config = self.context, self.context.config
        if not context.main:
            return
        reference = {key: protocol[f"eval/{key}"] for key in ("reference", "reference_fingerprint")}
        shown = {**loading.to_dict(config), **self.known(), **reference}
        context.tracker.views += open_views(config.tracking, run_id, shown, context.run_dir, context.tracker.say)

    def known(self) -> dict[str, Any]:
        """What readers of the record need to know of this program and machine."""
        context = self.context
        return {
            "gantrain": __version__,
            "versions": versions(),
            "device": torch.cuda.get_device_name() if context.device.type == "cuda" else context.device.type,
            "processes": context.world,
            "micro_batch": self.batching.micro_batch,
            "parameters": {key: count(player.network) for key, player in self.players.by_key.items()},
            "data_fingerprint": self.images.fingerprint,
            "switches": dataclasses.asdict(context.performance),
        }

    def headline(self, path: Path | None) -> str:
        """The run in one line; `path` is the checkpoint that it resumes from."""
        known, b, config = self.known(), self.batching, self.context.config
        return (
            f"run: {self.context.run_dir}, {'resumed at' if path else 'from'} {self.run.kimg:g} of {config.total_kimg:g} kimg;"
            f" G {known['parameters']['g']:,} and D {known['parameters']['d']:,} parameters; batch {b.batch_size} = {b.micro_batch} images"
            f" x {processes(known['processes'])} x {b.rounds} round{'s' if b.rounds > 1 else ''};"
            f" {known['device']}, {config.mixed_precision}; averages: {', '.join(self.players.bank) or 'none'}"
        )


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def processes(number: int) -> str:
    """A number of processes in words."""
    return f"{number} process{'es' if number > 1 else ''}"
