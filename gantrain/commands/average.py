"""`gantrain average`: rebuild averages from a run's snapshots, either one to store or a sweep over lengths."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from gantrain.atomic_file import open_draft
from gantrain.averaging.average import write_buffers, write_weights
from gantrain.averaging.bank import split
from gantrain.averaging.batchnorm import write_statistics
from gantrain.averaging.posthoc import LARGEST_ERROR
from gantrain.averaging.power import WIDEST
from gantrain.commands.arguments import overrides_of, parse_sweep, say
from gantrain.distributed import finish
from gantrain.errors import UserError
from gantrain.evaluation.of_runs import RunScorer
from gantrain.metrics import SPREADS
from gantrain.palette import COLOURS
from gantrain.reporting.score_table import table
from gantrain.run_folder.contents import default_name, look_again
from gantrain.run_folder.layout import narrow_variant
from gantrain.run_folder.result_file import target_of, write_new
from gantrain.run_folder.snapshots import Rebuilt, Snapshots, require_name, store
from gantrain.score_names import Scores, better_when_higher
from gantrain.spectral_norm import refresh_spectral_norms

EXAMPLE = "0.02:0.25:8"  # of --sweep, for error messages


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.sweep is None:
        for option, given in (
            ("--num", arguments.num),
            ("--reference", arguments.reference),
            (" ".join(arguments.overrides), arguments.overrides),
        ):
            if given:
                raise UserError(f"{option}: only applies to --sweep; --sigma-rel stores an average without scoring it; remove it")
        print(average_run(arguments.run, arguments.sigma_rel, arguments.at_kimg, arguments.name, print))
        return
    if arguments.name is not None:
        raise UserError(f"--name: {arguments.name!r} only applies to --sigma-rel; the best of a sweep is named after its length; remove it")
    lengths = parse_sweep(arguments.sweep, WIDEST, EXAMPLE)
    report, accelerator = sweep_run(arguments.run, lengths, arguments.at_kimg, arguments.num, overrides_of(arguments), say)
    if accelerator.is_main_process:
        print(report)
    finish(accelerator)


def average_run(run: str | Path, sigma_rel: float, at_kimg: float | None, name: str | None, say: Callable[[str], None]) -> str:
    """Rebuild one average and store it; returns a line with its error and how to use it."""

    def rebuild() -> tuple[Snapshots, Rebuilt]:
        snapshots = Snapshots(run, at_kimg, say)
        if name is not None:
            require_name(name, list(snapshots.config.averagers))
        return snapshots, snapshots.rebuild(sigma_rel)

    snapshots, rebuilt = look_again(rebuild)
    name = default_name(sigma_rel, snapshots.nimg) if name is None else name
    store(rebuilt, Path(run), name)
    return (
        f"{name}: sigma_rel {sigma_rel:g} at {rebuilt.nimg / 1000:g} kimg from {snapshots.name};"
        f" relative profile error {rebuilt.error:.2%}, rounding of the snapshots at most {rebuilt.rounding:.2%} of a weight\n"
        f"draw and score it: gantrain sample {run} --average {name}; gantrain evaluate {run} --average live,{name}"
    )


def sweep_run(
    run: str | Path,
    lengths: Sequence[float],
    at_kimg: float | None,
    num_samples: int | None,
    overrides: Sequence[str],
    say: Callable[[str], None],
) -> tuple[str, Accelerator]:
    """Score averages of several lengths, keep the best, and draw scores against length.

    Returns:
        The result as text, and the Accelerator that was used.

    Raises:
        UserError: see `Snapshots`; or none of the lengths can be rebuilt from the snapshots.
    """
    scorer = RunScorer(run, num_samples, None, overrides)
    snapshots = look_again(lambda: Snapshots(run, at_kimg, say))
    given = [s for s in lengths if snapshots.error(s) <= LARGEST_ERROR]
    left_out = [s for s in lengths if s not in given]
    if not given:
        snapshots.require(lengths[0], "--sweep")
    target = target_of(None, Path(run) / "evaluations", f"sweep-{snapshots.nimg:012d}")
    scorer.prepare()
    accelerator, main = scorer.accelerator, scorer.accelerator.is_main_process
    snapshots.show_progress = main
    for s in left_out if main else ():
        say(f"sigma_rel {s:g} is left out: the profile would be off by {snapshots.error(s):.0%} (limit {LARGEST_ERROR:.0%})")
    scores, rebuilt = score_lengths(scorer, snapshots, given, say if main else lambda text: None)
    if not main:
        return "", accelerator
    metric, best = choose_length(scores, given, f"{run} at {snapshots.nimg / 1000:g} kimg")
    name = default_name(best, snapshots.nimg)
    record: dict[str, Any] = {
        "nimg": snapshots.nimg, "sigma_rel": given, "scores": scores, "profile_error": {f"{s:g}": snapshots.error(s) for s in given},
        "best": best, "by": metric, **scorer.evaluator.protocol(),
    }  # fmt: skip
    target = write_new(target, record)
    picture, samples = target.with_suffix(".png"), scorer.config.eval.num_samples
    title = f"{Path(run).name} at {snapshots.nimg / 1000:g} kimg, {samples} samples"
    draw_sweep(given, scores, metric, best, title, picture)
    draw_sweep(given, scores, metric, best, textwrap.fill(title, 40), narrow_variant(picture), columns=1)
    store(rebuilt.get(f"{best:g}") or snapshots.rebuild(best), Path(run), name)  # last: the scores stay if its name is taken
    return (
        f"\n{run} at {snapshots.nimg / 1000:g} kimg, {samples} samples per length,"
        f" BatchNorm {scorer.config.eval.batchnorm}; also in {target}, drawn in {picture}\n"
        f"{table(scores, 'sigma_rel', scorer.evaluator.remarks.notes)}\n"
        f"best {metric}: sigma_rel {best:g}, stored as {name}: gantrain sample {run} --average {name}"
    ), accelerator


def score_lengths(
    scorer: RunScorer, snapshots: Snapshots, given: Sequence[float], say: Callable[[str], None]
) -> tuple[Scores, dict[str, Rebuilt]]:
    """Score an average of every length. Every process must call it.

    Args:
        given: the lengths, sigma_rel.
        say: receives a line per length.

    Returns:
        The scores by length, on the main process only; and the rebuilt averages by length, if together they fit into 1 GiB.
    """
    fits = len(given) * count_bytes(scorer.generator) < 2**30
    rebuilt = {f"{s:g}": snapshots.rebuild(s) for s in given} if fits else {}

    def materialize(name: str, into: nn.Module, averaged_statistics: bool) -> None:
        """Write the average of a length into a network."""
        one = rebuilt.get(name) or snapshots.rebuild(float(name))
        weights, statistics = split(one.tensors, into)
        write_weights(weights, into)
        write_buffers(one.buffers.items(), into)
        refresh_spectral_norms(into)
        if averaged_statistics:
            write_statistics(statistics, into)

    scorer.evaluator.remarks.require_room(scorer.counted_by)
    scores: Scores = {}
    for s in given:
        scores |= scorer.evaluator.score([f"{s:g}"], materialize, scorer.generator)
        found = [f"{m} {v:.4f}" for m, v in scores.get(f"{s:g}", {}).items() if not m.endswith(SPREADS)]
        say(f"sigma_rel {s:g}: profile error {snapshots.error(s):.2%}, {', '.join(found)}")
    return scores, rebuilt


def choose_length(scores: Scores, given: Sequence[float], where: str) -> tuple[str, float]:
    """Choose (the metric to rank by, the best length by that metric).

    Raises:
        UserError: no length has a finite score.
    """
    metric = next(m for m in scores[f"{given[0]:g}"] if better_when_higher(m) is not None)
    finite = [s for s in given if np.isfinite(scores[f"{s:g}"][metric])]
    if not finite:
        raise UserError(f"--sweep: no average of {where} has finite scores; choose other lengths, or another --at-kimg")
    return metric, (max if better_when_higher(metric) else min)(finite, key=lambda s: scores[f"{s:g}"][metric])


def count_bytes(network: nn.Module) -> int:
    """Size of a network's parameters in bytes, in fp32."""
    return 4 * sum(p.numel() for p in network.parameters())


def draw_sweep(
    lengths: Sequence[float], scores: Scores, metric: str, best: float, title: str, path: Path, columns: int = 3
) -> None:  # fmt: skip
    """Draw every metric against the length of the average, in at most `columns` columns, and mark the best length by `metric`."""
    from matplotlib.figure import Figure  # imported only here, since nothing else needs it

    metrics = [m for m in scores[f"{lengths[0]:g}"] if not m.endswith(SPREADS)]
    columns = min(columns, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.5), layout="constrained", dpi=150)
    for i, m in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, i + 1)
        values = [scores[f"{s:g}"][m] for s in lengths]
        axes.plot(lengths, values, marker="o", color=COLOURS[0], linewidth=1.8, markersize=5)
        axes.axvline(best, color=COLOURS[1], linewidth=1, linestyle="--", zorder=0)
        if m == metric:
            axes.plot(
                [best], [scores[f"{best:g}"][m]], marker="o", color=COLOURS[1], markersize=8, label=f"best: {best:g}", linestyle="none"
            )
            axes.legend(frameon=False)
        higher = better_when_higher(m)
        axes.set_title(m + {True: " (higher is better)", False: " (lower is better)", None: ""}[higher], fontsize=11)
        axes.set_xlabel("sigma_rel (length, fraction of the run)", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    with open_draft(path) as draft:
        figure.savefig(draft)
