"""The contract of a view, which shows a run somewhere else than in its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gantrain.errors import one_line


class View(Protocol):
    """Shows a run somewhere: in Weights & Biases, in TensorBoard, or in a view of your own. Only the main process has views.

    A view shows what metrics.jsonl and the run folder contain; they remain the source of truth. If a method raises, the view is dropped
    with one line, and training continues, so a view need not catch its errors. Calls must return quickly, since training waits for them:
    put a slow view behind a `ViewThread`.

    Attributes:
        name: for messages.
    """

    name: str

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """Show a line of numbers of metrics.jsonl, from training or an evaluation.

        Args:
            nimg: images seen; a background evaluation comes late, with fewer images than the line before it.
            values: by key; those of an evaluation include text.
        """

    def event(self, nimg: int, name: str, words: str, fields: Mapping[str, Any]) -> None:
        """Show an event: a swap, growth, rollback, warning, interruption or the end.

        Args:
            nimg: images seen.
            name: of the event.
            words: the event in words.
            fields: of its line in metrics.jsonl.
        """

    def overview(self, nimg: int) -> None:
        """Called after new scores: charts of the whole record may be redrawn."""

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """Show a picture file, such as the orbit's."""

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Show a picture file of sample sheets; see `gantrain.sampling.sheets.read_side_by_side`.

        Args:
            nimg: images seen.
            path: of the picture.
            classes: names of the sheets' columns; empty if the data has no classes.
        """

    def summary(self, values: Mapping[str, Any]) -> None:
        """Show the final numbers of the run."""

    def conclude(self) -> None:
        """Called once before `finish`, however the run ended."""

    def finish(self, exit_code: int, wait: bool = True) -> None:
        """Close the view; this is the last call. Unless `wait`, close immediately, even if something has not been shown yet."""


def describe_failure(name: str, error: BaseException) -> str:
    """The line that is printed when a call of a view fails."""
    return f"{name}: stopped ({one_line(error)[:160]}); training continues; metrics.jsonl is complete"
