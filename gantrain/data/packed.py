"""A prepared data set: one array of uint8 images that is mapped into memory, labels, and a head in JSON.

    FOLDER/images.npy   uint8 `[N, C, H, W]`
    FOLDER/labels.npy   int64 `[N]`
    FOLDER/head.json    what it is, and the SHA-256 of the labels, of every 512 images and of itself

`tools/prepare_dataset.py` writes one. All processes of a machine share the pages of the array; nothing is decoded in training.
"""

from __future__ import annotations

import errno
import hashlib
import json
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
from gantrain.atomic_file import write_atomically
from gantrain.cache import cache_folder, keep_file
from gantrain.data.imageset import ImageSet, Source
from gantrain.data.intake import BLOCK, decoded
from gantrain.errors import UserError, in_words, one_line
from gantrain.field_marks import INCIDENTAL
from gantrain.lock import InUse

FORMAT = "gantrain-packed-1"
IMAGES, LABELS, HEAD, DONE = "images.npy", "labels.npy", "head.json", "done.jsonl"
SUMS = ("sha256", "head_sha256")  # of the head, which are known at the end
A_LITTLE = 2**20  # bytes of a prepared set besides images and labels
AGAIN = "make it again with tools/prepare_dataset.py"
Progress = Callable[[Iterable, int], Iterable]


@dataclass(frozen=True, kw_only=True)
class Packed(Source):
    """A folder that `tools/prepare_dataset.py` has written.

    Attributes:
        root: the folder.
    """

    root: str = field(default="", metadata=INCIDENTAL)

    def build(self) -> ImageSet:
        if not self.root:
            raise UserError("data.root must name the folder of a prepared data set, got ''; tools/prepare_dataset.py makes one")
        return read_packed(Path(self.root).expanduser(), self.resolution)


def read_packed(folder: Path, resolution: int) -> ImageSet:
    """A prepared data set, its images mapped and not read.

    Raises:
        UserError: it is none, or has another resolution, or its files are not as long as its head says.
    """
    head = read_head(folder)
    if head["resolution"] != resolution:
        raise UserError(
            f"data.resolution: {folder} holds images of {head['resolution']}, not of {resolution}; set data.resolution={head['resolution']}, or prepare it anew"
        )
    shape = tuple(head[key] for key in ("images", "channels", "resolution", "resolution"))
    try:
        pixels = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)  # of the mapping's own pages, if anybody wrote
        labels = np.load(folder / LABELS, allow_pickle=False)
    except PermissionError as error:
        raise may_not_be_read(error, folder) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: is not whole ({one_line(error)}); {AGAIN}") from None
    if (pixels.shape, pixels.dtype, labels.shape, labels.dtype) != (shape, np.uint8, shape[:1], np.int64) or sum_of(labels) != head[
        "labels_sha256"
    ]:
        raise UserError(f"{folder}: {IMAGES} or {LABELS} is not what {HEAD} says; {AGAIN}")
    strange = labels[(labels < 0) | (labels >= len(head["classes"]))]
    if len(strange):
        raise UserError(f"{folder}: {LABELS} holds label {strange[0]}, and {HEAD} names classes 0..{len(head['classes']) - 1}; {AGAIN}")
    images = ImageSet(
        f"packed/{folder.name}", torch.from_numpy(labels), head["classes"], shape[1], resolution, torch.from_numpy(pixels), mapped=True
    )
    images.content = hashlib.sha256("".join(head["sha256"]).encode()).hexdigest()
    images.verify = lambda progress: verify(folder, images, head, progress)
    return images


def read_head(folder: Path) -> dict[str, Any]:
    """The head of a prepared data set.

    Raises:
        UserError: there is none that can be read.
    """
    draft = drafts(folder)
    if not (folder / HEAD).is_file():
        hint = f"; it is half made: the command that began {draft} goes on" if draft.is_dir() else "; tools/prepare_dataset.py makes one"
        raise UserError(f"data.root: {str(folder)!r} is no prepared data set (it has no {HEAD}){hint}")
    try:
        head = json.loads((folder / HEAD).read_text())
    except PermissionError as error:
        raise may_not_be_read(error, folder / HEAD) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / HEAD}: cannot be read ({one_line(error)}); {AGAIN}") from None
    if folder.suffix == ".part" and isinstance(head, dict) and "sha256" not in head:
        whole = folder.with_suffix("")
        origin = f"as it was begun (from {head.get('source')})"
        raise UserError(
            f"data.root: {folder} is half made; tools/prepare_dataset.py with --out {whole}, {origin}, goes on; then data.root={whole}"
        )
    if not is_head(head):
        raise UserError(f"{folder / HEAD}: is no head of a {FORMAT} set; {AGAIN}")
    if head.get("head_sha256", sum_of_head(head)) != sum_of_head(head):  # the first sets had none
        raise UserError(f"{folder / HEAD}: is not what was written; {AGAIN}")
    return head


def is_head(head: Any) -> bool:
    """Whether all fields of a head are there and have their types."""
    try:
        numbers = [head[key] for key in ("images", "channels", "resolution")]
        texts = [head["source"], head["listing"], head["labels_sha256"], head.get("head_sha256", ""), *head["classes"], *head["sha256"]]
        return (
            head["format"] == FORMAT and all(type(n) is int and n > 0 for n in numbers) and all(isinstance(text, str) for text in texts)
            and all(isinstance(head[key], list) for key in ("classes", "sha256")) and len(head["classes"]) > 0 and len(head["sha256"]) == -(-numbers[0] // BLOCK)
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError):
        return False


def may_not_be_read(error: PermissionError, path: Path) -> UserError:
    """The one line for a file that may be whole."""
    return UserError(f"{error.filename or path}: may not be read (permission denied); have its owner allow it")


def verify(folder: Path, images: ImageSet, head: dict[str, Any], progress: Progress, always: bool = False) -> None:
    """Read all images once and compare their sums; the next start finds that done, while the file's size and time of change stay.

    Raises:
        UserError: names what is damaged.
    """
    status = (folder / IMAGES).stat()
    seen = (
        f"packed-{hashlib.sha256(f'{folder.resolve()} {status.st_size} {status.st_mtime_ns} {images.content}'.encode()).hexdigest()[:32]}"
    )
    if not always and (cache_folder() / seen).is_file():
        return
    pixels, wrong = images.pixels.numpy(), []
    blocks = range(len(head["sha256"]))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # neither reading nor hashing holds the interpreter's lock
        sums = pool.map(lambda i: sum_of(pixels[i * BLOCK : (i + 1) * BLOCK]), blocks)
        wrong = [i for i, (found, wanted) in enumerate(progress(zip(sums, head["sha256"]), len(blocks))) if found != wanted]
    if wrong:
        some = ", ".join(f"{i * BLOCK}..{min((i + 1) * BLOCK, len(images)) - 1}" for i in wrong[:5]) + (
            f" and {len(wrong) - 5} more blocks" if len(wrong) > 5 else ""
        )
        raise UserError(f"{folder / IMAGES}: damaged: images {some} are not what was written; {AGAIN}")
    keep_file(seen, b"")


def sum_of(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def sum_of_head(head: dict[str, Any]) -> str:
    """SHA-256 of all that a head says but this."""
    return hashlib.sha256(
        json.dumps({key: value for key, value in head.items() if key != "head_sha256"}, sort_keys=True).encode()
    ).hexdigest()


def drafts(folder: Path) -> Path:
    """Where a set is while it is being made."""
    return folder.with_name(f"{folder.name}.part")


def pack(images: ImageSet, folder: Path, source: str, progress: Progress = lambda it, total: it) -> int:
    """Write a data set as a prepared one; what an earlier, interrupted call has done is not done again. Returns how many images were decoded.

    Args:
        images: decoded on demand, or in memory.
        folder: to be made; while it is being made its name ends in .part.
        source: what the head says it was made from.
        progress: wraps an iterable of a known length, for a bar.

    Raises:
        UserError: the folder is there, being made, or half made from something else, the disk is too small, or images do not
            decode (they are named).
    """
    draft = drafts(folder)
    if folder.exists():
        raise UserError(f"{folder}: is there already; delete it, or give another --out")
    head = {
        "format": FORMAT, "images": len(images), "channels": images.channels, "resolution": images.resolution, "classes": images.class_names,
        "source": source, "listing": images.listing, "labels_sha256": sum_of(images.labels.numpy()),
    }  # fmt: skip
    refuse_small_disk(images, draft)
    draft.mkdir(parents=True, exist_ok=True)
    with locked(draft):
        if begun(draft) not in (None, head):
            raise UserError(f"{draft}: was begun from something else, or with other settings; delete it to begin anew")
        try:
            write_atomically(draft / HEAD, json.dumps(head), durable=True, only_writer=True)
            sums, made = write_images(images, draft, progress)
            with open(draft / LABELS, "wb") as file:
                np.save(file, images.labels.numpy().astype(np.int64), allow_pickle=False)
            head["sha256"] = sums
            write_atomically(draft / HEAD, json.dumps({**head, "head_sha256": sum_of_head(head)}), durable=True, only_writer=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not read_done(draft / DONE):  # or a command that was mistyped would keep the disk full
                shutil.rmtree(draft, ignore_errors=True)
            raise UserError(f"{draft}: {error.strerror}; make room, and the same command goes on") from None
        draft.rename(folder)
        for name in (DONE, ".lock"):
            (folder / name).unlink(missing_ok=True)
    return made


def refuse_small_disk(images: ImageSet, draft: Path) -> None:
    """Raise where the images that are still to be written do not fit.

    Raises:
        UserError: there is not enough room.
    """
    there = next(path for path in (draft, *draft.absolute().parents) if path.is_dir())
    written = (draft / IMAGES).stat().st_blocks * 512 if (draft / IMAGES).is_file() else 0
    needed, free = max(0, images.bytes - written) + 8 * len(images) + A_LITTLE, shutil.disk_usage(there).free
    if needed > free:
        room = f"the images need {in_words(needed)} and {in_words(free)} are free there"
        raise UserError(f"{there}: {room}; make room, or give another --out or a smaller --resolution")


def locked(draft: Path) -> IO[str]:
    """The lock of a set that is being made, held as long as the returned file is open.

    Raises:
        UserError: another process makes it.
    """
    try:
        return lock.acquire(draft)
    except InUse as owner:
        raise UserError(f"{draft}: is being made by {owner}; wait for it, stop it, or give another --out") from None


def begun(draft: Path) -> dict[str, Any] | None:
    """What an earlier call has begun: its head, as it was before there were sums.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return {key: value for key, value in json.loads((draft / HEAD).read_text()).items() if key not in SUMS}
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise may_not_be_read(error, draft / HEAD) from None
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{draft / HEAD}: is damaged; delete {draft} to begin anew") from None


def write_images(images: ImageSet, draft: Path, progress: Progress) -> tuple[list[str], int]:
    """(the sum of every block, how many images were decoded); every block that is done is noted."""
    count = len(images)
    with open(draft / IMAGES, "r+b" if (draft / IMAGES).is_file() else "w+b") as file:
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (count, images.channels, images.resolution, images.resolution)}
        )
        begin, size = file.tell(), images.channels * images.resolution**2

        def block(i: int) -> bytes:
            file.seek(begin + i * BLOCK * size)
            return file.read((min((i + 1) * BLOCK, count) - i * BLOCK) * size)

        blocks = -(-count // BLOCK)
        # What was said to be done is looked at: a machine that lost its power may have lost what it had not written.
        done = {i: digest for i, digest in read_done(draft / DONE).items() if i < blocks and hashlib.sha256(block(i)).hexdigest() == digest}
        todo = [i for i in range(blocks) if i not in done]
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, begin + count * size)  # a disk that is too small says so now
            indices = [index for i in todo for index in range(i * BLOCK, min((i + 1) * BLOCK, count))]
            whole = progress(in_blocks(images, todo, indices), len(todo))
            with open(draft / DONE, "a") as record:
                for i, data in whole:
                    file.seek(begin + i * BLOCK * size)
                    file.write(data)
                    file.flush()
                    done[i] = hashlib.sha256(data).hexdigest()
                    record.write(json.dumps({"block": i, "sha256": done[i]}) + "\n")
                    record.flush()
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(begin + min((max(done, default=-1) + 1) * BLOCK, count) * size)  # the room behind the last block that is done
            raise
    return [done[i] for i in range(blocks)], len(indices)


def in_blocks(images: ImageSet, todo: list[int], indices: list[int]) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each block that is to be done, decoded by several threads."""
    if images.pixels is not None:
        for i in todo:
            yield i, images.pixels[i * BLOCK : (i + 1) * BLOCK].contiguous().numpy().tobytes()
        return
    at = 0
    for found in decoded(images, indices):  # in pieces of BLOCK: only the very last block is shorter
        yield todo[at], torch.stack([image for image, _ in found]).numpy().tobytes()
        at += 1


def read_done(path: Path) -> dict[int, str]:
    """What an interrupted call has noted; a line that was cut short counts as not there."""
    done = {}
    try:
        for line in path.read_text().splitlines():
            one = json.loads(line)
            done[int(one["block"])] = str(one["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return done
