"""The guard: sees a training go wrong, says by what, and knows where it was last well.

Every update sends a few numbers to all processes, `Pulse`: how many of them found a loss, gradient or weight that is not
finite, and how many were asked to stop. They are read an update later, when the device has long come to them, so that nothing
waits; whatever is kept or scored (checkpoints, snapshots, evaluations, swaps) first waits for the last of them.
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
from gantrain.score_names import better_when_higher

WATCHED = ("loss/d", "loss/g", "loss/penalty", "grad_norm/d", "grad_norm/g", "weights/d", "weights/g")
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SKIPS_IN_A_ROW = 32  # fp16: its scaler halves the scale at each step that it skips; so many mean no scale will do


class Trouble(Exception):
    """A training that has gone wrong, on all processes at once.

    Args:
        kind: "nonfinite", "saturation" or "worse".
        nimg: images seen when it was noticed.
        healthy: images seen when all was well.
        words: what was seen.
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
        nonfinite: in how many processes each watched value was not finite; those that were everywhere are left out.
        asked: the signal that asked some process to stop.
    """

    before: int
    nimg: int
    nonfinite: dict[str, int]
    asked: signal.Signals | None


class Pulse:
    """Carries every update's few numbers to all processes and to the host, without waiting for them."""

    def __init__(self, accelerator: Accelerator):
        self.world, self.device = accelerator.num_processes, accelerator.device
        self._sent: deque[tuple[int, int, Any, Tensor, Any]] = deque()

    def send(self, before: int, nimg: int, values: Mapping[str, Tensor], asked: signal.Signals | None) -> None:
        """An update's watched values, scalars on the device. Every process must call it at the same time."""
        zero = torch.zeros((), device=self.device)
        flags = [(~torch.isfinite(values[name].detach())).float() if name in values else zero for name in WATCHED]
        told = (
            torch.tensor([float(asked == number) for number in STOPS]).to(self.device, non_blocking=True)
            if asked
            else zero.expand(len(STOPS))
        )
        numbers = torch.cat([torch.stack(flags), told])
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
        """Updates that have not been received yet, but for the last one unless `all`."""
        beats = []
        while len(self._sent) > (0 if all else 1):
            before, nimg, work, numbers, arrived = self._sent.popleft()
            if work:
                work.wait()
            if arrived:
                arrived.synchronize()
            found = [int(n) for n in numbers.tolist()]
            asked = next((number for number, n in zip(STOPS, found[len(WATCHED) :]) if n), None)
            beats.append(Beat(before, nimg, {name: n for name, n in zip(WATCHED, found) if n}, asked))
        return beats


@dataclass
class Best:
    """The best value of a score so far."""

    value: float
    nimg: int


@dataclass
class Watch:
    """Judges what a run measures of itself. Everything it decides is the same on every process, since what it is told is.

    Attributes:
        settings: the `guard` section.
        names: scores whose best is kept.
        fp16: whether gradients that are not finite are the loss scaler's way of finding its scale.
        silence: D's loss at logits 0.
        lr_scale, growth: products of all rollbacks' factors, on the learning rates and on the batch.
        skipped: images of the stream that rollbacks have left out.
        rollbacks: how many there were.
        attempts: at the obstacle in hand.
        obstacle: images seen where it was noticed.
        best: of every score named, so far, also on paths that were rolled back from.
        saturated_since: images seen where D's loss fell below the bound; None while it is above.
        worse_since: images seen at the last evaluation before the score rose; None while it is well.
        worse: evaluations in a row with a score beyond the bound.
        skips: updates in a row with gradients that are not finite.
        warned: kinds of trouble that were said and still last.
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
        """What an update found."""
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
        """D's mean loss over the images from `before` to `nimg`."""
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
        words = f"loss/d below {bound:.3g} since {since / 1000:g} kimg (now {loss_d:.3g}; a D that tells nothing has {self.silence:.3g}): D has won"
        return self._trouble("saturation", nimg, since, words, {"loss/d": loss_d, "bound": bound, "since": since})

    def scores(self, nimg: int, values: Mapping[str, float]) -> tuple[list[str], Trouble | None]:
        """(names that are at their best now, what is wrong with the watched one), of an evaluation by full key."""
        improved = []
        for name in self.names:
            value = values.get(name, math.nan)
            if math.isfinite(value) and (name not in self.best or better(name, value, self.best[name].value)):
                self.best[name] = Best(value, nimg)
                improved.append(name)
        name, before, self.scored_at = self.settings.score, self.scored_at, nimg
        if name not in values or name not in self.best:
            return improved, None
        best, value = self.best[name], values[name]
        bound = (
            best.value / self.settings.factor if better_when_higher(name) else abs(best.value) * self.settings.factor
        )  # KID goes below 0
        if math.isfinite(value) and not better(name, bound, value):
            self.worse, self.worse_since = 0, None
            self.warned.discard("worse")
            return improved, None
        self.worse, self.worse_since = self.worse + 1, before if self.worse_since is None else self.worse_since
        if self.worse < self.settings.evaluations:
            return improved, None
        sign = "below" if better_when_higher(name) else "above"
        count = f"{self.worse} evaluation{'s' if self.worse > 1 else ''} in a row"
        words = f"{name} {value:.4g} is {sign} {bound:.4g}, {count}; the best was {best.value:.4g} at {best.nimg / 1000:g} kimg"
        evidence = {"score": name, "value": value, "bound": bound, "best": best.value, "best_nimg": best.nimg, "evaluations": self.worse}
        return improved, self._trouble("worse", nimg, self.worse_since, words, evidence)

    def _trouble(self, kind: str, nimg: int, healthy: int, words: str, evidence: dict[str, Any]) -> Trouble | None:
        """A trouble, unless it is to be said only and was said."""
        if getattr(self.settings, f"on_{kind}") == "warn":
            if kind in self.warned:
                return None
            self.warned.add(kind)
        return Trouble(kind, nimg, healthy, words, evidence)

    @property
    def well_until(self) -> int | None:
        """Images seen when all was known to be well, where a rollback may lead to: a checkpoint of no later is still needed.

        A score tells at an evaluation only that it is worse: until then the checkpoint of the one before is held. D's loss is
        looked at whenever a checkpoint is written.
        """
        s = self.settings
        since = [self.saturated_since] if s.on_saturation == "rollback" else []
        since += [self.scored_at if self.worse_since is None else self.worse_since] if s.on_worse == "rollback" else []
        return min((at for at in since if at is not None), default=None)

    def rolled_back(self, nimg: int, to: int) -> None:
        """Count a rollback from `nimg` images to `to`. An obstacle is behind once a rollback leads to beyond it."""
        self.attempts = 1 if to >= self.obstacle else self.attempts + 1
        self.rollbacks += 1
        self.obstacle = nimg if self.attempts == 1 else max(nimg, self.obstacle)
        self.skipped += nimg - to
        self.lr_scale *= self.settings.lr_scale
        self.growth *= self.settings.growth

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values."""
        best = [[name, one.value, one.nimg] for name, one in self.best.items()]
        return {**{name: getattr(self, name) for name in (*self.COUNTED, *self.MEASURED)}, "best": best, "warned": sorted(self.warned)}

    def load(self, state: Mapping[str, Any]) -> None:
        for name in (*self.COUNTED, *self.MEASURED):
            setattr(self, name, state[name])
        self.best = {name: Best(value, nimg) for name, value, nimg in state["best"]}
        self.warned = set(state["warned"])

    def go_back(self, state: Mapping[str, Any]) -> None:
        """What was measured, as of a checkpoint; what was counted of rollbacks stays, and so do the best scores."""
        here = self.state()
        self.load({**state, **{name: here[name] for name in (*self.COUNTED, "best")}})

    def count(self, state: Mapping[str, Any]) -> None:
        """What was counted of rollbacks, and the best scores, as of a state."""
        here = self.state()
        self.load({**here, **{name: state[name] for name in (*self.COUNTED, "best")}})


def better(name: str, one: float, other: float) -> bool:
    """Whether a score is better than another."""
    return one > other if better_when_higher(name) else one < other
