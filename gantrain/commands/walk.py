"""What `gantrain walk` does: a film of a closed walk through the latents, as GIF or MP4."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from gantrain.atomic_file import open_draft
from gantrain.commands.arguments import choice_of
from gantrain.errors import UserError, one_line
from gantrain.sampling.choice import Choice, Chosen, require_count
from gantrain.sampling.generators import generate
from gantrain.sampling.interpolation import circle
from gantrain.sampling.output import CHUNK, Out
from gantrain.sampling.sheets import grid


def call(arguments: argparse.Namespace) -> None:
    if os.environ.get("RANK", "0") == "0":  # nothing to share out: one process does it
        print(walk_run(choice_of(arguments), Path(arguments.out), arguments.num, arguments.frames, arguments.fps))


FASTEST_GIF = 50  # frames a second: browsers show what asks for more at ten


def walk_run(choice: Choice, out: Path, num: int = 16, frames: int = 120, fps: int = 24) -> str:
    """A film of `num` tiles, each going once around a circle of latents under a class of its own; the last frame leads into the first.

    Returns:
        A line that says what was written.

    Raises:
        UserError: an option, class or path that cannot be, or an MP4 without PyAV.
    """
    require_count(num)
    require_count(frames, "--frames", 2)
    require_count(fps, "--fps")
    suffix = out.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise UserError(
            f"--out: {str(out)!r} is neither a .gif nor a .mp4; write {str(out.with_suffix('.gif') if out.name else 'walk.gif')!r}"
        )
    if suffix == ".gif" and fps > FASTEST_GIF:
        raise UserError(f"--fps: a .gif shows at most {FASTEST_GIF} frames a second, got {fps}; choose fewer, or a .mp4")
    av = import_av() if suffix == ".mp4" else None
    chosen = choice.open()
    Out(out).make()
    pictures = tqdm(walk(chosen, num, frames), desc="walk", unit="frame", total=frames, leave=False, disable=None)
    with open_draft(out) as draft:
        if av is None:
            write_gif(pictures, frames, fps, draft)
        else:
            write_mp4(av, pictures, fps, draft)
    return f"a loop of {frames} frames, {frames / fps:.3g} s, of {num} walks of {choice.average} in {out}"


def import_av() -> Any:
    """PyAV.

    Raises:
        UserError: it is not there, or cannot write H.264.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"--out: a .mp4 needs PyAV ({one_line(error)}): pip install 'gantrain[video]', or write a .gif") from error
    if "libx264" not in av.codecs_available:
        raise UserError("--out: PyAV has no H.264 encoder (libx264) here: pip install 'gantrain[video]' brings one, or write a .gif")
    return av


@torch.no_grad()
def walk(chosen: Chosen, num: int, frames: int) -> Iterator[Image.Image]:
    """The frames of a walk, tiles in a grid."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = chosen.generator(device)
    y, latents = chosen.labels(num).to(device), chosen.latents(generator, 2 * num)
    for frame in range(frames):
        z = circle(latents[::2], latents[1::2], frame / frames, chosen.choice.truncation)
        yield grid(generate(generator, z.to(device), y, CHUNK), math.ceil(num**0.5))


def write_gif(pictures: Iterator[Image.Image], frames: int, fps: int, path: Path) -> None:
    """A GIF that loops for ever; grey pictures keep all their levels, each of the others has the 256 colours that suit it best."""
    # A GIF counts in hundredths of a second: durations that add up to the time that was asked for.
    ends = [round(100 * i / fps) for i in range(frames + 1)]
    durations = [10 * (b - a) for a, b in zip(ends, ends[1:])]
    as_palette = (p if p.mode == "L" else p.quantize(256, dither=Image.Dither.NONE) for p in pictures)
    first = next(as_palette)
    first.save(path, format="GIF", save_all=True, append_images=as_palette, duration=durations, loop=0, optimize=False)


def write_mp4(av: Any, pictures: Iterator[Image.Image], fps: int, path: Path) -> None:
    """An MP4 of H.264 in 4:2:0, which every player takes; that has even sizes, so an odd one is padded with white."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as film:
        stream = film.add_stream("libx264", rate=fps, options={"crf": "17"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            even = Image.new("RGB", tuple(side + side % 2 for side in picture.size), (255, 255, 255))
            even.paste(picture.convert("RGB"))
            if number == 0:
                stream.width, stream.height = even.size
            film.mux(stream.encode(av.VideoFrame.from_image(even)))
        film.mux(stream.encode(None))
