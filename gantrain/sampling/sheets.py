"""Layout of sample images: grids, labelled grids, and several sheets in one PNG that stores their positions."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

SHEETS_PER_ROW = 4
MARGIN, HEAD = 12, 30  # pixels around a sheet, and above it for the caption
GAP = 2  # pixels between the images of a sheet
TEXT_KEY = "gantrain"  # of the text chunk of the PNG that lists the sheets
FRAME = (194, 65, 12)


@dataclass(frozen=True)
class Sheet:
    """A grid of images with a name.

    Attributes:
        name: of the average it shows, or "live".
        caption: the text above it.
        picture: the grid.
    """

    name: str
    caption: str
    picture: Image.Image


def to_pil(image: Tensor) -> Image.Image:
    """Convert uint8 `[C, H, W]`, C of 1 or 3, to a picture."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def choose_enlargement(resolution: int) -> int:
    """Choose the whole factor by which small images are enlarged in a grid, so that a person can see them."""
    return max(1, 48 // resolution)


def make_grid(images: Tensor, columns: int, gap: int = GAP) -> Image.Image:
    """Lay out images uint8 `[N, C, H, W]` row by row, enlarging small ones."""
    factor = choose_enlargement(images.shape[-1])
    height, width = images.shape[-2] * factor + gap, images.shape[-1] * factor + gap
    rows = -(-len(images) // columns)
    mode = "L" if images.shape[1] == 1 else "RGB"
    sheet = Image.new(mode, (columns * width + gap, rows * height + gap), 255 if mode == "L" else (255, 255, 255))
    for i, image in enumerate(images):
        picture = to_pil(image).resize((width - gap, height - gap), Image.Resampling.NEAREST)
        sheet.paste(picture, (gap + i % columns * width, gap + i // columns * height))
    return sheet


def make_labelled_grid(
    images: Tensor, columns: int, rows: Sequence[str] = (), heads: Sequence[str] = (), apart: bool = False
) -> Image.Image:
    """Lay out images uint8 `[N, C, H, W]` with words beside the rows and above the columns.

    Args:
        images: the images, row by row.
        columns: images per row.
        rows, heads: the words; heads shrink to the width of a column.
        apart: frame the first column and set it apart from the others.
    """
    count = -(-len(images) // columns)
    first = [i for i in range(len(images)) if i % columns == 0] if apart else []
    rest = [i for i in range(len(images)) if i not in set(first)]
    blocks = [make_grid(images[chosen], columns=wide) for chosen, wide in ((first, 1), (rest, columns - bool(first))) if chosen]
    cell_high, cell_wide = ((side - 2) // n for side, n in zip(reversed(blocks[-1].size), (count, columns - bool(first))))
    font = ImageFont.load_default(size=max(10, min(16, cell_high // 3)))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = round(max((pen.textlength(word, font=font) for word in rows), default=0)) + (MARGIN if rows else 0) + MARGIN
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
    for i, word in enumerate(rows):
        pen.text((left - MARGIN, top + 1 + (i + 0.5) * cell_high), word, fill=(0, 0, 0), font=font, anchor="rm")
    for i, (centre, word) in enumerate(zip(centres, heads)):
        room = cell_wide + 2 * MARGIN if apart and i == 0 else cell_wide
        pen.text((centre, top - 6), word, fill=(0, 0, 0), font=fit_font(word, room), anchor="ms")
    return whole


def fit_font(word: str, width: float, largest: int = 14) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Choose the largest font, from `largest` down to 6 pixels, in which a word fits the width."""
    fonts = (ImageFont.load_default(size=size) for size in range(largest, 5, -1))
    return next((font for font in fonts if font.getlength(word) <= width), ImageFont.load_default(size=6))


def join_sheets(sheets: Sequence[Sheet]) -> Image.Image:
    """Place sheets of one size side by side, four per row, each below its caption."""
    font = functools.cache(lambda size: ImageFont.load_default(size=size))
    wide, high = sheets[0].picture.width + MARGIN, sheets[0].picture.height + HEAD + MARGIN
    columns, rows = min(len(sheets), SHEETS_PER_ROW), -(-len(sheets) // SHEETS_PER_ROW)
    whole = Image.new("RGB", (columns * wide + MARGIN, rows * high), (255, 255, 255))
    pen = ImageDraw.Draw(whole)
    for sheet, (left, top, right, _) in zip(sheets, locate_sheets(sheets)):
        size = 20
        while size > 6 and pen.textlength(sheet.caption, font=font(size)) > right - left:
            size -= 1
        pen.text((left, top - 5), sheet.caption, fill=(0, 0, 0), font=font(size), anchor="ls")
        whole.paste(sheet.picture.convert("RGB"), (left, top))
    return whole


def locate_sheets(sheets: Sequence[Sheet]) -> list[tuple[int, int, int, int]]:
    """Compute where `join_sheets` places each sheet: left, top, right, bottom in pixels."""
    width, height = sheets[0].picture.size
    places = [
        (MARGIN + i % SHEETS_PER_ROW * (width + MARGIN), HEAD + i // SHEETS_PER_ROW * (height + HEAD + MARGIN)) for i in range(len(sheets))
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
    """Write sheets of one size into one PNG; `read_side_by_side` cuts them out again."""
    listed = [{"name": sheet.name, "caption": sheet.caption, "box": box} for sheet, box in zip(sheets, locate_sheets(sheets))]
    text = PngImagePlugin.PngInfo()
    text.add_itxt(TEXT_KEY, json.dumps({"sheets": listed}))
    join_sheets(sheets).save(path, pnginfo=text)


def read_side_by_side(path: Path) -> list[Sheet]:
    """Cut a picture into its sheets; a picture that does not list any is one sheet without a name.

    Raises:
        OSError: the file is not a readable picture.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            whole = opened.convert("RGB")
            text = opened.text if isinstance(opened, PngImagePlugin.PngImageFile) else {}
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises for a damaged PNG
        raise OSError(f"{path}: is not a readable picture ({error})") from error
    try:
        listed = json.loads(text[TEXT_KEY])["sheets"]
        return [Sheet(str(one["name"]), str(one["caption"]), whole.crop(tuple(map(int, one["box"])))) for one in listed]
    except (TypeError, ValueError, KeyError):
        return [Sheet("", f"at {int(path.stem) / 1000:g} kimg" if path.stem.isdigit() else path.stem, whole)]
