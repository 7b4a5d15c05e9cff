"""Which image comes when: the sample order as a pure function of (seed, position).

The stream is endless and indexed by position: epoch e is the positions e*N .. e*N + N - 1 and shows every image once, in
an order of its own. The order is a keyed permutation evaluated per position in O(1) memory and time, so that shuffling and
resuming a billion images costs what it costs for a thousand.

Within an update of B = b x W x k images, round j of process r takes b positions from position + (j*W + r) * b. A
process's micro-batches are therefore the positions (m*W + r) * b for m = 0, 1, 2, ..., whatever k is, now or later.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gantrain import randomness
from gantrain.data.imageset import ImageSet, collate
from gantrain.errors import UserError
from gantrain.interruption import SIGNALS

T = TypeVar("T")
AHEAD = 4  # micro-batches that are gathered ahead
LEAVE = 300  # seconds after which a worker that was told to go goes by itself
FEISTEL_ROUNDS = 8
MIN_HALF_BITS = 4  # a domain of at least 256: rounds on fewer bits mix poorly


def permuted(seed: int, positions: np.ndarray, size: int) -> np.ndarray:
    """Which of `size` images stands at each position of the stream: int64, in 0 .. size - 1.

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
    """A permutation of 0 .. 4**half_bits - 1 for each epoch: uint64 in, uint64 out, element by element."""
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
    """The image indices of one process's micro-batches, in order, without end: a batch sampler for `DataLoader`."""

    def __init__(self, seed: int, size: int, micro_batch: int, rank: int, world: int, start: int):
        self.seed, self.size, self.micro_batch, self.rank, self.world = seed, size, micro_batch, rank, world
        self.start = start

    def positions(self, turn: int) -> np.ndarray:
        """Positions of this process's micro-batch number `turn` after the start."""
        first = self.start + (turn * self.world + self.rank) * self.micro_batch
        return np.arange(first, first + self.micro_batch, dtype=np.uint64)

    def __iter__(self) -> Iterator[list[int]]:
        turn = 0
        while True:
            yield permuted(self.seed, self.positions(turn), self.size).tolist()
            turn += 1


def steadfast(worker: int) -> None:
    """Have a worker outlive what its whole process group or job is told: its owner finishes an update with it, and ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LEAVE))  # what the owner ends one with that does not listen


class Ahead:
    """Results of a function of 0, 1, 2, ..., some of them ahead, by a thread."""

    def __init__(self, make: Callable[[int], T], depth: int = AHEAD):
        self._make, self._pool, self._turn = make, ThreadPoolExecutor(1), 0
        self._waiting = deque(self._pool.submit(make, turn) for turn in range(depth))

    def next(self) -> T:
        result = self._waiting.popleft()
        self._turn += 1
        self._waiting.append(self._pool.submit(self._make, self._turn + len(self._waiting)))
        return result.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def pinned(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU's tensor in pinned memory if it is to go to a GPU: a copy out of pageable memory may wait for the device."""
    return x.pin_memory() if x.device.type == "cpu" and device.type == "cuda" else x


def sent(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device, on its way there while this process goes on."""
    device = torch.device(device)
    return pinned(x, device).to(device, non_blocking=True)


class RealBatches:
    """Real micro-batches of one process, from a position of the stream on.

    Images in memory are gathered where they lie, on the device if they are there; those of a mapped file, and those that are on their way
    to a GPU, ahead by a thread; others are decoded ahead by worker processes. Flips are drawn per position.

    Args:
        images: the data set.
        start: position in the stream of the update's first image; a multiple of micro_batch x world.
        flip: mirror every image with probability one half.
        workers: processes that decode ahead, for images that are not in memory.
    """

    def __init__(
        self, images: ImageSet, seed: int, micro_batch: int, rank: int, world: int, start: int, device: torch.device,
        flip: bool = False, workers: int = 4,
    ):  # fmt: skip
        self.images, self.seed, self.flip, self.device = images, seed, flip, device
        self.sampler = PositionSampler(seed, len(images), micro_batch, rank, world, start)
        self.turn = 0
        self.skipped: list[str] = []  # what could not be read, until somebody says it and clears the list
        self._loaded: Iterator[tuple[torch.Tensor, torch.Tensor, list[str]] | UserError] | None = None
        self._gathered: Ahead | None = None
        if images.pixels is None:
            self._loaded = iter(self._loader(images, workers))
        elif images.pixels.device.type == "cpu" and (images.mapped or device.type == "cuda"):
            self._gathered = Ahead(self.gather)

    def _loader(self, images: Dataset, workers: int) -> DataLoader:
        return DataLoader(
            images,
            batch_sampler=self.sampler,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            collate_fn=collate,
            worker_init_fn=steadfast,
            generator=torch.Generator(),  # or the workers' seed would be drawn from the global one
        )

    def close(self) -> None:
        """Let the workers go."""
        self._loaded = None
        if self._gathered:
            self._gathered.close()

    def gather(self, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Micro-batch number `turn` of images in memory, where they lie; pinned where they are to be copied to a GPU."""
        indices = torch.from_numpy(permuted(self.seed, self.sampler.positions(turn), len(self.images)))
        indices = sent(indices, self.images.pixels.device)
        return pinned(self.images.pixels[indices], self.device), pinned(self.images.labels[indices], self.device)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next micro-batch: uint8 `[b, C, H, W]` and labels int64 `[b]`, on the device.

        Raises:
            UserError: an image does not decode; it is named.
        """
        turn, self.turn = self.turn, self.turn + 1
        if self._loaded is not None:
            batch = next(self._loaded)
            if isinstance(batch, UserError):
                # A new one: the batch itself would hold on to the workers through its traceback.
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
