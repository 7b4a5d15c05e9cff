"""The order of the training images, as a pure function of (seed, position).

The stream is endless and indexed by position. Epoch e covers the positions e*N .. e*N + N - 1 and contains every image once,
in its own order. The order is a keyed permutation, evaluated per position in O(1) memory and time, so shuffling or resuming
a billion images costs the same as a thousand.

In an update of B = b x W x k images, round j of process r takes b positions starting at position + (j*W + r) * b. So the
micro-batches of a process start at the positions (m*W + r) * b for m = 0, 1, 2, ..., independently of k.
"""

from __future__ import annotations

import functools
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gantrain import randomness, streams
from gantrain.data.imageset import ImageSet, collate
from gantrain.data.worker_processes import PREFETCH, SteadyWorkers, bytes_of_batch, require_workers
from gantrain.errors import UserError
from gantrain.interruption import SIGNALS
from gantrain.plugin_errors import PluginError

T = TypeVar("T")
AHEAD = 4  # how many micro-batches are gathered in advance
LEAVE = 300  # seconds until a worker that received SIGTERM exits on its own
FEISTEL_ROUNDS = 8
MIN_HALF_BITS = 4  # so the domain has at least 256 elements; rounds on fewer bits mix poorly


def permuted(seed: int, positions: np.ndarray, size: int) -> np.ndarray:
    """Returns which of `size` images is at each position of the stream: int64, in 0 .. size - 1.

    A Feistel network over the smallest even number of bits that holds `size`, keyed by (seed, epoch), with cycle walking:
    a result outside 0 .. size - 1 is permuted again until it falls inside (Black and Rogaway 2002, section 3), which
    keeps the map a bijection.
    """
    epochs, index = np.divmod(np.asarray(positions, dtype=np.uint64), np.uint64(size))
    half = max(MIN_HALF_BITS, -(-(size - 1).bit_length() // 2))
    result = feistel(seed, epochs, index, half)
    outside = result >= size
    while outside.any():
        result[outside] = feistel(seed, epochs[outside], result[outside], half)
        outside = result >= size
    return result.astype(np.int64)


def feistel(seed: int, epochs: np.ndarray, values: np.ndarray, half_bits: int) -> np.ndarray:
    """Applies each epoch's permutation of 0 .. 4**half_bits - 1 elementwise: uint64 in, uint64 out."""
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for turn in range(FEISTEL_ROUNDS):
        round_key = np.uint64(randomness.key(seed, f"order/{turn}") & 0xFFFFFFFFFFFFFFFF)
        left, right = right, left ^ (mixed(mixed(epochs ^ round_key) + right) & mask)
    return (left << shift) | right


def mixed(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class PositionSampler:
    """Yields the image indices of one process's micro-batches, in order and without end: a batch sampler for `DataLoader`.

    Args:
        independent: draw every image independently of all others, instead of each image once an epoch.
        The rest as in `RealBatches`.
    """

    def __init__(self, seed: int, size: int, micro_batch: int, rank: int, world: int, start: int, independent: bool = False):
        self.seed, self.size, self.micro_batch, self.rank, self.world = seed, size, micro_batch, rank, world
        self.start, self.independent = start, independent
        self.first = 0  # the first micro-batch that an iterator yields

    def positions(self, turn: int) -> np.ndarray:
        """Stream positions of this process's micro-batch number `turn`, counted from the start: uint64 `[b]`."""
        first = self.start + (turn * self.world + self.rank) * self.micro_batch
        positions = np.arange(first, first + self.micro_batch, dtype=np.uint64)
        if not self.independent:
            return positions
        return positions * np.uint64(self.size) + positions % np.uint64(self.size)  # one of each epoch, whose orders are independent

    def __iter__(self) -> Iterator[list[int]]:
        turn = self.first
        while True:
            yield permuted(self.seed, self.positions(turn), self.size).tolist()
            turn += 1


def steadfast(worker: int) -> None:
    """Makes a decoding worker ignore signals that are sent to the whole job.

    The training process still needs the worker to finish its update, and ends the worker itself.
    """
    streams.secure()  # a worker that is not forked has streams of its own
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # Windows has none, and ends a process at once
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LEAVE))  # DataLoader sends SIGTERM to a worker that does not stop


class Ahead(Generic[T]):
    """Computes `make(0)`, `make(1)`, ... in a thread, a few results in advance."""

    def __init__(self, make: Callable[[int], T], depth: int = AHEAD):
        self._make, self._pool, self._turn = make, ThreadPoolExecutor(1), 0
        self._waiting = deque(self._pool.submit(make, turn) for turn in range(depth))

    def next(self) -> T:
        """The next result, in order; raises what `make` raised."""
        result = self._waiting.popleft()
        self._turn += 1
        self._waiting.append(self._pool.submit(self._make, self._turn + len(self._waiting)))
        return result.result()

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def pinned(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Pins a CPU tensor that will be copied to a GPU, since a copy from pageable memory may block until the device is idle."""
    return x.pin_memory() if x.device.type == "cpu" and device.type == "cuda" else x


def sent(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copies a tensor to a device without waiting for the copy."""
    device = torch.device(device)
    return pinned(x, device).to(device, non_blocking=True)


def load(images: Dataset[Any], sampler: PositionSampler, workers: int, pin: bool, turn: int) -> Iterator[Any]:
    """The micro-batches of a sampler from number `turn` on, decoded by new workers; `pin` pins them."""
    sampler.first = turn
    return iter(
        DataLoader(
            images,
            batch_sampler=sampler,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin,
            collate_fn=collate,
            worker_init_fn=steadfast,
            generator=torch.Generator(),  # otherwise the workers' seed would be drawn from the global generator
        )
    )


class RealBatches:
    """The real micro-batches of one process, starting at a position of the stream.

    Images in memory are gathered on the device that holds them. A thread gathers in advance if the images are memory-mapped or must be
    copied to a GPU. Images that are not in memory are decoded in advance by worker processes. Flips are drawn per position.

    Args:
        images: the data set.
        start: position in the stream of the update's first image; a multiple of micro_batch x world.
        flip: whether to mirror each image with probability 0.5.
        independent: draw every image independently of all others, that is, with replacement.
        workers: number of processes that decode in advance, for images that are not in memory.
    """

    def __init__(
        self, images: ImageSet, seed: int, micro_batch: int, rank: int, world: int, start: int, device: torch.device,
        flip: bool = False, workers: int = 4, independent: bool = False,
    ):  # fmt: skip
        self.images, self.seed, self.flip, self.device = images, seed, flip, device
        self.sampler = PositionSampler(seed, len(images), micro_batch, rank, world, start, independent)
        self.turn = 0
        self.skipped: list[str] = []  # messages about unreadable images; whoever logs them clears the list
        self._loaded: SteadyWorkers[tuple[torch.Tensor, torch.Tensor, list[str]] | UserError] | None = None
        self._gathered: Ahead | None = None
        if images.pixels is None:
            require_workers(workers, bytes_of_batch(micro_batch, images.channels, images.resolution))
            self._loaded = SteadyWorkers(functools.partial(load, images, self.sampler, workers, device.type == "cuda"), workers)
        elif images.pixels.device.type == "cpu" and (images.mapped or device.type == "cuda"):
            self._gathered = Ahead(self.gather)

    def close(self) -> None:
        """Stop the workers and the thread."""
        if self._loaded:
            self._loaded.close()
        self._loaded = None
        if self._gathered:
            self._gathered.close()

    def gather(self, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Micro-batch number `turn` of images in memory, on the device that holds them; pinned if it will be copied to a GPU."""
        assert self.images.pixels is not None
        indices = torch.from_numpy(permuted(self.seed, self.sampler.positions(turn), len(self.images)))
        indices = sent(indices, self.images.pixels.device)
        return pinned(self.images.pixels[indices], self.device), pinned(self.images.labels[indices], self.device)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next micro-batch: uint8 `[b, C, H, W]` and labels int64 `[b]`, on the device.

        Raises:
            UserError: an image does not decode; the message names it.
            PluginError: the code of the data set has failed.
        """
        turn, self.turn = self.turn, self.turn + 1
        if self._loaded is not None:
            batch = self._loaded.next()
            if isinstance(batch, UserError):
                # Raise a new error: the traceback of the old one would keep the workers alive.
                if isinstance(batch, PluginError):  # a mistake in code, which no other image mends
                    raise type(batch)(str(batch))
                raise UserError(f"{batch}; replace it and run the same command again, or set data.on_error=skip")
            x, y, skipped = batch
            self.skipped += skipped
        else:
            x, y = self._gathered.next() if self._gathered else self.gather(turn)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        if self.flip:
            positions = self.sampler.positions(turn)
            mirrored = randomness.uniform(self.seed, "flip", int(positions[0]), len(positions))[:, 0] < 0.5
            x = torch.where(sent(mirrored, self.device)[:, None, None, None], x.flip(3), x)
        return x, y
