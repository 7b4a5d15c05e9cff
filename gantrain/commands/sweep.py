"""LOW:HIGH:COUNT, for commands that sweep over a number."""

from __future__ import annotations

import numpy as np

from gantrain.averaging.power import WIDEST
from gantrain.errors import UserError


def parse_sweep(text: str, highest: float = WIDEST, example: str = "0.02:0.25:8") -> list[float]:
    """LOW:HIGH:COUNT as COUNT evenly spaced numbers; by default, lengths of averages.

    Args:
        highest: the largest HIGH; inf allows every finite number.
        example: for the error message.

    Raises:
        UserError: the text is not of this form.
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
