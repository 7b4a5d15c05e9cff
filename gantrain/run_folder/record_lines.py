"""The lines of a run's record, `metrics.jsonl`, read one at a time and checked.

A record may be damaged: by a power failure, by an editor, by another program. `parse` is the one place that decides what can be read: a
line that it returns has values of the right type under every key that gantrain reads (`TYPES`), so that no reader checks them again.
Keys that older versions did not write may be missing, except those in `REQUIRED`.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gantrain.errors import UserError, counted
from gantrain.regular_file import open_regular
from gantrain.run_folder.json_values import WORDS, restored
from gantrain.run_folder.layout import METRICS_FILE
from gantrain.run_folder.line_file import stream_lines

Line = dict[str, Any]
Check = Callable[[Any], bool]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which some editors put before a text
BEYOND = 2**63  # integers stay below it, so that each can be converted to a float, and fits into 64 bits
MOST_KEYS = 100_000  # remembered with their checks; a damaged record may have any number of keys


# ---- types of values -------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """A float, perhaps nan or infinite, or an integer of 64 bits; not a bool."""
    return type(value) is float or is_integer(value)


def is_integer(value: Any) -> bool:
    """An integer of 64 bits; not a bool."""
    return type(value) is int and -BEYOND <= value < BEYOND


def is_count(value: Any) -> bool:
    """An integer of at least 0."""
    return type(value) is int and 0 <= value < BEYOND


def is_positive(value: Any) -> bool:
    """An integer of at least 1."""
    return type(value) is int and 0 < value < BEYOND


def is_text(value: Any) -> bool:
    """A string."""
    return type(value) is str


def is_factor(value: Any) -> bool:
    """A number above 0."""
    return is_number(value) and value > 0


def is_anything(value: Any) -> bool:
    """Any value."""
    return True


def is_pair(value: Any) -> bool:
    """A list of two values."""
    return type(value) is list and len(value) == 2


def or_null(check: Check) -> Check:
    """None, or what `check` accepts."""
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    """A list of what `check` accepts."""
    return lambda value: type(value) is list and all(map(check, value))


def mapping_to(check: Check, *names: str) -> Check:
    """An object whose values `check` accepts; it has at least these names."""
    return lambda value: type(value) is dict and all(map(check, value.values())) and all(name in value for name in names)


def is_settings(value: Any) -> bool:
    """The settings of an average: an object with a `name`, and a number or null as `start_kimg`."""
    return type(value) is dict and is_text(value.get("name")) and or_null(is_number)(value.get("start_kimg"))


# Key, or the first part of a key with its slash -> the check of its value, in every line.
TYPES: dict[str, Check] = {
    "event": is_text,
    "batch/size": is_positive,
    "batch/rounds": is_positive,
    "batch/micro_batch": is_positive,
    **dict.fromkeys(
        ("loss/", "logits/", "grad_norm/", "lr/", "noise_scale/", "singular/", "orbit/", "memory/", "throughput/", "penalty/", "augment/"),
        is_number,
    ),
    "throughput/left_excludes": is_text,
    "updates": is_number,
    "reals_seen": is_number,
    "time": is_text,
    "words": is_text,
    "kind": is_text,
    "notes": list_of(is_text),
    "eval/num_samples": or_null(is_count),
    "eval/truncation": or_null(is_number),
    "eval/notes": or_null(list_of(is_text)),
    "eval/is_splits": or_null(is_count),
    "eval/resamples": or_null(is_count),
    **dict.fromkeys(
        (
            f"eval/{key}"
            for key in ("batchnorm", "features", "features_made_for", "reference", "reference_fingerprint", "protocol", "labels")
        ),
        or_null(is_text),
    ),
}
STARTED: dict[str, Check] = {
    "gantrain": is_text, "device": is_text, "data_fingerprint": is_text, "processes": is_positive, "versions": mapping_to(is_text),
    "parameters": mapping_to(is_count, "g", "d"), "class_names": list_of(is_text), "changed": mapping_to(is_pair),
}  # fmt: skip
# Event -> key -> check, besides TYPES.
OF_EVENTS: dict[str, dict[str, Check]] = {
    "start": STARTED,
    "resume": STARTED,
    "growth": {"from": is_positive, "to": is_positive, "rounds": is_positive, "reason": is_text},
    "rollback": {
        "to": is_count, "lr_scale": is_number, "attempt": is_integer, "max_rollbacks": is_integer, "batch_before": is_positive,
    },
    "swap": {
        "moment": is_text, "swap_nimg": is_count, "live": mapping_to(is_number), "source": is_text, "networks": is_text,
        "undecidable": is_text, "grown": is_factor, "growth": is_number, "g_star": is_number, "since_swap": is_number,
    },
    "fork": {"from": is_text, "changed": mapping_to(is_pair)},
    "average_added": {"average": is_text, "settings": is_settings},
    "data_changed": {"data": is_text, "before": is_text, "after": is_text},
    "collapse": {"averages": mapping_to(is_text)},
    "skipped": {"image": is_text},
    "interrupted": {"signal": is_text},
    "end": {"collapsed": is_text},
}  # fmt: skip
# Event -> keys without which it says nothing; every version has written them.
NOTHING: dict[str, Check] = {}
REQUIRED: dict[str, tuple[str, ...]] = {"growth": ("from", "to"), "rollback": ("to",), "swap": ("moment", "swap_nimg")}


class Checks(dict[str, Check]):
    """Key -> check of its value in any line: that of `TYPES` for the key itself, else for the first part of it."""

    def __missing__(self, key: str) -> Check:
        if len(self) >= MOST_KEYS:
            self.clear()
        check = TYPES.get(key) or TYPES.get(key[: key.find("/") + 1]) or is_anything
        self[sys.intern(key)] = check
        return check


CHECKS = Checks()
# Keys and types of a line -> its keys, and the keys whose values have to be checked.
SHAPES: dict[tuple[tuple[str, ...], tuple[type, ...]], tuple[list[str], list[tuple[str, Check]]]] = {}
MOST_SHAPES, MOST_IN_SHAPE = 1000, 1000  # remembered, and keys of each
DECIDED: dict[type, tuple[Check, ...]] = {float: (is_number, is_anything), str: (is_text, is_anything)}  # checks that a type always passes


def typed(found: dict[str, Any], has_words: bool) -> Line | None:
    """A line with a value of the right type under every key that gantrain reads; None if that cannot be.

    Args:
        found: of the file.
        has_words: whether it has "nan", "inf" or "-inf", which are numbers again unless a text belongs there, such as the name of a class.
    """
    if not has_words and "event" not in found and len(found) <= MOST_IN_SHAPE:
        return numbers_of(found)
    event = found["event"] if type(found.get("event")) is str else ""
    own = OF_EVENTS.get(event, NOTHING)
    line: Line = {}
    for key, value in found.items():
        check = own.get(key) or CHECKS[key]
        if has_words and (check is is_anything or not check(value)):
            value = restored(value)
        if not check(value):
            return None
        line[sys.intern(key)] = value  # the same few keys on each of 100,000 lines
    known = is_count(line.get("nimg")) and all(key in line for key in REQUIRED.get(event, ()))
    return line if known else None


def numbers_of(found: dict[str, Any]) -> Line | None:
    """The same as `typed` for a line that is not an event.

    Nearly all lines are such, and most have the same keys with values of the same types. What these are is found once; then only those
    values are checked whose type alone does not decide it.
    """
    shape = (tuple(found), tuple(map(type, found.values())))
    known = SHAPES.get(shape)
    if known is None:
        if len(SHAPES) >= MOST_SHAPES:
            SHAPES.clear()
        checks = [(key, CHECKS[key]) for key in found]
        open_to = [(key, check) for key, check in checks if check not in DECIDED.get(type(found[key]), (is_anything,))]
        known = SHAPES[shape] = ([sys.intern(key) for key in found], open_to)
    keys, left = known
    if not is_count(found.get("nimg")):
        return None
    for key, check in left:
        if not check(found[key]):
            return None
    return dict(zip(keys, found.values()))  # the same few strings on each of 100,000 lines


# ---- reading ---------------------------------------------------------------------------------------------------------


def parse(line: bytes | str) -> Line | None:
    """A line of the record, of which everything that gantrain reads has the right type; None if it cannot be read. Never raises."""
    try:
        text = line.removeprefix(BYTE_ORDER_MARK).decode() if isinstance(line, bytes) else line
        found = json.loads(text)
        if type(found) is not dict:
            return None
        if HALF_PAIR.search(text):
            found = printable(found)
        return typed(found, any(f'"{word}"' in text for word in WORDS))
    except (ValueError, RecursionError):  # not JSON or not UTF-8; an integer of thousands of digits; too deeply nested
        return None


HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # spells half of a surrogate pair; no output takes one without the other


def printable(value: Any) -> Any:
    """The same values, with halves of surrogate pairs in texts and keys as the six characters that spell them in JSON."""
    if isinstance(value, dict):
        return {printable(k): printable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [printable(v) for v in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def stream(run: Path, until: int | None = None) -> Iterator[Line | None]:
    """Iterate over the record of a run in the order of the file, holding one line at a time; nothing if there is no record yet.

    A last line without an end is left out if it cannot be read: it is being written, or a power failure has cut it.

    Args:
        run: the run folder.
        until: read only so many bytes.

    Returns:
        Lines, and None for each that cannot be read.

    Raises:
        UserError: the file cannot be read.
    """
    for data, whole in stream_bytes(run, until):
        line = parse(data)
        if line is not None or whole:
            yield line


def stream_bytes(run: Path, until: int | None = None) -> Iterator[tuple[bytes, bool]]:
    """As `stream`, but the lines as bytes, each with whether it has its end. One that is too long is empty."""
    path = run / METRICS_FILE
    try:
        with open_regular(path) as file:
            for line in stream_lines(file, until):
                yield line.data, line.whole
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix this, or omit this run") from error


def describe_unreadable(count: int, run: Path) -> str:
    """How many lines of a run's record could not be read, in a line; empty if all could."""
    return f"{run}: {counted(count, 'line')} of {METRICS_FILE} cannot be read and {'is' if count == 1 else 'are'} left out" if count else ""


# ---- the path that led to the weights --------------------------------------------------------------------------------


def goes_back(line: Line) -> bool:
    """Whether a line is a rollback."""
    return line.get("event") == "rollback" and type(line.get("to")) is int


def has_scores(line: Line) -> bool:
    """Whether a line may be an evaluation; an event that quotes scores, such as a swap, is not one."""
    return "event" not in line and "loss/d" not in line


class Splitter:
    """Separates lines of the path that led to the weights from those that rollbacks have abandoned, without holding the lines.

    Rollbacks, starts and resumes always stay. At the time that a rollback returns to, lines after the checkpoint were abandoned as well
    and come again, such as a growth of the batch; scores of that time stay, since those of a background evaluation come late.

    Attributes:
        mask: a byte per line that was added: 1 if it stays. Later lines may change it.
    """

    def __init__(self) -> None:
        self.mask = bytearray()
        # Lines that a rollback may abandon: their index, time, and the latest time up to them. Only late scores are not in order.
        self._indices, self._times, self._latest = array("q"), array("q"), array("q")
        self._scores: set[int] = set()  # indices of those with scores
        self._saved: dict[int, int] = {}  # images seen -> index of the last checkpoint

    def add(self, line: Line) -> None:
        """Add the next line of the file."""
        index, nimg, event = len(self.mask), line["nimg"], line.get("event")
        self.mask.append(1)
        if event is None:
            if "loss/d" not in line:
                self._scores.add(index)
        elif goes_back(line):
            self._go_back(line["to"])
        if event in ("start", "resume", "rollback"):
            return
        self._append(index, nimg)
        if event == "checkpoint":
            self._saved[nimg] = index

    def _append(self, index: int, nimg: int) -> None:
        self._indices.append(index)
        self._times.append(nimg)
        self._latest.append(max(nimg, self._latest[-1]) if self._latest else nimg)

    def _go_back(self, to: int) -> None:
        """Abandon the lines after the last checkpoint at `to` images."""
        stay: list[tuple[int, int]] = []
        saved = self._saved.get(to, len(self.mask))
        while self._indices and (self._latest[-1] > to or (self._latest[-1] == to and self._indices[-1] > saved)):
            index, nimg = self._indices.pop(), self._times.pop()
            self._latest.pop()
            if nimg < to or (nimg == to and (index <= saved or index in self._scores)):
                stay.append((index, nimg))
                continue
            self.mask[index] = 0
            self._scores.discard(index)
            if self._saved.get(nimg) == index:
                del self._saved[nimg]
        for index, nimg in reversed(stay):
            self._append(index, nimg)


def split_abandoned(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """Separate lines as `Splitter` does.

    Returns:
        (lines that stay, lines that were abandoned), each in the order of the file.
    """
    lines, splitter = list(lines), Splitter()
    for line in lines:
        splitter.add(line)
    return list(itertools.compress(lines, splitter.mask)), [line for line, stays in zip(lines, splitter.mask) if not stays]
