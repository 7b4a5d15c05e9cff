"""`gantrain sample`: draw images with a run's generator, as a grid, numbered PNGs, an .npz or a sheet."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gantrain.atomic_file import open_draft
from gantrain.commands.arguments import averages_of_choice, choice_of, listed_names
from gantrain.commands.sample_sheets import draw_sheet
from gantrain.distributed import finish, main_first, make_accelerator, on_main
from gantrain.errors import UserError, in_words
from gantrain.memory import main_memory, require_memory
from gantrain.run_folder.checkpoint import free_bytes
from gantrain.run_folder.contents import open_held
from gantrain.sampling.choice import Choice, require_count
from gantrain.sampling.classes import Classes
from gantrain.sampling.output import MemorySink, NpzFile, Output, PngFolder, choose_columns, draw_all, save_picture
from gantrain.sampling.sheets import enlarge, make_grid, require_scale

LABEL = 8  # bytes in an .npz
OTHER_ENDING = re.compile(r"\.[a-z]\w{0,4}", re.ASCII)  # of a file of another kind, such as .jpg; the 5 of v1.5 is none


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    kind = arguments.sheet
    if arguments.classes:
        print(list_classes(arguments))
        return
    if arguments.per_class is not None and kind != "classes":
        raise UserError(f"--per-class: {arguments.per_class} only applies to --sheet classes; use --num for the number of images")
    if arguments.num is not None and kind == "classes":
        raise UserError(f"--num: {arguments.num} does not apply to --sheet classes; use --per-class for the number of images per class")
    out = Output.parse(arguments.out or f"{kind or 'samples'}.png")
    if kind is None:
        num = {} if arguments.num is None else {"num": arguments.num}
        written, accelerator = sample_run(choice_of(arguments), out, scale=arguments.scale, **num)
    else:
        names = None
        if kind == "averages":
            if arguments.average is not None:
                names = listed_names(arguments.average, "--average", "live,ema")
                names, arguments.kimg = averages_of_choice(arguments.run, names, arguments.kimg)
            arguments.average = (names or ["live"])[0]
        num = arguments.per_class if kind == "classes" else arguments.num
        written, accelerator = draw_sheet(choice_of(arguments), kind, out, num, names, arguments.scale)
    if accelerator.is_main_process:
        print(written)
    finish(accelerator)


def list_classes(arguments: argparse.Namespace) -> str:
    """The table of `--classes`.

    Raises:
        UserError: another option that draws images was given, or the run cannot be opened.
    """
    for option in ("sheet", "num", "per_class", "labels", "out", "scale"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: does not apply to --classes, which draws nothing; remove one of them")
    _, held = open_held(arguments.run, arguments.kimg)
    return Classes.at(held.folder, arguments.run).listed()


def sample_run(choice: Choice, out: Output, num: int = 64, scale: int | None = None) -> tuple[str, Accelerator]:
    """Draw `num` images into a grid (.png), numbered PNGs (folder/) or arrays (.npz).

    Args:
        choice: generator, latents and classes.
        out: where they go.
        num: how many.
        scale: whole factor by which they are enlarged; None enlarges only small ones, and only in a grid.

    Returns:
        A line that says what was written, and the Accelerator that was used.

    Raises:
        UserError: an option or path is invalid.
    """
    require_count(num)
    require_kind(out)
    if scale is not None and out.suffix == ".npz":
        raise UserError(f"--scale: {scale} does not apply to an .npz, whose images are for evaluators; remove it")
    source = choice.open()  # fails before a folder is created
    if out.suffix == ".npz":
        require_space(num, source.image_bytes, out.path)
    columns = choose_columns(num, len(source.classes))
    require_scale(scale, source.resolution, *((columns, -(-num // columns)) if out.suffix == ".png" else (1, 1)))
    accelerator = make_accelerator()
    source = source.agree(accelerator)
    main_first(accelerator, out.make_folders)  # every process checks the folder before any process writes
    images = source.image_sampler(source.load_generator(accelerator.device))
    if out.folder:
        draw_all(lambda start, count: enlarge(images(start, count), scale), num, PngFolder(out.path), accelerator)
    elif out.suffix == ".npz":
        write_npz(images, source.labels(num), out.path, accelerator)
    else:
        drawn = MemorySink()
        draw_all(images, num, drawn, accelerator)
        on_main(accelerator, lambda: save_picture(make_grid(torch.cat(drawn.parts), columns, scale=scale), out.path))
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
        stem = name[: -len(out.suffix)] if OTHER_ENDING.fullmatch(out.suffix) else name
        raise UserError(
            f"--out: {name!r} is not a .png, an .npz or a folder/; use {stem + '.png'!r} for a grid, {stem + '/'!r} for numbered files,"
            f" {stem + '.npz'!r} for arrays"
        )


def require_space(num: int, image: int, path: Path) -> None:
    """Refuse arrays of more images than a disk has, or memory holds labels of.

    Args:
        num: how many images.
        image: bytes of one; they are not compressed.
        path: of the file, whose folder need not exist yet.

    Raises:
        UserError: names the option, the need and what is free.
    """
    require_memory(f"--num: {num}", num * LABEL, main_memory(), "their labels", "draw fewer images")
    folder = next((one for one in path.absolute().parents if one.is_dir()), path)
    needed, free = num * (image + LABEL), free_bytes(folder)
    if free is not None and needed > free:
        raise UserError(
            f"--num: {num} images take {in_words(needed)} in {path}, and {in_words(free, down=True)} are free there; draw fewer images,"
            " or choose another --out"
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
