"""`gantrain sample --sheet`: classes, averages, interpolations of latents and classes, nearest real neighbours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gantrain.atomic_file import open_draft
from gantrain.distributed import main_first, make_accelerator, on_main
from gantrain.errors import UserError, counted, did_you_mean
from gantrain.evaluation.neighbours import NEAREST, SHOWN, draw_neighbours
from gantrain.models.architecture import accepts_mixtures
from gantrain.run_folder.contents import (
    averages_of,
    look_again,
    moment_of_rebuilt,
    rebuilt_of,
    require_average,
    run_of,
    times_of_rebuilt,
)
from gantrain.run_folder.finite import NotFinite
from gantrain.sampling.choice import Choice, ImageSource, require_count
from gantrain.sampling.classes import Classes
from gantrain.sampling.generators import generate, hold_rebuilt
from gantrain.sampling.interpolation import interpolate, mix_classes
from gantrain.sampling.latents import GeneratorModule
from gantrain.sampling.output import Output, choose_columns, save_picture
from gantrain.sampling.sheets import SHEETS_PER_ROW, Sheet, make_grid, make_labelled_grid, require_scale, save_side_by_side

CLASSES_PER_SHEET = 20
MIDPOINTS = 8  # between the ends of a row


@dataclass(frozen=True)
class Task:
    """What a sheet is drawn from, and where it goes.

    Attributes:
        source: generator, latents and classes.
        out: the file or folder.
        num: rows or images, depending on the kind of sheet.
        averages: names of the averages that the kind "averages" shows.
        accelerator: of the program.
        scale: factor by which images are enlarged; None enlarges only small ones.
        named: whether the user has named the averages.
    """

    source: ImageSource
    out: Output
    num: int
    averages: Sequence[str]
    accelerator: Accelerator
    scale: int | None = None
    named: bool = False

    def load_generator(self) -> GeneratorModule:
        """Load the chosen generator onto this process's device."""
        return self.source.load_generator(self.accelerator.device)

    def generate(self, generator: GeneratorModule, z: Tensor, y: Tensor, average: str | None = None) -> Tensor:
        """Generate images uint8 `[N, C, H, W]`, on the CPU, from latents and labels on any device.

        Raises:
            NotFinite: images are not finite; the message names `average`, by default the chosen one.
        """
        device = self.accelerator.device
        return generate(generator, z.to(device), y.to(device), name=average or self.source.average)


@dataclass(frozen=True)
class SheetKind:
    """A kind of sheet.

    Attributes:
        draw: draws and writes it, and returns a line that says what was written.
        num: default of --num, or of --per-class.
        full: whether the default is rounded to full rows of a grid.
        alone: whether the main process draws it; otherwise all processes take part.
        between_classes: whether it needs two classes, and a generator that mixes them.
        folder: whether several sheets may go into a folder.
        layout: (columns, rows) of the images in its picture, from num, the labels in turn, and the number of averages.
    """

    draw: Callable[[Task], str]
    num: int
    full: bool = False
    alone: bool = True
    between_classes: bool = False
    folder: bool = False
    layout: Callable[[int, list[int], int], tuple[int, int]] = lambda num, labels, averages: (MIDPOINTS + 2, num)


def draw_sheet(
    choice: Choice, kind: str, out: Output, num: int | None = None, averages: Sequence[str] | None = None, scale: int | None = None
) -> tuple[str, Accelerator]:
    """Draw a sheet.

    Args:
        choice: generator, latents and classes.
        kind: a name of `SHEETS`.
        out: where it goes.
        num: rows or images, depending on the kind; None is its default.
        averages: for the kind "averages", in order; None shows live and all averages of the checkpoint's time.
        scale: factor by which images are enlarged; None enlarges only small ones.

    Returns:
        A line that says what was written, and the Accelerator that was used.

    Raises:
        UserError: an option, class, average or path is invalid.
    """
    if kind not in SHEETS:
        raise UserError(f"--sheet: there is no sheet {kind!r}{did_you_mean(kind, SHEETS)}")
    entry = SHEETS[kind]
    option = "--per-class" if kind == "classes" else "--num"
    if num is not None:
        require_count(num, option)
    if out.suffix != ".png" and not (out.folder and entry.folder):
        got = f"{out.path}{'/' if out.folder else ''}"
        raise UserError(f"--out: a sheet of kind {kind} must be a .png{' or a folder/' if entry.folder else ''}, got {got!r}")
    source = choice.open()
    if entry.between_classes:
        require_two_classes(kind, source.classes.tolist() if choice.labels else None, source.known)
    if num is None:
        columns = choose_columns(entry.num, len(source.classes))
        num = max(1, round(entry.num / columns)) * columns if entry.full else entry.num
    named = averages is not None
    if averages is None:
        averages = list_averages(source.path)
    for name in averages:
        require_average(source.config, source.path, name, choice.kimg)
    shown = averages
    look_again(lambda: hold_rebuilt(source.held, shown))
    if scale is not None or not out.folder or entry.folder:
        require_scale(scale, source.resolution, *entry.layout(num, source.classes.tolist(), len(averages)), option=option)
    accelerator = make_accelerator()
    source = source.agree(accelerator)
    main_first(accelerator, out.make_folders)
    task = Task(source, out, num, averages, accelerator, scale, named)
    written = on_main(accelerator, lambda: entry.draw(task)) if entry.alone else entry.draw(task)
    return written or "", accelerator


def require_two_classes(kind: str, labels: Sequence[int] | None, known: Classes) -> None:
    """Refuse an interpolation from a class to itself; `labels` are the chosen ones, None is all."""
    if known.count == 1:
        raise UserError(f"--sheet: {kind!r} interpolates between classes, but the run has no classes; use --sheet z for latents")
    if labels and len(set(labels)) == 1:
        raise UserError(f"--labels: {kind!r} interpolates between classes; pass at least two, got only {known.describe(labels[0])}")


def list_averages(path: Path) -> list[str]:
    """List live and all averages of a checkpoint, without those rebuilt at another time."""
    run = run_of(path)
    rebuilt = times_of_rebuilt(run)
    return [name for name in averages_of(path) if rebuilt.get(name, int(path.name)) == int(path.name)]


# ---- kinds of sheets -------------------------------------------------------------------------------------------------


def draw_classes(task: Task) -> str:
    """Draw one class per row, `num` images each; a class always has the same latents. A picture of 20 classes, or several in a folder."""
    generator, num = task.load_generator(), task.num
    every = list(dict.fromkeys(task.source.classes.tolist()))
    shown = every
    if not task.out.folder and len(every) > CLASSES_PER_SHEET:
        shown = [every[i * len(every) // CLASSES_PER_SHEET] for i in range(CLASSES_PER_SHEET)]
    sheets = [shown[i : i + CLASSES_PER_SHEET] for i in range(0, len(shown), CLASSES_PER_SHEET)]
    digits = len(str(generator.num_classes - 1))
    for labels in sheets:
        z = torch.cat([task.source.latents(generator, num, label * num) for label in labels])
        images = task.generate(generator, z, torch.tensor(labels).repeat_interleave(num))
        name = f"classes-{labels[0]:0{digits}d}-{labels[-1]:0{digits}d}.png"
        sheet = make_labelled_grid(images, num, list(map(task.source.known.heading, labels)), scale=task.scale)
        save_picture(sheet, task.out.path / name if task.out.folder else task.out.path)
    which = (
        f"{len(shown)} of {len(every)} classes, evenly spaced (--out FOLDER/ draws all)"
        if len(shown) < len(every)
        else f"{len(every)} classes"
    )
    where = f"{task.out.path}/, {counted(len(sheets), 'sheet')}" if task.out.folder else f"{task.out.path}"
    return f"{which}, one per row, {num} images of {task.source.average} each, in {where}"


def draw_averages(task: Task) -> str:
    """Draw the same latents and classes through the live weights and averages, side by side.

    Those that are not finite are left out, unless they were asked for by name.

    Raises:
        NotFinite: there are no others, or an average that was asked for is not finite.
    """
    source, run, sheets = task.source, run_of(task.source.path), []
    left_out: dict[str, NotFinite] = {}
    rebuilt = rebuilt_of(run)
    columns = choose_columns(task.num, len(source.classes))
    named = source.known.names is not None and columns % len(source.classes) == 0  # then a column has one class
    heads = tuple(map(source.known.heading, source.labels(columns).tolist())) if named else ()
    for name in task.averages:
        try:
            generator = source.load_generator(task.accelerator.device, name)
            images = task.generate(generator, source.latents(generator, task.num), source.labels(task.num), name)
        except NotFinite as error:
            if task.named:
                raise
            left_out[name] = error
            continue
        at = moment_of_rebuilt(run, name) if name in rebuilt else int(source.path.name)
        sheets.append(Sheet(name, f"{name} at {at / 1000:g} kimg", make_grid(images, columns, scale=task.scale), heads))
    if not sheets:
        raise next(iter(left_out.values()))
    with open_draft(task.out.path) as draft:
        save_side_by_side(sheets, draft)
    without = f"; without {', '.join(left_out)}, whose weights or images are not finite" if left_out else ""
    return f"{task.num} images of each of {', '.join(sheet.name for sheet in sheets)} in {task.out.path}{without}"


def draw_interpolations(task: Task, of_z: bool, of_class: bool) -> str:
    """Draw `num` rows: two ends and eight points between them, with latents, classes or both interpolated."""
    source, generator, rows = task.source, task.load_generator(), task.num
    if of_class and not accepts_mixtures(generator):
        raise UserError(
            f"--sheet: interpolation between classes needs a generator that takes mixtures of them, but {type(generator).__name__}"
            " takes labels only; choose --sheet z, or set accepts_mixtures = True on a generator that takes class weights [N, classes] as y"
        )
    y0 = source.labels(rows)
    y1 = source.labels(rows, 1) if of_class else y0
    latents = source.latents(generator, 2 * rows if of_z else rows)
    z0, z1 = (latents[::2], latents[1::2]) if of_z else (latents, latents)
    steps = torch.linspace(0, 1, MIDPOINTS + 2).tolist()
    z = [interpolate(z0, z1, t, source.choice.truncation) if of_z else z0 for t in steps]
    y = [mix_classes(y0, y1, t, generator.num_classes) if of_class else y0 for t in steps]
    # [rows, steps, ...], flattened row by row.
    images = task.generate(generator, torch.stack(z, 1).flatten(0, 1), torch.stack(y, 1).flatten(0, 1))
    heading = functools.partial(source.known.heading, most=20)
    pairs = zip(y0.tolist(), y1.tolist())
    labels = [f"{heading(a)} to {heading(b)}" if of_class else heading(a) for a, b in pairs] if generator.num_classes > 1 else []
    save_picture(make_labelled_grid(images, len(steps), labels, scale=task.scale), task.out.path)
    what = " and ".join(["latents"] * of_z + ["classes"] * of_class)
    return f"{rows} interpolations between {what} of {source.average}, {MIDPOINTS} points between the ends, in {task.out.path}"


def lay_out_averages(num: int, labels: list[int], averages: int) -> tuple[int, int]:
    """(columns, rows) of all images in the picture that `draw_averages` writes."""
    columns, across = choose_columns(num, len(labels)), min(averages, SHEETS_PER_ROW)
    return columns * across, -(-num // columns) * -(-averages // SHEETS_PER_ROW)


SHEETS: dict[str, SheetKind] = {
    "classes": SheetKind(
        draw_classes, 10, folder=True, layout=lambda num, labels, averages: (num, min(len(set(labels)), CLASSES_PER_SHEET))
    ),
    "averages": SheetKind(draw_averages, 64, full=True, layout=lay_out_averages),
    "z": SheetKind(lambda task: draw_interpolations(task, of_z=True, of_class=False), 8),
    "class": SheetKind(lambda task: draw_interpolations(task, of_z=False, of_class=True), 8, between_classes=True),
    "both": SheetKind(lambda task: draw_interpolations(task, of_z=True, of_class=True), 8, between_classes=True),
    "neighbours": SheetKind(
        lambda task: draw_neighbours(task.source, task.num, task.out.path, task.scale),
        512,
        alone=False,
        layout=lambda num, labels, averages: (1 + NEAREST, SHOWN),
    ),
}
