"""Which views a run has."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gantrain.config.sections import Tracking
from gantrain.errors import UserError, one_line
from gantrain.reporting.view import View


def require_views(settings: Tracking) -> None:
    """Refuse a view whose package is missing, before anything is begun. W&B's is a dependency, and its loss costs a line only.

    Raises:
        UserError: tracking.tensorboard without tensorboard.
    """
    if settings.tensorboard and not installed("tensorboard"):
        raise UserError(
            "tracking.tensorboard: the package tensorboard is not installed; run pip install 'gantrain[tensorboard]',"
            " or set tracking.tensorboard=false"
        )


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it stands in sys.modules without a specification
        return False


def open_views(settings: Tracking, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> list[View]:
    """The views of a run, opened or continued: W&B unless it is disabled, TensorBoard where it is asked for.

    Call it on the main process only, when metrics.jsonl is open and has its line of the start.

    Args:
        settings: the `tracking` section.
        run_id: of the run, for W&B.
        config: what W&B keeps of the configuration and the machine.
        run_dir: the run folder.
        say: receives lines for the person who watches.
    """
    views: list[View] = []
    if "disabled" not in (settings.wandb.mode, os.environ.get("WANDB_MODE")):
        from gantrain.reporting import wandb_run  # with plotly and wandb: only for runs that have it

        views.append(wandb_run.open_view(settings.wandb, run_id, config, run_dir, say))
    if settings.tensorboard:
        try:
            from gantrain.reporting import tensorboard_run

            views.append(tensorboard_run.open_view(run_dir, say))
        except Exception as error:  # installed, but it cannot be imported: another protobuf than it needs, say
            say(f"tensorboard: not available ({one_line(error)[:160]}); metrics.jsonl has everything")
    return views
