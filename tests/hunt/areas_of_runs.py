"""Areas of the hunt in which files of a run are damaged, forged or exchanged: records, checkpoints, pictures, states, configurations."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
import yaml
from areas_of_texts import CONFIGS, copy_run, names_of_keys
from damages import damage, files_in, mutate_document, odd_file, read_plain
from material import LONG_ORBIT, ROOT, RUN
from mutations import as_text, like, mutate_bytes, mutate_json, mutate_lines
from PIL import Image, PngImagePlugin
from safetensors import SafetensorError
from safetensors.torch import load, save
from supervised import Case

from gantrain.run_folder import checkpoint
from gantrain.sampling.sheets import TEXT_KEY

OF_RUN = ["run/", "run:", "'run'"]
DIGITS = str(ROOT / "configs" / "digits.yaml")
RESUMED = 0.08  # share of the damaged checkpoints that a training is started from, as far as its first update
HEAVY, LIGHT = 0.03, 0.1  # shares of the cases that are commands of a second or more, and of less


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
    if verb == "runs" and dice.random() < 0.5:
        shutil.copytree(world / "orbit", folder / "whole", ignore=shutil.ignore_patterns(*skip))
        return Case("list_runs", {"folder": ".", "count": 1 + (folder / "run" / "config.yaml").is_file()}, [*OF_RUN, ".: "])
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
        damages = [flip, flip, odd, remove, exchange_files, exchange_folders, rename, forge, forge, forge_state, forge_header, leftovers]
        with contextlib.suppress(
            ValueError, KeyError, TypeError, IndexError, OSError, struct.error, SafetensorError
        ):  # on top of an earlier damage
            forged |= dice.choice(damages)(dice, chosen, paths)
    if not heavy and dice.random() < RESUMED:
        return resumption(dice, store, paths=sorted(store.glob("[0-9]*/manifest.json")))
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


def resumption(dice: random.Random, store: Path, paths: list[Path]) -> Case:
    """A training that starts from states and tensors that no version of gantrain wrote, sealed as they should be."""
    for path in paths:
        for _ in range(dice.choice([1, 1, 2])):
            with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, OSError, struct.error, SafetensorError):
                dice.choice([forge_state, forge_state, forge_tensors, forge])(dice, path.parent, [])
    longer = [f"total_kimg={dice.choice(['0.352', '0.4'])}"] if dice.random() < 0.5 else []
    overrides = ["run_dir=run", *RUN, *longer]
    return Case("start", {"path": DIGITS, "overrides": overrides}, [*OF_RUN, *names_of_keys()])


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
    others = [file for there in paths for file in files_in(there) if file != one and (there == path or file.name == one.name)]
    if others:
        other = dice.choice(others)
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
        shutil.copytree(other, path, symlinks=True)  # which may lead to /dev/zero
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
        dice.choice([there.mkdir, there.touch, lambda: shutil.copytree(path, there, symlinks=True)])()
    return False


def seal(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a seal that fits."""
    (path / "manifest.json").write_bytes(checkpoint.seal({key: value for key, value in manifest.items() if key != "seal"}))


def forge(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Another format, moment, size or list of files, sealed as it should be."""
    manifest = json.loads(read_plain(path / "manifest.json"))
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
    manifest = json.loads(read_plain(path / "manifest.json"))
    (path / name).write_bytes(data)
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(path, manifest)


def forge_state(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Other values in state.json, with a seal that fits."""
    refit(path, "state.json", mutate_document(dice, read_plain(path / "state.json")))
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


def forge_tensors(dice: random.Random, path: Path, paths: list[Path]) -> bool:
    """Tensors under other names, of other shapes and types, or gone; or a whole group that is."""
    file = dice.choice([one for one in files_in(path) if one.suffix == ".safetensors"])
    if dice.random() < 0.1:
        manifest = json.loads(read_plain(path / "manifest.json"))
        del manifest["files"][file.name]
        seal(path, manifest)
        return True
    tensors = load(file.read_bytes())
    for name in dice.sample(sorted(tensors), min(len(tensors), dice.choice([1, 2]))):
        one = tensors.pop(name)
        how = dice.randrange(6)
        if how:
            tensors[dice.choice([name, name, "", "x", f"{name}/exp_avg", f"{name}:complex", name.upper()])] = [
                one,
                one[None],
                one.flatten()[:1],
                one.double(),
                one.to(torch.int8),
                one.to(torch.bool),
                one * float("nan"),
            ][how].clone()
    refit(path, file.name, save(tensors))
    return True


# ---- other JSON files ------------------------------------------------------------------------------------------------


def notes(dice: random.Random, world: Path, folder: Path) -> Case:
    """The other JSON files of a run, and caches: notes in sheets, results, the state of an average, rollback.json, configurations."""
    copy_run(world, folder)
    run = folder / "run"
    usual = ["sheet", "average", "average", "rollback", "config", "lock", "odd", "odd"]
    kind = dice.choice(["results", "resume"] if dice.random() < HEAVY else usual)
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
        damages = [flip, odd, remove, forge, forge_state, forge_state, forge_header, forge_tensors, exchange_files, exchange_folders]
        dice.choice(damages)(dice, path, paths)
        return Case("command", {"argv": ["average", "run", "--sigma-rel", "0.1", "--name", "mine"]}, OF_RUN, ["run/averages/mine"])
    if kind == "rollback":
        return after_rollback(dice, run)
    if kind == "odd":
        (run / "evaluations").mkdir()
        for name in ("000000000320.json", "000000000320.png", "notes.txt"):
            (run / "evaluations" / name).write_bytes(b"{}")
        odd_file(dice, dice.choice([path for path in files_in(run) if path.parent.parent.name not in ("checkpoints", "averages", "best")]))
        verbs = [["runs", "."], ["watch", "run"], ["orbit", "run"], ["sample", "run", "--num", "1", "--out", "x.png"], ["report", "run"]]
        return Case("command", {"argv": dice.choice(verbs)}, [*OF_RUN, ".: "], ["stdout"])
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


def after_rollback(dice: random.Random, run: Path) -> Case:
    """The record of a rollback with other values, mostly with a seal that fits, and a training or a fork that reads it."""
    state = json.loads((run / "checkpoints" / "000000000320" / "state.json").read_text())
    body = {"to": dice.choice([320, 256]), "guard": {**state["guard"], "rollbacks": 1}, "batching": state["batching"], "metrics_bytes": 0}
    if dice.random() < 0.9:
        body = mutate_json(dice, body, dice.choice([1, 1, 2]))
    sealed = isinstance(body, dict) and dice.random() < 0.8
    (run / "rollback.json").write_bytes(checkpoint.seal(body) if sealed else mutate_bytes(dice, as_text(body)))
    if dice.random() < 0.5:
        return Case("command", {"argv": ["fork", "run", "--out", "new", "total_kimg=1"]}, [*OF_RUN, "new", *names_of_keys()], ["new"])
    overrides = ["run_dir=run", *RUN, "total_kimg=0.4"]
    return Case("start", {"path": DIGITS, "overrides": overrides}, [*OF_RUN, *names_of_keys()])
