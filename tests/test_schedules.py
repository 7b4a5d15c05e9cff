"""Numbers that change during a run: their values, how configurations have them, and what is said about them."""

from __future__ import annotations

import dataclasses
import math
import random
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from test_charts import RUN, record
from torch import nn

from gantrain.averaging import AverageBank, Ema
from gantrain.averaging.swap_growth import growth_that_holds, reads_orbit
from gantrain.config.config import Config
from gantrain.config.loading import differing_keys, load, set_keys, to_yaml
from gantrain.config.notes import notes
from gantrain.config.scheduled_keys import find_schedules, values_of
from gantrain.config.yaml_files import ConfigError
from gantrain.errors import InvalidField, UserError
from gantrain.reporting import charts, page
from gantrain.run_folder.training_columns import columns_of
from gantrain.schedule import Schedule, bounds_of, value_at

EMA = "averagers.ema={name: ema}"
FALL = "{from: 1e-3, to: 1e-4, until_kimg: 20, start_kimg: 10, shape: cosine}"


def test_values_are_those_of_the_formulas():
    """Before, within and after the change; with a warm-up; jumps; and numbers that are no schedules."""
    linear, cosine = Schedule(1.0, 3.0, 20, 10), Schedule(1.0, 3.0, 20, 10, "cosine")
    for kimg in (0, 5, 10, 10.001, 12.5, 15, 19.999, 20, 21, 1e6):
        s = min(max((kimg - 10) / 10, 0), 1)
        assert linear.at(round(kimg * 1000)) == pytest.approx(1 + 2 * s, abs=1e-12)
        assert cosine.at(round(kimg * 1000)) == pytest.approx(1 + 2 * (1 - math.cos(math.pi * s)) / 2, abs=1e-12)
    assert cosine.at(12_500) == pytest.approx(2 - math.sqrt(0.5))
    warm = Schedule(2.0, shape="constant", warmup_kimg=4)
    assert [warm.at(nimg) for nimg in (0, 1000, 3000, 4000, 10**9)] == [0, 0.5, 1.5, 2, 2]
    both = Schedule(2.0, 0.0, 8, warmup_kimg=4)
    assert [both.at(nimg) for nimg in (0, 2000, 4000, 6000, 8000)] == [0, 0.75, 1, 0.5, 0]
    jump = Schedule(1.0, 7.0, until_kimg=3, start_kimg=3)
    assert [jump.at(nimg) for nimg in (0, 2999, 3000, 3001)] == [1, 1, 7, 7]
    at_once = Schedule(1.0, 7.0, until_kimg=0)
    assert at_once.at(0) == at_once.at(5) == 7
    assert value_at(0.3, 77) == 0.3 and bounds_of(0.3) == (0.3, 0.3) and bounds_of(warm) == (2, 2) and bounds_of(both) == (0, 2)


def test_values_are_monotone_and_never_leave_their_bounds():
    """Also by rounding: a beta below 1 stays below 1. The place in the run decides, not how many updates led there."""
    dice = random.Random(0)
    for _ in range(60):
        a, b, start = dice.choice([0.1, 0.9, 1e-9, -3.0]), dice.choice([0.99, 1 - 2**-53, 0.0, 7.7]), dice.random() * 5
        one = Schedule(a, b, start + dice.choice([0, 1e-3, 3.3]), start, dice.choice(["linear", "cosine"]))
        values = [one.at(nimg) for nimg in range(0, 9000, 37)]
        assert values in (sorted(values), sorted(values, reverse=True)) and values[0] == a and values[-1] == b
        assert one.bounds[0] <= min(values) and max(values) <= one.bounds[1]


REFUSED = [
    ({"from_": 1.0}, "to: must be finite: it is the value at until_kimg; or set shape=constant, got null"),
    ({"from_": 1.0, "to": 2.0}, "until_kimg: must be a number of at least start_kimg (0), got null"),
    ({"from_": 1.0, "to": 2.0, "until_kimg": 1.0, "start_kimg": 2.0}, "until_kimg: must be a number of at least start_kimg (2), got 1.0"),
    ({"from_": math.nan, "shape": "constant"}, "from_: must be finite, got nan"),
    ({"from_": True, "shape": "constant"}, "from_: must be finite, got True"),
    ({"from_": torch.tensor(1.0), "shape": "constant"}, "from_: must be finite, got tensor"),
    ({"from_": 1.0, "to": math.inf, "until_kimg": 1.0}, "to: must be finite"),
    ({"from_": 1.0, "to": 2.0, "until_kimg": math.inf}, "until_kimg: must be a number"),
    ({"from_": 1.0, "to": 2.0, "until_kimg": 1.0, "start_kimg": -1.0}, "start_kimg: must be at least 0, got -1.0"),
    ({"from_": 1.0, "shape": "constant", "warmup_kimg": -1.0}, "warmup_kimg: must be at least 0, got -1.0"),
    ({"from_": 1.0, "shape": "constant", "to": 2.0}, "to: must be left out with shape=constant, which stays at from; use shape=linear"),
    ({"from_": 1.0, "shape": "constant", "start_kimg": 2.0}, "start_kimg: must be left out with shape=constant"),
    ({"from_": 1.0, "to": 2.0, "until_kimg": 1.0, "shape": "sine"}, "shape: is not a shape; use linear, cosine or constant, got 'sine'"),
]


def test_a_schedule_that_makes_no_sense_is_refused():
    for values, words in REFUSED:
        with pytest.raises(InvalidField, match=re.escape(words)):
            Schedule(**values)


# ---- in configurations -----------------------------------------------------------------------------------------------


MISTAKES = [
    ("optim.lr_g={from: 1, to: 2, until: 3}", "optim.lr_g.until=3: no such key; did you mean until_kimg?"),
    ("optim.lr_g={from: 1, to: 2, until_kimg: 3, warmup: 3}", "optim.lr_g.warmup=3: no such key; did you mean warmup_kimg?"),
    ("optim.lr_g={start: 1, end: 2}", "optim.lr_g.start=1: no such key; did you mean start_kimg?"),
    ("optim.lr_g={to: 2}", "optim.lr_g.from is missing: a schedule begins with a value"),
    ("optim.lr_g={from: 1, end: 2}", "optim.lr_g.end=2: no such key; did you mean to?"),
    ("optim.lr_g={from: 1, to: 2, kimg: 3}", "optim.lr_g.kimg=3: no such key; did you mean until_kimg?"),
    ("optim.lr_g={from: 1, to: 2, until_kimg: soon}", "optim.lr_g.until_kimg must be a number or null, got 'soon'"),
    ("optim.lr_g={from: 1, to: -2, until_kimg: 3}", "optim.lr_g.to must be at least 0, got -2.0"),
    ("optim.lr_g={from: 0, to: 0, until_kimg: 3}", "optim.lr_g.from must be above 0, or to must be, got 0.0"),
    ("optim.lr_g={from: .nan, to: 0, until_kimg: 3}", "optim.lr_g.from must be finite, got nan"),
    ("optim.lr_g={from: 1, to: 0, until_kimg: 3, shape: sine}", "optim.lr_g.shape must be one of linear, cosine, constant, got 'sine'"),
    ("optim.lr_g=[1, 2]", "optim.lr_g must be a number or a schedule, got [1, 2]"),
    ("optim.lr_g={}", "optim.lr_g.from is missing"),
    ("optim.betas=[0, {from: .9, to: 1, until_kimg: 3}]", "optim.betas[1].to must be in [0, 1), got 1.0"),
    ("optim.betas=[0, {from: .9, to: .99, until_kimg: 3, foo: 1}]", "optim.betas[1].foo=1: no such key; known: from, shape"),
    ("optim.betas=[{from: .9, to: .99, until_kimg: 3}, 0.9]", "optim.betas[0] must be a number, got {'from': 0.9"),
    ("optim.betas=[0, .9, {from: 1}]", "optim.betas must be a list of 2 numbers, got [0, 0.9, {"),
    ("optim.betas[1]=.9", "'optim.betas[1]' is not a key; write the whole list, as optim.betas=[...]"),
    ("optim.betas[1].to=.9", "'optim.betas[1].to' is not a key; write the whole list, as optim.betas=[...]"),
    ("optim.g.betas=[0, {from: 1, to: .99, until_kimg: 3}]", "optim.g.betas[1].from must be in [0, 1), got 1.0"),
    ("optim.eps={from: 1, to: 2, until_kimg: 3}", "optim.eps must be a number, got {'from': 1"),
    ("optim.d_steps.from=2", "optim.d_steps must be a whole number, got {'from': 2}"),
    ("averagers.ema.half_life_kimg={from: -1, to: 2, until_kimg: 3}", "averagers.ema.half_life_kimg.from must be at least 0, got -1.0"),
    ("averagers.ema.half_life_kimg=long", "averagers.ema.half_life_kimg must be a number or a schedule, got 'long'"),
]


def test_a_mistake_names_the_full_key():
    for override, words in MISTAKES:
        with pytest.raises(ConfigError, match=re.escape(f"command line: {words}")):
            load(None, [EMA, override])


def test_schedules_go_through_a_file_and_overrides(tmp_path):
    """Whole, by key, as a reference, in a list and in a plug-in; and back to a number."""
    overrides = [
        f"optim.lr_g={FALL}", "optim.lr_d=${optim.lr_g}", "optim.betas=[0, {from: 0.9, to: 0.99, until_kimg: 20}]",
        "averagers.ema.half_life_kimg={from: 0, to: 50, until_kimg: 10}",
        "optim.d={name: adamw, betas: [0.5, {from: .1, shape: constant}]}",
    ]  # fmt: skip
    config = load(None, [EMA, *overrides])
    fall = Schedule(1e-3, 1e-4, 20.0, 10.0, "cosine")
    assert config.optim.lr_g == config.optim.lr_d == fall and config.optim.betas == (0.0, Schedule(0.9, 0.99, 20.0))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(path) == config
    with pytest.raises(ConfigError, match=r"config.yaml: optim.betas\[1\].to must be in"):
        path.write_text(path.read_text().replace("0.99", "1.5"))
        load(path)
    path.write_text(f"optim: {{lr_g: {FALL}}}\n")
    assert load(path, ["optim.lr_g=1e-5"]).optim.lr_g == 1e-5
    assert load(path, ["optim.lr_g.to=1e-5"]).optim.lr_g == dataclasses.replace(fall, to=1e-5)
    assert load(path, ["optim.lr_g=1e-5", f"optim.lr_g={FALL}"]).optim.lr_g == fall
    warm = [
        "optim.lr_g.shape=constant",
        "optim.lr_g.to=null",
        "optim.lr_g.until_kimg=null",
        "optim.lr_g.start_kimg=0",
        "optim.lr_g.warmup_kimg=3",
    ]
    assert load(path, warm).optim.lr_g == Schedule(1e-3, shape="constant", warmup_kimg=3.0)
    with pytest.raises(ConfigError, match=r"command line: optim.lr_g.foo=1: no such key; known: from"):
        load(path, ["optim.lr_g=1", "optim.lr_g.foo=1"])
    by_key = ["optim.lr_g.from=1e-3", "optim.lr_g.to=0", "optim.lr_g.until_kimg=${total_kimg}"]
    assert load(None, by_key).optim.lr_g == Schedule(1e-3, 0.0, Config().total_kimg)
    assert set_keys(None, by_key) == {"optim.lr_g.from", "optim.lr_g.to", "optim.lr_g.until_kimg"}


def test_a_plug_in_from_outside_may_have_schedules(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(
        "from dataclasses import dataclass\nfrom gantrain.schedule import Schedule\n@dataclass(frozen=True)\nclass Slow:\n"
        "    share: float | Schedule = 0.5\n    pair: tuple[float, float | Schedule] | None = None\n"
        "    def weight(self, nimg, previous_nimg, num_averaged): return 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rules", raising=False)
    rule = "averagers.a={name: 'own_rules:Slow', share: {from: 1, to: 0, until_kimg: 2}, pair: [1, {from: 3, shape: constant}]}"
    config = load(None, [EMA, rule])
    assert find_schedules(config) == {"averagers.a.share": Schedule(1.0, 0.0, 2.0), "averagers.a.pair[1]": Schedule(3.0, shape="constant")}
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "again.yaml") == config
    with pytest.raises(ConfigError, match=r"averagers.a.share.until_kimg must be a number of at least start_kimg \(0\), got null"):
        load(None, ["averagers.a={name: 'own_rules:Slow', share: {from: 1, to: 2}}"])


def test_a_change_of_a_schedule_is_a_change_of_its_keys():
    fall = {"from": 1e-3, "to": 1e-4, "until_kimg": 20.0, "start_kimg": 10.0, "shape": "cosine"}
    there, here = load(None, [f"optim.lr_g={FALL}"]), load(None, [f"optim.lr_g={FALL}", "optim.lr_g.to=1e-5"])
    assert differing_keys(there, here) == {"optim.lr_g.to": (1e-4, 1e-5)}
    assert differing_keys(Config(), there) == {"optim.lr_g": (2e-4, {**fall, "warmup_kimg": 0.0})}


def test_a_report_says_how_runs_differ_in_schedules_and_optimizers():
    words = [
        f"optim.lr_g={FALL}",
        "optim.betas=[0, {from: 0.9, shape: constant}]",
        "optim.d={name: rmsprop, alpha: {from: 0.9, shape: constant}}",
    ]
    plain, other = (SimpleNamespace(name=name, records=[SimpleNamespace(full_config=config)])
                    for name, config in (("a", Config()), ("b", load(None, words))))  # fmt: skip
    constant = "{from: 0.9, to: null, until_kimg: null, start_kimg: 0.0, shape: constant, warmup_kimg: 0.0}"
    assert page.group_head(other, [plain, other])["differs"] == [
        "optim.lr_g: 0.0002 → {from: 0.001, to: 0.0001, until_kimg: 20.0, start_kimg: 10.0, shape: cosine, warmup_kimg: 0.0}",
        f"optim.betas: [0.0, 0.999] → [0.0, {constant}]", "optim.d.name: adam → rmsprop",
    ]  # fmt: skip


# ---- what a run says of them -----------------------------------------------------------------------------------------


def test_training_lines_have_the_numbers_of_schedules_once():
    words = [f"optim.lr_g={FALL}", "optim.betas=[0, {from: 0.9, to: 0.99, until_kimg: 20}]", "averagers.ema.half_life_kimg.from=1",
             "averagers.ema.half_life_kimg.shape=constant", "averagers.ema.half_life_kimg.warmup_kimg=20"]  # fmt: skip
    found = find_schedules(load(None, [EMA, *words]))
    assert [*found] == ["optim.lr_g", "optim.betas[1]", "averagers.ema.half_life_kimg"]
    line = values_of(found, 10_000, {"lr/g": 1.0})
    assert line == {"schedule/optim.betas[1]": pytest.approx(0.945), "schedule/averagers.ema.half_life_kimg": 0.5}
    assert values_of({"augment.p": found["optim.lr_g"]}, 0, {"augment/p": 0.0}) == {}
    assert [one.words for one in found.values()] == [
        "from 0.001 to 0.0001 between 10 and 20 kimg (cosine)", "from 0.9 to 0.99 between 0 and 20 kimg (linear)",
        "1 after a warm-up from 0 over 20 kimg",
    ]  # fmt: skip
    numbers = columns_of([(i, {"nimg": 1000 * i, "loss/d": 1.0, **values_of(found, 1000 * i, {})}) for i in range(3)])
    assert numbers.values["schedule/optim.betas[1]"].tolist() == pytest.approx([0.9, 0.9045, 0.909])


def test_schedules_are_drawn():
    lines = [{**line, "schedule/a.b": 0.1 * i} if "loss/d" in line else line for i, line in enumerate(RUN)]
    told = record(*lines)
    assert charts.schedules_in(told) == ["schedule/a.b"] and charts.schedules_in(record(*RUN)) == []
    figure = charts.schedules_figure(told)
    assert figure.layout.yaxis.title.text == "a.b"
    assert list(figure.data[0].y) == told.numbers.values["schedule/a.b"].tolist()


def test_notes_say_where_a_schedule_does_not_arrive():
    for words, note in (
        ("{from: 1e-3, to: 0, until_kimg: 1000}", "optim.lr_g.until_kimg=1000 is after total_kimg=500: it will only reach 0.0005"),
        ("{from: 1e-3, to: 0, until_kimg: 1000, start_kimg: 600}", "optim.lr_g.start_kimg=600 is not before total_kimg=500: it will"),
        ("{from: 1e-3, to: 0, until_kimg: 100}", "optim.lr_g is 0 from 100 kimg on, before total_kimg=500: its player then stands still"),
        ("{from: 1e-3, shape: constant, warmup_kimg: 501}", "optim.lr_g.warmup_kimg=501 is after total_kimg=500: the warm-up will not end"),
    ):  # fmt: skip
        assert any(found.startswith(note) for found in notes(load(None, ["total_kimg=500", f"optim.lr_g={words}"])))
    fine = load(None, ["total_kimg=500", "optim.lr_g={from: 1e-3, to: 0, until_kimg: 500}"])
    assert not [note for note in notes(fine) if "lr_g" in note]


# ---- averages --------------------------------------------------------------------------------------------------------


def test_an_ema_follows_its_half_life_without_a_run():
    """Against the recursion by hand, with batches that grow; at a half-life of 0 the average is the live weights."""
    rule = Ema(half_life_kimg=Schedule(0.0, 2.0, until_kimg=1.0, start_kimg=0.1), ramp_up=None)
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    bank, expected, nimg = AverageBank(network, {"ema": rule}), 0.0, 0
    for i, batch in enumerate([50, 50, 100, 100, 300, 400, 800]):
        with torch.no_grad():
            network.weight.fill_(float(i))
        half_life = 2000 * min(max((nimg / 1000 - 0.1) / 0.9, 0), 1)
        expected += (1 - 0.5 ** (batch / half_life) if half_life else 1.0) * (i - expected)
        nimg += batch
        bank.update(nimg)
        assert float(bank["ema"].shadows["weight"]) == pytest.approx(expected, rel=1e-12)
    assert expected != 6
    positions, weights = bank.weight_profile("ema")
    assert weights.sum() == pytest.approx(1) and positions[-1] == nimg and rule.has_known_window
    AverageBank(network, {"ema": rule}).load_state_dict(bank.state_dict())
    for other in (Ema(half_life_kimg=2.0, ramp_up=None), dataclasses.replace(rule, half_life_kimg=Schedule(0.0, 3.0, 1.0))):
        with pytest.raises(UserError, match="average 'ema' was saved by Ema\\(half_life_kimg="):
            AverageBank(network, {"ema": other}).load_state_dict(bank.state_dict())
    assert not reads_orbit(rule) and reads_orbit(Ema()) and growth_that_holds(bank, "ema", 1e-4, nimg) > 1


AUTO = ["swap.source=ema", "swap.growth=auto", "swap.start_kimg=0", "batching={name: on_swap, batch_size: 64, max_batch: 256}"]
TWO = ["averagers.short={name: ema, half_life_kimg: 2}", "averagers.long={name: ema, half_life_kimg: 20}"]
SCHEDULED = "averagers.ema={name: ema, half_life_kimg: {from: 1, to: 5, until_kimg: 9}}"


def test_growth_of_its_own_accord_needs_two_constant_half_lives():
    """The source itself may have a schedule."""
    with pytest.raises(ConfigError, match="swap.growth needs two averagers of name ema with different constant half_life_kimg"):
        load(None, [*AUTO, SCHEDULED, TWO[0]])
    note = "optim.lr_g changes during the run, and swap.growth=auto assumes constant rates"
    for rate, said in (("from: 1e-3, shape: constant", False), ("from: 1e-3, to: 0, until_kimg: 200", True),
                       ("from: 1e-3, shape: constant, warmup_kimg: 1", True)):  # fmt: skip
        config = load(None, [*AUTO, SCHEDULED, *TWO, f"optim.lr_g={{{rate}}}"])
        assert isinstance(config, Config) and (note in notes(config)) is said
