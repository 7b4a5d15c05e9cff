"""How long the rest of a run takes: what its training and the work beside it have cost so far, times what is still to come."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# Kinds of work besides training, by which it is measured and named to the user.
SCORING, SAMPLES, SWAPS, CHECKPOINTS, SNAPSHOTS = "scoring", "samples", "swaps", "checkpoints", "snapshots"
ORBIT_LINES, ORBIT_PICTURES = "orbit recordings", "orbit pictures"
RECENT = 10  # measurements of each kind, and lines at each batch, that count


@dataclass
class Work:
    """A piece of work that is being measured.

    Attributes:
        units: how much of it is done; 0, which may be set while it is done, measures nothing.
        inside: seconds of work of other kinds within it, which are counted there.
    """

    units: float
    inside: float = 0.0


class Costs:
    """Measured seconds of what a run does besides training, by kind and per unit of work."""

    def __init__(self) -> None:
        self._measured: dict[str, deque[tuple[float, float]]] = {}  # kind -> (units, seconds)
        self._warm: set[str] = set()  # kinds measured at least twice
        self._open: list[Work] = []

    @contextlib.contextmanager
    def measure(self, kind: str, units: float = 1) -> Iterator[Work]:
        """Measure what is done within this context, without what is measured inside it. Nothing is learnt if it raises."""
        work, began = Work(units), time.monotonic()
        self._open.append(work)
        finished = False
        try:
            yield work
            finished = True
        finally:
            seconds = time.monotonic() - began
            self._open.pop()
            if self._open:
                self._open[-1].inside += seconds
            if finished and work.units > 0:
                self._add(kind, work.units, max(0.0, seconds - work.inside))

    def _add(self, kind: str, units: float, seconds: float) -> None:
        """Add a measurement. The first of a kind, with all that happens only once, counts only until there is a second."""
        measured = self._measured.setdefault(kind, deque(maxlen=RECENT))
        if measured and kind not in self._warm:
            self._warm.add(kind)
            measured.clear()
        measured.append((units, seconds))

    def per_unit(self, kind: str) -> float | None:
        """Seconds per unit of a kind of work, by the latest measurements; None before the first."""
        measured = self._measured.get(kind)
        return sum(s for _, s in measured) / sum(u for u, _ in measured) if measured else None

    def of(self, work: Mapping[str, float]) -> tuple[float, list[str]]:
        """(seconds that some work will take, the kinds that have not been measured yet and are not in them).

        Args:
            work: units by kind.
        """
        known = {kind: self.per_unit(kind) for kind, units in work.items() if units > 0}
        seconds = sum(work[kind] * cost for kind, cost in known.items() if cost is not None)
        return seconds, [kind for kind, cost in known.items() if cost is None]


@dataclass(frozen=True)
class Plan:
    """What is still to come.

    Attributes:
        training: (images, batch) of the stretches of training, in order.
        work: units of everything else, by the kinds of `Costs`.
    """

    training: Sequence[tuple[int, int]]
    work: Mapping[str, float] = field(default_factory=dict)


class Pace:
    """The seconds that training takes per image, at every batch that there has been.

    An update of B images takes a + b B seconds. Before two batches have been seen, a is unknown, and every batch is assumed to cost the
    same per image: a batch grows by rounds, which take the same time each.
    """

    def __init__(self) -> None:
        self._lines: dict[int, deque[tuple[int, float]]] = {}  # batch -> (images, seconds) of the latest lines
        self._latest = 0

    def add(self, images: int, seconds: float, batch: int) -> None:
        """Add a line: images since the one before it, and the seconds that they took."""
        if images > 0:
            self._lines.setdefault(batch, deque(maxlen=RECENT)).append((images, seconds))
            self._latest = batch

    def per_image(self, batch: int) -> float | None:
        """Seconds per image at a batch; None before the first line."""
        if batch in self._lines:
            return mean_rate(self._lines[batch])
        if not self._lines:
            return None
        here = mean_rate(self._lines[self._latest])
        others = [one for one in self._lines if one != self._latest]
        if not others or not batch:
            return here
        other = others[-1]
        per_update = (mean_rate(self._lines[other]) - here) / (1 / other - 1 / self._latest)
        per_update = min(max(0.0, per_update), here * self._latest)  # timings are noisy
        return here + per_update * (1 / batch - 1 / self._latest)

    def of(self, training: Sequence[tuple[int, int]]) -> float | None:
        """Seconds that some stretches of training will take; None before the first line."""
        rates = [(images, self.per_image(batch)) for images, batch in training]
        return None if any(rate is None for _, rate in rates) else sum(images * rate for images, rate in rates if rate is not None)


def mean_rate(lines: Sequence[tuple[int, float]]) -> float:
    """Seconds per image of some lines."""
    return sum(seconds for _, seconds in lines) / sum(images for images, _ in lines)
