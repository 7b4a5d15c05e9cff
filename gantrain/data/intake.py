"""What is checked of a data set before a run starts, and where its images are put."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil
import torch

from gantrain.cache import cache_folder, keep_file
from gantrain.data.imageset import DATA_SET, DECODER, DataSource, ImageSet, PlainDataset
from gantrain.errors import UserError

NAMED = 10  # how many broken files one message names
LOOKED_AT = 256  # how many images on disk the audit's range is taken from
BLOCK = 512  # images decoded at a time, when all are
SHARE_OF_MEMORY = 0.5  # of what is available, for images in memory
SHARE_OF_DEVICE = 0.25  # of what is free on an accelerator, whose memory training needs


def prepare(
    source: DataSource, device: torch.device, processes_here: int = 1, progress: Callable[[Iterable, int], Iterable] = lambda it, total: it
) -> ImageSet:
    """Build a data set, refuse it where it cannot be right, and put its images where they fit.

    Args:
        source: the `data:` section.
        device: that the training process uses.
        processes_here: how many training processes share this machine's memory.
        progress: wraps an iterable of a known length, for a bar.

    Raises:
        UserError: one line naming what is wrong.
    """
    source = DATA_SET.adapt(source)
    built = source.build()
    images = built if isinstance(built, ImageSet) else adopted(built, type(source).__name__)
    if not source.labels:
        images = images.unlabelled()
    refuse_impossible(images, wanted_classes=source.labels)
    images.skips = source.on_error == "skip"
    where = place(images, source.keep_in, device, processes_here)
    if images.verify:
        images.verify(progress)
    if images.pixels is None:
        read_files(images, where != "disk", progress)
    elif images.mapped and source.keep_in == "host":
        images.pixels, images.mapped = images.pixels.clone(), False
    images.fingerprint  # from the bytes where they are, before they move
    if where == "device":
        images.pixels, images.labels, images.mapped = images.pixels.to(device), images.labels.to(device), False
    return images


def adopted(dataset: PlainDataset, name: str) -> ImageSet:
    """A plain data set of (uint8 `[C, H, W]`, label) with `num_classes` as an `ImageSet`; every item is asked for its label once.

    Raises:
        UserError: its items are something else, or it has no `num_classes`.
    """
    missing = next((part for part in ("__getitem__", "__len__", "num_classes") if not hasattr(dataset, part)), None)
    if missing is not None:
        raise UserError(f"data: {name}.build must return a data set with {missing}, and returns a {type(dataset).__name__} without")
    image = dataset[0][0]
    if not (isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.dim() == 3 and image.shape[1] == image.shape[2]):
        raise UserError(
            f"data: {name} must give square uint8 images [C, H, W] as tensors, and gives {getattr(image, 'dtype', type(image).__name__)}"
        )
    labels = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
    classes = [str(i) for i in range(dataset.num_classes)]
    return ImageSet(name, labels, classes, image.shape[0], image.shape[1], decode=DECODER.adapt(lambda index: dataset[index][0]))


def refuse_impossible(images: ImageSet, wanted_classes: bool) -> None:
    """Raise for a set whose classes cannot be what the user means.

    Raises:
        UserError: one class where classes are asked for, or classes without images.
    """
    counts = torch.bincount(images.labels, minlength=images.num_classes)
    if wanted_classes and images.num_classes == 1:
        raise UserError(
            f"data: {images.name} has a single class, {images.class_names[0]!r}, and a conditional model learns nothing from it;"
            f" point data.root at the folder whose sub-folders are the classes, or set data.labels=false"
        )
    empty = [images.class_names[i] for i in torch.nonzero(counts == 0)[:, 0].tolist()]
    if empty:
        names = ", ".join(empty[:NAMED]) + (f" and {len(empty) - NAMED} more" if len(empty) > NAMED else "")
        if images.name.startswith("folder/"):
            raise UserError(f"data: {images.name} has no image of class {names}; fill or delete the empty class folders")
        raise UserError(
            f"data: {images.name} has no image with label {names}; number the labels 0, 1, 2, ... without gaps, or set data.labels=false"
        )


def place(images: ImageSet, keep_in: str, device: torch.device, processes_here: int) -> str:
    """ "device", "host" or "disk": the first in which the images fit, or what is asked for."""
    if keep_in == "device" and device.type == "cpu":
        return "host"
    if keep_in != "auto":
        return "disk" if keep_in == "disk" and images.pixels is None else "host" if keep_in == "disk" else keep_in
    if device.type == "cuda" and images.bytes < SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if images.pixels is not None or images.bytes * processes_here < SHARE_OF_MEMORY * psutil.virtual_memory().available:
        return "host"
    return "disk"


def read_files(images: ImageSet, keep: bool, progress: Callable[[Iterable, int], Iterable]) -> None:
    """Read and decode every image once before a run: broken ones are named now and not on the third day.

    Sets `images.content`, and `images.pixels` if they are to be kept. What was found is cached by the files' names, sizes
    and times of change, so that whoever next leaves them on disk, a run or its scorer, reads nothing.

    Raises:
        UserError: names every image that does not decode, up to ten.
    """
    seen = look_name(images)
    if seen:
        known = None if keep else seen_before(seen)
        if known and (images.skips or not known["skipped"]):
            images.content = known["content"]
            images.skipped.update({int(index): words for index, words in known["skipped"].items()})
            return
    content, done = hashlib.sha256(images.listing.encode()), 0
    shape = (len(images), images.channels, images.resolution, images.resolution)
    pixels = torch.empty(shape, dtype=torch.uint8) if keep else None  # once: it may be half of the memory
    for block in decoded(images, range(len(images)), progress):
        for image, digest in block:
            content.update(digest)
            if pixels is not None:
                pixels[done] = image
            done += 1
    images.content, images.pixels = content.hexdigest(), pixels
    if seen:
        keep_file(seen, json.dumps({"content": images.content, "skipped": images.skipped}).encode())


def look_name(images: ImageSet) -> str:
    """The name under which the cache knows a look at these images, by the state of each; "" if their states are not known."""
    assert images.decode is not None
    state = hashlib.sha256(images.listing.encode())
    for index in range(len(images)):
        try:
            one = images.decode.state(index)
        except OSError:  # gone, or not readable: reading it will say so
            one = "unreadable"
        if one is None:
            return ""
        state.update(one.encode())
    return f"looked-{state.hexdigest()[:32]}.json"


def seen_before(name: str) -> dict | None:
    """What the cache has of this name."""
    try:
        return json.loads((cache_folder() / name).read_text())
    except (OSError, ValueError):
        return None


def decoded(
    images: ImageSet, indices: Sequence[int], progress: Callable[[Iterable, int], Iterable] = lambda it, total: it
) -> Iterator[list[tuple]]:
    """Blocks of (image, digest of its file), decoded by several threads.

    Raises:
        UserError: after the last, names every image that does not decode, up to ten.
    """
    broken = []

    def read(index: int) -> tuple[torch.Tensor, bytes] | UserError:
        try:
            assert images.decode is not None
            return images.decode.read(index)
        except UserError as error:
            if not images.skips:
                return error
            image, _ = images.stand_in(index, error)
            if isinstance(image, UserError):
                return image
            images.skipped[index] = str(error)
            return image, b"unreadable"

    blocks = [indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK)]
    with ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2)) as pool:  # Pillow decodes without the interpreter's lock
        for block in progress(blocks, len(blocks)):
            found = list(pool.map(read, block))
            broken += [str(item) for item in found if isinstance(item, UserError)]
            if not broken:
                yield found
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        them = "them" if len(broken) > 1 else "it"
        raise UserError(f"data: {'; '.join(broken[:NAMED])}{more}; replace or delete {them}, or set data.on_error=skip")


def decode_all(images: ImageSet, indices: Sequence[int]) -> torch.Tensor:
    """Some images by number: uint8 `[N, C, H, W]`.

    Raises:
        UserError: names every image that does not decode, up to ten.
    """
    return torch.cat([torch.stack([image for image, _ in block]) for block in decoded(images, indices)])


def audit(images: ImageSet) -> str:
    """One line about a data set: images, classes, smallest and largest class, size, range, where it lives.

    Raises:
        UserError: all pixels looked at are equal, or an image does not decode.
    """
    if images.pixels is not None and not images.mapped:
        seen, looked = images.pixels, "all"
    else:
        step = max(1, len(images) // LOOKED_AT)
        some = range(0, len(images), step)[:LOOKED_AT]
        seen, looked = images.pixels[list(some)] if images.mapped else decode_all(images, some), "a sample"
    low, high = int(seen.min()), int(seen.max())
    if low == high:
        raise UserError(f"data: {images.name}: every pixel looked at is {low}; these are no pictures")
    counts = torch.bincount(images.labels.cpu(), minlength=images.num_classes)
    where = (
        "on disk"
        if images.pixels is None
        else "on disk, mapped into memory"
        if images.mapped
        else "in memory"
        if images.pixels.device.type == "cpu"
        else f"on {images.pixels.device}"
    )
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    sizes = f"smallest {images.class_names[smallest]!r} {counts[smallest]:,}, largest {images.class_names[largest]!r} {counts[largest]:,}"
    if counts[smallest] == counts[largest]:
        sizes = f"{counts[0]:,} each"
    classes = f"{images.num_classes} classes ({sizes})" if images.num_classes > 1 else "1 class"
    return (
        f"{images.name}: {len(images):,} images, {classes}, {images.channels} x {images.resolution} x {images.resolution},"
        f" range {low}..{high} ({looked}), {where}"
    )
