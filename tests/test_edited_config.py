"""A `config.yaml` that somebody has edited: commands read a checkpoint with what it was trained with, and say so in one line."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, slow_but

from gantrain.commands.noise_scale import Bench
from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.evaluation.of_runs import RunScorer
from gantrain.models.architecture import build_networks
from gantrain.run_folder import checkpoint, notes
from gantrain.run_folder.as_trained import config_at
from gantrain.run_folder.contents import open_checkpoint, open_held, open_run
from gantrain.run_folder.own_config import write_config
from gantrain.run_folder.trained_with import to_state
from gantrain.sampling.choice import Choice
from gantrain.sampling.generators import load_generator

DIGITS = ROOT / "configs" / "digits.yaml"
NOTE = "the checkpoint at 0.32 kimg is read with what it was trained with ('there')"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with a checkpoint whose averages are a swa and an ema."""
    run = tmp_path_factory.mktemp("edited") / "run"
    config = load(DIGITS, [*TINY, f"run_dir={run}", "averagers.late={name: swa, start_kimg: 0.3}"])
    write_config(config, run)
    torch.manual_seed(0)
    G, D = build_networks(config.model, 16, 1, 10)
    weights = dict(G.named_parameters())
    statistics = {name: b for name, b in G.named_buffers() if "running" in name}
    tensors = {
        "g": G.state_dict(),
        "d": D.state_dict(),
        **dict.fromkeys(("average.ema", "average.ema_short", "average.swa"), weights | statistics),
    }
    one = {"num_averaged": 5, "first_nimg": 0}
    state = {
        "averages": dict.fromkeys(("ema", "ema_short", "swa"), one), "averages_d": {}, "shape": [16, 1, 10], "class_names": None,
        "data_listing": None, "batching": {"micro_batch": 16, "batch_size": 16}, **to_state(config),
    }  # fmt: skip
    checkpoint.write(run / "checkpoints" / f"{320:012d}", 320, tensors, state)
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    notes._said.clear()
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def edit(run: Path, *overrides: str) -> None:
    """Write the run's configuration anew with other values, as a hand may do."""
    write_config(load(run / "config.yaml", overrides), run)


# What is edited, what the note says, and what is not changed by the edit.
EDITS = [
    (["model.bn_eps=0.5"], "model.bn_eps (1e-05 there, 0.5 now)"),
    (["model.dim_z=16", "model.ch=4"], "model.ch (2 there, 4 now), model.dim_z (8 there, 16 now)"),
    (["seed=7"], "seed (0 there, 7 now)"),
    (["data.flip=true"], "data.flip (false there, true now)"),
    (["data={name: folder, root: x, resolution: 16}"], "data.name (digits there, folder now)"),
    (["mixed_precision=bf16"], "mixed_precision (fp32 there, bf16 now)"),
    (["loss.name=relativistic"], "loss.name (hinge there, relativistic now)"),
    (["penalties.r1={name: r1}"], "penalties.r1 (absent there, r1 now)"),
    (["averagers.ema={name: power, sigma_rel: 0.1}"], "averagers.ema.name (ema there, power now)"),
    (["averagers.swa=null"], "averagers.swa (swa there, absent now)"),
    (["averagers.swa.every_kimg=0.16"], "averagers.swa.every_kimg (0.032 there, 0.16 now)"),
    (["optim.d_steps=1", "eval.truncation=0.5"], "optim.d_steps (2 there, 1 now)"),
]


@pytest.mark.parametrize(("overrides", "words"), slow_but(EDITS[:1], EDITS))
def test_a_checkpoint_is_read_with_what_it_was_trained_with(overrides, words, run, capfd):
    trained = load(run / "config.yaml")
    edit(run, *overrides)
    config, path = open_run(run)
    assert config_at(path, run, load(run / "config.yaml")) == config  # it says nothing more
    truncation = 0.5 if "eval.truncation=0.5" in overrides else None  # which may change
    assert config == dataclasses.replace(trained, eval=dataclasses.replace(trained.eval, truncation=truncation))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"gantrain: note: {run / 'config.yaml'} was edited: {words}") and line.endswith(NOTE)


MAY_CHANGE = ["total_kimg=9", "eval.batchnorm=copy", "checkpoint.every_kimg=1", "guard.max_rollbacks=7", "data.workers=0"]


ADDED = ["averagers.late.start_kimg=0.5", "averagers.more={name: swa, start_kimg: 9}"]


@pytest.mark.parametrize("overrides", slow_but([MAY_CHANGE], [MAY_CHANGE, ADDED]))
def test_what_may_change_is_read_from_the_file_without_a_word(overrides, run, capfd):
    """An average that has not begun may change, too, as in training."""
    edit(run, *overrides)
    assert open_run(run)[0] == load(run / "config.yaml") and capfd.readouterr().err == ""


def test_a_checkpoint_of_an_earlier_version_is_read_as_before(run, capfd):
    found = checkpoint.read(run / "checkpoints" / f"{320:012d}")
    del found.state["config"]
    checkpoint.write(run / "checkpoints" / f"{320:012d}", found.nimg, found.tensors, found.state)
    edit(run, "seed=7")
    assert open_run(run)[0].seed == 7 and capfd.readouterr().err == ""


def test_images_are_those_of_the_networks_that_were_trained(run, capfd):
    """Any `bn_eps` fits the weights."""
    z, y = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    before = load_generator(run)(z, y)
    edit(run, "model.bn_eps=0.5", "seed=3")
    assert torch.equal(load_generator(run)(z, y), before)
    assert "model.bn_eps (1e-05 there, 0.5 now)" in capfd.readouterr().err
    assert Choice(run).open().config.model.bn_eps == 1e-5


@pytest.mark.slow
def test_every_reader_reads_what_was_trained_and_what_is_overridden(run, capfd):
    edit(run, "model.bn_eps=0.5", "mixed_precision=bf16", "data.flip=true")
    path = run / "checkpoints" / f"{320:012d}"
    scorers = RunScorer(run), RunScorer(run, path=path), RunScorer(run, overrides=["eval.truncation=0.5"])
    assert all(one.config.model.bn_eps == 1e-5 and not one.config.data.flip for one in scorers)
    assert scorers[2].config.eval.truncation == 0.5
    assert RunScorer(run, overrides=["data.flip=true"]).config.data.flip
    bench = Bench(run, "live", None, [])
    assert bench.config.mixed_precision == "fp32" and bench.config.model.bn_eps == 1e-5
    assert Bench(run, "live", None, ["mixed_precision=bf16"]).config.mixed_precision == "bf16"
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) and all("was edited: " in line for line in lines)
    assert "mixed_precision" in lines[0] and "mixed_precision" not in lines[-1]  # which was overridden


def test_an_override_stays_where_its_section_was_exchanged(run):
    """The data set of another name is read as it was trained, but not without what is asked for now."""
    edit(run, "data={name: folder, root: x, resolution: 16}")
    data = open_held(run, overrides=["data.keep_in=disk", "eval.num_samples=99"])[0].data
    assert (data.keep_in, type(data).__name__) == ("disk", "Digits")
    with pytest.raises(UserError, match=r"was edited: data.name .digits there, folder now.*data\.root.*; restore these values"):
        open_held(run, overrides=["data.root=elsewhere"])


def test_a_fork_says_nothing_of_reading_what_was_trained(run, capfd):
    """It takes the edited values, and lists them as changes."""
    edit(run, "seed=7")
    assert open_checkpoint(run).folder.name == f"{320:012d}" and capfd.readouterr().err == ""


@pytest.mark.slow
def test_keys_that_do_not_go_together_with_what_was_trained_are_refused(run):
    path = run / "checkpoints" / f"{320:012d}"
    found = checkpoint.read(path)
    found.state |= to_state(load(run / "config.yaml", ["penalties.r1={name: r1}"]))
    checkpoint.write(path, found.nimg, found.tensors, found.state)
    edit(run, "performance.compile=true")
    with pytest.raises(UserError) as caught:
        open_run(run)
    assert "config.yaml was edited: penalties.r1 (r1 there, absent now), and the checkpoint at 0.32 kimg cannot be read" in str(
        caught.value
    )
    assert "performance.compile" in str(caught.value) and str(caught.value).endswith("; restore these values")


def test_another_process_than_the_main_one_says_nothing(run, capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    edit(run, "seed=7")
    assert open_run(run)[0].seed == 0 and capfd.readouterr().err == ""
