"""Marks on the fields of configuration dataclasses, as `field(default=..., metadata=MAY_CHANGE)`; on a section they hold for all of it."""

from __future__ import annotations

MAY_CHANGE = {"may_change": True}  # when a run is resumed: nothing that was trained so far depends on it
MAY_DIFFER = {"may_differ": True}  # between runs that repeat each other: neither training nor scores depend on it
INCIDENTAL = {**MAY_CHANGE, **MAY_DIFFER}
