"""Tables as text: columns of one width, put side by side."""

from __future__ import annotations

from collections.abc import Sequence


def align(cells: Sequence[str], right: bool = False, least: int = 0) -> list[str]:
    """A column: its cells, the head first where it has one, padded to one width.

    Args:
        cells: from the top.
        right: flush right instead of left.
        least: of the width, in characters; the longest cell may make it larger.
    """
    width = max([least, *map(len, cells)])
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def join_columns(columns: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Aligned columns as lines, a row each, without blanks at their ends; `gap` stands between two columns."""
    return "\n".join(gap.join(row).rstrip() for row in zip(*columns, strict=True))
