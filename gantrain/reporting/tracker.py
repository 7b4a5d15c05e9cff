"""What a run says of itself: on the console, in metrics.jsonl, and in its views.

`metrics.jsonl` is the record of truth: one flushed line an event, so that a kill loses nothing. A view (`gantrain.reporting.view`)
shows it elsewhere, in Weights & Biases or TensorBoard; whether it fails or not, training goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gantrain.errors import OF_THE_MACHINE, one_line
from gantrain.reporting.event_words import on_console, what_happened
from gantrain.reporting.view import View
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.layout import METRICS_FILE, SUPERSEDED_FILE
from gantrain.run_folder.line_file import LineFile


class Tracker:
    """Speaks for the run; on every process but the main one it is silent and writes nothing.

    Args:
        run_dir: the run folder.
        enabled: whether this is the main process.
        persistent: keep lines that a full disk does not take until it does, instead of raising.

    Attributes:
        views: told of everything from when they are put here; one that raises is taken out.
    """

    def __init__(self, run_dir: Path, enabled: bool = True, persistent: bool = False):
        self.run_dir, self.enabled, self.persistent = run_dir, enabled, persistent
        self.path = run_dir / METRICS_FILE
        self._file: LineFile | None = None
        self._waiting = ""  # lines that are not on disk yet
        self.views: list[View] = []

    def open(self, keep_bytes: int = 0) -> None:
        """Open metrics.jsonl for appending after its first `keep_bytes` bytes.

        What follows them was written after the checkpoint that the run resumes from, and will be written again; it is moved to
        metrics.superseded.jsonl.
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
        """Bytes of metrics.jsonl so far, including lines that wait for room; the others are on disk then. `open` takes it at a resume."""
        return self._file.position() + len(self._waiting.encode()) if self._file else 0

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if not self.enabled:
            return
        try:
            print(f"{text}\n", end="", flush=True)  # in one piece: views' threads speak too
        except BrokenPipeError:  # nobody listens any more; training goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in OF_THE_MACHINE:  # a log on a full disk: training does not end for it
                raise

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """A line of numbers at `nimg` images."""
        self._write({"nimg": nimg, **values})
        self._show(lambda view: view.log(nimg, values))

    def event(self, nimg: int, name: str, /, **fields: Any) -> dict[str, Any]:
        """Something that happens once; its line. Views get it where there is something to tell of it."""
        line = {"nimg": nimg, "event": name, **fields}
        self._write(line)
        words = what_happened(line)
        if words:
            self._show(lambda view: view.event(nimg, name, words, fields))
        return line

    def tell(self, nimg: int, name: str, /, **fields: Any) -> None:
        """The same, and say it on the console."""
        self.say(on_console(self.event(nimg, name, **fields)))

    def overview(self, nimg: int) -> None:
        """There are new scores: views may draw the whole record anew."""
        self._show(lambda view: view.overview(nimg))

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """Show a picture that is already on disk."""
        self._show(lambda view: view.image(nimg, key, path, caption))

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Show a picture of sheets that is on disk.

        Args:
            nimg: images seen.
            path: of the picture.
            classes: the sheets' columns; none where there are no classes.
        """
        self._show(lambda view: view.samples(nimg, path, classes))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run."""
        self._show(lambda view: view.summary(values))

    def close(self, exit_code: int = 0, wait: bool = True) -> None:
        """Close the record and the views, which are told how the run has ended; `wait` for them as long as their patience lasts."""
        if wait:
            self._show(lambda view: view.conclude())
        self._show(lambda view: view.finish(exit_code, wait))
        self.views = []
        if self._file:
            self._flush(self._file, last=True)
            self._file.close()
            self._file = None

    def _show(self, call: Callable[[View], None]) -> None:
        """Have every view called; one that raises is let go of with a line."""
        for view in list(self.views):
            try:
                call(view)
            except Exception as error:
                self.views.remove(view)
                self.say(f"{view.name}: stopped ({one_line(error)[:160]}); training goes on, metrics.jsonl has everything")

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file:
            self._flush(self._file, json.dumps({k: as_json(v) for k, v in line.items()}, allow_nan=False) + "\n")

    def _flush(self, file: LineFile, more: str = "", last: bool = False) -> None:
        """Write what waits and more, all or nothing; what cannot be written waits, unless this is the `last` time."""
        waited = bool(self._waiting)
        self._waiting += more
        try:
            file.append(self._waiting)
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
