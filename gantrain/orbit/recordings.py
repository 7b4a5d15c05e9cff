"""The recordings of a run's orbit, `RUN/orbit/record.jsonl`, read as arrays that grow with the file.

A recording has a row in each array: 4 bytes for each number of a sketch and 8 for each distance, so about 520 bytes for each network and
average with the default `orbit.size` of 128, three quarters of its line. What has been read is never read again.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gantrain.averaging import LIVE
from gantrain.errors import counted
from gantrain.regular_file import open_regular
from gantrain.run_folder.json_values import WORDS
from gantrain.run_folder.line_file import stream_lines
from gantrain.run_folder.record_lines import is_count, is_number, is_positive

FOLDER = "orbit"
RECORD_FILE = "record.jsonl"
KEYS = ("g", "d")
FEWEST_ROWS = 64  # rows that arrays begin with
MORE_ROWS = 1.25  # factor by which full arrays grow


class Recordings:
    """Arrays of what has been recorded so far; `read_new` adds what the file has besides.

    A line that the recorder did not write is left out and counted. So is one whose time is earlier than that of the line before it; if
    that line stands alone with its later time, it is the wrong one of the two.

    Args:
        path: of the file; it may not exist yet.

    Attributes:
        unreadable: number of lines left out.
    """

    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def _forget(self) -> None:
        """Begin afresh."""
        self.unreadable = 0
        self._end = 0  # bytes of the file that have been read
        self._count = 0
        self._size = 0  # numbers of a sketch; 0 before the first recording
        self._rows = FEWEST_ROWS
        self._heads = {
            "nimg": np.zeros(FEWEST_ROWS, np.int64), "batch_size": np.zeros(FEWEST_ROWS, np.int64), "swap": np.zeros(FEWEST_ROWS, bool),
            "lr_g": np.zeros(FEWEST_ROWS), "lr_d": np.zeros(FEWEST_ROWS),
        }  # fmt: skip
        self._sketches: dict[tuple[str, str], np.ndarray] = {}  # (player, name) -> [rows, size], nan before an average has started
        self._distances: dict[tuple[str, str], np.ndarray] = {}  # (player, name) -> [rows]

    def __len__(self) -> int:
        return self._count

    def read_new(self) -> None:
        """Read what has been appended since the last call; a last line that is being written comes the next time.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            with open_regular(self.path) as file:
                if os.fstat(file.fileno()).st_size < self._end:  # a run that resumes has removed its last lines
                    self._forget()
                file.seek(self._end)
                for line in stream_lines(file):
                    if line.whole:
                        self._end += line.size
                        self._add(line.data)
        except FileNotFoundError:
            self._forget()

    def head(self, row: int) -> dict[str, Any]:
        """What the motion depended on at a recording: `nimg`, `batch_size`, `lr` by player, `swap`."""
        heads = {key: column[row].item() for key, column in self._heads.items()}
        return {
            "nimg": heads["nimg"],
            "batch_size": heads["batch_size"],
            "lr": {key: heads[f"lr_{key}"] for key in KEYS},
            "swap": heads["swap"],
        }

    def column(self, key: str) -> np.ndarray:
        """`[n]`, of "nimg", "batch_size", "swap", "lr_g" or "lr_d"."""
        return self._heads[key][: self._count]

    def sketches_of(self, player: str) -> dict[str, np.ndarray]:
        """`[n, size]` float32 by name, of the live weights and of every average; nan before an average has started."""
        return {name: rows[: self._count] for (key, name), rows in self._sketches.items() if key == player}

    def distances_of(self, player: str) -> dict[str, np.ndarray]:
        """`[n]` by average, squared; nan before it has started."""
        unknown = np.full(self._count, np.nan)
        return {
            name: self._distances[player, name][: self._count] if (player, name) in self._distances else unknown
            for name in self.sketches_of(player)
            if name != LIVE
        }

    def describe_unreadable(self, run: Path) -> str:
        """How many lines were left out, in a line; empty if none was."""
        what = f"{counted(self.unreadable, 'line')} of {FOLDER}/{RECORD_FILE} cannot be read and"
        return f"{run}: {what} {'is' if self.unreadable == 1 else 'are'} left out" if self.unreadable else ""

    # ---- a line ------------------------------------------------------------------------------------------------------

    def _add(self, text: bytes) -> None:
        """Add a line of the file."""
        try:
            line = json.loads(text.decode())  # of bytes, it would guess an encoding
            sketches = {key: {name: decode_sketch(code) for name, code in line["sketch"][key].items()} for key in KEYS}
            distances = {key: {name: as_number(value) for name, value in line["distances"][key].items()} for key in KEYS}
            head = {"nimg": line["nimg"], "batch_size": line["batch_size"], "swap": line.get("swap") is True}
            head |= {f"lr_{key}": as_number(line["lr"][key]) for key in KEYS}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.unreadable += 1
            return
        if not self._fits(head, sketches) or not self._follows(head["nimg"]):
            self.unreadable += 1
            return
        self._store(head, sketches, distances)

    def _fits(self, head: Mapping[str, Any], sketches: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
        """Whether a recording has what every recording has, and sketches as long as those before it."""
        sizes = {len(sketch) for of in sketches.values() for sketch in of.values()} | ({self._size} if self._count else set())
        complete = is_count(head["nimg"]) and is_positive(head["batch_size"]) and all(LIVE in of for of in sketches.values())
        rates = (head["lr_g"], head["lr_d"])
        return complete and len(sizes) == 1 and 0 not in sizes and all(math.isfinite(rate) and rate >= 0 for rate in rates)

    def _follows(self, nimg: int) -> bool:
        """Whether a recording is not earlier than the last one; a last one that stands alone with its time is dropped."""
        times, last = self._heads["nimg"], self._count - 1
        if last < 0 or times[last] <= nimg:
            return True
        if last and times[last - 1] > nimg:
            return False
        self._count = last
        self.unreadable += 1
        return True

    def _store(
        self, head: Mapping[str, Any], sketches: Mapping[str, Mapping[str, np.ndarray]], distances: Mapping[str, Mapping[str, float]]
    ) -> None:  # fmt: skip
        """Append a row to every array."""
        self._size = self._size if self._count else len(sketches["g"][LIVE])
        if self._count == self._rows:
            self._grow()
        row = self._count
        for key, value in head.items():
            self._heads[key][row] = value
        for stored, new, shape in ((self._sketches, sketches, (self._size,)), (self._distances, distances, ())):
            for rows in stored.values():
                rows[row] = np.nan
            for key, of in new.items():
                for name, value in of.items():
                    if (key, name) not in stored:
                        stored[key, name] = np.full((self._rows, *shape), np.nan, np.float32 if shape else np.float64)
                    stored[key, name][row] = value
        self._count += 1

    def _grow(self) -> None:
        """Make room for more rows, one array after the other, so that only one is in memory twice."""
        self._rows = int(self._rows * MORE_ROWS)
        for arrays in (self._heads, self._sketches, self._distances):
            grow(arrays, self._rows)


def grow(arrays: dict[Any, np.ndarray], rows: int) -> None:
    """Give full arrays room for more rows."""
    for key, old in arrays.items():
        arrays[key] = np.empty((rows, *old.shape[1:]), old.dtype)
        arrays[key][: len(old)] = old


def decode_sketch(code: str) -> np.ndarray:
    """Decode a sketch: base64 of little-endian float32 to `[size]`.

    Raises:
        ValueError, TypeError: it is not one.
    """
    return np.frombuffer(base64.b64decode(code, validate=True), dtype="<f4")


def as_number(value: Any) -> float:
    """A number of the file, which has nan and infinities as words.

    Raises:
        ValueError, TypeError: it is not one.
    """
    if is_number(value):
        return float(value)
    if value not in WORDS:
        raise ValueError(f"{value!r} is not a number")
    return WORDS[value]
