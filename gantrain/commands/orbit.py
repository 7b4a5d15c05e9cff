"""`gantrain orbit`: say how a run's weights move."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gantrain.averaging import LIVE
from gantrain.errors import UserError, did_you_mean
from gantrain.orbit.analysis import analyse, rows_of, saved_profiles
from gantrain.orbit.motion import as_motion, read_record
from gantrain.orbit.picture import keep, picture_path
from gantrain.orbit.words import report
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import configuration_of


def call(arguments: argparse.Namespace) -> None:
    names = None if arguments.average == "all" else arguments.average.split(",")
    print(orbit_run(arguments.run, arguments.networks, names, arguments.from_kimg, arguments.to_kimg, arguments.out))


def orbit_run(
    run: str | Path, players: str = "gd", names: Sequence[str] | None = None, start_kimg: float | None = None,
    end_kimg: float | None = None, out: str | Path | None = None,
) -> str:  # fmt: skip
    """Analyse a run's recorded motion, draw it, write it as JSON beside the picture; what was found, as text.

    Args:
        run: a run folder.
        players: "g", "d" or "gd".
        names: the averages to report; None is all.
        start_kimg, end_kimg: the stretch, as `analyse`.
        out: where the picture goes; None is RUN/orbit/<nimg of the stretch's end>.png.

    Raises:
        UserError: no such run, none or too few recordings, no such averages.
    """
    run = Path(run)
    config, checkpoints = configuration_of(run), checkpoint.CheckpointStore(run / "checkpoints")
    if out is not None and Path(out).suffix != ".png":
        raise UserError(f"--out: {str(out)!r} must end in .png; the numbers go beside it as .json")
    lines = read_record(run)
    motions = {key: as_motion(lines, key) for key in players}
    some = motions[players[0]]  # both are recorded at the same moments
    last = int(some.nimg[rows_of(some, start_kimg, end_kimg)[-1]])
    newest = checkpoints.newest()
    profiles = saved_profiles(newest, config, last) if newest else {key: {} for key in players}
    if names is not None:
        names = [name for name in dict.fromkeys(names) if name != LIVE]
        known = {name for motion in motions.values() for name in motion.distances}
        for name in names:
            if name not in known:
                raise UserError(f"--average: no average {name!r} was recorded{did_you_mean(name, known)}")
    mine = {key: None if names is None else [name for name in names if name in motions[key].distances] for key in players}
    found = [analyse(run, config, key, motions[key], profiles[key], mine[key], start_kimg, end_kimg) for key in players]
    target = Path(out) if out is not None else picture_path(run, found)
    if target.is_dir() or not all(parent.is_dir() for parent in target.parents if parent.exists()):
        raise UserError(f"--out: {str(target)!r} cannot be a file there; choose another path")
    record = keep(found, target, run.absolute().name)
    return "\n\n".join([*(report(a, run) for a in found), f"drawn in {target}, numbers in {record}"])
