"""A run that was killed while it replaced its only checkpoint of a moment: it resumes, and readers read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, TINY, error_of, lines_of
from test_commands import newest, same_run

DIGITS = ROOT / "configs" / "digits.yaml"
ONE = [*TINY, "eval.metrics=[fid]", "tracking.samples_every_kimg=null", "checkpoint.keep_last=1", "checkpoint.every_kimg=0.16"]


@pytest.fixture(scope="module")
def half(tmp_path_factory, gantrain) -> tuple[Path, Path]:
    """A run up to its middle, with one checkpoint there, and the same run to its end."""
    whole, half = (tmp_path_factory.mktemp("replaced") / name for name in ("whole", "half"))
    gantrain("train", DIGITS, f"run_dir={whole}", *ONE)
    gantrain("train", DIGITS, f"run_dir={half}", *ONE, "total_kimg=0.16")
    return whole, half


LEFT = {
    "both": [".replaced-", ".writing-"],
    "only the old one": [".replaced-"],
    "only the new one": [".writing-"],  # as earlier versions left it
    "a new one that is not whole": [".replaced-", "half"],
    "the new one in place": ["", ".replaced-"],
    "the old one half deleted": ["", ".deleting-"],
}


@pytest.mark.slow
@pytest.mark.parametrize("left", LEFT)
def test_a_run_whose_replacement_was_killed_resumes(left, half, gantrain, tmp_path):
    """At the same moment, and not from the start: the end is that of a run that was never killed."""
    whole, run = half[0], tmp_path / "run"
    shutil.copytree(half[1], run)
    path = newest(run)
    for prefix in LEFT[left]:
        shutil.copytree(path, path.with_name(f"{'.writing-' if prefix == 'half' else prefix or 'new-'}{path.name}"))
    if "half" in LEFT[left]:
        (path.with_name(f".writing-{path.name}") / "g.safetensors").unlink()
    if ".deleting-" in LEFT[left]:
        (path.with_name(f".deleting-{path.name}") / "manifest.json").unlink()
    shutil.rmtree(path)
    if "" in LEFT[left]:
        path.with_name(f"new-{path.name}").rename(path)
    if left != "only the new one":
        assert "2 images of ema" in gantrain("sample", run, "--num", 2, "--out", tmp_path / "two.png").stdout
    done = gantrain("train", DIGITS, f"run_dir={run}", *ONE)
    assert "resumed at 0.16 of 0.32 kimg" in done.stdout and "damaged" not in done.stdout and "skipped" not in done.stdout
    assert [one.name for one in (run / "checkpoints").iterdir()] == [newest(whole).name]
    same_run(whole, run)


@pytest.mark.slow
def test_a_run_of_another_format_is_refused_by_every_command(half, gantrain, tmp_path):
    """With one line and status 2, and nothing in the folder changes."""
    from test_refused import change_format, content

    run = tmp_path / "run"
    shutil.copytree(half[1], run)
    change_format(newest(run))
    before = content(run)
    for command in (
        ["train", DIGITS, f"run_dir={run}", *ONE],
        ["sample", run, "--out", tmp_path / "a.png"],
        ["sample", run, "--kimg", 0.16, "--out", tmp_path / "a.png"],
        ["evaluate", run, "--num", 64],
        ["evaluate", run, "--average", "best", "--num", 64],
        ["noise-scale", run, "--updates", 8],
        ["truncation", run],
        ["average", run, "--sigma-rel", 0.1],
        ["fork", run, "--out", tmp_path / "fork"],
        ["walk", run, "--out", tmp_path / "a.mp4"],
    ):
        line = error_of(gantrain(*command, check=False))
        assert "manifest.json: has format 5, written by gantrain " in line and "delete" not in line, (command, line)
    assert content(run) == before and lines_of(run) and not (tmp_path / "fork").exists()
