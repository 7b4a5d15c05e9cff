"""`gantrain runs`: list the runs in a folder, one per row. Only their records are read."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gantrain.errors import UserError, counted, did_you_mean
from gantrain.reporting.run_warnings import RunWarning, find_collapse, find_warnings, marks_of
from gantrain.run_folder import record
from gantrain.run_folder.layout import BEST_FOLDER, CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.recognition import BESIDE, holds_checkpoints
from gantrain.score_names import better_when_higher
from gantrain.text_table import align

LEVELS = 3  # levels of folders below the one that is searched
NARROWEST = 16  # characters of a run's name that are shown even on a narrow terminal


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    rows = list_runs(arguments.folders, arguments.by, arguments.sort, lambda line: print(f"gantrain: {line}", file=sys.stderr))
    print(as_json_lines(rows) if arguments.json else listing(rows, width=terminal_width()))


@dataclass(frozen=True)
class Row:
    """A run in the listing.

    Attributes:
        run: its folder, below the one that was searched.
        path: its folder, as other commands take it.
        status: of `gantrain.run_folder.record.Record`, or "damaged".
        nimg: images seen.
        total_kimg: of the whole run.
        metric: the metric of the score; None if the run was never scored by it.
        score: the best score, reached by the average `average` at `at` images.
        changed: time of the last change of its record, in seconds since 1970; None if there is none.
        error: why a damaged run cannot be read.
        origin: the run that it was forked from; None if it is not a fork.
        made_for: the data set that the features of the scores were made for, if the images are not known to be of it.
        warnings: what its record warns about.
        collapse: how its generators had collapsed at the last evaluation; empty if they had not.
        unreadable: number of lines of its record that cannot be read.
    """

    run: str
    path: str
    status: str
    nimg: int = 0
    total_kimg: float | None = None
    metric: str | None = None
    score: float | None = None
    average: str | None = None
    at: int | None = None
    changed: float | None = None
    error: str | None = None
    origin: str | None = None
    made_for: str | None = None
    warnings: tuple[RunWarning, ...] = ()
    collapse: str = ""
    unreadable: int = 0


def find_runs(folder: Path, unlisted: dict[str, str] | None = None, depth: int = LEVELS) -> Iterator[Path]:
    """The run folders in a folder, ordered by path: itself, or those below it. Run folders are not searched further.

    Args:
        folder: where to search.
        unlisted: receives the folders that may not be listed, and why; None forgets them.
        depth: levels of folders below it that are searched.
    """
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry for entry in entries}
    except OSError as error:  # for example, it belongs to another user
        if unlisted is not None:
            unlisted[str(folder)] = error.strerror or str(error)
        return
    begun = CONFIG_FILE in found and any(name in found for name in BESIDE)
    if begun or (not found.keys().isdisjoint((CONFIG_FILE, "checkpoints", BEST_FOLDER)) and holds_checkpoints(folder)):
        yield folder
        return
    for name in sorted(found) if depth else ():
        if not name.startswith(".") and is_folder(found[name]):
            yield from find_runs(folder / name, unlisted, depth - 1)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def last_change(run: Path) -> float | None:
    """When the record of a run changed, in seconds since 1970; of one without a record, when its configuration did."""
    for name in (METRICS_FILE, CONFIG_FILE):
        with contextlib.suppress(OSError):
            found = os.stat(run / name)
            if stat.S_ISREG(found.st_mode):
                return found.st_mtime
    return None


def row_of(run: Path, name: str, metric: str | None = None) -> tuple[Row, list[str]]:
    """(the row of a run, the names of its metrics)."""
    changed = last_change(run)
    try:
        found = record.outline(run, sections=False)
    except UserError as error:
        return Row(name, str(run), "damaged", changed=changed, error=str(error)), []
    if found.status == record.DAMAGED:
        return Row(name, str(run), "damaged", changed=changed, error=f"{run / METRICS_FILE}: no line can be read"), []
    known = found.metrics
    by = metric if metric is not None else known[0] if known else None
    score, average, at = (found.best(by) if by in known else None) or (None, None, None)
    origin = next((str(line["from"]) for line in found.events("fork") if "from" in line), None)
    return Row(
        name, str(run), found.status, found.nimg, found.config.total_kimg, by if score is not None else None, score, average, at, changed,
        origin=origin, made_for=found.evaluations[-1].protocol.get("features_made_for") if score is not None else None,
        warnings=tuple(find_warnings(found)), collapse=find_collapse(found), unreadable=found.unreadable,
    ), known  # fmt: skip


def list_runs(
    folders: Sequence[str], by: str | None = None, order: str = "path", say: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """All runs in some folders. One that cannot be read has a row that says why.

    Args:
        folders: a run's name is its path below its folder; with several folders it starts with the folder's own path.
        by: the metric whose best score is shown; None is each run's first.
        order: "path"; "score", best first; "kimg", longest first; "time", most recently changed first.
        say: receives a line about the folders that may not be listed, if there are any.

    Raises:
        UserError: a folder does not exist, they contain no run, no run has such a score, or scores of different metrics would be sorted.
    """
    rows, known, unlisted = [], set(), dict[str, str]()
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder}: {what}; pass the folder that contains the runs (run_dir of a `gantrain train`)")
        for run in find_runs(folder, unlisted):
            name = str(run) if len(folders) > 1 or run == folder else str(run.relative_to(folder))
            row, metrics = row_of(run, name, by)
            rows.append(row)
            known |= set(metrics)
    if unlisted:
        say(describe_unlisted(unlisted))
    if not rows:
        where = ", ".join(map(str, folders))
        raise UserError(
            f"{where}: contains no runs ({CONFIG_FILE} next to {METRICS_FILE}), down to {LEVELS} levels;"
            f" pass the folder that contains the runs"
        )
    if by is not None and by not in known:
        raise UserError(f"--by: no run has a score {by!r}{did_you_mean(by, known)}")
    return in_order(rows, order)


def describe_unlisted(unlisted: Mapping[str, str]) -> str:
    """Which folders may not be listed, in a line."""
    some = ", ".join(f"{folder} ({reason})" for folder, reason in list(unlisted.items())[:3])
    more = f" and {len(unlisted) - 3} more" if len(unlisted) > 3 else ""
    return f"{counted(len(unlisted), 'folder')} could not be listed; runs in there are missing here: {some}{more}"


def in_order(rows: list[Row], order: str) -> list[Row]:
    """Sort rows in an order of `list_runs`; rows without a value come last, by path.

    Raises:
        UserError: scores of different metrics would be sorted.
    """
    if order == "score":
        metrics = sorted({row.metric for row in rows if row.metric is not None})
        if len(metrics) > 1:
            raise UserError(f"--sort score: the runs are scored by {', '.join(metrics)}, which are not comparable; choose one with --by")
        sign = -1 if metrics and better_when_higher(metrics[0]) else 1
        return sorted(rows, key=lambda row: (row.score is None, sign * (row.score or 0)))
    if order in ("kimg", "time"):
        return sorted(rows, key=lambda row: -(row.nimg if order == "kimg" else row.changed or 0))
    return rows


# ---- as text ---------------------------------------------------------------------------------------------------------


def listing(rows: Sequence[Row], now: float | None = None, width: int | None = None) -> str:
    """Format the listing: one row per run, with aligned columns; for a damaged run, what is wrong with it.

    Args:
        now: seconds since 1970; None is the current time.
        width: of the terminal in characters, to which long names are shortened; None shortens nothing.
    """
    now = time.time() if now is None else now
    scores = align(["" if row.score is None else f"{row.score:.4f}" for row in rows], right=True)
    metrics = align([(row.metric or "") + ("*" if row.made_for else "") for row in rows])
    seen = align(["" if row.error else f"{row.nimg / 1000:g}" for row in rows], right=True)
    columns = [
        align(["status", *(row.status for row in rows)]),
        align(["kimg", *("" if row.error else f"{one} of {row.total_kimg:g}" for row, one in zip(rows, seen))]),
        align(["best score", *("-" if row.score is None else f"{metric} {score}" for row, metric, score in zip(rows, metrics, scores))]),
        align(["average", *(row.average or "-" for row in rows)]),
        align(["at kimg", *("-" if row.at is None else f"{row.at / 1000:g}" for row in rows)], right=True),
        align(["last change", *(format_time(row.changed, now) for row in rows)]),
    ]
    marks = [
        ", ".join([*marks_of(row.warnings, row.collapse), *([counted(row.unreadable, "unreadable line")] if row.unreadable else [])])
        for row in rows
    ]
    if any(marks):
        columns.append(align(["warnings", *(mark or "-" for mark in marks)]))
    if any(row.origin for row in rows):
        columns.append(align(["forked from", *(row.origin or "-" for row in rows)]))
    room = None if width is None else max(NARROWEST, width - sum(2 + len(column[0]) for column in columns))
    lines = zip(align([shorten_middle(name, room) for name in ("run", *(row.run for row in rows))]), *columns)
    said = [
        f"{line[0]}  {line[1]}  {row.error}" if row is not None and row.error else "  ".join(line)
        for row, line in zip((None, *rows), lines)
    ]
    made_for = sorted({row.made_for for row in rows if row.made_for})
    foreign = [f"* made for {', '.join(made_for)}, and the images are not known to be: no measure of quality"] if made_for else []
    return "\n".join([*(line.rstrip() for line in said), *foreign])


def shorten_middle(text: str, width: int | None) -> str:
    """Shorten a text to at most `width` characters by leaving out its middle."""
    if width is None or len(text) <= width:
        return text
    left = (width - 2) // 2
    return f"{text[:left]}...{text[len(text) - (width - 3 - left) :]}"


def format_time(moment: float | None, now: float) -> str:
    """A time for people: how long ago within a day, otherwise the date."""
    if moment is None:
        return "-"
    ago = now - moment
    if ago >= 86400:
        try:
            return time.strftime("%Y-%m-%d", time.localtime(moment))
        except (ValueError, OverflowError, OSError):  # the time of a file can be in any year
            return "-"
    for size, unit in ((3600, "h"), (60, "min")):
        if ago >= size:
            return f"{ago // size:.0f} {unit} ago"
    return f"{max(0, ago):.0f} s ago"


def terminal_width() -> int | None:
    """Characters per line of standard output; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_json_lines(rows: Sequence[Row]) -> str:
    """The listing for scripts: one JSON object per run, null if there is no value; times in UTC."""

    def of(row: Row) -> dict[str, Any]:
        changed = None
        with contextlib.suppress(ValueError, OverflowError, OSError):  # the time of a file can be in any year
            changed = None if row.changed is None else datetime.fromtimestamp(row.changed, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        at = None if row.at is None else row.at / 1000
        reached = (
            {}
            if row.error
            else {
                "kimg": row.nimg / 1000,
                "total_kimg": row.total_kimg,
                "metric": row.metric,
                "score": row.score,
                "average": row.average,
                "at_kimg": at,
                **({"features_made_for": row.made_for} if row.made_for else {}),
            }
        )
        warnings = [one.values for one in row.warnings]
        known = {
            "forked_from": row.origin,
            "collapsed": row.collapse,
            "warnings": warnings,
            "unreadable": row.unreadable,
            "error": row.error,
        }
        more = {key: value for key, value in known.items() if value}
        return {"run": row.path, "status": row.status, **reached, "changed": changed, **more}

    return "\n".join(json.dumps(of(row), allow_nan=False) for row in rows)
