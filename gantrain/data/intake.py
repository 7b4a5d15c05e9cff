"""Checks a data set before a run starts and decides where its images are kept."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
import torch

from gantrain.cache import is_digest, keep_file, kept_file
from gantrain.data.class_balance import describe_choice
from gantrain.data.decoding import words_of_traits
from gantrain.data.imageset import DATA_SET, DECODER, DataSource, ImageSet, PlainDataset, printable
from gantrain.errors import UserError, counted, in_words
from gantrain.memory import free_memory
from gantrain.plugin_errors import PluginError, describe_value, refuse_failure

NAMED = 10  # how many broken files one message names
NAMED_IN_NOTES = 3  # how many a note names
LOOKED_AT = 256  # how many images on disk the audit samples
LOOKED_INTO = 64  # how many files are searched for what decoding changes
SUMS = np.dtype("<u8")
KEPT_BYTES = 2**20, 4096  # most bytes of a cached reading: of a small set, and of each image of a large one
BLOCK = 512  # images decoded at a time when the whole data set is read
SHARE_OF_MEMORY = 0.5  # share of the available main memory that images may take
SHARE_OF_DEVICE = 0.25  # share of the free accelerator memory that images may take; training needs the rest


def prepare(
    source: DataSource,
    device: torch.device,
    processes_here: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda it, total: it,
    run_state: Mapping[str, Any] | None = None,
) -> ImageSet:
    """Build a data set, check it, and put its images where they fit.

    With `on_error: skip`, images that cannot be read are left out. In a run that is resumed, those are left out that were left out
    when it began, and later ones are replaced: the order of the images stays what it was.

    Args:
        source: the `data:` section.
        device: the device of the training process.
        processes_here: how many training processes share this machine's memory.
        progress: wraps an iterable of a known length in a progress bar.
        run_state: the state of a checkpoint of a run that may be resumed or scored with the images.

    Raises:
        UserError: the data set is unusable; the message names the cause.
    """
    source = DATA_SET.adapt(source)
    built = source.build()
    images = built if isinstance(built, ImageSet) else adopted(built, type(source).__name__, source.labels)
    if source.class_names is not None:
        images = images.with_names(source.class_names)
    if not source.labels:
        images = images.unlabelled()
    refuse_impossible(images, wanted_classes=source.labels)
    images.skips = source.on_error == "skip"
    where = place(images, source.keep_in, device, processes_here)
    refuse_small_memory(images, "disk" if images.mapped and source.keep_in != "host" else where)
    if images.verify:
        images.verify(progress)
    if images.pixels is None:
        out = known_left_out(images, run_state)
        images.notes += describe_traits(images)
        read_files(images, where != "disk", progress)
        settle(images, images.skipped if out is None else out)
    elif images.mapped and source.keep_in == "host":
        images.pixels, images.mapped = images.pixels.clone(), False
    _ = images.fingerprint  # computed and kept now, before the pixels move to the device
    if where == "device":
        assert images.pixels is not None
        images.pixels, images.labels, images.mapped = images.pixels.to(device), images.labels.to(device), False
    return images


def adopted(dataset: PlainDataset, name: str, labelled: bool = True) -> ImageSet:
    """A plain data set of (uint8 `[C, H, W]`, label) with `num_classes` as an `ImageSet`; every item is asked for its label once.

    If not `labelled`, no item is asked, and all labels are 0: those of the items may be anything, such as -1 for "no class".

    Raises:
        UserError: its items are something else, or it has no `num_classes`.
    """
    missing = next((part for part in ("__getitem__", "__len__", "num_classes") if not hasattr(dataset, part)), None)
    if missing is not None:
        raise UserError(f"data: {name}.build must return a data set with {missing}, and returns a {type(dataset).__name__} without")
    image = item_of(dataset, 0, name)[0] if len(dataset) else None
    if image is None:
        raise UserError(f"data: {name} has no images")
    if not (isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.dim() == 3 and image.shape[1] == image.shape[2]):
        raise UserError(
            f"data: items of {name} must be square uint8 tensors [C, H, W], got {getattr(image, 'dtype', type(image).__name__)}"
        )
    count = len(dataset)
    labels = torch.tensor([label_of(dataset, i, name) for i in range(count)]) if labelled else torch.zeros(count, dtype=torch.int64)
    classes = [str(i) for i in range(dataset.num_classes)]

    def decode(index: int) -> torch.Tensor:
        found = dataset[index][0]
        if not (isinstance(found, torch.Tensor) and found.dtype == torch.uint8 and found.shape == image.shape):
            raise UserError(f"data: item {index} of {name} must be a uint8 tensor {list(image.shape)}, got {describe_value(found)}")
        return found

    images = ImageSet(name, labels, classes, image.shape[0], image.shape[1], decode=DECODER.adapt(decode))
    names = names_in(dataset)
    return images if names is None else images.with_names(names)


def item_of(dataset: PlainDataset, index: int, name: str) -> tuple[Any, Any]:
    """(image, label) of a plain data set.

    Raises:
        UserError: the item is something else.
    """
    try:
        item: Any = dataset[index]
    except Exception as error:
        refuse_failure(f"item {index}", name, error)
    if not (isinstance(item, Sequence) and len(item) >= 2):
        raise UserError(f"data: item {index} of {name} must be (image, label), got {describe_value(item)}")
    return item[0], item[1]


def label_of(dataset: PlainDataset, index: int, name: str) -> int:
    """The label of an item of a plain data set.

    Raises:
        UserError: it is not a whole number below `num_classes`.
    """
    label = item_of(dataset, index, name)[1]
    try:
        whole = int(label)
    except (TypeError, ValueError, RuntimeError):
        whole = -1
    if not 0 <= whole < dataset.num_classes:
        most = f"a whole number in [0, {dataset.num_classes})"
        raise UserError(f"data: the label of item {index} of {name} must be {most}, got {describe_value(label)}")
    return whole


def names_in(dataset: PlainDataset) -> Sequence[str] | None:
    """The class names of a plain data set: `class_names`, or torchvision's `classes` if it has a text for each class; None without."""
    names = getattr(dataset, "class_names", None)
    if names is not None:
        return names
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or len(classes) != dataset.num_classes:
        return None
    return classes if all(isinstance(one, str) for one in classes) else None


def refuse_impossible(images: ImageSet, wanted_classes: bool) -> None:
    """Refuse a data set whose classes are probably not what the user meant.

    Raises:
        UserError: there is only one class although classes are wanted, or a class has no images.
    """
    counts = torch.bincount(images.labels, minlength=images.num_classes)
    if wanted_classes and images.num_classes == 1:
        raise UserError(
            f"data: {images.name} has only one class, {images.class_names[0]!r}, so a conditional model has nothing to learn;"
            f" point data.root at the folder whose sub-folders are the classes, or set data.labels=false"
        )
    empty = [images.class_names[i] for i in torch.nonzero(counts == 0)[:, 0].tolist()]
    if empty:
        names = ", ".join(empty[:NAMED]) + (f" and {len(empty) - NAMED} more" if len(empty) > NAMED else "")
        if images.name.startswith("folder/"):
            where = getattr(images.decode, "root", images.name)  # the name is not a path
            raise UserError(f"data.root: {where} has no images of class {names}; fill or delete the empty class folders")
        raise UserError(
            f"data: {images.name} has no images with label {names}; number the labels 0, 1, 2, ... without gaps, or set data.labels=false"
        )


def place(images: ImageSet, keep_in: str, device: torch.device, processes_here: int) -> str:
    """Returns where to keep the images, "device", "host" or "disk": `keep_in`, or for "auto" the first with enough room."""
    if keep_in == "device" and device.type == "cpu":
        return "host"
    if keep_in != "auto":
        return "disk" if keep_in == "disk" and images.pixels is None else "host" if keep_in == "disk" else keep_in
    if device.type == "cuda" and images.bytes < SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if images.pixels is not None or images.bytes * processes_here < SHARE_OF_MEMORY * free_memory():
        return "host"
    return "disk"


def refuse_small_memory(images: ImageSet, where: str) -> None:
    """Refuse images that the memory does not hold: all of them, or one if they stay on disk.

    Raises:
        UserError: the memory is too small.
    """
    if images.pixels is not None and not (images.mapped and where != "disk"):
        return
    one = images.bytes // max(1, len(images))
    needed, free = one if where == "disk" else images.bytes, free_memory()
    if needed > free and where != "disk":
        raise UserError(
            f"data.keep_in: {where} needs {in_words(needed)} of memory for {images.name}, and {in_words(free, down=True)} are free; set"
            " data.keep_in=disk, or a smaller data.resolution"
        )
    if needed > free:
        raise UserError(
            f"data.resolution: one image of {images.resolution} x {images.resolution} pixels takes {in_words(needed)}, and"
            f" {in_words(free, down=True)} of memory are free; set a smaller data.resolution"
        )


def known_left_out(images: ImageSet, run_state: Mapping[str, Any] | None) -> list[int] | None:
    """The images that a run left out at its beginning; None if there is no run, or if it has other images."""
    if run_state is None or run_state.get("data_listing") != images.listing:
        return None
    return run_state.get("data_left_out", [])  # earlier versions left none out


def read_files(images: ImageSet, keep: bool, progress: Callable[[Iterable, int], Iterable]) -> None:
    """Read and decode every image once before a run, so that broken files are reported at the start and not days later.

    Sets `images.content`, `images.sums`, `images.skipped`, and `images.pixels` if `keep`. The result is cached under the files' states
    (`state_of_file`), so the next run or scorer that leaves the images on disk need not read them.

    Raises:
        UserError: images do not decode, and the set does not do without them; up to ten are named.
    """
    seen = images.state = look_name(images)
    if seen:
        known = None if keep else seen_before(seen, len(images))
        if known and (images.skips or not known[2]):
            images.content, images.sums = known[:2]
            images.skipped.update(known[2])
            return
    content, sums, number = hashlib.sha256(images.listing.encode()), np.zeros(len(images), SUMS), 0
    shape = (len(images), images.channels, images.resolution, images.resolution)
    pixels = torch.empty(shape, dtype=torch.uint8) if keep else None  # allocated only once: it may take half of the memory
    for block in read_blocks(images, range(len(images)), progress):
        for item in block:
            if isinstance(item, UserError):
                images.skipped[number] = str(item)
                content.update(b"unreadable")
            else:
                content.update(item[1])
                sums[number] = int.from_bytes(item[1][:8], "little")
                if pixels is not None:
                    pixels[number] = item[0]
            number += 1
    if images.skipped and not images.skips:
        refuse_unreadable(list(images.skipped.values()))
    images.content, images.sums, images.pixels = content.hexdigest(), sums, pixels
    if seen and look_name(images) == seen:  # nothing has changed in the meantime
        keep_file(seen, json.dumps({"content": images.content, "sums": sums.tobytes().hex(), "skipped": images.skipped}).encode())


def settle(images: ImageSet, left_out: Collection[int]) -> None:
    """Leave images out of a set that has been read, and replace the other unreadable ones by images of their classes.

    Raises:
        UserError: a class has no readable image left.
    """
    out = set(left_out)
    before = torch.bincount(images.labels, minlength=images.num_classes)
    images.replaced = [number for number in sorted(images.skipped) if number not in out]
    images.leave_out(out)
    index_of = dict(zip(images.replaced, images.index_of(images.replaced)))
    after = torch.bincount(images.labels, minlength=images.num_classes)
    for label in torch.nonzero((after == 0) & (before > 0))[:, 0].tolist():
        of_class = f" of class {printable(images.class_names[label])!r}" if images.num_classes > 1 else ""
        raise UserError(
            f"data: {images.name}: none of the {before[label]:,} images{of_class} can be read ({next(iter(images.skipped.values()))});"
            " replace them, or leave the class out of the data set"
        )
    if images.pixels is not None:
        for number, index in index_of.items():
            image, _ = images.stand_in(index, UserError(images.skipped[number]))
            if isinstance(image, UserError):
                raise UserError(f"data: {image}")
            images.pixels[index] = image
    if images.left_out:
        images.notes.append(f"left out: {describe_left_out(images)}")
    if images.replaced:
        words = [images.skipped[number] for number in images.replaced]
        images.notes.append(f"replaced by other images of their classes: {describe_unreadable(words)}")


def describe_left_out(images: ImageSet) -> str:
    """How many images are left out, and which can be read now although they could not when the run began."""
    count, lost = len(images.left_out), [images.skipped[number] for number in images.left_out if number in images.skipped]
    if len(lost) == count:
        return describe_unreadable(lost)
    now = f"{count - len(lost):,} can be now" if lost else "it can be now" if count == 1 else "all can be now"
    rest = f"; still {describe_unreadable(lost)}" if lost else ""
    them = "them" if count - len(lost) > 1 else "it"
    return f"{counted(count, 'image')} that could not be read when the run began; {now}, and a new run would use {them}{rest}"


def describe_unreadable(reasons: Sequence[str]) -> str:
    """How many images cannot be read, and the first of them, as "2 images that cannot be read (a.png: ...; b.png: ...)"."""
    more = f"; and {len(reasons) - NAMED_IN_NOTES:,} more" if len(reasons) > NAMED_IN_NOTES else ""
    return f"{counted(len(reasons), 'image')} that cannot be read ({'; '.join(reasons[:NAMED_IN_NOTES])}{more})"


def is_unchanged(images: ImageSet) -> bool | None:
    """True if images are certainly those of the fingerprint; None if that is not known, since the state of a file has changed."""
    return True if images.pixels is not None or (images.state and look_name(images) == images.state) else None


def look_name(images: ImageSet) -> str:
    """Returns the cache's name for a reading of these images, from the state of each file; "" if the states are not known."""
    state = hashlib.sha256(images.listing.encode())
    for index in range(len(images) + len(images.left_out)):
        try:
            one = images.whole.state(index)
        except OSError:  # missing or unreadable: reading it later reports the error
            one = "unreadable"
        except Exception as error:
            refuse_failure(f"image {index}", images.name, error)
        if one is None:
            return ""
        state.update(f"{one}\n".encode())
    return f"looked-{state.hexdigest()[:32]}.json"


def seen_before(name: str, count: int) -> tuple[str, np.ndarray, dict[int, str]] | None:
    """Returns the cached result of an earlier `read_files`: (content, sums, skipped); None if there is none, or if it is damaged.

    Args:
        count: of images.
    """
    try:
        known = json.loads(kept_file(name, KEPT_BYTES[0] + KEPT_BYTES[1] * count) or "")
        content, sums = known["content"], np.frombuffer(bytes.fromhex(known["sums"]), SUMS)
        skipped = {int(index): words for index, words in known["skipped"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    whole = is_digest(content) and len(sums) == count and all(isinstance(w, str) and 0 <= i < count for i, w in skipped.items())
    return (content, sums, skipped) if whole else None


def read_blocks(
    images: ImageSet, indices: Sequence[int], progress: Callable[[Iterable, int], Iterable] = lambda it, total: it
) -> Iterator[list[tuple[torch.Tensor, bytes] | UserError]]:
    """Yields blocks of (image, digest of its file), or the error of reading it, decoded by several threads."""
    decode = images.decode
    assert decode is not None

    def read(index: int) -> tuple[torch.Tensor, bytes] | UserError:
        """One image and its digest, or the error of reading it."""
        try:
            return images.ask(decode.read, index)
        except PluginError:  # a mistake in code, and no file to name or to skip
            raise
        except UserError as error:
            return error

    blocks = [indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK)]
    with ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2)) as pool:  # Pillow releases the GIL while it decodes
        for block in progress(blocks, len(blocks)):
            yield list(pool.map(read, block))


def refuse_unreadable(broken: list[str]) -> NoReturn:
    """Refuse images that do not decode.

    Raises:
        UserError: always; names up to ten.
    """
    more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    them = "them" if len(broken) > 1 else "it"
    raise UserError(f"data: {'; '.join(broken[:NAMED])}{more}; replace or delete {them}, or set data.on_error=skip")


def decode_all(images: ImageSet, indices: Sequence[int]) -> torch.Tensor:
    """Decodes some images, given by index: uint8 `[N, C, H, W]`.

    Raises:
        UserError: images do not decode, and the set does not do without them; up to ten are named.
    """
    found: list[torch.Tensor] = []
    broken: list[str] = []
    items = (item for block in read_blocks(images, indices) for item in block)
    for index, item in zip(indices, items, strict=True):
        image = item[0] if isinstance(item, tuple) else images.stand_in(index, item)[0] if images.skips else item
        if isinstance(image, UserError):
            broken.append(str(image))
        else:
            found.append(image)
    if broken:
        refuse_unreadable(broken)
    return torch.stack(found)


def describe_traits(images: ImageSet) -> list[str]:
    """What decoding changes in a sample of the files, a line each: 16 bits, transparency and orientation are lost."""
    if images.decode is None:
        return []
    step = max(1, len(images) // LOOKED_INTO)
    some = range(0, len(images), step)[:LOOKED_INTO]
    with ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) + 2)) as pool:
        found = [one for one in pool.map(functools.partial(images.ask, images.decode.traits), some) if one is not None]
    return words_of_traits(found)


def audit(images: ImageSet, labels: str = "uniform") -> str:
    """Describes a data set in a line: images, classes, smallest and largest class, shape, range, where it is kept.

    Lines follow: what `labels` of the configuration means for scores, if classes are unbalanced; what was passed over or converted.

    Raises:
        UserError: all sampled pixels are equal, or an image does not decode.
    """
    if images.pixels is not None and not images.mapped:
        seen, looked = images.pixels, "all"
    else:
        step = max(1, len(images) // LOOKED_AT)
        some = range(0, len(images), step)[:LOOKED_AT]
        seen, looked = images.pixels[list(some)] if images.pixels is not None else decode_all(images, some), "a sample"
    low, high = int(seen.min()), int(seen.max())
    if low == high:
        raise UserError(f"data: {images.name}: every pixel read is {low}, so the images are blank; check the data set")
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
    choice = describe_choice(counts.tolist(), labels)
    line = (
        f"{images.name}: {len(images):,} images, {classes}, {images.channels} x {images.resolution} x {images.resolution},"
        f" range {low}..{high} ({looked}), {where}"
    )
    return "\n  ".join([line, *([choice] if choice else []), *images.notes])
