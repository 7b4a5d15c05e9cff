"""The guard: detects that training has gone wrong, reports how, and knows when it was last healthy.

After every update the processes exchange a few numbers, the `Pulse`: how many of them found a loss, gradient or weight that
is not finite, and how many were asked to stop. They are read one update later, when the device has already computed them, so
nothing waits. Before anything is saved or scored (checkpoints, snapshots, evaluations, swaps), the latest ones are waited for.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from gantrain.config.sections import Guard
from gantrain.errors import counted
from gantrain.interruption import SIGNALS, Interruption
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.score_names import better_when_higher, can_be_best
from gantrain.training.context import Context
from gantrain.training.keeper import Keeper
from gantrain.training.results import require_scalar
from gantrain.training.run_state import RunState

WATCHED = ("loss/d", "loss/g", "loss/penalty", "loss/penalty_g", "grad_norm/d", "grad_norm/g", "weights/d", "weights/g")
SKIPS_IN_A_ROW = 32  # fp16: the scaler halves the scale at every step that it skips; after so many, no scale will work


class Trouble(Exception):
    """Training has gone wrong. Raised on all processes at once.

    Args:
        kind: "nonfinite", "saturation" or "worse".
        nimg: images seen when it was detected.
        healthy: images seen when training was last known to be healthy.
        words: what was detected, as text.
        evidence: the same as JSON values.
    """

    def __init__(self, kind: str, nimg: int, healthy: int, words: str, evidence: Mapping[str, Any]):
        super().__init__(words)
        self.kind, self.nimg, self.healthy, self.words, self.evidence = kind, nimg, healthy, words, dict(evidence)


@dataclass
class Beat:
    """What all processes together found in one update.

    Attributes:
        before, nimg: images seen before and after it.
        nonfinite: in how many processes each watched value was not finite; values that were finite everywhere are left out.
        asked: the signal that asked a process to stop, if any.
    """

    before: int
    nimg: int
    nonfinite: dict[str, int]
    asked: signal.Signals | None


class Pulse:
    """Sends every update's few numbers to all processes and to the host without waiting for them."""

    def __init__(self, accelerator: Accelerator):
        self.world, self.device = accelerator.num_processes, accelerator.device
        self._sent: deque[tuple[int, int, Any, Tensor, Any]] = deque()

    def send(self, before: int, nimg: int, values: Mapping[str, Tensor], asked: signal.Signals | None) -> None:
        """Send an update's watched values, scalars on the device. Every process must call it at the same time."""
        zero = torch.zeros((), device=self.device)
        flags = [(~torch.isfinite(values[name].detach())).float() if name in values else zero for name in WATCHED]
        requests = (
            torch.tensor([float(asked == number) for number in SIGNALS]).to(self.device, non_blocking=True)
            if asked
            else zero.expand(len(SIGNALS))
        )
        numbers = torch.cat([torch.stack(flags), requests])
        work = torch.distributed.all_reduce(numbers, async_op=True) if self.world > 1 else None
        if self.device.type != "cuda":
            self._sent.append((before, nimg, work, numbers, None))
            return
        if work:
            work.wait()  # the stream waits, not the host
        host = torch.empty(numbers.shape, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._sent.append((before, nimg, None, host, arrived))

    def receive(self, all: bool = False) -> list[Beat]:
        """Return what has not been received yet, of all updates but the latest, or of that one too if `all`."""
        beats = []
        while len(self._sent) > (0 if all else 1):
            before, nimg, work, numbers, arrived = self._sent.popleft()
            if work:
                work.wait()
            if arrived:
                arrived.synchronize()
            found = [int(n) for n in numbers.tolist()]
            asked = next((number for number, n in zip(SIGNALS, found[len(WATCHED) :]) if n), None)
            beats.append(Beat(before, nimg, {name: n for name, n in zip(WATCHED, found) if n}, asked))
        return beats


@dataclass
class Best:
    """The best value of a score so far."""

    value: float
    nimg: int


@dataclass
class Watch:
    """Judges what a run measures. Its decisions are the same on every process, because its inputs are.

    Attributes:
        settings: the `guard` section.
        names: scores whose best is kept.
        fp16: whether the loss scaler, which finds its scale by overflowing, may make gradients not finite.
        silence: loss of an uninformative D (all logits 0).
        lr_scale, growth: products of all rollbacks' factors for the learning rates and for the batch.
        skipped: images of the stream that rollbacks have skipped.
        rollbacks: number of rollbacks.
        attempts: rollbacks because of the current obstacle.
        obstacle: images seen when it was detected.
        best: the best value of every named score so far, including abandoned paths.
        saturated_since: images seen when D's loss fell below the bound; None while it is above.
        scored_at: images seen at the last evaluation.
        worse_since: images seen at the last evaluation before the score got worse; None while it is healthy.
        worse: consecutive evaluations with a score beyond the bound.
        skips: consecutive updates with gradients that are not finite.
        warned: kinds of trouble that were warned about and still persist.
    """

    settings: Guard
    names: tuple[str, ...]
    fp16: bool = False
    silence: float = 0.0
    lr_scale: float = 1.0
    growth: float = 1.0
    skipped: int = 0
    rollbacks: int = 0
    attempts: int = 0
    obstacle: int = -1
    best: dict[str, Best] = field(default_factory=dict)
    saturated_since: int | None = None
    scored_at: int = 0
    worse_since: int | None = None
    worse: int = 0
    skips: int = 0
    warned: set[str] = field(default_factory=set)

    COUNTED: ClassVar[tuple[str, ...]] = ("lr_scale", "growth", "skipped", "rollbacks", "attempts", "obstacle")
    MEASURED: ClassVar[tuple[str, ...]] = ("saturated_since", "scored_at", "worse_since", "worse", "skips")

    def beat(self, beat: Beat, world: int) -> Trouble | None:
        """Judge what an update found."""
        gradients = {name for name in beat.nonfinite if name.startswith("grad_norm/")}
        self.skips = self.skips + 1 if gradients else 0
        found = beat.nonfinite
        if self.fp16 and self.skips < SKIPS_IN_A_ROW:
            found = {name: n for name, n in found.items() if name not in gradients}
        if not found:
            self.warned.discard("nonfinite")
            return None
        where = f" on {max(found.values())} of {world} processes" if world > 1 else ""
        words = f"{', '.join(found)} not finite in the update to {beat.nimg / 1000:g} kimg{where}"
        return self._trouble("nonfinite", beat.nimg, beat.before, words, {"nonfinite": found, "update_nimg": beat.nimg, "processes": world})

    def losses(self, before: int, nimg: int, loss_d: float) -> Trouble | None:
        """Judge D's mean loss over the images from `before` to `nimg`."""
        s = self.settings
        bound = s.saturation * self.silence
        if not loss_d < bound:
            self.saturated_since = None
            self.warned.discard("saturation")
            return None
        if self.saturated_since is None:
            self.saturated_since = before
        if nimg - self.saturated_since < s.saturation_kimg * 1000:
            return None
        since = self.saturated_since
        words = f"loss/d below {bound:.3g} since {since / 1000:g} kimg (now {loss_d:.3g}; an uninformative D has {self.silence:.3g})"
        words += ": D has won"
        return self._trouble("saturation", nimg, since, words, {"loss/d": loss_d, "bound": bound, "since": since})

    def scores(self, nimg: int, values: Mapping[str, float]) -> tuple[list[str], Trouble | None]:
        """Judge an evaluation.

        Args:
            nimg: images seen when it was made.
            values: scores by full key, such as eval/ema/fid.

        Returns:
            (names of the scores that are now at their best, what is wrong with the watched score).
        """
        improved = []
        for name in self.names:
            value = values.get(name, math.nan)
            if can_be_best(nimg) and math.isfinite(value) and (name not in self.best or better(name, value, self.best[name].value)):
                self.best[name] = Best(value, nimg)
                improved.append(name)
        before, self.scored_at = self.scored_at, nimg
        trouble = self._judge(nimg, before, self.settings.score, values)
        return improved, trouble

    def _judge(self, nimg: int, before: int, name: str | None, values: Mapping[str, float]) -> Trouble | None:
        """Judge the watched score; `before` is the images seen at the evaluation before this one."""
        if name is None or name not in values or name not in self.best:
            return None
        best, value = self.best[name], values[name]
        factor = self.settings.factor
        bound = best.value / factor if better_when_higher(name) else abs(best.value) * factor  # KID can be negative
        if math.isfinite(value) and not better(name, bound, value):
            self.worse, self.worse_since = 0, None
            self.warned.discard("worse")
            return None
        self.worse, self.worse_since = self.worse + 1, before if self.worse_since is None else self.worse_since
        if self.worse < self.settings.evaluations:
            return None
        sign = "below" if better_when_higher(name) else "above"
        count = f"{counted(self.worse, 'evaluation')} in a row"
        words = f"{name} {value:.4g} is {sign} {bound:.4g}, {count}; the best was {best.value:.4g} at {best.nimg / 1000:g} kimg"
        evidence = {"score": name, "value": value, "bound": bound, "best": best.value, "best_nimg": best.nimg, "evaluations": self.worse}
        return self._trouble("worse", nimg, self.worse_since, words, evidence)

    def _trouble(self, kind: str, nimg: int, healthy: int, words: str, evidence: dict[str, Any]) -> Trouble | None:
        """Build a trouble; None if it only calls for a warning, which was given already."""
        if getattr(self.settings, f"on_{kind}") == "warn":
            if kind in self.warned:
                return None
            self.warned.add(kind)
        return Trouble(kind, nimg, healthy, words, evidence)

    @property
    def well_until(self) -> int | None:
        """Images seen when training was last known to be healthy, or None for now.

        A rollback may return to that time, so the newest checkpoint that is not later must be kept. Scores are only known at evaluations,
        so the checkpoint of the previous evaluation is kept until the next one. D's loss is checked at every checkpoint.
        """
        s = self.settings
        since = [self.saturated_since] if s.on_saturation == "rollback" else []
        since += [self.scored_at if self.worse_since is None else self.worse_since] if s.on_worse == "rollback" else []
        return min((at for at in since if at is not None), default=None)

    def rolled_back(self, nimg: int, to: int) -> None:
        """Count a rollback from `nimg` images to `to`. One that returns to after the obstacle starts a new count of attempts."""
        self.attempts = 1 if to >= self.obstacle else self.attempts + 1
        self.rollbacks += 1
        self.obstacle = nimg if self.attempts == 1 else max(nimg, self.obstacle)
        self.skipped += nimg - to
        self.lr_scale *= self.settings.lr_scale
        self.growth *= self.settings.growth

    def forget_scores(self) -> None:
        """Forget what earlier scores have shown: later ones are not comparable with them."""
        self.best, self.worse, self.worse_since = {}, 0, None

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values."""
        best = [[name, one.value, one.nimg] for name, one in self.best.items()]
        return {**{name: getattr(self, name) for name in (*self.COUNTED, *self.MEASURED)}, "best": best, "warned": sorted(self.warned)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore everything from a state."""
        for name in (*self.COUNTED, *self.MEASURED):
            setattr(self, name, state[name])
        self.best = {name: Best(value, nimg) for name, value, nimg in state["best"] if can_be_best(nimg)}  # older runs may have one
        self.warned = set(state["warned"])

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Restore what was measured from a checkpoint's state; keep the counts of rollbacks and the best scores."""
        here = self.state()
        self.load({**state, **{name: here[name] for name in (*self.COUNTED, "best")}})

    def count(self, state: Mapping[str, Any]) -> None:
        """Restore the counts of rollbacks and the best scores from a state; keep what was measured."""
        here = self.state()
        self.load({**here, **{name: state[name] for name in (*self.COUNTED, "best")}})


def better(name: str, one: float, other: float) -> bool:
    """Whether a score is better than another."""
    return one > other if better_when_higher(name) else one < other


class Sentry:
    """Receives what all processes have found, and raises or warns.

    Args:
        context: of the run.
        run: its clock.
        keeper: asked, at every `listen`, whether its last checkpoint was written.
        interruption: knows whether this process was asked to stop.

    Attributes:
        watch: the judge.
        pulse: carries every update's numbers.
        stopping: the signal that asked some process to stop, or None.
    """

    def __init__(self, context: Context, run: RunState, keeper: Keeper, interruption: Interruption):
        self.context, self.run, self.keeper, self.interruption = context, run, keeper, interruption
        config, nothing = context.config, torch.zeros(1)
        silence = config.loss.discriminator(nothing, nothing)
        require_scalar(silence, config.loss, "discriminator")
        watched = [config.guard.score] if config.guard.score else []
        self.watch = Watch(
            config.guard,
            tuple(dict.fromkeys([*config.best_scores(), *watched])),
            fp16=config.mixed_precision == "fp16",
            silence=float(silence),
        )
        self.pulse = Pulse(context.accelerator)
        self.stopping: signal.Signals | None = None

    def asked_to_stop(self) -> bool:
        """Whether this process was asked to stop."""
        return self.interruption.asked is not None

    def send(self, values: Mapping[str, Tensor]) -> None:
        """Send the last update's watched values to all processes."""
        self.pulse.send(self.run.previous_nimg, self.run.nimg, values, self.interruption.asked)

    def listen(self, all: bool = False) -> None:
        """Receive what all processes found and whether one was asked to stop, for all updates but the latest, or for `all`.

        Raises:
            Trouble: something is not finite, and the settings ask for more than a warning.
            NotWritten: a checkpoint could not be written, and the settings then end the run.
        """
        self.keeper.collect(self.run.nimg)
        if self.context.world == 1:
            self.stopping = self.interruption.asked
        for beat in self.pulse.receive(all):
            self.stopping = self.stopping or beat.asked
            self.raise_or_warn(self.watch.beat(beat, self.context.world))

    def check_losses(self, since: int, loss_d: float) -> None:
        """Judge D's mean loss since `since` images.

        Raises:
            Trouble: it has been too low for too long, and the settings ask for more than a warning.
        """
        self.raise_or_warn(self.watch.losses(since, self.run.nimg, loss_d))

    def raise_or_warn(self, trouble: Trouble | None) -> None:
        """Warn about a trouble if the settings ask for a warning; raise it otherwise."""
        if trouble is None:
            return
        if self.action(trouble) != "warn":
            raise trouble
        tracker = self.context.tracker
        tracker.tell(self.run.nimg, "warning", kind=trouble.kind, words=trouble.words, **trouble.evidence)

    def action(self, trouble: Trouble) -> str:
        """The configured action for a trouble: "stop", "rollback" or "warn"."""
        return str(getattr(self.watch.settings, f"on_{trouble.kind}"))

    def state(self) -> dict[str, Any]:
        """The judge's state, as JSON values."""
        return {"guard": self.watch.state()}

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore the judge; at a rollback, only what it has measured."""
        if rolls_back:
            self.watch.go_back(snapshot.state["guard"])
        else:
            self.watch.load(snapshot.state["guard"])
