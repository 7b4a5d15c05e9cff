"""Areas of the hunt in which a user writes a text: configurations, YAML files, command lines."""

from __future__ import annotations

import functools
import os
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from material import ROOT, SMALL
from mutations import ODD_TEXTS, like, mutate_yaml, some_number, some_value
from supervised import Case

from gantrain.config import keys, yaml_files

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FREE_NAMES = ("ema", "swa", "mine", "live", "", "a.b", "\u00e9", "best", "1")


@functools.cache
def all_keys() -> list[tuple[str, str | None, str]]:
    """(full key, the plug-in that it belongs to, its default in YAML) of everything that `gantrain config --keys` lists."""
    found = []
    for part in keys.list_parts():
        if part.path == "eval.metrics" and part.plugin is not None:
            continue  # chosen by their names alone
        for key in part.keys:
            full = key.name if part.path == keys.GENERAL else f"{part.path}.{key.name}"
            found.append((full, part.plugin, key.default))
    return found


@functools.cache
def plugins_of(section: str) -> list[str]:
    return sorted({part.plugin for part in keys.list_parts() if part.path == section and part.plugin}) or ["r1", "r2"]


@functools.cache
def names_of_keys() -> list[str]:
    """What a refusal of a configuration names, besides its file."""
    return sorted({full.split(".")[0] for full, _, _ in all_keys()})


def some_settings(dice: random.Random, small: bool = False) -> dict[str, Any]:
    """A few keys with values, odd ones and some that may be right."""
    found: dict[str, Any] = {}
    gentle = dice.random() < 0.5
    for _ in range(dice.choice([1, 1, 2, 3, 6])):
        full, plugin, default = dice.choice(all_keys())
        if "NAME" in full:
            full = full.replace("NAME", dice.choice(FREE_NAMES[:3] if small else FREE_NAMES))
        try:
            near = yaml.safe_load(default)
        except yaml.YAMLError:
            near = default
        if plugin is not None and dice.random() < 0.8:
            found[f"{full.rpartition('.')[0]}.name"] = plugin
        elif full.count(".") == 2 and full.startswith(("averagers.", "penalties.")):
            section = full.split(".")[0]
            found[f"{full.rpartition('.')[0]}.name"] = dice.choice(plugins_of(section))
        found[full] = near if dice.random() < 0.1 else closer(dice, near, small) if gentle else like(dice, near, small)
        if dice.random() < 0.05:
            found[full + dice.choice([".x", "x", "."])] = some_value(dice, small=small)
    return found


def closer(dice: random.Random, near: Any, small: bool) -> Any:
    """A value of the same type, which may be right."""
    if isinstance(near, bool):
        return dice.choice([not near, not near, None])
    if near is None:
        return dice.choice([True, False, 1, 0.5, 8, "ema", "eval/ema/digits_fid", [], ["fid"]])
    if isinstance(near, (int, float)) and abs(near) < 1e300:
        close = [0, 1, 2, 3, 8, 16, 0.5, 0.1, 1e-9, near, near + 1, near / 2]
        return dice.choice(close if small else [*close, near * 2, near * 10, near * 1000, 10**6, 1e-30, 1e30])
    return dice.choice([near, near, like(dice, near, small)])


def nested(values: dict[str, Any], into: dict[str, Any]) -> dict[str, Any]:
    """The values of full keys as sections within sections."""
    for full, value in values.items():
        holder: Any = into
        *sections, last = full.split(".")
        for section in sections:
            if not isinstance(holder.get(section), dict):
                holder[section] = {}
            holder = holder[section]
        holder[last] = value
    return into


def as_yaml(value: Any) -> str:
    """A value as somebody may write it behind `key=`."""
    if isinstance(value, str):
        return value
    try:
        return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
    except (yaml.YAMLError, ValueError):
        return repr(value)


def as_overrides(values: dict[str, Any]) -> list[str]:
    """The values as words of a command line, which hold no NUL."""
    return [f"{full}={as_yaml(value)}".replace("\0", "").encode("utf-8", "replace").decode() for full, value in values.items()]


def configurations(dice: random.Random, world: Path, folder: Path) -> Case:
    """Typed values over all keys, in a file, on the command line, or both."""
    values = some_settings(dice)
    base = yaml_files.parse_yaml(dice.choice(CONFIGS).read_text(), "shipped") if dice.random() < 0.5 else {}
    in_file = {full: value for full, value in values.items() if dice.random() < 0.5}
    text = yaml.safe_dump(nested(in_file, base), allow_unicode=dice.random() < 0.5, default_flow_style=dice.choice([None, True, False]))
    (folder / "hunt.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    overrides = as_overrides({full: value for full, value in values.items() if full not in in_file})
    names = ["hunt.yaml", "command line"]
    if dice.random() < 0.1:
        return Case("command", {"argv": ["config", "hunt.yaml", *overrides]}, names, ["stdout"])
    if dice.random() < 0.1:
        return Case("build_config", {"values": nested(values, {})}, ["configuration", *names_of_keys()])
    return Case("load_config", {"path": "hunt.yaml", "overrides": overrides}, names)


def as_written(overrides: list[str], key: str) -> list[str]:
    """The values of a key in overrides."""
    return [one.partition("=")[2] for one in overrides if one.startswith(f"{key}=")]


def starts(dice: random.Random, world: Path, folder: Path) -> Case:
    """Whole starts of a training with odd values, each small enough for any machine or too large for all."""
    for source in ("sets", "statistics"):
        (folder / source).symlink_to(world / source)
    values = some_settings(dice, small=True)
    roots = {"data.root": dice.choice(["sets/classes", "sets/packed", "sets/stored-listed.zip", "sets", ""])} if dice.random() < 0.2 else {}
    overrides = [*SMALL, *as_overrides({**values, **roots}), "run_dir=run"]
    files = [f"{value}: " for value in as_written(overrides, "eval.reference")]  # which is named alone
    names = ["command line", "digits.yaml", "run/", *files, *names_of_keys()]
    return Case("start", {"path": str(ROOT / "configs" / "digits.yaml"), "overrides": overrides}, names)


def yaml_texts(dice: random.Random, world: Path, folder: Path) -> Case:
    """Shipped configurations with bytes, tokens, tags, aliases and references in the wrong places."""
    text = dice.choice(CONFIGS).read_text(encoding="utf-8")
    if dice.random() < 0.5:
        text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    (folder / "hunt.yaml").write_bytes(mutate_yaml(dice, text))
    if dice.random() < 0.1:
        return Case(
            "command",
            {"argv": [dice.choice(["config", "train"]), "hunt.yaml", "run_dir=nosuch/\0"[:-1], "total_kimg=-1"]},
            ["hunt.yaml", "command line"],
        )
    if dice.random() < 0.1:
        shutil.copytree(world / "run", folder / "run", ignore=shutil.ignore_patterns("checkpoints", "averages", "best", "samples"))
        shutil.move(folder / "hunt.yaml", folder / "run" / "config.yaml")
        verb = dice.choice(
            [["runs", "."], ["report", "run"], ["watch", "run"], ["sample", "run"], ["evaluate", "run"], ["fork", "run", "--out", "new"]]
        )
        return Case("command", {"argv": verb}, ["run/", "run:", "'run'", ".: "])
    return Case("load_config", {"path": "hunt.yaml", "overrides": []}, ["hunt.yaml"])


NUMBERS = ("0", "1", "2", "3", "-1", "0.16", "0.08", "nan", "inf", "-inf", "1e999", "1e-999", "x", "", "1_000", "\u0661", "0x2", "1" * 400,
           "1" * 5000, "9223372036854775807", "-9223372036854775808", "1e400", "-0", "-inf", "\uff11", "0.0", " 1", "1e5")  # fmt: skip
OPTIONS: dict[str, list[list[str]]] = {
    "sample": [["--num", "N"], ["--kimg", "N"], ["--labels", "T"], ["--scale", "N"], ["--truncation", "N"], ["--seed", "N"],
    ["--average", "T"],
               ["--batchnorm", "T"], ["--sheet", "T"], ["--out", "P"], ["--per-class", "N"], ["--classes"]],
    "walk": [["--num", "S"], ["--frames", "S"], ["--fps", "N"], ["--labels", "T"], ["--scale", "S"], ["--out", "P"], ["--average", "T"]],
    "evaluate": [["--num", "S"], ["--kimg", "N"], ["--average", "T"], ["--reference", "P"], ["--out", "P"], ["O"]],
    "truncation": [["--sweep", "W"], ["--num", "S"], ["--kimg", "N"], ["--average", "T"], ["O"], ["--out", "P"]],
    "average": [["--sigma-rel", "N"], ["--sweep", "W"], ["--at-kimg", "N"], ["--name", "T"], ["--num", "S"]],
    "orbit": [["--networks", "T"], ["--average", "T"], ["--from-kimg", "N"], ["--to-kimg", "N"], ["--out", "P"]],
    "report": [["--out", "P"], ["run2"]],
    "runs": [["--by", "T"], ["--sort", "T"], ["--json"]],
    "watch": [["--last", "N"]],
    "fork": [["--out", "P"], ["--kimg", "N"], ["O"]],
    "noise-scale": [["--updates", "S"], ["--average", "T"], ["--kimg", "N"], ["--per-layer"]],
    "config": [["O"], ["--keys", "T"], ["--markdown"]],
    "reference": [["--out", "P"], ["--moments-only"], ["O"]],
    "prepare": [["--out", "P"], ["--resolution", "N"], ["--channels", "N"], ["--filter", "T"], ["--no-labels"], ["--verify", "P"],
    ["--on-error", "T"]],
}  # fmt: skip
PATHS = ("new", "new/deep/x.json", "x.png", "x.npz", "x.json", "x.html", "run", "run/config.yaml", "run/metrics.jsonl", "sets/classes",
    "sets/packed",
         "sets/stored-listed.zip", "statistics/images.npz", "statistics/gantrain.npz", "~nosuch/x", "/dev/null", "/dev/zero",
         "/proc/x/y.json",
         "", ".", "nosuch", "x" * 300, "x" * 300 + ".png", "\u00e9.png", "a\nb.png", "digits", "pipe", "pipe.npz", "pipe.zip",
         "pipe.yaml")  # fmt: skip
CHEAP = {"runs", "watch", "config", "prepare", "fork", "sample", "orbit"}


def command_lines(dice: random.Random, world: Path, folder: Path) -> Case:
    """Every command with odd options, paths, sweeps and overrides."""
    verb = dice.choice(sorted(OPTIONS) if dice.random() < 0.3 else sorted(CHEAP))
    for source in ("sets", "statistics"):
        shutil.copytree(world / source, folder / source)
    copy_run(world, folder)
    for name in ("pipe", "pipe.npz", "pipe.zip", "pipe.yaml"):
        make_pipe(folder / name)
    target = {"config": "digits", "reference": "digits", "prepare": "sets/classes", "runs": "."}.get(verb, "run")
    argv = [verb, *([dice.choice(PATHS)] if dice.random() < 0.15 else [target])]
    for option in dice.sample(OPTIONS[verb], min(len(OPTIONS[verb]), dice.choice([1, 1, 2, 3]))):
        argv += [filled(dice, word) for word in option]
    if verb == "prepare" and "--out" not in argv and dice.random() < 0.8:
        argv += ["--out", "new"]
    words = {spelling for word in argv for spelling in (word, word.lstrip("-")) if spelling}
    return Case("command", {"argv": argv}, [verb, *sorted(words), "command line", "run/", "run:", *names_of_keys()])


def filled(dice: random.Random, word: str) -> str:
    """A word of a command line: a number, a small number, a text, a path, a sweep or an override."""
    if word == "N":
        return dice.choice(NUMBERS)
    if word == "S":  # what it costs grows with it
        return dice.choice([*NUMBERS[:5], *(one for one in NUMBERS[5:] if not one.isdecimal() or len(one) > 300)])
    if word == "T":
        return dice.choice([one for one in ODD_TEXTS if "\0" not in one and "\ud800" not in one])
    if word == "P":
        return dice.choice(PATHS)
    if word == "W":
        return dice.choice(
            [
                "0.5:1:2",
                "0.1:0.12:2",
                "1:0.5:2",
                "0:0:0",
                "a:b:c",
                "nan:1:2",
                "1:inf:2",
                "1:2",
                "::",
                "0.5:1:-1",
                "0.5:1:1.5",
                "1e-9:1:2",
                "1:1:1",
            ]
        )
    if word == "O":
        return dice.choice(
            [*as_overrides(some_settings(dice, small=True)), "eval.metrics=[fid]", f"eval.num_samples={some_number(dice, small=True)}"]
        )
    return word


def copy_run(world: Path, folder: Path) -> None:
    """The run, with the moments of its files: a record that has just changed may be that of a run on another machine."""
    shutil.copytree(world / "run", folder / "run")


def make_pipe(path: Path) -> None:
    """A named pipe, at which `open` waits."""
    os.mkfifo(path)
