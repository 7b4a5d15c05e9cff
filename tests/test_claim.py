"""A run folder belongs to one training at a time, and what is decided about it is decided behind its lock."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, slow_but

from gantrain import lock
from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.data import Digits, pack
from gantrain.distributed import make_accelerator
from gantrain.errors import UserError
from gantrain.run_folder import checkpoint, forking, snapshots
from gantrain.run_folder.claim import claim_folder, examine
from gantrain.run_folder.own_config import write_config
from gantrain.run_folder.ownership import require_own_folder
from gantrain.run_folder.result_file import keep_result, target_of
from gantrain.training.saving import Saving

DIGITS = Path(__file__).parent.parent / "configs" / "digits.yaml"


@functools.cache
def loaded(*overrides: str) -> Config:
    return load(DIGITS, [*TINY, *overrides])


def digits(run: Path, *overrides: str) -> Config:
    return dataclasses.replace(loaded(*overrides), run_dir=str(run))


def trained(config: Config, nimg: int = 320) -> Path:
    """A folder as a training to the end leaves it, as far as the next start looks."""
    run = Path(config.run_dir)
    write_config(config, run)
    state = {"averages": {name: {"first_nimg": 0, "num_averaged": 1} for name in config.averagers}}
    checkpoint.write(run / "checkpoints" / f"{nimg:012d}", nimg, {"g": {"w": torch.ones(1)}}, state)
    return run


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.fixture
def meanwhile(monkeypatch):
    """Has something done at the moment at which the lock of a run folder would be taken, once."""

    def set_up(do) -> None:
        acquire, left = lock.acquire, [do]

        def late(*arguments, **keywords):
            if left:
                left.pop()()
            return acquire(*arguments, **keywords)

        monkeypatch.setattr(lock, "acquire", late)

    return set_up


@pytest.fixture
def impatient(monkeypatch):
    """A lock that is held is not waited for."""
    monkeypatch.setattr(lock, "WAIT", 0.001)


# ---- the lock --------------------------------------------------------------------------------------------------------


def test_a_lock_whose_file_was_removed_or_replaced_is_taken_anew(tmp_path, impatient):
    """Else two processes would each hold a file of that name."""
    first = lock.acquire(tmp_path)
    assert lock.holds(first, tmp_path)
    with pytest.raises(lock.InUse, match="process"):
        lock.acquire(tmp_path)
    (tmp_path / ".lock").unlink()
    assert not lock.holds(first, tmp_path)
    with lock.acquire(tmp_path) as second:
        assert lock.holds(second, tmp_path) and not lock.holds(first, tmp_path)
    assert not lock.holds(second, tmp_path)  # closed
    first.close()


@pytest.mark.slow
def test_a_process_that_waits_for_a_lock_notices_that_its_file_was_removed(tmp_path):
    first = lock.acquire(tmp_path)
    threading.Timer(0.05, lambda: lock.discard(first, tmp_path)).start()
    with lock.acquire(tmp_path) as second:  # it has opened the file that is removed
        assert lock.holds(second, tmp_path) and names_in(tmp_path) == {".lock"}


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    run, opened = tmp_path / "deep" / "run", lock.lock_file

    def removed_first(path):
        monkeypatch.setattr(lock, "lock_file", opened)
        shutil.rmtree(tmp_path / "deep")
        return opened(path)

    monkeypatch.setattr(lock, "lock_file", removed_first)
    with lock.acquire(run, create=True) as file:
        assert lock.holds(file, run)
    with pytest.raises(FileNotFoundError):
        lock.acquire(tmp_path / "nowhere")


# ---- what is decided behind it ---------------------------------------------------------------------------------------


def test_a_run_that_another_training_began_and_ended_meanwhile_is_compared_with(tmp_path, meanwhile):
    """The folder was empty when it was looked at first."""
    run = tmp_path / "run"
    meanwhile(lambda: trained(digits(run, "seed=1", "optim.lr_g=0.001")))
    with pytest.raises(UserError, match=r"another configuration.*seed \(1 there, 0 now\)") as refused:
        claim_folder(digits(run))
    assert "optim.lr_g" in str(refused.value)
    assert "\nseed: 1\n" in (run / "config.yaml").read_text()
    assert lock.owner(run) is None


@pytest.mark.slow
def test_a_run_of_the_same_settings_that_ended_meanwhile_is_resumed(tmp_path, meanwhile):
    run = tmp_path / "run"
    meanwhile(lambda: trained(digits(run)))
    claim = claim_folder(digits(run, "total_kimg=0.64"), given=set())
    assert claim.found.changed == {"total_kimg": [0.32, 0.64]}
    assert lock.owner(run) is not None
    claim.release()
    claim.release()  # a second time does nothing
    assert lock.owner(run) is None


@pytest.mark.slow
def test_other_settings_that_may_change_are_taken_from_the_run_as_it_is_then(tmp_path, meanwhile):
    """Of an average that is added to a run, the start depends on the run: it begins where the run is."""
    run, added = tmp_path / "run", "averagers.late={name: swa, every_kimg: 1}"
    meanwhile(lambda: trained(digits(run)))
    claim = claim_folder(digits(run, added, "total_kimg=1"), given=set())
    assert claim.found.config.averagers["late"].start_kimg == 0.32
    claim.release()


@pytest.mark.slow
def test_files_of_another_kind_that_came_meanwhile_are_noticed(tmp_path, meanwhile):
    run = tmp_path / "run"
    meanwhile(lambda: (run / "cats").mkdir(parents=True))
    with pytest.raises(UserError, match="it is not empty: it contains 'cats'"):
        claim_folder(digits(run))
    assert names_in(run) == {"cats"}


@pytest.mark.slow
def test_a_second_training_of_a_folder_is_refused(tmp_path, impatient):
    claim = claim_folder(digits(tmp_path / "run"))
    with pytest.raises(UserError, match=r"is being trained by process \d+ on .*; wait for it"):
        claim_folder(digits(tmp_path / "run", "seed=1"))
    trained(digits(tmp_path / "run"))
    with pytest.raises(UserError, match="is being trained by process"):  # what it writes while it is looked at does not matter
        claim_folder(digits(tmp_path / "run", "seed=1"))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "config.yaml").unlink()
    claim.release()
    assert names_in(tmp_path) == set()  # no run has begun there


@pytest.mark.slow
def test_a_folder_is_left_as_it_was_if_no_run_begins(tmp_path):
    (tmp_path / "there").mkdir()
    for run, left in ((tmp_path / "a" / "b", {"there"}), (tmp_path / "there", {"there"})):
        claim_folder(digits(run)).release()
        assert names_in(tmp_path) == left
    run = trained(digits(tmp_path / "run"))
    claim_folder(digits(run)).release()
    assert ".lock" in names_in(run)  # as every training leaves it


@pytest.mark.slow
def test_a_claim_notices_that_its_folder_was_removed_or_replaced(tmp_path):
    run = tmp_path / "run"
    claim = claim_folder(digits(run))
    assert claim.holds()
    run.rename(tmp_path / "moved")
    assert not claim.holds()
    other = claim_folder(digits(run))
    claim.release()
    assert other.holds() and lock.owner(run) is not None  # releasing the first leaves the second alone
    other.release()


@pytest.mark.slow
def test_a_new_run_inside_the_folder_of_another_is_refused(tmp_path):
    run = trained(digits(tmp_path / "run"))
    for inside in (run / "again", run / "checkpoints" / "deep"):
        with pytest.raises(UserError, match="is inside the run folder .*run; use a folder outside it"):
            claim_folder(digits(inside))
    assert "again" not in names_in(run)
    nested = trained(digits(run / "before"))  # from before this was refused
    claim_folder(digits(nested)).release()
    (run / "link").symlink_to(tmp_path)
    claim_folder(digits(run / "link" / "beside")).release()  # it lies beside the run


def test_the_folder_of_a_run_is_not_for_another(tmp_path):
    run = trained(digits(tmp_path / "run"))
    with pytest.raises(UserError, match="is inside the run folder .*run; use a folder outside it"):
        require_own_folder(run / "again", digits(run / "again"))


# ---- the trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saving(tmp_path):
    """The part of a trainer that takes the folder, of a run that was prepared while the folder was empty."""
    config = digits(tmp_path / "run")
    context = SimpleNamespace(config=config, accelerator=make_accelerator(), run_dir=tmp_path / "run", main=True)
    saving = Saving(context, *[None] * 6)
    saving.traces = examine(config).traces
    yield saving
    saving.unlock()


@pytest.mark.slow
def test_a_trainer_in_python_refuses_a_folder_that_has_changed_since_it_was_made(saving, tmp_path):
    """With other settings it names them; with the same ones it was prepared for an empty folder."""
    run = trained(digits(tmp_path / "run", "seed=1"))
    with pytest.raises(UserError, match=r"seed \(1 there, 0 now\)"):
        saving.lock()
    shutil.rmtree(run)
    trained(saving.context.config)
    with pytest.raises(UserError, match="has changed while this run was being prepared.*run the same command again"):
        saving.lock()
    assert lock.owner(run) is None


@pytest.mark.slow
def test_a_trainer_takes_its_folder_again_if_it_was_removed_while_it_read_its_images(saving, tmp_path):
    saving.lock()
    first, run = saving.claim, tmp_path / "run"
    saving.lock()
    assert saving.claim is first
    shutil.rmtree(run)
    saving.lock()
    assert saving.claim is not first and saving.claim.holds()
    shutil.rmtree(run)
    trained(saving.context.config)
    with pytest.raises(UserError, match="has changed while"):
        saving.lock()


@pytest.mark.slow
def test_a_run_that_is_trained_to_its_end_meanwhile_keeps_its_configuration(gantrain, tmp_path, meanwhile):
    """By the whole command: B looks at an empty folder, A trains there to its end, then B gets the lock."""
    run = tmp_path / "run"
    tiny = [DIGITS, *TINY, f"run_dir={run}", "tracking.wandb.mode=disabled"]
    own = {**os.environ, "PYTHONPATH": str(DIGITS.parent.parent)}  # a process of its own, since B has begun in this one
    meanwhile(lambda: gantrain("train", *tiny, "seed=1", "optim.lr_g=1e-3", env=own))
    done = gantrain("train", *tiny, check=False)
    assert done.returncode == 2 and "seed (1 there, 0 now)" in done.stderr and "optim.lr_g" in done.stderr
    assert "\nseed: 1\n" in (run / "config.yaml").read_text() and lock.owner(run) is None
    last = run / "checkpoints" / "000000000320"
    before, record = (last / "manifest.json").read_bytes(), (run / "metrics.jsonl").read_bytes()
    done = gantrain("train", *tiny, "seed=1", "optim.lr_g=1e-3", "total_kimg=0.4")
    assert "resumed at 0.32 of 0.4 kimg" in done.stdout
    assert (run / "metrics.jsonl").read_bytes().splitlines()[:3] == record.splitlines()[:3] and "\nseed: 1\n" in (
        run / "config.yaml"
    ).read_text()
    shutil.rmtree(run)
    meanwhile(lambda: gantrain("train", *tiny, env=own))
    done = gantrain("train", *tiny)
    assert "resumed at 0.32 of 0.32 kimg" in done.stdout and (last / "manifest.json").is_file() and before


@pytest.mark.slow
def test_of_several_processes_the_main_one_decides(together, tmp_path):
    """Both end with the line of the main one, which holds the lock for both; then both begin an added average at one moment."""
    run = tmp_path / "run"
    tiny = ["-m", "gantrain", "train", DIGITS, *TINY, f"run_dir={run}", "tracking.wandb.mode=disabled"]
    claim = claim_folder(digits(run))
    done = together(2, *tiny, check=False)
    assert done.returncode == 2 and "is being trained by process" in done.stderr and "Traceback" not in done.stderr
    claim.release()
    together(2, *tiny, "total_kimg=0.16")
    done = together(2, *tiny, "averagers.late={name: swa, every_kimg: 0.016}")
    assert "average late added" in done.stdout and "start_kimg 0.16" in done.stdout
    done = together(2, *tiny, "seed=1", "averagers.late={name: swa, every_kimg: 0.016}", check=False)
    assert done.returncode == 2 and "seed (0 there, 1 now)" in done.stderr and "Traceback" not in done.stderr


# ---- forks, averages and data sets that two commands write at once ---------------------------------------------------


def write_forked(folder: Path, seed: int = 0) -> None:
    """Write a fork, as far as two of them or a training can collide."""
    config = digits(folder, f"seed={seed}")
    origin = SimpleNamespace(path=Path("000000000160"), snapshot=SimpleNamespace(nimg=160))
    forking.write_whole(folder, origin, {"g": {"w": torch.ones(1)}}, {"averages": {}}, "{}\n", dataclasses.replace(config, averagers={}))


@pytest.mark.slow
@pytest.mark.parametrize("stage", slow_but(["move_into_place"], ["link_snapshots", "write_config", "sync", "move_into_place"]))
def test_two_forks_at_once_into_one_folder_leave_one_whole_fork(tmp_path, monkeypatch, impatient, stage):
    """The second comes at any stage of the first, and is refused, or finds the first complete."""
    does = getattr(forking, stage)

    def with_another(*arguments):
        monkeypatch.setattr(forking, stage, does)
        with pytest.raises(UserError, match=r"--out: .*new is being written by process"):
            write_forked(tmp_path / "new", seed=1)
        return does(*arguments)

    monkeypatch.setattr(forking, stage, with_another)
    write_forked(tmp_path / "new")
    assert "seed: 0" in (tmp_path / "new" / "config.yaml").read_text()
    checkpoint.verify(tmp_path / "new" / "checkpoints" / "000000000160")
    with pytest.raises(UserError, match="already exists and is not empty"):
        write_forked(tmp_path / "new", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and not (tmp_path / "new" / ".lock").exists()


def test_a_fork_that_waited_for_another_does_not_replace_it(tmp_path, meanwhile):
    """The first ends while the second takes the lock of the draft."""
    meanwhile(lambda: write_forked(tmp_path / "new"))
    with pytest.raises(UserError, match="already exists and is not empty"):
        write_forked(tmp_path / "new", seed=1)
    assert "seed: 0" in (tmp_path / "new" / "config.yaml").read_text() and [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_fork_into_a_folder_in_which_a_training_begins_is_refused(tmp_path, monkeypatch):
    claims, move = [], forking.move_into_place

    def with_a_training(draft, folder):
        claims.append(claim_folder(digits(folder)))
        move(draft, folder)

    monkeypatch.setattr(forking, "move_into_place", with_a_training)
    with pytest.raises(UserError, match="new already exists and is not empty; use another folder"):
        write_forked(tmp_path / "new")
    assert names_in(tmp_path) == {"new", ".lock"} and claims[0].holds()
    claims[0].release()


@pytest.mark.slow
def test_a_training_that_waits_while_a_fork_comes_finds_it(tmp_path, meanwhile):
    meanwhile(lambda: write_forked(tmp_path / "new", seed=1))
    with pytest.raises(UserError, match=r"another configuration.*seed \(1 there, 0 now\)"):
        claim_folder(dataclasses.replace(digits(tmp_path / "new"), averagers={}))
    checkpoint.verify(tmp_path / "new" / "checkpoints" / "000000000160")


def rebuilt(sigma_rel: float = 0.1, value: float = 1.0) -> snapshots.Rebuilt:
    weights = {"w": torch.full((2,), value)}
    return snapshots.Rebuilt(sigma_rel, 320, 0.0, {}, weights, {"b": torch.zeros(1)}, [16, 1, 10])


def test_an_average_is_written_by_one_command_at_a_time(tmp_path, monkeypatch, impatient):
    folder, write = tmp_path / "averages", checkpoint.write
    folder.mkdir()

    def with_another(*arguments):
        with pytest.raises(UserError, match=r"--name: mine is being written by process \d+"):
            snapshots.store(rebuilt(0.2), tmp_path, "mine")
        monkeypatch.setattr(checkpoint, "write", write)
        snapshots.store(rebuilt(), tmp_path, "other")
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", with_another)
    path = snapshots.store(rebuilt(), tmp_path, "mine")
    checkpoint.verify(path)
    assert {one.name for one in folder.iterdir()} == {"mine", "other"}


def test_an_average_that_another_command_has_written_meanwhile_is_not_replaced(tmp_path, meanwhile):
    (tmp_path / "averages").mkdir()
    meanwhile(lambda: snapshots.store(rebuilt(0.2), tmp_path, "mine"))
    with pytest.raises(UserError, match="'mine' is already an average of sigma_rel 0.2 at 0.32 kimg; choose another name"):
        snapshots.store(rebuilt(), tmp_path, "mine")
    snapshots.store(rebuilt(0.2, 3.0), tmp_path, "mine")  # the same one
    (tmp_path / "averages" / "mine" / "state.json").write_text("{}")
    snapshots.store(rebuilt(), tmp_path, "mine")  # a damaged one is nobody's
    assert checkpoint.read(tmp_path / "averages" / "mine", ["average"]).tensors["average"]["w"].tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_a_data_set_that_another_command_has_prepared_meanwhile_is_not_replaced(tmp_path, meanwhile):
    images = Digits().build()
    meanwhile(lambda: pack(images, tmp_path / "data", "first"))
    with pytest.raises(UserError, match="data: already exists; delete it, or pass another --out"):
        pack(images, tmp_path / "data", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"images.npy", "labels.npy", "head.json"}


def test_results_of_two_commands_that_took_one_free_name_are_both_kept(tmp_path, monkeypatch):
    first, second = (target_of(None, tmp_path, "000000000320") for _ in range(2))
    assert first == second == keep_result(first, {"a": 1}, None)
    assert keep_result(second, {"a": 2}, None).name == "000000000320-2.json" and keep_result(first, {"a": 3}, first) == first
    monkeypatch.setattr(os, "link", lambda *given: (_ for _ in ()).throw(OSError(1, "no links here")))
    keep_result(target_of(None, tmp_path, "x"), {"a": 4}, None)
    assert {path.name: json.loads(path.read_text())["a"] for path in tmp_path.iterdir()} == {
        "000000000320.json": 3, "000000000320-2.json": 2, "x.json": 4,
    }  # fmt: skip
