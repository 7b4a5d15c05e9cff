"""What a run's recorded motion says: orbit, walk or drift, what averaging can still gain, and pictures of it."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gantrain import checkpoint, sampling
from gantrain.averaging import LIVE, weight_profile
from gantrain.averaging.average import Looks
from gantrain.averaging.swap import reads_orbit
from gantrain.config import Config
from gantrain.errors import UserError, did_you_mean
from gantrain.recording import FOLDER, Motion, NothingYet, as_motion, read_record
from gantrain.theory.orbit import DRIFT, FEWEST, MIXED, ORBIT, TURN, WALK, Finding, OrbitFit, Parts, TwoEmas, displacement_of, fit_orbit, fit_two_emas, parts_of
from gantrain.theory.ornstein_uhlenbeck import least_growth
from gantrain.tracking import METRICS_FILE, as_json

Profile = tuple[np.ndarray, np.ndarray]  # of an average: (positions in images, weights)
PLAYERS = {"g": "G", "d": "D"}
FORGETS = 3  # half-lives after which an EMA's distance is the orbit's own
BINS = 2000  # that a long profile is summed up in
IN_WORDS = {
    ORBIT: "an orbit: it comes back to a centre, the Ornstein-Uhlenbeck picture holds",
    TURN: "it swings to and fro, faster than an orbit could: the Ornstein-Uhlenbeck picture does not hold",
    WALK: "no orbit that could be told from a random walk: the Ornstein-Uhlenbeck picture does not hold",
    MIXED: "it comes back, but not alike in all directions, at all distances or all the time: the Ornstein-Uhlenbeck picture does not hold as a whole",
    DRIFT: "drift: its centre is elsewhere still, the Ornstein-Uhlenbeck picture does not hold",
}


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
    rows = np.flatnonzero((kimg >= (-math.inf if start_kimg is None else start_kimg)) & (kimg <= (math.inf if end_kimg is None else end_kimg)))
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
        raise UserError(f"--from-kimg: {start_kimg:g}: a swap, growth or jump of a learning rate lies between, at {at} kimg; choose a stretch without, or leave --from-kimg out")
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
            raise UserError(f"--average: {name} had not begun at {kimg[-1]:g} kimg; choose a later --to-kimg, or from {', '.join(begun) or 'none'}")
    fit = fit_orbit(kimg, motion.sketches[LIVE][rows])
    metric, scores, scored_at = scores_within(run, int(motion.nimg[rows[0]]), int(motion.nimg[rows[-1]])) if player == "g" else ("", {}, None)
    measured = rows[len(rows) // 2 :]
    jumping = [name for name in begun if getattr(config.averagers.get(name), "writes_back", False)]
    standings = []
    for name in begun if names is None else names:
        ratio = fit.ratio(*coarse(profiles[name])) if fit.holds and name in profiles and name not in jumping else None
        standings.append(Standing(name, ratio, float(np.sqrt(np.nanmean(motion.distances[name][measured]))), scores.get(name)))
    emas, two = two_emas(config, player, motion, rows)
    parts = parts_of(*displacement_of(kimg[len(rows) // 2 :], motion.sketches[LIVE][measured]))
    return Analysis(player, motion, rows, fit, parts, emas, two, standings, jumping, metric, scores.get(LIVE), scored_at)


def two_emas(config: Config, player: str, motion: Motion, rows: np.ndarray) -> tuple[tuple[str, ...], TwoEmas | None]:
    """The rate from the EMAs of the shortest and the longest half-life that by the measured half have forgotten what was before the stretch."""
    start, measured = motion.nimg[rows[0]], rows[len(rows) // 2 :]
    usable = {}
    for name, averager in config.followed(player).items():
        if not reads_orbit(averager) or name not in motion.distances:
            continue
        half_life = averager.half_life_kimg
        settled = start + FORGETS * half_life * 1000 <= motion.nimg[measured[0]] and averager.half_life(int(motion.nimg[measured[0]])) >= half_life * 1000
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
        found[key] = {name: weight_profile(one, looks[name], state[group][name]["first_nimg"]) for name, one in followed.items() if looks[name]}
    return found


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
    config, checkpoints = sampling.configuration_of(run), checkpoint.CheckpointStore(run / "checkpoints")
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


def picture_path(run: Path, found: Sequence[Analysis]) -> Path:
    """Where a run's picture of a stretch goes."""
    return run / FOLDER / f"{found[0].motion.nimg[found[0].rows[-1]]:012d}.png"


def keep(found: Sequence[Analysis], picture: Path, title: str) -> Path:
    """Draw what was found and write its numbers beside the picture; where these are."""
    from gantrain.orbit_picture import draw

    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(found, picture, title)
    record = picture.with_suffix(".json")
    record.write_text(json.dumps(as_json({a.player.upper(): as_record(a) for a in found}), indent=1) + "\n")
    return record


# ---- words -------------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def headline(analysis: Analysis) -> str:
    """The verdict in a line."""
    a = analysis
    return f"{PLAYERS[a.player]} from {a.measured_from:g} to {a.end:g} kimg: {IN_WORDS[a.fit.verdict]}{since_then(a)}"


def finding_cells(finding: Finding) -> str:
    """A row's cells of what a motion is."""
    f = finding
    interval = "straighter" if f.high == 0 else f"above {number(f.low)}" if math.isinf(f.high) else f"{number(f.low)} to {number(f.high)}"
    return f"{number(f.rate) if math.isfinite(f.rate) else 'fast':>10}{interval:>18}{f.trend:>7.0%}{f.limit:>7.0%}  {f.verdict}"


def report(analysis: Analysis, run: Path) -> str:
    """Everything that was found about a player, for the console."""
    a, fit = analysis, analysis.fit
    lines = [
        f"{run}: {headline(a)}",
        f"{len(a.rows)} recordings from {a.start:g} kimg on, batch {a.motion.batch_size[a.rows[-1]]}. The directions are the principal ones up to {a.measured_from:g}"
        f" kimg; after it they carry {fit.share:.0%} of the motion.",
        "k is the rate at which the motion along a direction comes back, line the share of it that a straight line explains and most what chance does (97.5%).",
        f"{'direction':12}{'share':>7}{'k per kimg':>12}{'95% interval':>18}{'line':>7}{'most':>7}  is",
    ]
    for i, d in enumerate(fit.directions, start=1):
        lines.append(f"{i:<12}{d.share:>7.1%}  {finding_cells(d.finding)}")
    lines.append(f"{'together':12}{fit.share:>7.1%}  {finding_cells(fit.together)}" + ("" if fit.alike else "; rates differ by more than chance"))
    later = fit.later
    if fit.together.verdict == ORBIT and not fit.holds:
        interval = "none" if later.high == 0 else f"{number(later.low)} to {number(later.high)}"
        lines.append(f"asked at a distance of many recordings, k is in {interval}; the spread {'stays' if fit.steady else 'does not stay'} the same")
    lines.append(f"all directions, of the squared displacement: {parts_in_words(a)}")
    lines += two_emas_lines(a)
    lines += notes_lines(a)
    lines += standings_lines(a)
    lines += advice(a)
    return "\n".join(lines)


def notes_lines(a: Analysis) -> list[str]:
    """What else has a part in the motion."""
    return [f"note: {name} puts the weights back to itself every so often, which is part of the motion" for name in a.jumping]


def moments_of(a: Analysis) -> tuple[float, float]:
    """A short and a long lag in kimg to speak of: from one recording to the next, and half of the measured stretch."""
    measured = a.kimg[a.rows[len(a.rows) // 2 :]]
    return float(measured[-1] - measured[0]) / (len(measured) - 1), float(measured[-1] - measured[0]) / 2


def parts_in_words(a: Analysis) -> str:
    """What the motion is made of, over a short and a long time."""
    words = []
    for lag in moments_of(a):
        shares = zip(a.parts.shares(lag), (ORBIT, WALK, DRIFT))
        words.append(f"over {lag:.3g} kimg " + ", ".join(f"{share:.0%} {what}" for share, what in shares))
    rate = f" (the orbit's k {number(a.parts.rate)} per kimg)" if a.parts.variance > 0 else ""
    return "; ".join(words) + rate


def since_then(a: Analysis) -> str:
    """A word on what came after the stretch."""
    motion, last = a.motion, a.rows[-1]
    if last + 1 >= len(motion.nimg) or motion.regime[last + 1] == motion.regime[last]:
        return ""
    return f" (then {'came a swap' if last in motion.swaps else 'the batch or a learning rate jumped'})"


def two_emas_lines(a: Analysis) -> list[str]:
    if a.two is None:
        longest = (a.end - a.start) / 2 / FORGETS
        return [f"two EMAs: it takes two averagers of name ema with different half_life_kimg, of {longest:.3g} at most here, past their ramp_up by the measured half"]
    names, two = " and ".join(a.emas), a.two
    grows = f"squared distance grows like half-life^{two.exponent:.2f} (orbit below 1, walk 1, drift 2)"
    if two.rate is None:
        return [f"two EMAs ({names}): no orbit has these distances; {grows}"]
    interval = "no interval" if two.low is None else f"{number(two.low)} to {number(two.high)}"
    return [f"two EMAs ({names}): k = {number(two.rate)} per kimg ({interval}), all weights together; {grows}"]


def standings_lines(a: Analysis) -> list[str]:
    """A row an average: what is predicted of it, beside its score."""
    if not a.standings:
        return [f"no average follows {PLAYERS[a.player]}"]
    width = max(len("average"), *(len(s.name) for s in a.standings)) + 2
    score = f"{a.metric} at {a.scored_at / 1000:g}" if a.scored_at is not None else ""
    lines = [f"{'average':{width}}{'V_avg / V_live':>16}{'g* to hold a swap':>20}{'distance':>11}{score:>22}"]
    lines.append(f"{LIVE:{width}}{'1':>16}{'':>31}{'' if a.live_score is None else f'{a.live_score:.4f}':>22}")
    for s in a.standings:
        growth = "-" if s.ratio is None else number(least_growth(s.ratio))
        cells = f"{number(s.ratio):>16}{growth:>20}{number(s.distance):>11}"
        lines.append(f"{s.name:{width}}{cells}{'' if s.score is None else f'{s.score:.4f}':>22}")
    return [line.rstrip() for line in lines]


def advice(a: Analysis) -> list[str]:
    """What follows: the half-life, and the batch of a swap."""
    fit, batch = a.fit, a.motion.batch_size[a.rows[-1]]
    if not fit.holds:
        why = {
            DRIFT: "An average lags behind a drift; what one gains in score is not the orbit's. No half-life and no g* follow.",
            TURN: "An average takes such a motion off within a few turns. No half-life and no g* follow.",
            MIXED: "A prediction for some directions would be none for the weights: no half-life and no g* follow.",
            WALK: "Nothing says where the centre is. No half-life and no g* follow; a longer stretch may decide it.",
        }
        return [why[fit.verdict]]
    half_life = fit.half_life()
    known = sum(d.share for d in fit.orbiting)
    lines = [f"V_avg / V_live is predicted over directions with {known:.0%} of the motion, those whose rate is known"]
    lines.append(f"half-life that makes variance and lag least: {number(half_life)} kimg" + (", all that the stretch can tell" if half_life > 0.34 * fit.duration else ""))
    lines.append(f"the orbit forgets half of itself in {number(math.log(2) / fit.together.safe_rate)} kimg; swapped in without growth, an average loses half of its gain in {number(math.log(2) / (2 * fit.together.safe_rate))}")
    best = min((s for s in a.standings if s.ratio is not None), key=lambda s: s.ratio, default=None)
    if best is not None:
        g = least_growth(best.ratio)
        lines.append(
            f"a swap of {best.name} at {a.end:g} kimg stays where the noise falls by g* = {number(g)}: a batch of {math.ceil(g * batch):,} under SGD,"
            f" of {math.ceil(g * g * batch):,} under Adam at a fixed rate (noise ~ 1 / sqrt(batch)), or rates divided by {number(g)}"
        )
    return lines


def as_record(a: Analysis) -> dict[str, Any]:
    """What was found, for a JSON file."""

    def of(f: Finding) -> dict[str, Any]:
        return {
            "k_per_kimg": f.rate, "low": f.low, "high": f.high, "trend": f.trend, "trend_limit": f.limit, "chance": f.chance, "verdict": f.verdict,
        }  # fmt: skip

    fit, two = a.fit, a.two
    return {
        "from_kimg": a.start,
        "measured_from_kimg": a.measured_from,
        "to_kimg": a.end,
        "recordings": len(a.rows),
        "batch_size": int(a.motion.batch_size[a.rows[-1]]),
        "verdict": fit.verdict,
        "one_rate": fit.alike,
        "steady": fit.steady,
        "level": fit.level,
        "share": fit.share,
        "directions": [{"share": d.share, "velocity_per_kimg": d.velocity, **of(d.finding)} for d in fit.directions],
        "together": of(fit.together),
        "later": of(fit.later),
        "displacement": {
            "orbit_k_per_kimg": a.parts.rate, "orbit_variance": a.parts.variance, "diffusion_per_kimg": a.parts.diffusion, "velocity_per_kimg": a.parts.velocity,
        },
        "half_life_kimg": fit.half_life() if fit.holds else None,
        "two_emas": None if two is None else {"averages": list(a.emas), "k_per_kimg": two.rate, "low": two.low, "high": two.high, "exponent": two.exponent},
        "metric": a.metric or None,
        "scored_at_kimg": None if a.scored_at is None else a.scored_at / 1000,
        "live": {"score": a.live_score},
        "averages": {
            s.name: {"variance_ratio": s.ratio, "g_star": None if s.ratio is None else least_growth(s.ratio), "distance": s.distance, "score": s.score}
            for s in a.standings
        },
    }
