"""What is a run folder, and what only has a file of the same name in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from gantrain.commands.evaluate import holds_images
from gantrain.commands.runs import find_runs
from gantrain.config.config import Config
from gantrain.data import Folder
from gantrain.errors import UserError
from gantrain.evaluation.image_files import open_folder
from gantrain.evaluation.references import open_reference
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.ownership import look_into
from gantrain.run_folder.recognition import holds_checkpoints, is_run_folder

FOREIGN = {  # configurations of other programs; some are no YAML that a safe loader reads
    "yaml": "model:\n  target: ldm.models.Diffusion\n  base_learning_rate: 1.0e-4\n",
    "tags": "trainer: !include trainer.yaml\n",
    "list": "- a\n- b\n",
    "broken": "a: [",
    "binary": "\x00\x01",
    "empty": "",
}
OURS = "run_dir: runs/a\ntotal_kimg: 1.0\naveragers: {}\n"


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 10, 200)).save(folder / f"{i}.png")
    return folder


def checkpoint_in(folder: Path, name: str = "000000000160", below: str = "checkpoints") -> None:
    (folder / below / name).mkdir(parents=True)
    (folder / below / name / "manifest.json").write_text("{}")


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_images_beside_a_foreign_configuration_are_images(tmp_path, text):
    """Also beside another program's `checkpoints` and `.lock`."""
    folder = pictures(tmp_path / "fakes")
    (folder / "config.yaml").write_text(text)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "epoch=3.ckpt").touch()
    (folder / ".lock").touch()
    assert not is_run_folder(folder) and holds_images(folder)
    assert open_reference(folder, None, torch.device("cpu")).count == 8 == len(open_folder(tmp_path))
    if text:  # an empty one is all defaults
        with pytest.raises(UserError, match=r"fakes: is not a run folder \(its config.yaml is not that of a run\); pass the run_dir"):
            configuration_of(folder)


def test_a_run_has_a_record_or_checkpoints_beside_its_configuration(tmp_path):
    folder = pictures(tmp_path / "run" / "samples").parent
    (folder / "config.yaml").write_text(OURS)
    assert not is_run_folder(folder) and holds_images(folder)  # images, and a note of how they were made
    for name in ("metrics.jsonl", ".lock"):
        (folder / name).touch()
        assert is_run_folder(folder) and not holds_images(folder)
        (folder / name).unlink()
    for below in ("checkpoints", "best/eval.ema.fid"):
        checkpoint_in(folder, below=below)
        assert is_run_folder(folder) and holds_checkpoints(folder)
        (folder / "config.yaml").write_text("a: [")  # damaged, and still that of a run
        assert is_run_folder(folder) and not holds_images(folder)
        (folder / below / "000000000160" / "manifest.json").unlink()
        assert not holds_checkpoints(folder)


def test_only_runs_are_listed(tmp_path):
    for name in ("run", "torn", "lightning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text({"run": OURS, "torn": "a: [", "lightning": FOREIGN["yaml"]}[name])
    checkpoint_in(tmp_path / "run")
    (tmp_path / "torn" / "metrics.jsonl").touch()
    (tmp_path / "lightning" / "checkpoints").mkdir()
    assert [path.name for path in find_runs(tmp_path)] == ["run", "torn"]


# ---- a new run keeps out of other folders ----------------------------------------------------------------------------


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (["train/a/0.png", "train/b/0.png"], "'train'"),
        (["0.png", "1.jpg", "labels.txt"], "'0.png', '1.jpg'"),
        (["head.json", "images.npy"], "'images.npy'"),
        (["run_1/config.yaml", "run_2/config.yaml"], "'run_1', 'run_2'"),
        (["config.yaml", "checkpoints/epoch=3.ckpt", "weights.bin"], "'weights.bin'"),  # of another program
        ([f"{name}/0.png" for name in "abcdef"], "'a', 'b', 'c', 'd' and 2 more"),
    ],
)
def test_a_new_run_among_other_files_is_refused(tmp_path, there, named):
    for path in there:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    before, words = (
        contents(tmp_path),
        f"not the folder of a run, and it is not empty: it contains {named}; use a folder that is new or empty",
    )
    with pytest.raises(UserError, match=f"run_dir: .*{re.escape(words)}"):
        look_into(tmp_path, Config())
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "there",
    [
        [],
        [".lock"],
        [
            ".lock",
            "config.yaml",
            "wandb/run-1/files/a",
            "samples/000000000000.png",
            ".config.writing.yaml",
        ],  # what a start that failed has left
        [".DS_Store", "train.log", "slurm-17.out", "nohup.out", "mine.yaml", "loss.py"],
    ],
)
def test_a_new_run_begins_beside_what_a_run_or_its_job_leaves(tmp_path, there):
    for path in there:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    assert look_into(tmp_path, Config()) == {} == look_into(tmp_path / "new", Config())


def test_a_run_without_checkpoints_keeps_what_its_user_put_there(tmp_path):
    (tmp_path / "config.yaml").write_text(OURS)
    (tmp_path / ".lock").touch()
    (tmp_path / "best.mp4").touch()
    assert look_into(tmp_path, Config()) == {}


@pytest.mark.parametrize("below", ["", "a", "run", "runs/a"])
def test_a_new_run_inside_its_folder_of_images_is_refused(tmp_path, monkeypatch, below):
    monkeypatch.chdir(tmp_path)
    words = f"run_dir: {re.escape(below or '.')} is inside data.root, ., so the run's own pictures would count as images to train on; use a"
    with pytest.raises(UserError, match=words):
        look_into(Path(below), Config(data=Folder(root=".")))
    assert look_into(Path("runs/a"), Config(data=Folder(root="images"))) == {} and contents(tmp_path) == []
