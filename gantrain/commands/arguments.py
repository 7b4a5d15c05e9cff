"""Helpers that several commands share to read their arguments."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from gantrain.averaging.power import WIDEST
from gantrain.errors import UserError

if TYPE_CHECKING:
    from gantrain.sampling.choice import Choice

REFERENCE_HELP = "score against this in place of the data set: an .npz of statistics, a folder or zip of images, a run folder or a CONFIG.yaml (eval.reference)"
OVERRIDES_HELP = "section.key=value, as often as needed; the value is read as YAML"


def add_choice(verb: argparse.ArgumentParser) -> None:
    """What `sample` and `walk` have in common."""
    verb.add_argument("run", metavar="RUN", help="a run folder")
    verb.add_argument("--average", metavar="NAME", help="an average's name, or live (default: ema)")
    verb.add_argument("--labels", metavar="0,3", help="classes, taken in turn (default: all of them)")
    verb.add_argument("--truncation", type=float, metavar="T", help="draw z from the normal cut at +-T")
    verb.add_argument("--seed", type=int, default=0, help="of the latents (default: 0)")
    verb.add_argument("--kimg", type=float, help="which checkpoint (default: the newest)")
    verb.add_argument(
        "--batchnorm",
        metavar="POLICY",
        help="recalibrate, copy, average, or batch, with which images depend on each other (default: the run's eval.batchnorm)",
    )


def choice_of(arguments: argparse.Namespace) -> Choice:
    """What `sample` or `walk` draws from."""
    from gantrain.sampling.choice import Choice

    labels = whole_numbers(arguments.labels, "--labels") if arguments.labels is not None else None
    average = {} if arguments.average is None else {"average": arguments.average}
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
    """KEY=VALUE of the command line, with --reference among them."""
    from gantrain.config.yaml_files import as_override

    return [*arguments.overrides, *([] if arguments.reference is None else [as_override("eval.reference", arguments.reference)])]


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers with commas between."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: {text!r} is no list of whole numbers; write for example {option} 0,3") from None


def parse_sweep(text: str, highest: float = WIDEST, example: str = "0.02:0.25:8") -> list[float]:
    """LOW:HIGH:COUNT as that many numbers, lengths of averages by default, evenly spaced.

    Args:
        highest: what HIGH may be; inf leaves it open, but for inf itself.
        example: for the refusal.

    Raises:
        UserError: it is not that.
    """
    try:
        low, high, count = (number(part) for number, part in zip((float, float, int), text.split(":"), strict=True))
        if not (0 < low < high <= highest and high < float("inf") and 2 <= count <= 1000):
            raise ValueError
        lengths = list(dict.fromkeys(float(f"{s:.4g}") for s in np.linspace(low, high, count)))
    except ValueError:
        bound = f" <= {highest:.4f}" if highest < float("inf") else ""
        raise UserError(
            f"--sweep: must be LOW:HIGH:COUNT such as {example}, with 0 < LOW < HIGH{bound} and a COUNT of at least 2, got {text!r}"
        ) from None
    return lengths
