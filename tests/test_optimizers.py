"""The optimizers of the players: their steps, what they remember, clipping, and whole runs with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, lines_of
from game import networks, player, rounds
from safetensors.torch import load_file
from torch import Tensor, nn

from gantrain.averaging.average import Mismatch
from gantrain.batching import GradientProbe
from gantrain.config.config import Config
from gantrain.config.loading import differing_keys, load
from gantrain.config.notes import notes
from gantrain.config.sections import Optim
from gantrain.config.yaml_files import ConfigError
from gantrain.contracts import is_frozen_dataclass
from gantrain.errors import UserError
from gantrain.losses import R1, Hinge
from gantrain.optimizers import OPTIMIZER, OPTIMIZERS, Adam, AdamW, Optimizer, RmsProp, Sgd
from gantrain.plugin_errors import WrongResult
from gantrain.run_folder.forking import new_optimizers
from gantrain.schedule import Schedule
from gantrain.training import swapper
from gantrain.training.optimizer_state import load_optimizer_tensors, load_own_settings, optimizer_tensors, own_settings
from gantrain.training.players import Player, Players, build_optimizer, given_to, reset_optimizer
from gantrain.training.sizes import Size, bytes_of_networks
from gantrain.training.trainer import Trainer
from gantrain.training.update import discriminator_phase, step

LR, EPS, BETA2 = 0.05, 1e-4, Schedule(0.9, 0.5, until_kimg=0.003)
RULES: dict[str, Optimizer] = {
    "adam": Adam(betas=(0.3, 0.9), weight_decay=0.1),
    "adam, scheduled": Adam(betas=(0.3, BETA2)),
    "adamw": AdamW(weight_decay=0.1),
    "sgd": Sgd(weight_decay=0.1),
    "sgd, momentum": Sgd(momentum=0.7),
    "sgd, nesterov": Sgd(momentum=0.7, nesterov=True, weight_decay=0.1),
    "rmsprop": RmsProp(alpha=0.8),
    "rmsprop, all": RmsProp(alpha=BETA2, momentum=0.6, centered=True, weight_decay=0.1),
}


class Counting(torch.optim.Optimizer):
    """Counts its steps in every way that optimizers from outside do, and steps by the count."""

    def __init__(self, parameters: Sequence[Tensor], lr: float):
        super().__init__(parameters, {"lr": lr, "seen": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["seen"] += 0.1
            for p in (one for one in group["params"] if one.grad is not None):
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["odd"] = state["step"] % 2 == 1
                state["rows"] = state.get("rows", torch.zeros(p.shape[:1], dtype=p.dtype)) + p.grad.reshape(len(p), -1).sum(1)
                state["momentum_buffer"] = state.get("momentum_buffer", torch.zeros_like(p)) + p.grad
                scale = group["lr"] * group["count"] * (1 + group["seen"]) / state["step"] ** 0.5
                p.sub_(scale * (state["momentum_buffer"] + state["odd"]) * state["rows"].sum())


@dataclass(frozen=True)
class Counted:
    """From outside: it inherits nothing."""

    def build(self, parameters, lr, betas, eps):
        return Counting(parameters, lr)


OUTSIDE: Optimizer = OPTIMIZER.adapt(Counted())


def made(rule: Optimizer, seed: int = 0, **more) -> Player:
    """A player of two weights."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    optimizer = build_optimizer(rule, network, LR, Optim(betas=(0.2, 0.95), eps=EPS))
    return Player(network, network, optimizer, torch.amp.GradScaler("cpu", enabled=False), rule=rule, **more)


def trained(one: Player, start: int, count: int) -> Player:
    """Steps number `start` to `start + count - 1`, with gradients that depend on the weights, at a thousandth of a kimg each."""
    for i in range(start, start + count):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        one.optimizer.zero_grad()
        (one.network(x) - 1).square().mean().backward()
        one.optimizer.param_groups[0].update(one.rule.settings(i, (0.2, 0.95)))
        one.optimizer.step()
    return one


def by_formula(name: str, weights: Sequence[Tensor], gradients_at, count: int) -> list[Tensor]:
    """The weights after `count` steps, written from the formulas of docs/schedules.md."""
    rule, w = RULES[name], [one.clone() for one in weights]
    m, v, mean = ([torch.zeros_like(one) for one in w] for _ in range(3))
    for i in range(count):
        t = i + 1
        for j, g in enumerate(gradients_at(w, i)):
            changing = 0.9 + (0.5 - 0.9) * min(i / 3, 1)
            if isinstance(rule, Adam):
                b1, b2 = (0.2, 0.95) if rule.betas is None else (0.3, changing if name.endswith("scheduled") else 0.9)
                if isinstance(rule, AdamW):
                    w[j] = w[j] * (1 - LR * rule.weight_decay)
                else:
                    g = g + rule.weight_decay * w[j]
                m[j], v[j] = b1 * m[j] + (1 - b1) * g, b2 * v[j] + (1 - b2) * g**2
                w[j] = w[j] - LR * (m[j] / (1 - b1**t)) / ((v[j] / (1 - b2**t)).sqrt() + EPS)
            elif isinstance(rule, Sgd):
                g = g + rule.weight_decay * w[j]
                m[j] = rule.momentum * m[j] + g
                w[j] = w[j] - LR * (g + rule.momentum * m[j] if rule.nesterov else m[j])
            else:
                assert isinstance(rule, RmsProp)
                a = changing if rule.centered else 0.8
                g = g + rule.weight_decay * w[j]
                v[j], mean[j] = a * v[j] + (1 - a) * g**2, a * mean[j] + (1 - a) * g
                root = ((v[j] - mean[j] ** 2).sqrt() if rule.centered else v[j].sqrt()) + EPS
                m[j] = rule.momentum * m[j] + g / root
                w[j] = w[j] - LR * m[j]
    return w


@pytest.mark.parametrize("name", RULES)
def test_the_first_steps_are_those_of_the_formulas(name):
    one, copied = made(RULES[name]), made(RULES[name])

    def gradients_at(weights, i):
        with torch.no_grad():
            for p, w in zip(copied.network.parameters(), weights):
                p.copy_(w)
        copied.network.zero_grad()
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        (copied.network(x) - 1).square().mean().backward()
        return [p.grad.clone() for p in copied.network.parameters()]

    expected = by_formula(name, [p.detach().clone() for p in one.network.parameters()], gradients_at, 4)
    trained(one, 0, 4)
    for p, w in zip(one.network.parameters(), expected):
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-12)


def test_the_default_is_torchs_fused_adam_of_the_sections_settings():
    network, optim = nn.Linear(3, 2), Optim()
    found = build_optimizer(optim.g, network, optim.lr_g, optim)
    expected = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.0, 0.999), eps=1e-8, fused=True)
    assert type(found) is torch.optim.Adam and found.defaults == expected.defaults
    assert [{**group, "params": 0} for group in found.param_groups] == [{**group, "params": 0} for group in expected.param_groups]


@pytest.mark.parametrize("rule", [*RULES.values(), OUTSIDE], ids=[*RULES, "outside"])
def test_what_is_remembered_goes_through_a_checkpoint_to_the_bit(rule):
    """At first, when there may be nothing, and after two steps."""
    for before in (0, 2):
        whole, half, resumed = trained(made(rule), 0, before + 3), trained(made(rule), 0, before), made(rule, seed=1)
        resumed.network.load_state_dict(half.network.state_dict())
        trained(resumed, 0, 2)  # as before a rollback
        resumed.network.load_state_dict(half.network.state_dict())
        resumed.optimizer.state.clear()
        saved = {name: one.clone() for name, one in optimizer_tensors(half.optimizer, half.network).items()}
        load_optimizer_tensors(resumed.optimizer, resumed.network, saved, strict=rule is not OUTSIDE)
        load_own_settings(resumed.optimizer, given_to(resumed), copy.deepcopy(own_settings(half.optimizer, given_to(half))))
        trained(resumed, before, 3)
        assert all(torch.equal(a, b) for a, b in zip(resumed.network.parameters(), whole.network.parameters()))
        again, first = (optimizer_tensors(one.optimizer, one.network) for one in (resumed, whole))
        assert again.keys() == first.keys() and all(torch.equal(again[key], first[key]) for key in first)
        entries = {name.rpartition("/")[2] for name in first}
        assert entries == expected_entries(rule) and (rule is OUTSIDE) == bool(own_settings(whole.optimizer, given_to(whole)))


@pytest.mark.parametrize("name", RULES)
def test_a_step_that_fp16_skips_leaves_nothing_behind(name):
    """The scale is too large at first as a rule. Memory is filled beforehand, so that whoever reads what was never written shows it."""
    plain, skipped = made(RULES[name]), made(RULES[name])
    skipped.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    junk = [torch.full_like(p, 1e30) for p in plain.network.parameters() for _ in range(64)]
    del junk
    for factor in (math.inf, 1.0, 1.0):
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
        for one in (plain, skipped) if factor == 1 else (skipped,):
            step(one, made(Adam()), lambda x, one=one, factor=factor: (factor * (one.network(x) - 1).square().mean(), {}), [x], 1)
    for p, q in zip(plain.network.parameters(), skipped.network.parameters()):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=0)


def expected_entries(rule: Optimizer) -> set[str]:
    """What is saved for each weight."""
    if isinstance(rule, Adam):
        return {"step", "exp_avg", "exp_avg_sq"}
    if isinstance(rule, Sgd):
        return {"momentum_buffer"} if rule.momentum else set()
    if isinstance(rule, RmsProp):
        return {"step", "square_avg"} | ({"momentum_buffer", "grad_avg"} if rule.centered else set())
    return {"step:int", "odd:bool", "rows", "momentum_buffer"}


def test_a_state_that_does_not_fit_is_refused():
    saved = optimizer_tensors(trained(made(OUTSIDE), 0, 1).optimizer, made(OUTSIDE).network) or {
        name: torch.ones(()) for name in ("0.weight/step:int",)
    }
    for wrong in ({"9.weight/rows": torch.ones(2)}, {"0.weight/step:int": torch.ones(2)}):
        with pytest.raises(Mismatch, match="does not belong to any parameter"):
            load_optimizer_tensors(made(OUTSIDE).optimizer, made(OUTSIDE).network, {**saved, **wrong}, strict=False)
    with pytest.raises(Mismatch, match="optimizer: entry '0.weight/step:int' does not belong"):
        load_optimizer_tensors(made(Adam()).optimizer, made(Adam()).network, {"0.weight/step:int": torch.ones(())})
    one = trained(made(Adam()), 0, 1)
    for wrong in ({"a": [1]}, {"a/b": torch.ones(1)}, {"a": "text"}):
        other = copy.copy(one)
        next(iter(other.optimizer.state.values())).update(wrong)
        with pytest.raises(UserError, match="optimizer Adam: entry '.*' of its state is .*, which is not saved; use tensors and numbers"):
            optimizer_tensors(other.optimizer, other.network)
        next(iter(other.optimizer.state.values())).pop(next(iter(wrong)))


@pytest.mark.parametrize("rule", [*RULES.values(), OUTSIDE], ids=[*RULES, "outside"])
def test_a_swap_resets_the_momentum_alone_or_everything(rule):
    one = trained(made(rule), 0, 2)
    before = {name: tensor.clone() for name, tensor in optimizer_tensors(one.optimizer, one.network).items()}
    reset_optimizer(one, "keep")
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer_tensors(one.optimizer, one.network).items())
    reset_optimizer(one, "reset_momentum")
    for name, tensor in optimizer_tensors(one.optimizer, one.network).items():
        momentum = name.endswith(("/exp_avg", "/momentum_buffer"))
        assert torch.equal(tensor, torch.zeros_like(tensor) if momentum else before[name]), name
    trained(one, 2, 1)
    reset_optimizer(one, "reset")
    assert optimizer_tensors(one.optimizer, one.network) == {}
    trained(one, 3, 1)


# ---- clipping --------------------------------------------------------------------------------------------------------


def phase(clip: float | None, **more) -> tuple[Player, dict[str, Tensor]]:
    """D after a measured phase of two rounds, and its statistics."""
    g, d = (player(network) for network in networks())
    d.clip = clip
    for name, value in more.items():
        setattr(d, name, value)
    probe = GradientProbe(d.network)
    return d, discriminator_phase(g, d, Hinge(), rounds(4, 2), 2, probe, [(R1(gamma=0.5), 1.0)])


def test_a_gradient_is_clipped_after_it_was_measured():
    """The norm of all weights together; the noise scale and grad_norm, which the guard sees, are of the gradient before."""
    free, told = phase(None, orthogonal=1e-2)
    norm = told["grad_norm/d"]
    for clip in (float(norm) / 7, float(norm) * 2):
        one, stats = phase(clip, orthogonal=1e-2)
        assert torch.equal(stats["grad_norm/d"], norm)
        for ours, theirs in zip(stats["measured"], told["measured"]):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        gradients = [p.grad for p in one.network.parameters() if p.grad is not None]
        assert nn.utils.get_total_norm(gradients) == pytest.approx(min(clip, float(norm)), rel=1e-5)
        scale = min(clip / float(norm), 1)
        for p, q in zip(one.network.parameters(), free.network.parameters()):
            torch.testing.assert_close(p.grad, q.grad * scale, rtol=1e-4, atol=0)


def test_weight_decay_is_not_clipped_and_a_gradient_of_nan_stays_one():
    one = made(Sgd(weight_decay=0.5), clip=1e-9)
    before = [p.detach().clone() for p in one.network.parameters()]
    x = torch.randn(4, 3, dtype=torch.float64)
    stats = step(one, made(Adam()), lambda x: ((one.network(x) - 1).square().mean(), {}), [x], 1)
    for p, old in zip(one.network.parameters(), before):
        torch.testing.assert_close(p.detach(), old * (1 - LR * 0.5), rtol=1e-8, atol=1e-9)
    assert stats["grad_norm/g"] > 1e-3
    stats = step(one, made(Adam()), lambda x: (one.network(x * math.nan).mean(), {}), [x], 1)
    assert stats["grad_norm/g"].isnan() and next(one.network.parameters()).isnan().all()  # the guard sees both


# ---- in configurations -----------------------------------------------------------------------------------------------

REFUSED = [
    ("optim.g={name: sgd, nesterov: true}", "optim.g.nesterov needs momentum above 0, such as momentum=0.9, got True"),
    ("optim.g={name: sgd, momentum: 1}", r"optim.g.momentum must be in \[0, 1\), got 1.0"),
    ("optim.d={name: rmsprop, alpha: 1}", r"optim.d.alpha must be in \[0, 1\), got 1.0"),
    ("optim.d={name: rmsprop, centered: true, alpha: 0}", "optim.d.centered needs alpha above 0 at all times, got True"),
    ("optim.d={name: rmsprop, centered: true, alpha: {from: .9, shape: constant, warmup_kimg: 1}}", "optim.d.centered needs alpha above 0"),
    ("optim.d={name: adam, betas: [0.5, 1]}", r"optim.d.betas must both be in \[0, 1\), got \[0.5, 1.0\]"),
    ("optim.d={name: adamw, weight_decay: -1}", "optim.d.weight_decay must be at least 0, got -1.0"),
    ("optim.d={name: adam, eps: 0}", "optim.d.eps must be above 0 and below 1, or null, got 0.0"),
    ("optim.g.name=lion", "optim.g.name: no optimizer 'lion'; known: adam, adamw, rmsprop, sgd"),
    ("optim.g={name: sgd, betas: [0, 0.9]}", r"optim.g.betas=\[0, 0.9\]: no such key of sgd"),
    ("optim.g=sgd", "optim.g must be a section such as {name: adam}, got 'sgd'"),
    ("optim.clip_g=0", "optim.clip_g must be above 0, or null, got 0.0"),
    ("optim.clip_d=.inf", "optim.clip_d must be above 0, or null, got inf"),
    ("optim.weight_decay=0.1", r"optim.weight_decay=0.1: no such key; did you mean optim.g.weight_decay or optim.d.weight_decay\?"),
    ("max_grad_norm=1", r"max_grad_norm=1: no such key; did you mean optim.clip_g or optim.clip_d\?"),
]


def test_a_mistake_names_the_full_key():
    for override, words in REFUSED:
        with pytest.raises(ConfigError, match=f"command line: {words}"):
            load(None, [override])


def test_an_optimizer_is_a_setting_of_the_run():
    """So that another one is refused at a resume by its key; `fork` gives it a state of its own."""
    there, here = Config(), load(None, ["optim.d={name: sgd, momentum: 0.9}"])
    assert differing_keys(there, here)["optim.d.name"] == ("adam", "sgd") and new_optimizers(there, here) == ["d"]
    tuned = replace(there, optim=Optim(g=Adam(betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1), lr_g=1.0))
    assert new_optimizers(there, tuned) == []
    assert new_optimizers(here, replace(here, optim=Optim(g=AdamW(), d=Sgd(momentum=0.5)))) == ["g", "d"]


def test_notes_and_refusals_know_what_an_optimizer_uses():
    swap = ["averagers.ema={name: ema}", "averagers.two={name: ema, half_life_kimg: 1}", "swap.source=ema"]
    auto = [*swap, "swap.growth=auto", "batching={name: on_swap, batch_size: 64, max_batch: 256}"]
    reset = [*swap, "swap.optimizer=reset_momentum"]
    sgd = ["optim.g={name: sgd}", "optim.d={name: sgd}"]
    nothing = "swap.optimizer=reset_momentum has nothing to reset: "
    for words, note in (
        (reset, f"{nothing}optim.betas[0] is 0"),
        ([*reset, "optim.d={name: sgd}"], f"{nothing}optim.betas[0] and optim.d.momentum are 0"),
        ([*reset, "optim.g.betas=[0.0, 0.9]", "swap.networks=g"], f"{nothing}optim.g.betas[0] is 0"),
        ([*sgd, "optim.betas=[0.5, 0.9]"], "optim.betas has no effect: the optimizers of G and D do not use it"),
        ([*sgd, "optim.eps=0.1"], "optim.eps has no effect: the optimizers of G and D do not use it"),
    ):
        assert note in notes(load(None, words))
    for words in ([*reset, "optim.d.betas=[0.5, 0.9]"], [*reset, "optim.g={name: sgd, momentum: 0.9}"], [sgd[0], "optim.betas=[0.5, 0.9]"]):
        assert not [note for note in notes(load(None, words)) if "momentum" in note or "betas" in note]
    with pytest.raises(ConfigError, match="swap.growth needs optimizers of G and D that both divide the gradient by its size"):
        load(None, [*auto, sgd[0]])
    assert all(load(None, [*auto, *more]) for more in (sgd, [sgd[0], "swap.networks=g"], ["optim.g={name: rmsprop}"]))


def test_a_batch_grows_by_g_under_sgd_and_by_its_square_under_adam(monkeypatch):
    monkeypatch.setattr(swapper, "identified_rate", lambda banks, nimg: (1e-4, {}))
    monkeypatch.setattr(swapper, "growth_that_holds", lambda *arguments: 3.0)
    for rule, growth in ((Adam(), 9.0), (RmsProp(), 9.0), (Sgd(), 3.0), (OPTIMIZER.adapt(Counted()), 9.0)):
        one = object.__new__(swapper.Swapper)
        one.settings = SimpleNamespace(growth="auto", source="ema", alpha=1.0, lr_scale=1.0)
        one.players, one.banks = {"g": SimpleNamespace(rule=rule)}, {"g": None}
        assert one._growth(0)[0] == growth


def test_memory_is_estimated_by_what_an_optimizer_keeps():
    size = Size(parameters=100, held=400, trained=400, recalibrated=False)
    with_ = lambda **rules: bytes_of_networks(Config(averagers={}, optim=Optim(**rules)), size, size)[0]  # noqa: E731
    assert with_() == 2 * 400 + 6 * 400 + 400
    assert [with_() - with_(d=rule) for rule in (Sgd(), Sgd(momentum=0.5), RmsProp(), RmsProp(centered=True))] == [800, 400, 400, 0]


@dataclass(frozen=True)
class Wrong:
    """Builds nothing, or sets what is not there."""

    how: str = "build"

    def build(self, parameters, lr, betas, eps):
        return None if self.how == "build" else torch.optim.SGD(parameters[: 1 if self.how == "part" else None], lr=lr)

    def settings(self, nimg, betas):
        return {"beta": 1.0} if self.how == "settings" else {}


def test_what_an_optimizer_from_outside_returns_is_checked():
    part = "build must return an optimizer of all parameters, such as bias"
    for how, words in (
        ("build", "build must .*an optimizer of torch"),
        ("settings", "settings must .*entries of param_groups"),
        ("part", part),
    ):
        with pytest.raises(WrongResult, match=f"Wrong.*{words}"):
            build_optimizer(OPTIMIZER.adapt(Wrong(how)), nn.Linear(1, 1), 0.1, Optim())


def test_rates_and_betas_are_set_before_every_update():
    """Composed with the factors of the tail, swaps and rollbacks; a warm-up begins at 0 although optimizers may refuse that."""
    optim = Optim(
        lr_g=Schedule(1.0, shape="constant", warmup_kimg=1), lr_d=2.0, betas=(0.0, Schedule(0.9, 0.5, 1)),
        d=RmsProp(alpha=Schedule(0.2, 0.4, 1)),
    )  # fmt: skip
    one = object.__new__(Players)
    one.context = SimpleNamespace(config=SimpleNamespace(optim=optim))
    one.G, one.D = made(optim.g), made(optim.d)
    for nimg, lr, beta, alpha in ((0, 0, 0.9, 0.2), (500, 0.5, 0.7, 0.3), (1000, 1.0, 0.5, 0.4), (5000, 1.0, 0.5, 0.4)):
        one.set_rates(0.1, nimg)
        (g,), (d,) = one.G.optimizer.param_groups, one.D.optimizer.param_groups
        assert g["lr"] == pytest.approx(0.1 * lr) and d["lr"] == pytest.approx(0.2)
        assert g["betas"] == pytest.approx((0.0, beta)) and d["alpha"] == pytest.approx(alpha)
    assert build_optimizer(optim.g, nn.Linear(1, 1), optim.lr_g, optim).param_groups[0]["lr"] == 0
    assert all(is_frozen_dataclass(cls()) and issubclass(cls, Optimizer) for cls in OPTIMIZERS.values())


# ---- whole runs ------------------------------------------------------------------------------------------------------

DIGITS = ROOT / "configs" / "digits.yaml"
SHORT = [*TINY, "eval.every_kimg=null", "eval.metrics=[fid]", "tracking.samples_every_kimg=null"]
WORDS = [
    "optim.g={name: sgd, momentum: 0.9, nesterov: true}", "optim.d={name: rmsprop, centered: true, momentum: 0.5}", "optim.clip_g=0.5",
    "optim.clip_d=5", "optim.lr_g={from: 1e-2, to: 1e-3, until_kimg: 0.3, start_kimg: 0.05, shape: cosine}", "optim.d_steps=1",
    "optim.lr_d={from: 1e-4, shape: constant, warmup_kimg: 0.1}", "optim.d.alpha={from: 0.9, to: 0.99, until_kimg: 0.2}",
    "averagers.ema.half_life_kimg={from: 0, to: 1, until_kimg: 0.25}",
]  # fmt: skip


def newest(run):
    return sorted((run / "checkpoints").iterdir())[-1]


def tensors_of(run) -> dict[str, Tensor]:
    files = sorted(newest(run).glob("*.safetensors"))
    return {f"{file.stem}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def lines(run) -> list[dict]:
    return [line for line in lines_of(run) if "loss/d" in line]


class Killed(BaseException):
    """Ends a run without a word, and without a checkpoint."""


@pytest.fixture(scope="module")
def whole(gantrain, tmp_path_factory):
    """A run with all of it, whose batch grows."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    grows = ["batching={name: schedule, batch_size: 16, micro_batch: 8, max_batch: 32, milestones: [[0.15, 32]]}"]
    words = ["train", DIGITS, *SHORT, *WORDS, *grows]
    said = gantrain(*words, f"run_dir={run}").stdout
    return run, words, said


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(gantrain, whole, tmp_path, monkeypatch):
    run, words, _ = whole
    with monkeypatch.context() as patch:
        update = Trainer.update

        def killed(trainer):
            if trainer.run.nimg >= 200:
                raise Killed
            update(trainer)

        patch.setattr(Trainer, "update", killed)
        with suppress(Killed):
            gantrain(*words, f"run_dir={tmp_path}", check=False)
    assert 0 < int(newest(tmp_path).name) < 200
    gantrain(*words, f"run_dir={tmp_path}")
    ours, theirs = tensors_of(tmp_path), tensors_of(run)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.endswith("/momentum_buffer") for name in ours) and any(name.endswith("/square_avg") for name in ours)
    shown = ("loss/", "schedule/", "lr/", "grad_norm/")
    kept = [[{key: value for key, value in line.items() if key.startswith(shown)} for line in lines(one)] for one in (tmp_path, run)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_run_says_and_records_what_is_scheduled(gantrain, whole, tmp_path):
    """By images: where the batch has grown, the numbers are those of the place in the run."""
    run, _, said = whole
    assert "schedules: optim.lr_g from 0.01 to 0.001 between 0.05 and 0.3 kimg (cosine); optim.lr_d 0.0001 after a warm-up from 0" in said
    assert [*lines_of(run)[0]["schedules"]] == ["optim.lr_g", "optim.lr_d", "optim.d.alpha", "averagers.ema.half_life_kimg"]
    config = load(run / "config.yaml")
    assert lines(run)[-1]["batch/size"] == 32
    for line in lines(run):
        before = line["nimg"] - line["batch/size"]
        assert line["lr/g"] == pytest.approx(config.optim.lr_g.at(before)) and line["lr/d"] == pytest.approx(config.optim.lr_d.at(before))
        assert line["schedule/optim.d.alpha"] == pytest.approx(config.optim.d.alpha.at(before))
        assert line["schedule/averagers.ema.half_life_kimg"] == pytest.approx(min(before / 250, 1))
        assert not {"schedule/optim.lr_g", "schedule/optim.lr_d"} & line.keys()
    page = gantrain("report", run, "--out", tmp_path / "page.html") and (tmp_path / "page.html").read_text()
    assert "schedule of optim.d.alpha" in page and "schedule of averagers.ema.half_life_kimg" in page


@pytest.mark.slow
def test_another_optimizer_needs_a_fork(gantrain, whole, tmp_path):
    """A resume refuses it by its key; a fork says that it begins without a past, and trains."""
    run, _, _ = whole
    done = gantrain("train", run / "config.yaml", "optim.g.name=adam", "total_kimg=0.4", check=False)
    assert done.returncode == 2 and "optim.g.name (sgd there, adam now)" in done.stderr
    done = gantrain("train", run / "config.yaml", "optim.lr_g=1e-3", "total_kimg=0.4", check=False)
    assert (
        done.returncode == 2
        and "optim.lr_g ({from: 0.01, to: 0.001, until_kimg: 0.3, start_kimg: 0.05, shape: cosine, warmup_kimg: 0.0} there" in done.stderr
    )
    fork = tmp_path / "fork"
    said = gantrain("fork", run, "--out", fork, "optim.g=null", "total_kimg=0.4", check=False)
    assert said.returncode == 2
    said = gantrain("fork", run, "--out", fork, "optim.g.name=adam", "optim.d.momentum=0.6", "optim.lr_g=1e-3", "total_kimg=0.4")
    assert "optimizers: without a past: optim.g, optim.d" in said.stdout
    gantrain("train", fork / "config.yaml")
    entries = {name.rpartition("/")[2] for name in tensors_of(fork) if name.startswith("optimizer_g")}
    assert entries == {"step", "exp_avg", "exp_avg_sq"}
    steps = [value for name, value in tensors_of(fork).items() if name.startswith("optimizer_g") and name.endswith("/step")]
    assert all(step == steps[0] and step < 5 for step in steps)


@pytest.mark.slow
def test_optimizers_that_remember_nothing_train_and_resume(gantrain, tmp_path):
    """Plain SGD has no state: its file in a checkpoint is empty."""
    words = ["train", DIGITS, *SHORT, "optim.g.name=sgd", "optim.d.name=sgd", f"run_dir={tmp_path}"]
    gantrain(*words, "total_kimg=0.16")
    gantrain(*words)
    assert not [name for name in tensors_of(tmp_path) if name.startswith("optimizer")]
    assert all(math.isfinite(line["loss/d"]) for line in lines(tmp_path))


@pytest.mark.slow
def test_a_swap_resets_momentum_in_a_run(gantrain, tmp_path):
    words = ["swap={source: ema, start_kimg: 0.1, every_kimg: 0.1, after_kimg: 0.05, optimizer: reset_momentum, growth: 1}"]
    gantrain("train", DIGITS, *SHORT, *WORDS, *words, f"run_dir={tmp_path}")
    assert sum(line.get("event") == "swap" and line["moment"] == "at" for line in lines_of(tmp_path)) >= 2


@pytest.mark.slow
def test_two_processes_train_as_one(launch, gantrain, tmp_path):
    """Without BatchNorm, the weights, averages and states agree up to the rounding of another order of sums."""
    words = ["train", DIGITS, *SHORT, *WORDS, "model.name=plain_networks:PlainBigGAN", "optim.eps=1e-3", "total_kimg=0.16"]
    gantrain(*words, f"run_dir={tmp_path / 'one'}")
    launch(2, "-m", "gantrain", *words, f"run_dir={tmp_path / 'two'}")
    ours, theirs = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=lambda words, name=name: f"{name}: {words}")
    assert [line["lr/g"] for line in lines(tmp_path / "one")] == [line["lr/g"] for line in lines(tmp_path / "two")]
