"""A run that trains deletes and replaces its checkpoints while commands read them: they read on, or look again."""

from __future__ import annotations

import builtins
import functools
import gc
import io
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, slow_but

from gantrain.commands import arguments
from gantrain.errors import UserError
from gantrain.run_folder import checkpoint, contents, held, manifest
from gantrain.run_folder.checkpoint import CheckpointStore, write
from gantrain.run_folder.contents import look_again, open_held
from gantrain.run_folder.manifest import Damaged, Gone, hold
from gantrain.sampling.generators import load_generator

OPERATIONS = [(os, "open"), (os, "stat"), (os, "lstat"), (os, "scandir"), (os, "listdir"), (io, "open"), (builtins, "open")]


@contextmanager
def at_operation(number: int, folder: Path, do):
    """Within this context, `do` is called in front of the `number`-th operation on a file or folder in `folder`.

    Gives a list that is empty as long as it was not called.
    """
    seen, done, before = [], [], {(place, name): getattr(place, name) for place, name in OPERATIONS}

    def counted(real, path, *rest, **keywords):
        if not done and isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(str(folder)):
            seen.append(path)
            if len(seen) == number:
                done.append(path)
                do()
        return real(path, *rest, **keywords)

    try:
        for (place, name), real in before.items():
            setattr(place, name, functools.partial(counted, real))
        yield done
    finally:
        for (place, name), real in before.items():
            setattr(place, name, real)


def through_all(folder: Path, do, read, step: int = 1) -> int:
    """Read again and again, with something done in front of the first operation, the second and so on; how many there were."""
    number = 1
    while True:
        with at_operation(number, folder, do) as done:
            read()
        if not done:
            return number - 1
        number += step


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder with a configuration and a checkpoint, as far as readers of any run look."""
    (tmp_path / "config.yaml").write_text((ROOT / "configs" / "digits.yaml").read_text())
    save(tmp_path)
    return tmp_path


def save(run: Path) -> int:
    """Write the next checkpoint and delete the one before, as a run with keep_last: 1 does; images seen there."""
    store = CheckpointStore(run / "checkpoints", 1)
    nimg = max((int(path.name) for path in store.paths()), default=0) + 1000
    store.save(nimg, {"g": {"w": torch.full((3,), float(nimg))}}, {"averages": {}, "nimg": nimg, "shape": [16, 1, 10]})
    return nimg


def read_all(run: Path) -> int:
    """Open the newest checkpoint and read everything in it; images seen there, by all of its parts."""
    open_files = open_held(run)[1]
    path = open_files.folder
    snapshot = checkpoint.read(path)
    manifest.verify(path)
    nimg = int(path.name)
    assert snapshot.nimg == nimg == snapshot.state["nimg"] == checkpoint.read_state(path)["nimg"]
    assert snapshot.tensors["g"]["w"].tolist() == [nimg] * 3 and checkpoint.groups_of(path) == ["g"]
    return nimg


@pytest.mark.parametrize("step", slow_but([12], [1, 4, 12]))
def test_a_checkpoint_that_is_deleted_at_any_moment_is_read_or_another_one_is(run, step):
    """With `keep_last: 1`, a run saves in front of one operation of a reader on its files, each in turn."""
    assert through_all(run / "checkpoints", lambda: save(run), lambda: read_all(run), step) > 7


def test_what_is_open_is_read_after_it_was_deleted_or_replaced(run):
    """Two readers of one file do not move each other on; what is no longer held is read as it is."""
    open_files = open_held(run)[1]
    path = open_files.folder
    assert hold(path) is open_files
    nimg = save(run)
    assert not path.exists() and contents.checkpoints_of(run).keys() == {1000, nimg}
    one, other = (manifest.open_file(path / "g.safetensors") for _ in range(2))
    assert one.read(10) == other.read(10) and one.read() == other.read()
    assert checkpoint.read(path).nimg == 1000 and open_held(run, 1.0)[1] is open_files
    assert open_held(run)[1].folder.name == f"{nimg:012d}"
    shutil.copytree(run / "checkpoints" / f"{nimg:012d}", path)
    assert checkpoint.read(path).nimg == 1000  # as it was opened
    del open_files
    with pytest.raises(Damaged, match="is named for 1000 images seen"):
        checkpoint.read(path)


def test_a_replaced_checkpoint_is_opened_anew_by_whoever_holds_it_next(run):
    """Also while an earlier reader, or an error that it raised, still holds the old files."""
    old = open_held(run)[1]
    write(old.folder, 1000, {"g": {"w": torch.full((3,), 7.0)}}, {"averages": {}, "nimg": 1000, "shape": [16, 1, 10]})
    assert checkpoint.read(old.folder).tensors["g"]["w"][0] == 1000
    new = open_held(run)[1]
    assert new is not old and checkpoint.read(new.folder).tensors["g"]["w"][0] == 7 and open_held(run)[1] is new
    del old
    assert held.find_held(new.folder) is new


def test_an_error_that_is_kept_keeps_no_file_open(run):
    with pytest.raises(UserError, match="nosuch") as kept:
        load_generator(run, average="nosuch")
    assert kept.value.__traceback__ and not held.folders_in(run / "checkpoints")


def test_damage_is_not_taken_for_a_checkpoint_that_has_gone(run, monkeypatch):
    """It is said at once, and no reader is told to delete anything."""
    path = run / "checkpoints" / "000000001000"
    (path / "g.safetensors").unlink()
    tries = []
    monkeypatch.setattr(checkpoint, "TRIES", 3)
    for read in (lambda: open_held(run), lambda: look_again(lambda: tries.append(1) or checkpoint.read(path))):
        with pytest.raises(UserError, match="g.safetensors: cannot be read") as refused:
            read()
        assert "delete" not in str(refused.value) and "again" not in str(refused.value)
    assert tries == [1]


def test_a_reader_says_which_damaged_checkpoint_it_has_passed_over(run, capsys):
    """Else its images would be taken for those of the newest one. Once, however often it looks."""
    later = shutil.copytree(run / "checkpoints" / "000000001000", run / "checkpoints" / "000000002000")
    (later / "manifest.json").unlink()
    for _ in range(2):
        assert open_held(run)[1].folder.name == "000000001000"
    told = capsys.readouterr().err
    assert (
        told.startswith(f"gantrain: note: {later / 'manifest.json'}: does not exist, as after a copy or a deletion")
        and told.count("\n") == 1
    )
    assert told.endswith("interrupted; skipped; using the checkpoint at 1 kimg\n")
    open_held(run, 1.0)
    assert not capsys.readouterr().err, "it was asked for"


def test_a_run_that_is_faster_than_its_reader_is_said_to_be(run, monkeypatch):
    """After ten tries, and not for ever."""
    tries = []

    def vanish(path):
        tries.append(path)
        raise Gone(f"{path}: has gone")

    monkeypatch.setattr(checkpoint, "hold", vanish)
    with pytest.raises(UserError, match="replaced faster than they can be read"):
        open_held(run)
    with pytest.raises(UserError, match="x: has gone, 10 times in a row: .* run the same command again, or when the run has ended"):
        look_again(lambda: vanish("x"))
    assert len(tries) <= 110


def test_a_folder_with_more_files_than_may_be_open_is_read_by_name(run, monkeypatch):
    def full(path, at_most=None):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(held, "open_regular", full)
    assert open_held(run)[1].is_empty and read_all(run) == 1000


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(gantrain, tmp_path_factory) -> Path:
    """A tiny run with scores, a best checkpoint, snapshots and an orbit."""
    run = tmp_path_factory.mktemp("vanishing") / "run"
    gantrain("train", ROOT / "configs" / "digits.yaml", *TINY, f"run_dir={run}", *MORE, "total_kimg=0.8", "eval.every_kimg=0.4")
    return run


MORE = [
    "tracking.wandb.mode=disabled",
    "checkpoint.keep_last=1",
    "checkpoint.keep_best=[eval/ema/digits_fid]",
    "orbit.every_kimg=0.016",
    "averagers.a={name: power, sigma_rel: 0.05, snapshot_every_kimg: 0.04}",
    "averagers.b={name: power, sigma_rel: 0.10, snapshot_every_kimg: 0.04}",
]


def replace(run: Path) -> None:
    """Rename the newest checkpoint to the next moment, and the best one too, as if the run had saved and deleted the ones before."""
    for folder in (run / "checkpoints", *(run / "best").glob("*")):
        (path,) = CheckpointStore(folder).paths()
        nimg = int(path.name) + 16
        snapshot = checkpoint.read(path)
        checkpoint.write(folder / f"{nimg:012d}", nimg, snapshot.tensors, snapshot.state)
        shutil.rmtree(path)


READERS = {
    "load": lambda run: __import__("gantrain").load_generator(run),
    "sample": lambda run: sampled(run),
    "noise-scale": lambda run: __import__("gantrain.commands.noise_scale", fromlist=["Bench"]).Bench(run, "ema", None, []),
    "orbit": lambda run: __import__("gantrain.commands.orbit", fromlist=["orbit_run"]).orbit_run(run),
    "fork": lambda run: __import__("gantrain.run_folder.forking", fromlist=["open_origin"]).open_origin(run),
    "evaluate": lambda run: scored(run),
}


def sampled(run: Path) -> None:
    from gantrain.sampling.choice import Choice

    source = Choice(run).open()
    source.load_generator("cpu")
    source.load_generator("cpu", "swa")


def scored(run: Path) -> None:
    from gantrain.evaluation.of_runs import RunScorer
    from gantrain.sampling.generators import load_weights

    scorer = RunScorer(run)
    for name in contents.averages_of(scorer.path):
        load_weights(scorer.config, scorer.path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_command_reads_a_run_that_replaces_its_checkpoint_at_any_moment(trained, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert through_all(run, lambda: replace(run), lambda: READERS[name](run), step=5) > 10


@pytest.mark.slow
def test_the_best_checkpoint_may_be_replaced_while_it_is_read(trained, tmp_path, capsys):
    """What `best` stands for is read even if the run has another best one then."""
    from gantrain.run_folder.best_average import resolve_best

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    names, kimg = arguments.averages_of_choice(str(run), ["best"], None)
    assert capsys.readouterr().out.startswith("best: ")
    for folder in (run / "checkpoints", *(run / "best").glob("*")):
        shutil.rmtree(folder)
    generator = __import__("gantrain").load_generator(run, names[0], kimg)
    assert generator.resolution == 16
    arguments.HELD.clear()
    gc.collect()
    with pytest.raises(UserError, match="no longer has the weights of its best score"):
        resolve_best(run, ["best"], None)


@pytest.mark.slow
def test_snapshots_that_a_rollback_deletes_are_not_used(trained, tmp_path):
    """The average is rebuilt from those that are left."""
    from gantrain.commands.average import average_run

    run, said = tmp_path / "run", []
    shutil.copytree(trained, run)

    def go_back() -> None:
        CheckpointStore(run / "averages", None).forget_after(200)

    with at_operation(30, run / "averages", go_back) as done:
        text = average_run(run, 0.07, None, "mine", said.append)
    assert done and "at 0.16 kimg" in text and not said


@pytest.mark.slow
def test_readers_of_a_run_that_trains(tmp_path, gantrain):
    """Twenty commands, one after another, of a run that saves after every update and keeps one checkpoint."""
    from spawning import Spawned

    run = tmp_path / "run"
    settings = [*TINY, *MORE, f"run_dir={run}", "total_kimg=1000", "checkpoint.every_kimg=0.016", "eval.every_kimg=0.16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    training = Spawned(["-m", "gantrain", "train", ROOT / "configs" / "digits.yaml", *settings], environment)
    try:
        while not list((run / "checkpoints").glob("[0-9]*")) or len(list((run / "best").glob("*/[0-9]*"))) < 1:
            assert training.poll() is None, training.errors()
        commands = [
            ("sample", run, "--num", 4, "--out", tmp_path / "a.png"),
            ("sample", run, "--sheet", "averages", "--num", 4, "--out", tmp_path / "b.png"),
            ("evaluate", run, "--num", 64),
            ("report", run),
            ("noise-scale", run, "--updates", 8),
            ("walk", run, "--num", 1, "--frames", 2, "--out", tmp_path / "c.gif"),
            ("orbit", run),
            ("sample", run, "--average", "best", "--num", 4, "--out", tmp_path / "d.png"),
            ("average", run, "--sigma-rel", 0.07),
            ("fork", run, "--out", tmp_path / "fork", "total_kimg=2000"),
        ]
        for number in range(20):
            command = commands[number % len(commands)]
            if command[0] == "fork":
                shutil.rmtree(tmp_path / "fork", ignore_errors=True)
            done = gantrain(*command, check=False)
            early = command[0] == "orbit" and "the analysis needs" in done.stderr  # on a slow machine the run is not far yet
            # The live weights may have scored best, and the run keeps only the best of an average.
            gone = "best" in command and "no longer has the weights of its best score" in done.stderr
            assert done.returncode == 0 or early or gone, (command[0], done.stdout, done.stderr)
        assert training.poll() is None
    finally:
        training.kill()
        training.wait()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    assert any(line.get("event") == "checkpoint" for line in lines)
