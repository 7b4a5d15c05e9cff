"""Batch policies: `propose(state) -> batch_size` before every update. The micro-batch never changes within a run."""
from gantrain.batching.controller import BatchController, rounds_of
from gantrain.batching.fixed import Fixed
from gantrain.batching.on_swap import OnSwap
from gantrain.batching.state import Batches, BatchState

BATCH_POLICIES: dict[str, type] = {"fixed": Fixed, "on_swap": OnSwap}

__all__ = ["BATCH_POLICIES", "BatchController", "BatchState", "Batches", "Fixed", "OnSwap", "rounds_of"]
