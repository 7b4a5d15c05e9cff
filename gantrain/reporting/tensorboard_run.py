"""The view of a run in TensorBoard: an event file in RUN/tensorboard, written on a thread.

The file is a copy of `metrics.jsonl` that TensorBoard can read: steps are images seen (`nimg`), scalars are the numbers of its
lines under their keys, `samples/AVERAGE` are the sheets of the pictures in RUN/samples, and `event/NAME` are events in words.

Whenever a run starts, resumes or is rolled back, a new file is written from the record and the old one is deleted, so nothing appears
twice and abandoned paths disappear. A run that turns TensorBoard on at a resume shows its past too. Purging by step (`purge_step`) is
not enough: scores computed in the background come late, at fewer images than the checkpoint that a resume starts from.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from gantrain.reporting.drawn_pictures import pick_evenly, pictures_in
from gantrain.reporting.event_words import what_happened
from gantrain.reporting.view_thread import ViewThread
from gantrain.run_folder.layout import METRICS_FILE
from gantrain.run_folder.record_lines import Splitter, goes_back, stream
from gantrain.sampling.sheets import read_side_by_side

FOLDER = "tensorboard"  # of a run
PATIENCE = 30  # seconds that a run waits for the thread at its end
MOST_PICTURES = 40  # pictures that a new file gets at most; each takes some tenths of a second
COLOURSPACES = {"L": 1, "RGB": 3}  # TensorBoard's numbers for Pillow's modes


class EventFile:
    """A file of TensorBoard events.

    It does not use torch's SummaryWriter, which writes on its own thread: on a full disk that thread dies with a traceback on the
    terminal, and on a slow disk its queue blocks the caller. Here the caller is already a thread, and errors reach it.

    Args:
        folder: the log directory; created if missing.

    Raises:
        OSError: the file cannot be written. All methods raise it too.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files with "tfevents" in their names, in the order of the names.
        self.path = folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}.gantrain"
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - closed by close
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))

    def purge(self, step: int) -> None:
        """Make TensorBoard forget everything from `step` on, from this file and earlier ones."""
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag, stored as fp32."""
        if values:
            found = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
            self._write(Event(step=step, summary=Summary(value=found)))

    def add_image(self, step: int, tag: str, picture: Image.Image) -> None:
        """Write a picture."""
        if picture.mode not in COLOURSPACES:
            picture = picture.convert("RGB")
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        image = Summary.Image(
            height=picture.height, width=picture.width, colorspace=COLOURSPACES[picture.mode], encoded_image_string=encoded.getvalue()
        )
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))

    def add_text(self, step: int, tag: str, words: str) -> None:
        """Write a text, which TensorBoard renders as Markdown."""
        self._write(Event(step=step, summary=text(tag, words)))

    def close(self) -> None:
        """Close the file; nothing is buffered."""
        self._file.close()

    def _write(self, event: Event) -> None:
        """Write an event; if that fails, close the file, since nothing more will be written to it."""
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
        except OSError:
            self._file.close()
            raise


class TensorBoardRun:
    """A run's event file, with what the record contains so far.

    Args:
        run_dir: the run folder.
        known_bytes: size of metrics.jsonl when the view was opened; later lines come by calls.

    Raises:
        OSError: a file cannot be written. All methods raise it too.
        UserError: the record cannot be read.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path, known_bytes: int):
        self._run_dir = run_dir
        lines = functools.partial(self._read, known_bytes)
        here = 0
        for line in lines():
            here = line["nimg"] if line.get("event") in ("start", "resume") else here
        self._rewrite(lines, here)

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """Write every number of the line."""
        self._file.add_scalars(nimg, select_numbers(values))

    def event(self, nimg: int, name: str, words: str, fields: Mapping[str, Any]) -> None:
        """Write the words; after a rollback, rewrite the file without the abandoned path."""
        line = {"nimg": nimg, "event": name, **fields}
        if goes_back(line):
            self._go_back(line)
        else:
            self._file.add_text(nimg, f"event/{name}", words)

    def overview(self, nimg: int) -> None:
        """Do nothing: TensorBoard draws its charts itself."""

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """Write the picture."""
        self._add_pictures(nimg, key, path)

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Write every sheet of the picture."""
        self._add_pictures(nimg, "samples", path)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Do nothing: the last scores are already scalars."""

    def conclude(self) -> None:
        """Do nothing: everything has been written."""

    def finish(self, exit_code: int, wait: bool = True) -> None:
        """Close the file."""
        self._file.close()

    def _go_back(self, rollback: dict[str, Any]) -> None:
        """Rewrite the file up to a rollback. The record already has its line, and perhaps later ones."""
        lines = functools.partial(self._read, None, self._rollbacks)  # later lines come by other calls
        self._file.close()
        self._rewrite(lambda: itertools.chain(lines(), [rollback]), rollback["to"])

    def _read(self, until: int | None, rollbacks: int | None = None) -> Iterator[dict[str, Any]]:
        """Iterate over the lines of the record that can be read.

        Args:
            until: read only so many bytes.
            rollbacks: stop before the rollback after so many.
        """
        seen = 0
        for line in filter(None, stream(self._run_dir, until)):
            if goes_back(line):
                if seen == rollbacks:
                    return
                seen += 1
            yield line

    def _rewrite(self, lines: Callable[[], Iterator[dict[str, Any]]], here: int) -> None:
        """Replace the existing files by a new one.

        Args:
            lines: returns the lines of the record that the file will contain; they are read twice, so that none has to be held.
            here: images seen now; later pictures are of an abandoned path.
        """
        folder = self._run_dir / FOLDER
        older = list(folder.glob("*tfevents*.gantrain"))
        self._file = file = EventFile(folder)
        file.purge(0)  # for a TensorBoard that has read an older file
        splitter, self._rollbacks = Splitter(), 0  # rollbacks in the file
        for line in lines():
            splitter.add(line)
            self._rollbacks += goes_back(line)
        for line in itertools.compress(lines(), splitter.mask):
            if "event" not in line:
                file.add_scalars(line["nimg"], select_numbers({key: value for key, value in line.items() if key != "nimg"}))
            elif words := what_happened(line):
                file.add_text(line["nimg"], f"event/{line['event']}", words)
        self._drawn: set[tuple[str, int]] = set()  # pictures in the file: (key, images seen)
        for key in ("samples", "orbit"):
            drawn = [path for path in pictures_in(self._run_dir / key) if int(path.stem) <= here]
            for path in pick_evenly(drawn, MOST_PICTURES):
                self._add_pictures(int(path.stem), key, path)
        for path in older:
            path.unlink(missing_ok=True)

    def _add_pictures(self, nimg: int, key: str, path: Path) -> None:
        """Write a picture, or each of its sheets under its average's name, unless it is in the file; skip a damaged one."""
        if (key, nimg) in self._drawn:  # a run stopped at this moment draws it again when it resumes
            return
        try:
            sheets = read_side_by_side(path)
        except OSError:
            return
        self._drawn.add((key, nimg))
        for sheet in sheets:
            self._file.add_image(nimg, f"{key}/{sheet.name}" if sheet.name else key, sheet.headed)


def select_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a line's values."""
    return {key: value for key, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def open_view(run_dir: Path, say: Callable[[str], None]) -> ViewThread:
    """Open the event file of a run, on a thread that also reads the past and encodes pictures."""
    record = run_dir / METRICS_FILE
    known = record.stat().st_size if record.exists() else 0
    say(f"tensorboard: show the run with `tensorboard --logdir {run_dir}`")
    return ViewThread("tensorboard", functools.partial(TensorBoardRun, run_dir, known), PATIENCE, say)
