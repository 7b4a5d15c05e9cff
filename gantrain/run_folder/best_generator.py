"""The best averaged generator of a run, as a run folder with nothing else in it: small enough to share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gantrain.atomic_file import write_atomically
from gantrain.averaging import LIVE
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import group_of
from gantrain.run_folder.layout import BEST_FOLDER, CONFIG_FILE
from gantrain.run_folder.record import Evaluation, Record, evaluation, stated
from gantrain.score_names import better_when_higher, can_be_best

OF_CLASSES = ("class_names", "class_counts")  # keys of a checkpoint's state that describe the classes; older runs lack them


@dataclass(frozen=True)
class Candidate:
    """A generator that may be the best.

    Attributes:
        path: the checkpoint that contains it.
        average: name of the average.
        metric: the metric by which it is chosen.
        scored: the evaluation by which it is chosen; its time differs from that of the checkpoint if no checkpoint of its time is kept.
    """

    path: Path
    average: str
    metric: str
    scored: Evaluation

    @property
    def nimg(self) -> int:
        """Images seen by its weights."""
        return int(self.path.name)

    @property
    def scores(self) -> dict[str, float]:
        """Its scores by metric."""
        return self.scored.scores[self.average]

    @property
    def described(self) -> dict[str, Any]:
        """What a reader needs to know about it, as JSON values."""
        return {
            "average": self.average, "nimg": self.nimg, "kimg": self.nimg / 1000, "metric": self.metric, "scores": self.scores,
            "scored_at_kimg": self.scored.nimg / 1000, "protocol": self.scored.protocol,
        }  # fmt: skip


def candidates(record: Record) -> Iterator[Candidate]:
    """The averages in a run's folder, best first by the run's first metric; live weights if there are no averages.

    Those that were scored when their checkpoint was made come first, then the last checkpoint with the scores of the last evaluation.
    """
    evaluations = [one for one in record.comparable if can_be_best(one.nimg)]
    if not evaluations:
        return
    metric = record.metrics[0]
    stores = [checkpoint.CheckpointStore(folder) for folder in [*sorted((record.run / BEST_FOLDER).glob("*")), record.run / "checkpoints"]]
    paths = {int(path.name): path for store in stores for path in store.paths()}
    told = (evaluation(line) for line in record.abandoned if "event" not in line)  # `best/` may hold a checkpoint of an abandoned path
    scored = {one.nimg: one for one in [*filter(None, told), *evaluations] if stated(one) == stated(evaluations[-1])}
    there = [nimg for nimg in paths if nimg in scored and can_be_best(nimg)]
    found = [one for nimg in there for one in of_evaluation(paths[nimg], metric, scored[nimg])]
    yield from ranked(found)
    if paths and can_be_best(max(paths)):
        yield from ranked(of_evaluation(paths[max(paths)], metric, evaluations[-1]))


def of_evaluation(path: Path, metric: str, scored: Evaluation) -> list[Candidate]:
    """Everything that was scored by a metric; live weights only if nothing else was scored."""
    names = [name for name, row in scored.scores.items() if math.isfinite(row.get(metric, math.nan))]
    return [Candidate(path, name, metric, scored) for name in names if name != LIVE or list(scored.scores) == [LIVE]]


def ranked(found: list[Candidate]) -> list[Candidate]:
    """Best first; averages before live weights, which an early evaluation may have scored alone."""
    sign = -1 if found and better_when_higher(found[0].metric) else 1
    return sorted(found, key=lambda one: (one.average == LIVE, sign * one.scores[one.metric]))


def export(run: Path, chosen: Candidate, folder: Path) -> Path:
    """Write a run folder with only this generator, for `gantrain.load_generator` and `gantrain sample`.

    Args:
        folder: where the run folder is created, under a name made of the time and the average.

    Returns:
        The path of the run folder.

    Raises:
        Damaged: the checkpoint is damaged.
        OSError: the folder could not be written.
    """
    groups = ["g", *([] if chosen.average == LIVE else [group_of(chosen.average)])]
    snapshot = checkpoint.read(chosen.path, groups)
    averages = {name: one for name, one in snapshot.state["averages"].items() if name == chosen.average}
    state = {"gantrain": snapshot.state["gantrain"], "shape": snapshot.state["shape"], "averages": averages, "chosen": chosen.described}
    state |= {key: snapshot.state[key] for key in OF_CLASSES if key in snapshot.state}
    target = folder / f"{chosen.path.name}-{chosen.average}"
    checkpoint.write(target / "checkpoints" / chosen.path.name, snapshot.nimg, snapshot.tensors, state)
    write_atomically(target / CONFIG_FILE, (run / CONFIG_FILE).read_bytes(), durable=True)
    return target
