"""`gantrain sample`: draw images with a run's generator."""

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
from gantrain.commands.sample_sheets import sheet_run
from gantrain.distributed import finish, main_first, make_accelerator, on_main
from gantrain.errors import UserError
from gantrain.sampling.choice import Choice, require_count
from gantrain.sampling.output import Archive, Kept, Out, Pngs, columns_of, draw_all, save
from gantrain.sampling.sheets import grid


def call(arguments: argparse.Namespace) -> None:

    kind = arguments.sheet
    if arguments.per_class is not None and kind != "classes":
        raise UserError(f"--per-class: {arguments.per_class} goes with --sheet classes; --num says how many images")
    if arguments.num is not None and kind == "classes":
        raise UserError(f"--num: {arguments.num} does not go with --sheet classes; --per-class says how many images a class has")
    out = Out.parse(arguments.out or f"{kind or 'samples'}.png")
    if kind is None:
        written, accelerator = sample_run(choice_of(arguments), out, **({} if arguments.num is None else {"num": arguments.num}))
    else:
        names = arguments.average.split(",") if arguments.average and kind == "averages" else None
        if kind == "averages":
            arguments.average = (names or ["live"])[0]
        num = arguments.per_class if kind == "classes" else arguments.num
        written, accelerator = sheet_run(choice_of(arguments), kind, out, num, names)
    if accelerator.is_main_process:
        print(written)
    finish(accelerator)


def sample_run(choice: Choice, out: Out, num: int = 64) -> tuple[str, Accelerator]:
    """Draw `num` images into a grid (.png), numbered PNGs (folder/) or an archive (.npz).

    Returns:
        A line that says what was written, and the Accelerator that was used.

    Raises:
        UserError: a label, a number or a path that cannot be.
    """
    require_count(num)
    require_kind(out)
    there = choice.open()  # before a folder is made for nothing
    accelerator = make_accelerator()
    main_first(accelerator, out.make)  # nobody writes before everybody has looked
    images = there.images(there.generator(accelerator.device))
    if out.folder:
        draw_all(images, num, Pngs(out.path), accelerator)
    elif out.suffix == ".npz":
        write_archive(images, there.labels(num), out.path, accelerator)
    else:
        kept = Kept()
        draw_all(images, num, kept, accelerator)
        on_main(accelerator, lambda: save(grid(torch.cat(kept.parts), columns_of(num, len(there.classes))), out.path))
    shared = f", on {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return f"{num} images of {choice.average} in {out.path}{'/' if out.folder else ''}{shared}", accelerator


def require_kind(out: Out) -> None:
    """Refuse files of other kinds than images are drawn into."""
    if out.suffix not in ("/", ".png", ".npz"):
        name = str(out.path)
        if out.path.is_dir():
            raise UserError(f"--out: {name!r} is a folder; end it with / for numbered files")
        raise UserError(
            f"--out: {name!r} is neither a .png nor a folder; write {name + '.png'!r} for a grid or {name + '/'!r} for numbered files,"
            f" or {name + '.npz'!r} for arrays"
        )


def write_archive(images: Callable[[int, int], Tensor], labels: Tensor, path: Path, accelerator: Accelerator) -> None:
    """Draw as many images as there are labels into an .npz, which the main process writes.

    Raises:
        UserError, OSError: as `draw_all`.
    """
    with open_draft(path) if accelerator.is_main_process else nullcontext(path) as draft:
        archive = Archive(draft, labels)
        try:
            draw_all(images, len(labels), archive, accelerator)
            on_main(accelerator, archive.close)
        finally:
            archive.abandon()
