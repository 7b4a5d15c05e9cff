"""The largest batch that any of several policies proposes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gantrain.batching.by_noise_scale import ByNoiseScale
from gantrain.batching.on_swap import OnSwap
from gantrain.batching.schedule import Schedule
from gantrain.batching.state import BATCH_POLICY, Batches, BatchPolicy, BatchState, proposal_of
from gantrain.errors import InvalidField, check, shown

SHARED: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Batches)}  # keys that all parts have in common
PARTS: dict[str, type[BatchPolicy]] = {"schedule": Schedule, "on_swap": OnSwap, "noise_scale": ByNoiseScale}


@dataclass(frozen=True)
class Largest(Batches):
    """The largest batch that any of the policies in `of` proposes.

    Attributes:
        of: policies by free names; `batch_size`, `micro_batch`, `max_batch` and `lr_scaling` are set next to `of`.
    """

    of: dict[str, BatchPolicy] = field(default_factory=dict, metadata={"kind": "batch policy", "table": PARTS, "mapping": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "of", len(self.of) > 0, f"must name at least one policy, such as {{noise: {{name: noise_scale}}}} ({', '.join(PARTS)})")
        shared = {name: getattr(self, name) for name in SHARED}
        parts: dict[str, Any] = dict(self.of)  # dataclasses, of classes that need not inherit from `BatchPolicy`
        for name, part in parts.items():
            known = [f.name for f in dataclasses.fields(part) if f.name in SHARED]
            for key in known:
                if getattr(part, key) not in (SHARED[key], shared[key]):
                    raise InvalidField(
                        f"of.{name}.{key}", getattr(part, key), f"must be set next to `of` (there it is {shown(shared[key])})"
                    )
            parts[name] = BATCH_POLICY.adapt(dataclasses.replace(part, **{key: shared[key] for key in known}))
        object.__setattr__(self, "of", parts)

    @property
    def grows_at_swaps(self) -> bool | None:
        return any_of(part.grows_at_swaps for part in self.of.values())

    @property
    def reads_noise(self) -> bool | None:
        return any_of(part.reads_noise for part in self.of.values())

    def named(self) -> dict[str, list[int]]:
        each = {f"of.{name}.{key}": batches for name, part in self.of.items() for key, batches in part.named().items() if key not in SHARED}
        return {**each, **super().named()}

    @property
    def highest(self) -> float:
        return max(part.highest for part in self.of.values()) if self.max_batch is None else self.max_batch

    def require_fit(self) -> None:
        for name, part in self.of.items():
            try:
                part.require_fit()
            except InvalidField as error:
                # A shared key is set next to `of`.
                key = error.field if error.field in SHARED else f"of.{name}.{error.field}"
                raise InvalidField(key, error.value, error.remedy) from None

    def propose(self, state: BatchState) -> float:
        return max(proposal_of(part, state) for part in self.of.values())

    def reason(self, state: BatchState) -> str:
        return max(self.of.values(), key=lambda part: part.propose(state)).reason(state)


def any_of(answers: Iterable[bool | None]) -> bool | None:
    """True if any answer is True, else None if any is unknown, else False."""
    given = set(answers)
    return True if True in given else None if None in given else False
