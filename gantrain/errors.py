"""A user's mistake, as one line.

Everything in gantrain that refuses an input raises a `UserError`. The command line prints its text and exits with status 2; a user of
the library catches a `ValueError`. A bug of ours is never a `UserError`.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}  # full, read-only or broken disks

LONGEST_ERROR = 200  # characters of the error of a library

USER_ERROR, GAVE_UP = 2, 3  # exit statuses of commands
LISTED = "_remedies_by_field"  # an attribute of classes whose checks are listed and not made


class UserError(ValueError):
    """A mistake that the user can fix. The text names the key or the file, the value, and the remedy, in one line.

    Attributes:
        of_another: only says that another process has failed, whose own message says why.
    """

    of_another = False

    def __init__(self, text: str):
        super().__init__(readable(" ".join(text.split())))  # a quoted value may contain line breaks, or a file name be no UTF-8

    @property
    def exit_status(self) -> int:
        """Of a command that ends with this error."""
        return USER_ERROR


class GaveUp(UserError):
    """A training run that went wrong and could not be rescued. Not a mistake in a key: the command exits with 3."""

    @property
    def exit_status(self) -> int:
        """Of the command."""
        return GAVE_UP


class InvalidField(UserError):
    """A value out of range in a dataclass of the configuration.

    Raised by `check` inside `__post_init__`, where a section knows its own fields but not its place in the file;
    `gantrain.config.loading` catches it and adds the source and the full key.
    """

    def __init__(self, field: str, value: Any, remedy: str):
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field}: {remedy}, got {shown(value)}")


def readable(path: str | os.PathLike) -> str:
    """A path for messages and records: bytes of a file name that are not UTF-8 are written as in "\\xff", since no text holds them."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON may contain; no file is called that
        return str(path).encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value as a configuration spells it."""
    return "null" if value is None else repr(value)


def check(section: Any, field: str, holds: bool, remedy: str) -> None:
    """Raise `InvalidField` for `section.field` unless `holds`. `remedy` completes the sentence "FIELD must ..."."""
    listed: dict[str, list[str]] | None = getattr(section, LISTED, None)
    if listed is not None:  # an instance that `remedies_of` has made
        listed.setdefault(field, []).append(remedy)
    elif not holds:
        raise InvalidField(field, getattr(section, field), remedy)


def remedies_of(cls: type) -> dict[str, list[str]]:
    """What `check` asks of each field of a dataclass with its defaults: field -> remedies, such as "must be above 0".

    So the range that a list of keys shows is the one that a wrong value is refused with.
    """
    import dataclasses  # --help does not need it

    listed: dict[str, list[str]] = {}
    # A number stands for what has no default, such as the first value of a schedule.
    given = {f.name: 0.0 for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING}
    with suppress(InvalidField):  # raised without `check`, which goes on after a value that it would refuse
        type(cls.__name__, (cls,), {LISTED: listed})(**given)
    return listed


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'decay'?`, or the list of known words if none is similar."""
    import difflib  # --help does not need it

    known = sorted(known)
    near = difflib.get_close_matches(str(word), [k for k in known if k != word], n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else "; it has no keys that could be set"


def in_words(size: int, down: bool = False) -> str:
    """A number of bytes as "900 bytes", "4 KiB", "12 MiB" or "1.3 GiB".

    Args:
        down: round down, as what is free, and not up, as what is needed.
    """
    if size >= 1 << 70:  # a mistyped number: it may have more digits than a float can
        return "over 1000 EiB"
    if size >= 2**30:
        return f"{math.floor(size / 2**30 * 10) / 10 if down else size / 2**30:.1f} GiB"
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit if down else -(-size // unit)} {name}"
    return f"{size} bytes"


def counted(count: int, thing: str, plural: str = "s") -> str:
    """A number of things: "1 round", "2 rounds", "2 processes" (with the plural "es")."""
    return f"{count} {thing}{'' if count == 1 else plural}"


def one_line(error: BaseException) -> str:
    """The text of an exception folded into one line, or its type's name if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def brief(error: BaseException) -> str:
    """As `one_line`, for an error of a library at a damaged file, which it may quote at length: the beginning of it."""
    text = one_line(error)
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."
