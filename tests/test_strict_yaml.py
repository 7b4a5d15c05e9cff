"""YAML and references of any size and shape: refused at a bound, in one line, and never a wait."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import time
import types

import pytest
from conftest import ROOT, every_third, slow_but

from gantrain.config import loading
from gantrain.config.loading import load
from gantrain.config.yaml_files import ConfigError, parse_yaml
from gantrain.errors import UserError
from gantrain.losses import Hinge
from gantrain.plain_yaml import load_plain
from gantrain.run_folder.own_config import write_config
from gantrain.run_folder.recognition import is_run_config
from gantrain.run_folder.record import outline_config
from gantrain.strict_yaml import LARGEST

DIGITS = ROOT / "configs" / "digits.yaml"
SECONDS = 5  # much more than a refusal takes, and much less than 2^25 values


def levels(first: str, line: str, repeat: str, count: int = 25) -> str:
    """A text whose line `i` repeats the one before it nine times."""
    lines = [f"x-0: &a0 {first}"] + [line.format(i=i, parts=", ".join([repeat.format(i=i - 1)] * 9)) for i in range(1, count)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "lists": (
        levels("[1]", "x-{i}: &a{i} [{parts}]", "*a{i}"),
        r"run.yaml: has more than 5000 values that aliases such as \*a\d repeat; write fewer \(line \d",
    ),
    "merges": (levels("{k: 1}", "x-{i}: &a{i} {{<<: [{parts}]}}", "*a{i}"), r"has more than 5000 values that aliases such as \*a\d repeat"),
    "long text": (
        f"x-a: &a '{'z' * 100_000}'\nx-b: [{', '.join(['*a'] * 1000)}]\n",
        r"has more than 5000 values that aliases such as \*a repeat",
    ),
    "references in texts": (levels("xyz", "x-{i}: '{parts}'", "${{x-{i}}}"), r"x-\d+.*: references stand for more than 20000 characters"),
    "references in lists": (levels("[1]", "x-{i}: [{parts}]", "'${{x-{i}}}'"), r"x-\d+.*: references stand for more than 20000 characters"),
    "itself": ("optim: &a {lr_g: [*a]}\n", r"run.yaml: a value contains itself \(&a and \*a\); write it out \(line 1, column 19\)"),
    "brackets": ("x-a: " + "[" * 100_000, r"nested more than 32 deep \(line 1"),
    "closed brackets": ("x-a: " + "[" * 200 + "]" * 200, r"nested more than 32 deep"),
    "dashes": ("- " * 5000, r"nested more than 32 deep"),
    "hexadecimal": ("seed: 0x" + "f" * 200_000, r"a number of 200002 characters, 0xffffff.*, and 400 is the most \(line 1"),
    "decimal": ("seed: " + "9" * 5000, r"a number of 5000 characters"),
    "float": ("seed: " + "9" * 5000 + ".5e3", r"a number of 5004 characters"),
    "many": ("".join(f"k{i}: [1, 2]\n" for i in range(7_000)), r"has more than 20000 values \(line"),
    "long key": ("k" * 300 + ": 1\n", r"has a key of 300 characters, 'kkkkkk.*, and 200 is the most"),
    "same hash": (
        "".join(f"{i * (2**61 - 1)}: 1\n" for i in range(1, 3000)),
        r"run.yaml: 230584\d+: a key must be a string",
    ),
    "key in a list": ("x-a: [{1: 2}]\n", r"run.yaml: 1: a key must be a string, got 1; put it in quotes \(line 1, column 8\)"),
    "nested references": ("run_dir: " + "${" * 3000, r"have more than 10000 characters or 500 references in all; write values out"),
    "large": ("#" * (LARGEST + 1), r"run.yaml: is too large \(a configuration has at most 1024 KiB\); pass a YAML file"),
}


@pytest.mark.parametrize("name", slow_but(["lists", "merges", "itself", "references in texts", "decimal", "large"], [*BOMBS]))
def test_a_text_that_means_too_much_is_refused_at_once(tmp_path, name):
    text, words = BOMBS[name]
    path = tmp_path / "run.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=words) as told:
        load(path)
    assert len(str(told.value)) < 1600 and "\n" not in str(told.value)
    is_run_config(path)  # an answer, either way
    with pytest.raises(UserError, match="is not the configuration of a run|cannot be read"):
        outline_config_of(path)
    assert time.monotonic() - began < SECONDS


def outline_config_of(path) -> None:
    """What `gantrain runs` reads of a run with this configuration."""
    path.rename(path.with_name("config.yaml"))
    outline_config(path.parent)


TAGGED = ["timestamp x", "timestamp 2001-01-01", "binary abc", "set {a}", "omap [a: 1]", "python/object:os.system x", "map x", "str [1]"]
MISFITS = ["bool yes", "float ''", "int ''", "int 0x", "null x", "int 1.5"]


def test_tags_are_those_of_the_core_schema_and_fit_their_values():
    for text in TAGGED:
        with pytest.raises(ConfigError, match=r"test: is not YAML: the tag .* is not allowed here \(line 1, column 4\)"):
            parse_yaml(f"v: !!{text}", "test")
    for text in MISFITS:
        with pytest.raises(ConfigError, match=rf"test: is not YAML: '.*' is not of type !!{text.split()[0]} \(line 1"):
            parse_yaml(f"v: !!{text}", "test")
    assert parse_yaml("v: [!!str 5, !!int '5', !!float 5, !!null '']", "test") == {"v": ["5", 5, 5.0, None]}


@pytest.mark.slow
def test_both_parsers_read_the_same(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(loading.to_yaml(load(DIGITS)) + "x-1: [010, 1e-4, no, 2026-11-30, 1:30, .inf]\nx-2: {<<: &b {a: 1}, b: *b}\n")
    assert load_plain(path.read_bytes()) == parse_yaml(path.read_text(), "test")


def test_overrides_are_bounded():
    for overrides, words in {
        ("seed=1",) * 1001: "has 1001 overrides, and 1000 are the most; write them into a file",
        (".".join("a" * 40) + "=1",): "is not a key; it has 40 words",
        ("seed=" + "9" * 1000,): r"command line: seed: has a number of 1000 characters",
        ("x=" + "y" * LARGEST,): f"has {LARGEST + 7} characters",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load(DIGITS, overrides)


@pytest.mark.parametrize("count", slow_but([], [6_000, 25_000]))
def test_what_is_written_into_a_run_folder_reads_back_or_is_refused_before(tmp_path, monkeypatch, count):
    """The defaults of a plug-in may be long, and are written out."""
    module = types.ModuleType("long_table")
    module.Table = dataclasses.make_dataclass("Table", [("rates", list[float], (0.5,) * count)], bases=(Hinge,), frozen=True)
    module.Table.__module__ = "long_table"
    monkeypatch.setitem(sys.modules, "long_table", module)
    config = load(DIGITS, ["loss.name=long_table:Table"])
    if count > 20_000:
        with pytest.raises(UserError, match="it has more than 20,000 values or 1 MiB; keep long tables in a file"):
            write_config(config, tmp_path)
        return
    write_config(config, tmp_path)
    assert is_run_config(tmp_path / "config.yaml") and outline_config(tmp_path).total_kimg == config.total_kimg
    monkeypatch.setattr(loading, "build", lambda values, sources: values)  # what is read is enough
    assert len(load(tmp_path / "config.yaml")["loss"]["rates"]) == count


def test_only_regular_files_are_configurations(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, words in {
            tmp_path / "pipe": "pipe: cannot be read .it is a named pipe, not a file.; write the configuration to a file, and pass that",
            tmp_path / "socket": "it is a socket, not a file",
            "/dev/zero": "it is a device, not a file",
            tmp_path: "Is a directory",
            "a\0b": "embedded null byte",
        }.items():
            with pytest.raises(ConfigError, match=words):
                load(path)
    (tmp_path / "config.yaml").symlink_to("pipe")
    assert not is_run_config(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="it is a named pipe"):
        outline_config(tmp_path)
    reading, writing = os.pipe()  # as for `<(...)`
    with pytest.raises(ConfigError, match=r"/dev/fd/\d+: .*named pipe.*; write the configuration to a file"):
        load(f"/dev/fd/{reading}")
    os.close(reading), os.close(writing)


# ---- references ------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "${total_kimg}": "200.0",
    "${seed}_${optim.betas[1]}_${optim.betas.0}": "0_0.999_0.0",
    "${data.name}/${averagers.ema.name}/${averagers.ema.half_life_kimg}": "digits/ema/10.0",
    "${tracking.wandb.mode}": "auto",
    "${oc.select:total_kimg,3}": "200.0",
    "${optim.${tracking.wandb.project}}": "KEY",
}


def test_a_reference_finds_what_stands_at_its_default():
    for text, value in DEFAULTS.items():
        if value != "KEY":
            assert load(None, [f"run_dir={text}"]).run_dir == value
    assert load(None, ["run_dir='a${optim.${tracking.wandb.project}}'", "tracking.wandb.project=d_steps"]).run_dir == "a1"
    assert load(
        None, ["run_dir=r/${batching.factor}", "batching={name: noise_scale, max_batch: 64}", "noise_scale.measure_every=1"]
    ).run_dir
    assert load(None, ["penalties.p={name: r1}", "run_dir=r${penalties.p.gamma}"]).run_dir == "r0.1"
    assert load(None, ["checkpoint={every_kimg: '${eval.every_kimg}'}"]).checkpoint.every_kimg == load(None).eval.every_kimg
    short = load(None, ["averagers.a={name: swa, every_kimg: '${.start_kimg}', start_kimg: 3}"])
    assert short.averagers["a"].every_kimg == 3 and loading.to_yaml(short).count("${") == 0


def test_a_default_that_another_key_decides_is_the_one_that_the_run_has():
    config = load(None, ["data={name: cifar10}", "eval.protocol=studiogan", "run_dir=r${eval.num_samples}_${eval.is_splits}"])
    assert config.run_dir == f"r{config.eval.num_samples}_{config.eval.is_splits}" == "r50000_1"


def test_references_in_files_and_templates_take_defaults_and_set_nothing_else(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("x-length: ${total_kimg}\nswap: {start_kimg: '${x-length}'}\nloss: {name: '${x-loss.name}'}\nx-loss: {name: hinge}\n")
    config = load(path)
    assert config.swap.start_kimg == 200 and config.loss == load(None).loss
    assert loading.set_keys(path) >= {"swap.start_kimg"} and "total_kimg" not in loading.set_keys(path)
    (tmp_path / "again.yaml").write_text(loading.to_yaml(config))
    assert load(tmp_path / "again.yaml") == config


UNRESOLVED = {
    ("run_dir=${totl_kimg}",): r"command line: run_dir: the reference \$\{totl_kimg\} leads to no key; did you mean 'total_kimg'\?; write",
    ("run_dir=${optim.lr}",): r"the reference \$\{optim.lr\} leads to no key; did you mean optim.lr_g or optim.lr_d\?",
    ("run_dir=${run_dir}",): r"the reference \$\{run_dir\} leads back to itself",
    (
        "run_dir=${tracking.wandb.name}",
        "tracking.wandb.name=x${run_dir}",
    ): r"tracking.wandb.name: .*\{run_dir\} leads back",
    ("optim.lr_g=${optim}",): r"optim.lr_g: the reference \$\{optim\} leads back to itself",
    ("averagers.b=${averagers}",): r"leads back to itself",
    ("averagers.swa=null", "run_dir=${averagers.swa.start_kimg}"): r"\$\{averagers.swa.start_kimg\} leads to no key",
    ("run_dir=${oc.env:NO_SUCH_VARIABLE}",): r"command line: run_dir: .*NO_SUCH_VARIABLE",
    ("optim.d_steps=${guard.lr_scale}",): r"command line: optim.d_steps must be a whole number, got ",
}


@pytest.mark.parametrize("words", every_third([" ".join(overrides) for overrides in UNRESOLVED]))
def test_a_reference_that_leads_nowhere_is_one_line(words):
    overrides = words.split(" ")
    with pytest.raises(ConfigError, match=UNRESOLVED[tuple(overrides)]):
        load(DIGITS, overrides)
