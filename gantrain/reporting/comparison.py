"""Runs compared: which differ in their seed alone, and the mean of their scores with its interval."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from gantrain.config import loading
from gantrain.config.schema import may_differ
from gantrain.errors import UserError
from gantrain.run_folder.record import Record, stated

LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Curve:
    """One average's score over images seen, of a run or of several that repeat each other.

    Attributes:
        average: its name, or "live".
        kimg: of the evaluations, the mean of the runs' where they differ by a batch.
        mean: of the runs' scores, or the only run's.
        half: half-widths of the 95% interval of that mean (Student's t over the runs); None of a single run.
        runs: each run's own scores at these moments, by the run's name.
    """

    average: str
    kimg: list[float]
    mean: list[float]
    half: list[float] | None
    runs: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Runs whose configurations differ in the seed alone, and a name for them."""

    name: str
    records: list[Record]

    @property
    def several(self) -> bool:
        return len(self.records) > 1


def grouped(records: Sequence[Record]) -> list[Group]:
    """Runs grouped by configuration, `MAY_DIFFER` and the seed aside.

    Raises:
        UserError: two runs of a group have the same seed, so they are the same run twice.
    """
    groups: list[list[Record]] = []
    for record in records:
        group = next((group for group in groups if not differences(group[0], record)), None)
        if group is None:
            groups.append([record])
            continue
        twin = next((one for one in group if one.full_config.seed == record.full_config.seed), None)
        if twin is not None:
            raise UserError(
                f"{record.run}: is {twin.run} again, seed {record.full_config.seed} included, so an interval over both would mean nothing;"
                f" leave one out"
            )
        group.append(record)
    names = [name_of(group) for group in groups]
    return [Group(name if names.count(name) == 1 else f"{name} ({i + 1})", group) for i, (name, group) in enumerate(zip(names, groups))]


def names_of(records: Sequence[Record]) -> dict[Path, str]:
    """A name for each run, by its resolved folder: the folder's name, with as many of its parents' as make it unique."""
    folders = [record.run.resolve() for record in records]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return dict(zip(folders, names))


def differences(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """The keys because of which two runs do not repeat each other, with both values."""
    return {k: v for k, v in loading.differing_keys(a.full_config, b.full_config).items() if not may_differ(k)}


def name_of(group: Sequence[Record]) -> str:
    """What the folders of a group have in common: `swap` for swap_0, swap_1 and swap_2."""
    names = [record.run.resolve().name for record in group]
    if len(names) == 1:
        return names[0]
    alike = "".join(letters[0] for letters in itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names)))
    common = alike.rstrip("0123456789").removesuffix("seed").rstrip("_-. ")
    return common or names[0]


def require_comparable(records: Sequence[Record]) -> None:
    """Refuse to draw scores into one picture that do not compare.

    Raises:
        UserError: two runs were scored with different counts, references, features or truncations.
    """
    scored = [(record, record.evaluations[-1]) for record in records if record.evaluations]
    for record, last in scored[1:]:
        first, reference = scored[0]
        different = {k: (a, b) for (k, a), b in zip(stated(reference).items(), stated(last).values()) if a != b}
        if different:
            key, (a, b) = next(iter(different.items()))
            raise UserError(
                f"{record.run}: its scores do not compare with {first.run}'s (eval/{key} is {b!r} here and {a!r} there);"
                f" report them separately, or score both alike with `gantrain evaluate`"
            )


def curves(group: Group, metric: str) -> list[Curve]:
    """One curve per average, live first; moments and averages that not all runs of the group have are left out."""
    names = names_of(group.records)
    runs = {names[record.run.resolve()]: record.comparable for record in group.records if record.comparable}
    if not runs:
        return []
    found = []
    for average in dict.fromkeys(name for evaluations in runs.values() for one in evaluations for name in one.scores):
        points = [
            [(one.nimg, one.scores[average][metric]) for one in evaluations if metric in one.scores.get(average, {})]
            for evaluations in runs.values()
        ]
        rows = matched(points)
        if not rows:
            continue
        values = [[value for _, value in row] for row in rows]
        found.append(
            Curve(
                average, [sum(nimg for nimg, _ in row) / len(row) / 1000 for row in rows], [sum(row) / len(row) for row in values],
                [half_width(row) for row in values] if len(runs) > 1 else None, dict(zip(runs, map(list, zip(*values)))),
            )
        )  # fmt: skip
    return found


def matched(points: Sequence[Sequence[tuple[int, float]]]) -> list[list[tuple[int, float]]]:
    """Moments that all runs have, as rows of one point per run: growing batches shift an evaluation by less than its period."""
    fewest = min(points, key=len)
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(fewest)]
    near = statistics.median(gaps) / 2 if gaps else math.inf  # the last may be short
    rows: list[list[tuple[int, float]]] = []
    for nimg, _ in fewest:
        row = [min(one, key=lambda point: abs(point[0] - nimg)) for one in points if one]
        again = bool(rows) and any(point == before for point, before in zip(row, rows[-1]))  # a point stands for one moment
        if len(row) == len(points) and all(abs(point[0] - nimg) < near for point in row) and not again:
            rows.append(row)
    return rows


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean of independent numbers, by Student's t; nan for fewer than two, or if one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
