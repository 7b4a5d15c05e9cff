"""A folder of images with one sub-folder per class."""

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

from gantrain.data.imageset import ImageDecoder, ImageSet, Source
from gantrain.errors import UserError, check, one_line
from gantrain.field_marks import INCIDENTAL

MOST_PIXELS = 100_000_000  # largest image: a decompression bomb of a few bytes would otherwise exhaust the memory
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Images under `root/CLASS/**`, centre-cropped to a square and resized with antialiasing.

    Classes are the sub-folders of `root` in sorted order. With `labels: false` the images may also be in `root` itself.

    Attributes:
        root: path of the folder.
        channels: number of colour channels that images are converted to: 3 (RGB) or 1 (grey).
        filter: resampling filter for resizing: "bicubic", "lanczos", "bilinear" or "box"; all antialias when they shrink.
    """

    root: str = field(default="", metadata=INCIDENTAL)
    channels: int = 3
    filter: Literal["bicubic", "lanczos", "bilinear", "box"] = "lanczos"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "channels", self.channels in (1, 3), "must be 1 or 3")

    def build(self) -> ImageSet:
        """List the files; images are decoded on demand.

        Raises:
            UserError: the folder is missing or contains no images.
        """
        if not self.root:
            raise UserError("data.root must be the path of a folder of images, got ''")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise UserError(f"data.root: {self.root!r} is not a folder; pass the folder that contains the images")
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
                f"data.root: {self.root!r} contains no images ({', '.join(sorted(EXTENSIONS))}); put them in one sub-folder per class{flat}"
            )
        return ImageSet(
            name=f"folder/{root.name}",
            labels=torch.tensor(labels),
            class_names=classes,
            channels=self.channels,
            resolution=self.resolution,
            decode=Decoder(root, files, self.resolution, self.channels, self.filter),
            named=True,
        )


def images_under(folder: Path) -> list[Path]:
    """Returns all image files below a folder, sorted."""
    found = []
    for directory, _, names in os.walk(folder, followlinks=True):
        found += [Path(directory) / name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    return sorted(found)


class Decoder(ImageDecoder):
    """Decodes file number i to uint8 `[channels, resolution, resolution]`.

    File names are one block of bytes instead of Python objects: updating the reference counts of a million objects would
    make every worker process copy their pages.
    """

    def __init__(self, root: Path, files: list[Path], resolution: int, channels: int, filter: str):
        self.root, self.resolution = root, resolution
        self.names = np.array([os.fsencode(file.relative_to(root)) for file in files])
        self.mode = "RGB" if channels == 3 else "L"
        self.filter = Image.Resampling[filter.upper()]

    def path(self, index: int) -> Path:
        """Path of file number `index`."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def listing(self) -> str:
        """SHA-256 of all file names and of the decoding settings."""
        digest = hashlib.sha256(f"{self.mode} {self.resolution} {self.filter.name}".encode())
        digest.update(b"\n".join(self.names.tolist()))
        return digest.hexdigest()

    def state(self, index: int) -> str:
        """A file's size and modification time; while they are unchanged, the file need not be read again."""
        status = self.path(index).stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def __call__(self, index: int) -> torch.Tensor:
        """Decode one image.

        Raises:
            UserError: the file does not decode; the message names it.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple[torch.Tensor, bytes]:
        """Returns (the image, the SHA-256 of the file)."""
        path = self.path(index)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: does not decode as an image ({reason(error)})") from error
        return decoded_image(data, str(path), self.mode, self.resolution, self.filter), hashlib.sha256(data).digest()


def decoded_image(data: bytes, name: str, mode: str, resolution: int, filter: Image.Resampling) -> torch.Tensor:
    """Decodes a file's bytes to uint8 `[C, resolution, resolution]`, centre-cropped to a square and resized.

    Raises:
        UserError: the bytes do not decode; the message begins with `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MOST_PIXELS:  # known from the file's header; nothing is decoded yet
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MOST_PIXELS:,}")
            return resized_image(opened, mode, resolution, filter)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: does not decode as an image ({reason(error)})") from error


def resized_image(image: Image.Image, mode: str, resolution: int, filter: Image.Resampling) -> torch.Tensor:
    """Converts a picture to uint8 `[C, resolution, resolution]`, centre-cropped to a square. Pillow's errors are passed on."""
    image = upright(image).convert(mode)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Crop first: `resize(box=...)` lets the filter read pixels outside the box.
    image = image.crop((left, top, left + side, top + side)).resize((resolution, resolution), filter)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def reason(error: Exception) -> str:
    """Why an image does not decode. Pillow's own text for an unknown format contains a memory address, so it is replaced."""
    return "not a format that Pillow knows" if isinstance(error, UnidentifiedImageError) else one_line(error)


def upright(image: Image.Image) -> Image.Image:
    """Returns a picture as it is displayed: rotated as its EXIF data says, transparency over white, 16-bit grey as 8 bits.

    Raises:
        ValueError: the pixels have 32 bits; their range is unknown, and Pillow's conversion would clip them.
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
