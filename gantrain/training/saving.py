"""Saving and loading a run: checkpoints, snapshots of averages, and the lock of the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gantrain.averaging.posthoc import compact
from gantrain.distributed import on_main
from gantrain.errors import UserError
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.reporting.time_left import CHECKPOINTS, SNAPSHOTS
from gantrain.run_folder import checkpoint
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.run_folder.claim import Claim, Traces, claim_folder
from gantrain.run_folder.contents import fitting, group_of
from gantrain.run_folder.layout import BEST_FOLDER
from gantrain.run_folder.own_config import write_config
from gantrain.run_folder.ownership import read_rollback
from gantrain.run_folder.provenance import new_run_id
from gantrain.run_folder.trained_with import to_state
from gantrain.training.context import Context
from gantrain.training.guard import Sentry
from gantrain.training.keeper import Keeper
from gantrain.training.measurements import Measurements
from gantrain.training.players import Players
from gantrain.training.run_state import Part, RunState
from gantrain.version import __version__


class Stateful(Protocol):
    """An object that is not a part of the trainer, but is saved in its checkpoints."""

    def state(self) -> dict[str, Any]:
        """The state as JSON values."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


class KeyedPart:
    """Makes a part of a `Stateful` object; its state has a key of its own in the checkpoint."""

    def __init__(self, key: str, thing: Stateful):
        self.key, self.thing = key, thing

    def state(self) -> dict[str, Any]:
        """Its state under its key."""
        return {self.key: self.thing.state()}

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore it."""
        self.thing.load(snapshot.state[self.key])


class Saving:
    """Writes and loads checkpoints and snapshots of everything below and in `parts`.

    Args:
        context: of the run.
        run: its clock.
        players: their tensors are saved, and their averages' snapshots.
        measurements: settled before they are saved.
        guard: listened to first, so that nothing unhealthy is saved.
        keeper: the stores.
        orbit: the position of its record is saved.

    Attributes:
        parts: whose states make up the checkpoint's JSON, in the order of loading.
        best_of: scores for which the next checkpoint is the best.
        to_score: whether the next checkpoint will be scored in the background.
        wandb_id: the run's identity in W&B.
        claim: to the run folder, on the main process; None before `lock`, unless it was taken before this run was prepared.
        traces: of the folder as it was when this run was prepared.
    """

    def __init__(
        self, context: Context, run: RunState, players: Players, measurements: Measurements, guard: Sentry, keeper: Keeper,
        orbit: OrbitRecorder,
    ):  # fmt: skip
        self.context, self.run, self.players, self.measurements = context, run, players, measurements
        self.guard, self.keeper, self.orbit = guard, keeper, orbit
        self.parts: Sequence[Part] = ()
        self.best_of: list[str] = []
        self.to_score = False
        self.wandb_id = new_run_id()
        self.claim: Claim | None = None
        self.traces: Traces = {}

    # ---- the run folder ----------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Take the run folder on the main process, unless whoever made this run has taken it already.

        Raises:
            UserError: another process trains there, or the folder is not as it was when this run was prepared.
        """
        on_main(self.context.accelerator, self._take)

    def _take(self) -> None:
        if self.claim is not None and self.claim.holds():
            return
        self.unlock()  # of a folder that was removed
        claim = claim_folder(self.context.config)
        if claim.found.traces != self.traces:
            claim.release()
            raise UserError(
                f"run_dir: {self.context.run_dir} has changed while this run was being prepared: another process has trained there, or"
                " files were removed; run the same command again"
            )
        self.claim = claim

    def unlock(self) -> None:
        """Release the run folder."""
        if self.claim is not None:
            self.claim.release()

    def find(self) -> tuple[dict[str, Any] | None, Path | None]:
        """(the record of the last rollback, the checkpoint to resume from), each None if there is none; on every process.

        Raises:
            UserError: the record or all checkpoints are damaged.
        """
        found: tuple[dict[str, Any] | None, Path | None] = (None, None)
        if self.context.main:
            rollback = read_rollback(self.context.run_dir)
            found = rollback, self.keeper.resumes_from(rollback)
        return self.context.from_main(found)

    def tidy(self, path: Path | None, scoring: int | None) -> None:
        """Clean up the run folder before the run resumes from `path`, and write its configuration; on the main process.

        Args:
            scoring: images seen at the checkpoint that still has to be scored.
        """
        if self.context.main:
            self.keeper.scoring.clear(but=scoring)
            watch = self.guard.watch
            self.keeper.tidy(self.run.nimg, path, {name: one.nimg for name, one in watch.best.items()}, watch.well_until)
            write_config(self.context.config, self.context.run_dir)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether the current state must be saved because of its scores, even if no checkpoint is due."""
        return bool(self.best_of) or self.to_score

    def forget_wishes(self) -> None:
        """Reset `best_of` and `to_score`."""
        self.best_of, self.to_score = [], False

    def save(self, pending: bool = False, best_only: bool = False) -> None:
        """Write a checkpoint of everything that the run resumes from, in the background.

        Every process must call it at the same time.

        Args:
            pending: what is due at this moment has not been done yet; a resumed run will do it.
            best_only: keep it only as the best of `best_of`, not as the newest.

        Raises:
            Trouble: something is not finite.
            NotWritten: the previous checkpoint could not be written, and the settings then end the run.
        """
        with self.context.costs.measure(CHECKPOINTS):
            self._save(pending, best_only)

    def _save(self, pending: bool, best_only: bool) -> None:
        self.guard.listen(all=True)
        self.players.unify_statistics()
        self.measurements.settle()
        if self.context.main:
            nimg = self.run.nimg
            path = BEST_FOLDER if best_only else f"checkpoints/{nimg:012d}"
            self.context.tracker.event(nimg, "checkpoint", path=path, best_of=self.best_of)
            self.keeper.collect(nimg, wait=True)  # before copying, so that only one copy is in memory
            tensors = {group: checkpoint.to_cpu(named) for group, named in self.players.tensors().items()}
            held = self.guard.watch.well_until
            self.keeper.save(nimg, tensors, self.state(pending), self.best_of, best_only, held, self.to_score)
        self.forget_wishes()
        if not best_only:
            self.run.saved_at = self.run.nimg

    def state(self, pending: bool) -> dict[str, Any]:
        """The checkpoint's JSON: the states of all parts side by side. The tracker and the orbit flush their files first."""
        state = {
            "gantrain": __version__,
            "wandb_id": self.wandb_id,
            "metrics_bytes": self.context.tracker.position(),
            "orbit": self.orbit.state(),
            **to_state(self.context.config),
        }
        for part in self.parts:
            state |= part.state()
        if not pending:
            state["previous_nimg"] = self.run.nimg  # everything due has been done
        return state

    def load(self, path: Path, rolls_back: bool = False) -> dict[str, Any]:
        """Restore all parts from a checkpoint; returns its JSON.

        Args:
            rolls_back: keep the counts of rollbacks and the run's identity in W&B.

        Raises:
            UserError: it was trained on other images, or its batch does not divide over the processes.
        """
        snapshot = checkpoint.read(path)
        with fitting(path):
            for part in self.parts:
                part.load(snapshot, rolls_back)
        if not rolls_back:
            self.wandb_id = snapshot.state["wandb_id"]
        return snapshot.state

    # ---- snapshots of averages ---------------------------------------------------------------------------------------

    def keep_snapshots(self, done: bool) -> None:
        """Write compact copies of power averages, from which others are rebuilt, if one is due or the run is done.

        Every process must call it at the same time.
        """
        exponents = {name: exponent for name in self.players.bank if (exponent := self._exponent_if_due(name, done)) is not None}
        if exponents:
            with self.context.costs.measure(SNAPSHOTS, len(exponents)):
                self._keep_snapshots(exponents)

    def _keep_snapshots(self, exponents: dict[str, float]) -> None:
        self.guard.listen(all=True)
        self.players.unify_statistics()
        if self.context.main:
            self.keeper.collect(self.run.nimg, wait=True)
            tensors = self.players.bank.tensors()
            groups = {group_of(name): compact(tensors[name]) for name in sorted(exponents)}
            groups["buffers"] = checkpoint.to_cpu(dict(self.players.G.network.named_buffers()))
            state = {"gammas": dict(sorted(exponents.items())), "shape": list(self.players.shape)}
            self.keeper.snapshot(self.run.nimg, groups, state)

    def _exponent_if_due(self, name: str, done: bool) -> float | None:
        """The exponent of a power average whose snapshot is due; None for others."""
        average = self.players.bank[name]
        every, exponent = average.averager.snapshot_every_kimg, average.averager.exponent
        return exponent if every is not None and (self.run.due(every) or done) and average.started else None
