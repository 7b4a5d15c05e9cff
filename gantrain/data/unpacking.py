"""Archives from elsewhere are data: nothing in one is written outside the folder that it is unpacked to."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from gantrain.errors import UserError, one_line

BLOCK = 2**20


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar (compressed or not) or zip archive: its folders and plain files, all of them looked at before the first is written.

    Raises:
        UserError: it is neither, or a member's name leaves the folder, or a member is a link or a device; it is named.
        OSError: a file cannot be written.
    """
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
            raise UserError(f"{archive}: is no tar or zip archive; delete it and fetch it again")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{archive}: cannot be read as an archive ({one_line(error)}); delete it and fetch it again") from error


def plain(member: zipfile.ZipInfo) -> bool:
    """Whether a zip's member is a file and no link; one made where there are no such things does not say."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    return kind in (0, stat.S_IFREG)


def write_members(archive: Path, folder: Path, members: list[tuple], open_member) -> None:
    """Write members, (name, is a folder, is a plain file, itself) each, below a folder."""
    for name, is_folder, is_file, _ in members:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts or ":" in (parts[0] if parts else ""):
            raise UserError(f"{archive}: its member {name!r} would be written outside {folder}; this is no archive of data: do not use it")
        if not (is_folder or is_file):
            raise UserError(f"{archive}: its member {name!r} is a link or a device; this is no archive of data: do not use it")
    for name, is_folder, _, member in members:
        target = folder / name
        if folder.resolve() not in [target.resolve(), *target.resolve().parents]:  # through a link that is there already
            raise UserError(f"{archive}: its member {name!r} would be written outside {folder}; this is no archive of data: do not use it")
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member(member) as source, open(target, "wb") as file:
            while block := source.read(BLOCK):
                file.write(block)
