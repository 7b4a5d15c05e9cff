"""The gradient noise scale: how noisy the gradient of one image is compared with the mean gradient.

With Sigma the covariance of the gradient over images and G its mean, a batch of B images has a gradient of squared length
|G|^2 + tr Sigma / B on average, and B_simple = tr Sigma / |G|^2 is the batch at which noise and signal are equal
(McCandlish et al. 2018, Eq. 2.9). An update of B = n b images in n micro-batches gives both (their Appendix A.1):

    small = mean of |g_i|^2 over the micro-batches        big = |mean of g_i|^2
    |G|^2 = (B big - b small) / (B - b)                   tr Sigma = (small - big) / (1 / b - 1 / B)

Both are unbiased; their ratio is not, and where noise dominates, up to half of the |G|^2 are negative. So both are averaged over
many updates, negative values included, before they are divided. Where BatchNorm couples the images of a micro-batch, the
micro-batch is the unit that is drawn independently, and the estimate holds for this b.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gantrain.batching.ratio_interval import ratio_interval
from gantrain.devices import widest_float
from gantrain.errors import UserError, check

COVERAGE = 0.95  # of all intervals
FEWEST_MEASUREMENTS = 8  # for an interval
CHECKS_KEPT = 64


@dataclass(frozen=True)
class NoiseScale:
    """Measurement of the gradient noise scale of D and G during training, on which `batching: {name: noise_scale}` acts.

    Attributes:
        measure_every: measure every n-th update (for D, its first step); null measures none. On one process with one round, a
            measured update is computed in two halves, and BatchNorm sees half a micro-batch in each.
        window: number of measurements behind an estimate.
        per_layer: also measure the noise of each layer.
    """

    measure_every: int | None = None
    window: int = 32
    per_layer: bool = False

    def __post_init__(self) -> None:
        check(self, "measure_every", self.measure_every is None or self.measure_every >= 1, "must be at least 1, or null for never")
        check(self, "window", self.window >= FEWEST_MEASUREMENTS, f"must be at least {FEWEST_MEASUREMENTS}")


# ---- in the update ---------------------------------------------------------------------------------------------------


class GradientProbe:
    """Squared norms of a network's gradients: of each micro-batch, and of their mean.

    Hooks on the parameters see the gradient of each backward pass before it is accumulated or exchanged between processes.
    Everything stays on the device, without a sync.

    Args:
        network: those of its parameters are measured that require a gradient inside `listening`.
        per_layer: measure each layer separately.
        processes: number of processes that share an update. A single process measures an update of one round in two halves.

    Attributes:
        layers: names of the layers; a single "" stands for the whole network.
    """

    def __init__(self, network: nn.Module, per_layer: bool = False, processes: int = 1):
        self.network, self.processes = network, processes
        names = [layer_of(name) if per_layer else "" for name, _ in network.named_parameters()]
        self.layers = list(dict.fromkeys(names))
        self.index = torch.tensor([self.layers.index(name) for name in names])

    def halves(self, rounds: int) -> bool:
        """Whether an update of so many rounds must be measured in two halves: there is a single micro-batch, and two are needed."""
        return rounds * self.processes == 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the squared norm of every gradient that a backward pass computes is added up."""
        parameters = list(self.network.parameters())
        device = parameters[0].device
        # In float64, since many are added up; each square is as exact as its gradient.
        self.squares = torch.zeros(len(parameters), dtype=widest_float(device), device=device)
        handles = [p.register_hook(adding_to(total)) for p, total in zip(parameters, self.squares.unbind()) if p.requires_grad]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def measurement(self, rounds: int, scale: Tensor | float = 1.0) -> Tensor:
        """(small, big) of each layer: `[2, layers]` in `widest_float`, small over this process's own micro-batches.

        Call it when `.grad` holds the mean over all micro-batches and nothing else.

        Args:
            rounds: number of backward passes, each of a loss divided by this number.
            scale: factor by which every loss was also multiplied.
        """
        small = self.squares * (rounds / scale**2)  # the mean over rounds of (rounds / scale)^2 |grad|^2
        gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in self.network.parameters()]
        big = torch.stack(torch._foreach_norm(gradients)).to(small.dtype).square()
        self.index = self.index.to(small.device)
        return torch.zeros(2, len(self.layers), dtype=small.dtype, device=small.device).index_add_(1, self.index, torch.stack([small, big]))


def adding_to(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds a gradient's squared norm to `total`."""

    def hook(gradient: Tensor) -> None:
        total.add_(torch.linalg.vector_norm(gradient.detach()).to(total.dtype).square())

    return hook


def layer_of(parameter: str) -> str:
    """The module that a parameter belongs to, ignoring parametrizations: a.conv for a.conv.parametrizations.weight.original."""
    return parameter.partition(".parametrizations.")[0] if ".parametrizations." in parameter else parameter.rpartition(".")[0] or parameter


# ---- estimates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """The noise scale of one network.

    Attributes:
        trace: tr Sigma of the gradient of one image.
        squared: |G|^2, which noise may make negative.
        low, high: ends of the interval of B_simple at 95%. `high` is None where B_simple is at least `low` and may be infinite,
            because |G|^2 cannot be told from 0. Both are None if there is no interval (`undecidable`).
        measurements: number of measurements that it is computed from.
    """

    trace: float
    squared: float
    low: float | None
    high: float | None
    measurements: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate whose attributes were saved."""
        return cls(*(values[name] for name in cls.__annotations__))

    @property
    def b_simple(self) -> float | None:
        """tr Sigma / |G|^2 in images; None if noise has made either of them negative."""
        return self.trace / self.squared if self.trace > 0 and self.squared > 0 else None

    @property
    def undecidable(self) -> bool:
        """Whether there is no interval: too few measurements, no gradient, or no noise that can be told from 0."""
        return self.low is None

    @property
    def unbounded(self) -> bool:
        """Whether the interval has no upper end."""
        return self.low is not None and self.high is None


def estimate(traces: Sequence[float], squares: Sequence[float]) -> Estimate:
    """B_simple of measured tr Sigma and |G|^2 as the ratio of their means, with Fieller's interval.

    The interval uses Student's t with n - 1 degrees of freedom for n measurements, of which it needs at least 8. It has no upper end
    where |G|^2 cannot be told from 0. How often it holds the true value is tabulated in docs/noise_scale.md: 93 to 97% whatever
    B_simple is, unless a few measurements meet a covariance of few directions.
    """
    s, g = np.asarray(traces, dtype=np.float64), np.asarray(squares, dtype=np.float64)
    n = len(s)
    with np.errstate(all="ignore"):  # measurements at the ends of float64's range
        trace, squared = (float(values.mean()) if n else math.nan for values in (s, g))
        ends = ratio_interval(s, g, COVERAGE) if n >= FEWEST_MEASUREMENTS and math.isfinite(trace) and math.isfinite(squared) else None
    low, high = ends or (None, None)
    return Estimate(trace, squared, low, high if high is not None and math.isfinite(high) else None, n)


def as_numbers(prefix: str, one: Estimate, batch_size: int | None = None) -> dict[str, float]:
    """An estimate as entries of a line of the record; undefined values are left out.

    An interval without an upper end has `unbounded` 1 and no `b_simple_high`, since JSON has no infinity.

    Args:
        prefix: of the keys, such as noise_scale/D.
        batch_size: also return the ratio B_simple / batch_size with its interval.
    """
    values = {"tr_sigma": one.trace, "g_squared": one.squared, "b_simple": one.b_simple, "b_simple_low": one.low, "b_simple_high": one.high}
    if batch_size is not None:
        ratios = zip(("ratio", "ratio_low", "ratio_high"), (one.b_simple, one.low, one.high))
        values |= {name: None if value is None else value / batch_size for name, value in ratios}
    values |= {"undecidable": int(one.undecidable), "unbounded": int(one.unbounded), "measurements": one.measurements}
    return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}


def unbiased(small: np.ndarray, big: np.ndarray, b: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """(tr Sigma, |G|^2) of an update of `batch` images in micro-batches of b: unbiased, and either may be negative."""
    return (small - big) / (1 / b - 1 / batch), (batch * big - b * small) / (batch - b)


# ---- over a run ------------------------------------------------------------------------------------------------------


class NoiseMonitor:
    """The measurements of a run: when they are due, the most recent ones, and the checks on which a policy decides.

    A check is an estimate over `window` measurements of each player that no earlier check has used. So checks are independent,
    and frequent checks do not make growth by chance more likely.

    Args:
        settings: the `noise_scale` section.
        layers: names of each player's layers ("d", "g"), in the order of the measurements.
        mean: takes a tensor and returns its mean over all processes, on every process.
    """

    def __init__(self, settings: NoiseScale, layers: Mapping[str, Sequence[str]], mean: Callable[[Tensor], Tensor] = lambda t: t):
        self.settings, self.layers, self.mean = settings, layers, mean
        self.pending: list[tuple[str, int, int, Tensor]] = []  # player, micro-batch, batch, measurement on the device
        self.windows: dict[str, deque[list[list[float]]]] = {player: deque(maxlen=settings.window) for player in layers}
        self.micro_batch: dict[str, int] = dict.fromkeys(layers, 0)
        self.fresh = dict.fromkeys(layers, 0)
        self.checks: list[dict[str, Estimate]] = []
        self.wanted: set[str] = set()

    def begin(self, updates: int) -> None:
        """Call before an update: request a measurement of each player if one is due. A request stays until it is fulfilled."""
        every = self.settings.measure_every
        if every is not None and updates % every == 0:
            self.wanted = set(self.layers)

    def record(self, player: str, micro_batch: int, batch_size: int, measured: Tensor) -> None:
        """Keep a measurement `[2, layers]` of a player, made over micro-batches of a batch; it stays on the device until `settle`."""
        self.wanted.discard(player)
        self.pending.append((player, micro_batch, batch_size, measured))

    def settle(self) -> None:
        """Read pending measurements off the device, averaged over processes. All processes must call this at the same time."""
        if not self.pending:
            return
        sizes = [measured.numel() for *_, measured in self.pending]
        values = self.mean(torch.cat([measured.flatten() for *_, measured in self.pending])).cpu().double().split(sizes)
        for (player, b, batch, measured), value in zip(self.pending, values):
            small, big = value.view(measured.shape).numpy()
            if not np.isfinite(small).all() or not np.isfinite(big).all():  # an update that fp16's scaler skips
                continue
            if b != self.micro_batch[player]:  # BatchNorm sees micro-batches of another size, so the noise differs
                self.windows[player].clear()
                self.micro_batch[player], self.fresh[player], self.checks = b, 0, []
            self.windows[player].append([part.tolist() for part in unbiased(small, big, b, batch)])
            self.fresh[player] += 1
        self.pending = []

    def check(self) -> bool:
        """Whether a check has just been completed. All processes must call this at the same time."""
        pending = [player for player, *_ in self.pending]
        if any(self.fresh[player] + pending.count(player) < self.settings.window for player in self.layers):
            return False
        self.settle()
        if any(fresh < self.settings.window for fresh in self.fresh.values()):  # one was not finite
            return False
        self.fresh = dict.fromkeys(self.layers, 0)
        self.checks = [*self.checks, self.estimates()][-CHECKS_KEPT:]
        return True

    def decided(self) -> None:
        """The batch has changed: the next decision of a policy uses only measurements from here on."""
        pending = [player for player, *_ in self.pending]  # from before the change; reading them now would wait for the device
        self.fresh, self.checks = {player: -pending.count(player) for player in self.layers}, []

    def forget(self) -> None:
        """The weights have jumped: discard all measurements."""
        self.pending = []
        for window in self.windows.values():
            window.clear()
        self.decided()

    def estimates(self) -> dict[str, Estimate]:
        """The estimate of each player over its window."""
        return {player: self.of_layers(player, None) for player in self.layers}

    def by_layer(self) -> dict[str, dict[str, Estimate]]:
        """The estimate of each player and layer over its window; empty unless `per_layer`."""
        if not self.settings.per_layer:
            return {}
        return {player: {name: self.of_layers(player, i) for i, name in enumerate(names)} for player, names in self.layers.items()}

    def of_layers(self, player: str, layer: int | None) -> Estimate:
        """The estimate of one layer, or of all together."""
        values = np.array(self.windows[player]).reshape(-1, 2, len(self.layers[player]))
        traces, squares = (values.sum(2) if layer is None else values[:, :, layer]).T
        return estimate(traces, squares)

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values; `settle` first."""
        return {
            "wanted": sorted(self.wanted),
            "windows": {player: list(window) for player, window in self.windows.items()},
            "micro_batch": dict(self.micro_batch),
            "fresh": dict(self.fresh),
            "checks": [{player: vars(one) for player, one in checked.items()} for checked in self.checks],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from saved measurements: what `state` gave."""
        self.pending, self.wanted = [], set(state["wanted"])
        self.windows = {player: deque(state["windows"][player], maxlen=self.settings.window) for player in self.layers}
        for player, names in self.layers.items():
            if any(len(part) != len(names) for measured in self.windows[player] for part in measured):
                raise UserError(
                    f"noise_scale: the checkpoint's measurements of {player.upper()} are not of the {len(names)} layers that it has"
                )
        self.micro_batch, self.fresh = ({player: state[key][player] for player in self.layers} for key in ("micro_batch", "fresh"))
        self.checks = [{player: Estimate.of(checked[player]) for player in self.layers} for checked in state["checks"]]
