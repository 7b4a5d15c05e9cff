"""`--average best`: the weights with the best score of a run, as `gantrain runs` and the report show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gantrain.averaging import LIVE
from gantrain.errors import UserError
from gantrain.run_folder import record
from gantrain.run_folder.checkpoint import Damaged, read_state
from gantrain.run_folder.contents import checkpoints_of, configuration_of, look_again, rebuilt_of
from gantrain.run_folder.layout import BEST
from gantrain.run_folder.manifest import Gone
from gantrain.run_folder.record import Record
from gantrain.run_folder.record_lines import describe_unreadable


@dataclass(frozen=True)
class BestAverage:
    """The weights with the best score.

    Attributes:
        average: name of an average, or "live".
        nimg: images seen by the weights, and by the checkpoint that has them.
        metric: the metric of the score.
        score: its value.
    """

    average: str
    nimg: int
    metric: str
    score: float

    @property
    def words(self) -> str:
        """The score and whose it is."""
        return f"{self.metric} {self.score:.4f} of {self.average} at {self.nimg / 1000:g} kimg"


def resolve_best(
    run: str | Path, names: Sequence[str], kimg: float | None, say: Callable[[str], None] = lambda line: None
) -> tuple[list[str], float | None]:
    """Replace `best` in a list of averages by the name of the average that it stands for.

    That is the best score by the run's first metric, over the live weights and all averages, at any time but 0, or at `kimg`. In a run
    that has an average of the name `best`, the name means that average.

    Args:
        run: a run folder.
        names: averages.
        kimg: the time; None takes that of the best score, for all of `names`.
        say: receives a line that says what was taken.

    Returns:
        (the names, without doubles; the time of the checkpoint, or None for the newest).

    Raises:
        UserError: nothing was scored, or the checkpoint of the best score is gone.
    """
    if BEST not in names:
        return list(names), kimg
    return look_again(lambda: resolve(Path(run), names, kimg, say))


def resolve(
    run: Path, names: Sequence[str], kimg: float | None, say: Callable[[str], None]
) -> tuple[list[str], float | None]:  # fmt: skip
    """What `resolve_best` returns; raises `Gone` if a checkpoint is deleted while it is looked at."""
    if BEST in configuration_of(run).averagers or BEST in rebuilt_of(run):
        say(f"best: the average of this name that {run} has, not the average with the best score")
        return list(names), kimg
    found = find_best(run, kimg, say)
    say(f"best: {found.average} at {found.nimg / 1000:g} kimg, {found.metric} {found.score:.4f}")
    return list(dict.fromkeys(found.average if name == BEST else name for name in names)), found.nimg / 1000


def find_best(run: Path, kimg: float | None = None, say: Callable[[str], None] = lambda line: None) -> BestAverage:
    """The best score of a run, or of a time in it, whose checkpoint is there; `say` receives a note if its record is damaged.

    Raises:
        UserError: nothing was scored, or the checkpoint of the best score is gone.
    """
    found, there = record.outline(run), checkpoints_of(run)
    if found.unreadable:
        say(f"note: {describe_unreadable(found.unreadable, run)}")
    times = None if kimg is None else [round(kimg * 1000)]
    best = best_of(found, times)
    if best is None:
        exported = exported_there(there, times)
        return exported if exported else refuse_unscored(run, found, kimg)
    if holds(found, there.get(best.nimg), best):
        return best
    left = [nimg for nimg, path in there.items() if (one := best_of(found, [nimg])) and holds(found, path, one)]
    other = best_of(found, left)
    remedy = (
        f"the best of what is left is {other.words}: use --average {other.average} --kimg {other.nimg / 1000:g}"
        if other
        else f"checkpoints are left at {', '.join(f'{nimg / 1000:g}' for nimg in sorted(there)) or 'no'} kimg, of which none was scored"
    )
    keep = f"eval/{best.average}/{best.metric}"
    raise UserError(
        f"--average best: {run} no longer has the weights of its best score, {best.words}{damage_in(there.get(best.nimg))}; {remedy};"
        f" checkpoint.keep_best=[{keep}] keeps them"
    )


def best_of(found: Record, times: Sequence[int] | None) -> BestAverage | None:
    """The best score by the run's first metric, at any time or at some; None if there is none."""
    best = found.best(times=times)
    return BestAverage(best[1], best[2], found.metrics[0], best[0]) if best else None


def holds(found: Record, path: Path | None, best: BestAverage) -> bool:
    """Whether a checkpoint has the weights that were scored.

    Not if they are the live weights and a swap has replaced them since, or if the checkpoint is of a path that a rollback abandoned:
    then its own scores of this moment are others. A checkpoint that is being scored has none yet.
    """
    if path is None:
        return False
    try:
        state = read_state(path)
    except Gone:
        raise
    except Damaged:
        return False
    swapped = best.average == LIVE and any(line.get("swap_nimg") == best.nimg for line in found.events("swap"))
    if swapped and state["scored_at"] != best.nimg:  # saved after the swap
        return False
    if state.get("scores_of", state["scored_at"]) != best.nimg:
        return True
    return dict(dict(state["scores"]).get(best.average, ())).get(best.metric) == best.score


def damage_in(path: Path | None) -> str:
    """The damage of a checkpoint in words, for the middle of a message; empty if there is none."""
    try:
        if path is not None:
            read_state(path)
    except Damaged as error:
        return f" ({error})"
    return ""


def exported_there(there: dict[int, Path], times: Sequence[int] | None) -> BestAverage | None:
    """The generator of a folder that `gantrain.run_folder.best_generator.export` wrote; None if it is another folder."""
    for nimg, path in there.items():
        chosen: dict[str, Any] | None = read_state(path).get("chosen")
        if chosen and (times is None or nimg in times):
            return BestAverage(chosen["average"], nimg, chosen["metric"], chosen["scores"][chosen["metric"]])
    return None


def refuse_unscored(run: Path, found: Record, kimg: float | None) -> NoReturn:
    """Refuse `best` where nothing was scored.

    Raises:
        UserError: always.
    """
    scored = sorted(one.nimg for one in found.comparable if one.nimg > 0)
    if kimg is None or not scored:
        raise UserError(f"--average best: {run} has no scores yet to choose by; name an average, such as --average ema")
    raise UserError(
        f"--average best: {run} has no scores at {kimg:g} kimg, or none that are comparable with its last ones;"
        f" it was scored at {', '.join(f'{nimg / 1000:g}' for nimg in scored)} kimg"
    )
