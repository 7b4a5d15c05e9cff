"""Opening existing images, to score them or to use them as a reference: from a folder, zip, array or tensor, in order, not resized."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gantrain import randomness
from gantrain.cache import is_digest, keep_file, kept_file, state_of_file
from gantrain.data.archive import ZipDecoder, label_members, opened_zip, read_zip
from gantrain.data.classes import Labelled, note_splits
from gantrain.data.decoding import LARGE_IMAGE, Traits, Undecodable, file_bytes, opened_image, reason, render, traits_of, words_of_traits
from gantrain.data.folder import label_files
from gantrain.data.intake import LOOKED_INTO
from gantrain.data.listing import Listing, components, list_folder, zip_components
from gantrain.data.stream import permuted
from gantrain.errors import UserError, in_words, readable
from gantrain.memory import free_memory
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.run_folder.recognition import is_run_folder

THREADS = 8  # Pillow releases the interpreter lock while it decodes
KEPT_BYTES = 2**10  # of a cached digest
T = TypeVar("T")
Read = Callable[[str], AbstractContextManager[bytes]]  # a file's bytes, by its name; raises OSError


@dataclass(frozen=True)
class Pictures:
    """Images of one size in a fixed order.

    Attributes:
        name: for messages and records.
        count: how many.
        shape: (C, H, W) of each.
        content: computes the SHA-256 of all images; slow, so it is called only when needed.
        take: reads images by number: uint8 `[n, C, H, W]` on the CPU; raises UserError naming an image that is unreadable.
        notes: what the user should know about the files, a line each: what was passed over, and what decoding changes.
        count_classes: images per class; empty if the classes are not known.
    """

    name: str
    count: int
    shape: tuple[int, int, int]
    content: Callable[[], str]
    take: Callable[[Sequence[int]], Tensor]
    notes: tuple[str, ...] = ()
    count_classes: Callable[[], tuple[int, ...]] = tuple

    def __len__(self) -> int:
        return self.count

    def some(self, most: int) -> Tensor:
        """A few images from the whole of them, uint8 `[n, C, H, W]`; in order, images are often sorted by class."""
        return self.take([i * len(self) // most for i in range(most)] if most < len(self) else range(len(self)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all images."""
        return self.content()


def sample_of(pictures: Pictures, count: int, seed: int) -> Callable[[int, int], Tensor]:
    """A function that reads some of the images, (start, count) to uint8 `[count, C, H, W]`: all of them, or a sample in their order.

    The sample is drawn without replacement, by another key than the samples of references, which are drawn with seed 0: images that
    are scored against a sample of themselves would otherwise be scored against the same ones.

    Args:
        count: of the sample.
        seed: of the sample.
    """
    if count == len(pictures):
        return lambda start, n: pictures.take(range(start, start + n))
    order = sorted(permuted(randomness.key(seed, "scored images") % 2**31, np.arange(count), len(pictures)).tolist())
    return lambda start, n: pictures.take(order[start : start + n])


def wrap_array(name: str, images: np.ndarray, content: str = "") -> Pictures:
    """Wrap an array, uint8 `[N, H, W, C]`.

    Args:
        name: for messages and records.
        content: SHA-256 of the images, if it is known.

    Raises:
        UserError: the array is something else.
    """
    return wrap_tensor(name, torch.from_numpy(images).permute(0, 3, 1, 2), content)


def wrap_tensor(name: str, images: Tensor, content: str = "") -> Pictures:
    """Wrap a tensor, uint8 `[N, C, H, W]`; arguments as `wrap_array`.

    Raises:
        UserError: the tensor is something else.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise UserError(
            f"{name}: images as a tensor must be uint8 [N, C, H, W] with C of 1 or 3,"
            f" got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )

    def digest() -> str:
        found = hashlib.sha256(f"{tuple(images.shape)}".encode())
        for chunk in images.split(4096):
            found.update(chunk.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def take(numbers: Sequence[int]) -> Tensor:
        return images[list(numbers)].cpu().contiguous()

    channels, height, width = images.shape[1:]
    return Pictures(name, len(images), (channels, height, width), lambda: content or digest(), take)


def open_folder(folder: Path) -> Pictures:
    """Open all image files below a folder in the order of their paths, as RGB.

    Raises:
        UserError: there are none, the first one does not decode, or the folder contains run folders.
    """
    listing = list_folder(folder)  # first, since it refuses folders that may not be read
    inside = [folder / name for name in listing.folders]
    run = next((path for path in inside if (path / CONFIG_FILE).exists() and is_run_folder(path)), None)
    if run is not None:
        raise UserError(f"{folder}: contains run folders, not images to score; pass one of them, such as {run}")
    listing.require(f"{folder}:")
    files = sorted(str(folder / name) for name in listing.files)  # as text, not by component: the order of torch-fidelity's KID and IS
    notes = listing.notes() + note_splits([components(name) for name in listing.files])

    found = open_files(readable(folder.name or folder), files, file_bytes, state_of_file, notes)
    return replace(found, count_classes=lambda: count_classes(lambda: label_files(folder, listing), listing))


def open_zip(path: Path) -> Pictures:
    """Open all image files in a zip in the order of their names, as RGB, without unpacking the zip.

    Raises:
        UserError: there are none, or the first one does not decode.
    """
    listing = read_zip(path)
    listing.require(f"{path}:")
    members = listing.members
    decoder = ZipDecoder(path, members, 1, 3, "box")
    numbers = {f"{path}: {member.filename}": i for i, member in enumerate(members)}

    def labelled() -> Labelled:
        with opened_zip(path) as opened:
            return label_members(path, opened, listing, [zip_components(name) for name in listing.files])

    found = open_files(
        readable(path.name),
        list(numbers),
        lambda name: decoder.member(numbers[name]),
        lambda name: decoder.state(numbers[name]),
        listing.notes() + note_splits([zip_components(name) for name in listing.files]),
    )
    return replace(found, count_classes=lambda: count_classes(labelled, listing))


def count_classes(label: Callable[[], Labelled], listing: Listing) -> tuple[int, ...]:
    """Images per class, of the classes that training would find; empty if there are none, or if some image has no class.

    Args:
        label: finds the classes of a listing's images.
        listing: all images.
    """
    try:
        found = label()
    except UserError:  # the folders are not classes; as images without classes they are still good
        return ()
    if len(found.labels) < len(listing.files):
        return ()
    return tuple(np.bincount(found.labels, minlength=len(found.names)).tolist())


def open_files(name: str, files: list[str], read: Read, state: Callable[[str], str | None], notes: Sequence[str] = ()) -> Pictures:
    """Open files by name.

    Args:
        name: for messages and records.
        files: names of the files.
        read: reads a file's bytes, which are used within its context.
        state: a text that changes when a file does, None if nothing is known; the digest of all files is cached under it.
        notes: what the user should know about the files, a line each.

    Raises:
        UserError: the first file does not decode.
    """

    def use(file: str, work: Callable[[bytes], T]) -> T:
        """What `work` returns for a file's bytes."""
        try:
            with read(file) as data:
                return work(data)
        except OSError as error:
            raise UserError(f"{file}: is unreadable ({reason(error)}); replace it, or remove it from {name}") from None

    first = use(files[0], lambda data: decode(data, files[0]))

    def one(number: int) -> Tensor:
        image = use(files[number], lambda data: decode(data, files[number]))
        if image.shape != first.shape:
            two = " and ".join(f"{x.shape[2]}x{x.shape[1]}" for x in (image, first))
            raise UserError(f"{files[number]}: differs in size from {files[0]}, {two}; images are not resized, so convert them to one size")
        return image

    channels, height, width = first.shape

    def take(numbers: Sequence[int]) -> Tensor:
        refuse_many(name, len(numbers), first)
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(one, numbers)))

    def content() -> str:
        return digest_of(name, files, lambda file: use(file, lambda data: hashlib.sha256(data).digest()), state)

    return Pictures(name, len(files), (channels, height, width), content, take, (*notes, *describe_decoding(files, read)))


def refuse_many(name: str, count: int, image: Tensor) -> None:
    """Refuse to decode more images at a time than the memory holds.

    Args:
        count: of images.
        image: one of them.

    Raises:
        UserError: the memory is too small for two copies.
    """
    needed = 2 * count * image.numel()
    if needed > LARGE_IMAGE and needed > (free := free_memory()):
        raise UserError(
            f"{name}: {count} images of {image.shape[2]}x{image.shape[1]} pixels need {in_words(needed)} at a time, and only"
            f" {in_words(free, down=True)} are free; set a smaller eval.batch_size, or make the images smaller"
        )


def digest_of(name: str, files: Sequence[str], sum_of: Callable[[str], bytes], state: Callable[[str], str | None]) -> str:
    """SHA-256 of the contents of files, cached as long as their states stay the same.

    Args:
        name: of all files, for the progress bar.
        files: their names.
        sum_of: the SHA-256 of a file.
        state: as of `open_files`.
    """
    seen = key_of(files, state)
    if seen and (known := kept_digest(seen)):
        return known
    digest = hashlib.sha256()
    with ThreadPoolExecutor(THREADS) as pool:  # reading and hashing both release the interpreter lock
        shown = tqdm(files, desc=f"checksum of {name}", leave=False, disable=None)
        for one in pool.map(sum_of, shown):
            digest.update(one)
    if seen and key_of(files, state) == seen:  # nothing has changed in the meantime
        keep_file(seen, json.dumps(digest.hexdigest()).encode())
    return digest.hexdigest()


def kept_digest(seen: str) -> str | None:
    """The digest kept in the cache under a name; None if there is none, or if the file is damaged."""
    try:
        known = json.loads(kept_file(seen, KEPT_BYTES) or "")
    except (ValueError, RecursionError):
        return None
    return known if is_digest(known) else None


def key_of(files: Sequence[str], state: Callable[[str], str | None]) -> str:
    """Name of a cached digest, from the states of all files; "" if they prove nothing."""
    states = hashlib.sha256()
    for file in files:
        try:
            one = state(file)
        except OSError:  # the file is gone; reading it reports that
            one = None
        if one is None:
            return ""
        states.update(f"{one}\n".encode())
    return f"pictures-{states.hexdigest()[:32]}.json"


def describe_decoding(files: Sequence[str], read: Read) -> list[str]:
    """What decoding changes in a sample of the files, a line each; arguments as `open_files`."""

    def traits(file: str) -> Traits | None:
        try:
            with read(file) as data:
                return traits_of(data)
        except OSError:
            return None

    some = files[:: max(1, len(files) // LOOKED_INTO)][:LOOKED_INTO]
    with ThreadPoolExecutor(THREADS) as pool:
        return words_of_traits([one for one in pool.map(traits, some) if one is not None])


def decode(data: bytes, name: str) -> Tensor:
    """Decode a file's bytes to RGB, uint8 `[3, H, W]`.

    Raises:
        UserError: they do not decode; the message starts with `name`.
    """
    try:
        with opened_image(data) as opened:
            return torch.from_numpy(np.array(render(opened, "RGB"))).permute(2, 0, 1).contiguous()
    except Undecodable as error:
        raise UserError(f"{name}: does not decode as an image ({error}); replace or remove it") from None
