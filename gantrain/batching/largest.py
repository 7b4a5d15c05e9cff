"""Several policies at once: the largest of what they propose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from gantrain.batching.by_noise_scale import ByNoiseScale
from gantrain.batching.on_swap import OnSwap
from gantrain.batching.schedule import Schedule
from gantrain.batching.state import Batches, BatchState
from gantrain.errors import InvalidField, check

SHARED = {f.name: f.default for f in dataclasses.fields(Batches)}  # of all of them together, and said once
PARTS: dict[str, type] = {"schedule": Schedule, "on_swap": OnSwap, "noise_scale": ByNoiseScale}


@dataclass(frozen=True)
class Largest(Batches):
    """The largest batch that any of the policies in `of` proposes.

    Attributes:
        of: free names to policies; `batch_size`, `micro_batch`, `max_batch` and `lr_scaling` stand beside `of`.
    """

    of: dict = field(default_factory=dict, metadata={"kind": "batch policy", "table": PARTS, "mapping": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "of", len(self.of) > 0, f"must name policies, such as {{noise: {{name: noise_scale}}}} ({', '.join(PARTS)})")
        shared = {name: getattr(self, name) for name in SHARED}
        for name, part in self.of.items():
            for key, default in SHARED.items():
                if getattr(part, key, default) not in (default, shared[key]):
                    raise InvalidField(f"of.{name}.{key}", getattr(part, key), f"belongs beside `of`, where it is {shared[key]}")
        known = {name: {key: value for key, value in shared.items() if hasattr(part, key)} for name, part in self.of.items()}
        object.__setattr__(self, "of", {name: dataclasses.replace(part, **known[name]) for name, part in self.of.items()})

    @property
    def grows_at_swaps(self) -> bool:
        return any(getattr(part, "grows_at_swaps", True) for part in self.of.values())

    @property
    def reads_noise(self) -> bool:
        return any(getattr(part, "reads_noise", False) for part in self.of.values())

    def named(self) -> dict[str, list[int]]:
        each = {
            f"of.{name}.{key}": batches
            for name, part in self.of.items()
            if hasattr(part, "named")
            for key, batches in part.named().items()
            if key not in SHARED
        }
        return {**each, **super().named()}

    @property
    def highest(self) -> float:
        return max(getattr(part, "highest", float("inf")) for part in self.of.values()) if self.max_batch is None else self.max_batch

    def require_fit(self) -> None:
        for name, part in self.of.items():
            try:
                part.require_fit() if hasattr(part, "require_fit") else None
            except InvalidField as error:
                # All of them share one largest batch.
                key = error.field if error.field in SHARED else f"of.{name}.{error.field}"
                raise InvalidField(key, error.value, error.remedy) from None

    def propose(self, state: BatchState) -> float:
        return max(part.propose(state) for part in self.of.values())

    def reason(self, state: BatchState) -> str:
        name, part = max(self.of.items(), key=lambda item: item[1].propose(state))
        return part.reason(state) if hasattr(part, "reason") else f"{name} proposes it"
