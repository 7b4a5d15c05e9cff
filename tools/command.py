"""Shared by the scripts in this folder: one-line errors and checked argparse types."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gantrain.errors import UserError
from gantrain.interruption import INTERRUPTED, Stopped, exit_status


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`. A user's mistake exits with one line and status 2, Ctrl-C with one line and status 130."""
    try:
        main()
    except (UserError, OSError) as error:
        leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        leave("interrupted", INTERRUPTED)
    except Stopped as stopped:
        leave(f"stopped by {stopped}", exit_status(stopped.signal))


def leave(text: str, status: int) -> NoReturn:
    """Exit with `status` after printing one line to standard error."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(status)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def writable(text: str) -> Path:
    """An argparse type: the path of an output file whose folder exists, checked before the work starts."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; pass the path of a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: the folder {str(path.parent)!r} does not exist; create it first")
    return path
