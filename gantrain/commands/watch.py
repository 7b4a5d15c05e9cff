"""`gantrain watch`: what a run says of itself, from its record, as it comes; the run need not know, nor be on this terminal.

Whether a run still goes on is told by the lock of its folder, which a dead process does not hold. Where a shared file system does not
show one machine's locks to another, a run of another machine counts as going on until its record has been still for some minutes
(`gantrain.record.goes_on_elsewhere`).
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

from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.interruption import INTERRUPTED
from gantrain.lock import owner
from gantrain.reporting.event_words import RECENT, Teller
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.layout import CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.record import ENDS, Record, goes_on_elsewhere, outline, parse


def call(arguments: argparse.Namespace) -> int | None:
    try:
        watch(arguments.run, arguments.last, functools.partial(print, flush=True))
    except KeyboardInterrupt:  # seen enough; nothing was interrupted but looking on
        return INTERRUPTED


POLL = 0.5  # seconds between two looks
NOTHING = "nothing is written yet, and no process trains there"
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f} of {total:g} kimg{postfix}"


class Follower:
    """The whole lines of a file that another process appends to, each once, and cuts back now and then.

    A run that is taken up again cuts off what it had written behind its checkpoint and goes on from there. By the next look the
    file may be longer again than it was; so the last line read is looked at again each time, and where it is another, the place
    of the cut is found by the sums of the lines before.
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
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); put it right and run the same command again") from error
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
    config = configuration_of(run)
    follower, teller = Follower(run / METRICS_FILE), Teller(config)
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
                    teller.aim_at(configuration_of(run))
                text = teller.text(line)
                with tqdm.external_write_mode():
                    say(text) if text else None
    if teller.told not in ENDS:
        say(
            f"cut short at {teller.nimg / 1000:g} kimg: no process trains there; the same command goes on from the last checkpoint"
            if teller.told
            else NOTHING
        )


def told_before(lines: list[bytes], teller: Teller, last: int) -> list[str]:
    """The last so many things that a run has said in these lines. Of 100,000 lines of losses only those that are wanted are parsed."""
    numbers = [i for i, line in enumerate(lines) if b'"event"' not in line]
    wanted_from = numbers[-max(last, RECENT)] if len(numbers) > max(last, RECENT) else 0
    texts: deque[str] = deque(maxlen=last)
    for line in (parse(line) for i, line in enumerate(lines) if i >= wanted_from or b'"event"' in line):
        text = teller.text(line) if line is not None else ""
        if text:
            texts.append(text)
    return list(texts)


def header(found: Record, config: Config) -> str:
    """What is watched, in a line."""
    return f"run: {found.run}, {found.status}, {found.nimg / 1000:g} of {config.total_kimg:g} kimg; {in_short(config)}"


def in_short(config: Config) -> str:
    """A configuration in a few words."""
    name = lambda section: type(section).__name__  # noqa: E731
    swap = f"; swap: {config.swap.source} every {config.swap.every_kimg:g} kimg" if config.swap.source else ""
    return (
        f"{name(config.model)} on {name(config.data)}, {name(config.loss)} loss, seed {config.seed}, batch {config.batching.first_batch} ({name(config.batching)});"
        f" averages: {', '.join(config.averagers) or 'none'}{swap}"
    )


def show(bar: tqdm, teller: Teller) -> None:
    """Where the run is, on the bar."""
    bar.total = teller.config.total_kimg
    bar.n = min(bar.total, teller.nimg / 1000)
    bar.set_postfix_str(teller.rest(), refresh=False)
    bar.refresh()
