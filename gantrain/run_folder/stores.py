"""All folders of checkpoints in a run folder, and what holds for them together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gantrain.run_folder.layout import AVERAGES_FOLDER, BEST_FOLDER, SCORING_FOLDER
from gantrain.run_folder.manifest import Misnamed, is_missing, require_formats, unlistable
from gantrain.run_folder.replacing import settle

CHECKPOINTS_FOLDER = "checkpoints"


def folders_of(run: Path) -> Iterator[Path]:
    """The folders of a run that may contain checkpoints: those it resumes from, snapshots and rebuilt averages, the best, and the scored.

    Raises:
        Unreadable: the folder of the best ones cannot be listed.
    """
    yield run / CHECKPOINTS_FOLDER
    yield run / AVERAGES_FOLDER
    yield run / SCORING_FOLDER
    yield from best_folders(run)


def best_folders(run: Path) -> list[Path]:
    """The folders of a run's best checkpoints, one for each score.

    Raises:
        Unreadable: they cannot be listed.
    """
    folder = run / BEST_FOLDER
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        if is_missing(error):
            return []
        raise unlistable(folder, error) from error


def settle_run(run: Path) -> None:
    """Complete what a kill has interrupted in a run folder. The caller holds its lock.

    Raises:
        OtherFormat, Unreadable: a folder cannot be examined, or not be renamed.
    """
    for folder in folders_of(run):
        settle(folder)


def require_known_formats(run: Path) -> None:
    """Refuse a run folder in which anything is of another format than this version writes, even if other checkpoints can be read.

    Raises:
        OtherFormat, Unreadable: as in `require_formats`.
    """
    for folder in folders_of(run):
        with contextlib.suppress(Misnamed):  # who reads it says so
            require_formats(folder)


def require_names_too(run: Path) -> None:
    """The same for training, which deletes and replaces checkpoints by their names: each must have that of its own moment.

    Raises:
        OtherFormat, Misnamed, Unreadable: as in `require_formats`.
    """
    require_known_formats(run)
    for folder in folders_of(run):
        require_formats(folder)
