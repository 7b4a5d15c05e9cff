"""Scores as text: a table of averages and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gantrain.score_names import INTERVAL_SUFFIX, SPREADS, Scores, best_value, doubts
from gantrain.text_table import align, join_columns


def list_scores(row: dict[str, float]) -> list[str]:
    """The names of the scores in a row, without their spreads."""
    return [name for name in row if not name.endswith(SPREADS)]


def table(scores: Scores, title: str = "average", notes: Sequence[str] = ()) -> str:
    """Scores as text, a row per average. A star marks the best of each column, unless all are equal.

    A score with a 95% interval is shown with its half-width, as 0.3541 ±0.0120. Notes, a line each, and what the scores themselves
    raise doubts about follow the table.
    """
    metrics = list(dict.fromkeys(m for row in scores.values() for m in list_scores(row)))
    best = {m: best_value(m, [row.get(m) for row in scores.values()]) for m in metrics}
    columns = [[cell(row, m, best[m]) for row in scores.values()] for m in metrics]
    rows = join_columns([align([title, *scores]), *(score_column(m, column) for m, column in zip(metrics, columns))])
    return rows + in_lines([*notes, *doubts(scores)])


def in_lines(notes: Sequence[str]) -> str:
    """Notes on scores below a table, a line each; empty if there are none."""
    return "".join(f"\nnote: {note}" for note in notes)


class SaidNotes:
    """The notes on scores that a reader has seen: each is said once, and again only after an evaluation that did not have it.

    Args:
        said: notes that have been said already.
    """

    def __init__(self, said: Iterable[str] = ()):
        self._said = set(said)

    def new(self, notes: Sequence[str]) -> list[str]:
        """The notes of the next evaluation that the reader has not seen."""
        found = [note for note in notes if note not in self._said]
        self._said = set(notes)
        return found


def score_column(head: str, cells: list[tuple[str, str]]) -> list[str]:
    """A column of (score, suffix): the last digits are aligned with the last letter of the head, and suffixes follow."""
    tails = align([" ", *(tail for _, tail in cells)])
    numbers = align([head, *(number for number, _ in cells)], right=True, least=9)
    return [number + tail for number, tail in zip(numbers, tails)]


def cell(row: dict[str, float], metric: str, best: float | None) -> tuple[str, str]:
    """(the score, its suffix): a star if it is the best, and the half-width of its interval if there is one."""
    value, half = row.get(metric, float("nan")), row.get(metric + INTERVAL_SUFFIX)
    return f"{value:.4f}", ("*" if value == best else " ") + ("" if half is None else f"±{half:.4f}")


def policy_tables(by_policy: dict[str, Scores], notes: Sequence[str] = ()) -> str:
    """A table per metric, with a row per average and a column per BatchNorm policy; a star marks the best of all. Notes follow."""
    averages = list(next(iter(by_policy.values())))
    metrics = list_scores(next(iter(next(iter(by_policy.values())).values())))
    width = max(len(name) for name in [*averages, *metrics])  # the same for all tables
    blocks = []
    for metric in metrics:
        best = best_value(metric, [scores[name][metric] for scores in by_policy.values() for name in averages])
        columns = [
            score_column(policy, [(f"{scores[name][metric]:.4f}", "*" if scores[name][metric] == best else " ") for name in averages])
            for policy, scores in by_policy.items()
        ]
        blocks.append(join_columns([align([metric, *averages], least=width), *columns]))
    doubtful = [f"{words} (policy {policy})" for policy, scores in by_policy.items() for words in doubts(scores)]
    return "\n\n".join(blocks) + in_lines([*notes, *doubtful])
