"""Helpers that several commands share for reading their arguments."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gantrain.errors import UserError

if TYPE_CHECKING:
    from gantrain.sampling.choice import Choice


def choice_of(arguments: argparse.Namespace) -> Choice:
    """Build the choice of `sample` or `walk` from the command line.

    Raises:
        UserError: --labels is not a list of whole numbers.
    """
    from gantrain.sampling.choice import Choice

    labels = whole_numbers(arguments.labels, "--labels") if arguments.labels is not None else None
    average: dict[str, str] = {} if arguments.average is None else {"average": arguments.average}
    return Choice(
        arguments.run,
        labels=labels,
        truncation=arguments.truncation,
        seed=arguments.seed,
        kimg=arguments.kimg,
        batchnorm=arguments.batchnorm,
        **average,
    )


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """The overrides of the command line, including --reference."""
    from gantrain.config.yaml_files import as_override

    return [*arguments.overrides, *([] if arguments.reference is None else [as_override("eval.reference", arguments.reference)])]


def whole_numbers(text: str, option: str) -> list[int]:
    """Parse comma-separated whole numbers.

    Raises:
        UserError: the text is not such a list.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: {text!r} is not a list of whole numbers; write for example {option} 0,3") from None


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
