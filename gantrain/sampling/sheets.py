"""Sheets of sample images, alone and side by side; a picture of several sheets says in itself where each of them is."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

SHEETS_A_ROW = 4
MARGIN, HEAD = 12, 30  # pixels around a sheet, and above it for its caption
GAP = 2  # pixels between the images of a sheet
TEXT_KEY = "gantrain"  # of the PNG's text in which the sheets are listed


@dataclass(frozen=True)
class Sheet:
    """A sheet of images.

    Attributes:
        name: of the average it shows, or "live".
        caption: what stands above it.
        picture: the sheet.
    """

    name: str
    caption: str
    picture: Image.Image


def to_pil(image: Tensor) -> Image.Image:
    """uint8 `[C, H, W]`, C 1 or 3, to a picture."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def enlargement(resolution: int) -> int:
    """How much small images are enlarged in a grid, so that a person sees them."""
    return max(1, 48 // resolution)


def grid(images: Tensor, columns: int, gap: int = GAP) -> Image.Image:
    """A sheet of images `[N, C, H, W]` uint8, row by row; small ones enlarged by whole factors."""
    factor = enlargement(images.shape[-1])
    height, width = images.shape[-2] * factor + gap, images.shape[-1] * factor + gap
    rows = -(-len(images) // columns)
    mode = "L" if images.shape[1] == 1 else "RGB"
    sheet = Image.new(mode, (columns * width + gap, rows * height + gap), 255 if mode == "L" else (255, 255, 255))
    for i, image in enumerate(images):
        picture = to_pil(image).resize((width - gap, height - gap), Image.Resampling.NEAREST)
        sheet.paste(picture, (gap + i % columns * width, gap + i // columns * height))
    return sheet


def labelled(images: Tensor, columns: int, rows: Sequence[str] = (), heads: Sequence[str] = (), apart: bool = False) -> Image.Image:
    """A sheet of images `[N, C, H, W]` uint8 with words beside its rows and above its columns.

    Args:
        columns: images a row.
        rows, heads: the words; those above shrink to the width of a column.
        apart: the first column is framed and stands apart from the others.
    """
    count = -(-len(images) // columns)
    first = [i for i in range(len(images)) if i % columns == 0] if apart else []
    rest = [i for i in range(len(images)) if i not in set(first)]
    blocks = [grid(images[chosen], columns=wide) for chosen, wide in ((first, 1), (rest, columns - bool(first))) if chosen]
    cell_high, cell_wide = ((side - 2) // n for side, n in zip(reversed(blocks[-1].size), (count, columns - bool(first))))
    font = ImageFont.load_default(size=max(10, min(16, cell_high // 3)))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = round(max((pen.textlength(word, font=font) for word in rows), default=0)) + (MARGIN if rows else 0) + MARGIN
    top = HEAD if heads else MARGIN
    width = left + sum(block.width for block in blocks) + MARGIN * len(blocks)
    whole = Image.new("RGB", (width, top + blocks[0].height + MARGIN), (255, 255, 255))
    pen = ImageDraw.Draw(whole)
    centres, x = [], left
    for block in blocks:
        whole.paste(block.convert("RGB"), (x, top))
        centres += [x + 1 + (i + 0.5) * cell_wide for i in range(round((block.width - 2) / cell_wide))]
        if apart and block is blocks[0]:
            pen.rectangle((x - 2, top - 2, x + block.width + 1, top + block.height + 1), outline=(194, 65, 12), width=2)
        x += block.width + MARGIN
    for i, word in enumerate(rows):
        pen.text((left - MARGIN, top + 1 + (i + 0.5) * cell_high), word, fill=(0, 0, 0), font=font, anchor="rm")
    for i, (x, word) in enumerate(zip(centres, heads)):
        room = cell_wide + 2 * MARGIN if apart and i == 0 else cell_wide
        pen.text((x, top - 6), word, fill=(0, 0, 0), font=fitting(word, room), anchor="ms")
    return whole


def fitting(word: str, width: float, largest: int = 14) -> ImageFont.FreeTypeFont:
    """The largest font, down to 6 pixels, in which a word has no more than this width."""
    fonts = (ImageFont.load_default(size=size) for size in range(largest, 5, -1))
    return next((font for font in fonts if font.getlength(word) <= width), ImageFont.load_default(size=6))


def side_by_side(sheets: Sequence[Sheet]) -> Image.Image:
    """Sheets of one size next to each other, four a row, each under its caption."""
    font = functools.cache(lambda size: ImageFont.load_default(size=size))
    wide, high = sheets[0].picture.width + MARGIN, sheets[0].picture.height + HEAD + MARGIN
    columns, rows = min(len(sheets), SHEETS_A_ROW), -(-len(sheets) // SHEETS_A_ROW)
    whole = Image.new("RGB", (columns * wide + MARGIN, rows * high), (255, 255, 255))
    pen = ImageDraw.Draw(whole)
    for sheet, (left, top, right, _) in zip(sheets, boxes(sheets)):
        size = 20
        while size > 6 and pen.textlength(sheet.caption, font=font(size)) > right - left:
            size -= 1
        pen.text((left, top - 5), sheet.caption, fill=(0, 0, 0), font=font(size), anchor="ls")
        whole.paste(sheet.picture.convert("RGB"), (left, top))
    return whole


def boxes(sheets: Sequence[Sheet]) -> list[tuple[int, int, int, int]]:
    """Where `side_by_side` puts each sheet: left, top, right, bottom in pixels."""
    width, height = sheets[0].picture.size
    places = [
        (MARGIN + i % SHEETS_A_ROW * (width + MARGIN), HEAD + i // SHEETS_A_ROW * (height + HEAD + MARGIN)) for i in range(len(sheets))
    ]
    return [(left, top, left + width, top + height) for left, top in places]


def by_class(sheets: Sequence[Sheet], classes: Sequence[str]) -> list[Sheet]:
    """Of every class a picture with a row for each sheet, the sheet's name beside it: the same z through all of them in a column.

    Args:
        sheets: of one size, made by `grid`, a class a column.
        classes: what the columns are called, from the left.
    """
    first = sheets[0].picture
    step = (first.width - GAP) // len(classes)  # from an image to the next
    count, font = (first.height - GAP) // step, ImageFont.load_default(size=min(20, step // 3))
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
    """Write sheets of one size as one PNG, from which `read_side_by_side` cuts them again."""
    listed = [{"name": sheet.name, "caption": sheet.caption, "box": box} for sheet, box in zip(sheets, boxes(sheets))]
    text = PngImagePlugin.PngInfo()
    text.add_itxt(TEXT_KEY, json.dumps({"sheets": listed}))
    side_by_side(sheets).save(path, pnginfo=text)


def read_side_by_side(path: Path) -> list[Sheet]:
    """The sheets of a picture; the whole of it, without a name, where it does not say where they are.

    Raises:
        OSError: the file is no picture.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            whole = opened.convert("RGB")
            said = getattr(opened, "text", {}).get(TEXT_KEY)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's ways to say that a PNG is damaged
        raise OSError(f"{path}: is no picture ({error})") from error
    try:
        listed = json.loads(said)["sheets"]
        return [Sheet(str(one["name"]), str(one["caption"]), whole.crop(tuple(map(int, one["box"])))) for one in listed]
    except (TypeError, ValueError, KeyError):
        return [Sheet("", f"at {int(path.stem) / 1000:g} kimg" if path.stem.isdigit() else path.stem, whole)]
