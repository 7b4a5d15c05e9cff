"""A run that exists gets another average, other images, or a fork: what is trained stays what it was, and the record says what changed."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, error_of, lines_of, slow_but
from PIL import Image
from sklearn.datasets import load_digits

from gantrain.averaging import Bema, Ema, Lookahead, Power, Swa
from gantrain.averaging.birth import since_birth
from gantrain.commands.fork import call as fork_command
from gantrain.commands.train import refuse_moved
from gantrain.config.config import Config
from gantrain.config.loading import differing_keys, load, set_keys
from gantrain.data import Digits, Folder, ImageSet, likeness, prepare
from gantrain.errors import UserError
from gantrain.evaluation.of_runs import RunScorer
from gantrain.reporting.event_words import on_console, what_happened
from gantrain.run_folder import checkpoint, record
from gantrain.run_folder.change_words import say_changes
from gantrain.run_folder.changes import describe_changes, find_changes, require_late_start, require_passive
from gantrain.run_folder.checkpoint import CheckpointStore
from gantrain.run_folder.forking import average_alike, forked_state, open_origin, require_free, write_fork
from gantrain.run_folder.ownership import compare_with_run, look_into, write_rollback
from gantrain.run_folder.starts import resolve_starts
from gantrain.training.facts import how_images_changed
from gantrain.training.guard import Trouble
from gantrain.training.inputs import Inputs, require_shape
from gantrain.training.trainer import Trainer

DIGITS = ROOT / "configs" / "digits.yaml"
SETTINGS = [
    *TINY,
    "total_kimg=0.96",
    "tracking.wandb.mode=disabled",
    "orbit.every_kimg=null",
    "averagers.swa={name: swa, start_kimg: 0.03}",
]
UPDATE = 16  # images
AT = 8 * UPDATE  # images seen at the checkpoint


@contextlib.contextmanager
def begun(config: Path | str, *overrides: object, updates: int = 0, **options) -> Iterator[Trainer]:
    """A trainer that has started and made some updates; closed in any case."""
    trainer = Trainer(load(config, list(map(str, overrides))), **options)
    try:
        trainer.start()
        for _ in range(updates):
            trainer.update()
        yield trainer
    finally:
        trainer.close()


def copies(tensors: dict) -> dict[str, torch.Tensor]:
    return {f"{group}/{name}": tensor.clone() for group, named in tensors.items() for name, tensor in named.items()}


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that training depends on: weights, buffers and optimizers."""
    return {name: t for name, t in copies(trainer.players.tensors()).items() if not name.startswith(("average", "slots"))}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run with checkpoints after four and after eight updates."""
    run = tmp_path_factory.mktemp("forks") / "run"
    with begun(DIGITS, *SETTINGS, f"run_dir={run}") as trainer:
        for _ in range(2):
            for _ in range(4):
                trainer.update()
            trainer.saving.save()
        trainer.keeper.collect(trainer.run.nimg, wait=True)
    return run


@pytest.fixture(scope="module")
def straight(saved, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Everything four updates later, of the run itself."""
    run = tmp_path_factory.mktemp("straight") / "run"
    shutil.copytree(saved, run)
    with begun(run / "config.yaml", f"run_dir={run}", updates=4) as trainer:
        return copies(trainer.players.tensors())


@pytest.fixture
def run(saved, tmp_path) -> Path:
    """A copy of the run, in its own place."""
    shutil.copytree(saved, tmp_path / "run")
    with open(tmp_path / "run" / "config.yaml", "a") as file:
        file.write("")
    text = (tmp_path / "run" / "config.yaml").read_text().replace(str(saved), str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text(text)
    return tmp_path / "run"


# ---- another configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "now", "words"),
    [
        ([], ["optim.lr_g=1e-5", "sync_batchnorm=true"], "optim.lr_g (0.0004 there, 1e-05 now), sync_batchnorm (false there, true now)"),
        (["averagers.late.name=swa"], ["seed=3"], "seed (0 there, 3 now), averagers.late (swa there, absent now)"),
        ([], ["data={name: folder, root: x, resolution: 16}"], "data.name (digits there, folder now)"),
        ([], ["loss.name=relativistic", "eval.features.name=inception"], "loss.name (hinge there, relativistic now)"),
        ([], ["eval.metrics=[fid,is]"], ""),
    ],
)
def test_another_configuration_is_described_key_by_key_as_yaml_spells_it(there, now, words):
    """A plug-in that has come, gone or been replaced is one entry."""
    old, new = load(DIGITS, there), load(DIGITS, now)
    assert describe_changes(find_changes(old, new, list(old.averagers)).refused) == words


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"augment": (None, "absent"), "augment.name": ("absent", "a"), "augment.p": ("absent", 1.0)}, "augment (null there, a now)"),
        ({"x.name": ("a", "b"), "x.p": (1, "absent"), "x.q": (1, 2)}, "x.name (a there, b now), x.q (1 there, 2 now)"),
        ({"a": ("", "yes"), "b": ("a b", [1, None])}, "a ('' there, 'yes' now), b ('a b' there, [1, null] now)"),
        ({f"k{i}": (i, {"a": True}) for i in range(9)}, "k7 (7 there, {a: true} now) and 1 more"),
    ],
)
def test_values_are_spelled_as_in_a_configuration(values, words):
    assert describe_changes(values).endswith(words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "folder"}, "; data.root, too, must be set"),
        ({"name": "archive", "root": "gone.zip"}, "; data.root, too, needs a value: gone.zip does not exist"),
        ({"name": "folder", "root": "/"}, "by `gantrain fork`"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_a_missing_root_is_named_too(run, data, words):
    given = [f"data={json.dumps(data)}", *[one for one in SETTINGS if not one.startswith("data")], f"run_dir={run}"]
    with pytest.raises(UserError, match="contains a run of another configuration: data.name .digits there, ") as caught:
        look_into(run, load(DIGITS, given))
    assert str(caught.value).endswith(words)


# ---- an average more -------------------------------------------------------------------------------------------------

ADDED = [
    "averagers.late={name: swa, start_kimg: 0.1, every_kimg: 0.032, networks: gd}",
    "averagers.short={name: ema, half_life_kimg: 0.016, ramp_up: null}",
    "averagers.bema={name: bema, every_kimg: 0.016, step_kimg: 0.016}",
]


@pytest.mark.slow
def test_an_added_average_begins_here_and_touches_nothing_that_is_trained(run, straight):
    with begun(run / "config.yaml", *ADDED) as trainer:
        names = [n for n, _ in trainer.players.G.network.named_parameters()]
        live = [trained(trainer)]
        assert all(torch.equal(trainer.players.bank["short"].shadows[n], live[0][f"g/{n}"]) for n in names)
        for _ in range(4):
            trainer.update()
            live.append(trained(trainer))
        assert same(live[-1], {name: t for name, t in straight.items() if not name.startswith(("average", "slots"))})
        kept = copies({k: v for k, v in trainer.players.tensors().items() if k.rpartition(".")[2] in ("ema", "ema_short", "swa")})
        assert same(kept, {name: t for name, t in straight.items() if name.startswith(("average", "slots"))})
        for name in names:
            at = [one[f"g/{name}"].double() for one in live]
            # Collected every 32 images from the moment it was added, not from start_kimg, which is past.
            assert torch.allclose(trainer.players.bank["late"].shadows[name].double(), (at[2] + at[4]) / 2, atol=1e-6)
            ema = at[0]
            for one in at[1:]:
                ema = ema / 2 + one / 2  # a half-life is one update
            assert torch.allclose(trainer.players.bank["short"].shadows[name].double(), ema, atol=1e-6)
            ema = at[0]  # Block and Zhang's t counts from theta_0, the weights at which the average begins
            for t, one in enumerate(at[1:], start=1):
                ema = ema + (10 + t) ** -0.5 * (one - ema)
            bema = ema + (10 + 4) ** -0.2 * (at[4] - at[0])
            assert torch.allclose(trainer.players.bank["bema"].shadows[name].double(), bema, atol=1e-5)
        d = next(n for n, _ in trainer.players.D.network.named_parameters())
        wanted = (live[2][f"d/{d}"] + live[4][f"d/{d}"]) / 2
        assert torch.allclose(trainer.players.banks["d"]["late"].shadows[d], wanted, atol=1e-6)
        trainer.saving.save()
        trainer.keeper.collect(trainer.run.nimg, wait=True)
        everything = copies(trainer.players.tensors())
    events = [line for line in lines_of(run) if line.get("event") == "average_added"]
    assert [(line["average"], line["nimg"]) for line in events] == [("late", AT), ("short", AT), ("bema", AT)]
    assert what_happened(events[1]) == "average short added: ema with networks g, half_life_kimg 0.016"
    assert events[0]["settings"]["start_kimg"] == 0.128
    assert on_console(events[0]).endswith("; it begins at 0.128 kimg with the weights of that moment")
    # The same command resumes it, and it continues.
    with begun(run / "config.yaml") as trainer:
        assert list(trainer.config.averagers)[-3:] == ["late", "short", "bema"] and trainer.players.added == []
        assert same(copies(trainer.players.tensors()), everything)
        assert trainer.players.bank["bema"].averager == since_birth(trainer.config.averagers["bema"], AT)


def test_the_start_of_an_average_is_not_before_its_birth():
    assert since_birth(Swa(start_kimg=100), 200_064) == Swa(start_kimg=200.064)
    for rule in (Swa(start_kimg=300), Swa(start_kimg=200.064), Ema(), Lookahead()):
        assert since_birth(rule, 200_064) is rule
    assert since_birth(Bema(), 0) == Bema()  # those of a run from its first image are what they were


BASE = load(DIGITS, SETTINGS)


def changes(*overrides: str, begun=("ema", "ema_short", "swa"), base=BASE):
    return find_changes(base, load(DIGITS, [*SETTINGS, *overrides]), begun)


def test_which_averages_may_change():
    found = changes("averagers.late={name: swa}", "total_kimg=3")
    assert found.added == ("late",) and found.refused == {} and found.allowed["averagers.late.name"] == ("absent", "swa")
    assert list(changes("averagers.ema.half_life_kimg=3").refused) == ["averagers.ema.half_life_kimg"]
    assert changes("averagers.swa=null").removed == ("swa",)
    # Added in a configuration, and stopped before its first checkpoint: it has no past that could be lost.
    base = load(DIGITS, [*SETTINGS, "averagers.late={name: swa}"])
    assert changes("averagers.late={name: swa}", base=base).added == ()
    assert changes("averagers.late={name: ema}", base=base).added == ("late",)
    assert changes(base=base).refused == {} and changes("averagers.late={name: ema}", base=base).refused == {}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["averagers.new={name: lookahead}"], "averagers.new: replaces the live weights, so adding it would change the training"),
        (
            ["averagers.new={name: ema}", "swap={source: ema, growth: auto}", "batching={name: on_swap, max_batch: 64}"],
            "averagers.new: is an ema, and swap.growth=auto reads the growth of the batch from all of them, so .* `gantrain fork RUN",
        ),
        (
            ["averagers.new={name: power}"],
            "averagers.new: the weights of a power average count from the first image, so it cannot begin at 8",
        ),
    ],
    ids=["lookahead", "ema that a swap reads", "power"],
)
def test_averages_that_cannot_be_added(overrides, words):
    config = load(DIGITS, [*SETTINGS, *overrides])
    with pytest.raises(UserError, match=words):
        require_passive(config, ["new"])
        require_late_start(config, ["new"], 8000)
    require_late_start(config, ["new"], 0)


# ---- when an added average begins ------------------------------------------------------------------------------------


def resolved(config: Path | str, *overrides: str) -> Config:
    """The configuration that `gantrain train` resumes a run with."""
    return resolve_starts(load(config, overrides), set_keys(config, overrides))


@pytest.mark.parametrize("rule, default", slow_but([("swa", 100)], [("swa", 100), ("lawa", 0), ("bema", 0), ("ema_steps", 0)]))
def test_an_added_average_begins_at_once_unless_its_start_is_set(run, rule, default):
    command = [*SETTINGS, f"run_dir={run}"]
    assert resolved(DIGITS, *SETTINGS, f"run_dir={run}-new", f"averagers.late.name={rule}").averagers["late"].start_kimg == default
    found = resolved(DIGITS, *command, f"averagers.late.name={rule}")
    assert found.averagers["late"].start_kimg == AT / 1000 and found.averagers["swa"].start_kimg == 0.03
    assert resolved(DIGITS, *command, f"averagers.late.name={rule}", "averagers.late.start_kimg=0.5").averagers["late"].start_kimg == 0.5
    assert resolved(run / "config.yaml", f"averagers.late={{name: {rule}, start_kimg: 0}}").averagers["late"].start_kimg == 0


@pytest.mark.slow
def test_the_command_that_added_an_average_resumes_the_run(run):
    command = [*SETTINGS, f"run_dir={run}", "averagers.late={name: swa, every_kimg: 0.016}"]
    with contextlib.closing(Trainer(resolved(DIGITS, *command))) as trainer:
        trainer.start()
        trainer.update()
        assert trainer.players.bank["late"].started
        trainer.saving.save()
        trainer.keeper.collect(trainer.run.nimg, wait=True)
    again = resolved(DIGITS, *command)
    assert again.averagers["late"].start_kimg == AT / 1000 == load(run / "config.yaml").averagers["late"].start_kimg
    look_into(run, again)
    with pytest.raises(UserError, match=r"averagers.late.start_kimg \(0.128 there, 0.5 now\)"):
        look_into(run, resolved(DIGITS, *command, "averagers.late.start_kimg=0.5"))


@pytest.mark.parametrize("total", slow_but([0.128], [0.1, 0.128]))
@pytest.mark.parametrize("rule", ["{name: swa, start_kimg: 0}", "{name: ema}"])
def test_an_average_added_to_a_finished_run_is_refused(saved, rule, total):
    config = load(saved / "config.yaml", [f"averagers.l2={rule}", f"total_kimg={total}"])
    words = (
        f"averagers.l2: the run is at 0.128 kimg and total_kimg={total}: nothing is left to train, so the average would stay empty; raise"
    )
    with pytest.raises(UserError, match=words):
        look_into(saved, config)
    look_into(saved, load(saved / "config.yaml", [f"total_kimg={total}"]))  # without it, there is nothing to refuse
    look_into(saved, load(saved / "config.yaml", [f"averagers.l2={rule}", "total_kimg=0.2"]))


def test_a_fork_says_when_its_averages_begin(run, capsys, tmp_path):
    out = tmp_path / "fork"
    overrides = [
        "averagers.late.name=swa", "averagers.later={name: swa, start_kimg: 0.5}", "averagers.never={name: lawa, start_kimg: 7}",
        "averagers.ema=null",
    ]  # fmt: skip
    fork_command(argparse.Namespace(run=str(run), out=str(out), kimg=None, overrides=overrides))
    assert (
        "averages: ema_short, swa continue; late begins here with the live weights; later begins at 0.5 kimg with the weights of that"
        " moment; never never begins: start_kimg=7 is not before total_kimg=0.96; ema is dropped\n"
    ) in capsys.readouterr().out
    assert load(out / "config.yaml").averagers["late"].start_kimg == AT / 1000


@pytest.mark.slow
def test_a_resume_that_would_lose_an_average_is_refused(run):
    words = "has the average swa, which this configuration lacks, and its past would be lost; add averagers.swa as in .*config.yaml, or"
    with pytest.raises(UserError, match=words):
        look_into(run, load(run / "config.yaml", ["averagers.swa=null"]))
    with pytest.raises(UserError, match=r"of another configuration: optim.lr_g .*; restore these values, use another run_dir, or continue"):
        look_into(run, load(run / "config.yaml", ["averagers.swa=null", "optim.lr_g=1"]))
    with pytest.raises(UserError, match="cannot begin at 0.128 kimg"):
        look_into(run, load(run / "config.yaml", ["averagers.p={name: power}"]))


# ---- a fork ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fork_without_changes_is_the_run_itself(run, straight, gantrain, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = gantrain("fork", run, "--out", tmp_path / "a b")
    assert done.stdout.splitlines() == [
        f"{tmp_path}/a b: forked from {run} at 0.128 kimg",
        "averages: ema, ema_short, swa continue",
        f"train it: gantrain train '{tmp_path}/a b/config.yaml'",
    ]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fork = tmp_path / "a b"
    assert sorted(path.name for path in fork.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b", "run"]
    event = lines_of(fork)[0]
    seal = json.loads((run / "checkpoints" / f"{AT:012d}" / "manifest.json").read_text())["seal"]
    assert (event["event"], event["from"], event["nimg"], event["seal"], event["changed"]) == ("fork", str(run), AT, seal, {})
    assert record.outline(fork).status == "forked" and record.outline(fork).nimg == AT
    with begun(fork / "config.yaml", updates=4) as trainer:
        assert same(copies(trainer.players.tensors()), straight)
    assert [line["event"] for line in lines_of(fork)] == ["fork", "resume"]


@pytest.mark.slow
def test_a_fork_with_changes_goes_its_own_way_and_can_be_forked_again(run, straight, gantrain, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    settings = [
        "optim.lr_g=1e-3", "batching={batch_size: 32, micro_batch: 16}", "averagers.swa=null", "averagers.ema.half_life_kimg=3",
        "averagers.late.name=swa", "averagers.look.name=lookahead", "seed=3", "penalties.r1={name: r1, gamma: 0.1}",
        "loss.name=relativistic",
    ]  # fmt: skip
    done = gantrain("fork", run, "--kimg", 0.064, "--out", one, *settings)
    assert f"forked from {run} at 0.064 kimg: seed 0 -> 3; " in done.stdout and "optim.lr_g 0.0004 -> 0.001" in done.stdout
    assert "averages: ema_short continues; ema, late, look begin here with the live weights; swa is dropped" in done.stdout
    assert "batch: the policy begins anew with 32 images (the checkpoint has 16)" in done.stdout
    at = checkpoint.read(one / "checkpoints" / f"{64:012d}")
    there = checkpoint.read(run / "checkpoints" / f"{64:012d}")
    assert list(at.state["averages"]) == ["ema_short"] and sorted(at.tensors) == [
        "average.ema_short",
        "d",
        "g",
        "optimizer_d",
        "optimizer_g",
    ]
    assert all(torch.equal(tensor, there.tensors["g"][name]) for name, tensor in at.tensors["g"].items())
    with begun(one / "config.yaml", updates=2) as trainer:
        assert trainer.run.nimg == 64 + 2 * 32 and trainer.batching.rounds == 2 and trainer.players.rates["g"] == 1e-3
        assert trainer.players.added == ["ema", "late", "look"] and not same(trained(trainer), {k: straight[k] for k in trained(trainer)})
        trainer.saving.save()
        trainer.keeper.collect(trainer.run.nimg, wait=True)
        last = copies(trainer.players.tensors())
    gantrain("fork", one, "--out", other, "total_kimg=2")
    with begun(other / "config.yaml") as trainer:
        assert same(copies(trainer.players.tensors()), last)
    assert lines_of(other)[0]["from"] == str(one) and lines_of(other)[0]["changed"] == {"total_kimg": [0.96, 2.0]}


FORK_REFUSALS = [
    (["model.ch=4"], "model.ch: is 2 in the checkpoint and 4 in the fork, but its networks cannot change; set model.ch=2 for the fork, or"),
    (["data.resolution=32"], "data.resolution: is 16 in the checkpoint and 32 in the fork"),
    (["data.labels=false"], "data.labels: is true in the checkpoint and false in the fork"),
    (["total_kimg=0.1"], "total_kimg: must be above 0.128, the time of the checkpoint, or nothing is left to train, got 0.1"),
    (["averagers.p={name: power}"], "averagers.p: the weights of a power average count from the first image"),
    (["run_dir=x"], r"run_dir: is the folder of the fork, .*new \(--out\); remove it"),
    (["--kimg", "7"], "has no checkpoint at 7 kimg; it has 0.064, 0.128"),
    (["optim.lr=1"], "optim.lr=1: no such key; did you mean optim.lr_g or optim.lr_d?"),
]


@pytest.mark.parametrize("arguments, words", slow_but(FORK_REFUSALS[:1], FORK_REFUSALS), ids=[" ".join(o) for o, _ in FORK_REFUSALS])
def test_a_fork_that_cannot_be_is_one_line_and_leaves_nothing(saved, gantrain, tmp_path, arguments, words):
    line = error_of(gantrain("fork", saved, "--out", tmp_path / "new", *arguments, check=False))
    assert re.search(words, line), line
    assert list(tmp_path.iterdir()) == []


def test_a_fork_of_a_finished_run_asks_for_a_larger_total(run, capsys, tmp_path):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("total_kimg: 0.96", "total_kimg: 0.12"))  # it ends with the batch that passes it
    arguments = argparse.Namespace(run=str(run), out=str(tmp_path / "fork"), kimg=None, overrides=["optim.lr_g=1e-4"])
    words = (
        rf"^total_kimg: 0.12 is taken over from {run}, and the checkpoint is at 0.128 kimg, so nothing is left to train;"
        r" add total_kimg=NUMBER above 0.128, or fork from an earlier checkpoint \(--kimg\)$"
    )
    with pytest.raises(UserError, match=words):
        fork_command(arguments)
    arguments.overrides.append("total_kimg=0.125")
    with pytest.raises(UserError, match=r"^total_kimg: must be above 0.128, the time of the checkpoint, .*, got 0.125$"):
        fork_command(arguments)
    assert not (tmp_path / "fork").exists()
    arguments.overrides[-1] = "total_kimg=0.2"
    fork_command(arguments)
    assert load(tmp_path / "fork" / "config.yaml").total_kimg == 0.2


def test_a_fork_does_not_lie_in_a_run(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    for folder in (saved / "new", saved / "checkpoints" / "new", saved / "a" / "b", tmp_path / "link" / "new", saved / "new" / ".." / "x"):
        with pytest.raises(UserError, match=f"--out: .* is inside the run folder {saved.resolve()}; use a folder outside it"):
            require_free(folder)
    require_free(saved.parent / "new")
    require_free(tmp_path / "new" / "deeper")


def test_an_average_that_moves_to_main_memory_keeps_its_past(saved, tmp_path):
    origin, old = open_origin(saved), load(saved / "config.yaml")
    moved = ["averagers.ema.offload=true", "averagers.ema_short={offload: true, half_life_kimg: 7}", f"run_dir={tmp_path / 'fork'}"]
    fork = write_fork(origin, old, load(saved / "config.yaml", moved), tmp_path / "fork")
    assert fork.event["averages"] == {"kept": ["ema", "swa"], "begin": ["ema_short"], "dropped": []}
    with begun(tmp_path / "fork" / "config.yaml") as trainer:
        shadows = trainer.players.bank["ema"].shadows
        assert all(torch.equal(tensor, shadows[name]) for name, tensor in origin.snapshot.tensors["average.ema"].items())
    assert not average_alike(Swa(), Ema()) and not average_alike(Swa(), Swa(networks="gd")) and average_alike(Swa(), Swa(offload=True))


CHANGES = [
    # overrides, the words of a fork, those of a resume that is refused
    (["penalties.r1={name: r1, gamma: 2}"], "penalties.r1 added: r1 with gamma 2.0, ", "penalties.r1 (absent there, r1 now)"),
    (
        ["averagers.ema=null", "averagers.new={name: ema, half_life_kimg: 1}"],
        "averagers.ema removed; averagers.new added: ema with networks g, half_life_kimg 1.0, ramp_up 0.05",
        "averagers.ema (ema there, absent now), averagers.new (absent there, ema now)",
    ),
    (["averagers.ema.half_life_kimg=2", "seed=1"], "seed 0 -> 1; averagers.ema.half_life_kimg 3.0 -> 2.0", "(3.0 there, 2.0 now)"),
    (["averagers.ema.ramp_up=0.1"], "averagers.ema.ramp_up null -> 0.1", "averagers.ema.ramp_up (null there, 0.1 now)"),
    (["averagers.ema={name: swa, start_kimg: 7}"], "averagers.ema.name ema -> swa with start_kimg 7.0", "ema.name (ema there, swa now)"),
    (["data.flip=true"], "data.flip false -> true", "data.flip (false there, true now)"),
    (["tracking.wandb.name=b"], "tracking.wandb.name null -> b", "tracking.wandb.name (null there, b now)"),
    ([f"averagers.a{i}.name=ema" for i in range(10)], "a7 added: ema with networks g, half_life_kimg 10.0, ramp_up 0.05 and 2 more", ""),
]  # fmt: skip


@pytest.mark.parametrize("overrides, words, refused", CHANGES, ids=[" ".join(o)[:40] for o, _, _ in CHANGES])
def test_changes_are_told_by_whole_entries(overrides, words, refused, tmp_path):
    there = tmp_path / "a.yaml"
    there.write_text("averagers: {ema: {name: ema, half_life_kimg: 3, ramp_up: null}}\n")
    changed = differing_keys(load(there), load(there, overrides))
    line = json.loads(json.dumps({"event": "fork", "nimg": 128, "from": "runs/a", "changed": changed}))
    told = what_happened(line)
    assert told.startswith("forked from runs/a at 0.128 kimg: ") and words in told, told
    assert "absent" not in told and "None" not in told and "{}" not in told and told.count(";") <= 7
    assert refused in describe_changes(changed), describe_changes(changed)
    back = {key: (new, old) for key, (old, new) in changed.items()}
    assert "None" not in say_changes(back) and "absent" not in say_changes(back), say_changes(back)


@pytest.mark.slow
def test_a_folder_that_is_taken_or_no_run_is_refused(saved, gantrain, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("kept")
    line = error_of(gantrain("fork", saved, "--out", tmp_path / "new", check=False))
    assert f"--out: {tmp_path / 'new'} already exists and is not empty; use another folder" in line
    line = error_of(gantrain("fork", tmp_path, "--out", tmp_path / "x", check=False))
    assert "is not a run folder (it has no config.yaml)" in line


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["link_snapshots", "write_config", "sync"])
def test_a_fork_that_is_killed_leaves_nothing_that_looks_like_a_run(saved, gantrain, tmp_path, monkeypatch, stage):
    """At any stage; the same command then succeeds."""
    from gantrain.run_folder import forking

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forking, stage, die)
        assert gantrain("fork", saved, "--out", tmp_path / "new", check=False).returncode == 130
    assert not (tmp_path / "new").exists() and "contains no runs" in error_of(gantrain("runs", tmp_path, check=False))
    (tmp_path / "new").mkdir()  # an empty folder may be there
    gantrain("fork", saved, "--out", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_checkpoint_that_vanishes_while_it_is_read_is_read_to_its_end(run, monkeypatch):
    """Its files are open by then."""
    read, paths = checkpoint.read, []

    def vanishing(path, groups=None):
        paths.append(path.name)
        if len(paths) == 1:
            shutil.rmtree(path)
        return read(path, groups)

    monkeypatch.setattr(checkpoint, "read", vanishing)
    assert open_origin(run).snapshot.nimg == AT and paths == [f"{AT:012d}"]
    assert open_origin(run).snapshot.nimg == 64


def test_a_fork_takes_what_a_rollback_has_changed(run):
    """Counts are in a file of their own until the next checkpoint; a checkpoint of the path that was left is passed over."""
    guard = {"lr_scale": 0.5, "growth": 1.0, "skipped": 48, "rollbacks": 1, "attempts": 1, "obstacle": 176, "best": []}
    body = {"to": AT, "guard": guard, "batching": {"batch_size": 7}, "metrics_bytes": 0}
    write_rollback(run, body)
    state = open_origin(run).snapshot.state
    assert (state["guard"]["lr_scale"], state["guard"]["skipped"], state["batching"]) == (0.5, 48, {"batch_size": 7})
    assert open_origin(run, 0.064).snapshot.state["guard"]["lr_scale"] == 1.0
    write_rollback(run, {**body, "to": 64})
    origin = open_origin(run)
    assert origin.snapshot.nimg == 64 and origin.snapshot.state["guard"]["skipped"] == 48


@pytest.mark.slow
def test_a_rollback_to_before_an_average_was_added_lets_it_begin_again(run):
    with begun(run / "config.yaml", *ADDED, updates=3) as trainer:
        trainer.recovery.recover(Trouble("nonfinite", trainer.run.nimg, AT, "nan", {}))
        assert trainer.run.nimg == AT and trainer.players.added == ["late", "short", "bema"]
        bank = trainer.players.bank
        assert all(bank[name].first_nimg == AT and not bank[name].started for name in trainer.players.added)
        live = dict(trainer.players.G.network.named_parameters())
        assert all(torch.equal(bank["bema"].shadows[name], tensor) for name, tensor in live.items())
        trainer.update()
        assert bank["short"].started
    assert [line["average"] for line in record.read(run).events("average_added")] == ["late", "short", "bema"]


@pytest.mark.slow
def test_an_average_and_a_fork_by_the_whole_commands(gantrain, tmp_path):
    """Scores and the report have the average from its beginning on, and the fork has its own record."""
    run, fork = tmp_path / "run", tmp_path / "fork"
    tiny = [*TINY, f"run_dir={run}", "tracking.wandb.mode=disabled"]
    gantrain("train", DIGITS, *tiny, "total_kimg=0.16")
    done = gantrain("train", DIGITS, *tiny, "averagers.late={name: swa, every_kimg: 0.016}")
    assert "average late added: swa with networks g, start_kimg 0.16, every_kimg 0.016; it begins at 0.16" in done.stdout
    of = lambda line: {key.split("/")[1] for key in line if key.startswith("eval/") and key.count("/") == 2}  # noqa: E731
    assert [line["nimg"] for line in lines_of(run) if "late" in of(line)] == [320]
    line = error_of(gantrain("train", DIGITS, *tiny, "total_kimg=0.4", check=False))
    assert "has the average late, which this configuration lacks" in line and f"gantrain fork {run} --out NEW averagers.late=null" in line
    gantrain("fork", run, "--out", fork, "--kimg", 0.24, "averagers.late=null", "optim.lr_d=1e-3", "eval.every_kimg=0.08")
    assert "forked" in gantrain("runs", tmp_path).stdout
    gantrain("train", fork / "config.yaml")
    assert gantrain("evaluate", fork, "--average", "ema", "--num", 64).stdout.count("\n") >= 2
    gantrain("report", run, "--out", tmp_path / "run.html")
    page = gantrain("report", fork, "--out", tmp_path / "fork.html") and html.unescape((tmp_path / "fork.html").read_text())
    assert f"forked from {run} at 0.24 kimg: optim.lr_d 0.0004 -> 0.001" in page and "Fork" in page
    assert "Added averages" in (tmp_path / "run.html").read_text()
    assert f"forked from {run} at 0.24 kimg" in gantrain("watch", fork, "--last", 100).stdout
    rows = {Path(row["run"]).name: row for row in map(json.loads, gantrain("runs", tmp_path, "--json").stdout.splitlines())}
    assert rows["fork"]["forked_from"] == str(run) and "forked_from" not in rows["run"] and rows["fork"]["status"] == "done"


# ---- a run that was moved --------------------------------------------------------------------------------------------


def test_the_configuration_of_a_moved_run_does_not_start_anew(saved, run, tmp_path, monkeypatch):
    moved = run.rename(tmp_path / "backup")
    monkeypatch.chdir(tmp_path)
    words = rf"backup/config.yaml: lies beside the checkpoints of a run, but its run_dir is {tmp_path}/run; add run_dir=backup to resume"
    with pytest.raises(UserError, match=words):
        refuse_moved(Path("backup/config.yaml"), str(tmp_path / "run"), ["seed=0"])
    refuse_moved(Path("backup/config.yaml"), "elsewhere", ["run_dir=elsewhere"])  # the user has chosen
    for run_dir in ("backup", str(moved), "./backup/../backup"):
        refuse_moved(Path("backup/config.yaml"), run_dir, [])
    (tmp_path / "link").symlink_to(moved)
    refuse_moved(Path("link/config.yaml"), str(moved), [])
    monkeypatch.chdir(moved)
    with pytest.raises(UserError, match=f"config.yaml: lies beside .* add run_dir={moved} to resume"):
        refuse_moved(Path("config.yaml"), "runs/a", [])
    refuse_moved(Path("config.yaml"), "../backup", [])
    shutil.rmtree(moved / "checkpoints")
    refuse_moved(Path("config.yaml"), "runs/a", [])  # nothing is lost


@pytest.mark.slow
def test_the_command_refuses_it(run, gantrain, tmp_path):
    run.rename(tmp_path / "backup")
    line = error_of(gantrain("train", tmp_path / "backup" / "config.yaml", check=False))
    assert f"add run_dir={tmp_path / 'backup'} to resume the run that lies here, or run_dir={run} to train in that folder" in line
    assert not run.exists()


# ---- other images ----------------------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def draw(root: Path, seed: int, count: int = 4) -> Path:
    """Two classes of small pictures of noise."""
    dice = np.random.default_rng(seed)
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(dice.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def inputs_of(source, changed_data: bool = False, skip: bool = False, state: dict | None = None) -> Inputs:
    """The inputs of a run on a data set; only what knows the images is there."""
    if isinstance(source, Path):
        source = Folder(root=str(source), resolution=8, on_error="skip" if skip else "stop")
    context = SimpleNamespace(run_dir=Path("runs/x"), changed_data=changed_data, config=None)
    return Inputs(context, None, prepare(source, CPU, run_state=state), None, None, None)


def resume(inputs: Inputs, state: dict, rolls_back: bool = False) -> Inputs:
    shape = [8, 3, 2]
    inputs.load(checkpoint.Snapshot(0, {}, {"shape": shape, **json.loads(json.dumps(state))}), rolls_back)
    return inputs


def test_other_contents_under_the_same_names_are_refused_unless_told(tmp_path):
    state = inputs_of(draw(tmp_path / "a", 0)).state()
    shutil.copytree(tmp_path / "a", tmp_path / "moved")  # with other times, and under another path
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path, (1, 1))
    assert not resume(inputs_of(tmp_path / "moved"), state).changed
    shutil.copy(tmp_path / "a" / "cats" / "0.png", tmp_path / "moved" / "dogs" / "2.png")  # a single picture is another one
    words = r"moved is not what runs/x was trained on \(other contents under the same names\); restore the original .*; --changed-data"
    with pytest.raises(UserError, match=words):
        resume(inputs_of(tmp_path / "moved"), state)
    assert resume(inputs_of(tmp_path / "moved", changed_data=True), state).changed
    assert not resume(inputs_of(tmp_path / "moved"), state, rolls_back=True).changed  # it was accepted at the start
    old = {key: value for key, value in state.items() if key not in ("data_content", "data_parts")}  # of an earlier version
    assert not resume(inputs_of(tmp_path / "moved"), old).changed
    fork = {**state, "data_listing": None, "data_content": None}  # with other settings of the data
    assert resume(inputs_of(tmp_path / "moved"), fork).changed and not resume(inputs_of(tmp_path / "a"), fork).changed
    (tmp_path / "moved" / "cats" / "new.png").write_bytes((tmp_path / "a" / "cats" / "1.png").read_bytes())
    with pytest.raises(UserError, match="other images or labels"):
        resume(inputs_of(tmp_path / "moved"), state)
    assert resume(inputs_of(tmp_path / "moved", changed_data=True), state).changed
    draw(tmp_path / "moved" / "birds", 1)
    with pytest.raises(UserError, match="data: folder/moved has 3 classes, and the networks of this run were trained with 2 classes; use"):
        resume(inputs_of(tmp_path / "moved", changed_data=True), state)


FOLDER_KEYS = {"workers": 0, "keep_in": "disk", "on_error": "skip", "flip": True, "filter": "box", "root": "{other}"}


@pytest.mark.parametrize("key", FOLDER_KEYS)
def test_a_fork_checks_its_images_unless_other_ones_are_meant(tmp_path, key):
    """Whether a key changes the images is seen from the images themselves; only then does a fork take what it finds."""
    draw(tmp_path / "b", 1)
    here = [f"run_dir={tmp_path}", "data.name=folder", f"data.root={draw(tmp_path / 'a', 0)}", "data.resolution=8"]
    value = str(FOLDER_KEYS[key]).replace("{other}", str(tmp_path / "b"))
    old, new = (load(DIGITS, [*here, *more]) for more in ([], [f"data.{key}={value}"]))
    before, after = (prepare(config.data, CPU) for config in (old, new))
    state = {"guard": {}, "averages": {}, "averages_d": {}, "data_listing": before.listing, "data_content": before.fingerprint}
    forked = forked_state(state, old, new, AT, {"g": [], "d": []})
    assert (forked["data_listing"] is None) == (before.fingerprint != after.fingerprint), key
    words = how_images_changed(after, forked["data_listing"], Path("000000000128"))
    if forked["data_listing"] is None:
        assert re.search("^this fork trains on other images than its origin: folder/[ab], as its configuration says$", words), words
    else:
        assert words.startswith("the content of folder/a has changed since 000000000128; its names and labels have not")


@pytest.mark.parametrize(
    "shape, has, wanted",
    [
        ([16, 3, 2], "images of 8 x 8 pixels", "images of 16 x 16 pixels"),
        ([8, 1, 2], "images with 3 channels", "images with 1 channel"),
        ([8, 3, 1], "2 classes", "1 class"),
        ([8, 3, 5], "2 classes", "5 classes"),
    ],
)
def test_images_of_another_shape_are_refused_in_english(shape, has, wanted):
    images = SimpleNamespace(name="folder/a", resolution=8, channels=3, num_classes=2)
    require_shape(images, [8, 3, 2])
    with pytest.raises(UserError) as refusal:
        require_shape(images, shape)
    assert str(refusal.value) == (
        f"data: folder/a has {has}, and the networks of this run were trained with {wanted}; use a data set with {wanted},"
        " or train a new run"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "dogs" / "1.png").unlink(), r"7 images now, 8 then; class 'dogs' has 3 now, 4 then\); restore"),
        (
            lambda root: (root / "dogs" / "1.png").rename(root / "cats" / "9.png"),
            "8 images now, 8 then; class 'cats' has 5 now, 4 .*'dogs' has 3",
        ),
        (lambda root: (root / "dogs").rename(root / "wolves"), "8 then; class 'dogs' has 0 now, 4 then; class 'wolves' has 4 now, 0 then"),
        (
            lambda root: (root / "cats" / "0.png").rename(root / "cats" / "z.png"),
            r"8 images now, 8 then, and as many in each class\); rest",
        ),
        (
            lambda root: [shutil.copytree(root / "cats", root / f"c{i}") for i in range(5)],
            "'c2' has 4 now, 0 then; and 2 more classes differ",
        ),
    ],
)
def test_other_images_are_refused_with_the_class_that_differs(tmp_path, change, words):
    root = draw(tmp_path / "a", 0)
    state = inputs_of(root).state()
    change(root)
    with pytest.raises(UserError, match=r"a is not what runs/x was trained on \(other images or labels: .*" + words):
        resume(inputs_of(root), state)
    with pytest.raises(UserError, match=r"\(other images or labels\); restore"):  # of an earlier version
        resume(inputs_of(root), {**state, "class_counts": None})


def test_counts_of_classes_without_names_are_told_by_label():
    before, now = ({"class_names": None, "class_counts": [2, 3]}, ImageSet("x", torch.tensor([0, 0, 0, 1, 1, 1]), ["0", "1"], 1, 16))
    assert likeness.count_difference(now, before) == ": 6 images now, 5 then; class '0' has 3 now, 2 then"
    assert likeness.count_difference(now, {**before, "class_names": ["a", "b"]}) == ": 6 images now, 5 then"


def test_a_file_that_has_become_unreadable_does_not_end_a_run_that_skips_it(tmp_path):
    state = inputs_of(draw(tmp_path / "a", 0), skip=True).state()
    whole = (tmp_path / "a" / "dogs" / "2.png").read_bytes()
    (tmp_path / "a" / "dogs" / "2.png").write_bytes(b"broken")
    broken = resume(inputs_of(tmp_path / "a", skip=True), state).state()
    assert broken["data_content"] is None
    (tmp_path / "a" / "dogs" / "2.png").write_bytes(whole)
    resume(inputs_of(tmp_path / "a", skip=True), broken)


def test_other_pictures_are_refused_although_some_cannot_be_read(tmp_path, monkeypatch):
    """Left out when the run began, broken since, repaired, and broken and then another picture; in parts of one and of five images."""
    for parts in (4096, 4):
        monkeypatch.setattr(likeness, "PARTS", parts)
        root = draw(tmp_path / f"a{parts}", 0, count=10)
        files = sorted(root.rglob("*.png"))
        good = {path: path.read_bytes() for path in files}
        another = good[files[7]]
        for path in files[:2]:
            path.write_bytes(b"broken")

        def begin(state: dict | None, told: bool = False, root: Path = root) -> dict:
            """A start of a run, new or resumed; returns the state of its next checkpoint."""
            inputs = inputs_of(root, told, skip=True, state=state)
            return (resume(inputs, state) if state else inputs).state()

        state = begin(None)
        assert begin(state)["data_parts"] == state["data_parts"] and "" not in state["data_parts"]
        files[0].write_bytes(good[files[0]])  # repaired
        files[1].write_bytes(another)  # it is not used
        repaired = begin(state)
        assert repaired["data_parts"] == state["data_parts"] and repaired["data_fingerprint"] == state["data_fingerprint"]
        files[2].write_bytes(b"broken now")
        later = begin(repaired)
        assert later["data_parts"] == state["data_parts"]  # what is known of the broken one is kept
        files[-1].write_bytes(another)
        with pytest.raises(UserError, match="other contents under the same names"):
            begin(later)
        assert begin(later, told=True)["data_parts"] != state["data_parts"]
        files[-1].write_bytes(good[files[-1]])
        files[2].write_bytes(another)  # readable again, but not as it was
        with pytest.raises(UserError, match="other contents under the same names"):
            begin(later)
        old = {key: value for key, value in later.items() if key not in ("data_parts", "data_content")}
        begin(old)  # an earlier version kept no sums


def test_scores_of_a_run_say_that_its_images_are_other_ones(tmp_path, monkeypatch):
    from gantrain.evaluation import of_runs

    root = draw(tmp_path / "a", 0)
    state = inputs_of(root).state()
    monkeypatch.setattr(of_runs, "read_state", lambda path: state)
    monkeypatch.setattr(of_runs, "load_weights", lambda *_: SimpleNamespace(channels=3, resolution=8, num_classes=2))
    monkeypatch.setattr(of_runs.performance, "place", lambda network, *_: network)
    monkeypatch.setattr(of_runs, "Evaluator", lambda *_, **more: SimpleNamespace(remarks=SimpleNamespace(notes=[])))

    def notes() -> list[str]:
        scorer = RunScorer.__new__(RunScorer)
        overrides = ["data={name: folder, resolution: 8}", f"data.root={root}", "eval.features.name=digits"]
        scorer.run, scorer.path, scorer.strict, scorer.config = Path("runs/x"), tmp_path / "0", False, load(DIGITS, overrides)
        scorer.held = SimpleNamespace(folder=scorer.path)
        scorer.prepare()
        return scorer.evaluator.remarks.notes

    assert not notes()
    shutil.copy(root / "cats" / "0.png", root / "dogs" / "0.png")
    words = "folder/a is not what runs/x was trained on (other contents under the same names)"
    assert notes() == [f"warning: {words}; the scores are against the images as they are now"]


def test_a_published_set_is_known_by_its_images_before_they_are_resized(monkeypatch):
    """As the digits are; a library that resizes a little differently changes nothing, other images do."""
    state = inputs_of(Digits(resolution=8)).state()
    assert state["data_content"] == hashlib.sha256(load_digits().images.astype(np.uint8).tobytes()).hexdigest()
    built = Digits(resolution=8).build()

    def made_of(images: ImageSet) -> Inputs:
        monkeypatch.setattr(Digits, "build", lambda self: images)
        return inputs_of(Digits(resolution=8))

    resume(made_of(replace(built, pixels=built.pixels // 2 * 2)), {**state, "shape": [8, 1, 10]})
    with pytest.raises(UserError, match="other contents under the same names"):
        resume(made_of(replace(built, origin="0" * 64)), state)


@dataclass(frozen=True)
class Outside:
    """A data set from outside, which need not give the same images twice."""

    level: int = 0
    random: bool = False

    def build(self):
        one = self

        class Plain:
            num_classes = 2

            def __len__(self):
                return 8

            def __getitem__(self, i):
                noise = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
                return noise if one.random else torch.full((3, 8, 8), i + one.level, dtype=torch.uint8), i % 2

        return Plain()


def test_a_data_set_from_outside_is_refused_only_if_it_gives_the_same_images_twice():
    state = inputs_of(Outside()).state()
    resume(inputs_of(Outside()), state)
    with pytest.raises(UserError, match="other contents under the same names"):
        resume(inputs_of(Outside(level=1)), state)
    resume(inputs_of(Outside(random=True)), inputs_of(Outside(random=True)).state())


def test_what_changed_is_in_words():
    line = {"nimg": 2000, "event": "data_changed", "data": "folder/x", "before": "a" * 64, "after": "b" * 64}
    assert what_happened(line) == f"the images of folder/x have changed: fingerprint {'a' * 16} -> {'b' * 16}"


# ---- after a stop in the last scoring ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_only_has_its_end_left_says_so(run):
    """It was stopped in its last evaluation, 16 images past total_kimg."""
    with begun(run / "config.yaml", "total_kimg=0.13", updates=1) as trainer:
        trainer.saving.save(pending=True)
        trainer.keeper.collect(trainer.run.nimg, wait=True)
    with begun(run / "config.yaml", "total_kimg=0.13") as trainer:
        assert trainer.facts.notes[-1] == "training has reached total_kimg=0.13; what was left to do at its end is done now"
        assert trainer.run.ends
        trainer.saving.save()
        trainer.keeper.collect(trainer.run.nimg, wait=True)
    with begun(run / "config.yaml", "total_kimg=0.13") as trainer:
        assert trainer.facts.notes[-1] == "the run has already passed total_kimg=0.13; nothing is left to train"


def test_power_is_the_only_average_that_counts_from_the_first_image():
    assert Power().exponent is not None and all(rule.exponent is None for rule in (Ema(), Swa(), Bema()))


# ---- a configuration that somebody has edited ------------------------------------------------------------------------


def edit(run: Path, old: str, new: str) -> Path:
    """The run's configuration with other text in it."""
    path = run / "config.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


EDITS = [
    ("lr_g: 0.0004", "lr_g: 0.9", "optim.lr_g"),
    ("\nseed: 0", "\nseed: 5", "seed"),
    ("  swa:\n    name: swa", "  new:\n    name: swa", "add aver"),
]


@pytest.mark.parametrize(("old", "new", "key"), slow_but(EDITS[:1], EDITS))
def test_an_edited_configuration_is_compared_with_what_the_checkpoint_was_trained_with(old, new, key, run):
    path = edit(run, old, new)
    with pytest.raises(UserError, match=f"{key}.*; restore these values, use another|{key}.*{{name: swa, .*or drop it") as caught:
        look_into(run, load(path))
    assert "was edited: 'there' is what the checkpoint at 0.128 kimg was trained with" in str(caught.value) or key.startswith("add")
    changed, note = compare_with_run(run, load(DIGITS, [*SETTINGS, f"run_dir={run}"]))
    assert changed == {} and "config.yaml was edited: " in note and "is written anew" in note


def test_keys_that_may_change_may_be_edited(run):
    path = edit(run, "total_kimg: 0.96", "total_kimg: 1.5")
    assert compare_with_run(run, load(path)) == ({"total_kimg": [0.96, 1.5]}, "")


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_is_compared_with_the_file(run):
    """Which is all that there is."""
    for path in CheckpointStore(run / "checkpoints").paths():
        found = checkpoint.read(path)
        del found.state["config"]
        checkpoint.write(path, found.nimg, found.tensors, found.state)
    config = load(edit(run, "lr_g: 0.0004", "lr_g: 0.9"))
    assert compare_with_run(run, config) == ({}, "")


@pytest.mark.slow
def test_a_fork_carries_its_own_configuration(run, tmp_path):
    out = tmp_path / "fork"
    fork_command(argparse.Namespace(run=str(run), out=str(out), kimg=None, overrides=["seed=7"]))
    assert look_into(out, load(out / "config.yaml")) == {}
    with pytest.raises(UserError, match=r"seed \(7 there, 0 now\)"):
        look_into(out, load(run / "config.yaml", [f"run_dir={out}"]))


@pytest.mark.slow
def test_a_fork_of_a_run_whose_configuration_was_edited_says_what_differs(run, tmp_path, capsys):
    """And an average whose settings were edited does not continue as another one."""
    path = edit(run, "lr_g: 0.0004", "lr_g: 0.0002")
    edit(run, "start_kimg: 0.03", "start_kimg: 0.04")
    out = tmp_path / "fork"
    fork_command(argparse.Namespace(run=str(run), out=str(out), kimg=None, overrides=[]))
    said = capsys.readouterr().out
    assert "optim.lr_g 0.0004 -> 0.0002" in said and "swa begins" in said and load(out / "config.yaml").optim.lr_g == load(path).optim.lr_g
