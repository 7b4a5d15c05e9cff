"""Safe unpacking of downloaded archives: no member is written outside the target folder."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gantrain.errors import UserError, brief, in_words
from gantrain.regular_file import check_regular, open_regular

BLOCK = 2**20
# First bytes of a compressed file -> how `tarfile` reads it; LZMA has a form without them, which begins with its usual settings.
COMPRESSED: dict[bytes, Literal["r:gz", "r:bz2", "r:xz"]] = {
    b"\x1f\x8b": "r:gz", b"BZh": "r:bz2", b"\xfd7zXZ\0": "r:xz", b"\x5d\0\0": "r:xz",
}  # fmt: skip


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar (compressed or not) or zip archive. All members are checked before the first one is written.

    Raises:
        UserError: the file is neither a tar nor a zip, or damaged, or a member would leave the folder or is a link or a device, or the
            disk does not hold all members.
        OSError: a file cannot be written.
    """
    members: list[tuple[str, bool, bool, Any]]
    with translate_errors(archive):
        tar = open_tar(archive)
        is_zip = tar is None and zipfile.is_zipfile(archive)
    if tar is None and not is_zip:
        raise UserError(f"{archive}: is not a tar or zip archive; delete it and download it again")
    with translate_errors(archive):
        opened: Any = zipfile.ZipFile(archive) if tar is None else tar
    is_tar = tar is not None
    with opened:
        with translate_errors(archive):
            if is_tar:
                members = [(m.name, m.isdir(), m.isfile(), m) for m in opened]
            else:
                members = [(m.filename, m.is_dir(), plain(m), m) for m in opened.infolist()]
        if not members:
            raise UserError(f"{archive}: is an archive without files; delete it and download it again")
        size = sum(m.size if is_tar else m.file_size for *_, m in members)
        refuse_small_disk(archive, folder, size)
        write_members(archive, folder, members, opened.extractfile if is_tar else opened.open)


def open_tar(archive: Path) -> tarfile.TarFile | None:
    """Open a tar, compressed as its first bytes say; None if it is not one.

    `tarfile` tries one compression after the other, and searches all of a file of zeros for the beginning of an LZMA stream.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(archive) as file:
        start = file.read(8)
    mode: Literal["r:", "r:gz", "r:bz2", "r:xz"] = next((mode for magic, mode in COMPRESSED.items() if start.startswith(magic)), "r:")
    try:
        return tarfile.open(archive, mode)
    except tarfile.ReadError:
        if mode != "r:":
            raise
        return None


@contextmanager
def translate_errors(archive: Path) -> Iterator[None]:
    """Within this context, around reading with tarfile or zipfile, everything raised becomes the UserError of a damaged archive.

    At a damaged one they raise almost anything: TarError, BadZipFile, zlib.error, struct.error, UnicodeDecodeError, RuntimeError.
    """
    try:
        yield
    except Exception as error:
        why = getattr(error, "strerror", None) or brief(error)
        raise UserError(f"{archive}: cannot be read as an archive ({why}); delete it and download it again") from error


def refuse_small_disk(archive: Path, folder: Path, size: int) -> None:
    """Refuse to unpack what the disk does not hold.

    Args:
        size: of all members, in bytes.

    Raises:
        UserError: the disk is too small.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise UserError(
            f"{archive}: unpacks to {in_words(size)}, and only {in_words(free, down=True)} are free in {there}; free some space"
        )


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
        if target.exists():
            check_regular(target)  # opening a pipe for writing would wait for a reader
        with translate_errors(archive):
            source = open_member(member)
        with source, open(target, "wb") as file:
            while block := read_block(archive, source):
                file.write(block)


def read_block(archive: Path, source: Any) -> bytes:
    """The next bytes of a member.

    Raises:
        UserError: it is damaged.
    """
    with translate_errors(archive):
        return source.read(BLOCK)
