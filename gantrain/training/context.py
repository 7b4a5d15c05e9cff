"""The context that all parts of a training run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator

from gantrain.config.config import Config
from gantrain.distributed import from_main
from gantrain.performance import Performance
from gantrain.reporting.time_left import Costs
from gantrain.reporting.tracker import Tracker

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The configuration of a run and where it runs. All parts share it, and no part changes it.

    Attributes:
        config: the whole run.
        accelerator: of the program.
        run_dir: the run folder.
        tracker: records events, and prints lines on the main process.
        performance: the `performance` section with every switch decided.
        changed_data: whether a run that is resumed may continue on other images than before.
        costs: measures how long everything but training takes.
    """

    config: Config
    accelerator: Accelerator
    run_dir: Path
    tracker: Tracker
    performance: Performance
    changed_data: bool = False
    costs: Costs = field(default_factory=Costs)

    @property
    def main(self) -> bool:
        """Whether this is the main process, the one that writes the run folder."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """The device that this process trains on."""
        return self.accelerator.device

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""
        return self.accelerator.process_index

    def from_main(self, value: T) -> T:
        """The main process's `value` on every process. All processes must call it at the same time."""
        return from_main(self.accelerator, value)
