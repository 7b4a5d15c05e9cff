"""The mechanism of an average: shadows of named weights, which a rule moves towards the live ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from gantrain.averaging.looks import Looks, weight_profile
from gantrain.averaging.precision import averaged_dtype, fraction, has_mean, require_values, whole_number
from gantrain.averaging.rule import AVERAGER, Averager, Weights, has_moved, lerp
from gantrain.clock import due
from gantrain.errors import UserError
from gantrain.plugin_errors import WrongResult, place_of, refuse_result

COUNTS = ("first_nimg", "previous_nimg", "nimg", "num_averaged", "unseen")
COMPILED = "_orig_mod"  # where torch.compile keeps a module that it has compiled
WRAPPERS = ("module", COMPILED)  # where DistributedDataParallel and torch.compile keep the whole network


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and torch.compile, and inside any wrapper that has it as its only part."""
    while True:
        parts = dict(network.named_children())
        own = [*network.parameters(recurse=False), *network.buffers(recurse=False)]
        if own or len(parts) != 1 or next(iter(parts)) not in WRAPPERS:
            return network
        network = next(iter(parts.values()))


def plain_name(name: str) -> str:
    """The name of a weight or buffer without the prefixes that torch.compile adds to parts of a network."""
    return name.replace(f"{COMPILED}.", "")


def named_weights(network: nn.Module) -> dict[str, Tensor]:
    """The parameters of a network, wrapped or not, by plain name."""
    return {plain_name(name): parameter for name, parameter in unwrapped(network).named_parameters()}


def named_buffers(network: nn.Module) -> dict[str, Tensor]:
    """The buffers of a network, wrapped or not, by plain name."""
    return {plain_name(name): buffer for name, buffer in unwrapped(network).named_buffers()}


class Mismatch(UserError):
    """Saved tensors that do not fit those that they should be written to."""


def match(wanted: Weights, found: Weights, what: str) -> None:
    """Refuse two sets of tensors that differ in a name or a shape, or of which only one is complex or a whole number.

    Raises:
        Mismatch: names the first weight that is missing, extra, or of another shape or kind.
    """
    for name in wanted.keys() - found.keys():
        raise Mismatch(f"{what}: weight {name!r} is missing")
    for name in found.keys() - wanted.keys():
        raise Mismatch(f"{what}: weight {name!r} is unexpected")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise Mismatch(f"{what}: weight {name!r} has shape {list(found[name].shape)}, expected {list(tensor.shape)}")
        if tensor.is_complex() != found[name].is_complex():
            kinds = ("real", "complex") if tensor.is_complex() else ("complex", "real")
            raise Mismatch(f"{what}: weight {name!r} is {kinds[0]}, expected a {kinds[1]} one")
        if tensor.is_floating_point() and not found[name].is_floating_point():
            raise Mismatch(f"{what}: weight {name!r} is {str(found[name].dtype).removeprefix('torch.')}, expected floating-point numbers")


class Average:
    """One average of one network's weights.

    The shadows are fp32 where the live weights are less precise: a bf16 average of decay 0.9999 would never move. Weights in
    float64 and complex weights are averaged as such; integers and booleans have no mean and are copied. The shadows are on the
    device of the live weights, or in main memory with `offload`, and move with one foreach kernel and no device sync.

    Args:
        averager: the rule.
        weights: the live weights by name. These tensors themselves are kept and read at every update, so they must be the ones
            that are trained. `follow` replaces them; an `AverageBank` does so itself when its network holds other tensors.
        nimg: images seen when the average is created.

    Raises:
        UserError: a weight has no values that could be averaged; names it.
    """

    def __init__(self, averager: Averager, weights: Weights, nimg: int = 0):
        self.averager = AVERAGER.adapt(averager)
        self._live: dict[str, Tensor] = {plain_name(name): tensor for name, tensor in weights.items()}
        for name, tensor in self._live.items():
            require_values(name, tensor)
        self.offload = self.averager.offload
        self._every_kimg = self.averager.update_every_kimg
        self._copied_only = [name for name, tensor in self._live.items() if not has_mean(tensor)]
        with torch.no_grad():
            self._shadows = {name: self._own(tensor).copy_(tensor) for name, tensor in self._live.items()}
            averaged = self._averaged(self._live)
            self.slots = {slot: {n: self._own(t).copy_(t) for n, t in averaged.items()} for slot in self.averager.slots()}
        self.first_nimg = self.previous_nimg = self.nimg = whole_number("nimg", nimg)  # `nimg`: at the last update, looked at or not
        self._num_averaged = 0
        self._unseen = 0  # updates of the live weights since the last look
        self._looks = Looks()
        # An offloaded average takes the live weights in two steps, so that no update waits for a copy: they are copied when a
        # look is due, and averaged at a later update, when the copy has arrived.
        self._arriving: dict[str, Tensor] = {}
        self._arrival: tuple[int, int, int] | None = None
        self._copied = self._event()

    @torch.no_grad()
    def follow(self, weights: Weights) -> None:
        """Go on with other live tensors of the same names and shapes: of another device, precision or layout, or of new layers.

        The average keeps its values, and moves to the device and the layout of the new tensors.

        Raises:
            UserError: a weight is missing, extra, of another shape or without values; nothing has changed then.
        """
        for name in weights.keys() & self._shadows.keys():
            if has_mean(weights[name]) == (name in self._copied_only):
                now, before = weights[name].dtype, self._shadows[name].dtype
                raise UserError(f"weight {name!r} is {now} now, and was {before}; average the network before that change")
        match(self._shadows, weights, "the network that is averaged")
        for name, tensor in weights.items():
            require_values(name, tensor)
        self._settle()
        self._live = {name: weights[name] for name in self._shadows}  # in the order of the shadows: rules go through both side by side
        for tensors in (self._shadows, *self.slots.values()):
            for name, held in tensors.items():
                own = self._own(self._live[name])
                if (own.dtype, own.device, own.stride()) != (held.dtype, held.device, held.stride()):
                    tensors[name] = own.copy_(held)
        self._arriving, self._copied = {}, self._event()

    @property
    def live(self) -> dict[str, Tensor]:
        """The live tensors by name, detached: the values that the next look will see if nothing changes them."""
        return {name: tensor.detach() for name, tensor in self._live.items()}

    @property
    def shadows(self) -> dict[str, Tensor]:
        """The averaged tensors by name."""
        self._settle()
        return self._shadows

    @property
    def num_averaged(self) -> int:
        """How many times the average has moved."""
        self._settle()
        return self._num_averaged

    @property
    def started(self) -> bool:
        """Whether anything has been averaged yet."""
        return self.num_averaged > 0

    @torch.no_grad()
    def update(self, nimg: int) -> bool:
        """Look at the live weights as they are at `nimg` images; returns whether the average has moved, or is about to.

        Raises:
            UserError: `nimg` is not a whole number, or the clock went back.
        """
        nimg = whole_number("nimg", nimg)
        if nimg < self.nimg:
            raise UserError(
                f"nimg: went back from {self.nimg} to {nimg}; it must never decrease, even after a resume (continue from `bank.nimg`)"
            )
        self.nimg = nimg
        self._settle(wait=False)
        self._unseen += 1
        if self._every_kimg is not None and not due(self._every_kimg, self.previous_nimg, nimg):
            return False
        look = (nimg, self.previous_nimg, self._unseen)
        self._looks.add(nimg, self._unseen)
        self.previous_nimg, self._unseen = nimg, 0
        if not self.offload:
            return self._move(self._live, *look)
        self._settle()  # the buffer will be overwritten, and the rule depends on its content
        if self.averager.moves_by_weight and self._weight(*look) <= 0.0:
            return False
        if not self._arriving:
            pinned = self._on_cuda()
            self._arriving = {
                name: torch.empty_like(t, device="cpu", pin_memory=pinned, requires_grad=False) for name, t in self._live.items()
            }
        torch._foreach_copy_(list(self._arriving.values()), list(self._live.values()), non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self._arrival = look
        return True

    @torch.no_grad()
    def _settle(self, wait: bool = True) -> None:
        """Average a copy in main memory; without `wait`, only if it has arrived."""
        if self._arrival is not None:
            if self._copied is not None:
                if not wait and not self._copied.query():
                    return
                self._copied.synchronize()
            look, self._arrival = self._arrival, None
            self._move(self._arriving, *look)

    def _weight(self, nimg: int, previous_nimg: int, updates: int) -> float:
        weight = self.averager.weight(nimg, previous_nimg, self._num_averaged)
        try:
            weight = fraction(f"averager {type(self.averager).__name__}: weight", weight, or_boolean=True)  # `return nimg > 1000` is a rule
        except UserError as error:
            raise WrongResult(f"{error}{place_of(self.averager, 'weight')}") from None
        if updates > 1 and self.averager.per_update:
            weight = 1.0 - (1.0 - weight) ** updates
        return weight

    def _move(self, live: Weights, nimg: int, previous_nimg: int, updates: int) -> bool:
        shadows, averaged = self._averaged(self._shadows), self._averaged(live)
        if self.averager.moves_by_weight:
            weight = self._weight(nimg, previous_nimg, updates)
            moved = weight > 0.0
            if moved:
                lerp(list(shadows.values()), list(averaged.values()), weight)
        else:
            answer = self.averager.update(shadows, averaged, nimg, previous_nimg, self._num_averaged, self.slots)
            if shadows.keys() != averaged.keys() or any(shadows[name].shape != tensor.shape for name, tensor in averaged.items()):
                refuse_result(self.averager, "update", "with the shadows of all weights in their shapes", answer)
            if getattr(answer, "shape", ()) != ():
                refuse_result(self.averager, "update", "whether the average has moved", answer)
            moved = has_moved(answer)
        if moved and self._copied_only:
            torch._foreach_copy_([self._shadows[n] for n in self._copied_only], [live[n] for n in self._copied_only])
        self._num_averaged += moved
        return moved

    def _averaged(self, tensors: Weights) -> Weights:
        """Those that a rule moves; the others are copied."""
        return {n: t for n, t in tensors.items() if n not in self._copied_only} if self._copied_only else tensors

    def _own(self, tensor: Tensor) -> Tensor:
        """A new tensor for the average, laid out like a live one."""
        device = "cpu" if self.offload else tensor.device
        with torch.inference_mode(False):  # an average that is built inside it could never be updated outside
            return torch.empty_like(tensor, dtype=averaged_dtype(tensor), device=device, requires_grad=False)

    def _event(self) -> torch.cuda.Event | None:
        return torch.cuda.Event() if self.offload and self._on_cuda() else None

    def _on_cuda(self) -> bool:
        return any(tensor.is_cuda for tensor in self._live.values())

    @torch.no_grad()
    def write_back(self, names: Iterable[str], alpha: float = 1.0) -> None:
        """Move the live tensors of these names by the fraction `alpha` towards the average; 1 copies it."""
        shadows = self.shadows
        for name in names:
            live = self._live[name]
            average = shadows[name].to(live.device)
            # In the average's precision until the end: a fraction of the distance may be less than the resolution of a bf16 weight.
            whole = alpha >= 1.0 or name in self._copied_only
            live.copy_(average if whole else torch.lerp(live.to(average.dtype), average, alpha))

    @torch.no_grad()
    def restart(self) -> None:
        """Start over from the current live weights."""
        self._settle()
        torch._foreach_copy_(list(self._shadows.values()), list(self._live.values()))
        self.first_nimg, self._looks = self.previous_nimg, Looks()

    @property
    def distance_of_looks(self) -> int:
        """Images between the last two looks; 0 before there were two."""
        return self._looks.last_distance

    def weight_profile(self) -> tuple[np.ndarray, np.ndarray]:
        """(positions `[n + 1]` in images, weights `[n + 1]`): the weight in the average of the live weights of each past look.

        The first position is where the average was created; its weight is what is left of the initial weights. The weights
        add up to 1. For plots and tests: the rule is replayed over the recorded positions, in float64.
        """
        self._settle()
        return weight_profile(self.averager, self._looks.unrolled(), self.first_nimg)

    @torch.no_grad()
    def load(self, shadows: Weights, state: Mapping[str, Any], slots: Mapping[str, Tensor] | None = None) -> None:
        """Continue from saved values, copied into the existing tensors.

        Args:
            shadows: the averaged tensors.
            state: what `state` gave.
            slots: what `slot_tensors` gave.
        """
        match(self._shadows, shadows, "saved average")
        mine, slots = self.slot_tensors(), slots or {}
        slots = {full: tensor for full, tensor in slots.items() if full.partition("/")[2] not in self._copied_only}
        match(mine, slots, "saved average's slots")
        for name, tensor in self._shadows.items():
            tensor.copy_(shadows[name])
        for name, tensor in mine.items():
            tensor.copy_(slots[name])
        self._arrival = None
        counts = {key: whole_number(f"saved average's {key}", state[key]) for key in COUNTS}
        self.first_nimg, self.previous_nimg, self.nimg = counts["first_nimg"], counts["previous_nimg"], counts["nimg"]
        self._num_averaged, self._unseen = counts["num_averaged"], counts["unseen"]
        self._looks = Looks(state["looks"])

    def state(self) -> dict[str, Any]:
        """What `load` needs besides the tensors, as JSON values."""
        return {
            "first_nimg": self.first_nimg,
            "previous_nimg": self.previous_nimg,
            "nimg": self.nimg,
            "num_averaged": self.num_averaged,
            "unseen": self._unseen,
            "looks": [list(run) for run in self._looks.runs],
        }

    def slot_tensors(self) -> dict[str, Tensor]:
        """The slots' tensors as slot/weight, for saving."""
        self._settle()
        return {f"{slot}/{name}": tensor for slot, tensors in self.slots.items() for name, tensor in tensors.items()}

    def duplicate(self, memo: dict[int, Any]) -> Average:
        """A copy without live weights, which `follow` must give it before its next update; for the copy of a bank."""
        self._settle()
        twin = object.__new__(type(self))
        kept = {key: value for key, value in vars(self).items() if key not in ("_live", "_arriving", "_copied")}
        vars(twin).update(copy.deepcopy(kept, memo), _live={}, _arriving={}, _copied=None)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise UserError("an Average cannot be copied: the copy would follow weights that nobody trains; use the state_dict of its bank")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UserError("an Average cannot be pickled: the copy would follow weights that nobody trains; use the state_dict of its bank")


@torch.no_grad()
def write_weights(weights: Weights, network: nn.Module) -> None:
    """Copy named weights into a network of the same structure, strictly by name and shape.

    Raises:
        UserError: a weight is missing, extra, or of another shape.
    """
    targets = named_weights(network)
    match(targets, weights, f"weights for {type(network).__name__}")
    for name, target in targets.items():
        target.copy_(weights[name])


@torch.no_grad()
def write_buffers(buffers: Iterable[tuple[str, Tensor]], network: nn.Module) -> None:
    """Copy buffers by plain name (spectral norms' vectors, BatchNorm statistics, counters) into a network, strictly."""
    sources, targets = dict(buffers), named_buffers(network)
    match(targets, sources, f"buffers for {type(network).__name__}")
    for name, target in targets.items():
        target.copy_(sources[name])
