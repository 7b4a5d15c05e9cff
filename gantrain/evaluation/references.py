"""References of scores: the run's data set, or what `eval.reference` names:

FILE.npz            statistics, features or images (`gantrain.metrics.statistics` lists the kinds)
FOLDER, FILE.zip    all images in it, as they are
a prepared data set, a run folder or a CONFIG         the data set, as for a run that trains on it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gantrain.config.loading import load
from gantrain.data import ImageSet, Packed, decode_all, intake, permuted, prepare
from gantrain.data.listing import is_folder
from gantrain.data.packed import HEAD, read_head, read_packed
from gantrain.distributed import local_processes
from gantrain.errors import UserError, readable
from gantrain.evaluation.image_files import Pictures, open_folder, open_zip, wrap_array
from gantrain.home import expand_user
from gantrain.metrics.statistics import Statistics, read_statistics
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.recognition import is_run_folder
from gantrain.run_folder.start_folder import require_images_of
from gantrain.shipped import find_config

FEWEST_REAL = 8  # images of a reference; metrics that halve it need three neighbours in each half


@dataclass(frozen=True)
class Reference:
    """Real images, or statistics of them.

    Attributes:
        name: for messages and records.
        content: SHA-256 of the images or statistics.
        count: images that the statistics are of; None if a file does not say.
        shape: (C, H, W) of the images; None if there are only statistics.
        take: reads images: (start, count) to uint8 `[count, C, H, W]`; None if there are only statistics.
        taken: how many images `take` can read.
        statistics: contents of a file; None for images.
        class_counts: images per class; fewer than two entries if the classes are not known.
        is_unchanged: reads the content again and says whether it is still `content`, None if that cannot be known.
        notes: what the user should know about the images, a line each: what was passed over, left out or converted.
    """

    name: str
    content: str
    count: int | None
    shape: tuple[int, int, int] | None = None
    take: Callable[[int, int], Tensor] | None = None
    taken: int = 0
    statistics: Statistics | None = None
    class_counts: tuple[int, ...] = ()
    is_unchanged: Callable[[], bool | None] = lambda: True
    notes: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """Name and count, for the record of a score."""
        return f"{self.name} ({'unknown count' if self.count is None else f'{self.count} images'})"

    def require(self, wanted: dict[str, str]) -> None:
        """Refuse a file that lacks what the metrics need.

        Args:
            wanted: metric to "features", "moments" or "nothing".

        Raises:
            UserError: naming the metrics that it is enough for.
        """
        file = self.statistics
        if file is None or file.features is not None or file.images is not None:
            return
        lacking = [name for name, need in wanted.items() if need == "features"]
        if lacking:
            rest = ",".join(name for name in wanted if name not in lacking) or "fid"
            raise UserError(
                f"{file.path}: holds only mean and covariance, but {', '.join(lacking)} need features of the real images;"
                f" set eval.metrics=[{rest}], or write a file with features by `gantrain reference`"
            )


def open_reference(path: str | Path, most: int | None, device: torch.device, with_images: bool = True) -> Reference:
    """Open what a path names; see the head of this file.

    Args:
        path: of a file or folder.
        most: use at most so many images of a data set, folder or zip; None uses all. Statistics are used whole.
        device: where a data set may put its images.
        with_images: whether some metric needs features, so that the images of a file are used even if it holds moments.

    Raises:
        UserError: the path does not exist, or is not a reference.
    """
    there = find_config(expand_user(path, "reference"))
    if there.suffix.lower() in (".yaml", ".yml"):
        return wrap_dataset(prepare(load(there).data, device, local_processes()), most)
    if is_folder(there):
        if is_run_folder(there):
            config = configuration_of(there)
            require_images_of(there, config, None, reads_data=True)
            return wrap_dataset(prepare(config.data, device, local_processes()), most)
        if (there / HEAD).exists():
            head = read_head(there)
            source: Any = Packed(root=str(there), resolution=head["resolution"], labels=False)
            found = wrap_dataset(prepare(source, device, local_processes()), most)
            labels = read_packed(there, head["resolution"]).labels.numpy()
            return replace(found, class_counts=tuple(np.bincount(labels, minlength=len(head["classes"])).tolist()))
        return wrap_pictures(open_folder(there), most)
    if there.suffix.lower() == ".zip":
        if not there.exists():
            raise UserError(f"{there}: there is no such file; pass a zip of images")
        return wrap_pictures(open_zip(there), most)
    if there.suffix.lower() in (".npz", ".npy", ".pkl", ".pickle", ".pt", ".pth"):
        return wrap_statistics(read_statistics(there), with_images, most)
    problem = "is not a reference" if there.exists() else "there is no such file or folder"
    raise UserError(f"{there}: {problem}; pass an .npz of statistics, a folder or zip of images, a run folder or a CONFIG.yaml")


def wrap_dataset(images: ImageSet, most: int | None) -> Reference:
    """Use a data set, or a fixed random sample of at most `most` images.

    Raises:
        UserError: too few images.
    """
    count = len(images) if most is None else min(most, len(images))
    if count < FEWEST_REAL:
        raise UserError(f"data: {images.name} has {len(images)} images; scores need at least {FEWEST_REAL}")
    # A fixed shuffle, so that the first `count` are a sample of all.
    order = torch.from_numpy(permuted(0, torch.arange(count).numpy(), len(images)))

    def take(start: int, count: int) -> Tensor:
        chosen = order[start : start + count]
        if images.pixels is not None:
            return images.pixels[chosen.to(images.pixels.device)]
        return decode_all(images, chosen.tolist())

    counts = torch.bincount(images.labels.cpu(), minlength=images.num_classes)
    return Reference(
        images.name, images.fingerprint, count, (images.channels, images.resolution, images.resolution), take, count,
        class_counts=tuple(counts.tolist()), is_unchanged=lambda: intake.is_unchanged(images),
        notes=tuple(images.notes),
    )  # fmt: skip


def wrap_pictures(pictures: Pictures, most: int | None = None) -> Reference:
    """Use images in their order, or a fixed random sample of `most` if there are more.

    Raises:
        UserError: too few images.
    """
    if len(pictures) < FEWEST_REAL:
        raise UserError(f"{pictures.name}: has {len(pictures)} images; scores need at least {FEWEST_REAL}")
    count = len(pictures) if most is None else min(most, len(pictures))
    order = range(count) if count == len(pictures) else permuted(0, torch.arange(count).numpy(), len(pictures)).tolist()
    content = pictures.fingerprint

    def is_unchanged() -> bool:
        try:
            return pictures.fingerprint == content
        except UserError:  # a file is gone or cannot be read any more
            return False

    return Reference(
        pictures.name, content, count, pictures.shape, lambda start, n: pictures.take(order[start : start + n]), count,
        class_counts=pictures.count_classes(), is_unchanged=is_unchanged,
        notes=pictures.notes,
    )  # fmt: skip


def wrap_statistics(file: Statistics, with_images: bool, most: int | None) -> Reference:
    """Use a file's statistics; its images are used if it holds nothing else, or if `with_images`.

    Raises:
        UserError: too few images.
    """
    name = readable(file.path.name)
    if file.images is not None and (file.width is None or (with_images and file.features is None)):
        found = wrap_pictures(wrap_array(name, file.images, file.content), most)
        count = found.count if file.moments is None else file.count
        return Reference(name, file.content, count, found.shape, found.take, found.taken, file, file.class_counts)
    if file.features is not None and len(file.features) < FEWEST_REAL:
        raise UserError(f"{file.path}: has features of {len(file.features)} images; scores need at least {FEWEST_REAL}")
    return Reference(name, file.content, file.count, statistics=file, class_counts=file.class_counts)
