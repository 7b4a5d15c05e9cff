"""Evaluation in the background: the same scores at the same kimg, whatever comes between."""

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
    """Every evaluation's line by images seen; none may be there twice."""
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
    """A run that scores as it trains."""
    run = tmp_path_factory.mktemp("plain") / "run"
    gantrain("train", *WORDS, "checkpoint.keep_best=[eval/ema/digits_fid]", f"run_dir={run}")
    assert list(scores_of(run)) == [0, 240, 320]
    return run


def test_the_lines_are_those_of_a_run_that_waits(plain, gantrain, tmp_path):
    said = gantrain("train", *WORDS, "checkpoint.keep_best=[eval/ema/digits_fid]", "eval.async=true", f"run_dir={tmp_path}").stdout
    assert "scoring live, ema, ema_short, swa at 0.24 kimg in the background" in said and "\nat 0.24 kimg" in said
    assert scores_of(tmp_path) == scores_of(plain) and weights_of(tmp_path) == weights_of(plain)
    best = [sorted(p.name for p in (run / "best" / "eval.ema.digits_fid").iterdir()) for run in (plain, tmp_path)]
    assert best[0] == best[1] and len(best[0]) == 1
    assert not (tmp_path / "scoring").exists()  # what was scored is gone
    lines = [line["nimg"] for line in lines_of(tmp_path)]
    assert lines != sorted(lines)  # it was waited for by nobody


@pytest.mark.slow
def test_what_is_scored_is_what_there_was_before_a_swap(gantrain, tmp_path):
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
    assert "\nat 0 kimg" not in process.output()  # in so short a time nothing is scored
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
    while any(
        str(tmp_path) in words and "gantrain.evaluation.background" in words for words in running()
    ):  # it ends soon, though nobody tells it to
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert spawning.run(words, ENVIRONMENT).returncode == 0
    assert scores_of(tmp_path) == scores_of(plain) and weights_of(tmp_path) == weights_of(plain)


def running() -> list[str]:
    """The command lines of all processes."""
    return [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]


def test_a_scorer_ends_with_the_process_that_started_it(tmp_path):
    """Its own command, started by a shell that is killed."""
    words = [
        sys.executable,
        "-c",
        "import threading, time; from gantrain.evaluation.background import exit_with; import sys; threading.Thread(target=exit_with, args=(int(sys.argv[1]),)).start(); time.sleep(60)",
    ]
    start = f"import os, subprocess, time; p = subprocess.Popen([*{words!r}, str(os.getpid())]); print(p.pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(timeout=30)


def test_a_scorer_can_import_what_the_run_can(tmp_path, monkeypatch):
    """A plug-in beside the script that calls gantrain, which is started from elsewhere."""
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
        assert numbers == pytest.approx({k: later[nimg][k] for k in numbers}, rel=1e-4, abs=1e-6)  # one process adds up in another order


def test_what_cannot_be_scored_ends_the_run_with_its_words(plain, gantrain, tmp_path, monkeypatch):
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


def test_a_scorer_that_the_system_kills_is_not_misquoted(tmp_path, monkeypatch):
    background = scoring.BackgroundEvaluation(tmp_path, print)
    background.path(0).mkdir(parents=True)
    popen = subprocess.Popen
    words = "import os, sys; sys.stdout.buffer.write(b'a harmless warning \\xff\\n'); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: popen([sys.executable, "-c", words], **kwargs))
    with pytest.raises(UserError, match=r"could not be scored \(ended by SIGKILL\); set eval.async=false to score in the run itself"):
        background.result(0, True, lambda: False)


@pytest.mark.slow
def test_a_rollback_leaves_what_is_scored_of_the_path_that_is_left(gantrain, tmp_path, monkeypatch):
    """While 0.24 kimg are being scored the run goes back to 0.16: what it comes to then at 0.24 is scored, though its disk is slow."""
    listen, result, save_under = Trainer.listen, scoring.BackgroundEvaluation.result, checkpoint.save_under
    told, started = [], []

    def trouble(trainer: Trainer, all: bool = False) -> None:
        listen(trainer, all)
        if trainer.nimg == 272 and not told:
            told.append(trainer.scoring)
            raise Trouble("worse", 272, 160, "it is worse", {})

    def not_yet(self, nimg, wait, asked):
        if nimg != 240 or told:
            return result(self, nimg, wait, asked)
        while not self.path(nimg).is_dir():
            time.sleep(0.01)
        result(self, nimg, False, asked)
        started.append(self._process.pid)

    def slow(stores, nimg, tensors, state):
        time.sleep(2.0 if told and nimg == 240 else 0.0)
        save_under(stores, nimg, tensors, state)

    monkeypatch.setattr(Trainer, "listen", trouble)
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
    assert found["false"][1] != found["false"][2]  # the path that was left is another


def test_the_key_is_called_async_in_files():
    config = load(DIGITS, ["eval.async=true"])
    assert config.eval.asynchronous is True and to_dict(config)["eval"]["async"] is True and "asynchronous" not in to_yaml(config)
    with pytest.raises(ConfigError, match="eval.asynchronous=True: no such key"):
        load(DIGITS, ["eval.asynchronous=true"])
    with pytest.raises(ConfigError, match="eval.async must be true or false, got 'soon'"):
        load(DIGITS, ["eval.async=soon"])
