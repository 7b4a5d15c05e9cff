"""`gantrain fork`: a new run that continues from a checkpoint of another run with other settings."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

from gantrain.config.config import Config
from gantrain.config.loading import set_keys
from gantrain.config.yaml_files import as_override
from gantrain.errors import UserError
from gantrain.home import expand_user
from gantrain.reporting.event_words import what_happened
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.earlier import load_as_begun
from gantrain.run_folder.forking import Fork, kept_averages, open_origin, write_fork
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.run_folder.starts import begin_at_once
from gantrain.run_folder.trained_with import config_in


def call(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: not a run folder, no such checkpoint, or settings that do not fit it.
    """
    run = Path(arguments.run)
    if any(text.partition("=")[0].strip() == "run_dir" for text in arguments.overrides):
        raise UserError(f"run_dir: is the folder of the fork, {arguments.out} (--out); remove it")
    configured = configuration_of(run)
    overrides = [*arguments.overrides, as_override("run_dir", arguments.out)]
    new, origin = load_as_begun(run / CONFIG_FILE, overrides), open_origin(run, arguments.kimg)
    trained = config_in(origin.snapshot.state) or configured  # what somebody has edited since is a change like any other
    old = dataclasses.replace(trained, total_kimg=configured.total_kimg)  # which a resume may change
    kept = kept_averages(old, new, origin.snapshot.state)["g"]
    begin = [name for name in new.averagers if name not in kept]
    new = begin_at_once(new, begin, set_keys(run / CONFIG_FILE, overrides), origin.snapshot.nimg)
    print(describe(write_fork(origin, old, new, expand_user(arguments.out, "--out")), new))


def describe_averages(fork: Fork, config: Config) -> str:
    """Which averages continue, which begin and when, and which are dropped."""
    averages, now = fork.event["averages"], fork.nimg / 1000
    told: dict[str, list[str]] = {}
    for name in averages["kept"]:
        told.setdefault("continue", []).append(name)
    for name in averages["begin"]:
        start = config.averagers[name].start_kimg
        what = "begin here with the live weights" if start <= now else f"begin at {start:g} kimg with the weights of that moment"
        if start >= config.total_kimg:
            what = f"never begin: start_kimg={start:g} is not before total_kimg={config.total_kimg:g}"
        told.setdefault(what, []).append(name)
    for name in averages["dropped"]:
        told.setdefault("are dropped", []).append(name)
    alone = {"continue": "continues", "are dropped": "is dropped"}
    words = []
    for what, names in told.items():
        if len(names) == 1:
            what = alone.get(what, what.replace("begin", "begins", 1))
        words.append(f"{', '.join(names)} {what}")
    return "; ".join(words) or "none"


def describe(fork: Fork, config: Config) -> str:
    """The fork in words: its origin, what happens to averages and rates, and how to train it."""
    lines = [f"{fork.folder}: {what_happened(fork.event)}", f"averages: {describe_averages(fork, config)}"]
    anew = fork.event.get("optimizers", {}).get("begin", [])
    if anew:
        lines.append(f"optimizers: without a past: {', '.join(f'optim.{key}' for key in anew)}")
    was, now = fork.event["batch"]
    if was != now:
        lines.append(f"batch: the policy begins anew with {now} images (the checkpoint has {was})")
    if fork.lr_scale != 1:
        lines.append(f"learning rates: swaps and rollbacks before the fork multiply those of the configuration by {fork.lr_scale:g}")
    lines.append(f"train it: gantrain train {shlex.quote(str(fork.folder / CONFIG_FILE))}")
    return "\n".join(lines)
