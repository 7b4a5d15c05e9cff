"""Other systems: one without the calls that Windows lacks, simulated, and machines with an Apple GPU, as far as a choice goes.

Nothing here runs on Windows or on an Apple GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY
from torch.utils._python_dispatch import TorchDispatchMode

from gantrain import devices, distributed
from gantrain.averaging import AverageBank, Ema
from gantrain.averaging.batchnorm import recalibrate
from gantrain.batching import GradientProbe, NoiseMonitor, NoiseScale
from gantrain.errors import UserError
from gantrain.evaluation.neighbours import find_nearest
from gantrain.theory.sketch import Sketch

# What Python lacks on Windows and gantrain uses.
WITHOUT = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for module, names in ((signal, ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "alarm")), (os, ("pread", "nice", "register_at_fork"))):
    for name in names:
        delattr(module, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
    signal.Signals._member_map_.pop(name)
"""


def without(code: str, *arguments: object, before: str = "") -> str:
    """What a program prints where those calls are missing.

    Args:
        before: imports of libraries that need them on this system, and other calls on Windows.
    """
    words = [sys.executable, "-c", f"{before}\n{WITHOUT}\n{code}", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_line_needs_no_call_of_unix(tmp_path):
    """Its help, and the ground that all commands stand on: there are no locks, and the signals are the two that there are."""
    code = """
from pathlib import Path
from gantrain import atomic_file, cli, interruption, lock
folder = Path(sys.argv[1])
with lock.acquire(folder), lock.acquire(folder):  # nothing is locked
    print(lock.AVAILABLE, lock.owner(folder), [one.name for one in interruption.SIGNALS])
with interruption.Interruption() as one:
    one.patient = True
    os.kill(os.getpid(), signal.SIGTERM)
    print(one.asked.name)
atomic_file.write_atomically(folder / "a", "text", durable=True)
sys.argv = ["gantrain", "--help"]
cli.main()
"""
    said = without(code, tmp_path)
    assert said.startswith("False None ['SIGTERM', 'SIGINT']\nSIGTERM\nusage: gantrain") and (tmp_path / "a").read_text() == "text"


@pytest.mark.slow
def test_a_run_trains_scores_and_resumes_without_the_calls_of_unix(tmp_path):
    before = "import accelerate, matplotlib.pyplot, psutil, scipy.stats, sklearn.datasets, torch, wandb"
    code = "import types, psutil; psutil.Process.memory_info = lambda self: types.SimpleNamespace(peak_wset=2**29)\n"  # as on Windows
    code += "from gantrain.cli import main; sys.argv[0] = 'gantrain'; main()"
    words = ["train", "configs/digits.yaml", f"run_dir={tmp_path / 'run'}", *TINY]
    said = without(code, *words, before=before)
    assert "note: this system has no file locks (gantrain is tested on Linux and macOS only)" in said and "done" in said
    assert "0.5 GiB" in said
    assert "resumed at 0.32 of 0.48 kimg" in without(code, *words, "total_kimg=0.48", before=before)


def test_a_windows_file_is_flushed_through_a_writable_descriptor(tmp_path, monkeypatch):
    """Folders cannot be opened there, and fsync refuses a descriptor that only reads."""
    from gantrain import atomic_file

    windows = WindowsOs()
    monkeypatch.setattr(atomic_file, "os", windows)
    (tmp_path / "a").write_text("a")
    atomic_file.sync(tmp_path / "a")
    atomic_file.sync(tmp_path)
    assert windows.opened == [(tmp_path / "a", os.O_RDWR)]


class WindowsOs:
    """`os` that says it is Windows'. Changing the real one would make pathlib build Windows paths."""

    name = "nt"

    def __init__(self) -> None:
        self.opened: list = []

    def __getattr__(self, name: str):
        return getattr(os, name)

    def open(self, path, flags: int) -> int:
        self.opened.append((path, flags))
        return os.open(path, flags)


# ---- Apple's GPU -----------------------------------------------------------------------------------------------------


@pytest.fixture
def apple(monkeypatch):
    """A machine with an Apple GPU, to which nothing can be sent."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    for name in ("ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_CPU", "PYTORCH_ENABLE_MPS_FALLBACK"):
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield monkeypatch
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "variables, device, said",
    [
        ({}, "cpu", True),
        ({"ACCELERATE_TORCH_DEVICE": ""}, "cpu", True),
        ({"ACCELERATE_TORCH_DEVICE": "mps"}, "mps", False),
        ({"ACCELERATE_TORCH_DEVICE": "cpu"}, "cpu", False),
        ({"ACCELERATE_USE_CPU": "1"}, "cpu", False),
    ],
)
def test_apples_gpu_is_taken_where_asked_and_its_idleness_is_said(apple, variables, device, said):
    for name, value in variables.items():
        apple.setenv(name, value)
    accelerator = distributed.make_accelerator()
    assert accelerator.device.type == device and distributed.leaves_apples_gpu(accelerator.device) == said


@pytest.mark.parametrize(
    "value, words",
    [
        ("mps", "ACCELERATE_TORCH_DEVICE: 'mps' is not available to torch on this machine; unset it to let gantrain choose"),
        ("gpu", "ACCELERATE_TORCH_DEVICE: 'gpu' is not a device of torch; use cpu, cuda or mps, or unset it"),
    ],
)
def test_a_device_that_is_not_there_is_refused(apple, value, words):
    apple.setattr(torch.backends.mps, "is_available", lambda: False)
    apple.setenv("ACCELERATE_TORCH_DEVICE", value)
    with pytest.raises(UserError, match=words):
        distributed.make_accelerator()


class NoDoubles(TorchDispatchMode):
    """Refuses float64, as Apple's GPU does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, (tuple, list)) else [result]
        if any(isinstance(one, torch.Tensor) and one.dtype == torch.float64 for one in found):
            raise TypeError(f"{func} gives float64")
        return result


def test_apples_gpu_gets_no_float64(monkeypatch):
    """Where sums are in float64 elsewhere: the noise scale, BatchNorm's statistics, distances, sketches, nearest neighbours."""
    assert devices.widest_float(torch.device("mps")) == torch.float32 and devices.widest_float(torch.device("cpu")) == torch.float64
    for name in ("batching.noise_scale", "averaging.batchnorm", "averaging.bank", "theory.sketch", "evaluation.neighbours"):
        monkeypatch.setattr(f"gantrain.{name}.widest_float", lambda device: torch.float32)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    x = torch.randn(8, 1, 6, 6)
    bank, probe = AverageBank(network, {"ema": Ema(half_life_kimg=1)}), GradientProbe(network)
    sketch = Sketch(dict(network.named_parameters()), "g", 16)
    with NoDoubles():
        with probe.listening():
            network(x).square().mean().backward()
        measured = probe.measurement(1)
        bank.update(100)
        assert bank.distance("ema").dtype == torch.float32
        sketch(dict(network.named_parameters()))
        recalibrate(network, [(0, (x,))], 1)
    monitor = NoiseMonitor(NoiseScale(1, 8), {"d": [""]})
    monitor.record("d", 4, 8, measured)
    monitor.settle()
    assert monitor.estimates()["d"].measurements == 1
    points = torch.randn(20, 3)
    distances, _ = find_nearest(points, points, 2, themselves=True)  # float64, on the CPU
    torch.testing.assert_close(
        distances[:, 0], torch.cdist(points, points).topk(2, largest=False).values[:, 1].double(), rtol=1e-5, atol=1e-6
    )
