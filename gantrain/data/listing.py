"""Which files of a folder or a zip are images, and which are passed over: one listing for training, preparing and scoring.

Every folder is read once. A link to a folder elsewhere is followed; a link to a folder that is read anyway, or that contains the link,
is passed over. A link to a file is a file of its own, as in data sets that are made of links to a store; where several names lead to one
file, the notes say so. What other programs leave behind (hidden files, `__MACOSX`, thumbnails) is not part of a data set.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, features

from gantrain.data.imageset import printable
from gantrain.errors import UserError, counted, one_line

PILLOW = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
PLUGINS = {".avif": "pillow>=11.3", ".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif"}  # what else decodes them
LABELS = "dataset.json"
# Folders and files that other programs make; all hidden ones (.thumbnails, .ipynb_checkpoints, .DS_Store, ._x.jpg) are passed over too.
LEFT_BEHIND = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
# Why files are passed over; each completes "3 files are ...".
IN_FOLDERS = "in folders of other programs"
HIDDEN = "hidden or left by other programs"
NO_IMAGES = "without the extension of an image"
SPECIAL = "neither file nor folder"
BROKEN = "linked to nothing"
COUNTED = "linked to a folder that is read anyway or that contains the link"
READ_ELSEWHERE = "in folders that are read under another name"
IN_ZIP = "linked in the zip, which is not followed"
LOOSE = "outside the class folders"
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of a link to something that does not exist, or to itself
NAMED = 4  # how many kinds a note names for one reason


def find_readable() -> frozenset[str]:
    """Returns the extensions of the images that the installed Pillow decodes, with its plug-ins pillow-heif and pillow-avif-plugin."""
    found = set(PILLOW)
    with suppress(ImportError):
        import pillow_avif  # noqa: F401 - registers itself
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found |= {".heic", ".heif", ".hif"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow before 11.3 does not know this feature
        if features.check("avif") or ".avif" in Image.EXTENSION:
            found.add(".avif")
    return frozenset(found)


EXTENSIONS = find_readable()


@dataclass
class Listing:
    """The images of a folder or zip.

    Attributes:
        files: paths relative to the folder, with `/`; in a folder sorted component by component, in a zip as text.
        folders: names of the folders directly inside, with or without images; of a folder only.
        passed: why files were passed over, and how many of each kind: reason -> {kind: count}.
        followed: how many links to folders were followed.
        same: how many images are links to a file that is listed under another name as well.
        hard: how many images are further hard links to a file that is listed already.
        repeated: how many names a zip has several times; the last entry of each counts, as when it is unpacked.
        members: entries of a zip, in the order of `files`.
        lists: paths of all files called dataset.json, in upper or lower case, which may have the labels.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed: dict[str, Counter[str]] = field(default_factory=dict)
    followed: int = 0
    same: int = 0
    hard: int = 0
    repeated: int = 0
    members: list[zipfile.ZipInfo] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)

    def pass_over(self, reason: str, kind: str, count: int = 1) -> None:
        """Count files that are passed over."""
        if count:
            self.passed.setdefault(reason, Counter())[kind] += count

    def add(self, name: str, broken: bool = False) -> bool:
        """List a file if its extension is that of an image, and otherwise count it as passed over. Returns whether it was listed.

        Args:
            name: relative path.
            broken: whether it is a link that leads nowhere. A missing image is one that cannot be read, so it is listed.
        """
        extension = os.path.splitext(name)[1].lower()
        if extension in EXTENSIONS:
            self.files.append(name)
            return True
        if zip_components(name)[-1].lower() == LABELS:
            self.lists.append(name)  # a broken link, too: reading it says so, while classes of folders would be wrong ones
        elif broken:
            self.pass_over(BROKEN, printable(name))
        elif extension in PLUGINS:
            self.pass_over(f"unreadable for this Pillow until you pip install {PLUGINS[extension]!r}", extension)
        else:
            self.pass_over(NO_IMAGES, printable(extension) or "no extension")
        return False

    def notes(self) -> list[str]:
        """What a user should know about the listing, a line each."""
        lines = []
        if self.passed:
            lines.append(f"passed over: {self.passed_in_words()}")
        if self.followed:
            lines.append(f"followed {counted(self.followed, 'link')} to folders elsewhere")
        if self.same:
            lines.append(f"links to a file that is also listed under another name: {self.same:,}; each counts as an image")
        if self.hard:
            lines.append(f"further hard links to a file that is also listed under another name: {self.hard:,}; each counts as an image")
        if self.repeated:
            lines.append(f"further entries of the zip under a name that it already has: {self.repeated:,}; the last of each name counts")
        return lines

    def passed_in_words(self) -> str:
        """What was passed over and why, as "3 hidden or left by other programs (.DS_Store 2, ._a.png); 1 linked to nothing (a/b)"."""
        parts = []
        for reason, kinds in sorted(self.passed.items(), key=lambda one: (-one[1].total(), one[0])):
            ordered = sorted(kinds.items(), key=lambda one: (-one[1], one[0]))
            named = [kind if count == 1 else f"{kind} {count:,}" for kind, count in ordered[:NAMED]]
            more = f" and {len(kinds) - NAMED:,} more" if len(kinds) > NAMED else ""
            parts.append(f"{kinds.total():,} {reason} ({', '.join(named)}{more})")
        return "; ".join(parts)

    def require(self, where: str, remedy: str = "") -> None:
        """Refuse a listing without images.

        Args:
            where: the folder or zip, for the message.
            remedy: the end of the message.

        Raises:
            UserError: names the extensions that are looked for, and what was passed over.
        """
        if not self.files:
            over = f"; passed over: {self.passed_in_words()}" if self.passed else ""
            known = [*sorted(PILLOW), *sorted(EXTENSIONS - PILLOW)]
            raise UserError(f"{where} contains no images ({', '.join(known)}){over}{remedy}")


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or was made by a program for its own use."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def components(name: str) -> list[str]:
    """The components of a relative path with `/`. Sorting by them is sorting as `pathlib` does."""
    return name.split("/")


# ---- folders ---------------------------------------------------------------------------------------------------------


def list_folder(root: Path) -> Listing:
    """Lists the image files below a folder.

    Folders that are reached without a link are read first, so an image belongs to the folder that really contains it.

    Raises:
        UserError: a folder cannot be listed.
    """
    found, walk = Listing(), Walk(root)
    links = walk.read("", found)
    while links:
        name = links.pop(0)
        if walk.may_follow(name):
            found.followed += 1
            links += walk.read(name, found)
        else:
            found.pass_over(COUNTED, printable(name))
            if name in found.folders:
                found.folders.remove(name)
    found.same, found.hard = walk.count_same(found.files), walk.count_hard(found.files)
    found.files.sort(key=components)
    found.folders.sort()
    return found


class Walk:
    """One walk over a folder and what its links lead to.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root, self.real_root = str(root), os.path.realpath(root)
        self.seen: dict[object, str] = {}  # what tells a folder apart, to the relative path under which it was read
        self.real: dict[str, str] = {}  # relative path of a folder that has been read, to its path without links
        self.linked: list[str] = []
        self.numbers = array("Q")  # inode of each image in the order of reading, which costs no further look at the file; 0 of links

    def path(self, name: str) -> str:
        """The path of a file or folder, given by its relative path."""
        return os.path.join(self.root, name) if name else self.root

    def may_follow(self, name: str) -> bool:
        """Whether a link leads to a folder that has not been read and that contains neither the link nor the root."""
        there = os.path.realpath(self.path(name))
        here = self.real[name.rpartition("/")[0]]
        return key_of(there) not in self.seen and not any(is_inside(one, there) for one in (here, self.real_root))

    def read(self, start: str, found: Listing) -> list[str]:
        """Lists the images in a folder and in the folders below it that are not links. Returns the links to folders, sorted.

        Raises:
            UserError: a folder cannot be listed, or it cannot be known whether something in it is a folder.
        """
        links, waiting = [], [(start, os.path.realpath(self.path(start)))]
        while waiting:
            folder, real = waiting.pop()
            if (key := key_of(real)) in self.seen:
                other = f"{printable(folder)}, read as {printable(self.seen[key]) or '.'}"
                found.pass_over(READ_ELSEWHERE, other, count_files(self.path(folder)))
                continue
            self.seen[key] = folder
            self.real[folder] = real
            for entry in self.entries(folder):
                name = f"{folder}/{entry.name}" if folder else entry.name
                kind, link = self.kind_of(entry)
                if is_left_behind(entry.name):
                    count = count_files(entry.path) if kind == "folder" and not link else 1
                    found.pass_over(IN_FOLDERS if kind == "folder" else HIDDEN, printable(entry.name), count)
                elif kind == "folder":
                    if not folder:
                        found.folders.append(name)
                    if link:
                        links.append(name)
                    else:
                        waiting.append((name, os.path.join(real, entry.name)))
                elif kind == "special" and entry.name.lower() != LABELS:
                    found.pass_over(SPECIAL, printable(name))
                elif found.add(name, broken=kind == "nothing"):
                    self.numbers.append(0 if link else entry.inode())
                    if link:
                        self.linked.append(name)
        return sorted(links, key=components)

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What a folder contains.

        Raises:
            UserError: it cannot be listed.
        """
        try:
            with os.scandir(self.path(folder)) as opened:
                return list(opened)
        except OSError as error:
            path = printable(self.path(folder))
            raise UserError(f"{path}: cannot be listed ({error.strerror or one_line(error)}); make it readable or move it away") from None

    def kind_of(self, entry: os.DirEntry[str]) -> tuple[str, bool]:
        """(What a folder's entry is, see `kind_of`; whether it is a link).

        Raises:
            UserError: it cannot be known, and it may be a folder of images. An image or a hidden entry is taken for a file.
        """
        try:
            return kind_of(entry), entry.is_symlink()
        except OSError as error:
            if is_left_behind(entry.name) or os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                return "file", True  # reading an image says why it cannot be read
            raise UserError(
                f"{printable(entry.path)}: cannot be looked at ({error.strerror or one_line(error)}), and may be a folder of images;"
                " make it and the folder that it leads to readable, or move it away"
            ) from None

    def count_same(self, files: list[str]) -> int:
        """How many of the images are links to a file that is listed under another name as well."""
        if not self.linked:
            return 0
        linked = set(self.linked)
        plain = {os.path.join(self.real[folder], base) for folder, _, base in (f.rpartition("/") for f in files if f not in linked)}
        targets = Counter(os.path.realpath(self.path(name)) for name in self.linked)
        return sum(count if target in plain else count - 1 for target, count in targets.items())

    def count_hard(self, files: list[str]) -> int:
        """How many of the images, in the order of reading, are further hard links to one of them. Only suspects are looked at."""
        numbers = np.array(self.numbers)
        values, counts = np.unique(numbers, return_counts=True)
        suspects = np.flatnonzero(np.isin(numbers, values[(counts > 1) & (values > 0)]))
        found: Counter[object] = Counter()
        for index in suspects.tolist():
            with suppress(OSError):
                status = os.stat(self.path(files[index]))
                if status.st_nlink > 1:
                    found[status.st_dev, status.st_ino] += 1
        return sum(count - 1 for count in found.values())


def kind_of(entry: os.DirEntry[str]) -> str:
    """What a folder's entry is, after following links: "folder", "file", "special" (a socket, say), or "nothing" for a broken link.

    Raises:
        OSError: it cannot be known, since a folder on the way may not be read, or the disk or the network fails.
    """
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError as error:
        if error.errno in NOWHERE:
            return "nothing"
        raise
    return "special"


def is_folder(path: Path, key: str = "") -> bool:
    """Whether a path that a user gave is a folder.

    Args:
        key: the beginning of the message.

    Raises:
        UserError: it cannot be known, since a folder on the way may not be read, or the disk or the network fails.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in NOWHERE:
            return False
        why = error.strerror or one_line(error)
        raise UserError(f"{key}{printable(str(path))}: cannot be looked at ({why}); make it and the folders above it readable") from None
    except ValueError:  # a zero byte
        return False


def key_of(path: str) -> object:
    """What tells folders apart: device and number, or the path on file systems without numbers."""
    with suppress(OSError):
        status = os.stat(path)
        if status.st_ino:
            return status.st_dev, status.st_ino
    return path


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it; both without links."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def count_files(folder: str) -> int:
    """How many files lie in a folder that is passed over. A folder that cannot be listed counts as one."""
    closed: list[OSError] = []
    return sum(len(names) for _, _, names in os.walk(folder, onerror=closed.append)) + len(closed)


# ---- zips ------------------------------------------------------------------------------------------------------------


def list_members(entries: Iterable[zipfile.ZipInfo]) -> Listing:
    """Lists the image files of a zip; `files` are its own names of them, `members` their entries."""
    found, last = Listing(), {}
    for entry in entries:
        if not entry.filename.endswith("/"):  # `is_dir` fails at an empty name
            found.repeated += entry.filename in last
            last[entry.filename] = entry
    for name in sorted(last):
        parts = zip_components(name)
        folder = next(filter(is_left_behind, parts[:-1]), None)
        if folder is not None:
            found.pass_over(IN_FOLDERS, printable(folder))
        elif is_left_behind(parts[-1]):
            found.pass_over(HIDDEN, printable(parts[-1]))
        elif stat.S_ISLNK(last[name].external_attr >> 16):
            found.pass_over(IN_ZIP, printable(name))
        else:
            found.add(name)
    found.members = [last[name] for name in found.files]
    return found


def zip_components(name: str) -> list[str]:
    """The components of a name in a zip. Some programs on Windows separate them by backslashes, against the standard."""
    return [part for part in re.split(r"[/\\]" if "/" not in name else "/", name) if part not in ("", ".")] or [name]


def take_out(listing: Listing, loose: Iterable[int]) -> Iterator[int]:
    """Pass over images that lie outside the class folders, given by number. Yields the numbers of the others."""
    out = set(loose)
    for number in out:
        listing.pass_over(LOOSE, printable(listing.files[number]))
    yield from (i for i in range(len(listing.files)) if i not in out)
