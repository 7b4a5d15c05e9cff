"""Safe unpacking of downloaded archives: no member is written outside the target folder."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from gantrain.errors import UserError, one_line

BLOCK = 2**20


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar (compressed or not) or zip archive. All members are checked before the first one is written.

    Raises:
        UserError: the file is neither a tar nor a zip, or a member would leave the folder or is a link or a device.
        OSError: a file cannot be written.
    """
    members: list[tuple[str, bool, bool, Any]]
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                members = [(m.name, m.isdir(), m.isfile(), m) for m in opened]
                write_members(archive, folder, members, opened.extractfile)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                members = [(m.filename, m.is_dir(), plain(m), m) for m in opened.infolist()]
                write_members(archive, folder, members, opened.open)
        else:
            raise UserError(f"{archive}: is not a tar or zip archive; delete it and download it again")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{archive}: cannot be read as an archive ({one_line(error)}); delete it and download it again") from error


def plain(member: zipfile.ZipInfo) -> bool:
    """Whether a zip's member is a regular file. The kind is 0 in archives made on systems without Unix file modes."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    return kind in (0, stat.S_IFREG)


def write_members(archive: Path, folder: Path, members: list[tuple[str, bool, bool, Any]], open_member: Callable[[Any], Any]) -> None:
    """Write members below a folder.

    Args:
        members: (name, whether it is a folder, whether it is a regular file, the member itself) each.
        open_member: opens a member for reading bytes.

    Raises:
        UserError: as `unpack`.
    """
    unsafe = "the archive is unsafe: do not use it"
    for name, is_folder, is_file, _ in members:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts or ":" in (parts[0] if parts else ""):
            raise UserError(f"{archive}: its member {name!r} would be written outside {folder}; {unsafe}")
        if not (is_folder or is_file):
            raise UserError(f"{archive}: its member {name!r} is a link or a device; {unsafe}")
    for name, is_folder, _, member in members:
        target = folder / name
        if folder.resolve() not in [target.resolve(), *target.resolve().parents]:  # through a link that already exists in the folder
            raise UserError(f"{archive}: its member {name!r} would be written outside {folder}; {unsafe}")
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member(member) as source, open(target, "wb") as file:
            while block := source.read(BLOCK):
                file.write(block)
