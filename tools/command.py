"""What the scripts here share: one line for a user's mistake, and options that can be right."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gantrain.errors import UserError
from gantrain.interruption import INTERRUPTED, Stopped, exit_status


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a mistake is one line and exit status 2, Ctrl-C one line and 130."""
    try:
        main()
    except (UserError, OSError) as error:
        leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        leave("interrupted", INTERRUPTED)
    except Stopped as stopped:
        leave(f"stopped by {stopped}", exit_status(stopped.signal))


def leave(text: str, status: int) -> NoReturn:
    """Exit with one line on standard error."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(status)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def writable(text: str) -> Path:
    """A file's path whose folder is there, for argparse: found out before the work and not after it."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a file there")
    return path
