"""From a file's bytes to pixels, and what a file has that 8-bit RGB has not: 16 bits, transparency, an orientation.

Every picture is read as it is displayed: turned as its EXIF data says, transparency over white, 16 bits divided by 257. Colour profiles
are ignored. Of several frames, the first is decoded. What decoding takes is known from the header, and is bounded, see `room`.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from gantrain.data.room import AT_ONCE, ROOM
from gantrain.errors import UserError, brief, in_words
from gantrain.memory import free_memory
from gantrain.regular_file import open_regular, too_large

MOST_PIXELS = 100_000_000  # largest image: a decompression bomb of a few bytes would otherwise exhaust the memory
MOST_FILE = 2**30  # bytes of the largest file: the pixels of the largest image with 16 bits fit in without compression
LARGE_FILE = 2**24  # bytes from which files are read one at a time
LARGE_IMAGE = 2**28  # bytes of decoding from which the free memory is checked
# JPEG files have about ten scans, and each takes time for all pixels: a file of 100 kB may hold a thousand.
MOST_SCANS, SCANNED_PIXELS = 100, 2_000_000_000
SCAN = b"\xff\xda"  # begins a scan; in the data of one, 0xff is followed by 0
# Formats that Pillow reads without a bound: another program draws an EPS, and a FITS is unpacked before its size is known.
REFUSED = ("EPS", "FITS")
# Bytes a pixel takes in Pillow's memory, by mode (4 in all others), and in decoders besides, by format (4 in all others).
IN_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
IN_DECODER = {"JPEG": 0, "MPO": 0, "PNG": 0, "BMP": 0, "DIB": 0, "PPM": 0, "GIF": 1, "TIFF": 4, "WEBP": 12, "AVIF": 12, "JPEG2000": 16}
IN_PROGRESSIVE = 6  # the coefficients of a progressive JPEG
CONVERTED = 4  # bytes a pixel takes once more, as RGB
BAND = 2**22  # pixels converted at a time
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
HALF = 2**15  # 16-bit files whose values all stay below are taken for files of fewer bits
DEPTHS = (8, 10, 12, 14, 15)  # bits that files of 16 bits may really have
WHITE = (255, 255, 255, 255)


class Undecodable(ValueError):
    """Why a picture does not decode; completes "does not decode as an image (...)"."""


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
        with opened_image(data) as image:
            return resized_image(image, mode, resolution, filter)
    except Undecodable as error:
        raise UserError(f"{name}: does not decode as an image ({error})") from error


class Translation:
    """A context around calls of Pillow or another library that decodes: everything raised in it becomes `Undecodable`.

    At a damaged file decoders raise almost anything: KeyError, IndexError, RuntimeError, NotImplementedError, struct.error, zlib.error.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            raise Undecodable(reason(error)) from error


def translate_errors() -> Translation:
    """The context `Translation`. It is a class, since one from a generator takes 2 microseconds more, several times an image."""
    return Translation()


@contextmanager
def opened_image(data: bytes) -> Iterator[Image.Image]:
    """A picture of which the header has been read, within this context with room for decoding it.

    Raises:
        Undecodable: it is of no known format, or too large.
    """
    with translate_errors():
        image = Image.open(io.BytesIO(data))
    with image, ROOM.take(refuse_bomb(image, data)):
        try:
            yield image
        finally:
            image.close()  # while the room is still held


def refuse_bomb(image: Image.Image, data: bytes = b"") -> int:
    """Refuse an image that would fill the memory; its size is known from the file's header.

    Args:
        image: not loaded yet.
        data: the file's bytes, if they are known.

    Returns:
        About how many bytes decoding takes.

    Raises:
        Undecodable: it has too many pixels, or more than the memory holds, or the format has no bound.
    """
    pixels = image.width * image.height
    if image.format in REFUSED:
        raise Undecodable(f"the format is {image.format}, which is not read")
    if pixels > MOST_PIXELS:
        raise Undecodable(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
    needed = IN_MODE.get(image.mode, 4) + IN_DECODER.get(image.format or "", 4) + CONVERTED
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        needed += IN_PROGRESSIVE
        scans = data.count(SCAN)
        if scans > MOST_SCANS and scans * pixels > SCANNED_PIXELS:
            raise Undecodable(f"{scans:,} scans of {image.width} x {image.height} pixels would take too long")
    if pixels * needed > LARGE_IMAGE and pixels * needed > (free := free_memory()):
        raise Undecodable(
            f"{image.width} x {image.height} pixels need {in_words(pixels * needed)}, and only {in_words(free, down=True)} are free"
        )
    return pixels * needed


@contextmanager
def file_bytes(path: str | os.PathLike) -> Iterator[bytes]:
    """The bytes of an image file. Large files are read one at a time; the room lasts as long as the context.

    Raises:
        OSError: it cannot be read, is not a regular file, or is too large for an image; see `regular_file`.
    """
    with open_regular(path, MOST_FILE) as file, room_for_file(size := os.fstat(file.fileno()).st_size):
        data = file.read(size + 1)  # not MOST_FILE, which Python would allocate
        if len(data) > size:  # a file that grows, or one of /proc
            data += file.read(MOST_FILE + 1 - len(data))
        if len(data) > MOST_FILE:
            raise too_large(len(data), path, MOST_FILE)
        yield data


def room_for_file(size: int) -> AbstractContextManager[None]:
    """Within this context, a file of so many bytes may be read and decoded: a large one alone."""
    return AT_ONCE if size < LARGE_FILE else ROOM.take(ROOM.size)


def resized_image(image: Image.Image, mode: str, resolution: int, filter: Image.Resampling) -> torch.Tensor:
    """Converts a picture to uint8 `[C, resolution, resolution]`, centre-cropped to a square. The picture is closed.

    Raises:
        Undecodable: it does not decode.
    """
    shown = render(image, mode)
    if shown is not image:
        image.close()  # a large one is in memory once and not twice
    side = min(shown.size)
    left, top = (shown.width - side) // 2, (shown.height - side) // 2
    with translate_errors():
        # Crop first: `resize(box=...)` lets the filter read pixels outside the box.
        square = shown if shown.size == (side, side) else shown.crop((left, top, left + side, top + side))
        pixels = torch.from_numpy(np.array(square.resize((resolution, resolution), filter)))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def reason(error: Exception) -> str:
    """Why an image does not decode, or a file cannot be read.

    Pillow's own text for an unknown format contains a memory address, so it is replaced.
    """
    if isinstance(error, Undecodable):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "the memory is too small"
    plain = isinstance(error, (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)) or not str(error)
    return brief(error) if plain else f"{type(error).__name__}: {brief(error)}"


def render(image: Image.Image, mode: str) -> Image.Image:
    """Returns a picture as it is displayed: turned as its EXIF data says, transparency over white, 16-bit grey as 8 bits.

    A picture that needs no conversion is returned itself. Large ones are converted in bands, so that they are not in memory several times.

    Args:
        image: not loaded yet. It is changed.
        mode: "RGB" or "L".

    Raises:
        Undecodable: it does not decode; or the pixels have 32 bits or a sign: their range is unknown, and Pillow would clip them.
    """
    white, clear = white_of_grey(image), transparent_value(image)
    with translate_errors():
        if image.format in IN_DECODER:
            ImageOps.exif_transpose(image, in_place=True)
        else:  # of containers such as ICNS, which load another size after a change
            image = ImageOps.exif_transpose(image)
        if clear is not None and white is None:
            image.info["transparency"] = clear
        if white is None and not image.has_transparency_data:
            return image if image.mode == mode else image.convert(mode)
        if image.width * image.height <= BAND:
            return without_depth(image, white, clear).convert(mode)
        whole, rows = Image.new(mode, image.size), max(1, BAND // image.width)
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            whole.paste(without_depth(band, white, clear).convert(mode), (0, top))
        return whole


def without_depth(band: Image.Image, white: int | None, clear: int | tuple[int, ...] | None) -> Image.Image:
    """A loaded picture, or a band of its rows, without its transparency or its 16 bits.

    Args:
        white: the value of white in grey of more than 8 bits; None for pixels that have transparency instead.
        clear: the value that is transparent in grey of more than 8 bits, if there is one.
    """
    if white is None:
        band = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", band.size, WHITE), band)
    wide = np.asarray(band)
    grey = np.rint(wide * (255 / white)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey if clear is None else np.where(wide == clear, np.uint8(255), grey))


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
        Undecodable: the pixels have 32 bits or a sign.
    """
    stored = stored_mode(image)
    if image.mode.startswith("I;16"):
        return 4095 if stored == "I;12" else 65535
    # Pillow opens 16-bit PGM files, and in versions before 11 PNG files, in a mode of 32 bits.
    if image.mode == "I" and (image.format == "PPM" or (stored.startswith("I;16") and not stored.endswith("S"))):
        return 65535
    if image.mode in ("I", "F"):
        raise Undecodable("signed 16-bit pixels" if stored.startswith("I;16") else "32-bit pixels")
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
        with opened_image(data) as image, translate_errors():
            stored, white = stored_mode(image), white_of_grey(image)  # before `getexif`, which loads some formats
            transparent, turned = image.has_transparency_data, image.getexif().get(ORIENTATION, 1) not in (0, 1)
            highest = None
            if white == 65535:
                highest = highest_value(image)
            elif ";16" in stored and white is None:  # colour: Pillow has dropped the lower 8 bits
                highest = highest_value(image if image.mode == "RGB" else image.convert("RGB")) << 8 | 255
            return Traits(highest, transparent, turned)
    except Undecodable:
        return None


def highest_value(image: Image.Image) -> int:
    """The highest value of a picture in all its bands. It is read in bands of rows, so that a large one is not in memory twice."""
    rows = max(1, BAND // image.width)
    tops = range(0, image.height, rows)
    return max(int(np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).max()) for top in tops)


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
