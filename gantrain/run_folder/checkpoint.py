"""Checkpoints: atomic, verified, never unpickled.

A checkpoint is a folder `checkpoints/<nimg, 12 digits>/` of safetensors and JSON files, with a manifest of their sizes and SHA-256 sums;
a rebuilt average is such a folder in `averages/`. It is written under another name, synced, and renamed, so that a folder with the
right name is complete unless it was damaged later. Damaged checkpoints are reported and skipped in favour of the previous one. A run
writes its checkpoints in the background, one at a time, so that at most one copy waits in main memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_bytes, save as to_bytes
from torch import Tensor

from gantrain import clock
from gantrain.atomic_file import sync
from gantrain.errors import UserError, in_words

FORMAT = 4
MANIFEST = "manifest.json"
STATE = "state.json"
COMPLEX = ":complex"  # behind the name of a tensor that is stored as real and imaginary parts
WRITING = ".writing-"
KEPT = "kept"  # an empty file in a checkpoint that is kept permanently, whatever the settings say later


class Damaged(UserError):
    """A checkpoint whose files differ from those that were written."""


@dataclass
class Snapshot:
    """The content of a checkpoint: groups of named tensors (on the CPU) and JSON values."""

    nimg: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class NotWritten(UserError):
    """A checkpoint could not be written; earlier ones are intact. `what` is the text without the remedy."""

    def __init__(self, what: str):
        self.what = what
        super().__init__(f"{what}; free some space and run the same command again")


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
        """All finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def save(self, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and delete those that are no longer kept.

        Raises:
            NotWritten: says why, and how much space it needs. Earlier checkpoints are intact.
        """
        target = self.folder / f"{nimg:012d}"
        try:
            self.clear_drafts()
            write(target, nimg, tensors, state)
        except OSError as error:
            before = self.paths()
            kept = f"the one at {int(before[-1].name) / 1000:g} kimg is intact" if before else "there is no earlier one"
            needs = f"it needs {in_words(count_bytes(tensors))}, {free_in_words(self.folder)}"
            raise NotWritten(f"{target}: the checkpoint could not be written ({error.strerror or error}; {needs}); {kept}") from error
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
                shutil.rmtree(path, ignore_errors=True)

    def forget_after(self, nimg: int) -> None:
        """Delete what is later than `nimg` images: a run that resumes there will write it again."""
        for path in self.paths():
            if int(path.name) > nimg:
                shutil.rmtree(path, ignore_errors=True)

    def forget(self, path: Path) -> None:
        """Delete one checkpoint."""
        shutil.rmtree(path, ignore_errors=True)

    def clear_drafts(self) -> None:
        """Delete drafts that a kill has left."""
        if self.folder.is_dir():
            for left in self.folder.glob(f"{WRITING}{'[0-9]' * 12}"):  # not those of named averages: another process may be writing them
                shutil.rmtree(left, ignore_errors=True)

    def newest(self, until: int | None = None) -> Path | None:
        """The newest undamaged checkpoint; damaged ones are reported and skipped. None if there are no checkpoints.

        Args:
            until: ignore checkpoints with more images seen; then None also stands for "all damaged".

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        paths = [path for path in self.paths() if until is None or int(path.name) <= until]
        for path in reversed(paths):
            try:
                verify(path)
                return path
            except Damaged as error:
                self.say(f"{error}; skipped")
        if paths and until is None:
            raise UserError(f"{self.folder}: all of its {len(paths)} checkpoints are damaged; delete the folder to start over")
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
        raise NotWritten(f"{store.folder / path.name}: the checkpoint could not be kept there ({error.strerror or error})") from error
    store.prune(int(path.name))


class BackgroundWriter:
    """Writes checkpoints on a thread, one at a time; a job that comes too early waits.

    The thread is a daemon: a second Ctrl-C does not wait for it, and leaves a draft behind.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Run a job once the previous one is done.

        Raises:
            NotWritten: the previous one failed.
        """
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the current job.

        Raises:
            NotWritten: it failed.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of a job that has failed, without waiting."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def link_checkpoint(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, completely or not at all: by hard links, or by copies if the file system has no hard links.

    An existing one of this name is replaced, as in `write`.

    Raises:
        OSError: it could not be written.
    """
    draft = target.parent / f"{WRITING}{target.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for file in (file for file in source.iterdir() if file.name != KEPT):
            try:
                os.link(file, draft / file.name)
            except OSError:
                write_synced(draft / file.name, file.read_bytes())
        sync(draft)
        if target.exists():  # from an abandoned path, or damaged since
            shutil.rmtree(target)
        os.rename(draft, target)
        sync(target.parent)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write(target: Path, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write one folder, completely or not at all; an existing one of this name is replaced.

    Raises:
        OSError: it could not be written.
    """
    draft = target.parent / f"{WRITING}{target.name}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        files = {}
        for group, named in tensors.items():  # only one group at a time is in memory twice
            files[f"{group}.safetensors"] = write_synced(draft / f"{group}.safetensors", to_bytes(as_real(to_cpu(named))))
        files[STATE] = write_synced(draft / STATE, canonical(dict(state)))
        write_synced(draft / MANIFEST, seal({"format": FORMAT, "nimg": nimg, "files": files}))
        sync(draft)
        if target.exists():  # from an earlier attempt, and skipped as damaged
            shutil.rmtree(target)
        os.rename(draft, target)
        sync(target.parent)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def read(path: Path, groups: Iterable[str] | None = None) -> Snapshot:
    """The content of a checkpoint, or only some groups of its tensors.

    Raises:
        Damaged: a file is missing, truncated or altered.
    """
    manifest = read_manifest(path)
    wanted = [name for name in manifest["files"] if name.endswith(".safetensors")]
    if groups is not None:
        wanted = [f"{group}.safetensors" for group in groups]
    tensors = {}
    for name in wanted:
        try:
            tensors[name.removesuffix(".safetensors")] = as_complex(from_bytes(read_checked(path, name, manifest)))
        except SafetensorError as error:
            raise Damaged(f"{path / name}: is not a safetensors file ({error})") from error
    return Snapshot(manifest["nimg"], tensors, read_state(path))


def read_state(path: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint.

    Raises:
        Damaged: the file is missing, truncated or altered.
    """
    try:
        return json.loads(read_checked(path, STATE, read_manifest(path)))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path / STATE}: is not JSON that this version wrote") from error


def groups_of(path: Path) -> list[str]:
    """Names of the groups of tensors in a checkpoint."""
    return [name.removesuffix(".safetensors") for name in read_manifest(path)["files"] if name.endswith(".safetensors")]


def verify(path: Path) -> None:
    """Raise `Damaged` unless every file has the size and sum that the manifest says."""
    manifest = read_manifest(path)
    for name in manifest["files"]:
        read_checked(path, name, manifest)
        if name.endswith(".safetensors"):  # a checksum does not prove the format: the manifest may be forged too
            try:
                with safe_open(path / name, "pt"):
                    pass
            except SafetensorError as error:
                raise Damaged(f"{path / name}: is not a safetensors file ({error})") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, checked against its own seal."""
    try:
        data = (path / MANIFEST).read_bytes()
        manifest = json.loads(data)
        body = {key: value for key, value in manifest.items() if key != "seal"}
        if seal(body) != data:
            raise Damaged(f"{path / MANIFEST}: the manifest was altered")
        if manifest["format"] != FORMAT:
            raise Damaged(
                f"{path / MANIFEST}: has format {manifest['format']}, and this version of gantrain reads format {FORMAT};"
                " resume with the version that wrote it, or use another run_dir"
            )
        if not all(Path(name).name == name and {"bytes", "sha256"} <= entry.keys() for name, entry in manifest["files"].items()):
            raise Damaged(f"{path / MANIFEST}: names files outside this folder, or lacks their checksums")
        return {**manifest, "nimg": int(manifest["nimg"])}
    except Damaged:
        raise
    except OSError as error:
        raise Damaged(f"{path / MANIFEST}: the manifest cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path / MANIFEST}: the manifest is not JSON that this version wrote") from error


def read_checked(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """A file's bytes.

    Raises:
        Damaged: they differ from those that were written.
    """
    wanted = manifest["files"].get(name)
    if wanted is None:
        raise Damaged(f"{path}: does not contain {name}")
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise Damaged(f"{path / name}: cannot be read ({error.strerror})") from error
    if len(data) != wanted["bytes"]:
        raise Damaged(f"{path / name}: has {len(data)} bytes; the manifest has {wanted['bytes']}")
    if hashlib.sha256(data).hexdigest() != wanted["sha256"]:
        raise Damaged(f"{path / name}: its SHA-256 differs from that in the manifest")
    return data


def write_synced(path: Path, data: bytes) -> dict[str, Any]:
    """Write and sync a file; return its entry for the manifest."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def canonical(value: Any) -> bytes:
    """A value as JSON, in the only form that manifests have."""
    return json.dumps(value, sort_keys=True, indent=1).encode()


def seal(body: Mapping[str, Any]) -> bytes:
    """A manifest with a checksum of itself, in the only form that is accepted."""
    return canonical({**body, "seal": hashlib.sha256(canonical(body)).hexdigest()})


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
    return "the free space is unknown" if free is None else f"{in_words(free)} are free"


def free_bytes(folder: Path) -> int | None:
    """How much space is free on a folder's disk; None if that is unknown."""
    try:
        return shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    except OSError:
        return None
