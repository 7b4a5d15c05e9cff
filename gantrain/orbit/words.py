"""The findings on a run's orbit in words and as JSON values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gantrain.averaging import LIVE
from gantrain.orbit.analysis import FORGETS, PLAYERS, Analysis
from gantrain.text_table import align, join_columns
from gantrain.theory.orbit_fit import OrbitFit
from gantrain.theory.ornstein_uhlenbeck import least_growth
from gantrain.theory.simulated_processes import DRIFT, MIXED, ORBIT, TURN, WALK, Finding

IN_WORDS = {
    ORBIT: "an orbit: it comes back to a centre, the Ornstein-Uhlenbeck picture holds",
    TURN: "it swings to and fro, faster than an orbit could: the Ornstein-Uhlenbeck picture does not hold",
    WALK: "no orbit that could be told from a random walk: the Ornstein-Uhlenbeck picture does not hold",
    MIXED: "it comes back, but not alike in all directions, at all distances or all the time: the Ornstein-Uhlenbeck picture does not hold as a whole",
    DRIFT: "drift: its centre is elsewhere still, the Ornstein-Uhlenbeck picture does not hold",
}


def number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def headline(analysis: Analysis) -> str:
    """The verdict in a line."""
    a = analysis
    return f"{PLAYERS[a.player]} from {a.measured_from:g} to {a.end:g} kimg: {IN_WORDS[a.fit.verdict]}{since_then(a)}"


def finding_cells(finding: Finding) -> list[str]:
    """A row's cells of what a motion is."""
    f = finding
    interval = "straighter" if f.high == 0 else f"above {number(f.low)}" if math.isinf(f.high) else f"{number(f.low)} to {number(f.high)}"
    return [number(f.rate) if math.isfinite(f.rate) else "fast", interval, f"{f.trend:.0%}", f"{f.limit:.0%}", f.verdict]


def findings_table(fit: OrbitFit) -> str:
    """A row a direction, and one for all of them together."""
    rows = [["direction", "share", "k per kimg", "95% interval", "line", "most", "is"]]
    rows += [[str(i), f"{d.share:.1%}", *finding_cells(d.finding)] for i, d in enumerate(fit.directions, start=1)]
    rows.append(["together", f"{fit.share:.1%}", *finding_cells(fit.together)])
    rows[-1][-1] += "" if fit.alike else "; rates differ by more than chance"
    first, *numbers, verdicts = zip(*rows)
    columns = [align(column, right=True, least=width) for column, width in zip(numbers, (7, 12, 18, 7, 7))]
    return join_columns([align(first, least=12), *columns, [f"  {verdict}" for verdict in verdicts]], gap="")


def report(analysis: Analysis, run: Path) -> str:
    """Everything that was found about a player, for the console."""
    a, fit = analysis, analysis.fit
    lines = [
        f"{run}: {headline(a)}",
        f"{len(a.rows)} recordings from {a.start:g} kimg on, batch {a.motion.batch_size[a.rows[-1]]}. The directions are the principal ones up to {a.measured_from:g}"
        f" kimg; after it they carry {fit.share:.0%} of the motion.",
        "k is the rate at which the motion along a direction comes back, line the share of it that a straight line explains and most what chance does (97.5%).",
        findings_table(fit),
    ]
    later = fit.later
    if fit.together.verdict == ORBIT and not fit.holds:
        interval = "none" if later.high == 0 else f"{number(later.low)} to {number(later.high)}"
        lines.append(
            f"asked at a distance of many recordings, k is in {interval}; the spread {'stays' if fit.steady else 'does not stay'} the same"
        )
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
        return [
            f"two EMAs: it takes two averagers of name ema with different half_life_kimg, of {longest:.3g} at most here, past their ramp_up by the measured half"
        ]
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
    score = lambda value: "" if value is None else f"{value:.4f}"  # noqa: E731
    rows = [
        ["average", "V_avg / V_live", "g* to hold a swap", "distance", f"{a.metric} at {a.scored_at / 1000:g}" if a.scored_at is not None else ""],
        [LIVE, "1", "", "", score(a.live_score)],
    ]  # fmt: skip
    for s in a.standings:
        rows.append(
            [s.name, number(s.ratio), "-" if s.ratio is None else number(least_growth(s.ratio)), number(s.distance), score(s.score)]
        )
    names, *numbers = zip(*rows)
    columns = [align(column, right=True, least=width) for column, width in zip(numbers, (16, 20, 11, 22))]
    return [join_columns([[f"{name}  " for name in align(names)], *columns], gap="")]


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
    lines.append(
        f"half-life that makes variance and lag least: {number(half_life)} kimg"
        + (", all that the stretch can tell" if half_life > 0.34 * fit.duration else "")
    )
    lines.append(
        f"the orbit forgets half of itself in {number(math.log(2) / fit.together.safe_rate)} kimg; swapped in without growth, an average loses half of its gain in {number(math.log(2) / (2 * fit.together.safe_rate))}"
    )
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
            "orbit_k_per_kimg": a.parts.rate,
            "orbit_variance": a.parts.variance,
            "diffusion_per_kimg": a.parts.diffusion,
            "velocity_per_kimg": a.parts.velocity,
        },
        "half_life_kimg": fit.half_life() if fit.holds else None,
        "two_emas": None
        if two is None
        else {"averages": list(a.emas), "k_per_kimg": two.rate, "low": two.low, "high": two.high, "exponent": two.exponent},
        "metric": a.metric or None,
        "scored_at_kimg": None if a.scored_at is None else a.scored_at / 1000,
        "live": {"score": a.live_score},
        "averages": {
            s.name: {
                "variance_ratio": s.ratio,
                "g_star": None if s.ratio is None else least_growth(s.ratio),
                "distance": s.distance,
                "score": s.score,
            }
            for s in a.standings
        },
    }
