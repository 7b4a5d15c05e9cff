"""Data sets: `build()` returns uint8 images `[C, H, W]` with labels; the stream determines their order."""

from __future__ import annotations

from gantrain.data.archive import Archive
from gantrain.data.digits import Digits
from gantrain.data.folder import Folder
from gantrain.data.imageset import ImageSet, Source
from gantrain.data.intake import audit, decode_all, prepare
from gantrain.data.packed import Packed, pack
from gantrain.data.stream import RealBatches, permuted
from gantrain.data.torchvision_sets import Cifar10, Cifar100, Stl10

DATASETS: dict[str, type] = {
    "digits": Digits,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "stl10": Stl10,
    "folder": Folder,
    "archive": Archive,
    "packed": Packed,
}
__all__ = [
    "DATASETS",
    "Archive",
    "Cifar10",
    "Cifar100",
    "Digits",
    "Folder",
    "ImageSet",
    "Packed",
    "RealBatches",
    "Source",
    "Stl10",
    "audit",
    "decode_all",
    "pack",
    "permuted",
    "prepare",
]
