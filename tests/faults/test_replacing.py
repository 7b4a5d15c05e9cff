"""A kill at every step of the system in which checkpoints are replaced, linked and deleted: a whole one is always left."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from conftest import slow_but

from gantrain.run_folder import replacing
from gantrain.run_folder.checkpoint import CheckpointStore, NotWritten, keep_also, read, verify, write
from gantrain.run_folder.stores import settle_run

STEPS = ("mkdir", "rename", "fsync", "unlink", "rmdir", "link", "open")


class Killed(BaseException):
    """The process ends here, and nothing of it runs any more."""


def kill_at(monkeypatch, step: int, after: bool = False) -> None:
    """Kill the process before (or after) the call number `step` of the system that changes a file or folder."""
    left = itertools.count(step, -1)

    def counted(name: str):
        real = getattr(os, name)

        def call(*arguments, **kwargs):
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **kwargs)
            here = next(left)
            if here == 0 and not after:
                raise Killed
            try:
                return real(*arguments, **kwargs)
            finally:
                if here == 0:
                    raise Killed

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, counted(name))


def save(store: CheckpointStore, nimg: int, value: float) -> None:
    store.save(nimg, {"g": {"w": torch.full((3,), value)}}, {"value": value})


def value_of(path: Path) -> float:
    verify(path)
    found = read(path)
    assert found.tensors["g"]["w"][0] == found.state["value"] and found.nimg == int(path.name)
    return found.state["value"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Nothing here depends on what is on the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def each_kill(act, prepare, check, monkeypatch, tmp_path, after=False) -> int:
    """Do something with a kill at its first step, its second and so on until it is done; look at what each has left."""
    for step in range(200):
        folder = tmp_path / f"{step}" / "checkpoints"
        prepare(folder)
        with monkeypatch.context() as patch:
            kill_at(patch, step, after)
            try:
                act(folder)
                return step
            except Killed:
                pass
        check(folder)
    raise AssertionError("it never ends")


def newest_after(folder: Path, starts: bool) -> Path | None:
    """What a start or a reader finds; nothing whole is called damaged."""
    said: list[str] = []
    store = CheckpointStore(folder, keep_last=1, say=said.append)
    if starts:
        settle_run(folder.parent)
    found = store.newest()
    assert said == []
    if starts:
        assert not any(path.name.startswith(".") for path in folder.iterdir())
    return found


@pytest.mark.parametrize(("starts", "after"), slow_but([(True, False)], [(True, False), (False, False), (True, True), (False, True)]))
def test_the_same_moment_saved_again(starts, after, monkeypatch, tmp_path):
    """With `keep_last: 1`, as where a run that was stopped in an evaluation resumes: the old one or the new one is whole."""
    seen = set()

    def check(folder):
        seen.add(value_of(newest_after(folder, starts)))

    count = each_kill(
        lambda folder: save(CheckpointStore(folder, keep_last=1), 2000, 2.0),
        lambda folder: save(CheckpointStore(folder, keep_last=1), 2000, 1.0),
        check, monkeypatch, tmp_path, after,
    )  # fmt: skip
    assert count > 10 and seen == {1.0, 2.0}


@pytest.mark.slow
def test_the_next_moment(monkeypatch, tmp_path):
    """What is no longer kept is deleted after its successor is in place, and what a deletion leaves is not called damaged."""
    seen = []
    each_kill(
        lambda folder: save(CheckpointStore(folder, keep_last=1), 3000, 3.0),
        lambda folder: save(CheckpointStore(folder, keep_last=1), 2000, 2.0),
        lambda folder: seen.append(value_of(newest_after(folder, len(seen) % 2 == 0))),
        monkeypatch, tmp_path,
    )  # fmt: skip
    assert set(seen) == {2.0, 3.0}


def test_the_first_one_is_not_lost_once_it_is_complete(monkeypatch, tmp_path):
    """A kill before its rename leaves only a draft: a start takes it if it is whole."""
    seen = []

    def check(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = newest_after(folder, True)
        seen.append(found and value_of(found))

    each_kill(lambda folder: save(CheckpointStore(folder), 1000, 1.0), lambda folder: None, check, monkeypatch, tmp_path)
    assert seen == sorted(seen, key=lambda value: value is not None) and {None, 1.0} == set(seen)


@pytest.mark.parametrize("act", slow_but(["forget_after"], ["forget_after", "prune", "forget"]))
def test_deletions(act, monkeypatch, tmp_path):
    def prepare(folder):
        store = CheckpointStore(folder, keep_last=None)
        for nimg in (1000, 2000, 3000):
            save(store, nimg, nimg)

    def delete(folder):
        store = CheckpointStore(folder, keep_last=1)
        if act == "forget_after":
            store.forget_after(1000)
        elif act == "prune":
            store.prune(3000)
        else:
            store.forget(store.paths()[2])

    def check(folder):
        assert value_of(newest_after(folder, False)) in {"forget_after": (1000, 2000, 3000), "prune": (3000,), "forget": (2000, 3000)}[act]
        for path in CheckpointStore(folder).paths():
            value_of(path)

    each_kill(delete, prepare, check, monkeypatch, tmp_path)


@pytest.mark.slow
def test_a_link_over_another_checkpoint(monkeypatch, tmp_path):
    """As where the best one is kept again after a rollback."""
    seen = []

    def prepare(folder):
        save(CheckpointStore(folder), 2000, 2.0)
        save(CheckpointStore(folder.parent / "best" / "fid"), 2000, 1.0)

    def check(folder):
        settle_run(folder.parent)
        seen.append(value_of(CheckpointStore(folder.parent / "best" / "fid", 1).newest()))

    each_kill(
        lambda folder: keep_also(folder / f"{2000:012d}", CheckpointStore(folder.parent / "best" / "fid", 1)),
        prepare, check, monkeypatch, tmp_path,
    )  # fmt: skip
    assert set(seen) == {1.0, 2.0}


def test_a_rebuilt_average_written_again(monkeypatch, tmp_path):
    """Its name is no time, and no lock is held."""
    seen = []

    def put(folder, value):
        write(folder.parent / "averages" / "mine", 2000, {"g": {"w": torch.full((3,), value)}}, {"value": value})

    def check(folder):
        replacing.settle_replaced(folder.parent / "averages")
        seen.append(read(folder.parent / "averages" / "mine").state["value"])

    each_kill(lambda folder: put(folder, 2.0), lambda folder: put(folder, 1.0), check, monkeypatch, tmp_path)
    assert set(seen) == {1.0, 2.0}


@pytest.mark.slow
def test_a_kill_while_a_kill_is_completed(monkeypatch, tmp_path):
    """A second kill, at every step of the next start."""

    def prepare(folder):
        save(CheckpointStore(folder, keep_last=1), 2000, 1.0)
        with monkeypatch.context() as patch:
            patch.setattr(replacing, "remove", lambda path: None)
            put = replacing.os.rename
            calls = []

            def killed(source, target):
                calls.append(target)
                if len(calls) == 2:
                    raise Killed
                put(source, target)

            patch.setattr(os, "rename", killed)
            with pytest.raises(Killed):
                save(CheckpointStore(folder, keep_last=1), 2000, 2.0)
        assert sorted(path.name for path in folder.iterdir()) == [f".replaced-{2000:012d}", f".writing-{2000:012d}"]

    def check(folder):
        assert value_of(newest_after(folder, True)) == 2.0  # the new one is preferred

    each_kill(lambda folder: settle_run(folder.parent), prepare, check, monkeypatch, tmp_path)
    prepare(tmp_path / "half" / "checkpoints")
    (tmp_path / "half" / "checkpoints" / f".writing-{2000:012d}" / "state.json").write_bytes(b"{}")
    assert value_of(newest_after(tmp_path / "half" / "checkpoints", True)) == 1.0  # and the old one if the new one is not whole


# ---- where the system refuses ----------------------------------------------------------------------------------------


def refuse(monkeypatch, name: str, where) -> None:
    real = getattr(os, name)

    def call(path, *arguments, **kwargs):
        if where(str(path), *arguments):
            raise PermissionError(1, "Operation not permitted", str(path))
        return real(path, *arguments, **kwargs)

    monkeypatch.setattr(os, name, call)


def test_an_old_one_with_a_file_that_may_not_be_deleted(monkeypatch, tmp_path):
    """As `chattr +i` makes it: the new one is in place, and what is left of the old one is no checkpoint."""
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 2000, 1.0)
    refuse(monkeypatch, "unlink", lambda path, *_: path == "state.json")
    save(store, 2000, 2.0)
    save(store, 2000, 3.0)
    assert value_of(store.newest()) == 3.0 and len(store.paths()) == 1
    monkeypatch.undo()
    store.clear_drafts()
    assert [path.name for path in tmp_path.iterdir()] == [f"{2000:012d}"]


def test_an_old_one_that_may_not_be_renamed(monkeypatch, tmp_path):
    """The old one stays as it is, and the line says what is whole."""
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 2000, 1.0)
    refuse(monkeypatch, "rename", lambda path, *_: path.endswith(f"/{2000:012d}"))
    with pytest.raises(NotWritten, match=r"could not be written \(Operation not permitted; .* the one at 2 kimg is intact"):
        save(store, 2000, 2.0)
    assert value_of(store.newest()) == 1.0 and len(list(tmp_path.iterdir())) == 1
    (tmp_path / f"{2000:012d}" / "g.safetensors").write_bytes(b"")
    with pytest.raises(NotWritten, match="there is no other whole one"):
        save(store, 2000, 2.0)


def test_one_that_may_not_be_deleted_stays_whole(monkeypatch, tmp_path):
    """As in a folder that may not be written: it keeps its name."""
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 1000, 1.0)
    refuse(monkeypatch, "unlink", lambda path, *_: True)
    save(store, 2000, 2.0)
    assert [value_of(path) for path in store.paths()] == [1.0, 2.0]


def test_a_draft_whose_rename_fails_gives_the_old_one_its_name_back(monkeypatch, tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 2000, 1.0)
    refuse(monkeypatch, "rename", lambda path, *_: ".writing-" in path)
    with pytest.raises(NotWritten, match="the one at 2 kimg is intact"):
        save(store, 2000, 2.0)
    assert value_of(store.newest()) == 1.0 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("source", [".replaced-", ".writing-"])
def test_a_reader_that_completes_what_the_run_is_about_to_complete(source, monkeypatch, tmp_path):
    """Between the run's two renames, a reader takes the run for one that was killed."""
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 2000, 1.0)
    rename, once = os.rename, []

    def renamed(old, new):
        if ".writing-" in str(old) and not once:
            once.append(old)
            rename(tmp_path / f"{source}{2000:012d}", tmp_path / f"{2000:012d}")
        rename(old, new)

    monkeypatch.setattr(os, "rename", renamed)
    save(store, 2000, 2.0)
    assert once and value_of(store.newest()) == 2.0 and [path.name for path in tmp_path.iterdir()] == [f"{2000:012d}"]


def test_a_kept_checkpoint_that_is_replaced_stays_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 1000, 1.0)
    (tmp_path / f"{1000:012d}" / "kept").touch()
    save(store, 1000, 2.0)
    save(store, 2000, 3.0)
    assert [value_of(path) for path in store.paths()] == [2.0, 3.0]


@pytest.mark.parametrize("whole", [True, False], ids=["draft whole", "draft half"])
def test_what_another_process_replaces_just_now_is_left_to_it(whole, monkeypatch, tmp_path):
    """`gantrain average` renames the old average after the trainer has looked for interrupted replacements, and is killed."""
    target = tmp_path / "wide"
    write(target, 8, {"average.wide": {"w": torch.zeros(3)}}, {})
    write(tmp_path / "new", 8, {"average.wide": {"w": torch.ones(3)}}, {})
    os.rename(tmp_path / "new", tmp_path / ".writing-wide")
    if not whole:
        next((tmp_path / ".writing-wide").glob("*.safetensors")).unlink()
    real = replacing.settle_replaced
    monkeypatch.setattr(replacing, "settle_replaced", lambda folder: (real(folder), os.rename(target, tmp_path / ".replaced-wide")))
    replacing.settle(tmp_path)
    assert (tmp_path / ".replaced-wide").exists()
    real(tmp_path)
    assert read(target).tensors["average.wide"]["w"][0] == float(whole)
