"""Trainings that go wrong: what the guard sees, where it goes back to, and when it gives up. Real commands with a fault in them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import spawning
from conftest import ROOT, TESTS, lines_of, slow_but
from safetensors.torch import load_file
from test_commands import newest
from test_preemption import LAUNCHED, arguments, environment, start, wait_until

INJECT = str(TESTS / "faults" / "inject.py")


def faulty(run: Path, fault: str, *overrides: str, processes: int = 1, check: int = 0, **settings: str) -> subprocess.CompletedProcess:
    """The command with a fault, to its end."""
    command = [INJECT, fault, *arguments(run, *overrides)]
    if processes == 2:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHED]
        done = subprocess.run([*launcher, *command], capture_output=True, text=True, cwd=ROOT, env=environment(**settings), timeout=200)
    else:
        done = spawning.run(command, environment(**settings))
    assert done.returncode == check, done.stdout + done.stderr
    return done


def events(run: Path, name: str) -> list[dict]:
    return [line for line in lines_of(run) if line.get("event") == name]


def finite(run: Path) -> bool:
    return all(bool(t.isfinite().all()) for file in newest(run).glob("*.safetensors") for t in load_file(file).values())


FEW = ["eval.every_kimg=null", "eval.metrics=[fid]", "tracking.samples_every_kimg=null", "tracking.sample_rows=1"]


@pytest.mark.slow
def test_a_nan_in_a_gradient_on_one_of_two_processes(tmp_path):
    """After the exchange, in one process's G alone: both see it at the same update, go back to the same checkpoint, and finish."""
    done = faulty(tmp_path / "run", "gradient", *FEW, processes=2, FAULT_RANK="1", FAULT_UPDATE="22")
    run = tmp_path / "run"
    assert lines_of(run)[0]["processes"] == 2
    (event,) = events(run, "rollback")
    # Update 22 is that to 368 images; checkpoints are at 80, 160, ..., 320.
    assert event["update_nimg"] == 368 and event["nonfinite"]["grad_norm/g"] == 1 and event["processes"] == 2
    assert event["to"] == 320 and event["nimg"] in (368, 384) and event["attempt"] == 1 and event["skipped"] == event["nimg"] - 320
    assert "grad_norm/g" in event["words"] and "not finite in the update to 0.368 kimg on 1 of 2 processes" in event["words"]
    assert f"guard: {event['words']}; back to 0.32 kimg, attempt 1 of 3, on other images" in done.stdout
    assert newest(run).name == "000000000960" and finite(run)
    assert lines_of(run)[-1].items() >= {"nimg": 960, "event": "end"}.items()


@pytest.mark.slow
@pytest.mark.parametrize("fault, seen", slow_but([("weight", "weights/g")], [("loss", "loss/d"), ("weight", "weights/g")]))
def test_whatever_is_not_finite_is_seen_before_it_is_kept(tmp_path, fault, seen):
    """A checkpoint is due right after the update that goes wrong, that to 400 images: it is written only once the run comes by again."""
    run = tmp_path / "run"
    faulty(run, fault, *FEW, "total_kimg=0.48", FAULT_UPDATE="24")
    (event,) = events(run, "rollback")
    assert seen in event["nonfinite"] and (event["nimg"], event["to"]) == (400, 320) and finite(run)
    assert [line["event"] for line in lines_of(run) if line["nimg"] == 400 and "event" in line] == ["rollback", "checkpoint"]


@pytest.mark.slow
def test_the_same_path_is_not_walked_twice(tmp_path):
    """After a rollback the run takes images and latents that stand behind those of the bad path: none twice, whatever the stream."""
    run, again, other = tmp_path / "run", tmp_path / "again", tmp_path / "other"
    for one in (run, again):
        faulty(one, "gradient", *FEW, "total_kimg=0.48", FAULT_UPDATE="22", FAULT_SEEN=str(tmp_path / f"seen-{one.name}"))
    faulty(other, "none", *FEW, "total_kimg=0.48")
    same = newest(run) / "g.safetensors"
    assert same.read_bytes() == (newest(again) / "g.safetensors").read_bytes() != (newest(other) / "g.safetensors").read_bytes()
    (event,) = events(run, "rollback")
    state = json.loads((newest(run) / "state.json").read_text())
    seen = [line.split() for line in (tmp_path / "seen-run").read_text().splitlines()]
    for stream, a_batch in (("g", 1), ("d0", 1), ("d1", 1), ("real", 2)):  # there are two D steps
        starts = [int(start) for name, start in seen if name == stream]
        assert starts == list(range(0, a_batch * (480 + event["skipped"]), 16)), stream
    assert state["guard"]["skipped"] == event["skipped"] == event["nimg"] - event["to"] and state["guard"]["rollbacks"] == 1


@pytest.mark.slow
def test_it_gives_up_after_as_many_attempts_as_it_may_make(tmp_path):
    """A nan at the same update every time: three rollbacks, rates scaled at each, then status 3 and a last line; the checkpoint is
    whole, and more attempts may be allowed to the same run."""
    run = tmp_path / "run"
    done = faulty(run, "gradient", *FEW, "guard.lr_scale=0.5", FAULT_UPDATE="22", FAULT_TIMES="99", check=3)
    found = events(run, "rollback")
    assert [(one["to"], one["attempt"], one["lr_scale"]) for one in found] == [(320, 1, 0.5), (320, 2, 0.25), (320, 3, 0.125)]
    assert events(run, "gave_up")[0]["rollbacks"] == 3 and lines_of(run)[-1]["event"] == "gave_up"
    last = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(last) == 1 and "3 rollbacks did not help; run the same command with a larger guard.max_rollbacks" in last[0]
    assert newest(run).name == "000000000320" and finite(run)
    faulty(run, "none", *FEW, "guard.lr_scale=0.5", "guard.max_rollbacks=4")
    assert finite(run) and newest(run).name == "000000000960"
    rates = {line["nimg"]: line["lr/g"] for line in lines_of(run) if "lr/g" in line}
    assert rates[960] == pytest.approx(4e-4 / 8)


@pytest.mark.parametrize("action, status", slow_but([], [("stop", 3), ("warn", 0)]))
def test_stop_and_warn(tmp_path, action, status):
    run = tmp_path / "run"
    done = faulty(run, "loss", *FEW, f"guard.on_nonfinite={action}", "total_kimg=0.48", FAULT_UPDATE="22", check=status)
    if action == "stop":
        assert "guard.on_nonfinite=stop ends the run" in done.stderr and newest(run).name == "000000000320" and finite(run)
        assert [line["event"] for line in lines_of(run) if "event" in line][-1] == "gave_up"
    else:
        assert len(events(run, "warning")) == 1 and "continuing (guard.on_nonfinite=warn)" in done.stdout and not finite(run)


@pytest.mark.slow
@pytest.mark.parametrize("to", slow_but(["best"], ["best", "last"]))
def test_a_score_that_gets_worse_leads_back(tmp_path, to):
    """Scripted scores: 4, 1, 1.5, then two above twice the best: back to the best, or to where the score was last well, although
    there were many checkpoints between two evaluations and two are kept. What another score was best with is kept all the same."""
    run = tmp_path / "run"
    guard = f"guard={{on_worse: rollback, score: eval/ema/digits_fid, factor: 2, evaluations: 2, rollback_to: {to}}}"
    told = json.dumps({"digits_fid": [4.0, 1.0, 1.5, 3.0, 9.0, 1.2, 1.2], "digits_is": [1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 2.5]})
    settings = [guard, "checkpoint.every_kimg=0.032", "checkpoint.keep_best=[eval/ema/digits_is]", "tracking.samples_every_kimg=null"]
    done = faulty(run, "scores", *settings, FAULT_SCORES=told)
    (event,) = events(run, "rollback")
    # The ema has scores from 160 images on; the best was at 320, the second bad one at 800.
    assert (event["nimg"], event["to"]) == (800, {"best": 320, "last": 480}[to])
    assert event["best_nimg"] == 320 and event["evaluations"] == 2 and event["value"] == 9.0
    assert "eval/ema/digits_fid 9 is above 2, 2 evaluations in a row; the best was 1 at 0.32 kimg" in done.stdout
    best = {folder.name: [path.name for path in folder.iterdir()] for folder in (run / "best").iterdir()}
    assert best.pop("eval.ema.digits_is") == [{"best": "000000000480", "last": "000000000640"}[to]]
    assert best == ({"eval.ema.digits_fid": ["000000000320"]} if to == "best" else {})  # nothing after it was better than 1
    assert newest(run).name == "000000000960"


@pytest.mark.slow
def test_saturation_of_d_is_said_once(tmp_path):
    """The bound set so high that every D is below it; the default says it and goes on."""
    run = tmp_path / "run"
    done = faulty(run, "none", *FEW, "guard.saturation=0.999", "guard.saturation_kimg=0.2", "optim.lr_d=0.004", "optim.lr_g=0.00001")
    found = events(run, "warning")
    assert len(found) == 1 and found[0]["kind"] == "saturation" and found[0]["loss/d"] < found[0]["bound"] == pytest.approx(2 * 0.999)
    assert "D has won; continuing (guard.on_saturation=warn)" in done.stdout and lines_of(run)[-1]["event"] == "end"


@pytest.mark.slow
def test_killed_after_a_rollback_it_goes_on_as_if_it_had_not_been(tmp_path):
    """Between the rollback and the next checkpoint: the file that tells of the rollback stands for it."""
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    slow = ["checkpoint.every_kimg=0.32", *FEW, "total_kimg=0.64"]
    faulty(undisturbed, "gradient", *slow, "guard.lr_scale=0.5", FAULT_UPDATE="24")
    process = start([sys.executable, INJECT, "gradient", *arguments(run, *slow, "guard.lr_scale=0.5")], FAULT_UPDATE="24")
    wait_until(lambda: (run / "rollback.json").exists(), process)
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()) == 320
    faulty(run, "none", *slow, "guard.lr_scale=0.5")
    assert len(events(run, "rollback")) == 1 and events(run, "rollback") == events(undisturbed, "rollback")
    same_weights_and_losses(undisturbed, run)


def same_weights_and_losses(a: Path, b: Path) -> None:
    for file in newest(a).glob("*.safetensors"):
        assert file.read_bytes() == (newest(b) / file.name).read_bytes(), file.name
    one, other = ([(line["nimg"], line["loss/d"]) for line in lines_of(run) if "loss/d" in line] for run in (a, b))
    assert one == other


@pytest.mark.slow
def test_checkpoints_of_the_abandoned_path_are_not_taken_up(tmp_path):
    """A rollback to the best, killed before the later checkpoints were deleted: they are known for what they are."""
    run = tmp_path / "run"
    guard = [
        "guard={on_worse: rollback, score: eval/ema/digits_fid, evaluations: 2, rollback_to: best}",
        "checkpoint.keep_best=[eval/ema/digits_fid]",
        "checkpoint.keep_last=9",
    ]
    told = json.dumps({"digits_fid": [4.0, 1.0, 3.0, 9.0]})
    late = run / "checkpoints" / "000000000560"
    process = start([sys.executable, INJECT, "scores", *arguments(run, *guard)], FAULT_SCORES=told)
    saved = tmp_path / "saved"
    wait_until(late.exists, process)
    subprocess.run(["cp", "-r", late, saved], check=True)
    wait_until(lambda: (run / "rollback.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    subprocess.run(["cp", "-r", saved, late], check=True)  # as if it had not been deleted yet
    done = faulty(run, "scores", *guard, FAULT_SCORES='{"digits_fid": []}')
    assert "resumed at 0.32 of 0.96 kimg" in done.stdout or "resumed at 0.4 of 0.96 kimg" in done.stdout
    assert len(events(run, "rollback")) == 1 and lines_of(run)[-1]["event"] == "end"


@pytest.mark.slow
def test_growth_at_two_rollbacks_to_one_checkpoint(tmp_path, gantrain):
    """The factors multiply, as those of the learning rates do; the orbit is recorded once for every moment of the path in the end."""
    run = tmp_path / "run"
    policy = "batching={name: on_swap, batch_size: 16, micro_batch: 16, max_batch: 128}"
    faulty(
        run, "gradient", *FEW, policy, "guard.growth=2", "guard.lr_scale=0.5", "orbit.every_kimg=0.032", FAULT_UPDATE="22", FAULT_TIMES="2"
    )
    found = events(run, "rollback")
    assert [(one["to"], one["batch/size"], one["batch/rounds"], one["lr_scale"]) for one in found] == [
        (320, 32, 2, 0.5),
        (320, 64, 4, 0.25),
    ]
    sizes = {line["nimg"]: line["batch/size"] for line in lines_of(run) if "loss/d" in line}
    assert sizes[320] == 16 and all(size == 64 for nimg, size in sizes.items() if nimg > 320) and max(sizes) == 960
    recorded = [json.loads(line)["nimg"] for line in (run / "orbit" / "record.jsonl").read_text().splitlines()]
    assert recorded == sorted(set(recorded)) and len(recorded) > 15
