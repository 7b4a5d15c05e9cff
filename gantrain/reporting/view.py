"""What shows a run beside its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class View(Protocol):
    """Shows a run somewhere: Weights & Biases, TensorBoard, or what you write. `Tracker` calls it on the main process only.

    It shows what metrics.jsonl and the run folder have; they stay the truth. A view whose method raises is let go with one line
    and training goes on, so a view need not guard itself; but a call returns at once, since training waits for it: what may take
    long goes behind a `ViewThread`.

    Attributes:
        name: in messages.
    """

    name: str

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """A line of numbers of metrics.jsonl, training's or an evaluation's.

        Args:
            nimg: images seen; an evaluation in the background comes late, with fewer than the line before.
            values: by key; an evaluation's also have words.
        """

    def event(self, nimg: int, name: str, words: str, fields: Mapping[str, Any]) -> None:
        """What happens once: a swap, growth, rollback, warning, interruption, the end.

        Args:
            nimg: images seen.
            name: of the event.
            words: what happened, for a person.
            fields: of its line in metrics.jsonl.
        """

    def overview(self, nimg: int) -> None:
        """There are new scores: charts of the whole record may be drawn anew."""

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """A picture that is on disk, such as the orbit's."""

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """A picture of sample sheets that is on disk, see `gantrain.sampling.sheets.read_side_by_side`.

        Args:
            nimg: images seen.
            path: of the picture.
            classes: the sheets' columns; none where there are no classes.
        """

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run."""

    def conclude(self) -> None:
        """The run ends, however it does: the last word."""

    def finish(self, exit_code: int, wait: bool = True) -> None:
        """Close; the last call. Unless `wait`, at once, whatever has not been shown yet."""
