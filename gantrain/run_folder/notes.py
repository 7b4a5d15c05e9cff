"""Notes on a run for whoever reads it, each said once."""

from __future__ import annotations

import sys

from gantrain.launch_environment import process_rank
from gantrain.streams import print_safely

_said: set[str] = set()  # in this process: a command may read a checkpoint several times


def note_once(line: str) -> None:
    """Say a line about a run on standard error, once, on the main process."""
    if line not in _said and process_rank() == 0:
        _said.add(line)
        print_safely(f"gantrain: note: {line}", sys.stderr)
