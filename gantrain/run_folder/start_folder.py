"""Relative paths in a run's configuration: they start at the folder in which training started, and a command may run in another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gantrain.config.config import Config
from gantrain.data import Archive, Folder, Packed
from gantrain.errors import UserError
from gantrain.home import expand_user
from gantrain.run_folder.contents import configuration_of
from gantrain.shipped import find_config


def require_images_of(run: Path, config: Config, overrides: Sequence[str] | None, reads_data: bool = False) -> None:
    """Refuse a run whose images are at a relative path that leads nowhere from here; an absolute path says enough itself.

    Args:
        run: the run folder.
        config: its configuration, with the overrides.
        overrides: of the command line; None if the command takes none. Paths in them are the user's, and start here.
        reads_data: whether the data is read although `eval.reference` is set.

    Raises:
        UserError: names the path and, if it is found, the folder in which to run the command.
    """
    data: Any = config.data
    root = data.root if isinstance(data, (Archive, Folder, Packed)) else ""
    key, text = ("data.root", root) if reads_data or config.eval.reference is None else ("eval.reference", config.eval.reference)
    asked = any(one.partition("=")[0].strip() in (key, key.partition(".")[0]) for one in overrides or ())
    path = expand_user(text, key)
    if not text or asked or path.is_absolute() or find_config(path).exists():
        return
    start = find_start(run)
    there = str(start) if start and (start / path).exists() else "the folder in which training started"
    raise UserError(
        f"{run}: its {key} is {text!r}, which does not exist in {os.getcwd()}; run this command in {there}"
        + ("" if overrides is None else f", or add {key}=PATH")
    )


def find_start(run: Path) -> Path | None:
    """The folder in which a run's training started, if its relative run_dir leads from there to the run; None if it has moved."""
    parts = Path(configuration_of(run).run_dir).parts
    here = run.resolve()
    return here.parents[len(parts) - 1] if parts and here.parts[-len(parts) :] == parts else None
