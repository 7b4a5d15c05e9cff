"""Commands of one process do their work whatever rank an environment has left over, and refuse missing paths before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY

from gantrain import parser
from gantrain.commands import arguments, average, report, sample, walk
from gantrain.errors import UserError

LEFT_OVER = [
    {"RANK": "1"},
    {"RANK": "1", "WORLD_SIZE": "1"},
    {"RANK": "1", "WORLD_SIZE": "2"},
    {"LOCAL_RANK": "1"},
    {"RANK": "x"},
    {"RANK": ""},
    {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    {"PMI_RANK": "1", "PMI_SIZE": "2"},
]


@pytest.fixture(params=LEFT_OVER, ids=lambda left: ",".join(f"{key}={value}" for key, value in left.items()))
def left_over(request, monkeypatch):
    """An environment as a job or a launcher leaves it behind."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    return request.param


def test_commands_of_one_process_do_not_go_by_a_rank(left_over, monkeypatch, capsys):
    """They wrote nothing, and ended with 0."""
    monkeypatch.setattr(report, "report_runs", lambda *given: "report")
    monkeypatch.setattr(walk, "film_walk", lambda *given: "walk")
    monkeypatch.setattr(walk, "choice_of", lambda given: None)
    monkeypatch.setattr(average, "average_run", lambda *given: "average")
    monkeypatch.setattr(sample, "list_classes", lambda given: "classes")
    given = SimpleNamespace(
        runs=["a"], run="a", out="a.gif", num=1, frames=2, fps=3, scale=None, sweep=None, reference=None, overrides=[], sigma_rel=0.1,
        at_kimg=None, name=None, sheet=None, classes=True,
    )  # fmt: skip
    for verb in (report, walk, average, sample):
        if verb is average:
            given.num = None
        verb.call(given)
    assert capsys.readouterr().out.split() == ["report", "walk", "average", "classes"]


@pytest.mark.parametrize(
    "words, line",
    [
        (["watch", "nope"], "nope: does not exist; pass the run_dir of a `gantrain train`"),
        (["sample", "nope"], "nope: does not exist; pass"),
        (["report", "there", "nope"], "nope: does not exist; pass"),
        (["fork", "nope/deeper", "--out", "x"], "nope/deeper: does not exist; pass"),
        (["train", "nope.yaml"], "nope.yaml: there is no such file"),
        (["config", "digit"], "digit: there is no such file, .* did you mean 'digits'?"),
    ],
)
def test_a_path_that_does_not_exist_is_refused_before_the_command_is_imported(words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=line):
        arguments.refuse_missing(parser.parse(words))


def test_paths_that_a_command_knows_better_are_left_to_it(tmp_path, monkeypatch):
    """Names of shipped configurations, images to score, a home folder, a name that no file can have."""
    monkeypatch.chdir(tmp_path)
    for words in (["train", "digits"], ["config"], ["evaluate", "x.npz"], ["evaluate", "~/x"], ["sample", "a\0b"], ["runs", "nope"]):
        arguments.refuse_missing(parser.parse(words))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run: does not exist"):
        arguments.refuse_missing(parser.parse(["sample", "file/run"]))


@pytest.mark.slow
def test_a_missing_path_takes_no_seconds(tmp_path):
    """Nothing of torch is imported."""
    code = "import sys; from gantrain import cli; status = cli.run(sys.argv[1:]); print('torch' in sys.modules); sys.exit(status)"
    for words in (["watch", "nope"], ["sample", "nope"], ["train", "nope.yaml"]):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr


@pytest.mark.slow
def test_no_command_ends_with_0_without_its_work(gantrain, tmp_path):
    """With RANK=1 alone, commands that may run on several processes refuse it by name; the others write what they are asked for."""
    run = tmp_path / "run"
    gantrain("train", ROOT / "configs" / "digits.yaml", *TINY, f"run_dir={run}", "orbit.every_kimg=null")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "1"}
    for words, made in (
        (("report", run), run / "report.html"),
        (("walk", run, "--frames", 2, "--num", 1, "--out", tmp_path / "a.gif"), tmp_path / "a.gif"),
        (("sample", run, "--num", 4, "--out", tmp_path / "a.png"), tmp_path / "a.png"),
        (("evaluate", run, "--num", 64, "--out", tmp_path / "a.json"), tmp_path / "a.json"),
        (("noise-scale", run, "--updates", 8, "--out", tmp_path / "b.json"), tmp_path / "b.json"),
        (("train", ROOT / "configs" / "digits.yaml", *TINY, f"run_dir={tmp_path / 'new'}"), tmp_path / "new"),
    ):
        done = gantrain(*words, check=False, env=environment)
        if done.returncode == 0:
            assert made.exists() and done.stdout, words
        else:
            assert done.returncode == 2 and "RANK: 1 does not fit, since WORLD_SIZE is not set" in done.stderr, (words, done)
