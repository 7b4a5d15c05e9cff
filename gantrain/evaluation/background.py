"""Evaluation in the background: a checkpoint is scored by a process of its own while training goes on.

    python -m gantrain.evaluation.background RUN NIMG OUT PARENT

scores RUN/scoring/NIMG as an evaluation of the run would, live weights and averages, leaves the scores in OUT, and ends with the
process PARENT.
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

from gantrain.atomic_file import write_atomically
from gantrain.averaging import LIVE
from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Interrupted
from gantrain.evaluation.of_runs import RunScorer
from gantrain.run_folder.checkpoint import CheckpointStore, read_state
from gantrain.run_folder.layout import CONFIG_FILE

FOLDER = "scoring"
OF_THE_GROUP = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
    "NODE_RANK",
)  # the scorer is alone
POLL = 0.2  # seconds between two looks at a process that is waited for


class BackgroundEvaluation:
    """What is scored while training goes on: one checkpoint at a time. The main process alone asks it.

    Args:
        run_dir: the run folder.
        warn: told of what is damaged in it.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None]):
        self.run_dir = run_dir
        self.store = CheckpointStore(run_dir / FOLDER, None, warn)
        self._process: subprocess.Popen | None = None

    def path(self, nimg: int) -> Path:
        """Where what is to be scored is."""
        return self.store.folder / f"{nimg:012d}"

    def result(self, nimg: int, wait: bool, asked_to_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The scores of the checkpoint at `nimg` images, once they are there; begins with them where that was not done.

        Args:
            wait: for them, as long as it takes.
            asked_to_stop: whether to leave that.

        Returns:
            {"scores": ..., "protocol": ...}, or None where they are not there yet.

        Raises:
            UserError: they could not be computed; with the words of the process that tried.
            Interrupted: asked to stop while waiting.
        """
        out = self.path(nimg).with_suffix(".json")
        if self._process is None:
            if not self.path(nimg).is_dir():
                return None
            self._start(nimg, out)
        while (status := self._process.poll()) is None:
            if not wait:
                return None
            if asked_to_stop():
                raise Interrupted
            time.sleep(POLL)
        self._process = None
        if status:
            words = out.with_suffix(".log").read_text(errors="replace").splitlines()
            why = f"ended by {signal.Signals(-status).name}" if status < 0 else words[-1] if words else f"status {status}"
            raise UserError(
                f"eval.async: what lies in {self.path(nimg)} could not be scored ({why}); eval.async=false scores in the run itself"
            )
        return json.loads(out.read_text())

    def clear(self, but: int | None = None) -> None:
        """Delete what was scored, and what never will be."""
        self.store.clear_drafts()
        keep = None if but is None else self.path(but).name
        for path in self.store.paths():
            if path.name != keep:
                self.store.forget(path)
        for path in self.store.folder.glob("*.*"):  # scores, words, drafts
            if path.is_file() and path.name.lstrip(".")[:12] != keep:
                path.unlink(missing_ok=True)
        if but is None:
            with contextlib.suppress(OSError):  # not there
                self.store.folder.rmdir()

    def forget_after(self, nimg: int) -> None:
        """Delete what is later than `nimg` images, on a path that was rolled back from: the new path comes by the same moments."""
        later = [path for path in self.store.paths() if int(path.name) > nimg]
        if later:
            self.clear()

    def cancel(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self, nimg: int, out: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in OF_THE_GROUP and not key.startswith("TORCHELASTIC")}
        # What the run can import, such as a plug-in beside the script that started it, the scorer can.
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path))
        command = [sys.executable, "-m", "gantrain.evaluation.background", str(self.run_dir), str(nimg), str(out), str(os.getpid())]
        if not torch.cuda.is_available():
            environment.setdefault("OMP_NUM_THREADS", "1")  # two processes that fight for a core cost each other more than it is worth
        with open(out.with_suffix(".log"), "wb") as log:
            # In a session of its own: what the run is told by a signal, it decides on.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )


def score(run: Path, nimg: int, out: Path) -> None:
    """The job of the process."""
    path = run / FOLDER / f"{nimg:012d}"
    # The reference's features are in the cache as a rule, and the images are not needed at all.
    data: Any = load(run / CONFIG_FILE).data
    on_disk = ["data.keep_in=disk"] if "keep_in" in {f.name for f in fields(data)} else []
    scorer = RunScorer(run, overrides=on_disk, path=path)
    scorer.prepare()
    scores = scorer.score([LIVE, *(name for name, one in read_state(path)["averages"].items() if one["num_averaged"] > 0)])
    result = {"scores": [[name, list(row.items())] for name, row in scores.items()], "protocol": scorer.evaluator.protocol()}
    write_atomically(out, json.dumps(result))


def end_with(parent: int) -> None:
    """End this process soon after its parent, which had no time to say so. A thread of its own."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def main() -> None:
    """The process's command line; status 2 with one line where the checkpoint cannot be scored."""
    run, nimg, out, parent = sys.argv[1:]
    threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    try:
        with contextlib.suppress(OSError):
            os.nice(5)  # training first, where both compute on the same cores
        score(Path(run), int(nimg), Path(out))
    except UserError as error:
        sys.stdout.write(" ".join(str(error).split()) + "\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
