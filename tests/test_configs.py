"""Every configuration in configs/ trains: the real command on small data of its kind, with narrower networks, otherwise as written.

Inception is narrower too, except for one configuration that is scored by the real one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, lines_of, slow_but
from PIL import Image
from torch import nn

from gantrain.config.loading import load
from gantrain.metrics import features
from gantrain.training.players import make_adam

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
    assert make_adam(networks[0].to_empty(device="cpu"), config.optim.lr_g, config.optim.betas, config.optim.eps).defaults["fused"]
