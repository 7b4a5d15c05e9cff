"""Areas of the hunt in which a file is damaged, forged or exchanged: records, checkpoints, images, archives, statistics, JSON files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from areas_of_texts import CONFIGS, copy_run, names_of_keys
from material import LONG_ORBIT, ROOT, RUN
from mutations import as_text, like, mutate_bytes, mutate_json, mutate_lines, some_value
from PIL import Image, PngImagePlugin
from supervised import Case

from gantrain.run_folder import checkpoint
from gantrain.sampling.sheets import TEXT_KEY

OF_RUN = ["run/", "run:", "'run'"]
DIGITS = str(ROOT / "configs" / "digits.yaml")
HEAVY, LIGHT = 0.03, 0.1  # shares of the cases that are commands of a second or more, and of less


def odd_file(dice: random.Random, path: Path) -> None:
    """Put something that is not a regular file, or is far too large, where a file was."""
    path.unlink(missing_ok=True)
    how = dice.randrange(8)
    if how == 0:
        path.mkdir()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.symlink_to("/dev/zero")
    elif how == 3:
        path.symlink_to(path.name)
    elif how == 4:
        path.symlink_to("/proc/self/mem")
    elif how == 5:
        path.touch()
    elif how == 6:
        with open(path, "wb") as file:
            file.truncate(5 << 30)  # holes, which take no space
    # else it is missing


def damage(dice: random.Random, path: Path, mutate: Callable[[random.Random, bytes], bytes] = mutate_bytes) -> None:
    """Change a file, or put something odd in its place."""
    if dice.random() < 0.05:
        odd_file(dice, path)
    else:
        path.write_bytes(mutate(dice, path.read_bytes()))


def mutate_document(dice: random.Random, data: bytes) -> bytes:
    """A JSON file with other values, or other bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # it has been damaged before
        value = None
    if value is None or dice.random() < 0.25:
        return mutate_bytes(dice, data)
    return as_text(mutate_json(dice, value, dice.choice([1, 1, 2, 4])))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# ---- records ---------------------------------------------------------------------------------------------------------


def records(dice: random.Random, world: Path, folder: Path) -> Case:
    """metrics.jsonl damaged in bytes, lines and values, and read by everything that reads it."""
    kind = dice.random()
    verb = dice.choice(["report", "train"]) if kind < HEAVY else dice.choice(["runs", "watch"]) if kind < HEAVY + LIGHT else ""
    skip = () if verb in ("train", "report") else ("checkpoints", "averages", "best", "samples")
    shutil.copytree(world / "run", folder / "run", ignore=shutil.ignore_patterns(*skip))
    damage(dice, folder / "run" / "metrics.jsonl", mutate_lines)
    if dice.random() < 0.1:
        damage(dice, folder / "run" / "config.yaml")
    if not verb:
        return Case("read_record", {"run": "run", "whole": dice.random() < LIGHT}, OF_RUN)
    argv = {"runs": ["runs", ".", *dice.choice([[], ["--json"], ["--sort", "score"], ["--by", "digits_is"]])], "watch": ["watch", "run"],
            "report": ["report", "run"], "train": resumed("run", RUN, dice)}[verb]  # fmt: skip
    return Case("command", {"argv": argv}, [*OF_RUN, ".: ", *names_of_keys()], {"report": ["run/report.html"]}.get(verb, ["stdout"]))


def resumed(run: str, settings: list[str], dice: random.Random) -> list[str]:
    """The command that trained it, which resumes it; sometimes for another update or two."""
    longer = [f"total_kimg={dice.choice(['0.352', '0.4'])}"] if run == "run" and dice.random() < 0.5 else []
    return ["train", DIGITS, f"run_dir={run}", *settings, *longer]


def orbits(dice: random.Random, world: Path, folder: Path) -> Case:
    """orbit/record.jsonl damaged in bytes, lines and values."""
    kind = dice.random()
    train = kind < HEAVY / 2
    skip = () if train else ("checkpoints", "averages", "best", "samples")
    shutil.copytree(world / "orbit", folder / "run", ignore=shutil.ignore_patterns(*skip))
    damage(dice, folder / "run" / "orbit" / "record.jsonl", mutate_lines)
    if dice.random() < 0.1:
        damage(dice, folder / "run" / "metrics.jsonl", mutate_lines)
    if train:
        return Case(
            "command", {"argv": ["train", DIGITS, "run_dir=run", *LONG_ORBIT, "total_kimg=0.832"]}, [*OF_RUN, *names_of_keys()], ["stdout"]
        )
    if kind < HEAVY:
        return Case("command", {"argv": ["orbit", "run"]}, OF_RUN, ["stdout"])
    return Case("read_orbit", {"run": "run"}, OF_RUN)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoints(dice: random.Random, world: Path, folder: Path) -> Case:
    """Files flipped, cut, extended, exchanged, renamed and removed; manifests and states forged, with seals that fit."""
    heavy = dice.random() < HEAVY
    copy_run(world, folder)
    shutil.copy(world / "truth.json", folder)
    store = folder / "run" / "checkpoints"
    forged = False
    for _ in range(dice.choice([1, 1, 2, 3])):
        paths = sorted(path for path in store.iterdir() if path.is_dir() and path.name.isdigit() and (path / "manifest.json").is_file())
        if not paths:
            break
        chosen = paths[-1] if dice.random() < 0.7 else dice.choice(paths)
        forged |= dice.choice(
            [flip, flip, odd, remove, exchange_files, exchange_folders, rename, forge, forge, forge_state, forge_header, leftovers]
        )(dice, chosen, paths)
    if not heavy:
        return Case("read_checkpoints", {"folder": "run/checkpoints", "forged": forged}, OF_RUN)
    verb, wants = dice.choice([
        (["sample", "run", "--num", "2", "--out", "x.png"], ["x.png"]), (["sample", "run", "--kimg", "0.24", "--num", "1", "--out",
        "x.png"], ["x.png"]),
        (["evaluate", "run", "--num", "32", "eval.metrics=[fid]"], ["stdout"]), (["evaluate", "run", "--kimg", "0.24", "--num", "32"],
        ["stdout"]),
        (["average", "run", "--sigma-rel", "0.1", "--name", "mine"], ["stdout"]), (["fork", "run", "--out", "new"], ["new"]),
        (["fork", "run", "--out", "new", "optim.lr_g=0.1"], ["new"]), (resumed("run", RUN, dice), ["stdout"]),
        (["walk", "run", "--num", "1", "--frames", "2", "--out", "x.gif"], ["x.gif"]), (["report", "run"], ["run/report.html"]),
        (["noise-scale", "run", "--updates", "2"], ["stdout"]),
    ])  # fmt: skip
    return Case("command", {"argv": verb}, [*OF_RUN, "new", *names_of_keys()], wants)


def flip(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Bits, bytes, a shorter or longer file."""
    damage(dice, dice.choice(files_in(path)))
    return False


def odd(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """A pipe, a device, a folder, an endless file in the place of one."""
    odd_file(dice, dice.choice(files_in(path)))
    return False


def remove(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """A file, or all of them."""
    if dice.random() < 0.7:
        dice.choice(files_in(path)).unlink()
    else:
        shutil.rmtree(path)
        if dice.random() < 0.5:
            dice.choice([path.mkdir, path.touch, lambda: path.symlink_to("nowhere"), lambda: path.symlink_to(path.name)])()
    return False


def exchange_files(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """A file of the same name from another moment, or two files within one."""
    one = dice.choice(files_in(path))
    other = dice.choice([*(file for file in files_in(path) if file != one), *(there / one.name for there in paths if there != path)])
    if other.is_file():
        held = one.read_bytes()
        one.write_bytes(other.read_bytes())
        if dice.random() < 0.5:
            other.write_bytes(held)
    return False


def exchange_folders(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Two whole checkpoints in each other's place, or one copied over another's name."""
    other = dice.choice(paths)
    if other == path:
        return False
    aside = path.with_name("aside")
    path.rename(aside)
    if dice.random() < 0.6:
        other.rename(path)
        aside.rename(other)
    else:
        shutil.copytree(other, path)
        shutil.rmtree(aside)
    return False


def rename(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """A checkpoint under another moment, or under a name that is none."""
    name = dice.choice(
        [
            "000000000400",
            "000000000001",
            "999999999999",
            "400",
            "0" * 40,
            "x",
            "-1",
            "\u0661\u0662",
            "000000000320.old",
            ".writing-000000000400",
        ]
    )
    if not (path.parent / name).exists():
        path.rename(path.parent / name)
    return False


def leftovers(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """What a kill may leave, and what does not belong there."""
    name = dice.choice([f".writing-{path.name}", f".old-{path.name}", f"{path.name}.old", "000000000640", ".writing-mine", "notes.txt"])
    there = path.parent / name
    if not there.exists():
        dice.choice([there.mkdir, there.touch, lambda: shutil.copytree(path, there)])()
    return False


def seal(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a seal that fits."""
    (path / "manifest.json").write_bytes(checkpoint.seal({key: value for key, value in manifest.items() if key != "seal"}))


def forge(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Another format, moment, size or list of files, sealed as it should be."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    how = dice.randrange(4)
    if how == 0:
        manifest["format"] = dice.choice([5, 3, 99, 0, "4", 4.0, None, [4]])
    elif how == 1:
        manifest["nimg"] = like(dice, manifest["nimg"])
    else:
        manifest = mutate_json(dice, manifest, dice.choice([1, 2]))
    try:
        if not isinstance(manifest, dict):
            raise TypeError
        seal(path, manifest)
    except (TypeError, ValueError):
        (path / "manifest.json").write_bytes(as_text(manifest))
    return True


def refit(path: Path, name: str, data: bytes) -> None:
    """Replace a file, and let the manifest say so."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(path, manifest)


def forge_state(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Other values in state.json, with a seal that fits."""
    refit(path, "state.json", mutate_document(dice, (path / "state.json").read_bytes()))
    return True


def forge_header(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Another head of a file of tensors, with a seal that fits."""
    file = dice.choice([one for one in files_in(path) if one.suffix == ".safetensors"])
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    how = dice.randrange(4)
    if how == 0:
        refit(path, file.name, struct.pack("<Q", dice.choice([0, 1, size + 1, 2**40, 2**63, 2**64 - 1])) + data[8:])
    elif how == 1:
        refit(path, file.name, mutate_bytes(dice, data))
    else:
        head = as_text(mutate_json(dice, json.loads(data[8 : 8 + size]), dice.choice([1, 2])))
        refit(path, file.name, struct.pack("<Q", len(head)) + head + data[8 + size :])
    return True


# ---- images, archives, statistics ------------------------------------------------------------------------------------


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
    kind = dice.choice(["zip", "zip", "packed", "packed", "listed", "tar", "weights"])
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
    source = dice.choice(files_in(world / "weights"))
    shutil.copy(source, folder / source.name)
    damage(dice, folder / source.name)
    return Case("read_weights", {"path": source.name}, [source.name])


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
    except (ValueError, TypeError):
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
        except (TypeError, ValueError, IndexError):
            np.save(held, array)
    data = held.getvalue()
    if changed and dice.random() < 0.3:
        data = odd_npy(dice, array)
    name = dice.choice([key, key.upper(), f"{key}/x", "features", "mu", "arr_0"]) if changed and dice.random() < 0.1 else key
    archive.writestr(f"{name}.npy", data)


# ---- other JSON files ------------------------------------------------------------------------------------------------


def notes(dice: random.Random, world: Path, folder: Path) -> Case:
    """The other JSON files of a run, and caches: notes in sheets, results, the state of an average, rollback.json, configurations."""
    copy_run(world, folder)
    run = folder / "run"
    kind = dice.choice(["results", "rollback", "resume"] if dice.random() < HEAVY else ["sheet", "average", "config", "lock"])
    if kind == "sheet":
        file = dice.choice(sorted((run / "samples").glob("*.png")))
        with Image.open(file) as opened:
            listed = json.loads(opened.text[TEXT_KEY])
            text = PngImagePlugin.PngInfo()
            text.add_itxt(TEXT_KEY, as_text(mutate_json(dice, listed, dice.choice([1, 2]))).decode())
            opened.save(file, pnginfo=text)
        if dice.random() < 0.2:
            damage(dice, file)
        return Case("read_picture", {"path": str(file.relative_to(folder))}, ["samples"])
    if kind == "results":
        (run / "evaluations").mkdir()
        body = {"run": "run", "nimg": 320, "scores": {"ema": {"digits_fid": 1.0}}, "protocol": {"num_samples": 64}}
        (run / "evaluations" / "000000000320.json").write_bytes(mutate_document(dice, as_text(body)))
        return Case("command", {"argv": ["report", "run"]}, OF_RUN, ["run/report.html"])
    if kind == "average":
        paths = sorted((run / "averages").iterdir())
        path = dice.choice(paths)
        dice.choice([flip, odd, remove, forge, forge_state, forge_header, exchange_files, exchange_folders])(dice, path, paths)
        return Case("command", {"argv": ["average", "run", "--sigma-rel", "0.1", "--name", "mine"]}, OF_RUN, ["run/averages/mine"])
    if kind == "rollback":
        body = {"nimg": 320, "from": 320, "to": 240, "time": "2026-11-30T00:00:00Z", "rollbacks": 1}
        (run / "rollback.json").write_bytes(as_text(some_value(dice)) if dice.random() < 0.2 else mutate_document(dice, as_text(body)))
        return Case("command", {"argv": resumed("run", RUN, dice)}, [*OF_RUN, *names_of_keys()], ["stdout"])
    if kind in ("lock", "resume"):
        damage(dice, run / ".lock")
        return Case("command", {"argv": ["runs", "."] if kind == "lock" else resumed("run", RUN, dice)}, [*OF_RUN, ".: "], ["stdout"])
    values = yaml.safe_load((run / "config.yaml").read_text())
    values = mutate_json(dice, values, dice.choice([1, 2])) if dice.random() < 0.8 else yaml.safe_load(dice.choice(CONFIGS).read_text())
    (run / "config.yaml").write_bytes(as_text(values))
    verb = dice.choice(
        [
            ["runs", "."],
            ["watch", "run"],
            ["sample", "run", "--num", "1", "--out", "x.png"],
            ["fork", "run", "--out", "new"],
            ["orbit", "run"],
        ]
    )
    return Case("command", {"argv": verb}, [*OF_RUN, ".: ", *names_of_keys()], ["stdout"])
