"""Layout of sample images: grids, labelled grids, and several sheets in one PNG that stores their positions."""

from __future__ import annotations

import bisect
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from gantrain.errors import UserError
from gantrain.regular_file import check_regular

SHEETS_PER_ROW = 4
MARGIN, HEAD = 12, 30  # pixels around a sheet, and above it for the caption
GAP = 2  # pixels between the images of a sheet
TEXT_KEY = "gantrain"  # of the text chunk of the PNG that lists the sheets
FRAME = (194, 65, 12)
NAMES = 18  # pixels of a line of column names
WIDEST = 240  # pixels of the names beside rows; longer ones are shortened
SMALLEST, ELLIPSIS = 6, "..."
MOST_PIXELS = 100_000_000  # of an enlarged picture: about what Pillow opens without a warning
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Sheet:
    """A grid of images with a name.

    Attributes:
        name: of the average it shows, or "live".
        caption: the text above it.
        picture: the grid.
        heads: names of its columns, from the left; empty if they have none.
    """

    name: str
    caption: str
    picture: Image.Image
    heads: tuple[str, ...] = ()

    @property
    def headed(self) -> Image.Image:
        """The grid below the names of its columns."""
        if not self.heads:
            return self.picture
        whole = Image.new("RGB", (self.picture.width, self.picture.height + NAMES), (255, 255, 255))
        whole.paste(self.picture.convert("RGB"), (0, NAMES))
        draw_heads(ImageDraw.Draw(whole), self, 0, NAMES)
        return whole


def to_pil(image: Tensor) -> Image.Image:
    """Convert uint8 `[C, H, W]`, C of 1 or 3, to a picture."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def choose_enlargement(resolution: int) -> int:
    """Choose the whole factor by which small images are enlarged in a grid, so that a person can see them."""
    return max(1, 48 // resolution)


def require_scale(scale: int | None, resolution: int, columns: int, rows: int, most_side: int = MOST_PIXELS, option: str = "--num") -> None:
    """Refuse an enlargement that is not a whole number of at least 1, or that makes too large a picture.

    Args:
        scale: the factor; None is as small as possible.
        resolution: of each image.
        columns, rows: of the images in the picture.
        most_side: largest width and height in pixels.
        option: sets the number of images.

    Raises:
        UserError: with the largest factor that does.
    """
    if scale is not None and scale < 1:
        raise UserError(f"--scale: must be at least 1, got {scale}")
    sides = lambda factor: (columns * (resolution * factor + GAP), rows * (resolution * factor + GAP))  # noqa: E731
    fits = lambda factor: math.prod(sides(factor)) <= MOST_PIXELS and max(sides(factor)) <= most_side  # noqa: E731
    if scale is None:
        if not fits(1):
            width, height = sides(1)
            raise UserError(
                f"{option}: {columns:,} x {rows:,} images make a picture of {width:,} x {height:,} pixels, which is too large;"
                " draw fewer images"
            )
    elif not fits(scale):
        largest = bisect.bisect_left(range(1, scale + 1), True, key=lambda factor: not fits(factor))
        remedy = f"use at most {largest}, or draw fewer images" if largest else "draw fewer images"
        width, height = sides(scale)
        raise UserError(f"--scale: {scale} makes a picture of {width:,} x {height:,} pixels, which is too large; {remedy}")


def enlarge(images: Tensor, scale: int | None) -> Tensor:
    """Enlarge images `[N, C, H, W]` by a whole factor, each pixel into a square; None leaves them alone."""
    return images if scale in (None, 1) else images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def make_grid(images: Tensor, columns: int, gap: int = GAP, scale: int | None = None) -> Image.Image:
    """Lay out images uint8 `[N, C, H, W]` row by row, enlarged by a whole factor; None enlarges only small ones."""
    factor = scale or choose_enlargement(images.shape[-1])
    height, width = images.shape[-2] * factor + gap, images.shape[-1] * factor + gap
    rows = -(-len(images) // columns)
    mode = "L" if images.shape[1] == 1 else "RGB"
    sheet = Image.new(mode, (columns * width + gap, rows * height + gap), 255 if mode == "L" else (255, 255, 255))
    for i, image in enumerate(images):
        picture = to_pil(image).resize((width - gap, height - gap), Image.Resampling.NEAREST)
        sheet.paste(picture, (gap + i % columns * width, gap + i // columns * height))
    return sheet


def make_labelled_grid(
    images: Tensor, columns: int, rows: Sequence[str] = (), heads: Sequence[str] = (), apart: bool = False, scale: int | None = None
) -> Image.Image:
    """Lay out images uint8 `[N, C, H, W]` with words beside the rows and above the columns.

    Args:
        images: the images, row by row.
        columns: images per row.
        rows, heads: the words; heads shrink to the width of a column, and words that are still too long are shortened.
        apart: frame the first column and set it apart from the others.
        scale: see `make_grid`.
    """
    count = -(-len(images) // columns)
    first = [i for i in range(len(images)) if i % columns == 0] if apart else []
    rest = [i for i in range(len(images)) if i not in set(first)]
    blocks = [
        make_grid(images[chosen], columns=wide, scale=scale) for chosen, wide in ((first, 1), (rest, columns - bool(first))) if chosen
    ]
    cell_high, cell_wide = ((side - 2) // n for side, n in zip(reversed(blocks[-1].size), (count, columns - bool(first))))
    size = max(10, min(16, cell_high // 3))
    beside = [fit_words(word, WIDEST, size, size) for word in rows]
    left = round(max((font.getlength(word) for word, font in beside), default=0)) + (MARGIN if rows else 0) + MARGIN
    top = HEAD if heads else MARGIN
    width = left + sum(block.width for block in blocks) + MARGIN * len(blocks)
    whole = Image.new("RGB", (width, top + blocks[0].height + MARGIN), (255, 255, 255))
    pen = ImageDraw.Draw(whole)
    centres: list[float] = []
    x = left
    for block in blocks:
        whole.paste(block.convert("RGB"), (x, top))
        centres += [x + 1 + (i + 0.5) * cell_wide for i in range(round((block.width - 2) / cell_wide))]
        if apart and block is blocks[0]:
            pen.rectangle((x - 2, top - 2, x + block.width + 1, top + block.height + 1), outline=FRAME, width=2)
        x += block.width + MARGIN
    for i, (word, font) in enumerate(beside):
        pen.text((left - MARGIN, top + 1 + (i + 0.5) * cell_high), word, fill=(0, 0, 0), font=font, anchor="rm")
    for i, (centre, word) in enumerate(zip(centres, heads)):
        room = cell_wide + 2 * MARGIN if apart and i == 0 else cell_wide
        shown, font = fit_words(word, room)
        pen.text((centre, top - 6), shown, fill=(0, 0, 0), font=font, anchor="ms")
    return whole


@functools.cache
def load_font(size: int, ascii_only: bool = True) -> Font:
    """Pillow's own font, which has only ASCII, or DejaVu Sans, which Matplotlib brings along."""
    return ImageFont.load_default(size=size) if ascii_only else ImageFont.truetype(str(dejavu()), size)


def dejavu() -> Path:
    """The file of DejaVu Sans."""
    from matplotlib import get_data_path  # imported only here, since few names need it

    return Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def can_draw(word: str) -> bool:
    """Whether there is a font with every character of a word; there is none for Chinese, say."""
    if word.isascii():
        return word.isprintable()
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(dejavu()))
    return all(font.get_char_index(ord(character)) for character in word)


def fit_words(words: str, width: float, largest: int = 14, smallest: int = SMALLEST) -> tuple[str, Font]:
    """Choose the largest font in which words fit a width; words too long for the smallest are shortened.

    Args:
        words: one line.
        width: in pixels.
        largest, smallest: sizes of the font in pixels.

    Returns:
        (the words as they fit, the font).
    """
    for size in range(largest, smallest - 1, -1):
        font = load_font(size, words.isascii())
        if font.getlength(words) <= width:
            return words, font
    fits = lambda count: font.getlength(words[:count].rstrip() + ELLIPSIS) <= width  # noqa: E731
    count = bisect.bisect_left(range(len(words)), True, key=lambda count: not fits(count + 1))
    return (words[:count].rstrip() + ELLIPSIS if count else words[:1]), font


def draw_heads(pen: ImageDraw.ImageDraw, sheet: Sheet, left: int, top: int) -> None:
    """Draw the names of a sheet's columns above its picture, whose upper left corner is at (left, top)."""
    step = (sheet.picture.width - GAP) / len(sheet.heads)
    for i, name in enumerate(sheet.heads):
        shown, font = fit_words(name, step - GAP, smallest=9)
        pen.text((left + GAP / 2 + (i + 0.5) * step, top - 4), shown, fill=(0, 0, 0), font=font, anchor="ms")


def join_sheets(sheets: Sequence[Sheet]) -> Image.Image:
    """Place sheets of one size side by side, four per row, each below its caption and the names of its columns."""
    above = HEAD + NAMES * bool(sheets[0].heads)
    wide, high = sheets[0].picture.width + MARGIN, sheets[0].picture.height + above + MARGIN
    columns, rows = min(len(sheets), SHEETS_PER_ROW), -(-len(sheets) // SHEETS_PER_ROW)
    whole = Image.new("RGB", (columns * wide + MARGIN, rows * high), (255, 255, 255))
    pen = ImageDraw.Draw(whole)
    for sheet, (left, top, right, _) in zip(sheets, locate_sheets(sheets)):
        caption, font = fit_words(sheet.caption, right - left, 20)
        pen.text((left, top - above + HEAD - 5), caption, fill=(0, 0, 0), font=font, anchor="ls")
        if sheet.heads:
            draw_heads(pen, sheet, left, top)
        whole.paste(sheet.picture.convert("RGB"), (left, top))
    return whole


def locate_sheets(sheets: Sequence[Sheet]) -> list[tuple[int, int, int, int]]:
    """Compute where `join_sheets` places each sheet: left, top, right, bottom in pixels."""
    (width, height), above = sheets[0].picture.size, HEAD + NAMES * bool(sheets[0].heads)
    places = [
        (MARGIN + i % SHEETS_PER_ROW * (width + MARGIN), above + i // SHEETS_PER_ROW * (height + above + MARGIN))
        for i in range(len(sheets))
    ]
    return [(left, top, left + width, top + height) for left, top in places]


def regroup_by_class(sheets: Sequence[Sheet], classes: Sequence[str]) -> list[Sheet]:
    """Regroup sheets into one picture per class, with a row for each sheet and its name beside it: a column shows the same z.

    Args:
        sheets: of one size, made by `make_grid`, with one class per column.
        classes: names of the columns, from the left.
    """
    first = sheets[0].picture
    step = (first.width - GAP) // len(classes)  # from one image to the next
    count, font = (first.height - GAP) // step, load_font(min(20, step // 3))
    left = MARGIN * 2 + round(max(font.getlength(sheet.name) for sheet in sheets))
    pictures = []
    for column, name in enumerate(classes):
        whole = Image.new("RGB", (left + count * step + GAP, len(sheets) * step + GAP), (255, 255, 255))
        pen = ImageDraw.Draw(whole)
        for row, sheet in enumerate(sheets):
            pen.text((left - MARGIN, row * step + GAP + step // 2), sheet.name, fill=(0, 0, 0), font=font, anchor="rm")
            for i in range(count):
                box = (column * step + GAP, i * step + GAP, (column + 1) * step, (i + 1) * step)
                whole.paste(sheet.picture.crop(box).convert("RGB"), (left + i * step + GAP, row * step + GAP))
        pictures.append(Sheet(name, f"class {name}", whole))
    return pictures


def save_side_by_side(sheets: Sequence[Sheet], path: Path) -> None:
    """Write sheets of one size into one PNG; `read_side_by_side` cuts them out again."""
    listed = [
        {"name": sheet.name, "caption": sheet.caption, "box": box, "heads": sheet.heads}
        for sheet, box in zip(sheets, locate_sheets(sheets))
    ]
    text = PngImagePlugin.PngInfo()
    text.add_itxt(TEXT_KEY, json.dumps({"sheets": listed}))
    join_sheets(sheets).save(path, pnginfo=text)


def read_side_by_side(path: Path) -> list[Sheet]:
    """Cut a picture into its sheets; a picture that does not list any is one sheet without a name.

    Raises:
        OSError: the file is not a readable picture.
    """
    check_regular(path)
    try:
        with Image.open(path) as opened:
            opened.load()
            whole = opened.convert("RGB")
            text = opened.text if isinstance(opened, PngImagePlugin.PngImageFile) else {}
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises for a damaged PNG
        raise OSError(f"{path}: is not a readable picture ({error})") from error
    try:
        listed = json.loads(text[TEXT_KEY])["sheets"]
        boxes = require_boxes([one["box"] for one in listed], whole.size)
        return [
            Sheet(str(one["name"]), str(one["caption"]), whole.crop(box), tuple(map(str, one.get("heads", ()))))
            for one, box in zip(listed, boxes)
        ]
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return [Sheet("", f"at {int(path.stem) / 1000:g} kimg" if path.stem.isdecimal() else path.stem, whole)]


def require_boxes(boxes: Sequence[Any], size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Where the sheets of a picture are, as (left, top, right, bottom).

    Raises:
        ValueError, TypeError: one is not within the picture, or they overlap, so another program wrote them.
    """
    found = [(left, top, right, bottom) for left, top, right, bottom in boxes]
    inside = (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1] for left, top, right, bottom in found)
    if not all(type(edge) is int for box in found for edge in box) or not all(inside):
        raise ValueError
    if sum((right - left) * (bottom - top) for left, top, right, bottom in found) > size[0] * size[1]:
        raise ValueError
    return found
