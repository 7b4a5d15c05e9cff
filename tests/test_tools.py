"""The stand-alone scripts, as their heads say to run them."""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from conftest import ROOT
from safetensors.torch import load_file

from gantrain.metrics.features import DigitsClassifier


def run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_benchmark_compares_variants(tmp_path):
    said = run(
        "tools/benchmark.py", "configs/digits.yaml", "model.ch=2", "batching.batch_size=16", "--updates", 1, "--turns", 2,
        "--against", "performance.channels_last=false", "--against", "averagers.ema=null averagers.swa=null", "--json", tmp_path / "b.json",
    )  # fmt: skip
    record = json.loads((tmp_path / "b.json").read_text())
    assert [row["variant"] for row in record["rows"]] == ["as configured", "performance.channels_last=false", "averagers.ema=null averagers.swa=null"]
    for row in record["rows"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) <= row["median"] <= max(row["seconds"]) and row["batch_size"] == 16
        assert f"{row['median'] * 1e3:.2f}" in said


def test_the_table_of_the_digits_metrics_is_this_codes():
    """docs/digits_metrics.md against the command that it names: the last digit may depend on the machine."""
    documented = [line for line in (ROOT / "docs" / "digits_metrics.md").read_text().splitlines() if line.startswith("|")]
    found = run("tools/digits_metrics.py").splitlines()
    assert documented[:2] == found[:2] and len(documented) == len(found)
    for one, other in zip(documented[2:], found[2:]):
        (name, *numbers), (same, *again) = ([cell.strip() for cell in line.strip("|").split("|")] for line in (one, other))
        assert name == same
        assert [float(x) for x in again] == pytest.approx([float(x) for x in numbers], rel=1e-2, abs=5e-3)


def test_the_digits_classifier_can_be_made_again(tmp_path):
    """In a fifth of the epochs, nearly as good; what ships is left alone."""
    run("tools/train_digits_classifier.py", "--epochs", 6, "--out", tmp_path / "again.safetensors")
    record = json.loads((tmp_path / "digits_classifier.json").read_text())
    shipped = json.loads((ROOT / "gantrain" / "metrics" / "digits_classifier.json").read_text())
    assert record["sha256"] == hashlib.sha256((tmp_path / "again.safetensors").read_bytes()).hexdigest()
    assert record["held_out_accuracy"] > 0.95 and record["parameters"] == shipped["parameters"]
    DigitsClassifier().load_state_dict(load_file(tmp_path / "again.safetensors"))
