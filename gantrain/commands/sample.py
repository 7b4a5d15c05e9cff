"""`gantrain sample`: draw images with a run's generator, as a grid, numbered PNGs, an .npz or a sheet."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gantrain.atomic_file import open_draft
from gantrain.commands.arguments import choice_of
from gantrain.commands.sample_sheets import draw_sheet
from gantrain.distributed import finish, main_first, make_accelerator, on_main
from gantrain.errors import UserError
from gantrain.sampling.choice import Choice, require_count
from gantrain.sampling.output import MemorySink, NpzFile, Output, PngFolder, choose_columns, draw_all, save_picture
from gantrain.sampling.sheets import make_grid


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    kind = arguments.sheet
    if arguments.per_class is not None and kind != "classes":
        raise UserError(f"--per-class: {arguments.per_class} only applies to --sheet classes; use --num for the number of images")
    if arguments.num is not None and kind == "classes":
        raise UserError(f"--num: {arguments.num} does not apply to --sheet classes; use --per-class for the number of images per class")
    out = Output.parse(arguments.out or f"{kind or 'samples'}.png")
    if kind is None:
        written, accelerator = sample_run(choice_of(arguments), out, **({} if arguments.num is None else {"num": arguments.num}))
    else:
        names = arguments.average.split(",") if arguments.average and kind == "averages" else None
        if kind == "averages":
            arguments.average = (names or ["live"])[0]
        num = arguments.per_class if kind == "classes" else arguments.num
        written, accelerator = draw_sheet(choice_of(arguments), kind, out, num, names)
    if accelerator.is_main_process:
        print(written)
    finish(accelerator)


def sample_run(choice: Choice, out: Output, num: int = 64) -> tuple[str, Accelerator]:
    """Draw `num` images into a grid (.png), numbered PNGs (folder/) or arrays (.npz).

    Returns:
        A line that says what was written, and the Accelerator that was used.

    Raises:
        UserError: an option or path is invalid.
    """
    require_count(num)
    require_kind(out)
    source = choice.open()  # fails before a folder is created
    accelerator = make_accelerator()
    main_first(accelerator, out.make_folders)  # every process checks the folder before any process writes
    images = source.image_sampler(source.load_generator(accelerator.device))
    if out.folder:
        draw_all(images, num, PngFolder(out.path), accelerator)
    elif out.suffix == ".npz":
        write_npz(images, source.labels(num), out.path, accelerator)
    else:
        drawn = MemorySink()
        draw_all(images, num, drawn, accelerator)
        columns = choose_columns(num, len(source.classes))
        on_main(accelerator, lambda: save_picture(make_grid(torch.cat(drawn.parts), columns), out.path))
    shared = f", on {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return f"{num} images of {choice.average} in {out.path}{'/' if out.folder else ''}{shared}", accelerator


def require_kind(out: Output) -> None:
    """Refuse an --out that is not a folder, .png or .npz.

    Raises:
        UserError: it is something else.
    """
    if out.suffix not in ("/", ".png", ".npz"):
        name = str(out.path)
        if out.path.is_dir():
            raise UserError(f"--out: {name!r} is a folder; end it with / for numbered files")
        raise UserError(
            f"--out: {name!r} is not a .png, an .npz or a folder/; use {name + '.png'!r} for a grid, {name + '/'!r} for numbered files,"
            f" {name + '.npz'!r} for arrays"
        )


def write_npz(images: Callable[[int, int], Tensor], labels: Tensor, path: Path, accelerator: Accelerator) -> None:
    """Draw one image per label into an .npz, which the main process writes.

    Raises:
        UserError, OSError: see `draw_all`.
    """
    with open_draft(path) if accelerator.is_main_process else nullcontext(path) as draft:
        archive = NpzFile(draft, labels)
        try:
            draw_all(images, len(labels), archive, accelerator)
            on_main(accelerator, archive.close)
        finally:
            archive.abandon()
