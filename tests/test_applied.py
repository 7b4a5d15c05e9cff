"""`with bank.applied(...)`: an average in the network for a while, and the network afterwards as if nothing had been."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from conftest import ROOT
from torch import nn

from gantrain.averaging import AverageBank, Ema, EmaSteps, Swa, recalibrate
from gantrain.errors import UserError
from gantrain.models import BigGAN


def trained() -> tuple[nn.Module, AverageBank]:
    """A generator with spectral norms, BatchNorm and mixed modes, after a few updates of its average."""
    torch.manual_seed(0)
    network, _ = BigGAN(ch=2, dim_z=8).build(8, 1, 3)
    network.blocks[0].eval()
    bank = AverageBank(network, {"ema": EmaSteps(decay=0.5), "late": Swa(start_kimg=1)})
    for step in range(1, 5):
        network(*inputs(step))
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        bank.update(step)
    return network, bank


def inputs(seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 8, generator=generator), torch.randint(3, (6,), generator=generator)


def everything(network: nn.Module) -> tuple:
    state = {n: t.clone() for n, t in network.state_dict(keep_vars=True).items()}
    return state, [m.training for m in network.modules()], [p.data_ptr() for p in network.parameters()]


def assert_as_before(network: nn.Module, before: tuple) -> None:
    state, modes, pointers = everything(network)
    assert state.keys() == before[0].keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, before[0][name]) and tensor.dtype == before[0][name].dtype, name
    assert modes == before[1] and pointers == before[2]


@pytest.mark.parametrize("statistics", [False, True])
def test_the_network_is_the_average_inside_and_itself_outside(statistics):
    """Inside it draws what a generator draws that the average was materialised into."""
    network, bank = trained()
    before, twin = everything(network), copy.deepcopy(network).eval()
    bank.materialize("ema", twin, averaged_statistics=statistics)
    live = copy.deepcopy(network).eval()(*inputs())
    with torch.no_grad(), bank.applied("ema", averaged_statistics=statistics) as inside:
        assert inside is network
        network.eval()
        images = network(*inputs())
        assert torch.equal(images, twin(*inputs())) and not torch.allclose(images, live)
        network.train()
        network(*inputs())  # moves BatchNorm's statistics and the spectral norms' vectors
    assert_as_before(network, before)


def test_training_goes_on_as_if_there_had_been_no_validation():
    """Weights, averages, optimizer: bit for bit."""
    pairs = []
    for validates in (False, True):
        network, bank = trained()
        optimizer = torch.optim.Adam(network.parameters())
        for step in range(5, 9):
            if validates:
                with bank.applied("ema"), torch.no_grad():
                    network(*inputs(1))
            optimizer.zero_grad()
            network(*inputs(step)).square().sum().backward()
            optimizer.step()
            bank.update(step)
        pairs.append((network, bank))
    (a, first), (b, second) = pairs
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert all(torch.equal(t, second["ema"].shadows[n]) for n, t in first["ema"].shadows.items())


def test_recalibration_inside_is_undone_too():
    network, bank = trained()
    network.train()
    before, twin = everything(network), copy.deepcopy(network)
    bank.materialize("ema", twin)
    recalibrate(twin, [(0, inputs())], 1)
    with bank.applied("ema"):
        recalibrate(network, [(0, inputs())], 1)
        for name, buffer in network.named_buffers():
            assert torch.equal(buffer, dict(twin.named_buffers())[name])
    assert_as_before(network, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_takes_the_average_out_and_comes_through(error):
    network, bank = trained()
    before = everything(network)
    with pytest.raises(error), bank.applied("ema"):
        network.eval()
        raise error
    assert_as_before(network, before)
    bank.update(9)


def test_a_failure_to_put_it_in_leaves_the_network_alone(monkeypatch):
    network, bank = trained()
    before = everything(network)
    monkeypatch.setattr("gantrain.averaging.bank.refresh_spectral_norms", lambda network: 1 / 0)
    with pytest.raises(ZeroDivisionError), bank.applied("ema"):
        raise AssertionError("never comes here")
    assert_as_before(network, before)


def test_live_changes_nothing_so_that_a_loop_may_have_it():
    network, bank = trained()
    before = everything(network)
    for name in ["live", *bank.started()]:
        with bank.applied(name):
            assert torch.equal(network.last.parametrizations.weight.original, before[0]["last.parametrizations.weight.original"]) == (
                name == "live"
            )
    assert_as_before(network, before)


def test_calls_that_need_the_live_weights_are_refused_inside():
    """Of this bank, and of another one of the same network, wrapped or not."""
    network, bank = trained()

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network

    other = AverageBank(Wrapper(), {"ema": Ema()})
    before = {n: t.clone() for n, t in bank["ema"].shadows.items()}
    calls = {
        "update": lambda b: b.update(9),
        "advance": lambda b: b.advance(1),
        "materialize": lambda b: b.materialize("live", copy.deepcopy(network)),
        "write_back": lambda b: b.write_back("ema"),
        "distance": lambda b: b.distance("ema"),
        "load": lambda b: b.load_state_dict(b.state_dict()),
        "applied": lambda b: b.applied("ema").__enter__(),
        "__deepcopy__": lambda b: copy.deepcopy((network, b)),
    }
    with bank.applied("ema"):
        for one in (bank, other):
            for name, call in calls.items():
                words = rf"bank.{name}: the network holds the average 'ema'; leave the `with bank.applied\('ema'\)` block first"
                with pytest.raises(UserError, match=words):
                    call(one)
        bank.state_dict()  # reads the averages alone
        with pytest.raises(UserError, match="AverageBank: the network holds the average 'ema'; leave the `with"):
            AverageBank(network, {"new": Ema()})
    bank.update(9)
    other.update(9)
    assert not torch.equal(bank["ema"].shadows["last.bias"], before["last.bias"])


def step_of(network: nn.Module) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(*inputs()).square().sum().backward()
    optimizer.step()


def replace(network: nn.Module) -> None:
    network.last_norm.weight = nn.Parameter(torch.zeros_like(network.last_norm.weight))


def add(network: nn.Module) -> None:
    network.extra = nn.Linear(2, 2)


def replace_layer(network: nn.Module) -> None:
    network.last_norm = nn.BatchNorm2d(network.last_norm.num_features)


def remove(network: nn.Module) -> None:
    del network.last_norm.bias


def assign(network: nn.Module) -> None:
    network.load_state_dict({n: t.clone() for n, t in network.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [step_of, replace, add, replace_layer, remove, assign])
def test_training_inside_is_undone_and_said(change):
    """The modules and tensors of before come back, which an optimizer holds, and not only their values."""
    network, bank = trained()
    before, held = everything(network), [*network.named_modules(), *network.named_parameters(), *network.named_buffers()]
    with (
        pytest.raises(
            UserError, match=r"bank.applied: weight '\S+' was changed inside the block, and that change is undone; train outside"
        ),
        bank.applied("ema"),
    ):
        change(network)
    assert_as_before(network, before)
    now = [*network.named_modules(), *network.named_parameters(), *network.named_buffers()]
    assert [name for name, _ in now] == [name for name, _ in held] and all(a is b for (_, a), (_, b) in zip(now, held))
    bank.update(9)


@pytest.mark.parametrize("convert", [lambda n: n.half(), lambda n: n.double(), lambda n: n.to(memory_format=torch.channels_last)])
def test_a_conversion_inside_is_undone(convert):
    """To the last bit: what half precision has not got is not lost."""
    network, bank = trained()
    before = everything(network)[0]
    with bank.applied("ema"):
        convert(network)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
    bank.update(9)


def test_what_cannot_be_applied_is_refused_before_anything_changes():
    network, bank = trained()
    before = everything(network)
    for name, words in (("emma", "no average 'emma'; did you mean 'ema'"), ("late", "average 'late' has not started")):
        with pytest.raises(UserError, match=words), bank.applied(name):
            raise AssertionError("never comes here")
    assert_as_before(network, before)
    bank.update(9)


def test_an_offloaded_half_precision_complex_network():
    torch.manual_seed(0)
    network = nn.Module()
    network.w = nn.Parameter(torch.randn(5).bfloat16())
    network.c = nn.Parameter(torch.randn(5, dtype=torch.complex64))
    bank = AverageBank(network, {"ema": EmaSteps(decay=0.5, offload=True)})
    network.w.data.mul_(3)
    network.c.data.mul_(1j)
    bank.update(1)
    before = everything(network)
    with bank.applied("ema"):
        assert torch.equal(network.w, bank["ema"].shadows["w"].bfloat16()) and torch.equal(network.c, bank["ema"].shadows["c"])
        assert not torch.equal(network.c, before[0]["c"])
    assert_as_before(network, before)


def test_the_documented_validation():
    """The loop of docs/averages.md, over the live weights and all averages."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "averages.md").read_text(), re.S) if "bank.applied" in b)
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    bank = AverageBank(generator, {"ema": EmaSteps(decay=0.5)})
    with torch.no_grad():
        generator[0].weight.add_(1.0)
    bank.update(1)
    before, scores = everything(generator), {}
    names = {"bank": bank, "generator": generator, "torch": torch, "recalibrate": recalibrate, "dim_z": 4}
    exec(block, {**names, "score": lambda x: x.mean().item(), "print": lambda name, score: scores.update({name: score})})
    assert scores.keys() == {"live", "ema"} and scores["live"] != scores["ema"]
    assert_as_before(generator, before)
