"""A self-contained HTML page about one or more runs: charts, samples over time, tables, pictures.

The page contains Plotly's script, the figures' data as JSON, and the pictures, so it opens from disk without a network. Its numbers
come from `metrics.jsonl` and `evaluations/`. Runs that differ only in their seed are drawn as their mean
(`gantrain.reporting.comparison`).
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from gantrain.config import loading
from gantrain.errors import counted
from gantrain.reporting.comparison import LEVEL, Group, build_curves, differences, group_runs, half_width, names_of
from gantrain.reporting.console import duration
from gantrain.reporting.drawn_pictures import pick_evenly, pictures_in
from gantrain.reporting.event_words import changes_of
from gantrain.reporting.page_figures import stack
from gantrain.run_folder.json_values import restored
from gantrain.run_folder.provenance import utc_now
from gantrain.run_folder.record import CUT_SHORT, DAMAGED, DONE, EMPTY, FORKED, GAVE_UP, INTERRUPTED, MAYBE, RUNNING, Record
from gantrain.sampling.sheets import read_side_by_side
from gantrain.score_names import LIVE, best_value, better_when_higher
from gantrain.version import __version__

TEMPLATE = Path(__file__).parent / "page.html"
MOST_MOMENTS = 40  # of sample pictures in a page, including the first and the last
MOST_BYTES = 24 * 2**20  # of all sample pictures together
MOST_PICTURES = 20  # of orbits, sweeps and truncation curves
WIDEST = 1200  # pixels of a sheet
IN_WORDS = {
    RUNNING: "still running; this page shows the run so far",
    MAYBE: "seems to be running on another machine; this page shows the run so far",
    DONE: "done",
    INTERRUPTED: "interrupted: it was asked to stop; run the same command to resume it",
    GAVE_UP: "gave up: training went wrong and could not recover",
    CUT_SHORT: "cut short: it was killed or ended by an error; run the same command to resume it from its last checkpoint",
    EMPTY: "nothing has been written yet",
    FORKED: "forked from another run, and not trained yet",
    DAMAGED: "damaged: no line of metrics.jsonl can be read",
}


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
        value: as in the record; None if there is none.
        half: half-width of the interval, if the value is a mean.
        best: whether it is the best of its column.
    """

    value: float | None
    half: float | None = None
    best: bool = False

    @property
    def text(self) -> str:
        """The number with four decimals, and its half-width; a dash if there is none."""
        if self.value is None:
            return "–"
        return f"{self.value:.4f}" + (f" ± {self.half:.2g}" if self.half is not None and math.isfinite(self.half) else "")


@dataclass(frozen=True)
class PageTable:
    """Rows of labels and scores.

    Attributes:
        title: shown above the table.
        heads: heads of the label columns.
        metrics: heads of the score columns.
        rows: (labels, cells).
        note: the protocol that the scores must be quoted with.
    """

    title: str
    heads: list[str]
    metrics: list[str]
    rows: list[tuple[list[str], list[Cell]]]
    note: str = ""


@dataclass
class Samples:
    """Sheets of every run and average over time, for the slider.

    Attributes:
        sources: per run and average: its label, and its sheets by time.
        left_out: number of pictures that are not in the page.
    """

    sources: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0

    @property
    def times(self) -> list[float]:
        """All times in kimg, in order."""
        return sorted({moment["kimg"] for source in self.sources for moment in source["moments"]})


def render_page(records: Sequence[Record]) -> str:
    """Build the HTML text of the page about these runs."""
    from plotly.offline import get_plotlyjs

    groups = group_runs(records)
    metrics = list(dict.fromkeys(m for record in records for m in record.metrics))
    figure = stack(groups, metrics)
    one, names = records[0] if len(records) == 1 else None, names_of(records)
    samples = samples_of(records, names)
    left, right = left_and_right(samples, records, names)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=names[one.run.resolve()] if one else " · ".join(group.name for group in groups),
        version=__version__, made=utc_now(), level=LEVEL,
        heads=[head(record, names[record.run.resolve()]) for record in records],
        groups=[group_head(group, groups) for group in groups], several=one is None,
        notes=[(f"{names[record.run.resolve()]}: " if one is None else "") + note for record in records for note in notes(record)],
        figure=as_script(json.loads(figure.to_json())) if figure.data else "", averages=chosen_averages(groups, metrics),
        samples=as_script({"times": samples.times, "sources": samples.sources, "left": left, "right": right}),
        sources=[source["label"] for source in samples.sources], moments=len(samples.times), left_out=samples.left_out,
        tables=tables(one) if one else [means_table(groups, metrics)] if metrics else [], swaps=swap_table(one) if one else None,
        pictures=pictures(records, names), plotly=jinja2.utils.markupsafe.Markup(get_plotlyjs()),
    )  # fmt: skip


def as_script(value: Any) -> Any:
    """Encode a value as JSON for a script element, so that no text in it can close the element."""
    return jinja2.utils.markupsafe.Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))


# ---- the head --------------------------------------------------------------------------------------------------------


def head(record: Record, name: str) -> dict[str, Any]:
    """The facts of a run and its progress."""
    facts, config = record.facts, record.full_config
    parameters = facts.get("parameters", {})
    rates = sorted(line["throughput/img_per_s"] for line in record.training if "throughput/img_per_s" in line)
    batch = record.training[-1] if record.training else {}
    rows = {
        "Images": f"{record.nimg / 1000:g} of {config.total_kimg:g} kimg",
        **changes_of(record),
        "Took": took(record),
        "Speed": f"{rates[len(rates) // 2]:.0f} images per second (median)" if rates else "",
        "Batch": f"{batch['batch/size']} images ({counted(batch['batch/rounds'], 'round')}) at the end" if "batch/size" in batch else "",
        "Device": f"{facts['device']}, {config.mixed_precision}, {counted(facts['processes'], 'process', 'es')}"
        if "processes" in facts
        else "",
        "Parameters": f"G {parameters['g']:,}, D {parameters['d']:,}" if parameters else "",
        "Seed": str(config.seed),
        "Versions": ", ".join(
            f"{name} {version}" for name, version in {"gantrain": facts.get("gantrain"), **facts.get("versions", {})}.items() if version
        ),
        "Data": f"{loading.to_dict(config)['data']['name']}, fingerprint {facts['data_fingerprint'][:16]}"
        if "data_fingerprint" in facts
        else "",
    }
    return {
        "name": name, "status": record.status, "words": IN_WORDS[record.status], "rows": {k: v for k, v in rows.items() if v},
        "best": [best for metric in record.metrics if (best := best_of(record, metric))], "config": loading.to_yaml(config),
    }  # fmt: skip


def best_of(record: Record, metric: str) -> dict[str, Any] | None:
    """The best value of a metric over the comparable evaluations, its average and its kimg."""
    found = [
        (row[metric], name, one.nimg / 1000)
        for one in record.comparable
        for name, row in one.scores.items()
        if math.isfinite(row.get(metric, math.nan))
    ]
    if not found:
        return None
    value, average, kimg = (max if better_when_higher(metric) else min)(found, key=lambda one: one[0])
    return {"metric": metric, "value": value, "text": f"{value:.4f}", "average": average, "kimg": kimg}


def took(record: Record) -> str:
    """The time from the first start to the last end in words; empty if it is unknown."""
    told = [line for line in record.events() if isinstance(line.get("time"), str)]
    try:
        begun, last = (datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%SZ") for line in (told[0], told[-1]))
    except (IndexError, ValueError):
        return ""
    seconds, end = (last - begun).total_seconds(), told[-1]["time"]
    if told[-1]["event"] in ("start", "resume"):  # it is running, or was killed before it could record its end
        since = record.lines[record.lines.index(told[-1]) :]
        seconds += max((line.get("throughput/elapsed_s", 0.0) for line in since if "loss/d" in line), default=0.0)
        end = "its last line"
    resumes = len(record.events("resume"))
    again = f", resumed {counted(resumes, 'time')}" if resumes else ""
    return f"{duration(seconds)} from {told[0]['time']} to {end}{again}"


def group_head(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """A group's name and seeds, and how its configuration differs from the first group's."""
    found: dict[str, str] = {}
    for key, (there, here) in differences(groups[0].records[0], group.records[0]).items():
        if "absent" in (there, here):  # for example, an averager that only one of them has; listed once
            section = key.rpartition(".")[0]
            found[section] = f"{section} (in {group.name if there == 'absent' else groups[0].name} only)"
        else:
            found[key] = f"{key}: {in_yaml(there)} → {in_yaml(here)}"
    return {"name": group.name, "seeds": [record.full_config.seed for record in group.records], "differs": list(found.values())}


def in_yaml(value: Any) -> str:
    """A value as YAML spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def notes(record: Record) -> list[str]:
    """What the page does not show about a run, and why."""
    found = []
    apart = len(record.evaluations) - len(record.comparable)
    if not record.evaluations:
        found.append("Nothing has been evaluated yet, so there are no scores.")
    elif len(record.averages) == 1:
        found.append(f"Only {record.averages[0]} was scored, so there is no comparison.")
    if apart:
        found.append(f"{counted(apart, 'earlier evaluation')} left out: eval was changed at a resume, so the scores are not comparable.")
    if not record.training:
        found.append("No training line has been written yet, so batch, learning rates and noise scale are not drawn.")
    elif not any("noise_scale/G/measurements" in line or "noise_scale/D/measurements" in line for line in record.training):
        found.append("The gradient noise scale was not measured (noise_scale.measure_every is null).")
    if record.status in (CUT_SHORT, INTERRUPTED, GAVE_UP):
        found.append(f"The run is incomplete: it ends at {record.nimg / 1000:g} of {record.config.total_kimg:g} kimg ({record.status}).")
    if record.abandoned:
        found.append(f"{len(record.abandoned)} lines of paths abandoned by rollbacks are not drawn.")
    if record.unreadable:
        found.append(f"{record.unreadable} lines of metrics.jsonl cannot be read and are left out.")
    return found


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables(record: Record) -> list[PageTable]:
    """Tables of average, BatchNorm policy and metric: the last evaluation, then those by `gantrain evaluate`, newest first."""
    found = []
    if record.evaluations:
        last = record.evaluations[-1]
        rows = {(name, str(last.protocol.get("batchnorm", ""))): scores for name, scores in last.scores.items()}
        found.append(table_of_scores(f"Scores at {last.nimg / 1000:g} kimg", rows, last.protocol))
    for body in sorted(later_evaluations(record.run), key=lambda one: -one["nimg"]):
        found += tables_of(body, body["nimg"])
    return found


def tables_of(body: Mapping[str, Any], nimg: int) -> list[PageTable]:
    """The results of `gantrain evaluate` as a table; none if they contain no scores.

    Raises:
        TypeError, KeyError, AttributeError, ValueError: `gantrain evaluate` did not write `body`.
    """
    by_policy = body.get("scores_by_batchnorm") or {str(body.get("eval/batchnorm", "")): body["scores"]}
    rows = {(name, policy): dict(scores[name]) for name in next(iter(by_policy.values())) for policy, scores in by_policy.items()}
    protocol = {key.removeprefix("eval/"): value for key, value in body.items() if key.startswith("eval/")}
    made = table_of_scores(f"Scores at {nimg / 1000:g} kimg, by gantrain evaluate", rows, protocol)
    [cell.text for _, cells in made.rows for cell in cells]  # raises if a value is not a number
    return [made] if made.metrics else []


def later_evaluations(run: Path) -> list[dict[str, Any]]:
    """The results of `gantrain evaluate` in a run folder, without damaged files."""
    found = []
    for path in sorted((run / "evaluations").glob("*.json")):
        if re.fullmatch(r"\d{12}(-\d+)?", path.stem):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                body = restored(json.loads(path.read_text(encoding="utf-8")))
                if isinstance(body["nimg"], int) and tables_of(body, body["nimg"]):
                    found.append(body)
    return found


def table_of_scores(title: str, rows: Mapping[tuple[str, str], Mapping[str, float]], protocol: Mapping[str, Any]) -> PageTable:
    """A table of (average, BatchNorm policy) to scores, with the best of each column marked."""
    metrics = [m for m in dict.fromkeys(m for row in rows.values() for m in row) if better_when_higher(m) is not None]
    best = {m: best_value(m, [row.get(m) for row in rows.values()]) for m in metrics}
    body = [
        ([name, policy], [Cell(row.get(m), row.get(f"{m}_ci95"), row.get(m) is not None and row[m] == best[m]) for m in metrics])
        for (name, policy), row in rows.items()
    ]
    return PageTable(title, ["average", "BatchNorm"], metrics, body, protocol_in_words(protocol))


def protocol_in_words(protocol: Mapping[str, Any]) -> str:
    """The protocol that scores must be quoted with."""
    batches = protocol.get("batchnorm_batches")
    parts = [
        f"{protocol.get('num_samples')} generated images",
        f"reference {protocol.get('reference')}, fingerprint {protocol.get('reference_fingerprint')}",
        f"features {protocol.get('features')}", f"BatchNorm statistics of {batches}" if isinstance(batches, str) else "",
        "no truncation" if protocol.get("truncation") is None else f"truncation {protocol['truncation']:g}",
        f"protocol {protocol['protocol']}" if protocol.get("protocol") else "",
    ]  # fmt: skip
    return "; ".join(part for part in parts if part)


def swap_table(record: Record) -> PageTable | None:
    """The live weights' scores at every swap: before, at and after it."""
    told = [line for line in record.events("swap") if line.get("live")]
    metrics = [m for m in dict.fromkeys(m for line in told for m in line["live"]) if better_when_higher(m) is not None]
    rows = [
        (
            [f"{line['swap_nimg'] / 1000:g}", f"{line['batch/size']}", f"{line['moment']} ({line['nimg'] / 1000:g})"],
            [Cell(line["live"].get(m)) for m in metrics],
        )
        for line in told
    ]
    return PageTable("Live weights at the swaps", ["swap at kimg", "batch", "moment (kimg)"], metrics, rows) if rows else None


def means_table(groups: Sequence[Group], metrics: Sequence[str]) -> PageTable:
    """The last scores of each group's runs: means with intervals, the best mean of each column marked."""
    rows: dict[tuple[str, str, str], dict[str, tuple[float, float | None]]] = {}
    for group in groups:
        lasts = [record.evaluations[-1] for record in group.records if record.evaluations]
        for name in dict.fromkeys(name for last in lasts for name in last.scores):
            have = [last.scores[name] for last in lasts if name in last.scores]
            key = (group.name, name, str(len(have)))
            rows[key] = {}
            for metric in metrics:
                values = [row[metric] for row in have if metric in row]
                if values:
                    rows[key][metric] = sum(values) / len(values), half_width(values) if len(values) > 1 else None
    best = {m: best_value(m, [row[m][0] if m in row else None for row in rows.values()]) for m in metrics}
    body = [
        (list(key), [Cell(*row[m], best=row[m][0] == best[m]) if m in row else Cell(None) for m in metrics]) for key, row in rows.items()
    ]
    last = next((record.evaluations[-1] for group in groups for record in group.records if record.evaluations), None)
    note = (
        f"Last evaluation of each run; means over the runs with {LEVEL:.0%} intervals (Student's t). " + protocol_in_words(last.protocol)
        if last
        else ""
    )
    return PageTable("Scores at the end", ["runs", "average", "number of runs"], list(metrics), body, note)


# ---- pictures --------------------------------------------------------------------------------------------------------


def samples_of(records: Sequence[Record], names: Mapping[Path, str]) -> Samples:
    """The sample sheets of the runs; if there are too many, an evenly spaced selection."""
    found = Samples()
    most, room = max(2, MOST_MOMENTS // len(records)), MOST_BYTES // len(records)
    for record in records:
        paths = pictures_in(record.run / "samples")
        chosen = pick_evenly(paths, most)
        sizes = sum(path.stat().st_size for path in chosen)
        if sizes > room:
            chosen = pick_evenly(chosen, max(2, int(len(chosen) * room / sizes)))
        found.left_out += len(paths) - len(chosen)
        by_name: dict[str, list[dict[str, Any]]] = {}
        for path in chosen:
            with contextlib.suppress(OSError):  # damaged
                for sheet in read_side_by_side(path):
                    by_name.setdefault(sheet.name or "all", []).append(
                        {"kimg": int(path.stem) / 1000, "caption": sheet.caption, "src": as_uri(sheet.picture)}
                    )
        run = names[record.run.resolve()]
        prefix = f"{run} · " if len(records) > 1 else ""
        found.sources += [{"label": prefix + name, "run": run, "average": name, "moments": moments} for name, moments in by_name.items()]
    return found


def as_uri(picture: Image.Image) -> str:
    """A picture as a data URI, lossless if that is small enough."""
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
    whole = io.BytesIO()
    picture.save(whole, "WEBP", lossless=True)
    if whole.tell() > 200_000:
        whole = io.BytesIO()
        picture.save(whole, "WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(whole.getvalue()).decode()}"


def left_and_right(samples: Samples, records: Sequence[Record], names: Mapping[Path, str]) -> tuple[int, int]:
    """The two sources shown first: live and the best average of a run, or the best averages of two runs."""
    best = {
        names[record.run.resolve()]: found[1]
        for record in records
        if (found := record.best(averages=[n for n in record.averages if n != LIVE]))
    }
    favourites = [i for i, source in enumerate(samples.sources) if source["average"] == best.get(source["run"])]
    if len(records) > 1 and len(favourites) > 1:
        return favourites[0], favourites[-1]
    live = next((i for i, source in enumerate(samples.sources) if source["average"] == LIVE), 0)
    return live, favourites[0] if favourites else max(0, len(samples.sources) - 1)


def chosen_averages(groups: Sequence[Group], metrics: Sequence[str]) -> list[str]:
    """The averages in the menu when groups are compared, best first; empty if all averages are drawn at once."""
    if len(groups) < 2 or not metrics:
        return []
    ends: dict[str, list[float]] = {}
    for group in groups:
        for curve in build_curves(group, metrics[0]):
            ends.setdefault(curve.average, []).append(curve.mean[-1])
    sign = -1 if better_when_higher(metrics[0]) else 1
    rank = lambda name: (-len(ends[name]), mean if math.isfinite(mean := sign * sum(ends[name]) / len(ends[name])) else math.inf)  # noqa: E731
    return sorted(ends, key=rank)


def pictures(records: Sequence[Record], names: Mapping[Path, str]) -> list[dict[str, str]]:
    """The newest orbit of each run, and the newest pictures in evaluations/, up to the limits of a page."""
    orbits = [path for record in records for path in pictures_in(record.run / "orbit")[-1:]]
    others = sorted(
        (path for record in records for path in (record.run / "evaluations").glob("[!.]*.png")), key=lambda path: path.stat().st_mtime
    )
    found, size = [], 0
    for path in [*orbits, *reversed(others)][:MOST_PICTURES]:
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            size += len(data)
            if size > MOST_BYTES:
                break
            run = names[path.parent.parent.resolve()]
            title = f"orbit at {int(path.stem) / 1000:g} kimg" if path in orbits else path.stem
            found.append(
                {
                    "title": (f"{run}: " if len(records) > 1 else "") + title,
                    "src": f"data:image/png;base64,{base64.b64encode(data).decode()}",
                }
            )
    return found
