"""The tables of a report: averages, BatchNorm policies and metrics, the best of each marked."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gantrain.errors import counted
from gantrain.regular_file import read_text
from gantrain.reporting.comparison import FEWEST_RUNS, LEVEL, Group, half_width
from gantrain.run_folder.json_values import restored
from gantrain.run_folder.record import Record
from gantrain.run_folder.record_lines import is_count
from gantrain.score_names import best_value, better_when_higher

LARGEST_RESULT = 2**24  # bytes of a file that `gantrain evaluate` wrote
MOST_SWAPS = 300  # rows of the table of swaps


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
        value: as in the record; None if there is none.
        half: half-width of the interval, if the value is a mean.
        best: whether it is the best of its column.
        of: what the value is a mean of, if that has to be said.
    """

    value: float | None
    half: float | None = None
    best: bool = False
    of: str = ""

    @property
    def text(self) -> str:
        """The number with four decimals, and its half-width or what it is the mean of; a dash if there is none."""
        if self.value is None:
            return "–"
        spread = f" ± {self.half:.2g}" if self.half is not None and math.isfinite(self.half) else ""
        return f"{self.value:.4f}{spread}{self.of}"


@dataclass(frozen=True)
class PageTable:
    """Rows of labels and scores.

    Attributes:
        title: shown above the table.
        heads: heads of the label columns.
        metrics: heads of the score columns.
        rows: (labels, cells).
        note: the protocol that the scores must be quoted with.
        stays: the label column that stays in view while the table scrolls.
    """

    title: str
    heads: list[str]
    metrics: list[str]
    rows: list[tuple[list[str], list[Cell]]]
    note: str = ""
    stays: int = 0


def tables(record: Record) -> list[PageTable]:
    """Tables of average, BatchNorm policy and metric: the last evaluation, then those by `gantrain evaluate`, newest first."""
    found = []
    if record.evaluations:
        last = record.evaluations[-1]
        rows = {(name, str(last.protocol.get("batchnorm", ""))): scores for name, scores in last.scores.items()}
        found.append(table_of_scores(f"Scores at {last.nimg / 1000:g} kimg", rows, last.protocol))
    for body in sorted(later_evaluations(record.run), key=lambda one: -one["nimg"]):
        found += tables_of(body, body["nimg"])
    return found


def tables_of(body: Mapping[str, Any], nimg: int) -> list[PageTable]:
    """The results of `gantrain evaluate` as a table; none if they contain no scores.

    Raises:
        TypeError, KeyError, AttributeError, ValueError: `gantrain evaluate` did not write `body`.
    """
    by_policy = body.get("scores_by_batchnorm") or {str(body.get("eval/batchnorm", "")): body["scores"]}
    rows = {(name, policy): dict(scores[name]) for name in next(iter(by_policy.values())) for policy, scores in by_policy.items()}
    protocol = {key.removeprefix("eval/"): value for key, value in body.items() if key.startswith("eval/")}
    made = table_of_scores(f"Scores at {nimg / 1000:g} kimg, by gantrain evaluate", rows, protocol)
    [cell.text for _, cells in made.rows for cell in cells]  # raises if a value is not a number
    return [made] if made.metrics else []


def later_evaluations(run: Path) -> list[dict[str, Any]]:
    """The results of `gantrain evaluate` in a run folder, without damaged files."""
    found = []
    for path in sorted((run / "evaluations").glob("*.json")):
        if re.fullmatch(r"\d{12}(-\d+)?", path.stem):
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
                body = restored(json.loads(read_text(path, LARGEST_RESULT)))
                if is_count(body["nimg"]) and tables_of(body, body["nimg"]):
                    found.append(body)
    return found


def table_of_scores(title: str, rows: Mapping[tuple[str, str], Mapping[str, float]], protocol: Mapping[str, Any]) -> PageTable:
    """A table of (average, BatchNorm policy) to scores, with the best of each column marked."""
    metrics = [m for m in dict.fromkeys(m for row in rows.values() for m in row) if better_when_higher(m) is not None]
    best = {m: best_value(m, [row.get(m) for row in rows.values()]) for m in metrics}
    body = [
        ([name, policy], [Cell(row.get(m), row.get(f"{m}_ci95"), row.get(m) is not None and row[m] == best[m]) for m in metrics])
        for (name, policy), row in rows.items()
    ]
    return PageTable(title, ["average", "BatchNorm"], metrics, body, protocol_in_words(protocol))


def protocol_in_words(protocol: Mapping[str, Any]) -> str:
    """The protocol that scores must be quoted with."""
    batches = protocol.get("batchnorm_batches")
    parts = [
        f"{protocol.get('num_samples')} generated images",
        f"reference {protocol.get('reference')}, fingerprint {protocol.get('reference_fingerprint')}",
        f"features {protocol.get('features')}", f"BatchNorm statistics of {batches}" if isinstance(batches, str) else "",
        "no truncation" if protocol.get("truncation") is None else f"truncation {protocol['truncation']:g}",
        f"labels={protocol['labels']}" if protocol.get("labels") else "",
        f"protocol {protocol['protocol']}" if protocol.get("protocol") else "",
        *(f"note: {note}" for note in protocol.get("notes") or ()),
    ]  # fmt: skip
    return "; ".join(part for part in parts if part)


def swap_table(record: Record) -> PageTable | None:
    """The live weights' scores at every swap: before, at and after it."""
    told = [line for line in record.events("swap") if line.get("live")]
    metrics = [m for m in dict.fromkeys(m for line in told for m in line["live"]) if better_when_higher(m) is not None]
    rows = [
        (
            [f"{line['swap_nimg'] / 1000:g}", f"{line.get('batch/size', '')}", f"{line['moment']} ({line['nimg'] / 1000:g})"],
            [Cell(line["live"].get(m)) for m in metrics],
        )
        for line in told[-MOST_SWAPS:]
    ]
    note = f"The last {MOST_SWAPS} of {len(told):,} rows." if len(told) > MOST_SWAPS else ""
    return PageTable("Live weights at the swaps", ["swap at kimg", "batch", "moment (kimg)"], metrics, rows, note) if rows else None


def means_table(groups: Sequence[Group], metrics: Sequence[str]) -> PageTable:
    """The last scores of each group's runs, the best mean of each column marked.

    A mean of at least `FEWEST_RUNS` runs has its interval; one of fewer has its values in brackets.
    """
    rows: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for group in groups:
        lasts = [record.evaluations[-1] for record in group.records if record.evaluations]
        for name in dict.fromkeys(name for last in lasts for name in last.scores):
            have = [last.scores[name] for last in lasts if name in last.scores]
            taken = {metric: [row[metric] for row in have if metric in row] for metric in metrics}
            rows[group.name, name, str(len(have))] = {metric: values for metric, values in taken.items() if values}
    means = {key: {metric: sum(values) / len(values) for metric, values in row.items()} for key, row in rows.items()}
    best = {m: best_value(m, [row.get(m) for row in means.values()]) for m in metrics}
    body = [
        (list(key), [mean_cell(row[m], int(key[2]), means[key][m] == best[m]) if m in row else Cell(None) for m in metrics])
        for key, row in rows.items()
    ]
    last = next((record.evaluations[-1] for group in groups for record in group.records if record.evaluations), None)
    note = f"Last evaluation of each run. {spread_in_words(rows)}{protocol_in_words(last.protocol)}" if last else ""
    return PageTable("Scores at the end", ["runs", "average", "number of runs"], list(metrics), body, note, stays=int(len(groups) == 1))


def mean_cell(values: Sequence[float], runs: int, best: bool) -> Cell:
    """The mean of some runs' scores; `runs` is the number in the row, which is said to be smaller if this score is missing in some."""
    mean = sum(values) / len(values)
    fewer = f" ({counted(len(values), 'run')})" if len(values) < runs else ""
    if len(values) >= FEWEST_RUNS:
        return Cell(mean, half_width(values), best, fewer)
    return Cell(mean, None, best, f" ({', '.join(f'{value:.3g}' for value in values)})" if len(values) > 1 else fewer)


def spread_in_words(rows: Mapping[Any, Mapping[str, Sequence[float]]]) -> str:
    """What stands behind the means of a table; empty if it has none."""
    counts = {len(values) for row in rows.values() for values in row.values()}
    parts = [f"Means with {LEVEL:.0%} intervals (Student's t over the runs)"] if max(counts, default=0) >= FEWEST_RUNS else []
    parts += [f"The mean of fewer than {FEWEST_RUNS} runs with its values in brackets, without an interval"] if 2 in counts else []
    return f"{'. '.join(parts)}. " if parts else ""
