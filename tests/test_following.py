"""Averages follow the network, whatever becomes of its tensors: against averages computed by hand, and torch's AveragedModel."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gantrain.averaging import AVERAGERS, Average, AverageBank, Ema, EmaSteps, Lawa, Lookahead, Power, Swa
from gantrain.averaging.saved_rules import require_same_rules
from gantrain.config.sections import Orbit
from gantrain.errors import UserError
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.run_folder import checkpoint
from gantrain.theory.sketch import Sketch

DECAY = 0.9


class Net(nn.Module):
    """A bit of everything that averages meet."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


@torch.no_grad()
def train(network: nn.Module, step: int) -> None:
    """Change every weight in place, as an optimizer does."""
    generator = torch.Generator().manual_seed(step)
    for p in network.parameters():
        p.add_((torch.randn(p.shape, generator=generator) * 0.1).to(p))


def values(network: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().double().clone() for n, p in network.named_parameters()}


def by_hand(seen: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The exponential average of weights seen after each update, from the initial ones on, in float64."""
    average = seen[0]
    for now in seen[1:]:
        average = {n: DECAY * average[n] + (1 - DECAY) * now[n] for n in average}
    return average


def replace_layer(network: Net) -> None:
    network.head = nn.Linear(4, 2)


def set_data(network: Net) -> None:
    for p in network.parameters():
        p.data = p.data.clone()


def load_by_assignment(network: Net) -> None:
    network.load_state_dict({n: t.clone() * 1.5 for n, t in network.state_dict().items()}, assign=True)


def swap_on_conversion(network: Net) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        network.bfloat16()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def compile_a_part(network: Net) -> None:
    network.conv = torch.compile(network.conv, backend="eager")


def convert_norms(network: Net) -> None:
    network.norm = nn.SyncBatchNorm.convert_sync_batchnorm(network.norm)


CHANGES = {
    "channels_last": lambda n: n.to(memory_format=torch.channels_last),
    "bfloat16": lambda n: n.bfloat16(),
    "half": lambda n: n.half(),
    "double": lambda n: n.double(),
    "there and back": lambda n: n.double().bfloat16().float(),
    "swap_tensors": swap_on_conversion,
    "p.data": set_data,
    "assign": load_by_assignment,
    "layer replaced": replace_layer,
    "parameter replaced": lambda n: setattr(n.head, "weight", nn.Parameter(torch.ones(2, 4))),
    "frozen": lambda n: n.requires_grad_(False),
    "share_memory": lambda n: n.share_memory(),
    "a part compiled": compile_a_part,
    "SyncBatchNorm": convert_norms,
    "buffer added": lambda n: n.register_buffer("extra", torch.ones(3)),
    "wrapped": lambda n: AveragedModel(n) and torch.compile(n, backend="eager"),
}


SLOW = ("a part compiled", "wrapped")  # torch.compile takes seconds to import


@pytest.mark.parametrize("change", [pytest.param(c, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, c in CHANGES.items()])
def test_an_average_follows_the_network_through(change):
    """What the optimizer sees after the change is what is averaged."""
    network = net()
    bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY), "lawa": Lawa(k=2, every_kimg=0.001)})
    seen = [values(network)]
    for step in range(1, 9):
        if step == 4:
            change(network)
        train(network, step)
        seen.append({n.replace("_orig_mod.", ""): t for n, t in values(network).items()})
        bank.update(step)
    expected = by_hand(seen)
    for name, shadow in bank["ema"].shadows.items():
        if name in expected:
            torch.testing.assert_close(shadow.double(), expected[name], rtol=0, atol=2e-6)
            torch.testing.assert_close(bank["lawa"].shadows[name].double(), (seen[-1][name] + seen[-2][name]) / 2, rtol=0, atol=1e-6)
    bank.write_back("ema")
    dtype = network.head.weight.dtype
    for name, p in network.named_parameters():
        torch.testing.assert_close(
            p.detach(), expected[name.replace("_orig_mod.", "")].to(dtype), rtol=1e-2 if p.itemsize < 4 else 0, atol=2e-6
        )
    assert bank.distance("ema").item() < 1e-2


def test_statistics_are_followed_too():
    """A BatchNorm that is replaced: `average` averages the new one's statistics."""
    network = net()
    bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY)})
    bank.update(1)
    network.norm = nn.BatchNorm2d(4)
    network.norm.running_mean.fill_(10.0)
    bank.update(2)
    target = net()
    bank.materialize("ema", target, averaged_statistics=True)
    torch.testing.assert_close(target.norm.running_mean, torch.full((4,), 1.0))  # 0.9 x 0 + 0.1 x 10


def test_an_average_keeps_the_layout_of_the_network():
    """So that its kernels stay fused after channels_last."""
    network = net()
    bank = AverageBank(network, {"lawa": Lawa(k=2, every_kimg=0.001)})
    network.to(memory_format=torch.channels_last)
    bank.update(1)
    for tensors in (bank["lawa"].shadows, *bank["lawa"].slots.values()):
        assert tensors["conv.weight"].is_contiguous(memory_format=torch.channels_last)


def test_offloaded_copies_survive_a_conversion_while_they_are_underway():
    network = net()
    near, far = (AverageBank(network, {"ema": EmaSteps(decay=DECAY, offload=offload)}) for offload in (False, True))
    for step in range(1, 7):
        if step == 4:
            network.bfloat16()
        train(network, step)
        near.update(step)
        far.update(step)
    for name, shadow in near["ema"].shadows.items():
        assert torch.equal(shadow, far["ema"].shadows[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("offload", [False, True])
def test_an_average_follows_to_another_device(offload):
    network = net()
    bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY, offload=offload)})
    seen = [values(network)]
    for step in range(1, 9):
        if step == 4:
            network.cuda()
        train(network, step)
        seen.append({n: t.cpu() for n, t in values(network).items()})
        bank.update(step)
    for name, expected in by_hand(seen).items():
        assert bank["ema"].shadows[name].is_cuda != offload
        torch.testing.assert_close(bank["ema"].shadows[name].double().cpu(), expected, rtol=0, atol=2e-6)


def test_a_bank_that_is_built_or_updated_in_inference_mode():
    network = net()
    with torch.inference_mode():
        bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY), "lawa": Lawa(k=2, every_kimg=0.001)})
        bank.update(1)
    before = values(network)
    train(network, 1)
    bank.update(2)
    for name, expected in by_hand([before, before, values(network)]).items():
        torch.testing.assert_close(bank["ema"].shadows[name].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:UserWarning", "ignore::FutureWarning")
def test_a_scripted_network_is_followed():
    network = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY)})
    seen = [values(network)]
    for step in range(1, 5):
        if step == 3:
            network.double()
        train(network, step)
        seen.append(values(network))
        bank.update(step)
    for name, expected in by_hand(seen).items():
        torch.testing.assert_close(bank["ema"].shadows[name].double(), expected, rtol=0, atol=1e-6)


# ---- what cannot be followed -----------------------------------------------------------------------------------------


def norm_weights(network: Net) -> None:
    parametrizations.weight_norm(network.head)


class Pair(Net):
    """With two layers of equal shape and without biases, the first of them listed first."""

    def __init__(self):
        nn.Module.__init__(self)
        self.other = nn.Linear(2, 2, bias=False)
        vars(self)["_modules"].update(net()._modules)
        self.bare = nn.Linear(2, 2, bias=False)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def set_shorter_data(network: Net) -> None:
    network.head.bias.data = network.head.bias.data[:1]


def use_integers(network: Net) -> None:
    network.head.bias = nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)


PARTS = "head.parametrizations.weight.original"
REFUSED = {
    "added": (lambda n: n.add_module("extra", nn.Linear(1, 1)), "averages: 'extra.weight' was added to the network and has no average"),
    "parameter added": (lambda n: n.register_parameter("gain", nn.Parameter(torch.ones(1))), "averages: 'gain' was added to the network"),
    "bias added": (lambda n: setattr(n.bare, "bias", nn.Parameter(torch.ones(2))), "averages: 'bare.bias' was added to the network"),
    "removed": (lambda n: delattr(n, "head"), "averages: 'head.weight' is gone from the network; build a new AverageBank"),
    "bias removed": (lambda n: setattr(n.head, "bias", None), "averages: 'head.bias' is gone from the network; build"),
    "made an Identity": (lambda n: setattr(n, "norm", nn.Identity()), "averages: 'norm.weight' is gone from the network"),
    "other shape": (lambda n: setattr(n, "head", nn.Linear(4, 3)), r"'head.weight' has shape \[3, 4\] now, and its average has \[2, 4\]"),
    "data of another shape": (set_shorter_data, r"'head.bias' has shape \[1\] now, and its average has \[2\]"),
    "weight_norm": (norm_weights, f"averages: 'head.weight' is gone from the network, which has '{PARTS}0' instead"),
    "parametrized": (
        lambda n: parametrize.register_parametrization(n.head, "weight", Doubled()),
        f"averages: 'head.weight' is gone from the network, which has '{PARTS}' instead",
    ),
    "tied": (lambda n: setattr(n.bare, "weight", n.other.weight), "averages: 'bare.weight' shares its tensor with 'other.weight' now"),
    "meta": (lambda n: n.to("meta"), "weight 'other.weight' is on the meta device and has no values; materialise the network"),
    "complex": (lambda n: n.to(torch.complex64), "weight 'other.weight' is complex, expected a real one"),
    "integer": (use_integers, "weight 'head.bias' is torch.int32 now, and was torch.float32; average the network before that change"),
}


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("change, words", REFUSED.values(), ids=REFUSED)
def test_a_network_that_has_become_another_is_refused_by_name(change, words):
    """By every call that reads or writes it, and the averages of before are still there."""
    network = Pair()
    bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY)})
    bank.update(1)
    before = {n: t.clone() for n, t in bank.tensors()["ema"].items()}
    change(network)
    calls = (
        lambda: bank.update(2),
        lambda: bank.materialize("ema", net()),
        lambda: bank.write_back("ema"),
        lambda: bank.distance("ema"),
        lambda: bank.applied("ema").__enter__(),
        lambda: bank.advance(1),
        lambda: bank.load_state_dict(bank.state_dict()),
    )
    for call in calls:
        with pytest.raises(UserError, match=words) as refused:
            call()
        assert "\n" not in str(refused.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bank.tensors()["ema"].items())
    assert bank["ema"].num_averaged == 1


def test_a_change_that_is_undone_is_forgiven():
    network = net()
    bank = AverageBank(network, {"ema": EmaSteps(decay=0.0)})
    network.extra = nn.Linear(1, 1)
    with pytest.raises(UserError, match="'extra.weight' was added"):
        bank.update(1)
    del network.extra
    bank.update(1)
    assert torch.equal(bank["ema"].shadows["head.weight"], network.head.weight)


def sharded() -> nn.Module:
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

    network = nn.Linear(2, 2)
    mesh = init_device_mesh("cpu", (1,))
    network.weight = nn.Parameter(DTensor.from_local(network.weight.detach(), mesh, [Replicate()]))
    return network


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: nn.LazyLinear(3), "weight 'weight' has no shape yet; run one forward pass of the lazy network"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight 'weight' is on the meta device and has no values"),
    ],
)
def test_weights_without_values_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        AverageBank(make(), {"ema": Ema()})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_other_storage_is_refused():
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for tensor, words in ((quantised, "weight 'w' is quantised"), (torch.eye(3).to_sparse(), "weight 'w' is sparse_coo")):
        with pytest.raises(UserError, match=f"{words}, and such tensors cannot be averaged"):
            Average(Ema(), {"w": tensor})


@pytest.mark.slow
def test_sharded_weights_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match=r"weight 'weight' is sharded over processes \(DTensor\)"):
            AverageBank(sharded(), {"ema": Ema()})
        from torch.distributed.fsdp import fully_shard

        network = net()
        bank = AverageBank(network, {"ema": Ema()})
        fully_shard(network, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(UserError, match=r"is sharded over processes \(DTensor\)"):
            bank.update(1)
    finally:
        torch.distributed.destroy_process_group()


# ---- precision -------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A weight of each kind of number."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, dtype in (("f32", torch.float32), ("f64", torch.float64), ("c64", torch.complex64), ("c128", torch.complex128)):
            setattr(self, name, nn.Parameter(torch.randn(6, generator=generator, dtype=dtype)))


@torch.no_grad()
def wander(network: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in network.parameters():
        p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)


def test_complex_and_double_weights_are_averaged_as_such():
    """Against torch's AveragedModel: same type, and to the precision of that type."""
    network = Mixed()
    bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY), "part": EmaSteps(decay=DECAY, offload=True)})
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    theirs.update_parameters(network)
    for step in range(1, 30):
        wander(network, step)
        theirs.update_parameters(network)
        bank.update(step)
    for name, p in theirs.module.named_parameters():
        shadow = bank["ema"].shadows[name]
        assert shadow.dtype == p.dtype
        torch.testing.assert_close(shadow, p.detach(), rtol=0, atol=1e-14 if p.dtype in (torch.float64, torch.complex128) else 1e-6)
        assert torch.equal(shadow, bank["part"].shadows[name])
    expected = sum(
        ((p.detach().to(torch.complex128) - q.detach().to(torch.complex128)).abs() ** 2).sum()
        for p, q in zip(network.parameters(), theirs.module.parameters())
    )
    assert bank.distance("ema").item() == pytest.approx(expected.item(), rel=1e-6)
    target = Mixed()
    bank.materialize("ema", target)
    bank.write_back("ema", 0.5)
    assert bank.distance("ema").item() == pytest.approx(expected.item() / 4, rel=1e-6)
    for name in dict(network.named_parameters()):
        assert torch.equal(getattr(target, name), bank["ema"].shadows[name])


@pytest.mark.parametrize("rule", [c() for c in AVERAGERS.values()], ids=AVERAGERS)
def test_every_rule_averages_complex_weights_by_parts(rule):
    """A complex average is that of the real parts plus i times that of the imaginary ones."""
    fields = {field.name for field in dataclasses.fields(rule)}
    rule = dataclasses.replace(rule, **{key: 0.1 for key in ("every_kimg", "start_kimg") if key in fields})
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, dtype=torch.complex64, generator=generator)
    whole, parts = Average(rule, {"w": z}), Average(rule, {"w": torch.view_as_real(z)})
    for nimg in range(64, 2000, 64):
        z.add_(torch.randn(5, dtype=torch.complex64, generator=generator))
        whole.update(nimg)
        parts.update(nimg)
    assert whole.num_averaged > 2
    torch.testing.assert_close(torch.view_as_real(whole.shadows["w"]), parts.shadows["w"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_low_precision_is_averaged_in_fp32(dtype):
    """1, 1, 1.5 at decay 0.9: 1.05, which none of them can hold exactly."""
    live = torch.ones(3).to(dtype)
    average = Average(EmaSteps(decay=DECAY), {"w": live})
    average.update(1)
    live.copy_(torch.full((3,), 1.5))
    average.update(2)
    assert average.shadows["w"].dtype == torch.float32
    torch.testing.assert_close(average.shadows["w"], torch.full((3,), 1.05))
    average.write_back(["w"])
    assert live.dtype == dtype and torch.equal(live.float(), torch.full((3,), 1.05).to(dtype).float())


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.steps = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([True, False]), requires_grad=False)


@pytest.mark.parametrize(
    "rule", [EmaSteps(decay=0.5), Lawa(k=2, every_kimg=0.001), Lookahead(every_kimg=0.001)], ids=lambda r: type(r).__name__
)
def test_integers_have_no_mean_and_are_copied(rule):
    network, target = Counting(), Counting()
    bank = AverageBank(network, {"it": rule})
    for step in range(1, 5):
        network.w.data.fill_(float(step))
        network.steps.data.fill_(2**53 + step)  # more than a float holds
        bank.update(step)
    bank.materialize("it", target)
    assert target.steps.tolist() == [2**53 + 4] * 2 and target.mask.tolist() == [True, False]
    assert bank.distance("it").item() == pytest.approx(2 * (network.w[0] - bank["it"].shadows["w"][0]).item() ** 2)
    other = AverageBank(Counting(), {"it": rule})
    other.load_state_dict(bank.state_dict())
    assert all(torch.equal(t, other["it"].shadows[n]) for n, t in bank["it"].shadows.items())


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_complex_average_does_not_go_into_a_real_network():
    real, other = nn.Linear(2, 2), nn.Linear(2, 2).to(torch.complex64)
    bank = AverageBank(other, {"ema": Ema()})
    bank.update(1)
    with pytest.raises(UserError, match="weights for Linear: weight 'weight' is complex, expected a real one"):
        bank.materialize("ema", real)
    with pytest.raises(UserError, match="saved average: weight 'weight' is complex, expected a real one"):
        AverageBank(real, {"ema": Ema()}).load_state_dict(bank.state_dict())


# ---- the rule of a saved average -------------------------------------------------------------------------------------


class Half:
    """A rule from outside, without fields."""

    def weight(self, nimg, previous_nimg, num_averaged):
        return 0.5


@pytest.mark.parametrize(
    "saved, rule, words",
    [
        (Ema(), Swa(), "by Ema, and is Swa here"),
        (Ema(), Power(), "by Ema, and is Power here"),
        (Half(), EmaSteps(), "by Half, and is EmaSteps here"),
        (Ema(half_life_kimg=10), Ema(half_life_kimg=20), "by Ema(half_life_kimg=10), and is Ema(half_life_kimg=20) here"),
        (Ema(ramp_up=None), Ema(ramp_up=0.05), "by Ema(ramp_up=None), and is Ema(ramp_up=0.05) here"),
        (Swa(start_kimg=0, every_kimg=1), Swa(start_kimg=5, every_kimg=2), "by Swa(start_kimg=0, every_kimg=1), and is Swa(start_kimg=5, "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_past_of_one_rule_does_not_continue_under_another(saved, rule, words, tmp_path):
    bank, other = (AverageBank(nn.Linear(2, 1), {"same": Lawa(k=2, every_kimg=0.001), "a": one}) for one in (saved, rule))
    bank.update(5)
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    state, before = torch.load(tmp_path / "bank.pt", weights_only=True), copy.deepcopy(other.state_dict())
    with pytest.raises(UserError) as error:
        other.load_state_dict(state)
    assert str(error.value).startswith(f"average 'a' was saved {words}") and "make the bank with the saved rule" in str(error.value)
    assert all(torch.equal(t, other["same"].shadows[n]) for n, t in before["tensors"]["same"].items())  # nothing was loaded
    del state["rules"]["a"]  # on purpose
    other.load_state_dict(state)
    assert other["a"].nimg == 5
    del state["rules"]  # of an older gantrain
    other.load_state_dict(state)


def test_where_an_average_is_and_when_it_looks_may_change():
    bank = AverageBank(nn.Linear(2, 1), {"ema": Ema(half_life_kimg=10), "half": Half()})
    bank.update(5)
    state = json.loads(json.dumps(bank.state_dict()["rules"]))
    moved = {"ema": Ema(half_life_kimg=10.0, offload=True, update_every_kimg=1, networks="gd"), "half": Half(), "new": Swa()}
    require_same_rules(state, AverageBank(nn.Linear(2, 1), moved).averages)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def fixed_steps() -> list[int]:
    return [64 * i for i in range(1, 20)]


@pytest.mark.parametrize("rule", [Ema(half_life_kimg=0.5), Power(), Swa(start_kimg=0.1, every_kimg=0.1)], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", ["tensor in place", "numpy", "numpy in place", "0-d array"])
def test_a_count_of_another_library_is_taken_at_once(rule, kind):
    """The same average as with Python's integers, and a state that Python's own JSON and torch's safe loading take."""
    live, twin = torch.zeros(3), torch.zeros(3)
    average, expected = Average(rule, {"w": live}), Average(rule, {"w": twin})
    counter = {
        "tensor in place": torch.tensor(0),
        "numpy": np.int64(0),
        "numpy in place": np.zeros((), dtype=np.int64),
        "0-d array": np.int32(0),
    }[kind]
    for nimg in fixed_steps():
        live.fill_(nimg)
        twin.fill_(nimg)
        counter += 64
        average.update(np.array(counter) if kind == "0-d array" else counter)
        expected.update(nimg)
    assert expected.num_averaged > 5 and torch.equal(average.shadows["w"], expected.shadows["w"])
    assert average.state() == expected.state()
    assert all(type(v) is int for v in average.state().values() if not isinstance(v, list))
    assert all(type(v) is int for run in average.state()["looks"] for v in run)


def test_a_bank_counted_in_numpy_is_saved_and_loaded():
    network = net()
    bank = AverageBank(network, {"ema": Ema()}, nimg=np.int64(64))
    for nimg in np.arange(128, 640, 64):
        bank.update(nimg)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other = AverageBank(net(), {"ema": Ema()})
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.nimg == bank.nimg == 576 and type(bank.nimg) is int
    assert other.state() == bank.state()


NOT_WHOLE = [64.0, "64", True, np.True_, torch.tensor(True), torch.tensor(64.0), np.array([64, 65]), torch.tensor([64, 65]), Fraction(64)]


@pytest.mark.parametrize("nimg", [*NOT_WHOLE, None, np.float32(64)], ids=repr)
def test_what_is_no_whole_number_is_refused(nimg):
    bank = AverageBank(net(), {"ema": Ema()})
    for call in (bank.update, bank.advance, lambda n: AverageBank(net(), {"ema": Ema()}, nimg=n)):
        with pytest.raises(UserError, match=r"(nimg|images): must be a whole number, got .*; pass an int"):
            call(nimg)
    bank.update(1)
    assert bank.state()["ema"]["looks"] == [[1, 0, 1, 1]]


class Odd:
    """A rule from outside whose answers are of other libraries, or wrong."""

    def __init__(self, answer):
        self.answer = answer

    def weight(self, nimg, previous_nimg, num_averaged):
        return self.answer


@pytest.mark.parametrize("weight", [np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)], ids=repr)
def test_a_weight_of_another_library_is_a_number(weight):
    live = torch.zeros(2)
    average = Average(Odd(weight), {"w": live})
    live.fill_(1.0)
    average.update(1)
    assert average.shadows["w"].tolist() == [0.5, 0.5]
    average.update(2)
    assert average.shadows["w"].tolist() == [0.75, 0.75] and type(average.state()["num_averaged"]) is int


@pytest.mark.parametrize("weight", [float("nan"), 1.5, -0.1, "0.5", None, torch.tensor([0.5, 0.5])], ids=repr)
def test_a_weight_that_is_none_is_refused(weight):
    average = Average(Odd(weight), {"w": torch.zeros(2)})
    with pytest.raises(UserError, match=r"averager Odd: weight: must be a number in \[0, 1\], got "):
        average.update(1)


def test_what_an_update_from_outside_answers_is_a_truth_value():
    """`np.False_` and a tensor are not the object False."""

    class Never:
        def __init__(self, answer):
            self.answer = answer

        def update(self, shadows, live, nimg, previous_nimg, num_averaged, slots):
            return self.answer

    for answer, moved in ((np.False_, 0), (torch.tensor(False), 0), (0, 0), (None, 1), (np.True_, 1)):
        average = Average(Never(answer), {"w": torch.zeros(1)})
        average.update(1)
        assert average.num_averaged == moved and type(average.state()["num_averaged"]) is int


# ---- copies ----------------------------------------------------------------------------------------------------------


def trained_bank() -> tuple[Net, AverageBank]:
    network = net()
    bank = AverageBank(network, {"ema": EmaSteps(decay=DECAY), "lawa": Lawa(k=2, every_kimg=0.001, offload=True)})
    for step in range(1, 4):
        train(network, step)
        bank.update(step)
    return network, bank


class Holder:
    def __init__(self, network, bank):
        self.network, self.bank = network, bank


def held_by_the_network() -> tuple[Net, AverageBank]:
    network, bank = trained_bank()
    network.bank = bank
    twin = copy.deepcopy(network)
    return twin, twin.bank


TOGETHER = {
    "tuple": lambda: copy.deepcopy(trained_bank()),
    "object": lambda: (lambda h: (h.network, h.bank))(copy.deepcopy(Holder(*trained_bank()))),
    "in the network": held_by_the_network,
}


@pytest.mark.parametrize("together", TOGETHER.values(), ids=TOGETHER)
def test_a_bank_is_copied_with_its_network(together):
    """Both pairs go on alike, and neither touches the other."""
    network, bank = trained_bank()
    twin, copied = together()
    assert copied.network is twin and copied is not bank
    for step in range(4, 8):
        for n, b in ((network, bank), (twin, copied)):
            train(n, step)
            b.update(step)
    for name in bank:
        for key, shadow in bank[name].shadows.items():
            assert torch.equal(shadow, copied[name].shadows[key])
            assert shadow.data_ptr() != copied[name].shadows[key].data_ptr()
    before = {n: t.clone() for n, t in bank["ema"].shadows.items()}
    train(twin, 9)
    copied.update(9)
    assert all(torch.equal(t, before[n]) for n, t in bank["ema"].shadows.items())
    assert not torch.equal(copied["ema"].shadows["head.weight"], before["head.weight"])


def test_a_bank_alone_is_not_copied_or_pickled():
    network, bank = trained_bank()
    with pytest.raises(
        UserError, match=r"copied together with its network, which comes first: network, bank = copy.deepcopy\(\(network, bank\)\)"
    ):
        copy.deepcopy(bank)
    for attempt in (copy.copy, pickle.dumps, lambda b: torch.save(b, io.BytesIO())):
        with pytest.raises(
            UserError, match=r"an AverageBank cannot be pickled or copied by copy.copy, .* save bank.state_dict\(\) and load it"
        ):
            attempt(bank)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UserError, match="an Average cannot be (copied|pickled): the copy would follow weights that nobody trains"):
            attempt(bank["ema"])
    kept = copy.deepcopy(bank.state_dict())
    train(network, 5)
    bank.update(5)
    bank.load_state_dict(kept)
    assert bank.nimg == 3 and torch.equal(bank["ema"].shadows["head.weight"], kept["tensors"]["ema"]["head.weight"])


# ---- on disk ---------------------------------------------------------------------------------------------------------


def test_complex_and_double_averages_come_back_from_a_checkpoint(tmp_path):
    """In safetensors, which has no complex128; bit for bit."""
    network = Mixed()
    rules = {"ema": EmaSteps(decay=DECAY), "lawa": Lawa(k=2, every_kimg=0.001)}
    bank = AverageBank(network, rules)
    for step in range(1, 5):
        wander(network, step)
        bank.update(step)
    groups = {f"average_{n}": t for n, t in bank.tensors().items()} | {f"slots_{n}": t for n, t in bank.slot_tensors().items()}
    checkpoint.write(tmp_path / "000000000004", 4, {**groups, "g": network.state_dict()}, bank.state())
    found = checkpoint.read(tmp_path / "000000000004")
    other = AverageBank(Mixed(), rules)
    tensors, slots = ({n: found.tensors.get(f"{kind}_{n}", {}) for n in rules} for kind in ("average", "slots"))
    other.load(tensors, found.state, slots)
    for name in rules:
        for key, tensor in {**bank[name].shadows, **bank[name].slot_tensors()}.items():
            back = {**other[name].shadows, **other[name].slot_tensors()}[key]
            assert back.dtype == tensor.dtype and torch.equal(back, tensor)
    assert all(torch.equal(found.tensors["g"][n], p) for n, p in network.state_dict().items())


def test_the_orbit_is_that_of_what_the_network_holds_now(tmp_path):
    """The recorder reads the network, too, and not tensors that it once held."""
    network = net()
    recorder = OrbitRecorder(Orbit(every_kimg=0.25, size=16), {"g": AverageBank(network, {})}, tmp_path, True)
    network.bfloat16()
    train(network, 1)
    recorder.record(1, {})
    _, _, found = recorder._pending[-1]
    expected = Sketch(dict(network.named_parameters()), "g", 16)(dict(network.named_parameters()))
    assert torch.equal(found, expected.double())


def test_a_complex_weight_is_two_numbers_of_an_orbit():
    weights = dict(Mixed().named_parameters())
    parts = {n: torch.view_as_real(p) if p.is_complex() else p for n, p in weights.items()}
    exact = sum(p.detach().double().square().sum().item() for p in parts.values())
    sketch = Sketch(weights, "g", 4096)(weights)
    assert torch.equal(sketch, Sketch(parts, "g", 4096)(parts))
    assert sketch.square().sum().item() == pytest.approx(exact, rel=0.15)  # three deviations of sqrt(2 / size) and of 36 numbers
