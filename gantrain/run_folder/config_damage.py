"""What is wrong with a run's `config.yaml`: one answer for all commands. Nothing here imports torch or the configuration's classes.

Missing keys have defaults, so half of a configuration is one of other settings. A file that a power failure has cut must therefore be
recognised before it is read as a configuration.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from gantrain.errors import UserError
from gantrain.plain_yaml import load_plain
from gantrain.regular_file import read_regular
from gantrain.strict_yaml import LARGEST as MOST_BYTES

FIRST = ["run_dir", "seed", "total_kimg"]  # how every version begins a configuration
LAST = re.compile(r"^performance:\n +\S.*\n", re.MULTILINE)  # the last section that every version has written
# What gantrain does not write: comments, sections in one line, and references, which it resolves (a literal one has a backslash).
BY_HAND = re.compile(r"^[^'\"\n]*(?:(?:^|\s)#|: \{[^}])|(?<!\\)\$\{", re.MULTILINE)


def require_whole(path: Path) -> None:
    """Refuse a run's configuration of which a part is missing.

    Raises:
        UserError: names the file, the damage and the remedy.
    """
    damage = find_damage(path)
    if damage:
        raise UserError(
            f"{path}: is damaged ({damage}); restore it from a copy, or write it again from what the run was started with:"
            f" gantrain config CONFIG OVERRIDES > {shlex.quote(str(path))}"
        )


def find_damage(path: Path) -> str | None:
    """What is wrong with a configuration that gantrain has written, in words; None if it is whole, or cannot be read at all."""
    try:
        return damage_of(read_regular(path, MOST_BYTES))
    except OSError:
        return None  # reading it says why


def damage_of(data: bytes) -> str | None:
    """The same for the content of the file."""
    if not data.strip():
        return "it is empty"
    if b"\0" in data:  # space that a file system had reserved, and never filled
        return "parts of it are zeros"
    text = data.decode(errors="replace")
    if not text.startswith(f"{FIRST[0]}:"[: len(text)]) or BY_HAND.search(text):
        return None
    try:
        values = load_plain(text, shallow=True)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return f"it is not YAML{f', at line {mark.line + 1}' if mark else ''}" if text.endswith("\n") else "it ends in the middle of a line"
    except ValueError:
        return "it ends in the middle of a line" if not text.endswith("\n") else None
    keys = list(values) if isinstance(values, dict) else []
    cut = not text.endswith("\n") or not LAST.search(text)
    return "its end is missing" if cut and keys[:3] == FIRST[: len(keys)] else None
