"""What a run still has to do, by its clock: the images to train on, and the scores, samples, swaps and files that are due on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gantrain import clock
from gantrain.batching import BatchController, BatchState
from gantrain.batching.state import proposal_of
from gantrain.orbit.motion import number_regimes
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.reporting.time_left import CHECKPOINTS, ORBIT_LINES, ORBIT_PICTURES, SAMPLES, SCORING, SNAPSHOTS, SWAPS, Plan
from gantrain.schedule import Schedule
from gantrain.theory.orbit_fit import FEWEST_RECORDINGS
from gantrain.training.context import Context
from gantrain.training.players import Players
from gantrain.training.run_state import RunState
from gantrain.training.swapper import Swapper

LOOKS = 64  # times at which a policy is asked for the batch that it will propose

Stretch = tuple[int, int, int]  # images seen at its start and at its end, and its batch
Times = np.ndarray  # images seen, in order


class Forecast:
    """Foresees the rest of a run, from the moment of a line of the record; what is due at that moment itself comes after the line.

    Rollbacks are not foreseen, nor are growths that depend on measurements, nor checkpoints that are kept for their scores.

    Args:
        context: of the run.
        run: its clock.
        players: their averages are scored, once they have started.
        batching: the batch as it is, and its policy.
        swapper: knows which scores the last swap still lacks.
        orbit: knows what has been recorded, and so from when on there is enough to draw.
    """

    def __init__(
        self, context: Context, run: RunState, players: Players, batching: BatchController, swapper: Swapper, orbit: OrbitRecorder
    ):  # fmt: skip
        self.context, self.run, self.players, self.batching, self.swapper = context, run, players, batching, swapper
        self.orbit = orbit

    def plan(self) -> Plan:
        """What is still to come."""
        c, stretches = self.context.config, self.stretches()
        end = stretches[-1][1] if stretches else self.run.nimg
        due = lambda every: self.firings(every, stretches)  # noqa: E731
        last = np.array([end]) if self.run.ends or stretches else np.array([], int)  # a finished run that starts again has no end
        evaluations = np.union1d(due(c.eval.every_kimg), last)
        here = last if c.eval.asynchronous else evaluations  # the others are computed beside the training
        swaps = self.swaps(stretches, end)
        work = {
            SCORING: self.weights_at(here) + self.scores_of_swaps(swaps, evaluations, end, stretches),
            SAMPLES: self.weights_at(np.union1d(due(c.tracking.samples_every_kimg), last)),
            SWAPS: len(swaps),
            SNAPSHOTS: self.snapshots(stretches, last),
            CHECKPOINTS: len(np.union1d(due(c.checkpoint.every_kimg), last)),
        }
        if c.orbit.every_kimg is not None:
            recordings = self.recordings(np.union1d(due(c.orbit.every_kimg), evaluations), swaps, stretches)
            work |= {ORBIT_LINES: len(recordings), ORBIT_PICTURES: self.orbit_pictures(evaluations, recordings)}
        return Plan([(stop - start, batch) for start, stop, batch in stretches], work)

    # ---- training ------------------------------------------------------------------------------------------------------

    def stretches(self) -> list[Stretch]:
        """The rest of the training, split where the batch will grow, as far as the policy and the swaps' growth tell."""
        now, total, batch = self.run.nimg, self.run.total, self.batching.batch_size
        found: list[Stretch] = []
        start = now
        for moment, grown in self.growths():
            stop = start + -(-max(0, moment - start) // batch) * batch
            found += [(start, stop, batch)] if stop > start else []
            start, batch = stop, grown
        if start < total:
            found.append((start, start + -(-(total - start) // batch) * batch, batch))
        return found

    def growths(self) -> list[tuple[int, int]]:
        """(images seen, batch from then on) of the growths that are certain: by the clock, and by swaps with a fixed factor."""
        now, total, growth = self.run.nimg, self.run.total, self.context.config.swap.growth
        if not self.batching.policy.grows or now >= total:
            return []
        batch, proposal = self.batching.batch_size, self.batching.proposal
        swaps = {*self.swap_times()} if isinstance(growth, (int, float)) and growth > 1 else set()
        found, seen = [], now
        for look in sorted({*map(int, np.linspace(now, total - 1, LOOKS)), *swaps}):
            factor = float(growth) if look in swaps else 1.0
            try:
                asked = self.proposal(look, batch, proposal, factor)
                moment = look if factor > 1 else self.first_time(asked, seen, look, batch, proposal)
            except Exception:  # a policy from outside may need measurements, which nobody can foresee
                break
            proposal, seen = asked, look
            grown = max(batch, self.batching.whole_rounds(proposal))
            if grown != batch:
                found.append((moment, grown))
                batch = grown
        return found

    def proposal(self, moment: int, batch: int, proposal: float, growth: float = 1.0) -> float:
        """What the policy will propose at a moment, without measurements.

        Args:
            moment: images seen.
            batch, proposal: in force until then.
            growth: that a swap asks for at this moment.
        """
        state = BatchState(moment, batch, growth, proposal, max(0, moment - self.batching.last_change))
        return min(proposal_of(self.batching.policy, state), self.batching.highest)

    def first_time(self, asked: float, early: int, late: int, batch: int, proposal: float) -> int:
        """The first moment in (early, late] at which the policy proposes as much as at `late`, by bisection; `late` if it is constant."""
        while asked > proposal and late - early > 1:
            middle = (early + late) // 2
            early, late = (early, middle) if self.proposal(middle, batch, proposal) >= asked else (middle, late)
        return late

    # ---- what is due ---------------------------------------------------------------------------------------------------

    def firings(self, every_kimg: float | None, stretches: Sequence[Stretch], start_kimg: float = 0.0) -> Times:
        """When something periodic is due from now on: after the updates that pass a multiple of it, counted from its start."""
        if every_kimg is None:
            return np.array([], int)
        every, offset, now, before = clock.images(every_kimg), round(start_kimg * 1000), self.run.nimg, self.run.previous_nimg
        times = [np.array([now] if clock.periods_from(start_kimg, every_kimg, before, now) else [], int)]
        for start, stop, batch in stretches:
            first = offset + max(0, (start - offset) // every + 1) * every  # the first multiple after the start of the stretch
            if every > batch:
                passed = np.arange(first, stop + 1, every)
                times.append(start + -(-(passed - start) // batch) * batch)
            else:  # every update passes at least one
                times.append(np.arange(start + max(1, -(-(first - start) // batch)) * batch, stop + 1, batch))
        return np.unique(np.concatenate(times))

    def weights_at(self, times: Times) -> int:
        """How many weights these moments deal with: the live ones, and every average that has started by then."""
        bank, now = self.players.bank, self.run.nimg
        started = {*bank.started()}
        later = [bank[name].averager.start_kimg * 1000 for name in bank if name not in started]
        return len(times) * (1 + len(started)) + sum(int(np.sum((times > now) & (times >= start))) for start in later)

    def snapshots(self, stretches: Sequence[Stretch], last: Times) -> int:
        """How many snapshots of power averages are still to be written."""
        rules = [self.players.bank[name].averager for name in self.players.bank]
        kept = [rule.snapshot_every_kimg for rule in rules if rule.snapshot_every_kimg is not None and rule.exponent is not None]
        return sum(int(np.sum(np.union1d(self.firings(every, stretches), last) > 0)) for every in kept)

    # ---- the orbit ----------------------------------------------------------------------------------------------------

    def recordings(self, times: Times, swaps: Times, stretches: Sequence[Stretch]) -> list[dict[str, Any]]:
        """The heads of the orbit's recordings that are still to come, as `OrbitRecorder.heads` has those of the past.

        Args:
            times: at which recordings are due.
            swaps: just before and just after which the weights are recorded as well.
        """
        past, tail = self.orbit.heads, self.context.config.optim.lr_tail
        last: Mapping[str, Any] = past[-1] if past else {"nimg": -1, "lr": {"g": 1.0, "d": 1.0}}
        batch_at = lambda moment: next((b for _, stop, b in stretches if moment <= stop), self.batching.batch_size)  # noqa: E731

        def factor(key: str, moment: int) -> float:
            """What the rate of a player is multiplied by in the update that ends at a moment."""
            start, rate = max(0, moment - batch_at(moment)), getattr(self.context.config.optim, f"lr_{key}")
            return tail.multiplier(start, moment) * (rate.at(start) if isinstance(rate, Schedule) else 1.0)

        before = {key: factor(key, last["nimg"]) or 1.0 for key in last["lr"]}
        found = []
        for moment in map(int, np.union1d(times, swaps)):
            rates = {key: rate * factor(key, moment) / before[key] for key, rate in last["lr"].items()}
            head = {"nimg": moment, "batch_size": batch_at(moment), "lr": rates}
            found += [head] if moment > last["nimg"] else []  # at most one per moment
            found += [{**head, "batch_size": batch_at(moment + 1), "swap": True}] if moment in swaps else []
        return found

    def orbit_pictures(self, evaluations: Times, recordings: Sequence[Mapping[str, Any]]) -> int:
        """How many evaluations draw the orbit: from the first on by which there are enough recordings without a jump."""
        if self.context.costs.per_unit(ORBIT_PICTURES) is not None:  # there were enough already
            return len(evaluations)
        heads, counts = [*self.orbit.heads, *recordings], Counter[int]()
        for head, regime in zip(heads, map(int, number_regimes(heads))):
            counts[regime] += 1
            if counts[regime] >= FEWEST_RECORDINGS:
                return int(np.sum(evaluations >= head["nimg"]))
        return 0

    # ---- swaps ---------------------------------------------------------------------------------------------------------

    def swap_times(self) -> list[int]:
        """The moments that ask for a swap before the end, as the configuration has them; one that is due now is now."""
        swap, now = self.context.config.swap, self.run.nimg
        if swap.source is None or self.run.done:
            return []
        every, start = clock.images(swap.every_kimg), round(swap.start_kimg * 1000)
        first = start + max(0, (now - start) // every + 1) * every
        due_now = self.swapper.swaps_now(self.run.previous_nimg, now, more=True)
        return [*([now] if due_now else []), *range(first, self.run.total, every)]

    def swaps(self, stretches: Sequence[Stretch], end: int) -> Times:
        """When a swap will take place: after an update that is not the last."""
        asked = self.swap_times()
        return np.unique([moment for moment in (update_at(one, stretches, self.run.nimg) for one in asked) if moment < end]).astype(int)

    def scores_of_swaps(self, swaps: Times, evaluations: Times, end: int, stretches: Sequence[Stretch]) -> int:
        """How often the live weights are scored for swaps: before, right after, and `after_kimg` later, unless an evaluation has it."""
        known, records = {*evaluations.tolist()}, self.swapper.records
        after = clock.images(self.context.config.swap.after_kimg)
        waiting = [records[-1]["nimg"]] if records and "after" not in records[-1]["scores"] else []
        moments = [*waiting, *swaps.tolist()]
        count = sum(1 + (moment not in known) for moment in swaps.tolist())  # at the swap, and before it
        for moment, following in zip(moments, [*moments[1:], end]):
            settled = min(update_at(moment + after, stretches, self.run.nimg), following)
            count += settled not in known and settled != following  # the next swap scores the same weights before it
        return count


def update_at(moment: int, stretches: Sequence[Stretch], now: int) -> int:
    """Images seen after the update that passes a moment; now if it has passed, and the end if it never will."""
    if moment <= now:
        return now
    for start, stop, batch in stretches:
        if moment <= stop:
            return start + -(-(moment - start) // batch) * batch
    return stretches[-1][1] if stretches else now
