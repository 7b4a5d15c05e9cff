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
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gantrain.errors import UserError
from gantrain.interruption import INTERRUPTED
from gantrain.lock import owner
from gantrain.reporting.event_words import RECENT, Teller
from gantrain.run_folder.layout import CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.record import ENDS, Outline, Record, goes_on_elsewhere, outline, outline_config, parse

POLL = 0.5  # seconds between two reads of the record
NOTHING = "nothing has been written yet, and no process is training there"
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
    the file was truncated.
    """

    def __init__(self, path: Path):
        self.path = path
        self._ends = [0]  # of every line read, in bytes
        self._sums = [0]  # of every line read, CRC-32

    def new(self) -> list[bytes]:
        """Complete lines since the last call; none if the file does not exist yet."""
        try:
            with open(self.path, "rb") as file:
                if not self._still_there(file):
                    self._go_back(file)
                file.seek(self._ends[-1])
                lines = [line for line in file if line.endswith(b"\n")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); fix this and run the same command again") from error
        for line in lines:
            self._ends.append(self._ends[-1] + len(line))
            self._sums.append(zlib.crc32(line))
        return lines

    def _still_there(self, file: Any) -> bool:
        if len(self._ends) == 1:
            return True
        file.seek(self._ends[-2])
        return zlib.crc32(file.read(self._ends[-1] - self._ends[-2])) == self._sums[-1]

    def _go_back(self, file: Any) -> None:
        """Go back to the last line that has not changed."""
        file.seek(0)
        same = 1
        for line in file:
            if same == len(self._sums) or zlib.crc32(line) != self._sums[same] or not line.endswith(b"\n"):
                break
            same += 1
        del self._ends[same:], self._sums[same:]


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
    on, lines = goes_on(), follower.new()
    say(header(outline(run), config, find_first_batch(lines)))
    for text in told_before(lines, teller, last):
        say(text)
    with tqdm(
        total=config.total_kimg, leave=False, disable=None, bar_format=BAR, desc=run.name, dynamic_ncols=True, initial=teller.nimg / 1000
    ) as bar:
        while True:
            show(bar, teller)
            if not on:
                break
            time.sleep(every)
            on = goes_on()  # checked first, so that everything written before the end is read after it
            for line in filter(None, map(parse, follower.new())):
                if line.get("event") == "resume":  # total_kimg may have changed
                    teller.total_kimg = settings_of(run).total_kimg
                text = teller.text(line)
                with tqdm.external_write_mode():
                    say(text) if text else None
    if teller.told not in ENDS:
        say(
            f"cut short at {teller.nimg / 1000:g} kimg: no process is training there;"
            " run the same command to resume from the last checkpoint"
            if teller.told
            else NOTHING
        )


def settings_of(run: Path) -> Outline:
    """The configuration of a run, as plain values.

    Raises:
        UserError: not a run folder.
    """
    if not (run / CONFIG_FILE).is_file():
        from gantrain.run_folder.contents import configuration_of  # imported only here: it loads torch, and its error names similar runs

        configuration_of(run)
    return outline_config(run)


def told_before(lines: list[bytes], teller: Teller, last: int) -> list[str]:
    """The last `last` messages in these lines. Of the lines of losses, which may be 100,000, only the needed ones are parsed."""
    training = [i for i, line in enumerate(lines) if b'"event"' not in line]
    wanted_from = training[-max(last, RECENT)] if len(training) > max(last, RECENT) else 0
    texts: deque[str] = deque(maxlen=last)
    for line in (parse(line) for i, line in enumerate(lines) if i >= wanted_from or b'"event"' in line):
        text = teller.text(line) if line is not None else ""
        if text:
            texts.append(text)
    return list(texts)


def find_first_batch(lines: list[bytes]) -> int | None:
    """The batch that a run began with, by its record; None if no line says so yet."""
    for line in filter(None, (parse(line) for line in lines if b'"batch/size"' in line or b'"growth"' in line)):
        batch = line.get("from") if line.get("event") == "growth" else line.get("batch/size")
        if isinstance(batch, int):
            return batch
    return None


def header(found: Record, config: Outline, first_batch: int | None = None) -> str:
    """The run and its configuration in one line; without `first_batch` it has the configured batch, if there is one."""
    status = f"run: {found.run}, {found.status}, {found.nimg / 1000:g} of {config.total_kimg:g} kimg"
    return "; ".join([status, *summarise(config, first_batch)])


def summarise(config: Outline, first_batch: int | None = None) -> list[str]:
    """A configuration in a few words: networks, data, loss, seed and batch; averages; swap. What is unknown is left out."""
    model, data, loss, policy = (name_in(config.section(name)) for name in ("model", "data", "loss", "batching"))
    seed, swap = config.sections.get("seed"), config.section("swap")
    batch = config.section("batching").get("batch_size") if first_batch is None else first_batch
    parts = [f"{model} on {data}"] if model and data else []
    parts += [f"{loss} loss"] if loss else []
    parts += [f"seed {seed}"] if seed is not None else []
    parts += [f"batch {batch}" + (f" ({policy})" if policy else "")] if batch is not None else [f"batch policy {policy}"] if policy else []
    every = swap.get("every_kimg")
    swaps = f"swap: {swap.get('source')}" + (f" every {every:g} kimg" if isinstance(every, (int, float)) else "")
    averages = f"averages: {', '.join(config.averagers) or 'none'}"
    return [*([", ".join(parts)] if parts else []), averages, *([swaps] if swap.get("source") else [])]


def name_in(section: Mapping[str, Any]) -> str:
    """The name of a section's plug-in, without its module; empty if there is none."""
    return str(section.get("name") or "").rpartition(":")[2]


def show(bar: tqdm, teller: Teller) -> None:
    """Update the progress bar."""
    bar.total = teller.total_kimg
    bar.n = min(bar.total, teller.nimg / 1000)
    bar.set_postfix_str(teller.rest(), refresh=False)
    bar.refresh()
