"""What a run says of itself: a console line, metrics.jsonl, and Weights & Biases.

`metrics.jsonl` is the record of truth: one flushed line an event, so that a kill loses nothing. W&B is a view of it, on a
thread of its own: whether it is slow, fails or hangs, training goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.errors import OF_THE_MACHINE
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.layout import METRICS_FILE, SUPERSEDED_FILE
from gantrain.run_folder.line_file import LineFile

if TYPE_CHECKING:
    from gantrain.config.sections import Wandb
    from gantrain.reporting.wandb_run import WandbThread


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
            from gantrain.reporting.wandb_run import opened  # reads the record that is written here

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
