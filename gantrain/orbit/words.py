"""The results about a run's orbit, as text for the console and as JSON values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gantrain.averaging import LIVE
from gantrain.orbit.analysis import FORGETS, PLAYERS, Analysis, Standing
from gantrain.text_table import align, join_columns
from gantrain.theory.orbit_fit import OrbitFit
from gantrain.theory.ornstein_uhlenbeck import least_growth
from gantrain.theory.simulated_processes import DRIFT, MIXED, ORBIT, TURN, WALK, Finding

VERDICTS = {
    ORBIT: "an orbit: the weights return to a centre, the Ornstein-Uhlenbeck model holds",
    TURN: "an oscillation, faster than an orbit could be: the Ornstein-Uhlenbeck model does not hold",
    WALK: "indistinguishable from a random walk: the Ornstein-Uhlenbeck model does not hold",
    MIXED: "mixed: the weights return, but not alike in every direction, at every distance or all the time;"
    " the Ornstein-Uhlenbeck model does not hold as a whole",
    DRIFT: "drift: the centre is still moving, the Ornstein-Uhlenbeck model does not hold",
}
NO_ADVICE = {
    DRIFT: "An average lags behind a drift, so a better score does not come from averaging an orbit; half-life and g* are not predicted.",
    TURN: "An average removes such a motion within a few turns; half-life and g* are not predicted.",
    MIXED: "A prediction for some directions would not hold for the weights; half-life and g* are not predicted.",
    WALK: "The recordings do not show a centre; half-life and g* are not predicted. A longer stretch may decide it.",
}


def summarise(analysis: Analysis) -> str:
    """State the verdict in one line."""
    a = analysis
    return f"{PLAYERS[a.player]} from {a.measured_from:g} to {a.end:g} kimg: {VERDICTS[a.fit.verdict]}{describe_what_followed(a)}"


def finding_cells(finding: Finding) -> list[str]:
    """Format a finding as the cells of a row."""
    f = finding
    interval = (
        "straighter"
        if f.high == 0
        else f"above {format_number(f.low)}"
        if math.isinf(f.high)
        else f"{format_number(f.low)} to {format_number(f.high)}"
    )
    return [format_number(f.rate) if math.isfinite(f.rate) else "fast", interval, f"{f.trend:.0%}", f"{f.limit:.0%}", f.verdict]


def findings_table(fit: OrbitFit) -> str:
    """Format the findings as a table: a row per direction, and one for all of them together."""
    rows = [["direction", "share", "k per kimg", "95% interval", "line", "limit", "verdict"]]
    rows += [[str(i), f"{d.share:.1%}", *finding_cells(d.finding)] for i, d in enumerate(fit.directions, start=1)]
    rows.append(["together", f"{fit.share:.1%}", *finding_cells(fit.together)])
    rows[-1][-1] += "" if fit.alike else "; rates differ by more than chance"
    first, *numbers, verdicts = zip(*rows)
    columns = [align(column, right=True, least=width) for column, width in zip(numbers, (7, 12, 18, 7, 7))]
    return join_columns([align(first, least=12), *columns, [f"  {verdict}" for verdict in verdicts]], gap="")


def describe_what_followed(a: Analysis) -> str:
    """Name the jump that ended the stretch; empty if the record ends with it."""
    motion, last = a.motion, a.rows[-1]
    if last + 1 >= len(motion.nimg) or motion.regime[last + 1] == motion.regime[last]:
        return ""
    return f" (followed by {'a swap' if last in motion.swaps else 'a jump of the batch size or a learning rate'})"


def format_report(analysis: Analysis, run: Path) -> str:
    """Format all results about one player, for the console."""
    a, fit = analysis, analysis.fit
    lines = [
        f"{run}: {summarise(a)}",
        f"{len(a.rows)} recordings from {a.start:g} kimg on, batch {a.motion.batch_size[a.rows[-1]]}. Directions are the principal"
        f" components up to {a.measured_from:g} kimg; after that they carry {fit.share:.0%} of the motion.",
        "k: rate at which the motion along a direction returns. line: share of it that a straight line explains;"
        " limit: what chance explains at most (97.5%).",
        findings_table(fit),
    ]
    later = fit.later
    if fit.together.verdict == ORBIT and not fit.holds:
        interval = "none" if later.high == 0 else f"{format_number(later.low)} to {format_number(later.high)}"
        steady = "stays the same" if fit.steady else "changes"
        lines.append(f"over many recordings, the interval of k is {interval}, and the spread {steady}")
    lines.append(f"squared displacement in all directions: {describe_parts(a)}")
    lines += format_two_emas(a)
    lines += [f"note: {name} regularly resets the weights to itself, which is part of the motion" for name in a.jumping]
    lines += format_standings(a)
    lines += advise(a)
    return "\n".join(lines)


def format_number(value: float | None) -> str:
    """Three significant digits; a dash for a value that is missing or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def describe_parts(a: Analysis) -> str:
    """State what the motion consists of over a short and a long time."""
    words = []
    for lag in choose_lags(a):
        shares = zip(a.parts.shares(lag), (ORBIT, WALK, DRIFT))
        words.append(f"over {lag:.3g} kimg " + ", ".join(f"{share:.0%} {what}" for share, what in shares))
    rate = f" (k of the orbit: {format_number(a.parts.rate)} per kimg)" if a.parts.variance > 0 else ""
    return "; ".join(words) + rate


def choose_lags(a: Analysis) -> tuple[float, float]:
    """Choose a short and a long lag in kimg: from one recording to the next, and half of the measured stretch."""
    measured = a.kimg[a.rows[len(a.rows) // 2 :]]
    return float(measured[-1] - measured[0]) / (len(measured) - 1), float(measured[-1] - measured[0]) / 2


def format_two_emas(a: Analysis) -> list[str]:
    """Report the rate estimated from two EMAs, or what such an estimate needs."""
    if a.two_emas is None:
        longest = (a.end - a.start) / 2 / FORGETS
        return [
            f"two EMAs: needs two averagers named ema with different constant half_life_kimg, at most {longest:.3g} here,"
            " that have passed their ramp_up when the measured half begins"
        ]
    names, two = " and ".join(a.ema_names), a.two_emas
    grows = f"squared distance grows like half-life^{two.exponent:.2f} (orbit below 1, walk 1, drift 2)"
    if two.rate is None:
        return [f"two EMAs ({names}): these distances do not fit an orbit; {grows}"]
    interval = "no interval" if two.low is None else f"{format_number(two.low)} to {format_number(two.high)}"
    return [f"two EMAs ({names}): k = {format_number(two.rate)} per kimg ({interval}), all weights together; {grows}"]


def format_standings(a: Analysis) -> list[str]:
    """Format a table of the averages: predictions, and the measured distances and scores."""
    if not a.standings:
        return [f"no averages of {PLAYERS[a.player]}"]
    score = lambda value: "" if value is None else f"{value:.4f}"  # noqa: E731
    scored = "" if a.scored_at is None else f"{a.metric} at {a.scored_at / 1000:g}"
    head = [["average", "V_avg / V_live", "g* to hold a swap", "distance", scored], [LIVE, "1", "", "", score(a.live_score)]]
    rows = head + [
        [s.name, format_number(s.ratio), format_number(growth_of(s)), format_number(s.distance), score(s.score)] for s in a.standings
    ]
    names, *numbers = zip(*rows)
    columns = [align(column, right=True, least=width) for column, width in zip(numbers, (16, 20, 11, 22))]
    return [join_columns([[f"{name}  " for name in align(names)], *columns], gap="")]


def growth_of(standing: Standing) -> float | None:
    """g*, the factor by which the noise must fall for a swap to this average to hold; None if its variance is unknown."""
    return None if standing.ratio is None else least_growth(standing.ratio)


def advise(a: Analysis) -> list[str]:
    """Derive the best half-life and the batch of a swap, or say why they are not predicted."""
    fit, batch = a.fit, a.motion.batch_size[a.rows[-1]]
    if not fit.holds:
        return [NO_ADVICE[fit.verdict]]
    half_life, forgets = fit.half_life(), fit.together.safe_rate
    known = sum(d.share for d in fit.orbiting)
    longest = ", the longest that this stretch can show" if half_life > 0.34 * fit.duration else ""
    lines = [
        f"V_avg / V_live is predicted from the directions with a known rate, which carry {known:.0%} of the motion",
        f"half-life with the least variance plus lag: {format_number(half_life)} kimg{longest}",
        f"the orbit forgets half of its position in {format_number(math.log(2) / forgets)} kimg; swapped in without growth,"
        f" an average loses half of its gain in {format_number(math.log(2) / (2 * forgets))}",
    ]
    ratios = {s.name: s.ratio for s in a.standings if s.ratio is not None}
    if ratios:
        name, ratio = min(ratios.items(), key=lambda item: item[1])
        g = least_growth(ratio)
        lines.append(
            f"a swap of {name} at {a.end:g} kimg holds if the noise falls by g* = {format_number(g)}: a batch of"
            f" {math.ceil(g * batch):,} under SGD, of {math.ceil(g * g * batch):,} under Adam at a fixed rate"
            f" (noise ~ 1 / sqrt(batch)), or rates divided by {format_number(g)}"
        )
    return lines


def build_record(a: Analysis) -> dict[str, Any]:
    """Build the JSON values that are stored next to the picture."""
    fit, two = a.fit, a.two_emas
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
        "directions": [{"share": d.share, "velocity_per_kimg": d.velocity, **build_finding_record(d.finding)} for d in fit.directions],
        "together": build_finding_record(fit.together),
        "later": build_finding_record(fit.later),
        "displacement": {
            "orbit_k_per_kimg": a.parts.rate,
            "orbit_variance": a.parts.variance,
            "diffusion_per_kimg": a.parts.diffusion,
            "velocity_per_kimg": a.parts.velocity,
        },
        "half_life_kimg": fit.half_life() if fit.holds else None,
        "two_emas": None
        if two is None
        else {"averages": list(a.ema_names), "k_per_kimg": two.rate, "low": two.low, "high": two.high, "exponent": two.exponent},
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


def build_finding_record(f: Finding) -> dict[str, Any]:
    """Build the JSON values of one finding."""
    return {
        "k_per_kimg": f.rate, "low": f.low, "high": f.high, "trend": f.trend, "trend_limit": f.limit, "chance": f.chance,
        "verdict": f.verdict,
    }  # fmt: skip
