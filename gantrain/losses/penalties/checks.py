"""Ranges that the fields of several penalties share."""

from __future__ import annotations

import math
from typing import Any

from gantrain.errors import check
from gantrain.schedule import bounds_of


def check_weight(section: Any, field: str) -> None:
    """Refuse a weight that is not above 0; a schedule may start or end at 0."""
    smallest, largest = bounds_of(getattr(section, field))
    check(section, field, smallest >= 0 and 0 < largest < math.inf, "must be above 0")


def check_every(section: Any) -> None:
    """Refuse an interval below one step."""
    check(section, "every", section.every >= 1, "must be at least 1")


def check_above_0(section: Any, field: str) -> None:
    """Refuse a number that is not above 0, or is infinite."""
    check(section, field, 0 < getattr(section, field) < math.inf, "must be above 0")
