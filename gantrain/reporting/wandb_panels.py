"""Charts, tables and summaries that W&B shows of a run's record; nothing here imports wandb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gantrain.reporting.charts import batch_figure, drawable, scores_figure
from gantrain.reporting.event_words import TOLD, what_happened
from gantrain.run_folder import record
from gantrain.run_folder.layout import METRICS_FILE
from gantrain.run_folder.record import Record
from gantrain.score_names import best_value

LONG_RECORD = 32 * 2**20  # bytes: from there on W&B's charts of batch and noise are its own alone
Rows = tuple[list[str], list[list[Any]]]  # of a table of W&B: columns, rows


def told_by(run_dir: Path) -> Record:
    """A run's record; of a long one without the lines of losses, which would take seconds of the interpreter at every evaluation."""
    long = (run_dir / METRICS_FILE).stat().st_size > LONG_RECORD
    return record.outline(run_dir) if long else record.read(run_dir)


def overview(told: Record) -> tuple[dict[str, Any], dict[str, Rows], dict[str, Any]]:
    """(figures, tables, summary) of a record, by W&B's keys."""
    few = without_training(told)
    figures = {f"overview/{metric}": scores_figure(few, metric) for metric in few.metrics}
    if len(told.training) > 1:  # an outline has the last one
        figures["overview/batch"] = batch_figure(told)
    return figures, {"events": events_table(few)}, best_scores(few)


def without_training(told: Record) -> Record:
    """The same without what most of its lines are."""
    return Record(
        told.run, told.config, [line for line in told.lines if "loss/d" not in line], told.abandoned, told.unreadable, told.running
    )


def events_table(told: Record) -> Rows:
    """What happened, and when: all but checkpoints and the like."""
    rows = [[line["nimg"] / 1000, line["event"], words] for line in told.events(*TOLD) if (words := what_happened(line))]
    return ["kimg", "event", "what"], rows


def scores_table(told: Record) -> Rows:
    """The last scores: a row an average, a column a metric, and which metrics it is the best by."""
    if not told.evaluations:
        return [], []
    last = told.evaluations[-1].scores
    metrics = [metric for metric in told.metrics if any(metric in row for row in last.values())]
    best = {metric: best_value(metric, [row.get(metric) for row in last.values()]) for metric in metrics}
    rows = [
        [name, *(drawable(row.get(m)) for m in metrics), ", ".join(m for m in metrics if best[m] is not None and row.get(m) == best[m])]
        for name, row in last.items()
    ]
    return ["average", *metrics, "best by"], rows


def best_scores(told: Record) -> dict[str, Any]:
    """Of every metric the best value of the whole run, whose it is, and when that was."""
    found = {metric: told.best(metric) for metric in told.metrics}
    return {
        f"best/{metric}{end}": value
        for metric, best in found.items() if best is not None
        for end, value in zip(("", "_average", "_kimg"), (best[0], best[1], best[2] / 1000))
    }  # fmt: skip
