"""The views that a run is configured to have."""

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
    """Refuse a view whose package is missing, before the run starts. W&B is a dependency; if it fails, that only costs a line.

    Raises:
        UserError: tracking.tensorboard is set, but tensorboard is not installed.
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
    except ValueError:  # it is in sys.modules without a spec
        return False


def open_views(
    settings: Tracking, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None], group: str | None = None
) -> list[View]:  # fmt: skip
    """Open or continue the views of a run: W&B unless disabled, TensorBoard if enabled.

    Call it on the main process only, after the start event has been written to metrics.jsonl.

    Args:
        settings: the `tracking` section.
        run_id: of the run, for W&B.
        config: configuration and machine, for W&B.
        run_dir: the run folder.
        say: prints a line.
        group: of the run in W&B, if the settings do not name one.
    """
    views: list[View] = []
    if "disabled" not in (settings.wandb.mode, os.environ.get("WANDB_MODE")):
        from gantrain.reporting import wandb_run  # imports plotly and wandb, so only if it is used

        views.append(wandb_run.open_view(settings.wandb, run_id, config, run_dir, say, group))
    if settings.tensorboard:
        try:
            from gantrain.reporting import tensorboard_run

            views.append(tensorboard_run.open_view(run_dir, say))
        except Exception as error:  # installed, but not importable, for example because of the wrong protobuf
            say(f"tensorboard: not available ({one_line(error)[:160]}); metrics.jsonl is complete")
    return views
