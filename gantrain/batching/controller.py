"""The controller: makes of what a policy proposes a batch that can be had, and remembers it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

from gantrain.batching.noise_scale import NoiseMonitor
from gantrain.batching.state import BatchState
from gantrain.errors import UserError


class BatchController:
    """The batch of a run: B = micro_batch b x processes W x rounds k. While it runs b and W stay; B grows by k and never shrinks.

    A run that is resumed may have another W. It holds its b where whole rounds of it still give B, and else takes the largest
    b below that does; resumed again on its old W it has its old b back.

    Args:
        policy: proposes; a dataclass from `BATCH_POLICIES`.
        world: number of processes.
        noise: measures the noise scale that the policy may go by.
        agree: the main process's value of something, on every process.
        resumes: a saved batch will be loaded, which has fitted other processes: the configured one need not fit these, and
            there are no rounds before.

    Attributes:
        micro_batch, rounds, batch_size: as they are now.
        notes: what a person should know of batches that are named and cannot be had.

    Raises:
        UserError: no whole number of rounds gives the policy's first batch, or its largest, on this many processes.
    """

    def __init__(
        self, policy: Any, world: int, noise: NoiseMonitor | None = None, agree: Callable[[Any], Any] = lambda value: value, resumes: bool = False
    ):  # fmt: skip
        self.policy, self.world, self.noise, self.agree = policy, world, noise, agree
        if hasattr(policy, "require_fit"):
            policy.require_fit()
        self.reads_noise = noise is not None and getattr(policy, "reads_noise", True)
        first = int(min(self._proposed(BatchState(0, 0)), self.highest))
        configured = getattr(policy, "micro_batch", None)
        self.resumes = resumes
        self.micro_batch, self.rounds = (
            (configured or first, 0) if resumes else rounds_of(first, configured, world)
        )  # `load` says what they are
        self.first_micro_batch = configured or self.micro_batch
        self.batch_size = first
        self.proposal, self.last_change = float(first), 0
        self.notes: list[str] = []
        if not resumes:
            self._look_at_named(refuse=True)

    def ask(self, nimg: int, growth: float = 1.0) -> dict[str, Any] | None:
        """Ask the policy what the next update shall have; the fields of an event that tells of a growth, if there is one.

        A proposal is cut to `max_batch` and rounded down to a whole number of rounds, never below the batch there is. What
        the clock alone decides, every process decides alike; what a measurement or a swap has part in, the main process.
        Every process must ask at the same time.

        Args:
            nimg: images seen.
            growth: what a swap at this moment asks for.
        """
        checked = self.reads_noise and self.noise.check()
        checks = tuple(self.noise.checks) if self.reads_noise else ()
        state = BatchState(nimg, self.batch_size, growth, self.proposal, nimg - self.last_change, checks, checked)
        asked = self._proposed(state)
        reason = (
            self.policy.reason(state)
            if asked > self.proposal and hasattr(self.policy, "reason")
            else f"{type(self.policy).__name__} proposes it"
        )
        if checked or growth != 1.0:
            asked, reason = self.agree((asked, reason))
        risen, self.proposal = min(asked, self.highest) > self.proposal, min(asked, self.highest)
        if risen:  # if only within a round: what comes next is decided on what is measured from here on
            self.last_change = nimg
            if self.noise:
                self.noise.decided()
        was, now = self.batch_size, max(self.batch_size, self.whole_rounds(self.proposal))
        if now == was:
            return None
        self.batch_size, self.rounds = now, now // (self.micro_batch * self.world)
        return {
            "from": was,
            "to": now,
            "rounds": self.rounds,
            "reason": reason if round(asked) <= now else f"{reason}, cut to max_batch and whole rounds",
        }

    def weights_jumped(self) -> None:
        """An average has taken the place of the live weights: what was measured before tells nothing of them.

        Lookahead's small steps back are part of how the weights move, and too frequent to start anew at each.
        """
        if self.noise:
            self.noise.forget()

    def _proposed(self, state: BatchState) -> float:
        """What the policy proposes.

        Raises:
            UserError: that is no number of images.
        """
        asked = self.policy.propose(state)
        if isinstance(asked, bool) or not isinstance(asked, numbers.Real) or not 1 <= asked < float("inf"):
            raise UserError(f"batching: {type(self.policy).__name__}.propose must return a number of images, at least 1, got {asked!r}")
        return float(asked)

    def _look_at_named(self, refuse: bool) -> None:
        """Refuse, where asked to, a largest batch that is no number of whole rounds on these processes; say of others what they will be."""
        self.notes = []
        if not getattr(self.policy, "grows", True):
            return
        rounds = f"rounds of {self.micro_batch} images x {self.world} process{'es' if self.world > 1 else ''}"
        largest = getattr(self.policy, "max_batch", None)
        named = self.policy.named() if hasattr(self.policy, "named") else {"max_batch": [] if largest is None else [largest]}
        for key, batches in named.items():
            for batch in batches:
                lower = self.whole_rounds(batch)
                if lower == batch:
                    continue
                if key == "max_batch" and refuse:
                    raise UserError(
                        f"batching.max_batch: {batch} cannot be had in {rounds}; choose {lower} or {lower + self.micro_batch * self.world}"
                    )
                self.notes.append(f"batching.{key}: {batch} cannot be had in {rounds}; the batch will be {lower}")

    @property
    def highest(self) -> float:
        """What the batch never exceeds."""
        if hasattr(self.policy, "highest"):
            return self.policy.highest
        highest = getattr(self.policy, "max_batch", None)
        return float("inf") if highest is None else highest

    @property
    def can_grow(self) -> bool:
        """Whether there is room for another round."""
        return self.batch_size + self.micro_batch * self.world <= self.highest

    @property
    def lr_scale(self) -> float:
        """What growth so far multiplies the learning rates by."""
        return self.policy.lr_scale(self.batch_size) if hasattr(self.policy, "lr_scale") else 1.0

    def whole_rounds(self, images: float) -> int:
        """The largest batch of whole rounds within so many images."""
        round_size = self.micro_batch * self.world
        return math.floor(images / round_size + 1e-9) * round_size

    def numbers(self) -> dict[str, int]:
        """The batch for a line of the record."""
        return {"batch/size": self.batch_size, "batch/rounds": self.rounds, "batch/micro_batch": self.micro_batch}

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values."""
        noise = self.noise.state() if self.noise else None
        return {
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch,
            "first_micro_batch": self.first_micro_batch,
            "proposal": self.proposal,
            "last_change": self.last_change,
            "noise": noise,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on with the saved batch.

        Raises:
            UserError: it does not divide over the processes that there are now.
        """
        self.first_micro_batch = state["first_micro_batch"]
        self.micro_batch, self.rounds = elastic_rounds_of(state["batch_size"], self.first_micro_batch, self.world)
        self.batch_size, self.proposal, self.last_change = state["batch_size"], state["proposal"], state["last_change"]
        self._look_at_named(refuse=False)
        if self.noise and state["noise"]:
            self.noise.load(state["noise"])


def elastic_rounds_of(batch_size: int, micro_batch: int, world: int) -> tuple[int, int]:
    """(micro_batch b, rounds k) with batch_size = b x world x k and the largest b that is at most `micro_batch`.

    Raises:
        UserError: the batch does not divide over the processes.
    """
    if batch_size % world:
        fitting = [w for w in range(1, batch_size + 1) if batch_size % w == 0]
        near = sorted(fitting, key=lambda w: (abs(w - world), w))[:2]
        raise UserError(
            f"batching.batch_size: the run's batch of {batch_size} does not divide over {world} processes; resume it on {' or '.join(map(str, sorted(near)))}"
        )
    share = batch_size // world
    b = next(b for b in range(min(micro_batch, share), 0, -1) if share % b == 0)
    return b, share // b


def rounds_of(batch_size: int, micro_batch: int | None, world: int) -> tuple[int, int]:
    """(micro_batch b, rounds k) with batch_size = b x world x k.

    Raises:
        UserError: no whole number of rounds gives this batch on this many processes.
    """
    if micro_batch is None:
        if batch_size % world:
            raise UserError(f"batching.batch_size: {batch_size} does not divide over {world} processes; choose a multiple of {world}")
        return batch_size // world, 1
    if batch_size % (micro_batch * world):
        raise UserError(
            f"batching.micro_batch: {micro_batch} images x {world} processes does not divide batch_size {batch_size};"
            f" choose a micro_batch that divides {batch_size // world if batch_size % world == 0 else batch_size}"
            + ("" if batch_size % world == 0 else f" and a batch_size that is a multiple of {world}")
        )
    return micro_batch, batch_size // (micro_batch * world)
