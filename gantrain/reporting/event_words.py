"""The words for a run's events, in one place for the console, `gantrain watch`, W&B, TensorBoard and the report.

An event is a line of metrics.jsonl. `what_happened` describes it without its time, for tables and marks, which show the time themselves;
`on_console` describes it with its time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gantrain import clock
from gantrain.errors import counted
from gantrain.reporting.console import console_line, time_left
from gantrain.reporting.score_table import table
from gantrain.run_folder.change_words import name_and_settings, say_changes
from gantrain.run_folder.record import ENDS, Record, evaluation, goes_back

Line = Mapping[str, Any]  # of metrics.jsonl
# Events that tables and marks show; the others are only recorded.
TOLD = (
    "swap", "growth", "rollback", "warning", "collapse", "gave_up", "not_written", "interrupted", "fork", "resume", "average_added",
    "data_changed", "end",
)  # fmt: skip
SILENT = ("checkpoint", "best")  # events that the console does not print either


# ---- what happened ---------------------------------------------------------------------------------------------------


def what_happened(line: Line) -> str:
    """An event in a few words, without its time; empty if there is nothing to show, as for a swap's scores before and after it."""
    return find_words(WHAT, line, otherwise=str(line.get("event", "")) if line.get("event") in TOLD else "")


def swap(line: Line) -> str:
    """The swap itself; empty for the scores before and after it."""
    return f"{swapped(line)}{batch_of(line)}" if line.get("moment") == "at" else ""


def swapped(line: Line) -> str:
    """What a swap did to the weights."""
    return f"{line['source']} replaces the live weights of {' and '.join(line['networks'].upper())}"


def batch_of(line: Line) -> str:
    """What a swap did to the batch, and why."""
    if "grown" not in line:
        return ""
    batch, why = line["batch/size"], ""
    if "undecidable" in line:
        why = f" ({line['undecidable']})"
    elif "g_star" in line:  # swap.growth is auto
        why = f" (auto asks for x{line['growth']:.3g})"
    return f"; batch {batch / line['grown']:.0f} -> {batch}{why}"


def growth(line: Line) -> str:
    """The batch before and after a growth, and the reason."""
    return "batch {from} -> {to}: {reason}".format(**line)


def rollback(line: Line) -> str:
    """The reason for a rollback, where it returned to, and what it changed."""
    words = f"{line['words']}; back to {line['to'] / 1000:g} kimg"
    if "attempt" in line:
        of = f" of {line['max_rollbacks']}" if "max_rollbacks" in line else ""
        words += f", attempt {line['attempt']}{of}, on other images"
    words += f", learning rates x {line['lr_scale']:g}" if line.get("lr_scale", 1) != 1 else ""
    words += f", batch {line['batch_before']} -> {line['batch/size']}" if "batch_before" in line else ""
    return words


def fork(line: Line) -> str:
    """The run and the checkpoint that a run continues from, and what was changed."""
    changes = say_changes(line.get("changed", {}))
    return f"forked from {line['from']} at {line['nimg'] / 1000:g} kimg{f': {changes}' if changes else ''}"


def average_added(line: Line) -> str:
    """The name and the settings of an average that begins in the middle of a run."""
    settings = {key: value for key, value in line["settings"].items() if key != "name"}
    return f"average {line['average']} added: {name_and_settings(line['settings']['name'], settings)}"


def data_changed(line: Line) -> str:
    """The data set whose images changed, and both fingerprints."""
    return f"the images of {line['data']} have changed: fingerprint {line['before'][:16]} -> {line['after'][:16]}"


def changes_of(record: Record) -> dict[str, str]:
    """What became of a run after it was configured, for the facts of a page: its origin, averages and images; empty if there is none."""
    told = {"Fork": "fork", "Added averages": "average_added", "Changed data": "data_changed"}
    found = {title: [f"{what_happened(line)}, at {kimg(line)}" for line in record.events(name)] for title, name in told.items()}
    found["Fork"] = [what_happened(line) for line in record.events("fork")]  # its words have the time
    return {title: "; ".join(lines) for title, lines in found.items() if lines}


def own_words(line: Line) -> str:
    """The words stored in the event."""
    return str(line["words"])


def collapsed(line: Line) -> str:
    """How the last weights of a run have collapsed; empty if they have not."""
    return f"; the run has collapsed: {line['collapsed']}" if line.get("collapsed") else ""


WHAT: dict[str, Callable[[Line], str]] = {
    "swap": swap,
    "growth": growth,
    "rollback": rollback,
    **dict.fromkeys(("warning", "collapse", "gave_up", "not_written"), own_words),
    "interrupted": lambda line: f"stopped by {line['signal']}",
    "resume": lambda line: "resumed",
    "fork": fork,
    "average_added": average_added,
    "data_changed": data_changed,
    "end": lambda line: f"done{collapsed(line)}",
}


# ---- what happened, and when -----------------------------------------------------------------------------------------


def on_console(line: Line, live_before: Line | None = None) -> str:
    """An event as the console prints it; empty if it is only recorded.

    Args:
        live_before: for a swap, the live weights' scores before it.
    """
    name = line["event"]
    if name == "swap" and line.get("moment") == "at":
        line = {**line, "live_before": live_before or {}}
    return find_words(CONSOLE, line, otherwise="" if name in SILENT else f"{name} at {kimg(line)}")


def kimg(line: Line) -> str:
    """The time of a line."""
    return f"{line['nimg'] / 1000:g} kimg"


def say_start(line: Line) -> str:
    """The start or resume of a run, and the machine."""
    at = f", {line['time']}" if "time" in line else ""
    processes = counted(line["processes"], "process", "es")
    return f"{line['event']} at {kimg(line)} on {line['device']}, {processes}, gantrain {line['gantrain']}{at}"


def say_interrupted(line: Line) -> str:
    """`resumes_from` is not in the record: only the run itself knows whether its last checkpoint was written."""
    where = f" from {line['resumes_from']}" if "resumes_from" in line else ""
    return f"stopped by {line['signal']} at {kimg(line)}; run the same command to resume{where}"


def say_added(line: Line) -> str:
    """An average that begins in the middle of a run, and when it begins."""
    begins = max(line["nimg"] / 1000, line["settings"].get("start_kimg") or 0)
    return f"{average_added(line)}; it begins at {begins:g} kimg with the weights of that moment"


def say_swap(line: Line) -> str:
    """A swap and the live scores around it; empty for the scores before it, which are shown with the swap."""
    metric, value = next(iter(line["live"].items()), ("", 0.0))
    if line["moment"] == "before":
        return ""
    if line["moment"] == "after":
        score = f": live {metric} {value:.4f}" if metric else ""
        return f"swap at {line['swap_nimg'] / 1000:g} kimg, {line['since_swap'] / 1000:g} kimg later{score}"
    score = f"; live {metric} {line['live_before'].get(metric, float('nan')):.4f} -> {value:.4f}" if metric else ""
    return f"swap: {swapped(line)} at {kimg(line)}{batch_of(line)}{score}"


CONSOLE: dict[str, Callable[[Line], str]] = {
    **dict.fromkeys(("start", "resume"), say_start),
    "swap": say_swap,
    "growth": lambda line: f"growth at {kimg(line)}: {growth(line)}",
    "rollback": lambda line: f"guard: {rollback(line)}",
    "warning": lambda line: f"guard: {line['words']}; continuing (guard.on_{line['kind']}=warn)",
    "collapse": lambda line: f"warning: at {kimg(line)}, {line['words']}",
    "not_written": lambda line: f"{line['words']}; continuing (checkpoint.on_error=continue)",
    "skipped": lambda line: f"data: skipped: {line['image']}",
    "interrupted": say_interrupted,
    "fork": fork,
    "average_added": say_added,
    "data_changed": lambda line: f"{data_changed(line)}, at {kimg(line)}",
    "gave_up": lambda line: f"gave up at {kimg(line)}: {line['words']}",
    "end": lambda line: f"done at {kimg(line)}{collapsed(line)}",
}


def find_words(table: Mapping[str, Callable[[Line], str]], line: Line, otherwise: str) -> str:
    """The words that a table has for a line; `otherwise` if it has none, or if an older version wrote the line without some fields."""
    describe = table.get(str(line.get("event")))
    try:
        return describe(line) if describe else otherwise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return otherwise


# ---- a whole record --------------------------------------------------------------------------------------------------

RECENT = 10  # training lines over which the rate is averaged


class Teller:
    """Turns the lines of a record into the words that the run itself printed.

    Args:
        total_kimg: of the whole run.

    Attributes:
        total_kimg: as above; a resume may change it.
        nimg: images seen so far.
        told: the last event that says whether the run is going: start, resume, end, interrupted or gave_up; None before the first.
        notes: the notes on the scores of the last line; None if it has no scores. They are not in its text, since most are the same
            at every evaluation (`gantrain.reporting.score_table.SaidNotes`).
    """

    def __init__(self, total_kimg: float):
        self.total_kimg = total_kimg
        self.nimg = 0
        self.told: str | None = None
        self.notes: list[str] | None = None
        self._before: dict[str, float] = {}  # scores of the live weights before a swap
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # images and seconds of the last lines of losses
        self._last: int | None = None
        self._left: tuple[str, str] = "?", ""

    @property
    def total(self) -> int:
        """Images of the whole run."""
        return clock.images(self.total_kimg)

    def text(self, line: dict[str, Any]) -> str:
        """A line in words; empty if it is only recorded."""
        nimg, name = line["nimg"], line.get("event")
        self.notes = None
        self.nimg = line["to"] if goes_back(line) else max(self.nimg, nimg) if name not in ("start", "resume") else nimg
        if goes_back(line) or name in ("start", "resume"):
            self._last = self.nimg
        if name is not None:
            return self._event(str(name), line)
        if "loss/d" in line:
            rate = line.get("throughput/img_per_s", 0)
            if self._last is not None and nimg > self._last and rate > 0:
                self._recent.append((nimg - self._last, (nimg - self._last) / rate))
            self._last = nimg
            self._left = time_left(line)
            return console_line(nimg, self.total, line)
        scored = evaluation(line)
        if scored is None:
            return ""
        count = f" ({scored.protocol['num_samples']} samples each)" if "num_samples" in scored.protocol else ""
        self.notes = list(scored.protocol.get("notes") or ())
        return f"scores at {nimg / 1000:g} kimg{count}:\n{table(scored.scores)}"

    def rest(self) -> str:
        """The recent speed, and the time left by the run's last line; what is unknown is left out."""
        seconds = sum(s for _, s in self._recent)
        rate = f"{sum(n for n, _ in self._recent) / seconds:.0f} img/s" if seconds else ""
        left, besides = self._left
        to_go = "" if left == "?" else f"{left} to go" + (f", {besides}" if besides else "")
        return ", ".join(part for part in (rate, to_go) if part)

    def _event(self, name: str, line: Line) -> str:
        self.told = name if name in (*ENDS, "start", "resume") else self.told
        if name == "swap" and line.get("moment") == "before" and isinstance(line.get("live"), dict):
            self._before = dict(line["live"])
        return on_console(line, self._before)
