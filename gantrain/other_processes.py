"""What this process knows of the other processes of its group, and tells them at its end. Where a launcher watches them, nothing."""

from __future__ import annotations

import re

from gantrain.errors import one_line
from gantrain.launch_environment import Place, process_world
from gantrain.process_watch import AGAIN, PeerFailed, ProcessWatch

# How gloo, NCCL and torch's store say that another process has gone.
BROKEN = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|by peer|processgroup|c10d|tcpstore|store->", re.IGNORECASE)

_watch: ProcessWatch | None = None


def join(place: Place) -> ProcessWatch | None:
    """The watch of this process, which begins with the first call; None without a group, and where a launcher watches.

    Raises:
        UserError: the main process cannot listen on MASTER_PORT.
    """
    global _watch
    if _watch is None and place.grouped and place.world > 1 and not place.launched:
        _watch = ProcessWatch(place)
    return _watch


def current() -> ProcessWatch | None:
    """The watch of this process, if it has begun."""
    return _watch


def stand_down() -> None:
    """This process is about to end by itself, after it has closed what is open."""
    if _watch:
        _watch.stand_down()


def end(error: BaseException | None, status: int) -> None:
    """Tell the other processes how this one ends.

    Args:
        error: what has ended it; None if it is done.
        status: its exit status.

    Raises:
        PeerFailed: instead of an error that only shows that another process has failed.
    """
    gone = explain(error) if error else None
    if _watch:
        _watch.end(gone.exit_status if gone else status, failed=error is not None)
    if gone and gone is not error:
        raise gone from None


def explain(error: BaseException) -> PeerFailed | None:
    """What has happened to another process, if that is all that an exception shows; None if it is this process's own."""
    if isinstance(error, PeerFailed):
        return error
    name = type(error).__name__
    if process_world() == 1 or not isinstance(error, RuntimeError) or not (name.startswith("Dist") or BROKEN.search(str(error))):
        return None
    failure = _watch.wait_for_news() if _watch else None
    if failure:
        return PeerFailed(failure.in_words(), failure.exit_status)
    lost = f"the connection to another process broke ({one_line(error)}); {AGAIN}"
    return PeerFailed(lost if _watch else "another process failed; see its error message", 1)
