"""Images as they are: a folder, a zip, an array or a tensor, neither cropped nor resized nor shuffled. To be scored, or scored against."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gantrain.cache import cache_folder, keep_file
from gantrain.data.archive import ZipDecoder, read_zip
from gantrain.data.folder import EXTENSIONS, MOST_PIXELS, images_under, reason, upright
from gantrain.errors import UserError, one_line
from gantrain.run_folder.layout import CONFIG_FILE

THREADS = 8  # Pillow decodes without the interpreter's lock


@dataclass(frozen=True)
class Pictures:
    """Images of one size in an order of their own.

    Attributes:
        name: for messages and records.
        count: how many.
        shape: (C, H, W) of each.
        content: SHA-256 of all of them, computed when it is asked for.
        take: numbers to uint8 `[n, C, H, W]` on the CPU; raises UserError naming an image that cannot be had.
    """

    name: str
    count: int
    shape: tuple[int, int, int]
    content: Callable[[], str]
    take: Callable[[Sequence[int]], Tensor]

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        return self.content()


def of_array(name: str, images: np.ndarray, content: str = "") -> Pictures:
    """Of uint8 `[N, H, W, C]`."""
    return of_tensor(name, torch.from_numpy(images).permute(0, 3, 1, 2), content)


def of_tensor(name: str, images: Tensor, content: str = "") -> Pictures:
    """Of uint8 `[N, C, H, W]`.

    Raises:
        UserError: it is something else.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise UserError(
            f"{name}: images as a tensor must be uint8 [N, C, H, W] with C of 1 or 3, got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )

    def digest() -> str:
        found = hashlib.sha256(f"{tuple(images.shape)}".encode())
        for chunk in images.split(4096):
            found.update(chunk.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    return Pictures(
        name, len(images), tuple(images.shape[1:]), lambda: content or digest(), lambda numbers: images[list(numbers)].cpu().contiguous()
    )


def of_folder(folder: Path) -> Pictures:
    """Of all image files below a folder in the order of their paths, as RGB.

    Raises:
        UserError: there is none, or the first does not decode.
    """
    run = next(folder.glob(f"*/{CONFIG_FILE}"), None)
    if run is not None:
        raise UserError(f"{folder}: holds run folders, and their pictures are no images to score; name one of them, such as {run.parent}")
    files = [str(path) for path in images_under(folder)]
    files.sort()  # as text and not part by part, which is torch-fidelity's order: KID and IS draw by number
    if not files:
        raise UserError(f"{folder}: has no image in it ({', '.join(sorted(EXTENSIONS))})")

    def state(file: str) -> str:
        status = Path(file).stat()
        return f"{Path(file).relative_to(folder)} {status.st_size} {status.st_mtime_ns}"

    return of_files(folder.name or str(folder), files, lambda file: Path(file).read_bytes(), state)


def of_zip(path: Path) -> Pictures:
    """Of all image files in a zip in the order of their names, as RGB; nothing is unpacked."""
    members, _ = read_zip(path)
    if not members:
        raise UserError(f"{path}: has no image in it ({', '.join(sorted(EXTENSIONS))})")
    decoder = ZipDecoder(path, members, 1, 3, "box")
    numbers = {f"{path}: {member.filename}": i for i, member in enumerate(members)}
    return of_files(
        path.name,
        list(numbers),
        lambda name: decoder.unpacked(*decoder.index[numbers[name]].tolist()),
        lambda name: f"{name} {decoder.state(numbers[name])}",
    )


def of_files(name: str, files: list[str], read: Callable[[str], bytes], state: Callable[[str], str]) -> Pictures:
    """Of files by their names.

    Args:
        read: a file's bytes.
        state: what changes when a file does: the digest of all is kept under it, so that they are read once for that.
    """

    def data_of(file: str) -> bytes:
        try:
            return read(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({one_line(error)}); put it right, or take it out of {name}") from None

    first = decoded(data_of(files[0]), files[0])

    def one(number: int) -> Tensor:
        image = decoded(data_of(files[number]), files[number])
        if image.shape != first.shape:
            sizes = " and ".join(f"{x.shape[2]}x{x.shape[1]}" for x in (image, first))
            raise UserError(
                f"{files[number]}: and {files[0]} are of different sizes, {sizes}; images are taken as they are: make them of one size"
            )
        return image

    def take(numbers: Sequence[int]) -> Tensor:
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(one, numbers)))

    def content() -> str:
        seen = hashlib.sha256("\n".join([name, *map(state, files)]).encode()).hexdigest()[:32]
        try:
            return json.loads((cache_folder() / f"pictures-{seen}.json").read_text())
        except (OSError, ValueError):
            pass
        digest = hashlib.sha256()
        for file in files:
            digest.update(hashlib.sha256(data_of(file)).digest())
        keep_file(f"pictures-{seen}.json", json.dumps(digest.hexdigest()).encode())
        return digest.hexdigest()

    return Pictures(name, len(files), tuple(first.shape), content, take)


def decoded(data: bytes, name: str) -> Tensor:
    """A file's bytes as uint8 `[3, H, W]`.

    Raises:
        UserError: they do not decode; `name` is in its words.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MOST_PIXELS:,}")
            return torch.from_numpy(np.array(upright(opened).convert("RGB"))).permute(2, 0, 1).contiguous()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: does not decode as an image ({reason(error)}); put it right, or take it out") from None
