"""Reading a record of any length for reports and charts: its training lines, which are most of it, become columns of numbers.

A line of 2 KB becomes some 150 bytes. Events and scores stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.lock import owner
from gantrain.regular_file import open_regular
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.layout import METRICS_FILE
from gantrain.run_folder.line_file import stream_lines
from gantrain.run_folder.record import Outline, Record, goes_on_elsewhere
from gantrain.run_folder.record_lines import Splitter, parse
from gantrain.run_folder.training_columns import ColumnsBuilder


class Condenser:
    """Reads a record that only grows, each line once, however often it is asked.

    Args:
        run: the run folder.

    Attributes:
        unreadable: number of lines that cannot be read.
    """

    def __init__(self, run: Path):
        self.run, self.unreadable = run, 0
        self._size = 0  # bytes read
        self._lacks_end = False  # whether the last line had no end yet when it was read
        self._splitter = Splitter()
        self._columns = ColumnsBuilder()
        self._others: list[tuple[int, dict[str, Any]]] = []  # (place, line) of events and scores

    def read_on(self) -> None:
        """Read what has been written since the last call; a last line that is being written is left for the next one.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.run / METRICS_FILE
        try:
            with open_regular(path) as file:
                file.seek(self._size)
                for text in stream_lines(file):
                    line = parse(text.data)
                    if line is None and not text.whole:
                        return
                    self._size += text.size
                    if not (self._lacks_end and text.data == b"\n"):
                        self._add(line)
                    self._lacks_end = not text.whole
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); fix this, or omit this run") from error

    def _add(self, line: dict[str, Any] | None) -> None:
        if line is None:
            self.unreadable += 1
            return
        place = len(self._splitter.mask)
        self._splitter.add(line)
        if "loss/d" in line:
            self._columns.add(place, line)
        if "event" in line or "loss/d" not in line:
            self._others.append((place, line))

    def record(self, config: Config | Outline) -> Record:
        """The record of what has been read.

        Args:
            config: the configuration of the run.
        """
        running, elsewhere, mask = owner(self.run) is not None, goes_on_elsewhere(self.run), self._splitter.mask
        kept = [(place, line) for place, line in self._others if mask[place]]
        return Record(
            self.run, config, [line for _, line in kept], [line for place, line in self._others if not mask[place]], self.unreadable,
            running, elsewhere, self._columns.columns(mask), [place for place, _ in kept], mask.count(0),
        )  # fmt: skip


def read_condensed(run: Path) -> Record:
    """The record of a run, condensed; an empty one if it has not written any yet.

    Raises:
        UserError: not a run folder, or its record cannot be read.
    """
    config = configuration_of(run)
    condenser = Condenser(run)
    condenser.read_on()
    return condenser.record(config)
