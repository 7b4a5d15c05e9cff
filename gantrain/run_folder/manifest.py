"""The manifest of a checkpoint: what its files must be, and what an error of reading them means.

Five things can be wrong, and each asks for something else: a checkpoint is `Damaged` (the one before is taken), it has `Gone` while it
was read (look again), it is `Misnamed`, it is of an `OtherFormat`, or it is `Unreadable`. The last three are probably whole, so the run
is refused; only readers take the one before a misnamed one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from safetensors import SafetensorError, safe_open

from gantrain.errors import UserError, brief, counted, in_words
from gantrain.regular_file import PIECE, NotAFile, TooLarge, open_regular, read_regular
from gantrain.run_folder.held import Held, find_held, forget, keep_open
from gantrain.run_folder.state_form import LARGEST_WHOLE, State, find_fault
from gantrain.version import __version__

FORMAT = 4
MANIFEST = "manifest.json"
STATE = "state.json"
KEPT = "kept"  # an empty file in a checkpoint that is kept permanently, whatever the settings say later
LARGEST_MANIFEST = 64 << 20  # bytes
LARGEST_STATE = 1 << 30  # bytes
LARGE = 1 << 30  # bytes: above, a file's head is looked at before the file is read
LARGEST_HEAD = 100_000_000  # bytes, of a safetensors file; as the library has it
HIDDEN = re.compile(r"\.[a-z]+-(\d{12})(?:-\d+)?")  # a checkpoint that is being written, replaced or deleted
TENSORS = ".safetensors"
# The file or folder is not there, or it is something else: all other errors say that it may not or cannot be read now.
MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


class Damaged(UserError):
    """A checkpoint whose files differ from those that were written."""


class Misnamed(Damaged):
    """A checkpoint in a folder whose name is that of another moment. It may be whole: nothing may be deleted before it is renamed."""


class Gone(Damaged):
    """A checkpoint that was deleted or replaced while it was read, as a run that trains does; look again for the newest one."""


class OtherFormat(UserError):
    """A checkpoint that another version of gantrain wrote. It is whole, so nothing of its run may be deleted or overwritten."""


class Unreadable(UserError):
    """A checkpoint, or a folder of checkpoints, that may not or cannot be read now. It may well be whole, so it is not passed over."""


def unreadable(path: Path, error: OSError) -> Unreadable:
    """The error of a file or folder that exists and cannot be read."""
    return Unreadable(
        f"{path}: cannot be read ({error.strerror or error}), and it may be whole; make it readable (permissions, disk, memory) and run the"
        " same command again, or move this checkpoint elsewhere to use the one before it"
    )


def unlistable(folder: Path, error: OSError) -> Unreadable:
    """The error of a folder of checkpoints that exists and cannot be listed."""
    return Unreadable(f"{folder}: cannot be listed ({error.strerror or error}); make it readable, or use another run folder")


def is_missing(error: OSError) -> bool:
    """Whether an error of reading says that there is no such file, rather than that it cannot be read."""
    return error.errno in MISSING or isinstance(error, (NotAFile, TooLarge))


def moment_in(name: str) -> int | None:
    """Images seen, as the name of a checkpoint's folder says; None for other names."""
    found = HIDDEN.fullmatch(name)
    return int(found[1]) if found else int(name) if name.isdecimal() else None


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, checked against its own seal and the folder's name.

    Raises:
        Damaged: it is missing or altered.
        Misnamed: it is that of another moment.
        Gone: there is no such folder.
        OtherFormat: another version wrote it.
        Unreadable: it cannot be read.
    """
    file = path / MANIFEST
    try:
        with open_file(file, LARGEST_MANIFEST) as opened:
            data = opened.read()
    except FileNotFoundError as error:
        if not os.path.lexists(path):
            raise Gone(f"{path}: has gone") from error
        raise Damaged(f"{file}: does not exist, as after a copy or a deletion that was interrupted") from error
    except OSError as error:
        if is_missing(error):
            raise Damaged(f"{file}: the manifest cannot be read ({error.strerror})") from error
        raise unreadable(file, error) from error
    try:
        manifest = json.loads(data)
        written_here = is_sealed(manifest, data)
        require_format(path, manifest, data)
        if not written_here:
            raise Damaged(f"{file}: the manifest was altered")
        nimg, files = manifest["nimg"], manifest["files"]
        if type(nimg) is not int or not 0 <= nimg <= LARGEST_WHOLE or not all(is_entry(name, entry) for name, entry in files.items()):
            raise Damaged(f"{file}: names files outside this folder, or lacks their checksums")
    except UserError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{file}: the manifest is not JSON that this version wrote") from error
    require_moment(path, nimg)
    return manifest


def is_sealed(manifest: Mapping[str, Any], data: bytes) -> bool:
    """Whether a manifest is exactly what `seal` makes of it."""
    return seal({key: value for key, value in manifest.items() if key != "seal"}) == data


def is_entry(name: str, entry: Any) -> bool:
    """Whether a manifest's entry can be that of a file in the folder."""
    inside = Path(name).name == name and name not in ("", ".", "..")
    return inside and type(entry["bytes"]) is int and entry["bytes"] >= 0 and isinstance(entry["sha256"], str)


def require_format(path: Path, manifest: Mapping[str, Any], data: bytes) -> None:
    """Refuse a manifest of another format, whatever its form.

    Raises:
        OtherFormat: names the format, and the version that wrote it if that is known.
    """
    there = manifest["format"]
    if there == FORMAT:
        return
    if isinstance(there, bool) or not isinstance(there, (int, str)):
        raise Damaged(f"{path / MANIFEST}: the manifest is not JSON that this version wrote")
    spelt = f'"format": {json.dumps(there)}'.encode()
    if is_sealed({**manifest, "format": FORMAT}, data.replace(spelt, f'"format": {FORMAT}'.encode(), 1)):
        return  # a digit was altered: the seal is that of this format
    version = version_of(path, manifest)
    wrote = f", written by gantrain {version}" if version else ""
    which = f"gantrain {version}" if version else "the version of gantrain that wrote it"
    raise OtherFormat(
        f"{path / MANIFEST}: has format {there}{wrote}, and gantrain {__version__} reads format {FORMAT};"
        f" use {which} for this run, or another run_dir; nothing was changed"
    )


def require_formats(folder: Path) -> None:
    """Refuse a folder in which any checkpoint, also a hidden one, is of another format. Nothing is changed.

    Damaged and unreadable ones tell no format; whoever needs one of them reports it.

    Raises:
        OtherFormat: names one of another format.
        Misnamed: none is of another format, and one has the name of another moment.
        Unreadable: the folder cannot be listed.
    """
    misnamed: Misnamed | None = None
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        if is_missing(error):
            return
        raise unlistable(folder, error) from error
    for name in names:
        try:
            read_manifest(folder / name)
        except Misnamed as error:
            misnamed = error
        except (Damaged, Unreadable):
            pass
    if misnamed:
        raise misnamed


def version_of(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """The version of gantrain that wrote a checkpoint of another format, from its manifest or its state; None if neither says."""
    state: Any = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        state = json.loads(read_regular(path / STATE, LARGEST_MANIFEST))
    for values in (manifest, state):
        found = values.get("gantrain") if isinstance(values, dict) else None
        if isinstance(found, str) and found:
            return found
    return None


def require_moment(path: Path, nimg: int) -> None:
    """Refuse a folder whose name says another moment than its manifest.

    Raises:
        Misnamed: names both, and how the folder must be called.
    """
    named = moment_in(path.name)
    if named is not None and named != nimg:
        right = f"{nimg:012d}"
        taken = f", after the folder that has this name now: {path.parent / right}" if (path.parent / right).exists() else ""
        raise Misnamed(
            f"{path}: is named for {named} images seen ({named / 1000:g} kimg), but its {MANIFEST} is that of {nimg} images"
            f" ({nimg / 1000:g} kimg); rename the folder to {right}{taken}"
        )


def require_names(paths: Iterable[Path]) -> None:
    """Refuse checkpoints of which one has the name of another moment, where all count as damaged: it may be whole.

    Raises:
        Misnamed: see there.
    """
    for path in paths:
        try:
            read_manifest(path)
        except Misnamed:
            raise
        except UserError:
            pass


@contextlib.contextmanager
def notice_replacement(path: Path) -> Iterator[None]:
    """Within this context, damage of a folder that changes meanwhile is the error `Gone`."""
    before, held = identity(path), find_held(path)  # which is kept: else its files could be closed meanwhile, and the identity differ
    try:
        yield
    except (Damaged, Unreadable) as error:
        if isinstance(error, Gone) or held is not None or identity(path) == before:
            raise
        raise Gone(f"{path}: was deleted or replaced while it was read") from error


def identity(path: Path) -> tuple[int, int, int] | None:
    """What changes if a folder is replaced, or anything in it is deleted; None if it cannot be known, or if its files are held."""
    if find_held(path) is not None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def hold(path: Path) -> Held:
    """Open all files of a checkpoint, so that everything here reads it to the end even if the run deletes or replaces it meanwhile.

    Returns:
        What must be kept as long as the checkpoint is read. For a damaged one it has the files that are there.

    Raises:
        Gone: it was deleted or replaced before all files were open.
        OtherFormat, Unreadable: as in `read_manifest`.
    """
    if (found := find_held(path)) is not None:
        if found.is_current():
            return found
        forget(found)  # a run has replaced it since
    before, names = identity(path), [MANIFEST]
    with contextlib.suppress(Damaged), notice_replacement(path):
        names += read_manifest(path)["files"]
    try:
        held = Held(path, names)
    except OSError:  # too many open files, or a file that may not be read: what reads it says so
        held = Held(path, [])
    if before is None or identity(path) != before:
        raise Gone(f"{path}: was deleted or replaced while it was read")
    return held if held.is_empty else keep_open(held)


def open_file(file: Path, at_most: int | None = None) -> IO[bytes]:
    """Open a file of a checkpoint; arguments and errors as in `open_regular`. One that is held need not exist any longer."""
    held = find_held(file.parent)
    return (held.open(file.name, at_most) if held else None) or open_regular(file, at_most)


def path_of(file: Path) -> Path:
    """The path under which a library finds a file of a checkpoint; one that is held need not exist under its own."""
    held = find_held(file.parent)
    return (held.path(file.name) if held else None) or file


def verify(path: Path) -> None:
    """Make sure that every file has the size and sum that the manifest says; little memory is needed.

    Raises:
        Damaged, Gone, OtherFormat, Unreadable: see there.
    """
    with notice_replacement(path):
        manifest = read_manifest(path)
        for name in manifest["files"]:
            if name == STATE:
                continue
            for _ in checked_pieces(path, name, manifest):
                pass
            if name.endswith(TENSORS):  # a checksum does not prove the format: the manifest may be forged too
                require_tensors(path / name)
        state_in(path, manifest)


def all_damaged(folder: Path, paths: Sequence[Path], what: str, also: str = "") -> UserError:
    """The error that none of some checkpoints is whole. It names the newest one's file and what is wrong with it.

    Args:
        folder: in which they are.
        paths: of the checkpoints, oldest first.
        what: they are, such as "checkpoint".
        also: another remedy than a copy, such as ", or delete this folder to start over".
    """
    try:
        verify(paths[-1])
        fault = paths[-1].name  # it has been restored meanwhile
    except UserError as error:
        fault = str(error).removeprefix(f"{folder}{os.sep}")
    if len(paths) == 1:
        return UserError(f"{folder}: its only {what} is damaged ({fault}); restore it from a copy{also}")
    others = counted(len(paths) - 1, "other")
    return UserError(
        f"{folder}: all of its {len(paths)} {what}s are damaged (the newest: {fault}; and {others}); restore one of them from a copy{also}"
    )


def require_tensors(file: Path) -> None:
    """Refuse a file of a checkpoint that is not a safetensors file, by its head.

    Raises:
        Damaged: says why.
    """
    try:
        with safe_open(path_of(file), "pt"):
            pass
    except SafetensorError as error:
        raise Damaged(f"{file}: is not a safetensors file ({brief(error)})") from error
    except OSError as error:
        raise (
            Damaged(f"{file}: cannot be read ({error.strerror or 'missing'})") if is_missing(error) else unreadable(file, error)
        ) from error


def state_in(path: Path, manifest: Mapping[str, Any]) -> State:
    """The JSON values of a checkpoint whose manifest was read. To ask for a key that it lacks raises `Damaged`, too.

    Raises:
        Damaged: it is not what was written, or not what this version writes.
        Unreadable: it cannot be read.
    """
    file, data = path / STATE, read_checked(path, STATE, manifest)

    def refuse(key: str) -> NoReturn:
        raise Damaged(f"{file}: has no {key!r}, which this version writes")

    of_training = f"optimizer_g{TENSORS}" in manifest["files"]  # then all keys at lower levels are there, too
    try:
        state = json.loads(data, object_hook=None if of_training else lambda values: State(values, refuse))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file}: is not JSON that this version wrote") from error
    if not isinstance(state, dict):
        raise Damaged(f"{file}: is not JSON that this version wrote")
    if key := find_fault(state, of_training):
        raise Damaged(f"{file}: {key} is missing, or is not what this version writes")
    return State(state, refuse)


def size_in_head(file: IO[bytes]) -> int | None:
    """The size of a safetensors file by its head, in bytes; None if that cannot be read. The file is then at its beginning."""
    try:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length)) if length <= LARGEST_HEAD else {}
        ends = [one["data_offsets"][1] for name, one in head.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    finally:
        file.seek(0)


def read_checked(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """A file's bytes.

    Raises:
        Damaged: they differ from those that were written.
        Unreadable: they cannot be read.
    """
    return b"".join(checked_pieces(path, name, manifest))


def checked_pieces(path: Path, name: str, manifest: Mapping[str, Any]) -> Iterator[bytes]:
    """A file's bytes in pieces. Sizes are compared before anything is read, and the sum after the last piece.

    Raises:
        Damaged: they differ from those that were written.
        Unreadable: they cannot be read.
    """
    file, wanted = path / name, manifest["files"].get(name)
    if wanted is None:
        raise Damaged(f"{path}: does not contain {name}")
    total, size = hashlib.sha256(), 0
    try:
        with open_file(file) as opened:
            there = os.fstat(opened.fileno()).st_size
            if there != wanted["bytes"]:
                raise Damaged(f"{file}: has {there} bytes; the manifest has {wanted['bytes']}")
            if name == STATE and there > LARGEST_STATE:
                raise Damaged(f"{file}: has {in_words(there)}, and {in_words(LARGEST_STATE)} is the most")
            if there > LARGE and name.endswith(TENSORS) and size_in_head(opened) != there:  # a hole of any size costs nothing on a disk
                raise Damaged(f"{file}: is not a safetensors file (its head says another size)")
            while size < there and (piece := opened.read(min(PIECE, there - size))):
                total.update(piece)
                size += len(piece)
                yield piece
    except OSError as error:
        if error.errno == errno.ESTALE:  # another machine has deleted it
            raise Gone(f"{path}: was deleted or replaced while it was read") from error
        if is_missing(error):
            raise Damaged(f"{file}: cannot be read ({error.strerror})") from error
        raise unreadable(file, error) from error
    if total.hexdigest() != wanted["sha256"]:
        raise Damaged(f"{file}: its SHA-256 differs from that in the manifest")


def canonical(value: Any) -> bytes:
    """A value as JSON, in the only form that manifests have."""
    return json.dumps(value, sort_keys=True, indent=1).encode()


def seal(body: Mapping[str, Any]) -> bytes:
    """A manifest with a checksum of itself, in the only form that is accepted."""
    return canonical({**body, "seal": hashlib.sha256(canonical(body)).hexdigest()})
