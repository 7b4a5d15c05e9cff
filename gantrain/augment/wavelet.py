"""Filters along an axis of an image as constant matrices: doubling and halving its size, and its parts by frequency.

Beyond its edges an image goes on as its mirror image, without repeating the edge. All filters are symmetric, so whatever they make of an
image goes on as a mirror image too, and a matrix of the size of the image holds the extension exactly, however small the image is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

# Low-pass filters of the biorthogonal 9/7 wavelet (Cohen, Daubechies and Feauveau 1992; that of JPEG 2000), from the middle outwards.
# Unlike the published sym6 they are symmetric, and like it they lose nothing: `halving` after `doubling` is the identity.
DOUBLE = (1.115087052456994, 0.5912717631142470, -0.05754352622849957, -0.09127176311424948)
HALVE = (0.6029490182363579, 0.2668641184428723, -0.07822326652898785, -0.01686411844287495, 0.02674875741080976)
MARGIN = len(HALVE) - 1  # samples that `halving` reads beyond either edge
HALF_BAND = (0.5, 0.28125, 0.0, -0.03125)  # a symmetric low-pass filter of half the frequencies: that of sym2 applied twice
BANDS = 4
Places = TypeVar("Places", np.ndarray, Tensor)


def symmetric(half: Sequence[float]) -> np.ndarray:
    """All taps of a filter that is given from the middle outwards."""
    return np.array([*half[:0:-1], *half])


def mirrored(place: Places, size: int) -> Places:
    """The places within an axis of this size that places beyond its edges mirror, without repeating the edge."""
    last = size - 1
    return last - abs(place % max(1, 2 * last) - last)


def on_device(matrix: np.ndarray, like: Tensor) -> Tensor:
    """A constant matrix of the dtype and device of a tensor, for gradients to pass through whatever mode made it."""
    with torch.inference_mode(False):
        return torch.from_numpy(matrix).to(like.dtype).to(like.device)  # in this order: some devices have no float64


@functools.lru_cache(64)
def doubling(size: int) -> np.ndarray:
    """`[2 size - 1, size]`: samples at all half pixels from the first to the last."""
    matrix = np.zeros((2 * size - 1, size))
    for tap, weight in enumerate(symmetric(DOUBLE), 1 - len(DOUBLE)):
        at = np.arange(2 * size - 1)
        at = at[(at - tap) % 2 == 0]
        np.add.at(matrix, (at, mirrored((at - tap) // 2, size)), weight)
    return matrix


@functools.lru_cache(64)
def halving(size: int) -> np.ndarray:
    """`[size, 2 size - 1 + 2 MARGIN]`: pixels from samples at all half pixels, `MARGIN` of them before the first pixel."""
    matrix = np.zeros((size, 2 * size - 1 + 2 * MARGIN))
    at = np.arange(size)
    for tap, weight in enumerate(symmetric(HALVE)):
        matrix[at, 2 * at + tap] = weight
    return matrix


@functools.lru_cache(64)
def bands(size: int) -> np.ndarray:
    """`[4, size, size]`: the parts of an axis in [0, pi/8], [pi/8, pi/4], [pi/4, pi/2] and [pi/2, pi], lowest first.

    They are differences between octaves of one low-pass filter, and sum to the identity.
    """
    lows, taps = [np.ones(1)], symmetric(HALF_BAND)
    for octave in range(BANDS - 1):
        spread = np.zeros((len(taps) - 1) * 2**octave + 1)
        spread[:: 2**octave] = taps
        lows.append(np.convolve(lows[-1], spread))
    found = []
    for filtered in lows:
        matrix, reach = np.zeros((size, size)), len(filtered) // 2
        for tap, weight in enumerate(filtered, -reach):
            at = np.arange(size)
            np.add.at(matrix, (at, mirrored(at + tap, size)), weight)
        found.append(matrix)
    return np.stack([found[-1], *(high - low for low, high in zip(found[:0:-1], found[-2::-1]))])


@functools.lru_cache(64)
def constant(name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One of the matrices above as a tensor that stays on its device."""
    matrix = {"doubling": doubling, "halving": halving, "bands": bands}[name](size)
    return on_device(matrix, torch.empty(0, dtype=dtype, device=device))
