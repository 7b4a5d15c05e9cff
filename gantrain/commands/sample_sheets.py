"""Sheets of `gantrain sample --sheet`: classes, averages, ways between latents and between classes, nearest real neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gantrain.atomic_file import open_draft
from gantrain.distributed import main_first, make_accelerator, on_main
from gantrain.errors import UserError, did_you_mean
from gantrain.evaluation.neighbours import neighbours
from gantrain.models.architecture import accepts_mixtures
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import averages_of, rebuilt_of, require_average, run_of
from gantrain.run_folder.layout import AVERAGES_FOLDER
from gantrain.sampling.choice import Choice, Chosen, require_count
from gantrain.sampling.generators import generate
from gantrain.sampling.interpolation import between, mixture
from gantrain.sampling.output import Out, columns_of, save
from gantrain.sampling.sheets import Sheet, grid, labelled, save_side_by_side

A_SHEET = 20  # classes
MIDPOINTS = 8  # between two endpoints


@dataclass(frozen=True)
class Task:
    """What a sheet is drawn from.

    Attributes:
        chosen: generator, latents and classes.
        out: where it goes.
        num: rows, or images, as the kind has it.
        averages: the names of `averages`.
        accelerator: of the program.
    """

    chosen: Chosen
    out: Out
    num: int
    averages: Sequence[str]
    accelerator: Accelerator

    def generator(self) -> nn.Module:
        return self.chosen.generator(self.accelerator.device)

    def draw(self, generator: nn.Module, z: Tensor, y: Tensor) -> Tensor:
        return generate(generator, z.to(self.accelerator.device), y.to(self.accelerator.device))


@dataclass(frozen=True)
class Kind:
    """A kind of sheet.

    Attributes:
        draw: writes it and says what it wrote.
        num: default of --num, or of --per-class.
        full: which is brought to full rows of a grid.
        alone: the main process draws it, nothing being shared out; else all processes take part.
        between_classes: needs two classes, and a generator that mixes them.
        folder: several sheets may go into a folder.
    """

    draw: Callable[[Task], str]
    num: int
    full: bool = False
    alone: bool = True
    between_classes: bool = False
    folder: bool = False


def classes(task: Task) -> str:
    """A class a row, `num` images of each, the latents of a class its own; a picture of 20 classes, or several in a folder."""
    generator, num = task.generator(), task.num
    every = list(dict.fromkeys(task.chosen.classes.tolist()))
    shown = every
    if not task.out.folder and len(every) > A_SHEET:
        shown = [every[i * len(every) // A_SHEET] for i in range(A_SHEET)]
    sheets = [shown[i : i + A_SHEET] for i in range(0, len(shown), A_SHEET)]
    digits = len(str(generator.num_classes - 1))
    for labels in sheets:
        z = torch.cat([task.chosen.latents(generator, num, label * num) for label in labels])
        images = task.draw(generator, z, torch.tensor(labels).repeat_interleave(num))
        name = f"classes-{labels[0]:0{digits}d}-{labels[-1]:0{digits}d}.png"
        save(labelled(images, num, [str(label) for label in labels]), task.out.path / name if task.out.folder else task.out.path)
    few = (
        f"{len(shown)} of {len(every)} classes, evenly spread (--out FOLDER/ draws all)"
        if len(shown) < len(every)
        else f"{len(every)} classes"
    )
    return f"{few} a row each, {num} images of {task.chosen.average} a class, in {task.out.path}" + (
        f"/, {len(sheets)} sheet{'s' if len(sheets) > 1 else ''}" if task.out.folder else ""
    )


def averages(task: Task) -> str:
    """The same latents and classes through live weights and averages, side by side."""
    chosen, run, sheets = task.chosen, run_of(task.chosen.path), []
    rebuilt = rebuilt_of(run)
    for name in task.averages:
        generator = chosen.generator(task.accelerator.device, name)
        images = task.draw(generator, chosen.latents(generator, task.num), chosen.labels(task.num))
        at = checkpoint.read_manifest(run / AVERAGES_FOLDER / name)["nimg"] if name in rebuilt else int(chosen.path.name)
        sheets.append(Sheet(name, f"{name} at {at / 1000:g} kimg", grid(images, columns_of(task.num, len(chosen.classes)))))
    with open_draft(task.out.path) as draft:
        save_side_by_side(sheets, draft)
    return f"{task.num} images of each of {', '.join(task.averages)} in {task.out.path}"


def ways(task: Task, of_z: bool, of_class: bool) -> str:
    """A row a way: its endpoints and eight points between them, latents, classes or both changing; `num` rows."""
    generator, rows = task.generator(), task.num
    if of_class and not accepts_mixtures(generator):
        name = type(generator).__name__
        raise UserError(
            f"--sheet: between classes lie mixtures of them, and the run's {name} takes labels alone; it would need accepts_mixtures = True, and y of weights [N, classes]"
        )
    y0 = task.chosen.labels(rows)
    y1 = task.chosen.labels(rows, 1) if of_class else y0
    latents = task.chosen.latents(generator, 2 * rows if of_z else rows)
    z0, z1 = (latents[::2], latents[1::2]) if of_z else (latents, latents)
    steps = torch.linspace(0, 1, MIDPOINTS + 2).tolist()
    z = [between(z0, z1, t, task.chosen.choice.truncation) if of_z else z0 for t in steps]
    y = [mixture(y0, y1, t, generator.num_classes) if of_class else y0 for t in steps]
    # [rows, steps, ...]: a row after the other.
    images = task.draw(generator, torch.stack(z, 1).flatten(0, 1), torch.stack(y, 1).flatten(0, 1))
    written = [f"{a} to {b}" if of_class else f"{a}" for a, b in zip(y0.tolist(), y1.tolist())] if generator.num_classes > 1 else []
    save(labelled(images, len(steps), written), task.out.path)
    what = " and ".join(["latents"] * of_z + ["classes"] * of_class)
    return f"{rows} ways between {what} of {task.chosen.average}, {MIDPOINTS} points between their ends, in {task.out.path}"


SHEETS: dict[str, Kind] = {
    "classes": Kind(classes, 10, folder=True),
    "averages": Kind(averages, 64, full=True),
    "z": Kind(lambda task: ways(task, of_z=True, of_class=False), 8),
    "class": Kind(lambda task: ways(task, of_z=False, of_class=True), 8, between_classes=True),
    "both": Kind(lambda task: ways(task, of_z=True, of_class=True), 8, between_classes=True),
    "neighbours": Kind(lambda task: neighbours(task.chosen, task.num, task.out.path), 512, alone=False),
}


def sheet_run(
    choice: Choice, kind: str, out: Out, num: int | None = None, averages: Sequence[str] | None = None
) -> tuple[str, Accelerator]:
    """Draw a sheet.

    Args:
        choice: generator, latents and classes.
        kind: a name of `SHEETS`.
        num: rows, or images, as the kind has it; None is its default.
        averages: of kind "averages", in order; None is live and all that belong to the moment.

    Returns:
        What was written, and the Accelerator that was used.

    Raises:
        UserError: an option, class, average or path that cannot be.
    """
    if kind not in SHEETS:
        raise UserError(f"--sheet: there is no sheet {kind!r}{did_you_mean(kind, SHEETS)}")
    entry = SHEETS[kind]
    if num is not None:
        require_count(num, "--per-class" if kind == "classes" else "--num")
    if out.suffix != ".png" and not (out.folder and entry.folder):
        written = f"{out.path}{'/' if out.folder else ''}"
        raise UserError(f"--out: a sheet of {kind} is a .png{', or several in a folder/' if entry.folder else ''}, got {written!r}")
    chosen = choice.open()
    if entry.between_classes:
        require_two_classes(kind, choice, chosen.num_classes)
    if num is None:
        columns = columns_of(entry.num, len(chosen.classes))
        num = max(1, round(entry.num / columns)) * columns if entry.full else entry.num
    if averages is None:
        averages = averages_at(chosen.path)
    for name in averages:
        require_average(chosen.config, chosen.path, name, choice.kimg)
    accelerator = make_accelerator()
    main_first(accelerator, out.make)
    task = Task(chosen, out, num, averages, accelerator)
    said = on_main(accelerator, lambda: entry.draw(task)) if entry.alone else entry.draw(task)
    return said or "", accelerator


def require_two_classes(kind: str, choice: Choice, num_classes: int) -> None:
    """Refuse a way from a class to itself."""
    if num_classes == 1:
        raise UserError(f"--sheet: {kind!r} goes from one class to another, and the run has no classes; --sheet z goes between latents")
    if choice.labels is not None and len(set(choice.labels)) == 1:
        raise UserError(f"--labels: {kind!r} goes from one class to another; give at least two, got {choice.labels[0]} alone")


def averages_at(path: Path) -> list[str]:
    """Live and all averages of a checkpoint's moment; those rebuilt at another one are left out."""
    run = run_of(path)
    rebuilt = {name: checkpoint.read_manifest(run / AVERAGES_FOLDER / name)["nimg"] for name in rebuilt_of(run)}
    return [name for name in averages_of(path) if rebuilt.get(name, int(path.name)) == int(path.name)]
