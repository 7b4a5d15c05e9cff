"""A run's record read back: what `metrics.jsonl` says, of a run that has ended, goes on, or was cut short.

The file is a log: after a rollback `nimg` goes back, and what was written on the path that was left stays in it. `Record`
tells the two apart, so that whoever draws or lists a run sees the path that led to its weights.
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gantrain import clock, locks
from gantrain.config import Config
from gantrain.errors import UserError
from gantrain.sampling import configuration_of
from gantrain.tracking import METRICS_FILE, better_when_higher

WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # as the tracker writes what JSON has no number for
RUNNING, DONE, INTERRUPTED, GAVE_UP, CUT_SHORT, EMPTY = "running", "done", "interrupted", "gave up", "cut short", "empty"


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
        config: what it was trained with.
        lines: of its path, oldest first; numbers that JSON has none for are floats again.
        abandoned: lines of paths that rollbacks have left.
        unreadable: lines that are no JSON.
        running: whether a process trains there now.
    """

    run: Path
    config: Config
    lines: list[dict[str, Any]]
    abandoned: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    running: bool = False

    @property
    def training(self) -> list[dict[str, Any]]:
        """Lines of losses, batch and rates."""
        return [line for line in self.lines if "loss/d" in line]

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Lines of what happens once, of these names, or all."""
        return [line for line in self.lines if "event" in line and (not names or line["event"] in names)]

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations, by images seen; of two at one moment the later line."""
        found = (evaluation(line) for line in self.lines if "event" not in line)
        by_time = {one.nimg: one for one in found if one is not None}
        return [by_time[nimg] for nimg in sorted(by_time)]

    @property
    def metrics(self) -> list[str]:
        """Names of all scores in the order in which evaluations have them, their spreads left out."""
        return list(dict.fromkeys(m for one in self.evaluations for row in one.scores.values() for m in row if better_when_higher(m) is not None))

    @property
    def averages(self) -> list[str]:
        """Names of all that was scored, live first."""
        return list(dict.fromkeys(name for one in self.evaluations for name in one.scores))

    @property
    def facts(self) -> dict[str, Any]:
        """What the program last said of itself and its machine; empty where it never did."""
        told = self.events("start", "resume")
        return {k: v for k, v in told[-1].items() if k not in ("nimg", "event", "notes", "changed")} if told else {}

    @property
    def nimg(self) -> int:
        """Images seen at the last line."""
        return self.lines[-1]["nimg"] if self.lines else 0

    @property
    def status(self) -> str:
        """"running", "done", "interrupted", "gave up", "cut short" (killed, or ended by an error), or "empty"."""
        if self.running:
            return RUNNING
        ends = {"end": DONE, "interrupted": INTERRUPTED, "gave_up": GAVE_UP}
        told = [line["event"] for line in self.events() if line["event"] in (*ends, "start", "resume")]
        if not told:
            return EMPTY
        if told[-1] == "end" and self.nimg < clock.images(self.config.total_kimg):  # made longer since, and not begun yet
            return INTERRUPTED
        return ends.get(told[-1], CUT_SHORT)

    def best(self, metric: str | None = None, averages: Iterable[str] | None = None) -> tuple[float, str, int] | None:
        """(value, average, images seen) of the best score by a metric, the run's first by default; None where there is none."""
        metrics = self.metrics
        metric = metrics[0] if metric is None and metrics else metric
        wanted = None if averages is None else set(averages)
        found = [
            (row[metric], name, one.nimg) for one in self.evaluations for name, row in one.scores.items()
            if metric in row and math.isfinite(row[metric]) and (wanted is None or name in wanted)
        ]  # fmt: skip
        return (max if better_when_higher(metric) else min)(found, key=lambda one: one[0], default=None) if found else None


def evaluation(line: dict[str, Any]) -> Evaluation | None:
    """A line's scores; None where it has none."""
    scores: dict[str, dict[str, float]] = {}
    protocol: dict[str, Any] = {}
    for key, value in line.items():
        if not key.startswith("eval/"):
            continue
        average, slash, metric = key.removeprefix("eval/").rpartition("/")
        if slash:
            scores.setdefault(average, {})[metric] = value
        else:
            protocol[metric] = value
    return Evaluation(line["nimg"], scores, protocol) if scores else None


def read(run: str | Path) -> Record:
    """The record of a run; an empty one where it has written none yet.

    Raises:
        UserError: not a run folder, or its record cannot be read.
    """
    run = Path(run)
    config = configuration_of(run)
    try:
        text = (run / METRICS_FILE).read_bytes().decode(errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise UserError(f"{run / METRICS_FILE}: cannot be read ({error.strerror}); put it right, or leave this run out") from error
    parsed = [parse(line) for line in text.splitlines()]
    lines, abandoned = followed(line for line in parsed if line is not None)
    return Record(run, config, lines, abandoned, sum(line is None for line in parsed), locks.owner(run) is not None)


def parse(line: str) -> dict[str, Any] | None:
    """A line of the file; None where it is no JSON object with `nimg`, as a power cut may leave one."""
    try:
        found = json.loads(line)
        if not isinstance(found["nimg"], int):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return restored(found)


def restored(value: Any) -> Any:
    """The same values, with nan and infinities as floats again; words of an event stay words."""
    if isinstance(value, dict):
        return {k: restored(v) for k, v in value.items()}
    return WORDS.get(value, value) if isinstance(value, str) else value


def followed(lines: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(lines of the path that counts, lines of paths that rollbacks have left); events of rollbacks count."""
    kept: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    for line in lines:
        if line.get("event") == "rollback" and isinstance(line.get("to"), int):
            stays = lambda one: one["nimg"] <= line["to"] or one.get("event") in ("start", "resume", "rollback")  # noqa: B023, E731
            left += [one for one in kept if not stays(one)]
            kept = [one for one in kept if stays(one)]
        kept.append(line)
    return kept, left
