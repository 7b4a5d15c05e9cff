"""The console line of a run: progress, speed, time left."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gantrain.reporting.time_left import Costs, Pace, Plan


class Progress:
    """Measures the speed of a run, for its console line, and foresees how long the rest takes.

    Args:
        total_nimg: images of the whole run.
        nimg: images seen at the start.
        plan: returns what is still to come when a line is written; None is the rest of the images alone.
        costs: of the work besides training.
    """

    def __init__(self, total_nimg: int, nimg: int, plan: Callable[[], Plan] | None = None, costs: Costs | None = None):
        self.total, self.started_at = total_nimg, time.monotonic()
        self.last_time, self.last_nimg = self.started_at, nimg
        self.aside = 0.0
        self.seconds = 0.0  # spent on training between the last two lines
        self.pace, self.plan, self.costs = Pace(), plan, costs or Costs()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context, time does not count towards the speed."""
        began = time.monotonic()
        yield
        self.aside += time.monotonic() - began

    def back_to(self, nimg: int) -> None:
        """Continue from fewer images, after a rollback."""
        self.last_nimg = nimg

    def line(self, nimg: int, values: Mapping[str, float]) -> tuple[str, dict[str, float | str]]:
        """(line, times for the record: images per second since the previous line, seconds since the start, seconds left).

        If some of the work that is left has not been measured yet, the record also says which.
        """
        now = time.monotonic()
        self.seconds = max(now - self.last_time - self.aside, 1e-9)
        times: dict[str, float | str] = {
            "throughput/img_per_s": (nimg - self.last_nimg) / self.seconds,
            "throughput/elapsed_s": now - self.started_at,
        }
        batch = int(values.get("batch/size", 0))
        self.pace.add(nimg - self.last_nimg, self.seconds, batch)
        plan = self.plan() if self.plan else Plan([(max(0, self.total - nimg), batch)])
        training, (work, unknown) = self.pace.of(plan.training), self.costs.of(plan.work)
        if training is not None:
            times["throughput/left_s"] = training + work
            times |= {"throughput/left_excludes": ", ".join(unknown)} if unknown else {}
        self.aside, self.last_time, self.last_nimg = 0.0, now, nimg
        return console_line(nimg, self.total, {**values, **times}), times


def console_line(nimg: int, total: int, values: Mapping[str, Any]) -> str:
    """Format a training line of the record for the console; columns have the same width in all lines.

    Args:
        nimg, total: images seen, and in the whole run.
        values: a training line of metrics.jsonl; a missing number is shown as nan, a missing time as ?.
    """
    of = lambda key, width, decimals: format_fixed(values.get(key, math.nan), width, decimals)  # noqa: E731
    seconds = values.get("throughput/elapsed_s", math.nan)
    elapsed = duration(seconds) if math.isfinite(seconds) else "?"
    left, besides = time_left(values)
    besides = f" | to go: {besides}" if besides else ""
    return (
        f"{nimg / 1000:9.1f} kimg {min(1.0, nimg / total):4.0%} | {elapsed:>7} + {left:>7} to go | {of('throughput/img_per_s', 6, 0)} img/s"
        f" | loss D {of('loss/d', 6, 3)} G {of('loss/g', 6, 3)} | D(real) {of('logits/real', 6, 2)} D(fake) {of('logits/fake', 6, 2)}"
        f" | batch {of('batch/size', 5, 0).strip():<5} | {of('memory/gib', 5, 1)} GiB{noise_in_words(values)}{besides}"
    )


def time_left(values: Mapping[str, Any]) -> tuple[str, str]:
    """(the time left by a training line of the record, what has to be added to it), for the console line and `gantrain watch`.

    A time to which something has to be added starts with ~. It is ? if the line has none.
    """
    left, unknown = values.get("throughput/left_s"), values.get("throughput/left_excludes")
    if not isinstance(left, (int, float)) or not math.isfinite(left):
        return "?", ""
    return ("~" if unknown else "") + duration(left), f"plus {unknown}" if unknown else ""


def format_fixed(value: float, width: int, decimals: int) -> str:
    """Right-align a number in `width` characters: a large one gets fewer decimals, a still larger one an exponent."""
    for places in range(decimals, -1, -1):
        text = f"{value:{width}.{places}f}"
        if len(text) == width:
            return text
    return f"{value:.0e}".rjust(width)


def noise_in_words(values: Mapping[str, float]) -> str:
    """Both players' noise scales in images, for the end of the console line; empty if none is measured.

    "?" stands for undecidable, and ">80" for an interval that begins at 80 and has no upper end.
    """
    cells = []
    for player in ("D", "G"):
        prefix = f"noise_scale/{player}"
        if f"{prefix}/undecidable" not in values:
            continue
        if values[f"{prefix}/undecidable"]:
            cell = "?"
        elif values.get(f"{prefix}/unbounded"):
            cell = f">{format_fixed(values.get(f'{prefix}/b_simple_low', math.nan), 5, 0).strip()}"
        else:
            cell = format_fixed(values.get(f"{prefix}/b_simple", math.nan), 6, 0).strip()
        cells.append(f" {player} {cell:<6}")
    return (" | noise" + "".join(cells)).rstrip() if cells else ""


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s, 2h07m or 4d03h."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
