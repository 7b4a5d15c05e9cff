"""Checkpoints: atomic, verified, never unpickled.

A checkpoint is a folder `checkpoints/<nimg, 12 digits>/` of safetensors and JSON files, with a manifest of their sizes and SHA-256 sums;
a rebuilt average is such a folder in `averages/`. It is written under another name, synced, and renamed, so that a folder with the
right name is complete unless it was damaged later. Damaged checkpoints are reported and skipped in favour of the previous one; those of
another format, and those that may not be read, are not passed over.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes, save as to_bytes
from torch import Tensor

from gantrain import clock
from gantrain.errors import UserError, brief, in_words
from gantrain.run_folder.held import Held
from gantrain.run_folder.manifest import (
    FORMAT,
    KEPT,
    MANIFEST,
    STATE,
    TENSORS,
    Damaged,
    Gone,
    Unreadable,
    all_damaged,
    canonical,
    hold,
    is_missing,
    notice_replacement,
    read_checked,
    read_manifest,
    require_names,
    seal,
    state_in,
    unlistable,
    verify,
)
from gantrain.run_folder.replacing import REPLACED, begin_draft, delete, put_in_place, remove, settle, settle_replaced

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors of a disk without space
COMPLEX = ":complex"  # behind the name of a tensor that is stored as real and imaginary parts
TRIES = 10  # a run that trains deletes its older checkpoints, perhaps while they are read


@dataclass
class Snapshot:
    """The content of a checkpoint: groups of named tensors (on the CPU) and JSON values."""

    nimg: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Groups(dict[str, dict[str, Tensor]]):
    """The groups of tensors in a checkpoint; one that it lacks, although its seal fits, is damage."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path

    def __missing__(self, group: str) -> NoReturn:
        raise Damaged(f"{self._path}: does not contain {group}{TENSORS}")


class NotWritten(UserError):
    """A checkpoint could not be written; earlier ones are intact. `what` is the text without the remedy, which depends on the error."""

    def __init__(self, what: str, error: OSError | None = None):
        self.what = what
        full = error is None or error.errno in FULL
        super().__init__(f"{what}; {'free some space' if full else 'fix this'} and run the same command again")


class CheckpointStore:
    """The checkpoints of a run, or its snapshots of averages: folders named by images seen.

    Args:
        folder: such as `RUN/checkpoints`.
        keep_last: how many of the newest are kept; None keeps all.
        say: receives a line about each damaged checkpoint.
        keep_every_kimg: the first checkpoint at or after each multiple of this is kept permanently.
    """

    def __init__(
        self, folder: Path, keep_last: int | None = 2, say: Callable[[str], None] = lambda line: None, keep_every_kimg: float | None = None
    ):  # fmt: skip
        self.folder, self.keep_last, self.say, self.keep_every_kimg = folder, keep_last, say, keep_every_kimg
        self.held: int | None = None  # images seen: the newest checkpoint up to here is kept too

    def paths(self) -> list[Path]:
        """All finished checkpoints, oldest first. A replacement that a kill has interrupted is completed.

        Raises:
            Unreadable: the folder cannot be listed.
        """
        try:
            there = self._list()
            if any(name.startswith(REPLACED) and name.removeprefix(REPLACED) not in there for name in there):
                settle_replaced(self.folder)
                there = self._list()
        except OSError as error:
            if is_missing(error):
                return []
            raise unlistable(self.folder, error) from error
        return sorted(self.folder / name for name, is_folder in there.items() if is_folder and name.isdecimal())

    def _list(self) -> dict[str, bool]:
        """Names in the folder, and whether each is a folder."""
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.is_dir() for entry in entries}

    def save(self, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and delete those that are no longer kept.

        Raises:
            NotWritten: says why, how much space it needs, and which checkpoint is intact.
        """
        target = self.folder / f"{nimg:012d}"
        try:
            self.clear_drafts()
            write(target, nimg, tensors, state)
        except OSError as error:
            whole = self._newest_whole()
            kept = f"the one at {int(whole.name) / 1000:g} kimg is intact" if whole else "there is no other whole one"
            needs = f"it needs {in_words(count_bytes(tensors))}, {free_in_words(self.folder)}"
            raise NotWritten(
                f"{target}: the checkpoint could not be written ({error.strerror or error}; {needs}); {kept}", error
            ) from error
        self.prune(nimg)
        return target

    def prune(self, nimg: int) -> None:
        """Delete what is no longer kept, now that there is a checkpoint at `nimg`; later ones were skipped as damaged."""
        if self.keep_last is None:
            return
        paths = [path for path in self.paths() if int(path.name) <= nimg]
        times = [int(path.name) for path in paths]
        kept = set(times[-self.keep_last :])
        for before, path in zip([-1, *times], paths):
            if clock.due(self.keep_every_kimg, before, int(path.name)):
                with contextlib.suppress(OSError):  # on a full disk, it is kept as long as the settings ask for it
                    (path / KEPT).touch()
                kept.add(int(path.name))
        kept |= {int(path.name) for path in paths if (path / KEPT).exists()}
        if self.held is not None:
            kept |= {max((time for time in times if time <= self.held), default=-1)}
        for path in paths:
            if int(path.name) not in kept:
                delete(path)

    def forget_after(self, nimg: int) -> None:
        """Delete what is later than `nimg` images: a run that resumes there will write it again."""
        for path in reversed(self.paths()):
            if int(path.name) > nimg:
                delete(path)

    def forget(self, path: Path) -> None:
        """Delete one checkpoint."""
        delete(path)

    def clear_drafts(self) -> None:
        """Complete what a kill has interrupted, and delete unfinished drafts."""
        settle(self.folder)

    def newest(self, until: int | None = None) -> Path | None:
        """The newest undamaged checkpoint; damaged ones are reported and skipped. None if there are no checkpoints.

        Args:
            until: ignore checkpoints with more images seen; then None also stands for "all damaged".

        Raises:
            OtherFormat: another version of gantrain wrote one of them, even if the newest can be read.
            Unreadable: the newest that is not damaged cannot be read, or the folder cannot be listed.
            UserError: there are checkpoints, and all are damaged.
        """
        found = self.newest_held(until)
        return found.folder if found is not None else None

    def newest_held(self, until: int | None = None) -> Held | None:
        """The same checkpoint with its files open, so that it can be read even if a run deletes it; arguments and errors as in `newest`."""
        said: set[str] = set()
        for _ in range(TRIES):
            paths = [path for path in self.paths() if until is None or int(path.name) <= until]
            try:
                found = self._first_whole(paths, said)
            except Gone:
                continue  # deleted by the run that trains, which has written another one before
            if found is None and paths and until is None:
                require_names(paths)
                raise all_damaged(self.folder, paths, "checkpoint")
            return found
        raise Gone(f"{self.folder}: its checkpoints are replaced faster than they can be read; use a larger checkpoint.every_kimg")

    def _first_whole(self, paths: list[Path], said: set[str]) -> Held | None:
        """The last of some checkpoints that is whole; `said` are the lines about damage that were said already."""
        for path in paths:
            with contextlib.suppress(Damaged, Unreadable):
                read_manifest(path)  # raises OtherFormat
        for path in reversed(paths):
            try:
                held = hold(path)  # or a run that saves faster than files are summed would never be read
                verify(path)
                return held
            except Gone:
                raise
            except Damaged as error:
                if (line := f"{error}; skipped") not in said:
                    self.say(line)
                    said.add(line)
        return None

    def _newest_whole(self) -> Path | None:
        """The newest checkpoint that is whole, without a word about the others."""
        with contextlib.suppress(UserError):
            for path in reversed(self.paths()):
                with contextlib.suppress(UserError):
                    verify(path)
                    return path
        return None


def save_under(stores: list[CheckpointStore], nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write a checkpoint into the first store, and hard-link it into the other stores.

    Raises:
        NotWritten: says why. Earlier checkpoints are intact.
    """
    path = stores[0].save(nimg, tensors, state)
    for store in stores[1:]:
        keep_also(path, store)


def keep_also(path: Path, store: CheckpointStore) -> None:
    """Hard-link a checkpoint into another store.

    Raises:
        NotWritten: says why. Earlier checkpoints are intact.
    """
    try:
        store.clear_drafts()
        link_checkpoint(path, store.folder / path.name)
    except OSError as error:
        raise NotWritten(
            f"{store.folder / path.name}: the checkpoint could not be kept there ({error.strerror or error})", error
        ) from error
    store.prune(int(path.name))


def link_checkpoint(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, completely or not at all: by hard links, or by copies if the file system has no hard links.

    An existing one of this name is replaced, as in `write`.

    Raises:
        OSError: it could not be written; an existing one is unchanged.
    """
    with draft_of(target) as draft:
        for file in (file for file in source.iterdir() if file.name != KEPT):
            try:
                os.link(file, draft / file.name)
            except OSError:
                write_synced(draft / file.name, file.read_bytes())


def write(target: Path, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write one folder, completely or not at all; an existing one of this name is replaced, and deleted when the new one is in place.

    Raises:
        OSError: it could not be written; an existing one is unchanged.
    """
    with draft_of(target) as draft:
        files = {}
        for group, named in tensors.items():  # only one group at a time is in memory twice
            files[f"{group}{TENSORS}"] = write_synced(draft / f"{group}{TENSORS}", to_bytes(as_real(to_cpu(named))))
        files[STATE] = write_synced(draft / STATE, canonical(dict(state)))
        write_synced(draft / MANIFEST, seal({"format": FORMAT, "nimg": nimg, "files": files}))


@contextlib.contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `target` on leaving; it is deleted if that fails.

    Raises:
        OSError: it could not be written; an existing folder is unchanged.
    """
    draft = begin_draft(target)
    try:
        yield draft
        put_in_place(draft, target)
    except OSError:
        remove(draft)
        raise


def read(path: Path, groups: Iterable[str] | None = None) -> Snapshot:
    """The content of a checkpoint, or only some groups of its tensors.

    Raises:
        Damaged: a file is missing, truncated or altered, or the folder's name is that of another moment.
        Gone: it was deleted or replaced meanwhile.
        OtherFormat: another version of gantrain wrote it.
        Unreadable: a file cannot be read.
    """
    with notice_replacement(path):
        manifest = read_manifest(path)
        wanted = [name for name in manifest["files"] if name.endswith(TENSORS)]
        if groups is not None:
            wanted = [f"{group}{TENSORS}" for group in groups]
        tensors: dict[str, dict[str, Tensor]] = Groups(path) if groups is None else {}
        for name in wanted:
            tensors[name.removesuffix(TENSORS)] = tensors_in(path / name, read_checked(path, name, manifest))
        return Snapshot(manifest["nimg"], tensors, state_in(path, manifest))


def tensors_in(file: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors of a file's bytes.

    Raises:
        Damaged: it is not a safetensors file, or not one that `as_real` made.
    """
    try:
        tensors = from_bytes(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # the head may name any type and shape
        raise Damaged(f"{file}: is not a safetensors file ({brief(error)})") from error
    for name, tensor in tensors.items():
        if name.endswith(COMPLEX) and not (tensor.is_floating_point() and tensor.dim() and tensor.shape[-1] == 2):
            raise Damaged(f"{file}: {name} is not a complex tensor that this version wrote")
    return as_complex(tensors)


def read_state(path: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint.

    Raises:
        Damaged, Gone, OtherFormat, Unreadable: as in `read`.
    """
    with notice_replacement(path):
        return state_in(path, read_manifest(path))


def groups_of(path: Path) -> list[str]:
    """Names of the groups of tensors in a checkpoint."""
    return [name.removesuffix(TENSORS) for name in read_manifest(path)["files"] if name.endswith(TENSORS)]


def write_synced(path: Path, data: bytes) -> dict[str, Any]:
    """Write and sync a file; return its entry for the manifest."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors as safetensors needs them: on the CPU, contiguous, sharing no memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def as_real(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Complex tensors as real ones `[..., 2]` under a marked name: safetensors does not have all complex types."""
    return {
        f"{name}{COMPLEX}" if tensor.is_complex() else name: torch.view_as_real(tensor) if tensor.is_complex() else tensor
        for name, tensor in tensors.items()
    }


def as_complex(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `as_real`."""
    return {
        name.removesuffix(COMPLEX): torch.view_as_complex(tensor) if name.endswith(COMPLEX) else tensor for name, tensor in tensors.items()
    }


def count_bytes(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Size of all tensors, in bytes."""
    return sum(tensor.numel() * tensor.element_size() for named in tensors.values() for tensor in named.values())


def free_in_words(folder: Path) -> str:
    """How much space is free on a folder's disk, in words."""
    free = free_bytes(folder)
    return "the free space is unknown" if free is None else f"{in_words(free, down=True)} are free"


def free_bytes(folder: Path) -> int | None:
    """How much space is free on a folder's disk; None if that is unknown."""
    try:
        return shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    except OSError:
        return None
