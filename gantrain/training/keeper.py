"""The files that a run keeps: checkpoints, the best of them, and snapshots of averages. A background thread writes them."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gantrain.config.sections import Checkpoint
from gantrain.evaluation.background import BackgroundEvaluation
from gantrain.reporting.tracker import Tracker
from gantrain.run_folder.background_writer import BackgroundWriter
from gantrain.run_folder.checkpoint import CheckpointStore, NotWritten, keep_also, link_checkpoint, save_under
from gantrain.run_folder.contents import forget_rebuilt_after
from gantrain.run_folder.layout import AVERAGES_FOLDER, BEST_FOLDER
from gantrain.run_folder.lost_checkpoints import begin_again, mark_saved
from gantrain.run_folder.manifest import all_damaged, require_names
from gantrain.run_folder.ownership import forget_abandoned


class Keeper:
    """The stores of a run folder. Only the main process may call anything but `collect` and `close`.

    Args:
        run_dir: the run folder.
        settings: how much is kept, and whether a failed write ends the run.
        scores: scores whose best checkpoints are kept.
        tracker: reports failed writes.

    Attributes:
        checkpoints: those that the run resumes from.
        snapshots: compact averages, from which others are rebuilt.
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

    def resumes_from(self, rollback: dict[str, Any] | None) -> Path | None:
        """The checkpoint that the run resumes from, or None if there is none; a best one if all others are damaged.

        Args:
            rollback: the record of the last rollback; the checkpoints that it abandoned are deleted.

        Raises:
            UserError: all checkpoints are damaged.
        """
        if rollback:
            forget_abandoned(self.checkpoints, rollback)
        if not self.checkpoints.paths():
            return None
        found = self.newest(sys.maxsize)
        if found is None:
            paths = self.checkpoints.paths()
            require_names(paths)
            raise all_damaged(self.checkpoints.folder, paths, "checkpoint", f", or delete {self._run_dir} to start over")
        return found

    def tidy(self, nimg: int, path: Path | None, best: Mapping[str, int], held: int | None) -> None:
        """Clean up after a kill, before the run resumes from `path` at `nimg` images.

        Args:
            best: images seen when each score was best.
            held: as in `save`.

        Raises:
            NotWritten: a best checkpoint could not be kept.
        """
        if path is None and (note := begin_again(self._run_dir)):
            self.tracker.say(f"note: {note}")
        for store in (self.checkpoints, self.snapshots, *self.best.values()):
            store.clear_drafts()
        for name, store in self.best.items():
            if path and best.get(name) == nimg and store.folder / path.name not in store.paths():  # killed between the two writes
                keep_also(path, store)
        self.checkpoints.held = held
        if path:
            mark_saved(self._run_dir, nimg)  # an earlier version has not
            self.checkpoints.prune(nimg)  # killed after the last save of a run, before the one before it was deleted
        self.snapshots.forget_after(nimg)
        forget_rebuilt_after(self._run_dir, nimg)

    def forget_after(self, nimg: int) -> None:
        """Delete what is later than `nimg` images, on a path that a rollback abandoned; best checkpoints stay.

        Nothing of it may be being scored.
        """
        self.checkpoints.forget_after(nimg)
        self.snapshots.forget_after(nimg)
        self.scoring.forget_after(nimg)
        forget_rebuilt_after(self._run_dir, nimg)

    def save(
        self, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], best_of: Sequence[str], best_only: bool,
        held: int | None, to_score: bool = False,
    ) -> None:  # fmt: skip
        """Write a checkpoint in the background, after the previous one.

        Args:
            nimg: images seen.
            tensors: copies that are not changed afterwards.
            state: JSON values.
            best_of: scores that are now at their best.
            best_only: store it for these scores only.
            held: images seen; the newest checkpoint that is not later must be kept.
            to_score: store it for `scoring` too, and delete what was scored before.

        Raises:
            NotWritten: the previous one could not be written, and the settings then end the run.
        """
        self.collect(nimg, wait=True)
        stores = [
            *([] if best_only else [self.checkpoints]),
            *(self.best[name] for name in best_of),
            *([self.scoring.store] if to_score else []),
        ]
        self.checkpoints.held = held
        state = copy.deepcopy(state)  # the run continues to change it

        def job() -> None:
            save_under(stores, nimg, tensors, state)
            if not best_only:
                mark_saved(self._run_dir, nimg)
            for name in best_of:
                self.best[name].forget_after(nimg)  # this one is better than the best of an abandoned path
            if to_score:
                self.scoring.clear(but=nimg)

        self._writer.submit(job)

    def keep_best(self, nimg: int, best_of: Sequence[str]) -> None:
        """Keep the checkpoint that was scored in the background as the best of some scores.

        Raises:
            NotWritten: it could not be kept, or the previous write failed, and the settings then end the run.
        """
        self.collect(nimg, wait=True)  # it may be writing into the same store
        try:
            for name in best_of:
                keep_also(self.scoring.path(nimg), self.best[name])
                self.best[name].forget_after(nimg)
        except NotWritten as error:
            self.warn_or_raise(nimg, error)

    def snapshot(self, nimg: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Write a snapshot of averages in the background, after the previous write.

        Raises:
            NotWritten: the previous write failed, and the settings then end the run.
        """
        self.collect(nimg, wait=True)
        self._writer.submit(lambda: self.snapshots.save(nimg, tensors, state))

    def collect(self, nimg: int, wait: bool = False, last: bool = False) -> bool:
        """Check the writes in the background; returns whether none has failed.

        Args:
            nimg: images seen now.
            wait: until the write in progress has ended.
            last: the run ends here, so a failed write is an error whatever the settings say.

        Raises:
            NotWritten: a write failed, and the run must stop.
        """
        try:
            self._writer.wait() if wait else self._writer.check()
        except NotWritten as error:
            self.warn_or_raise(nimg, error, last)
            return False
        return True

    def warn_or_raise(self, nimg: int, error: NotWritten, last: bool = False) -> None:
        """Warn about a failed write, or raise if the run must stop."""
        if last or self.settings.on_error == "stop":
            raise error
        self.tracker.tell(nimg, "not_written", words=error.what)

    def newest(self, until: int, best: str | None = None) -> Path | None:
        """The newest undamaged checkpoint of at most `until` images, or the best by the score `best`; None if there is none.

        Afterwards it is among `checkpoints`.

        Raises:
            OSError: the best one could not be linked there.
        """
        found = self.best[best].newest(until=until) if best in self.best else None
        for store in (self.checkpoints, *self.best.values()):
            found = found or store.newest(until=until)
        if found is None:
            return None
        target = self.checkpoints.folder / found.name
        if found != target:
            link_checkpoint(found, target)
        return target

    def close(self) -> None:
        """Wait for the write in progress. Its failure is ignored: a worse error, or this one, has been reported already."""
        with contextlib.suppress(Exception):
            self._writer.wait()
