"""Runs of earlier versions go on as they began where a later version has a key with another default."""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import ROOT, TINY, lines_of

from gantrain.config import loading
from gantrain.config.config import Config
from gantrain.losses import Hinge, Relativistic
from gantrain.run_folder.claim import resolve_pairs
from gantrain.run_folder.earlier import as_begun, load_as_begun, with_pairs
from gantrain.run_folder.trained_with import config_in, to_state

DIGITS = ROOT / "configs" / "digits.yaml"
OLD = Config(loss=Relativistic(paired_labels=False))


def without_key(config: Config) -> dict:
    """The plain values of a configuration as versions before `loss.paired_labels` wrote them."""
    values = loading.to_dict(config)
    values["loss"].pop("paired_labels", None)
    return values


@pytest.mark.parametrize(
    "loss, given, paired",
    [
        (Relativistic(), [], False),
        (Relativistic(), ["loss.name"], False),
        (Relativistic(), ["loss.paired_labels"], True),
        (Relativistic(paired_labels=False), ["loss.paired_labels"], False),
        (Hinge(), [], False),
    ],
)
def test_the_lack_of_the_key_stands_for_independent_classes(loss, given, paired):
    found = as_begun(Config(loss=loss), given).loss
    assert type(found) is type(loss) and found.paired_labels == paired
    assert with_pairs(Config(loss=loss), True).loss.paired_labels == isinstance(loss, Relativistic)


def test_a_run_folder_without_the_key_is_read_as_it_was_trained(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(without_key(OLD)))
    assert loading.load(file).loss.paired_labels and not load_as_begun(file).loss.paired_labels
    assert load_as_begun(file, ["loss.paired_labels=true"]).loss.paired_labels
    assert load_as_begun(file, ["loss={name: relativistic}"]).loss.paired_labels  # asked for anew, as when a hinge run is forked
    file.write_text(loading.to_yaml(Config(loss=Relativistic())))
    assert load_as_begun(file).loss.paired_labels
    state = to_state(OLD)
    assert not config_in(state).loss.paired_labels
    del state["config"]["loss"]["paired_labels"]
    assert not config_in(state).loss.paired_labels and config_in(to_state(Config(loss=Relativistic()))).loss.paired_labels


def test_a_new_run_pairs(tmp_path):
    config = Config(loss=Relativistic(), run_dir=str(tmp_path / "new"))
    assert resolve_pairs(config, []) is config


@pytest.mark.slow
def test_a_relativistic_run_from_before_the_key_resumes_in_the_same_bits_and_says_so(gantrain, tmp_path, monkeypatch):
    """Written by this version with the key taken out of all that it writes; resumed by the same command, twice."""
    old, new, words = tmp_path / "old", tmp_path / "new", [*TINY, "loss.name=relativistic", "eval.metrics=[fid]"]
    gantrain("train", DIGITS, f"run_dir={new}", *words, "loss.paired_labels=false")
    with monkeypatch.context() as patch:
        to_dict = loading.to_dict
        patch.setattr(loading, "to_dict", lambda config: {**(values := to_dict(config)), "loss": cut(values["loss"])})
        gantrain("train", DIGITS, f"run_dir={old}", *words, "loss.paired_labels=false", "total_kimg=0.16")
    state = json.loads((sorted((old / "checkpoints").iterdir())[-1] / "state.json").read_text())
    assert "paired_labels" not in (old / "config.yaml").read_text() and "paired_labels" not in json.dumps(state)
    gantrain("evaluate", old, "--num", "64", "eval.metrics=[fid]")
    for name, override, paired in (("as-is", "total_kimg=1", "false"), ("paired", "loss.paired_labels=true", "true")):
        gantrain("fork", old, "--out", tmp_path / name, "total_kimg=1", override)
        assert f"paired_labels: {paired}" in (tmp_path / name / "config.yaml").read_text()
    gantrain("train", DIGITS, f"run_dir={old}", *words, "total_kimg=0.24")
    gantrain("train", DIGITS, f"run_dir={old}", *words)  # the folder has the key now, and the command has not
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in (old, new)]
    for name in ("g", "d", "optimizer_g", "optimizer_d"):
        assert (newest[0] / f"{name}.safetensors").read_bytes() == (newest[1] / f"{name}.safetensors").read_bytes(), name
    resumed = [line for line in lines_of(old) if line.get("event") == "resume"]
    assert len(resumed) == 2 and all(any(note.startswith("loss.paired_labels=false: ") for note in line["notes"]) for line in resumed)
    done = gantrain("train", DIGITS, f"run_dir={old}", *words, "loss.paired_labels=true", check=False)
    assert done.returncode == 2 and "loss.paired_labels (false there, true now)" in done.stderr.lower()


def cut(loss: dict) -> dict:
    return {key: value for key, value in loss.items() if key != "paired_labels"}
