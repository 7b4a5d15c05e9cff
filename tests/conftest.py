"""One torch thread a process, no network, nothing outside the test's own folders."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

# Before torch is imported, here and in every process that a test starts: two threads that fight for a core cost six times.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import pytest
import spawning
import torch
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parent.parent
TESTS = Path(__file__).parent

# A digits run of a second: everything real, only small.
TINY = [
    "model.ch=2",
    "model.dim_z=8",
    "batching.batch_size=16",
    "optim.d_steps=2",
    "total_kimg=0.32",
    "eval.every_kimg=0.16",
    "eval.num_samples=64",
    "eval.batch_size=32",
    "eval.reference_samples=64",
    "eval.recalibration_batches=2",
    "eval.metrics=[fid,is]",
    "checkpoint.every_kimg=0.08",
    "tracking.every_kimg=0.08",
    "tracking.samples_every_kimg=0.16",
    "tracking.sample_rows=2",
    "averagers.swa.start_kimg=0.16",
    "averagers.swa.every_kimg=0.032",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `pytest -m hunt`."""
    hunt = parser.getgroup("hunt")
    minutes = os.environ.get("HUNT_MINUTES", "2")
    hunt.addoption("--hunt-minutes", type=float, default=float(minutes), help="how long to hunt (default: $HUNT_MINUTES, or 2)")
    hunt.addoption("--hunt-seed", type=int, help="seed of the hunt (default: a new one, which is printed)")
    hunt.addoption("--hunt-areas", help="comma-separated areas (default: all)")
    hunt.addoption("--hunt-failures", default="hunt-failures", help="folder for the failures (default: hunt-failures)")
    hunt.addoption("--hunt-kills", type=int, default=100, help="how many runs are killed (default: 100)")
    hunt.addoption("--hunt-case", metavar="FOLDER", help="run one failure of an earlier hunt again")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`-m hunt` runs in one process, which shows how far the hunt is; pytest-xdist shows nothing before the end."""
    if config.option.markexpr == "hunt" and hasattr(config.option, "numprocesses"):
        config.option.numprocesses, config.option.dist, config.option.tx = 0, "no", []


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, slow but for the quick ones."""
    quick = list(quick)
    return [
        case if case in quick else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases
    ]


def every_third(cases: list[Any]) -> list[Any]:
    """The cases of a parametrized test, slow but for every third."""
    return slow_but(cases[::3], cases)


@pytest.fixture(autouse=True)
def quiet_machine():
    """One thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def reference_cache(tmp_path_factory):
    """A reference cache that lives as long as the test session; there before whatever the tests of a file share is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "gantrain-cache"))
        yield


@pytest.fixture(scope="session")
def gantrain():
    """Runs the command line: `gantrain("train", path, ...)` gives exit status and text.

    In this process, since starting Python and torch costs more than a tiny run; with any keyword of `subprocess.run`, in
    a process of its own.
    """

    def run(*arguments: object, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "gantrain", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=kwargs.pop("cwd", ROOT), **kwargs) if kwargs else here(command)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def here(command: list[str]) -> subprocess.CompletedProcess:
    """The command in this process, from the project's root."""
    from gantrain import cli

    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    AcceleratorState._reset_state(reset_partial_state=True)  # it outlives a run, and with it the precision
    os.chdir(ROOT)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = cli.run(command[3:])
            except SystemExit as end:  # of argparse
                status = end.code
    finally:
        os.chdir(before)
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def launch():
    """Runs this Python's `accelerate launch --multi_gpu` with so many processes, which on a CPU machine speak gloo.

    They import the gantrain beside these tests, whichever is installed.
    """

    def run(processes: int, *arguments: object, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += (
            ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"] if processes > 1 else ["--cpu"]
        )
        command += ["--num_processes", str(processes), "--main_process_port", "0"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def together():
    """The same without a launcher's seconds: `together(2, "-m", "gantrain", ...)` are two processes of one group."""

    def run(processes: int, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
        done = spawning.together(processes, arguments, environment)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits, uint8 `[1797, 1, 16, 16]`, and their labels, in a fixed random order."""
    from gantrain.data import Digits

    data = Digits().build()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.pixels[order], data.labels[order]


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory, digits) -> Path:
    """Weights for the real Inception code without network: He initialisation, BatchNorm statistics of one pass over digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        from random_inception import random_weights

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_weights(digits[0][-8:].expand(-1, 3, -1, -1).contiguous()), path)
    return path


def lines_of(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def error_of(done: subprocess.CompletedProcess) -> str:
    """The single line that a refused command says."""
    assert done.returncode == 2, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr and len(lines) == 1, done.stderr
    assert lines[0].startswith("gantrain: error: ")
    return lines[0]
