"""What a run folder contains: its configuration, its checkpoints, its averages."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from gantrain.averaging import LIVE
from gantrain.averaging.average import Mismatch
from gantrain.config.config import FREE_NAME, Config
from gantrain.errors import UserError, did_you_mean
from gantrain.regular_file import open_regular
from gantrain.run_folder import checkpoint
from gantrain.run_folder.as_trained import config_at
from gantrain.run_folder.held import Held, find_held, folders_in
from gantrain.run_folder.layout import AVERAGES_FOLDER, BEST_FOLDER, CONFIG_FILE, METRICS_FILE
from gantrain.run_folder.lost_checkpoints import no_checkpoint
from gantrain.run_folder.manifest import Damaged, Gone, hold
from gantrain.run_folder.notes import note_once
from gantrain.run_folder.own_config import load_config, require_whole_config
from gantrain.run_folder.recognition import holds_checkpoints, is_run_config, not_a_run
from gantrain.run_folder.replacing import delete, settle_replaced
from gantrain.run_folder.stores import CHECKPOINTS_FOLDER, best_folders, require_known_formats

BY_DEFAULT = re.compile(r"sigma_rel_[0-9.e+-]+_at_[0-9.e+-]+")  # as `default_name` makes them

T = TypeVar("T")


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Within this context, tensors of a checkpoint that do not fit the networks are its fault, and it is named."""
    try:
        yield
    except Mismatch as error:
        raise UserError(f"{path}: {error}; the checkpoint is damaged, or the code of the networks has changed since") from error


def require_average(config: Config, path: Path, average: str, kimg: float | None = None) -> None:
    """Refuse an average that a checkpoint does not have, or, if `kimg` is given, one that was rebuilt at another time.

    Raises:
        UserError: lists the available averages.
    """
    run, names = run_of(path), averages_of(path)
    if average not in names and average in config.averagers:
        raise UserError(f"{run}: average {average!r} has not started at {int(path.name) / 1000:g} kimg; there are {', '.join(names)}")
    if average not in names:
        raise UserError(f"{run}: no average {average!r} at {int(path.name) / 1000:g} kimg{did_you_mean(average, names)}")
    if kimg is not None and average in rebuilt_of(run):
        require_time(average, moment_of_rebuilt(run, average), kimg)


def configuration_of(run: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a run folder, with overrides. What one of its checkpoints was trained with, `open_run` says.

    Raises:
        UserError: not a run folder.
    """
    if not (run / CONFIG_FILE).is_file():
        above = next((p for p in run.absolute().parents if (p / CONFIG_FILE).is_file()), None)
        if above and run.exists():  # one of its checkpoints, say
            inside = next((p.name for p in (run, *sorted(run.glob("*"))) if p.name.isdecimal()), None)
            kimg = f", and --kimg {int(inside) / 1000:g} for this checkpoint" if inside else ""
            raise UserError(f"{run}: is not a run folder but part of one; pass {above}{kimg}")
        raise not_a_run(run)
    if (run / METRICS_FILE).exists() or holds_checkpoints(run):
        require_whole_config(run)
    try:
        return load_config(run, overrides)
    except UserError:
        if holds_checkpoints(run) or is_run_config(run / CONFIG_FILE) or not is_readable(run / CONFIG_FILE):
            raise
        raise UserError(
            f"{run}: is not a run folder (its {CONFIG_FILE} is not that of a run); pass the run_dir of a `gantrain train`"
        ) from None


def is_readable(path: Path) -> bool:
    """Whether a file can be opened."""
    try:
        open_regular(path).close()
    except OSError:
        return False
    return True


def look_again(read: Callable[[], T]) -> T:
    """What `read` returns, which begins anew where a run that trains has deleted or replaced what it reads.

    Raises:
        UserError: that happens again and again; says what has gone the last time.
    """
    for _ in range(checkpoint.TRIES - 1):
        with contextlib.suppress(Gone):
            return read()
    try:
        return read()
    except Gone as gone:
        raise UserError(
            f"{gone}, {checkpoint.TRIES} times in a row: the run replaces its files faster than they can be read; run the same command"
            " again, or when the run has ended"
        ) from gone


def open_run(run: str | Path, kimg: float | None = None, say: Callable[[str], None] = note_once) -> tuple[Config, Path]:
    """One of a run's checkpoints, that at `kimg` or the newest undamaged one, and the configuration with which it is read.

    Args:
        run: a run folder.
        kimg: which checkpoint; None is the newest.
        say: receives a line about each later checkpoint that is damaged.

    Raises:
        UserError: not a run folder, or no such checkpoint; or another version of gantrain wrote it, or it cannot be read.
    """
    config, held = open_held(run, kimg, say)
    return config, held.folder


def open_held(
    run: str | Path, kimg: float | None = None, say: Callable[[str], None] = note_once, overrides: Iterable[str] = ()
) -> tuple[Config, Held]:
    """The same, with the files of the checkpoint open: as long as they are held, it can be read even if the run deletes it.

    Args:
        run, kimg, say: see `open_run`.
        overrides: of the configuration, `section.key=value`.
    """
    overrides = list(overrides)
    config = configuration_of(Path(run), overrides)
    require_known_formats(Path(run))

    def opened() -> tuple[Config, Held]:
        held = hold_checkpoint(Path(run), kimg, say)
        return config_at(held.folder, Path(run), config, overrides), held

    return look_again(opened)


def open_checkpoint(run: str | Path, kimg: float | None = None, say: Callable[[str], None] = note_once) -> Held:
    """The checkpoint of `open_held` alone, for a caller that compares the run's configuration with it; arguments and errors as there."""
    configuration_of(Path(run))
    require_known_formats(Path(run))
    return look_again(lambda: hold_checkpoint(Path(run), kimg, say))


def hold_checkpoint(run: Path, kimg: float | None, say: Callable[[str], None]) -> Held:
    """Open a checkpoint of `open_run`.

    Raises:
        Gone: it was deleted meanwhile.
        UserError: there is none.
    """
    if kimg is None:
        skipped: list[str] = []
        newest = checkpoint.CheckpointStore(run / CHECKPOINTS_FOLDER, say=skipped.append).newest_held()
        if newest is None:
            raise no_checkpoint(run)
        for line in skipped:
            say(f"{line}; using the checkpoint at {int(newest.folder.name) / 1000:g} kimg")
        return newest
    there = checkpoints_of(run)
    path = there.get(round(kimg * 1000)) if math.isfinite(kimg) else None
    if not there:
        raise no_checkpoint(run)
    if path is None:
        found = ", ".join(f"{nimg / 1000:g}" for nimg in sorted(there))
        raise UserError(f"{run}: has no checkpoint at {kimg:g} kimg; it has {found}")
    return hold(path)


def checkpoints_of(run: Path) -> dict[int, Path]:
    """Everything in a run that `--kimg` chooses from: images seen -> a checkpoint, in `checkpoints/` or else in `best/`.

    One that this process holds is there, even if the run has deleted it.
    """
    folders = [*best_folders(run), run / CHECKPOINTS_FOLDER]
    return {int(path.name): path for one in folders for path in (*folders_in(one), *checkpoint.CheckpointStore(one).paths())}


def run_of(path: Path) -> Path:
    """The run folder of a checkpoint: RUN of RUN/checkpoints/<nimg> or RUN/best/<score>/<nimg>."""
    above = path.parent.parent
    return above.parent if above.name == BEST_FOLDER and path.parent.name != "checkpoints" else above


def group_of(name: str, network: str = "g", slots: bool = False) -> str:
    """Name of the group of tensors of an average in a checkpoint: its shadows, or its slots."""
    return f"{'slots' if slots else 'average'}{'' if network == 'g' else f'_{network}'}.{name}"


def averages_of(path: Path) -> list[str]:
    """What can be sampled at a checkpoint: "live", every average that has begun, and all rebuilt averages."""
    state = checkpoint.read(path, groups=[]).state
    return [LIVE, *(name for name, one in state["averages"].items() if one["num_averaged"] > 0), *rebuilt_of(run_of(path))]


def class_names_of(path: Path) -> tuple[str, ...] | None:
    """Names of the classes at a checkpoint, by label; None if the data has none, or the run is from before they were kept.

    Raises:
        Damaged: the checkpoint is damaged.
    """
    names = checkpoint.read_state(path).get("class_names")
    return None if names is None else tuple(names)


def rebuilt_of(run: Path) -> list[str]:
    """Names of the averages that `gantrain average` has written into a run's folder."""
    folder = run / AVERAGES_FOLDER
    settle_replaced(folder)
    there: list[Path] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        there = sorted({*folder.iterdir(), *folders_in(folder)})
    return [p.name for p in there if FREE_NAME.fullmatch(p.name) and not p.name.isdigit() and has_manifest(p)]


def has_manifest(folder: Path) -> bool:
    """Whether a folder is a checkpoint or a rebuilt average, or was one when this process opened it."""
    return (folder / checkpoint.MANIFEST).is_file() or bool(find_held(folder))


def times_of_rebuilt(run: Path) -> dict[str, int]:
    """Rebuilt averages -> images seen at their end; -1 for one that is damaged. One that is deleted meanwhile is left out."""
    times: dict[str, int] = {}
    for name in rebuilt_of(run):
        with contextlib.suppress(Gone):
            try:
                times[name] = moment_of_rebuilt(run, name)
            except Gone:
                raise
            except Damaged:
                times[name] = -1
    return times


def default_name(sigma_rel: float, nimg: int) -> str:
    """The name of a rebuilt average that was not given one."""
    return f"sigma_rel_{sigma_rel:g}_at_{nimg / 1000:g}"


def moment_of_rebuilt(run: Path, name: str) -> int:
    """Images seen by a rebuilt average.

    Raises:
        Damaged: it is damaged, or its name is that of another one; a name that was chosen says nothing.
    """
    path = run / AVERAGES_FOLDER / name
    found = checkpoint.read(path, groups=[])
    right = default_name(found.state["sigma_rel"], found.nimg)
    if BY_DEFAULT.fullmatch(name) and name != right:
        raise Damaged(f"{path}: its name is not that of the average in it, which is {right}; rename the folder to {right}")
    return found.nimg


def forget_rebuilt_after(run: Path, nimg: int) -> None:
    """Delete rebuilt averages that are later than `nimg`, from where a run resumes."""
    for name in rebuilt_of(run):
        with contextlib.suppress(Damaged):
            if checkpoint.read_manifest(run / AVERAGES_FOLDER / name)["nimg"] > nimg:
                delete(run / AVERAGES_FOLDER / name)


def require_time(name: str, nimg: int, kimg: float) -> None:
    """Refuse a rebuilt average if another time was asked for.

    Raises:
        UserError: names both times.
    """
    if nimg != round(kimg * 1000):
        raise UserError(f"--kimg: {name} was rebuilt at {nimg / 1000:g} kimg, so --kimg {kimg:g} does not apply; omit --kimg")
