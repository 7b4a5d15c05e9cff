"""Runs set beside each other: which differ in their seed alone, and the mean of their scores with its interval."""
from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.special import stdtrit

from gantrain import loading
from gantrain.errors import UserError
from gantrain.record import Evaluation, Record

LEVEL = 0.95  # of intervals
# What may differ between runs that repeat each other: nothing in it touches what is trained or how it is scored.
MAY_DIFFER = ("run_dir", "seed", "checkpoint.", "tracking.", "performance.", "data.root", "data.keep_in", "data.workers", "data.download", "orbit.", "eval.async")
STATED = ("num_samples", "reference_fingerprint", "features", "truncation")  # of a protocol: scores that differ in these do not compare


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
    """Runs of one configuration but for the seed, and what to call them."""

    name: str
    records: list[Record]

    @property
    def several(self) -> bool:
        return len(self.records) > 1


def grouped(records: Sequence[Record]) -> list[Group]:
    """Runs put together where they differ in nothing but their seed and what has no part in the training."""
    groups: list[list[Record]] = []
    for record in records:
        for group in groups:
            if not differences(group[0], record):
                group.append(record)
                break
        else:
            groups.append([record])
    names = [name_of(group) for group in groups]
    return [Group(name if names.count(name) == 1 else f"{name} ({i + 1})", group) for i, (name, group) in enumerate(zip(names, groups))]


def differences(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """Keys of the configurations in which two runs are no repetitions of each other, with both values."""
    return {k: v for k, v in loading.differing_keys(a.config, b.config).items() if not k.startswith(MAY_DIFFER)}


def name_of(group: Sequence[Record]) -> str:
    """What the folders of a group have in common: `swap` for swap_0, swap_1 and swap_2."""
    names = [record.run.resolve().name for record in group]
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(names).rstrip("0123456789").removesuffix("seed").rstrip("_-. ")
    return common or names[0]


def scored_alike(record: Record) -> tuple[list[Evaluation], int]:
    """(the evaluations that compare with the last one, how many others there are): `eval` may change at a resume."""
    everything = record.evaluations
    if not everything:
        return [], 0
    alike = [one for one in everything if stated(one) == stated(everything[-1])]
    return alike, len(everything) - len(alike)


def stated(one: Evaluation) -> dict[str, Any]:
    """What of a protocol makes scores comparable."""
    return {key: one.protocol.get(key) for key in STATED}


def require_comparable(records: Sequence[Record]) -> None:
    """Refuse to draw scores into one picture that say different things.

    Raises:
        UserError: two runs were scored by other counts, references, features or truncations.
    """
    scored = [(record, record.evaluations[-1]) for record in records if record.evaluations]
    for record, last in scored[1:]:
        first, reference = scored[0]
        different = {k: (a, b) for (k, a), b in zip(stated(reference).items(), stated(last).values()) if a != b}
        if different:
            key, (a, b) = next(iter(different.items()))
            raise UserError(
                f"{record.run}: its scores do not compare with {first.run}'s (eval/{key} is {b!r} here and {a!r} there);"
                f" report them apart, or score both alike with `gantrain evaluate`"
            )


def curves(group: Group, metric: str) -> list[Curve]:
    """A curve an average, live first; moments and averages that not all runs of the group have are left out."""
    runs = {record.run.resolve().name if group.several else group.name: scored_alike(record)[0] for record in group.records}
    runs = {name: found for name, found in runs.items() if found}
    if not runs:
        return []
    found = []
    for average in dict.fromkeys(name for evaluations in runs.values() for one in evaluations for name in one.scores):
        points = [[(one.nimg, one.scores[average][metric]) for one in evaluations if metric in one.scores.get(average, {})] for evaluations in runs.values()]
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
    """Moments that all runs have, as rows of a point a run: growing batches shift an evaluation by less than its period."""
    fewest = min(points, key=len)
    gaps = [b[0] - a[0] for a, b in zip(fewest, fewest[1:])]
    near = min(gaps) / 2 if gaps else math.inf
    rows = []
    for nimg, _ in fewest:
        row = [min(one, key=lambda point: abs(point[0] - nimg)) for one in points if one]  # noqa: B023
        if len(row) == len(points) and all(abs(point[0] - nimg) < near for point in row):
            rows.append(row)
    return rows


def half_width(values: Sequence[float]) -> float:
    """Half of the interval of a mean of independent numbers at the 95% level, by Student's t; nan of fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
