"""`gantrain walk`: make a video of a closed walk through the latents, as GIF or MP4."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from gantrain.atomic_file import open_draft
from gantrain.bounds import MOST_FPS, MOST_FRAMES
from gantrain.commands.arguments import choice_of
from gantrain.errors import UserError, one_line
from gantrain.memory import main_memory, require_memory
from gantrain.sampling.choice import Choice, ImageSource, require_count
from gantrain.sampling.generators import generate
from gantrain.sampling.interpolation import rotate
from gantrain.sampling.output import CHUNK, Output
from gantrain.sampling.sheets import choose_enlargement, make_grid, require_scale

FASTEST_GIF = 50  # frames per second; browsers play faster GIFs at ten
WIDEST_FILM = 16_384  # pixels of a side that H.264 allows


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    a = arguments
    print(film_walk(choice_of(a), Path(a.out), a.num, a.frames, a.fps, a.scale))


def film_walk(choice: Choice, out: Path, num: int = 16, frames: int = 120, fps: int = 24, scale: int | None = None) -> str:
    """Make a video of `num` tiles, each going once around a circle of latents with a fixed class; the last frame leads into the first.

    Args:
        choice: generator, latents and classes.
        out: a .gif or .mp4.
        num: tiles, in a grid.
        frames: number of frames, at least 2.
        fps: frames per second.
        scale: factor by which images are enlarged; None enlarges only small ones.

    Returns:
        A line that says what was written.

    Raises:
        UserError: an option or path is invalid, or PyAV is missing for an MP4.
    """
    require_count(num)
    require_count(frames, "--frames", 2, MOST_FRAMES)
    require_count(fps, "--fps", most=MOST_FPS)
    suffix = out.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise UserError(
            f"--out: must be a .gif or .mp4, got {str(out)!r}; use {str(out.with_suffix('.gif') if out.name else 'walk.gif')!r}"
        )
    if suffix == ".gif" and fps > FASTEST_GIF:
        raise UserError(f"--fps: a .gif plays at most {FASTEST_GIF} frames per second, got {fps}; use a lower value, or an .mp4")
    av = import_av() if suffix == ".mp4" else None
    source = choice.open()
    columns = math.ceil(num**0.5)
    require_scale(scale, source.resolution, columns, -(-num // columns), WIDEST_FILM)
    if suffix == ".gif":  # Pillow keeps all frames until the last
        side = source.resolution * (scale or choose_enlargement(source.resolution))
        require_memory(f"--frames: {frames}", frames * num * side**2, main_memory(), "the frames of a .gif", "use fewer, or an .mp4")
    Output(out).make_folders()
    pictures = tqdm(draw_frames(source, num, frames, scale), desc="walk", unit="frame", total=frames, leave=False, disable=None)
    with open_draft(out) as draft:
        if av is None:
            write_gif(pictures, frames, fps, draft)
        else:
            write_mp4(av, pictures, fps, draft)
    return f"a loop of {frames} frames, {frames / fps:.3g} s, of {num} walks of {choice.average} in {out}"


def import_av() -> Any:
    """Import PyAV.

    Raises:
        UserError: it is not installed, or cannot write H.264.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"--out: an .mp4 needs PyAV ({one_line(error)}); run pip install 'gantrain[video]', or use a .gif") from error
    if "libx264" not in av.codecs_available:
        raise UserError("--out: the installed PyAV has no H.264 encoder (libx264); run pip install 'gantrain[video]', or use a .gif")
    return av


@torch.no_grad()
def draw_frames(source: ImageSource, num: int, frames: int, scale: int | None = None) -> Iterator[Image.Image]:
    """Draw the frames of a walk, `num` tiles in a grid; `scale` as in `film_walk`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = source.load_generator(device)
    y, latents = source.labels(num).to(device), source.latents(generator, 2 * num)
    for frame in range(frames):
        z = rotate(latents[::2], latents[1::2], frame / frames, source.choice.truncation)
        yield make_grid(generate(generator, z.to(device), y, CHUNK, source.average), math.ceil(num**0.5), scale=scale)


def write_gif(pictures: Iterator[Image.Image], frames: int, fps: int, path: Path) -> None:
    """Write a GIF that loops forever. Grey pictures keep all levels; colour pictures get a palette of 256 colours each."""
    # A GIF counts in hundredths of a second; rounding the ends keeps the total duration right.
    ends = [round(100 * i / fps) for i in range(frames + 1)]
    durations = [10 * (b - a) for a, b in itertools.pairwise(ends)]
    as_palette = (p if p.mode == "L" else p.quantize(256, dither=Image.Dither.NONE) for p in pictures)
    first = next(as_palette)
    first.save(path, format="GIF", save_all=True, append_images=as_palette, duration=durations, loop=0, optimize=False)


def write_mp4(av: Any, pictures: Iterator[Image.Image], fps: int, path: Path) -> None:
    """Write an MP4, H.264 in 4:2:0, which every player supports. That needs even sizes; odd ones are padded with white."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as film:
        stream = film.add_stream("libx264", rate=fps, options={"crf": "17"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            width, height = picture.size
            even = Image.new("RGB", (width + width % 2, height + height % 2), (255, 255, 255))
            even.paste(picture.convert("RGB"))
            if number == 0:
                stream.width, stream.height = even.size
            film.mux(stream.encode(av.VideoFrame.from_image(even)))
        film.mux(stream.encode(None))
