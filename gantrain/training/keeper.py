"""What a run keeps of itself: checkpoints, the best of them, snapshots of averages. One thread writes, in the background."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gantrain.config.sections import Checkpoint
from gantrain.errors import UserError
from gantrain.evaluation.background import BackgroundEvaluation
from gantrain.reporting.tracker import Tracker
from gantrain.run_folder.checkpoint import BackgroundWriter, CheckpointStore, NotWritten, keep_also, linked, save_under
from gantrain.run_folder.contents import forget_rebuilt_after
from gantrain.run_folder.layout import AVERAGES_FOLDER, BEST_FOLDER
from gantrain.run_folder.ownership import forget_abandoned


class Keeper:
    """The stores of a run folder. The main process alone asks it for anything but `collect` and `close`.

    Args:
        run_dir: the run folder.
        settings: how much is kept, and what becomes of a run that cannot write.
        scores: whose best checkpoints are kept.
        tracker: told of what could not be written.

    Attributes:
        checkpoints: what the run goes on from.
        snapshots: compact averages that others are rebuilt from.
        best: a store of one checkpoint for each of the scores.
        scoring: checkpoints that are scored in the background.
    """

    def __init__(self, run_dir: Path, settings: Checkpoint, scores: Sequence[str], tracker: Tracker):
        self.settings, self.tracker = settings, tracker
        self.checkpoints = CheckpointStore(run_dir / "checkpoints", settings.keep_last, tracker.say, settings.keep_every_kimg)
        self.snapshots = CheckpointStore(run_dir / AVERAGES_FOLDER, None, tracker.say)
        self.best = {name: CheckpointStore(run_dir / BEST_FOLDER / name.replace("/", "."), 1, tracker.say) for name in scores}
        self.scoring = BackgroundEvaluation(run_dir, tracker.say)
        self._run_dir = run_dir
        self._writer = BackgroundWriter()

    def resumes_from(self, rollback: Mapping[str, Any] | None) -> Path | None:
        """The checkpoint that the run goes on from, if there is one; where no other is whole, one that was best.

        Args:
            rollback: the last one's record, whose abandoned path is deleted.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        if rollback:
            forget_abandoned(self.checkpoints, rollback)
        if not self.checkpoints.paths():
            return None
        found = self.newest(sys.maxsize)
        if found is None:
            raise UserError(
                f"{self.checkpoints.folder}: none of its {len(self.checkpoints.paths())} checkpoints is whole; delete this folder to start anew"
            )
        return found

    def tidy(self, nimg: int, path: Path | None, best: Mapping[str, int]) -> None:
        """Put in order what a kill has left, before the run goes on from `path` at `nimg` images.

        Args:
            best: of each score, images seen when it was best.

        Raises:
            NotWritten: a best checkpoint could not be kept.
        """
        for store in (self.checkpoints, self.snapshots, *self.best.values()):
            store.clear_drafts()
        for name, store in self.best.items():
            if path and best.get(name) == nimg and store.folder / path.name not in store.paths():  # a kill came between
                keep_also(path, store)
        self.snapshots.forget_after(nimg)
        forget_rebuilt_after(self._run_dir, nimg)

    def forget_after(self, nimg: int) -> None:
        """Delete what is later than `nimg` images, on a path that was rolled back from. What was best on it stays the best.

        Nobody may be scoring it.
        """
        self.checkpoints.forget_after(nimg)
        self.snapshots.forget_after(nimg)
        self.scoring.forget_after(nimg)
        forget_rebuilt_after(self._run_dir, nimg)

    def save(
        self, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], best_of: Sequence[str], best_only: bool, held: int | None,
        to_score: bool = False,
    ) -> None:  # fmt: skip
        """Write a checkpoint in the background, when the one before it is written.

        Args:
            tensors: copies, which nobody changes.
            best_of: scores that are at their best.
            best_only: keep it for these alone.
            held: images seen; the newest checkpoint not beyond them is still needed.
            to_score: keep it for `scoring`, too, and let go of what was scored before.

        Raises:
            NotWritten: the one before it could not be written, and that ends the run.
        """
        self.collect(nimg, wait=True)
        stores = [
            *([] if best_only else [self.checkpoints]),
            *(self.best[name] for name in best_of),
            *([self.scoring.store] if to_score else []),
        ]
        self.checkpoints.held = held
        state = copy.deepcopy(state)  # the run goes on changing what it has told

        def job() -> None:
            save_under(stores, nimg, tensors, state)
            for name in best_of:
                self.best[name].forget_after(nimg)  # the best of a path that was rolled back from, which this one beats
            if to_score:
                self.scoring.clear(but=nimg)

        self._writer.submit(job)

    def keep_best(self, nimg: int, best_of: Sequence[str]) -> None:
        """Keep what was scored in the background as the best of some scores.

        Raises:
            NotWritten: it could not be kept, and that ends the run.
        """
        try:
            for name in best_of:
                keep_also(self.scoring.path(nimg), self.best[name])
                self.best[name].forget_after(nimg)
        except NotWritten as error:
            self.bear(nimg, error)

    def snapshot(self, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """The same of a snapshot of averages."""
        self.collect(nimg, wait=True)
        self._writer.submit(lambda: self.snapshots.save(nimg, tensors, state))

    def collect(self, nimg: int, wait: bool = False, last: bool = False) -> bool:
        """See what became of what is written in the background; `wait` for the end of it. Whether all is well.

        Args:
            last: there is nothing to go on with: what was not written is an error whatever the settings say.

        Raises:
            NotWritten: it could not be written, and that ends the run.
        """
        try:
            self._writer.wait() if wait else self._writer.check()
        except NotWritten as error:
            self.bear(nimg, error, last)
            return False
        return True

    def bear(self, nimg: int, error: NotWritten, last: bool = False) -> None:
        """Say what was not written where the run goes on without; raise it where it does not."""
        if last or self.settings.on_error == "stop":
            raise error
        self.tracker.tell(nimg, "not_written", words=error.what)

    def newest(self, until: int, best: str | None = None) -> Path | None:
        """The newest whole checkpoint of no more than `until` images, or the best by a score; among `checkpoints` afterwards.

        Raises:
            OSError: the best one could not be put there.
        """
        found = self.best[best].newest(until=until) if best in self.best else None
        for store in (self.checkpoints, *self.best.values()):
            found = found or store.newest(until=until)
        if found is None:
            return None
        target = self.checkpoints.folder / found.name
        if found != target:
            linked(found, target)
        return target

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it: it was said already, or there is something worse to say."""
        with contextlib.suppress(Exception):
            self._writer.wait()
