"""Scores as text: a table of averages and metrics."""

from __future__ import annotations

from gantrain.metrics import SPREADS, SUFFIX
from gantrain.score_names import Scores, best_value


def shown(row: dict[str, float]) -> list[str]:
    """Names of a row that are scores and not their spreads."""
    return [name for name in row if not name.endswith(SPREADS)]


def table(scores: Scores, title: str = "average") -> str:
    """Scores as text, a row (an average under its name) each, the best of each column marked with a star unless all are equal.

    Where there are 95% intervals a score stands with its half-width, as 0.3541 ±0.0120.
    """
    metrics = list(dict.fromkeys(m for row in scores.values() for m in shown(row)))
    best = {m: best_value(m, [row.get(m) for row in scores.values()]) for m in metrics}
    columns = [[cell(row, m, best[m]) for row in scores.values()] for m in metrics]
    # The last digit stands under the last letter; the star and what follows it stick out.
    widths = [max([len(m), 9, *(len(number) for number, _ in column)]) for m, column in zip(metrics, columns)]
    tails = [max([1, *(len(tail) for _, tail in column)]) for column in columns]
    width = max([len(title), *(len(name) for name in scores)])
    lines = ["  ".join([title.ljust(width), *(m.rjust(w) + " " * t for m, w, t in zip(metrics, widths, tails))])]
    for i, name in enumerate(scores):
        cells = [column[i][0].rjust(w) + column[i][1].ljust(t) for column, w, t in zip(columns, widths, tails)]
        lines.append("  ".join([name.ljust(width), *cells]))
    return "\n".join(line.rstrip() for line in lines)


def cell(row: dict[str, float], metric: str, best: float | None) -> tuple[str, str]:
    """(the score, what stands behind it): a star where it is the best, and half of its interval where that is known."""
    value, half = row.get(metric, float("nan")), row.get(metric + SUFFIX)
    return f"{value:.4f}", ("*" if value == best else " ") + ("" if half is None else f"±{half:.4f}")


def policy_tables(by_policy: dict[str, Scores]) -> str:
    """A table a metric: an average a row, a BatchNorm policy a column, the best of all marked with a star."""
    averages = list(next(iter(by_policy.values())))
    metrics = shown(next(iter(next(iter(by_policy.values())).values())))
    width = max(len(name) for name in [*averages, *metrics])
    columns = [max(len(policy), 9) + 1 for policy in by_policy]
    blocks = []
    for metric in metrics:
        best = best_value(metric, [scores[name][metric] for scores in by_policy.values() for name in averages])
        lines = ["  ".join([metric.ljust(width), *(policy.rjust(c - 1) + " " for policy, c in zip(by_policy, columns))])]
        for name in averages:
            cells = [
                f"{scores[name][metric]:{c - 1}.4f}" + ("*" if scores[name][metric] == best else " ")
                for scores, c in zip(by_policy.values(), columns)
            ]
            lines.append("  ".join([name.ljust(width), *cells]))
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)
