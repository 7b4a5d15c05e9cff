"""The view of a run in TensorBoard: an event file in RUN/tensorboard, on a thread of its own.

The file is a copy of `metrics.jsonl` that TensorBoard can read: steps are images seen (`nimg`), scalars are the numbers of its
lines under their keys, `samples/AVERAGE` are the sheets of the pictures in RUN/samples, and `event/NAME` says in words what happened.

Whenever a run starts, resumes or is rolled back, a new file is written from the record and the older one goes. So nothing is there
twice, nothing of a path that was left stays, and a run that gets TensorBoard at a resume has its past. Purging by step alone
(`purge_step`) would not do: scores of the background come late, at fewer images than the checkpoint that a resume starts from.
"""

from __future__ import annotations

import functools
import io
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from gantrain.errors import one_line
from gantrain.reporting.drawn_pictures import pictures_in, spread
from gantrain.reporting.event_words import what_happened
from gantrain.reporting.view_thread import ViewThread
from gantrain.run_folder.layout import METRICS_FILE
from gantrain.run_folder.record import goes_back, parse, split_abandoned
from gantrain.sampling.sheets import read_side_by_side

FOLDER = "tensorboard"  # of a run
PATIENCE = 30  # seconds that the end of a run waits for the thread
MOST_PICTURES = 40  # moments whose pictures are written again: each takes the interpreter some tenths of a second
COLOURSPACES = {"L": 1, "RGB": 3}  # TensorBoard's numbers for Pillow's modes


class EventFile:
    """A file of TensorBoard's events.

    It is written here and not by torch's SummaryWriter: that one has a thread of its own, which ends with a traceback on the
    terminal when the disk is full, and a queue that makes the caller wait when the disk is slow. Here the caller is a thread
    already, and an error reaches it.

    Args:
        folder: that TensorBoard is shown, created where it is missing.

    Raises:
        OSError: it cannot be written; so do all methods.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files with "tfevents" in their names in the order of these.
        self.path = folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}.gantrain"
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - closed by close
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))

    def purge(self, step: int) -> None:
        """Have TensorBoard forget what it has read from `step` on, of this file and of those before it."""
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by tag, stored as fp32."""
        if values:
            found = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
            self._write(Event(step=step, summary=Summary(value=found)))

    def add_image(self, step: int, tag: str, picture: Image.Image) -> None:
        """A picture."""
        if picture.mode not in COLOURSPACES:
            picture = picture.convert("RGB")
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        image = Summary.Image(
            height=picture.height, width=picture.width, colorspace=COLOURSPACES[picture.mode], encoded_image_string=encoded.getvalue()
        )
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))

    def add_text(self, step: int, tag: str, words: str) -> None:
        """A text, which TensorBoard takes for Markdown."""
        self._write(Event(step=step, summary=text(tag, words)))

    def close(self) -> None:
        """Close the file; what was written is in it already."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class TensorBoardRun:
    """A run's event file. The first call that fails, as on a full disk, ends it with one line.

    Args:
        run_dir: the run folder.
        say: receives the line.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path, say: Callable[[str], None]):
        self._run_dir, self._say = run_dir, say
        self._file: EventFile | None = None
        self._rollbacks = 0  # of the lines that were shown
        self._drawn: set[tuple[str, int]] = set()  # of the pictures that were shown: folder or key, images seen

    @classmethod
    def start(cls, run_dir: Path, known_bytes: int, say: Callable[[str], None]) -> TensorBoardRun:
        """The view, with what the record has so far.

        Args:
            run_dir: the run folder.
            known_bytes: of metrics.jsonl, that were written before this view was told of anything.
            say: receives a line where the file cannot be written.
        """
        view = cls(run_dir, say)

        def show_past() -> None:
            with open(run_dir / METRICS_FILE, "rb") as record:
                lines = list(filter(None, map(parse, record.read(known_bytes).splitlines())))
            here = next((line["nimg"] for line in reversed(lines) if line.get("event") in ("start", "resume")), 0)
            view._rewrite(lines, here)

        view._attempt(show_past)
        return view

    @property
    def ended(self) -> bool:
        """Whether a call has failed."""
        return self._file is None

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """Every number of the line."""
        self._guarded(lambda file: file.add_scalars(nimg, numbers(values)))

    def event(self, nimg: int, name: str, words: str, fields: Mapping[str, Any]) -> None:
        """Its words; a rollback has the file written anew without what it has left."""
        line = {"nimg": nimg, "event": name, **fields}
        if goes_back(line):
            self._guarded(lambda file: self._go_back(line))
        else:
            self._guarded(lambda file: file.add_text(nimg, f"event/{name}", words))

    def overview(self, nimg: int) -> None:
        """TensorBoard draws its charts itself."""

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """The picture."""
        self._guarded(lambda file: self._add_pictures(file, nimg, key, path))

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Every sheet of the picture."""
        self._guarded(lambda file: self._add_pictures(file, nimg, "samples", path))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The last scores are scalars already."""

    def conclude(self) -> None:
        """There is nothing to add."""

    def finish(self, exit_code: int, wait: bool = True) -> None:
        """Close the file."""
        self._guarded(lambda file: file.close())

    def _go_back(self, rollback: dict[str, Any]) -> None:
        """Write the file anew as of a rollback, whose line the record has by now, perhaps with others behind it."""
        rollbacks, lines = 0, []
        with open(self._run_dir / METRICS_FILE, "rb") as record:
            for line in filter(None, map(parse, record)):
                if goes_back(line):
                    if rollbacks == self._rollbacks:  # this one; what follows it comes by other calls
                        break
                    rollbacks += 1
                lines.append(line)
        self._rewrite([*lines, rollback], rollback["to"])

    def _rewrite(self, lines: list[dict[str, Any]], here: int) -> None:
        """Put a new file in place of those that there are.

        Args:
            lines: of the record, all that shall be in it.
            here: images seen now; pictures of more are of a path that was left.
        """
        folder = self._run_dir / FOLDER
        older = list(folder.glob("*tfevents*.gantrain"))
        if self._file is not None:
            self._file.close()
        self._file = file = EventFile(folder)
        file.purge(0)  # for a TensorBoard that goes on from an older file
        kept, _ = split_abandoned(lines)
        for line in kept:
            if "event" not in line:
                file.add_scalars(line["nimg"], numbers({key: value for key, value in line.items() if key != "nimg"}))
            elif words := what_happened(line):
                file.add_text(line["nimg"], f"event/{line['event']}", words)
        self._rollbacks, self._drawn = sum(map(goes_back, lines)), set()
        for key in ("samples", "orbit"):
            drawn = [path for path in pictures_in(self._run_dir / key) if int(path.stem) <= here]
            for path in spread(drawn, MOST_PICTURES):
                self._add_pictures(file, int(path.stem), key, path)
        for path in older:
            path.unlink(missing_ok=True)

    def _add_pictures(self, file: EventFile, nimg: int, key: str, path: Path) -> None:
        """A picture, or each of its sheets under its average's name, unless that was done; a damaged one is passed over."""
        if (key, nimg) in self._drawn:  # a run that was stopped at this moment draws it again when it resumes
            return
        try:
            sheets = read_side_by_side(path)
        except OSError:
            return
        self._drawn.add((key, nimg))
        for sheet in sheets:
            file.add_image(nimg, f"{key}/{sheet.name}" if sheet.name else key, sheet.picture)

    def _guarded(self, call: Callable[[EventFile], None]) -> None:
        file = self._file
        if file is not None:
            self._attempt(lambda: call(file))

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if self._file is not None:
                self._file.close()
            self._file = None
            self._say(f"tensorboard: stopped ({one_line(error)[:160]}); training goes on, metrics.jsonl has everything")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Of a line's values those that are numbers."""
    return {key: value for key, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def open_view(run_dir: Path, say: Callable[[str], None]) -> ViewThread:
    """The event file of a run, on a thread, where pictures are encoded and the past is read."""
    record = run_dir / METRICS_FILE
    known = record.stat().st_size if record.exists() else 0
    say(f"tensorboard: show the run with `tensorboard --logdir {run_dir}`")
    return ViewThread("tensorboard", functools.partial(TensorBoardRun.start, run_dir, known, say), PATIENCE, say)
