"""`gantrain watch`: follow a run by its record; the run need not know, nor be on this terminal.

Whether a run still goes on is told by the lock of its folder, which a dead process does not hold. Where a shared file system does not
show one machine's locks to another, a run of another machine counts as going on until its record has not changed for some minutes
(`gantrain.run_folder.record.goes_on_elsewhere`). Nothing here imports torch, so that looking at a run takes no seconds.
"""

from __future__ import annotations

import argparse
import functools
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gantrain.errors import UserError
from gantrain.interruption import INTERRUPTED
from gantrain.lock import owner
from gantrain.reporting.event_words import RECENT, Teller
from gantrain.run_folder.layout import CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.record import ENDS, Outline, Record, goes_on_elsewhere, outline, outline_config, parse


def call(arguments: argparse.Namespace) -> int | None:
    try:
        watch(arguments.run, arguments.last, functools.partial(print, flush=True))
    except KeyboardInterrupt:  # seen enough; nothing was interrupted but the watching
        return INTERRUPTED
    return None


POLL = 0.5  # seconds between two looks
NOTHING = "nothing is written yet, and no process trains there"
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f} of {total:g} kimg{postfix}"


class Follower:
    """Reads the whole lines of a file that another process appends to and sometimes cuts back, each line once.

    A run that resumes cuts off what it had written after its checkpoint and goes on from there. By the next look the file may be
    longer than before; so the last line read is compared each time, and where it differs, the checksums of the lines before it
    show where the cut was.
    """

    def __init__(self, path: Path):
        self.path = path
        self._ends = [0]  # of every line read, in bytes
        self._sums = [0]  # of every line read, CRC-32

    def new(self) -> list[bytes]:
        """Whole lines since the last time; none where there is no such file yet."""
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
        """To the last line that is as it was."""
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
        last: how many of the things that it has said before are repeated.
        say: receives text, of a line or several.
        every: seconds between two looks.

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
    say(header(outline(run), config))
    on = goes_on()
    for text in told_before(follower.new(), teller, last):
        say(text)
    with tqdm(
        total=config.total_kimg, leave=False, disable=None, bar_format=BAR, desc=run.name, dynamic_ncols=True, initial=teller.nimg / 1000
    ) as bar:
        while True:
            show(bar, teller)
            if not on:
                break
            time.sleep(every)
            on = goes_on()  # asked first: what the run has written before it ended is read after
            for line in filter(None, map(parse, follower.new())):
                if line.get("event") == "resume":  # perhaps made longer
                    teller.total_kimg = settings_of(run).total_kimg
                text = teller.text(line)
                with tqdm.external_write_mode():
                    say(text) if text else None
    if teller.told not in ENDS:
        say(
            f"cut short at {teller.nimg / 1000:g} kimg: no process trains there; the same command goes on from the last checkpoint"
            if teller.told
            else NOTHING
        )


def settings_of(run: Path) -> Outline:
    """The configuration of a run, as plain values.

    Raises:
        UserError: not a run folder.
    """
    if not (run / CONFIG_FILE).is_file():
        from gantrain.run_folder.contents import configuration_of  # it waits for torch, and knows what was meant

        configuration_of(run)
    return outline_config(run)


def told_before(lines: list[bytes], teller: Teller, last: int) -> list[str]:
    """The last so many things that a run has said in these lines. Of 100,000 lines of losses only the wanted ones are parsed."""
    numbers = [i for i, line in enumerate(lines) if b'"event"' not in line]
    wanted_from = numbers[-max(last, RECENT)] if len(numbers) > max(last, RECENT) else 0
    texts: deque[str] = deque(maxlen=last)
    for line in (parse(line) for i, line in enumerate(lines) if i >= wanted_from or b'"event"' in line):
        text = teller.text(line) if line is not None else ""
        if text:
            texts.append(text)
    return list(texts)


def header(found: Record, config: Outline) -> str:
    """What is watched, in a line."""
    return "; ".join([f"run: {found.run}, {found.status}, {found.nimg / 1000:g} of {config.total_kimg:g} kimg", *in_short(config)])


def in_short(config: Outline) -> list[str]:
    """A configuration in a few words: networks, data and batch; averages; swap."""
    model, data, loss, batching = (config.section(name) for name in ("model", "data", "loss", "batching"))
    swap, parts = config.section("swap"), []
    if "name" in model and "name" in data:
        parts.append(
            f"{model['name']} on {data['name']}, {loss.get('name')} loss, seed {config.sections.get('seed')},"
            f" batch {batching.get('batch_size')} ({batching.get('name')})"
        )
    parts.append(f"averages: {', '.join(config.averagers) or 'none'}")
    if swap.get("source"):
        parts.append(f"swap: {swap['source']} every {swap.get('every_kimg'):g} kimg")
    return parts


def show(bar: tqdm, teller: Teller) -> None:
    """Where the run is, on the bar."""
    bar.total = teller.total_kimg
    bar.n = min(bar.total, teller.nimg / 1000)
    bar.set_postfix_str(teller.rest(), refresh=False)
    bar.refresh()
