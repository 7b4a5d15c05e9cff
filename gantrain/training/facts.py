"""What a run prints at its start: program, machine, batch, and notes for the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gantrain import lock, performance
from gantrain.batching import BatchController
from gantrain.config import loading
from gantrain.config.notes import notes
from gantrain.config.scheduled_keys import find_schedules
from gantrain.data import ImageSet
from gantrain.data.class_balance import describe_choice
from gantrain.distributed import leaves_apples_gpu
from gantrain.errors import UserError, counted, in_words
from gantrain.losses import Relativistic
from gantrain.run_folder.checkpoint import free_bytes
from gantrain.run_folder.provenance import utc_now, versions
from gantrain.run_folder.snapshot_bound import count_snapshots, foresee_room, measure_room
from gantrain.training.context import Context
from gantrain.training.measurements import Measurements
from gantrain.training.players import Players
from gantrain.training.run_state import RunState
from gantrain.version import __version__


class Facts:
    """Collects notes while a run is prepared, and prints what the run is.

    Args:
        context: of the run.
        run: its clock.
        players: whose parameters are counted.
        batching: the batch as it is.
        images: the data set.
        measurements: know whether an update is measured in two halves.

    Attributes:
        notes: lines for the user, printed once at the start.
        data_before: fingerprint of the images in the checkpoint that the run resumes from, or None.
    """

    def __init__(
        self, context: Context, run: RunState, players: Players, batching: BatchController, images: ImageSet, measurements: Measurements
    ):  # fmt: skip
        self.context, self.run, self.players, self.batching = context, run, players, batching
        self.images, self.measurements = images, measurements
        self.notes = notes(context.config)
        self.data_before: str | None = None

    # ---- notes -------------------------------------------------------------------------------------------------------

    def note_resume(self, path: Path, state: Mapping[str, Any]) -> None:
        """Note what differs from the run that wrote the checkpoint just loaded."""
        batching, world, total = self.batching, self.context.world, self.context.config.total_kimg
        self.data_before = state["data_fingerprint"]
        if self.data_before != self.images.fingerprint:
            self.notes.append(how_images_changed(self.images, state["data_listing"], path))
        seen = state["batching"]["micro_batch"]
        if seen != batching.micro_batch:
            self.notes.append(
                f"BatchNorm saw {seen} images at a time; from here on it sees {batching.micro_batch}: on {counted(world, 'process', 'es')}"
                f" a batch of {batching.batch_size} has micro-batches of {batching.micro_batch}, at most {batching.first_micro_batch}"
            )
        if self.run.ends:
            self.notes.append(f"training has reached total_kimg={total:g}; what was left to do at its end is done now")
        elif self.run.nimg > self.run.total:
            self.notes.append(f"the run has already passed total_kimg={total:g}; nothing is left to train")

    def note_batch(self) -> None:
        """Note what the user should know about the batch on these processes.

        Raises:
            UserError: its noise cannot be measured.
        """
        self.notes += self.batching.notes
        config, b, world = self.context.config, self.batching.micro_batch, self.context.world
        if config.sync_batchnorm and world == 1:
            self.notes.append("sync_batchnorm has no effect: there is only one process")
        if config.batching.grows and not self.batching.can_grow:
            self.notes.append(
                f"batching.max_batch={self.batching.highest:g} leaves no room for another round of {b} images x {world}:"
                " the batch will not grow"
            )
        if self.measurements.measures_halves and b % 2:
            raise UserError(
                f"noise_scale.measure_every: one round of {b} images on one process cannot be split into halves;"
                " use an even micro_batch, or two rounds"
            )

    def note_loss(self) -> None:
        """Note where a loss is not what its source has, and where it leaves no choice of labels."""
        loss = self.context.config.loss
        if isinstance(loss, Relativistic) and not loss.paired_labels and self.images.num_classes > 1:
            self.notes.append(
                "loss.paired_labels=false: each real image is compared with a generated one of a class drawn independently;"
                " R3GAN, the source of the loss, compares images of one class, as a new run or a fork does with loss.paired_labels=true"
            )
        counts, labels = self.images.class_counts, self.context.config.labels
        if loss.paired_labels and len(counts) > 1 and (labels != "uniform" or describe_choice(counts, labels)):
            self.notes.append(
                f"labels={labels}: in training, this loss gives each generated image the label of a real one; labels decides those of"
                " scores and of BatchNorm's recalibration"
            )
        if labels == "data" and len(counts) == 1:
            self.notes.append("labels=data has no effect: the images are all of one class")

    def note_machine(self) -> None:
        """Note what this machine lacks, or has and does not use."""
        if not lock.AVAILABLE:
            self.notes.append(
                "this system has no file locks (gantrain is tested on Linux and macOS only):"
                " nothing prevents a second training in the same run_dir, so start only one"
            )
        if leaves_apples_gpu(self.context.device):
            self.notes.append("Apple's GPU is not used unless ACCELERATE_TORCH_DEVICE=mps asks for it; gantrain is not tested on it")
        slow = performance.describe_slow_bf16(self.context.config.mixed_precision, self.context.device, performance.read_cpu_flags())
        self.notes += [slow] if slow else []

    def note_noise_scale(self) -> None:
        """Note what the measurement of the noise scale, if there is one, does to updates and cannot see."""
        config, images = self.context.config, len(self.images)
        if config.noise_scale.measure_every is not None:
            whose = "D and of G" if config.loss.generator_sees_real else "D"
            self.notes.append(
                f"noise_scale: an epoch draws each of the {images:,} images once, which lowers |G|^2 of {whose} by up to"
                f" tr Sigma / {images:,}: B_simple may come out too high by a factor of up to 1 + B_simple / {images:,}"
            )
        if self.measurements.measures_halves:
            self.notes.append(
                "noise_scale: an update has one micro-batch, so a measured update is computed in two halves"
                f" of {self.batching.micro_batch // 2} images, and BatchNorm sees half a micro-batch"
            )

    # ---- at the start ------------------------------------------------------------------------------------------------

    def announce(self, path: Path | None, changed: Mapping[str, Any]) -> None:
        """Record the start, and print what the run is.

        Args:
            path: the checkpoint that it resumes from, or None.
            changed: configuration keys whose values differ from the earlier ones, with both values.
        """
        context = self.context
        more: dict[str, Any] = {key: value for key, value in (("changed", changed), ("notes", self.notes)) if value}
        schedules = {key: one.words for key, one in find_schedules(context.config).items()}
        more |= {"schedules": schedules} if schedules else {}
        context.tracker.event(self.run.nimg, "resume" if path else "start", time=utc_now(), **self.describe_machine(), **more)
        context.tracker.say(self.headline(path))
        context.tracker.say(f"performance: {performance.describe(context.performance, context.config.performance, context.device)}")
        if schedules:
            context.tracker.say(f"schedules: {'; '.join(f'{key} {words}' for key, words in schedules.items())}")
        snapshots = self.describe_snapshots()
        if snapshots:
            context.tracker.say(f"snapshots: {snapshots}")
        for note in self.notes:
            context.tracker.say(f"note: {note}")
        if self.data_before not in (None, self.images.fingerprint):
            context.tracker.event(
                self.run.nimg, "data_changed", data=self.images.name, before=self.data_before, after=self.images.fingerprint,
            )  # fmt: skip

    def describe_snapshots(self) -> str:
        """How many snapshots of averages the run will leave, and how much room they take; empty if there are none."""
        config, network, run_dir = self.context.config, self.players.G.network, self.context.run_dir
        most, by_name = count_snapshots(config)
        room = foresee_room(config, count(network), sum(one.numel() * one.element_size() for one in network.buffers()))
        if room is None:
            return ""
        beside = free_bytes(run_dir)
        free = "; the free space is unknown" if beside is None else f"; {in_words(beside, down=True)} are free"
        left = room - measure_room(run_dir)[1]
        short = ", which is not enough: set a larger snapshot_every_kimg" if beside is not None and left > beside else ""
        which = f"at most {most} by {config.total_kimg:g} kimg, of {', '.join(by_name)}"
        return f"averages/ will hold {which}, {in_words(room)} in all{free}{short}; none is deleted"

    def describe(self, protocol: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration, the program and machine, and the reference of the scores, for views.

        Args:
            protocol: of the scores.
        """
        reference = {key: protocol[f"eval/{key}"] for key in ("reference", "reference_fingerprint")}
        reference |= {"notes_on_scores": protocol["eval/notes"]} if "eval/notes" in protocol else {}
        return {**loading.to_dict(self.context.config), **self.describe_machine(), **reference}

    def describe_machine(self) -> dict[str, Any]:
        """This program, machine and data set, as JSON values for the record."""
        context = self.context
        return {
            "gantrain": __version__,
            "versions": versions(),
            "device": torch.cuda.get_device_name() if context.device.type == "cuda" else context.device.type,
            "processes": context.world,
            "micro_batch": self.batching.micro_batch,
            "parameters": {key: count(player.network) for key, player in self.players.by_key.items()},
            "data_fingerprint": self.images.fingerprint,
            **({"data_notes": self.images.notes} if self.images.notes else {}),
            **({} if self.images.known_names is None else {"class_names": list(self.images.known_names)}),
            "switches": dataclasses.asdict(context.performance),
        }

    def headline(self, path: Path | None) -> str:
        """The run in one line; `path` is the checkpoint that it resumes from."""
        facts, b, config = self.describe_machine(), self.batching, self.context.config
        return (
            f"run: {self.context.run_dir}, {'resumed at' if path else 'from'} {self.run.kimg:g} of {config.total_kimg:g} kimg;"
            f" G {facts['parameters']['g']:,} and D {facts['parameters']['d']:,} parameters; batch {b.batch_size} = {b.micro_batch} images"
            f" x {counted(facts['processes'], 'process', 'es')} x {counted(b.rounds, 'round')};"
            f" {facts['device']}, {config.mixed_precision}; averages: {', '.join(self.players.bank) or 'none'}"
        )


def how_images_changed(images: ImageSet, listing: str | None, path: Path) -> str:
    """How images differ from those of the checkpoint at `path`, whose listing is None in a fork with other data."""
    if listing is None:
        return f"this fork trains on other images than its origin: {images.name}, as its configuration says"
    kept = "its names and labels have not" if listing == images.listing else "and so have its names or labels"
    return f"the content of {images.name} has changed since {path.name}; {kept}"


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())
