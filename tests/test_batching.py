"""Batch policies and the controller, by themselves; tests/test_growth.py has them in whole runs."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from conftest import ROOT

from gantrain import batching
from gantrain.batching import (
    BATCH_POLICIES,
    BatchController,
    Batches,
    BatchState,
    ByNoiseScale,
    Estimate,
    Fixed,
    Largest,
    NoiseMonitor,
    NoiseScale,
    OnSwap,
    Schedule,
)
from gantrain.config import loading, notes, yaml_files
from gantrain.errors import InvalidField, UserError

DIGITS = ROOT / "configs" / "digits.yaml"
# What every policy needs besides its defaults, to be one that runs.
GIVEN = {
    "fixed": {},
    "on_swap": {"max_batch": 256},
    "schedule": {"milestones": [[10, 128], [20, 256]]},
    "noise_scale": {"max_batch": 256, "dwell_kimg": 0.0, "patience": 1},
    "largest": {"max_batch": 256, "of": {"steps": Schedule(milestones=[[10, 128]]), "swaps": OnSwap()}},
}


@pytest.fixture(params=BATCH_POLICIES, ids=BATCH_POLICIES)
def policy(request):
    return BATCH_POLICIES[request.param](**{"micro_batch": 16, **GIVEN[request.param]})


def surely(b_simple: float, spread: float = 1.1) -> Estimate:
    return Estimate(trace=b_simple, squared=1.0, low=b_simple / spread, high=b_simple * spread, measurements=32)


UNDECIDABLE = Estimate(trace=1.0, squared=-1.0, low=None, high=None, measurements=32)


def state(nimg: int = 10**6, batch: int = 64, d: Estimate = UNDECIDABLE, g: Estimate = UNDECIDABLE, checks=1, **kwargs) -> BatchState:
    """A moment at which so many equal checks (or these) have been made, the last of them just now."""
    return BatchState(
        nimg,
        batch,
        **{
            "proposal": float(batch),
            "since_change": nimg,
            "checks": ({"d": d, "g": g},) * checks if isinstance(checks, int) else checks,
            "checked": True,
            **kwargs,
        },
    )


# ---- every policy ----------------------------------------------------------------------------------------------------


def test_a_policy_is_a_frozen_dataclass_that_begins_with_its_batch(policy):
    assert dataclasses.is_dataclass(policy) and type(policy).__dataclass_params__.frozen and isinstance(policy, Batches)
    assert policy.propose(BatchState(0, 0)) == policy.batch_size == 64


def test_a_policy_asked_on_and_on_never_shrinks_nor_exceeds_what_it_may(policy):
    """Through swaps, checks and 100 kimg: whole rounds only, and the same answers from a controller that was saved on the way."""
    controller, sizes = BatchController(policy, world=2), []
    for i in range(1000):
        nimg = i * 100
        if i == 500:
            saved = json.loads(json.dumps(controller.state()))
            controller = BatchController(policy, world=2)
            controller.load(saved)
        grown = controller.ask(nimg, growth=1.5 if i % 100 == 99 else 1.0)
        assert (grown is None) == (not sizes or controller.batch_size == sizes[-1])
        sizes.append(controller.batch_size)
        assert controller.batch_size == controller.rounds * 32
    assert sizes == sorted(sizes) and sizes[-1] <= controller.highest
    assert policy.grows == (sizes[-1] > 64) or policy.reads_noise  # without measurements noise moves nothing


def test_a_policy_gives_the_reason_of_its_growth_in_words(policy):
    moment = state(nimg=10**6, d=surely(1000.0), growth=2.0)
    assert policy.propose(moment) >= 64 and len(policy.reason(moment).split()) >= 3


def test_a_policy_goes_through_a_configuration_and_back(policy):
    values = loading.to_dict(loading.load(DIGITS))
    name = next(n for n, cls in BATCH_POLICIES.items() if cls is type(policy))
    values["batching"] = {"name": name, **loading.to_dict(policy)}
    values["noise_scale"]["measure_every"] = 10
    config = loading.build(values)
    assert config.batching == policy and loading.build(loading.to_dict(config)) == config


# ---- the schedule ----------------------------------------------------------------------------------------------------


def test_milestones_hold_from_their_image_on():
    policy = Schedule(batch_size=64, milestones=[[10, 128], [20.5, 512]])
    found = [policy.propose(BatchState(nimg, 64)) for nimg in (0, 9_999, 10_000, 20_499, 20_500, 10**9)]
    assert found == [64, 64, 128, 128, 512, 512] and policy.highest == 512


@pytest.mark.parametrize("factor, every", [(2.0, 10.0), (1.5, 3.0), (math.sqrt(2), 0.7)])
def test_a_geometric_schedule_multiplies_every_so_many_kimg_up_to_its_largest(factor, every):
    policy = Schedule(batch_size=48, factor=factor, every_kimg=every, max_batch=4800)
    for nimg in range(0, 200_000, 777):
        assert policy.propose(BatchState(nimg, 48)) == pytest.approx(min(48 * factor ** (nimg // round(every * 1000)), 4800))
    assert policy.propose(BatchState(10**15, 48)) == 4800  # no overflow on the way


def test_a_schedule_is_cut_to_whole_rounds_on_the_processes_there_are():
    controller = BatchController(Schedule(batch_size=48, micro_batch=16, milestones=[[1, 80], [2, 144]]), world=3)
    events = [controller.ask(nimg) for nimg in (0, 1000, 2000)]
    assert events[:2] == [None, None]  # 80 images are no two rounds of 48
    assert controller.notes == ["batching.milestones: 80 is not a whole number of rounds of 16 images x 3 processes; the batch will be 48"]
    assert events[2] == {"from": 48, "to": 144, "rounds": 3, "reason": "the schedule sets 144 from 2 kimg on"}


# ---- the noise scale -------------------------------------------------------------------------------------------------


NOISE = {"batch_size": 64, "max_batch": 1024, "target": 2.0, "margin": 1.5, "patience": 2, "dwell_kimg": 5.0}


@pytest.mark.parametrize(
    "gate, d, g, grows",
    [
        ("d", 4, 1, True), ("d", 1, 4, False), ("g", 4, 1, False), ("g", 1, 4, True), ("either", 4, 1, True), ("either", 1, 4, True),
        ("either", 1, 1, False), ("both", 4, 1, False), ("both", 1, 4, False), ("both", 4, 4, True),
    ],
)  # fmt: skip
def test_gates(gate, d, g, grows):
    """The lower end must be above target x margin = 3 batches."""
    moment = state(d=surely(64.0 * d), g=surely(64.0 * g), checks=2)
    policy = ByNoiseScale(gate=gate, **NOISE)
    assert policy.propose(moment) == (128 if grows else 64)
    if grows:
        named = [player for player, ratio in (("D", d), ("G", g)) if ratio == 4 and player.lower() in batching.by_noise_scale.GATES[gate]]
        assert [f"{player}'s noise scale is 4 batches (3.64 to 4.4)" in policy.reason(moment) for player in ("D", "G")] == [
            p in named for p in ("D", "G")
        ]
        assert policy.reason(moment).endswith(", above 2 x 1.5 in 2 checks")


@pytest.mark.parametrize(
    "change",
    [
        {"checks": 1},  # too few
        {"since_change": 4_999},  # too soon
        {"checked": False},  # nothing new
        {"d": surely(64 * 3.2)},  # above 3 batches, but its lower end is not
        {"d": UNDECIDABLE},
        {"checks": ({"d": UNDECIDABLE, "g": UNDECIDABLE}, {"d": surely(640.0), "g": UNDECIDABLE})},  # not in a row
    ],
)
def test_what_holds_growth_back(change):
    assert ByNoiseScale(**NOISE).propose(state(d=surely(640.0), checks=2, since_change=5_000)) == 128
    assert ByNoiseScale(**NOISE).propose(state(**{"d": surely(640.0), "checks": 2, "since_change": 5_000, **change})) == 64


@pytest.mark.parametrize("gate, expected", [("d", 4.0), ("g", 3.0), ("either", 4.0), ("both", 3.0)])
def test_the_law_of_the_square_root_takes_the_lower_end(gate, expected):
    """sqrt(r B_simple) of the lower ends, 1600 for D and 900 for G: r = 100 gives 400 and 300 images, whatever the target."""
    policy = ByNoiseScale(**{**NOISE, "target": 100.0}, gate=gate, law="sqrt", r=100.0)
    assert policy.propose(state(d=surely(1760.0), g=surely(990.0), checks=2)) == pytest.approx(100 * expected)
    assert policy.propose(state(d=surely(1760.0), g=surely(990.0), checks=2, batch=512)) == 512  # never down
    assert "sqrt(100 x B_simple)" in policy.reason(state(d=surely(1760.0), g=surely(990.0), checks=2))


# ---- several at once -------------------------------------------------------------------------------------------------


def test_the_largest_of_several_policies_with_its_reason():
    policy = Largest(
        batch_size=64, micro_batch=32, max_batch=1024,
        of={"steps": Schedule(milestones=[[10, 128], [50, 512]]), "swaps": OnSwap(), "noise": ByNoiseScale(patience=1, dwell_kimg=1.0)},
    )  # fmt: skip
    monitor = NoiseMonitor(NoiseScale(measure_every=1, window=8), {"d": [""], "g": [""]})
    controller = BatchController(policy, 1, monitor)

    def measured(b_simple: float) -> None:
        batch = controller.batch_size
        for i in range(8):  # |G|^2 = 1 and tr Sigma = b_simple, give or take
            small, big = (1 + b_simple * (1 + 0.01 * (-1) ** i) / size for size in (32, batch))
            for player in ("d", "g"):
                monitor.record(player, 32, batch, torch.tensor([[small], [big]], dtype=torch.float64))

    assert controller.ask(5_000) is None
    assert controller.ask(10_000)["reason"] == "the schedule sets 128 from 10 kimg on"
    assert controller.ask(20_000, growth=2.0) == {"from": 128, "to": 256, "rounds": 8, "reason": "the swap asks for x2"}
    measured(10_000.0)
    grown = controller.ask(21_000)
    assert (grown["from"], grown["to"]) == (256, 512) and grown["reason"].startswith("D's noise scale is 39.1 batches")
    assert controller.ask(50_000) is None  # the schedule's 512 is there already
    measured(10_000.0)
    assert controller.ask(51_000)["to"] == 1024
    measured(100_000.0)
    assert controller.ask(99_000, growth=4.0) is None  # the cap
    assert policy.of["noise"].batch_size == 64 and policy.of["noise"].max_batch == 1024  # said once, beside `of`


def test_other_processes_take_the_main_ones_word():
    """Where a check or a swap has part in it; what the clock decides needs no word."""
    words = []

    def agree(value):
        words.append(value)
        return 128.0, "the main process says so"

    controller = BatchController(OnSwap(batch_size=32, micro_batch=16, max_batch=256), world=2, agree=agree)
    assert controller.ask(1000) is None and words == []
    assert controller.ask(2000, growth=2.0) == {"from": 32, "to": 128, "rounds": 4, "reason": "the main process says so"}
    assert words == [(64.0, "the swap asks for x2")]


def measuring(policy, world: int = 1) -> tuple[BatchController, NoiseMonitor]:
    monitor = NoiseMonitor(NoiseScale(measure_every=1, window=8), {"d": [""], "g": [""]})
    return BatchController(policy, world, monitor), monitor


def record(monitor: NoiseMonitor, b: int, batch: int, b_simple: float = 1e5) -> None:
    """A window of measurements with tr Sigma = b_simple and |G|^2 = 1, give or take."""
    for i in range(8):
        small, big = (1 + b_simple * (1 + 0.01 * (-1) ** i) / size for size in (b, batch))
        for player in ("d", "g"):
            monitor.record(player, b, batch, torch.tensor([[small], [big]], dtype=torch.float64))


def test_a_policy_that_asks_for_less_is_not_heard():
    @dataclasses.dataclass(frozen=True)
    class Down:
        batch_size: int = 64

        def propose(self, state):
            return 64 if state.nimg < 100 else 32

    controller = BatchController(Down(), world=1)
    assert controller.ask(50) is None and controller.ask(500) is None and controller.batch_size == 64


def test_after_a_growth_patience_and_dwell_begin_anew():
    controller, monitor = measuring(ByNoiseScale(batch_size=32, micro_batch=16, max_batch=512, patience=2, dwell_kimg=0.1))
    grown = []
    for nimg in (100, 200, 300, 400, 450, 460, 600):
        record(monitor, 16, controller.batch_size)
        grown.append(controller.ask(nimg) is not None)
    assert grown == [False, True, False, True, False, False, True]  # two checks each, and 100 images at least


def test_factors_within_a_round_wait_as_others_do():
    """Each rise of what is asked for wants two checks of its own and a dwell, whether or not it fills a round."""
    controller, monitor = measuring(ByNoiseScale(batch_size=32, micro_batch=32, max_batch=96, factor=1.3, patience=2, dwell_kimg=0.1))
    proposals = []
    for nimg in range(100, 1000, 100):
        record(monitor, 16, 32)
        controller.ask(nimg)
        proposals.append(round(controller.proposal, 1))
    assert proposals == [32, 41.6, 41.6, 54.1, 54.1, 70.3, 70.3, 91.4, 91.4]


def test_a_swap_forgets_the_noise_of_the_weights_before_it():
    """As the trainer swaps: a check that would have been complete at that moment grows nothing."""
    controller, monitor = measuring(ByNoiseScale(batch_size=32, micro_batch=16, max_batch=512, patience=1, dwell_kimg=0.0))
    record(monitor, 16, 32)
    controller.weights_jumped()
    assert controller.ask(1000) is None and not any(monitor.windows.values()) and not monitor.pending
    record(monitor, 16, 32)
    assert controller.ask(2000)["to"] == 64


def test_the_law_of_the_square_root_takes_the_least_of_the_checks():
    policy = ByNoiseScale(**NOISE, law="sqrt", r=100.0)
    checks = [{"d": surely(1100.0 * n), "g": UNDECIDABLE} for n in (16, 1, 4)]
    assert policy.propose(state(checks=checks[:2])) == policy.propose(state(checks=checks[1:])) == pytest.approx((100 * 1000) ** 0.5)


def test_several_policies_without_noise_need_no_measuring():
    config = loading.load(DIGITS, ["batching={name: largest, of: {steps: {name: schedule, milestones: [[10, 128]]}}}"])
    assert not config.batching.reads_noise and config.batching.highest == 128


@pytest.mark.parametrize("answer", [None, float("nan"), float("inf"), "32", 0, True])
def test_a_policy_that_proposes_no_number_is_named(answer):
    @dataclasses.dataclass(frozen=True)
    class Bad:
        batch_size: int = 64

        def propose(self, state):
            return 64 if state.nimg == 0 else answer

    controller = BatchController(Bad(), world=1)
    with pytest.raises(UserError, match=r"batching: Bad.propose must return a number of images, at least 1, got "):
        controller.ask(500)


def test_another_policy_on_the_command_line_takes_the_files_keys_with_it():
    """What it knows too stays; what stands on the command line itself must be right."""
    path = ROOT / "configs" / "digits_noise_scale.yaml"
    assert loading.load(path, ["batching.name=fixed"]).batching == Fixed(batch_size=64, micro_batch=32, max_batch=512)
    assert loading.load(path, ["batching={name: schedule, milestones: [[10, 128]]}"]).batching.milestones == ((10, 128),)
    with pytest.raises(yaml_files.ConfigError, match="command line: batching.target=2: no such key of fixed"):
        loading.load(path, ["batching.name=fixed", "batching.target=2"])


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["batching={name: schedule, milestones: [[10, 128], [90, 256]]}"],
            "batching.milestones: 90 is not before total_kimg=80: it will have no effect",
        ),
        (
            ["batching={name: noise_scale, max_batch: 128, dwell_kimg: 99}", "noise_scale.measure_every=10"],
            "batching: the first growth takes at least 99 kimg, and total_kimg is 80",
        ),
        (
            ["batching={name: noise_scale, max_batch: 128}", "noise_scale.measure_every=100"],
            "batching: the first growth takes at least 409.6 kimg, and total_kimg is 80",
        ),
        (["batching.lr_scaling=sqrt"], "batching.name=fixed: the batch is constant, so max_batch and lr_scaling have no effect"),
        (["noise_scale.per_layer=true"], "noise_scale.measure_every is null: the other settings of noise_scale have no effect"),
    ],
)
def test_settings_without_effect_are_noted(overrides, words):
    assert any(note.startswith(words) for note in notes.notes(loading.load(DIGITS, overrides)))


@pytest.mark.parametrize("how, power", [("none", 0.0), ("sqrt", 0.5), ("linear", 1.0)])
def test_growth_scales_the_rates_as_asked(how, power):
    controller = BatchController(Schedule(batch_size=32, milestones=[[1, 64], [2, 256]], lr_scaling=how), world=1)
    scales = [controller.lr_scale for nimg in (0, 1000, 2000) if controller.ask(nimg) or True]
    assert scales == pytest.approx([1.0, 2.0**power, 8.0**power])


# ---- what cannot be --------------------------------------------------------------------------------------------------

NOISY = "noise_scale.measure_every=10"
REFUSED = [
    (["batching={name: noise_scale, max_batch: 128, target: 0}", NOISY], "batching.target must be above 0, got 0"),
    (["batching={name: noise_scale, max_batch: 128, target: -1}", NOISY], "batching.target must be above 0, got -1"),
    (["batching={name: noise_scale, max_batch: 128, margin: 0.5}", NOISY], "batching.margin must be at least 1, got 0.5"),
    (["batching={name: noise_scale, max_batch: 128, gate: e}", NOISY], "batching.gate must be one of d, g, either, both, got 'e'"),
    (["batching={name: noise_scale, max_batch: 128, factor: 1}", NOISY], "batching.factor must be above 1, got 1"),
    (["batching={name: noise_scale, max_batch: 128, patience: 0}", NOISY], "batching.patience must be between 1 and 16, got 0"),
    (["batching={name: noise_scale, max_batch: 128, dwell_kimg: -1}", NOISY], "batching.dwell_kimg must be at least 0, got -1"),
    (["batching={name: noise_scale, max_batch: 128, law: cube}", NOISY], "batching.law must be one of factor, sqrt, got 'cube'"),
    (["batching={name: noise_scale, max_batch: 128, law: sqrt}", NOISY], "batching.r must be above 0 with law: sqrt, got null"),
    (["batching={name: noise_scale, max_batch: 128, r: 5}", NOISY], "batching.r must be null with law: factor, got 5"),
    (
        ["batching={name: noise_scale}", NOISY],
        "batching.max_batch must be set, the largest batch allowed: without it, this policy never stops growing, got null",
    ),
    (
        ["batching={name: noise_scale, max_batch: 128}"],
        "noise_scale.measure_every must be set, for example to 10: the batch policy uses the noise scale, got null",
    ),
    (["noise_scale.measure_every=0"], "noise_scale.measure_every must be at least 1, or null for never, got 0"),
    (["noise_scale.window=4"], "noise_scale.window must be at least 8, got 4"),
    (
        ["batching={name: noise_scale, batch_size: 64, micro_batch: 32, max_batch: 100}", NOISY],
        "batching.max_batch is not a multiple of micro_batch=32; use 96 or 128, got 100",
    ),
    (
        ["batching={name: schedule, milestones: [[10, 128], [20, 64]]}"],
        "batching.milestones must not shrink: the one before is [10, 128], got [20, 64]",
    ),
    (["batching={name: schedule, milestones: [[10, 32]]}"], "batching.milestones must not shrink: batch_size is 64, got [10, 32]"),
    (
        ["batching={name: schedule, milestones: [[20, 128], [10, 256]]}"],
        "batching.milestones must be in order of time: the one before is [20, 128], got [10, 256]",
    ),
    (
        ["batching={name: schedule, milestones: [[10, 128], [10, 256]]}"],
        "batching.milestones must be in order of time: the one before is [10, 128], got [10, 256]",
    ),
    (
        ["batching={name: schedule, milestones: [[10, 512]], max_batch: 256}"],
        "batching.milestones must be at most max_batch (256), got [10, 512]",
    ),
    (
        ["batching={name: schedule, micro_batch: 32, milestones: [[10, 100]]}"],
        "batching.milestones must be a multiple of micro_batch (32), got [10, 100]",
    ),
    (
        ["batching={name: schedule, milestones: [10, 128]}"],
        "batching.milestones must be a list of pairs [kimg above 0, whole number of images], got [10, 128]",
    ),
    (
        ["batching={name: schedule, milestones: [[10, 128.5]]}"],
        "batching.milestones must be a list of pairs [kimg above 0, whole number of images]",
    ),
    (["batching={name: schedule}"], "batching.factor must be set together with every_kimg; or set milestones instead, got null"),
    (
        ["batching={name: schedule, factor: 0.5, every_kimg: 10, max_batch: 128}"],
        "batching.factor must be above 1, or null, got 0.5",
    ),
    (["batching={name: schedule, factor: 2, max_batch: 128}"], "batching.every_kimg must be set together with factor, got null"),
    (
        ["batching={name: schedule, factor: 2, every_kimg: 10}"],
        "batching.max_batch must be set",
    ),
    (
        ["batching={name: schedule, factor: 2, every_kimg: 10, milestones: [[1, 64]]}"],
        "batching.milestones cannot be combined with factor and every_kimg; set one or the other",
    ),
    (["batching.lr_scaling=cubic"], "batching.lr_scaling must be one of none, sqrt, linear, got 'cubic'"),
    (["batching={name: largest, of: {}}"], "batching.of must name at least one policy, such as {noise: {name: noise_scale}}"),
    (
        ["batching={name: largest, max_batch: 128, of: {a: {name: largest}}}"],
        "batching.of.a.name: no batch policy 'largest'; known: noise_scale, on_swap, schedule",
    ),
    (
        ["batching={name: largest, max_batch: 128, of: {a: {name: on_swap, max_batch: 256}}}"],
        "batching.of.a.max_batch must be set next to `of` (there it is 128), got 256",
    ),
    (
        ["batching={name: largest, max_batch: 128, of: {a: {name: schedule, milestones: [[1, 32]]}}}"],
        "batching.of.a.milestones must not shrink: batch_size is 64, got [1, 32]",
    ),
    (
        ["batching={name: largest, of: {a: {name: noise_scale}}}", NOISY],
        "batching.max_batch must be set",
    ),
    (["batching={name: largest, max_batch: 128, of: {a: {name: noise_scale}}}"], "noise_scale.measure_every must be set"),
    (["batching={name: schedul}"], "batching.name: no batch policy 'schedul'; did you mean 'schedule'?"),
    (
        ["penalties={a: {name: r1}}", "performance.compile=true"],
        "performance.compile does not work with penalties.a: torch.compile cannot differentiate twice; set it to false, or use a penalty of"
        " first order, such as fd_r1 for r1, got True",
    ),
    (
        ["penalties={a: {name: r1}}", "mixed_precision=fp16"],
        "mixed_precision does not work with penalties.a, whose inner gradients would underflow; use bf16 or fp32, or a penalty of first"
        " order, such as fd_r1 for r1, got 'fp16'",
    ),
    (
        ["penalties={a: {name: 'own_terms:OldOfG'}}"],
        "penalties.a.networks needs a penalty with a method 'term': 'penalty' is for D's phase; use d, got 'gd'",
    ),
    (["penalties={a: {name: 'own_terms:Memory', every: -1}}"], "penalties.a.every must be at least 1, got -1"),
    (["optim.g_steps=0"], "optim.g_steps must be at least 1, got 0"),
    (["optim.first=G"], "optim.first must be one of d, g, got 'G'"),
    (["penalties={a: {name: r3}}"], "penalties.a.name: no penalty 'r3'"),
    (["penalties={a: {name: r1, gamma: 0}}"], "penalties.a.gamma must be above 0, got 0"),
    (["penalties={a: {name: r1, every: 0}}"], "penalties.a.every must be at least 1, got 0"),
]


@pytest.mark.parametrize("overrides, words", REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
def test_what_cannot_be_is_one_line(overrides, words):
    with pytest.raises(yaml_files.ConfigError) as error:
        loading.load(DIGITS, overrides)
    assert words in str(error.value)
    assert str(error.value).startswith("command line: ") or "measure_every must be set" in words  # a key that nobody has set


def test_what_only_the_processes_make_impossible_is_one_line():
    with pytest.raises(
        UserError, match=r"batching.max_batch: 160 is not a whole number of rounds of 32 images x 3 processes; use 96 or 192"
    ):
        BatchController(OnSwap(batch_size=96, micro_batch=32, max_batch=160), world=3)
    with pytest.raises(InvalidField, match="max_batch: must be set"):  # in a program of one's own, without a configuration
        BatchController(ByNoiseScale(), world=1)
    BatchController(Fixed(batch_size=96, micro_batch=32, max_batch=100), world=1)  # never gets there


# ---- on other processes than before ----------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch, seen", [(None, [12, 12, 8, 12]), (6, [6, 6, 4, 6]), (8, [8, 8, 8, 8])])
def test_the_micro_batch_is_held_where_rounds_of_it_make_the_batch_and_comes_back(micro_batch, seen):
    """A batch of 24 on 2, 1, 3 and 2 processes; 12 does not go into 8 images a process, nor does 6; 8 becomes 8 three times."""
    batch, b = (24, micro_batch or 12)
    if micro_batch == 8:
        batch = 48
    policy = Fixed(batch_size=batch, micro_batch=micro_batch)
    saved = BatchController(policy, world=2).state()
    for world, expected in zip((2, 1, 3, 2), seen):
        controller = BatchController(policy, world=world, resumes=True)
        controller.load(json.loads(json.dumps(saved)))
        assert controller.micro_batch == expected and controller.batch_size == batch == expected * world * controller.rounds
        saved = controller.state()
        assert saved["first_micro_batch"] == b


@pytest.mark.parametrize("world, words", [(5, "resume on 4 or 6"), (7, "resume on 6 or 8"), (48, "resume on 12 or 24")])
def test_a_saved_batch_that_does_not_divide_is_refused_with_what_would(world, words):
    saved = BatchController(Fixed(batch_size=24), world=2).state()
    controller = BatchController(Fixed(batch_size=24), world=world, resumes=True)
    with pytest.raises(UserError, match=f"the run's batch of 24 cannot be split evenly over {world} processes; {words}"):
        controller.load(saved)


def test_a_batch_that_has_grown_goes_on_from_where_it_was_on_other_processes():
    """Also one whose configured start does not fit them: 16 on 3 processes, but 48 does."""
    policy = Schedule(batch_size=16, micro_batch=8, milestones=[[1, 48], [2, 96]])
    controller = BatchController(policy, world=2)
    assert controller.ask(1000)["to"] == 48
    other = BatchController(policy, world=3, resumes=True)
    other.load(controller.state())
    assert (other.micro_batch, other.rounds, other.ask(1500)) == (8, 2, None)
    assert other.ask(2000) == {**controller.ask(2000), "rounds": 4} and controller.rounds == 6
