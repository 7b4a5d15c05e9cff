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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from gantrain.config import loading
from gantrain.errors import counted
from gantrain.regular_file import read_regular
from gantrain.reporting.comparison import FEWEST_RUNS, LEVEL, Group, build_curves, describe_gaps, differences, group_runs, names_of
from gantrain.reporting.console import duration, time_left
from gantrain.reporting.drawn_pictures import pick_evenly, pictures_in
from gantrain.reporting.event_words import changes_of
from gantrain.reporting.page_figures import describe_bins, describe_marks, stack
from gantrain.reporting.page_tables import means_table, swap_table, tables
from gantrain.reporting.run_warnings import find_collapse, find_warnings, marks_of
from gantrain.run_folder.change_words import spell
from gantrain.run_folder.layout import is_narrow, narrow_variant
from gantrain.run_folder.provenance import utc_now
from gantrain.run_folder.record import CUT_SHORT, DAMAGED, DONE, EMPTY, FORKED, GAVE_UP, INTERRUPTED, MAYBE, RUNNING, Record
from gantrain.run_folder.snapshot_bound import describe_room
from gantrain.sampling.sheets import read_side_by_side
from gantrain.score_names import LIVE, better_when_higher
from gantrain.version import __version__

TEMPLATE = Path(__file__).parent / "page.html"
MOST_MOMENTS = 40  # of sample pictures in a page, including the first and the last
MOST_BYTES = 24 * 2**20  # of all sample pictures together
MOST_PICTURES = 20  # of orbits, sweeps and truncation curves
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for damaged pictures, besides ours
MOST_CLASSES = 12  # names of classes in a run's head
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
    named = {names[record.run.resolve()]: record for record in records}
    samples = samples_of(records, names)
    left, right = left_and_right(samples, records, names)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=names[one.run.resolve()] if one else " · ".join(group.name for group in groups),
        version=__version__, made=utc_now(), level=LEVEL,
        heads=[head(record, name) for name, record in named.items()],
        groups=[group_head(group, groups) for group in groups], several=one is None, drawn_as=drawn_as(groups),
        notes=say_of_runs({name: notes(record) for name, record in named.items()})
        + ([] if one else say_of_runs({name: [f"Scores: {note}" for note in notes_on_scores(record)] for name, record in named.items()})),
        chart_lacks=say_of_runs({name: chart_lacks(record) for name, record in named.items()})
        + [gap for group in groups for gap in describe_gaps(group, metrics)],
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
    _, rates = record.numbers.points("throughput/img_per_s")
    rates = np.sort(rates[np.isfinite(rates)])
    batch = record.numbers.last()
    rows = {
        "Images": f"{record.nimg / 1000:g} of {config.total_kimg:g} kimg",
        **changes_of(record),
        "Took": took(record),
        "Speed": f"{rates[len(rates) // 2]:.0f} images per second (median)" if len(rates) else "",
        "Batch": f"{batch['batch/size']} images ({counted(batch['batch/rounds'], 'round')}) at the end"
        if "batch/rounds" in batch and "batch/size" in batch
        else "",
        "Device": f"{facts['device']}, {config.mixed_precision}, {counted(facts['processes'], 'process', 'es')}"
        if "processes" in facts and "device" in facts
        else "",
        "Parameters": f"G {parameters['g']:,}, D {parameters['d']:,}" if parameters else "",
        "Seed": str(config.seed),
        "Left": left_in_words(record),
        "Snapshots": describe_room(record.run, config),
        "Versions": ", ".join(
            f"{name} {version}" for name, version in {"gantrain": facts.get("gantrain"), **facts.get("versions", {})}.items() if version
        ),
        "Data": f"{loading.to_dict(config)['data']['name']}, fingerprint {facts['data_fingerprint'][:16]}"
        if "data_fingerprint" in facts
        else "",
        "Classes": list_classes(facts.get("class_names", ())),
    }
    return {
        "name": name, "status": record.status, "words": IN_WORDS[record.status], "collapse": find_collapse(record),
        "marks": marks_of(find_warnings(record), find_collapse(record)), "rows": {k: v for k, v in rows.items() if v},
        "no_score": no_score(record), "score_notes": notes_on_scores(record),
        "best": [best for metric in record.metrics if (best := best_of(record, metric))], "config": loading.to_yaml(config),
    }  # fmt: skip


def list_classes(names: Sequence[str]) -> str:
    """The number of classes and the first of their names; empty if they are not known."""
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return f"{len(names)}: {', '.join(names[:MOST_CLASSES])}{more}" if names else ""


def best_of(record: Record, metric: str) -> dict[str, Any] | None:
    """The best value of a metric, its average and its kimg; see `Record.best`."""
    found = record.best(metric)
    if found is None:
        return None
    value, average, nimg = found
    return {"metric": metric, "value": value, "text": f"{value:.4f}", "average": average, "kimg": nimg / 1000}


def left_in_words(record: Record) -> str:
    """The time left of a run that is still training, as it announced it with its last line; empty for others."""
    if record.status not in (RUNNING, MAYBE):
        return ""
    left, besides = time_left(record.numbers.last())
    return "" if left == "?" else f"{left}{' ' if besides else ''}{besides}, by its last line"


def no_score(record: Record) -> str:
    """Why a run has no best score."""
    if not record.comparable:
        return "No score yet."
    if all(one.nimg == 0 for one in record.comparable):
        return "No score yet: only the untrained weights have been scored, at 0 kimg."
    return "No score is finite."


def took(record: Record) -> str:
    """The time from the first start to the last end in words; empty if it is unknown."""
    told = [(place, line) for place, line in record.placed if "event" in line and "time" in line]
    try:
        begun, last = (datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%SZ") for _, line in (told[0], told[-1]))
    except (IndexError, ValueError):
        return ""
    place, end = told[-1][0], told[-1][1]["time"]
    seconds = (last - begun).total_seconds()
    if told[-1][1]["event"] in ("start", "resume"):  # it is running, or was killed before it could record its end
        seconds += record.numbers.highest("throughput/elapsed_s", place)
        end = "its last line"
    resumes = len(record.events("resume"))
    again = f", resumed {counted(resumes, 'time')}" if resumes else ""
    return f"{duration(seconds)} from {told[0][1]['time']} to {end}{again}"


def group_head(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """A group's name and seeds, and how its configuration differs from the first group's."""
    found: dict[str, str] = {}
    differ = differences(groups[0].records[0], group.records[0])
    # Of a plug-in in whose place there is another, the names say enough: each has keys of its own.
    replaced = tuple(key.removesuffix("name") for key, pair in differ.items() if key.endswith(".name") and "absent" not in pair)
    for key, (there, here) in differ.items():
        if "absent" in (there, here) and key.startswith(replaced):
            continue
        if "absent" in (there, here):  # for example, an averager that only one of them has; listed once
            section = key.rpartition(".")[0]
            found[section] = f"{section} (in {group.name if there == 'absent' else groups[0].name} only)"
        else:
            found[key] = f"{key}: {in_yaml(there)} → {in_yaml(here)}"
    return {"name": group.name, "seeds": [record.full_config.seed for record in group.records], "differs": list(found.values())}


def drawn_as(groups: Sequence[Group]) -> str:
    """How the runs of a group are drawn, in words; empty if every group is a single run."""
    counts = [len(group.records) for group in groups if group.several]
    words = ["Runs that differ only in their seed are drawn together."] if counts else []
    if max(counts, default=0) >= FEWEST_RUNS:
        words.append(
            f"{FEWEST_RUNS} or more are their mean, with its {LEVEL:.0%} interval (Student's t over the runs) as a band and the single runs"
            " as faint lines; the mean ends where the shortest run ends."
        )
    if any(count < FEWEST_RUNS for count in counts):
        words.append("Two are drawn as they are, one with filled and one with hollow points: two runs give no useful interval.")
    return " ".join(words)


def in_yaml(value: Any) -> str:
    """A value as YAML spells it."""
    if isinstance(value, (Mapping, list)):  # a schedule, or a list with one
        return spell(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def notes_on_scores(record: Record) -> list[str]:
    """What must stand beside a run's scores, as sentences: in the card of its best scores, or in the notes of a page of several runs."""
    return [f"{note}." for note in record.comparable[-1].protocol.get("notes") or ()] if record.comparable else []


def notes(record: Record) -> list[str]:
    """What a run has warned about, what is incomplete about it, and what the page leaves out."""
    found = [warning.sentence for warning in find_warnings(record)]
    apart = len(record.evaluations) - len(record.comparable)
    if apart:
        found.append(f"{counted(apart, 'earlier evaluation')} left out: eval was changed at a resume, so the scores are not comparable.")
    if record.status in (CUT_SHORT, INTERRUPTED, GAVE_UP):
        found.append(f"The run is incomplete: it ends at {record.nimg / 1000:g} of {record.config.total_kimg:g} kimg ({record.status}).")
    abandoned = len(record.abandoned) if record.num_abandoned is None else record.num_abandoned
    if abandoned:
        found.append(f"{abandoned} lines of paths abandoned by rollbacks are not drawn.")
    if record.unreadable:
        found.append(f"{record.unreadable} lines of metrics.jsonl cannot be read and are left out.")
    return found


def chart_lacks(record: Record) -> list[str]:
    """What the chart of a run lacks, and why."""
    found = []
    if not record.evaluations:
        found.append("Nothing has been evaluated yet, so there are no scores.")
    elif len(record.averages) == 1:
        found.append(f"Only {record.averages[0]} was scored, so there is no comparison.")
    rows = [row for one in record.comparable for row in one.scores.values()]
    sick = [metric for metric in record.metrics if any(not math.isfinite(row.get(metric, 0.0)) for row in rows)]
    found += [f"{metric} is not finite at some evaluations; these points, and means over them, are not drawn." for metric in sick]
    if not len(record.numbers):
        found.append("No training line has been written yet, so batch, learning rates and noise scale are not drawn.")
    elif not record.numbers.has("noise_scale/G/measurements", "noise_scale/D/measurements"):
        found.append("The gradient noise scale was not measured (noise_scale.measure_every is null).")
    return found + describe_bins(record) + describe_marks(record)


def say_of_runs(said: Mapping[str, Sequence[str]]) -> list[str]:
    """Each sentence once, with the names of its runs in front, unless it holds for all of them.

    Args:
        said: sentences by the name of the run.
    """
    runs: dict[str, list[str]] = {}
    for name, sentences in said.items():
        for sentence in sentences:
            runs.setdefault(sentence, []).append(name)
    return [sentence if len(names) == len(said) else f"{', '.join(names)}: {sentence}" for sentence, names in runs.items()]


# ---- pictures --------------------------------------------------------------------------------------------------------


def samples_of(records: Sequence[Record], names: Mapping[Path, str]) -> Samples:
    """The sample sheets of the runs; if there are too many, an evenly spaced selection."""
    found = Samples()
    most, room = max(2, MOST_MOMENTS // len(records)), MOST_BYTES // len(records)
    for record in records:
        paths = pictures_in(record.run / "samples")
        chosen = pick_evenly(paths, most)
        sizes = sum(map(size_of, chosen))
        if sizes > room:
            chosen = pick_evenly(chosen, max(2, int(len(chosen) * room / sizes)))
        found.left_out += len(paths) - len(chosen)
        by_name: dict[str, list[dict[str, Any]]] = {}
        for path in chosen:
            with contextlib.suppress(*UNREADABLE):  # damaged, or deleted meanwhile
                for sheet in read_side_by_side(path):
                    by_name.setdefault(sheet.name or "all", []).append(
                        {"kimg": int(path.stem) / 1000, "caption": sheet.caption, "src": as_uri(sheet.headed)}
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
            ends.setdefault(curve.average, []).append(curve.last)
    sign = -1 if better_when_higher(metrics[0]) else 1
    rank = lambda name: (-len(ends[name]), mean if math.isfinite(mean := sign * sum(ends[name]) / len(ends[name])) else math.inf)  # noqa: E731
    return sorted(ends, key=rank)


def pictures(records: Sequence[Record], names: Mapping[Path, str]) -> list[dict[str, Any]]:
    """The newest orbit of each run, and the newest pictures in evaluations/, up to the limits of a page.

    Each has a title, its data, its width in pixels, and the data of its variant for narrow screens if there is one.
    """
    orbits = [path for record in records for path in pictures_in(record.run / "orbit")[-1:]]
    others = sorted(
        (path for record in records for path in (record.run / "evaluations").glob("[!.]*.png") if not is_narrow(path)),
        key=changed_at,
    )
    found: list[dict[str, Any]] = []
    size = 0
    for path in [*orbits, *reversed(others)][:MOST_PICTURES]:
        with contextlib.suppress(*UNREADABLE):
            data, narrow = read_regular(path, MOST_BYTES), narrow_variant(path)
            small = read_regular(narrow, MOST_BYTES) if narrow.is_file() else b""
            size += len(data) + len(small)
            if size > MOST_BYTES:
                break
            with Image.open(io.BytesIO(data)) as image:
                width = image.width
            run = names[path.parent.parent.resolve()]
            title = f"orbit at {int(path.stem) / 1000:g} kimg" if path in orbits else path.stem
            found.append(
                {
                    "title": (f"{run}: " if len(records) > 1 else "") + title, "width": width, "src": png_uri(data),
                    "narrow": png_uri(small) if small else "",
                }
            )  # fmt: skip
    return found


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def changed_at(path: Path) -> float:
    """When a file changed, in seconds since 1970; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def png_uri(data: bytes) -> str:
    """The bytes of a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
