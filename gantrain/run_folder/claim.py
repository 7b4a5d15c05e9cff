"""The claim to a run folder: its lock, and what is decided about the folder while the lock is held.

Whether a run starts or resumes, and whether it may, depends on what is in its folder. Another training may write there, from its start to
its end, while this process imports torch or reads its images. So what is decided before the lock is taken is decided again behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gantrain import lock
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.home import expand_user
from gantrain.losses import Relativistic
from gantrain.regular_file import read_regular
from gantrain.run_folder.checkpoint import MANIFEST, CheckpointStore
from gantrain.run_folder.earlier import PAIRED_LABELS, with_pairs
from gantrain.run_folder.layout import CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.own_config import load_config, require_readable
from gantrain.run_folder.ownership import ROLLBACK_FILE, acquire_lock, compare_with_run, last_readable, state_if_whole
from gantrain.run_folder.starts import resolve_starts
from gantrain.run_folder.trained_with import config_in

MOST_COMPARED = 2**26  # bytes of a file that is compared
Traces = dict[str, bytes | None]


@dataclass(frozen=True)
class Findings:
    """What a run folder means for a configuration.

    Attributes:
        config: the configuration, with the start of every average that is added to the run, and with the pairs of a relativistic loss.
        changed: the keys that have changed and may change, with their old and new values.
        edited: a note on what somebody has edited in the run's `config.yaml`, or "".
        traces: the contents of the files on which this depends, by path; None for one that cannot be read.
    """

    config: Config
    changed: dict[str, Any]
    edited: str
    traces: Traces


@dataclass
class Claim:
    """A run folder that this process alone may train in, until it releases it.

    Attributes:
        folder: the run folder.
        found: what is in it.
    """

    folder: Path
    found: Findings
    _file: IO[str] = field(repr=False)
    _made: list[Path] = field(default_factory=list)  # folders that did not exist before, the deepest first
    _locked_before: bool = False  # whether an earlier process has left the file of a lock

    def holds(self) -> bool:
        """Whether the folder is still the one that was locked; False if it was removed or replaced."""
        return lock.holds(self._file, self.folder)

    def release(self) -> None:
        """Release the folder. One in which no run has begun is left as it was found."""
        if self._file.closed:
            return
        if self._locked_before or any((self.folder / name).exists() for name in (CONFIG_FILE, METRICS_FILE, "checkpoints")):
            self._file.close()
            return
        lock.discard(self._file, self.folder)
        with contextlib.suppress(OSError):  # not empty, or gone
            for folder in self._made:
                folder.rmdir()


def claim_folder(config: Config, given: Collection[str] | None = None) -> Claim:
    """Take the lock of a configuration's `run_dir`, and find out behind it what the folder means for this configuration.

    Args:
        config: as loaded.
        given: full keys that the user has set; None takes the start of every average, and the loss, as they are.

    Raises:
        UserError: another process trains there, or see `compare_with_run`. The folder is then as it was.
    """
    folder = expand_user(config.run_dir, "run_dir")
    try:
        require_readable(examine(config, given).config)  # refuses before anything is written
    except UserError:
        if lock.owner(folder) is None:  # else files may have changed while they were read
            raise
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    locked_before = (folder / lock.NAME).exists()
    file = acquire_lock(folder)
    claim = Claim(folder, Findings(config, {}, "", {}), file, made, locked_before)
    try:
        claim.found = examine(config, given)  # again: another training may have begun or ended since
    except BaseException:
        claim.release()
        raise
    return claim


def examine(config: Config, given: Collection[str] | None = None) -> Findings:
    """What a run folder means for a configuration; arguments and errors as in `claim_folder`. Writes nothing."""
    folder = expand_user(config.run_dir, "run_dir")
    traces = read_traces(folder)
    resolved = config if given is None else resolve_pairs(resolve_starts(config, given), given)
    return Findings(resolved, *compare_with_run(folder, resolved), traces)


def resolve_pairs(config: Config, given: Collection[str]) -> Config:
    """The configuration of a run that may exist, whose relativistic loss pairs images as the run does if the user has not said how.

    Args:
        config: as loaded; its `run_dir` says which run.
        given: full keys that the user has set.
    """
    folder = expand_user(config.run_dir, "run_dir")
    paths = CheckpointStore(folder / "checkpoints").paths()
    if PAIRED_LABELS in given or not isinstance(config.loss, Relativistic) or not paths or not (folder / CONFIG_FILE).is_file():
        return config
    saved = (config_in(state_if_whole(last_readable(paths))) or load_config(folder)).loss
    return with_pairs(config, saved.paired_labels) if isinstance(saved, Relativistic) else config


def read_traces(folder: Path) -> Traces:
    """The contents of the files from which a run starts or resumes, by path."""
    manifests = [path / MANIFEST for path in CheckpointStore(folder / "checkpoints").paths()]
    return {str(path): read_if_there(path) for path in (folder / CONFIG_FILE, folder / ROLLBACK_FILE, *manifests)}


def read_if_there(path: Path) -> bytes | None:
    """The content of a file; None if it cannot be read."""
    try:
        return read_regular(path, MOST_COMPARED)
    except OSError:
        return None
