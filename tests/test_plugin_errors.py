"""A plug-in's own mistakes are one line with its name, file and line, and never end a command with status 0."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
from dataclasses import dataclass

import pytest
import torch
from conftest import ROOT, TINY, lines_of, slow_but

from gantrain import command_end, home, plugin_errors
from gantrain.averaging import AVERAGERS, Average
from gantrain.batching.state import BatchState, proposal_of
from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.config.plugins import find
from gantrain.data import ImageSet, intake, likeness
from gantrain.data.imageset import collate
from gantrain.data.intake import adopted
from gantrain.errors import UserError
from gantrain.evaluation.references import wrap_dataset
from gantrain.losses import LOSS, LOSSES, Hinge
from gantrain.metrics import Extractor, FeatureSet
from gantrain.metrics.results import compute_metric, extract_features, require_extractor
from gantrain.models.architecture import build_networks
from gantrain.training.results import require_gradient, require_images, require_logits, require_scalar

DIGITS = ROOT / "configs" / "digits.yaml"
HEAD = "import sys\nfrom dataclasses import dataclass, field\nfrom typing import Any, Callable\n\n\n"
RULE = """@dataclass(frozen=True)
class Rule:
    half: {hint} = {default}

    def __post_init__(self):
        {check}

    def weight(self, nimg, previous_nimg, num_averaged):
        {weight}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes the module `mine`, whose class Rule is an averager, and returns its file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugin_errors, "KNOWN", {})
    monkeypatch.setattr(plugin_errors, "NAMES", {})

    def write(text: str | None = None, hint="float", default="0.5", check="pass", weight="return 0.5"):
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        path = tmp_path / "mine.py"
        path.write_text(HEAD + (text or RULE.format(hint=hint, default=default, check=check, weight=weight)))
        return path

    yield write
    sys.modules.pop("mine", None)


IMPORTS = {
    "sys.exit(0)": r"line 6 \(SystemExit: 0\)",
    "exit()": r"line 6 \(SystemExit",
    "1 / 0": r"line 6 \(ZeroDivisionError: division by zero\)",
    "import no_such_module": r"line 6 \(ModuleNotFoundError: No module named 'no_such_module'\)",
    "def (": r"line 6 \(SyntaxError: ",
    "raise BaseException('x')": r"line 6 \(BaseException: x\)",
    "@dataclass\nclass Rule:\n    table: dict = {}\n": r"line 6 \(ValueError: mutable default .*use default_factory\)",
}


@pytest.mark.parametrize("text", IMPORTS)
def test_a_module_that_fails_on_import_is_named_with_its_line(plugin, text):
    plugin(text)
    with pytest.raises(UserError, match=rf"averager 'mine:Rule': 'mine' fails on import at .*mine.py, {IMPORTS[text]}"):
        find("averager", AVERAGERS, "mine:Rule")


def test_an_interruption_during_an_import_stays_one(plugin):
    plugin("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        find("averager", AVERAGERS, "mine:Rule")
    with pytest.raises(UserError, match="cannot import 'no_such_file'"):
        find("averager", AVERAGERS, "no_such_file:Rule")
    for name in (":", "mine:", ":Rule", ".mine:Rule", "mine..x:Rule", "mine:a b"):
        with pytest.raises(UserError, match=r"must be written package.module:Class"):
            find("averager", AVERAGERS, name)


def test_any_module_that_python_can_import_is_found(plugin):
    path = plugin()
    for name in ("my-rules", "2024rules"):
        path.with_name(f"{name}.py").write_text(path.read_text())
        assert find("averager", AVERAGERS, f"{name}:Rule").__name__ == "Rule"
        del sys.modules[name]


HINTS = {
    "NoSuchName": r"the types of its fields cannot be read \(NameError: name 'NoSuchName' is not defined\) \(.*mine.py, line 8\)",
    "'Nowhere'": r"the types of its fields cannot be read \(NameError: name 'Nowhere' is not defined\)",
    "Callable[[int], int]": r"field 'half' has the type .*Callable.*, which a configuration cannot have; use int, .* \(.*mine.py, line 8\)",
    "set[int]": r"field 'half' has the type set\[int\]",
    "dict[int, float]": r"field 'half' has the type dict\[int, float\]",
    "bytes": r"field 'half' has the type",
    "object": r"field 'half' has the type",
    "complex | None": r"field 'half' has the type",
}


@pytest.mark.parametrize("hint", slow_but(["NoSuchName", "dict[int, float]"], HINTS))
def test_a_field_that_no_configuration_can_set_is_named_with_its_line(plugin, hint):
    path = plugin(hint=hint, default="None")
    path.write_text("from __future__ import annotations\n" + path.read_text().replace("import sys\n", ""))
    with pytest.raises(UserError, match=rf"command line: averagers.m.name: averager 'mine:Rule': {HINTS[hint]}"):
        load(DIGITS, ["averagers.m.name=mine:Rule"])


READ_BACK = [("dict", "field(default_factory=dict)", "{a: 2}"), ("list[int]", "(1,)", "[3]"), ("Any", "3", "[1]")]


@pytest.mark.slow
@pytest.mark.parametrize("hint, default, value", slow_but(READ_BACK[:1], READ_BACK))
def test_a_field_that_a_configuration_can_set_reads_back(plugin, tmp_path, hint, default, value):
    from gantrain.config.loading import to_yaml

    plugin(hint=hint, default=default)
    config = load(DIGITS, ["averagers.m.name=mine:Rule", f"averagers.m.half={value}"])
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "again.yaml") == config


def test_computed_fields_are_not_written_and_members_of_enumerations_by_name(plugin):
    from gantrain.config.loading import to_dict

    text = RULE.format(hint="Kind", default="Kind.up", check="object.__setattr__(self, 'table', object())", weight="return 0.5")
    text = text.replace("= Kind.up", "= Kind.up\n    table: object = field(init=False)")
    text = f"class Kind(enum.Enum):\n    up = 1\n    down = 2\n\n\n{text}"
    plugin(f"import enum\n{text}")
    rule = load(DIGITS, ["averagers.m.name=mine:Rule", "averagers.m.half=down"]).averagers["m"]
    assert to_dict(rule) == {"half": "down"} and rule.table and rule.half.value == 2


CHECKS = {
    "raise ValueError('too\\nlarge')": r"line 11, in __post_init__ \(ValueError: too large\)",
    "1 + 'a'": r"line 11, in __post_init__ \(TypeError: unsupported operand",
    "sys.exit(0)": r"line 11, in __post_init__ \(SystemExit: 0\)",
    "self.nothing": r"line 11, in __post_init__ \(AttributeError: ",
    "object.__setattr__(self, 'half', object())": r"the value <object object .*which a configuration cannot have",
}


@pytest.mark.parametrize("check", slow_but(["raise ValueError('too\\nlarge')", "sys.exit(0)"], CHECKS))
def test_a_check_that_fails_is_named_with_its_line(plugin, check):
    plugin(check=check)
    with pytest.raises(UserError, match=rf"command line: averagers.m: averager 'mine:Rule'.*{CHECKS[check]}"):
        load(DIGITS, ["averagers.m.name=mine:Rule"])


@pytest.mark.slow
def test_values_that_a_contract_does_not_allow_are_refused_by_key(plugin):
    rule = RULE.replace(
        "    half: {hint} = {default}", "    half: float = 1\n    start_kimg: float = 0\n    update_every_kimg: float | None = None"
    )
    plugin(rule.format(check="pass", weight="return 1"))
    for key, value in {"start_kimg": "-1", "update_every_kimg": "0"}.items():
        with pytest.raises(UserError, match=rf"command line: averagers.m.{key} must be "):
            load(DIGITS, ["averagers.m.name=mine:Rule", f"averagers.m.{key}={value}"])


# ---- at work ---------------------------------------------------------------------------------------------------------

FAILING = {
    "raise KeyError('k')": r"averager 'mine:Rule' failed at .*mine.py, line 14, in weight \(KeyError: 'k'\); GANTRAIN_TRACEBACK=1",
    "sys.exit(0)": r"averager 'mine:Rule' failed at .*mine.py, line 14, in weight \(SystemExit: 0\)",
    "return 1.5": r"averager Rule: weight: must be a number in \[0, 1\], got 1.5 \(.*mine.py, line 13\)",
    "return None": r"weight: must be a number in \[0, 1\], got None \(.*mine.py, line 13\)",
    "return float('nan')": r"got nan \(.*mine.py, line 13\)",
}


@pytest.mark.parametrize("weight", FAILING)
@pytest.mark.parametrize("training, status", [(False, 2), (True, 1)])
def test_a_method_that_fails_is_named_by_the_command(plugin, monkeypatch, weight, training, status):
    plugin(weight=weight)
    monkeypatch.setattr(home, "settle_home", lambda note: None)

    def call(arguments: argparse.Namespace) -> int:
        plugin_errors.State.training = training
        Average(find("averager", AVERAGERS, "mine:Rule")(), {"w": torch.ones(2)}).update(1)
        return 0

    monkeypatch.setitem(sys.modules, "gantrain.commands.some", types.SimpleNamespace(call=call))
    with pytest.raises(UserError, match=FAILING[weight]) as told:
        command_end.call(argparse.Namespace(verb="some"))
    assert told.value.exit_status == status and command_end.status_of(told.value) == status
    plugin_errors.State.training = False


def test_a_call_of_exit_in_a_command_is_never_status_0(monkeypatch):
    monkeypatch.setattr(home, "settle_home", lambda note: None)
    monkeypatch.setitem(sys.modules, "gantrain.commands.some", types.SimpleNamespace(call=lambda arguments: sys.exit(0)))
    with pytest.raises(UserError, match=r"the program was asked to exit at .*test_plugin_errors.py, line \d+"):
        command_end.call(argparse.Namespace(verb="some"))


def test_what_a_worker_process_reports_leads_to_the_line(plugin):
    path = plugin()
    find("averager", AVERAGERS, "mine:Rule")
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    error = ValueError(f'{text}  File "{path}", line 14, in weight\n    return x\nValueError: a bad image')
    assert r"mine.py, line 14, in weight (ValueError: a bad image)" in str(plugin_errors.explain_failure(error))
    assert plugin_errors.explain_failure(ValueError("of our own")) is None and plugin_errors.explain_failure(UserError("in words")) is None


DECODER = """def decode(index):
    if index == 3:
        {what}
    return torch.full((1, 8, 8), 4 * index, dtype=torch.uint8)
"""
READS = {
    "of a batch": lambda images: images[3][0],
    "of a worker's batch": lambda images: collate(images.__getitems__([2, 3])),
    "in place of another": lambda images: images.stand_in(1, UserError("broken"))[0],
    "before a run": lambda images: [*intake.read_blocks(images, range(len(images)))],
    "for an audit": intake.audit,
    "twice": likeness.reads_alike,
    "for a reference": lambda images: wrap_dataset(images, None).take(0, 8),
}


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("read", READS)
def test_code_of_a_data_set_that_fails_is_named_wherever_images_are_read(tmp_path, monkeypatch, read, skips):
    """In a file that no plug-in is known by. It is a mistake, not an image to skip."""
    monkeypatch.setattr(plugin_errors, "KNOWN", {})
    monkeypatch.setattr(likeness, "REREAD", 8)
    space = {"torch": torch}
    (file := tmp_path / "helper.py").write_text(text := DECODER.format(what="raise KeyError('no such row')"))
    exec(compile(text, str(file), "exec"), space)
    images = ImageSet("mine", torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]), ["a", "b"], 1, 8, decode=space["decode"], skips=skips)
    words = r"data: image 3 of mine failed at .*helper.py, line 3, in decode \(KeyError: 'no such row'\); GANTRAIN_TRACEBACK=1 prints the"
    with pytest.raises(UserError, match=words):
        found = READS[read](images)
        raise found if isinstance(found, UserError) else AssertionError(found)


@pytest.mark.parametrize("kind", [MemoryError, UserError])
def test_what_a_data_set_says_in_its_own_words_stays(kind):
    with pytest.raises(kind, match="^in words$"):
        plugin_errors.refuse_failure("image 3", "mine", kind("in words"))


def test_a_plug_in_that_fails_at_an_image_is_named_with_the_image(tmp_path, monkeypatch):
    """Else nobody finds the damaged file among a million."""
    (file := tmp_path / "mine.py").write_text(text := DECODER.format(what="raise OSError('cut short')"))
    monkeypatch.setattr(plugin_errors, "find_place", lambda error: (str(file), 3, "decode"))
    monkeypatch.setattr(plugin_errors, "name_at", lambda place: "data set 'mine:Mine'")
    exec(compile(text, str(file), "exec"), space := {"torch": torch})
    images = ImageSet("mine", torch.zeros(8).long(), ["a"], 1, 8, decode=space["decode"])
    with pytest.raises(
        UserError, match=r"^data set 'mine:Mine' failed at .*mine.py, line 3, in decode, for image 3 \(OSError: cut short\);"
    ):
        images.ask(images.decode, 3)


def test_the_place_of_a_failure_is_that_of_the_users_code():
    """Not the library that it calls, nor gantrain, which calls it."""

    class Items:
        num_classes = 1

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return json.loads("{")

    with pytest.raises(
        UserError, match=r"data: item 0 of mine failed at .*test_plugin_errors.py, line \d+, in __getitem__ \(JSONDecodeError"
    ):
        adopted(Items(), "mine")
    with pytest.raises(UserError, match=r"data: image 1 of mine failed at .*imageset.py, line \d+, in ask \(TypeError"):
        images = ImageSet("mine", torch.zeros(4).long(), ["all"], 1, 8, decode=lambda index: torch.zeros(1))
        images.decode = int.bit_length
        images.ask(images.decode, "1")
    failed = pickle.loads(pickle.dumps(plugin_errors.PluginFailed("mine failed")))
    assert str(failed) == "mine failed; GANTRAIN_TRACEBACK=1 prints the traceback", "as it comes from a worker process"


def test_results_of_every_kind_are_refused_by_name():
    class Mine:
        def discriminator(self, logits_real, logits_fake): ...

        penalty = build = compute = propose = forward = discriminator

    mine, one = Mine(), torch.ones(())
    tensors = FeatureSet(torch.ones(2, 3), torch.ones(2, 3))
    architecture = types.SimpleNamespace(build=lambda *shape: None)
    require_scalar(torch.tensor(0), mine, "penalty")
    for value in (None, 3.0, torch.ones(2), torch.ones(1), torch.ones((), dtype=torch.complex64)):
        words = r"Mine: discriminator must return a scalar tensor \(without dimensions\), got .*test_plugin_errors.py, line \d+\)"
        with pytest.raises(UserError, match=words):
            require_scalar(value, mine, "discriminator")
    with pytest.raises(UserError, match="Mine: generator must return a tensor that depends on the logits"):
        require_gradient(one, mine, "generator")
    for value in (None, torch.ones(4, 1, 8, 7), torch.ones(4, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"Mine: forward must return images \[4, 1, 8, 8\], got"):
            require_images(value, torch.ones(4, 1, 8, 8), mine)
    for value in (None, one, torch.ones(3)):
        with pytest.raises(UserError, match=r"Mine: forward must return logits \[4\], got"):
            require_logits(value, 4, mine)
    with pytest.raises(UserError, match=r"build must return \(G, D\), two modules of torch, got None"):
        build_networks(architecture, 8, 1, 2)
    for value in (None, 3.0, {"a": "b"}, {3: 1.0}, {"a": one}):
        mine.compute = lambda fake, real, value=value: value
        with pytest.raises(UserError, match="Mine: compute must return a dict of numbers by name, got"):
            compute_metric(mine, tensors, tensors)
    with pytest.raises(UserError, match="Mine: build must return an Extractor with extract and identity, got None"):
        require_extractor(None, mine)
    for value in (None, one, (torch.ones(2), torch.ones(2, 3)), (torch.ones(1, 3), torch.ones(2, 3))):
        with pytest.raises(UserError, match=r"features \[2, d\] and logits \[2, c\] from 2 images, got"):
            extract_features(Extractor(lambda images, value=value: value, "mine"), torch.ones(2, 1, 8, 8), mine)
    for value in (None, 0, -3, float("nan"), "32", True, torch.tensor(3)):
        mine.propose = lambda state, value=value: value
        with pytest.raises(UserError, match="Mine.propose must return a number of images, at least 1, got"):
            proposal_of(mine, BatchState(0, 0))


def test_items_of_a_data_set_are_refused_by_number():
    image = torch.ones(1, 8, 8, dtype=torch.uint8)
    items = {None: "item 0 of x must be .image, label., got None", (image, "a"): "the label of item 0 of x must be .* got 'a'"}
    for item, words in {**items, (image, 7): r"must be a whole number in \[0, 2\), got 7"}.items():
        data = type("Items", (), {"num_classes": 2, "__len__": lambda self: 1, "__getitem__": lambda self, i, item=item: item})()
        with pytest.raises(UserError, match=words):
            adopted(data, "x")
        if item:
            assert adopted(data, "x", labelled=False).labels.tolist() == [0]  # as of torchvision's unlabelled STL10
    sizes = type(
        "Sizes", (), {"num_classes": 1, "__len__": lambda self: 2, "__getitem__": lambda self, i: (image[:, : 8 - i, : 8 - i], 0)}
    )()
    with pytest.raises(UserError, match=r"data: item 1 of x must be a uint8 tensor \[1, 8, 8\], got a Tensor of torch.uint8 \[1, 7, 7\]"):
        adopted(sizes, "x").decode(1)


def test_losses_of_gantrain_pass():
    assert find("loss", LOSSES, "hinge") is Hinge and not plugin_errors.place_of(Hinge(), "generator")


LATE = {"raise KeyError('k')": 1, "sys.exit(0)": 1, "return 2": 1}


@pytest.mark.slow
@pytest.mark.parametrize("late", slow_but([], LATE))
def test_a_plugin_that_fails_in_training_leaves_the_last_checkpoint(gantrain, plugin, tmp_path, late):
    plugin(weight=f"if nimg < 200: return 0.5\n        {late}")
    arguments = ("train", DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, "averagers.m.name=mine:Rule")
    done = gantrain(*arguments, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "mine.py, line 1" in done.stderr
    assert done.stderr.startswith("gantrain: error: averager ")
    plugin()
    gantrain(*arguments)  # the plug-in is fixed
    events = [line["event"] for line in lines_of(tmp_path / "run") if "event" in line]
    assert "resume" in events and events[-1] == "end"


def test_the_file_of_a_plugin_is_looked_at_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with open(tmp_path / "hollow_plugin.py", "w") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="'hollow_plugin' fails on import.*it has 1024.0 GiB or more, and 16 MiB is"):
        find("loss", LOSSES, "hollow_plugin:Loss")


def test_a_property_in_the_place_of_a_method_is_named():
    @dataclass(frozen=True)
    class Margin(Hinge):
        @property
        def discriminator(self, logits_real, logits_fake):
            return logits_real.mean()

    with pytest.raises(UserError, match="loss 'Margin': discriminator must be a method, and cannot be read .*missing 2 required"):
        LOSS.adapt(Margin())
    with pytest.raises(UserError, match="^loss: loss 'Margin': discriminator must be a method"):  # a run names the key, too
        Config(loss=Margin())
