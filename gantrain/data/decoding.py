"""From a file's bytes to pixels, and what a file has that 8-bit RGB has not: 16 bits, transparency, an orientation.

Every picture is read as it is displayed: turned as its EXIF data says, transparency over white, 16 bits divided by 257. Colour profiles
are ignored.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from gantrain.errors import UserError, one_line

MOST_PIXELS = 100_000_000  # largest image: a decompression bomb of a few bytes would otherwise exhaust the memory
# What Pillow raises for a file that does not decode.
UNDECODABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
HALF = 2**15  # 16-bit files whose values all stay below are taken for files of fewer bits
DEPTHS = (8, 10, 12, 14, 15)  # bits that files of 16 bits may really have
WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Traits:
    """What the conversion to 8 bits without transparency changes in a file.

    Attributes:
        highest: of a file with 16 bits, its highest value, 0..65535; None for 8 bits. For colour it is rounded up to 8 bits.
        transparent: whether it has transparency.
        turned: whether EXIF data says that it is stored turned or mirrored.
    """

    highest: int | None
    transparent: bool
    turned: bool


def decoded_image(data: bytes, name: str, mode: str, resolution: int, filter: Image.Resampling) -> torch.Tensor:
    """Decodes a file's bytes to uint8 `[C, resolution, resolution]`, centre-cropped to a square and resized.

    Raises:
        UserError: the bytes do not decode; the message begins with `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            refuse_bomb(opened)
            return resized_image(opened, mode, resolution, filter)
    except UNDECODABLE as error:
        raise UserError(f"{name}: does not decode as an image ({reason(error)})") from error


def refuse_bomb(image: Image.Image) -> None:
    """Refuse an image that would fill the memory; its size is known from the file's header.

    Raises:
        ValueError: it has too many pixels.
    """
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")


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
    """Returns a picture as it is displayed: turned as its EXIF data says, transparency over white, 16-bit grey as 8 bits.

    Raises:
        ValueError: the pixels have 32 bits or a sign; their range is unknown, and Pillow's conversion would clip them.
    """
    white, clear = white_of_grey(image), transparent_value(image)
    image = ImageOps.exif_transpose(image)
    if white is not None:
        wide = np.asarray(image)
        grey = np.rint(wide * (255 / white)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey if clear is None else np.where(wide == clear, np.uint8(255), grey))
    if clear is not None:
        image.info["transparency"] = clear
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image


def transparent_value(image: Image.Image) -> int | tuple[int, ...] | None:
    """The one value, or colour, that a PNG declares transparent, on the scale of Pillow's pixels; None if there is none.

    A PNG gives it on the scale of the file, and Pillow passes it on: of 4 bits as 0..15 although the pixels are 0..255. Of colours
    with 16 bits, Pillow keeps the upper 8, so those that share them become transparent too.

    Args:
        image: not loaded yet, see `white_of_grey`.
    """
    value, stored = image.info.get("transparency"), stored_mode(image)
    if image.format != "PNG" or image.mode == "P":
        return None
    if isinstance(value, tuple):
        return tuple(one >> 8 for one in value) if ";16" in stored else value
    return value * {"1": 255, "L;2": 85, "L;4": 17}.get(stored, 1) if isinstance(value, int) else None


def white_of_grey(image: Image.Image) -> int | None:
    """The value of white in grey pixels of more than 8 bits: 65535, or 4095 in a TIFF of 12 bits; None for any other image.

    Args:
        image: not loaded yet, since Pillow then forgets how the file stores the pixels.

    Raises:
        ValueError: the pixels have 32 bits or a sign.
    """
    stored = stored_mode(image)
    if image.mode.startswith("I;16"):
        return 4095 if stored == "I;12" else 65535
    # Pillow opens 16-bit PGM files, and in versions before 11 PNG files, in a mode of 32 bits.
    if image.mode == "I" and (image.format == "PPM" or (stored.startswith("I;16") and not stored.endswith("S"))):
        return 65535
    if image.mode in ("I", "F"):
        raise ValueError("signed 16-bit pixels" if stored.startswith("I;16") else "32-bit pixels")
    return None


def stored_mode(image: Image.Image) -> str:
    """How a file that is not loaded yet stores its pixels, in Pillow's words, such as "RGB;16B"; "" if that is not known."""
    for tile in getattr(image, "tile", ()):
        stored = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        return stored if isinstance(stored, str) else ""
    return ""


def traits_of(data: bytes) -> Traits | None:
    """Returns the traits of a file, given by its bytes; None if it does not decode."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            refuse_bomb(image)
            stored, white = stored_mode(image), white_of_grey(image)  # before `getexif`, which loads some formats
            transparent, turned = image.has_transparency_data, image.getexif().get(ORIENTATION, 1) not in (0, 1)
            highest = None
            if white == 65535:
                highest = int(np.asarray(image).max())
            elif ";16" in stored and white is None:  # colour: Pillow has dropped the lower 8 bits
                highest = int(np.asarray(image.convert("RGB")).max()) << 8 | 255
            return Traits(highest, transparent, turned)
    except UNDECODABLE:
        return None


def words_of_traits(found: Sequence[Traits]) -> list[str]:
    """What decoding changes in some files, a line each; empty if nothing."""
    lines, wide = [], [one.highest for one in found if one.highest is not None]
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (sum(one.transparent for one in found), "with transparency, placed on white"),
            (sum(one.turned for one in found), "turned upright as their EXIF data says"),
            (len(wide), f"of 16 bits, divided by 257 (highest value {max(wide, default=0):,} of 65,535)"),
        )
        if count
    ]
    if parts:
        lines.append(f"of {len(found):,} files looked at: {'; '.join(parts)}")
    return lines + words_of_depth(wide)


def words_of_depth(highest: Sequence[int]) -> list[str]:
    """The warning that 16-bit files hold values of fewer bits, some or all of them; empty if they do not seem to.

    Args:
        highest: value of each file.
    """
    low = Counter(next(bits for bits in DEPTHS if value < 2**bits) for value in highest if value < HALF)
    if low.total() < len(highest):
        del low[15]  # no camera has 15 bits, so this is a dark picture among others
    if not low:
        return []
    bits = max(low, key=lambda one: (low[one], one))
    below = [value for value in highest if value < 2**bits]
    factor = 2 ** (16 - bits)
    if len(below) < len(highest):
        return [
            f"warning: {len(below):,} of {len(highest):,} 16-bit files stay below {2**bits:,}, as {bits}-bit values do, and come out dark;"
            f" if they hold such values, multiply them by {factor} and save the files again"
        ]
    return [
        f"warning: the 16-bit files seem to hold {bits}-bit values, 0..{max(highest):,}, so the images come out dark;"
        f" multiply the values by {factor}, which spreads them over 16 bits, and save the files again"
    ]
