"""Values as strict JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # numbers that JSON does not have


def restored(value: Any) -> Any:
    """The same values, with nan and infinities as floats again; other strings stay strings."""
    if isinstance(value, dict):
        return {k: restored(v) for k, v in value.items()}
    if isinstance(value, list):
        return [restored(v) for v in value]
    return WORDS.get(value, value) if isinstance(value, str) else value


def as_json(value: Any) -> Any:
    """A value for strict JSON, with nan and infinities as the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    return value
