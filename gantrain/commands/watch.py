"""`gantrain watch`: follow a run by reading its record, from any terminal.

The lock of the run folder shows whether the run is still going: a dead process does not hold it. Some shared file systems do not show
one machine's locks to another. There, a run on another machine counts as going until its record has not changed for some minutes
(`gantrain.run_folder.record.goes_on_elsewhere`). Nothing here imports torch, so the command starts fast.
"""

from __future__ import annotations

import argparse
import functools
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from gantrain.errors import UserError
from gantrain.interruption import INTERRUPTED
from gantrain.lock import owner
from gantrain.regular_file import open_regular
from gantrain.reporting.event_words import RECENT, Teller
from gantrain.reporting.score_table import SaidNotes, in_lines
from gantrain.run_folder.layout import CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.line_file import stream_lines
from gantrain.run_folder.record import ENDS, TELLING, Outline, Record, goes_on_elsewhere, is_of_losses, outline_config, status_of
from gantrain.run_folder.record_lines import describe_unreadable, is_number, parse

POLL = 0.5  # seconds between two reads of the record
NOTHING = "nothing has been written yet, and no process is training there"
REMEMBERED = 50_000  # lines whose checksums are kept, at least
MOST_WAITING = 5000  # lines that are held until later lines decide whether they are printed
RESUME = b'"event": "resume"'
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f} of {total:g} kimg{postfix}"


def call(arguments: argparse.Namespace) -> int | None:
    """Run the command; the exit status of an interrupted command after Ctrl-C, else None."""
    try:
        watch(arguments.run, arguments.last, functools.partial(print, flush=True))
    except KeyboardInterrupt:  # only `watch` stops; the run is not affected
        return INTERRUPTED
    return None


class Follower:
    """Reads the complete lines of a file that another process appends to and sometimes truncates, each line once.

    A run that resumes truncates what it had written after its checkpoint, and continues from there. By the next read the file may be
    longer than before. So each read compares the last line read before; if it differs, the checksums of the earlier lines show where
    the file was truncated. Only those of the last lines are kept; if the file was truncated before these, reading goes on from its last
    resume.
    """

    def __init__(self, path: Path):
        self.path = path
        self._ends = array("q", [0])  # in bytes: where the first line below begins, then the end of every line read
        self._sums = array("L")  # CRC-32 of every line read

    def new(self) -> Iterator[bytes]:
        """Iterate over the complete lines since the last call, holding one at a time; none if the file does not exist yet. A line that is
        too long to be read is empty.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open_regular(self.path) as file:
                if not self._still_there(file):
                    self._go_back(file)
                file.seek(self._ends[-1])
                for line in stream_lines(file):
                    if not line.whole:
                        return
                    self._ends.append(self._ends[-1] + line.size)
                    self._sums.append(zlib.crc32(line.data))
                    if len(self._sums) >= 2 * REMEMBERED:
                        del self._ends[:REMEMBERED], self._sums[:REMEMBERED]
                    yield line.data
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); fix this and run the same command again") from error

    def _still_there(self, file: IO[bytes]) -> bool:
        if not self._sums:
            return True
        file.seek(self._ends[-2])
        line = next(stream_lines(file, self._ends[-1] - self._ends[-2]), None)
        return line is not None and line.size == self._ends[-1] - self._ends[-2] and zlib.crc32(line.data) == self._sums[-1]

    def _go_back(self, file: IO[bytes]) -> None:
        """Go back to the last line that has not changed."""
        file.seek(self._ends[0])
        same = 0
        for line in stream_lines(file):
            if same == len(self._sums) or not line.whole or zlib.crc32(line.data) != self._sums[same]:
                break
            same += 1
        del self._ends[same + 1 :], self._sums[same:]
        if not same and self._ends[0]:
            self._ends[0] = find_last_resume(file)


def find_last_resume(file: IO[bytes]) -> int:
    """Where in a record the line of its last resume begins; 0 if there is none."""
    file.seek(0)
    found = position = 0
    for line in stream_lines(file):
        if RESUME in line.data:
            found = position
        position += line.size
    return found


class Past:
    """What a record says up to now, read line by line and forgotten again: what `watch` begins with.

    Of the lines of losses, which are nearly all, only the last are parsed.

    Args:
        teller: is given the events and the last lines of losses.
        last: how many of the last messages are kept.

    Attributes:
        texts: the last messages, complete after `end`, without notes on scores.
        noted: the notes that `end` has returned.
        first_batch: the batch that the run began with; None if no line says so yet.
        told: the last event that says how the run goes, as `gantrain.run_folder.record.status_of` takes it.
        lines: number of lines that were not found to be unreadable.
        unreadable: number of lines that were parsed in vain.
    """

    def __init__(self, teller: Teller, last: int):
        self.texts: deque[str] = deque(maxlen=last)
        self.noted = SaidNotes()
        self.first_batch: int | None = None
        self.told: str | None = None
        self.lines = self.unreadable = 0
        self._notes: deque[list[str] | None] = deque(maxlen=last)  # of the texts
        self._teller, self._most = teller, max(last, RECENT)
        self._waiting: deque[tuple[bytes, bool]] = deque()  # lines from the first line of losses on that may be told, and whether they are
        self._losses = 0  # of them

    def add(self, data: bytes) -> None:
        """Take in the next line of the record."""
        is_loss = is_of_losses(data)
        if is_loss and self.first_batch is None:
            self._find_batch(parse(data))
        self._waiting.append((data, is_loss))
        self._losses += is_loss
        while self._waiting and (self._losses > self._most or not self._waiting[0][1] or len(self._waiting) > MOST_WAITING):
            self._pop(skip=self._losses > self._most)

    def end(self) -> list[str]:
        """The last messages, now that there are no more lines, with the notes on scores that no earlier one of them has."""
        while self._waiting:
            self._pop()
        return [with_notes(text, notes, self.noted) for text, notes in zip(self.texts, self._notes)]

    def _pop(self, skip: bool = False) -> None:
        """Tell the oldest waiting line, or skip it if it is of losses and so many come after it."""
        data, is_loss = self._waiting.popleft()
        self._losses -= is_loss
        if is_loss and skip:
            self.lines += 1
            return
        line = parse(data)
        if line is None:
            self.unreadable += 1
            return
        self.lines += 1
        self._find_batch(line)
        if line.get("event") in TELLING:
            self.told = line["event"]
        text = self._teller.text(line)
        if text:
            self.texts.append(text)
            self._notes.append(self._teller.notes)

    def _find_batch(self, line: dict[str, Any] | None) -> None:
        if self.first_batch is None and line is not None:
            self.first_batch = line.get("from") if line.get("event") == "growth" else line.get("batch/size")


def watch(run: str | Path, last: int, say: Callable[[str], None], every: float = POLL) -> None:
    """Follow a run until no process trains there.

    Args:
        run: the run folder.
        last: how many earlier messages are repeated first.
        say: receives text of one or more lines.
        every: seconds between two reads of the record.

    Raises:
        UserError: not a run folder, or its record cannot be read.
    """
    if last < 0:
        raise UserError(f"--last: must be at least 0, got {last}")
    run = Path(run)
    while not (run / CONFIG_FILE).exists() and owner(run) is not None:  # it is just starting
        time.sleep(every)
    config = settings_of(run)
    follower, teller = Follower(run / METRICS_FILE), Teller(config.total_kimg)
    goes_on = lambda: owner(run) is not None or (teller.told not in ENDS and goes_on_elsewhere(run))  # noqa: E731
    on, past = goes_on(), Past(teller, last)
    for data in follower.new():
        past.add(data)
    texts = past.end()
    say(header(run, past, teller.nimg, config))
    if past.unreadable:
        say(describe_unreadable(past.unreadable, run))
    for text in texts:
        say(text)
    unreadable = 0
    with tqdm(
        total=config.total_kimg, leave=False, disable=None, bar_format=BAR, desc=run.name, dynamic_ncols=True, initial=teller.nimg / 1000
    ) as bar:
        while True:
            show(bar, teller)
            if not on:
                break
            time.sleep(every)
            on = goes_on()  # checked first, so that everything written before the end is read after it
            for line in map(parse, follower.new()):
                if line is None:
                    unreadable += 1
                    continue
                if line.get("event") == "resume":  # total_kimg may have changed
                    teller.total_kimg = settings_of(run).total_kimg
                text = teller.text(line)
                with tqdm.external_write_mode():
                    say(with_notes(text, teller.notes, past.noted)) if text else None
    if unreadable:
        say(describe_unreadable(unreadable, run))
    if teller.told not in ENDS:
        say(
            f"cut short at {teller.nimg / 1000:g} kimg: no process is training there;"
            " run the same command to resume from the last checkpoint"
            if teller.told
            else NOTHING
        )


def with_notes(text: str, notes: list[str] | None, noted: SaidNotes) -> str:
    """A message, with those notes on its scores that have not been said."""
    return text if notes is None else text + in_lines(noted.new(notes))


def settings_of(run: Path) -> Outline:
    """The configuration of a run, as plain values.

    Raises:
        UserError: not a run folder.
    """
    if not (run / CONFIG_FILE).is_file():
        from gantrain.run_folder.contents import configuration_of  # imported only here: it loads torch, and its error names similar runs

        configuration_of(run)
    return outline_config(run)


def header(run: Path, past: Past, nimg: int, config: Outline) -> str:
    """The run and its configuration in one line; without a first batch it has the configured batch, if there is one.

    Args:
        run: the run folder.
        past: what its record says.
        nimg: images seen.
        config: its configuration.
    """
    found = Record(run, config, [], [], past.unreadable, owner(run) is not None, goes_on_elsewhere(run))
    status = status_of(found, past.told, nimg, past.lines > 0)
    return "; ".join([f"run: {run}, {status}, {nimg / 1000:g} of {config.total_kimg:g} kimg", *summarise(config, past.first_batch)])


def summarise(config: Outline, first_batch: int | None = None) -> list[str]:
    """A configuration in a few words: networks, data, loss, seed and batch; averages; swap. What is unknown is left out."""
    model, data, loss, policy = (name_in(config.section(name)) for name in ("model", "data", "loss", "batching"))
    seed, swap = plain(config.sections.get("seed")), config.section("swap")
    batch = plain(config.section("batching").get("batch_size")) if first_batch is None else str(first_batch)
    parts = [f"{model} on {data}"] if model and data else []
    parts += [f"{loss} loss"] if loss else []
    parts += [f"seed {seed}"] if seed else []
    parts += [f"batch {batch}" + (f" ({policy})" if policy else "")] if batch else [f"batch policy {policy}"] if policy else []
    every, source = swap.get("every_kimg"), plain(swap.get("source"))
    swaps = f"swap: {source}" + (f" every {every:g} kimg" if is_number(every) else "")
    averages = f"averages: {', '.join(config.averagers) or 'none'}"
    return [*([", ".join(parts)] if parts else []), averages, *([swaps] if source else [])]


def plain(value: Any) -> str:
    """A single value as text; empty for none, and for what a damaged configuration may have in its place, however large."""
    return str(value) if is_number(value) or isinstance(value, str) else ""


def name_in(section: Mapping[str, Any]) -> str:
    """The name of a section's plug-in, without its module; empty if there is none."""
    return plain(section.get("name")).rpartition(":")[2]


def show(bar: tqdm, teller: Teller) -> None:
    """Update the progress bar."""
    bar.total = teller.total_kimg
    bar.n = min(bar.total, teller.nimg / 1000)
    bar.set_postfix_str(teller.rest(), refresh=False)
    bar.refresh()
