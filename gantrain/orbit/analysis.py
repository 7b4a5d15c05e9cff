"""Analysis of a run's recorded motion: orbit, walk or drift, and what each average can still gain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gantrain.averaging import LIVE, weight_profile
from gantrain.averaging.average import Looks
from gantrain.averaging.birth import since_birth
from gantrain.averaging.swap_growth import reads_orbit
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.orbit.motion import Motion, TooFewRecordings
from gantrain.regular_file import open_regular
from gantrain.run_folder import checkpoint
from gantrain.run_folder.layout import METRICS_FILE
from gantrain.run_folder.line_file import stream_back
from gantrain.run_folder.record import Evaluation, evaluation
from gantrain.run_folder.record_lines import parse
from gantrain.schedule import bounds_of
from gantrain.theory.displacement import Parts, displacement_of, parts_of
from gantrain.theory.orbit_fit import FEWEST_RECORDINGS, OrbitFit, fit_orbit
from gantrain.theory.two_emas import TwoEmas, fit_two_emas

PlayerKey = Literal["g", "d"]
Profile = tuple[np.ndarray, np.ndarray]  # of an average: (positions in images, weights)
PLAYERS: dict[PlayerKey, str] = {"g": "G", "d": "D"}
FORGETS = 3  # half-lives after which an EMA has forgotten where it started
BINS = 2000  # longest weight profile that is used as it is


@dataclass(frozen=True)
class Standing:
    """How an average compares with the live weights.

    Attributes:
        name: of the average.
        ratio: predicted V_average / V_live; None if the motion is not an orbit or the rule writes the average back.
        distance: root mean squared distance to the live weights over the measured half.
        score: the latest score within the stretch; None if there is none.
    """

    name: str
    ratio: float | None
    distance: float
    score: float | None


@dataclass(frozen=True)
class Analysis:
    """One player's motion over a stretch of a run. Times are in kimg.

    Attributes:
        player: "g" or "d".
        motion: everything that was recorded.
        rows: the recordings of the stretch.
        fit: the fit over the stretch.
        parts: orbit, walk and drift in the squared displacement of the measured half, all directions together.
        ema_names: the two EMAs from which the rate was also estimated; empty if there are none.
        two_emas: that estimate.
        standings: one per average.
        jumping: names of averages that reset the live weights to themselves (Lookahead).
        metric: name of the score; empty if nothing was scored within the stretch.
        live_score: score of the live weights.
        scored_at: images seen when the scores were taken.
        averagers: names of all averages of the run in the order of its configuration, which determines the colours.
    """

    player: PlayerKey
    motion: Motion
    rows: np.ndarray
    fit: OrbitFit
    parts: Parts
    ema_names: tuple[str, ...]
    two_emas: TwoEmas | None
    standings: list[Standing]
    jumping: list[str]
    metric: str
    live_score: float | None
    scored_at: int | None
    averagers: tuple[str, ...]

    @property
    def kimg(self) -> np.ndarray:
        """`[n]`, the time of every recording, not only of the stretch."""
        return self.motion.nimg / 1000

    @property
    def start(self) -> float:
        """Time of the first recording of the stretch."""
        return float(self.kimg[self.rows[0]])

    @property
    def measured_from(self) -> float:
        """Time at which the measured half begins."""
        return float(self.kimg[self.rows[len(self.rows) // 2]])

    @property
    def end(self) -> float:
        """Time of the last recording of the stretch."""
        return float(self.kimg[self.rows[-1]])


def analyse(
    run: Path, config: Config, player: PlayerKey, motion: Motion, profiles: Mapping[str, Profile], names: Sequence[str] | None = None,
    start_kimg: float | None = None, end_kimg: float | None = None,
) -> Analysis:  # fmt: skip
    """Analyse one player's motion, and its averages, over a stretch of a run.

    Args:
        run: the run folder.
        config: of the run.
        player: "g" or "d".
        motion: the recorded motion of the player.
        profiles: weight profiles of its averages.
        names: the averages to report; None reports all.
        start_kimg, end_kimg: the stretch; by default the last long enough one without a jump of weights, batch or learning rates.

    Raises:
        UserError: too little was recorded (`TooFewRecordings`), or an average had not started.
    """
    rows = select_rows(motion, start_kimg, end_kimg)
    kimg = motion.nimg[rows] / 1000
    if len(rows) < FEWEST_RECORDINGS:
        raise TooFewRecordings(
            f"{run}: the analysis needs at least {FEWEST_RECORDINGS} recordings without a jump, got {len(rows)} between {kimg[0]:g} and"
            f" {kimg[-1]:g} kimg; choose a longer stretch with --from-kimg and --to-kimg, or train longer with a smaller orbit.every_kimg"
        )
    started = [name for name, d in motion.distances.items() if np.isfinite(d[rows[-1]])]
    for name in names or []:  # all of them were recorded at some point
        if name not in started:
            raise UserError(
                f"--average: {name} had not started at {kimg[-1]:g} kimg; choose a later --to-kimg, or from {', '.join(started) or 'none'}"
            )
    fit = fit_orbit(kimg, motion.sketches[LIVE][rows])
    metric, scores, scored_at = read_scores(run, int(motion.nimg[rows[0]]), int(motion.nimg[rows[-1]])) if player == "g" else ("", {}, None)
    measured = rows[len(rows) // 2 :]
    jumping = [name for name in started if name in config.averagers and config.averagers[name].writes_back]
    standings = []
    for name in started if names is None else names:
        ratio = fit.ratio(*coarsen(profiles[name])) if fit.holds and name in profiles and name not in jumping else None
        standings.append(Standing(name, ratio, float(np.sqrt(np.nanmean(motion.distances[name][measured]))), scores.get(name)))
    ema_names, two_emas = compare_two_emas(config, player, motion, rows)
    parts = parts_of(*displacement_of(kimg[len(rows) // 2 :], motion.sketches[LIVE][measured]))
    live_score = scores.get(LIVE)
    return Analysis(
        player, motion, rows, fit, parts, ema_names, two_emas, standings, jumping, metric, live_score, scored_at, tuple(config.averagers)
    )


def select_rows(motion: Motion, start_kimg: float | None, end_kimg: float | None) -> np.ndarray:
    """Select the recordings of a stretch without jumps: between two times, or the last one up to `end_kimg`.

    Without `start_kimg`, if the last stretch is too short to analyse, as just after a swap, the last long enough one is selected.

    Raises:
        UserError: nothing was recorded there, or a jump lies in between.
    """
    kimg = motion.nimg / 1000
    if start_kimg is not None and end_kimg is not None and not start_kimg < end_kimg:
        raise UserError(f"--from-kimg: {start_kimg:g} is not before --to-kimg {end_kimg:g}")
    rows = np.flatnonzero(
        (kimg >= (-math.inf if start_kimg is None else start_kimg)) & (kimg <= (math.inf if end_kimg is None else end_kimg))
    )
    if not len(rows):
        option = f"--from-kimg: {start_kimg:g}" if start_kimg is not None else f"--to-kimg: {end_kimg:g}"
        raise UserError(f"{option}: nothing was recorded there; recordings span {kimg[0]:g} to {kimg[-1]:g} kimg")
    if end_kimg is not None and len(rows) > 1 and motion.nimg[rows[-1]] == motion.nimg[rows[-2]]:
        rows = rows[:-1]  # a stretch that ends at a swap ends just before it
    if start_kimg is None:
        regimes, counts = np.unique(motion.regime[rows], return_counts=True)
        enough = regimes[counts >= FEWEST_RECORDINGS]
        return rows[motion.regime[rows] == (enough[-1] if len(enough) else regimes[-1])]
    if len(rows) > 1 and motion.nimg[rows[0]] == motion.nimg[rows[1]]:
        rows = rows[1:]  # a stretch that starts at a swap starts just after it
    breaks = np.flatnonzero(np.diff(motion.regime[rows]))
    if len(breaks):
        at = ", ".join(f"{kimg[rows[i + 1]]:g}" for i in breaks[:5])
        raise UserError(
            f"--from-kimg: {start_kimg:g}: the stretch contains a swap, growth or jump of a learning rate, at {at} kimg;"
            f" choose a stretch without one, or omit --from-kimg"
        )
    return rows


def compare_two_emas(config: Config, player: PlayerKey, motion: Motion, rows: np.ndarray) -> tuple[tuple[str, ...], TwoEmas | None]:
    """Estimate the rate from the distances of two EMAs to the live weights.

    These are the EMAs of the shortest and the longest half-life among those that, when the measured half begins, have finished
    their ramp-up and have forgotten what came before the stretch.

    Returns:
        (their names, the estimate); empty and None if there are no two different half-lives.
    """
    start, measured = motion.nimg[rows[0]], rows[len(rows) // 2 :]
    usable: dict[str, float] = {}
    for name, averager in config.followed(player).items():
        if not reads_orbit(averager) or name not in motion.distances:
            continue
        half_life, _ = bounds_of(averager.half_life_kimg)
        settled = (
            start + FORGETS * half_life * 1000 <= motion.nimg[measured[0]]
            and averager.half_life(int(motion.nimg[measured[0]])) >= half_life * 1000
        )
        distances = motion.distances[name][measured]
        if settled and np.isfinite(distances).all() and distances.any():
            usable[name] = half_life
    if len(set(usable.values())) < 2:
        return (), None
    names = min(usable, key=lambda name: usable[name]), max(usable, key=lambda name: usable[name])
    rates = [math.log(2) / usable[name] for name in names]
    return names, fit_two_emas([motion.distances[name][measured] for name in names], rates, step=motion.batch_size[rows[-1]] / 1000)


def coarsen(profile: Profile) -> Profile:
    """Convert a profile from images to kimg, summing neighbours until at most `BINS` positions are left."""
    positions, weights = profile[0] / 1000, profile[1]
    if len(positions) <= BINS:
        return positions, weights
    parts = list(zip(np.array_split(positions, BINS), np.array_split(weights, BINS)))
    return np.array([p.mean() for p, _ in parts]), np.array([w.sum() for _, w in parts])


def read_scores(run: Path, start: int, end: int) -> tuple[str, dict[str, float], int | None]:
    """Read (metric, score of each average, images seen) of a run's last evaluation after `start` and up to `end` images.

    An evaluation at `start` itself is left out: if a swap begins the stretch, it was made before the swap.
    """
    last = next((one for one in stream_evaluations_back(run) if start < one.nimg <= end), None)
    if last is None:
        return "", {}, None
    first = next(metric for row in last.scores.values() for metric in row)
    return first, {name: row[first] for name, row in last.scores.items() if first in row}, last.nimg


def stream_evaluations_back(run: Path) -> Iterator[Evaluation]:
    """Iterate over a run's evaluations from the last to the first in the file, without reading more than is needed.

    Raises:
        UserError: the record cannot be read.
    """
    path = run / METRICS_FILE
    try:
        with open_regular(path) as file:
            lines = (parse(text) for text in stream_back(file) if b'"eval/live/' in text)
            found = (evaluation(line) for line in lines if line is not None)
            yield from (one for one in found if one is not None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix this and run the same command again") from error


def load_profiles(path: Path, config: Config, last: int) -> dict[PlayerKey, dict[str, Profile]]:
    """Load the weight profiles that the averages had at `last` images from a checkpoint, by player and name."""
    state = checkpoint.read(path, groups=[]).state
    found: dict[PlayerKey, dict[str, Profile]] = {}
    groups: tuple[tuple[PlayerKey, str], ...] = (("g", "averages"), ("d", "averages_d"))
    for key, group in groups:
        followed = {name: one for name, one in config.followed(key).items() if name in state[group]}
        looks = {name: [look for look in Looks(state[group][name]["looks"]).unrolled() if look[0] <= last] for name in followed}
        born = {name: state[group][name]["first_nimg"] for name in followed}
        found[key] = {
            name: weight_profile(since_birth(one, born[name]), looks[name], born[name]) for name, one in followed.items() if looks[name]
        }
    return found
