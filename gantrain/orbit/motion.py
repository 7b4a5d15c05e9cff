"""The recorded motion of the weights, as arrays of one player."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gantrain.errors import UserError
from gantrain.orbit.recordings import FOLDER, KEYS, RECORD_FILE, Recordings

JUMP = 1.1  # a learning rate that changes by more than this factor starts a new orbit


class TooFewRecordings(UserError):
    """The run has recorded nothing, or too little to analyse."""


@dataclass(frozen=True)
class Motion:
    """The recorded motion of one player of a run: `n` recordings.

    Attributes:
        nimg: `[n]`, images seen; a swap appears twice, before and after it.
        sketches: `[n, size]` by name, of the live weights ("live") and of every average; nan before an average has started.
        distances: `[n]` by average, squared, between the live weights and the average; nan before it has started.
        regime: `[n]`, a number that increases whenever the weights jump (a swap), or the batch size or a learning rate does.
        swaps: rows just before a swap; the next row is just after it.
        batch_size: `[n]`.
    """

    nimg: np.ndarray
    sketches: dict[str, np.ndarray]
    distances: dict[str, np.ndarray]
    regime: np.ndarray
    swaps: list[int]
    batch_size: np.ndarray


def read_record(run: Path) -> Recordings:
    """Read a run's recordings.

    Raises:
        UserError: nothing was recorded (`TooFewRecordings`), or the file cannot be read.
    """
    recordings = Recordings(run / FOLDER / RECORD_FILE)
    try:
        recordings.read_new()
    except OSError as error:
        raise UserError(f"{recordings.path}: cannot be read ({error.strerror}); fix this and run the same command again") from error
    return require_recordings(recordings, run)


def require_recordings(recordings: Recordings, run: Path) -> Recordings:
    """The recordings, if there are any.

    Raises:
        TooFewRecordings: there are none, or none can be read.
    """
    if not len(recordings) and recordings.unreadable:
        raise TooFewRecordings(f"{recordings.path}: no line can be read; restore the file, or delete it and continue training the run")
    if not len(recordings):
        raise TooFewRecordings(f"{run}: has recorded no orbit; train it, or continue training it, with orbit.every_kimg=0.25")
    return recordings


def build_motion(recordings: Recordings, player: str) -> Motion:
    """The recordings of one player ("g" or "d"). Its arrays are views, valid until more is read."""
    swapped = recordings.column("swap")
    batch, rates = recordings.column("batch_size"), [recordings.column(f"lr_{key}") for key in KEYS]
    return Motion(
        nimg=recordings.column("nimg"),
        sketches=recordings.sketches_of(player),
        distances=recordings.distances_of(player),
        regime=find_regimes(batch.tolist(), list(zip(*(rate.tolist() for rate in rates))), swapped.tolist()),
        swaps=[int(i) - 1 for i in np.flatnonzero(swapped) if i],
        batch_size=batch,
    )


def number_regimes(heads: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """`[n]`, the regime of each recording, see `Motion`; of a head, only `batch_size`, `lr` and `swap` are used."""
    return find_regimes(
        [head["batch_size"] for head in heads], [tuple(head["lr"].values()) for head in heads], [head.get("swap") is True for head in heads]
    )


def find_regimes(batch: Sequence[int], rates: Sequence[tuple[float, ...]], swapped: Sequence[bool]) -> np.ndarray:
    """As `number_regimes`, by columns."""
    new = [False] * len(batch)
    begin = 0  # the first recording of the current regime
    for i in range(1, len(batch)):
        new[i] = swapped[i] or batch[i] != batch[begin] or is_jump(rates[i], rates[begin])
        begin = i if new[i] else begin
    return np.cumsum(new)


def is_jump(some: tuple[float, ...], others: tuple[float, ...]) -> bool:
    """Whether learning rates differ so much that the weights move on a different orbit."""
    return any(max(a, b) > JUMP * min(a, b) for a, b in zip(some, others))
