"""Standard output and standard error of a command, whose writes never raise.

A log on a full disk, a reader that has gone, a terminal that knows only ASCII: no line that is printed, by gantrain, a library or a
plug-in, on any thread, is worth a training. What a stream does not take is lost, and characters that it cannot show are written as in
"\\xb1". This file imports little: it comes before anything else.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

NAMES = {"stdout": 1, "stderr": 2}  # file descriptors
PATIENCE = 10.0  # seconds that a non-blocking reader gets to make room, such as a slow ssh connection

LOST: dict[str, OSError] = {}  # by name of a stream: why it did not take something; the first error


class SafeStream(io.RawIOBase):
    """A file descriptor whose writes never raise.

    Args:
        name: of the stream.
    """

    def __init__(self, name: str):
        self.name, self._descriptor = f"<{name}>", NAMES[name]
        self._stream = name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write everything, or as much as possible; always returns the whole size."""
        whole = memoryview(data).cast("B")
        rest = whole
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError as error:
            if self._stream not in LOST:
                LOST[self._stream] = error
                say_lost(self._stream)
        return len(whole)

    def _write_some(self, rest: memoryview) -> int:
        """The number of bytes that were written.

        Raises:
            OSError: none was.
        """
        try:
            return os.write(self._descriptor, rest)
        except BlockingIOError:
            _, ready, _ = select.select([], [self._descriptor], [], PATIENCE)
            if not ready:
                raise
            return 0


class OnLoss:
    """What is said when standard output does not take something.

    Attributes:
        words: completes "cannot write to standard output (...); "; None says nothing.
    """

    words: str | None = None


def say_lost(stream: str) -> None:
    """Say on standard error that standard output is lost, if a command has asked for that."""
    if stream == "stdout" and OnLoss.words:
        print_safely(f"gantrain: note: cannot write to standard output ({LOST[stream].strerror}); {OnLoss.words}", sys.stderr)


def secure() -> None:
    """Make writing to standard output and error safe, from now on. A stream that the program has replaced is only set to replace
    characters that it cannot encode."""
    LOST.clear()
    occupy_closed()
    for name in NAMES:
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            LOST.setdefault(name, OSError(errno.EBADF, "it is closed"))
            replace(name, "utf-8", True, False)
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
            if stream is getattr(sys, f"__{name}__") and is_plain(stream, NAMES[name]):
                with suppress(OSError):
                    stream.flush()
                replace(name, stream.encoding, stream.line_buffering, stream.write_through)


def occupy_closed() -> None:
    """Open the null device in place of standard streams that are closed: the next file to be opened would get their number, and every
    message of a library in C would be written into it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                if opened != descriptor:  # one before it could not be opened
                    os.dup2(opened, descriptor)
                    os.close(opened)


def is_plain(stream: io.TextIOWrapper, descriptor: int) -> bool:
    """Whether a stream is what Python opens at its start, and not one that was made safe before or that a test has put there."""
    raw = getattr(stream.buffer, "raw", stream.buffer)
    return isinstance(raw, io.FileIO) and raw.fileno() == descriptor and os.name == "posix"


def replace(name: str, encoding: str, line_buffering: bool, write_through: bool) -> None:
    """Put a safe stream in place of one of `sys`."""
    raw = SafeStream(name)
    buffer: Any = raw if write_through and not line_buffering else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffer, encoding, "backslashreplace", "\n", line_buffering, write_through)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def flush() -> None:
    """Flush both streams."""
    for name in NAMES:
        with suppress(OSError, ValueError, AttributeError):
            getattr(sys, name).flush()


def find_loss() -> OSError | None:
    """Why standard output has not taken everything; None if it has, or if its reader has gone: such as `head`, which has what it wanted."""
    flush()
    lost = LOST.get("stdout")
    return None if lost is None or lost.errno == errno.EPIPE else lost


def print_safely(text: str, stream: TextIO | None) -> Exception | None:
    """Print a line in one piece to any stream, which may be closed, full, of another encoding or somebody's own object.

    Returns:
        Why it could not be printed; None if it was.
    """
    if stream is None:  # of a program without a console
        return None
    try:
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
        if hasattr(stream, "flush"):
            stream.flush()
    except Exception as error:
        return error
    return None
