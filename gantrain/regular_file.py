"""Opening files that a user names: only regular ones, and of a bounded size.

`open` waits for ever at a named pipe, and reads `/dev/zero` until the memory is full, also where a link in a data set leads there. The
functions here raise an `OSError` whose `strerror` completes a message such as "FILE: cannot be read (it is a named pipe, not a file)".
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO

from gantrain.errors import in_words

PIECE = 1 << 20  # bytes of one read, so that a file which grows meanwhile cannot exceed the bound by more
# Kinds of files whose `open` or `read` may block or never end -> their names.
OTHERS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


class NotAFile(OSError):
    """A pipe, a device or a socket where a file is expected."""


class TooLarge(OSError):
    """A file larger than anything that it could be."""


def open_regular(path: str | os.PathLike, at_most: int | None = None) -> IO[bytes]:
    """Open a regular file for reading, or a link that leads to one; it never blocks.

    Args:
        at_most: the largest size in bytes; None is any.

    Raises:
        NotAFile: it is a pipe, a device or a socket.
        TooLarge: it is larger than `at_most`.
        OSError: it cannot be opened; IsADirectoryError for a folder.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer; regular files ignore it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotAFile(errno.EINVAL, "it is a socket, not a file", os.fspath(path)) from None
        raise
    try:
        check_kind(os.fstat(descriptor), path, at_most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike, at_most: int | None = None) -> None:
    """Raise what `open_regular` raises, for a library that opens the path itself."""
    check_kind(os.stat(path), path, at_most)


def read_regular(path: str | os.PathLike, at_most: int | None = None) -> bytes:
    """The bytes of a regular file; arguments and errors as in `open_regular`. The bound holds for a file that grows meanwhile, too."""
    with open_regular(path, at_most) as file:
        pieces, size = [], 0
        while piece := file.read(PIECE):
            pieces.append(piece)
            size += len(piece)
            if at_most is not None and size > at_most:  # files of /proc say that they are empty
                raise too_large(size, path, at_most)
        return b"".join(pieces)


def read_text(path: str | os.PathLike, at_most: int | None = None) -> str:
    """The text of a regular UTF-8 file; arguments and errors as in `open_regular`, and UnicodeDecodeError."""
    return read_regular(path, at_most).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")  # as `Path.read_text` does


def check_kind(found: os.stat_result, path: str | os.PathLike, at_most: int | None) -> None:
    """Raise unless the state is that of a regular file of at most so many bytes."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        kind = OTHERS.get(stat.S_IFMT(found.st_mode), "something else")
        raise NotAFile(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))
    if at_most is not None and found.st_size > at_most:
        raise too_large(found.st_size, path, at_most)


def too_large(size: int, path: str | os.PathLike, at_most: int) -> TooLarge:
    """The error of a file that is too large."""
    return TooLarge(errno.EOVERFLOW, f"it has {in_words(size)} or more, and {in_words(at_most)} is the most", os.fspath(path))
