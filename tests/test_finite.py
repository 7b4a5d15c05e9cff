"""Weights with nan or infinity in them: every command says so in one line, with a remedy, and draws no black pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, slow_but

import gantrain
from gantrain.averaging.power import gamma_of
from gantrain.config.loading import load
from gantrain.models.architecture import build_networks
from gantrain.run_folder import checkpoint, forking
from gantrain.run_folder.finite import NotFinite, count_nonfinite, require_finite_images
from gantrain.run_folder.own_config import write_config
from gantrain.run_folder.snapshots import Snapshots
from gantrain.sampling.choice import Choice
from gantrain.sampling.generators import generate

DIGITS = ROOT / "configs" / "digits.yaml"
NAN = float("nan")
WEIGHT = "linear.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with two checkpoints, each with a live generator, an ema and a swa, all alike."""
    run = tmp_path_factory.mktemp("finite") / "run"
    config = load(DIGITS, [*TINY, f"run_dir={run}"])
    write_config(config, run)
    torch.manual_seed(0)
    G, D = build_networks(config.model, 16, 1, 10)
    weights = dict(G.named_parameters())
    statistics = {name: b for name, b in G.named_buffers() if "running" in name}
    tensors = {"g": G.state_dict(), "d": D.state_dict(), **dict.fromkeys(("average.ema", "average.swa"), weights | statistics)}
    for nimg in (160, 320):
        one = {"num_averaged": 5, "first_nimg": 0}
        state = {"averages": {"ema": one, "swa": one}, "averages_d": {}, "shape": [16, 1, 10], "class_names": None}
        checkpoint.write(run / "checkpoints" / f"{nimg:012d}", nimg, tensors, state)
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def spoil(run: Path, group: str, value: float = NAN, nimg: int = 320, count: int = 3) -> str:
    """Put a value into the first weight of a group by name, since files have no order; its name."""
    path = run / "checkpoints" / f"{nimg:012d}"
    snapshot = checkpoint.read(path)
    name = min(name for name, tensor in snapshot.tensors[group].items() if "weight" in name and tensor.numel() > count)
    snapshot.tensors[group][name].view(-1)[:count] = value
    checkpoint.write(path, nimg, snapshot.tensors, snapshot.state)
    return name


def test_what_is_not_finite_is_counted_and_the_first_is_named():
    tensors = {"a": torch.ones(2), "n": torch.tensor([3]), "b": torch.tensor([1.0, NAN]), "c": torch.tensor([float("inf")] * 3)}
    assert count_nonfinite(tensors) == "4 of 8 values are nan or infinite, the first in b"
    assert count_nonfinite({"a": torch.ones(2), "z": torch.ones(1, dtype=torch.complex64), "n": torch.tensor([3])}) == ""
    assert "1 of 1" in count_nonfinite({"z": torch.tensor([complex(0, NAN)])})


@pytest.mark.parametrize("value", slow_but([float("inf")], [float("inf"), NAN, -float("inf")]))
def test_a_generator_whose_weights_are_not_finite_is_refused_with_others_that_are(run, value):
    name = spoil(run, "average.ema", value)
    words = (
        rf"run: the weights of ema at 0.32 kimg are not finite \(3 of [\d,]+ values are nan or infinite, the first in {name}\);"
        r" use average=\"live\", which is finite at 0.32 kimg, or kimg=0.16, where ema is finite"
    )
    with pytest.raises(NotFinite, match=words):
        gantrain.load_generator(run, batchnorm="copy")
    if value > 0:
        return  # the rest is slow
    with pytest.raises(NotFinite, match="use --average live, which .* or --kimg 0.16, where"):
        Choice(run, batchnorm="copy").open().load_generator("cpu")
    assert gantrain.load_generator(run, "swa", batchnorm="copy").resolution == 16
    assert gantrain.load_generator(run, kimg=0.16, batchnorm="copy").resolution == 16


@pytest.mark.slow
def test_without_others_the_line_says_so(run):
    for nimg in (160, 320):
        for group in ("g", "average.ema", "average.swa"):
            spoil(run, group, nimg=nimg)
    with pytest.raises(NotFinite, match="no other weights that are left in the run are finite; use a copy"):
        gantrain.load_generator(run, batchnorm="copy")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["copy", "recalibrate"])
def test_statistics_that_are_not_finite_are_refused_where_they_are_used(run, policy):
    path = run / "checkpoints" / "000000000320"
    snapshot = checkpoint.read(path)
    statistics = next(name for name in snapshot.tensors["g"] if "running_mean" in name)
    snapshot.tensors["g"][statistics][0] = NAN
    checkpoint.write(path, 320, snapshot.tensors, snapshot.state)
    if policy == "recalibrate":  # replaces them
        assert gantrain.load_generator(run, batchnorm=policy).resolution == 16
        return
    with pytest.raises(NotFinite, match=rf"the BatchNorm statistics for ema at 0.32 kimg are not finite \(1 of .*{statistics}\)"):
        gantrain.load_generator(run, batchnorm=policy)


def test_nan_pixels_are_counted():
    images = torch.zeros(4, 1, 2, 2)
    images[1, 0, 0, 0] = NAN
    with pytest.raises(NotFinite, match="ema: 1 of 4 images have nan or infinite pixels, although its weights are finite"):
        require_finite_images(images, "ema")


@pytest.mark.slow
def test_images_that_are_not_finite_are_refused_although_the_weights_are(run):
    """As where a weight is so large that a layer overflows."""
    images = torch.zeros(4, 1, 2, 2)
    assert require_finite_images(images, "ema") is images
    images[1, 0, 0, 0] = NAN
    with pytest.raises(NotFinite, match="ema: 1 of 4 images have nan or infinite pixels, although its weights are finite"):
        require_finite_images(images, "ema")
    with pytest.raises(NotFinite, match="swa: 2 of 2 images"):
        generate(lambda z, y: images[1:2].expand(2, -1, -1, -1), torch.zeros(2, 1), torch.zeros(2), name="swa")
    assert generate(lambda z, y: images, torch.zeros(4, 1), torch.zeros(4)).sum() == 128 * 15  # training goes on, whatever it draws
    source = Choice(run, batchnorm="copy").open()
    generator = source.load_generator("cpu")
    with torch.no_grad():
        generator.get_parameter("first.bias").fill_(3e38)  # a weight with a spectral norm would become 0, and the images finite
    with pytest.raises(NotFinite, match="ema: 4 of 4 images"):
        source.image_sampler(generator)(0, 4)


@pytest.mark.slow
def test_a_fork_from_weights_that_are_not_finite_is_refused(run):
    origin = SimpleNamespace(run=run, snapshot=None)
    for group, words in (("g", "in the live G, 3 of .*; use --kimg K of an earlier one$"), ("average.ema", "averagers.ema=null")):
        spoil(run, group)
        origin.snapshot = checkpoint.read(run / "checkpoints" / "000000000320")
        tensors = {key: named for key, named in origin.snapshot.tensors.items() if key == group or key == "d"}
        with pytest.raises(NotFinite, match=f"run: its checkpoint at 0.32 kimg is not finite: {words if group == 'g' else '.*' + words}"):
            forking.refuse_nonfinite(origin, tensors)
        forking.refuse_nonfinite(origin, {"d": origin.snapshot.tensors["d"], "slots.ema": tensors[group]})


@pytest.mark.slow
def test_an_average_is_not_rebuilt_from_snapshots_that_are_not_finite(run):
    """The line names the first of them, and the last time before it."""
    for nimg in (80, 160, 240, 320):
        value = NAN if nimg > 160 else 1.0
        groups = {"average.a": {"w": torch.tensor([1.0, value])}, "average.b": {"w": torch.ones(2)}, "buffers": {}}
        state = {"gammas": {"a": gamma_of(0.05), "b": gamma_of(0.1)}, "shape": [16, 1, 10]}
        checkpoint.write(run / "averages" / f"{nimg:012d}", nimg, groups, state)
    words = r"the average of sigma_rel 0.07 at 0.32 kimg is not finite \(1 of 2 values .* in w\), as is the snapshot of a at 0.24 kimg"
    with pytest.raises(NotFinite, match=words + "; use --at-kimg 0.16, the last one before it"):
        Snapshots(run).rebuild(0.07)
    assert np.isfinite(Snapshots(run, 0.16).rebuild(0.1).error)


# ---- by the whole commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(gantrain, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finite") / "run"
    gantrain("train", DIGITS, *TINY, f"run_dir={run}", "tracking.wandb.mode=disabled", "checkpoint.keep_last=10")
    return run


@pytest.mark.slow
def test_every_command_says_it(gantrain, trained, tmp_path):
    """Status 2 and one line; `evaluate` scores the others, with a note."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    name = spoil(run, "average.ema")
    out = tmp_path / "out.png"
    for command in (
        ("sample", run, "--out", out),
        ("sample", run, "--sheet", "averages", "--average", "live,ema", "--out", out),
        ("sample", run, "--sheet", "classes", "--out", out),
        ("walk", run, "--frames", 2, "--out", tmp_path / "out.gif"),
        ("truncation", run, "--sweep", "1:2:2", "--average", "ema"),
        ("noise-scale", run, "--average", "ema"),
        ("fork", run, "--out", tmp_path / "fork", "total_kimg=1"),
    ):
        done = gantrain(*command, check=False)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 2 and f"nan or infinite, the first in {name}" in line, (command, done)
        assert not out.exists() and not (tmp_path / "fork").exists() and not (tmp_path / "out.gif").exists()
    assert "; without ema, whose weights or images are not" in gantrain("sample", run, "--sheet", "averages", "--out", out).stdout
    gantrain("fork", run, "--out", tmp_path / "fork", "total_kimg=1", "averagers.ema=null")
    done = gantrain("evaluate", run, "--num", 64)
    assert "ema: its weights are not finite (3 of" in done.stdout and "so its scores are nan" in done.stdout
    assert "ema: its weights are not finite" in (run / "evaluations" / "000000000320.json").read_text()
    spoil(run, "d")
    line = gantrain("noise-scale", run, check=False).stderr
    assert "the live weights of D at 0.32 kimg are not finite" in line
