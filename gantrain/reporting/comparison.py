"""Comparing runs: which differ only in their seed, and the mean of their scores with its interval."""

from __future__ import annotations

import bisect
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
FEWEST_RUNS = 3  # that give an interval: with two, Student's t has one degree of freedom and is 12.7 times as wide as they are apart


@dataclass(frozen=True)
class Curve:
    """One average's score over images seen, for one run or for several that differ only in their seed.

    Attributes:
        average: its name, or "live".
        kimg: times that all runs have; the mean over the runs if they differ by a batch.
        mean: mean score over the runs at these times.
        half: half-widths of the 95% interval of that mean (Student's t over the runs); None for fewer than `FEWEST_RUNS` runs.
        runs: each run's own (kimg, score), by name, at all of its times.
    """

    average: str
    kimg: list[float]
    mean: list[float]
    half: list[float] | None
    runs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def drawn_apart(self) -> bool:
        """Whether the runs are drawn one by one, since they are too few for an interval."""
        return 1 < len(self.runs) < FEWEST_RUNS

    @property
    def last(self) -> float:
        """The mean at the last time that all runs have; if there is none, the mean of each run's last score."""
        try:
            return self.mean[-1] if self.mean else statistics.fmean(points[-1][1] for points in self.runs.values())
        except (OverflowError, ValueError):  # of infinities, or too large
            return math.nan


@dataclass(frozen=True)
class Group:
    """Runs whose configurations differ only in the seed, and a name for them."""

    name: str
    records: list[Record]

    @property
    def several(self) -> bool:
        """Whether there is more than one run."""
        return len(self.records) > 1


def group_runs(records: Sequence[Record]) -> list[Group]:
    """Group runs whose configurations are equal except for the seed and keys that may differ (`may_differ`).

    Raises:
        UserError: two runs of a group have the same seed.
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
                f"{record.run}: has the same configuration and seed {record.full_config.seed} as {twin.run}, so an interval over both"
                " would be meaningless; remove one of them"
            )
        group.append(record)
    names = [name_of(group) for group in groups]
    return [Group(name if names.count(name) == 1 else f"{name} ({i + 1})", group) for i, (name, group) in enumerate(zip(names, groups))]


def names_of(records: Sequence[Record]) -> dict[Path, str]:
    """A name for each run, by resolved folder: the folder's name, with as many parents as make it unique."""
    folders = [record.run.resolve() for record in records]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return dict(zip(folders, names))


def differences(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """The keys in which two runs differ, other than those that may differ, with both values."""
    return {k: v for k, v in loading.differing_keys(a.full_config, b.full_config).items() if not may_differ(k)}


def name_of(group: Sequence[Record]) -> str:
    """The common beginning of a group's folder names: `swap` for swap_0, swap_1 and swap_2."""
    names = [record.run.resolve().name for record in group]
    if len(names) == 1:
        return names[0]
    alike = "".join(letters[0] for letters in itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names)))
    common = alike.rstrip("0123456789").removesuffix("seed").rstrip("_-. ")
    return common or names[0]


def require_comparable(records: Sequence[Record]) -> None:
    """Refuse runs whose scores are not comparable.

    Raises:
        UserError: two runs were scored with different counts, references, features or truncations.
    """
    scored = [(record, record.evaluations[-1]) for record in records if record.evaluations]
    for record, last in scored[1:]:
        first, reference = scored[0]
        different = {k: (a, b) for (k, a), b in zip(stated(reference).items(), stated(last).values()) if a != b}
        if different:
            key, (a, b) = next(iter(different.items()))
            hint = f", such as `gantrain evaluate {record.run} labels={a}`" if key == "labels" and a in ("uniform", "data") else ""
            raise UserError(
                f"{record.run}: its scores are not comparable with those of {first.run} (eval/{key} is {b!r} here and {a!r} there);"
                f" write separate reports, or score both in the same way with `gantrain evaluate`{hint}"
            )


def build_curves(group: Group, metric: str) -> list[Curve]:
    """One curve per average, live first, over the runs that have it; the others are named by `describe_gaps`."""
    scored = scores_of_runs(group, metric)
    found = []
    for average in dict.fromkeys(name for scores in scored.values() for name in scores):
        runs = {run: scores[average] for run, scores in scored.items() if average in scores}
        rows = match_times(list(runs.values()))
        values = [[value for _, value in row] for row in rows]
        found.append(
            Curve(
                average, [sum(nimg for nimg, _ in row) / len(row) / 1000 for row in rows], [sum(row) / len(row) for row in values],
                [half_width(row) for row in values] if len(runs) >= FEWEST_RUNS else None,
                {run: [(nimg / 1000, value) for nimg, value in points] for run, points in runs.items()},
            )
        )  # fmt: skip
    return found


def scores_of_runs(group: Group, metric: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Run -> average -> (images seen, score) of its comparable evaluations; what was never scored is left out."""
    names = names_of(group.records)
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in group.records:
        scores = found.setdefault(names[record.run.resolve()], {})
        for one in record.comparable:
            for average, row in one.scores.items():
                if metric in row:
                    scores.setdefault(average, []).append((one.nimg, row[metric]))
    return found


def describe_gaps(group: Group, metrics: Sequence[str]) -> list[str]:
    """Sentences on scores that some runs of a group lack, and on what is drawn of the others."""
    if not group.several:
        return []
    found = []
    for metric in metrics:
        scored = scores_of_runs(group, metric)
        lacking = [run for run, scores in scored.items() if not scores]
        if len(lacking) == len(scored):
            continue
        if lacking:
            found.append(f"{metric} is missing in {', '.join(lacking)}; it is drawn from the other runs of {group.name}.")
        for average in dict.fromkeys(name for scores in scored.values() for name in scores):
            without = [run for run, scores in scored.items() if scores and average not in scores]
            if without:
                found.append(f"{metric} of {average} is missing in {', '.join(without)}; it is drawn from the other runs of {group.name}.")
    return found


def match_times(points: Sequence[Sequence[tuple[int, float]]]) -> list[list[tuple[int, float]]]:
    """Times that all runs have, as rows of one point per run. Growing batches shift an evaluation by less than its period."""
    if len(points) < 2:
        return [[point] for one in points for point in one]
    fewest = min(points, key=len)
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(fewest)]
    near = statistics.median(gaps) / 2 if gaps else math.inf  # the last gap may be shorter
    rows: list[list[tuple[int, float]]] = []
    for nimg, _ in fewest:
        row = [nearest(one, nimg) for one in points if one]
        again = bool(rows) and any(point == before for point, before in zip(row, rows[-1]))  # a point is used once
        if len(row) == len(points) and all(abs(point[0] - nimg) < near for point in row) and not again:
            rows.append(row)
    return rows


def nearest(points: Sequence[tuple[int, float]], nimg: int) -> tuple[int, float]:
    """The point nearest to a time; of two, the earlier one.

    Args:
        points: at least one, in order of time.
        nimg: the time.
    """
    after = bisect.bisect_left(points, nimg, key=lambda point: point[0])
    return min(points[max(0, after - 1) : after + 1], key=lambda point: abs(point[0] - nimg))


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean of independent numbers, by Student's t.

    It is nan for fewer than `FEWEST_RUNS` numbers, or if one is not finite, or they are too large.
    """
    if len(values) < FEWEST_RUNS or not all(map(math.isfinite, values)):
        return math.nan
    try:
        return float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    except OverflowError:
        return math.nan
