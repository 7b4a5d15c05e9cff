"""The controller: turns the proposals of a policy into batches of whole rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gantrain.batching.noise_scale import NoiseMonitor
from gantrain.batching.state import BATCH_POLICY, BatchPolicy, BatchState, proposal_of
from gantrain.errors import UserError, counted


class BatchController:
    """The batch of a run: B = micro_batch b x processes W x rounds k. During a run b and W are constant; B grows with k and never
    shrinks.

    A resumed run may have another W. It keeps b if a whole number of rounds still gives B, and otherwise takes the largest smaller
    b for which one does. Resumed on its old W, it returns to its old b.

    Args:
        policy: one of `BATCH_POLICIES`, or any object with `propose(state)`.
        world: number of processes.
        noise: measures the noise scale that the policy may use.
        agree: takes a value and returns the main process's value, on every process.
        resumes: whether `load` will restore a saved batch. The configured batch then need not be whole rounds on these processes,
            and there are no rounds until `load`.

    Attributes:
        micro_batch, rounds, batch_size: the current values.
        notes: messages about configured batches that are not whole rounds.

    Raises:
        UserError: no whole number of rounds gives the policy's first batch, or its largest, on this many processes.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        world: int,
        noise: NoiseMonitor | None = None,
        agree: Callable[[Any], Any] = lambda value: value,
        resumes: bool = False,
    ):
        self.policy, self.world, self.noise, self.agree = BATCH_POLICY.adapt(policy), world, noise, agree
        self.policy.require_fit()
        # A policy that does not say whether it uses the noise scale gets it.
        self.checked_noise = None if self.policy.reads_noise is False else noise
        first, configured = self.policy.first_batch, self.policy.micro_batch
        self.resumes = resumes
        self.micro_batch, self.rounds = (configured or first, 0) if resumes else rounds_of(first, configured, world)  # `load` sets both
        self.first_micro_batch = configured or self.micro_batch
        self.batch_size = first
        self.proposal, self.last_change = float(first), 0
        self.notes: list[str] = []
        if not resumes:
            self._check_named(refuse=True)

    def ask(self, nimg: int, growth: float = 1.0) -> dict[str, Any] | None:
        """Ask the policy for the batch of the next update; returns the fields of a growth event, or None without growth.

        A proposal is limited to `max_batch` and rounded down to a whole number of rounds, never below the current batch. All
        processes decide alike on what depends on the clock alone; the main process decides if a measurement or a swap is
        involved. All processes must call this at the same time.

        Args:
            nimg: images seen.
            growth: factor that a swap at this moment asks for.
        """
        checked = self.checked_noise is not None and self.checked_noise.check()
        checks = tuple(self.checked_noise.checks) if self.checked_noise is not None else ()
        state = BatchState(nimg, self.batch_size, growth, self.proposal, nimg - self.last_change, checks, checked)
        asked = proposal_of(self.policy, state)
        reason = self.policy.reason(state) if asked > self.proposal else f"{type(self.policy).__name__} proposes it"
        if checked or growth != 1.0:
            asked, reason = self.agree((asked, reason))
        risen, self.proposal = min(asked, self.highest) > self.proposal, min(asked, self.highest)
        if risen:  # even if only within a round: the next decision uses measurements from here on
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
        """An average has replaced the live weights: earlier measurements say nothing about them.

        Not for Lookahead: its small steps back are part of the motion of the weights, and too frequent to start over at each.
        """
        if self.noise:
            self.noise.forget()

    def _check_named(self, refuse: bool) -> None:
        """Note configured batches that are not whole rounds on these processes; with `refuse`, raise for `max_batch`."""
        self.notes = []
        if not self.policy.grows:
            return
        rounds = f"rounds of {self.micro_batch} images x {counted(self.world, 'process', 'es')}"
        for key, batches in self.policy.named().items():
            for batch in batches:
                lower = self.whole_rounds(batch)
                if lower == batch:
                    continue
                if key == "max_batch" and refuse:
                    raise UserError(
                        f"batching.max_batch: {batch} is not a whole number of {rounds};"
                        f" use {lower} or {lower + self.micro_batch * self.world}"
                    )
                self.notes.append(f"batching.{key}: {batch} is not a whole number of {rounds}; the batch will be {lower}")

    @property
    def highest(self) -> float:
        """The upper limit of the batch."""
        return self.policy.highest

    @property
    def can_grow(self) -> bool:
        """Whether the batch can grow by another round."""
        return self.batch_size + self.micro_batch * self.world <= self.highest

    @property
    def lr_scale(self) -> float:
        """The factor of both learning rates for the growth so far."""
        return self.policy.lr_scale(self.batch_size)

    def whole_rounds(self, images: float) -> int:
        """The largest batch of whole rounds that has at most `images` images."""
        round_size = self.micro_batch * self.world
        return math.floor(images / round_size + 1e-9) * round_size

    def numbers(self) -> dict[str, int]:
        """The batch as entries for a line of the record."""
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
        """Continue with the saved batch.

        Raises:
            UserError: it cannot be split evenly over the current number of processes.
        """
        self.first_micro_batch = state["first_micro_batch"]
        self.micro_batch, self.rounds = elastic_rounds_of(state["batch_size"], self.first_micro_batch, self.world)
        self.batch_size, self.proposal, self.last_change = state["batch_size"], state["proposal"], state["last_change"]
        self._check_named(refuse=False)
        if self.noise and state.get("noise"):
            self.noise.load(state["noise"])


def elastic_rounds_of(batch_size: int, micro_batch: int, world: int) -> tuple[int, int]:
    """(micro_batch b, rounds k) with batch_size = b x world x k and the largest b that is at most `micro_batch`.

    Raises:
        UserError: the batch cannot be split evenly over the processes.
    """
    if batch_size % world:
        fitting = [w for w in range(1, batch_size + 1) if batch_size % w == 0]
        near = sorted(fitting, key=lambda w: (abs(w - world), w))[:2]
        raise UserError(
            f"batching.batch_size: the run's batch of {batch_size} cannot be split evenly over {world} processes;"
            f" resume on {' or '.join(map(str, sorted(near)))}"
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
            raise UserError(f"batching.batch_size: {batch_size} cannot be split evenly over {world} processes; use a multiple of {world}")
        return batch_size // world, 1
    if batch_size % (micro_batch * world):
        raise UserError(
            f"batching.micro_batch: rounds of {micro_batch} images x {world} processes do not add up to batch_size {batch_size};"
            f" use a micro_batch that divides {batch_size // world if batch_size % world == 0 else batch_size}"
            + ("" if batch_size % world == 0 else f" and a batch_size that is a multiple of {world}")
        )
    return micro_batch, batch_size // (micro_batch * world)
