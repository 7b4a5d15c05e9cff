"""Putting a folder in the place of another one, and deleting one, so that a kill at any moment loses nothing.

A folder is written as a draft, `.writing-NAME`. If there is one of its name, that is renamed to `.replaced-NAME`, the draft takes the
name, and only then is the old one deleted. What is deleted is first renamed to `.deleting-NAME`, so that no name stands for half a
folder. `settle` completes what a kill has interrupted.
"""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import suppress
from pathlib import Path

from gantrain.atomic_file import sync
from gantrain.run_folder.manifest import KEPT, Damaged, Misnamed, Unreadable, is_missing, read_manifest, require_formats, verify

WRITING, REPLACED, DELETING = ".writing-", ".replaced-", ".deleting-"
BY_TIME = "[0-9]" * 12  # as `glob` has it
TRIES = 10  # a reader may have completed a replacement that a kill seemed to have interrupted


def make_folder(path: Path) -> None:
    """Create a folder and those above it, each synced into its parent, so that a power failure cannot take them away."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    with suppress(OSError):  # in a folder that may be written and not be read
        sync(path.parent)


def begin_draft(target: Path) -> Path:
    """Create the empty folder in which a new folder is written.

    Raises:
        OSError: it could not be created.
    """
    draft = target.parent / f"{WRITING}{target.name}"
    remove(draft)
    if os.path.lexists(draft):  # a file in it may not be deleted
        discard(draft)
    make_folder(target.parent)
    draft.mkdir()
    return draft


def put_in_place(draft: Path, target: Path) -> None:
    """Rename a complete draft to its name. An existing folder of this name is renamed before that, and deleted after it.

    Raises:
        OSError: it could not be renamed; an existing folder is unchanged.
    """
    aside = target.parent / f"{REPLACED}{target.name}"
    if (target / KEPT).exists():
        (draft / KEPT).touch()
    sync(draft)
    for left in range(TRIES - 1, -1, -1):
        if os.path.lexists(target):
            if os.path.lexists(aside):  # of a replacement that was complete
                discard(aside)
            os.rename(target, aside)
        try:
            os.rename(draft, target)
            break
        except OSError:
            if target.is_dir() and not draft.exists():
                break  # a reader that found neither name has renamed it
            if not left or not target.is_dir():
                put_back(aside, target)
                raise
    sync(target.parent)
    if os.path.lexists(aside):
        with suppress(OSError):
            discard(aside)


def put_back(aside: Path, target: Path) -> None:
    """Give a folder that was renamed its name again, if that is free."""
    if os.path.lexists(aside) and not os.path.lexists(target):
        with suppress(OSError):
            os.rename(aside, target)


def discard(path: Path) -> Path:
    """Delete a folder as far as that is possible; its name is free afterwards. Returns the name under which it was deleted.

    Raises:
        OSError: it could not be renamed, and is unchanged.
    """
    name = path.name
    for prefix in (WRITING, REPLACED):
        name = name.removeprefix(prefix)
    names = itertools.chain([f"{DELETING}{name}"], (f"{DELETING}{name}-{i}" for i in itertools.count(2)))
    trash = next(path.parent / one for one in names if not os.path.lexists(path.parent / one))
    os.rename(path, trash)
    remove(trash)
    return trash


def remove(path: Path) -> None:
    """Delete a folder, a file or a link as far as that is possible; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def delete(path: Path) -> None:
    """Delete a checkpoint. If it may not be deleted it stays under its name, whole."""
    aside = path.parent / f"{REPLACED}{path.name}"
    with suppress(OSError):
        if os.path.lexists(aside):  # otherwise it would come back in its place
            discard(aside)
        trash = discard(path)
        if os.path.lexists(trash) and is_complete(trash):
            os.rename(trash, path)


def is_complete(path: Path) -> bool:
    """Whether a checkpoint has all of its files, by their sizes."""
    try:
        return all((path / name).stat().st_size == entry["bytes"] for name, entry in read_manifest(path)["files"].items())
    except (OSError, ValueError):
        return False


def is_whole(path: Path) -> bool:
    """Whether a draft or a folder that was set aside is a whole checkpoint.

    Raises:
        OtherFormat, Unreadable: it may be.
    """
    try:
        verify(path)
        return True
    except Damaged:
        return False


def whole_drafts(folder: Path) -> list[Path]:
    """Drafts of checkpoints that `settle` would put in place.

    Raises:
        OtherFormat, Unreadable: one cannot be examined.
    """
    drafts = sorted(folder.glob(f"{WRITING}{BY_TIME}"))
    return [draft for draft in drafts if not os.path.lexists(folder / draft.name.removeprefix(WRITING)) and is_whole(draft)]


def settle_replaced(folder: Path) -> None:
    """Complete replacements that a kill has interrupted between their two renames: the new folder if it is whole, else the old one.

    Readers may call it while a run trains.

    Raises:
        OtherFormat: something in the folder is of another format; nothing was renamed.
        Unreadable: a folder cannot be examined, or not be renamed.
    """
    interrupted = [folder / aside.name.removeprefix(REPLACED) for aside in sorted(folder.glob(f"{REPLACED}*"))]
    interrupted = [target for target in interrupted if not os.path.lexists(target)]
    if interrupted:
        with suppress(Misnamed):  # its reader says so
            require_formats(folder)
    for target in interrupted:
        aside, draft = folder / f"{REPLACED}{target.name}", folder / f"{WRITING}{target.name}"
        source = draft if is_whole(draft) else aside
        try:
            os.rename(source, target)
        except OSError as error:
            if os.path.lexists(target) or is_missing(error):
                continue  # the run has completed it itself
            raise Unreadable(
                f"{source}: was about to be renamed to {target.name} when its run was killed, and this is not possible now"
                f" ({error.strerror or error}); rename it"
            ) from error


def settle(folder: Path) -> None:
    """Complete what a kill has interrupted in a folder of checkpoints: replacements, whole drafts, deletions.

    Only the process that holds the lock of the run may call it. Unfinished drafts of checkpoints are deleted; those of named averages
    are not, since another process may be writing them.

    Raises:
        OtherFormat, Unreadable: a folder cannot be examined, or not be renamed.
    """
    settle_replaced(folder)
    whole = whole_drafts(folder)
    for draft in sorted(folder.glob(f"{WRITING}{BY_TIME}")):
        if draft in whole:
            with suppress(OSError):  # it stays a draft
                put_in_place(draft, folder / draft.name.removeprefix(WRITING))
        else:
            remove(draft)
    for aside in sorted(folder.glob(f"{REPLACED}*")):
        if not os.path.lexists(folder / aside.name.removeprefix(REPLACED)):
            continue  # `gantrain average` is between its two renames
        with suppress(OSError):
            discard(aside)
    for trash in sorted(folder.glob(f"{DELETING}*")):
        remove(trash)
