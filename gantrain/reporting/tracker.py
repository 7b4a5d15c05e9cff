"""What a run reports: on the console, in metrics.jsonl, and in its views.

`metrics.jsonl` is the source of truth: each line is flushed when it is written, so a kill loses nothing. Views
(`gantrain.reporting.view`) show it elsewhere, in Weights & Biases or TensorBoard; if one fails, training continues.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gantrain.errors import OF_THE_MACHINE, one_line
from gantrain.reporting.event_words import on_console, what_happened
from gantrain.reporting.view import View, describe_failure
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.layout import METRICS_FILE, SUPERSEDED_FILE
from gantrain.run_folder.line_file import LineFile
from gantrain.streams import print_safely


class Tracker:
    """Reports for the run; on processes other than the main one it prints and writes nothing.

    Args:
        run_dir: the run folder.
        enabled: whether this is the main process.
        persistent: keep lines in memory while the disk is full, instead of raising.

    Attributes:
        views: the views of the run; one that raises is removed.
    """

    def __init__(self, run_dir: Path, enabled: bool = True, persistent: bool = False):
        self.run_dir, self.enabled, self.persistent = run_dir, enabled, persistent
        self.path = run_dir / METRICS_FILE
        self._file: LineFile | None = None
        self._waiting = ""  # lines that are not on disk yet
        self.views: list[View] = []
        self._mute = False  # standard output has failed

    def open(self, keep_bytes: int = 0) -> None:
        """Open metrics.jsonl for appending after its first `keep_bytes` bytes.

        Later lines were written after the checkpoint that the run resumes from, and will be written again; they are moved to
        metrics.superseded.jsonl.
        """
        if not self.enabled:
            return
        self._file = LineFile(self.path, keep_bytes)
        self._file.move_rest(self.run_dir / SUPERSEDED_FILE)

    def position(self) -> int:
        """Bytes of metrics.jsonl so far, including lines still in memory; the others are on disk now. At a resume `open` needs it."""
        return self._file.position() + len(self._waiting.encode()) if self._file else 0

    def say(self, text: str) -> None:
        """Print a line. Whatever standard output does with it, training continues; the first line that it does not take is reported."""
        if not self.enabled:
            return
        problem = print_safely(text, sys.stdout)  # in one piece, since the threads of views print too
        if problem and not self._mute:
            self._mute = True
            goes_on = f"training continues, and {METRICS_FILE} is complete"
            print_safely(f"gantrain: note: cannot write to standard output ({one_line(problem)}); {goes_on}", sys.stderr)

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """Record a line of numbers at `nimg` images."""
        self._write({"nimg": nimg, **values})
        self._show(lambda view: view.log(nimg, values))

    def event(self, nimg: int, name: str, /, **fields: Any) -> dict[str, Any]:
        """Record an event, and return its line. Views get it if there are words for it."""
        line = {"nimg": nimg, "event": name, **fields}
        self._write(line)
        words = what_happened(line)
        if words:
            self._show(lambda view: view.event(nimg, name, words, fields))
        return line

    def tell(self, nimg: int, name: str, /, **fields: Any) -> None:
        """Record an event, and print it."""
        self.say(on_console(self.event(nimg, name, **fields)))

    def overview(self, nimg: int) -> None:
        """Tell the views that there are new scores."""
        self._show(lambda view: view.overview(nimg))

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """Show a picture file."""
        self._show(lambda view: view.image(nimg, key, path, caption))

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Show a picture file of sample sheets.

        Args:
            nimg: images seen.
            path: of the picture.
            classes: names of the sheets' columns; empty if the data has no classes.
        """
        self._show(lambda view: view.samples(nimg, path, classes))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Show the final numbers of the run."""
        self._show(lambda view: view.summary(values))

    def close(self, exit_code: int = 0, wait: bool = True) -> None:
        """Close the record, and the views with the exit code; with `wait`, wait for each view up to its patience."""
        if wait:
            self._show(lambda view: view.conclude())
        self._show(lambda view: view.finish(exit_code, wait))
        self.views = []
        if self._file:
            self._flush(self._file, last=True)
            self._file.close()
            self._file = None

    def _show(self, call: Callable[[View], None]) -> None:
        """Call every view; drop one that raises, with a line."""
        for view in list(self.views):
            try:
                call(view)
            except (Exception, SystemExit) as error:  # no view, and no library behind it, ends a training
                self.views.remove(view)
                self.say(describe_failure(getattr(view, "name", type(view).__name__), error))

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file:
            self._flush(self._file, json.dumps({k: as_json(v) for k, v in line.items()}, allow_nan=False) + "\n")

    def _flush(self, file: LineFile, more: str = "", last: bool = False) -> None:
        """Write the lines in memory and `more`, all or nothing; on failure they stay in memory, unless this is the `last` time."""
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
                self.say(f"{self.path}: cannot be written ({error.strerror}); lines are kept in memory until there is space")
            return
        self._waiting = ""
        if waited:
            self.say(f"{self.path}: can be written again; nothing is lost")
