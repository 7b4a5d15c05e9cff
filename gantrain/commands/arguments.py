"""Helpers that several commands share for reading their arguments."""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain.errors import UserError
from gantrain.launch_environment import process_rank
from gantrain.run_folder.recognition import not_a_run
from gantrain.shipped import find_config, similar_to

if TYPE_CHECKING:
    from gantrain.run_folder.held import Held
    from gantrain.sampling.choice import Choice

HELD: deque[Held] = deque(maxlen=1)  # the open files of the checkpoint that `best` stands for, until the command ends


def refuse_missing(arguments: argparse.Namespace) -> None:
    """Refuse a run or a configuration that does not exist before torch is imported, which takes seconds.

    Raises:
        UserError: names the path, and what may have been meant.
    """
    run = getattr(arguments, "run", None)
    for path in getattr(arguments, "runs", [] if run is None else [run]):
        if is_missing(path) and not path.lower().endswith((".npz", ".zip")):  # `evaluate` takes images too
            raise not_a_run(Path(path))
    config = getattr(arguments, "config", None)
    lists_keys = getattr(arguments, "keys", None) is not None or getattr(arguments, "markdown", False)  # which takes no configuration
    if config is not None and not lists_keys and is_missing(found := find_config(config)):
        raise UserError(f"{found}: there is no such file{similar_to(found)}")


def is_missing(path: str | Path) -> bool:
    """Whether nothing is at a path. One that a command may expand or that may not be looked at is left to it."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return not str(path).startswith("~")
    except (OSError, ValueError):
        pass
    return False


def choice_of(arguments: argparse.Namespace) -> Choice:
    """Build the choice of `sample` or `walk` from the command line.

    Raises:
        UserError: --average is `best`, and there is no best one.
    """
    from gantrain.sampling.choice import Choice

    average: dict[str, str] = {}
    kimg = arguments.kimg
    if arguments.average is not None:
        (average["average"],), kimg = averages_of_choice(arguments.run, [arguments.average], kimg)
    return Choice(
        arguments.run,
        labels=arguments.labels,
        truncation=arguments.truncation,
        seed=arguments.seed,
        kimg=kimg,
        batchnorm=arguments.batchnorm,
        **average,
    )


def averages_of_choice(run: str, names: Sequence[str], kimg: float | None) -> tuple[list[str], float | None]:
    """Replace `best` among averages, and print what was taken; see `resolve_best`. A run that trains may then replace its best one."""
    from gantrain.run_folder.best_average import resolve_best
    from gantrain.run_folder.contents import look_again, open_held
    from gantrain.run_folder.layout import BEST

    def resolve() -> tuple[list[str], float | None, list[str]]:
        told: list[str] = []
        found, time = resolve_best(run, names, kimg, told.append)
        if BEST in names and time is not None:
            HELD.append(open_held(run, time)[1])
        return found, time, told

    found, time, told = look_again(resolve)
    for line in told:
        say(line)
    return found, time


def say(line: str) -> None:
    """Print a line, on the main process."""
    if process_rank() == 0:
        print(line, flush=True)


def listed_names(text: str, option: str, example: str) -> list[str]:
    """Parse comma-separated names.

    Raises:
        UserError: a name is empty.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{option}: {text!r} has an empty name; write for example {option} {example}")
    return names


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """The overrides of the command line, including --reference."""
    from gantrain.config.yaml_files import as_override

    return [*arguments.overrides, *([] if arguments.reference is None else [as_override("eval.reference", arguments.reference)])]


def parse_sweep(text: str, highest: float, example: str) -> list[float]:
    """Parse --sweep LOW:HIGH:COUNT into COUNT evenly spaced numbers.

    Args:
        text: the option's value.
        highest: the largest HIGH; inf allows every finite number.
        example: for the error message.

    Raises:
        UserError: the text does not have this form.
    """
    import numpy as np

    try:
        low, high, count = (number(part) for number, part in zip((float, float, int), text.split(":"), strict=True))
        if not (0 < low < high <= highest and high < float("inf") and 2 <= count <= 1000):
            raise ValueError
        return list(dict.fromkeys(float(f"{s:.4g}") for s in np.linspace(low, high, count)))
    except ValueError:
        bound = f" <= {highest:.4f}" if highest < float("inf") else ""
        raise UserError(
            f"--sweep: must be LOW:HIGH:COUNT such as {example}, with 0 < LOW < HIGH{bound} and a COUNT of at least 2, got {text!r}"
        ) from None
