"""BatchNorm statistics for averaged weights.

An average's activations differ from the live network's, and so do their means and variances. There are four policies:

    recalibrate   measure them for these weights
    copy          use the live network's running statistics, as many trainers do
    average       use running statistics that were averaged like the weights, as BigGAN does
    batch         normalise every batch by its own statistics
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gantrain.averaging.average import match, plain_name, unwrapped
from gantrain.devices import widest_float
from gantrain.errors import UserError

POLICIES = ("recalibrate", "copy", "average", "batch")


def norms_of(network: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms of a network that keep running statistics, by plain module name."""
    return {plain_name(name): m for name, m in unwrapped(network).named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}


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

    The mean is over all samples of all batches, whatever their sizes, and the variance is the total one: the mean of the
    variances within batches plus the variance of the batch means (unbiased, as BatchNorm stores it). Everything else in
    the network stays in evaluation mode. Modes are restored afterwards, and on an exception the statistics too.

    Args:
        network: called as `network(*inputs)`.
        batches: (index in 0 .. num_batches - 1, inputs); each of several processes passes its own part.
        num_batches: number of batches over all processes.
        reduce: sums a tensor over all processes. Every row is filled by one process and zero in the others, so that the
            result is the same to the last bit for any number of them.

    Raises:
        UserError: a BatchNorm saw no values: too few batches were given, or the network is compiled and calls no hooks.
    """
    norms = list(norms_of(network).values())
    if not norms:
        return
    # For each norm, a row per batch: number of values per channel, their means, their variances.
    rows: dict[nn.Module, Tensor] = {
        m: torch.zeros(num_batches, 1 + 2 * m.num_features, dtype=widest_float(device), device=device)
        for m, device in ((m, buffers_of(m)[0].device) for m in norms)
    }
    current = 0

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        dims = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(x, dim=dims, correction=0)
        count = x.new_full((1,), x.numel() / x.shape[1])
        rows[module][current] = torch.cat([count, mean, variance]).to(rows[module].dtype)

    with restored(network, norms) as saved:
        hooks = [m.register_forward_pre_hook(measure) for m in norms]
        try:
            network.eval()
            for m in norms:
                m.train()
            for current, inputs in batches:  # noqa: B007 - read by the hook
                network(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for m, (_, _, counter) in zip(norms, saved):
            total = reduce(rows[m])
            if not total[:, 0].all():
                raise UserError(
                    "recalibrate: a BatchNorm saw no values in some batch;"
                    " pass as many batches as num_batches, and a network that is not compiled"
                )
            for buffer, value in zip(buffers_of(m), (*combine(total), counter)):
                buffer.copy_(value)


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


def buffers_of(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Running mean `[C]`, running variance `[C]` and number of batches `[]` of a BatchNorm that keeps them."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    return norm.running_mean, norm.running_var, norm.num_batches_tracked


def combine(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased total variance `[C]` from rows (count, means, variances) `[batches, 1 + 2C]`."""
    count, mean, variance = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    total = count.sum()
    grand = (count * mean).sum(0) / total
    spread = (count * (variance + (mean - grand) ** 2)).sum(0)
    return grand, spread / (total - 1).clamp(min=1)
