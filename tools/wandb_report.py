"""Lay out a saved view of a W&B project for gantrain's runs, and a report with the same panels.

    python tools/wandb_report.py me/gantrain                                              # names from the project's runs
    python tools/wandb_report.py me/gantrain 1mbku38n --config configs/digits.yaml --report
    python tools/wandb_report.py me/gantrain --config configs/digits.yaml --dry-run view.json

Panels in sections: the scores of all averages in one chart a metric, batch and noise scale, losses, samples, events; all over
kimg. A run opens with useful panels without it; the view has them in order. Needs `pip install 'gantrain[workspace]'`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import torch

from gantrain.averaging import LIVE
from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.config.plugins import find
from gantrain.errors import UserError, one_line
from gantrain.metrics import METRICS, FeatureSet
from gantrain.score_names import better_when_higher

KIMG = "kimg"


@dataclass(frozen=True)
class Names:
    """What runs have scored: names of averages, live first, and of metrics."""

    averages: list[str]
    metrics: list[str]


def names_of_config(config: Config) -> Names:
    """What a run of this configuration will score; each metric is asked for its names by two features of noise."""
    noise = torch.Generator().manual_seed(0)
    probe = FeatureSet(torch.randn(64, 8, generator=noise), torch.randn(64, 10, generator=noise))
    found = [name for metric in config.eval.metrics for name in find("metric", METRICS, metric)().compute(probe, probe)]
    metrics = [config.eval.features.metric_prefix + name for name in found if better_when_higher(name) is not None]
    return Names([LIVE, *config.averagers], metrics)


def names_of_keys(keys: Iterable[str]) -> Names:
    """What the keys of runs' summaries, eval/AVERAGE/METRIC among them, say was scored."""
    scored = [key.removeprefix("eval/").rpartition("/") for key in keys if key.startswith("eval/") and better_when_higher(key) is not None]
    averages = dict.fromkeys(average for average, slash, _ in scored if slash)
    return Names(sorted(averages, key=lambda name: name != LIVE), list(dict.fromkeys(metric for _, slash, metric in scored if slash)))


def names_of_runs(project: str, runs: list[str]) -> Names:
    """The same of runs of a project, by their ids; of all of them where none is named.

    Raises:
        UserError: W&B cannot be asked, or the runs have no scores.
    """
    import wandb

    try:
        api = wandb.Api()
        found = [api.run(f"{project}/{run}") for run in runs] if runs else list(api.runs(project, per_page=50)[:50])
        names = names_of_keys(key for run in found for key in run.summary.keys())  # noqa: SIM118 - W&B's own class, not a dict
    except Exception as error:
        raise UserError(
            f"{project}: W&B cannot be asked for its runs ({one_line(error)[:160]}); give --config CONFIG.yaml, or run `wandb login`"
        ) from error
    if not names.metrics:
        raise UserError(f"{project}: its runs have no scores yet; give --config CONFIG.yaml")
    return names


# ---- layout --------------------------------------------------------------------------------------------------------------


def sections(names: Names) -> dict[str, list[Any]]:
    """Panels by section."""
    import wandb_workspaces.reports.v2 as wr

    line = lambda title, keys, **more: wr.LinePlot(title=title, x=KIMG, y=keys, title_x=KIMG, **more)  # noqa: E731
    media = lambda title, keys: wr.MediaBrowser(title=title, media_keys=keys, num_columns=len(keys))  # noqa: E731
    scores = [line(metric, [f"eval/{name}/{metric}" for name in names.averages], log_y=metric.endswith("fid")) for metric in names.metrics]
    noise = [f"noise_scale/{player}/b_simple{end}" for player in "DG" for end in ("", "_low", "_high")]
    return {
        "Overview": [media(metric, [f"overview/{metric}"]) for metric in names.metrics]
        + [media("batch and noise scale", ["overview/batch"])],
        "Scores": scores,
        "Batch and noise": [
            line("batch and noise scale of both players", ["batch/size", "noise_scale/D/b_simple", "noise_scale/G/b_simple"], log_y=True),
            line("noise scale with its intervals", noise, log_y=True),
            line("rounds", ["batch/rounds"]),
            line("learning rates", ["lr/g", "lr/d"]),
        ],
        "Losses": [
            line("losses", ["loss/d", "loss/g", "loss/penalty", "loss/penalty_g"]),
            line("logits", ["logits/real", "logits/fake"]),
            line("gradient norms", ["grad_norm/d", "grad_norm/g"], log_y=True),
        ],
        "Samples": [media("live and every average, the same z", ["samples"]), media("class by class", ["samples/classes"])],
        "Events": [
            line("swaps, growths, rollbacks", ["mark/swap", "mark/growth", "mark/rollback"]),
            wr.WeavePanelSummaryTable(table_name="events"),
            wr.WeavePanelSummaryTable(table_name="final/scores"),
        ],
    }


def workspace(project: str, runs: list[str], names: Names, title: str) -> Any:
    """The saved view, not saved yet."""
    import wandb_workspaces.workspaces as ws

    entity, _, project = project.partition("/")
    return ws.Workspace(
        entity=entity, project=project, name=title,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True, panel_settings=ws.SectionPanelSettings(x_axis=KIMG))
            for name, panels in sections(names).items()
        ],
        settings=ws.WorkspaceSettings(x_axis=KIMG),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("ID").isin(runs)) if runs else [],
            pinned_columns=[f"summary:best/{metric}" for metric in names.metrics],
        ),
    )  # fmt: skip


def report(project: str, runs: list[str], names: Names, title: str) -> Any:
    """The report, not saved yet: a heading and a grid of panels a section."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    entity, _, project = project.partition("/")
    runset = lambda: wr.Runset(filters=expr.And(expr.Metric("ID").isin(runs)) if runs else [])  # noqa: E731 - of the report's project
    blocks = [block for name, panels in sections(names).items() for block in (wr.H2(name), wr.PanelGrid(runsets=[runset()], panels=panels))]
    return wr.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


def project_name(text: str) -> str:
    """ENTITY/PROJECT, for argparse."""
    entity, _, project = text.partition("/")
    if not (entity and project) or "/" in project:
        raise argparse.ArgumentTypeError(f"must be ENTITY/PROJECT, got {text!r}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=project_name, metavar="ENTITY/PROJECT")
    parser.add_argument("runs", nargs="*", metavar="RUN_ID", help="only these runs (default: all of the project)")
    parser.add_argument(
        "--config", type=Path, metavar="CONFIG.yaml", help="take the names of averages and metrics from here and not from the runs"
    )
    parser.add_argument("--title", default="gantrain", help="of the view and the report (default: gantrain)")
    parser.add_argument("--report", action="store_true", help="also a report")
    parser.add_argument(
        "--dry-run",
        type=command.writable,
        metavar="FILE.json",
        help="write what would be saved there; no network is used where --config is given",
    )
    arguments = parser.parse_args()
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise UserError("wandb-workspaces is not installed; run pip install 'gantrain[workspace]'") from None
    names = names_of_config(load(arguments.config)) if arguments.config else names_of_runs(arguments.project, arguments.runs)
    laid_out = {"workspace": workspace(arguments.project, arguments.runs, names, arguments.title)}
    if arguments.report:
        laid_out["report"] = report(arguments.project, arguments.runs, names, arguments.title)
    if arguments.dry_run:
        specs = {kind: one._to_model().model_dump(by_alias=True, exclude_none=True, mode="json") for kind, one in laid_out.items()}
        arguments.dry_run.write_text(json.dumps(specs, indent=1) + "\n")
        print(f"{' and '.join(laid_out)} written to {arguments.dry_run}; nothing was saved")
        return
    for kind, one in laid_out.items():
        try:
            print(f"{kind}: {one.save().url}")
        except Exception as error:
            raise UserError(
                f"{arguments.project}: the {kind} cannot be saved ({one_line(error)[:160]});"
                f" run `wandb login`, or see it with --dry-run FILE.json"
            ) from error


if __name__ == "__main__":
    command.run(main)
