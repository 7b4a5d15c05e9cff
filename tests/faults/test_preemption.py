"""Asked to stop: SIGTERM, SIGUSR1 and Ctrl-C in training and in an evaluation, to a process, to one of two, and to their launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import spawning
import torch
from conftest import ROOT, TESTS, TINY, lines_of, slow_but
from safetensors.torch import load_file
from spawning import Spawned
from test_commands import newest, same_run

from gantrain.interruption import ANSWER

DIGITS = ROOT / "configs" / "digits.yaml"
FAULTS = TESTS / "faults"
LAUNCHED = [
    "--multi_gpu",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
]


def arguments(run: Path, *overrides: str) -> list[str]:
    return ["train", str(DIGITS), f"run_dir={run}", *TINY, "total_kimg=0.96", *overrides]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", **more}


def start(command: list[str], **more: str) -> subprocess.Popen | Spawned:
    """A command of this Python's, quickly; another as it is."""
    if command[0] == sys.executable and command[2] != "accelerate.commands.launch":
        return Spawned(command[1:], environment(**more))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(**more))


def launcher(run: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHED, "-m", "gantrain", *arguments(run, *overrides)]


def wait_until(condition, process: subprocess.Popen | Spawned, seconds: float = 120) -> None:
    """Until it holds; the process must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.005)


def trained_to(run: Path, nimg: int):
    return lambda: (run / "metrics.jsonl").exists() and any(line["nimg"] >= nimg for line in lines_of_growing(run))


def lines_of_growing(run: Path) -> list[dict]:
    """The lines of a record that is being written."""
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def told(run: Path) -> list[dict]:
    return [line for line in lines_of(run) if "event" in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert spawning.run(["-m", "gantrain", *arguments(run)], environment()).returncode == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, status",
    slow_but([(signal.SIGTERM, 75)], [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]),
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_a_signal_finishes_the_update_saves_and_says_so(undisturbed, gantrain, tmp_path, number, status):
    """Between two lines of the record, so that what has summed up since the last one is saved too; resumed, the bits are the same."""
    run = tmp_path / "run"
    process = start([sys.executable, "-m", "gantrain", *arguments(run)])
    wait_until(trained_to(run, 400), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    stopped = next(line for line in told(run) if line["event"] == "interrupted")
    assert stopped["signal"] == number.name and stopped["nimg"] == int(newest(run).name) < 960
    assert f"stopped by {number.name} at {stopped['nimg'] / 1000:g} kimg; run the same command to resume from here" in out
    assert err == (ANSWER.decode() if number == signal.SIGINT else "")  # only Ctrl-C is of somebody who looks on
    gantrain(*arguments(run))
    assert [line["nimg"] for line in told(run) if line["event"] == "resume"] == [stopped["nimg"]]
    same_run(undisturbed, run)


@pytest.mark.slow
def test_in_an_evaluation_it_does_not_wait_for_the_scores(undisturbed, gantrain, tmp_path):
    """The scores that were due are made when the run goes on, once; the second Ctrl-C, an echo, changes nothing."""
    run, begun = tmp_path / "run", tmp_path / "begun"
    process = start([sys.executable, str(FAULTS / "inject.py"), "slow_scores", *arguments(run)], FAULT_FILE=str(begun))
    wait_until(begun.exists, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    at = next(line["nimg"] for line in told(run) if line["event"] == "interrupted")
    assert at == 160 and not any("eval/live/digits_fid" in line for line in lines_of(run) if line["nimg"] == at)
    gantrain(*arguments(run))
    assert [line["nimg"] for line in lines_of(run) if "eval/live/digits_fid" in line] == [160 * i for i in range(7)]
    same_run(undisturbed, run)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    """In an evaluation that the first would have to wait for; the last checkpoint stands."""
    run, begun = tmp_path / "run", tmp_path / "begun"
    process = start([sys.executable, str(FAULTS / "inject.py"), "stuck", *arguments(run)], FAULT_FILE=str(begun))
    wait_until(begun.exists, process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    asked, stopped = err.splitlines()
    assert asked == "gantrain: stopping; it saves first. Ctrl-C again stops at once, without saving"
    assert stopped == "gantrain: error: interrupted; run the same command to resume from the last checkpoint, if there is one"


@pytest.mark.slow
def test_a_run_that_is_done_when_it_is_asked_to_stop_is_done(tmp_path):
    """Status 0, or a scheduler's script would run it again."""
    run = tmp_path / "run"
    process = start([sys.executable, str(FAULTS / "inject.py"), "late", *arguments(run, "total_kimg=0.16")])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and lines_of(run)[-1].items() >= {"nimg": 160, "event": "end"}.items(), out + err


@pytest.mark.slow
def test_before_training_has_begun_the_status_is_the_same(tmp_path):
    """Nothing is there to be saved yet; a scheduler's script still sees that it may try again."""
    (tmp_path / "slow_to_import.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\ntime.sleep(60)\n"
    )
    process = start(
        [sys.executable, "-m", "gantrain", *arguments(tmp_path / "run", "loss.name=slow_to_import:Loss")],
        PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
    )
    wait_until((tmp_path / "begun").exists, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert err == "gantrain: error: stopped by SIGTERM; run the same command to resume from the last checkpoint, if there is one\n"


@pytest.mark.slow
def test_sigterm_to_the_launcher_of_two_processes(tmp_path, launch, together):
    """Both stop after the same update; the launcher itself exits with 1 whatever its processes say. Resumed, the weights are those of
    two processes that nobody disturbed."""
    run, other = tmp_path / "run", tmp_path / "other"
    process = start(launcher(run, "eval.every_kimg=null", "eval.metrics=[fid]"))
    wait_until(trained_to(run, 400), process)
    assert lines_of_growing(run)[0]["processes"] == 2
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 1, out + err
    stopped = [line for line in told(run) if line["event"] == "interrupted"]
    assert len(stopped) == 1 and stopped[0]["nimg"] == int(newest(run).name) < 960
    assert out.count("stopped by SIGTERM at") == 1
    launch(2, "-m", "gantrain", *arguments(run, "eval.every_kimg=null", "eval.metrics=[fid]"))
    together(2, "-m", "gantrain", *arguments(other, "eval.every_kimg=null", "eval.metrics=[fid]"))
    same_weights(run, other)


def same_weights(a: Path, b: Path) -> None:
    """Bit-identical weights, optimizers and averages; BatchNorm's running statistics, of which each process has its own until they
    are saved, to rounding."""
    assert newest(a).name == newest(b).name
    for file in newest(a).glob("*.safetensors"):
        one, other = load_file(file), load_file(newest(b) / file.name)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            if "running_" in name:
                torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(tensor, other[name]), f"{file.name}: {name}"


@pytest.mark.slow
def test_the_documented_slurm_script_requeues(tmp_path):
    """The script itself under a scheduler of two lines: srun starts two tasks, one gets SIGUSR1, scontrol records its arguments."""
    text = (ROOT / "docs" / "running.md").read_text()
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.S)[1]
    run, shims = tmp_path / "run", tmp_path / "bin"
    shims.mkdir()
    write_shim(shims / "srun", SRUN)
    write_shim(shims / "scontrol", SCONTROL.format(noted=tmp_path / "noted"))
    write_shim(shims / "gantrain", f'#!/bin/bash\nexec {sys.executable} -m gantrain "$@"\n')
    script = script.replace("configs/imagenet128_biggan.yaml", " ".join(arguments(run, "eval.every_kimg=null", "eval.metrics=[fid]")[1:]))
    (tmp_path / "job.sh").write_text(script)
    settings = {
        "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    process = start(["bash", str(tmp_path / "job.sh")], **settings, SHIM_PIDS=str(tmp_path / "pids"))
    wait_until(trained_to(run, 400), process)
    os.kill(int((tmp_path / "pids").read_text().split()[1]), signal.SIGUSR1)
    out, err = process.communicate(timeout=90)
    assert (tmp_path / "noted").read_text() == f"requeue {os.getpid()}\n", out + err
    assert lines_of(run)[0]["processes"] == 2 and [line["signal"] for line in told(run) if line["event"] == "interrupted"] == ["SIGUSR1"]
    (tmp_path / "noted").unlink()
    process = start(["bash", str(tmp_path / "job.sh")], **settings, SHIM_PIDS=str(tmp_path / "pids2"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not (tmp_path / "noted").exists(), out + err
    assert told(run)[-1].items() >= {"nimg": 960, "event": "end"}.items()


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
pids=()
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    pids+=($!)
done
echo "${pids[@]}" > "$SHIM_PIDS"
status=0
for pid in "${pids[@]}"; do
    wait $pid; code=$?
    [ $code -gt $status ] && status=$code
done
exit $status
"""

SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo 127.0.0.1 || echo "$@" > {noted}
"""


def write_shim(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
