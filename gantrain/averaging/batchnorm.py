"""BatchNorm statistics for averaged weights.

An average's activations differ from the live network's, and so do their means and variances. There are four policies:

    recalibrate   measure them for these weights
    copy          use the live network's running statistics, as many trainers do
    average       use running statistics that were averaged like the weights, as BigGAN does
    batch         normalise every batch by its own statistics
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from gantrain.averaging.average import match, plain_name, unwrapped
from gantrain.devices import widest_float
from gantrain.errors import UserError

POLICIES = ("recalibrate", "copy", "average", "batch")


def norms_of(network: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms of a network that hold running statistics, by plain module name.

    In evaluation mode BatchNorm uses what it holds, whatever `track_running_stats` says later.
    """
    modules = unwrapped(network).named_modules()
    norms = {plain_name(name): m for name, m in modules if isinstance(m, _BatchNorm)}
    return {name: m for name, m in norms.items() if m.running_mean is not None and m.running_var is not None}


def named_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Running means and variances by plain name."""
    return {f"{name}.{key}": getattr(norm, key) for name, norm in norms_of(network).items() for key in ("running_mean", "running_var")}


@torch.no_grad()
def write_statistics(statistics: Mapping[str, Tensor], network: nn.Module) -> None:
    """Copy named running means and variances into a network, strictly by name and shape.

    A variance below 0 becomes 0: rules with negative weights, and post-hoc averages, can produce one.
    """
    targets = named_statistics(network)
    match(targets, statistics, f"BatchNorm statistics for {type(network).__name__}")
    for name, target in targets.items():
        target.copy_(statistics[name])
        if name.endswith("running_var"):
            target.clamp_(min=0.0)


def normalise_by_batch(network: nn.Module) -> None:
    """Switch to evaluation mode, but let BatchNorms normalise every batch by its own statistics; the running ones stay."""
    network.eval()
    for norm in norms_of(network).values():
        norm.train()
        norm.momentum = 0.0  # so that batches do not change the running statistics


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    batches: Iterable[tuple[int, tuple[Any, ...]]],
    num_batches: int,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> None:
    """Replace all BatchNorm statistics by those of `num_batches` forwards with batch statistics.

    The mean is over all values that a BatchNorm has seen in all batches, whatever their sizes and however often it was used in
    each, and the variance is the total one: the mean of the variances within uses plus the variance of their means (unbiased, as
    BatchNorm stores it). Everything else in the network stays in evaluation mode. Modes are restored afterwards, and on an
    exception the statistics too. Only torch's own BatchNorms and what inherits from them are known here.

    Left as they are: BatchNorms that were not used in any batch and InstanceNorms, with a warning that names them, and frozen
    BatchNorms. One is frozen if `network.train()` leaves it in evaluation mode, or if it is in evaluation mode while others and the
    network are in training mode, of which there is a warning, too.

    Args:
        network: called as `network(*inputs)`.
        batches: (index in 0 .. num_batches - 1, inputs); each of several processes passes its own part.
        num_batches: number of batches over all processes.
        reduce: sums a tensor over all processes. Every row is filled by one process and zero in the others, so that the
            result is the same to the last bit for any number of them.

    Raises:
        UserError: the batches are not 0 .. num_batches - 1, each once; no BatchNorm saw any values; one was used without its hooks,
            as compiled code may; or one has no statistics yet, as in a lazy network before its first forward pass.
    """
    warn_of_instance_statistics(network)
    frozen = frozen_norms(network)
    norms = {name: m for name, m in norms_of(network).items() if m not in frozen}
    if not norms:
        return
    for name, m in norms.items():
        require_statistics(name, m)
    rows: dict[nn.Module, Tensor] = {
        m: torch.zeros(num_batches, 2 + 2 * m.num_features, dtype=widest_float(device), device=device)
        for m, device in ((m, buffers_of(m)[0].device) for m in norms.values())
    }
    with restored(network, list(norms.values())) as saved:
        measure(network, batches, rows)
        unused, hidden = [], []
        for (name, m), before in zip(norms.items(), saved):
            total = reduce(rows[m])
            require_each_once(total[:, 0])
            if total[:, 1].any():
                for buffer, value in zip(buffers_of(m), (*combine(total[:, 1:]), *before[2:])):
                    buffer.copy_(value)
            elif not all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in zip(buffers_of(m), before)):
                hidden.append(name)
            else:
                unused.append(name)
        if hidden:  # said only now: all processes take part in every `reduce`
            raise UserError(
                f"recalibrate: {hidden[0]} is used without its hooks, so that its inputs cannot be seen; pass a network without compilation"
            )
        if len(unused) == len(norms):
            raise UserError("recalibrate: no BatchNorm saw any values; pass inputs that reach them, and a network that is not compiled")
    if unused:
        warnings.warn(f"recalibrate: {', '.join(unused)}: not used in any of the {num_batches} batches; statistics are kept", stacklevel=3)


def measure(network: nn.Module, batches: Iterable[tuple[int, tuple[Any, ...]]], rows: Mapping[nn.Module, Tensor]) -> None:
    """Fill the rows of this process's batches: 1, number of values per channel, their means, their variances.

    A use that follows another one in the same batch is pooled with it (Chan et al. 1979).
    """
    current, used = 0, set()

    def add(module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = arguments[0] if arguments else named["input"]
        if x.numel() == 0:
            return
        x = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], correction=0)
        count = x.new_full((1,), x.numel() / x.shape[1])
        found = torch.cat([count, mean, variance]).to(rows[module].dtype)
        row = rows[module][current, 1:]
        row.copy_(pooled(row, found) if (module, current) in used else found)
        used.add((module, current))

    hooks = [m.register_forward_pre_hook(add, with_kwargs=True) for m in rows]
    synced = [m for m in rows if isinstance(m, nn.SyncBatchNorm)]
    try:
        network.eval()
        for m in rows:
            m.train()
        for m in synced:  # by its own batch: other processes may have fewer batches, and would not answer
            vars(m)["forward"] = functools.partial(_BatchNorm.forward, m)
        for index, inputs in batches:
            current = index
            for measured in rows.values():
                if not 0 <= current < len(measured):
                    raise UserError(f"recalibrate: batch {current} is not one of 0 .. num_batches - 1 = {len(measured) - 1}")
                measured[current, 0] += 1
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for m in synced:
            vars(m).pop("forward", None)


def require_each_once(given: Tensor) -> None:
    """Refuse batches that are missing, or were given more than once. `given`: how often, `[num_batches]`."""
    counts = [int(count) for count in given.tolist()]
    if all(count == 1 for count in counts):
        return
    index, count = next((i, c) for i, c in enumerate(counts) if c != 1)
    raise UserError(
        f"recalibrate: batch {index} of num_batches={len(counts)} was given {count} times;"
        " pass each of 0 .. num_batches - 1 once, over all processes together"
    )


def warn_of_instance_statistics(network: nn.Module) -> None:
    """Say that InstanceNorms which normalise by running statistics keep them: they are not measured."""
    kept = [n for n, m in unwrapped(network).named_modules() if isinstance(m, _InstanceNorm) and m.track_running_stats]
    if kept:
        names = ", ".join(map(plain_name, kept))
        warnings.warn(
            f"recalibrate: {names}: InstanceNorm with track_running_stats=True is not measured; statistics are kept", stacklevel=4
        )


def frozen_norms(network: nn.Module) -> set[_BatchNorm]:
    """BatchNorms that are never trained: see `recalibrate`. The modes of the network are left as they are."""
    norms = norms_of(network)
    modes = {module: module.training for module in network.modules()}
    by_mode = {name for name, m in norms.items() if network.training and not m.training}
    try:
        network.train()
        by_train = {name for name, m in norms.items() if not m.training}
    finally:
        for module, training in modes.items():
            module.training = training
    if len(by_mode) == len(norms):  # a network in evaluation mode inside a wrapper that nobody has switched
        by_mode = set()
    if told := sorted(by_mode - by_train):
        warnings.warn(f"recalibrate: {', '.join(told)}: in evaluation mode while the network is trained; statistics are kept", stacklevel=4)
    return {norms[name] for name in by_mode | by_train}


@contextmanager
def restored(network: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Yield the current statistics of the norms; restore the modes of the network, and on an exception the statistics too."""
    modes = {module: module.training for module in network.modules()}
    saved = [tuple(buffer.clone() for buffer in buffers_of(m)) for m in norms]
    try:
        yield saved
    except BaseException:
        for m, buffers in zip(norms, saved):
            for buffer, value in zip(buffers_of(m), buffers):
                buffer.copy_(value)
        raise
    finally:
        for module, training in modes.items():
            module.training = training


def buffers_of(norm: _BatchNorm) -> tuple[Tensor, ...]:
    """Running mean `[C]`, running variance `[C]` and, where it is counted, the number of batches `[]` of a norm of `norms_of`."""
    return tuple(one for one in (norm.running_mean, norm.running_var, norm.num_batches_tracked) if one is not None)


def require_statistics(name: str, norm: _BatchNorm) -> None:
    """Refuse a BatchNorm whose running statistics are not made yet.

    Raises:
        UserError: names it.
    """
    if any(is_lazy(one) for one in buffers_of(norm)):
        raise UserError(f"recalibrate: BatchNorm {name!r} has no shape yet; run one forward pass of the lazy network first")
    if any(one.is_meta for one in buffers_of(norm)):
        raise UserError(f"recalibrate: BatchNorm {name!r} is on the meta device and has no values; materialise the network first")


def combine(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased total variance `[C]` from rows (count, means, variances) `[batches, 1 + 2C]`; a row of zeros does not count."""
    count, mean, variance = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    total = count.sum()
    grand = (count * mean).sum(0) / total
    spread = (count * (variance + (mean - grand) ** 2)).sum(0)
    return grand, spread / (total - 1).clamp(min=1)


def pooled(a: Tensor, b: Tensor) -> Tensor:
    """(count, means, variances) `[1 + 2C]` of the values of two such rows together."""
    rows = torch.stack([a, b])
    count, mean, variance = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    total = count.sum()
    grand = (count * mean).sum(0) / total
    return torch.cat([total.view(1), grand, (count * (variance + (mean - grand) ** 2)).sum(0) / total])
