"""BatchNorm statistics that belong to averaged weights.

An average's activations are not the live network's, so neither are their means and variances. `recalibrate` measures them
anew; copying the live ones, as many trainers do, costs points of FID.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

POLICIES = ("recalibrate", "copy")


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
    the network stays in evaluation mode, and on an exception the statistics and modes are put back.

    Args:
        network: called as `network(*inputs)`.
        batches: (index in 0 .. num_batches - 1, inputs); with several processes each brings its own share.
        num_batches: over all processes.
        reduce: sums a tensor over all processes. Every row is filled by one process and zero in the others, so that the
            result is the same to the last bit for any number of them.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    modes = {module: module.training for module in network.modules()}
    saved = [(m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone()) for m in norms]
    # For each norm a row a batch: how many values a channel, their means, their variances.
    rows = {m: torch.zeros(num_batches, 1 + 2 * m.num_features, dtype=torch.float64, device=m.running_mean.device) for m in norms}
    current = 0

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        dims = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(x, dim=dims, correction=0)
        count = x.new_full((1,), x.numel() / x.shape[1])
        rows[module][current] = torch.cat([count, mean, variance]).double()

    hooks = [m.register_forward_pre_hook(measure) for m in norms]
    done = False
    try:
        network.eval()
        for m in norms:
            m.train()
        for current, inputs in batches:  # noqa: B007 - read by the hook
            network(*inputs)
        for m, (_, _, counter) in zip(norms, saved):
            mean, variance = combine(reduce(rows[m]))
            m.running_mean.copy_(mean)
            m.running_var.copy_(variance)
            m.num_batches_tracked.copy_(counter)
        done = True
    finally:
        for hook in hooks:
            hook.remove()
        if not done:
            for m, buffers in zip(norms, saved):
                for buffer, value in zip((m.running_mean, m.running_var, m.num_batches_tracked), buffers):
                    buffer.copy_(value)
        for module, training in modes.items():
            module.training = training


def combine(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased total variance `[C]` from rows (count, means, variances) `[batches, 1 + 2C]`."""
    count, mean, variance = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    total = count.sum()
    grand = (count * mean).sum(0) / total
    spread = (count * (variance + (mean - grand) ** 2)).sum(0)
    return grand, spread / (total - 1).clamp(min=1)
