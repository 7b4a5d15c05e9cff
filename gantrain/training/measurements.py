"""Statistics of training, summed between two lines of the record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from gantrain.batching import BatchController, GradientProbe, NoiseMonitor
from gantrain.batching.noise_scale import as_numbers
from gantrain.config.scheduled_keys import find_schedules, values_of
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.reporting.console import Progress
from gantrain.reporting.time_left import Plan
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.run_folder.json_values import as_json
from gantrain.spectral_norm import singular_values
from gantrain.training.context import Context
from gantrain.training.guard import Sentry
from gantrain.training.inputs import Inputs
from gantrain.training.players import Players
from gantrain.training.run_state import RunState
from gantrain.training.terms import Terms
from gantrain.training.update import Stats

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

OF_D = ("loss/d", "loss/direction", "loss/penalty", "logits/real", "logits/fake", "grad_norm/d")  # summed over the D steps of an update
OF_G = ("loss/g", "loss/penalty_g", "grad_norm/g")  # over the G steps
OF_SOME = "penalty/"  # prefix of statistics that not every step has


class Line(NamedTuple):
    """The part of a training line that the guard needs: D's mean loss since `since` images."""

    since: int
    loss_d: float


class Measurements:
    """Sums statistics of updates, and writes their means as a line for the console and the record.

    Args:
        context: of the run.
        run: its clock.
        players: G and D.
        batching: the batch as it is.
        inputs: count unreadable images, and how long updates have waited.
        terms: the augmentation's numbers go into the line.
        guard: listened to before a line is written.
        orbit: its latest distances go into the line.
        probes: measure gradients, by player.
        noise: collects what the probes have measured.

    Attributes:
        logged_at: images seen at the last line.
        progress: the console line's clock; set by `start`.
        forecast: returns what is still to come; None foresees the training alone.
    """

    def __init__(
        self, context: Context, run: RunState, players: Players, batching: BatchController, inputs: Inputs, terms: Terms,
        guard: Sentry, orbit: OrbitRecorder, probes: dict[str, GradientProbe], noise: NoiseMonitor,
    ):  # fmt: skip
        self.context, self.run, self.players, self.batching = context, run, players, batching
        self.terms, self.inputs, self.guard, self.orbit, self.probes, self.noise = terms, inputs, guard, orbit, probes, noise
        self.schedules = find_schedules(context.config)
        self.logged_at = 0
        self.progress: Progress
        self.forecast: Callable[[], Plan] | None = None
        self._sums: dict[str, Tensor] = {}  # of this process, on the device
        self._updates = 0  # in the sums
        self._counts: dict[str, int] = {}  # of steps in the sums, of statistics that not every step has
        self._settled: list[tuple[str, float]] = []  # means of all processes' sums

    def start(self) -> None:
        """Start the console line's clock."""
        self.progress = Progress(self.run.total, self.run.nimg, self.forecast, self.context.costs)

    # ---- in every update ---------------------------------------------------------------------------------------------

    @property
    def measures_halves(self) -> bool:
        """Whether an update has only one micro-batch, so that it is measured in two halves."""
        return self.context.config.noise_scale.measure_every is not None and self.probes["d"].halves(self.batching.rounds)

    def begin_update(self) -> None:
        """Decide, before an update, whether its gradients are to be measured."""
        self.noise.begin(self.run.updates)

    def probe(self, player: str) -> GradientProbe | None:
        """The probe of "d" or "g" if its next gradients are to be measured."""
        return self.probes[player] if player in self.noise.wanted else None

    def add(self, stats: Stats, player: str, seen: Stats) -> None:
        """Add a phase's statistics, on the device, to the sums since the last line and to those of the update, `seen`."""
        measured = stats.pop("measured", None)
        if measured is not None:
            halved = 2 if self.probes[player].halves(self.batching.rounds) else 1
            self.noise.record(player, self.batching.micro_batch // halved, self.batching.batch_size, measured)
        for name, value in stats.items():
            for sums in (seen, self._sums):
                sums[name] = sums[name] + value if name in sums else value
            if name.startswith(OF_SOME):
                self._counts[name] = self._counts.get(name, 0) + 1

    def count_update(self) -> None:
        """Count an update whose phases have all been added."""
        self._updates += 1

    # ---- when a line is due ------------------------------------------------------------------------------------------

    def log(self) -> Line | None:
        """Write a line: means since the last one. None if there has been no update since.

        Every process must call it at the same time.

        Raises:
            Trouble: something was not finite.
        """
        self.guard.listen(all=True)
        if not self._updates:
            return None
        d_steps = self.context.config.optim.d_steps
        values: dict[str, Any] = {name: total / self._steps(name) for name, total in self.sums()}
        values |= self.terms.shown(self.run.nimg)
        values |= {**self.batching.numbers(), "updates": self.run.updates, "memory/gib": memory_gib(self.context.device)}
        values |= self.noise_scale()
        values |= {f"lr/{key}": rate for key, rate in self.players.rates.items()}
        values |= values_of(self.schedules, self.run.previous_nimg, values)  # of the last update, as the rates are
        self.orbit.flush()
        values |= self.orbit.latest
        values["reals_seen"] = self.run.nimg * d_steps
        values |= self.singular_values()
        values |= self.inputs.report_skipped()
        line, times = self.progress.line(self.run.nimg, values)
        self.context.tracker.say(line)
        waited = self.inputs.data_wait / self.progress.seconds
        self.context.tracker.log(self.run.nimg, {**values, **times, "throughput/data_wait": waited})
        self._sums, self._counts, self._updates, self.inputs.data_wait = {}, {}, 0, 0.0
        since, self.logged_at = self.logged_at, self.run.nimg
        return Line(since, values["loss/d"])

    def _steps(self, name: str) -> int:
        """The number of steps in the sum of a statistic."""
        optim = self.context.config.optim
        return self._counts.get(name) or self._updates * (optim.d_steps if name in OF_D else optim.g_steps if name in OF_G else 1)

    def sums(self) -> list[tuple[str, float]]:
        """The statistics since the last line by name, each the mean over all processes.

        Every process must call it at the same time.
        """
        names = sorted(self._sums)
        if not names:
            return []
        sums = torch.stack([self._sums[n] for n in names]).float()
        return list(zip(names, self.context.accelerator.reduce(sums, reduction="mean").cpu().tolist()))

    def noise_scale(self) -> dict[str, float]:
        """The noise scale of both players for a line of the record."""
        self.noise.settle()
        values: dict[str, float] = {}
        for player, one in self.noise.estimates().items():
            if one.measurements:
                values |= as_numbers(f"noise_scale/{player.upper()}", one, self.batching.batch_size)
        for player, layers in self.noise.by_layer().items():
            for name, one in layers.items():
                if one.measurements:
                    values |= as_numbers(f"noise_scale/{player.upper()}/{name}", one)
        return values

    def singular_values(self) -> dict[str, float]:
        """The first singular value of every spectrally normalised layer for a line of the record."""
        values = {
            f"singular/{key.upper()}/{layer}": value
            for key, player in self.players.by_key.items()
            for layer, value in singular_values(player.network).items()
        }
        return dict(zip(values, torch.stack(list(values.values())).cpu().tolist())) if values else {}

    # ---- in a checkpoint ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring to the host what `state` returns, as means over processes. Every process must call it at the same time."""
        self.noise.settle()
        self._settled = self.sums()

    def state(self) -> dict[str, Any]:
        """The statistics since the last line as JSON values; call `settle` first."""
        counts = {"stats_counts": dict(self._counts)} if self._counts else {}
        return {"stats": as_json(self._settled), "stats_count": self._updates, "logged_at": self.logged_at, **counts}

    def load(self, snapshot: Snapshot, rolls_back: bool) -> None:
        """Restore the statistics since the last line; at a rollback there are none, and the next line is only of the new path."""
        self.logged_at = snapshot.state["logged_at"]
        stats, self._updates = ([], 0) if rolls_back else (snapshot.state["stats"], snapshot.state["stats_count"])
        self._counts = {} if rolls_back else dict(snapshot.state.get("stats_counts", {}))
        self._sums = {name: torch.tensor(float(value), device=self.context.device) for name, value in stats}


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far in GiB: of the GPU if it trains on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return psutil.Process().memory_info().peak_wset / 2**30  # on Windows, the one system without `resource`
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
