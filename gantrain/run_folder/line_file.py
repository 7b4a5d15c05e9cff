"""Files that grow by whole lines; their content survives a kill and a full disk."""

from __future__ import annotations

import os
from pathlib import Path


class LineFile:
    """A file opened for appending lines. A line is written completely or not at all, and immediately: this process buffers nothing.

    Args:
        path: the file, created if it does not exist.
        keep_bytes: how much to keep, up to the last complete line in it; `removed` is the rest, and `cut` removes it. None keeps all.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None):
        self.path = path
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115
        self._size = self._file.seek(0, os.SEEK_END)
        self.removed = b""
        if keep_bytes is not None:
            self._file.seek(0)
            kept = self._file.read(min(keep_bytes, self._size))
            self._size = kept.rfind(b"\n") + 1  # a power cut may have lost part of it
            self._file.seek(self._size)
            self.removed = self._file.read()

    def cut(self) -> None:
        """Remove from the file what `removed` contains."""
        self._file.truncate(self._size)

    def append(self, text: str) -> None:
        """Write whole lines.

        Raises:
            OSError: they could not be written; the file is unchanged.
        """
        data = memoryview(text.encode())
        try:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:])
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(data)

    def position(self) -> int:
        """The size in bytes, after syncing the file to disk."""
        os.fsync(self._file.fileno())
        return self._size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
