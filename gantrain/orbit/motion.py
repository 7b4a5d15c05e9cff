"""The recorded motion of the weights: `RUN/orbit/record.jsonl`, read as arrays."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gantrain.averaging import LIVE
from gantrain.errors import UserError, one_line
from gantrain.orbit.recorder import FOLDER, RECORD_FILE

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


def read_record(run: Path) -> list[dict[str, Any]]:
    """Read a run's recordings, one dictionary each, with sketches as float32 arrays.

    Raises:
        UserError: nothing was recorded (`TooFewRecordings`), or a line of the file is damaged.
    """
    path = run / FOLDER / RECORD_FILE
    texts = list(read_whole_lines(path)) if path.is_file() else []
    if not texts:
        raise TooFewRecordings(f"{run}: has recorded no orbit; train it, or continue training it, with orbit.every_kimg=0.25")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            check_line(line, lines)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is damaged ({one_line(error)}); delete the line to continue without it") from None
        lines.append(line)
    return lines


def check_line(line: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """Decode the sketches of a recording in place, and check it against the recordings before it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the recorder did not write the line.
    """
    line["sketch"] = {key: {name: decode_sketch(code) for name, code in line["sketch"][key].items()} for key in ("g", "d")}
    first = before[0] if before else line
    sizes = {len(sketch) for one in (line, first) for of in one["sketch"].values() for sketch in of.values()}
    if len(sizes) != 1:
        raise ValueError(f"sketches of {' and '.join(map(str, sorted(sizes)))} numbers")
    numbers = (line["nimg"], line["batch_size"], line["lr"]["g"], line["lr"]["d"])
    complete = all(isinstance(value, (int, float)) for value in numbers) and all(LIVE in of for of in line["sketch"].values())
    if not complete or not all(isinstance(line["distances"][key], dict) for key in ("g", "d")):
        raise ValueError("values are missing or of the wrong type")
    if before and line["nimg"] < before[-1]["nimg"]:
        raise ValueError("nimg is smaller than in the line before")


def read_whole_lines(path: Path) -> Iterator[bytes]:
    """Iterate over the lines of a file, skipping a last line that a run is still writing."""
    with open(path, "rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield text


def decode_sketch(code: str) -> np.ndarray:
    """Decode a sketch: base64 of little-endian float32 to `[size]`."""
    return np.frombuffer(base64.b64decode(code, validate=True), dtype="<f4")


def build_motion(lines: list[dict[str, Any]], player: str) -> Motion:
    """Collect the recordings of one player ("g" or "d") into arrays."""
    sketched = [line["sketch"][player] for line in lines]
    nothing = np.full(len(sketched[0][LIVE]), np.nan)
    names = list(dict.fromkeys(name for of in sketched for name in of))
    sketches = {name: np.stack([of.get(name, nothing) for of in sketched]).astype(np.float32) for name in names}
    distances = {n: np.array([float(line["distances"][player].get(n, "nan")) for line in lines]) for n in names if n != LIVE}
    swapped = [line.get("swap") is True for line in lines]
    return Motion(
        nimg=np.array([line["nimg"] for line in lines]),
        sketches=sketches,
        distances=distances,
        regime=number_regimes(lines),
        swaps=[i - 1 for i, after in enumerate(swapped) if after and i],
        batch_size=np.array([line["batch_size"] for line in lines]),
    )


def number_regimes(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """`[n]`, the regime of each recording, see `Motion`; of a line, only `batch_size`, `lr` and `swap` are used."""
    batch, rates = [line["batch_size"] for line in lines], [tuple(line["lr"].values()) for line in lines]
    new = [False] * len(lines)
    begin = 0  # the first recording of the current regime
    for i in range(1, len(lines)):
        new[i] = lines[i].get("swap") is True or batch[i] != batch[begin] or is_jump(rates[i], rates[begin])
        begin = i if new[i] else begin
    return np.cumsum(new)


def is_jump(some: tuple[float, ...], others: tuple[float, ...]) -> bool:
    """Whether learning rates differ so much that the weights move on a different orbit."""
    return any(max(a, b) > JUMP * min(a, b) for a, b in zip(some, others))
