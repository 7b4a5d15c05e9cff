"""`gantrain fork`: a new run that continues from a checkpoint of another run with other settings."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from gantrain.config.loading import load
from gantrain.config.yaml_files import as_override
from gantrain.errors import UserError
from gantrain.reporting.event_words import what_happened
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.forking import Fork, open_origin, write_fork
from gantrain.run_folder.layout import CONFIG_FILE


def call(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: not a run folder, no such checkpoint, or settings that do not fit it.
    """
    run = Path(arguments.run)
    if any(text.partition("=")[0].strip() == "run_dir" for text in arguments.overrides):
        raise UserError(f"run_dir: is the folder of the fork, {arguments.out} (--out); remove it")
    old = configuration_of(run)
    new = load(run / CONFIG_FILE, [*arguments.overrides, as_override("run_dir", arguments.out)])
    print(describe(write_fork(open_origin(run, arguments.kimg), old, new, Path(arguments.out).expanduser())))


def describe(fork: Fork) -> str:
    """The fork in words: its origin, what happens to averages and rates, and how to train it."""
    averages = fork.event["averages"]
    words = {"kept": "continue", "begin": "begin here with the live weights", "dropped": "are dropped"}
    told = [f"{', '.join(averages[key])} {what}" for key, what in words.items() if averages[key]]
    lines = [f"{fork.folder}: {what_happened(fork.event)}", f"averages: {'; '.join(told) or 'none'}"]
    was, now = fork.event["batch"]
    if was != now:
        lines.append(f"batch: the policy begins anew with {now} images (the checkpoint has {was})")
    if fork.lr_scale != 1:
        lines.append(f"learning rates: swaps and rollbacks before the fork multiply those of the configuration by {fork.lr_scale:g}")
    lines.append(f"train it: gantrain train {shlex.quote(str(fork.folder / CONFIG_FILE))}")
    return "\n".join(lines)
