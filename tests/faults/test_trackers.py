"""W&B that raises or hangs at every call: the run ends with the weights of a run without it, and a whole record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import spawning
from conftest import ROOT, TESTS, TINY, lines_of
from test_commands import same_run

DIGITS = ROOT / "configs" / "digits.yaml"
SETTINGS = [*TINY, "tracking.wandb.mode=offline", "tracking.wandb.patience=1"]

# A package of that name that `import wandb` finds before the real one. With FAULT "later" it works until the run is open, and for
# three calls.
WANDB = """
import os, time
calls = 0
def fail(*arguments, **kwargs):
    global calls
    calls += 1
    if os.environ["FAULT"] == "later" and calls <= 10:
        return Run()
    if os.environ["FAULT"] == "raises" or os.environ["FAULT"] == "later":
        raise ConnectionError("W&B cannot be reached")
    time.sleep(10**6)
fail.update = fail  # as of run.summary
class Run:
    dir = "nowhere/files"
    url = "https://nowhere"
    def __getattr__(self, name):
        return fail
def Settings(**kwargs):
    return kwargs
init = teardown = fail
def Image(path, caption=None):
    return path
def Plotly(figure):
    return figure
def Table(columns, data):
    return data
"""


def train(run: Path, fault: str | None, tmp_path: Path) -> subprocess.CompletedProcess:
    (tmp_path / "fake" / "wandb").mkdir(parents=True, exist_ok=True)
    (tmp_path / "fake" / "wandb" / "__init__.py").write_text(WANDB)
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
    environment |= {"FAULT": fault or "", "PYTHONPATH": f"{tmp_path / 'fake'}{os.pathsep}{ROOT}"} if fault else {"WANDB_MODE": "disabled"}
    done = spawning.run(["-m", "gantrain", "train", DIGITS, f"run_dir={run}", *SETTINGS], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder / "run", None, folder)
    return folder / "run"


def record(run: Path) -> list[dict]:
    """The record without what differs from one run to another: speeds, memory, the time of day."""
    return [{k: v for k, v in line.items() if not k.startswith(("throughput", "memory", "time"))} for line in lines_of(run)]


@pytest.mark.parametrize(
    "fault, words",
    [
        pytest.param("raises", "wandb: not available (W&B cannot be reached); metrics.jsonl is complete", marks=pytest.mark.slow),
        pytest.param(
            "later", "wandb: stopped (W&B cannot be reached); training continues; metrics.jsonl is complete", marks=pytest.mark.slow
        ),
        pytest.param("hangs", "wandb: did not finish within 1 seconds; giving up; metrics.jsonl is complete", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_and_nothing_is_lost(alone, tmp_path, fault, words):
    done = train(tmp_path / "run", fault, tmp_path)
    warnings = [line for line in done.stdout.splitlines() if line.startswith("wandb:") and "offline; upload" not in line]
    assert warnings == [words] and not done.stderr
    same_run(alone, tmp_path / "run")
    assert record(alone) == record(tmp_path / "run")
    assert "done:" in done.stdout


def test_the_fake_is_what_is_imported(tmp_path):
    """Or the cases above would show nothing."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text(WANDB)
    done = subprocess.run(
        [sys.executable, "-c", "import wandb; print(wandb.fail)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "<function fail" in done.stdout and TESTS.is_dir()
