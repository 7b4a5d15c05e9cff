"""A prepared data set: one array of uint8 images that is mapped into memory, labels, and a head in JSON.

    FOLDER/images.npy   uint8 `[N, C, H, W]`
    FOLDER/labels.npy   int64 `[N]`
    FOLDER/head.json    what it is, and the SHA-256 of the labels and of every 512 images

`tools/prepare_dataset.py` writes one. All processes of a machine share the pages of the array; nothing is decoded in training.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gantrain.cache import cache_folder, keep_file
from gantrain.data.imageset import ImageSet, Source
from gantrain.data.intake import BLOCK, decoded
from gantrain.errors import UserError
from gantrain.plugins import one_line

FORMAT = "gantrain-packed-1"
IMAGES, LABELS, HEAD, DONE = "images.npy", "labels.npy", "head.json", "done.jsonl"
AGAIN = "make it again with tools/prepare_dataset.py"

Progress = Callable[[Iterable, int], Iterable]


@dataclass(frozen=True, kw_only=True)
class Packed(Source):
    """A folder that `tools/prepare_dataset.py` has written.

    Attributes:
        root: the folder.
    """

    root: str = ""

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
        raise UserError(f"data.resolution: {folder} holds images of {head['resolution']}, not of {resolution}; set data.resolution={head['resolution']}, or prepare it anew")
    shape = tuple(head[key] for key in ("images", "channels", "resolution", "resolution"))
    try:
        pixels = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)  # of the mapping's own pages, if anybody wrote
        labels = np.load(folder / LABELS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: is not whole ({one_line(error)}); {AGAIN}") from None
    if (pixels.shape, pixels.dtype, labels.shape, labels.dtype) != (shape, np.uint8, shape[:1], np.int64) or sum_of(labels) != head["labels_sha256"]:
        raise UserError(f"{folder}: {IMAGES} or {LABELS} is not what {HEAD} says; {AGAIN}")
    images = ImageSet(f"packed/{folder.name}", torch.from_numpy(labels), head["classes"], shape[1], resolution, torch.from_numpy(pixels), mapped=True)
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
        numbers = [head[key] for key in ("images", "channels", "resolution")]
        right = (
            head["format"] == FORMAT and all(type(n) is int and n > 0 for n in numbers) and isinstance(head["labels_sha256"], str)
            and all(isinstance(name, str) for name in [*head["classes"], *head["sha256"]]) and len(head["sha256"]) == -(-numbers[0] // BLOCK)
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / HEAD}: cannot be read ({one_line(error)}); {AGAIN}") from None
    if not right:
        raise UserError(f"{folder / HEAD}: is no head of a {FORMAT} set; {AGAIN}")
    return head


def verify(folder: Path, images: ImageSet, head: dict[str, Any], progress: Progress, always: bool = False) -> None:
    """Read all images once and compare their sums; the next start finds that done, while the file's size and time of change stay.

    Raises:
        UserError: names what is damaged.
    """
    status = (folder / IMAGES).stat()
    seen = f"packed-{hashlib.sha256(f'{folder.resolve()} {status.st_size} {status.st_mtime_ns} {images.content}'.encode()).hexdigest()[:32]}"
    if not always and (cache_folder() / seen).is_file():
        return
    pixels, wrong = images.pixels.numpy(), []
    blocks = range(len(head["sha256"]))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # neither reading nor hashing holds the interpreter's lock
        sums = pool.map(lambda i: sum_of(pixels[i * BLOCK : (i + 1) * BLOCK]), blocks)
        wrong = [i for i, (found, wanted) in enumerate(progress(zip(sums, head["sha256"]), len(blocks))) if found != wanted]
    if wrong:
        some = ", ".join(f"{i * BLOCK}..{min((i + 1) * BLOCK, len(images)) - 1}" for i in wrong[:5]) + (f" and {len(wrong) - 5} more blocks" if len(wrong) > 5 else "")
        raise UserError(f"{folder / IMAGES}: damaged: images {some} are not what was written; {AGAIN}")
    keep_file(seen, b"")


def sum_of(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


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
        UserError: the folder is there, or half made from something else, or images do not decode (they are named).
        OSError: a full disk, before anything is written where the system can tell.
    """
    draft, count = drafts(folder), len(images)
    if folder.exists():
        raise UserError(f"{folder}: is there already; delete it, or give another --out")
    head = {
        "format": FORMAT, "images": count, "channels": images.channels, "resolution": images.resolution, "classes": images.class_names,
        "source": source, "listing": images.listing, "labels_sha256": sum_of(images.labels.numpy()),
    }  # fmt: skip
    if draft.is_dir():
        begun = json.loads((draft / HEAD).read_text()) if (draft / HEAD).is_file() else None
        if begun not in (None, head):
            raise UserError(f"{draft}: was begun from something else, or with other settings; delete it to begin anew")
    draft.mkdir(parents=True, exist_ok=True)
    write_whole(draft / HEAD, json.dumps(head).encode())
    with open(draft / IMAGES, "r+b" if (draft / IMAGES).is_file() else "w+b") as file:
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, images.channels, images.resolution, images.resolution)})
        begin, size = file.tell(), images.channels * images.resolution**2
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, begin + count * size)  # a disk that is too small says so now

        def block(i: int) -> bytes:
            file.seek(begin + i * BLOCK * size)
            return file.read((min((i + 1) * BLOCK, count) - i * BLOCK) * size)

        blocks = -(-count // BLOCK)
        # What was said to be done is looked at: a machine that lost its power may have lost what it had not written.
        done = {i: digest for i, digest in read_done(draft / DONE).items() if i < blocks and hashlib.sha256(block(i)).hexdigest() == digest}
        todo = [i for i in range(blocks) if i not in done]
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
    with open(draft / LABELS, "wb") as file:
        np.save(file, images.labels.numpy().astype(np.int64), allow_pickle=False)
    write_whole(draft / HEAD, json.dumps({**head, "sha256": [done[i] for i in range(blocks)]}).encode())
    (draft / DONE).unlink(missing_ok=True)
    draft.rename(folder)
    return len(indices)


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


def write_whole(path: Path, data: bytes) -> None:
    """A file that is the old one or the new one, whatever happens."""
    draft = path.with_suffix(".new")
    with open(draft, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
