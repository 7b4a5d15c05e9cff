"""A prepared data set: a memory-mapped array of uint8 images, labels, and a head in JSON.

    FOLDER/images.npy   uint8 `[N, C, H, W]`
    FOLDER/labels.npy   int64 `[N]`
    FOLDER/head.json    shape, classes and source, and the SHA-256 of the labels, of every 512 images and of the head itself

`gantrain prepare` writes it. All processes of a machine share the array's pages, and training decodes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from gantrain import lock
from gantrain.array_header import read_header
from gantrain.atomic_file import write_atomically
from gantrain.cache import is_digest, keep_file, kept_file, state_of_file
from gantrain.data.block_record import DONE, line_of, read_done, read_gaps
from gantrain.data.folder import seen_from
from gantrain.data.imageset import ImageSet, Source, sum_array
from gantrain.data.intake import BLOCK, describe_traits, read_blocks, refuse_unreadable, settle
from gantrain.data.listing import is_folder
from gantrain.errors import UserError, brief, in_words
from gantrain.field_marks import INCIDENTAL
from gantrain.home import expand_user
from gantrain.lock import InUse
from gantrain.regular_file import open_regular, read_text
from gantrain.version import __version__

FORMAT = "gantrain-packed-1"
IMAGES, LABELS, HEAD = "images.npy", "labels.npy", "head.json"
AT_THE_END = ("sha256", "head_sha256", "notes", "whole")  # keys of the head that are only known at the end
MOST_HEAD = 2**26  # bytes of a head: of 100 million images it has 13 MB
A_LITTLE = 2**20  # bytes of a prepared set besides images and labels
AGAIN = "rebuild it with `gantrain prepare`"
Progress = Callable[[Iterable, int], Iterable]


@dataclass(frozen=True, kw_only=True)
class Packed(Source):
    """A data set prepared by `gantrain prepare`.

    Attributes:
        root: path of the folder that the tool wrote.
    """

    root: str = field(default="", metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        """Map the images into memory; raises as `read_packed`."""
        if not self.root:
            raise UserError("data.root must be the folder of a prepared data set, got ''; make one with `gantrain prepare`")
        return read_packed(expand_user(self.root, "data.root"), self.resolution)


def read_packed(folder: Path, resolution: int) -> ImageSet:
    """Opens a prepared data set; its images are mapped into memory and not read yet.

    Raises:
        UserError: the folder is not a prepared data set, has another resolution, or its files do not match its head.
    """
    head = read_head(folder)
    if head["resolution"] != resolution:
        raise UserError(
            f"data.resolution: {folder} contains images of resolution {head['resolution']}, not {resolution};"
            f" set data.resolution={head['resolution']}, or prepare the images again at {resolution}"
        )
    shape = tuple(head[key] for key in ("images", "channels", "resolution", "resolution"))
    unlike = UserError(f"{folder}: {IMAGES} or {LABELS} does not match {HEAD}; {AGAIN}")
    require_form(folder, IMAGES, shape, np.dtype(np.uint8), unlike)
    require_form(folder, LABELS, shape[:1], np.dtype(np.int64), unlike)
    try:
        pixels = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)  # copy-on-write: a stray write cannot reach the file
        labels = np.load(folder / LABELS, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(f"{folder}: is incomplete ({brief(error)}); {AGAIN}") from None
    if sum_array(labels) != head["labels_sha256"]:
        raise unlike
    strange = labels[(labels < 0) | (labels >= len(head["classes"]))]
    if len(strange):
        raise UserError(
            f"{folder}: {LABELS} contains label {strange[0]}, but {HEAD} names only classes 0..{len(head['classes']) - 1}; {AGAIN}"
        )
    images = ImageSet(
        f"packed/{folder.name}", torch.from_numpy(labels), head["classes"], shape[1], resolution, torch.from_numpy(pixels), mapped=True,
        named=head.get("named"),
    )  # fmt: skip
    images.content, images.notes = hashlib.sha256("".join(head["sha256"]).encode()).hexdigest(), head.get("notes", [])
    images.verify = lambda progress: verify(folder, images, head, progress)
    return images


def require_form(folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, unlike: UserError) -> None:
    """Refuse an array of another type or shape, or of another size than its header says, before it is read.

    Args:
        unlike: raised for another type or shape.

    Raises:
        UserError: its type, shape or size differs, or it is incomplete, damaged or not readable.
    """
    try:
        with open_regular(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            found = read_header(file)
            whole = file.tell() + math.prod(found[0]) * found[1].itemsize
    except PermissionError as error:
        raise may_not_be_read(error, folder) from None
    except OSError as error:
        raise UserError(f"{folder}: is incomplete ({name}: {error.strerror or brief(error)}); {AGAIN}") from None
    except ValueError as error:
        raise UserError(f"{folder}: is incomplete ({name}: {brief(error)}); {AGAIN}") from None
    if found != (shape, dtype):
        raise unlike
    if size < whole:
        raise UserError(f"{folder}: is incomplete ({name} has {size:,} of {whole:,} bytes); {AGAIN}")


def read_head(folder: Path) -> dict[str, Any]:
    """Reads the head of a prepared data set.

    Raises:
        UserError: the head is missing, unreadable or damaged, or the data set is unfinished.
    """
    draft = drafts(folder)
    if not is_folder(folder, "data.root: ") and not folder.exists() and not draft.is_dir():
        raise UserError(
            f"data.root: {str(folder)!r} does not exist{seen_from(folder)}; pass the folder of a prepared data set,"
            " or make one with `gantrain prepare`"
        )
    if is_folder(folder / HEAD) or not (folder / HEAD).exists():
        hint = f"run the command that began {draft} again to finish it" if draft.is_dir() else "make one with `gantrain prepare`"
        raise UserError(f"data.root: {str(folder)!r} is not a prepared data set (it has no {HEAD}); {hint}")
    try:
        head = json.loads(read_text(folder / HEAD, MOST_HEAD))
    except PermissionError as error:
        raise may_not_be_read(error, folder / HEAD) from None
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or brief(error)
        raise UserError(f"{folder / HEAD}: cannot be read ({why}); {AGAIN}") from None
    if folder.suffix == ".part" and isinstance(head, dict) and "sha256" not in head:
        whole = folder.with_suffix("")
        raise UserError(
            f"data.root: {folder} is unfinished (made from {head.get('source')});"
            f" run the same `gantrain prepare` command with --out {whole} again to finish it, then set data.root={whole}"
        )
    if isinstance(head, dict) and is_other_format(head.get("format")):
        raise UserError(
            f"{folder / HEAD}: has format {head['format']}, and gantrain {__version__} reads format {FORMAT};"
            " use the version that prepared it, or prepare the images again into another folder"
        )
    if not is_head(head):
        raise UserError(f"{folder / HEAD}: is not a head in the format {FORMAT}; {AGAIN}")
    if head.get("head_sha256", sum_of_head(head)) != sum_of_head(head):  # heads written before head_sha256 existed lack it
        raise UserError(f"{folder / HEAD}: does not match its checksum; {AGAIN}")
    return head


def is_other_format(found: Any) -> bool:
    """Whether the format of a head is one of another version of gantrain."""
    return isinstance(found, str) and found != FORMAT and found.startswith(FORMAT.rstrip("0123456789"))


def is_head(head: Any) -> bool:
    """Whether all fields of a head exist and have the right types."""
    try:
        numbers = [head[key] for key in ("images", "channels", "resolution")]
        texts = [head["source"], head["listing"], head["labels_sha256"], head.get("head_sha256", ""), *head["classes"], *head["sha256"]]
        texts += head.get("notes", [])  # earlier heads have none
        return (
            head["format"] == FORMAT
            and all(type(n) is int and n > 0 for n in numbers)
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(head[key], list) and head[key] for key in ("classes", "sha256"))
            and len(head["sha256"]) == -(-numbers[0] // BLOCK)
            and all(map(is_digest, head["sha256"]))
        )
    except (AttributeError, KeyError, TypeError):
        return False


def may_not_be_read(error: PermissionError, path: Path) -> UserError:
    """The error for a file that exists but that this user may not read."""
    return UserError(f"{error.filename or path}: is not readable (permission denied); ask its owner for read access")


def verify(folder: Path, images: ImageSet, head: dict[str, Any], progress: Progress, always: bool = False) -> None:
    """Read all images once and compare them with their checksums.

    Success is cached, so the next start skips the check while the file's state (`state_of_file`) is unchanged.

    Args:
        always: check even if the cache says that the file has been checked.

    Raises:
        UserError: images are damaged; the message says which.
    """
    assert images.pixels is not None
    state = state_of_file(folder / IMAGES)
    seen = f"packed-{hashlib.sha256(f'{state} {images.content}'.encode()).hexdigest()[:32]}"
    if not always and state is not None and kept_file(seen) is not None:
        return
    pixels = images.pixels.numpy()
    blocks = range(len(head["sha256"]))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # reading and hashing both release the GIL
        sums = pool.map(lambda i: sum_array(pixels[i * BLOCK : (i + 1) * BLOCK]), blocks)
        wrong = [i for i, (found, wanted) in enumerate(progress(zip(sums, head["sha256"]), len(blocks))) if found != wanted]
    if wrong:
        some = ", ".join(f"{i * BLOCK}..{min((i + 1) * BLOCK, len(images)) - 1}" for i in wrong[:5]) + (
            f" and {len(wrong) - 5} more blocks" if len(wrong) > 5 else ""
        )
        raise UserError(f"{folder / IMAGES}: is damaged: images {some} do not match their checksums; {AGAIN}")
    if state is not None and state_of_file(folder / IMAGES) == state:  # nothing has changed in the meantime
        keep_file(seen, b"")


def sum_of_head(head: dict[str, Any]) -> str:
    """SHA-256 of all fields of a head except `head_sha256`."""
    return hashlib.sha256(
        json.dumps({key: value for key, value in head.items() if key != "head_sha256"}, sort_keys=True).encode()
    ).hexdigest()


def drafts(folder: Path) -> Path:
    """Where a data set is kept until it is complete."""
    return Path(f"{folder if folder.name else folder.resolve()}.part")  # "." has no name of its own


def pack(images: ImageSet, folder: Path, source: str, progress: Progress = lambda it, total: it) -> int:
    """Write a data set as a prepared one, continuing an interrupted call. Returns how many images this call decoded.

    Args:
        images: the data set, decoded on demand or in memory. If it `skips`, unreadable images are left out of it and of the folder.
        folder: the folder to create; until it is complete, its name ends in .part.
        source: description of the origin, stored in the head.
        progress: wraps an iterable of a known length in a progress bar.

    Raises:
        UserError: the folder already exists, is being written by another process or was begun from another source, the disk
            is too small, or images do not decode (up to ten are named).
    """
    draft = drafts(folder)
    if folder.exists():
        raise UserError(f"{folder}: already exists; delete it, or pass another --out")
    head: dict[str, Any] = {
        "format": FORMAT,
        "images": len(images),
        "channels": images.channels,
        "resolution": images.resolution,
        "classes": images.class_names,
        "source": source,
        "listing": images.listing,
        "labels_sha256": sum_array(images.labels.numpy()),
        **({} if images.named is None else {"named": images.named}),  # whether the classes are names, even if they look like numbers
    }
    refuse_small_disk(images, draft)
    images.notes += describe_traits(images)
    with locked(draft) as held:
        if folder.exists():  # another call has completed it meanwhile
            lock.discard(held, draft)
            if not any(draft.iterdir()):  # an unfinished data set stays
                draft.rmdir()
            raise UserError(f"{folder}: already exists; delete it, or pass another --out")
        earlier = begun(draft)
        if earlier and is_other_format(earlier.get("format")):
            raise UserError(f"{draft}: was begun by another version of gantrain; finish it with that version, or pass another --out")
        if earlier not in (None, head):
            raise UserError(f"{draft}: was begun from another source or with other settings; delete it to start over")
        try:
            write_atomically(draft / HEAD, json.dumps(head), durable=True, only_writer=True)
            head["sha256"], made = write_images(images, draft, progress)
            if images.skipped:
                head |= leave_gaps_out(images, draft, head)
            with open(draft / LABELS, "wb") as file:
                np.save(file, images.labels.numpy().astype(np.int64), allow_pickle=False)
            head["notes"] = images.notes
            write_atomically(draft / HEAD, json.dumps({**head, "head_sha256": sum_of_head(head)}), durable=True, only_writer=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not read_done(draft / DONE):  # nothing to continue: do not leave an empty draft that fills the disk
                shutil.rmtree(draft, ignore_errors=True)
            raise UserError(f"{draft}: {error.strerror}; free some space and run the same command again to continue") from None
        draft.rename(folder)
        (folder / DONE).unlink(missing_ok=True)
        lock.discard(held, folder)
    return made


def refuse_small_disk(images: ImageSet, draft: Path) -> None:
    """Refuse to start if the images that remain to be written do not fit on the disk.

    Raises:
        UserError: there is not enough space.
    """
    there = next(path for path in (draft, *draft.absolute().parents) if path.is_dir())
    written = (draft / IMAGES).stat().st_blocks * 512 if (draft / IMAGES).is_file() else 0
    needed, free = max(0, images.bytes - written) + 8 * len(images) + A_LITTLE, shutil.disk_usage(there).free
    if needed > free:
        space = f"the images need {in_words(needed)}, but only {in_words(free, down=True)} are free"
        raise UserError(f"{there}: {space}; free some space, or pass another --out or a smaller --resolution")


def locked(draft: Path) -> IO[str]:
    """Locks an unfinished data set for as long as the returned file is open.

    Raises:
        UserError: another process is writing it.
    """
    try:
        return lock.acquire(draft, create=True)
    except InUse as owner:
        raise UserError(f"{draft}: is being written by {owner}; wait for it or stop it, or pass another --out") from None


def begun(draft: Path) -> dict[str, Any] | None:
    """The head as an earlier, interrupted call began it; None if there is none.

    Raises:
        UserError: the head is unreadable.
    """
    try:
        head = json.loads(read_text(draft / HEAD, MOST_HEAD))
        return {key: value for key, value in {**head, **head.get("whole", {})}.items() if key not in AT_THE_END}
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise may_not_be_read(error, draft / HEAD) from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{draft / HEAD}: is damaged; delete {draft} to start over") from None


def leave_gaps_out(images: ImageSet, draft: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Leaves unreadable images out of the set, and closes their gaps in the file. Returns what changes in the head.

    A call that is interrupted here leaves blocks that do not match the record, and the next call decodes these again.

    Raises:
        UserError: a class has no readable image.
    """
    settle(images, images.skipped)
    kept = np.setdiff1d(np.arange(head["images"]), images.left_out)
    array = np.load(draft / IMAGES, mmap_mode="r+", allow_pickle=False)
    sums = []
    for start in range(0, len(kept), BLOCK):
        block = array[kept[start : start + BLOCK]]  # a copy; an image only ever moves towards the beginning
        array[start : start + len(block)] = block
        sums.append(sum_array(block))
    array.flush()
    begin, size = array.offset, array[0].nbytes
    del array
    with open(draft / IMAGES, "r+b") as file:
        write_shape(file, (len(kept), images.channels, images.resolution, images.resolution))
        assert file.tell() == begin, "the header keeps its length"
        file.truncate(begin + len(kept) * size)
        file.flush()
        os.fsync(file.fileno())
    whole = {key: head[key] for key in ("images", "labels_sha256")}
    return {"images": len(kept), "labels_sha256": sum_array(images.labels.numpy()), "sha256": sums, "whole": whole}


def write_shape(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Writes the header of a .npy file of uint8 at the beginning of a file."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def write_images(images: ImageSet, draft: Path, progress: Progress) -> tuple[list[str], int]:
    """Writes the images, recording each finished block. Returns (the checksum of every block, how many images it decoded).

    An unreadable image leaves a gap of zeros if the set `skips`, and is added to `skipped`.

    Raises:
        UserError: images do not decode; up to ten are named.
    """
    count = len(images)
    with open(draft / IMAGES, "r+b" if (draft / IMAGES).is_file() else "w+b") as file:
        write_shape(file, (count, images.channels, images.resolution, images.resolution))
        begin, size = file.tell(), images.channels * images.resolution**2

        def block(i: int) -> bytes:
            """The bytes of a block as they are in the file."""
            file.seek(begin + i * BLOCK * size)
            return file.read((min((i + 1) * BLOCK, count) - i * BLOCK) * size)

        blocks, gaps = -(-count // BLOCK), read_gaps(draft / DONE)
        # Recorded blocks are verified: after a power failure the record may be ahead of the data on disk.
        done = {
            i: digest
            for i, digest in read_done(draft / DONE).items()
            if i < blocks and (images.skips or not gaps[i]) and hashlib.sha256(block(i)).hexdigest() == digest
        }
        todo = [i for i in range(blocks) if i not in done]
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, begin + count * size)  # fails now if the disk is too small
            indices = [index for i in todo for index in range(i * BLOCK, min((i + 1) * BLOCK, count))]
            whole = progress(in_blocks(images, todo, indices), len(todo))
            with open(draft / DONE, "a", encoding="utf-8") as record:
                for i, data, gaps[i] in whole:
                    file.seek(begin + i * BLOCK * size)
                    file.write(data)
                    file.flush()
                    done[i] = hashlib.sha256(data).hexdigest()
                    record.write(line_of(i, done[i], gaps[i]))
                    record.flush()
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(begin + min((max(done, default=-1) + 1) * BLOCK, count) * size)  # release the space after the last finished block
            raise
    for i in range(blocks):
        images.skipped.update({i * BLOCK + int(at): words for at, words in gaps[i].items()})
    return [done[i] for i in range(blocks)], sum(index not in images.skipped for index in indices)


def in_blocks(images: ImageSet, todo: list[int], indices: list[int]) -> Iterator[tuple[int, bytes, dict[str, str]]]:
    """Yields each block in `todo`, decoded by several threads: (number, bytes, why images are unreadable, by their place in the block).

    Raises:
        UserError: images do not decode and the set does not do without them; raised after the last block, it names up to ten.
    """
    if images.pixels is not None:
        for i in todo:
            yield i, images.pixels[i * BLOCK : (i + 1) * BLOCK].contiguous().numpy().tobytes(), {}
        return
    gap = torch.zeros(images.channels, images.resolution, images.resolution, dtype=torch.uint8)
    broken: list[str] = []
    # `read_blocks` yields BLOCK images at a time, so only the very last block is shorter.
    for i, found in zip(todo, read_blocks(images, indices), strict=True):
        errors = {str(at): str(item) for at, item in enumerate(found) if isinstance(item, UserError)}
        if errors and not images.skips:
            broken += errors.values()
        if not broken:
            yield i, torch.stack([gap if isinstance(item, UserError) else item[0] for item in found]).numpy().tobytes(), errors
    if broken:
        refuse_unreadable(broken)
