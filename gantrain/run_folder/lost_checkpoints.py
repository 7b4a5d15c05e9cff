"""A run folder whose checkpoints are gone: whether something was lost, or there had been none yet.

A copy without `checkpoints/`, or a folder that somebody has emptied, must not begin again at 0 as if nothing had been trained. A run that
was killed before its first checkpoint was complete must. The record alone cannot always tell, because it is written before the checkpoint
is; so a run leaves a file of its own behind its first complete checkpoint. Runs of earlier versions did not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gantrain.errors import UserError
from gantrain.run_folder.checkpoint import CheckpointStore
from gantrain.run_folder.layout import BEST_FOLDER, METRICS_FILE, SUPERSEDED_FILE
from gantrain.run_folder.record_lines import goes_back, stream
from gantrain.run_folder.replacing import whole_drafts
from gantrain.run_folder.stores import CHECKPOINTS_FOLDER, best_folders

SAVED_FILE = ".saved"  # of a run folder: a checkpoint beyond 0 was complete
PROOFS = ("resume", "fork", "rollback", "end")  # events that follow a complete checkpoint


@dataclass(frozen=True)
class Past:
    """What the record of a run says about its past.

    Attributes:
        nimg: images seen at its end.
        saved: whether it shows that a checkpoint beyond 0 was complete.
    """

    nimg: int = 0
    saved: bool = False


def mark_saved(run: Path, nimg: int) -> None:
    """Note that a checkpoint at `nimg` images is complete. That it cannot be noted, such as on a full disk, is no trouble."""
    if nimg > 0:
        with contextlib.suppress(OSError):
            (run / SAVED_FILE).touch()


def begin_again(run: Path) -> str:
    """Prepare the folder of a run that begins at 0; returns a note on the record that it leaves, "" if there is none worth a word."""
    (run / SAVED_FILE).unlink(missing_ok=True)
    nimg = read_past(run).nimg
    if not nimg:
        return ""
    return (
        f"{run} has a record of {nimg / 1000:g} kimg and no checkpoint: the run begins again at 0, and the record was moved"
        f" to {SUPERSEDED_FILE}"
    )


def require_nothing_lost(run: Path) -> None:
    """Refuse to begin again in a folder without checkpoints in which a run had saved some.

    Raises:
        UserError: names the record, how far it goes, and the remedies; or the record cannot be read.
    """
    lost = describe_loss(run)
    if not lost:
        return
    best = last_best(run)
    fork = "" if best is None else f" continue from {run / BEST_FOLDER} by `gantrain fork {run} --kimg {best} --out NEW`,"
    raise UserError(f"run_dir: {lost}; restore the checkpoints from a copy,{fork} use another run_dir, or delete {run} to start over")


def no_checkpoint(run: Path) -> UserError:
    """The error for reading a run without checkpoints: it has none yet, or they are gone."""
    lost = describe_loss(run)
    if not lost:
        return UserError(f"{run}: has no checkpoint yet")
    best = last_best(run)
    also = "" if best is None else f", or pass --kimg {best} for the last one in {run / BEST_FOLDER}"
    return UserError(f"{lost}; restore the checkpoints from a copy{also}")


def describe_loss(run: Path) -> str:
    """That the checkpoints of a run without any are gone, in words; "" if it had none, or its training will put a whole draft in place.

    Raises:
        UserError: the record or a draft cannot be read.
    """
    past = read_past(run)
    if not past.nimg or not (past.saved or os.path.lexists(run / SAVED_FILE)):
        return ""
    folder = run / CHECKPOINTS_FOLDER
    if whole_drafts(folder):
        return ""
    link = f" (a link to {os.readlink(folder)}, which does not exist)" if folder.is_symlink() and not folder.exists() else ""
    return f"{run / METRICS_FILE} goes to {past.nimg / 1000:g} kimg, but there is no checkpoint in {folder}{link}"


def last_best(run: Path) -> str | None:
    """The latest checkpoint in `best/`, as --kimg takes it; None if there is none."""
    found = [int(path.name) for folder in best_folders(run) for path in CheckpointStore(folder).paths()]
    return f"{max(found) / 1000:g}" if found else None


def read_past(run: Path) -> Past:
    """What the record says; lines that cannot be read are left out.

    Raises:
        UserError: the file cannot be read.
    """
    return judge(line for line in stream(run) if line is not None)


def judge(lines: Iterable[dict[str, Any]]) -> Past:
    """What lines say, in the order of the file.

    The event `checkpoint` comes before the checkpoint. The next such event then waits for it, and reports if it could not be written: so
    the one before the last is complete once anything else follows the last.
    """
    nimg, announced, failed, open_ends, proven = 0, 0, 0, 0, False
    for line in lines:
        event, nimg = line.get("event"), line["to"] if goes_back(line) else max(nimg, line["nimg"])
        if event == "checkpoint" and nimg > 0 and line.get("path") != BEST_FOLDER:
            announced, open_ends = announced + 1, 2
        elif event == "not_written":
            failed += 1
        else:
            open_ends = min(open_ends, 1)
        if event == "rollback" and nimg == 0:
            announced, failed, open_ends, proven = 0, 0, 0, False
        proven = proven or (event in PROOFS and nimg > 0)
    return Past(nimg, proven or announced - open_ends - failed > 0)
