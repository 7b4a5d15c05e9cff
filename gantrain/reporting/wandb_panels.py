"""Charts, tables and summaries of a run's record for W&B; nothing here imports wandb."""

from __future__ import annotations

from typing import Any

from gantrain.reporting.charts import batch_figure, drawable, schedules_figure, schedules_in, scores_figure
from gantrain.reporting.event_words import TOLD, what_happened
from gantrain.run_folder.record import Record
from gantrain.score_names import best_value

Rows = tuple[list[str], list[list[Any]]]  # of a W&B table: columns, rows


def overview(told: Record) -> tuple[dict[str, Any], dict[str, Rows], dict[str, Any]]:
    """(figures, tables, summary) of a record, by W&B's keys."""
    few = without_training(told)
    figures = {f"overview/{metric}": scores_figure(few, metric) for metric in few.metrics}
    if len(told.numbers) > 1:
        figures["overview/batch"] = batch_figure(told)
    if len(told.numbers) > 1 and schedules_in(told):
        figures["overview/schedules"] = schedules_figure(told)
    return figures, {"events": events_table(few)}, best_scores(few)


def without_training(told: Record) -> Record:
    """A record without its training lines, which are most of it."""
    return Record(
        told.run, told.config, [line for line in told.lines if "loss/d" not in line], told.abandoned, told.unreadable, told.running
    )


def events_table(told: Record) -> Rows:
    """The events that are worth a row, with their times."""
    rows = [[line["nimg"] / 1000, line["event"], words] for line in told.events(*TOLD) if (words := what_happened(line))]
    return ["kimg", "event", "what"], rows


def scores_table(told: Record) -> Rows:
    """The last scores: a row per average, a column per metric, and the metrics by which the average is best."""
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
    """For every metric, the best value of the whole run, its average and its kimg."""
    found = {metric: told.best(metric) for metric in told.metrics}
    return {
        f"best/{metric}{end}": value
        for metric, best in found.items() if best is not None
        for end, value in zip(("", "_average", "_kimg"), (best[0], best[1], best[2] / 1000))
    }  # fmt: skip
