"""The recorded motion of a run's weights, read back from its record."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gantrain.averaging import LIVE
from gantrain.errors import UserError, one_line
from gantrain.orbit.recorder import FOLDER, RECORD_FILE

JUMP = 1.1  # learning rates that differ by more drive another orbit


class NothingYet(UserError):
    """Nothing was recorded, or too little."""


@dataclass(frozen=True)
class Motion:
    """The recorded motion of one player of a run, `n` recordings.

    Attributes:
        nimg: `[n]`, images seen; twice the same beside a swap.
        sketches: `[n, size]` of the live weights ("live") and of every average, nan before it has begun.
        distances: `[n]`, squared, of the live weights to every average, nan before it has begun.
        regime: `[n]`, counts up where the weights jump (a swap) or what drives them does (the batch, a learning rate).
        swaps: rows just before a swap; the one after it is the next.
        batch_size: `[n]`.
    """

    nimg: np.ndarray
    sketches: dict[str, np.ndarray]
    distances: dict[str, np.ndarray]
    regime: np.ndarray
    swaps: list[int]
    batch_size: np.ndarray


def read_record(run: Path) -> list[dict[str, Any]]:
    """What a run has recorded, a recording a line, sketches as arrays.

    Raises:
        UserError: nothing was recorded (`NothingYet`), or a line of the file cannot be read.
    """
    path = run / FOLDER / RECORD_FILE
    lines = list(whole_lines(path)) if path.is_file() else []
    if not lines:
        raise NothingYet(f"{run}: has recorded no orbit; train it, or train it on, with orbit.every_kimg=0.25")
    for number, line in enumerate(lines, start=1):
        try:
            lines[number - 1] = line = json.loads(line)
            line["sketch"] = {key: {name: decode(code) for name, code in line["sketch"][key].items()} for key in ("g", "d")}
            sizes = {len(sketch) for one in (line, lines[0]) for of in one["sketch"].values() for sketch in of.values()}
            if len(sizes) != 1:
                raise ValueError(f"sketches of {' and '.join(map(str, sorted(sizes)))} numbers")
            numbers = (line["nimg"], line["batch_size"], line["lr"]["g"], line["lr"]["d"])
            whole = all(isinstance(value, (int, float)) for value in numbers) and all(LIVE in of for of in line["sketch"].values())
            if not whole or not all(isinstance(line["distances"][key], dict) for key in ("g", "d")):
                raise ValueError("it is not as it was written")
            if number > 1 and line["nimg"] < lines[number - 2]["nimg"]:
                raise ValueError("it goes back in time")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is damaged ({one_line(error)}); delete it to do without this recording") from None
    return lines


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without one that a run is writing still."""
    with open(path, "rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield text


def decode(code: str) -> np.ndarray:
    """The numbers of a sketch."""
    return np.frombuffer(base64.b64decode(code, validate=True), dtype="<f4")


def as_motion(lines: list[dict[str, Any]], player: str) -> Motion:
    """The recordings of one player as arrays."""
    sketched = [line["sketch"][player] for line in lines]
    nothing = np.full(len(sketched[0][LIVE]), np.nan)
    names = list(dict.fromkeys(name for of in sketched for name in of))
    sketches = {name: np.stack([of.get(name, nothing) for of in sketched]).astype(np.float32) for name in names}
    distances = {n: np.array([float(line["distances"][player].get(n, "nan")) for line in lines]) for n in names if n != LIVE}
    batch, rates = [line["batch_size"] for line in lines], [tuple(line["lr"].values()) for line in lines]
    swapped = [line.get("swap") is True for line in lines]
    new = [False] * len(lines)
    begun = 0  # the recording that the regime begins with
    for i in range(1, len(lines)):
        new[i] = swapped[i] or batch[i] != batch[begun] or far_apart(rates[i], rates[begun])
        begun = i if new[i] else begun
    return Motion(
        nimg=np.array([line["nimg"] for line in lines]),
        sketches=sketches,
        distances=distances,
        regime=np.cumsum(new),
        swaps=[i - 1 for i, after in enumerate(swapped) if after and i],
        batch_size=np.array(batch),
    )


def far_apart(some: tuple[float, ...], others: tuple[float, ...]) -> bool:
    """Whether learning rates differ so much that each drives an orbit of its own."""
    return any(max(a, b) > JUMP * min(a, b) for a, b in zip(some, others))
