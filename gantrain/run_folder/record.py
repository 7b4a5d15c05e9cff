"""Reading the record of a run, `metrics.jsonl`, whether the run has ended, is still running, or was cut short.

The file is a log: after a rollback `nimg` goes back, and the lines of the abandoned path stay. `Record` separates them, so that charts and
lists show the path that led to the weights.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gantrain import clock
from gantrain.errors import UserError, shown
from gantrain.lock import owner
from gantrain.plain_yaml import load_plain
from gantrain.regular_file import read_regular
from gantrain.run_folder.config_damage import require_whole
from gantrain.run_folder.layout import CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.record_lines import goes_back, has_scores, is_number, parse, split_abandoned, stream_bytes
from gantrain.run_folder.training_columns import columns_of
from gantrain.score_names import better_when_higher, can_be_best
from gantrain.strict_yaml import LARGEST

if TYPE_CHECKING:
    from gantrain.config.config import Config
    from gantrain.run_folder.training_columns import TrainingColumns

# Parts of a protocol, with their values in older records, which do not state them. Scores that differ in one are not comparable.
STATED = {
    "num_samples": None, "reference_fingerprint": None, "features": None, "truncation": None, "batchnorm": None, "is_splits": 10,
    "labels": "uniform",
}  # fmt: skip
RUNNING, MAYBE, DONE, INTERRUPTED, GAVE_UP, CUT_SHORT, EMPTY, DAMAGED, FORKED = (
    "running",
    "running?",
    "done",
    "interrupted",
    "gave up",
    "cut short",
    "empty",
    "damaged",
    "forked",
)
# Event -> the status of a run whose record ends with it.
ENDS = {"end": DONE, "interrupted": INTERRUPTED, "gave_up": GAVE_UP}
TELLING = (*ENDS, "start", "resume", "fork")  # events that say how a run goes
EVENT, SCORE = b'"event"', b'"eval/'  # in lines that show the progress and the scores of a run
LARGEST_LOCK = 2**24  # bytes of a file that names a process
QUIET = 600  # seconds without a new line after which a run of unknown state counts as ended
WHOLE = {"total_kimg", "performance"}  # keys near both ends of a configuration that gantrain has written


@dataclass(frozen=True)
class Outline:
    """The part of a configuration that can be read without plug-ins, and so without torch.

    Attributes:
        total_kimg: of the whole run.
        sections: all of it as plain values, as in the file in the run folder.
    """

    total_kimg: float
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def averagers(self) -> list[str]:
        """Names of the run's averages, as the configuration lists them."""
        return list(map(str, self.section("averagers")))

    def section(self, name: str) -> dict[str, Any]:
        """A section's keys; empty if the file does not have it."""
        found = self.sections.get(name)
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Evaluation:
    """One line of scores.

    Attributes:
        nimg: images seen by the weights that were scored.
        scores: average -> metric -> value, in the order of the file.
        protocol: how the scores were computed, by keys without the leading "eval/".
    """

    nimg: int
    scores: dict[str, dict[str, float]]
    protocol: dict[str, Any]


@dataclass
class Record:
    """The record of a run. Properties are computed once, so `lines` must not change.

    Attributes:
        run: the run folder.
        config: the run's configuration; from `outline`, an `Outline`.
        lines: lines of the path that led to the weights, oldest first; nan and infinities are floats again.
        abandoned: lines of paths that rollbacks have abandoned.
        unreadable: number of lines that cannot be read, see `record_lines.parse`. In an outline, damage within a line of losses may go
            unnoticed.
        running: whether a process is training there now.
        elsewhere: whether a process may be training there on another machine, see `goes_on_elsewhere`.
        columns: if the record is condensed (`gantrain.run_folder.condensed`), the numbers of its training lines, which `lines` lacks.
        places: if it is condensed, the position in the file of each of `lines`.
        num_abandoned: number of lines of abandoned paths; None is that of `abandoned`, which has no training lines if it is condensed.
    """

    run: Path
    config: Config | Outline
    lines: list[dict[str, Any]]
    abandoned: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    running: bool = False
    elsewhere: bool = False
    columns: TrainingColumns | None = None
    places: Sequence[int] | None = None
    num_abandoned: int | None = None

    @property
    def full_config(self) -> Config:
        """The configuration; of a record that `read` made, not of an outline."""
        assert not isinstance(self.config, Outline)
        return self.config

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """Lines with losses, batch size and learning rates."""
        return [line for line in self.lines if "loss/d" in line]

    @cached_property
    def numbers(self) -> TrainingColumns:
        """The numbers of all training lines, whether the record is condensed or not."""
        return self.columns if self.columns is not None else columns_of(enumerate(self.lines))

    @property
    def placed(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(position, line) of all `lines`; positions compare with those in `numbers`."""
        return zip(range(len(self.lines)) if self.places is None else self.places, self.lines)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Lines of events: of these names, or of all."""
        return [line for line in self.lines if "event" in line and (not names or line["event"] in names)]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations in order of images seen; of two at the same time, the later line."""
        found = (evaluation(line) for line in self.lines if has_scores(line))
        by_time = {one.nimg: one for one in found if one is not None}
        return [by_time[nimg] for nimg in sorted(by_time)]

    @cached_property
    def comparable(self) -> list[Evaluation]:
        """The evaluations that are comparable with the last one: `eval` may change when a run is resumed."""
        return [one for one in self.evaluations if stated(one) == stated(self.evaluations[-1])]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all scores in the order of the evaluations, without their spreads."""
        return list(
            dict.fromkeys(m for one in self.evaluations for row in one.scores.values() for m in row if better_when_higher(m) is not None)
        )

    @cached_property
    def averages(self) -> list[str]:
        """Names of everything that was scored, live first."""
        return list(dict.fromkeys(name for one in self.evaluations for name in one.scores))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What gantrain last recorded about itself and its machine; empty if it never did."""
        told = self.events("start", "resume")
        return {k: v for k, v in told[-1].items() if k not in ("nimg", "event", "notes", "changed")} if told else {}

    @cached_property
    def nimg(self) -> int:
        """Images seen at the end of the path. A rollback goes back; a score of a background evaluation, which arrives late, does not."""
        nimg, since = 0, -1
        for place, line in self.placed:
            nimg = line["to"] if goes_back(line) else max(nimg, line["nimg"])
            since = place if goes_back(line) else since
        if self.columns is not None:
            nimg = max([nimg, *self.columns.nimg[self.columns.places > since].tolist()])
        return nimg

    @property
    def status(self) -> str:
        """The state of the run, in a word or two.

        "running", "done", "interrupted", "gave up", "cut short" (killed, or ended by an error), "empty", "damaged" (nothing is readable),
        "forked" (`gantrain fork` has prepared it, and it was not trained yet),
        or "running?" if this machine cannot tell.
        """
        told = [line["event"] for line in self.events(*TELLING)]
        return status_of(self, told[-1] if told else None, self.nimg, bool(self.lines or self.columns))

    def best(
        self, metric: str | None = None, averages: Iterable[str] | None = None, times: Iterable[int] | None = None
    ) -> tuple[float, str, int] | None:
        """The best comparable score by a metric; never one at 0 images, where nothing has been trained.

        Args:
            metric: None is the run's first metric.
            averages: those to choose from; None is all, including the live weights.
            times: images seen, of the evaluations to choose from; None is all.

        Returns:
            (value, average, images seen), or None if there is no score of trained weights.
        """
        if metric is None and not self.metrics:
            return None
        metric = self.metrics[0] if metric is None else metric
        wanted, when = (None if given is None else set(given) for given in (averages, times))
        found = [
            (row[metric], name, one.nimg) for one in self.comparable for name, row in one.scores.items()
            if can_be_best(one.nimg) and metric in row and math.isfinite(row[metric])
            and (wanted is None or name in wanted) and (when is None or one.nimg in when)
        ]  # fmt: skip
        return (max if better_when_higher(metric) else min)(found, key=lambda one: one[0], default=None) if found else None


def status_of(found: Record, told: str | None, nimg: int, has_lines: bool) -> str:
    """The state of a run in a word or two, see `Record.status`.

    Args:
        found: says whether the run goes on, how long it is to be, and how many lines cannot be read.
        told: the last event that says how the run goes; None if there is none.
        nimg: images seen.
        has_lines: whether a line of the record can be read.
    """
    if found.running:
        return RUNNING
    if told is None:
        return CUT_SHORT if has_lines else DAMAGED if found.unreadable else EMPTY
    if told == "fork":
        return FORKED
    if told == "end" and nimg < clock.images(found.config.total_kimg):  # extended since, and not resumed yet
        return INTERRUPTED
    return ENDS.get(told, MAYBE if found.elsewhere else CUT_SHORT)


def stated(one: Evaluation) -> dict[str, Any]:
    """The part of a protocol that must be equal for scores to be comparable."""
    return {key: one.protocol.get(key, default) for key, default in STATED.items()}


def evaluation(line: dict[str, Any]) -> Evaluation | None:
    """The scores of a line; None if it has none."""
    scores: dict[str, dict[str, float]] = {}
    protocol: dict[str, Any] = {}
    for key, value in line.items():
        if not key.startswith("eval/"):
            continue
        average, slash, metric = key.removeprefix("eval/").rpartition("/")
        if not slash:
            protocol[metric] = value
        elif is_number(value):
            scores.setdefault(average, {})[metric] = value
    return Evaluation(line["nimg"], scores, protocol) if scores else None


def read(run: str | Path) -> Record:
    """The record of a run; an empty one if it has not written any yet.

    Raises:
        UserError: not a run folder, or its record cannot be read.
    """
    from gantrain.run_folder.contents import configuration_of  # imports torch

    return read_with(configuration_of(Path(run)), Path(run))


def outline(run: Path, sections: bool = True) -> Record:
    """A record without lines of losses, except a last one, and with the configuration as plain values: fast, and without torch.

    Args:
        run: the run folder.
        sections: whether the configuration has its sections, and not `total_kimg` alone, which is faster.

    Raises:
        UserError: the configuration or the record cannot be read.
    """
    return read_with(outline_config(run, sections), run, brief=True)


def outline_config(run: Path, sections: bool = True) -> Outline:
    """The part of a run's configuration that `outline` reads; arguments as there.

    Raises:
        UserError: it cannot be read.
    """
    path = run / CONFIG_FILE
    try:
        data = read_regular(path, LARGEST)
    except FileNotFoundError:
        raise UserError(f"{path}: cannot be read (No such file or directory); restore it from a copy") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        config = load_plain(data, shallow=not sections)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        config = None
    if not isinstance(config, dict) or not config.keys() >= WHOLE:
        require_whole(path)
    if not isinstance(config, dict) or "total_kimg" not in config:
        raise UserError(f"{path}: is not the configuration of a run (it has no total_kimg)")
    total_kimg = config["total_kimg"]
    if isinstance(total_kimg, str):  # it is quoted
        with contextlib.suppress(ValueError):
            total_kimg = float(total_kimg)
    if not is_number(total_kimg) or not 0 < total_kimg < math.inf:
        got = "a section or a list" if isinstance(total_kimg, (dict, list)) else quoted(total_kimg)
        raise UserError(f"{path}: is not the configuration of a run (total_kimg must be a number above 0, got {got})")
    return Outline(float(total_kimg), config if sections else {})


def quoted(value: Any) -> str:
    """A value for a message, at most 40 characters long."""
    text = shown(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 40 else text[:37] + "..."


def read_with(config: Config | Outline, run: Path, brief: bool = False) -> Record:
    """The record of a run whose configuration is known; with `brief`, as `outline` describes it."""
    running, elsewhere = owner(run) is not None, goes_on_elsewhere(run)
    lines: list[dict[str, Any]] = []
    unreadable, last = 0, b""
    for data, whole in stream_bytes(run):
        if brief and whole and is_of_losses(data):
            last = data
            continue
        line = parse(data)
        if line is not None:
            lines.append(line)
            last = b""
        elif whole:
            unreadable += 1
    if last:
        line = parse(last)
        lines += [line] if line is not None else []
        unreadable += line is None
    kept, abandoned = split_abandoned(lines)
    return Record(run, config, kept, abandoned, unreadable, running, elsewhere)


def is_of_losses(line: bytes) -> bool:
    """Whether a line begins and ends as every line does, and is neither an event nor scores; it may be damaged in between."""
    return line.startswith(b'{"nimg": ') and line.endswith(b"}\n") and EVENT not in line and SCORE not in line


def goes_on_elsewhere(run: Path) -> bool:
    """Whether a process on another machine may be training there, although its lock is not visible.

    Not every shared file system shows one machine's locks to another. Such a process is assumed if the last lock was not of this machine
    (or there is none) and the record has changed within `QUIET` seconds.
    """
    try:
        last = read_regular(run / ".lock", LARGEST_LOCK).decode("utf-8", "replace")
        changed = (run / METRICS_FILE).stat().st_mtime
    except OSError:
        return False
    return not last.endswith(f" on {platform.node()}") and time.time() - changed < QUIET
