"""Data sets: `build()` gives images as uint8 `[C, H, W]` with labels; the stream says which comes when."""
from gantrain.data.intake import audit, decode_all, prepare
from gantrain.data.digits import Digits
from gantrain.data.folder import Folder
from gantrain.data.imageset import ImageSet, Source
from gantrain.data.stream import RealBatches, permuted
from gantrain.data.torchvision_sets import Cifar10, Cifar100, Stl10

DATASETS: dict[str, type] = {"digits": Digits, "cifar10": Cifar10, "cifar100": Cifar100, "stl10": Stl10, "folder": Folder}

__all__ = ["DATASETS", "Cifar10", "Cifar100", "Digits", "Folder", "ImageSet", "RealBatches", "Source", "Stl10", "audit", "decode_all", "permuted", "prepare"]
