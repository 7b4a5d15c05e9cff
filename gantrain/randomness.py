"""Random numbers as a pure function of (seed, purpose, position).

There is no generator to save or restore: position `i` of stream "z/g" under seed 0 has one value, in whatever order positions are read
and however a batch is split over rounds and processes. The numbers come from Philox (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"), a counter-based generator with random access.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

WORDS_PER_COUNT = 4  # one tick of Philox's counter gives four 64-bit words


def key(seed: int, purpose: str) -> int:
    """The 128-bit key of one stream of numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest(), "little")


def uniform(seed: int, purpose: str, start: int, count: int, width: int = 1) -> torch.Tensor:
    """Uniform numbers in the open interval (0, 1): float64 `[count, width]` for positions start .. start + count - 1."""
    ticks = -(-width // WORDS_PER_COUNT)
    source = np.random.Philox(key=key(seed, purpose))
    source.advance(start * ticks)
    words = source.random_raw(count * ticks * WORDS_PER_COUNT).reshape(count, ticks * WORDS_PER_COUNT)[:, :width]
    # 52 bits and a half: exactly representable, and never 0 or 1.
    return torch.from_numpy(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def normal(seed: int, purpose: str, start: int, count: int, width: int, truncation: float | None = None) -> torch.Tensor:
    """Standard normal numbers: float32 `[count, width]`.

    `truncation` t > 0 draws from the normal distribution conditioned on |z| <= t, as BigGAN's truncation trick does by resampling
    (Brock et al. 2019, section 3.1); inverting the distribution function gives the same law without the loop.
    """
    u = uniform(seed, purpose, start, count, width)
    if truncation is not None:
        low = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64))
        u = low + u * (1 - 2 * low)
    z = torch.special.ndtri(u)
    if truncation is not None:  # the inverse is exact to rounding only
        z = z.clamp(-truncation, truncation)
    return z.to(torch.float32)


def integers(seed: int, purpose: str, start: int, count: int, below: int) -> torch.Tensor:
    """Uniform integers in [0, below): int64 `[count]`."""
    return (uniform(seed, purpose, start, count)[:, 0] * below).to(torch.int64)
