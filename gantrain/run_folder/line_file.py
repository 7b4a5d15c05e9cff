"""Files that grow by whole lines; their content survives a kill and a full disk.

Nothing here holds more of a file in memory than a piece or a line: such a file may be larger than the memory, and one system call reads
or writes at most 2,147,479,552 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from gantrain.regular_file import check_regular

PIECE = 1 << 20  # bytes of one read
LONGEST_LINE = 1 << 24  # bytes that a line may have to be read; the recording of an orbit with thousands of averages has fewer


class TextLine(NamedTuple):
    """A line of a file as bytes.

    Attributes:
        data: the line, with its end; empty if it is longer than `LONGEST_LINE`.
        size: bytes that it takes in the file.
        whole: whether it has its end; the last line may be incomplete, because it is being written or a power failure cut it.
    """

    data: bytes
    size: int
    whole: bool


class LineFile:
    """A file opened for appending lines. A line is written completely or not at all, and immediately: this process buffers nothing.

    Args:
        path: the file, created if it does not exist.
        keep_bytes: how much to keep, up to the last complete line in it; `move_rest` or `cut` removes the rest. None keeps all.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None):
        self.path = path
        if path.exists():
            check_regular(path)  # a pipe takes lines that nobody reads
        try:
            self._file: IO[bytes] = open(path, "ab+", buffering=0)  # noqa: SIM115
            self._size = self._file.seek(0, os.SEEK_END)
            if keep_bytes is not None:
                self._size = end_of_lines(self._file, min(keep_bytes, self._size))  # a power cut may have lost part of it
        except OSError as error:  # those of seeking and reading do not name the file: it may be a link into /proc
            raise error if error.filename else OSError(error.errno, error.strerror, str(path)) from error

    def move_rest(self, path: Path) -> None:
        """Move what is not kept to the end of another file, in pieces.

        It is on disk there before it is removed here, so a kill loses nothing; the next start may then move it again, and the other file
        has it twice, and between the two copies perhaps a line that is cut.

        Raises:
            OSError: it could not be written; both files are as before.
        """
        if self._file.seek(0, os.SEEK_END) > self._size:
            target = LineFile(path)
            try:
                target.append_from(self._file, self._size)
                target.position()
            finally:
                target.close()
            self.cut()

    def cut(self) -> None:
        """Remove what is not kept."""
        self._file.truncate(self._size)

    def append(self, text: str) -> None:
        """Write whole lines.

        Raises:
            OSError: they could not be written; the file is unchanged.
        """
        try:
            size = self._write(text.encode())
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += size

    def append_from(self, source: IO[bytes], start: int) -> None:
        """Write what another file has from `start` on, from the beginning of a line to the end of one.

        Raises:
            OSError: it could not be copied; the file is unchanged.
        """
        size, last = self._size, b"\n"
        try:
            if size and end_of_lines(self._file, size) != size:  # a kill has left half a line
                size += self._write(b"\n")
            source.seek(start)
            while piece := source.read(PIECE):
                size += self._write(piece)
                last = piece
            size += self._write(b"" if last.endswith(b"\n") else b"\n")
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size = size

    def _write(self, data: bytes) -> int:
        """Append the bytes, and return their number; the system may take only a part at a time."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        return len(data)

    def position(self) -> int:
        """The size in bytes, after syncing the file to disk."""
        os.fsync(self._file.fileno())
        return self._size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def end_of_lines(file: IO[bytes], size: int) -> int:
    """The position behind the last complete line within the first `size` bytes; 0 if there is none. It searches from the end."""
    end = size
    while end > 0:
        start = max(0, end - PIECE)
        found = read_fully(file, start, end).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_fully(file: IO[bytes], start: int, end: int) -> bytes:
    """The bytes between two positions, fewer only where the file ends; an unbuffered file may return a part at a time."""
    file.seek(start)
    pieces: list[bytes] = []
    left = end - start
    while left > 0 and (piece := file.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def stream_back(file: IO[bytes]) -> Iterator[bytes]:
    """Iterate over the lines of a file from the last to the first, without their ends, holding about one piece.

    The first is what follows the last end of a line. A line that is too long is empty.
    """
    start = file.seek(0, os.SEEK_END)
    rest, skips = b"", False  # the end of a line that begins in an earlier piece; whether it is too long
    while start > 0:
        end, start = start, max(0, start - PIECE)
        first, *lines = (read_fully(file, start, end) + (b"" if skips else rest)).split(b"\n")
        if lines:
            lines[-1] = b"" if skips else lines[-1]
            yield from reversed(lines)
            skips = False
        rest = first
        skips = skips or len(rest) > LONGEST_LINE
    yield b"" if skips else rest


def stream_lines(file: IO[bytes], until: int | None = None) -> Iterator[TextLine]:
    """Iterate over the lines of a file that is open at the start of a line, holding one at a time. The file may grow meanwhile.

    Args:
        file: buffered.
        until: how many bytes to read; None reads to the end.
    """
    left = until
    while left is None or left > 0:
        line = read_line(file, left)
        if not line.size:
            return
        if left is not None:
            left -= line.size
        yield line


def read_line(file: IO[bytes], most: int | None) -> TextLine:
    """The next line; of size 0 at the end of the file.

    Args:
        most: bytes that may be read; None is any number.
    """
    limit = LONGEST_LINE if most is None else min(LONGEST_LINE, most)
    data = file.readline(limit)
    size, whole = len(data), data.endswith(b"\n")
    if whole or size < LONGEST_LINE:
        return TextLine(data, size, whole)
    del data
    while not whole and (most is None or size < most):
        piece = file.readline(PIECE if most is None else min(PIECE, most - size))
        if not piece:
            break
        size, whole = size + len(piece), piece.endswith(b"\n")
    return TextLine(b"", size, whole)
