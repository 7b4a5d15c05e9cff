"""The scores of a run: computed by the run itself, or in the background while training continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gantrain.averaging import LIVE
from gantrain.evaluation.collapse import in_one_line
from gantrain.evaluation.evaluator import Evaluator, Interrupted
from gantrain.reporting.score_table import SaidNotes, table
from gantrain.reporting.time_left import SCORING
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.score_names import Scores, as_keys
from gantrain.training.context import Context
from gantrain.training.guard import Sentry
from gantrain.training.keeper import Keeper
from gantrain.training.pictures import Pictures
from gantrain.training.players import Players
from gantrain.training.run_state import RunState
from gantrain.training.saving import Saving


class Scoreboard:
    """Scores the live weights and every average, and keeps the latest scores.

    Args:
        context: of the run.
        run: its clock.
        players: whose weights are scored.
        guard: judges the scores.
        keeper: keeps the checkpoints that are scored in the background, and the best ones.
        evaluator: computes scores in the run itself.
        saving: saves what will be scored in the background, and what was at its best.
        pictures: shows the orbit with every evaluation.

    Attributes:
        scores: the latest scores; unless computed in the background, only the main process has them.
        samples: generated images per score.
        scored_at: images seen at the evaluation; -1 if a swap has replaced the live weights at that moment.
        scores_of: the same, but unchanged by a swap; -1 before the first evaluation.
        collapsed: how the weights of the latest scores have collapsed, in words by average; empty for weights that have not.
        scoring: images seen at the checkpoint that is being scored in the background, or None.
    """

    def __init__(
        self, context: Context, run: RunState, players: Players, guard: Sentry, keeper: Keeper, evaluator: Evaluator, saving: Saving,
        pictures: Pictures,
    ):  # fmt: skip
        self.context, self.run, self.players, self.guard = context, run, players, guard
        self.keeper, self.evaluator, self.saving, self.pictures = keeper, evaluator, saving, pictures
        self.scores: Scores = {}
        self.samples = 0
        self.scored_at = self.scores_of = -1
        self.collapsed: dict[str, str] = {}
        self.scoring: int | None = None
        self._noted: SaidNotes | None = None  # on the main process, once there are scores

    def evaluate(self, swaps_now: bool) -> None:
        """Score everything, or start to in the background, unless that was done at this moment.

        Every process must call it at the same time.

        Args:
            swaps_now: a swap follows, so what is being scored, or was at its best, is saved first.

        Raises:
            Interrupted: the run was asked to stop.
            Trouble: the scores, or the last update, are not healthy.
        """
        run, say = self.run, self.context.tracker.say
        self.receive(wait=run.done or self.scoring not in (None, run.nimg))
        if run.nimg in (self.scored_at, self.scoring):
            return
        if self.scoring is not None:  # its checkpoint did not fit on the disk
            say(f"skipping the evaluation at {self.scoring / 1000:g} kimg: its checkpoint was not written")
        names = [LIVE, *self.players.bank.started()]
        if self.context.config.eval.asynchronous and not run.done:
            say(f"scoring {', '.join(names)} at {run.kimg:g} kimg in the background")
            self.scoring, self.saving.to_score = run.nimg, True
            if swaps_now:
                self.saving.save(pending=True)
            return
        self.scoring = None
        self._evaluate_here(names)
        if self.saving.best_of and swaps_now:
            self.saving.save(pending=True, best_only=True)

    def _evaluate_here(self, names: list[str]) -> None:
        """Score in the run itself, record the scores, and let the guard judge them."""
        run, context, count = self.run, self.context, self.context.config.eval.num_samples
        self.guard.listen(all=True)
        self.players.unify_statistics()
        context.tracker.say(f"scoring {', '.join(names)} at {run.kimg:g} kimg ({count} samples each)")
        with self.evaluator.interruptible(self.guard.asked_to_stop):
            with self.evaluator.isolated():
                self.evaluator.reference()  # only once, so it does not count as the cost of a score
            with context.costs.measure(SCORING, len(names)):
                self.scores = self.evaluator.score(names, self.players.bank.materialize, self.players.averaged)
        self.samples, self.scored_at, self.scores_of = count, run.nimg, run.nimg
        self._record(run.nimg, self.evaluator.protocol(), self.evaluator.collapsed)
        improved, trouble = self.guard.watch.scores(run.nimg, context.from_main(as_keys(self.scores)))
        self.saving.best_of = [name for name in improved if name in self.keeper.best]
        self.guard.raise_or_warn(trouble)

    def receive(self, wait: bool = False) -> None:
        """Take the scores that were computed in the background, if they are ready. Every process must call it at the same time.

        Raises:
            Interrupted: asked to stop while waiting.
            Trouble: the scores are not healthy.
        """
        if self.scoring is None:
            return
        interrupted, found = self.context.from_main(self._result(self.scoring, wait) if self.context.main else (False, None))
        if interrupted:
            raise Interrupted
        if found is None:
            return
        nimg, self.scoring = self.scoring, None
        self.scores = {name: dict(row) for name, row in found["scores"]}
        self.samples, self.scored_at, self.scores_of = self.context.config.eval.num_samples, nimg, nimg
        self._record(nimg, found["protocol"], found.get("collapsed", {}))
        improved, trouble = self.guard.watch.scores(nimg, as_keys(self.scores))
        best_of = [name for name in improved if name in self.keeper.best]
        if self.context.main and best_of:
            self.context.tracker.event(nimg, "best", best_of=best_of)
            self.keeper.keep_best(nimg, best_of)
        self.guard.raise_or_warn(trouble)

    def _result(self, nimg: int, wait: bool) -> tuple[bool, dict[str, Any] | None]:
        """(whether the run was asked to stop while waiting, the scores of the checkpoint at `nimg` or None if they are not ready)."""
        self.keeper.collect(self.run.nimg, wait=wait)
        scoring, asked = self.keeper.scoring, self.guard.asked_to_stop
        try:
            found = scoring.result(nimg, False, asked)
            if found is None and wait and scoring.path(nimg).is_dir():
                self.context.tracker.say(
                    f"waiting for the evaluation at {nimg / 1000:g} kimg: only one background evaluation runs at a time"
                )
                found = scoring.result(nimg, True, asked)
            return False, found
        except Interrupted:
            return True, None

    def _record(self, nimg: int, protocol: dict[str, object], collapsed: Mapping[str, str]) -> None:
        """Write the scores into the record, print a table, warn about collapsed generators, and show the orbit; on the main process."""
        # At 0 kimg nothing is trained, and many networks start with an output that hardly depends on y.
        self.collapsed = {name: words for name, words in collapsed.items() if words and nimg > 0}
        if not self.context.main:
            return
        tracker = self.context.tracker
        tracker.log(nimg, {**as_keys(self.scores), **protocol})
        tracker.overview(nimg)
        if nimg < self.run.total:  # the last table is printed at the end
            title = f"at {nimg / 1000:g} kimg" if nimg < self.run.nimg else "average"
            tracker.say(table(self.scores, title, self._new_notes(protocol)))
        if self.collapsed:
            tracker.tell(nimg, "collapse", words=in_one_line(self.collapsed), averages=self.collapsed)
        self.pictures.show_orbit()

    def _new_notes(self, protocol: Mapping[str, object]) -> list[str]:
        """The notes on scores that have not been said; those of all evaluations stand at the start."""
        if self._noted is None:
            self._noted = SaidNotes(self.evaluator.remarks.notes)
        notes = protocol.get("eval/notes", [])
        return self._noted.new(notes if isinstance(notes, list) else [])

    def live(self) -> dict[str, float]:
        """The live weights' scores at this moment, for a swap; only the main process has them.

        Every process must call it at the same time.

        Raises:
            Trouble: the last update is not healthy.
        """
        if self.scored_at != self.run.nimg:
            self.guard.listen(all=True)
            self.players.unify_statistics()
            with self.context.costs.measure(SCORING):
                return self.evaluator.score([LIVE], self.players.bank.materialize, self.players.averaged)[LIVE]
        self.scored_at = -1  # the next call at this moment is after the swap
        return self.scores[LIVE]

    def state(self) -> dict[str, Any]:
        """The latest scores, and what is being scored, as JSON values."""
        return {
            "scores": [[name, list(row.items())] for name, row in self.scores.items()],
            "scored": self.samples,
            "scored_at": self.scored_at,
            "scores_of": self.scores_of,
            "scoring": self.scoring,
            "collapsed": self.collapsed,
        }

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore the latest scores; at a rollback, cancel a background evaluation of the abandoned path."""
        state = snapshot.state
        self.scores = {name: dict(row) for name, row in state["scores"]}
        self.samples, self.scored_at = state["scored"], state["scored_at"]
        self.scores_of = state.get("scores_of", self.scored_at)
        self.collapsed = state.get("collapsed", {})
        if not rolls_back:
            self.scoring = state.get("scoring")
        elif self.scoring is not None and self.scoring > snapshot.nimg:
            self.scoring = None
            self.keeper.scoring.cancel()
