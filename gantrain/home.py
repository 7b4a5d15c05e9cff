"""The user's home folder, which a container may not have: no HOME, and no entry of the user in the system's list.

Libraries then fail late and differently: torch writes to a folder called `~`, `pathlib` and `getpass` raise RuntimeError and KeyError.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from gantrain.errors import UserError, readable

HOME_VARIABLE = "HOME"
REPLACED = "GANTRAIN_REPLACED_HOME"  # set for this process and those that it starts, where `settle_home` has chosen a folder
LONGEST_TEMPORARY = 70  # bytes of a temporary folder's path, in which workers put sockets, whose paths have at most 107


def expand_user(path: str | os.PathLike, key: str = "") -> Path:
    """A path with `~` or `~USER` at its start replaced by a home folder.

    Args:
        path: as the user wrote it.
        key: the key or option that it belongs to, for the message.

    Raises:
        UserError: the user does not exist or has no home folder, or the path holds a NUL.
    """
    text, name = os.fspath(path), f"{key}: " if key else ""
    if "\0" in text:
        raise UserError(f"{name}{text!r} contains a NUL character, which no path may; remove it")
    if not text.startswith("~"):
        return Path(text)
    user = text[1:].partition(os.sep)[0]
    expanded = os.path.expanduser(text)
    unknown = not user and REPLACED in os.environ
    if unknown or not os.path.isabs(expanded):  # unchanged if the user is not known
        who = f"there is no user {user!r} with a home folder" if user else "this user has no home folder"
        raise UserError(f"{name}{readable(text)!r} begins with {'~' + user!r}, and {who}; write the path in full, or ./{readable(text)}")
    return Path(expanded)


def home_folder() -> Path | None:
    """The user's home folder if it is known; it may not be writable."""
    home = os.path.expanduser("~")
    return Path(home) if os.path.isabs(home) and REPLACED not in os.environ else None


def settle_home(say: Callable[[str], None]) -> None:
    """Give this process, and those that it starts, a home folder and a user name if the user has none, and a temporary folder that works.

    Only commands do so: a script that uses gantrain has its own environment.

    Args:
        say: called with a line that says what was chosen.

    Raises:
        UserError: there is no folder for temporary files.
    """
    settle_temporary(say)
    wrong = fault_of_home() if REPLACED not in os.environ else None
    if wrong:
        folder = replacement()
        os.environ[REPLACED] = os.environ[HOME_VARIABLE] = str(folder)
        say(f"{HOME_VARIABLE} {wrong}; caches go to {folder}: set {HOME_VARIABLE} to keep them")
    if (home := home_folder()) and "MPLCONFIGDIR" not in os.environ and not is_writable(home / ".config" / "matplotlib"):
        os.environ["MPLCONFIGDIR"] = str(replacement() / "matplotlib")  # it warns at every start otherwise
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # OSError since Python 3.13
        os.environ["USER"] = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "user"  # torch.compile and W&B ask for it


def fault_of_home() -> str | None:
    """Why libraries cannot look into the home folder; completes the sentence "HOME ...". None if they can, or if it does not exist."""
    home = home_folder()
    if home is None:
        wrong = f"is {os.environ[HOME_VARIABLE]!r}, not an absolute path" if HOME_VARIABLE in os.environ else "is not set"
        return f"{wrong}, and this user has no home folder"
    try:
        os.stat(home / ".config" / "matplotlib")  # for example; as root's home in a container that runs as another user
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"is {readable(home)!r}, which this user cannot enter ({error.strerror})"
    return None


def settle_temporary(say: Callable[[str], None]) -> None:
    """Replace TMPDIR where sockets do not fit into it.

    Raises:
        UserError: there is no folder for temporary files.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f"TMPDIR: there is no writable folder for temporary files ({error.strerror}); set TMPDIR to one") from None
    asked = os.environ.get("TMPDIR")
    if asked and os.path.realpath(asked) != os.path.realpath(folder):
        say(f"TMPDIR: {readable(asked)!r} is not a writable folder; {folder} is used")
    elif asked and not os.path.isabs(asked):
        os.environ["TMPDIR"] = folder  # or a process with another working folder would use another one
    elif len(os.fsencode(folder)) > LONGEST_TEMPORARY and os.access("/tmp", os.W_OK | os.X_OK):
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
        say(f"TMPDIR: the path of {readable(folder)} is too long for sockets; /tmp is used")


@functools.cache
def replacement() -> Path:
    """A folder in place of the home folder: gantrain-UID among the temporary files, or a new one if that belongs to another user."""
    folder = Path(tempfile.gettempdir()) / f"gantrain-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return folder
    return Path(tempfile.mkdtemp(prefix="gantrain-"))


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), None)  # unlike `Path.exists`, it never raises
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)
