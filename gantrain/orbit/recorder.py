"""Recording the positions of the weights of G and D, and of all their averages, during training.

`RUN/orbit/record.jsonl` has one line per recording:

    nimg                  images seen
    batch_size, lr        what the motion depends on; `lr` by player
    swap                  true just after a swap; the line before it was recorded just before the swap
    distances             squared distance between the live weights and each average that has started, by player and name
    sketch                `[size]` numbers as base64 of little-endian float32, by player and name
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from gantrain.averaging import LIVE, AverageBank
from gantrain.averaging.average import named_weights
from gantrain.config.sections import Orbit
from gantrain.devices import widest_float
from gantrain.errors import OF_THE_MACHINE
from gantrain.orbit.recordings import FOLDER, RECORD_FILE, Recordings
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.line_file import LineFile
from gantrain.theory.sketch import Sketch


class OrbitRecorder:
    """Records the motion of a run's weights. Does nothing if `settings.every_kimg` is null.

    Recordings stay on the device until `flush`, so that recording does not wait for the device.

    Args:
        settings: the `orbit` section.
        banks: the averages of "g" and of "d", and with them the live weights.
        run_dir: the run folder.
        writes: whether this process writes the file; weights and averages are the same on every process.
        persistent: on a full disk, keep recordings in memory and try again later, instead of raising.
    """

    def __init__(self, settings: Orbit, banks: Mapping[str, AverageBank], run_dir: Path, writes: bool, persistent: bool = False):
        self.settings, self.banks, self.writes, self.persistent = settings, banks, writes, persistent
        self.path = run_dir / FOLDER / RECORD_FILE
        self.on = settings.every_kimg is not None
        watched = banks if self.on and writes else {}
        self.sketches = {key: Sketch(named_weights(bank.network), key, settings.size) for key, bank in watched.items()}
        self.nimg = -1  # of the last recording
        self.latest: dict[str, float] = {}  # distances of the last recording written, for a line of metrics.jsonl
        self._pending: list[tuple[dict[str, Any], list[tuple[str, str, str]], Tensor]] = []
        self._recordings: Recordings | None = None  # None until somebody asks

    def open(self, state: Mapping[str, Any] | None = None) -> None:
        """Continue from `state`, or start afresh: later lines of the file are removed, and will be recorded again."""
        keep_bytes = state["bytes"] if state else 0
        self.latest = {key: float(value) for key, value in state["latest"]} if state and self.on else {}
        self.nimg = state["nimg"] if state else -1
        self._recordings = None
        self._pending = []  # after a rollback these belong to the abandoned path
        if not self.writes or not (self.on or self.path.exists()):  # a run that no longer records still removes later lines
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = LineFile(self.path, keep_bytes)  # after a power failure the last line may be incomplete
        file.cut()
        file.close()

    def state(self) -> dict[str, Any]:
        """Flush to disk and return what `open` needs after a resume, as JSON values."""
        self.flush()
        if not self.writes or not self.path.exists():
            return {"bytes": 0, "nimg": -1, "latest": []}
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())
            # `latest` is a list because JSON in a checkpoint is sorted by key.
            return {"bytes": file.tell(), "nimg": self.nimg, "latest": as_json(list(self.latest.items()))}

    @property
    def recordings(self) -> Recordings:
        """What the file has so far. A line is read once after `open`: the first call reads all of them, later calls the new ones.

        Raises:
            OSError: the file cannot be read.
        """
        if self._recordings is None:
            self._recordings = Recordings(self.path)
        self._recordings.read_new()
        return self._recordings

    @property
    def heads(self) -> Sequence[Mapping[str, Any]]:
        """The recordings so far, also those not in the file yet, without the numbers; a damaged line is left out."""
        if not (self.on and self.writes):
            return ()
        with contextlib.suppress(OSError):  # then those that have been read, since this only serves a forecast
            return Heads(self.recordings, [head for head, _, _ in self._pending])
        return Heads(self._recordings or Recordings(self.path), [head for head, _, _ in self._pending])

    def record(self, nimg: int, facts: Mapping[str, Any], swapped: bool = False) -> None:
        """Record where all weights are, at most once per moment. Waits for the device only if averages are offloaded.

        Args:
            nimg: images seen.
            facts: what the motion depends on at this moment, as JSON values.
            swapped: the weights were just replaced, so that this counts as another moment.
        """
        if not self.on or not self.writes or (nimg == self.nimg and not swapped):
            return
        self.nimg = nimg
        head = {"nimg": nimg, **facts, **({"swap": True} if swapped else {})}
        names: list[tuple[str, str, str]] = []
        values: list[Tensor] = []
        for key, bank in self.banks.items():
            live = named_weights(bank.network)
            device = next(iter(live.values())).device
            for name in [LIVE, *bank.started()]:
                weights = live if name == LIVE else bank[name].shadows
                names.append(("sketch", key, name))
                values.append(self.sketches[key](weights).to(device, widest_float(device)))
                if name != LIVE:
                    names.append(("distances", key, name))
                    values.append(bank.distance(name).view(1))
        self._pending.append((head, names, torch.cat(values)))

    def flush(self) -> None:
        """Write pending recordings to the file."""
        if not self._pending:
            return
        lines = [build_line(head, names, values.cpu().numpy(), self.settings.size) for head, names, values in self._pending]
        self.latest = {
            f"orbit/{key.upper()}/{name}/distance": d**0.5 for key, of in lines[-1]["distances"].items() for name, d in of.items()
        }
        file = LineFile(self.path)
        try:
            file.append("".join(json.dumps(as_json(line), allow_nan=False) + "\n" for line in lines))
        except OSError as error:
            if self.persistent and error.errno in OF_THE_MACHINE:
                return
            raise type(error)(error.errno, error.strerror, str(self.path)) from error
        finally:
            file.close()
        self._pending = []


class Heads(Sequence[Mapping[str, Any]]):
    """What the motion depended on at each recording: those of the file, which are kept as arrays, and later ones."""

    def __init__(self, recordings: Recordings, later: list[dict[str, Any]]):
        self._recordings, self._later = recordings, later

    def __len__(self) -> int:
        return len(self._recordings) + len(self._later)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # raises IndexError, and counts from the end
        stored = len(self._recordings)
        return self._recordings.head(row) if row < stored else self._later[row - stored]


def build_line(head: dict[str, Any], names: list[tuple[str, str, str]], values: np.ndarray, size: int) -> dict[str, Any]:
    """Build a line of the record from concatenated values: a sketch takes `size` of them, a distance one."""
    line: dict[str, Any] = {**head, "distances": {"g": {}, "d": {}}, "sketch": {"g": {}, "d": {}}}
    at = 0
    for kind, key, name in names:
        if kind == "sketch":
            line[kind][key][name] = base64.b64encode(values[at : at + size].astype("<f4").tobytes()).decode()
            at += size
        else:
            line[kind][key][name] = float(values[at])
            at += 1
    return line
