"""The configuration: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from conftest import ROOT, error_of, slow_but
from hypothesis import HealthCheck, example, given, settings, strategies as st

from gantrain.averaging import Ema, EmaSteps, Swa
from gantrain.config import loading as configuration
from gantrain.config.config import Config
from gantrain.config.hints import ALSO_CALLED, IN_SECTION, NO_KEY
from gantrain.config.loading import load
from gantrain.config.notes import notes
from gantrain.config.schema import walk_sections
from gantrain.config.sections import Guard
from gantrain.config.yaml_files import ConfigError, parse_yaml
from gantrain.errors import UserError

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DIGITS = ROOT / "configs" / "digits.yaml"


def written(tmp_path, text: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_plugin_that_the_command_line_replaces_takes_its_own_defaults_along(tmp_path):
    """The file in a run folder spells out every value; what somebody has chosen stays."""
    own = ["penalties={le: {name: lecam}, r: {name: r1, gamma: 3}}", "augment={name: ada}", "model.ch=8"]
    path = written(tmp_path, configuration.to_yaml(load(None, own)))
    for override, of, expected in (
        ("penalties.le.name=cr", lambda c: c.penalties["le"], "cr"),
        ("augment.name=diffaugment", lambda c: c.augment, "diffaugment"),
        ("optim.d.name=rmsprop", lambda c: c.optim.d, "rmsprop"),
    ):
        found = of(load(path, [override]))
        assert found == type(found)() and expected in override
    other = load(path, ["penalties.r.name=fd_r1", "penalties.le.name=lecam"])
    assert (other.penalties["r"].gamma, other.penalties["r"].every) == (3, 4) and other.penalties["le"] == load(path).penalties["le"]
    assert load(path, ["penalties.r.name=r2", "penalties.r.every=5"]).penalties["r"].every == 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_configuration_loads_and_loads_back_equal(path, tmp_path):
    config = load(path)
    assert load(written(tmp_path, configuration.to_yaml(config))) == config
    assert configuration.build(configuration.to_dict(config)) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_configuration_says_how_to_run_it(path):
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#")).lower()
    for word in (f"gantrain train {path.stem}", "hardware", "duration", "expected", "source", "run by us"):
        assert word in head, f"the head of {path.name} does not say: {word}"


def test_the_documented_guard_is_one_and_its_defaults_are_the_defaults(tmp_path):
    (block,) = re.findall(r"```yaml\n(guard:\n.*?)```", (ROOT / "docs" / "running.md").read_text(), re.S)
    told = yaml.safe_load(block)["guard"]
    guard = load(written(tmp_path, block)).guard
    assert {name: getattr(guard, name) for name in told} == told
    for name in ("on_nonfinite", "on_saturation", "saturation", "saturation_kimg", "factor", "evaluations", "rollback_to", "max_rollbacks"):
        assert told[name] == getattr(Guard(), name), name


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load(written(tmp_path, "")) == Config()


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().optim.lr_g = 1.0


def test_values_are_converted_to_their_types(tmp_path):
    config = load(written(tmp_path, "optim: {lr_g: 1e-4, betas: [0, 0.9]}\nmodel: {ch: 4}\neval: {every_kimg: null, metrics: [fid]}\n"))
    assert config.optim.lr_g == 1e-4 and config.optim.betas == (0.0, 0.9)
    assert config.eval.every_kimg is None and config.eval.metrics == ("fid",)


def test_overrides_win_over_the_file_and_later_ones_over_earlier():
    config = load(DIGITS, ["optim.lr_g=1e-5", "optim.lr_g=3e-5", "averagers.long={name: ema, half_life_kimg: 50}", "data.flip=true"])
    assert config.optim.lr_g == 3e-5 and config.data.flip
    assert config.averagers["long"] == Ema(half_life_kimg=50)
    assert config.optim.lr_d == load(DIGITS).optim.lr_d


def test_null_takes_an_averager_out():
    assert list(load(DIGITS, ["averagers.swa=null"]).averagers) == ["ema", "ema_short"]


def test_plugins_are_chosen_by_name():
    config = load(DIGITS, ["averagers.b={name: ema_steps, decay: 0.99}", "averagers.c={name: swa, start_kimg: 1}"])
    assert isinstance(config.averagers["b"], EmaSteps) and isinstance(config.averagers["c"], Swa)


@pytest.mark.slow
def test_a_plugin_from_outside_is_found_beside_the_configuration(tmp_path, gantrain, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Scaled:\n    scale: float = 1.0\n"
        "    def discriminator(self, logits_real, logits_fake): pass\n    def generator(self, logits_real, logits_fake): pass\n"
        "class Bare: pass\n"
    )
    shown = gantrain("config", DIGITS, "loss={name: 'my_losses:Scaled', scale: 2}", cwd=tmp_path)
    assert yaml.safe_load(shown.stdout)["loss"] == {"name": "my_losses:Scaled", "scale": 2.0}
    monkeypatch.syspath_prepend(str(tmp_path))  # the others in this process
    assert "must be a dataclass" in error_of(gantrain("config", DIGITS, "loss.name=my_losses:Bare", check=False))
    assert "did you mean 'Scaled'" in error_of(gantrain("config", DIGITS, "loss.name=my_losses:Scald", check=False))
    (tmp_path / "broken.py").write_text("def :")
    assert "broken.py, line 1 (SyntaxError: " in error_of(gantrain("config", DIGITS, "loss.name=broken:Loss", check=False))
    line = error_of(gantrain("config", DIGITS, "loss.name=gantrain.averaging:Ema", check=False))
    assert "loss 'gantrain.averaging:Ema' has no method 'discriminator', which every loss has" in line
    assert "is it on PYTHONPATH?" in error_of(gantrain("config", DIGITS, "loss.name=no_such:Loss", check=False))


REFUSALS = [
    # overrides, what the line must say
    (
        ["averagers.ema.half_lfie_kimg=5"],
        r"command line: averagers.ema.half_lfie_kimg=5: no such key of ema; did you mean 'half_life_kimg'\?",
    ),
    (["optm.lr_g=1"], r"command line: optm.lr_g=1: no such key; did you mean optim.lr_g\?"),
    (["optm=1"], r"command line: optm=1: no such key; did you mean 'optim'\?"),
    (["optimizer.lr_g=1"], r"command line: optimizer.lr_g=1: no such key; did you mean optim.lr_g\?"),
    (["lr=1e-4"], r"command line: lr=0.0001: no such key; did you mean optim.lr_g or optim.lr_d\?"),
    (["optim.lr=1e-4"], r"command line: optim.lr=0.0001: no such key; did you mean optim.lr_g or optim.lr_d\?"),
    (["model.lr_g=1"], r"command line: model.lr_g=1: no such key of biggan; did you mean optim.lr_g\?"),
    (["batch=32"], r"batch=32: no such key; did you mean batching.batch_size\?"),
    (["train.batch_size=32"], r"train.batch_size=32: no such key; did you mean batching.batch_size or eval.batch_size\?"),
    (["epochs=3"], r"epochs=3: no such key; did you mean total_kimg\?"),
    (["ema=0.999"], r"ema=0.999: no such key; did you mean averagers.ema\?"),
    (["fid=true"], r"fid=True: no such key; did you mean eval.metrics\?"),
    (["resolution=32"], r"resolution=32: no such key; did you mean data.resolution\?"),
    (
        ["averagers.ema.beta=0.9"],
        r"ema.beta=0.9: no such key of ema; did you mean half_life_kimg\? A decay d .*; or choose name: ema_steps",
    ),
    (["averagers.ema.decay=0.999"], r"did you mean half_life_kimg\? A decay d per update of B images has half_life_kimg = B / 1000 \* ln"),
    (["averagers.ema.half_life=3"], r"did you mean averagers.ema.half_life_kimg\?"),
    (["averagers.s={name: swa, start: 3}"], r"no such key of swa; did you mean averagers.s.start_kimg\?"),
    (["averagers.s={name: swa, beta: 3}"], r"no such key of swa; known: every_kimg, networks, offload"),
    (["averagers.s={name: ema_steps, beta: 0.9}"], r"no such key of ema_steps; did you mean averagers.s.decay\?"),
    (["ema_decay=0.999"], r"did you mean averagers.ema.half_life_kimg\?"),
    (["data.folder=x"], r"data.folder='x': no such key of digits; did you mean data.root, with data.name=folder, archive or packed\?"),
    (["data.name=folder", "data.folder=x"], r"no such key of folder; did you mean data.root\?"),
    (["data.name=archive", "data.path=x"], r"no such key of archive; did you mean data.root\?"),
    (["data.name=folder", "data.dir=x"], r"no such key of folder; did you mean data.root\?"),
    (["data_dir=x"], r"data_dir='x': no such key; did you mean data.root\?"),
    (["penalties.p={name: r1, weight: 3}"], r"no such key of r1; did you mean penalties.p.gamma\?"),
    (["lr_G=1"], r"lr_G=1: no such key; did you mean optim.lr_g\?"),
    (["optim.lr_D=1"], r"optim.lr_D=1: no such key; did you mean lr_d\?"),
    (["max_iter=3"], r"did you mean total_kimg\?"),
    (
        ["device=cuda"],
        r"device='cuda': no such key; Accelerate chooses the device: set ACCELERATE_TORCH_DEVICE=cuda:1 or ACCELERATE_USE_CPU=1",
    ),
    (['penalties={"": {name: r1}}'], r"penalties. must have only letters, digits, '_', '-' in its name"),
    (["penalties={zcr/d: {name: r1}}"], r"penalties.zcr/d must have only letters, digits, '_', '-' in its name, got 'zcr/d'"),
    (["penalties={a.b: {name: r1}}"], r"penalties.a.b must have only letters, digits"),
    (["data.name=cifar10", "data.num_images=100"], r"data.num_images=100: no such key of cifar10; known: "),
    (["penalties={pl: {name: path_length, networks: d}}"], r"penalties.pl.networks='d': no such key of path_length; known: "),
    (["loss.margin=2"], r"loss.margin=2: no such key; it has no keys that could be set"),
    (
        ["optim.eps={from: 1, to: 2, until_kimg: 3}"],
        r"optim.eps must be .*; it takes no schedule \(`gantrain config --keys schedules` says",
    ),
    (["performance.gpus=2"], r"no such key; Accelerate chooses the device: .* `accelerate launch --num_processes N"),
    (["augment=ada"], r"augment must be a section such as \{name: none\}, got 'ada'"),
    (["augment.name=adda"], r"augment.name: no augmentation 'adda'; did you mean 'ada'\?"),
    (["augment={name: ada, prob: 1}"], r"augment.prob=1: no such key of ada; did you mean augment.p\?"),
    (["augment.p=0.5"], r"augment.p=0.5: no such key; augment.name=none has no keys: choose name=ada or name=diffaugment as well"),
    (["diffaug=color"], r"diffaug='color': no such key; did you mean augment.name\?"),
    (["ada_target=0.6"], r"ada_target=0.6: no such key; did you mean augment.target\?"),
    (["augment={name: ada, p: 1.5}"], r"augment.p must be in \[0, 1\] at all times, or null to adapt it, got 1.5"),
    (["data.augment.p=1"], r"data.augment=\{'p': 1\}: no such key of digits; did you mean augment\?"),
    (["optim.seed=1"], r"optim.seed=1: no such key; did you mean seed\?"),
    (["augment={name: ada, every: 1000000000000000000000}"], r"augment.every must be at most 1,000,000,000, got 10"),
    (["augment={name: ada, every: 0}"], r"augment.every must be at least 1, got 0"),
    (["augment={name: ada, cutout: true}"], r"augment.cutout must be a number, got True; 1 switches the group on, 0 off"),
    (["augment={name: diffaugment, color: false, translation: false, cutout: false}"], r"augment.cutout must be true if .*use name=none"),
    (
        ["augment.name=ada", "loss.name=relativistic"],
        r"loss.name must draw logits to 0 .* or set augment.p to a number or a schedule, got 'relativistic'",
    ),
    (["resume=runs/a"], r"a run resumes by itself where run_dir has checkpoints"),
    (["tracking.wandb.tags=a"], r"tracking.wandb.tags must be a list of strings, got 'a'; write \[a\]"),
    (["eval.metrics=fid,kid"], r"eval.metrics must be a list of strings, got 'fid,kid'; write \[fid, kid\]"),
    (["checkpoint.keep_best=eval/ema/digits_fid"], r"keep_best must be a list of strings, .*; write \[eval/ema/digits_fid\]"),
    (["total_kimg=1:30"], r"command line: total_kimg must be a number, got '1:30'"),
    (["seed=1:30"], r"command line: seed must be a whole number, got '1:30'"),
    (["seed=0b11"], r"command line: seed must be a whole number, got '0b11'"),
    (["optim.betas=[0, 1:30]"], r"optim.betas must be a list of 2 numbers, got \[0, '1:30'\]"),
    (["optim.lr_g=fast"], r"command line: optim.lr_g must be a number or a schedule, got 'fast'"),
    (["optim.lr_g=-1"], r"command line: optim.lr_g must be above 0, got -1.0"),
    (["optim.lr_g=.nan"], r"optim.lr_g must be above 0, got nan"),
    (["optim.betas=[0.5]"], r"optim.betas must be a list of 2 numbers, got \[0.5\]"),
    (["optim.betas=[0.0, 1.0]"], r"optim.betas must both be in \[0, 1\)"),
    (["optim.d_steps=1.5"], r"optim.d_steps must be a whole number, got 1.5"),
    (["seed=true"], r"seed must be a whole number, got True"),
    (["data.flip=perhaps"], r"data.flip must be true or false, got 'perhaps'"),
    (["mixed_precision=no"], r"mixed_precision must be one of fp32, bf16, fp16, got 'no'"),
    (["loss.name=hing"], r"command line: loss.name: no loss 'hing'; did you mean 'hinge'\?"),
    (["loss=hinge"], r"loss must be a section such as \{name: hinge\}, got 'hinge'"),
    (["averagers=ema"], r"averagers must map free names to averagers, got 'ema'"),
    (["averagers.x={decay: 0.9}"], r"averagers.x.name is missing; known averagers are bema, ema, ema_steps, lawa, lookahead, power, swa"),
    (["averagers={}"], r"command line: averagers=\{\} removes nothing; write averagers.ema=null for each entry to remove"),
    (["averagers.ema=off"], r"averagers.ema must be a section such as \{name: ema\}, got 'off'; null removes it"),
    (["averagers.live={name: ema}"], r"averagers.live must have only letters"),
    (["averagers.ema.half_life_kimg=0"], r"averagers.ema.half_life_kimg must be above 0, got 0.0"),
    (["eval.metrics=[fid, fdi]"], r"eval.metrics must name metrics \(no metric 'fdi'; did you mean 'fid'\?\)"),
    (["eval.batchnorm=recalibate"], r"eval.batchnorm must be one of recalibrate, copy"),
    (["batching.micro_batch=7"], r"batching.micro_batch must divide batch_size \(64\), got 7"),
    (["data.resolution=20"], r"data.resolution: biggan does not support resolution 20; choose from 8, 16, 32, 64, 128, 256"),
    (["model.attention_resolution=64"], r"model.attention_resolution: .* cannot have attention at 64; choose from 8"),
    (["model.hierarchical_z=true"], r"model.hierarchical_z requires shared_embedding above 0"),
    (
        ["model.hierarchical_z=true", "model.shared_embedding=16"],
        r"model.dim_z: must be a multiple of 3, .* got 64; use 63",
    ),
    (["total_kimg"], r"'total_kimg' is not an override; write section.key=value"),
    (["config.yaml"], r"'config.yaml' is not an override; write section.key=value; the command takes one"),
    (["cifar10_biggan"], r"'cifar10_biggan' is not an override; .*; the command takes one configuration or run, and this is another"),
    (["."], r"'\.' is not an override; .*; the command takes one configuration or run, and this is another"),
    (["=3"], r"'=3' is not an override"),
    (["batch_size=32"], r"batch_size=32: no such key; did you mean batching.batch_size or eval.batch_size\?"),
    (["every_kimg=3"], r"every_kimg=3: no such key; known: augment, averagers, batching"),
    (["a..b=3"], r"'a..b' is not a key"),
    (["optim.lr_g=[1"], r"command line: optim.lr_g: is not YAML"),
    (["run_dir=${no.such}"], r"command line: run_dir: .*no.such"),
    (['run_dir="a\\0b"'], r"command line: run_dir must name a folder"),
    (["run_dir=&a [*a]"], r"command line: run_dir: a value contains itself"),
    (["total_kimg.x=1"], r"total_kimg"),
    (["checkpoint.keep_last=0"], r"checkpoint.keep_last must be at least 1, got 0"),
    (["checkpoint.keep_every_kimg=0"], r"checkpoint.keep_every_kimg must be above 0, or null, got 0"),
    (["checkpoint.on_error=warn"], r"checkpoint.on_error must be one of stop, continue, got 'warn'"),
    (["checkpoint.keep_best=[fid]"], r"checkpoint.keep_best must be eval/AVERAGE/METRIC, such as eval/swa/digits_fid, got 'fid'"),
    (["checkpoint.keep_best=[eval/emo/digits_fid]"], r"checkpoint.keep_best must name live or one of averagers; did you mean 'ema'\?"),
    (
        ["checkpoint.keep_best=[eval/ema/fid]"],
        r"checkpoint.keep_best must name a score of eval.metrics; known: digits_fid, digits_is, digits_kid",
    ),
    (["checkpoint.keep_best=[eval/ema/digits_fid,eval/ema/digits_fid]"], r"checkpoint.keep_best must not name a score twice"),
    (["guard.on_nonfinite=ignore"], r"guard.on_nonfinite must be one of stop, rollback, warn, got 'ignore'"),
    (["guard.saturation=1"], r"guard.saturation must be in \[0, 1\), got 1"),
    (["guard.saturation_kimg=0"], r"guard.saturation_kimg must be above 0, got 0"),
    (["guard.factor=1"], r"guard.factor must be above 1, got 1"),
    (["guard.evaluations=0"], r"guard.evaluations must be at least 1, got 0"),
    (
        ["guard.max_rollbacks=0"],
        r"guard.max_rollbacks must be at least 1; to never roll back, set on_nonfinite",
    ),
    (["guard.lr_scale=1.5"], r"guard.lr_scale must be above 0 and at most 1, got 1.5"),
    (["guard.growth=0.5"], r"guard.growth must be at least 1, got 0.5"),
    (
        ["guard.growth=2"],
        r"guard.growth above 1 needs a batch that grows at swaps; set batching.name=on_swap and ",
    ),
    (["guard.score=eval/ema/digits_fdi"], r"guard.score must name a score of eval.metrics; did you mean 'digits_fid'\?"),
    (["guard.on_worse=rollback"], r"guard.score must name a score, such as eval/swa/digits_fid, for on_worse=rollback, got null"),
    (["guard.rollback_to=best"], r"guard.rollback_to needs guard.score or checkpoint.keep_best, such as eval/swa/digits_fid, got 'best'"),
    (["data.on_error=warn"], r"data.on_error"),
    (["tracking.wandb.patience=0"], r"tracking.wandb.patience must be above 0"),
]


@pytest.mark.parametrize("overrides, words", REFUSALS, ids=[" ".join(o) for o, _ in REFUSALS])
def test_a_mistake_is_one_line_with_key_value_and_remedy(overrides, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load(DIGITS, overrides)
    assert "\n" not in str(caught.value)


FILE_REFUSALS = [
    ("optim: {lr_g: 1}\noptim: {lr_d: 1}\n", r"run.yaml: is not YAML: key 'optim' appears twice \(line 2"),
    ("optim:\n  lr_g: [1\n", r"run.yaml: is not YAML"),
    ("- 1\n- 2\n", r"run.yaml: must contain sections and keys, got \[1, 2\]"),
    ("1: 2\n", r"run.yaml: 1: a key must be a string, got 1; put it in quotes"),
    ("optim: 3\n", r"run.yaml: optim must be a section with keys, got 3"),
    ("optim: {lr_gg: 3}\n", r"run.yaml: optim.lr_gg=3: no such key; did you mean 'lr_g'\?"),
    ("optim: &a {lr_g: *a}\n", r"run.yaml: a value contains itself"),
    ("eval: &a {every_kimg: 3, every_kimg: 4}\n", r"run.yaml: is not YAML: key 'every_kimg' appears twice \(line 1"),
    ("swap: {<<: &a {alpha: 1}, <<: {alpha: 1}}\n", r"run.yaml: is not YAML: key '<<' appears twice; write <<: \[\*one, \*other\]"),
    ("optim: {<<: 3}\n", r"run.yaml: is not YAML: expected a mapping or list of mappings for merging"),
    ("optim: {<<: {lr_gg: 1}}\n", r"run.yaml: optim.lr_gg=1: no such key; did you mean 'lr_g'\?"),
    ("optimizer: {lr_g: 1, lr_d: 2}\n", r"run.yaml: optimizer.lr_g=1: no such key; did you mean optim.lr_g\?"),
    (
        "x: &b {lr_g: 1}\noptim: {<<: *b}\n",
        r"run.yaml: x.lr_g=1: no such key; a template for `<<` needs a name that begins with x-, such as x-x",
    ),
    ("base: &b\n  lr_g: 1\noptim:\n  <<: *b\n", r"run.yaml: base.lr_g=1: no such key; a template .*, such as x-base"),
    ("rate: &r 1\noptim: {lr_g: *r}\n", r"run.yaml: rate=1: no such key; a template .*, such as x-rate"),
    ("optim: {x-a: {lr_g: 1}}\n", r"run.yaml: optim.x-a=\{'lr_g': 1\}: no such key"),
    ("data: {name: !!python/object/apply:os.system [echo]}\n", r"run.yaml: is not YAML"),
]


@pytest.mark.parametrize("text, words", FILE_REFUSALS)
def test_a_mistake_in_a_file_names_the_file(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load(written(tmp_path, text))


# As YAML 1.2's core schema reads them (section 10.3.2 of the specification), and not as PyYAML does.
NUMBERS = {"010": 10, "0o17": 15, "0x1F": 31, "-7": -7, "1e-4": 1e-4, "12e3": 12000.0, ".5": 0.5, "5.": 5.0, "+1.5E2": 150.0, "true": True}
TEXTS = ["1:30", "1_000", "190:20:30", "0b11", "on", "no", "y", "2026-11-30", "2026-11-30 10:00:00", "=", "1e", "."]


def test_scalars_are_those_of_yaml_1_2():
    for text, value in NUMBERS.items():
        found = parse_yaml(f"v: {text}", "test")["v"]
        assert found == value and type(found) is type(value), text
    assert [parse_yaml(f"v: {text}", "test")["v"] for text in TEXTS] == TEXTS
    assert parse_yaml("v: [.nan, -.inf, ~, null]", "test")["v"][1:] == [float("-inf"), None, None]


@pytest.mark.parametrize("text", slow_but(["12e3", "010"], [*TEXTS, "12e3", "1.10", "010", "0x1f", "true", "1e5"]))
def test_text_stays_as_it_is_written(text, tmp_path):
    """A run's name that looks like a number, a date or a boolean; and it reads back from the run folder."""
    for config in (load(DIGITS, [f"tracking.wandb.name={text}"]), load(written(tmp_path, f"tracking: {{wandb: {{name: {text}}}}}"))):
        assert config.tracking.wandb.name == text
        assert load(written(tmp_path, configuration.to_yaml(config))) == config


def test_words_for_true_and_false_still_are_where_a_key_is_true_or_false():
    assert [load(DIGITS, [f"data.flip={word}"]).data.flip for word in ("yes", "on", "y", "no", "off", "N")] == [True] * 3 + [False] * 3
    assert load(DIGITS, ["seed=1_000"]).seed == 1000  # as Python reads it; never 90 for 1:30


def test_merge_keys(tmp_path):
    """YAML 1.1's `<<`: a mapping's own keys win, then earlier mappings; overrides change one place."""
    text = """
averagers:
  short: &short {name: ema, half_life_kimg: 2, ramp_up: null}
  long: &long {<<: *short, half_life_kimg: 50}
  longer: {<<: *long, ramp_up: 0.1}
  first: {<<: [*long, *short]}
  "off": {name: swa}
"""
    short, long = Ema(half_life_kimg=2, ramp_up=None), Ema(half_life_kimg=50, ramp_up=None)
    wanted = {"short": short, "long": long, "longer": Ema(half_life_kimg=50, ramp_up=0.1), "first": long, "off": Swa()}
    assert load(written(tmp_path, text)).averagers == wanted
    changed = load(written(tmp_path, text), ["averagers.short.half_life_kimg=3", "averagers.first=null"]).averagers
    assert changed == {**{k: v for k, v in wanted.items() if k != "first"}, "short": Ema(half_life_kimg=3, ramp_up=None)}
    # The merged mapping is deeper than the one that merges it, so it is built later.
    deep = "penalties: {a: &a {name: r1, gamma: 1}, b: &b {<<: *a, gamma: 2}}\n"
    assert load(written(tmp_path, f"{deep}averagers: {{x: {{name: ema}}}}")).penalties["b"].gamma == 2
    assert parse_yaml("a: {b: &b {x: 1}, c: &c {<<: *b, x: 2}}\nd: {<<: *c}", "test")["d"] == {"x": 2}


@pytest.mark.parametrize("name", ["x-base", ".base", "x-"])
def test_templates_at_the_top_of_a_file_have_no_effect_of_their_own(tmp_path, name):
    """As in Compose (`x-`) and GitLab (`.`): merge keys and references take from them."""
    text = f"""
{name}: &base {{lr_g: 1e-3, lr_d: 2e-3}}
x-rate: &rate 3e-3
x-list: [1, {{unknown: 3}}]
x-averages: &averages
  long: &long {{name: ema, half_life_kimg: 50}}
  longer: {{<<: *long, ramp_up: 0.1}}
optim: {{<<: *base, lr_d: *rate}}
averagers: {{<<: *averages, swa: {{name: swa, start_kimg: "${{x-list[0]}}"}}}}
"""
    plain = """
optim: {lr_g: 1e-3, lr_d: 3e-3}
averagers: {long: {name: ema, half_life_kimg: 50}, longer: {name: ema, half_life_kimg: 50, ramp_up: 0.1}, swa: {name: swa, start_kimg: 1}}
"""
    found = load(written(tmp_path, text), ["optim.lr_g=5e-3"])
    assert found == load(written(tmp_path, plain), ["optim.lr_g=5e-3"])
    assert load(written(tmp_path, configuration.to_yaml(found))) == found and "x-" not in configuration.to_yaml(found)
    with pytest.raises(ConfigError, match=r"command line: x-rate=1: x- begins the name of a template of a file, .*; override the keys"):
        load(written(tmp_path, text), ["x-rate=1"])


def test_other_names_lead_to_keys_that_exist():
    known = {key for section in walk_sections() for key, _, _ in section.fields()} | set(configuration.default_keys())
    assert {key for keys in ALSO_CALLED.values() for key in keys} <= known
    names = {key.rpartition(".")[2] for key in known}
    assert not NO_KEY.keys() & (names | ALSO_CALLED.keys())
    assert {key for words in IN_SECTION.values() for keys in words.values() for key in keys} <= names
    assert not {word for word in ALSO_CALLED if word in {f.name for f in dataclasses.fields(Config)}}


def test_a_missing_file_gets_a_hint(gantrain):
    line = error_of(gantrain("config", "configs/digit.yaml", check=False))
    assert "configs/digit.yaml: there is no such file; did you mean 'digits.yaml'?" in line
    assert "cannot be read" in error_of(gantrain("config", "configs", check=False))


def test_the_command_answers_a_misspelt_key_in_one_line(gantrain, tmp_path):
    line = error_of(gantrain("train", DIGITS, f"run_dir={tmp_path / 'run'}", "averagers.ema.half_lfie_kimg=5", check=False))
    assert "did you mean 'half_life_kimg'?" in line and not (tmp_path / "run").exists()


def test_the_command_prints_a_configuration_that_loads_back_equal(gantrain, tmp_path):
    overrides = ["optim.lr_g=0.0003", "run_dir='a\\${b}'", "tracking.wandb.name='yes'", "eval.truncation=0.5"]
    shown = gantrain("config", DIGITS, *overrides).stdout
    assert load(written(tmp_path, shown)) == load(DIGITS, overrides)


def test_a_reference_to_another_key_is_resolved():
    assert load(DIGITS, ["optim.lr_d=${optim.lr_g}", "optim.lr_g=1e-3"]).optim.lr_d == 1e-3


def test_a_setting_without_effect_is_noted_and_no_mistake():
    assert notes(load(DIGITS)) == []
    noted = notes(load(DIGITS, ["total_kimg=10", "optim.lr_tail={kind: constant, start_kimg: 90}"]))
    assert noted == [
        "averagers.swa.start_kimg=40 is not before total_kimg=10: it will have no effect",
        "optim.lr_tail.start_kimg=90 is not before total_kimg=10: it will have no effect",
    ]


def test_differing_keys_are_named_with_both_values():
    a, b = load(DIGITS), load(DIGITS, ["seed=3", "averagers.more={name: ema}"])
    assert configuration.differing_keys(a, a) == {}
    different = configuration.differing_keys(a, b)
    assert different["seed"] == (0, 3) and different["averagers.more.name"] == ("absent", "ema")


# ---- any mess at all -------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "live", "${", "${a}", "${seed}", "fid", "biggan", "1e-4"]),
)
messes = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)), max_leaves=6
)
known_keys = [k for k, _ in configuration.leaves(configuration.to_dict(load(DIGITS)))]
sections = sorted({k.rpartition(".")[0] for k in known_keys if "." in k})
keys = st.one_of(
    st.sampled_from(known_keys),
    st.sampled_from(sections),
    st.text(min_size=1, max_size=12),
    st.builds(".".join, st.lists(st.text(max_size=4), max_size=4)),
)


def load_or_refuse(path, overrides=()) -> None:
    """Loading gives a configuration or a ConfigError of one line; anything else fails the test."""
    try:
        assert isinstance(load(path, overrides), Config)
    except UserError as error:
        assert isinstance(error, ConfigError) and "\n" not in str(error) and str(error).strip()


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.tuples(keys, messes), min_size=1, max_size=3))
def test_no_override_gives_a_traceback(values):
    load_or_refuse(DIGITS, [f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...')}" for key, value in values])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=60), st.builds(yaml.safe_dump, st.dictionaries(keys, messes, max_size=4))))
def test_no_file_gives_a_traceback(tmp_path, text):
    path = tmp_path / "mess.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    load_or_refuse(path)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(key="run_dir", value="a\x85b\u2028c\u2029")  # line breaks of Unicode's own
@given(key=st.sampled_from(known_keys), value=scalars)
def test_no_value_gives_a_traceback_and_what_loads_loads_back(tmp_path, key, value):
    path = tmp_path / "one.yaml"
    nested: object = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    path.write_text(yaml.safe_dump(nested))
    try:
        config = load(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    path.write_text(configuration.to_yaml(config), encoding="utf-8")
    assert load(path) == config
