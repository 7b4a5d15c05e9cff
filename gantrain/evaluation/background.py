"""Scoring of a checkpoint in a separate process while training continues:

    python -m gantrain.evaluation.background RUN NIMG OUT PARENT

scores the live weights and averages of RUN/scoring/NIMG like the run itself, writes the scores to OUT, and exits if the process
PARENT exits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from gantrain import streams
from gantrain.atomic_file import write_atomically
from gantrain.averaging import LIVE
from gantrain.errors import UserError, one_line
from gantrain.evaluation.evaluator import Interrupted
from gantrain.evaluation.of_runs import RunScorer
from gantrain.regular_file import open_regular, read_text
from gantrain.run_folder.as_trained import config_at
from gantrain.run_folder.checkpoint import CheckpointStore, read_state
from gantrain.run_folder.layout import SCORING_FOLDER
from gantrain.run_folder.own_config import load_config

MOST_SCORES = 2**26  # bytes of the scores of one checkpoint
TAIL = 2**16  # bytes at the end of the scorer's output in which its last line is looked for
POLL = 0.2  # seconds between two checks of a process
# Variables of the run's process group, which the scorer does not join.
GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "NODE_RANK")


class BackgroundEvaluation:
    """Scores one checkpoint at a time in a separate process. Only the main process of a run uses it.

    Args:
        run_dir: the run folder.
        warn: called with a message about a damaged checkpoint.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None]):
        self.run_dir = run_dir
        self.store = CheckpointStore(run_dir / SCORING_FOLDER, None, warn)
        self._process: subprocess.Popen | None = None

    def path(self, nimg: int) -> Path:
        """Folder of the checkpoint to be scored at `nimg` images."""
        return self.store.folder / f"{nimg:012d}"

    def result(self, nimg: int, wait: bool, asked_to_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Return the scores of the checkpoint at `nimg` images if they are ready; the first call starts the process.

        Args:
            nimg: images seen at the checkpoint.
            wait: block until the scores are ready.
            asked_to_stop: called while waiting; true stops the waiting.

        Returns:
            {"scores": ..., "protocol": ..., "collapsed": ...}, or None if they are not ready.

        Raises:
            UserError: scoring failed; the message includes that of the process.
            Interrupted: asked to stop while waiting.
        """
        out = self.path(nimg).with_suffix(".json")
        if self._process is None:
            if not self.path(nimg).is_dir():
                return None
            self._process = self._start(nimg, out)
        while (status := self._process.poll()) is None:
            if not wait:
                return None
            if asked_to_stop():
                raise Interrupted
            time.sleep(POLL)
        self._process = None
        if status:
            words = last_lines(out.with_suffix(".log"))
            why = f"ended by {signal.Signals(-status).name}" if status < 0 else words[-1] if words else f"status {status}"
            raise UserError(f"eval.async: {self.path(nimg)} could not be scored ({why}); set eval.async=false to score in the run itself")
        try:
            return json.loads(read_text(out, MOST_SCORES))
        except (OSError, ValueError, RecursionError) as error:
            why = getattr(error, "strerror", None) or one_line(error)
            raise UserError(f"eval.async: {out}: cannot be read ({why}); set eval.async=false to score in the run itself") from None

    def clear(self, but: int | None = None) -> None:
        """Delete checkpoints and scores, except those of the checkpoint at `but` images."""
        self.store.clear_drafts()
        keep = None if but is None else self.path(but).name
        for path in self.store.paths():
            if path.name != keep:
                self.store.forget(path)
        for path in self.store.folder.glob("*.*"):  # scores, logs, drafts
            if path.is_file() and path.name.lstrip(".")[:12] != keep:
                path.unlink(missing_ok=True)
        if but is None:
            with contextlib.suppress(OSError):  # it does not exist
                self.store.folder.rmdir()

    def forget_after(self, nimg: int) -> None:
        """Delete checkpoints later than `nimg` images: after a rollback to it the new path reaches the same times again."""
        later = [path for path in self.store.paths() if int(path.name) > nimg]
        if later:
            self.clear()

    def cancel(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self, nimg: int, out: Path) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key not in GROUP_VARIABLES and not key.startswith("TORCHELASTIC")}
        # The scorer can import everything that the run can, such as a plug-in next to the script that started the run.
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path))
        command = [sys.executable, "-m", "gantrain.evaluation.background", str(self.run_dir), str(nimg), str(out), str(os.getpid())]
        if not torch.cuda.is_available():
            environment.setdefault("OMP_NUM_THREADS", "1")  # with more threads than cores both processes become slower
        with open(out.with_suffix(".log"), "wb") as log:
            # In its own session, so that signals reach only the run, which decides what to do.
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True)


def last_lines(log: Path) -> list[str]:
    """The last lines that the scorer has written; none if its output is gone."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return file.read(TAIL).decode(errors="replace").splitlines()
    except OSError:
        return []


# ---- in the process that scores --------------------------------------------------------------------------------------


def score_checkpoint(run: Path, nimg: int, out: Path) -> None:
    """Score RUN/scoring/NIMG and write {"scores": ..., "protocol": ..., "collapsed": ...} to `out`."""
    path = run / SCORING_FOLDER / f"{nimg:012d}"
    # The reference's features are usually in the cache, so that the images need not be loaded.
    data: Any = config_at(path, run, load_config(run)).data
    on_disk = ["data.keep_in=disk"] if "keep_in" in {f.name for f in fields(data)} else []
    scorer = RunScorer(run, overrides=on_disk, path=path)
    scorer.prepare()
    scores = scorer.score([LIVE, *(name for name, one in read_state(path)["averages"].items() if one["num_averaged"] > 0)])
    result = {
        "scores": [[name, list(row.items())] for name, row in scores.items()], "protocol": scorer.evaluator.protocol(),
        "collapsed": scorer.evaluator.collapsed,
    }  # fmt: skip
    write_atomically(out, json.dumps(result))


def exit_with(parent: int) -> None:
    """Exit this process soon after its parent, which may be killed without notice. Runs in its own thread."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def main() -> None:
    """Run the command line; status 2 and one line if the checkpoint cannot be scored."""
    streams.secure()  # of a log in the run folder, which may be on a full disk
    run, nimg, out, parent = sys.argv[1:]
    threading.Thread(target=exit_with, args=(int(parent),), daemon=True).start()
    try:
        with contextlib.suppress(OSError, AttributeError):  # Windows has no `nice`
            os.nice(5)  # training has priority on shared cores
        score_checkpoint(Path(run), int(nimg), Path(out))
    except UserError as error:
        streams.print_safely(" ".join(str(error).split()), sys.stdout)
        sys.exit(2)


if __name__ == "__main__":
    main()
