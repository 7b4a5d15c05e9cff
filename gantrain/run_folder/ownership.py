"""The owner of a run folder: the run that it belongs to, and the process that trains in it."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path
from typing import IO, Any, NoReturn

from gantrain import lock
from gantrain.atomic_file import write_atomically
from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.data import Folder
from gantrain.errors import UserError
from gantrain.home import expand_user
from gantrain.lock import InUse
from gantrain.regular_file import read_regular
from gantrain.run_folder.change_words import spell
from gantrain.run_folder.changes import (
    describe_changes,
    describe_root,
    find_changes,
    refuse_reserved,
    require_late_start,
    require_passive,
    require_time_left,
)
from gantrain.run_folder.checkpoint import CheckpointStore, Damaged, read_state, seal
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.run_folder.lost_checkpoints import require_nothing_lost
from gantrain.run_folder.manifest import is_missing, read_manifest
from gantrain.run_folder.own_config import load_config
from gantrain.run_folder.recognition import find_foreign, is_run_folder
from gantrain.run_folder.state_form import ROLLBACK, State
from gantrain.run_folder.stores import require_names_too, settle_run
from gantrain.run_folder.trained_with import config_in

READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}  # another user's folder, or a file system for reading
NAMED = 4  # files that a message names
ROLLBACK_FILE = "rollback.json"
MOST_ROLLBACK = 64 << 20  # bytes of it


def look_into(run_dir: Path, config: Config) -> dict[str, Any]:
    """The first value of `compare_with_run`; arguments and errors are its own."""
    return compare_with_run(run_dir, config)[0]


def compare_with_run(run_dir: Path, config: Config) -> tuple[dict[str, Any], str]:
    """Make sure that a run folder is free or belongs to this run. Writes nothing: a run refused later leaves the folder as it was.

    The newest checkpoint says what the run was trained with, and `config.yaml` where the checkpoint is of an earlier version.
    Averages that touch nothing that is trained may be added.

    Returns:
        The keys that have changed and may change, with their old and new values; and a note on what somebody has edited in
        `config.yaml`, "" if that is nothing.

    Raises:
        UserError: the folder belongs to a run of another configuration; the differing keys are named. Or a new run would write among
            files of another kind, or its checkpoints are gone. Or another version of gantrain wrote some of it, or it cannot be read.
    """
    saved = run_dir / CONFIG_FILE
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir: {run_dir} is a file; use another run_dir")
    require_names_too(run_dir)
    paths = CheckpointStore(run_dir / "checkpoints").paths()
    if not paths:
        refuse_reserved(config.averagers)  # an older run with such an average resumes
        require_own_folder(run_dir, config)
        require_nothing_lost(run_dir)
        return {}, ""  # nothing has been trained
    if not saved.is_file():
        raise UserError(f"run_dir: {run_dir} has checkpoints but no {CONFIG_FILE}; restore it, or use another run_dir")
    written = load_config(run_dir)
    newest = last_readable(paths)
    state = state_if_whole(newest)
    earlier = config_in(state) or written
    begun = list(state.get("averages", earlier.averagers))
    edited = find_changes(earlier, written, begun).refused
    changes = find_changes(earlier, config, begun)
    lost = tuple(f"averagers.{name}." for name in changes.removed)
    if lost and all(key.startswith(lost) for key in changes.refused):
        raise UserError(
            f"run_dir: {run_dir} has the average {changes.removed[0]}, which this configuration lacks, and its past would be lost;"
            f" add {as_before(changes.removed[0], earlier, written, saved)}, or drop it in another run: gantrain fork {run_dir} --out NEW"
            f" averagers.{changes.removed[0]}=null"
        )
    if changes.refused:
        raise UserError(
            f"run_dir: {run_dir} contains a run of another configuration: {describe_changes(changes.refused)};"
            " restore these values, use another run_dir, or continue from its checkpoint in another folder by `gantrain fork`"
            f"{describe_root(config)}{say_edited(saved, newest) if edited else ''}"
        )
    refuse_reserved(changes.added)
    require_passive(config, changes.added)
    require_late_start(config, changes.added, int(newest.name))
    require_time_left(config, [name for name in config.averagers if name not in begun], int(newest.name))
    note = f"{saved} was edited: {describe_changes(edited)}; it is written anew with what the run is trained with" if edited else ""
    return {k: [old, new] for k, (old, new) in changes.allowed.items() if k != "run_dir"}, note


def say_edited(saved: Path, newest: Path) -> str:
    """The end of a message if the run's `config.yaml` is not what its newest checkpoint was trained with."""
    return f" ({saved} was edited: 'there' is what the checkpoint at {int(newest.name) / 1000:g} kimg was trained with)"


def as_before(name: str, earlier: Config, written: Config, saved: Path) -> str:
    """How to give the configuration an average of the run again."""
    there = earlier.averagers.get(name)
    if there == written.averagers.get(name):
        return f"averagers.{name} as in {saved}"
    return f"averagers.{name}={spell(loading.to_dict(earlier)['averagers'].get(name))}"


def require_own_folder(run_dir: Path, config: Config) -> None:
    """Refuse a new run among other files, such as those of another run: in a folder of images, its own folders would become classes.

    Raises:
        UserError: names what is in the folder, or the run folder or folder of images above it.
    """
    if foreign := find_foreign(run_dir):
        named = ", ".join(map(repr, foreign[:NAMED])) + (f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else "")
        raise UserError(
            f"run_dir: {run_dir} is not the folder of a run, and it is not empty: it contains {named}; use a folder that is new or empty"
        )
    resolved = run_dir.resolve()
    around = None if is_run_folder(run_dir) else next((path for path in resolved.parents if is_run_folder(path)), None)
    if around is not None:
        raise UserError(f"run_dir: {run_dir} is inside the run folder {around}; use a folder outside it")
    data: Any = config.data
    root = data.root if isinstance(data, Folder) else ""
    above = (resolved, *resolved.parents)
    if root and expand_user(root, "data.root").resolve() in above and not is_run_folder(run_dir):
        raise UserError(
            f"run_dir: {run_dir} is inside data.root, {root}, so the run's own pictures would count as images to train on;"
            " use a folder elsewhere"
        )


def last_readable(paths: list[Path]) -> Path:
    """The last of some checkpoints whose manifest is whole and that has its right name; the last one if there is none."""
    for path in reversed(paths):
        with contextlib.suppress(Damaged):
            read_manifest(path)
            return path
    return paths[-1]


def state_if_whole(path: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint; none if it is damaged."""
    try:
        return read_state(path)
    except Damaged:
        return {}


def acquire_lock(run_dir: Path) -> IO[str]:
    """Create the run folder if it does not exist, take its lock, and complete what a kill has interrupted there.

    The lock is held as long as the returned file is open.

    Raises:
        UserError: another process trains there, or another version of gantrain wrote some of it, or it cannot be read.
    """
    try:
        held = lock.acquire(run_dir, create=True)
    except InUse as owner:
        raise UserError(f"run_dir: {run_dir} is being trained by {owner}; wait for it, stop it, or use another run_dir") from None
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        raise UserError(
            f"run_dir: {run_dir} may not be written ({error.strerror}); use another run_dir, or continue from its checkpoint in another"
            " folder by `gantrain fork`"
        ) from error
    try:
        require_names_too(run_dir)
        settle_run(run_dir)
    except BaseException:
        held.close()
        raise
    return held


def write_rollback(run_dir: Path, body: dict[str, Any]) -> None:
    """Record what a rollback has changed."""
    write_atomically(run_dir / ROLLBACK_FILE, seal(body), durable=True, only_writer=True)


def read_rollback(run_dir: Path) -> dict[str, Any] | None:
    """What the last rollback has changed; None if there was none.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    path = run_dir / ROLLBACK_FILE
    damaged = f"{path}: is damaged; delete it to continue as if the run had not been rolled back"

    def refuse(key: str) -> NoReturn:
        raise UserError(damaged)

    try:
        data = read_regular(path, MOST_ROLLBACK)
        body = json.loads(data, object_hook=lambda values: State(values, refuse))
        if seal({key: value for key, value in body.items() if key != "seal"}) != data or ROLLBACK(body, "", False):
            raise ValueError
        return body
    except FileNotFoundError:
        return None
    except OSError as error:
        if not is_missing(error):
            raise UserError(f"{path}: cannot be read ({error.strerror}), and the run depends on it; make it readable") from error
        raise UserError(damaged) from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(damaged) from error


def forget_abandoned(store: CheckpointStore, rollback: dict[str, Any]) -> None:
    """Delete checkpoints of the path that a rollback abandoned: later than its target, and made before it."""
    for path in reversed(store.paths()):
        if is_abandoned(path, rollback):
            store.forget(path)


def is_abandoned(path: Path, rollback: dict[str, Any]) -> bool:
    """Whether a checkpoint is of the path that a rollback abandoned; False if it is damaged, which is reported when it is read."""
    try:
        return int(path.name) > rollback["to"] and read_state(path)["guard"]["rollbacks"] < rollback["guard"]["rollbacks"]
    except Damaged:
        return False
