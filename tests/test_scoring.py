"""Evaluation in the background gives the same scores at the same kimg, whatever interrupts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import spawning
from conftest import ROOT, TINY, lines_of
from safetensors.torch import load_file

from gantrain.config.loading import load, to_dict, to_yaml
from gantrain.config.yaml_files import ConfigError
from gantrain.errors import UserError
from gantrain.evaluation import background as scoring
from gantrain.run_folder import checkpoint
from gantrain.training import keeper as keeping
from gantrain.training.guard import Trouble
from gantrain.training.trainer import Trainer

DIGITS = ROOT / "configs" / "digits.yaml"
WORDS = [DIGITS, *TINY, "total_kimg=0.32", "eval.every_kimg=0.24"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def scores_of(run) -> dict[int, dict]:
    """The line of every evaluation by images seen; there is only one for each."""
    lines = [line for line in lines_of(run) if "eval/num_samples" in line]
    assert len({line["nimg"] for line in lines}) == len(lines)
    return {line["nimg"]: {k: v for k, v in line.items() if k.startswith(("eval/", "nimg"))} for line in lines}


def weights_of(run) -> dict:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return {
        (path.name, name): tensor.numpy().tobytes()
        for path in sorted(newest.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.fixture(scope="module")
def plain(gantrain, tmp_path_factory):
    """A run that waits for each evaluation."""
    run = tmp_path_factory.mktemp("plain") / "run"
    gantrain("train", *WORDS, "checkpoint.keep_best=[eval/ema/digits_fid]", f"run_dir={run}")
    assert list(scores_of(run)) == [0, 240, 320]
    return run


@pytest.mark.slow
def test_the_lines_are_those_of_a_run_that_waits(plain, gantrain, tmp_path):
    said = gantrain("train", *WORDS, "checkpoint.keep_best=[eval/ema/digits_fid]", "eval.async=true", f"run_dir={tmp_path}").stdout
    assert "scoring live, ema, ema_short, swa at 0.24 kimg in the background" in said and "\nat 0.24 kimg" in said
    assert scores_of(tmp_path) == scores_of(plain) and weights_of(tmp_path) == weights_of(plain)
    best = [sorted(p.name for p in (run / "best" / "eval.ema.digits_fid").iterdir()) for run in (plain, tmp_path)]
    assert best[0] == best[1] and len(best[0]) == 1
    assert not (tmp_path / "scoring").exists()  # deleted when the run ends
    lines = [line["nimg"] for line in lines_of(tmp_path)]
    assert lines != sorted(lines)  # training did not wait for the scores


@pytest.mark.slow
def test_the_weights_before_a_swap_are_scored(gantrain, tmp_path):
    swap = [
        "swap={source: ema, start_kimg: 0.16, every_kimg: 0.16, after_kimg: 0.04}",
        "total_kimg=0.24",
        "eval.every_kimg=0.16",
        "optim.lr_g=0.01",
    ]
    for name in ("false", "true"):
        gantrain("train", *WORDS, *swap, f"run_dir={tmp_path / name}", f"eval.async={name}")
    found = [
        sorted((line for line in lines_of(tmp_path / name) if "eval/ema/digits_fid" in line), key=lambda line: line["nimg"])
        for name in ("false", "true")
    ]
    assert found[0] == found[1] and [line["nimg"] for line in found[0]] == [160, 240]
    assert found[0][0]["eval/live/digits_fid"] != found[0][0]["eval/ema/digits_fid"]


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_is_scored_scores_it_later(plain, tmp_path):
    words = ["-m", "gantrain", "train", *WORDS, "checkpoint.keep_best=[eval/ema/digits_fid]", "eval.async=true", f"run_dir={tmp_path}"]
    process = spawning.Spawned(words, ENVIRONMENT)
    deadline = time.monotonic() + 60
    while "in the background" not in process.output() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, process.errors()
    assert "\nat 0 kimg" not in process.output()  # the scores cannot be ready so soon
    assert spawning.run(words, ENVIRONMENT).returncode == 0
    assert scores_of(tmp_path) == scores_of(plain) and weights_of(tmp_path) == weights_of(plain)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_is_scored_scores_it_later(plain, tmp_path):
    words = ["-m", "gantrain", "train", *WORDS, "checkpoint.keep_best=[eval/ema/digits_fid]", "eval.async=true", f"run_dir={tmp_path}"]
    process = spawning.Spawned(words, ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "scoring" / "000000000000.log").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    # The scorer exits by itself.
    while any(str(tmp_path) in words and "gantrain.evaluation.background" in words for words in running()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert spawning.run(words, ENVIRONMENT).returncode == 0
    assert scores_of(tmp_path) == scores_of(plain) and weights_of(tmp_path) == weights_of(plain)


def running() -> list[str]:
    """The command lines of all processes."""
    return [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]


@pytest.mark.slow
def test_a_scorer_ends_with_the_process_that_started_it(tmp_path):
    """A process that runs the scorer's watchdog exits after its parent is killed."""
    scorer = (
        "import sys, threading, time; from gantrain.evaluation.background import exit_with;"
        " threading.Thread(target=exit_with, args=(int(sys.argv[1]),)).start(); time.sleep(60)"
    )
    words = [sys.executable, "-c", scorer]
    start = f"import os, subprocess, time; p = subprocess.Popen([*{words!r}, str(os.getpid())]); print(p.pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(timeout=30)


def test_a_scorer_can_import_what_the_run_can(tmp_path, monkeypatch):
    """A plug-in beside the script that calls gantrain can be imported from any working directory."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "my_metric.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path / "beside")
    (tmp_path / "scoring").mkdir()
    started = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda command, **kwargs: started.append((command, kwargs)))
        scoring.BackgroundEvaluation(tmp_path, print)._start(0, tmp_path / "scoring" / "000000000000.json")
    ((command, kwargs),) = started
    done = subprocess.run(
        [command[0], "-c", "import my_metric; print(my_metric.Mine.__name__)"],
        env=kwargs["env"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "Mine\n", done.stderr


@pytest.mark.slow
def test_two_processes_have_one_scorer(together, tmp_path):
    words = [*WORDS, "batching.micro_batch=8", "optim.eps=1e-3"]
    for name in ("false", "true"):
        together(2, "-m", "gantrain", "train", *words, f"run_dir={tmp_path / name}", f"eval.async={name}")
        assert next(line for line in lines_of(tmp_path / name) if line.get("event") == "start")["processes"] == 2
    waited, later = (scores_of(tmp_path / name) for name in ("false", "true"))
    assert waited.keys() == later.keys() and weights_of(tmp_path / "false") == weights_of(tmp_path / "true")
    for nimg, line in waited.items():
        numbers = {k: v for k, v in line.items() if isinstance(v, float)}
        assert numbers == pytest.approx({k: later[nimg][k] for k in numbers}, rel=1e-4, abs=1e-6)  # one process sums in another order


@pytest.mark.slow
def test_a_failing_scorer_ends_the_run_with_its_message(plain, gantrain, tmp_path, monkeypatch):
    words = ["train", *WORDS, "checkpoint.keep_best=[eval/ema/digits_fid]", "eval.async=true", f"run_dir={tmp_path}"]
    popen = subprocess.Popen
    with monkeypatch.context() as patch:
        patch.setattr(
            subprocess,
            "Popen",
            lambda command, **kwargs: popen([sys.executable, "-c", "print('so far'); print('no memory'); exit(2)"], **kwargs),
        )
        done = gantrain(*words, check=False)
    assert (
        done.returncode == 2
        and f"eval.async: {tmp_path}/scoring/000000000000 could" in done.stderr
        and "could not be scored (no memory); set eval.async=false" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
    gantrain(*words[:-2], "eval.async=false", words[-1])
    assert set(scores_of(tmp_path)) == set(scores_of(plain)) and weights_of(tmp_path) == weights_of(plain)


def test_the_message_about_a_killed_scorer_names_the_signal(tmp_path, monkeypatch):
    background = scoring.BackgroundEvaluation(tmp_path, print)
    background.path(0).mkdir(parents=True)
    popen = subprocess.Popen
    words = "import os, sys; sys.stdout.buffer.write(b'a harmless warning \\xff\\n'); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: popen([sys.executable, "-c", words], **kwargs))
    with pytest.raises(UserError, match=r"could not be scored \(ended by SIGKILL\); set eval.async=false to score in the run itself"):
        background.result(0, True, lambda: False)


@pytest.mark.slow
def test_a_rollback_discards_scores_of_the_abandoned_path(gantrain, tmp_path, monkeypatch):
    """While 0.24 kimg is being scored the run rolls back to 0.16: the new weights at 0.24 are scored, even on a slow disk."""
    maintain, result, save_under = Trainer.maintain, scoring.BackgroundEvaluation.result, checkpoint.save_under
    told, started = [], []

    def trouble(trainer: Trainer) -> bool:
        if trainer.run.nimg == 272 and not told:
            told.append(trainer.scoreboard.scoring)
            raise Trouble("worse", 272, 160, "it is worse", {})
        return maintain(trainer)

    def not_yet(self, nimg, wait, asked):
        if nimg != 240 or told:
            return result(self, nimg, wait, asked)
        while not self.path(nimg).is_dir():
            time.sleep(0.01)
        result(self, nimg, False, asked)
        started.append(self._process.pid)
        return None

    def slow(stores, nimg, tensors, state):
        time.sleep(2.0 if told and nimg == 240 else 0.0)
        save_under(stores, nimg, tensors, state)

    monkeypatch.setattr(Trainer, "maintain", trouble)
    monkeypatch.setattr(scoring.BackgroundEvaluation, "result", not_yet)
    monkeypatch.setattr(keeping, "save_under", slow)
    words = [
        "guard={on_worse: rollback, score: eval/ema/digits_fid, factor: 1000}",
        "checkpoint.every_kimg=0.08",
        "tracking.every_kimg=0.016",
    ]
    found = {}
    for name in ("true", "false"):
        told.clear()
        gantrain("train", *WORDS, *words, f"eval.async={name}", f"run_dir={tmp_path / name}")
        (event,) = [line for line in lines_of(tmp_path / name) if line.get("event") == "rollback"]
        assert told == [240 if name == "true" else None] and event["to"] == 160
        lines = [line for line in lines_of(tmp_path / name) if "eval/num_samples" in line]
        assert [line["nimg"] for line in lines] == ([0, 240, 320] if name == "true" else [0, 240, 240, 320])
        found[name] = [{k: v for k, v in line.items() if k.startswith("eval/")} for line in lines]
    assert started and found["true"] == [found["false"][i] for i in (0, 2, 3)]
    assert found["false"][1] != found["false"][2]  # the abandoned path differs


def test_the_key_is_called_async_in_files():
    config = load(DIGITS, ["eval.async=true"])
    assert config.eval.asynchronous is True and to_dict(config)["eval"]["async"] is True and "asynchronous" not in to_yaml(config)
    with pytest.raises(ConfigError, match="eval.asynchronous=True: no such key"):
        load(DIGITS, ["eval.asynchronous=true"])
    with pytest.raises(ConfigError, match="eval.async must be true or false, got 'soon'"):
        load(DIGITS, ["eval.async=soon"])
