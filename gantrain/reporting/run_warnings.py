"""The warnings in a run's record, for the report and `gantrain runs`: collapsed generators, guard warnings, rollbacks, lost data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gantrain.errors import counted
from gantrain.reporting.event_words import what_happened
from gantrain.run_folder.record import Record

COLLAPSE, WARNING, ROLLBACK, GAVE_UP, NOT_WRITTEN, SKIPPED = "collapse", "warning", "rollback", "gave_up", "not_written", "skipped"
TITLES = {
    COLLAPSE: "Collapse", WARNING: "Guard warning", ROLLBACK: "Rollback", GAVE_UP: "Gave up", NOT_WRITTEN: "Failed write",
    SKIPPED: "Skipped image",
}  # fmt: skip


@dataclass(frozen=True)
class RunWarning:
    """What a run has warned about, once or repeatedly.

    Attributes:
        event: its name in the record.
        kind: what the guard found, such as "saturation"; empty for other events.
        times: number of events.
        first, last: images seen at the first and at the last of them.
        words: of the last.
    """

    event: str
    kind: str
    times: int
    first: int
    last: int
    words: str

    @property
    def sentence(self) -> str:
        """The warning in one sentence, with its times."""
        title = f"{TITLES[self.event]} ({self.kind})" if self.kind else TITLES[self.event]
        when = f"at {self.last / 1000:g} kimg"
        if self.times == 1:
            return f"{title} {when}: {self.words}."
        if self.first != self.last:
            when = f"from {self.first / 1000:g} to {self.last / 1000:g} kimg"
        return f"{title}, {self.times} times {when}; the last: {self.words}."

    @property
    def values(self) -> dict[str, Any]:
        """The warning as JSON values."""
        return {
            "event": self.event, "kind": self.kind or None, "times": self.times, "first_kimg": self.first / 1000,
            "last_kimg": self.last / 1000, "words": self.words,
        }  # fmt: skip


def find_warnings(record: Record) -> list[RunWarning]:
    """The warnings in a record, in the order of `TITLES`; those of the same event and kind are one, so a long run has few.

    A line that a resumed run has written again counts once.
    """
    found: dict[tuple[str, str], dict[tuple[int, str], None]] = {}
    for line in record.events(*TITLES):
        words = str(line.get("image", "")) if line["event"] == SKIPPED else what_happened(line)
        kind = str(line.get("kind") or "")
        found.setdefault((line["event"], kind), {})[line["nimg"], words.rstrip(".")] = None
    order = list(TITLES)
    return [
        RunWarning(event, kind, len(lines), min(nimg for nimg, _ in lines), max(nimg for nimg, _ in lines), [*lines][-1][1])
        for (event, kind), lines in sorted(found.items(), key=lambda one: order.index(one[0][0]))
    ]


def find_collapse(record: Record) -> str:
    """How the generators had collapsed at the last evaluation; empty if they had not, or if nothing looked."""
    told = record.events(COLLAPSE)
    since = record.evaluations[-1].nimg if record.evaluations else 0
    return what_happened(told[-1]) if told and told[-1]["nimg"] >= since else ""


def marks_of(warnings: Sequence[RunWarning], collapse: str) -> list[str]:
    """A word or two for each warning, for a table. A run that gave up has no mark for it: its status says so.

    Args:
        warnings: of a run.
        collapse: how it has collapsed, of `find_collapse`.
    """
    rollbacks = sum(one.times for one in warnings if one.event == ROLLBACK)
    short: Mapping[str, Callable[[RunWarning], str]] = {
        COLLAPSE: lambda one: "collapsed" if collapse else "collapsed earlier",
        WARNING: lambda one: f"guard: {one.kind}" if one.kind else "guard",
        ROLLBACK: lambda one: counted(rollbacks, "rollback"),  # of all kinds
        NOT_WRITTEN: lambda one: counted(one.times, "failed write"),
        SKIPPED: lambda one: counted(one.times, "skipped image"),
    }
    return list(dict.fromkeys(short[one.event](one) for one in warnings if one.event in short))
