"""The bank: several averages of one network, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gantrain.averaging.average import Average, match, named_buffers, named_weights, write_buffers, write_weights
from gantrain.averaging.batchnorm import named_statistics, write_statistics
from gantrain.averaging.rule import AVERAGER, Averager, Weights
from gantrain.devices import widest_float
from gantrain.errors import InvalidField, UserError, did_you_mean
from gantrain.score_names import LIVE
from gantrain.spectral_norm import refresh_spectral_norms


class AverageBank:
    """Follows a network with any number of averages at once.

        bank = AverageBank(generator, {"ema": Ema(half_life_kimg=10), "swa": Swa(start_kimg=100)})
        ...
        optimizer.step(); nimg += batch_size; bank.update(nimg)
        ...
        bank.materialize("ema", another_generator)

    BatchNorm's running means and variances are averaged along with the weights, for the policy `average`.

    Args:
        network: the live network, on its final device, wrapped (DDP, torch.compile) or not.
        averagers: rules by free name.
        nimg: images seen so far.

    Raises:
        UserError: a name is "live", something is not a rule, or more than one rule replaces the live weights.
    """

    def __init__(self, network: nn.Module, averagers: Mapping[str, Averager], nimg: int = 0):
        if LIVE in averagers:
            raise UserError(f"averagers: {LIVE!r} is reserved for the weights that are trained; choose another name")
        rules = {name: rule_of(name, averager) for name, averager in averagers.items()}
        writing = [name for name, rule in rules.items() if rule.writes_back]
        if len(writing) > 1:
            raise UserError(f"averagers: {' and '.join(writing)} each replace the live weights with their average; keep only one")
        self.network = network
        self._writes_back = writing[0] if writing else None
        weights, statistics = named_weights(network), named_statistics(network)
        self.weight_names, self.statistic_names = list(weights), list(statistics)
        self.averages = {name: Average(rule, {**weights, **statistics}, nimg) for name, rule in rules.items()}

    def update(self, nimg: int) -> None:
        """Update every average with the live weights at `nimg` images. No device sync.

        A rule that replaces the live weights with its average does so afterwards. Since that happens every few updates, spectral
        norms are left to the power iteration of the next forward pass.
        """
        moved = {name: average.update(nimg) for name, average in self.averages.items()}
        if self._writes_back and moved[self._writes_back]:
            self.averages[self._writes_back].write_back(self.weight_names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.averages)

    def __getitem__(self, name: str) -> Average:
        if name not in self.averages:
            raise UserError(f"no average {name!r}{did_you_mean(name, self.averages)}")
        return self.averages[name]

    def _started(self, name: str) -> Average:
        if not self[name].started:
            raise UserError(f"average {name!r} has not started: it still holds the weights that it was created with")
        return self[name]

    @property
    def nimg(self) -> int:
        """Images seen at the last update, also after `load`: continue counting from here."""
        return max((average.nimg for average in self.averages.values()), default=0)

    def started(self) -> list[str]:
        """Names of the averages that have started."""
        return [name for name, average in self.averages.items() if average.started]

    def materialize(self, name: str, into: nn.Module, averaged_statistics: bool = False) -> None:
        """Write an average's weights, or the live ones for "live", and the live buffers into a module like the network.

        An average's spectral norms get the singular vectors of its own weights (`torch.nn.utils.parametrizations`).
        BatchNorm's statistics are then the live ones, or with `averaged_statistics` the average's own; neither is what the
        averaged weights produce: see `gantrain.averaging.recalibrate` for that.

        Raises:
            UserError: no average of that name, it has not started, or `into` has other weights.
        """
        if name == LIVE:
            write_weights(named_weights(self.network), into)
            write_buffers(named_buffers(self.network).items(), into)
            return
        shadows = self._started(name).shadows
        write_weights({n: shadows[n] for n in self.weight_names}, into)
        write_buffers(named_buffers(self.network).items(), into)
        refresh_spectral_norms(into)
        if averaged_statistics:
            write_statistics({n: shadows[n] for n in self.statistic_names}, into)

    def write_back(self, name: str, alpha: float = 1.0) -> None:
        """Move the live weights by the fraction `alpha` towards an average; 1 replaces them.

        Spectral norms are refreshed. BatchNorm's running statistics stay as they are: `gantrain.averaging.recalibrate` recomputes
        them. Every average continues from where it is, except one that itself replaces the live weights: it starts over from the
        current live weights.

        Raises:
            UserError: no average of that name, it has not started, or `alpha` is not in (0, 1].
        """
        if not 0 < alpha <= 1:
            raise UserError(f"alpha: must be above 0 and at most 1, got {alpha}")
        self._started(name).write_back(self.weight_names, alpha)
        refresh_spectral_norms(self.network)
        if self._writes_back and self._writes_back != name:
            self.averages[self._writes_back].restart()

    def distance(self, name: str) -> Tensor:
        """Squared Euclidean distance between the live weights and an average, a scalar on the live weights' device."""
        average = self[name]
        shadows = average.shadows
        with torch.no_grad():
            apart = (average.live[n] - shadows[n].to(average.live[n].device) for n in self.weight_names)
            return sum(torch.linalg.vector_norm(difference, dtype=widest_float(difference.device)).square() for difference in apart)

    def weight_profile(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(positions in images, effective weights) of the past live weights in an average; see `Average.weight_profile`."""
        return self[name].weight_profile()

    def statistics(self) -> list[Tensor]:
        """All tensors of averaged BatchNorm statistics, to be averaged over processes that keep their own."""
        holders = [t for a in self.averages.values() for t in (a.shadows, *a.slots.values())]
        return [tensors[name] for tensors in holders for name in self.statistic_names]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The averaged tensors by average and name, for saving."""
        return {name: average.shadows for name, average in self.averages.items()}

    def slot_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Further tensors of averages, by average and slot/name, for saving; averages without any are left out."""
        return {name: average.slot_tensors() for name, average in self.averages.items() if average.slots}

    def state(self) -> dict[str, Any]:
        """What `load` needs besides the tensors, as JSON values."""
        return {name: average.state() for name, average in self.averages.items()}

    def load(self, tensors: Mapping[str, Weights], state: Mapping[str, Any], slots: Mapping[str, Weights] | None = None) -> None:
        """Continue every average from saved values: what `tensors`, `state` and `slot_tensors` gave.

        Saved averages that this bank does not have are ignored.

        Raises:
            UserError: an average is missing, or a tensor of it is missing, extra, or of another shape.
        """
        for name, average in self.averages.items():
            if name not in tensors or name not in state:
                raise UserError(f"the checkpoint has no average {name!r}{did_you_mean(name, tensors)}")
            average.load(tensors[name], state[name], (slots or {}).get(name))

    def state_dict(self) -> dict[str, Any]:
        """All of this in one dictionary, for `torch.save` or Accelerate's `register_for_checkpointing`: tensors and plain values."""
        return {"tensors": self.tensors(), "slots": self.slot_tensors(), "state": self.state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the values are copied into the existing tensors, whatever their device."""
        self.load(state_dict["tensors"], state_dict["state"], state_dict["slots"])


def rule_of(name: str, averager: Any) -> Averager:
    """A rule, from gantrain or from outside, with all parts of the contract.

    Raises:
        UserError: it is not a rule, or a part has the wrong type.
    """
    if isinstance(averager, type):
        raise UserError(f"averagers: {name} must be a rule such as Ema(half_life_kimg=10), got {averager!r}")
    try:
        return AVERAGER.adapt(averager)
    except InvalidField as error:
        raise UserError(f"averagers: {name}.{error.field} {error.remedy}, got {error.value!r}") from None
    except UserError as error:
        raise UserError(f"averagers: {name} must be a rule such as Ema(half_life_kimg=10), got {averager!r} ({error})") from None


def split(tensors: Weights, network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors of a saved average into (weights, BatchNorm statistics) of a network.

    Raises:
        UserError: a tensor is missing, extra, or of another shape.
    """
    weights, statistics = named_weights(network), named_statistics(network)
    match({**weights, **statistics}, tensors, "saved average")
    return {n: tensors[n] for n in weights}, {n: tensors[n] for n in statistics}
