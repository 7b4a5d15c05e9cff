"""The run folder: whose it is, what it holds, and who trains in it."""
from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import IO, Any

from gantrain import loading
from gantrain.checkpoint import CheckpointStore
from gantrain.config import Config
from gantrain.errors import UserError
from gantrain.sampling import CONFIG_FILE

# What may change when a run is taken up again: nothing in it touches what has been trained so far.
MAY_CHANGE = (
    "run_dir", "total_kimg", "eval.", "checkpoint.", "tracking.", "performance.", "orbit.every_kimg",
    "data.root", "data.keep_in", "data.workers", "data.download",
)  # fmt: skip


def look_into(run_dir: Path, config: Config) -> dict[str, Any]:
    """Make sure that a run folder is free or holds this very run; what has changed in what may change.

    Nothing is written: a run that is refused for its data leaves the folder as it was.

    Raises:
        UserError: the folder holds a run of another configuration; the differing keys are named.
    """
    saved = run_dir / CONFIG_FILE
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir: {run_dir} is a file; use another run_dir")
    if not CheckpointStore(run_dir / "checkpoints").paths():
        return {}  # nothing has been trained
    if not saved.is_file():
        raise UserError(f"run_dir: {run_dir} has checkpoints but no {CONFIG_FILE}; put it back, or use another run_dir")
    different = loading.differing_keys(loading.load(saved), config)
    refused = {k: v for k, v in different.items() if not k.startswith(MAY_CHANGE)}
    if refused:
        named = ", ".join(f"{k} ({old!r} there, {new!r} now)" for k, (old, new) in list(refused.items())[:8])
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise UserError(f"run_dir: {run_dir} holds a run of another configuration: {named}{more}; give these back, or use another run_dir")
    return {k: [old, new] for k, (old, new) in different.items() if k != "run_dir"}


def locked(run_dir: Path) -> IO[str]:
    """The run folder's lock, held as long as the returned file is open: a dead owner holds nothing.

    Raises:
        UserError: another process trains there.
    """
    file = open(run_dir / ".lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise UserError(f"run_dir: {run_dir} is being trained by {owner}; wait for it, stop it, or use another run_dir") from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def write_config(config: Config, run_dir: Path) -> None:
    """Create the run folder and put the resolved configuration into it, whole or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    draft = run_dir / f"{CONFIG_FILE}.writing"
    draft.write_text(loading.to_yaml(config), encoding="utf-8")
    draft.replace(run_dir / CONFIG_FILE)
