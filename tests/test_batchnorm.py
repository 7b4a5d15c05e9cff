"""BatchNorm statistics for averaged weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gantrain.averaging import recalibrate
from gantrain.errors import UserError
from gantrain.models import BigGAN


def test_one_layer_gets_the_mean_and_variance_of_all_samples():
    """Batches of 100 and 2: every sample counts the same, and the variance is that of all samples together."""
    torch.manual_seed(0)
    data = [torch.randn(100, 4) * 3 + 1, torch.randn(2, 4) + 50]
    network = nn.Sequential(nn.BatchNorm1d(4))
    recalibrate(network, ((i, (x,)) for i, x in enumerate(data)), len(data))
    everything = torch.cat(data)
    torch.testing.assert_close(network[0].running_mean, everything.mean(0))
    torch.testing.assert_close(network[0].running_var, everything.var(0))


def test_images_are_pooled_over_positions():
    torch.manual_seed(0)
    data = [torch.randn(6, 3, 5, 5), torch.randn(4, 3, 5, 5) * 2 + 1]
    network = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate(network, ((i, (x,)) for i, x in enumerate(data)), len(data))
    everything = torch.cat(data).transpose(0, 1).flatten(1)
    torch.testing.assert_close(network[0].running_mean, everything.mean(1))
    torch.testing.assert_close(network[0].running_var, everything.var(1))


def test_one_batch_is_what_torch_stores():
    """Against BatchNorm's own statistics after one training forward with momentum 1, deep in a generator."""
    torch.manual_seed(0)
    ours, _ = BigGAN(ch=2, dim_z=8).build(16, 1, 10)
    theirs = copy.deepcopy(ours)
    z, y = torch.randn(32, 8), torch.randint(10, (32,))
    recalibrate(ours, [(0, (z, y))], 1)
    theirs.eval()
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
            m.train()
    theirs(z, y)
    for a, b in zip(ours.buffers(), theirs.buffers()):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_any_split_over_processes_gives_the_same_bits():
    torch.manual_seed(0)
    reference, _ = BigGAN(ch=2, dim_z=8).build(16, 1, 10)
    batches = [(i, (torch.randn(8, 8), torch.randint(10, (8,)))) for i in range(5)]
    whole = copy.deepcopy(reference)
    recalibrate(whole, batches, 5)
    for world in (2, 3):
        rows: list[list[torch.Tensor]] = []
        for rank in range(world):  # each process measures its share; nothing is known of the others yet
            rows.append([])
            recalibrate(copy.deepcopy(reference), batches[rank::world], 5, lambda t, mine=rows[rank]: mine.append(t) or torch.ones_like(t))
        totals = iter([sum(shares) for shares in zip(*rows)])
        split = copy.deepcopy(reference)
        recalibrate(split, batches[:1], 5, lambda _, totals=totals: next(totals))
        assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), split.buffers()))


def test_modes_and_spectral_vectors_are_left_alone():
    torch.manual_seed(0)
    network, _ = BigGAN(ch=2, dim_z=8).build(16, 1, 10)
    network.train()
    network.blocks[0].eval()
    modes = [m.training for m in network.modules()]
    vectors = {k: v.clone() for k, v in network.named_buffers() if k.endswith(("_u", "_v"))}
    recalibrate(network, [(0, (torch.randn(8, 8), torch.randint(10, (8,))))], 1)
    assert [m.training for m in network.modules()] == modes
    assert vectors and all(torch.equal(v, dict(network.named_buffers())[k]) for k, v in vectors.items())


def test_an_exception_puts_everything_back():
    torch.manual_seed(0)
    network, _ = BigGAN(ch=2, dim_z=8).build(16, 1, 10)
    network.train()
    before = copy.deepcopy(network.state_dict())

    def batches():
        yield 0, (torch.randn(8, 8), torch.randint(10, (8,)))
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        recalibrate(network, batches(), 2)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(m.training for m in network.modules())
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_a_network_without_batchnorm_is_left_alone():
    recalibrate(nn.Sequential(nn.Linear(2, 2)), iter([]), 3)


def test_fewer_batches_than_were_announced_are_refused_and_nothing_changes():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match="a BatchNorm saw no values in some batch; pass as many batches as num_batches"):
        recalibrate(network, ((i, (torch.randn(8, 3),)) for i in range(2)), 3)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
