"""Curves of many points for charts: the mean of each bin of points, and the band between its lowest and highest value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_POINTS = 2000  # of a curve that is drawn as it is; more cannot be told apart on a screen
BINS = 1000  # of a longer curve, at most


@dataclass(frozen=True)
class Envelope:
    """A curve of many points in bins of equally many. Nothing that stands out is lost: the band has every extreme where it was.

    Attributes:
        per_bin: points of a bin; the last bin may have fewer.
        x, mean: the first point, then the mean of every bin at the mean of its places, then the last point; nan where no value is finite.
        low, high: of the same, the lowest and the highest value.
        band: x and y of a polygon around all points: the highest point of each bin, then the lowest of each in reverse.
        not_finite: number of values that are not finite, which nothing here contains.
    """

    per_bin: int
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band: tuple[np.ndarray, np.ndarray]
    not_finite: int


def bin_size(points: int) -> int:
    """Points of a bin of a curve; 1 if it is drawn as it is."""
    return 1 if points <= MOST_POINTS else -(-points // BINS)


def envelope(x: np.ndarray, y: np.ndarray) -> Envelope:
    """The envelope of a curve.

    Args:
        x: places `[N]`, N at least 1.
        y: values `[N]`; those that are not finite are left out.
    """
    finite = np.isfinite(y)
    per_bin = -(-len(x) // BINS)
    starts = np.arange(0, len(x), per_bin)
    count = np.add.reduceat(finite.astype(np.int64), starts)
    there = count > 0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        kept, size = np.where(finite, y, 0.0), np.repeat(np.maximum(count, 1), np.diff([*starts, len(x)]))
        mean = np.add.reduceat(kept, starts) / count
        mean = np.where(np.isfinite(mean), mean, np.add.reduceat(kept / size, starts))  # the sum of large values may be no float
        mean = np.where(there, mean, np.nan)
        places = np.add.reduceat(x / per_bin, starts) * per_bin / np.diff([*starts, len(x)])
    low_at, high_at = (extremes(np.where(finite, y, fill), starts, pick) for fill, pick in ((np.inf, np.minimum), (-np.inf, np.maximum)))
    low, high = np.where(there, y[low_at], np.nan), np.where(there, y[high_at], np.nan)
    ends = np.array([0, len(x) - 1])
    end_values = np.where(finite[ends], y[ends], np.nan)
    around = lambda values: np.concatenate([end_values[:1], values, end_values[1:]])  # noqa: E731
    up, down = high_at[there], low_at[there][::-1]
    polygon = np.concatenate([up, down])
    return Envelope(
        per_bin, np.concatenate([x[:1], places, x[-1:]]), around(mean), around(low), around(high), (x[polygon], y[polygon]),
        int((~finite).sum()),
    )  # fmt: skip


def extremes(values: np.ndarray, starts: np.ndarray, pick: np.ufunc) -> np.ndarray:
    """The index of the first lowest or highest value of each bin.

    Args:
        values: `[N]`.
        starts: index of the first value of each bin.
        pick: `np.minimum` or `np.maximum`.
    """
    best = np.repeat(pick.reduceat(values, starts), np.diff([*starts, len(values)]))
    found = np.flatnonzero(values == best)
    return found[np.searchsorted(found, starts)]
