"""Errors in a plug-in's own code: one line with the plug-in's name, and the file and line in it where it happened."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

from gantrain.errors import UserError, one_line
from gantrain.interruption import Stopped
from gantrain.memory import explain_allocation

SHOW_TRACEBACK = "GANTRAIN_TRACEBACK"  # environment variable: print the traceback, too
NAMED = 2  # that one message has
LONGEST_TEXT = 300  # characters of an exception's text
# What a worker process of torch's DataLoader has caught reaches the training process as a text.
IN_WORKER = re.compile(r"Caught \w+ in .* worker process")
LINE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')

Place = tuple[str, int, str]  # file, line, function
# File of plug-ins from outside -> name in messages, such as "loss 'my_losses:Margin'" -> first and last line of the class.
KNOWN: dict[str, dict[str, tuple[int, int]]] = {}
NAMES: dict[tuple[str, str], str] = {}  # (module, qualified name) of a class -> its name in messages


class State:
    """State of the command that decides its exit status if a plug-in fails.

    Attributes:
        training: whether updates have begun; the run then ends like a crash, and resumes from its last checkpoint.
    """

    training = False


class PluginError(UserError):
    """A mistake in a plug-in."""

    @property
    def exit_status(self) -> int:
        """Of the command: 2 before training, 1 in the middle of it."""
        return 1 if State.training else 2


class PluginFailed(PluginError):
    """A plug-in from outside has failed."""

    def __init__(self, text: str):
        remedy = f"; {SHOW_TRACEBACK}=1 prints the traceback"
        super().__init__(f"{text.removesuffix(remedy)}{remedy}")  # a copy from a worker process has it already


class WrongResult(PluginError):
    """A method of a plug-in has returned something that its contract does not allow."""


def remember(name: str, cls: type, *files: str | None) -> None:
    """Remember a plug-in and its files, for messages.

    Args:
        name: in messages.
        cls: its class.
        files: in which its code lies.
    """
    import inspect  # --help does not need it

    NAMES[cls.__module__, cls.__qualname__] = name
    lines = (0, 0)
    with suppress(OSError, TypeError):  # a class without a source
        source, first = inspect.getsourcelines(cls)
        lines = first, first + len(source) - 1
    for file in files:
        if file and not is_own(file):
            KNOWN.setdefault(os.path.realpath(file), {})[name] = lines


def name_at(place: Place) -> str:
    """The plug-in that a place in a known file belongs to; outside of their classes, those of that file that were found last."""
    names = KNOWN[os.path.realpath(place[0])]
    inside = [name for name, (first, last) in names.items() if first <= place[1] <= last]
    return inside[-1] if inside else " or ".join([*names][-NAMED:])


def name_in(error: BaseException) -> str | None:
    """The plug-in whose method an exception has come through, the innermost if there are several."""
    objects = [frame.f_locals.get("self") for frame, _ in frames_of(error.__traceback__)]
    names = [NAMES.get((type(one).__module__, type(one).__qualname__)) for one in objects]
    return next((name for name in reversed(names) if name), None)


def explain_failure(error: BaseException, item: str = "") -> PluginFailed | None:
    """The error to raise instead of one that has come from the code of a plug-in; None if it has not.

    What a plug-in refuses with a `UserError` has its own words, and interruptions are not errors. `item` is what was asked for, such as
    "image 3".
    """
    if isinstance(error, (UserError, KeyboardInterrupt, Stopped)):
        return None
    place = find_place(error)
    if place is None:
        return None
    show(error)
    return PluginFailed(f"{name_in(error) or name_at(place)} failed at {in_words(place)}{item and f', for {item}'} ({describe(error)})")


def refuse_failure(item: str, name: str, error: Exception) -> NoReturn:
    """Refuse what a data set's code has raised, which may be in any file: what it imports is not known as a plug-in's.

    Args:
        item: what was asked for, such as "image 3".
        name: of the data set, for code that no plug-in is known by.
        error: what it has raised.

    Raises:
        PluginFailed: names the plug-in or the data set, the item, and the file and line.
        Exception: `error` itself, if it says what the user has to know, or memory is short.
    """
    if isinstance(error, UserError) or explain_allocation(error):
        raise error
    failed = explain_failure(error, item)
    if failed is None:
        show(error)
        failed = PluginFailed(f"data: {item} of {name} failed at {in_words(own_place(error))} ({describe(error)})")
    raise failed from error


def own_place(error: BaseException) -> Place:
    """The deepest place of an exception in code that is neither gantrain's nor of a library; without one, the deepest of all."""
    import sysconfig  # as above

    libraries = tuple({os.path.realpath(sysconfig.get_paths()[key]) + os.sep for key in ("stdlib", "purelib", "platlib")})
    places = places_of(error.__traceback__)
    outside = [place for place in places if not is_own(place[0])]
    written = [place for place in outside if not os.path.realpath(place[0]).startswith(libraries)]
    return (written or outside[:1] or places)[-1]


def show(error: BaseException) -> None:
    """Print the traceback of an error if the environment asks for it."""
    if os.environ.get(SHOW_TRACEBACK):
        import traceback  # --help does not need it

        with suppress(Exception):
            traceback.print_exception(error)


def require_exit(error: BaseException) -> NoReturn:
    """Refuse a call of `sys.exit` from outside the command line: no code that a command runs may end it with status 0.

    Raises:
        PluginFailed: always.
    """
    places = places_of(error.__traceback__)
    where = f" at {in_words(places[-1])}" if places else ""
    raise PluginFailed(f"the program was asked to exit{where} ({describe(error)})") from error


def find_place(error: BaseException) -> Place | None:
    """The deepest place of an exception, or of what has caused it, that is in a known plug-in."""
    found: Place | None = None
    current: BaseException | None = error
    seen: set[int] = set()
    while KNOWN and current is not None and found is None and id(current) not in seen:
        seen.add(id(current))
        places = places_of(current.__traceback__)
        if IN_WORKER.search(str(current)):
            places += [(file, int(line), function) for file, line, function in LINE.findall(str(current))]
        inside = [place for place in places if os.path.realpath(place[0]) in KNOWN]
        found, current = (inside[-1] if inside else None), current.__cause__
    return found


def places_of(trace: TracebackType | None) -> list[Place]:
    """The places of a traceback, outermost first."""
    return [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in frames_of(trace)]


def frames_of(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """(frame, line) of a traceback, outermost first, as `traceback.walk_tb`, whose module --help does not need."""
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def import_place(error: BaseException, file: str | None) -> str:
    """Where the import of a module has failed, for a message: " at FILE, line N" or "".

    Args:
        error: what it has raised.
        file: of the module, if it was found; otherwise the deepest place outside gantrain and Python's own import.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {in_words((error.filename, error.lineno or 0, '<module>'))}"
    places = [place for place in places_of(error.__traceback__) if not place[0].startswith("<") and not is_own(place[0])]
    places = [place for place in places if "importlib" not in place[0].split(os.sep)]
    own = [place for place in places if file and os.path.realpath(place[0]) == os.path.realpath(file)]
    return f" at {in_words((own or places)[-1])}" if places else ""


def is_own(file: str) -> bool:
    """Whether a file is a part of gantrain."""
    return os.path.realpath(file).startswith(os.path.realpath(os.path.dirname(__file__)) + os.sep)


def in_words(place: Place) -> str:
    """A place for messages, such as "my_losses.py, line 12, in generator"."""
    file, line, function = place
    with suppress(ValueError):  # another drive of Windows
        relative = os.path.relpath(file)
        file = file if relative.startswith("..") else relative
    return f"{file}, line {line}{'' if function.startswith('<') else f', in {function}'}"


def describe(error: BaseException) -> str:
    """An exception for messages, such as "ValueError: too large"."""
    text = str(error).strip().splitlines()[-1].strip() if IN_WORKER.search(str(error)) else one_line(error)
    name = type(error).__name__
    text = text if text.startswith(f"{name}:") or text == name else f"{name}: {text}"
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."


def refuse_result(plugin: Any, method: str, must: str, value: Any, words: str | None = None) -> NoReturn:
    """Refuse what a method of a plug-in has returned.

    Args:
        plugin: the object.
        method: its name.
        must: completes "must return ...".
        value: what it has returned.
        words: describe the value; None is `describe_value`.

    Raises:
        WrongResult: names the class, the method and its place.
    """
    cls = type(plugin)
    who = NAMES.get((cls.__module__, cls.__qualname__), f"{cls.__module__}:{cls.__qualname__}")
    raise WrongResult(f"{who}: {method} must return {must}, got {words or describe_value(value)}{place_of(plugin, method)}")


def place_of(plugin: Any, method: str) -> str:
    """Where a method of a plug-in from outside is defined, for the end of a message: " (FILE, line N)"; "" for gantrain's own."""
    import inspect  # as above

    with suppress(Exception):
        code = inspect.unwrap(getattr(type(plugin), method)).__code__
        return "" if is_own(code.co_filename) else f" ({in_words((code.co_filename, code.co_firstlineno, '<>'))})"
    return ""


def describe_value(value: Any) -> str:
    """A value for messages; a tensor or an array by its type and shape."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"a {type(value).__name__} of {dtype} {list(shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a `__repr__` of somebody's own
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def file_of(cls: type) -> str | None:
    """The file that a class is defined in."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None)
