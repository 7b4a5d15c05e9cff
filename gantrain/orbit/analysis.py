"""What a run's recorded motion says: orbit, walk or drift, what averaging can still gain, and pictures of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gantrain.averaging import LIVE, weight_profile
from gantrain.averaging.average import Looks
from gantrain.averaging.swap_growth import reads_orbit
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.orbit.motion import Motion, NothingYet
from gantrain.run_folder import checkpoint
from gantrain.run_folder.layout import METRICS_FILE
from gantrain.theory.displacement import Parts, displacement_of, parts_of
from gantrain.theory.orbit_fit import FEWEST, OrbitFit, fit_orbit
from gantrain.theory.two_emas import TwoEmas, fit_two_emas

Profile = tuple[np.ndarray, np.ndarray]  # of an average: (positions in images, weights)
PLAYERS = {"g": "G", "d": "D"}
FORGETS = 3  # half-lives after which an EMA's distance is the orbit's own
BINS = 2000  # that a long profile is summed up in


@dataclass(frozen=True)
class Standing:
    """An average, beside the live weights.

    Attributes:
        name: of the average.
        ratio: predicted V_average / V_live; None where the picture does not hold or the rule puts the live weights back.
        distance: root of the mean squared distance to the live weights over the measured half.
        score: the last measured one; None where there is none.
    """

    name: str
    ratio: float | None
    distance: float
    score: float | None


@dataclass(frozen=True)
class Analysis:
    """One player's motion over a stretch of a run, times in kimg.

    Attributes:
        player: "g" or "d".
        motion: all that was recorded.
        rows: of the stretch.
        fit: over it.
        parts: orbit, walk and drift of the whole motion of the measured half, as they make up its squared displacement.
        emas: names of the two EMAs that the rate was read off as well; empty where there are none.
        two: what they say.
        standings: of the averages.
        jumping: averages that put the live weights back to themselves.
        metric: name of the score; empty where there is none.
        live_score: of the live weights.
        scored_at: images seen when the scores were taken.
        averagers: names of all the run's averages, as its configuration lists them: they decide the colours.
    """

    player: str
    motion: Motion
    rows: np.ndarray
    fit: OrbitFit
    parts: Parts
    emas: tuple[str, ...]
    two: TwoEmas | None
    standings: list[Standing]
    jumping: list[str]
    metric: str
    live_score: float | None
    scored_at: int | None
    averagers: tuple[str, ...]

    @property
    def kimg(self) -> np.ndarray:
        return self.motion.nimg / 1000

    @property
    def start(self) -> float:
        return float(self.kimg[self.rows[0]])

    @property
    def measured_from(self) -> float:
        return float(self.kimg[self.rows[len(self.rows) // 2]])

    @property
    def end(self) -> float:
        return float(self.kimg[self.rows[-1]])


# ---- analysis ----------------------------------------------------------------------------------------------------------


def rows_of(motion: Motion, start_kimg: float | None, end_kimg: float | None) -> np.ndarray:
    """The recordings of a stretch of a run in which nothing jumps: between two moments, or the last such stretch up to the end.

    If that is too short to be analysed, as just after a swap, the last that is long enough.

    Raises:
        UserError: nothing was recorded there, or a swap or growth lies between.
    """
    kimg = motion.nimg / 1000
    if start_kimg is not None and end_kimg is not None and not start_kimg < end_kimg:
        raise UserError(f"--from-kimg: {start_kimg:g} is not before --to-kimg {end_kimg:g}")
    rows = np.flatnonzero(
        (kimg >= (-math.inf if start_kimg is None else start_kimg)) & (kimg <= (math.inf if end_kimg is None else end_kimg))
    )
    if not len(rows):
        option = f"--from-kimg: {start_kimg:g}" if start_kimg is not None else f"--to-kimg: {end_kimg:g}"
        raise UserError(f"{option}: nothing was recorded there; recordings go from {kimg[0]:g} to {kimg[-1]:g} kimg")
    if end_kimg is not None and len(rows) > 1 and motion.nimg[rows[-1]] == motion.nimg[rows[-2]]:
        rows = rows[:-1]  # up to a swap is up to the moment before it
    if start_kimg is None:
        regimes, counts = np.unique(motion.regime[rows], return_counts=True)
        enough = regimes[counts >= FEWEST]
        return rows[motion.regime[rows] == (enough[-1] if len(enough) else regimes[-1])]
    if len(rows) > 1 and motion.nimg[rows[0]] == motion.nimg[rows[1]]:
        rows = rows[1:]
    breaks = np.flatnonzero(np.diff(motion.regime[rows]))
    if len(breaks):
        at = ", ".join(f"{kimg[rows[i + 1]]:g}" for i in breaks[:5])
        raise UserError(
            f"--from-kimg: {start_kimg:g}: a swap, growth or jump of a learning rate lies between, at {at} kimg; choose a stretch without, or leave --from-kimg out"
        )
    return rows


def analyse(
    run: Path, config: Config, player: str, motion: Motion, profiles: Mapping[str, Profile], names: Sequence[str] | None = None,
    start_kimg: float | None = None, end_kimg: float | None = None,
) -> Analysis:  # fmt: skip
    """One player's motion and averages over a stretch of a run.

    Args:
        run: the run folder.
        motion: of the player, as it was recorded.
        config: of the run.
        player: "g" or "d".
        profiles: weight profiles of its averages.
        names: the averages to report; None is all that there are.
        start_kimg, end_kimg: the stretch; by default the last long enough one in which neither weights nor batch nor rates jump.

    Raises:
        UserError: too little was recorded (`NothingYet`), or averages are not there.
    """
    rows = rows_of(motion, start_kimg, end_kimg)
    kimg = motion.nimg[rows] / 1000
    if len(rows) < FEWEST:
        raise NothingYet(
            f"{run}: an orbit wants at least {FEWEST} recordings, there are {len(rows)} between {kimg[0]:g} and {kimg[-1]:g} kimg, where"
            f" nothing jumps; choose a longer stretch with --from-kimg and --to-kimg, or train on, with a smaller orbit.every_kimg"
        )
    begun = [name for name, d in motion.distances.items() if np.isfinite(d[rows[-1]])]
    for name in names or []:  # all of them were recorded at some time
        if name not in begun:
            raise UserError(
                f"--average: {name} had not begun at {kimg[-1]:g} kimg; choose a later --to-kimg, or from {', '.join(begun) or 'none'}"
            )
    fit = fit_orbit(kimg, motion.sketches[LIVE][rows])
    metric, scores, scored_at = (
        scores_within(run, int(motion.nimg[rows[0]]), int(motion.nimg[rows[-1]])) if player == "g" else ("", {}, None)
    )
    measured = rows[len(rows) // 2 :]
    jumping = [name for name in begun if name in config.averagers and config.averagers[name].writes_back]
    standings = []
    for name in begun if names is None else names:
        ratio = fit.ratio(*coarse(profiles[name])) if fit.holds and name in profiles and name not in jumping else None
        standings.append(Standing(name, ratio, float(np.sqrt(np.nanmean(motion.distances[name][measured]))), scores.get(name)))
    emas, two = two_emas(config, player, motion, rows)
    parts = parts_of(*displacement_of(kimg[len(rows) // 2 :], motion.sketches[LIVE][measured]))
    return Analysis(
        player, motion, rows, fit, parts, emas, two, standings, jumping, metric, scores.get(LIVE), scored_at, tuple(config.averagers)
    )


def two_emas(config: Config, player: str, motion: Motion, rows: np.ndarray) -> tuple[tuple[str, ...], TwoEmas | None]:
    """The rate from the EMAs of the shortest and the longest half-life that by the measured half have forgotten what was before the stretch."""
    start, measured = motion.nimg[rows[0]], rows[len(rows) // 2 :]
    usable = {}
    for name, averager in config.followed(player).items():
        if not reads_orbit(averager) or name not in motion.distances:
            continue
        half_life = averager.half_life_kimg
        settled = (
            start + FORGETS * half_life * 1000 <= motion.nimg[measured[0]]
            and averager.half_life(int(motion.nimg[measured[0]])) >= half_life * 1000
        )
        distances = motion.distances[name][measured]
        if settled and np.isfinite(distances).all() and distances.any():
            usable[name] = half_life
    if len(set(usable.values())) < 2:
        return (), None
    names = min(usable, key=usable.get), max(usable, key=usable.get)
    rates = [math.log(2) / usable[name] for name in names]
    return names, fit_two_emas([motion.distances[name][measured] for name in names], rates, step=motion.batch_size[rows[-1]] / 1000)


def coarse(profile: Profile) -> Profile:
    """A profile in kimg, of at most `BINS` positions: of more, neighbours are summed up."""
    positions, weights = profile[0] / 1000, profile[1]
    if len(positions) <= BINS:
        return positions, weights
    parts = list(zip(np.array_split(positions, BINS), np.array_split(weights, BINS)))
    return np.array([p.mean() for p, _ in parts]), np.array([w.sum() for _, w in parts])


def scores_within(run: Path, start: int, end: int) -> tuple[str, dict[str, float], int | None]:
    """(metric, score of each average, images seen then) of a run's last evaluation in a stretch.

    What stands at its start was scored before a swap that begins it.
    """
    path = run / METRICS_FILE
    last: dict[str, Any] = {}
    for text in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        if '"eval/live/' in text and text.endswith("}"):  # the last line may be torn
            line = json.loads(text)
            last = line if start < line["nimg"] <= end else last
    taken = [key.split("/") for key in last if key.startswith("eval/")]
    scores = [(name, metric, float(last[f"eval/{name}/{metric}"])) for name, metric in (parts[1:] for parts in taken if len(parts) == 3)]
    if not scores:
        return "", {}, None
    first = scores[0][1]
    return first, {name: score for name, metric, score in scores if metric == first}, last["nimg"]


def saved_profiles(path: Path, config: Config, last: int) -> dict[str, dict[str, Profile]]:
    """By player, the weight profiles that a run's averages had at `last` images, as a checkpoint knows them."""
    state = checkpoint.read(path, groups=[]).state
    found: dict[str, dict[str, Profile]] = {}
    for key, group in (("g", "averages"), ("d", "averages_d")):
        followed = {name: one for name, one in config.followed(key).items() if name in state[group]}
        looks = {name: [look for look in Looks(state[group][name]["looks"]).unrolled() if look[0] <= last] for name in followed}
        found[key] = {
            name: weight_profile(one, looks[name], state[group][name]["first_nimg"]) for name, one in followed.items() if looks[name]
        }
    return found
