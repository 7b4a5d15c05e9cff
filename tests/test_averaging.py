"""Averages: against torch.optim.swa_utils, closed forms, and the clock of images."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from gantrain.averaging import AVERAGERS, Average, AverageBank, Ema, EmaSteps, Swa
from gantrain.config.lr_tail import LrTail
from gantrain.errors import UserError


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def wander(live: nn.Module, step: int) -> None:
    """Move the weights by a step of a random walk."""
    torch.manual_seed(1000 + step)
    with torch.no_grad():
        for p in live.parameters():
            p.add_(torch.randn_like(p) * 0.1)


def profile(averager, positions: list[int]) -> torch.Tensor:
    """The weight that each of the live values at `positions` has in the average; the last entry is the start's.

    The live "weights" are one-hot in time, so that the average itself is its profile.
    """
    live = torch.zeros(len(positions) + 1)
    live[-1] = 1.0
    average = Average(averager, {"w": live})
    for i, nimg in enumerate(positions):
        live.zero_()
        live[i] = 1.0
        average.update(nimg)
    return average.shadows["w"]


@pytest.mark.parametrize("cls", AVERAGERS.values(), ids=AVERAGERS.keys())
def test_contract(cls):
    """A frozen dataclass whose weight is in [0, 1], pure, and whose average of a constant is that constant."""
    averager = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        averager.anything = 1
    if not hasattr(averager, "update"):
        for nimg, previous, n in [(64, 0, 0), (128, 64, 1), (500_000, 499_936, 7), (10**9, 10**9 - 2048, 10**6)]:
            assert 0.0 <= averager.weight(nimg, previous, n) <= 1.0
            assert averager.weight(nimg, previous, n) == averager.weight(nimg, previous, n)
    average = Average(averager, {"w": torch.full((3,), 2.5)})
    for nimg in range(64, 300_000, 4096):
        average.update(nimg)
    assert average.started and torch.equal(average.shadows["w"], torch.full((3,), 2.5))


def test_swa_is_torch_swa():
    live = network()
    ours = AverageBank(live, {"swa": Swa(start_kimg=0, every_kimg=0.01)})
    theirs = AveragedModel(live, multi_avg_fn=get_swa_multi_avg_fn())
    for step in range(1, 51):
        wander(live, step)
        ours.update(step * 10)
        theirs.update_parameters(live)
    for name, p in theirs.module.named_parameters():
        torch.testing.assert_close(ours.averages["swa"].shadows[name], p, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_ema_is_torch_ema(decay):
    """Per-step decay, and the half-life in images that is the same decay at a fixed batch."""
    live, batch = network(), 32
    half_life_kimg = batch * math.log(0.5) / math.log(decay) / 1000
    ours = AverageBank(live, {"steps": EmaSteps(decay=decay), "images": Ema(half_life_kimg=half_life_kimg, ramp_up=None)})
    theirs = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(decay))
    theirs.update_parameters(live)  # torch's first update copies; ours starts from the live weights
    for step in range(1, 51):
        if step > 1:
            wander(live, step)
            theirs.update_parameters(live)
        ours.update(step * batch)
    for name, p in theirs.module.named_parameters():
        torch.testing.assert_close(ours.averages["steps"].shadows[name], p, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.averages["images"].shadows[name], p, rtol=0, atol=1e-6)


def biggans_ema(path: np.ndarray, decay: float, start: int) -> np.ndarray:
    """`utils.ema` of BigGAN-PyTorch: a copy of the initial weights, pegged to the live ones while the iteration is below the start.

    path[i] are the weights after i updates; its iterations count from 1.
    """
    average = path[0]
    for iteration in range(1, len(path)):
        kept = 0.0 if iteration < start else decay
        average = average * kept + path[iteration] * (1 - kept)
    return average


@pytest.mark.parametrize("start", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("batch_size", [None, 50])
def test_ema_steps_is_biggans(start, batch_size):
    """In particular from a start of 0, where it decays from the initial weights."""
    path = np.random.default_rng(0).standard_normal((31, 4))
    live = torch.tensor(path[0])
    average = Average(EmaSteps(decay=0.9, start_kimg=start * 50 / 1000, batch_size=batch_size), {"w": live})
    for step in range(1, 31):
        live.copy_(torch.tensor(path[step]))
        average.update(step * 50)
        np.testing.assert_allclose(average.shadows["w"], biggans_ema(path[: step + 1], 0.9, start), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("positions", [[100, 200, 300], [64, 128, 192, 320, 448, 704], [7, 1000]])
def test_ema_forgets_its_start_by_half_every_half_life_whatever_the_batch(positions):
    weights = profile(Ema(half_life_kimg=0.25, ramp_up=None), positions)
    start = 0.5 ** (positions[-1] / 250)
    assert weights[-1].item() == pytest.approx(start, rel=1e-5)
    assert weights[:-1].sum().item() == pytest.approx(1 - start, rel=1e-5)


def test_two_updates_on_the_same_weights_are_one():
    once, twice = (Average(Ema(half_life_kimg=0.1, ramp_up=None), {"w": torch.zeros(1)}) for _ in range(2))
    for average, positions in ((once, [200]), (twice, [100, 200])):
        average.live["w"].fill_(1.0)
        for nimg in positions:
            average.update(nimg)
    assert once.shadows["w"].item() == pytest.approx(twice.shadows["w"].item(), rel=1e-6)


def test_the_ramp_alone_is_a_power_function_average():
    """Half-life r*n gives the profile of a power-function average with gamma = ln 2 / r - 1 (Karras et al. 2024), for small batches."""
    r, batch, n = 0.1, 1, 4000
    weights = profile(Ema(half_life_kimg=1e9, ramp_up=r), list(range(batch, n + 1, batch))).double()[:-1]
    gamma = math.log(2) / r - 1
    t = torch.arange(batch, n + 1, batch, dtype=torch.float64) / n
    mean = (weights * t).sum()
    assert mean.item() == pytest.approx((gamma + 1) / (gamma + 2), abs=2e-3)
    assert (((t - mean) ** 2 * weights).sum().sqrt()).item() == pytest.approx(
        math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))), abs=2e-3
    )


def test_ema_steps_follows_exactly_until_its_start():
    positions = [100, 200, 300, 400]
    weights = profile(EmaSteps(decay=0.9, start_kimg=0.25), positions)
    # At 200 it is a copy; 300 and 400 are averaged in with 0.1.
    assert weights.tolist() == pytest.approx([0.0, 0.81, 0.09, 0.1, 0.0], abs=1e-7)


def test_swa_collects_from_its_start_at_its_distance():
    positions = list(range(64, 2049, 64))
    weights = profile(Swa(start_kimg=0.5, every_kimg=0.25), positions)
    collected = [p for p, w in zip(positions, weights) if w > 0]
    expected = [next(p for p in positions if p >= k) for k in range(500, 2049, 250)]
    assert collected == expected
    assert weights[weights > 0].tolist() == pytest.approx([1 / len(expected)] * len(expected), rel=1e-5)


def test_an_average_that_has_not_begun_says_so():
    bank = AverageBank(network(), {"swa": Swa(start_kimg=1), "ema": Ema()})
    bank.update(500)
    assert bank.started() == ["ema"]
    bank.update(1000)
    assert bank.started() == ["swa", "ema"]


def test_an_average_that_is_no_step_updates_itself():
    class Largest:
        def update(self, shadows, live, nimg, previous_nimg, num_averaged, slots):
            for name, shadow in shadows.items():
                torch.maximum(shadow, live[name], out=shadow)

    live = torch.zeros(2)
    average = Average(Largest(), {"w": live})
    for nimg, value in ((64, 3.0), (128, -1.0)):
        live.fill_(value)
        average.update(nimg)
    assert average.shadows["w"].tolist() == [3.0, 3.0] and average.num_averaged == 2 and average.previous_nimg == 128


def test_bf16_weights_move_an_fp32_average():
    """A bf16 average of decay 0.9999 never moves: 1e-4 of the difference is below half a unit in the last place."""
    live = torch.ones(4, dtype=torch.bfloat16)
    average = Average(EmaSteps(decay=0.9999), {"w": live})
    average.update(1)
    live.fill_(1.03125)
    for step in range(2, 1002):
        average.update(step)
    expected = 1 + 0.03125 * (1 - 0.9999**1000)
    assert average.shadows["w"].dtype == torch.float32
    assert average.shadows["w"][0].item() == pytest.approx(expected, rel=1e-5)


def test_save_load_continue_is_bit_equal():
    averagers = {"ema": Ema(half_life_kimg=1), "swa": Swa(start_kimg=0.1, every_kimg=0.1), "steps": EmaSteps()}
    live, twin = network(), network()
    bank = AverageBank(live, averagers)
    for step in range(1, 11):
        wander(live, step)
        bank.update(step * 50)
    twin.load_state_dict(live.state_dict())
    other = AverageBank(twin, averagers)
    other.load({n: {k: v.clone() for k, v in t.items()} for n, t in bank.tensors().items()}, copy.deepcopy(bank.state()))
    for step in range(11, 21):
        for net, b in ((live, bank), (twin, other)):
            wander(net, step)
            b.update(step * 50)
    for name, shadows in bank.tensors().items():
        for key, tensor in shadows.items():
            assert torch.equal(tensor, other.tensors()[name][key])


class Wrapper(nn.Module):
    """Names its content as DistributedDataParallel does."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


def test_wrapped_networks_bind_by_the_same_names():
    plain = network()
    compiled = torch.compile(network(), backend="eager")
    assert any(name.startswith("_orig_mod.") for name, _ in compiled.named_parameters())
    for wrapped in (Wrapper(network()), compiled):
        bank = AverageBank(wrapped, {"ema": Ema()})
        assert bank.weight_names == [n for n, _ in plain.named_parameters()]
        bank.update(64)
        bank.materialize("ema", plain)


def test_a_mismatch_is_refused_by_name():
    bank = AverageBank(network(), {"ema": Ema()})
    shadows, state = bank.tensors()["ema"], bank.state()
    with pytest.raises(UserError, match="'2.bias' is missing"):
        bank.load({"ema": {k: v for k, v in shadows.items() if k != "2.bias"}}, state)
    with pytest.raises(UserError, match="weight 'more' is unexpected"):
        bank.load({"ema": {**shadows, "more": torch.zeros(1)}}, state)
    with pytest.raises(UserError, match=r"'2.bias' has shape \[4\], expected \[3\]"):
        bank.load({"ema": {**shadows, "2.bias": torch.zeros(4)}}, state)
    with pytest.raises(UserError, match="no average 'emma'; did you mean 'ema'"):
        bank.materialize("emma", network())
    with pytest.raises(UserError, match="has no average 'ema'"):
        bank.load({}, {})
    bank.update(64)
    with pytest.raises(UserError, match="is missing"):
        bank.materialize("ema", nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3), nn.Linear(3, 3)))


def test_materialize_writes_weights_and_live_buffers_and_leaves_the_live_network():
    live, target = network(0), network(1)
    bank = AverageBank(live, {"ema": Ema(half_life_kimg=1)})
    wander(live, 1)
    live(torch.randn(8, 5))
    bank.update(100)
    before = copy.deepcopy(live.state_dict())
    bank.materialize("ema", target)
    assert torch.equal(target[0].weight, bank.averages["ema"].shadows["0.weight"])
    assert torch.equal(target[1].running_mean, live[1].running_mean) and target[1].num_batches_tracked == 1
    bank.materialize("live", target)
    assert torch.equal(target[0].weight, live[0].weight)
    assert all(torch.equal(before[k], v) for k, v in live.state_dict().items())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Ema(half_life_kimg=0), "half_life_kimg: must be above 0, got 0"),
        (lambda: Ema(ramp_up=-1), "ramp_up: must be above 0, or null for none"),
        (lambda: EmaSteps(decay=1.0), r"decay: must be in \[0, 1\), got 1.0"),
        (lambda: Swa(every_kimg=0), "every_kimg: must be above 0"),
        (lambda: Swa(start_kimg=-1), "start_kimg: must be at least 0"),
        (lambda: LrTail(low=2.0), r"low: must be above 0 and at most high \(0.5\)"),
        (lambda: LrTail(start_kimg=1, anneal_kimg=2), "anneal_kimg: must be between 0 and start_kimg"),
    ],
)
def test_impossible_hyper_parameters_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


# ---- the learning-rate tail ------------------------------------------------------------------------------------------


def test_no_tail_is_one():
    assert {LrTail().multiplier(n, n + 64) for n in (0, 10**5, 10**7)} == {1.0}


def test_a_constant_tail_is_reached_linearly():
    tail = LrTail(kind="constant", start_kimg=100, anneal_kimg=50, high=0.2)
    assert [tail.multiplier(1000 * k - 64, 1000 * k) for k in (1, 50, 75, 100, 101, 1000)] == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2, 0.2])


def test_a_cyclical_tail_is_the_papers():
    """alpha(i) = (1 - t) alpha_1 + t alpha_2, t = (mod(i - 1, c) + 1) / c for i = 1, 2, ... (Izmailov et al. 2018, section 3.2)."""
    c, high, low = 8, 0.5, 0.1
    tail = LrTail(kind="cyclical", start_kimg=1, high=high, low=low, cycle_kimg=c * 0.064)
    for i in range(1, 33):
        t = ((i - 1) % c + 1) / c
        assert tail.multiplier(1000 + 64 * (i - 1), 1000 + 64 * i) == pytest.approx((1 - t) * high + t * low)


@pytest.mark.parametrize("batch, cycle_kimg", [(64, 0.64), (64, 0.7), (50, 1.0), (48, 0.7)])
def test_swa_collects_where_a_cycle_is_lowest(batch, cycle_kimg):
    """Also where the batch does not divide the cycle."""
    tail = LrTail(kind="cyclical", start_kimg=1, high=0.5, low=0.1, cycle_kimg=cycle_kimg)
    swa = Swa(start_kimg=1, every_kimg=cycle_kimg)
    ends = range(batch, 8000, batch)
    rates = [tail.multiplier(n - batch, n) for n in ends if n > 1000 + batch and swa.weight(n, n - batch, 1) > 0]
    assert len(rates) >= 6 and rates == pytest.approx([0.1] * len(rates))
