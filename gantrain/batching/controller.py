"""The controller: makes of what a policy proposes a batch that can be had, and remembers it."""
from __future__ import annotations

import math
from typing import Any

from gantrain.batching.state import BatchState
from gantrain.errors import UserError


class BatchController:
    """The batch of a run: B = micro_batch b x processes W x rounds k. b and W stay; B grows by k and never shrinks.

    Args:
        policy: proposes; a dataclass from `BATCH_POLICIES`.
        world: number of processes.

    Attributes:
        micro_batch, rounds, batch_size: as they are now.

    Raises:
        UserError: no whole number of rounds gives the policy's first batch on this many processes.
    """

    def __init__(self, policy: Any, world: int):
        self.policy, self.world = policy, world
        first = int(min(policy.propose(BatchState(0, 0)), self.highest))
        self.micro_batch, self.rounds = rounds_of(first, getattr(policy, "micro_batch", None), world)
        self.batch_size = first
        self.proposal = float(first)

    def ask(self, nimg: int, growth: float = 1.0) -> bool:
        """Ask the policy what the next update shall have; whether the batch has changed.

        A proposal is cut to `max_batch` and rounded down to a whole number of rounds, never below the batch there is.

        Args:
            nimg: images seen.
            growth: what a swap at this moment asks for.
        """
        self.proposal = min(self.policy.propose(BatchState(nimg, self.batch_size, growth, self.proposal)), self.highest)
        return self._become(max(self.batch_size, self.whole_rounds(self.proposal)))

    @property
    def highest(self) -> float:
        """What the batch never exceeds."""
        highest = getattr(self.policy, "max_batch", None)
        return float("inf") if highest is None else highest

    @property
    def can_grow(self) -> bool:
        """Whether there is room for another round."""
        return self.batch_size + self.micro_batch * self.world <= self.highest

    def whole_rounds(self, images: float) -> int:
        """The largest batch of whole rounds within so many images."""
        round_size = self.micro_batch * self.world
        return math.floor(images / round_size + 1e-9) * round_size

    def _become(self, batch_size: int) -> bool:
        changed = batch_size != self.batch_size
        self.batch_size, self.rounds = batch_size, batch_size // (self.micro_batch * self.world)
        return changed

    def change(self, was: int, reason: str) -> dict[str, Any]:
        """The fields of an event that tells of a growth."""
        return {"from": was, "to": self.batch_size, "rounds": self.rounds, "reason": reason}

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values."""
        return {"batch_size": self.batch_size, "micro_batch": self.micro_batch, "proposal": self.proposal}

    def load(self, state: dict[str, Any]) -> None:
        """Go on with the saved batch.

        Raises:
            UserError: it does not divide over the processes that there are now.
        """
        self.micro_batch, self.rounds = rounds_of(state["batch_size"], self.micro_batch, self.world)
        self.batch_size, self.proposal = state["batch_size"], state["proposal"]


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
