"""Schedules: numbers of a configuration that change with the images seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from gantrain.errors import InvalidField, check


@dataclass(frozen=True)
class Schedule:
    """A number that goes from one value to another over a part of a run.

    In YAML: `{from: 2.0e-4, to: 5.0e-5, until_kimg: 20000, shape: cosine}`, or `{from: 2.0e-4, shape: constant, warmup_kimg: 10}`.

    Attributes:
        from_: value until `start_kimg`; `from` in a configuration.
        to: value from `until_kimg` on; null with the shape "constant".
        until_kimg: where it has arrived; at `start_kimg`, it jumps there. Null with the shape "constant".
        start_kimg: where it begins to change.
        shape: "linear" changes at a constant rate; "cosine" follows half a period of a cosine, slow at both ends (Loshchilov and
            Hutter 2017, Eq. 5); "constant" stays at `from`, which is of use with `warmup_kimg`.
        warmup_kimg: over the first so many kimg of the run the value rises linearly from 0, as a factor of all of the above.
    """

    from_: float = field(metadata={"key": "from"})
    to: float | None = field(default=None, metadata={"range": "finite"})
    until_kimg: float | None = field(default=None, metadata={"range": "at least start_kimg"})
    start_kimg: float = 0.0
    shape: Literal["linear", "cosine", "constant"] = "linear"
    warmup_kimg: float = 0.0

    def __post_init__(self) -> None:
        check(self, "from_", is_finite(self.from_), "must be finite")
        check(self, "shape", self.shape in ("linear", "cosine", "constant"), "is not a shape; use linear, cosine or constant")
        if self.shape == "constant":
            unused = "must be left out with shape=constant, which stays at from; use shape=linear, with until_kimg=start_kimg for a jump"
            check(self, "to", self.to is None, unused)
            check(self, "until_kimg", self.until_kimg is None, unused)
            check(self, "start_kimg", self.start_kimg == 0, unused)
        else:
            also = "; or set shape=constant"
            check(self, "to", is_finite(self.to), f"must be finite: it is the value at until_kimg{also if self.to is None else ''}")
            check(self, "start_kimg", is_finite(self.start_kimg) and self.start_kimg >= 0, "must be at least 0")
            until = is_finite(self.until_kimg) and self.until_kimg is not None and self.start_kimg <= self.until_kimg
            check(self, "until_kimg", until, f"must be a number of at least start_kimg ({self.start_kimg:g})")
        check(self, "warmup_kimg", is_finite(self.warmup_kimg) and self.warmup_kimg >= 0, "must be at least 0")

    def at(self, nimg: int) -> float:
        """The value at so many images."""
        kimg, value = nimg / 1000, self.from_
        if self.shape != "constant":
            assert self.to is not None and self.until_kimg is not None
            low, high = self.bounds
            value = min(max(self.from_ + (self.to - self.from_) * self._way(kimg, self.until_kimg), low), high)
            value = self.to if kimg >= self.until_kimg else value
        return value * min(1.0, kimg / self.warmup_kimg) if self.warmup_kimg else value

    def _way(self, kimg: float, until: float) -> float:
        """How much of the way from `from` to `to` lies behind, in [0, 1]."""
        if kimg >= until or kimg <= self.start_kimg:
            return float(kimg >= until)
        way = (kimg - self.start_kimg) / (until - self.start_kimg)
        return 0.5 - 0.5 * math.cos(math.pi * way) if self.shape == "cosine" else way

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that it can have, warm-up left out."""
        to = self.from_ if self.to is None else self.to
        return min(self.from_, to), max(self.from_, to)

    @property
    def changes(self) -> bool:
        """Whether it ever has another value than `from`."""
        return self.warmup_kimg > 0 or self.bounds[0] != self.bounds[1]

    @property
    def words(self) -> str:
        """It in words, such as "from 0.0002 to 5e-05 between 0 and 20000 kimg (cosine)"."""
        warm = f"warm-up from 0 over {self.warmup_kimg:g} kimg" if self.warmup_kimg else ""
        if self.until_kimg is None or self.to is None:
            return f"{self.from_:g}{f' after a {warm}' if warm else ''}"
        span = f"at {self.until_kimg:g} kimg" if self.until_kimg == self.start_kimg else ""
        span = span or f"between {self.start_kimg:g} and {self.until_kimg:g} kimg ({self.shape})"
        return f"from {self.from_:g} to {self.to:g} {span}{f', with a {warm}' if warm else ''}"


Scheduled: TypeAlias = float | Schedule


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def value_at(value: Scheduled, nimg: int) -> float:
    """A number of a configuration at so many images."""
    return value.at(nimg) if isinstance(value, Schedule) else value


def bounds_of(value: Scheduled) -> tuple[float, float]:
    """The smallest and the largest value of a number of a configuration, for its checks."""
    return value.bounds if isinstance(value, Schedule) else (value, value)


def check_scheduled(section: Any, field: str, value: Scheduled, holds: Callable[[float], bool], remedy: str, key: str = "") -> None:
    """Refuse a number that does not hold, or a schedule one of whose ends does not; the message names the end.

    Args:
        section: the dataclass.
        field: its field.
        value: of the field, or a number or schedule within it.
        holds: whether a number is allowed.
        remedy: what is asked of it, such as "must be above 0".
        key: full name of the value within the section; "" is that of the field.

    Raises:
        InvalidField: for the field, or for `FIELD.from` or `FIELD.to`.
    """
    if not isinstance(value, Schedule):
        check(section, field, holds(value), remedy)
        return
    for end, number in (("from", value.from_), ("to", value.to)):
        if number is not None and not holds(number):
            raise InvalidField(f"{key or field}.{end}", number, remedy)


def check_positive(section: Any, field: str, remedy: str = "must be above 0") -> None:
    """Refuse a number that is not above 0, or a schedule with an end below 0 or with nothing above it.

    Raises:
        InvalidField: for the field, or for `FIELD.from` or `FIELD.to`.
    """
    value: Scheduled = getattr(section, field)
    if not isinstance(value, Schedule):
        check(section, field, 0 < value < float("inf"), remedy)
        return
    check_scheduled(section, field, value, lambda number: number >= 0, "must be at least 0")
    if value.bounds[1] == 0:
        raise InvalidField(f"{field}.from", value.from_, "must be above 0, or to must be")
