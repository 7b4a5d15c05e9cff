"""Schedules: numbers of a configuration that change with the images seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from gantrain.errors import check


@dataclass(frozen=True)
class Schedule:
    """A number that goes from one value to another over a part of a run.

    In YAML: `{from: 2.0e-4, to: 5.0e-5, until_kimg: 20000, shape: cosine}`.

    Attributes:
        from_: value until `start_kimg`; `from` in a configuration.
        to: value from `until_kimg` on.
        start_kimg: where it begins to change.
        until_kimg: where it has arrived.
        shape: "linear" changes at a constant rate; "cosine" follows half a period of a cosine, slow at both ends (Loshchilov and
            Hutter 2017, Eq. 5); "constant" stays at `from` and jumps to `to` at `until_kimg`.
        warmup_kimg: over the first so many kimg of the run the value rises linearly from 0, as a factor of all of the above.
    """

    from_: float = field(metadata={"key": "from"})
    to: float
    until_kimg: float
    start_kimg: float = 0.0
    shape: Literal["linear", "cosine", "constant"] = "linear"
    warmup_kimg: float = 0.0

    def __post_init__(self) -> None:
        for name in ("from_", "to"):
            check(self, name, math.isfinite(getattr(self, name)), "must be finite")
        check(self, "start_kimg", 0 <= self.start_kimg < math.inf, "must be at least 0")
        check(self, "until_kimg", self.start_kimg <= self.until_kimg < math.inf, f"must be at least start_kimg ({self.start_kimg:g})")
        check(self, "warmup_kimg", 0 <= self.warmup_kimg < math.inf, "must be at least 0")

    def at(self, nimg: int) -> float:
        """The value at so many images."""
        start, until, kimg = self.start_kimg, self.until_kimg, nimg / 1000
        way = 1.0 if kimg >= until else max(0.0, kimg - start) / (until - start)
        if self.shape == "cosine":
            way = 0.5 - 0.5 * math.cos(math.pi * way)
        elif self.shape == "constant":
            way = float(way == 1.0)
        value = self.to if way == 1.0 else self.from_ + (self.to - self.from_) * way
        return value * min(1.0, kimg / self.warmup_kimg) if self.warmup_kimg else value

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that it can have, warm-up left out."""
        return min(self.from_, self.to), max(self.from_, self.to)


Scheduled: TypeAlias = float | Schedule


def value_at(value: Scheduled, nimg: int) -> float:
    """A number of a configuration at so many images."""
    return value.at(nimg) if isinstance(value, Schedule) else value


def bounds_of(value: Scheduled) -> tuple[float, float]:
    """The smallest and the largest value of a number of a configuration, for its checks."""
    return value.bounds if isinstance(value, Schedule) else (value, value)
