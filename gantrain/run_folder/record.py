"""A run's record read back: what `metrics.jsonl` says, of a run that has ended, goes on, or was cut short.

The file is a log: after a rollback `nimg` goes back, and what was written on the path that was left stays in it. `Record`
tells the two apart, so that whoever draws or lists a run sees the path that led to its weights.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gantrain import clock
from gantrain.errors import UserError
from gantrain.lock import owner
from gantrain.run_folder.json_values import WORDS, restored
from gantrain.run_folder.layout import CONFIG_FILE, METRICS_FILE
from gantrain.score_names import better_when_higher

if TYPE_CHECKING:
    from gantrain.config.config import Config

# Of a protocol: scores that differ in one of these do not compare. With what an older record, which does not say it, was made with.
STATED = {"num_samples": None, "reference_fingerprint": None, "features": None, "truncation": None, "batchnorm": None, "is_splits": 10}
RUNNING, MAYBE, DONE, INTERRUPTED, GAVE_UP, CUT_SHORT, EMPTY, DAMAGED = (
    "running",
    "running?",
    "done",
    "interrupted",
    "gave up",
    "cut short",
    "empty",
    "damaged",
)
ENDS = {"end": DONE, "interrupted": INTERRUPTED, "gave_up": GAVE_UP}  # events, and the status that they leave
NEEDED = (b'"event"', b'"eval/')  # in lines that tell where a run has come to and how good it is
QUIET = 600  # seconds without a line, after which a run that nothing else is known of counts as ended


@dataclass(frozen=True)
class Outline:
    """What can be said of a configuration without plug-ins, and so without torch.

    Attributes:
        total_kimg: of the whole run.
        sections: all of it as plain values, as the file of the run folder has it.
    """

    total_kimg: float
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def averagers(self) -> list[str]:
        """Names of the run's averages, as the configuration lists them."""
        return list(self.section("averagers"))

    def section(self, name: str) -> dict[str, Any]:
        """A section's keys; empty where the file does not have it."""
        found = self.sections.get(name)
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Evaluation:
    """One line of scores.

    Attributes:
        nimg: images seen by the weights that were scored.
        scores: average -> metric -> value, in the order of the file.
        protocol: what the scores must be quoted with, without the leading "eval/".
    """

    nimg: int
    scores: dict[str, dict[str, float]]
    protocol: dict[str, Any]


@dataclass
class Record:
    """What a run has written.

    Attributes:
        run: the run folder.
        config: what it was trained with; of `outline`, an `Outline`.
        lines: of its path, oldest first; numbers that JSON has none for are floats again. What is read off them is kept.
        abandoned: lines of paths that rollbacks have left.
        unreadable: lines that are no JSON.
        running: whether a process trains there now.
        elsewhere: whether one may on another machine, see `goes_on_elsewhere`.
    """

    run: Path
    config: Config | Outline
    lines: list[dict[str, Any]]
    abandoned: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    running: bool = False
    elsewhere: bool = False

    @property
    def full_config(self) -> Config:
        """The configuration; of a record that `read` made, not of an outline."""
        assert not isinstance(self.config, Outline)
        return self.config

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """Lines of losses, batch and rates."""
        return [line for line in self.lines if "loss/d" in line]

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Lines of what happens once, of these names, or all."""
        return [line for line in self.lines if "event" in line and (not names or line["event"] in names)]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations, by images seen; of two at one moment the later line."""
        found = (evaluation(line) for line in self.lines if has_scores(line))
        by_time = {one.nimg: one for one in found if one is not None}
        return [by_time[nimg] for nimg in sorted(by_time)]

    @cached_property
    def comparable(self) -> list[Evaluation]:
        """The evaluations whose scores compare with the last one's: `eval` may change at a resume."""
        return [one for one in self.evaluations if stated(one) == stated(self.evaluations[-1])]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all scores in the order in which evaluations have them, their spreads left out."""
        return list(
            dict.fromkeys(m for one in self.evaluations for row in one.scores.values() for m in row if better_when_higher(m) is not None)
        )

    @cached_property
    def averages(self) -> list[str]:
        """Names of all that was scored, live first."""
        return list(dict.fromkeys(name for one in self.evaluations for name in one.scores))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the program last said of itself and its machine; empty where it never did."""
        told = self.events("start", "resume")
        return {k: v for k, v in told[-1].items() if k not in ("nimg", "event", "notes", "changed")} if told else {}

    @cached_property
    def nimg(self) -> int:
        """Images seen where the path has come to: a rollback goes back, a score that was computed beside the training does not."""
        nimg = 0
        for line in self.lines:
            nimg = line["to"] if goes_back(line) else max(nimg, line["nimg"])
        return nimg

    @property
    def status(self) -> str:
        """ "running", "done", "interrupted", "gave up", "cut short" (killed, or ended by an error), "empty", "damaged" (nothing in it can be read); or "running?", where that
        cannot be told from this machine."""
        if self.running:
            return RUNNING
        told = [line["event"] for line in self.events(*ENDS, "start", "resume")]
        if not told:
            return CUT_SHORT if self.lines else DAMAGED if self.unreadable else EMPTY
        if told[-1] == "end" and self.nimg < clock.images(self.config.total_kimg):  # made longer since, and not begun yet
            return INTERRUPTED
        return ENDS.get(told[-1], MAYBE if self.elsewhere else CUT_SHORT)

    def best(self, metric: str | None = None, averages: Iterable[str] | None = None) -> tuple[float, str, int] | None:
        """(value, average, images seen) of the best score by a metric, the run's first by default, among those that compare; None where
        there is none."""
        metrics = self.metrics
        metric = metrics[0] if metric is None and metrics else metric
        wanted = None if averages is None else set(averages)
        found = [
            (row[metric], name, one.nimg) for one in self.comparable for name, row in one.scores.items()
            if metric in row and math.isfinite(row[metric]) and (wanted is None or name in wanted)
        ]  # fmt: skip
        return (max if better_when_higher(metric) else min)(found, key=lambda one: one[0], default=None) if found else None


def stated(one: Evaluation) -> dict[str, Any]:
    """What of a protocol makes scores comparable."""
    return {key: one.protocol.get(key, default) for key, default in STATED.items()}


def has_scores(line: dict[str, Any]) -> bool:
    """Whether a line may be an evaluation's; an event that quotes scores, a swap, is none."""
    return "event" not in line and "loss/d" not in line


def evaluation(line: dict[str, Any]) -> Evaluation | None:
    """A line's scores; None where it has none."""
    scores: dict[str, dict[str, float]] = {}
    protocol: dict[str, Any] = {}
    for key, value in line.items():
        if not key.startswith("eval/"):
            continue
        average, slash, metric = key.removeprefix("eval/").rpartition("/")
        if not slash:
            protocol[metric] = value
        elif isinstance(value, (int, float)):
            scores.setdefault(average, {})[metric] = value
    return Evaluation(line["nimg"], scores, protocol) if scores else None


def read(run: str | Path) -> Record:
    """The record of a run; an empty one where it has written none yet.

    Raises:
        UserError: not a run folder, or its record cannot be read.
    """
    from gantrain.run_folder.contents import configuration_of  # all that waits for torch

    return read_with(configuration_of(Path(run)), Path(run))


def outline(run: Path) -> Record:
    """The same without lines of losses but for the last line, and of its configuration `total_kimg` alone: quickly, and without torch.

    Raises:
        UserError: the configuration or the record cannot be read.
    """
    return read_with(outline_config(run), run, brief=True)


def outline_config(run: Path) -> Outline:
    """What `outline` reads of a run's configuration.

    Raises:
        UserError: it cannot be read.
    """
    path = run / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_bytes())
        return Outline(float(config["total_kimg"]), config)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: is not the configuration of a run (it has no total_kimg)") from None


def read_with(config: Config | Outline, run: Path, brief: bool = False) -> Record:
    """The record of a run whose configuration is known."""
    running, elsewhere = owner(run) is not None, goes_on_elsewhere(run)
    path, parsed, last = run / METRICS_FILE, [], b""
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n") and parse(line) is None:  # it is being written, or was when the power went
                    break
                needed = not brief or any(word in line for word in NEEDED)
                last = b"" if needed else line
                if needed:
                    parsed.append(parse(line))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); put it right, or leave this run out") from error
    if last:
        parsed.append(parse(last))
    lines, abandoned = followed(line for line in parsed if line is not None)
    return Record(run, config, lines, abandoned, sum(line is None for line in parsed), running, elsewhere)


def goes_on_elsewhere(run: Path) -> bool:
    """Whether a process of another machine may train there although its lock is not seen: not every shared file system shows one
    machine's locks to another. It may where the last one was not of this machine (or had no lock to leave its name in) and the record
    has changed within `QUIET` seconds."""
    try:
        last = (run / ".lock").read_text(errors="replace")
        changed = (run / METRICS_FILE).stat().st_mtime
    except OSError:
        return False
    return not last.endswith(f" on {platform.node()}") and time.time() - changed < QUIET


def parse(line: bytes | str) -> dict[str, Any] | None:
    """A line of the file; None where it is no JSON object with `nimg`, as a power cut may leave one."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
        found = json.loads(text)
        if type(found["nimg"]) is not int:
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if any(f'"{word}"' in text for word in WORDS):
        found = restored(found)
    return {sys.intern(key): value for key, value in found.items()}  # the same few keys on each of 100,000 lines


def goes_back(line: dict[str, Any]) -> bool:
    """Whether a line is a rollback's."""
    return line.get("event") == "rollback" and type(line.get("to")) is int


def followed(lines: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(lines of the path that counts, lines of paths that rollbacks have left).

    Events of rollbacks, starts and resumes count. Of the moment that a rollback leads to, what came after the checkpoint was left
    too and comes again: a growth of the batch, say. Scores of that moment stay, computed beside the training they come late.
    """
    kept: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    for line in lines:
        if goes_back(line):
            to = line["to"]
            saved = max((i for i, one in enumerate(kept) if one["nimg"] == to and one.get("event") == "checkpoint"), default=len(kept))
            stays = [
                one.get("event") in ("start", "resume", "rollback") or one["nimg"] < to or (one["nimg"] == to and (i <= saved or has_scores(one)))
                for i, one in enumerate(kept)
            ]  # fmt: skip
            left += [one for one, stay in zip(kept, stays) if not stay]
            kept = [one for one, stay in zip(kept, stays) if stay]
        kept.append(line)
    return kept, left
