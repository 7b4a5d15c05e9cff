"""Random numbers as a pure function of (seed, purpose, position).

There is no generator to save or restore: position `i` of stream "z/g" under seed 0 has one value, in whatever order positions are read
and however a batch is split over rounds and processes. The numbers come from Philox (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"), a counter-based generator with random access: of numpy for latents and orders, which are drawn on the host, and
written in tensor operations (`Draws`) for what an update needs at every image, which is drawn where the images are.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch

from gantrain.devices import widest_float

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


class Draws:
    """Random numbers for the images of one micro-batch, on their device: a pure function of (seed, purpose, name, position).

    An image gets the same numbers in whatever round, half of a micro-batch or process it is. Nothing is synchronised, and nothing is
    copied from the host. The generator is Philox 4x32-10 (Salmon et al. 2011, section 3.3), whose counter holds the position and the
    place within an image, and whose key is a hash of the rest.

    Args:
        seed: of the run.
        purpose: name of the stream; streams are independent.
        positions: int64 `[N]`, the images' positions in the stream, on the device where the numbers are wanted.
    """

    def __init__(self, seed: int, purpose: str, positions: torch.Tensor):
        self.seed, self.purpose, self.positions = seed, purpose, positions

    def __len__(self) -> int:
        return len(self.positions)

    def of(self, name: str) -> Draws:
        """The stream of this name within this one."""
        return Draws(self.seed, f"{self.purpose}/{name}", self.positions)

    def words(self, name: str, count: int) -> torch.Tensor:
        """Uniform 32-bit integers as int64 `[N, count]`."""
        ticks = -(-count // 4)
        place = torch.arange(ticks, device=self.positions.device)
        position = self.positions[:, None].expand(-1, ticks)
        counter = [place.expand(len(self), -1), torch.zeros_like(position), position & MASK, position >> 32 & MASK]
        drawn = philox(counter, key(self.seed, f"{self.purpose}/{name}") & (2**64 - 1))
        return torch.stack(drawn, dim=-1).flatten(1)[:, :count]

    def uniform(self, name: str, *shape: int) -> torch.Tensor:
        """Uniform numbers in the open interval (0, 1): float32 `[N, *shape]`."""
        words = self.words(name, math.prod(shape))
        # 23 bits and a half: exactly representable, and never 0 or 1.
        return (((words >> 9).float() + 0.5) * 2.0**-23).view(len(self), *shape)

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Standard normal numbers, within +-5.8: float32 `[N, *shape]`, by the method of Box and Muller (1958)."""
        count = math.prod(shape)
        # In float64: the last digit of a float32 logarithm depends on where in a batch it is computed.
        radius, angle = self.uniform(name, 2, -(-count // 2)).to(widest_float(self.positions.device)).unbind(1)
        radius, angle = (-2.0 * radius.log()).sqrt(), 2.0 * math.pi * angle
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(len(self), *shape).float()


MASK = 2**32 - 1
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of Philox 4x32, Salmon et al. 2011, Table 2
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the two halves of the key grow by in each round


def philox(counter: list[torch.Tensor], of_key: int) -> list[torch.Tensor]:
    """Philox 4x32-10: four words of 32 bits, in int64 tensors, for each counter of four words and a key of 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = of_key & MASK, of_key >> 32
    for _ in range(10):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2^64, of which the words are cut out
        c0, c1, c2, c3 = second >> 32 & MASK ^ c1 ^ k0, second & MASK, first >> 32 & MASK ^ c3 ^ k1, first & MASK
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return [c0, c1, c2, c3]
