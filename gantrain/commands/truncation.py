"""`gantrain truncation`: score against the truncation of z, which trades diversity for fidelity (Brock et al. 2019, section 3.1)."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gantrain.atomic_file import open_draft
from gantrain.commands.arguments import averages_of_choice, listed_names, overrides_of, parse_sweep, say
from gantrain.config.config import Config, scores_of
from gantrain.distributed import finish, on_main
from gantrain.errors import UserError
from gantrain.evaluation.of_runs import RunScorer
from gantrain.metrics import SPREADS
from gantrain.palette import Style, style_of
from gantrain.reporting.score_table import in_lines, table
from gantrain.run_folder.contents import require_average
from gantrain.run_folder.layout import narrow_variant
from gantrain.run_folder.result_file import target_of, write_new
from gantrain.score_names import Scores, better_when_higher

EXAMPLE = "0.2:2:10"  # of --sweep, for error messages
CURVES = (("is", "fid"), ("recall", "precision"))  # (x, y) of the two plots
F1 = "f1"  # of precision and recall
SIGNS = {"fid": "v", "is": "^", "precision": "^", "recall": ">", F1: "*"}  # markers of the best truncations


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    truncations = parse_sweep(arguments.sweep, float("inf"), EXAMPLE)
    names = listed_names(arguments.average, "--average", "live,ema")
    names, kimg = averages_of_choice(arguments.run, names, arguments.kimg)
    report, accelerator = truncation_run(arguments.run, truncations, names, arguments.num, kimg, overrides_of(arguments), say)
    if accelerator.is_main_process:
        print(report)
    finish(accelerator)


@dataclass(frozen=True)
class Point:
    """The best truncation by a score, and that score."""

    truncation: float
    value: float


def truncation_run(
    run: str | Path, truncations: Sequence[float], averages: Sequence[str] = ("ema",), num_samples: int | None = None,
    kimg: float | None = None, overrides: Sequence[str] = (), say: Callable[[str], None] = lambda line: None,
) -> tuple[str, Accelerator]:  # fmt: skip
    """Score averages at several truncations, with BatchNorm by the run's policy at each, and draw the curves.

    Returns:
        The result as text, and the Accelerator that was used.

    Raises:
        UserError: see `RunScorer`; or there is no such average, or no pair of metrics for a curve.
    """
    for override in overrides:
        if override.startswith("eval.truncation="):
            raise UserError(f"{override}: --sweep sets the truncations; remove it")
    scorer = RunScorer(run, num_samples, kimg, overrides)
    for name in averages:
        require_average(scorer.config, scorer.path, name, kimg)
    scorer.require_finite(averages)
    curves = find_curves(scorer.config)
    target = target_of(None, scorer.run / "evaluations", f"truncation-{scorer.path.name}")
    scorer.prepare()
    accelerator, evaluator = scorer.accelerator, scorer.evaluator
    scores: dict[str, Scores] = {name: {} for name in dict.fromkeys(averages)}  # average -> truncation -> metric -> value
    for t in truncations:
        evaluator.config = replace(scorer.config, eval=replace(scorer.config.eval, truncation=t))
        for name, row in scorer.score(list(scores)).items():
            scores[name][f"{t:g}"] = row
            if accelerator.is_main_process:
                say(
                    f"{name} at truncation {t:g}: "
                    + ", ".join(f"{metric} {value:.4f}" for metric, value in row.items() if not metric.endswith(SPREADS))
                )
    return on_main(accelerator, lambda: keep_scores(scorer, scores, curves, target)) or "", accelerator


def find_curves(config: Config) -> list[tuple[str, str]]:
    """Find the pairs of scores that an evaluation of a run gives, by their full names.

    Raises:
        UserError: there is no such pair.
    """
    prefix, there = config.eval.features.metric_prefix, scores_of(config)
    found = [(prefix + x, prefix + y) for x, y in CURVES if prefix + x in there and prefix + y in there]
    if not found:
        raise UserError(
            f"eval.metrics: a curve needs fid and is, or prc, got {', '.join(config.eval.metrics)}; add 'eval.metrics=[fid,is,prc]'"
        )
    return found


def keep_scores(scorer: RunScorer, scores: dict[str, Scores], curves: list[tuple[str, str]], target: Path) -> str:
    """Write the scores and the picture into the run folder; returns the result as text."""
    nimg, config = int(scorer.path.name), scorer.config
    best = {name: best_of(rows, curves) for name, rows in scores.items()}
    truncations = [float(t) for t in next(iter(scores.values()))]
    record: dict[str, Any] = {"nimg": nimg, **scorer.evaluator.protocol(), "eval/truncation": truncations, "scores": scores}
    record["best"] = {name: {score: vars(point) for score, point in points.items()} for name, points in best.items()}
    target = write_new(target, record)
    picture = target.with_suffix(".png")
    title = f"{scorer.run.name} at {nimg / 1000:g} kimg, {config.eval.num_samples} samples per truncation"
    styles = style_of(config.averagers, scores)
    draw_curves(scores, best, curves, styles, title, picture)
    draw_curves(scores, best, curves, styles, title, narrow_variant(picture), narrow=True)
    head = (
        f"\n{scorer.run} at {nimg / 1000:g} kimg, {config.eval.num_samples} samples per truncation,"
        f" BatchNorm {config.eval.batchnorm}{scorer.evaluator.remarks.mixture}; also in {target}, drawn in {picture}"
    )
    blocks = []
    for name, rows in scores.items():
        words = ", ".join(f"{score} {point.value:.4f} at {point.truncation:g}" for score, point in best[name].items())
        blocks.append(f"{table(rows, 'truncation')}\nbest of {name}: {words or 'none (no finite scores)'}")
    return "\n".join([head, *blocks]) + in_lines(scorer.evaluator.remarks.notes)


def best_of(rows: Scores, curves: list[tuple[str, str]]) -> dict[str, Point]:
    """The best truncation by each score of the curves, and by the F1 of precision and recall, among finite scores."""
    found: dict[str, Point] = {}
    for x, y in curves:
        for score in (y, x, *([F1] if short(y) == "precision" else [])):
            values = {float(t): f1(row[y], row[x]) if score == F1 else row[score] for t, row in rows.items()}
            finite = {t: value for t, value in values.items() if math.isfinite(value)}
            if finite:
                t = (min if better_when_higher(score) is False else max)(finite, key=finite.__getitem__)
                found[score] = Point(t, finite[t])
    return found


def short(score: str) -> str:
    """A score's name without its extractor's prefix."""
    return score.rpartition("_")[2]


def f1(precision: float, recall: float) -> float:
    """The harmonic mean of precision and recall; 0 if both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def draw_curves(
    scores: dict[str, Scores],
    best: dict[str, dict[str, Point]],
    curves: list[tuple[str, str]],
    styles: Mapping[str, Style],
    title: str,
    path: Path,
    narrow: bool = False,
) -> None:
    """Draw the pairs of scores against each other: a line per average, truncations as labels, and the best ones marked.

    Args:
        scores: average -> truncation -> metric -> value.
        best: average -> score -> its best point.
        curves: (x, y) of each plot.
        styles: of every average.
        title: above the picture.
        path: of the picture.
        narrow: whether the plots are below each other, for phones, instead of side by side.
    """
    from matplotlib.figure import Figure  # not needed, and not loaded, by anything else

    down, across = (len(curves), 1) if narrow else (1, len(curves))
    size = (4.0, 4.4 * down) if narrow else (6.2 * across, 5.2)
    figure = Figure(figsize=size, layout="constrained", dpi=200 if narrow else 150)
    for i, (x, y) in enumerate(curves):
        axes = figure.add_subplot(down, across, i + 1)
        for name, rows in scores.items():
            style = styles[name]
            axes.plot(
                [row[x] for row in rows.values()], [row[y] for row in rows.values()],
                color=style.colour, linestyle=style.linestyle, linewidth=1.5, marker=style.marker, markersize=4,
            )  # fmt: skip
            for t, row in rows.items():
                if math.isfinite(row[x]) and math.isfinite(row[y]):
                    # On the side away from the curve: higher fidelity costs FID and recall.
                    aside = {"xytext": (-5, 5), "ha": "right"} if short(y) == "fid" else {"xytext": (5, 5), "ha": "left"}
                    axes.annotate(t, (row[x], row[y]), textcoords="offset points", fontsize=7, color=style.colour, **aside)
            for score, point in best[name].items():
                if score in (x, y) or (score == F1 and short(y) == "precision"):
                    row = rows[f"{point.truncation:g}"]
                    label = f"{name + ': ' if len(scores) > 1 else ''}best {score} {point.value:.4g} at {point.truncation:g}"
                    axes.plot(
                        [row[x]], [row[y]], linestyle="none", marker=SIGNS[short(score)], markersize=11,
                        color=style.colour, markeredgecolor="black", label=label, zorder=3,
                    )  # fmt: skip
        axes.set_xlabel(x + (" (higher is better)" if better_when_higher(x) else ""))
        axes.set_ylabel(y + (" (higher is better)" if better_when_higher(y) else " (lower is better)"))
        axes.margins(0.12)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(textwrap.fill(title, 40) if narrow else title, fontsize=11)
    with open_draft(path) as draft:
        figure.savefig(draft)
