"""`gantrain watch`: what a run says of itself, from its record, as it comes; the run need not know, nor be on this terminal.

Whether a run still goes on is told by the lock of its folder, which a dead process does not hold. Where a shared file system does not
show one machine's locks to another, a run of another machine counts as going on until its record has been still for some minutes
(`gantrain.record.goes_on_elsewhere`).
"""
from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gantrain import clock, locks
from gantrain.config import Config
from gantrain.errors import UserError
from gantrain.scores_table import table
from gantrain.names import CONFIG_FILE, METRICS_FILE
from gantrain.record import ENDS, Record, evaluation, goes_back, goes_on_elsewhere, outline, parse
from gantrain.sampling import configuration_of
from gantrain.tracking import console_line, duration

POLL = 0.5  # seconds between two looks
RECENT = 10  # lines of losses that the rate is taken over
NOTHING = "nothing is written yet, and no process trains there"
EVENTS = ("start", "resume", "swap", "growth", "rollback", "warning", "skipped", "interrupted", "gave_up", "end")
SILENT = ("checkpoint", "best")  # the run does not speak of them either
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


class Teller:
    """Lines of a record in the words in which the run has them on its console.

    Attributes:
        nimg: images seen where the run is.
        told: the last of its events that says whether it goes on: start, resume, end, interrupted, gave_up; None before any.
    """

    def __init__(self, config: Config):
        self.aim_at(config)
        self.nimg = 0
        self.told: str | None = None
        self._before: dict[str, float] = {}  # scores of the live weights before a swap
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # images and seconds of the last lines of losses
        self._last: int | None = None

    def aim_at(self, config: Config) -> None:
        """The run's configuration, of which a resumed one may have made the end another."""
        self.config, self.total = config, clock.images(config.total_kimg)

    def text(self, line: dict[str, Any]) -> str:
        """What a line says; empty where it is for the record only."""
        nimg, name = line["nimg"], line.get("event")
        self.nimg = line["to"] if goes_back(line) else max(self.nimg, nimg) if name not in ("start", "resume") else nimg
        if goes_back(line) or name in ("start", "resume"):
            self._last = self.nimg
        if name is not None:
            return self._event(str(name), nimg / 1000, line)
        if "loss/d" in line:
            rate = line.get("throughput/img_per_s", 0)
            if self._last is not None and nimg > self._last and rate > 0:
                self._recent.append((nimg - self._last, (nimg - self._last) / rate))
            self._last = nimg
            return console_line(nimg, self.total, line)
        scored = evaluation(line)
        if scored is None:
            return ""
        count = f" ({scored.protocol['num_samples']} samples each)" if "num_samples" in scored.protocol else ""
        return f"scores at {nimg / 1000:g} kimg{count}:\n{table(scored.scores)}"

    def rest(self) -> str:
        """How fast the run has been lately, and how long it will take at that; empty where that is not known."""
        seconds = sum(s for _, s in self._recent)
        if not seconds:
            return ""
        rate = sum(n for n, _ in self._recent) / seconds
        return f"{rate:.0f} img/s, {duration(max(0, self.total - self.nimg) / rate)} to go"

    def _event(self, name: str, kimg: float, line: dict[str, Any]) -> str:
        """An event in words."""
        self.told = name if name in (*ENDS, "start", "resume") else self.told
        told = getattr(self, f"_{name}", None) if name in EVENTS else None
        try:
            return told(kimg, line) if told else f"{name} at {kimg:g} kimg" if name not in SILENT else ""
        except (KeyError, TypeError, ValueError):  # of another version
            return f"{name} at {kimg:g} kimg"

    def _start(self, kimg: float, line: dict[str, Any]) -> str:
        at = f", {line['time']}" if "time" in line else ""
        processes = line["processes"]
        return f"{line['event']} at {kimg:g} kimg on {line['device']}, {processes} process{'es' if processes > 1 else ''}, gantrain {line['gantrain']}{at}"

    _resume = _start

    def _swap(self, kimg: float, line: dict[str, Any]) -> str:
        metric, value = next(iter(line["live"].items()), ("", 0.0))
        if line["moment"] == "before":
            self._before = dict(line["live"])
            return ""
        if line["moment"] == "after":
            score = f": live {metric} {value:.4f}" if metric else ""
            return f"swap at {line['swap_nimg'] / 1000:g} kimg, {line['since_swap'] / 1000:g} kimg later{score}"
        score = f"; live {metric} {self._before.get(metric, float('nan')):.4f} -> {value:.4f}" if metric else ""
        of, batch = {"g": "G", "gd": "G and D"}[line["networks"]], line["batch/size"]
        why = f" ({line['undecidable']})" if "undecidable" in line else ""
        return f"swap: {line['source']} in place of the live weights of {of} at {kimg:g} kimg; batch {batch / line['grown']:.0f} -> {batch}{why}{score}"

    def _growth(self, kimg: float, line: dict[str, Any]) -> str:
        return "growth at {:g} kimg: batch {from} -> {to}: {reason}".format(kimg, **line)

    def _rollback(self, kimg: float, line: dict[str, Any]) -> str:
        scaled = f", learning rates x {line['lr_scale']:g}" if line["lr_scale"] != 1 else ""
        return f"guard: {line['words']}; back to {line['to'] / 1000:g} kimg, attempt {line['attempt']} of {self.config.guard.max_rollbacks}, on other images{scaled}"

    def _warning(self, kimg: float, line: dict[str, Any]) -> str:
        return f"guard: {line['words']}; guard.on_{line['kind']}=warn goes on"

    def _skipped(self, kimg: float, line: dict[str, Any]) -> str:
        return f"data: skipped: {line['image']}"

    def _interrupted(self, kimg: float, line: dict[str, Any]) -> str:
        return f"stopped by {line['signal']} at {kimg:g} kimg; the same command goes on"

    def _gave_up(self, kimg: float, line: dict[str, Any]) -> str:
        return f"gave up at {kimg:g} kimg: {line['words']}"

    def _end(self, kimg: float, line: dict[str, Any]) -> str:
        return f"done at {kimg:g} kimg"


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
    while not (run / CONFIG_FILE).exists() and locks.owner(run) is not None:  # it is just starting
        time.sleep(every)
    config = configuration_of(run)
    follower, teller = Follower(run / METRICS_FILE), Teller(config)
    goes_on = lambda: locks.owner(run) is not None or (teller.told not in ENDS and goes_on_elsewhere(run))  # noqa: E731
    say(header(outline(run), config))
    on = goes_on()
    for text in told_before(follower.new(), teller, last):
        say(text)
    with tqdm(total=config.total_kimg, leave=False, disable=None, bar_format=BAR, desc=run.name, dynamic_ncols=True, initial=teller.nimg / 1000) as bar:
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
        say(f"cut short at {teller.nimg / 1000:g} kimg: no process trains there; the same command goes on from the last checkpoint" if teller.told else NOTHING)


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
        f"{name(config.model)} on {name(config.data)}, {name(config.loss)} loss, seed {config.seed}, batch {config.batching.batch_size} ({name(config.batching)});"
        f" averages: {', '.join(config.averagers) or 'none'}{swap}"
    )


def show(bar: tqdm, teller: Teller) -> None:
    """Where the run is, on the bar."""
    bar.total = teller.config.total_kimg
    bar.n = min(bar.total, teller.nimg / 1000)
    bar.set_postfix_str(teller.rest(), refresh=False)
    bar.refresh()
