"""What generated images are scored against: the run's data set, or whatever `eval.reference` names.

FILE.npz                statistics, features or images (`gantrain.metrics.statistics` lists the kinds)
FOLDER, FILE.zip        all images in it, as they are
a prepared data set, a run folder, a CONFIG.yaml    that data set, as a run that trains on it would be scored
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gantrain.config.loading import load
from gantrain.data import ImageSet, Packed, decode_all, permuted, prepare
from gantrain.data.packed import HEAD, read_head
from gantrain.distributed import local_processes
from gantrain.errors import UserError
from gantrain.evaluation.image_files import Pictures, of_array, of_folder, of_zip
from gantrain.metrics.statistics import Statistics, read_statistics
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.layout import CONFIG_FILE

FEWEST = 8  # images of a reference: fewer have no third neighbour among the halves that metrics take


@dataclass(frozen=True)
class Reference:
    """Real images, or what was measured of them.

    Attributes:
        name: for messages and records.
        content: SHA-256 of what it is made of.
        count: images behind it; None where a file does not say.
        shape: (C, H, W) of its images; None where there are none.
        take: (start, count) to uint8 `[count, C, H, W]`; None where there are statistics alone.
        taken: how many images there are to take.
        statistics: of a file.
    """

    name: str
    content: str
    count: int | None
    shape: tuple[int, int, int] | None = None
    take: Callable[[int, int], Tensor] | None = None
    taken: int = 0
    statistics: Statistics | None = None

    @property
    def described(self) -> str:
        """For the record of a score."""
        return f"{self.name} ({'unknown count' if self.count is None else f'{self.count} images'})"

    def require(self, wanted: dict[str, str]) -> None:
        """Refuse a file that has less than metrics need.

        Args:
            wanted: metric -> "features", "moments" or "nothing".

        Raises:
            UserError: with the metrics that are left.
        """
        file = self.statistics
        if file is None or file.features is not None or file.images is not None:
            return
        lacking = [name for name, need in wanted.items() if need == "features"]
        if lacking:
            rest = ",".join(name for name in wanted if name not in lacking) or "fid"
            raise UserError(
                f"{file.path}: holds mean and covariance alone, and {', '.join(lacking)} need features of the real images;"
                f" set eval.metrics=[{rest}], or write a file with features by `gantrain reference`"
            )


def of_dataset(images: ImageSet, most: int | None) -> Reference:
    """A data set, or a fixed random sample of `most` of its images.

    Raises:
        UserError: too few images.
    """
    count = len(images) if most is None else min(most, len(images))
    if count < FEWEST:
        raise UserError(f"data: {images.name} has {len(images)} images; scores need at least {FEWEST}")
    # A fixed shuffle, so that fewer than all are a sample of all.
    order = torch.from_numpy(permuted(0, torch.arange(count).numpy(), len(images)))

    def take(start: int, count: int) -> Tensor:
        chosen = order[start : start + count]
        if images.pixels is not None:
            return images.pixels[chosen.to(images.pixels.device)]
        return decode_all(images, chosen.tolist())

    return Reference(images.name, images.fingerprint, count, (images.channels, images.resolution, images.resolution), take, count)


def of_pictures(pictures: Pictures, most: int | None = None) -> Reference:
    """Images as they are and in their order; a fixed random sample where there are more than `most`.

    Raises:
        UserError: too few images.
    """
    if len(pictures) < FEWEST:
        raise UserError(f"{pictures.name}: has {len(pictures)} images; scores need at least {FEWEST}")
    count = len(pictures) if most is None else min(most, len(pictures))
    order = range(count) if count == len(pictures) else permuted(0, torch.arange(count).numpy(), len(pictures)).tolist()
    return Reference(
        pictures.name, pictures.fingerprint, count, pictures.shape, lambda start, n: pictures.take(order[start : start + n]), count
    )


def of_file(file: Statistics, with_images: bool, most: int | None) -> Reference:
    """A file's statistics; its images are taken where they are all there is, or where `with_images`.

    Raises:
        UserError: too few images.
    """
    if file.images is not None and (file.width is None or (with_images and file.features is None)):
        found = of_pictures(of_array(file.path.name, file.images, file.content), most)
        count = found.count if file.moments is None else file.count
        return Reference(file.path.name, file.content, count, found.shape, found.take, found.taken, file)
    if file.features is not None and len(file.features) < FEWEST:
        raise UserError(f"{file.path}: has features of {len(file.features)} images; scores need at least {FEWEST}")
    return Reference(file.path.name, file.content, file.count, statistics=file)


def open_reference(path: str | Path, most: int | None, device: torch.device, with_images: bool = True) -> Reference:
    """Whatever a path leads to.

    Args:
        path: see above.
        most: images that are taken of a data set, folder or zip; None takes all. Statistics are taken whole.
        device: where a data set may put its images.
        with_images: some metric needs features.

    Raises:
        UserError: nothing is there, or it is no reference.
    """
    there = Path(path).expanduser()
    if there.suffix.lower() in (".yaml", ".yml"):
        return of_dataset(prepare(load(there).data, device, local_processes()), most)
    if there.is_dir():
        if (there / CONFIG_FILE).is_file():
            return of_dataset(prepare(configuration_of(there).data, device, local_processes()), most)
        if (there / HEAD).is_file():
            source: Any = Packed(root=str(there), resolution=read_head(there)["resolution"], labels=False)
            return of_dataset(prepare(source, device, local_processes()), most)
        return of_pictures(of_folder(there), most)
    if there.suffix.lower() == ".zip":
        if not there.is_file():
            raise UserError(f"{there}: there is no such file; give a zip of images")
        return of_pictures(of_zip(there), most)
    if there.suffix.lower() in (".npz", ".npy", ".pkl", ".pickle", ".pt", ".pth"):
        return of_file(read_statistics(there), with_images, most)
    problem = "is no reference" if there.exists() else "there is no such file or folder"
    raise UserError(f"{there}: {problem}; give an .npz of statistics, a folder or zip of images, a run folder or a CONFIG.yaml")
