"""A folder of images, one sub-folder a class."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from gantrain.data.imageset import ImageSet, Source
from gantrain.errors import UserError, check, one_line
from gantrain.field_marks import INCIDENTAL

MOST_PIXELS = 100_000_000  # of an image: more, out of a file of a few bytes perhaps, would fill the memory
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Images under `root/CLASS/**`, centre-cropped to a square and resized with antialiasing.

    Classes are the sub-folders of `root` in sorted order. With `labels: false` the images may also lie in `root` itself.

    Attributes:
        root: the folder.
        channels: 3 (RGB) or 1 (grey); images are converted.
        filter: "bicubic", "lanczos", "bilinear" or "box"; each looks at every source pixel when it shrinks.
    """

    root: str = field(default="", metadata=INCIDENTAL)
    channels: int = 3
    filter: Literal["bicubic", "lanczos", "bilinear", "box"] = "lanczos"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "channels", self.channels in (1, 3), "must be 1 or 3")

    def build(self) -> ImageSet:
        if not self.root:
            raise UserError("data.root must name the folder of images, got ''")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {self.root!r}")
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = images_under(root / name)
            files += found
            labels += [label] * len(found)
        if not self.labels:
            loose = sorted(p for p in root.iterdir() if p.is_file() and p.suffix.lower() in EXTENSIONS)
            files, labels, classes = loose + files, [0] * (len(loose) + len(files)), ["all"]
        if not files:
            flat = ", or set data.labels=false for images without classes" if self.labels else ""
            raise UserError(
                f"data.root: no image in {self.root!r}; images belong in one sub-folder a class ({', '.join(sorted(EXTENSIONS))}){flat}"
            )
        return ImageSet(
            name=f"folder/{root.name}",
            labels=torch.tensor(labels),
            class_names=classes,
            channels=self.channels,
            resolution=self.resolution,
            decode=Decoder(root, files, self.resolution, self.channels, self.filter),
        )


def images_under(folder: Path) -> list[Path]:
    """All image files below a folder, sorted."""
    found = []
    for directory, _, names in os.walk(folder, followlinks=True):
        found += [Path(directory) / name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    return sorted(found)


class Decoder:
    """Decodes file number i to uint8 `[channels, resolution, resolution]`.

    File names are one block of bytes, not Python objects: counting references to a million of those would make every
    worker process copy them.
    """

    def __init__(self, root: Path, files: list[Path], resolution: int, channels: int, filter: str):
        self.root, self.resolution = root, resolution
        self.names = np.array([os.fsencode(file.relative_to(root)) for file in files])
        self.mode = "RGB" if channels == 3 else "L"
        self.filter = Image.Resampling[filter.upper()]

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[index]))

    def listing(self) -> str:
        """SHA-256 of the names of all files and of how they are decoded."""
        digest = hashlib.sha256(f"{self.mode} {self.resolution} {self.filter.name}".encode())
        digest.update(b"\n".join(self.names.tolist()))
        return digest.hexdigest()

    def state(self, index: int) -> str:
        """A file's size and time of change: while they stay, it need not be read again."""
        status = self.path(index).stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def __call__(self, index: int) -> torch.Tensor:
        """The image.

        Raises:
            UserError: the file does not decode; it is named.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple[torch.Tensor, bytes]:
        """(the image, SHA-256 of the file)."""
        path = self.path(index)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: does not decode as an image ({reason(error)})") from error
        return decoded_image(data, str(path), self.mode, self.resolution, self.filter), hashlib.sha256(data).digest()


def decoded_image(data: bytes, name: str, mode: str, resolution: int, filter: Image.Resampling) -> torch.Tensor:
    """A file's bytes as uint8 `[C, resolution, resolution]`: centre-cropped to a square and resized.

    Raises:
        UserError: they do not decode; `name` is in its words.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MOST_PIXELS:  # read off its head: nothing is decoded yet
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MOST_PIXELS:,}")
            return resized_image(opened, mode, resolution, filter)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: does not decode as an image ({reason(error)})") from error


def resized_image(image: Image.Image, mode: str, resolution: int, filter: Image.Resampling) -> torch.Tensor:
    """A picture as uint8 `[C, resolution, resolution]`, centre-cropped to a square; its own errors where it does not decode."""
    image = upright(image).convert(mode)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: a filter that is given a box looks beyond it.
    image = image.crop((left, top, left + side, top + side)).resize((resolution, resolution), filter)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def reason(error: Exception) -> str:
    """Why an image does not decode; Pillow's own words name an object in memory where it knows no such format."""
    return "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else one_line(error)


def upright(image: Image.Image) -> Image.Image:
    """A picture as a person sees it: turned as its EXIF data says, transparency on white, 16-bit grey at 8 bits.

    Raises:
        ValueError: pixels of 32 bits, whose range nobody states; Pillow's own conversion would clip them.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image
