"""The inputs of an update: real images and latents."""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from gantrain import performance
from gantrain.batching import BatchController
from gantrain.data import ImageSet, RealBatches, audit, prepare
from gantrain.data.likeness import content_of, find_difference, join_parts, sum_parts
from gantrain.distributed import local_processes, main_first
from gantrain.errors import UserError, counted
from gantrain.images import to_float
from gantrain.reporting.event_words import on_console
from gantrain.run_folder.checkpoint import CheckpointStore, Damaged, Snapshot, read_state
from gantrain.run_folder.record_lines import parse, stream_bytes
from gantrain.sampling import latents
from gantrain.training.context import Context
from gantrain.training.guard import Sentry
from gantrain.training.players import Players
from gantrain.training.run_state import RunState
from gantrain.training.update import Batch, Latents, RealOfG

SHOWN = 5  # unreadable images named on the console at a time


def open_images(context: Context) -> ImageSet:
    """Prepare the data set, on the first process of each machine before the others, and print a summary.

    Raises:
        UserError: the data set is invalid.
    """

    def bar(items: Iterable, total: int) -> Iterable:
        return tqdm(items, total=total, desc="data", leave=False, disable=None if context.main else True)

    source = context.config.data
    state = context.from_main(state_of(context.run_dir) if context.main else None)
    images = main_first(context.accelerator, functools.partial(prepare, source, context.device, local_processes(), bar, state))
    context.tracker.say(f"data: {audit(images, context.config.labels)}")
    return images


def state_of(run_dir: Path) -> dict[str, Any] | None:
    """The state of the newest readable checkpoint; None for a new run."""
    for path in reversed(CheckpointStore(run_dir / "checkpoints").paths()):
        with suppress(Damaged):
            return read_state(path)
    return None


class Inputs:
    """Real images and latents. Both depend only on the seed, their purpose and the position in the image stream.

    Args:
        context: of the run.
        run: its clock.
        images: the data set.
        players: receive the latents.
        batching: the batch as it is.
        guard: knows how many images of the stream rollbacks have skipped.

    Attributes:
        real_batches: the stream of real images; None until `reopen`.
        data_wait: seconds that updates have waited for real images since the last training line.
        changed: whether the run was resumed on other images, as the user has said.
    """

    def __init__(
        self, context: Context, run: RunState, images: ImageSet, players: Players, batching: BatchController, guard: Sentry
    ):  # fmt: skip
        self.context, self.run, self.images, self.players = context, run, images, players
        self.batching, self.guard = batching, guard
        self.real_batches: RealBatches | None = None
        self.data_wait = 0.0
        self.changed = False
        self._ahead: deque[Batch] = deque()  # micro-batches of the next D phase that G's phase has seen before it
        self._parts: list[str] | None = None  # sums of contents in the checkpoint that the run resumes from, see `sum_parts`
        self._unreadable: set[str] | None = None  # those that the record names; None until it has been read

    @functools.cached_property
    def label_counts(self) -> tuple[int, ...] | None:
        """How often each class is drawn for generated images, see `latents.draw_labels`."""
        images = self.images
        return latents.choose_label_counts(self.context.config.labels, images.class_counts, images.num_classes, images.name)

    @property
    def stream(self) -> RealBatches:
        """The opened stream of real images."""
        assert self.real_batches is not None, "the stream opens when the run starts"
        return self.real_batches

    def reopen(self) -> None:
        """Open the stream of real images at the run's position, after what rollbacks have skipped."""
        self._ahead.clear()
        self.close()  # otherwise its threads and prefetched batches would live until garbage collection
        config = self.context.config
        position = (self.run.nimg + self.guard.watch.skipped) * config.optim.d_steps
        self.real_batches = RealBatches(
            self.images, config.seed, self.batching.micro_batch, self.context.rank, self.context.world, position, self.context.device,
            config.data.flip, config.data.workers,
        )  # fmt: skip

    def close(self) -> None:
        """Close the stream of real images."""
        if self.real_batches:
            self.real_batches.close()

    def real(self, k: int, kept: list[RealOfG]) -> Iterator[Batch]:
        """This process's k real micro-batches of the next D phase.

        Args:
            kept: what the loss of G needs of them is appended here, images as uint8.
        """
        for _ in range(k):
            batch = self._ahead.popleft() if self._ahead else self._next()
            kept += self._needed_by_g(batch)
            x, y = batch
            yield self._as_input(x), y

    def ahead(self, k: int) -> list[RealOfG]:
        """What the loss of G needs of the next D phase's k real micro-batches, which `real` will return."""
        loss = self.context.config.loss
        if loss.generator_sees_real or loss.paired_labels:
            self._ahead.extend(self._next() for _ in range(k))
        return [needed for batch in self._ahead for needed in self._needed_by_g(batch)]

    def of_g(self, kept: Sequence[RealOfG], k: int) -> Iterator[RealOfG | None]:
        """The k real micro-batches of a G phase as its networks take them; None if its loss needs none."""
        return ((None if x is None else self._as_input(x), y) for x, y in kept) if kept else itertools.repeat(None, k)

    def _next(self) -> Batch:
        """The next micro-batch of the stream: uint8 images and labels."""
        began = time.perf_counter()
        batch = self.stream.next()
        self.data_wait += time.perf_counter() - began
        return batch

    def _needed_by_g(self, batch: Batch) -> list[RealOfG]:
        """What the loss of G needs of a real micro-batch: all of it, its labels, or nothing."""
        loss = self.context.config.loss
        return [batch] if loss.generator_sees_real else [(None, batch[1])] if loss.paired_labels else []

    def _as_input(self, x: Tensor) -> Tensor:
        """Images as the networks take them: uint8 `[b, C, H, W]` becomes float in [-1, 1]."""
        return performance.lay_out(to_float(x), self.context.performance)

    def latents(self, purpose: str, k: int) -> Iterator[Latents]:
        """This process's k micro-batches of latents, labels and positions, by position in the image stream."""
        b, players, device = self.batching.micro_batch, self.players, self.context.device
        for j in range(k):
            start = self.run.nimg + self.guard.watch.skipped + (j * self.context.world + self.context.rank) * b
            z, y = latents.draw(
                self.context.config.seed, purpose, start, b, players.dim_z, players.num_classes, device, label_counts=self.label_counts
            )
            yield z, y, torch.arange(start, start + b, device=device)

    def report_skipped(self) -> dict[str, int]:
        """Name the images that were unreadable since the last line, and count them for the record.

        Every process must call it at the same time.
        """
        if self.context.config.data.on_error != "skip":
            return {}
        mine, self.stream.skipped = self.stream.skipped, []
        count = torch.tensor([len(mine)], device=self.context.device)
        if not self.context.accelerator.reduce(count, reduction="sum").item():
            return {"data/skipped": 0}
        found = gather_object(mine)
        self.name_unreadable([*found, *self.images.skipped.values()])
        return {"data/skipped": len(found)}

    def name_unreadable(self, found: list[str]) -> None:
        """Name each unreadable image once in the record of a run: it is left out, or other images of its class replace it."""
        tracker = self.context.tracker
        if self._unreadable is None:
            self._unreadable = named_in_record(self.context.run_dir) if found else None
        if self._unreadable is None:
            return
        new = [line for line in dict.fromkeys(found) if line not in self._unreadable]
        for i, line in enumerate(new):
            self._unreadable.add(line)
            event = tracker.event(self.run.nimg, "skipped", image=line)
            if i < SHOWN:
                tracker.say(on_console(event))
        if len(new) > SHOWN:
            tracker.say(f"data: skipped: {len(new) - SHOWN} more, each named in metrics.jsonl")

    def state(self) -> dict[str, Any]:
        """The identity of the images and the names of their classes, as JSON values."""
        images = self.images
        return {
            "data_fingerprint": images.fingerprint,
            "data_listing": images.listing,
            "data_content": content_of(images),
            **({} if (parts := join_parts(self._parts, sum_parts(images))) is None else {"data_parts": parts}),
            "class_names": images.known_names,
            "class_counts": images.class_counts,
            **({"data_left_out": images.left_out} if images.skips or images.left_out else {}),
        }

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Refuse images other than those that the checkpoint was trained on, unless the user has said that they have changed.

        Raises:
            UserError: names, labels or contents differ, the classes have other names, so that labels would mean something else, or the
                shape differs, which may never change.
        """
        self.data_wait = 0.0
        if rolls_back:  # these images were accepted at the start
            return
        state, told = snapshot.state, self.context.changed_data or snapshot.state["data_listing"] is None  # None in a fork with other data
        wrong = None if state["data_listing"] is None else find_difference(self.images, state, self.context.run_dir)
        if wrong and not told:
            raise UserError(
                f"data: {wrong}; restore the original images, or use another run_dir;"
                " --changed-data continues on the images as they are now"
            )
        if not told:
            self._parts = state.get("data_parts")
            self._require_classes(state.get("class_names"))
        self.changed = told and state["data_fingerprint"] != self.images.fingerprint
        if self.changed:
            require_shape(self.images, state["shape"])

    def _require_classes(self, names: Sequence[str] | None) -> None:
        """Refuse classes of other names than a run's, if both are known.

        Raises:
            UserError: names the first class that differs.
        """
        now, run_dir = self.images.known_names, self.context.run_dir
        if names is None or now is None or tuple(names) == now:
            return
        what = f"{len(now)} classes, and {run_dir} was trained on {len(names)}"
        if len(names) == len(now):
            label = next(i for i, (a, b) in enumerate(zip(names, now)) if a != b)
            what = f"class {label} named {now[label]!r}, and {run_dir} was trained with {names[label]!r} there"
        raise UserError(
            f"data: {self.images.name} has {what}, so its labels would mean other classes;"
            " restore the names and order of the classes, or use another run_dir"
        )


def named_in_record(run_dir: Path) -> set[str]:
    """The unreadable images that a run has named at earlier starts; empty if it has no record."""
    with suppress(UserError):
        lines = (parse(data) for data, _ in stream_bytes(run_dir) if b'"skipped"' in data)
        return {line["image"] for line in lines if line and line.get("event") == "skipped" and "image" in line}
    return set()


def require_shape(images: ImageSet, shape: Sequence[int]) -> None:
    """Refuse images that the networks of a checkpoint cannot take.

    Args:
        shape: (resolution, channels, classes) of the images that it was trained on.

    Raises:
        UserError: names what differs, with both values.
    """
    now = (images.resolution, images.channels, images.num_classes)
    words: tuple[Callable[[int], str], ...] = (
        lambda pixels: f"images of {pixels} x {pixels} pixels",
        lambda channels: f"images with {counted(channels, 'channel')}",
        lambda classes: counted(classes, "class", "es"),
    )
    for say, old, new in zip(words, shape, now):
        if old != new:
            raise UserError(
                f"data: {images.name} has {say(new)}, and the networks of this run were trained with {say(old)}; use a data set with"
                f" {say(old)}, or train a new run"
            )
