"""Images that become unreadable: they are named, and the run stops, leaves them out or uses others of their class."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import spawning
import torch
from conftest import ROOT, TINY, error_of, lines_of
from PIL import Image
from test_commands import newest, same_run
from test_preemption import environment, trained_to, wait_until

from gantrain.data import Folder
from gantrain.errors import UserError
from gantrain.run_folder.checkpoint import read_state
from gantrain.run_folder.ownership import acquire_lock

DIGITS = ROOT / "configs" / "digits.yaml"


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two classes of sixteen noisy pictures."""
    dice = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "pictures" / name / f"{i:02d}.png")
    return tmp_path / "pictures"


def arguments(run: Path, root: Path, *overrides: str) -> list[str]:
    data = f"data={{name: folder, root: '{root}', resolution: 16, keep_in: disk, workers: 0}}"
    return [
        "train",
        str(DIGITS),
        f"run_dir={run}",
        *TINY,
        data,
        "total_kimg=0.96",
        "eval.reference_samples=16",
        "eval.every_kimg=null",
        *overrides,
    ]


def train(run: Path, root: Path, *overrides: str) -> subprocess.CompletedProcess:
    return spawning.run(["-m", "gantrain", *arguments(run, root, *overrides)], environment())


def disturbed(run: Path, root: Path, *overrides: str) -> subprocess.CompletedProcess:
    """Run the command while the image dogs/03.png is truncated and cats/15.png is deleted."""
    process = spawning.Spawned(["-m", "gantrain", *arguments(run, root, *overrides)], environment())
    wait_until(trained_to(run, 80), process)
    (root / "dogs" / "03.png").write_bytes((root / "dogs" / "03.png").read_bytes()[:60])
    (root / "cats" / "15.png").unlink()
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_stop_names_the_image_and_the_run_continues_once_it_is_fixed(pictures, tmp_path, workers):
    """Bit for bit like a run whose images were never broken."""
    run, whole, settings = tmp_path / "run", tmp_path / "whole", [f"data.workers={workers}", "total_kimg=0.48"]
    assert train(whole, pictures, *settings).returncode == 0
    kept = [(path, path.read_bytes()) for path in (pictures / "dogs" / "03.png", pictures / "cats" / "15.png")]
    line = error_of(disturbed(run, pictures, *settings))
    assert any(str(path) in line for path, _ in kept) and "; replace it and run the same command again, or set data.on_error=skip" in line
    for path, data in kept:
        path.write_bytes(data)
    assert train(run, pictures, *settings).returncode == 0
    same_run(whole, run)


@pytest.mark.slow
def test_skip_names_images_once_and_continues_also_at_the_start(pictures, tmp_path):
    run = tmp_path / "run"
    done = disturbed(run, pictures, "data.on_error=skip")
    assert done.returncode == 0, done.stdout + done.stderr
    names = [str(pictures / "dogs" / "03.png"), str(pictures / "cats" / "15.png")]
    told = [line["image"] for line in lines_of(run) if line.get("event") == "skipped"]
    assert sorted(told) == sorted(set(told)) and {name for name in names if any(line.startswith(name) for line in told)} == set(names)
    assert sum(done.stdout.count(f"data: skipped: {name}") for name in names) == len(told) == 2
    assert sum(line.get("data/skipped", 0) for line in lines_of(run)) > 2
    (pictures / "cats" / "15.png").touch()  # a name that is gone would make it another data set
    again = train(run, pictures, "data.on_error=skip", "total_kimg=1.04")
    assert again.returncode == 0 and "resumed at 0.96 of 1.04 kimg" in again.stdout, again.stdout + again.stderr
    assert "does not decode" in error_of(train(run, pictures, "total_kimg=1.12"))


@pytest.mark.slow
def test_a_run_resumes_without_the_images_that_it_left_out_although_they_are_repaired(pictures, tmp_path):
    """Bit for bit like a run that was never interrupted; what it left out is in its checkpoint and in its audit."""
    path, (whole, run) = pictures / "dogs" / "15.png", (tmp_path / "whole", tmp_path / "run")
    data = path.read_bytes()
    path.write_bytes(b"none")
    for folder, kimg in ((whole, 0.32), (run, 0.16)):
        done = train(folder, pictures, "data.on_error=skip", f"total_kimg={kimg}")
        assert done.returncode == 0 and "31 images, 2 classes (smallest 'dogs' 15" in done.stdout, done.stdout + done.stderr
        assert f"left out: 1 image that cannot be read ({path}: does not decode" in done.stdout
    assert read_state(newest(run))["data_left_out"] == [31]
    path.write_bytes(data)
    again = train(run, pictures, "data.on_error=skip", "total_kimg=0.32")
    assert again.returncode == 0 and "left out: 1 image that could not be read when the run began" in again.stdout, (
        again.stdout + again.stderr
    )
    assert (newest(run) / "g.safetensors").read_bytes() == (newest(whole) / "g.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("keep_in", ["disk", "host"])
def test_replacements_depend_only_on_which_images_are_broken(pictures, tmp_path, keep_in):
    """Two runs with the same images broken from the start are equal bit for bit."""
    (pictures / "dogs" / "15.png").write_bytes(b"none")
    for name in "ab":
        done = train(tmp_path / name, pictures, "data.on_error=skip", f"data.keep_in={keep_in}", "total_kimg=0.16")
        assert done.returncode == 0 and f"skipped: {pictures / 'dogs' / '15.png'}" in done.stdout, done.stdout + done.stderr
    assert (newest(tmp_path / "a") / "g.safetensors").read_bytes() == (newest(tmp_path / "b") / "g.safetensors").read_bytes()


def test_another_image_of_the_same_class_replaces_a_broken_one(pictures):
    """Always the same one; broken ones are not taken; if the whole class is broken, the error is raised."""
    images = Folder(root=str(pictures), resolution=16).build()
    images.skips = True
    cats, dogs = ([images.fetch(i)[0] for i in range(start, start + 16)] for start in (0, 16))
    for name in ("14.png", "15.png"):
        (pictures / "cats" / name).write_bytes(b"none")
    for index in (14, 15):
        image, label, skipped = images.fetch(index)
        assert any(torch.equal(image, cat) for cat in cats[:14]) and label == 0 and len(skipped) == 1 and f"{index}.png" in skipped[0]
        assert torch.equal(image, images.fetch(index)[0])
    (pictures / "dogs" / "02.png").unlink()
    image, label, _ = images.fetch(18)
    assert any(torch.equal(image, dog) for dog in dogs[:2] + dogs[3:]) and label == 1
    for path in (pictures / "cats").iterdir():
        path.write_bytes(b"none")
    image, _, _ = images.fetch(3)
    assert isinstance(image, UserError) and "15 other images of its class cannot be read either" in str(image)
    images.skips = False
    assert isinstance(images[3][0], UserError) and images[16][0].shape == (3, 16, 16)


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_leaves_the_workers_running(pictures, tmp_path):
    """As schedulers send it: the run saves and exits. After a kill its lock is free although its workers still run."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "gantrain", *arguments(run, pictures, "data.workers=2", "total_kimg=100")]

    def begun() -> subprocess.Popen:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), start_new_session=True
        )

    process = begun()
    wait_until(trained_to(run, 160), process)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75 and not err, out + err
    stopped = next(line["nimg"] for line in lines_of(run) if line.get("event") == "interrupted")
    assert int(newest(run).name) == stopped
    process = begun()
    wait_until(trained_to(run, stopped + 160), process)
    workers = [child for child in psutil.Process(process.pid).children() if child.is_running()]
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGSTOP)
    for worker in workers:
        worker.suspend()
    process.kill()
    process.wait()
    assert all(worker.is_running() for worker in workers)
    with acquire_lock(run):
        pass
    for worker in workers:
        worker.kill()
