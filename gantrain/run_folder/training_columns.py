"""The numbers of a record's training lines as columns, which take a twentieth of the memory of the lines."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# The keys of training lines that reports and charts show.
SHOWN = (
    "loss/g", "loss/d", "batch/size", "batch/rounds", "lr/g", "lr/d",
    *(f"noise_scale/{player}/{name}" for player in "GD" for name in ("b_simple", "b_simple_low", "b_simple_high", "measurements")),
    "throughput/img_per_s", "throughput/elapsed_s", "throughput/left_s",
)  # fmt: skip
NAMED = ("penalty/", "augment/")  # and all keys that begin like this: a run chooses their names
EXCLUDES = "throughput/left_excludes"  # a text, of which only that of the last line is shown
MISSING = math.inf  # in a column: the line does not have the key. A value that is not finite is nan there, since neither is drawn


@dataclass(frozen=True)
class TrainingColumns:
    """Numbers of the training lines of the path that led to the weights.

    Attributes:
        places: position of each line in the record, int64 `[N]`.
        nimg: images seen, int64 `[N]`.
        values: key -> float64 `[N]`; nan where the value is not finite, `MISSING` where the line does not have the key.
        whole: keys whose values are all integers.
        excludes: what the last line's time left does not include; None if it is unknown, since that line was not the last when it was read.
    """

    places: np.ndarray
    nimg: np.ndarray
    values: Mapping[str, np.ndarray]
    whole: frozenset[str] = frozenset()
    excludes: str | None = ""

    def __len__(self) -> int:
        return len(self.nimg)

    def has(self, *keys: str) -> bool:
        """Whether a line has one of these keys."""
        return any(key in self.values for key in keys)

    def points(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(images seen, values) of the lines that have a key; a value that is not finite is nan."""
        import numpy as np

        if key not in self.values:
            return self.nimg[:0], np.zeros(0)
        there = self.values[key] != MISSING
        return self.nimg[there], self.values[key][there]

    def highest(self, key: str, after: int) -> float:
        """The highest finite value of a key, of lines after a position in the record; 0 if there is none."""
        import numpy as np

        if key not in self.values:
            return 0.0
        values = self.values[key][self.places > after]
        return max(0.0, float(values[np.isfinite(values)].max(initial=0.0)))

    def plain(self, key: str, values: np.ndarray) -> list[float | int | None]:
        """Values of a key as the record spells them; None where one is not finite."""
        kind = int if key in self.whole else float
        return [None if value != value else kind(value) for value in values.tolist()]

    def row(self, index: int) -> dict[str, Any]:
        """The numbers of a line, as it has them; those that are not finite are nan."""
        found: dict[str, Any] = {"nimg": int(self.nimg[index])}
        for key, column in self.values.items():
            if column[index] != MISSING:
                value = float(column[index])
                found[key] = int(value) if key in self.whole and value == value else value
        return found

    def last(self) -> dict[str, Any]:
        """The numbers of the last line; without the time left if it is not known what that does not include. Empty if there is none."""
        if not len(self):
            return {}
        found = self.row(-1)
        if self.excludes is None:
            found.pop("throughput/left_s", None)
        return found | ({EXCLUDES: self.excludes} if self.excludes else {})

    def rows(self, most: int) -> list[dict[str, Any]]:
        """At most `most` of the lines as `row` gives them, evenly spaced, including the last."""
        step = max(1, -(-len(self) // most))
        return [self.row(index) for index in range((len(self) - 1) % step, len(self), step)]


@dataclass
class ColumnsBuilder:
    """Collects training lines as columns, one after the other."""

    _places: array = field(default_factory=lambda: array("q"))
    _nimg: array = field(default_factory=lambda: array("q"))
    _values: dict[str, array] = field(default_factory=dict)
    _keys: list[str] = field(default_factory=lambda: list(SHOWN))
    _known: set[str] = field(default_factory=lambda: set(SHOWN))  # all keys that were there, shown or not
    _fractional: set[str] = field(default_factory=set)
    _excludes: str = ""

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: int, line: Mapping[str, Any]) -> None:
        """Add a training line.

        Args:
            place: its position in the record.
            line: as `gantrain.run_folder.record_lines.parse` returns it.
        """
        before = len(self._places)
        self._places.append(place)
        self._nimg.append(line["nimg"])
        if new := line.keys() - self._known:
            self._known |= new
            self._keys += sorted(key for key in new if key.startswith(NAMED))
        for key in self._keys:
            value = line.get(key, MISSING)
            column = self._values.get(key)
            if value is MISSING:
                if column is not None:
                    column.append(MISSING)
                continue
            if column is None:
                column = self._values[key] = array("d", [MISSING]) * before
            if type(value) is float:
                self._fractional.add(key)
                column.append(value if value - value == 0 else math.nan)
            else:
                column.append(value)
        self._excludes = line.get(EXCLUDES, "")

    def columns(self, mask: Sequence[int] | None = None) -> TrainingColumns:
        """The columns of all lines, or of those that stay by a mask over all lines of the record, see `Splitter`."""
        import numpy as np

        # Copies: an array that grows cannot lend its memory.
        places, nimg = (np.array(column, dtype=np.int64) for column in (self._places, self._nimg))
        values = {key: np.array(column) for key, column in self._values.items()}
        whole = frozenset(values) - self._fractional
        excludes: str | None = self._excludes
        if mask is not None:
            stay = np.frombuffer(bytes(mask), dtype=np.uint8)[places].astype(bool) if len(places) else np.zeros(0, dtype=bool)
            if not stay.all():
                excludes = excludes if stay[-1] else None
                places, nimg = places[stay], nimg[stay]
                values = {key: column[stay] for key, column in values.items()}
                values = {key: column for key, column in values.items() if (column != MISSING).any()}
        return TrainingColumns(places, nimg, values, whole, excludes)


def columns_of(lines: Iterable[tuple[int, Mapping[str, Any]]]) -> TrainingColumns:
    """The columns of the training lines among (position, line)."""
    builder = ColumnsBuilder()
    for place, line in lines:
        if "loss/d" in line:
            builder.add(place, line)
    return builder.columns()
