"""Files from anywhere: folders that may not be listed, pipes and devices, sizes that no memory holds, and damage that a library reports in
its own way. Each is one line that names the file.
"""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import struct
import threading
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import every_third, slow_but
from PIL import Image
from test_data import CPU, cats_and_dogs, noise, write_cifar10, write_images, write_zip

from gantrain.cache import keep_file
from gantrain.data import Archive, Cifar10, Folder, Packed, audit, decoding, intake, listing as listings, pack, prepare, room
from gantrain.data.decoding import decoded_image, traits_of
from gantrain.data.unpacking import unpack
from gantrain.errors import UserError
from gantrain.evaluation import image_files
from gantrain.evaluation.references import open_reference
from gantrain.metrics import feature_cache, features
from gantrain.metrics.statistics import read_statistics

LABELS = {"cat": 0, "dog": 1}
LANCZOS = Image.Resampling.LANCZOS
OF_LISTING = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG]


def error_of(number: int, path: object = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def free(monkeypatch, size: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size))


# ---- folders that may not be listed ----------------------------------------------------------------------------------


class Entry:
    """What `os.scandir` gives, of which the state cannot be known."""

    def __init__(self, entry: os.DirEntry, number: int):
        self.entry, self.name, self.path, self.number = entry, entry.name, entry.path, number

    def fail(self, *words, **more):
        raise error_of(self.number, self.path)

    is_dir = is_file = stat = fail

    def is_symlink(self):
        return True

    def inode(self):
        return self.entry.inode()


def unknown_state(monkeypatch, name: str, number: int) -> None:
    """Let a folder's entry be one of which the state cannot be known: a link into a folder that may not be entered."""
    whole = os.scandir

    class Opened(list):
        def __enter__(self):
            return self

        def __exit__(self, *words):
            return None

    def scandir(path):
        with whole(path) as opened:
            return Opened(Entry(one, number) if one.name == name else one for one in opened)

    monkeypatch.setattr(listings.os, "scandir", scandir)


@pytest.mark.parametrize("number", OF_LISTING)
@pytest.mark.parametrize("name", ["dog", "deep"])
def test_an_entry_whose_state_is_unknown_may_be_a_folder_of_images(tmp_path, monkeypatch, number, name):
    """As a class folder, and inside a class, which would otherwise be called empty."""
    root = cats_and_dogs(tmp_path)
    (root / "cat" / "deep").mkdir()
    unknown_state(monkeypatch, name, number)
    words = (
        rf"{name}: cannot be looked at \({os.strerror(number)}\), and may be a folder of images; make it and the folder that it leads to"
    )
    for use in (Folder(root=str(root)).build, lambda: image_files.open_folder(root), lambda: open_reference(root, None, CPU)):
        with pytest.raises(UserError, match=words):
            use()


@pytest.mark.parametrize("number", [*OF_LISTING, errno.ELOOP])
def test_a_root_that_cannot_be_looked_at_is_not_called_missing(tmp_path, monkeypatch, number):
    whole = os.stat

    def stat(path, *words, **more):
        if str(path).endswith("pets"):
            raise error_of(number, str(path))
        return whole(path, *words, **more)

    root = cats_and_dogs(tmp_path)
    monkeypatch.setattr(os, "stat", stat)
    words = "is not a folder" if number == errno.ELOOP else rf"data.root: .*pets: cannot be looked at \({os.strerror(number)}\)"
    with pytest.raises(UserError, match=words):
        Folder(root=str(root)).build()
    with pytest.raises(UserError, match="cannot be looked at" if number != errno.ELOOP else "pets"):
        Packed(root=str(root)).build()


def test_an_image_that_cannot_be_looked_at_is_one_that_cannot_be_read(tmp_path, monkeypatch):
    root = cats_and_dogs(tmp_path)
    unknown_state(monkeypatch, "1.png", errno.EACCES)
    monkeypatch.setattr(decoding, "open_regular", refuse_names(decoding.open_regular, "1.png"))
    with pytest.raises(UserError, match=r"cat/1.png: does not decode as an image \(Permission denied\)"):
        prepare(Folder(root=str(root), resolution=8), CPU)
    images = prepare(Folder(root=str(root), resolution=8, on_error="skip"), CPU)
    assert len(images) == 5 and "left out: 2 images that cannot be read" in audit(images)


def refuse_names(whole, name):
    def closed(path, *words, **more):
        if str(path).endswith(name):
            raise error_of(errno.EACCES, str(path))
        return whole(path, *words, **more)

    return closed


def test_a_hidden_folder_that_cannot_be_listed_counts_as_one(tmp_path, monkeypatch):
    root = cats_and_dogs(tmp_path)
    (root / ".git").mkdir()
    monkeypatch.setattr(listings.os, "walk", lambda path, onerror: onerror(error_of(errno.EACCES, path)) or [])
    assert "1 in folders of other programs (.git)" in "\n".join(Folder(root=str(root)).build().notes)


# ---- only regular files ----------------------------------------------------------------------------------------------


def make_special(path: Path, kind: str) -> Path:
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(here)
    return path


SPECIAL = ["a named pipe", "a device", "a socket"]


@pytest.mark.parametrize("kind", SPECIAL)
def test_nothing_but_a_regular_file_is_opened(tmp_path, monkeypatch, kind):
    """None of these waits, or reads for ever."""
    words = f"it is {kind}, not a file"
    for name in ("a.npz", "a.zip"):
        path = make_special(tmp_path / name, kind)
        for use in (lambda path=path: open_reference(path, None, CPU), lambda path=path: image_files_of(path)):
            with pytest.raises(UserError, match=words):
                use()
    with pytest.raises(UserError, match=words):
        Archive(root=str(tmp_path / "a.zip")).build()
    for name in ("a.pth", "a.safetensors"):
        path = make_special(tmp_path / name, kind)
        for use in (lambda path=path: features.inception_weights_path(str(path)), lambda path=path: features.read_weights(path)):
            with pytest.raises(UserError, match=words):
                use()
    root = cats_and_dogs(tmp_path)
    make_special(root / "dataset.json", kind)
    with pytest.raises(UserError, match=rf"dataset.json: cannot be read \({words}\); replace it, delete it if the folders are the classes"):
        Folder(root=str(root)).build()
    assert len(Folder(root=str(root), labels=False).build()) == 7
    make_special(root / "cat" / "3.png", kind)
    assert "1 neither file nor folder (cat/3.png)" in "\n".join(Folder(root=str(root), labels=False).build().notes)
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path))
    make_special(tmp_path / feature_cache.file_of("0"), kind)
    assert feature_cache.cached("0") is None
    make_special(tmp_path / "looked-0.json", kind)
    assert intake.seen_before("looked-0.json", 1) is None and image_files.kept_digest("looked-0.json") is None


def test_a_kept_digest_that_is_none_is_not_believed(tmp_path, monkeypatch):
    """Whatever wrote it with a checksum that fits: half a character of text, say, which nothing can encode."""
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path))
    for text in ("\ud800" + "0" * 63, "F" * 64, "0" * 63, 7):
        keep_file("looked.json", json.dumps({"content": text, "sums": "00" * 8, "skipped": {}}).encode())
        keep_file("digest.json", json.dumps(text).encode())
        assert intake.seen_before("looked.json", 1) is None and image_files.kept_digest("digest.json") is None


def image_files_of(path: Path):
    from gantrain.evaluation.api import open_pictures

    return open_pictures(path)


@pytest.mark.parametrize(
    "kind, name", every_third([(kind, name) for name in ("head.json", "images.npy", "labels.npy") for kind in SPECIAL])
)
def test_a_prepared_set_is_of_regular_files(tmp_path, kind, name):
    folder = prepared(tmp_path)
    (folder / name).unlink()
    make_special(folder / name, kind)
    with pytest.raises(UserError, match=f"p.*{name}.*it is {kind}, not a file.*rebuild it"):
        Packed(root=str(folder), resolution=8).build()


def test_an_image_that_becomes_a_pipe_is_one_that_cannot_be_read(tmp_path):
    root = cats_and_dogs(tmp_path)
    images = Folder(root=str(root), resolution=8).build()
    (root / "cat" / "1.png").unlink()
    make_special(root / "cat" / "1.png", "a named pipe")
    with pytest.raises(UserError, match=r"cat/1.png: does not decode as an image \(it is a named pipe, not a file\)"):
        images.decode(1)
    with pytest.raises(UserError, match="is unreadable .it is a named pipe, not a file.; replace it"):
        image_files.open_files("x", [str(root / "cat" / "1.png")], decoding.file_bytes, lambda file: None)


@pytest.mark.parametrize("kind", slow_but(SPECIAL[:1], SPECIAL))
def test_a_file_of_cifar_is_a_regular_one(tmp_path, kind):
    write_cifar10(tmp_path, noise(4, 3, 32, 32), np.zeros(4, np.uint8), ["test_batch.bin"])
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.unlink()
    make_special(path, kind)
    with pytest.raises(UserError, match=f"test_batch.bin: cannot be read .it is {kind}, not a file"):
        Cifar10(root=str(tmp_path), split="test").build()


# ---- sizes are looked at before reading ------------------------------------------------------------------------------


def prepared(tmp_path: Path, resolution: int = 8) -> Path:
    pack(Folder(root=str(cats_and_dogs(tmp_path)), resolution=resolution).build(), tmp_path / "p", "pets")
    return tmp_path / "p"


def array_header(shape: tuple, descr: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def zip_of(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize(
    "name, shape, descr, words",
    [
        ("mu", (10**9,), "<f8", r"mu is float64 \[1000000000\], but has 88 bytes|mu is float64 .*, but has"),
        ("num_images", (10**9,), "<i8", "num_images is int64 .1000000000., but has"),
        ("features", (10**9, 2048), "<f4", "features is float32 .1000000000, 2048., but has"),
        ("arr_0", (2**40, 2**40, 2**40, 3), "|u1", "arr_0 is uint8 .*, but has"),
        ("identity", (), "<U1000000000", "identity"),
        ("features", (2, 3), "|O", "features: it contains pickled objects, which can run code"),
        ("features", (-1, 3), "<f4", "features: an array of shape"),
    ],
)
def test_what_a_header_claims_is_not_allocated(tmp_path, name, shape, descr, words):
    path = zip_of(tmp_path / "a.npz", **{name: array_header(shape, descr) + bytes(8)})
    with pytest.raises(UserError, match=f"^.*a.npz: cannot be read as an .npz of statistics .({words})"):
        read_statistics(path)


def test_arrays_that_the_memory_does_not_hold_are_refused_with_the_numbers(tmp_path, monkeypatch):
    from gantrain.metrics import npz

    np.savez_compressed(tmp_path / "a.npz", features=np.zeros((1000, 1000), np.float32))
    monkeypatch.setattr(npz, "SMALL", 1000)
    with pytest.raises(UserError, match="features would be unpacked from 4 KiB to 4 MiB, so it is a constant or a bomb"):
        read_statistics(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", features=np.zeros((1000, 1000), np.float32))
    free(monkeypatch, 2**20)
    with pytest.raises(UserError, match="its arrays need 4 MiB of memory, and only 1 MiB are free"):
        read_statistics(tmp_path / "b.npz")
    free(monkeypatch, 2**30)
    assert len(read_statistics(tmp_path / "b.npz").features) == 1000


def test_a_prepared_set_has_the_sizes_of_its_head(tmp_path):
    folder = prepared(tmp_path)
    whole = {name: (folder / name).read_bytes() for name in ("images.npy", "labels.npy", "head.json")}
    for name, data, words in [
        ("images.npy", array_header((10**12, 3, 8, 8), "|u1"), "does not match head.json"),
        ("labels.npy", array_header((10**12,), "<i8"), "does not match head.json"),
        ("images.npy", whole["images.npy"][:-1], "is incomplete .images.npy has .* bytes"),
        ("images.npy", array_header((7, 3, 8, 8), "|O"), "is incomplete .images.npy: it contains pickled objects"),
        ("labels.npy", b"\x93NUMPY\x09\x00", "is incomplete"),
        ("labels.npy", b"", "is incomplete"),
        ("images.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[  ", "is incomplete"),
    ]:
        (folder / name).write_bytes(data)
        with pytest.raises(UserError, match=words):
            Packed(root=str(folder), resolution=8).build()
        (folder / name).write_bytes(whole[name])
    os.truncate(folder / "head.json", 2**40)  # of a terabyte, and no block on the disk
    with pytest.raises(UserError, match=r"head.json: cannot be read \(it has 1024.0 GiB or more, and 64 MiB is the most\)"):
        Packed(root=str(folder), resolution=8).build()


def test_a_label_list_of_a_terabyte_is_refused(tmp_path):
    root = cats_and_dogs(tmp_path)
    (root / "dataset.json").write_text("{}")
    os.truncate(root / "dataset.json", 2**40)
    with pytest.raises(UserError, match=r"dataset.json: cannot be read \(it has 1024.0 GiB or more, and 64 MiB is the most\); replace it"):
        Folder(root=str(root)).build()


def test_a_label_list_in_a_zip_is_measured_before_it_is_unpacked(tmp_path, monkeypatch):
    from gantrain.data import classes

    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path), LABELS)
    monkeypatch.setattr(classes, "FEWEST_BYTES", 10)
    monkeypatch.setattr(classes, "BYTES_OF_LABEL", 1)
    with pytest.raises(UserError, match="a.zip: cannot be read as a zip of images .its dataset.json has 138 bytes, and 10 bytes is"):
        Archive(root=str(path)).build()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "image.png"])
def test_a_file_of_a_terabyte_is_not_read(tmp_path, name):
    path = tmp_path / name
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises((UserError, OSError)) as caught:
        features.read_weights(path) if name[0] == "a" else decoding.file_bytes(path).__enter__()
    assert "it has 1024.0 GiB or more, and 1.0 GiB is the most" in str(caught.value)


def test_images_that_the_memory_does_not_hold_are_refused(tmp_path, monkeypatch):
    source = {"root": str(cats_and_dogs(tmp_path)), "resolution": 1000}
    free(monkeypatch, 2**23)
    with pytest.raises(
        UserError, match="data.keep_in: host needs 21 MiB of memory for folder/pets, and 8 MiB are free; set data.keep_in=d"
    ):
        prepare(Folder(**source, keep_in="host"), CPU)
    free(monkeypatch, 2**21)
    with pytest.raises(UserError, match="data.resolution: one image of 1000 x 1000 pixels takes 3 MiB, and 2 MiB of memory are free"):
        prepare(Folder(**source), CPU)


# ---- what is decoded at once -----------------------------------------------------------------------------------------


def test_large_images_are_decoded_one_at_a_time_and_small_ones_together(monkeypatch):
    space, now, most, lock = room.Room(2**24), [0], [0], threading.Lock()

    def decode(amount: int) -> None:
        with space.take(amount):
            with lock:
                now[0] += amount
                most[0] = max(most[0], now[0])
            time.sleep(0.002)
            with lock:
                now[0] -= amount

    threads = [threading.Thread(target=decode, args=(amount,)) for amount in [2**24, 2**22, 2**23 - 1, 2**22, 2**24, 2**22] * 3]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert most[0] <= 2**24 and space.used == 0
    with space.take(2**30), space.take(2**30):  # more than all of it alone, and again in the same thread
        assert space.used == 2**24


def test_what_an_image_takes_is_known_from_its_header(monkeypatch):
    image = SimpleNamespace(width=9000, height=9000, mode="RGB", format="JPEG", info={})
    assert decoding.refuse_bomb(image) == 81_000_000 * 8
    free(monkeypatch, 2**28)
    with pytest.raises(ValueError, match="9000 x 9000 pixels need 618 MiB, and only 256 MiB are free"):
        decoding.refuse_bomb(image)


def test_a_jpeg_of_a_thousand_scans_is_refused():
    image = SimpleNamespace(width=9000, height=9000, mode="RGB", format="JPEG", info={"progressive": 1})
    with pytest.raises(ValueError, match="1,000 scans of 9000 x 9000 pixels would take too long"):
        decoding.refuse_bomb(image, decoding.SCAN * 1000)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "P"])
def test_bands_give_the_same_pixels_as_the_whole(monkeypatch, mode):
    """Large images are converted in bands, which may change nothing."""
    rgba = Image.fromarray(noise(37, 23, 4))
    image = Image.fromarray(noise(37, 23).astype(np.uint16) * 257) if mode == "I;16" else rgba.convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG", **({"transparency": 7} if mode in ("P", "I;16") else {}))
    whole = [decoded_image(file.getvalue(), "x", to, 16, LANCZOS) for to in ("RGB", "L")], traits_of(file.getvalue())
    monkeypatch.setattr(decoding, "BAND", 100)
    again = [decoded_image(file.getvalue(), "x", to, 16, LANCZOS) for to in ("RGB", "L")], traits_of(file.getvalue())
    assert all(torch.equal(a, b) for a, b in zip(whole[0], again[0])) and whole[1] == again[1]


def test_a_batch_of_images_that_the_memory_does_not_hold_is_refused(tmp_path, monkeypatch):
    pictures = image_files.open_folder(write_images(tmp_path / "x", ["a.png", "b.png"]))
    monkeypatch.setattr(image_files, "LARGE_IMAGE", 10)
    free(monkeypatch, 100)
    with pytest.raises(
        UserError, match="x: 2 images of 8x8 pixels need 768 bytes at a time, and only 100 bytes are free; set a smaller eval.batch"
    ):
        pictures.take([0, 1])


# ---- whatever a decoder raises ---------------------------------------------------------------------------------------

RAISED = [
    RuntimeError("Decoding failed"), NotImplementedError("DXT9"), struct.error("unpack"), zlib.error("-3"), IndexError("7"), KeyError(9),
    OverflowError("large"), MemoryError(), AttributeError("x"), EOFError(), AssertionError(), TypeError("t"), ZeroDivisionError("z"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), SyntaxError("s"), Image.DecompressionBombError("b"), OSError(),
]  # fmt: skip


@pytest.mark.parametrize("error, where", every_third([(error, where) for where in ("open", "load") for error in RAISED]))
def test_any_error_of_a_decoder_is_one_line(tmp_path, monkeypatch, error, where):
    root = cats_and_dogs(tmp_path)
    data = (root / "cat" / "0.png").read_bytes()

    def fail(*words, **more):
        raise error

    if where == "open":
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for use in (lambda: decoded_image(data, "cat/0.png", "RGB", 8, LANCZOS), lambda: image_files.decode(data, "cat/0.png")):
        with pytest.raises(UserError, match="^cat/0.png: does not decode as an image ") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert traits_of(data) is None or where == "load"
    with pytest.raises(UserError, match="none of the 3 images of class 'cat' can be read"):
        prepare(Folder(root=str(root), resolution=8, on_error="skip"), CPU)


FORMATS = ["AVIF", "DDS", "WEBP", "TIFF", "JPEG2000", "GIF", "BMP", "PPM", "ICO", "PNG", "JPEG", "TGA", "SGI", "QOI"]


@pytest.mark.parametrize("name", slow_but(["AVIF", "DDS", "TIFF"], FORMATS))
def test_a_damaged_file_of_any_format_is_one_line(name):
    file = io.BytesIO()
    Image.fromarray(noise(48, 48, 3)).save(file, name)
    whole, dice = file.getvalue(), np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF data
        for _ in range(4):
            data = bytearray(whole)
            for at in dice.integers(0, min(len(data), 200), 3):
                data[at] ^= 1 << dice.integers(8)
            for damaged in (bytes(data), bytes(data[: len(data) // 2])):
                traits_of(damaged)
                try:
                    decoded_image(damaged, "x", "RGB", 8, LANCZOS)
                    image_files.decode(damaged, "x")
                except UserError as error:
                    assert str(error).startswith("x: does not decode as an image (")


def test_a_picture_that_another_program_would_draw_is_refused():
    file = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(file, "EPS")
    with pytest.raises(UserError, match="x: does not decode as an image .the format is EPS, which is not read"):
        decoded_image(file.getvalue(), "x", "RGB", 8, LANCZOS)


def damage_zip(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    index = data.rindex(b"PK\1\2")
    at = {"method": index + 10, "flags": index + 8, "extra": index + 30, "size": index + 24, "offset": index + 42, "local": 26}.get(how, 60)
    data[at : at + 2] = b"\xff\xff" if how != "flags" else b"\x01\x00"
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["method", "flags", "extra", "size", "offset", "local", "data"])
def test_a_damaged_zip_is_one_line(tmp_path, how):
    """As data, as reference and as images to score; its label list as well as its images."""
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path), LABELS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zz/0.png", noise(999).tobytes())
    damage_zip(path, how)
    for use in (
        lambda: prepare(Archive(root=str(path), resolution=8, labels=False), CPU),
        lambda: Archive(root=str(path), resolution=8).build(),
        lambda: open_reference(path, None, CPU).take(0, 8),
        lambda: image_files.open_zip(path).take(range(8)),
    ):
        with pytest.raises(UserError, match="a.zip"):
            use()


@pytest.mark.parametrize(
    "error", [zlib.error("-3"), struct.error("unpack"), NotImplementedError("method 99"), RuntimeError("encrypted"), EOFError()]
)
def test_any_error_of_reading_a_zips_labels_is_one_line(tmp_path, monkeypatch, error):
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path), LABELS)

    def fail(*words, **more):
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "read", fail)
    with pytest.raises(UserError, match="a.zip: cannot be read as a zip of images .dataset.json: "):
        Archive(root=str(path)).build()
    monkeypatch.setattr(zipfile, "ZipFile", fail)
    with pytest.raises(UserError, match="a.zip: cannot be read as a zip of images "):
        open_reference(path, None, CPU)


# ---- statistics ------------------------------------------------------------------------------------------------------

MOMENTS = {"mu": np.zeros(4), "sigma": np.eye(4)}
FEATURES = {"features": noise(20, 4).astype(np.float32)}
TURNED = np.array([[1.0, 3, 0, 0], [3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # symmetric, and of negative eigenvalue


@pytest.mark.parametrize(
    "arrays, words",
    [
        *(
            ({**MOMENTS, "num_images": value}, "num_images must be a number of images, got")
            for value in ("many", np.inf, -5, 0, 2.5, np.nan, [1, 2], 1e300, 1j, b"5", [], True)
        ),
        *(
            ({"raw_mean": np.zeros(4), "raw_cov": np.eye(4), "num_items": v}, "num_items must be a number of images")
            for v in ("x", np.inf, -1)
        ),
        ({**FEATURES, "num_images": 3}, "has features of 20 images, but num_images or num_items is 3"),
        ({"features": np.full((20, 4), 1e300)}, r"features or logits has values up to 1e\+300, more than features can have \(1e\+12\)"),
        ({"features": np.full((20, 4), np.nan, np.float32)}, "contains nan or infinity"),
        ({**FEATURES, "logits": np.full((20, 4), np.inf)}, "contains nan or infinity"),
        *(({"features": np.zeros(s, np.float32)}, "features must be floats .N, d.") for s in ((), (20,), (20, 0), (1, 4), (0, 4))),
        *(({"features": np.zeros((20, 4)).astype(t)}, "features must be floats .N, d.") for t in (complex, str, int, bool, "M8[s]")),
        ({**MOMENTS, "mu": np.full(4, 1e300)}, r"mu or sigma has values up to 1e\+300"),
        ({**MOMENTS, "sigma": np.eye(4) * 1e300}, r"mu or sigma has values up to 1e\+300"),
        ({**MOMENTS, "sigma": TURNED}, "sigma is not a covariance .not positive semi-definite"),
        ({**MOMENTS, "sigma": -np.eye(4)}, "sigma is not a covariance"),
        ({**MOMENTS, "mu": np.zeros(4, complex)}, "mu and sigma must be numbers, got complex128"),
        ({**MOMENTS, "mu": np.array("x")}, "mu and sigma must be numbers"),
        ({**MOMENTS, "mu": np.float64(1)}, r"mu must be \[d\]"),
        ({"raw_mean": np.full(4, 10.0), "raw_cov": np.eye(4), "num_items": 1}, "raw_cov is not a covariance"),
        ({"raw_mean": np.full(4, 1e300), "raw_cov": np.eye(4), "num_items": 2}, "raw_mean or raw_cov"),
        ({"identity": np.array("x" * 2**21), **MOMENTS}, "identity is <U2097152 .*, and 4 MiB is the most"),
    ],
)
def test_strange_statistics_are_refused(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no overflow on the way
        with pytest.raises(UserError, match=f"a.npz: {words}" if words[0] != "c" else words) as caught:
            read_statistics(tmp_path / "a.npz")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_singular_and_rounded_covariances_are_good(tmp_path):
    few = np.cov(noise(3, 50).astype(np.float32), rowvar=False).astype(np.float32)
    for sigma in (few, np.zeros((50, 50)), few.astype(">f8"), np.asfortranarray(few), few.astype(np.float16)):
        np.savez(tmp_path / "a.npz", mu=np.zeros(50, np.float16), sigma=sigma, num_images=np.array([3.0]))
        assert read_statistics(tmp_path / "a.npz").count == 3


@pytest.mark.parametrize("more", [np.zeros((2, 10), np.float32), np.array(["cat", "a long name"]), np.zeros((2, 64)), np.zeros(10**4)])
def test_images_beside_something_that_is_not_their_labels_are_read(tmp_path, more):
    np.savez(tmp_path / "a.npz", np.zeros((2, 8, 8, 3), np.uint8), more)
    read = read_statistics(tmp_path / "a.npz")
    assert read.count == 2 and read.class_counts == ()
    np.savez(tmp_path / "a.npz", np.zeros((2, 8, 8, 3), np.uint8), np.array([1, 1]))
    assert read_statistics(tmp_path / "a.npz").class_counts == (0, 2)


def test_every_format_of_npy_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name, array in {"mu": np.zeros(4), "sigma": np.eye(4)}.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, version=(3, 0))
    assert read_statistics(tmp_path / "a.npz").width == 4


@pytest.mark.parametrize("name", ["features", "looked", "pictures"])
def test_a_damaged_cache_is_no_cache(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path))
    for data in (
        b"",
        b"[",
        b"7",
        b"[]",
        b"null",
        b'{"content": 1, "sums": "00", "skipped": {}}',
        b"[" * 10**5,
        b"\xff\xfe",
        b"\x08" + bytes(20),
    ):
        (tmp_path / feature_cache.file_of("0")).write_bytes(data)
        assert feature_cache.cached("0") is None and intake.seen_before(feature_cache.file_of("0"), 1) is None
        assert image_files.kept_digest(feature_cache.file_of("0")) is None


def test_damaged_weights_and_archives_are_one_line(tmp_path):
    good = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    torch.save(good, tmp_path / "new.pth")
    torch.save(good, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole, dice = {name: (tmp_path / name).read_bytes() for name in ("new.pth", "old.pth")}, np.random.default_rng(0)
    assert all(features.read_weights(tmp_path / name)[0].keys() == good.keys() for name in whole)
    for name, data in whole.items():
        for _ in range(10):
            damaged = bytearray(data)
            for at in dice.integers(0, len(data), 4):
                damaged[at] ^= 1 << dice.integers(8)
            (tmp_path / name).write_bytes(damaged[: dice.integers(1, len(data))] if dice.random() < 0.5 else damaged)
            try:
                features.read_weights(tmp_path / name)
            except UserError as error:
                assert str(tmp_path / name) in str(error)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.txt", b"text" * 1000)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="a.zip: cannot be read as an archive .*; delete it and download it again"):
        unpack(tmp_path / "a.zip", tmp_path / "into")


def test_weights_that_unpack_to_gigabytes_are_refused(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    monkeypatch.setattr(features, "MOST_WEIGHTS", 4000)
    monkeypatch.setattr(features, "read_regular", lambda path, at_most: path.read_bytes())
    with pytest.raises(UserError, match="a.pth: would be unpacked to 5 KiB, and 4 KiB is the most"):
        features.read_weights(tmp_path / "a.pth")


def test_labels_that_are_no_classes_are_shown_in_short(tmp_path):
    root = cats_and_dogs(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"labels": [[f"{c}/{i}.png", "x" * 10**5] for c in ("cat", "dog") for i in range(4)]}))
    with pytest.raises(UserError, match="a label in dataset.json is 'xxx") as caught:
        Folder(root=str(root)).build()
    assert len(str(caught.value)) < 400


def test_a_zip_entry_without_a_name_is_passed_over(tmp_path):
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path))
    data = path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        at = opened.start_dir
    name = struct.unpack("<H", data[at + 28 : at + 30])[0]  # shortened to nothing; its bytes become a comment
    path.write_bytes(data[: at + 28] + bytes(2) + data[at + 30 : at + 32] + struct.pack("<H", name) + data[at + 34 :])
    listing = listings.list_members(zipfile.ZipFile(path).infolist())
    assert len(listing.files) == 6 and "no extension" in listing.passed_in_words()
