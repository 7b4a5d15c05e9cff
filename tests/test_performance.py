"""Speed without a clock: what is picked, what is not waited for, how often processes speak, and that none of it changes a result."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TESTS, TINY, lines_of
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gantrain import performance
from gantrain.augment import gates
from gantrain.config.loading import load
from gantrain.data import Digits, pack
from gantrain.losses import PENALTIES
from gantrain.performance import Performance
from gantrain.training.guard import Pulse
from gantrain.training.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DIGITS = ROOT / "configs" / "digits.yaml"
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


# ---- what is picked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device, on", [("cpu", {"channels_last", "keep_memory"}), ("cuda", {"channels_last", "tf32"}), ("mps", set())])
def test_what_is_left_open_is_picked_for_the_device(device, on):
    found = performance.pick(Performance(), torch.device(device))
    assert {name for name in ("channels_last", "compile", "tf32", "keep_memory") if getattr(found, name)} == on
    assert None not in vars(found).values() and performance.pick(found, CPU) == found


def test_what_is_given_stays_and_without_auto_nothing_is_picked():
    found = performance.pick(Performance(channels_last=False, compile=True), CPU)
    assert (found.channels_last, found.compile, found.keep_memory) == (False, True, True)
    off = performance.pick(Performance(auto=False, tf32=True), CPU)
    assert (off.channels_last, off.compile, off.tf32, off.keep_memory) == (False, False, True, False)


def test_a_run_says_what_was_picked_and_what_was_asked_for(gantrain, tmp_path):
    said = gantrain("train", DIGITS, *TINY, f"run_dir={tmp_path / 'run'}", "total_kimg=0.032", "performance.tf32=false").stdout
    assert "performance: channels_last, keep_memory picked for cpu; as configured tf32=false" in said
    start = next(line for line in lines_of(tmp_path / "run") if line.get("event") == "start")
    assert start["switches"] == {"auto": True, "channels_last": True, "compile": False, "tf32": False, "keep_memory": True}


@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_tensor():
    """Counted in page faults: a tensor that is mapped anew has one for each of its pages, 4 or 64 KiB."""
    text = """
import resource, torch
from gantrain.performance import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
assert keep_freed_memory()
faults()
print(before, min(faults() for _ in range(5)))  # the heap has its place after one or two rounds
"""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("needs glibc")
    out = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    before, after = map(int, out.split())
    assert before >= 5 * 2**26 / 2**16 and after < before / 50


# ---- what is not waited for ------------------------------------------------------------------------------------------


READINGS = ("item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__", "__index__", "__array__")


class Waits(TorchDispatchMode):
    """Counts what would have a host wait for its device: a tensor read as numbers, and shapes that depend on values.

    What the guard hears of the update before the last one has arrived, as an event tells it on a GPU: that it reads is right.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        super().__init__()
        self.found: Counter[str] = Counter()
        hearing, receive = [], Pulse.receive

        def hears(pulse: Pulse, all: bool = False):
            assert not all and len(pulse._sent) <= 2
            hearing.append(True)
            try:
                return receive(pulse, all)
            finally:
                hearing.pop()

        def counted(name: str):
            read = getattr(torch.Tensor, name)

            def call(*args, **kwargs):
                if not hearing:
                    self.found[name] += 1
                return read(*args, **kwargs)

            return call

        patch.setattr(Pulse, "receive", hears)
        for name in READINGS:
            patch.setattr(torch.Tensor, name, counted(name))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


EVERYTHING = [
    "optim.d_steps=2",
    "optim.orthogonal_g=1e-4",
    "noise_scale.measure_every=1",
    "noise_scale.window=8",
    "batching.micro_batch=8",
    "data.flip=true",
    "penalties={r1: {name: r1, gamma: 0.1, every: 2}}",
    "averagers={a: {name: ema, half_life_kimg: 1, networks: gd}, b: {name: swa, every_kimg: 0.016}, c: {name: bema}, d: {name: power}}",
    "guard.on_saturation=rollback",
    "total_kimg=9",
    "tracking.wandb.mode=disabled",
]


def begun(folder, *overrides: str) -> Trainer:
    trainer = Trainer(load(DIGITS, [*TINY, *EVERYTHING, *overrides, f"run_dir={folder}"]))
    trainer.start()
    for _ in range(2):
        trainer.update()
    return trainer


def test_the_trap_sees_what_waits(monkeypatch):
    with monkeypatch.context() as patch, Waits(patch) as waits:
        x = torch.ones(3)
        seen = (
            x[0].item() == 1,
            bool(x.sum() > 0),
            float(x[1]) == 1,
            x.tolist() == [1.0] * 3,
            len(x.nonzero()) == 3,
            x.cpu().numpy().sum() == 3,
        )
    assert all(seen)
    assert waits.found == {
        "aten::_local_scalar_dense": 3,
        "aten::nonzero": 1,
        "item": 1,
        "__bool__": 1,
        "__float__": 1,
        "tolist": 1,
        "cpu": 1,
        "numpy": 1,
    }


QUIETLY = [
    "tracking.every_kimg=9",
    "tracking.samples_every_kimg=null",
    "eval.every_kimg=null",
    "checkpoint.every_kimg=9",
    "orbit.every_kimg=null",
]


def test_nothing_is_waited_for_between_two_lines_of_the_record(tmp_path, monkeypatch):
    """The loop as it turns, with a measured noise scale, rounds, penalties, averages of both players, and the guard."""
    trainer = begun(tmp_path, *QUIETLY)
    with monkeypatch.context() as patch, Waits(patch) as waits:
        for _ in range(4):
            trainer.guard.listen()
            assert not trainer.maintain()
            trainer.update()
    trainer.close()
    assert not waits.found


WORDS = {
    "every penalty": [
        f"penalties={{{', '.join(f'{name}: {{name: {name}, every: 1}}' for name in PENALTIES)}}}",
        "optim.g={name: rmsprop}",
        "optim.d={name: adamw}",
        "optim.clip_g=1",
        "optim.clip_d=1",
    ],
    "augmentation and schedules": [
        "augment={name: ada, noise: 1, filter: 1, cutout: 1, every: 16}",
        "penalties={r1: {name: fd_r1, gamma: {from: 1, to: 0, until_kimg: 9}}}",
        "optim.lr_g={from: 1e-3, to: 0, until_kimg: 9}",
        "optim.g_steps=2",
        "model.san=true",
    ],
    "diffaugment": ["augment={name: diffaugment}", "loss={name: relativistic}", "optim.first=g"],
}


@pytest.mark.parametrize("words", WORDS)
def test_no_word_of_an_update_is_waited_for(words, tmp_path, monkeypatch):
    """As on a device that has to be waited for: the CPU looks at which images an augmentation touches."""
    monkeypatch.setattr(gates, "waits", lambda device: True)
    trainer = begun(tmp_path, *QUIETLY, *WORDS[words])
    with monkeypatch.context() as patch, Waits(patch) as waits:
        for _ in range(3):
            trainer.guard.listen()
            assert not trainer.maintain()
            trainer.update()
    trainer.close()
    assert not waits.found


@ON_GPU
@pytest.mark.parametrize("words", [[], *WORDS.values()])
def test_an_update_waits_for_nothing_on_a_gpu(tmp_path, words):
    trainer = begun(tmp_path, *QUIETLY, *words)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.maintain()
            trainer.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.close()


# ---- what a run computes with ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [True, False], ids=["channels_last", "contiguous"])
def test_training_is_in_the_order_in_memory_that_was_picked(on, tmp_path, monkeypatch):
    """Images of three channels, real and generated, features, weights, gradients and moments."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    images = [
        "data={name: random_images:RandomImages, resolution: 16, size: 64, num_classes: 10}",
        "optim.d_steps=1",
        f"performance.channels_last={str(on).lower()}",
    ]
    trainer = Trainer(load(DIGITS, [*TINY, *images, f"run_dir={tmp_path}"]))
    trainer.start()
    order, seen = torch.channels_last if on else torch.contiguous_format, []
    first = trainer.players.G.network.blocks[0]  # takes 4 x 4 images out of a linear layer, in the order in which that has them
    for network in (trainer.players.G.network, trainer.players.D.network):
        for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
            given = 0 if conv in (first.conv1, first.shortcut) else 1
            conv.register_forward_hook(lambda module, inputs, output, given=given: seen.extend([*inputs[:given], module.weight, output]))
    trainer.players.D.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trainer.update()
    for player in trainer.players.by_key.values():
        for p in (p for p in player.network.parameters() if p.dim() == 4):
            seen += [p, p.grad, player.optimizer.state[p]["exp_avg"], player.optimizer.state[p]["exp_avg_sq"]]
    trainer.close()
    tell = [x for x in seen if x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1]  # the others lie the same in both orders
    assert any(x.shape[1:] == (3, 16, 16) for x in tell) and len(tell) > 40 and all(x.is_contiguous(memory_format=order) for x in tell)


@pytest.mark.parametrize("keep", ["true", "false"])
def test_a_run_keeps_freed_memory_where_it_shall(keep, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(performance, "keep_freed_memory", lambda: asked.append(True))
    Trainer(load(DIGITS, [*TINY, f"performance.keep_memory={keep}", f"run_dir={tmp_path}"]))
    assert bool(asked) == (keep == "true")


# ---- how often processes speak ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_are_exchanged_once_a_step_however_many_rounds(together, tmp_path):
    """Counted in DistributedDataParallel's own buckets, by two processes: a bucket a network, once for each step of its optimizer."""
    cases = {k: tmp_path / str(k) for k in (1, 2, 4)}
    words = [
        w
        for k, folder in cases.items()
        for w in ("--", "exchanges", folder, DIGITS, *TINY, "total_kimg=9", f"batching.micro_batch={8 // k}", f"run_dir={folder / 'run'}")
    ]
    together(2, TESTS / "workers.py", *words)
    for folder in cases.values():
        assert sorted(p.read_text() for p in folder.glob("world-*")) == ["2", "2"]
        found = json.loads((folder / "exchanges.json").read_text())
        assert found == {"updates": 3, "d_steps": 2, "buckets": {"d": 1, "g": 1}, "exchanges": {"d": 6, "g": 3}, "views": True}


@pytest.mark.slow
def test_two_machines_train_as_one_with_two_processes(together, tmp_path):
    """Two launchers, as on two machines, each with a process of its own; they meet on localhost."""
    words = [*TINY, "total_kimg=0.16", "eval.every_kimg=null", "tracking.wandb.mode=disabled"]
    together(2, "-m", "gantrain", "train", DIGITS, *words, f"run_dir={tmp_path / 'one'}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--main_process_ip",
        "127.0.0.1",
    ]
    launcher += ["--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = ["-m", "gantrain", "train", str(DIGITS), *words, f"run_dir={tmp_path / 'two'}"]
    machines = [
        subprocess.Popen(
            [*launcher, "--machine_rank", str(rank), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for rank in range(2)
    ]
    said = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    one, two = (lines_of(tmp_path / run) for run in ("one", "two"))
    assert next(line for line in two if line.get("event") == "start")["processes"] == 2 and "done:" in said[0] and "done:" not in said[1]
    numbers = [
        [{k: v for k, v in line.items() if not k.startswith(("throughput", "memory"))} for line in lines if "loss/d" in line]
        for lines in (one, two)
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 2


# ---- BatchNorm over all processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_synchronised_batchnorm_is_plain_batchnorm_on_one_process(gantrain, tmp_path):
    words = [DIGITS, *TINY, "total_kimg=0.064", "eval.num_samples=32"]
    logs = []
    for on in ("false", "true"):
        gantrain("train", *words, f"run_dir={tmp_path / on}", f"sync_batchnorm={on}")
        logs.append(
            [(line["loss/d"], line["loss/g"]) for line in lines_of(tmp_path / on) if "loss/d" in line]
            + [v for line in lines_of(tmp_path / on) for k, v in line.items() if k.startswith("eval/ema")]
        )
    assert logs[0] == logs[1] and len(logs[0]) > 3
    config = load(DIGITS, [*TINY, "sync_batchnorm=true", f"run_dir={tmp_path / 'x'}"])
    trainer = Trainer(config)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in trainer.players.G.network.modules()) and not any(
        isinstance(m, nn.SyncBatchNorm) for m in trainer.players.averaged.modules()
    )


@pytest.mark.slow
def test_synchronised_batchnorm_on_cpus_is_refused(together, tmp_path):
    done = together(2, "-m", "gantrain", "train", DIGITS, *TINY, "sync_batchnorm=true", f"run_dir={tmp_path}", check=False)
    assert done.returncode and "sync_batchnorm: torch synchronises BatchNorm on GPUs only; set sync_batchnorm=false" in done.stderr


# ---- compiled networks -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_resumes_swaps_and_averages_as_another(gantrain, tmp_path, monkeypatch, backend):
    """With a backend that runs what was traced as it is, nothing may differ by a bit; with the real one, what rounding does."""
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: compile(self, backend=backend, **kwargs))
    swaps = [
        "swap={source: ema, start_kimg: 0.08, every_kimg: 0.08, after_kimg: 0.04, networks: g}",
        "eval.every_kimg=null",
        "optim.eps=1e-3",
        "batching.micro_batch=8",
    ]
    for name, on in (("plain", "false"), ("compiled", "true")):
        words = ["train", DIGITS, *TINY, *swaps, f"run_dir={tmp_path / name}", f"performance.compile={on}"]
        torch._dynamo.utils.counters.clear()  # of whatever this process has compiled before
        gantrain(*words, "total_kimg=0.16")
        torch.compiler.reset()
        assert "resumed at 0.16" in gantrain(*words, "total_kimg=0.24").stdout
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == (name == "compiled")
    plain, compiled = (sorted((tmp_path / name / "checkpoints").iterdir())[-1] for name in ("plain", "compiled"))
    files = sorted(p.name for p in plain.glob("*.safetensors"))
    assert files == sorted(p.name for p in compiled.glob("*.safetensors")) and "g.safetensors" in files
    for file in files:
        a, b = load_file(plain / file), load_file(compiled / file)
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            torch.testing.assert_close(b[name], tensor, **({"rtol": 0, "atol": 0} if backend == "eager" else {"rtol": 2e-3, "atol": 2e-4}))


# ---- in half precision -----------------------------------------------------------------------------------------------


def test_features_stay_in_the_precision_of_the_convolutions():
    """Conditional gains in fp32 would make every feature map fp32 up to the next convolution, at twice the traffic."""
    trainer_config = load(DIGITS, TINY)
    G, _ = trainer_config.model.build(16, 1, 10)
    seen = []
    for block in G.blocks:
        block.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        G(torch.randn(4, G.dim_z), torch.arange(4))
    assert seen and set(seen) == {torch.bfloat16}


# ---- the bound -------------------------------------------------------------------------------------------------------


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import roofline

    return roofline


def test_the_bound_is_an_updates_convolutions_and_products_alone(roofline):
    conv, out = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last), nn.Linear(4, 2)
    x = torch.randn(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with roofline.Roofline() as bound:
        out(F.relu(conv(x)).mean(dim=(2, 3))).square().sum().backward()
    names = Counter(func._schema.name for func, _, _ in bound.calls)
    assert names == {"aten::convolution": 1, "aten::convolution_backward": 1, "aten::addmm": 1, "aten::mm": 2}
    bound.run()
    with Counting() as counting:
        bound.run()
    assert counting.found == names  # and nothing else
    described = bound.calls[0][1]
    made = bound.filled(described)
    assert made[0].shape == x.shape and made[0].is_contiguous(memory_format=torch.channels_last) and made[0].dtype == x.dtype
    assert made[1].shape == conv.weight.shape and list(made[3]) == [1, 1]
    assert bound.filled(described)[0] is made[0]  # made once


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def test_the_bound_has_the_precision_of_the_update(roofline):
    conv = nn.Conv2d(3, 4, 3)
    with torch.autocast("cpu", torch.bfloat16), roofline.Roofline() as bound:
        conv(torch.randn(2, 3, 8, 8))
    assert [made.dtype for made in bound.filled(bound.calls[0][1])[:2]] == [torch.bfloat16] * 2


# ---- the same run with every switch ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "digits"
    pack(Digits().build(), folder, "digits")
    return folder


SWITCHES = {
    "nothing picked": ["performance.auto=false"],
    "channels_last": ["performance={auto: false, channels_last: true}"],
    "packed": ["data={{name: packed, resolution: 16, flip: true, root: {packed}}}"],
    "packed on the device": ["data={{name: packed, resolution: 16, root: {packed}, keep_in: device}}"],
    "background": ["eval.async=true"],
    "bf16": ["mixed_precision=bf16"],
}


def with_switch(name: str, packed) -> list[str]:
    return [word.format(packed=packed) for word in SWITCHES[name]] if "packed" in name else SWITCHES[name]


def tensors_of(run) -> dict[tuple[str, str], torch.Tensor]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return {(path.name, name): tensor for path in sorted(newest.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def switches(*by_default: str, all: list[str]) -> list:
    return [name if name in by_default else pytest.param(name, marks=pytest.mark.slow) for name in all]


@pytest.mark.slow
@pytest.mark.parametrize("switch", switches("packed", "bf16", all=list(SWITCHES)))
def test_a_run_in_two_goes_is_the_run_in_one(switch, gantrain, packed_digits, tmp_path):
    """Bit for bit, with rounds, a swap, and scores."""
    words = [
        DIGITS,
        *TINY,
        *with_switch(switch, packed_digits),
        "batching.micro_batch=8",
        "swap={source: ema, start_kimg: 0.08, every_kimg: 0.08, after_kimg: 0.04, networks: g}",
    ]
    for run, totals in (("one", [0.24]), ("two", [0.16, 0.24])):
        for total in totals:
            gantrain("train", *words, f"run_dir={tmp_path / run}", f"total_kimg={total}")
    one, two = (tensors_of(tmp_path / run) for run in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    scores = [
        [(line["nimg"], k, str(v)) for line in lines_of(tmp_path / run) for k, v in line.items() if k.startswith("eval/")]
        for run in ("one", "two")
    ]
    assert scores[0] and set(scores[0]) <= set(scores[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch", switches("packed", all=[name for name in SWITCHES if name != "bf16"])
)  # whose rounding is of another size
def test_rounds_and_processes_leave_a_run_what_it_was(switch, gantrain, together, packed_digits, tmp_path):
    """Sixteen images an update in one round, in two, and on two processes; without BatchNorm, which goes by the micro-batch."""
    words = [
        DIGITS,
        *TINY,
        *with_switch(switch, packed_digits),
        "model.name=plain_networks:PlainBigGAN",
        "optim.eps=1e-3",
        "eval.every_kimg=null",
        "total_kimg=0.048",
    ]
    gantrain("train", *words, f"run_dir={tmp_path / 'one'}")
    gantrain("train", *words, f"run_dir={tmp_path / 'rounds'}", "batching.micro_batch=8")
    together(2, "-m", "gantrain", "train", *words, f"run_dir={tmp_path / 'processes'}")
    assert next(line for line in lines_of(tmp_path / "processes") if line.get("event") == "start")["processes"] == 2
    gradients = {name: last_gradients(tmp_path / name) for name in ("one", "rounds", "processes")}
    for name in ("rounds", "processes"):
        for player, one in gradients["one"].items():
            # Not tensor by tensor: in float32 rounding may carry one image over a kink of ReLU, which a wrong gradient is far beyond.
            assert (gradients[name][player] - one).norm() < 0.02 * one.norm(), (name, player)


def last_gradients(run) -> dict[str, torch.Tensor]:
    """Of D and of G: Adam's first moments, which with beta_1 = 0 are the last update's gradient."""
    tensors = tensors_of(run)
    return {
        player: torch.cat(
            [t.flatten() for (file, name), t in tensors.items() if file == f"optimizer_{player}.safetensors" and name.endswith("/exp_avg")]
        )
        for player in "dg"
    }
