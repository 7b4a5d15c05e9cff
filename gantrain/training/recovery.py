"""What a run does when something goes wrong: return to a checkpoint, give up, or continue without a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from gantrain.batching import BatchController
from gantrain.errors import OF_THE_MACHINE, GaveUp, counted
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.run_folder.ownership import write_rollback
from gantrain.run_folder.provenance import utc_now
from gantrain.training.additions import report_added
from gantrain.training.context import Context
from gantrain.training.guard import Sentry, Trouble
from gantrain.training.inputs import Inputs
from gantrain.training.keeper import Keeper
from gantrain.training.measurements import Measurements
from gantrain.training.run_state import RunState
from gantrain.training.saving import Saving


class Recovery:
    """Returns a run to a checkpoint from before the trouble, or ends it.

    Args:
        context: of the run.
        run: its clock.
        batching: grows, if `guard.growth` says so.
        inputs: reopened where the run continues.
        measurements: their console line steps back.
        guard: counts rollbacks.
        keeper: finds the checkpoint.
        saving: loads it.
        orbit: its record steps back.
    """

    def __init__(
        self, context: Context, run: RunState, batching: BatchController, inputs: Inputs, measurements: Measurements, guard: Sentry,
        keeper: Keeper, saving: Saving, orbit: OrbitRecorder,
    ):  # fmt: skip
        self.context, self.run, self.batching, self.inputs, self.measurements = context, run, batching, inputs, measurements
        self.guard, self.keeper, self.saving, self.orbit = guard, keeper, saving, orbit

    def recover(self, trouble: Trouble) -> None:
        """Return to a checkpoint from before the trouble, and continue from there on other images.

        Every process must call it at the same time.

        Raises:
            GaveUp: the settings do not allow it, there is no such checkpoint, or guard.max_rollbacks is reached.
        """
        watch, bad = self.guard.watch, self.run.nimg
        self.guard.pulse.receive(all=True)  # of the path that is abandoned
        self.inputs.report_skipped()
        wanted = self.guard.action(trouble) == "rollback"
        path = self.context.from_main(self._checkpoint_before(trouble) if self.context.main and wanted else None)
        tried = watch.attempts
        if path:
            watch.rolled_back(bad, int(path.name))
        if path is None or watch.attempts > watch.settings.max_rollbacks:
            self._give_up(trouble, path, tried)
        state = self.saving.load(path, rolls_back=True)
        self.saving.forget_wishes()
        growth = watch.growth / state["guard"]["growth"]  # the checkpoint's batch has already grown by the rest
        grown = self.batching.ask(self.run.nimg, growth) if growth > 1 else None
        self._record(trouble, bad, grown)
        report_added(self.context, self.run, self.saving.players)
        self.orbit.open(state["orbit"])
        self.inputs.reopen()
        self.measurements.progress.back_to(self.run.nimg)

    def resume(self, rollback: dict[str, Any], state: dict[str, Any]) -> None:
        """Apply the last rollback to a run that has been resumed from a checkpoint.

        Args:
            rollback: its record.
            state: of the checkpoint. If the rollback returned to it, `metrics_bytes` is changed to include the rollback's own lines.
        """
        if rollback["guard"]["rollbacks"] <= self.guard.watch.rollbacks:
            return  # the checkpoint was written after it
        self.guard.watch.count(rollback["guard"])
        if rollback["to"] == self.run.nimg:
            self.batching.load(rollback["batching"])
            state["metrics_bytes"] = rollback["metrics_bytes"]

    def _record(self, trouble: Trouble, bad: int, grown: dict[str, Any] | None) -> None:
        """Report a rollback that has just happened, and save what it has changed."""
        watch, tracker, nimg = self.guard.watch, self.context.tracker, self.run.nimg
        tracker.tell(
            bad, "rollback", kind=trouble.kind, words=trouble.words, to=nimg, attempt=watch.attempts,
            max_rollbacks=watch.settings.max_rollbacks, skipped=watch.skipped, lr_scale=watch.lr_scale,
            **({"batch_before": grown["from"]} if grown else {}), **self.batching.numbers(), **trouble.evidence,
        )  # fmt: skip
        if self.context.main:
            body = {
                "to": nimg,
                "guard": watch.state(),
                "batching": self.batching.state(),
                "metrics_bytes": tracker.position(),
            }
            write_rollback(self.context.run_dir, body)
            self.keeper.forget_after(nimg)

    def _give_up(self, trouble: Trouble, path: Path | None, tried: int) -> NoReturn:
        """End the run with the reason and the remedy.

        Args:
            path: the checkpoint to return to, if there is one.
            tried: rollbacks because of this obstacle.

        Raises:
            GaveUp: always.
        """
        key = f"guard.on_{trouble.kind}"
        if self.guard.action(trouble) == "stop":
            why = f"{key}=stop ends the run; change the settings in another run_dir, or set {key}=rollback and run the same command again"
        elif path is None:
            why = "no undamaged checkpoint from before the problem is left; a larger checkpoint.keep_last keeps more"
        else:
            why = (
                f"{counted(tried, 'rollback')} did not help; run the same command with a larger guard.max_rollbacks,"
                " and perhaps with another guard.lr_scale or guard.growth"
            )
        self.context.tracker.event(
            self.run.nimg, "gave_up", time=utc_now(), kind=trouble.kind, words=trouble.words, rollbacks=tried,
            **trouble.evidence,
        )  # fmt: skip
        raise GaveUp(f"guard: {trouble.words}; {why}")

    def _checkpoint_before(self, trouble: Trouble) -> Path | None:
        """The checkpoint that a rollback returns to, linked into `checkpoints`; None if there is none."""
        self.keeper.collect(self.run.nimg, wait=True)
        config, best = self.context.config, None
        if config.guard.rollback_to == "best":
            best = config.guard.score or config.best_scores()[0]
        return self.keeper.newest(trouble.healthy, best)


@contextlib.contextmanager
def dispensable(context: Context, run: RunState, what: str) -> Iterator[None]:
    """Within this context, a full disk only causes a warning that `what` was not written, if checkpoint.on_error is continue."""
    try:
        yield
    except OSError as error:
        if context.config.checkpoint.on_error == "stop" or error.errno not in OF_THE_MACHINE:
            raise
        context.tracker.say(f"{what} at {run.kimg:g} kimg: not written ({error.strerror}); continuing (checkpoint.on_error=continue)")
