"""What a run says of itself: a console line, metrics.jsonl, and Weights & Biases.

`metrics.jsonl` is the record of truth: one flushed line an event, so that a kill loses nothing. W&B is a view of it, on a
thread of its own: whether it is slow, fails or hangs, training goes on.
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.errors import OF_THE_MACHINE
from gantrain.lines import LineFile
from gantrain.names import HIGHER_IS_BETTER, METRICS_FILE

if TYPE_CHECKING:  # whoever reads a record waits neither for torch nor for W&B
    from gantrain.config import Wandb
    from gantrain.dashboard import WandbThread

SUPERSEDED_FILE = "metrics.superseded.jsonl"
LIBRARIES = ("torch", "torchvision", "accelerate", "torch-fidelity", "numpy", "scipy", "wandb")


class Tracker:
    """Speaks for the run; on every process but the main one it is silent and writes nothing.

    Args:
        run_dir: the run folder.
        enabled: whether this is the main process.
        persistent: keep lines that a full disk does not take until it does, instead of raising.
    """

    def __init__(self, run_dir: Path, enabled: bool = True, persistent: bool = False):
        self.run_dir, self.enabled, self.persistent = run_dir, enabled, persistent
        self.path = run_dir / METRICS_FILE
        self._file: LineFile | None = None
        self._waiting = ""  # lines that are not on disk yet
        self._wandb: WandbThread | None = None

    def open(self, keep_bytes: int = 0) -> None:
        """Open metrics.jsonl for appending after its first `keep_bytes` bytes.

        What stands behind them was written after the checkpoint that the run goes on from, and will be written again; it
        is moved to metrics.superseded.jsonl.
        """
        if not self.enabled:
            return
        self._file = LineFile(self.path, keep_bytes)
        tail = self._file.removed
        if tail:
            with open(self.run_dir / SUPERSEDED_FILE, "ab") as superseded:
                superseded.write(tail if tail.endswith(b"\n") else tail + b"\n")
            self._file.cut()

    def position(self) -> int:
        """Bytes of metrics.jsonl so far, those that wait for room with them; the others are on disk then. What `open` wants after a resume."""
        return self._file.position() + len(self._waiting.encode()) if self._file else 0

    def start_wandb(self, settings: Wandb, run_id: str, config: Mapping[str, Any]) -> None:
        """Open or continue the W&B run `run_id`."""
        if self.enabled and settings.mode != "disabled":
            from gantrain.dashboard import opened  # reads the record that is written here

            self._wandb = opened(settings, run_id, config, self.run_dir, self.say)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if not self.enabled:
            return
        try:
            print(f"{text}\n", end="", flush=True)  # in one piece: W&B's thread speaks too
        except BrokenPipeError:  # nobody listens any more; the training goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in OF_THE_MACHINE:  # a log on a full disk: training does not end for it
                raise

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """A line of numbers at `nimg` images."""
        self._write({"nimg": nimg, **values})
        if self._wandb:
            self._wandb.call("log", {"kimg": nimg / 1000, **values})

    def event(self, nimg: int, name: str, shown: str | None = None, /, **fields: Any) -> None:
        """Something that happens once; W&B gets what is `shown` of it, and a 1 where it happened, which its charts can draw."""
        self._write({"nimg": nimg, "event": name, **fields})
        if self._wandb and shown:
            self._wandb.call("log", {"kimg": nimg / 1000, f"event/{name}": shown, f"mark/{name}": 1})

    def overview(self, nimg: int) -> None:
        """Have W&B draw the charts of the whole record anew."""
        if self._wandb:
            self._wandb.call("overview", self.run_dir, {"kimg": nimg / 1000})

    def growth(self, nimg: int, grown: Mapping[str, Any]) -> str:
        """A growth of the batch, in the record and in W&B; the same in words."""
        words = "batch {from} -> {to}: {reason}".format(**grown)
        self.event(nimg, "growth", words, **grown)
        return words

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """Show a picture that is already on disk."""
        if self._wandb:
            self._wandb.call("image", key, path, caption, {"kimg": nimg / 1000})

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Show a picture of sheets that is on disk: each sheet by itself, and of every class all sheets' images.

        Args:
            classes: the sheets' columns; none where there are no classes.
        """
        if self._wandb:
            self._wandb.call("samples", path, list(classes), {"kimg": nimg / 1000})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run."""
        if self._wandb:
            self._wandb.call("summary", values)

    def close(self, exit_code: int = 0, wait: bool = True) -> None:
        """Let go of everything; `wait` for W&B, which is told how the run has ended, as long as its patience lasts."""
        if self._wandb:
            if wait:
                self._wandb.call("conclude", self.run_dir)
            self._wandb.finish(exit_code, wait)
            self._wandb = None
        if self._file:
            self._flush(last=True)
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if not self._file:
            return
        self._flush(json.dumps({k: as_json(v) for k, v in line.items()}, allow_nan=False) + "\n")

    def _flush(self, more: str = "", last: bool = False) -> None:
        """Write what waits and more, all or nothing; what cannot be written waits, unless this is the `last` time."""
        waited = bool(self._waiting)
        self._waiting += more
        try:
            self._file.append(self._waiting)
        except OSError as error:
            if not self.persistent or error.errno not in OF_THE_MACHINE:
                self._waiting = ""
                raise type(error)(error.errno, error.strerror, str(self.path)) from error
            if last:
                count, self._waiting = self._waiting.count("\n"), ""
                self.say(f"{self.path}: still cannot be written ({error.strerror}); its last {count} lines are lost")
            elif not waited:
                self.say(f"{self.path}: cannot be written ({error.strerror}); its lines wait in memory for room")
            return
        self._waiting = ""
        if waited:
            self.say(f"{self.path}: can be written again; nothing is lost")


def as_json(value: Any) -> Any:
    """A value for strict JSON: "nan", "inf" and "-inf" as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    return value


def new_run_id() -> str:
    return uuid.uuid4().hex[:8]


def utc_now() -> str:
    """The time of day for the record, such as 2026-01-31T12:00:00Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Python and the libraries that numbers depend on, without importing any of them."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def better_when_higher(key: str) -> bool | None:
    """For a key such as eval/ema/digits_fid: whether higher is better; None where it is no score."""
    name = key.rpartition("/")[2]
    for metric, higher in HIGHER_IS_BETTER.items():
        if name == metric or name.endswith("_" + metric):
            return higher
    return None


def best_value(metric: str, values: Iterable[float | None]) -> float | None:
    """The best of a column of scores, to be marked: None where nothing stands out, or more is neither better nor worse.

    Args:
        metric: a score's name, such as digits_fid.
        values: a row each; None and nan are rows without a score.
    """
    rows, higher = list(values), better_when_higher(metric)
    there = [value for value in rows if value is not None and math.isfinite(value)]
    if higher is None or len(rows) < 2 or not (len(set(there)) > 1 or len(there) == 1):
        return None
    return (max if higher else min)(there)


class Progress:
    """The console line: where the run is, how fast, and how long it will take."""

    def __init__(self, total_nimg: int, nimg: int):
        self.total, self.started_at, self.start = total_nimg, time.monotonic(), nimg
        self.last_time, self.last_nimg = self.started_at, nimg
        self.aside = self.all_aside = 0.0
        self.seconds = 0.0  # of training between the last two lines

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not spent on training: it counts neither in the rate nor in what is to go."""
        began = time.monotonic()
        yield
        self.aside += time.monotonic() - began

    def back_to(self, nimg: int) -> None:
        """The run goes on from fewer images; those done beyond them count in how fast it is, not in how far."""
        self.start -= self.last_nimg - nimg
        self.last_nimg = nimg

    def line(self, nimg: int, values: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """(line, what it says of time, for the record: images per second since the line before, seconds since the start, seconds to go)."""
        now = time.monotonic()
        self.seconds = max(now - self.last_time - self.aside, 1e-9)
        times = {"throughput/img_per_s": (nimg - self.last_nimg) / self.seconds, "throughput/elapsed_s": now - self.started_at}
        self.all_aside, self.aside = self.all_aside + self.aside, 0.0
        overall = (nimg - self.start) / max(now - self.started_at - self.all_aside, 1e-9)
        if overall > 0:
            times["throughput/left_s"] = max(0, self.total - nimg) / overall
        self.last_time, self.last_nimg = now, nimg
        return console_line(nimg, self.total, {**values, **times}), times


def console_line(nimg: int, total: int, values: Mapping[str, float]) -> str:
    """A line of losses as the console has it, from what the record has: every column as wide as that of any other line of a run.

    Args:
        nimg, total: images seen, and in the whole run.
        values: a training line of metrics.jsonl; what it lacks is nan, or ? where it is a time.
    """
    of = lambda key, width, decimals: fixed(values.get(key, math.nan), width, decimals)  # noqa: E731
    elapsed, left = (duration(values[key]) if key in values else "?" for key in ("throughput/elapsed_s", "throughput/left_s"))
    return (
        f"{nimg / 1000:9.1f} kimg {min(1.0, nimg / total):4.0%} | {elapsed:>7} + {left:>7} to go | {of('throughput/img_per_s', 6, 0)} img/s"
        f" | loss D {of('loss/d', 6, 3)} G {of('loss/g', 6, 3)} | D(real) {of('logits/real', 6, 2)} D(fake) {of('logits/fake', 6, 2)}"
        f" | batch {of('batch/size', 5, 0).strip():<5} | {of('memory/gib', 5, 1)} GiB{noise_in_words(values)}"
    )


def fixed(value: float, width: int, decimals: int) -> str:
    """A number flush right in so many characters: with fewer decimals where it is large, as a power of ten where it is larger."""
    for places in range(decimals, -1, -1):
        text = f"{value:{width}.{places}f}"
        if len(text) == width:
            return text
    return f"{value:.0e}".rjust(width)


def noise_in_words(values: Mapping[str, float]) -> str:
    """The noise scale of either player in images, for the end of the console line; nothing where none is measured."""
    measured = [player for player in ("D", "G") if f"noise_scale/{player}/undecidable" in values]
    cells = [f" {p} {'?' if values[f'noise_scale/{p}/undecidable'] else fixed(values[f'noise_scale/{p}/b_simple'], 6, 0).strip():<6}" for p in measured]
    return (" | noise" + "".join(cells)).rstrip() if cells else ""


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s, 2h07m or 4d03h."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
