"""What is checked of a data set before a run starts, and where its images are put."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import psutil
import torch

from gantrain.data.imageset import ImageSet, Source
from gantrain.errors import UserError

NAMED = 10  # how many broken files one message names
LOOKED_AT = 256  # how many images are decoded to look at a set that stays on disk
SHARE_OF_MEMORY = 0.5  # of what is available, for images in memory
SHARE_OF_DEVICE = 0.25  # of what is free on an accelerator, whose memory training needs


def prepare(
    source: Source, device: torch.device, processes_here: int = 1, progress: Callable[[Iterable, int], Iterable] = lambda it, total: it
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
    images = source.build()
    if not source.labels:
        images = images.unlabelled()
    refuse_impossible(images, wanted_classes=source.labels)
    where = place(images, source.keep_in, device, processes_here)
    if where != "disk":
        if images.pixels is None:
            images.pixels = decode_all(images, range(len(images)), progress)
        images.fingerprint  # from the bytes where they are, before they move
        if where == "device":
            images.pixels, images.labels = images.pixels.to(device), images.labels.to(device)
    return images


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
        raise UserError(f"data: {images.name} has no image of class {names}; fill or delete the empty class folders")


def place(images: ImageSet, keep_in: str, device: torch.device, processes_here: int) -> str:
    """"device", "host" or "disk": the first in which the images fit, or what is asked for."""
    if keep_in == "device" and device.type == "cpu":
        return "host"
    if keep_in != "auto":
        return "disk" if keep_in == "disk" and images.pixels is None else "host" if keep_in == "disk" else keep_in
    if device.type == "cuda" and images.bytes < SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if images.pixels is not None or images.bytes * processes_here < SHARE_OF_MEMORY * psutil.virtual_memory().available:
        return "host"
    return "disk"


def decode_all(
    images: ImageSet, indices: Iterable[int], progress: Callable[[Iterable, int], Iterable] = lambda it, total: it
) -> torch.Tensor:
    """Decode images by number: uint8 `[N, C, H, W]`.

    Raises:
        UserError: names every image that does not decode, up to ten.
    """
    indices = list(indices)
    pixels = torch.empty(len(indices), images.channels, images.resolution, images.resolution, dtype=torch.uint8)
    broken = []
    with ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2)) as pool:  # Pillow decodes without the interpreter's lock
        for slot, (image, _) in enumerate(progress(pool.map(images.__getitem__, indices), len(indices))):
            if isinstance(image, UserError):
                broken.append(str(image))
            else:
                pixels[slot] = image
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise UserError("data: " + "; ".join(broken[:NAMED]) + more)
    return pixels


def audit(images: ImageSet) -> str:
    """One line about a data set: images, classes, smallest and largest class, size, range, where it lives.

    Raises:
        UserError: all pixels looked at are equal, or an image does not decode.
    """
    if images.pixels is not None:
        seen, looked = images.pixels, "all"
    else:
        step = max(1, len(images) // LOOKED_AT)
        seen, looked = decode_all(images, range(0, len(images), step)[:LOOKED_AT]), "a sample"
    low, high = int(seen.min()), int(seen.max())
    if low == high:
        raise UserError(f"data: {images.name}: every pixel looked at is {low}; these are no pictures")
    counts = torch.bincount(images.labels.cpu(), minlength=images.num_classes)
    where = "on disk" if images.pixels is None else "in memory" if images.pixels.device.type == "cpu" else f"on {images.pixels.device}"
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    return (
        f"{images.name}: {len(images):,} images, {images.num_classes} class{'es' if images.num_classes > 1 else ''}"
        f" (smallest {images.class_names[smallest]!r} {counts[smallest]:,}, largest {images.class_names[largest]!r} {counts[largest]:,}),"
        f" {images.channels} x {images.resolution} x {images.resolution}, range {low}..{high} ({looked}), {where}"
    )
