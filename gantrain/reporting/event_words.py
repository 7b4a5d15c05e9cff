"""Events of a run in words: growths, swaps, rollbacks and the rest, as the console, W&B, the page and `gantrain watch` say them."""

from __future__ import annotations

from collections import deque
from typing import Any

from gantrain import clock
from gantrain.config.config import Config
from gantrain.reporting.console import console_line, duration
from gantrain.reporting.score_table import table
from gantrain.run_folder.record import ENDS, evaluation, goes_back


def mark_of(line: dict[str, Any]) -> tuple[str, str] | None:
    """(kind, what happened in a few words) of an event that is marked in charts; None of any other line."""
    kind = line.get("event")
    if kind == "swap" and line.get("moment") == "at":
        return kind, f"{line['source']} in place of the live weights of {' and '.join(line['networks'].upper())}"
    if kind == "growth":
        return kind, "batch {from} -> {to}: {reason}".format(**line)
    if kind == "rollback":
        return kind, f"{line['words']}; back to {line['to'] / 1000:g} kimg"
    return None


RECENT = 10  # lines of losses that the rate is taken over
EVENTS = ("start", "resume", "swap", "growth", "rollback", "warning", "skipped", "interrupted", "gave_up", "end")
SILENT = ("checkpoint", "best")  # the run does not speak of them either


class Teller:
    """Lines of a record in the words in which the run has them on its console.

    Attributes:
        nimg: images seen where the run is.
        told: the last of its events that says whether it goes on: start, resume, end, interrupted, gave_up; None before any.
    """

    def __init__(self, config: Config):
        self.aim_at(config)
        self.nimg = 0
        self.told: str | None = None
        self._before: dict[str, float] = {}  # scores of the live weights before a swap
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # images and seconds of the last lines of losses
        self._last: int | None = None

    def aim_at(self, config: Config) -> None:
        """The run's configuration, of which a resumed one may have made the end another."""
        self.config, self.total = config, clock.images(config.total_kimg)

    def text(self, line: dict[str, Any]) -> str:
        """What a line says; empty where it is for the record only."""
        nimg, name = line["nimg"], line.get("event")
        self.nimg = line["to"] if goes_back(line) else max(self.nimg, nimg) if name not in ("start", "resume") else nimg
        if goes_back(line) or name in ("start", "resume"):
            self._last = self.nimg
        if name is not None:
            return self._event(str(name), nimg / 1000, line)
        if "loss/d" in line:
            rate = line.get("throughput/img_per_s", 0)
            if self._last is not None and nimg > self._last and rate > 0:
                self._recent.append((nimg - self._last, (nimg - self._last) / rate))
            self._last = nimg
            return console_line(nimg, self.total, line)
        scored = evaluation(line)
        if scored is None:
            return ""
        count = f" ({scored.protocol['num_samples']} samples each)" if "num_samples" in scored.protocol else ""
        return f"scores at {nimg / 1000:g} kimg{count}:\n{table(scored.scores)}"

    def rest(self) -> str:
        """How fast the run has been lately, and how long it will take at that; empty where that is not known."""
        seconds = sum(s for _, s in self._recent)
        if not seconds:
            return ""
        rate = sum(n for n, _ in self._recent) / seconds
        return f"{rate:.0f} img/s, {duration(max(0, self.total - self.nimg) / rate)} to go"

    def _event(self, name: str, kimg: float, line: dict[str, Any]) -> str:
        """An event in words."""
        self.told = name if name in (*ENDS, "start", "resume") else self.told
        told = getattr(self, f"_{name}", None) if name in EVENTS else None
        try:
            return told(kimg, line) if told else f"{name} at {kimg:g} kimg" if name not in SILENT else ""
        except (KeyError, TypeError, ValueError):  # of another version
            return f"{name} at {kimg:g} kimg"

    def _start(self, kimg: float, line: dict[str, Any]) -> str:
        at = f", {line['time']}" if "time" in line else ""
        processes = line["processes"]
        return f"{line['event']} at {kimg:g} kimg on {line['device']}, {processes} process{'es' if processes > 1 else ''}, gantrain {line['gantrain']}{at}"

    _resume = _start

    def _swap(self, kimg: float, line: dict[str, Any]) -> str:
        metric, value = next(iter(line["live"].items()), ("", 0.0))
        if line["moment"] == "before":
            self._before = dict(line["live"])
            return ""
        if line["moment"] == "after":
            score = f": live {metric} {value:.4f}" if metric else ""
            return f"swap at {line['swap_nimg'] / 1000:g} kimg, {line['since_swap'] / 1000:g} kimg later{score}"
        score = f"; live {metric} {self._before.get(metric, float('nan')):.4f} -> {value:.4f}" if metric else ""
        of, batch = {"g": "G", "gd": "G and D"}[line["networks"]], line["batch/size"]
        why = f" ({line['undecidable']})" if "undecidable" in line else ""
        return f"swap: {line['source']} in place of the live weights of {of} at {kimg:g} kimg; batch {batch / line['grown']:.0f} -> {batch}{why}{score}"

    def _growth(self, kimg: float, line: dict[str, Any]) -> str:
        return "growth at {:g} kimg: batch {from} -> {to}: {reason}".format(kimg, **line)

    def _rollback(self, kimg: float, line: dict[str, Any]) -> str:
        scaled = f", learning rates x {line['lr_scale']:g}" if line["lr_scale"] != 1 else ""
        return f"guard: {line['words']}; back to {line['to'] / 1000:g} kimg, attempt {line['attempt']} of {self.config.guard.max_rollbacks}, on other images{scaled}"

    def _warning(self, kimg: float, line: dict[str, Any]) -> str:
        return f"guard: {line['words']}; guard.on_{line['kind']}=warn goes on"

    def _skipped(self, kimg: float, line: dict[str, Any]) -> str:
        return f"data: skipped: {line['image']}"

    def _interrupted(self, kimg: float, line: dict[str, Any]) -> str:
        return f"stopped by {line['signal']} at {kimg:g} kimg; the same command goes on"

    def _gave_up(self, kimg: float, line: dict[str, Any]) -> str:
        return f"gave up at {kimg:g} kimg: {line['words']}"

    def _end(self, kimg: float, line: dict[str, Any]) -> str:
        return f"done at {kimg:g} kimg"
