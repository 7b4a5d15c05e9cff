"""Tables as text: aligned columns, joined into lines."""

from __future__ import annotations

from collections.abc import Sequence


def align(cells: Sequence[str], right: bool = False, least: int = 0) -> list[str]:
    """Pad the cells of a column, including its head if it has one, to one width.

    Args:
        cells: from the top.
        right: align right instead of left.
        least: minimum width in characters.
    """
    width = max([least, *map(len, cells)])
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def join_columns(columns: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Join aligned columns into lines, one per row, separated by `gap` and without trailing blanks."""
    return "\n".join(gap.join(row).rstrip() for row in zip(*columns, strict=True))
