"""The configuration in a run folder: written durably, and refused if it is not whole.

Missing keys have defaults, so half of a configuration is one of other settings. A file that a power failure has cut must therefore be
recognised before it is read as a configuration.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import yaml

from gantrain.atomic_file import write_atomically
from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.errors import UserError, in_words
from gantrain.plain_yaml import load_plain
from gantrain.regular_file import read_regular
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.strict_yaml import LARGEST as MOST_BYTES, MOST_VALUES

FIRST = ["run_dir", "seed", "total_kimg"]  # how every version begins a configuration
LAST = re.compile(r"^performance:\n +\S.*\n", re.MULTILINE)  # the last section that every version has written
BY_HAND = re.compile(r"^[^'\"\n]*(?:(?:^|\s)#|: \{[^}])", re.MULTILINE)  # comments, and sections in one line, which gantrain does not write


def write_config(config: Config, run_dir: Path) -> None:
    """Create the run folder and write the resolved configuration into it, such that no power failure leaves half of it.

    Raises:
        UserError: see `require_readable`.
    """
    require_readable(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG_FILE, loading.to_yaml(config), durable=True, only_writer=True)


def require_readable(config: Config) -> None:
    """Refuse a configuration that is larger than what is read back: the defaults of plug-ins and overrides may be long lists.

    Raises:
        UserError: with the bounds.
    """
    text = loading.to_yaml(config)
    try:
        if len(text.encode()) > MOST_BYTES:
            raise ValueError
        load_plain(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(
            f"configuration: with all defaults written out, as in a run folder, it has more than {MOST_VALUES:,} values or"
            f" {in_words(MOST_BYTES)}; keep long tables in a file that the plug-in reads"
        ) from None


def load_config(run_dir: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a run, with overrides.

    Raises:
        UserError: the file is damaged, with a remedy; or see `gantrain.config.loading.load`.
    """
    require_whole_config(run_dir)
    return loading.load(run_dir / CONFIG_FILE, overrides)


def require_whole_config(run_dir: Path) -> None:
    """Refuse a run's configuration of which a part is missing.

    Raises:
        UserError: names the file, the damage and the remedy.
    """
    path = run_dir / CONFIG_FILE
    damage = find_damage(path)
    if damage:
        raise UserError(
            f"{path}: is damaged ({damage}); restore it from a copy, or write it again from what the run was started with:"
            f" gantrain config CONFIG OVERRIDES > {shlex.quote(str(path))}"
        )


def find_damage(path: Path) -> str | None:
    """What is wrong with a configuration that gantrain has written, in words; None if it is whole, or cannot be read at all."""
    try:
        data = read_regular(path, MOST_BYTES)
    except OSError:
        return None  # reading it says why
    if not data.strip():
        return "it is empty"
    if b"\0" in data:  # space that a file system had reserved, and never filled
        return "parts of it are zeros"
    text = data.decode(errors="replace")
    if not text.startswith(f"{FIRST[0]}:"[: len(text)]) or BY_HAND.search(text):
        return None
    try:
        values = load_plain(text, shallow=True)
    except (yaml.YAMLError, ValueError):
        return "it ends in the middle of a line" if not text.endswith("\n") else None
    keys = list(values) if isinstance(values, dict) else []
    cut = not text.endswith("\n") or not LAST.search(text)
    return "its end is missing" if cut and keys[:3] == FIRST[: len(keys)] else None
