"""Files of results, which are checked before hours are spent on their content."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gantrain.atomic_file import write_atomically
from gantrain.errors import UserError
from gantrain.run_folder.json_values import as_json

OF_A_RUN = ("state.json", "manifest.json", "rollback.json")  # files that a run resumes from


def free_name(folder: Path, stem: str) -> Path:
    """The first of stem.json, stem-2.json, ... that does not exist, so that an evaluation never overwrites another."""
    names = (f"{stem}{f'-{i}' if i > 1 else ''}.json" for i in itertools.count(1))
    return next(folder / name for name in names if not (folder / name).exists())


def target_of(out: str | Path | None, folder: Path, stem: str) -> Path:
    """Where results will be saved: `out`, or a free name in `folder`. Creates the folder and checks that it is writable.

    Raises:
        UserError: no JSON file can be written there; nothing has been computed yet.
    """
    target = Path(out) if out is not None else free_name(folder, stem)
    if target.suffix.lower() != ".json" or {target.name, os.path.basename(os.path.realpath(target))} & set(OF_A_RUN):
        raise UserError(f"--out: {str(target)!r} must be a new .json file")
    if target.is_symlink():  # write the file that it points to: a rename would replace the link
        target = Path(os.path.realpath(target))
    if target.is_dir() or not all(parent.is_dir() for parent in target.parents if parent.exists()):
        raise UserError(f"--out: {str(target)!r} is {'a folder' if target.is_dir() else 'inside a file'}; choose another path")
    probe = target.with_name(f".{target.stem}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        remedy = "choose another with --out" if out is not None or stem.isdigit() else "make it writable"
        raise UserError(f"{target.parent}: is not writable ({error.strerror}), and results are saved there; {remedy}") from error
    return target


def write(target: Path, body: Mapping[str, Any]) -> None:
    """Write results as JSON, with nan and infinities as strings."""
    write_atomically(target, json.dumps(as_json(body), indent=1) + "\n")


def keep_result(target: Path, body: Mapping[str, Any], out: str | Path | None) -> Path:
    """Write results where `target_of` said for this `out`; returns where they are."""
    if out is None:
        return write_new(target, body)
    write(target, body)
    return target


def write_new(target: Path, body: Mapping[str, Any]) -> Path:
    """Write results beside those of a command that has taken the same free name meanwhile, and never over them.

    Returns:
        Where they are: `target`, or the next free name.
    """
    written = target.with_name(f".{target.stem}-{os.getpid()}.new{target.suffix}")
    write(written, body)
    try:
        while True:
            try:
                os.link(written, target)  # fails if there is such a file, as a rename does not
                return target
            except FileExistsError:
                target = free_name(target.parent, target.stem)
            except OSError:  # a file system without hard links
                os.replace(written, target)
                return target
    finally:
        written.unlink(missing_ok=True)
