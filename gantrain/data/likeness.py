"""Whether images are those that a run was trained on, also where some of them can no longer be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from gantrain.data.imageset import ImageSet

PARTS = 4096  # a run keeps one sum for each image of a small data set, and at most so many of a large one
SHOWN = 3  # classes that a message names
REREAD = 4  # images, about, that are read twice to see whether a data set gives the same ones again


def sum_parts(images: ImageSet) -> list[str] | None:
    """Sums of the contents of images that lie next to each other, at most `PARTS` of them.

    Images that are left out do not count, so repairing them changes nothing. A part with an image that is replaced, because it
    cannot be read, has the sum "", which is unknown.

    Returns:
        8 hex digits for each part, or None if the contents have not been read one by one.
    """
    if images.sums is None:
        return None
    sums = images.kept_sums
    size = max(1, -(-len(sums) // PARTS))
    unread = {index // size for index in images.index_of(images.replaced)}
    return [
        "" if part in unread else hashlib.sha256(sums[part * size : (part + 1) * size].tobytes()).hexdigest()[:8]
        for part in range(-(-len(sums) // size))
    ]


def join_parts(before: Sequence[str] | None, now: Sequence[str] | None) -> list[str] | None:
    """The sums of parts now, with those of before where they are unknown now: a file that breaks and comes back is still known."""
    if now is None or before is None or len(before) != len(now):
        return None if now is None and before is None else list(now if now is not None else before or [])
    return [new or old for old, new in zip(before, now)]


def content_of(images: ImageSet) -> str | None:
    """The identity of all contents: of files that were all read, or of a published set before it was resized. None if it is unknown."""
    return (images.content if not (images.skipped or images.left_out) else "") or images.origin or None


def find_difference(images: ImageSet, state: Mapping[str, Any], run: object) -> str | None:
    """How images certainly differ from those of a checkpoint, in words; None if they do not, or if that cannot be known.

    Args:
        images: as `prepare` returns them for this checkpoint.
        state: of the checkpoint; those of earlier versions lack sums of contents.
        run: names the run, for the words.
    """
    if state["data_listing"] != images.listing:
        return f"{images.name} is not what {run} was trained on (other images or labels{count_difference(images, state)})"
    before, now = state.get("data_content"), content_of(images)
    differ = before is not None and now is not None and before != now
    sums, parts = state.get("data_parts"), sum_parts(images)
    if sums is not None and parts is not None and len(sums) == len(parts):
        differ = differ or any(old != new for old, new in zip(sums, parts) if old and new)  # of the images in use; repaired ones are not
    if not differ or not reads_alike(images):
        return None
    return f"{images.name} is not what {run} was trained on (other contents under the same names)"


def count_difference(images: ImageSet, state: Mapping[str, Any]) -> str:
    """How the images of a checkpoint and those of now differ in number, to go on after "other images or labels".

    Returns:
        The number of all images and of the first classes that differ; "" for a checkpoint of an earlier version, which kept no counts.
    """
    counts, counts_now = state.get("class_counts"), images.class_counts
    if counts is None:
        return ""
    names, names_now = state.get("class_names"), images.known_names
    before = dict(zip(map(str, range(len(counts))) if names is None else names, counts))
    now = dict(zip(map(str, range(len(counts_now))) if names_now is None else names_now, counts_now))
    total = f": {sum(counts_now)} images now, {sum(counts)} then"
    if (names is None) != (names_now is None):  # their classes cannot be told apart
        return total
    differ = [name for name in (*before, *(name for name in now if name not in before)) if before.get(name, 0) != now.get(name, 0)]
    if not differ:
        return f"{total}, and as many in each class"
    shown = [f"class {name!r} has {now.get(name, 0)} now, {before.get(name, 0)} then" for name in differ[:SHOWN]]
    return "; ".join([total, *shown]) + (f"; and {len(differ) - SHOWN} more classes differ" if len(differ) > SHOWN else "")


def reads_alike(images: ImageSet) -> bool:
    """Whether images are the same when they are read again, which those of a data set from outside need not be."""
    decode, broken = images.decode, {*images.index_of(images.replaced)}
    some = [i for i in range(0, len(images), max(1, len(images) // REREAD)) if i not in broken]
    return decode is None or all(images.ask(decode.read, i)[1] == images.ask(decode.read, i)[1] for i in some)
