"""The bank: several averages of one network, by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from gantrain.averaging.average import Average, match, named_buffers, named_weights, unwrapped, write_buffers, write_weights
from gantrain.averaging.batchnorm import named_statistics, write_statistics
from gantrain.averaging.following import Followed
from gantrain.averaging.precision import fraction, has_mean, whole_number
from gantrain.averaging.processes import Processes
from gantrain.averaging.rule import AVERAGER, Averager, Weights
from gantrain.averaging.saved_rules import describe_rules, require_same_rules
from gantrain.averaging.set_aside import require_live, set_aside
from gantrain.devices import widest_float
from gantrain.errors import InvalidField, UserError, did_you_mean
from gantrain.score_names import LIVE
from gantrain.spectral_norm import refresh_spectral_norms
from gantrain.theory.sketch import real_parts


class AverageBank:
    """Follows a network with any number of averages at once.

        bank = AverageBank(generator, {"ema": Ema(half_life_kimg=10), "swa": Swa(start_kimg=100)})
        ...
        optimizer.step(); nimg += batch_size; bank.update(nimg)
        ...
        bank.materialize("ema", another_generator)

    BatchNorm's running means and variances are averaged along with the weights, for the policy `average`.

    The bank follows the network, not its tensors: it may be moved, converted, wrapped, loaded with `assign=True`, or get other
    layers of the same names and shapes. A weight that is added, removed, renamed or of another shape is refused at the next call.
    A bank is copied together with its network, `copy.deepcopy((network, bank))`, and saved by `state_dict`.

    Args:
        network: the live network, wrapped (DDP, torch.compile) or not.
        averagers: rules by free name.
        nimg: images seen so far.

    Raises:
        UserError: a name is "live", something is not a rule, more than one rule replaces the live weights, an average is in the
            network (`applied`), or a weight cannot be averaged (it is sharded, quantised, or has no values yet).
    """

    def __init__(self, network: nn.Module, averagers: Mapping[str, Averager], nimg: int = 0):
        if LIVE in averagers:
            raise UserError(f"averagers: {LIVE!r} is reserved for the weights that are trained; choose another name")
        rules = {name: rule_of(name, averager) for name, averager in averagers.items()}
        writing = [name for name, rule in rules.items() if rule.writes_back]
        if len(writing) > 1:
            raise UserError(f"averagers: {' and '.join(writing)} each replace the live weights with their average; keep only one")
        require_live(network, "AverageBank")
        self.network = network
        self._writes_back = writing[0] if writing else None
        self._followed: Followed | None = Followed(network)
        self.weight_names, self.statistic_names = list(self._followed.weights), list(self._followed.statistics)
        self._shapes = {name: tensor.shape for name, tensor in self._followed.tensors.items()}
        self.averages = {name: Average(rule, self._followed.tensors, nimg) for name, rule in rules.items()}
        self._nimg = whole_number("nimg", nimg)
        self._processes = Processes()

    def update(self, nimg: int) -> None:
        """Update every average with the live weights at `nimg` images. No device sync.

        A rule that replaces the live weights with its average does so afterwards. Since that happens every few updates, spectral
        norms are left to the power iteration of the next forward pass.

        With several processes, `nimg` must be the same on each: not the images of this process. That is not checked here, because a
        check would be a collective call, and different numbers give different averages without an error, until `advance` is called.
        Where processes may have batches of different sizes, use `advance`, which counts and checks.

        Args:
            nimg: images seen by all processes together.

        Raises:
            UserError: `nimg` is not a whole number, or has decreased; the network has other weights than the averages; or an
                average is in the network (`applied`).
        """
        self._require_live("update")
        self._follow()
        nimg = whole_number("nimg", nimg)
        self._nimg = max(self._nimg, nimg)
        moved = {name: average.update(nimg) for name, average in self.averages.items()}
        if self._writes_back and moved[self._writes_back]:
            self.averages[self._writes_back].write_back(self.weight_names)

    def advance(self, images: int) -> int:
        """Count `images` more, summed over all processes of `torch.distributed`, and update every average.

        For loops whose processes may have batches of different sizes: every average sees the same `nimg` on every process. All
        processes must call it, after the same optimizer steps. One collective call over two numbers in main memory.

        Args:
            images: of this process, since the last update.

        Returns:
            `nimg`, the images seen by all processes together.

        Raises:
            UserError: as `update`; `images` is negative; or processes have counted differently before.
        """
        self._require_live("advance")
        images = whole_number("images", images)
        if images < 0:
            raise UserError(f"images: must be at least 0, got {images}; pass the number of this process's images since the last update")
        nimg = self.nimg + self._processes.sum(images, self.nimg)
        self.update(nimg)
        return nimg

    def _follow(self) -> None:
        """Bind the averages to the tensors that the network holds now.

        Raises:
            UserError: a weight is gone, new, of another shape, or cannot be averaged.
        """
        if self._followed is not None and not self._followed.is_stale():
            return
        found = Followed(self.network)
        found.require_same(self._shapes, self.network)
        for average in self.averages.values():
            average.follow(found.tensors)
        self._followed = found

    def _require_live(self, call: str) -> None:
        """Refuse a call that reads or changes the live weights while `applied` has put an average in their place."""
        require_live(self.network, f"bank.{call}")

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
        return self._nimg

    def started(self) -> list[str]:
        """Names of the averages that have started."""
        return [name for name, average in self.averages.items() if average.started]

    def materialize(self, name: str, into: nn.Module, averaged_statistics: bool = False) -> None:
        """Write an average's weights, or the live ones for "live", and the live buffers into a module like the network.

        An average's spectral norms get the singular vectors of its own weights (`torch.nn.utils.parametrizations`).
        BatchNorm's statistics are then the live ones, or with `averaged_statistics` the average's own; neither is what the
        averaged weights produce: see `gantrain.averaging.recalibrate` for that.

        Raises:
            UserError: no average of that name, it has not started, or the network or `into` has other weights than the averages.
        """
        self._require_live("materialize")
        if name == LIVE:
            write_weights(named_weights(self.network), into)
            write_buffers(named_buffers(self.network).items(), into)
            return
        self._follow()
        self._started(name)
        self._write(name, into, averaged_statistics)

    def _write(self, name: str, into: nn.Module, averaged_statistics: bool) -> None:
        """Write an average's weights, the live buffers, spectral norms that fit the weights, and averaged statistics if asked for."""
        shadows = self[name].shadows
        write_weights({n: shadows[n] for n in self.weight_names}, into)
        if into is not self.network:
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
            UserError: no average of that name, it has not started, `alpha` is not in (0, 1], or the network has other weights than
                the averages.
        """
        self._require_live("write_back")
        alpha = fraction("alpha", alpha)
        if alpha == 0:
            raise UserError("alpha: must be above 0 and at most 1, got 0")
        self._follow()
        self._started(name).write_back(self.weight_names, alpha)
        refresh_spectral_norms(self.network)
        if self._writes_back and self._writes_back != name:
            self.averages[self._writes_back].restart()

    @contextmanager
    def applied(self, name: str, averaged_statistics: bool = False) -> Iterator[nn.Module]:
        """Put an average into the network for the length of a `with` block, such as a validation.

            with bank.applied("ema") as network:
                network.eval()
                score = validate(network)

        The network then holds what `materialize` writes. To recompute BatchNorm's statistics, call
        `gantrain.averaging.recalibrate` inside the block. Afterwards, also after an exception, all weights, buffers and
        training modes of the network are what they were, to the last bit. "live" changes nothing, for loops over all averages.
        Needs room for a second copy of the network.

        Args:
            name: of the average.
            averaged_statistics: as in `materialize`.

        Yields:
            The network.

        Raises:
            UserError: no average of that name, it has not started, the network has other weights than the averages, or an average
                is in the network already; and at the end, if weights were trained or replaced inside the block.
        """
        self._require_live("applied")
        self._follow()
        if name != LIVE:
            self._started(name)
        with set_aside(self.network, name) as aside:
            if name != LIVE:
                self._write(name, self.network, averaged_statistics)
            aside.watch()
            yield self.network

    def distance(self, name: str) -> Tensor:
        """Squared Euclidean distance between the live weights and an average, a scalar on the live weights' device."""
        self._require_live("distance")
        self._follow()
        live_tensors, shadows = self[name].live, self[name].shadows
        with torch.no_grad():
            pairs = ((live_tensors[n], shadows[n]) for n in self.weight_names if has_mean(shadows[n]))
            apart = (real_parts(live - shadow.to(live.device)) for live, shadow in pairs)
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

        Saved averages that this bank does not have are ignored. Rules are compared by `load_state_dict` alone.

        Raises:
            UserError: an average is missing, or a tensor of it is missing, extra, or of another shape.
        """
        self._require_live("load")
        self._follow()
        for name, average in self.averages.items():
            if name not in tensors or name not in state:
                raise UserError(f"the checkpoint has no average {name!r}{did_you_mean(name, tensors)}")
            average.load(tensors[name], state[name], (slots or {}).get(name))
        self._nimg = max((average.nimg for average in self.averages.values()), default=self._nimg)

    def state_dict(self) -> dict[str, Any]:
        """All of this in one dictionary, for `torch.save` or Accelerate's `register_for_checkpointing`: tensors and plain values."""
        return {"tensors": self.tensors(), "slots": self.slot_tensors(), "state": self.state(), "rules": describe_rules(self.averages)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the values are copied into the existing tensors, whatever their device.

        Raises:
            UserError: as `load`; or an average was saved by another rule, or with other hyper-parameters.
        """
        require_same_rules(state_dict.get("rules", {}), self.averages)
        self.load(state_dict["tensors"], state_dict["state"], state_dict["slots"])

    def __deepcopy__(self, memo: dict[int, Any]) -> AverageBank:
        """A bank of the copied network. Averages without their network would follow one that nobody trains.

        Raises:
            UserError: the network is not copied together with the bank, before it.
        """
        self._require_live("__deepcopy__")
        network = memo.get(id(self.network), memo.get(id(unwrapped(self.network))))
        if network is None:
            raise UserError(
                "copy.deepcopy: an AverageBank is copied together with its network, which comes first:"
                " network, bank = copy.deepcopy((network, bank)); to copy the averages alone, use copy.deepcopy(bank.state_dict())"
            )
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        left_out = ("network", "averages", "_followed", "_processes")
        vars(twin).update(copy.deepcopy({k: v for k, v in vars(self).items() if k not in left_out}, memo))
        twin.network, twin._followed, twin._processes = network, None, Processes()  # looked up when used: the copy may be half made
        twin.averages = {name: average.duplicate(memo) for name, average in self.averages.items()}
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UserError(
            "an AverageBank cannot be pickled or copied by copy.copy, because its network would become another: save bank.state_dict()"
            " and load it by AverageBank(network, averagers).load_state_dict(...)"
        )


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
