"""Saving a run and finding it again: checkpoints, snapshots of averages, and the run folder's lock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from gantrain.averaging.posthoc import compact
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.run_folder import checkpoint
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.run_folder.contents import group_of
from gantrain.run_folder.layout import BEST_FOLDER
from gantrain.run_folder.ownership import acquire_lock, read_rollback, write_config
from gantrain.run_folder.provenance import new_run_id
from gantrain.training.context import Context
from gantrain.training.guard import Sentry
from gantrain.training.keeper import Keeper
from gantrain.training.measurements import Measurements
from gantrain.training.players import Players
from gantrain.training.run_state import Part, RunState
from gantrain.version import __version__


class Stateful(Protocol):
    """Something that is no part of the trainer but goes into its checkpoints."""

    def state(self) -> dict[str, Any]:
        """JSON values."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


class KeyedPart:
    """A part of the checkpoint under a key of its own."""

    def __init__(self, key: str, thing: Stateful):
        self.key, self.thing = key, thing

    def state(self) -> dict[str, Any]:
        """Its state under its key."""
        return {self.key: self.thing.state()}

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore it."""
        self.thing.load(snapshot.state[self.key])


class Saving:
    """Writes checkpoints and snapshots of the parts below, and of those that are added to `parts`, and loads them.

    Args:
        context: of the run.
        run: its clock.
        players: their tensors are saved, and their averages' snapshots.
        measurements: settled before they are saved.
        guard: listened to first: what is not healthy is not saved.
        keeper: the stores.
        orbit: its record's position is saved.

    Attributes:
        parts: what a checkpoint's JSON is made of, in the order in which it is loaded.
        best_of: scores whose best checkpoint the next one is.
        to_score: whether the next checkpoint is to be scored in the background.
        wandb_id: the run's identity in W&B.
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
        self._lock: IO[str] | None = None

    # ---- the run folder ----------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Create the run folder and lock it, on the main process.

        Raises:
            UserError: another process trains there.
        """
        if self.context.main:
            self.context.run_dir.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.context.run_dir)

    def unlock(self) -> None:
        """Release the run folder."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def find(self) -> tuple[dict[str, Any] | None, Path | None]:
        """(the record of the last rollback, the checkpoint to resume from), each None if there is none; on every process.

        Raises:
            UserError: the record is damaged, or there are checkpoints and none is whole.
        """
        found: tuple[dict[str, Any] | None, Path | None] = (None, None)
        if self.context.main:
            rollback = read_rollback(self.context.run_dir)
            found = rollback, self.keeper.resumes_from(rollback)
        return self.context.from_main(found)

    def tidy(self, path: Path | None, scoring: int | None) -> None:
        """Clean up the run folder before the run resumes from `path`, and write its configuration; on the main process.

        Args:
            scoring: images seen at the checkpoint that is still to be scored.
        """
        if self.context.main:
            self.keeper.scoring.clear(but=scoring)
            self.keeper.tidy(self.run.nimg, path, {name: one.nimg for name, one in self.guard.watch.best.items()})
            write_config(self.context.config, self.context.run_dir)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether the present state is to be saved for its scores, though no checkpoint may be due."""
        return bool(self.best_of) or self.to_score

    def forget_wishes(self) -> None:
        """Want nothing of the next checkpoint but that it is written."""
        self.best_of, self.to_score = [], False

    def save(self, pending: bool = False, best_only: bool = False) -> None:
        """Write a checkpoint of everything that the run resumes from, in the background.

        Every process must call it at the same time.

        Args:
            pending: what is due at this moment has not been done; the resumed run does it.
            best_only: keep it as the best of `best_of` only, and not as the newest.

        Raises:
            Trouble: something is not finite.
            NotWritten: the checkpoint before it could not be written, and the settings end the run for it.
        """
        self.guard.listen(all=True)
        self.players.unify_statistics()
        self.measurements.settle()
        if self.context.main:
            nimg = self.run.nimg
            path = BEST_FOLDER if best_only else f"checkpoints/{nimg:012d}"
            self.context.tracker.event(nimg, "checkpoint", path=path, best_of=self.best_of)
            self.keeper.collect(nimg, wait=True)  # before the copies are made: one of each is in memory
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
        }
        for part in self.parts:
            state |= part.state()
        if not pending:
            state["previous_nimg"] = self.run.nimg  # nothing is due any more
        return state

    def load(self, path: Path, rolls_back: bool = False) -> dict[str, Any]:
        """Restore all parts from a checkpoint; its JSON.

        Args:
            rolls_back: keep the counts of rollbacks and the run's identity in W&B.

        Raises:
            UserError: it was trained on other images, or its batch does not divide over the processes.
        """
        snapshot = checkpoint.read(path)
        for part in self.parts:
            part.load(snapshot, rolls_back)
        if not rolls_back:
            self.wandb_id = snapshot.state["wandb_id"]
        return snapshot.state

    # ---- snapshots of averages ---------------------------------------------------------------------------------------

    def keep_snapshots(self, done: bool) -> None:
        """Write compact copies of the averages that others are rebuilt from, where one is due or the run is done.

        Every process must call it at the same time.
        """
        exponents = {name: exponent for name in self.players.bank if (exponent := self._exponent_if_due(name, done)) is not None}
        if not exponents:
            return
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
