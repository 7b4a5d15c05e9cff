"""What is a run folder, and what only has a file of the same name in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from gantrain.commands.evaluate import holds_images
from gantrain.commands.runs import find_runs
from gantrain.errors import UserError
from gantrain.evaluation.image_files import open_folder
from gantrain.evaluation.references import open_reference
from gantrain.run_folder.contents import configuration_of
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
