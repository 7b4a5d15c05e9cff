"""BatchNorm statistics for averaged weights."""

from __future__ import annotations

import copy
from contextlib import nullcontext

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
    network.blocks[0].attention = nn.Dropout().eval()
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


# ---- several uses, no use, frozen ------------------------------------------------------------------------------------


def statistics_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance `[C]` over all but the channel axis of `[N, C, ...]`, in float64."""
    flat = values.double().transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


def assert_statistics(norm: nn.Module, values: torch.Tensor) -> None:
    mean, var = statistics_of(values)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-5)


class Twice(nn.Module):
    """One BatchNorm over two inputs; the second only in some batches."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x, y=None):
        return self.norm(x) if y is None else (self.norm(x), self.norm(input=y))


def numbered(batches):
    return ((i, inputs) for i, inputs in enumerate(batches))


def test_all_uses_in_a_forward_count():
    """N(0, 1) and N(10, 1): the variance of both together is 26, and that of the last use 1."""
    torch.manual_seed(0)
    batches = [(torch.randn(500, 3), torch.randn(500, 3) + 10) for _ in range(4)]
    network = Twice(nn.BatchNorm1d(3))
    recalibrate(network, numbered(batches), 4)
    assert_statistics(network.norm, torch.cat([part for batch in batches for part in batch]))
    assert network.norm.running_var.mean().item() == pytest.approx(26, rel=0.02)


def test_uses_count_by_their_values_in_batches_of_any_size():
    """Two uses of unequal sizes in one batch, one in another, three batches of unequal sizes."""
    torch.manual_seed(0)
    batches = [(torch.randn(7, 3), torch.randn(40, 3) * 5 - 3), (torch.randn(90, 3) + 4,), (torch.randn(2, 3), torch.randn(3, 3))]
    network = Twice(nn.BatchNorm1d(3, momentum=None))
    recalibrate(network, numbered(batches), 3)
    assert_statistics(network.norm, torch.cat([part for batch in batches for part in batch]))


class Either(nn.Module):
    """Each batch goes through one of its norms, as in a network with a norm for each domain."""

    def __init__(self, count: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(count))

    def forward(self, x, which):
        return self.norms[which](x)


def test_a_norm_is_measured_over_the_batches_that_use_it():
    torch.manual_seed(0)
    network = Either(2)
    batches = [(torch.randn(20 + i, 3) * (i + 1), i % 2) for i in range(5)]
    recalibrate(network, numbered(batches), 5)
    for which in (0, 1):
        assert_statistics(network.norms[which], torch.cat([x for x, w in batches if w == which]))


def test_a_norm_that_is_never_used_keeps_its_statistics_with_a_warning():
    torch.manual_seed(0)
    network = Either(3)
    network.norms[2].running_mean.fill_(7.0)
    batches = [(torch.randn(20, 3), i % 2) for i in range(4)]
    with pytest.warns(UserWarning, match=r"recalibrate: norms.2: not used in any of the 4 batches; statistics are kept"):
        recalibrate(network, numbered(batches), 4)
    assert network.norms[2].running_mean.tolist() == [7.0] * 3 and network.norms[2].running_var.tolist() == [1.0] * 3
    assert_statistics(network.norms[0], torch.cat([x for x, w in batches if w == 0]))


def test_where_no_norm_is_used_it_is_refused():
    network = nn.Sequential(nn.Linear(3, 3))
    network.aside = [nn.BatchNorm1d(3)]
    network.add_module("unused", nn.BatchNorm1d(3))
    network.forward = lambda x: x
    with pytest.raises(UserError, match="recalibrate: no BatchNorm saw any values; pass inputs that reach them"):
        recalibrate(network, [(0, (torch.randn(4, 3),))], 1)


def test_a_norm_that_is_used_behind_our_back_is_refused_by_name():
    """Compiled code may call no hooks; nor does `.forward`."""
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    network.forward = lambda x: network[1].forward(network[0](x))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match="recalibrate: 1 is used without its hooks, so that its inputs cannot be seen"):
        recalibrate(network, [(0, (torch.randn(4, 3) + 5,))], 1)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.slow
def test_a_part_that_is_compiled_afterwards_or_before():
    """Today's torch calls hooks in compiled parts that were registered later."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.BatchNorm1d(3))
    network = nn.Sequential(nn.Linear(3, 3), torch.compile(inner, backend="eager"))
    network(torch.randn(4, 3))
    x = torch.randn(40, 3) + 5
    recalibrate(network, [(0, (x,))], 1)
    assert_statistics(inner[0], network[0](x).detach())


@pytest.mark.parametrize(
    "norm, shape",
    [
        (nn.BatchNorm1d(3), (6, 3)),
        (nn.BatchNorm1d(3), (6, 3, 5)),
        (nn.BatchNorm2d(3, affine=False), (6, 3, 5, 4)),
        (nn.BatchNorm3d(3), (6, 3, 2, 3, 4)),
        (nn.BatchNorm2d(3, momentum=None), (6, 3, 5, 4)),
        (nn.SyncBatchNorm(3), (6, 3, 5, 4)),
        (nn.BatchNorm1d(3).double(), (6, 3)),
        (nn.BatchNorm1d(3, affine=False).bfloat16(), (6, 3)),
    ],
    ids=lambda v: repr(v).replace(" ", ""),
)
def test_every_kind_of_batchnorm(norm, shape):
    torch.manual_seed(0)
    batches = [(torch.randn(shape).to(norm.running_mean.dtype) * 2 + 3,), (torch.randn(2, *shape[1:]).to(norm.running_mean.dtype),)]
    recalibrate(norm, numbered(batches), 2)
    everything = torch.cat([x for (x,) in batches])
    mean, var = statistics_of(everything)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[norm.running_mean.dtype]
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=tolerance, atol=tolerance)
    assert norm.num_batches_tracked == 0 and norm.training


def test_a_large_mean_does_not_cost_the_variance():
    """1e8 + N(0, 1) in float64."""
    torch.manual_seed(0)
    norm, x = nn.BatchNorm1d(3).double(), torch.randn(100, 3, dtype=torch.float64) + 1e8
    recalibrate(norm, [(0, (x,))], 1)
    torch.testing.assert_close(norm.running_var, x.var(0), rtol=1e-6, atol=0)


def test_norms_without_statistics_are_left_alone():
    network = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    x = torch.randn(8, 3) * 4 + 1
    recalibrate(network, [(0, (x,))], 1)
    assert network[0].running_mean is None
    assert_statistics(network[1], network[0](x))


def test_statistics_that_are_no_longer_tracked_are_measured_all_the_same():
    """In evaluation mode BatchNorm uses what it holds, whatever `track_running_stats` says."""
    norm = nn.BatchNorm1d(3)
    norm.track_running_stats = False
    x = torch.randn(50, 3) * 4 + 1
    recalibrate(norm, [(0, (x,))], 1)
    assert_statistics(norm, x)
    norm.eval()
    torch.testing.assert_close(norm(x).mean(0), torch.zeros(3), atol=1e-5, rtol=0)


class Frozen(nn.Sequential):
    """Keeps its first norm in evaluation mode, as for fine-tuning."""

    def train(self, mode: bool = True):
        super().train(mode)
        self[0].eval()
        return self


@pytest.mark.parametrize("by_train", [False, True])
def test_a_frozen_norm_keeps_its_statistics_and_normalises_by_them(by_train):
    """Frozen by its mode in a network that is trained, or by the network's own `train`, even while all is in evaluation mode."""
    network = (Frozen if by_train else nn.Sequential)(nn.BatchNorm1d(3, eps=0.0), nn.BatchNorm1d(3))
    network[0].running_mean.fill_(2.0)
    network[0].running_var.fill_(4.0)
    if by_train:
        network.eval()
    else:
        network[0].eval()
    modes = [m.training for m in network.modules()]
    x = torch.randn(50, 3) * 3
    words = "recalibrate: 0: in evaluation mode while the network is trained; statistics are kept"
    with nullcontext() if by_train else pytest.warns(UserWarning, match=words):
        recalibrate(network, [(0, (x,))], 1)
    assert network[0].running_mean.tolist() == [2.0] * 3 and network[0].running_var.tolist() == [4.0] * 3
    assert_statistics(network[1], (x - 2) / 2)
    assert [m.training for m in network.modules()] == modes


def test_a_network_in_evaluation_mode_is_not_frozen():
    """Nor is one inside a wrapper that is still in training mode."""
    x = torch.randn(50, 3) * 3
    for wrap in (lambda n: n, nn.Sequential):
        norm = nn.BatchNorm1d(3).eval()
        recalibrate(wrap(norm), [(0, (x,))], 1)
        assert_statistics(norm, x)
        assert not norm.training


def test_instance_norms_with_statistics_keep_them_with_a_warning():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
    x = torch.randn(4, 3, 5)
    with pytest.warns(UserWarning, match="recalibrate: 1: InstanceNorm with track_running_stats=True is not measured; statistics are kept"):
        recalibrate(network, [(0, (x,))], 1)
    assert_statistics(network[0], x)
    assert network[1].running_mean.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    "indices, words",
    [
        ([0, 1], "batch 2 of num_batches=3 was given 0 times; pass each of 0 .. num_batches - 1 once, over all processes together"),
        ([0, 1, 1, 2], "batch 1 of num_batches=3 was given 2 times"),
        ([0, 1, 3], r"batch 3 is not one of 0 .. num_batches - 1 = 2"),
        ([-1, 0, 1], r"batch -1 is not one of 0 .. num_batches - 1 = 2"),
    ],
)
def test_batches_are_given_once_each(indices, words):
    network = nn.BatchNorm1d(3)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match=words):
        recalibrate(network, ((i, (torch.randn(4, 3),)) for i in indices), 3)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_batches_that_every_process_passes_in_full_are_refused():
    with pytest.raises(UserError, match="batch 0 of num_batches=2 was given 2 times"):
        recalibrate(nn.BatchNorm1d(3), numbered([(torch.randn(4, 3),)] * 2), 2, lambda sums: 2 * sums)


def test_an_empty_batch_counts_nothing():
    torch.manual_seed(0)
    network, x = Either(2), torch.randn(9, 3)
    recalibrate(network, numbered([(x, 0), (torch.randn(5, 3), 1)]), 2)
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))
    network.forward = lambda x: network[1](x) if len(x) else network[0](x)
    recalibrate(network, numbered([(x,), (x[:0],)]), 2)
    assert_statistics(network[1], x)


def on_meta() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(2, device="meta"))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: nn.Sequential(nn.LazyBatchNorm1d()),
            "recalibrate: BatchNorm '0' has no shape yet; run one forward pass of the lazy network",
        ),
        (lambda: nn.Sequential(nn.BatchNorm1d(2), nn.LazyBatchNorm1d()), "recalibrate: BatchNorm '1' has no shape yet"),
        (on_meta, "recalibrate: BatchNorm '0' is on the meta device and has no values; materialise the network first"),
    ],
)
def test_a_norm_without_values_is_refused_by_name(build, words):
    network = build()
    with pytest.raises(UserError, match=words):
        recalibrate(network, numbered([(torch.randn(4, 2),)]), 1)
    assert network.training


def test_a_norm_that_does_not_count_its_batches_is_measured():
    torch.manual_seed(0)
    data = [torch.randn(5, 2), torch.randn(9, 2) * 3 + 1]
    network = nn.Sequential(nn.BatchNorm1d(2))
    network[0].num_batches_tracked = None
    recalibrate(network, numbered([(x,) for x in data]), 2)
    assert_statistics(network[0], torch.cat(data))
    assert network[0].num_batches_tracked is None


def test_a_norm_that_does_not_count_its_batches_is_not_used_behind_our_back():
    """Its statistics tell."""

    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.norm.num_batches_tracked = None

        def forward(self, x):
            return self.norm.forward(x)

    network = Direct()
    with pytest.raises(UserError, match="recalibrate: norm is used without its hooks"):
        recalibrate(network, numbered([(torch.randn(4, 2),)]), 1)
    assert torch.equal(network.norm.running_mean, torch.zeros(2))


def test_a_norm_with_half_of_the_statistics_is_left_alone():
    network = nn.Sequential(nn.BatchNorm1d(2))
    network[0].running_var = None
    recalibrate(network, numbered([(torch.randn(4, 2),)]), 1)
    assert torch.equal(network[0].running_mean, torch.zeros(2))
