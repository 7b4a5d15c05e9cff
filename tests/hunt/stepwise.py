"""The `gantrain` command counted step by step, and killed at one: `stepwise.py SPEC ARGUMENTS...`, SPEC as JSON; or many, forked.

A step is whatever changes the disk or the weights: a file opened for writing, written, truncated or synced, a name made, moved or
removed, in the run's folder; an update; images drawn for scores. Steps are counted below gantrain, in Python's calls of the system, so
that the store of checkpoints may do whatever it likes.

    {"run": FOLDER, "trace": FILE, "term": NIMG, "kill": {"only": REGEX, "at": K, "torn": false}}

`trace` receives a line a step. `term` is when an evaluation is met by SIGTERM, unless the record says that one was. `kill` is the K-th
of the steps whose line matches: SIGKILL before it, or in the middle of a write.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from everything import import_everything

from gantrain import cli
from gantrain.evaluation.evaluator import Evaluator
from gantrain.training.scoreboard import Scoreboard
from gantrain.training.trainer import Trainer

MAKES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit event -> which of its arguments are paths, and which is the descriptor of the folder that they are relative to.
EVENTS = {"os.mkdir": ((0,), 2), "os.rmdir": ((0,), 1), "os.remove": ((0,), 1), "os.rename": ((0, 1), 2), "os.link": ((0, 1), 2),
          "os.symlink": ((0, 1), 2), "os.truncate": ((0,), None), "os.chmod": ((0,), 2)}  # fmt: skip
plain_open, plain_sync = io.open, os.fsync


class Steps:
    """Counts the steps of this process, and ends it at one of them."""

    def __init__(self, run: Path, trace: str | None = None, kill: dict[str, Any] | None = None):
        self.run = os.path.realpath(run)
        self.trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if trace else None
        self.only, self.left, self.torn = (re.compile(kill["only"]), kill["at"], kill["torn"]) if kill else (re.compile(""), 0, False)
        self.lock = threading.RLock()  # checkpoints are written on a thread

    def take(self, kind: str, *paths: str) -> bool:
        """A step is about to be taken; True if it is the write in the middle of which the process ends."""
        line = " ".join([kind, *(os.path.relpath(path, self.run) for path in paths)])
        with self.lock:
            if self.trace is not None:
                os.write(self.trace, f"{line}\n".encode())
            if self.left and self.only.search(line):
                self.left -= 1
                if self.left == 0:
                    if self.torn and kind == "write":
                        return True
                    os.kill(os.getpid(), signal.SIGKILL)
        return False

    def inside(self, path: Any, folder: Any = None) -> str | None:
        """The absolute path of something in the run's folder; None of anything else."""
        try:
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            elif isinstance(folder, int) and folder >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
            path = os.path.abspath(os.fsdecode(path))
        except (OSError, TypeError, ValueError):
            return None
        return path if path.startswith(self.run) else None

    def heard(self, event: str, arguments: tuple) -> None:
        """An audit event, which comes before what it tells of."""
        if event == "open":
            path, _, flags = arguments
            if flags & MAKES and not isinstance(path, int) and (where := self.inside(path)):
                self.take("open", where)
        elif event in EVENTS:
            which, folder = EVENTS[event]
            found = [
                self.inside(arguments[i], arguments[folder] if folder is not None and len(arguments) > folder else None) for i in which
            ]
            if any(found):
                self.take(event.removeprefix("os."), *(path for path in found if path))


class CountedFile(io.FileIO):
    """A file whose writes are steps."""

    steps: Steps

    def write(self, data: Any) -> int:
        torn = self.steps.take("write", os.path.abspath(os.fsdecode(self.name)))
        if torn:
            super().write(memoryview(data)[: max(1, len(data) // 2)])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.steps.take("truncate", os.path.abspath(os.fsdecode(self.name)))
        return super().truncate(size)


def counted_open(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None,
                 closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
    """`open`, through a counted file where it writes into the run's folder."""
    if not set(mode) & set("wax+") or isinstance(file, int) or CountedFile.steps.inside(file) is None:
        return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = CountedFile(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if buffering == 0:
        return raw
    buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)


def count(steps: Steps) -> None:
    """Let the process be counted from now on."""
    CountedFile.steps = steps
    io.open = builtins.open = counted_open

    def synced(descriptor: Any) -> None:
        where = steps.inside(descriptor if isinstance(descriptor, int) else descriptor.fileno())
        if where:
            steps.take("fsync", where)
        plain_sync(descriptor)

    os.fsync = synced
    sys.addaudithook(steps.heard)
    for owner, name in ((Trainer, "update"), (Evaluator, "generate_features")):
        before(owner, name, lambda *_, name=name: steps.take(name))


def before(owner: type, name: str, do: Any) -> None:
    """Call `do` before each call of a method, with its arguments."""
    method = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        do(*arguments)
        return method(*arguments, **named)

    setattr(owner, name, called)


def stop_in_evaluation(run: Path, nimg: int) -> None:
    """SIGTERM in the evaluation of this moment, once: the record of what has been saved says whether it was."""
    scoring = []
    before(Scoreboard, "evaluate", lambda board, *_: scoring.append(board.run.nimg))

    def ask(*_: Any) -> None:
        if scoring and scoring[-1] == nimg and b'"interrupted"' not in (run / "metrics.jsonl").read_bytes():
            os.kill(os.getpid(), signal.SIGTERM)

    before(Evaluator, "generate_features", ask)


def run(spec: dict[str, Any], argv: list[str]) -> None:
    """The command, counted."""
    if "term" in spec:
        stop_in_evaluation(Path(spec["run"]), spec["term"])
    count(Steps(Path(spec["run"]), spec.get("trace"), spec.get("kill")))
    cli.main(argv)


def serve() -> None:
    """Fork a process for each line of standard input, and say what it has ended with; in such a process this returns by SystemExit."""
    import_everything()
    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for number in (1, 2):
                os.dup2(log, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            run(task["spec"], task["argv"])
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        run(json.loads(sys.argv[1]), sys.argv[2:])
