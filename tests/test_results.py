"""Where numbers go, and what may be scored: found out before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gantrain as library
from gantrain.commands import runs as listing
from gantrain.config.loading import load
from gantrain.distributed import make_accelerator
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.evaluation.image_files import open_folder
from gantrain.run_folder import result_file as results
from gantrain.sampling import sheets


def test_numbers_go_into_a_json_whose_folder_is_there_then(tmp_path):
    target = results.target_of(tmp_path / "new" / "scores.json", tmp_path, "")
    assert target == tmp_path / "new" / "scores.json" and list(target.parent.iterdir()) == []
    free = results.target_of(None, tmp_path / "evaluations", "000000000960")
    assert free == tmp_path / "evaluations" / "000000000960.json"
    results.write(free, {"fid": float("nan")})
    assert free.read_text() == '{\n "fid": "nan"\n}\n' and results.target_of(None, free.parent, free.stem).name == "000000000960-2.json"


def test_results_go_through_a_symbolic_link(tmp_path):
    (tmp_path / "shared").mkdir()
    there, link = tmp_path / "shared" / "scores-1.json", tmp_path / "latest.json"
    for content in (None, "old"):  # also a link to a file that does not exist yet
        if content is not None:
            there.write_text(content)
        link.unlink(missing_ok=True)
        link.symlink_to(there)
        results.write(results.target_of(link, tmp_path, ""), {"fid": 1.5})
        assert link.is_symlink() and there.read_text() == '{\n "fid": 1.5\n}\n'


def test_a_link_to_a_file_of_a_run_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("precious")
    (tmp_path / "latest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="must be a new .json file"):
        results.target_of(tmp_path / "latest.json", tmp_path, "")


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "state.json", "manifest.json", "rollback.json", "scores.txt", "scores"])
def test_nothing_of_a_run_is_written_over(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match="must be a new .json file"):
        results.target_of(tmp_path / name, tmp_path, "")
    assert (tmp_path / name).read_text() == "precious"


def test_a_place_that_takes_no_file_is_said_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="is inside a file; choose another path"):
        results.target_of(tmp_path / "file" / "scores.json", tmp_path, "")
    with pytest.raises(UserError, match="is a folder; choose another path"):
        results.target_of(tmp_path / "folder.json", tmp_path, "")

    def refused(self, *arguments, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(UserError, match=r"is not writable \(Permission denied\), and results are saved there; make it writable"):
        results.target_of(None, tmp_path, "truncation-000000000960")


def test_a_reference_taken_in_part_is_another_than_the_whole(tmp_path):
    """An archive with statistics of all its images and the images: KID and precision take some of them, or all."""
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "both.npz", arr_0=images, mu=np.zeros(64), sigma=np.eye(64))
    prints = set()
    for most in (16, 32, "null"):
        config = load(None, [f"eval.reference={tmp_path / 'both.npz'}", f"eval.reference_samples={most}", "eval.metrics=[fid,kid]"])
        prints.add(Evaluator(config, None, make_accelerator(), shape=(3, 16, 16)).reference_fingerprint)
    assert len(prints) == 3


def test_a_function_of_ones_own_leaves_the_global_random_state(digits, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generator = lambda start, count: torch.randn(count, 1, 16, 16).clamp(-1, 1)  # noqa: E731
    library.evaluate(generator, digits[0][:64], num_samples=32, metrics=("fid",), features="digits")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num", [0, -5])
def test_no_number_of_samples_is_taken_for_another(digits, num):
    with pytest.raises(UserError, match="num_samples"):
        generator = lambda start, count: torch.zeros(count, 1, 16, 16)  # noqa: E731
        library.evaluate(generator, digits[0][:64], num_samples=num, metrics=("fid",), features="digits")


def test_a_folder_of_runs_is_no_folder_of_images(tmp_path):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("total_kimg: 1")
    (tmp_path / "run" / "metrics.jsonl").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "samples" / "0.png")
    with pytest.raises(UserError, match="contains run folders, not images to score; pass one of them, such as"):
        open_folder(tmp_path)


def test_a_listing_passes_over_what_it_may_not_look_into(tmp_path, monkeypatch):
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("total_kimg: 1\n")
        (tmp_path / name / "metrics.jsonl").write_text("")
    scandir, said = os.scandir, []

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [row.run for row in listing.list_runs([str(tmp_path)], say=said.append)] == ["open"]
    words = f"1 folder could not be listed; runs in there are missing here: {tmp_path / 'closed'} (Permission denied)"
    assert said == [words]


def test_a_damaged_picture_is_an_oserror(tmp_path, monkeypatch):
    """Pillow says it of some damages by a SyntaxError."""
    Image.new("RGB", (8, 8)).save(tmp_path / "000000000500.png")
    assert [sheet.caption for sheet in sheets.read_side_by_side(tmp_path / "000000000500.png")] == ["at 0.5 kimg"]

    def broken(*arguments):
        raise SyntaxError("broken PNG file")

    monkeypatch.setattr(sheets.Image, "open", broken)
    with pytest.raises(OSError, match="is not a readable picture"):
        sheets.read_side_by_side(tmp_path / "000000000500.png")
