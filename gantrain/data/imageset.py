"""A data set as the trainer sees it: uint8 images of one size, labels, and class names."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gantrain import randomness
from gantrain.bounds import MOST_SIDE
from gantrain.contracts import Contract
from gantrain.data.decoding import Traits
from gantrain.errors import UserError, check, in_words, readable
from gantrain.field_marks import INCIDENTAL
from gantrain.memory import free_memory
from gantrain.plugin_errors import PluginError, refuse_failure

Where = Literal["auto", "device", "host", "disk"]
T = TypeVar("T")
TRIES = 100  # how many images of a class are tried in place of an unreadable one


class PlainDataset(Protocol):
    """A map-style torch data set of (image, label), the image a square uint8 tensor `[C, H, W]`.

    It may also name its classes, by label, in `class_names`, or in `classes` as torchvision's data sets do.

    Attributes:
        num_classes: labels are 0 .. num_classes - 1.
    """

    num_classes: int

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    def __len__(self) -> int: ...


class DataSource(ABC):
    """Where the images come from: the contract of everything in `DATASETS`, and of data sets from outside.

    Only `build` is required. A data set that does not inherit from this class gets the same defaults. In a configuration it is
    a frozen dataclass, and its fields may set the attributes; `Source` has most of them as fields.

    Attributes:
        resolution: height and width of the images, if it is known before they are read; None is not known.
        flip: mirror every image with probability one half.
        labels: False trains without classes, whatever the data has.
        keep_in: where the images live: "device", "host" (memory), "disk" (decoded as they are needed), or "auto", the first of
            these in which they fit.
        workers: processes per training process that decode ahead when the images stay on disk.
        on_error: what an image that cannot be read does: "stop" ends the run with its name; "skip" leaves it out of the set
            before a run, and during a run replaces it by another image of its class.
        split: which part of a published data set this is, such as "train"; None is not known. An evaluation protocol that
            scores against another split is refused.
        class_names: names of the classes, by label; None takes those of the data set that `build` returns, if it has any.
    """

    resolution: int | None = None
    flip: bool = False
    labels: bool = True
    keep_in: Where = "auto"
    workers: int = 4
    on_error: Literal["stop", "skip"] = "stop"
    split: str | None = None
    class_names: Sequence[str] | None = None

    @abstractmethod
    def build(self) -> ImageSet | PlainDataset:
        """The images: an `ImageSet`, or a data set whose items are all asked for their label once.

        Raises:
            UserError: the data is not there or not right.
        """


DATA_SET: Contract[DataSource] = Contract("data set", DataSource)


@dataclass(frozen=True, kw_only=True)
class Source(DataSource):
    """The keys that every data set has in its `data:` section.

    Attributes:
        resolution: height and width of the training images, in pixels.
        flip: whether to mirror each training image horizontally with probability 0.5.
        labels: whether to use the data set's classes; false treats all images as one class.
        keep_in: where the images are kept: "device" (accelerator memory), "host" (main memory), "disk" (decoded when
            needed), or "auto", the first of these with enough room.
        workers: number of decoding processes per training process, used when the images stay on disk; 0 decodes in the
            training process itself.
        on_error: what happens when an image cannot be read: "stop" ends the run and names the image; "skip" logs it and
            leaves it out. An image that becomes unreadable during a run is replaced by another one of its class.
    """

    resolution: int = 32
    flip: bool = False
    labels: bool = True
    keep_in: Where = field(default="auto", metadata=INCIDENTAL)
    workers: int = field(default=4, metadata=INCIDENTAL)
    on_error: Literal["stop", "skip"] = field(default="stop", metadata=INCIDENTAL)

    def __post_init__(self) -> None:
        check(self, "resolution", self.resolution >= 1, "must be at least 1")
        check(self, "resolution", self.resolution <= MOST_SIDE, f"must be at most {MOST_SIDE:,}")
        check(self, "workers", self.workers >= 0, "must be at least 0")


class ImageDecoder(ABC):
    """Decodes images one by one: what `ImageSet.decode` is.

    A plain function of the index does as well, and gets the same defaults.
    """

    @abstractmethod
    def __call__(self, index: int) -> Tensor:
        """Image number `index`, uint8 `[C, resolution, resolution]`.

        Raises:
            UserError: it does not decode; names the file.
        """

    def listing(self) -> str:
        """What the images are called and how they are decoded, as one word; "" by default."""
        return ""

    def state(self, index: int) -> str | None:
        """What changes when the image does, known without reading it; None, by default, if nothing is.

        Results are kept under it, so it must differ between any two contents; `gantrain.cache.state_of_file` is such a text.

        Raises:
            OSError: the file cannot be found.
        """
        return None

    def read(self, index: int) -> tuple[Tensor, bytes]:
        """(the image, SHA-256 of what it was made of): of the pixels by default.

        Raises:
            UserError: as a call.
        """
        image = self(index)
        return image, hashlib.sha256(image.numpy().tobytes()).digest()

    def traits(self, index: int) -> Traits | None:
        """What decoding changes in image number `index`, for the audit; None, by default, if that is not known."""
        return None


DECODER: Contract[ImageDecoder] = Contract("decoder", ImageDecoder)


class Chosen(ImageDecoder):
    """Some of a decoder's images, numbered anew.

    Args:
        decode: of all images.
        numbers: of those that are chosen.
    """

    def __init__(self, decode: ImageDecoder, numbers: np.ndarray):
        self.decode, self.numbers = decode, numbers

    def __call__(self, index: int) -> Tensor:
        """Image number `index` of those that are chosen."""
        return self.decode(int(self.numbers[index]))

    def read(self, index: int) -> tuple[Tensor, bytes]:
        """The image and its digest."""
        return self.decode.read(int(self.numbers[index]))

    def traits(self, index: int) -> Traits | None:
        """What decoding changes in it."""
        return self.decode.traits(int(self.numbers[index]))


@dataclass
class ImageSet(Dataset):
    """Images `[C, resolution, resolution]` uint8 with integer labels, in memory or decoded on demand.

    Attributes:
        name: name used in messages and records.
        labels: int64 `[N]`.
        class_names: one name per class, indexed by label.
        channels, resolution: shape of every image.
        pixels: uint8 `[N, C, H, W]`, or None when images are decoded one by one.
        decode: maps an index to uint8 `[C, H, W]` and raises `UserError` naming the file. Required when `pixels` is None.
        content: SHA-256 of the files that images are decoded from, once they have been read.
        sums: uint64 `[N]`, the first 8 bytes of the SHA-256 of each file of the whole set, once they have been read; 0 if that failed.
        origin: SHA-256 of a published set as it was read, before its images were resized; "" is not known.
        skips: whether the set does without unreadable images.
        skipped: why images could not be read before the run, by their numbers in the whole set, before any were left out.
        left_out: numbers of the images that were left out, in the whole set.
        replaced: numbers in the whole set of unreadable images that are kept and replaced, as in the run that is resumed.
        notes: what the user should know about the images, a line each; a part of the audit.
        mapped: whether `pixels` is a memory-mapped file, whose pages are read when needed.
        state: name of what is known about the files since `content` was read, from their states; "" if they prove nothing.
        verify: checks every image once before a run, given a progress bar, and raises `UserError`. None if there is nothing to check.
        named: whether `class_names` are the data's own; None: unless they are the numbers 0, 1, 2, ...
    """

    name: str
    labels: Tensor
    class_names: list[str]
    channels: int
    resolution: int
    pixels: Tensor | None = None
    decode: ImageDecoder | None = None
    content: str = ""
    sums: np.ndarray | None = field(default=None, repr=False)
    origin: str = ""
    skips: bool = False
    skipped: dict[int, str] = field(default_factory=dict)
    mapped: bool = False
    state: str = ""
    verify: Callable[[Callable], None] | None = field(default=None, repr=False)
    left_out: list[int] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    named: bool | None = None
    _fingerprint: str = field(default="", init=False, repr=False)  # not copied by dataclasses.replace, which may replace the pixels
    _listing: str = field(default="", repr=False)  # of the whole set, once images have been left out
    _listed: list[str] = field(default_factory=list, repr=False)  # the class names that `listing` counts, if not `class_names`

    def __post_init__(self) -> None:
        if self.decode is not None:
            self.decode = DECODER.adapt(self.decode)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """The class names as a run keeps and shows them, see `printable`; None if the data has no names, or only one class."""
        named = self.class_names != [str(i) for i in range(self.num_classes)] if self.named is None else self.named
        return tuple(map(printable, self.class_names)) if named and self.num_classes > 1 else None

    @property
    def class_counts(self) -> list[int]:
        """Number of images of each class."""
        return torch.bincount(self.labels.cpu(), minlength=self.num_classes).tolist()

    def with_names(self, names: Sequence[str]) -> ImageSet:
        """Names the classes, in place, and returns this set. Its `listing` stays, so runs from before it had names resume.

        Raises:
            UserError: there are not as many names as classes.
        """
        if len(names) != self.num_classes:
            raise UserError(f"data: {self.name} has {self.num_classes} classes, but class_names has {len(names)}; name each class once")
        self._listed = self._listed or self.class_names
        self.class_names, self.named = list(map(str, names)), True
        return self

    def __getitem__(self, index: int) -> tuple[Tensor | UserError, int]:
        """Returns (image, label). An unreadable image is returned as its error, because raising it in a worker process would garble it."""
        image, label, _ = self.fetch(index)
        return image, label

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor | UserError, int, list[str]]]:
        """Returns the items of a batch, as a `DataLoader` asks for them, for `collate`."""
        return [self.fetch(index) for index in indices]

    def fetch(self, index: int) -> tuple[Tensor | UserError, int, list[str]]:
        """Returns (the image or the error of reading it, its label, messages about images that were skipped)."""
        label = int(self.labels[index])
        if self.pixels is not None:
            return self.pixels[index], label, []
        try:
            return self.ask(self.decode, index), label, []
        except PluginError as error:  # a mistake in code, and no file to skip
            return error, label, []
        except UserError as error:
            return (error, label, []) if not self.skips else (*self.stand_in(index, error), [str(error)])

    def ask(self, part: Callable[[int], T] | None, index: int) -> T:
        """What the decoder, or a method of it, returns for image number `index`.

        Raises:
            UserError: the image does not decode; names the file.
            PluginFailed: the decoder has failed; names the place.
        """
        assert part is not None
        try:
            return part(index)
        except Exception as error:
            refuse_failure(f"image {index}", self.name, error)

    def stand_in(self, index: int, error: UserError) -> tuple[Tensor | UserError, int]:
        """Returns (another image of the same class, or an error if none is readable; the label).

        Which one depends only on `index` and on which images are readable. Stand-ins are spread evenly over the class: if its
        neighbour took the place of each, one image would stand for a whole row of broken files.
        """
        label = self.labels[index]
        others = torch.nonzero(self.labels == label)[:, 0]
        others = others[others != index]
        order = randomness.uniform(0, f"stand-in/{index}", 0, len(others))[:, 0].argsort()[:TRIES]
        for other in others[order].tolist():
            try:
                return self.ask(self.decode, other), int(label)
            except PluginError as failed:
                return failed, int(label)
            except UserError:
                continue
        return UserError(f"{error}; {len(order)} other images of its class cannot be read either"), int(label)

    @property
    def whole(self) -> ImageDecoder:
        """The decoder of all images, including those that have been left out."""
        assert self.decode is not None
        return self.decode.decode if isinstance(self.decode, Chosen) else self.decode

    def leave_out(self, numbers: Collection[int]) -> None:
        """Take images out of the set, in place. Its `listing` and `content` stay those of the whole set.

        Args:
            numbers: of the images.
        """
        if not numbers:
            return
        assert self.decode is not None and not self.left_out, "images are left out once, before they are used"
        self._listing = self.listing
        self.left_out = sorted(numbers)
        kept = np.setdiff1d(np.arange(len(self)), self.left_out)
        if self.pixels is not None:
            for start in range(0, len(kept), 4096):  # in parts: a copy of all would need the memory twice
                part = torch.from_numpy(kept[start : start + 4096])
                self.pixels[start : start + len(part)] = self.pixels[part]
            self.pixels = self.pixels[: len(kept)]
        self.labels, self.decode = self.labels[torch.from_numpy(kept)], Chosen(self.decode, kept)

    @property
    def kept_sums(self) -> np.ndarray:
        """The sums of the images that are not left out."""
        assert self.sums is not None, "the files have been read"
        return np.delete(self.sums, self.left_out)

    def index_of(self, numbers: Sequence[int]) -> list[int]:
        """The indices of images that are not left out, given by their numbers in the whole set."""
        return np.subtract(numbers, np.searchsorted(self.left_out, numbers)).astype(int).tolist()

    def unlabelled(self) -> ImageSet:
        """Makes all images one class, in place, and returns this set."""
        self.labels, self.class_names, self._listed = torch.zeros_like(self.labels), ["all"], []
        return self

    @property
    def bytes(self) -> int:
        """Size of all decoded images in bytes."""
        return len(self) * self.channels * self.resolution**2

    @property
    def listing(self) -> str:
        """SHA-256 of the names, labels and decoding settings of the whole set; it does not depend on the images' content."""
        if self._listing:
            return self._listing
        digest = hashlib.sha256(f"{self.channels}x{self.resolution}x{self.resolution} {self._listed or self.class_names}".encode())
        digest.update(self.labels.cpu().numpy().astype(np.int64).tobytes())
        digest.update(self.decode.listing().encode() if self.decode is not None else b"")
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images' content: of `content` if the images come from files, otherwise of the pixels.

        Images that are left out do not count. It does not depend on whether the files have been decoded into memory.
        """
        if not self._fingerprint:
            digest = hashlib.sha256(f"{self.channels}x{self.resolution}x{self.resolution}".encode())
            digest.update(self.labels.cpu().numpy().astype(np.int64).tobytes())
            if self.decode is not None or self.content:
                digest.update(self.kept_sums.tobytes() if self.left_out and self.sums is not None else self.content.encode())
                digest.update(f"replaced {self.replaced}".encode() if self.replaced else b"")
            else:
                assert self.pixels is not None
                for chunk in self.pixels.split(4096):
                    digest.update(chunk.cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def sum_array(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def require_room_for_set(name: str, count: int, channels: int, resolution: int, copies: int) -> None:
    """Refuse a resolution at which a published set does not fit into memory.

    Args:
        name: of the set, for the message.
        count, channels, resolution: of its images.
        copies: how many bytes each value takes while the images are resized.

    Raises:
        UserError: the memory is too small.
    """
    needed, free = count * channels * resolution**2 * copies, free_memory()
    if needed > free:
        raise UserError(
            f"data.resolution: {name} at {resolution} x {resolution} pixels needs {in_words(needed)} of memory, and"
            f" {in_words(free, down=True)} are free; set a smaller data.resolution"
        )


def numbered_classes(name: str, largest: int, count: int) -> list[str]:
    """Returns the class names of `count` images whose labels are numbers up to `largest`.

    Raises:
        UserError: there would be more classes than images. Without this check a corrupt label could demand a list of any length.
    """
    if largest >= count:
        remedy = "number the labels 0, 1, 2, ... without gaps, or set data.labels=false"
        raise UserError(f"{name}: label {largest} implies more classes than there are images ({count:,}); {remedy}")
    return [str(i) for i in range(largest + 1)]


def printable(name: str) -> str:
    """A class or file name as valid text of one line: bytes that are not UTF-8 and unprintable characters are escaped, as in `caf\\xe9`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in readable(name))


def collate(items: list[tuple[Tensor | UserError, int, list[str]]]) -> tuple[Tensor, Tensor, list[str]] | UserError:
    """Returns (images, labels, messages about skipped images) of a batch, or the first error among its items."""
    for image, *_ in items:
        if isinstance(image, UserError):
            return image
    images, labels, skipped = zip(*items)
    return torch.stack(images), torch.tensor(labels), [line for lines in skipped for line in lines]
