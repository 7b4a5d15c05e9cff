"""Seeded mutations of bytes, texts and JSON values, and the odd values that go into configurations. The same dice make the same ones."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Iterator
from typing import Any

ODD_TEXTS = (
    "", " ", "null", "~", "true", "no", "nan", ".nan", ".inf", "-inf", "1e999", "-1e-999", "0x1F", "1_000", "010", "1.5.2", "12:30:45",
    "2026-11-30", "~nosuch/x", "~", "/dev/zero", "/dev/null", "/proc/self/mem", "..", ".", "/", "a/b", "a\\b", "a\0b", "a\nb", "\ud800",
    "\u00e9\u4e2d\U0001f600", "\u202e", "\ufeff", "x" * 300, "x" * 70_000, "${total_kimg}", "${model.ch}", "${nosuch}", "${", "${a",
    "\\${x}",
    "${oc.env:HOME}", "${.ch}", "${..seed}", "???", "[", "{", "]", "*x", "&x", "!tag", "!!python/object:os.system x", "%s", "{0}", "#", "-",
    ": ", "a: b", "digits", "hinge", "ema", "os.path:join", "os:nosuch", "nosuch.module:Class", "builtins:dict", ":", "a:", ":b", "json",
    "live", "best", "../../../etc/passwd", "-1", "0", "1", "fid", "'", '"', "`", "None", "1" * 5000,
)  # fmt: skip
ODD_NUMBERS = (
    0, 1, -1, 2, 3, 7, 63, 64, 65, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**12, 10**30,
    10**400, 0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-320, 1e-9, 1e9, 1e300, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 0.1 + 0.2,
)  # fmt: skip
# What a training that is only started has time and memory for, or has not on any machine.
SMALL_OR_ABSURD = (
    0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 0.0, 0.5, 1.0, 1.5, -0.5, 1e-9, 1e-320, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30, 1e300, math.inf,
    -math.inf, math.nan,
)  # fmt: skip
WORDS = (
    b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\xff" * 8, b"\0" * 64, b"\n", b"{", b'"', b"]",
    b"PK\3\4", b"\x89PNG", b"1e400", b"NaN", b"\xed\xa0\x80", b"\r\n", b"[" * 3000,
)  # fmt: skip


def some_number(dice: random.Random, small: bool = False) -> int | float:
    """A number that somebody may mean, or that nobody does."""
    if not small and dice.random() < 0.2:
        return dice.choice([dice.randint(-5, 200), dice.uniform(-2, 2), 10.0 ** dice.randint(-20, 20), 2 ** dice.randint(0, 80)])
    return dice.choice(SMALL_OR_ABSURD if small else ODD_NUMBERS)


def some_value(dice: random.Random, depth: int = 0, small: bool = False) -> Any:
    """A value of any type that JSON has."""
    kind = dice.random()
    if kind < 0.12:
        return dice.choice([None, True, False])
    if kind < 0.5:
        return some_number(dice, small)
    if kind < 0.78 or depth > 2:
        return dice.choice(ODD_TEXTS)
    if kind < 0.9:
        return [some_value(dice, depth + 1, small) for _ in range(dice.choice([0, 1, 2, 2, 3, 9]))]
    keys = ("name", "every_kimg", "a", "", "0", "x.y", "\u00e9", "fid")
    return {dice.choice(keys): some_value(dice, depth + 1, small) for _ in range(dice.choice([0, 1, 2, 3]))}


def like(dice: random.Random, value: Any, small: bool = False) -> Any:
    """A value like another one, or none at all like it."""
    if dice.random() < 0.45:
        return some_value(dice, small=small)
    if isinstance(value, bool):
        return dice.choice([not value, int(value), str(value), str(value).lower()])
    if isinstance(value, (int, float)) and abs(value) < 1e300:
        near = [value + 1, value - 1, -value, str(value), [value], {"value": value}]
        near += [] if small else [value * 2, value / 3, value * 1e6, value * (1 + 1e-9)]
        return dice.choice(near)
    if isinstance(value, str):
        return dice.choice([value + "x", value[:-1], value.upper(), f" {value}", [value], {value: 1}, f"{value}\0", value * 2])
    if isinstance(value, list):
        return dice.choice([value * 2, value[:-1], value[::-1], [value], [*value, None], [str(one) for one in value], {"0": value}])
    return some_value(dice, small=small)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values inside a value, itself first."""
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def mutate_json(dice: random.Random, value: Any, times: int = 1) -> Any:
    """A copy with a value replaced, removed, doubled, moved or renamed somewhere in it."""
    value = copy.deepcopy(value)
    for _ in range(times):
        path = dice.choice(list(places(value)))
        if not path:
            value = like(dice, value) if dice.random() < 0.2 else value
            continue
        holder = value
        for step in path[:-1]:
            holder = holder[step]
        key, how = path[-1], dice.random()
        if how < 0.7:
            holder[key] = like(dice, holder[key])
        elif how < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[dice.choice(["", "nimg", "x", f"{key}.", str(key).upper(), "\u00e9", "a/b/c/d"])] = holder.pop(key)
        else:
            holder.insert(dice.randint(0, len(holder)), some_value(dice))
    return value


def as_text(value: Any) -> bytes:
    """A value as JSON, with whatever JSON does not have as Python writes it; half surrogate pairs are escaped."""
    return json.dumps(value).encode()


def mutate_bytes(dice: random.Random, data: bytes, times: int | None = None) -> bytes:
    """A copy with bits flipped, bytes overwritten, inserted, removed, doubled or exchanged, or cut short."""
    found = bytearray(data)
    for _ in range(times or dice.choice([1, 1, 1, 2, 3, 8])):
        at, how = dice.randrange(len(found) + 1), dice.randrange(10)
        if dice.random() < 0.4:  # heads are where the sizes stand
            at = min(at, dice.choice([4, 16, 64, 512]))
        size = min(dice.choice([1, 2, 4, 16, 200]), max(0, len(found) - at))
        if how <= 2 and at < len(found):
            found[at] ^= 1 << dice.randrange(8)
        elif how == 3:
            word = dice.choice(WORDS)
            found[at : at + len(word)] = word
        elif how == 4:
            found[at:at] = dice.choice(WORDS)
        elif how == 5:
            del found[at : at + size]
        elif how == 6:
            found[at:at] = found[at : at + size]
        elif how == 7:
            del found[at:]
        elif how == 8:
            found[at : at + size] = dice.randbytes(size)
        else:
            found[at : at + 4] = struct.pack(dice.choice("<>") + "I", dice.choice([0, 1, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1]))
    return bytes(found)


def mutate_lines(dice: random.Random, data: bytes) -> bytes:
    """A copy of a file of JSON lines in which a few lines are damaged, changed, doubled, moved or gone."""
    lines = data.splitlines(keepends=True)
    for _ in range(dice.choice([1, 1, 2, 5, 20])):
        at, how = dice.randrange(len(lines) + 1), dice.randrange(9)
        line = lines[at] if at < len(lines) else b""
        if how <= 3 and line.strip():
            try:
                lines[at] = as_text(mutate_json(dice, json.loads(line), dice.choice([1, 1, 2, 4]))) + b"\n"
            except (ValueError, RecursionError):
                lines[at] = mutate_bytes(dice, line)
        elif how == 4 and at < len(lines):
            lines[at] = mutate_bytes(dice, line)
        elif how == 5:
            lines.insert(
                at, dice.choice([line, as_text(some_value(dice)) + b"\n", b"\n", b"\0" * 100 + b"\n", b"garbage\n", b"[" * 5000 + b"\n"])
            )
        elif how == 6 and at < len(lines):
            del lines[at]
        elif how == 7 and lines:
            lines.insert(at, lines.pop(dice.randrange(len(lines))))
        elif lines:
            lines[-1] = lines[-1].rstrip(b"\n")[: dice.randrange(len(lines[-1]) + 1)]
    return b"".join(lines)


TOKENS = (
    "&a", "*a", "*nosuch", "<<: *a", "<<: [*a, *a]", "!!python/object/apply:os.system [x]", "!!binary aGk=", "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2026-11-30", "!!float x", "!!int ''", "!!null x", "!!bool maybe", "!x y", "? [a, b] : c", "? a", "---", "...", "%YAML 9.9",
    "- a", "  x: 1", "\t", "|", ">-", "{", "}", "[", "]", ",", ":", "'", '"', "${model.ch}", "${data}", "${run_dir}/${seed}",
    "${nosuch.key}",
    "${oc.env:NOSUCH}", "${model.ch", "???", "x-t: &a {lr_g: 1}", "{a: &a [*a]}", "name: ema", "name: nosuch", "null", ".nan", "1e999",
    "\0",
    "\ufeff", "\u2028", "\ud7ff", "1" * 400, "[" * 600, "{a: " * 300, "optim:", "averagers: {ema: null}", "seed: 1", "total_kimg: 1",
)  # fmt: skip


def mutate_yaml(dice: random.Random, text: str) -> bytes:
    """A YAML text with tokens, lines or bytes changed, or nested aliases added to it."""
    if dice.random() < 0.25:
        return mutate_bytes(dice, text.encode())
    lines = text.splitlines()
    for _ in range(dice.choice([1, 1, 2, 3, 6])):
        at = dice.randrange(len(lines) + 1)
        line, how = (lines[at] if at < len(lines) else ""), dice.randrange(8)
        if how == 0:
            lines.insert(at, dice.choice(TOKENS))
        elif how <= 3 and line:
            cut = dice.choice([i for i, c in enumerate(line) if c in " :,{[]}"] or [0])
            lines[at] = line[: cut + 1] + dice.choice([*TOKENS, *ODD_TEXTS[:40]]) + line[cut + 1 + dice.choice([0, 1, 3]) :]
        elif how == 4 and line:
            lines[at] = dice.choice([f"  {line}", line.lstrip(), line * 2, line.replace(":", ""), line.upper(), f"{line} {line}"])
        elif how == 5 and at < len(lines):
            del lines[at]
        elif how == 6:
            lines.insert(at, line)
        else:
            lines += alias_bomb(dice)
    return "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"


def alias_bomb(dice: random.Random) -> list[str]:
    """Aliases of aliases: a kilobyte that stands for billions of values."""
    deep, wide, merged = dice.choice([2, 8, 25, 60]), dice.choice([2, 3, 9]), dice.random() < 0.3
    lines = ["x-a0: &a0 {k: 1}" if merged else f"x-a0: &a0 [{', '.join('ha' for _ in range(wide))}]"]
    for i in range(1, deep):
        inner = ", ".join(f"k{j}: *a{i - 1}" if merged else f"*a{i - 1}" for j in range(wide))
        lines.append(f"x-a{i}: &a{i} " + (f"{{{inner}}}" if merged else f"[{inner}]"))
    return [*lines, *(dice.choice([[], [f"data: *a{deep - 1}"], [f"total_kimg: *a{deep - 1}"], [f"averagers: {{<<: *a{deep - 1}}}"]]))]
