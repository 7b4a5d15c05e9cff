"""Every configuration in configs/ ships and trains: the real command on small data, with narrower networks, otherwise as written.

Inception is narrower too, except for one configuration that is scored by the real one.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, error_of, lines_of, slow_but
from PIL import Image
from torch import nn

from gantrain import parser, shipped
from gantrain.commands import train
from gantrain.commands.configs import read_head
from gantrain.config import Config
from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.evaluation.references import open_reference
from gantrain.metrics import features
from gantrain.models.layers import Layers
from gantrain.training.players import build_optimizer

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

NARROW = [
    "model.ch=8",
    "total_kimg=0.1",
    "eval.num_samples=16",
    "eval.reference_samples=16",
    "eval.batch_size=16",
    "eval.recalibration_batches=1",
    "eval.every_kimg=null",
    "tracking.samples_every_kimg=null",
    "tracking.sample_rows=1",
    "tracking.sample_classes=4",
    "tracking.every_kimg=0.05",
]


def cifar10(root: Path) -> list[str]:
    """The published binary layout, with twenty random records per file."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    dice = np.random.default_rng(0)
    for i in range(1, 6):
        records = dice.integers(0, 256, (20, 1 + 3072), dtype=np.uint8)
        records[:, 0] = np.arange(20) % 10
        records.tofile(folder / f"data_batch_{i}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    return [f"data.root={root}"]


def folder(root: Path) -> list[str]:
    """Three classes of four pictures of various sizes."""
    dice = np.random.default_rng(0)
    for name in ("n01", "n02", "n03"):
        (root / name).mkdir()
        for i in range(4):
            Image.fromarray(dice.integers(0, 256, (140 + i, 160 - i, 3), dtype=np.uint8)).save(root / name / f"{i}.jpeg")
    return [
        f"data.root={root}",
        "data.workers=1",
        "batching.batch_size=8",
        "batching.micro_batch=4",
        "total_kimg=0.016",
        "tracking.every_kimg=0.008",
    ]


WITH_THE_REAL_INCEPTION = "cifar10_biggan.yaml"


class NarrowInception(nn.Module):
    """Has the interface of Inception, with 32 features."""

    def __init__(self):
        super().__init__()
        self.first, self.logits = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 1008)

    @torch.no_grad()
    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        found = self.first(x / 255).relu().mean((2, 3))
        return found, self.logits(found)


def narrow(state: dict, path: Path, layer: str) -> NarrowInception:
    assert layer == "2048"
    network = NarrowInception()
    network.load_state_dict(state)
    return network


DATA = {"digits": lambda root: [], "cifar10": cifar10, "folder": folder}


@pytest.mark.parametrize("path", slow_but([p for p in CONFIGS if p.name == "digits_swap.yaml"], CONFIGS), ids=lambda p: p.name)
def test_it_trains_and_scores(path, gantrain, tmp_path, inception_weights, monkeypatch):
    (tmp_path / "data").mkdir()
    config = load(path)
    overrides = [*NARROW, *DATA[type(config.data).__name__.lower()](tmp_path / "data")]
    if hasattr(config.eval.features, "weights"):
        if path.name != WITH_THE_REAL_INCEPTION:
            inception_weights = tmp_path / "narrow.pth"
            torch.save(NarrowInception().state_dict(), inception_weights)
            monkeypatch.setattr(features, "build_inception", narrow)
        overrides.append(f"eval.features={{name: inception, weights: {inception_weights}}}")
    gantrain("train", path, f"run_dir={tmp_path / 'run'}", *overrides)
    lines = lines_of(tmp_path / "run")
    scores = [line for line in lines if "eval/num_samples" in line][-1]
    for name in config.averagers:
        if name in ("ema", "ema_short"):
            assert all(
                f"eval/{name}/{config.eval.features.metric_prefix}{m}" in scores for m in ("fid", "is", "kid", "precision", "recall")
            )
    assert any("loss/g" in line for line in lines) and lines[-1]["event"] == "end"


PUBLISHED = {"cifar10_biggan.yaml": (4_304_387, 4_207_361, 10), "imagenet128_biggan.yaml": (70_433_988, 87_982_370, 1000)}


@pytest.mark.parametrize("name", slow_but([next(iter(PUBLISHED))], PUBLISHED))
def test_its_networks_have_the_published_size(name):
    config = load(ROOT / "configs" / name)
    *sizes, classes = PUBLISHED[name]
    with torch.device("meta"):
        networks = config.model.build(config.data.resolution, 3, classes)
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == sizes
    assert build_optimizer(config.optim.g, networks[0].to_empty(device="cpu"), config.optim.lr_g, config.optim).defaults["fused"]


# ---- by name, from anywhere ------------------------------------------------------------------------------------------

NAMES = [path.stem for path in CONFIGS]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(name) == load(ROOT / "configs" / f"{name}.yaml")
    assert shipped.explain_choice(name) == f"configuration: {name}, which ships with gantrain ({ROOT / 'configs' / name}.yaml)"


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_head_says_what_differs_from_the_published_script(name):
    """And what it says holds of the networks: biases at 0, and torch's half-steps of the power iteration."""
    head = " ".join((ROOT / "configs" / name).read_text().split("\nrun_dir:")[0].replace("#", " ").split())
    for words in ("Biases start at 0", "first u = W v and then v = W'u", "iterated 15 times at the start", "The ema is theirs"):
        assert words in head, words
    config = load(ROOT / "configs" / name)
    if config.batching.micro_batch is None:
        assert "BatchNorm sees all 50 images" in head and "batching.micro_batch=25 follows it" in head and config.batching.batch_size == 50
    assert config.averagers["ema"].start_kimg * 1000 / config.batching.batch_size in (1_000, 20_000)
    layer = Layers("normal").linear(6, 4)
    assert not layer.bias.any()
    norm, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original.detach()
    u = torch.nn.functional.normalize(weight @ norm._v, dim=0)
    v = torch.nn.functional.normalize(weight.T @ u, dim=0)
    layer.train()(torch.zeros(1, 6))
    torch.testing.assert_close((norm._u, norm._v), (u, v))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_its_head_says_what_it_trains_and_its_command_names_it(path):
    title, fields = read_head(path.read_text())
    assert title.endswith(".") and all(fields[name] for name in ("Command", "Hardware", "Duration", "Expected", "Source", "Run by us"))
    words = shlex.split(re.sub(r"\(on one GPU.*", "", fields["Command"]))
    arguments = parser.parse(words[words.index("gantrain") + 1 :])
    assert (arguments.verb, arguments.config) == ("train", path.stem)


def test_a_file_of_the_working_directory_comes_before_a_shipped_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("total_kimg: 7\n")
    assert load("digits").total_kimg == 7
    assert shipped.explain_choice("digits") == (
        f"configuration: {tmp_path / 'digits'}, not the configuration digits that ships with gantrain"
    )
    Path("digits_swap.yaml").write_text("total_kimg: 7\n")
    assert load("digits_swap") == load(ROOT / "configs" / "digits_swap.yaml")
    assert shipped.explain_choice("digits_swap").endswith("; to use the file digits_swap.yaml of this folder, write digits_swap.yaml")
    assert load("digits_swap.yaml").total_kimg == 7 and shipped.explain_choice("digits_swap.yaml") == ""


UNKNOWN = "there is no such file, and no configuration of this name ships with gantrain"
KNOWN = f"known: {', '.join(NAMES)}"


@pytest.mark.parametrize(
    "config, words",
    [
        ("digitz", f"digitz: {UNKNOWN}; did you mean 'digits'? {KNOWN}"),
        ("nope", f"nope: {UNKNOWN}; {KNOWN}"),
        ("digits.yaml", "digits.yaml: there is no such file; did you mean digits, which ships with gantrain?"),
        ("configs/digits.yaml", "configs/digits.yaml: there is no such file; did you mean digits, which ships with gantrain?"),
        ("elsewhere/digits.yaml", "elsewhere/digits.yaml: there is no such file"),
        (
            "digits_swap",
            f"digits_swap: cannot be read (Is a directory); pass a YAML file, such as {ROOT}/configs/digits_swap.yaml,"
            " which ships with gantrain",
        ),
    ],
)
def test_an_unknown_configuration_is_refused_with_the_shipped_ones(config, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits_swap").mkdir()
    with pytest.raises(UserError) as error:
        load(config)
    assert str(error.value) == words


def test_an_installation_without_configurations_says_so(tmp_path, monkeypatch):
    """A folder configs/ beside the installed package is somebody else's."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("total_kimg: 7\n")
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "gantrain")
    assert shipped.list_shipped() == {}
    with pytest.raises(UserError, match="mine: no configuration of this name ships with gantrain; this installation has none: reinstall"):
        shipped.shipped_file("mine")


def test_configs_lists_them_and_prints_one_to_edit(gantrain, tmp_path):
    listed = gantrain("configs").stdout
    for path in CONFIGS:
        block = " ".join(re.search(rf"^{path.stem}\n((?:    .*\n)+)", listed, re.M)[1].split())
        title, fields = read_head(path.read_text())
        assert block == f"{title} hardware {fields['Hardware']} duration {fields['Duration']}"
    assert gantrain("configs", "digits_swap").stdout == (ROOT / "configs" / "digits_swap.yaml").read_text()
    assert max(map(len, listed.splitlines())) <= 100
    assert "digitz: no configuration of this name ships with gantrain; did you mean 'digits'?" in error_of(
        gantrain("configs", "digitz", check=False)
    )
    printed = gantrain("config", "digits").stdout
    assert printed.startswith("# configuration: digits, which ships with gantrain (")
    (tmp_path / "mine.yaml").write_text(printed)
    assert load(tmp_path / "mine.yaml") == load(CONFIGS[NAMES.index("digits")])


class Untrained:
    """In the place of the trainer: keeps the configuration."""

    accelerator, stopping = None, None
    config: Config

    def __init__(self, config, accelerator, interruption, changed_data, claim):
        Untrained.config = config

    def train(self):
        pass


def test_train_says_which_configuration_a_name_means(gantrain, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "Trainer", Untrained)
    monkeypatch.setattr(train, "finish", lambda accelerator: None)
    path, run = ROOT / "configs" / "digits.yaml", f"run_dir={tmp_path / 'run'}"
    assert gantrain("train", "digits", "seed=3", run).stdout == f"configuration: digits, which ships with gantrain ({path})\n"
    assert Untrained.config == load(path, ["seed=3", run])
    assert gantrain("train", path, run).stdout == ""
    monkeypatch.setattr(train, "process_rank", lambda: 1)
    assert gantrain("train", "digits", run).stdout == ""


def test_a_reference_may_be_a_name():
    by_name, by_path = (open_reference(path, 64, torch.device("cpu")) for path in ("digits", ROOT / "configs" / "digits.yaml"))
    assert by_name.described == by_path.described == "digits (64 images)" and torch.equal(by_name.take(0, 8), by_path.take(0, 8))


@pytest.mark.slow
def test_reference_takes_a_name(gantrain, tmp_path):
    written = gantrain("reference", "digits", "--out", tmp_path / "a.npz", "--moments-only", "eval.reference_samples=64").stdout
    assert "a.npz: mean and covariance of digits (64 images)" in written


# ---- in a wheel ------------------------------------------------------------------------------------------------------


@functools.cache
def built(kind: str, folder: Path) -> Path:
    """A wheel, an editable wheel or a source distribution of this clone."""
    backend = pytest.importorskip("hatchling.build", reason="hatchling is not installed")
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        return folder / getattr(backend, f"build_{kind}")(str(folder))
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return built("wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_package_and_the_configurations(wheel):
    with zipfile.ZipFile(wheel) as opened:
        inside = {name for name in opened.namelist() if ".dist-info/" not in name}
        assert all(opened.read(f"gantrain/configs/{path.name}") == path.read_bytes() for path in CONFIGS)
    files = [path for path in (ROOT / "gantrain").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert inside == {str(path.relative_to(ROOT)) for path in files} | {f"gantrain/configs/{path.name}" for path in CONFIGS}
    assert {Path(name).suffix for name in inside} == {".py", ".typed", ".html", ".json", ".safetensors", ".yaml"}


def test_an_editable_install_is_a_plain_path(tmp_path):
    """Otherwise the folder above a clone passes for the package; copies of files would go stale."""
    with zipfile.ZipFile(built("editable", tmp_path)) as opened:
        assert [name for name in opened.namelist() if ".dist-info/" not in name] == ["_gantrain.pth"]
        assert opened.read("_gantrain.pth").decode().strip() == str(ROOT)


@pytest.mark.slow
def test_a_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    import tarfile

    with tarfile.open(built("sdist", tmp_path)) as opened:
        opened.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    done = subprocess.run(
        [sys.executable, "-c", "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))", str(tmp_path)],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.strip()) as one, zipfile.ZipFile(wheel) as other:
        assert {name: one.read(name) for name in one.namelist()} == {name: other.read(name) for name in other.namelist()}


@pytest.mark.slow
def test_the_wheel_alone_trains_scores_samples_and_reports_in_an_empty_folder(wheel, tmp_path):
    """Installed into an environment of its own, which reads this one's libraries and does not see the clone."""
    venv.create(tmp_path / "env", with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env" / "bin" / "python")]
    done = subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words: str) -> str:
        began = time.monotonic()
        done = subprocess.run(
            [str(tmp_path / "env" / "bin" / "gantrain"), *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"{time.monotonic() - began:6.1f} s  gantrain {' '.join(words)}")
        return done.stdout

    said = run("train", "digits", "total_kimg=2")
    assert said.startswith(f"configuration: digits, which ships with gantrain ({packages / 'gantrain' / 'configs' / 'digits.yaml'})\n")
    assert "done: runs/digits at 2.048 kimg" in said and "digits_fid" in said
    record = [json.loads(line) for line in (folder / "runs/digits/metrics.jsonl").read_text().splitlines()]
    assert {name for line in record for name in line} >= {f"eval/{a}/digits_{m}" for a in ("live", "ema") for m in ("fid", "kid")}
    assert list((folder / "runs/digits/samples").glob("*.png"))
    run("report", "runs/digits")
    assert "digits_fid" in (folder / "runs/digits/report.html").read_text()
    run("sample", "runs/digits", "--num", "16", "--out", "digits.png")
    with Image.open(folder / "digits.png") as picture:
        assert picture.width > 16
    assert all(f"\n{name}\n" in f"\n{run('configs')}" for name in NAMES)
    (folder / "mine.yaml").write_text(run("configs", "digits"))
    assert "total_kimg: 1.0" in run("config", "mine.yaml", "total_kimg=1")
    assert "usage: gantrain prepare" in run("prepare", "--help")
    run("prepare", "digits", "--out", "prepared", "--resolution", "16")
    assert "all 1,797 images match their checksums" in run("prepare", "--verify", "prepared")
