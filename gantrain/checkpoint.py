"""Checkpoints: atomic, verified, never unpickled.

A checkpoint is a folder `checkpoints/<nimg, 12 digits>/`, and an average kept beside the run one in `averages/`, of safetensors
and JSON files with a manifest of their sizes and SHA-256 sums. It is written under another name, synced, and renamed, so that a
folder with the right name is whole unless it was damaged later; what is damaged is named and passed over for the one before.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from gantrain.errors import UserError

FORMAT = 3
MANIFEST = "manifest.json"
STATE = "state.json"
WRITING = ".writing-"


class Damaged(UserError):
    """A checkpoint that is not what was written."""


@dataclass
class Snapshot:
    """What a checkpoint holds: groups of named tensors (on the CPU) and JSON values."""

    nimg: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of a run, or its snapshots of averages: folders named by images.

    Args:
        folder: `RUN/checkpoints`, say.
        keep_last: how many of the newest stay; None keeps all.
        say: receives a line about a damaged checkpoint.
    """

    def __init__(self, folder: Path, keep_last: int | None = 2, say: Callable[[str], None] = lambda line: None):
        self.folder, self.keep_last, self.say = folder, keep_last, say

    def paths(self) -> list[Path]:
        """All finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    def save(self, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and delete those that are no longer kept.

        Raises:
            UserError: it could not be written. The checkpoints before it are untouched.
        """
        target = self.folder / f"{nimg:012d}"
        try:
            self.clear_drafts()
            write(target, nimg, tensors, state)
        except OSError as error:
            before = self.paths()
            kept = f"the one at {int(before[-1].name) / 1000:g} kimg is whole" if before else "there is none before it"
            raise UserError(f"{target}: the checkpoint could not be written ({error.strerror or error}); {kept}; make room and run the same command again") from error
        if self.keep_last is not None:
            for old in [p for p in self.paths() if p <= target][: -self.keep_last]:  # later ones were passed over as damaged
                shutil.rmtree(old, ignore_errors=True)
        return target

    def forget_after(self, nimg: int) -> None:
        """Delete what is later than `nimg` images: a run that is taken up again there will write it anew."""
        for path in self.paths():
            if int(path.name) > nimg:
                shutil.rmtree(path, ignore_errors=True)

    def clear_drafts(self) -> None:
        """Delete what a kill in the middle of writing has left."""
        if self.folder.is_dir():
            for left in self.folder.glob(f"{WRITING}{'[0-9]' * 12}"):  # named averages are somebody else's, perhaps being written now
                shutil.rmtree(left, ignore_errors=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones are named and passed over.

        Raises:
            UserError: there are checkpoints, and every one is damaged.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                verify(path)
                return path
            except Damaged as error:
                self.say(f"{error}; passed over")
        if paths:
            raise UserError(f"{self.folder}: none of its {len(paths)} checkpoints is whole; delete the folder to start anew")
        return None


def write(target: Path, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write one folder, whole or not at all; one that is there under this name is replaced.

    Raises:
        OSError: it could not be written.
    """
    draft = target.parent / f"{WRITING}{target.name}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        files = {}
        for group, named in tensors.items():
            files[f"{group}.safetensors"] = written(draft / f"{group}.safetensors", to_bytes(plain(named)))
        files[STATE] = written(draft / STATE, canonical(dict(state)))
        written(draft / MANIFEST, sealed({"format": FORMAT, "nimg": nimg, "files": files}))
        sync_folder(draft)
        if target.exists():  # of an earlier try, and passed over as damaged
            shutil.rmtree(target)
        os.rename(draft, target)
        sync_folder(target.parent)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def read(path: Path, groups: Iterable[str] | None = None) -> Snapshot:
    """The content of a checkpoint, or only the named groups of tensors.

    Raises:
        Damaged: a file is missing, cut, or altered.
    """
    manifest = read_manifest(path)
    wanted = [name for name in manifest["files"] if name.endswith(".safetensors")]
    if groups is not None:
        wanted = [f"{group}.safetensors" for group in groups]
    tensors = {}
    for name in wanted:
        try:
            tensors[name.removesuffix(".safetensors")] = from_bytes(checked(path, name, manifest))
        except SafetensorError as error:
            raise Damaged(f"{path / name}: is no safetensors file ({error})") from error
    return Snapshot(manifest["nimg"], tensors, json.loads(checked(path, STATE, manifest)))


def groups_of(path: Path) -> list[str]:
    """Names of the groups of tensors in a checkpoint."""
    return [name.removesuffix(".safetensors") for name in read_manifest(path)["files"] if name.endswith(".safetensors")]


def verify(path: Path) -> None:
    """Raise `Damaged` unless every file is there with the size and sum that the manifest says."""
    manifest = read_manifest(path)
    for name in manifest["files"]:
        checked(path, name, manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, itself checked against its own seal."""
    try:
        data = (path / MANIFEST).read_bytes()
        manifest = json.loads(data)
        body = {key: value for key, value in manifest.items() if key != "seal"}
        if sealed(body) != data:
            raise Damaged(f"{path / MANIFEST}: the manifest was altered")
        if manifest["format"] != FORMAT:
            raise Damaged(f"{path / MANIFEST}: format {manifest['format']} is not the one that this version of gantrain reads ({FORMAT}); go on with the version that wrote it, or use another run_dir")
        return manifest
    except Damaged:
        raise
    except OSError as error:
        raise Damaged(f"{path / MANIFEST}: the manifest cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{path / MANIFEST}: the manifest is no JSON that this version wrote") from error


def checked(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """A file's bytes, if they are those that were written."""
    wanted = manifest["files"].get(name)
    if wanted is None:
        raise Damaged(f"{path}: holds no {name}")
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise Damaged(f"{path / name}: cannot be read ({error.strerror})") from error
    if len(data) != wanted["bytes"]:
        raise Damaged(f"{path / name}: has {len(data)} bytes where {wanted['bytes']} were written")
    if hashlib.sha256(data).hexdigest() != wanted["sha256"]:
        raise Damaged(f"{path / name}: its SHA-256 is not that of what was written")
    return data


def written(path: Path, data: bytes) -> dict[str, Any]:
    """Write and sync a file; its entry in the manifest."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()


def sealed(body: Mapping[str, Any]) -> bytes:
    """A manifest with a sum over itself, in the one spelling that is accepted."""
    return canonical({**body, "seal": hashlib.sha256(canonical(body)).hexdigest()})


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, sharing no memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
