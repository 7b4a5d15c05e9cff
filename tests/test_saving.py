"""The trainer's parts in a checkpoint: its layout, FORMAT 4, and what a resumed and a rolled back run restore of it."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY

from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.run_folder import checkpoint
from gantrain.training.trainer import Trainer

SETTINGS = [
    *TINY, "noise_scale.measure_every=1", "orbit.every_kimg=0.016", "averagers={ema: {name: ema}, swa: {name: swa, networks: gd}}",
    "checkpoint.keep_best=[eval/ema/digits_fid]", "tracking.wandb.mode=disabled",
]  # fmt: skip
# Every key of state.json in FORMAT 4 with its JSON type, as of the first release of the format. A list stands for its first element.
LAYOUT = {
    "previous_nimg": int,
    "updates": int,
    "stats": [[str]],
    "stats_count": int,
    "logged_at": int,
    "scored": int,
    "scored_at": int,
    "scores_of": int,
    "scoring": type(None),
    "scores": [[str]],
    "guard": {
        "attempts": int, "best": [[str]], "growth": float, "lr_scale": float, "obstacle": int, "rollbacks": int,
        "saturated_since": type(None), "scored_at": int, "skipped": int, "skips": int, "warned": [], "worse": int,
        "worse_since": type(None),
    },
    "gantrain": str,
    "shape": [int],
    "averages": {"ema": dict, "ema_short": dict, "swa": dict},
    "averages_d": {"swa": dict},
    "batching": {
        "batch_size": int, "first_micro_batch": int, "last_change": int, "micro_batch": int, "proposal": float,
        "noise": {
            "checks": [], "fresh": {"d": int, "g": int}, "micro_batch": {"d": int, "g": int}, "wanted": [],
            "windows": {"d": [[[float]]], "g": [[[float]]]},
        },
    },
    "swaps": {"lr_scale": float, "owed": bool, "records": []},
    "scalers": {"d": {}, "g": {}},
    "metrics_bytes": int,
    "orbit": {"bytes": int, "latest": [[str]], "nimg": int},
    "wandb_id": str,
    "data_fingerprint": str,
    "data_listing": str,
    "data_content": str,
    "class_names": [str],
    "class_counts": [int],
    "collapsed": dict,
    "config": dict,  # of a later version
}  # fmt: skip


def layout_of(value: object, like: object) -> object:
    """The types of a JSON value, as deep as `like` goes."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: layout_of(one, like.get(key)) for key, one in value.items()}
    if isinstance(value, list) and isinstance(like, list):
        return [layout_of(value[0], like[0] if like else None)] if value else []
    return dict if isinstance(value, dict) else type(value)


@contextlib.contextmanager
def begun(run: Path) -> Iterator[Trainer]:
    """A trainer that has started; closed in any case."""
    trainer = Trainer(load(ROOT / "configs" / "digits.yaml", [*SETTINGS, f"run_dir={run}"]))
    try:
        trainer.start()
        yield trainer
    finally:
        trainer.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint in the middle of everything: after scores, a line, and two updates more."""
    with begun(tmp_path_factory.mktemp("saved") / "run") as trainer:
        for _ in range(10):
            trainer.guard.listen()
            trainer.maintain()
            trainer.update()
        trainer.maintain()
        for _ in range(2):
            trainer.update()
        trainer.saving.save()
        trainer.keeper.collect(trainer.run.nimg, wait=True)
    path = trainer.keeper.checkpoints.newest()
    assert path.name == f"{12 * 16:012d}"
    return path


def test_the_layout_is_that_of_format_4(saved):
    assert checkpoint.FORMAT == 4 and checkpoint.read_manifest(saved)["format"] == 4
    snapshot = checkpoint.read(saved)
    assert layout_of(snapshot.state, LAYOUT) == LAYOUT
    assert [name for name, _ in snapshot.state["stats"]] == ["grad_norm/d", "grad_norm/g", "logits/fake", "logits/real", "loss/d", "loss/g"]
    assert sorted(snapshot.tensors) == [
        "average.ema", "average.ema_short", "average.swa", "average_d.swa", "d", "g", "optimizer_d", "optimizer_g",
    ]  # fmt: skip


def test_no_two_parts_have_the_same_key(saved):
    trainer = Trainer(load(ROOT / "configs" / "digits.yaml", [*SETTINGS, f"run_dir={saved.parent.parent}"]))
    keys = [key for part in trainer.saving.parts for key in part.state()]
    assert len(keys) == len(set(keys))
    assert set(LAYOUT) - set(keys) == {"gantrain", "wandb_id", "metrics_bytes", "orbit", "config"}  # which `Saving` itself writes


def test_what_was_saved_is_restored(saved):
    """A run that is started again and saved at once writes the same, to the bit."""
    with begun(saved.parent.parent) as trainer:
        trainer.measurements.settle()
        there, here = checkpoint.read(saved), json.loads(json.dumps(trainer.saving.state(pending=False)))
        for name, value in here["stats"]:
            assert dict(there.state["stats"])[name] == pytest.approx(value, rel=1e-6)  # through float32
        changed = {"stats", "metrics_bytes"}  # the record has a line more: `resume`
        assert {k: v for k, v in here.items() if k not in changed} == {k: v for k, v in there.state.items() if k not in changed}
        for group, tensors in trainer.players.tensors().items():
            assert all(torch.equal(tensor.cpu(), there.tensors[group][name]) for name, tensor in tensors.items())


def test_what_is_due_is_due_again_only_if_it_is_pending(saved):
    with begun(saved.parent.parent) as trainer:
        trainer.update()
        before, after = trainer.run.previous_nimg, trainer.run.nimg
        assert trainer.saving.state(pending=True)["previous_nimg"] == before < after == trainer.saving.state(pending=False)["previous_nimg"]


def test_a_rollback_restores_what_was_measured_and_keeps_what_was_counted(saved):
    with begun(saved.parent.parent) as trainer:
        trainer.guard.watch.rolled_back(400, 192)
        trainer.guard.watch.saturated_since = 350
        trainer.guard.watch.best.clear()
        trainer.saving.wandb_id, trainer.scoreboard.scoring, trainer.inputs.data_wait = "mine", 300, 5.0
        for _ in range(3):
            trainer.update()
        trainer.saving.load(saved, rolls_back=True)
        run, watch = trainer.run, trainer.guard.watch
        assert (run.nimg, run.previous_nimg, run.updates, run.saved_at) == (192, 192, 12, 192)
        assert (watch.rollbacks, watch.skipped, watch.saturated_since, watch.best) == (1, 208, None, {})
        assert trainer.saving.wandb_id == "mine" and trainer.scoreboard.scoring is None and trainer.inputs.data_wait == 0.0
        assert trainer.measurements.sums() == []  # the next line is of the new path alone


def test_other_images_are_refused(saved, monkeypatch):
    read = checkpoint.read

    def other(path, groups=None):
        snapshot = copy.deepcopy(read(path, groups))
        snapshot.state["data_listing"] = "0" * 64
        return snapshot

    monkeypatch.setattr(checkpoint, "read", other)
    wrong = r"digits is not what .*run was trained on \(other images or labels: .* as many in each class\); restore the original images"
    with pytest.raises(UserError, match=wrong), begun(saved.parent.parent):
        pass


def test_a_checkpoint_from_before_scores_were_computed_in_the_background_is_loaded(saved, monkeypatch):
    read = checkpoint.read

    def older(path, groups=None):
        snapshot = read(path, groups)
        del snapshot.state["scores_of"], snapshot.state["scoring"]
        return snapshot

    monkeypatch.setattr(checkpoint, "read", older)
    with begun(saved.parent.parent) as trainer:
        assert trainer.scoreboard.scores_of == trainer.scoreboard.scored_at == 160 and trainer.scoreboard.scoring is None
