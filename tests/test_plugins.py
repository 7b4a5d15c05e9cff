"""Plug-ins from outside: those of docs/plugins.md in whole runs, and what the look-up refuses."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pickle
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, TINY, error_of, lines_of

from gantrain.augment import AUGMENTATIONS
from gantrain.averaging import AVERAGERS, AverageBank, Ema
from gantrain.batching import BATCH_POLICIES, BatchController, BatchState, Largest, NoiseMonitor, NoiseScale, OnSwap
from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.config.notes import notes
from gantrain.config.plugins import CONTRACTS, find, name_of
from gantrain.data import DATASETS
from gantrain.errors import InvalidField, UserError
from gantrain.losses import LOSSES, PENALTIES
from gantrain.metrics import EXTRACTORS, METRICS
from gantrain.models import ARCHITECTURES
from gantrain.optimizers import OPTIMIZERS

GUIDE = (ROOT / "docs" / "plugins.md").read_text()
TABLES = {
    "averager": AVERAGERS, "loss": LOSSES, "penalty": PENALTIES, "augmentation": AUGMENTATIONS, "optimizer": OPTIMIZERS,
    "architecture": ARCHITECTURES, "data set": DATASETS, "metric": METRICS, "feature extractor": EXTRACTORS, "batch policy": BATCH_POLICIES,
}  # fmt: skip
OURS = [
    "data={name: 'guide_plugins:SquaresSource'}",
    "model={name: 'guide_plugins:Perceptrons'}",
    "loss={name: 'guide_plugins:Margin', margin: 2}",
    "penalties={drift: {name: 'guide_plugins:Drift'}}",
    "augment={name: 'guide_plugins:Mirrored'}",
    "batching={name: 'guide_plugins:Doubling'}",
    "averagers.halves={name: 'guide_plugins:Halves'}",
    "optim.g={name: 'guide_plugins:Signs', beta: {from: 0.5, to: 0.9, until_kimg: 0.2}}",
    "eval.features={name: 'guide_plugins:Thumbnails'}",
    "eval.metrics=[fid,'guide_plugins:MeanDistance']",
    "checkpoint.keep_best=[eval/halves/thumb_mean_distance]",
]
OVERRIDES = [word for word in TINY if not word.startswith(("model.", "batching.", "eval.metrics="))] + OURS
MANY = "batching={name: largest, max_batch: 64, of: {steps: {name: 'guide_plugins:Doubling'}, noise: {name: noise_scale}}}"


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder on sys.path that holds the guide's examples as `guide_plugins`."""
    folder = tmp_path_factory.mktemp("modules")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    (folder / "guide_plugins.py").write_text("from __future__ import annotations\n" + "\n\n".join(blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("guide_plugins", None)


@pytest.fixture(scope="module")
def words(tmp_path_factory, modules) -> list[str]:
    """The command of the run, but for `total_kimg`."""
    return ["train", str(ROOT / "configs" / "digits.yaml"), *OVERRIDES, f"run_dir={tmp_path_factory.mktemp('runs') / 'run'}"]


@pytest.fixture(scope="module")
def run(gantrain, words) -> Path:
    """A run with an example of every kind, stopped half-way and resumed."""
    gantrain(*words, "total_kimg=0.16")
    gantrain(*words)
    return Path(words[-1].removeprefix("run_dir="))


# ---- the guide ------------------------------------------------------------------------------------------------------


def test_the_guide_has_an_example_of_every_kind(modules):
    found = [word for text in OURS for word in re.findall(r"guide_plugins:\w+", text)]
    assert len(found) == len(CONTRACTS) == len(TABLES)
    for kind, contract in CONTRACTS.items():
        (name,) = (name for name in found if name.partition(":")[2] in GUIDE.split(f"\n## {kind.capitalize()}\n")[1].split("\n## ")[0])
        cls = find(kind, TABLES[kind], name)
        outside = getattr(importlib.import_module("guide_plugins"), name.partition(":")[2])
        assert contract.base not in outside.__mro__, "an example inherits nothing, as the guide says"
        assert issubclass(cls, outside) and issubclass(cls, contract.base) and name_of(TABLES[kind], cls()) == name
        assert find(kind, TABLES[kind], name) is cls


@pytest.mark.parametrize("kind", CONTRACTS)
def test_the_guides_table_has_every_part_of_the_contract(kind):
    contract = CONTRACTS[kind]
    rows = GUIDE.split(f"\n## {kind.capitalize()}\n")[1].split("\n## ")[0].split("\n```python")[0]
    named = set(re.findall(r"^\| `(\w+)[`(]", rows, re.M))
    derived = {"first_batch", "moves_by_weight", "has_known_window"}
    assert named == {*contract.methods, *contract.values} - derived
    required = set(re.findall(r"^\| `(\w+)[`(][^|]*\| required", rows, re.M))
    assert required == set(contract.required)


def test_outside_plugins_train_and_resume(run):
    lines = lines_of(run)
    assert [line["event"] for line in lines if line.get("event") in ("resume", "growth", "end")] == ["growth", "resume", "end"]
    grown = next(line for line in lines if line.get("event") == "growth")
    assert (grown["from"], grown["to"], grown["reason"]) == (16, 32, "Doubling proposes it") and grown["nimg"] == 112
    last = [line for line in lines if "eval/halves/thumb_mean_distance" in line][-1]
    assert last["nimg"] >= 320 and {"eval/live/thumb_fid", "eval/swa/thumb_mean_distance"} <= last.keys()
    assert any(line.get("loss/penalty", 0) > 0 for line in lines)


@pytest.mark.slow
def test_a_resumed_run_of_outside_plugins_goes_on_as_if_it_had_not_stopped(gantrain, run, words, tmp_path):
    from safetensors.torch import load_file

    gantrain(*words, f"run_dir={tmp_path / 'whole'}")
    newest = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (run, tmp_path / "whole")]
    assert newest[0].name == newest[1].name
    for file in sorted(newest[0].glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(newest[1] / file.name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), file.name


@pytest.mark.slow
def test_every_command_takes_a_run_of_outside_plugins(gantrain, run, words, tmp_path):
    shown = yaml.safe_load(gantrain("config", *words[1:]).stdout)
    assert shown["loss"] == {"name": "guide_plugins:Margin", "margin": 2.0} and shown["batching"] == {
        "name": "guide_plugins:Doubling",
        "at_kimg": 0.1,
    }
    assert "thumb_mean_distance" in gantrain("evaluate", run, "--average", "halves").stdout
    gantrain("sample", run, "--average", "halves", "--num", 4, "--out", tmp_path / "four.png")
    assert (tmp_path / "four.png").is_file()
    watched = gantrain("watch", run).stdout
    assert "Perceptrons on SquaresSource, Margin loss, seed 0, batch 16 (Doubling)" in watched
    gantrain("report", run, "--out", tmp_path / "report.html")
    assert "thumb_mean_distance" in (tmp_path / "report.html").read_text()
    assert "B_simple" in gantrain("noise-scale", run, "--updates", 8, "--out", tmp_path / "noise.json").stdout
    assert json.loads((tmp_path / "noise.json").read_text())["batch_size"] == 32
    assert "run" in gantrain("runs", run.parent).stdout
    line = error_of(gantrain("sample", run, "--sheet", "class", "--num", 2, "--out", tmp_path / "way.png", check=False))
    assert "SmallGenerator takes labels only" in line


@pytest.mark.slow
def test_a_policy_that_only_proposes_is_a_part_of_largest(gantrain, words, tmp_path):
    more = [MANY, "noise_scale={measure_every: 2, window: 8}", f"run_dir={tmp_path / 'run'}", "total_kimg=0.16"]
    gantrain(*words, *more)
    grown = [(line["from"], line["to"], line["reason"]) for line in lines_of(tmp_path / "run") if line.get("event") == "growth"]
    assert grown == [] and "batch 64 (largest)" in gantrain("watch", tmp_path / "run").stdout
    more[0] = MANY.replace("max_batch: 64", "batch_size: 8, max_batch: 64")
    more[2] = f"run_dir={tmp_path / 'small'}"
    gantrain(*words, *more)
    grown = [(line["from"], line["to"], line["reason"]) for line in lines_of(tmp_path / "small") if line.get("event") == "growth"]
    assert grown == [(16, 32, "Doubling proposes it")] and "batch 16 (largest)" in gantrain("watch", tmp_path / "small").stdout


LAZY = """
def __getattr__(name):
    if name == "Margin":
        from guide_plugins import Margin
        return Margin
    if name == "Broken":
        import a_module_that_is_not_there
    raise AttributeError(name)
"""


def test_a_module_may_define_a_plugin_by_a_getattr_of_its_own(modules, tmp_path, monkeypatch):
    (tmp_path / "lazy_plugins.py").write_text(LAZY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lazy_plugins", raising=False)
    assert issubclass(find("loss", LOSSES, "lazy_plugins:Margin"), importlib.import_module("guide_plugins").Margin)
    with pytest.raises(UserError, match="loss 'lazy_plugins:Other': lazy_plugins has no 'Other'"):
        find("loss", LOSSES, "lazy_plugins:Other")
    with pytest.raises(
        UserError,
        match="loss 'lazy_plugins:Broken': 'lazy_plugins' fails on import at .*lazy_plugins.py, line 7, .*"
        "No module named 'a_module_that_is",
    ):
        find("loss", LOSSES, "lazy_plugins:Broken")


# ---- what the look-up refuses ---------------------------------------------------------------------------------------

WRONG = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Nothing:
    field: int = 0

@dataclass(frozen=True)
class HalfLoss:
    def discriminator(self, logits_real, logits_fake): return 0

@dataclass(frozen=True)
class WeightIsNumber:
    weight: float = 0.5

@dataclass(frozen=True)
class NumberForSlots:
    slots: int = 2
    def update(self, shadows, live, nimg, previous_nimg, num_averaged, slots): return True

@dataclass(frozen=True)
class WordForNetworks:
    networks: str = "both"
    def weight(self, nimg, previous_nimg, num_averaged): return 0.5

@dataclass(frozen=True)
class MethodForFlag:
    def propose(self, state): return 8
    def reads_noise(self): return True

@dataclass(frozen=True)
class WordForScores:
    scores = "mine"
    def compute(self, features_fake, features_real): return {"mine": 0.0}

@dataclass(frozen=True)
class NoDefault:
    size: int
    def compute(self, features_fake, features_real): return {"mine": 0.0}

from gantrain.batching import BatchPolicy
from gantrain.losses import Loss

@dataclass(frozen=True)
class Declared(Loss):
    def discriminator(self, logits_real, logits_fake): return 0

@dataclass(frozen=True)
class PropertyForDefault(BatchPolicy):
    highest: float
    def propose(self, state): return 8
"""

LACKING = {
    "averager": ("averagers.a={name: 'wrong_plugins:Nothing'}", "'weight' or 'update'; every averager has one of them"),
    "loss": ("loss.name=wrong_plugins:Nothing", "'discriminator', which every loss has"),
    "penalty": ("penalties.a={name: 'wrong_plugins:Nothing'}", "'term' or 'penalty'; every penalty has one of them"),
    "augmentation": ("augment.name=wrong_plugins:Nothing", "'apply', which every augmentation has"),
    "architecture": ("model.name=wrong_plugins:Nothing", "'build', which every architecture has"),
    "data set": ("data.name=wrong_plugins:Nothing", "'build', which every data set has"),
    "metric": ("eval.metrics=['wrong_plugins:Nothing']", "'compute', which every metric has"),
    "feature extractor": ("eval.features.name=wrong_plugins:Nothing", "'build', which every feature extractor has"),
    "optimizer": ("optim.d.name=wrong_plugins:Nothing", "'build', which every optimizer has"),
    "batch policy": ("batching.name=wrong_plugins:Nothing", "'propose', which every batch policy has"),
}


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    (tmp_path / "wrong_plugins.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrong_plugins", raising=False)


@pytest.mark.parametrize("kind", CONTRACTS)
def test_a_class_that_lacks_a_part_is_refused_by_its_name(kind, wrong):
    override, words = LACKING[kind]
    with pytest.raises(UserError) as error:
        loading.load(None, [override])
    assert str(error.value).startswith("command line: ") and f"{kind} 'wrong_plugins:Nothing' has no method {words}" in str(error.value)


@pytest.mark.parametrize(
    "override, words",
    [
        ("loss.name=wrong_plugins:HalfLoss", "loss 'wrong_plugins:HalfLoss' has no method 'generator', which every loss has"),
        ("loss.name=wrong_plugins:Declared", "loss 'wrong_plugins:Declared' has no method 'generator', which every loss has"),
        (
            "averagers.a={name: 'wrong_plugins:WeightIsNumber'}",
            "'wrong_plugins:WeightIsNumber': weight must be a method, got 0.5",
        ),
        ("averagers.a={name: 'wrong_plugins:NumberForSlots'}", "averager 'wrong_plugins:NumberForSlots': slots must be a method, got 2"),
        (
            "averagers.a={name: 'wrong_plugins:WordForNetworks'}",
            "averager 'wrong_plugins:WordForNetworks': networks must be one of g, gd, got 'both'",
        ),
        (
            "batching.name=wrong_plugins:MethodForFlag",
            "batch policy 'wrong_plugins:MethodForFlag': reads_noise must be true or false or null, got a method",
        ),
        (
            "batching.name=wrong_plugins:PropertyForDefault",
            "PropertyForDefault': highest must have a default, or be left out",
        ),
        (
            "eval.metrics=['wrong_plugins:WordForScores']",
            "WordForScores': scores must be a list of strings, got 'mine'",
        ),
        ("eval.metrics=['wrong_plugins:NoDefault']", "metric 'wrong_plugins:NoDefault': field 'size' must have a default"),
    ],
)
def test_a_part_of_the_wrong_type_is_refused_by_its_name(override, words, wrong):
    with pytest.raises(UserError) as error:
        loading.load(None, [override])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_value_of_the_wrong_type_is_refused_with_its_full_key(modules):
    @dataclasses.dataclass(frozen=True)
    class Mine:
        networks: str = "g"

        def weight(self, nimg, previous_nimg, num_averaged):
            return 0.5

    with pytest.raises(InvalidField, match="averagers.a.networks: must be one of g, gd, got 'both'"):
        Config(averagers={"a": Mine("both")})
    assert Config(averagers={"a": Mine("gd")}).followed("d").keys() == {"a"}


def test_what_build_returns_must_be_a_data_set():
    from gantrain.data import prepare

    with pytest.raises(UserError, match="data: .*.build must return a data set with num_classes, and returns a list without"):
        prepare(SimpleNamespace(build=lambda: [(torch.zeros(1, 8, 8, dtype=torch.uint8), 0)]), torch.device("cpu"))


# ---- defaults -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Only:
    """A batch policy of which nothing is known but that it proposes."""

    def propose(self, state: BatchState) -> float:
        return 16


def test_a_policy_of_which_nothing_is_known_is_given_the_checks_and_no_refusal_or_note_fires():
    monitor = NoiseMonitor(NoiseScale(measure_every=1, window=8), {"d": [""], "g": [""]})
    told = []

    class Listening:
        def propose(self, state):
            told.append(state.checks)
            return 16

    for policy in (Listening(), Largest(batch_size=16, of={"a": OnSwap(), "b": Only()})):
        controller = BatchController(policy, world=1, noise=monitor)
        assert controller.checked_noise is monitor and controller.policy.reads_noise is None
    assert BatchController(OnSwap(), world=1, noise=monitor).checked_noise is None
    config = Config(batching=Only())
    assert config.noise_scale.measure_every is None and not any("batching" in note for note in notes(config))
    with pytest.raises(InvalidField, match="swap.growth: above 1 needs batching.max_batch"):  # and not: a batch that grows at swaps
        dataclasses.replace(config, swap=dataclasses.replace(config.swap, source="ema", growth=2))
    assert told == [()]


def test_the_first_batch_follows_from_the_proposal_at_the_start():
    config = Config(batching=Only())
    assert config.batching.first_batch == 16 and config.batching.highest == float("inf") and config.batching.lr_scale(64) == 1.0
    assert BatchController(Only(), world=2).numbers() == {"batch/size": 16, "batch/rounds": 1, "batch/micro_batch": 8}
    assert loading.build(loading.to_dict(loading.load(None, ["batching.batch_size=32"]))).batching.first_batch == 32


def test_lr_scaling_of_a_plain_policy_goes_by_its_first_batch():
    @dataclasses.dataclass(frozen=True)
    class Scaled(Only):
        lr_scaling: str = "sqrt"

    assert BatchController(Scaled(), world=1).policy.lr_scale(64) == 2.0


@pytest.mark.parametrize("how, scales", [("none", [1.0, 1.0, 1.0]), ("sqrt", [1.0, 2.0, 2.0]), ("linear", [1.0, 4.0, 4.0])])
def test_a_policy_is_asked_once_at_the_start_and_once_before_every_update(how, scales):
    asked = []

    class Counting:
        lr_scaling = how

        def propose(self, state):
            asked.append(state.nimg)
            return 16 if state.nimg < 16 else 64

    controller = BatchController(Counting(), world=1)
    assert asked == [0]
    found = []
    for nimg in (0, 16, 80):
        controller.ask(nimg)
        found.append(controller.lr_scale)
    assert asked == [0, 0, 16, 80] and found == scales


@pytest.mark.parametrize("how, power", [("none", 0.0), ("sqrt", 0.5), ("linear", 1.0)])
def test_lr_scaling_of_a_policy_with_batch_size_goes_by_batch_size(how, power):
    """Also where a part of `largest` proposes another first batch."""
    policy = Largest(batch_size=8, max_batch=64, lr_scaling=how, of={"steps": Only(), "swaps": OnSwap()})
    controller = BatchController(policy, world=1)
    assert controller.batch_size == 16 and controller.lr_scale == (16 / 8) ** power


def test_a_bank_takes_any_object_with_a_weight_and_does_not_change_it():
    class Changing:
        step = 0.5

        def weight(self, nimg, previous_nimg, num_averaged):
            return self.step

    network, rule = torch.nn.Linear(1, 1, bias=False), Changing()
    bank = AverageBank(network, {"a": rule, "b": SimpleNamespace(weight=lambda nimg, previous, num: 1.0, offload=True)})
    with torch.no_grad():
        before = network.weight.clone()
        network.weight += 1
        bank.update(8)
        rule.step = 0.0  # as it is at the time
        network.weight += 1
        bank.update(16)
    assert torch.allclose(bank["a"].shadows["weight"], before + 0.5) and torch.allclose(bank["b"].shadows["weight"], before + 2)
    assert vars(rule) == {"step": 0.0} and type(rule) is Changing and not bank["a"].offload and bank["b"].offload
    assert bank["a"].averager.step == 0.0 and bank["a"].weight_profile()[1].tolist() == [1.0, 0.0, 0.0]
    for bad, words in ((SimpleNamespace(), "has no method 'weight' or 'update'"), (Ema, "must be a rule such as Ema")):
        with pytest.raises(UserError, match=words):
            AverageBank(network, {"a": bad})
    with pytest.raises(UserError, match="averagers: a.offload must be true or false, got 'yes'"):
        AverageBank(network, {"a": SimpleNamespace(weight=lambda *_: 1.0, offload="yes")})


def test_an_adapted_class_is_the_class_with_defaults():
    @dataclasses.dataclass(frozen=True)
    class Narrow:
        highest: float  # a property of the base, and a field without a default here
        size: int = 3

        def propose(self, state):
            return self.size

    cls = CONTRACTS["batch policy"].adapt_class(Narrow, "m:Narrow")
    one = cls(2.0)
    assert (
        one.first_batch == 2
        and dataclasses.replace(one, highest=9.0).first_batch == 3
        and one == cls(2.0)
        and repr(one).endswith("size=3)")
    )
    assert (cls.__module__, cls.__qualname__) == (Narrow.__module__, Narrow.__qualname__)


def test_a_plugin_with_slots_may_have_contract_fields():
    """A class with `slots=True` has a descriptor in place of a field's default."""

    @dataclasses.dataclass(frozen=True, slots=True)
    class Slotted:
        max_batch: int | None = 64
        lr_scaling: str = "none"

        def propose(self, state):
            return 16

    cls = CONTRACTS["batch policy"].adapt_class(Slotted, "m:Slotted")
    assert (cls().max_batch, cls(128).highest, cls().first_batch) == (64, 128, 16)
    assert Config(batching=Slotted(128)).batching.max_batch == 128
    with pytest.raises(InvalidField, match="batching.max_batch: must be a whole number or null, got 'all'"):
        Config(batching=Slotted("all"))

    @dataclasses.dataclass(frozen=True, slots=True)
    class NumberForMethod:
        propose: int = 16

    with pytest.raises(InvalidField, match="batching.propose: must be a method, got 16"):
        Config(batching=NumberForMethod())


def test_an_update_of_its_own_may_use_the_step_by_weight():
    class Clipped(Ema):
        def update(self, shadows, live, nimg, previous_nimg, num_averaged, slots):
            moved = super().update(shadows, live, nimg, previous_nimg, num_averaged, slots)
            for shadow in shadows.values():
                shadow.clamp_(max=1.0)
            return moved

    rule = Clipped(half_life_kimg=0.008, ramp_up=None)
    assert not rule.moves_by_weight and rule.has_known_window and Ema().moves_by_weight
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    bank = AverageBank(network, {"a": rule})
    torch.nn.init.constant_(network.weight, 8.0)
    bank.update(1)
    assert 0 < bank["a"].shadows["weight"].item() <= 1.0
    bank.update(8)
    assert bank["a"].shadows["weight"].item() == 1.0


def test_a_generator_carries_what_every_generator_does(modules):
    from gantrain.models.architecture import build_networks

    networks = importlib.import_module("guide_plugins").Perceptrons().build(8, 1, 2)
    assert build_networks(SimpleNamespace(build=lambda *shape: networks), 8, 1, 2) is not None
    del networks[0].channels
    with pytest.raises(UserError, match=r"model: SimpleNamespace.build must return a generator with channels, and SmallGenerator has none"):
        build_networks(SimpleNamespace(build=lambda *shape: networks), 8, 1, 2)


def numbered(index: int) -> torch.Tensor:
    return torch.full((1, 2, 2), index, dtype=torch.uint8)


def test_a_plain_function_decodes_and_goes_to_other_processes():
    from gantrain.data import ImageSet

    images = ImageSet("plain", torch.arange(3) % 2, ["a", "b"], 1, 2, decode=numbered)
    there = pickle.loads(pickle.dumps(images))
    assert there[2][0].tolist() == numbered(2).tolist() and there.decode.state(0) is None and there.listing == images.listing
    image, digest = images.decode.read(1)
    assert torch.equal(image, numbered(1)) and len(digest) == 32


def test_plugins_of_gantrain_need_no_adapting():
    for kind, table in TABLES.items():
        for name, cls in table.items():
            assert CONTRACTS[kind].adapt_class(cls, name) is cls, textwrap.shorten(name, 40)


def test_a_method_that_takes_other_arguments_is_refused(tmp_path, monkeypatch):
    """At the look-up, and not at the first update."""
    (tmp_path / "short_plugins.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Short:\n    def weight(self, nimg):\n        return 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = r"averager 'short_plugins:Short': weight must take \(nimg, previous_nimg, num_averaged\), got \(nimg\)"
    with pytest.raises(UserError, match=words):
        find("averager", AVERAGERS, "short_plugins:Short")
