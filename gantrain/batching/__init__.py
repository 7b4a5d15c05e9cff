"""Batch policies: `propose(state) -> batch_size`, asked before every update. A batch grows by rounds of one micro-batch."""

from __future__ import annotations

from gantrain.batching.by_noise_scale import ByNoiseScale
from gantrain.batching.controller import BatchController, rounds_of
from gantrain.batching.fixed import Fixed
from gantrain.batching.largest import Largest
from gantrain.batching.noise_scale import Estimate, GradientProbe, NoiseMonitor, NoiseScale, estimate
from gantrain.batching.on_swap import OnSwap
from gantrain.batching.schedule import Schedule
from gantrain.batching.state import BATCH_POLICY, Batches, BatchPolicy, BatchState

BATCH_POLICIES: dict[str, type[BatchPolicy]] = {
    "fixed": Fixed,
    "schedule": Schedule,
    "on_swap": OnSwap,
    "noise_scale": ByNoiseScale,
    "largest": Largest,
}
__all__ = [
    "BATCH_POLICIES", "BATCH_POLICY", "BatchController", "BatchPolicy", "BatchState", "Batches", "ByNoiseScale",
    "Estimate", "Fixed", "GradientProbe", "Largest", "NoiseMonitor", "NoiseScale", "OnSwap", "Schedule", "estimate", "rounds_of",
]  # fmt: skip
