"""`gantrain orbit`: analyse how a run's weights move."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gantrain.averaging import LIVE
from gantrain.commands.arguments import listed_names
from gantrain.errors import UserError, did_you_mean
from gantrain.orbit.analysis import PlayerKey, Profile, analyse, load_profiles, select_rows
from gantrain.orbit.motion import TooFewRecordings, build_motion, read_record
from gantrain.orbit.picture import picture_path, save_analyses
from gantrain.orbit.words import format_report
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import configuration_of, look_again


def call(arguments: argparse.Namespace) -> None:
    """Run the command."""
    names = None if arguments.average == "all" else listed_names(arguments.average, "--average", "live,ema")
    print(orbit_run(arguments.run, arguments.networks, names, arguments.from_kimg, arguments.to_kimg, arguments.out))


def orbit_run(
    run: str | Path, networks: Sequence[PlayerKey] = ("g", "d"), names: Sequence[str] | None = None, start_kimg: float | None = None,
    end_kimg: float | None = None, out: str | Path | None = None,
) -> str:  # fmt: skip
    """Analyse a run's recorded motion, draw it, and write the numbers next to the picture as JSON.

    Args:
        run: a run folder.
        networks: the players to analyse.
        names: the averages to report; None reports all.
        start_kimg, end_kimg: see `analyse`.
        out: the picture, a .png; None is RUN/orbit/<nimg at the end of the stretch>.png.

    Returns:
        The report as text.

    Raises:
        UserError: no such run or average, too few recordings, or an invalid path.
    """
    run = Path(run)
    config, checkpoints = configuration_of(run), checkpoint.CheckpointStore(run / "checkpoints")
    if out is not None and Path(out).suffix != ".png":
        raise UserError(f"--out: {str(out)!r} must end in .png; the numbers are written next to it as .json")
    recordings = read_record(run)
    left_out = recordings.describe_unreadable(run)
    motions = {key: build_motion(recordings, key) for key in networks}
    some = motions[networks[0]]  # both players are recorded at the same moments
    last = int(some.nimg[select_rows(some, start_kimg, end_kimg)[-1]])
    none: dict[PlayerKey, dict[str, Profile]] = {key: {} for key in networks}

    def profiles_of_newest() -> dict[PlayerKey, dict[str, Profile]]:
        newest = checkpoints.newest_held()
        return load_profiles(newest.folder, config, last) if newest else none

    profiles = look_again(profiles_of_newest)
    if names is not None:
        names = [name for name in dict.fromkeys(names) if name != LIVE]
        known = {name for motion in motions.values() for name in motion.distances}
        for name in names:
            if name not in known:
                raise UserError(f"--average: there is no recorded average {name!r}{did_you_mean(name, known)}")
    mine = {key: None if names is None else [name for name in names if name in motions[key].distances] for key in networks}
    try:
        found = [analyse(run, config, key, motions[key], profiles[key], mine[key], start_kimg, end_kimg) for key in networks]
    except TooFewRecordings as error:
        raise TooFewRecordings(f"{error}; {left_out}") if left_out else error from None
    target = Path(out) if out is not None else picture_path(run, found)
    if target.is_dir() or not all(parent.is_dir() for parent in target.parents if parent.exists()):
        raise UserError(f"--out: {str(target)!r} is a folder or inside a file; choose another path")
    record = save_analyses(found, target, run.absolute().name)
    notes = [f"note: {left_out}"] if left_out else []
    return "\n\n".join([*(format_report(a, run) for a in found), *notes, f"picture: {target}, numbers: {record}"])
