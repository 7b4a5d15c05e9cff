"""Areas of the hunt in which files of images, archives and statistics are damaged or forged."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from areas_of_texts import names_of_keys
from damages import damage, files_in, is_plain, mutate_document, odd_file
from mutations import mutate_bytes
from supervised import Case

from gantrain.cache import HEAD, head_of


def images(dice: random.Random, world: Path, folder: Path) -> Case:
    """Every format that Pillow writes, damaged; alone, or in a data set."""
    files = files_in(world / "images")
    source = dice.choice(files)
    data = source.read_bytes()
    if dice.random() < 0.1:
        other = dice.choice(files).read_bytes()
        cut = dice.randrange(1, 200)
        data = other[:cut] + data[cut:]
    data = mutate_bytes(dice, data)
    if dice.random() < 0.9:
        name = f"hunt{source.suffix}"
        (folder / name).write_bytes(data)
        return Case("decode_image", {"path": name}, [name])
    for one in ("a", "b"):
        (folder / "set" / one).mkdir(parents=True)
        for i in range(5):
            shutil.copy(world / "sets" / "classes" / "ants" / f"{i}.png", folder / "set" / one / f"{i}.png")
    name = f"x{source.suffix if source.suffix in ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tiff', '.gif') else '.png'}"
    (folder / "set" / "a" / name).write_bytes(data)
    if dice.random() < 0.1:
        odd_file(dice, folder / "set" / "a" / name)
    if dice.random() < 0.3:
        return Case("read_reference", {"path": "set"}, ["set"])
    settings = {"on_error": dice.choice(["stop", "skip"]), "keep_in": dice.choice(["host", "disk"]), "workers": 0}
    return Case("read_set", {"kind": "folder", "root": "set", **settings}, ["set", "data"])


def damage_zip(dice: random.Random, path: Path) -> None:
    """Bytes of a zip, its index, or a whole new one with odd members."""
    if dice.random() < 0.6:
        damage(dice, path)
        return
    if dice.random() < 0.5:  # the index stands at the end
        data = bytearray(path.read_bytes())
        for _ in range(dice.choice([1, 2, 4])):
            data[-dice.randrange(1, min(len(data), 1200))] = dice.choice([0, 1, 0x7F, 0xFF, dice.randrange(256)])
        path.write_bytes(bytes(data))
        return
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist() if not info.is_dir()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in members:
            if dice.random() < 0.1:
                info.filename = dice.choice(
                    [
                        "../x.png",
                        "/x.png",
                        "a\\b.png",
                        "\u00e9/\u4e2d.png",
                        "x" * 300 + ".png",
                        "a//b.png",
                        "./a/0.png",
                        info.filename + "/",
                        "x.PNG",
                    ]
                )
            if dice.random() < 0.1:
                data = dice.choice([b"", mutate_bytes(dice, data), b"\0" * (300 << 20) if dice.random() < 0.05 else b"\0" * 1000])
            if info.filename.endswith("dataset.json"):
                data = mutate_document(dice, data)
            info.compress_type = dice.choice(
                [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
            )
            archive.writestr(info, data)


def archives(dice: random.Random, world: Path, folder: Path) -> Case:
    """Zips, tars, prepared data sets, folders with a dataset.json."""
    kind = dice.choice(["zip", "zip", "packed", "packed", "listed", "tar", "weights", "features", "looks", "cifar"])
    if kind == "zip":
        shutil.copy(dice.choice(sorted((world / "sets").glob("*.zip"))), folder / "hunt.zip")
        damage_zip(dice, folder / "hunt.zip")
        if dice.random() < 0.3:
            return Case("read_reference", {"path": "hunt.zip"}, ["hunt.zip"])
        if dice.random() < 0.05:
            return Case(
                "command",
                {"argv": ["prepare", "hunt.zip", "--out", "new", "--resolution", "8", "--on-error", dice.choice(["stop", "skip"])]},
                ["hunt.zip"],
                ["new"],
            )
        return Case("read_set", {"kind": "archive", "root": "hunt.zip", **settings_of_set(dice)}, ["hunt.zip", "data"])
    if kind == "packed":
        shutil.copytree(world / "sets" / "packed", folder / "packed")
        file = dice.choice(files_in(folder / "packed"))
        damage(dice, file, mutate_document if file.suffix == ".json" else mutate_npy)
        if file.suffix == ".json" and file.is_file() and file.stat().st_size < 1 << 20 and dice.random() < 0.5:
            fit_head(file)
        if dice.random() < 0.2:
            return Case("read_reference", {"path": "packed"}, ["packed"])
        if dice.random() < 0.05:
            return Case("command", {"argv": ["prepare", "--verify", "packed"]}, ["packed"], ["stdout"])
        return Case("read_set", {"kind": "packed", "root": "packed"}, ["packed", "data"])
    if kind == "listed":
        shutil.copytree(world / "sets" / "listed", folder / "set")
        damage(dice, folder / "set" / "dataset.json", mutate_document)
        if dice.random() < 0.2:
            return Case("read_reference", {"path": "set"}, ["set"])
        return Case("read_set", {"kind": "folder", "root": "set", **settings_of_set(dice)}, ["set", "data"])
    if kind == "tar":
        source = dice.choice(["classes.tar", "classes.tar.gz", "deflated-listed.zip"])
        shutil.copy(world / "sets" / source, folder / source)
        damage(dice, folder / source)
        return Case("unpack_archive", {"path": source}, [source, "into"])
    if kind == "weights":
        source = dice.choice(files_in(world / "weights"))
        shutil.copy(source, folder / source.name)
        damage(dice, folder / source.name)
        return Case("read_weights", {"path": source.name}, [source.name])
    return cached_or_published(dice, kind, world, folder)


def cached_or_published(dice: random.Random, kind: str, world: Path, folder: Path) -> Case:
    """Files of the cache, and a data set as it is published."""
    if kind == "features":
        (folder / "cache").mkdir()
        file = shutil.copy(dice.choice(sorted((world / "cache").glob("reference-*"))), folder / "cache")
        damage(dice, Path(file))
        fit_first_line(dice, Path(file))
        return Case("read_features", {"print_": Path(file).name.split("-")[1], "cache": "cache"})
    if kind == "looks":
        shutil.copytree(world / "sets" / "classes", folder / "set")
        shutil.copytree(world / "looks", folder / "cache")
        looked = folder / "cache" / "looked.json"
        data = mutate_document(dice, looked.read_bytes()[HEAD:])
        looked.write_bytes(head_of(data) + data)
        if dice.random() < 0.3:
            damage(dice, looked)
        return Case("read_set_again", {"root": "set", "cache": "cache"}, ["set"])
    shutil.copytree(world / "cifar", folder / "cifar")
    damage(dice, dice.choice(files_in(folder / "cifar")))
    return Case("read_cifar", {"root": "cifar"}, ["cifar"])


def fit_first_line(dice: random.Random, path: Path) -> None:
    """Give a file of the cache the checksum that fits, whatever it contains; not always."""
    if is_plain(path) and dice.random() < 0.7:
        data = path.read_bytes()[HEAD:]
        path.write_bytes(head_of(data) + data)


def settings_of_set(dice: random.Random) -> dict[str, Any]:
    return {
        "on_error": dice.choice(["stop", "skip"]),
        "keep_in": dice.choice(["host", "disk"]),
        "labels": dice.random() < 0.7,
        "workers": 0,
    }


def mutate_npy(dice: random.Random, data: bytes) -> bytes:
    """Bytes of a .npy file, or another shape or type in its head."""
    if dice.random() < 0.5:
        return mutate_bytes(dice, data)
    return odd_npy(dice, np.load(io.BytesIO(data)), data)


def odd_npy(dice: random.Random, array: np.ndarray, data: bytes = b"") -> bytes:
    """A .npy file whose head tells of another shape or type than its numbers have."""
    shape = dice.choice(
        [(2**40,), (2**31, 2**31), (-1,), (), (0,), array.shape[::-1], (*array.shape, 2**30), (*array.shape, 1), ("x",), array.shape[:1]]
    )
    descr = dice.choice(["|u1", "<f8", "<f4", "<i8", ">f8", "|O", "<U9", "<c16", "<M8[s]", "|b1", "<f2", "|V99999999", [("a", "<f8")], "x"])
    held = io.BytesIO()
    head = {
        "descr": descr if dice.random() < 0.6 else np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": dice.random() < 0.3,
        "shape": shape,
    }
    text = repr(head).encode() + b"\n"
    held.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + (data[128:] or array.tobytes()))
    return held.getvalue()


def fit_head(path: Path) -> None:
    """Give the head of a prepared data set the checksum that fits, whatever it says."""
    from gantrain.data.packed import sum_of_head

    try:
        head = json.loads(path.read_bytes())
        path.write_text(json.dumps({**head, "head_sha256": sum_of_head(head)}))
    except (ValueError, TypeError, OSError):  # it has been damaged before
        return


ODD_ARRAYS: list[Callable[[random.Random, np.ndarray], np.ndarray]] = [
    lambda dice, a: a.astype(dice.choice([np.float16, np.float32, np.float64, np.int8, np.int64, np.uint64, np.complex128, np.bool_,
    "U9", "S3"])),
    lambda dice, a: a * dice.choice([0, -1, 1e30, 1e300, 1e-320, np.nan, np.inf]), lambda dice, a: a[..., None],
    lambda dice, a: a.reshape(-1),
    lambda dice, a: a[:0], lambda dice, a: a[:1], lambda dice, a: np.concatenate([a, a], -1) if a.ndim else a, lambda dice, a: a.T,
    lambda dice, a: a.sum(),
    lambda dice, a: np.array(["x", "2", "", "1e999"][dice.randrange(4)]),
    lambda dice, a: np.array(dice.choice([np.nan, np.inf, -1, 0, 2.5, 1e30, 2**63 - 1, 2**64 - 1])),
    lambda dice, a: np.array([1, 2, 3]),
    lambda dice, a: np.where(np.arange(a.size).reshape(a.shape) == 0, dice.choice([np.nan, np.inf, 1e300, -1e300, 5e38]), a),
    lambda dice, a: np.zeros((1 << 20, 8)), lambda dice, a: np.zeros((2, 2), "datetime64[s]"),
]  # fmt: skip


def statistics(dice: random.Random, world: Path, folder: Path) -> Case:
    """Files of statistics, features and images with other bytes, arrays, shapes and types."""
    source = dice.choice(files_in(world / "statistics"))
    path = folder / "hunt.npz"
    shutil.copy(source, path)
    how = dice.random()
    if how < 0.35:
        damage(dice, path)
    elif how < 0.45:
        damage_zip(dice, path)
    else:
        with np.load(source) as file:
            arrays = {key: file[key] for key in file.files}
        with zipfile.ZipFile(path, "w", dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            changed = set(dice.sample(sorted(arrays), dice.choice([1, 1, 2]) if len(arrays) > 1 else 1))
            for key, array in arrays.items():
                write_array(dice, archive, key, array, key in changed)
    if dice.random() < 0.03:
        return Case(
            "command", {"argv": ["reference", "digits", "--out", "x.npz", "eval.reference=hunt.npz"]}, ["hunt.npz", *names_of_keys()]
        )
    return Case("read_reference", {"path": "hunt.npz"}, ["hunt.npz"])


def write_array(dice: random.Random, archive: zipfile.ZipFile, key: str, array: np.ndarray, changed: bool) -> None:
    """One array of an .npz, with or without a fault."""
    held = io.BytesIO()
    if changed and dice.random() < 0.15:
        return
    with np.errstate(all="ignore"):
        try:
            np.save(held, dice.choice(ODD_ARRAYS)(dice, array) if changed else array, allow_pickle=False)
        except (TypeError, ValueError, IndexError, OverflowError):
            np.save(held, array)
    data = held.getvalue()
    if changed and dice.random() < 0.3:
        data = odd_npy(dice, array)
    name = dice.choice([key, key.upper(), f"{key}/x", "features", "mu", "arr_0"]) if changed and dice.random() < 0.1 else key
    archive.writestr(f"{name}.npy", data)
