"""The mechanism of an average: fp32 shadows of named weights, which a rule moves towards the live ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gantrain.averaging.rule import AVERAGER, Averager, Weights, lerp
from gantrain.clock import due
from gantrain.errors import UserError

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


def match(wanted: Weights, found: Weights, what: str) -> None:
    """Refuse two sets of tensors that differ in a name or a shape.

    Raises:
        UserError: names the first weight that is missing, extra, or of another shape.
    """
    for name in wanted.keys() - found.keys():
        raise UserError(f"{what}: weight {name!r} is missing")
    for name in found.keys() - wanted.keys():
        raise UserError(f"{what}: weight {name!r} is unexpected")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise UserError(f"{what}: weight {name!r} has shape {list(found[name].shape)}, expected {list(tensor.shape)}")


class Average:
    """One average of one network's weights.

    The shadows are fp32 whatever the live weights are: a bf16 average of decay 0.9999 would never move. They are on the device
    of the live weights, or in main memory with `offload`, and move with one foreach kernel and no device sync.

    Args:
        averager: the rule.
        weights: the live weights by name. These tensors themselves are kept and read at every update.
        nimg: images seen when the average is created.
    """

    def __init__(self, averager: Averager, weights: Weights, nimg: int = 0):
        self.averager = AVERAGER.adapt(averager)
        self.live = {plain_name(name): tensor.detach() for name, tensor in weights.items()}
        self.offload = self.averager.offload
        self._every_kimg = self.averager.update_every_kimg
        self._shadows = {name: self._own(tensor).copy_(tensor) for name, tensor in self.live.items()}
        self.slots = {slot: {n: self._own(t).copy_(t) for n, t in self.live.items()} for slot in self.averager.slots()}
        self.first_nimg = self.previous_nimg = nimg
        self._num_averaged = 0
        self.nimg = nimg  # images seen at the last update, even if the average did not look at it
        self._unseen = 0  # updates of the live weights since the last look
        self._looks = Looks()
        # An offloaded average takes the live weights in two steps, so that no update waits for a copy: they are copied when a
        # look is due, and averaged at a later update, when the copy has arrived.
        self._arriving: dict[str, Tensor] = {}
        self._arrival: tuple[int, int, int] | None = None
        self._copied = torch.cuda.Event() if self.offload and self._on_cuda() else None

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
            UserError: the clock went back.
        """
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
            return self._move(self.live, *look)
        self._settle()  # the buffer will be overwritten, and the rule depends on its content
        if self.averager.moves_by_weight and self._weight(*look) <= 0.0:
            return False
        if not self._arriving:
            self._arriving = {name: torch.empty_like(t, device="cpu", pin_memory=self._on_cuda()) for name, t in self.live.items()}
        torch._foreach_copy_(list(self._arriving.values()), list(self.live.values()), non_blocking=True)
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
        if updates > 1 and self.averager.per_update:
            weight = 1.0 - (1.0 - weight) ** updates
        return weight

    def _move(self, live: Weights, nimg: int, previous_nimg: int, updates: int) -> bool:
        if self.averager.moves_by_weight:
            weight = self._weight(nimg, previous_nimg, updates)
            moved = weight > 0.0
            if moved:
                lerp(list(self._shadows.values()), list(live.values()), weight)
        else:
            moved = self.averager.update(self._shadows, live, nimg, previous_nimg, self._num_averaged, self.slots) is not False
        self._num_averaged += moved
        return moved

    def _own(self, tensor: Tensor) -> Tensor:
        """A new fp32 tensor for the average, laid out like a live one."""
        return torch.empty_like(tensor, dtype=torch.float32, device="cpu" if self.offload else tensor.device)

    def _on_cuda(self) -> bool:
        return any(tensor.is_cuda for tensor in self.live.values())

    @torch.no_grad()
    def write_back(self, names: Iterable[str], alpha: float = 1.0) -> None:
        """Move the live tensors of these names by the fraction `alpha` towards the average; 1 copies it."""
        shadows = self.shadows
        for name in names:
            live = self.live[name]
            average = shadows[name].to(live.device)
            # In fp32 until the end: a fraction of the distance may be less than the resolution of a bf16 weight.
            live.copy_(average if alpha >= 1.0 else torch.lerp(live.float(), average, alpha))

    @torch.no_grad()
    def restart(self) -> None:
        """Start over from the current live weights."""
        self._settle()
        torch._foreach_copy_(list(self._shadows.values()), list(self.live.values()))
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
        match(mine, slots, "saved average's slots")
        for name, tensor in self._shadows.items():
            tensor.copy_(shadows[name])
        for name, tensor in mine.items():
            tensor.copy_(slots[name])
        self._arrival = None
        self.first_nimg, self.previous_nimg, self.nimg = state["first_nimg"], state["previous_nimg"], state["nimg"]
        self._num_averaged, self._unseen = state["num_averaged"], state["unseen"]
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


class Looks:
    """The positions at which an average has looked at the live weights, stored as runs of equal distance.

    Looks after every update are a single run while the batch is constant, so millions of them take a few numbers. If the
    batch does not divide the interval between looks, every change of distance starts a new run.

    A run is [first position, distance, number of looks, updates of the network per look].
    """

    def __init__(self, runs: Sequence[Sequence[int]] = ()):
        self.runs = [list(run) for run in runs]

    def add(self, nimg: int, updates: int) -> None:
        """Record a look at `nimg` images, `updates` updates of the network after the previous look."""
        if self.runs:
            first, distance, count, each = self.runs[-1]
            if each == updates and (count == 1 or nimg == first + distance * count):
                self.runs[-1] = [first, nimg - first if count == 1 else distance, count + 1, each]
                return
        self.runs.append([nimg, 0, 1, updates])

    @property
    def last_distance(self) -> int:
        """Images between the last two looks; 0 before there were two."""
        if not self.runs:
            return 0
        first, distance, count, _ = self.runs[-1]
        if count > 1 or len(self.runs) == 1:
            return distance
        before, step, many, _ = self.runs[-2]
        return first - (before + step * (many - 1))

    def unrolled(self) -> list[tuple[int, int]]:
        """(position, updates since the previous look) of every look."""
        return [(first + distance * i, updates) for first, distance, count, updates in self.runs for i in range(count)]


def weight_profile(averager: Averager, looks: Sequence[int | tuple[int, int]], first_nimg: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The effective weight that a rule gives to the live weights of each position at which it looks.

    Takes time and memory quadratic in the number of looks for rules that have an `update` of their own.

    Args:
        averager: the rule.
        looks: positions in images, or pairs (position, updates of the network since the previous look).
        first_nimg: where the average was created.

    Returns:
        (positions `[n + 1]`, weights `[n + 1]`); the first entry is that of the initial weights.
    """
    pairs = [look if isinstance(look, tuple) else (look, 1) for look in looks]
    positions = np.array([first_nimg, *(nimg for nimg, _ in pairs)], dtype=np.int64)
    weights = np.zeros(len(positions))
    averager = AVERAGER.adapt(averager)
    if not averager.moves_by_weight:
        return positions, _profile_by_running(averager, pairs, first_nimg)
    moves, num_averaged, previous = np.zeros(len(positions)), 0, first_nimg
    for i, (nimg, updates) in enumerate(pairs, start=1):
        moves[i] = averager.weight(nimg, previous, num_averaged)
        if updates > 1 and averager.per_update:
            moves[i] = 1.0 - (1.0 - moves[i]) ** updates
        num_averaged, previous = num_averaged + (moves[i] > 0.0), nimg
    moves[0] = 1.0
    # Each later look keeps the fraction 1 - move of what look i contributed.
    kept = np.cumprod(np.append(1.0, 1.0 - moves[:0:-1]))[::-1]
    weights[:] = moves * kept
    return positions, weights


@torch.no_grad()
def _profile_by_running(averager: Averager, pairs: Sequence[tuple[int, int]], first_nimg: int) -> np.ndarray:
    """The same for any linear rule: its average of weights that are 1 at one position each and 0 at all others."""
    like = lambda: {"w": torch.zeros(len(pairs) + 1, dtype=torch.float64)}  # noqa: E731
    live, shadows, slots = like(), like(), {slot: like() for slot in averager.slots()}
    for tensors in (shadows, *slots.values()):
        tensors["w"][0] = 1.0
    num_averaged, previous = 0, first_nimg
    for i, (nimg, _) in enumerate(pairs, start=1):
        live["w"].zero_()[i] = 1.0
        num_averaged += averager.update(shadows, live, nimg, previous, num_averaged, slots) is not False
        previous = nimg
    return shadows["w"].numpy()


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
