"""What a run keeps of itself, by itself: who is kept in which folder, from what moment, and what becomes of what is not written."""

from __future__ import annotations

import threading

import pytest
import torch

from gantrain.config.sections import Checkpoint
from gantrain.errors import UserError
from gantrain.reporting.event_words import on_console
from gantrain.run_folder import checkpoint
from gantrain.run_folder.checkpoint import NotWritten
from gantrain.training.keeper import Keeper

FID, IS = "eval/ema/fid", "eval/ema/is"


class Told:
    def __init__(self):
        self.said, self.events = [], []

    def say(self, text):
        self.said.append(text)

    def tell(self, nimg, name, /, **fields):
        self.events.append((nimg, name))
        self.said.append(on_console({"nimg": nimg, "event": name, **fields}))


@pytest.fixture
def keeper(tmp_path):
    def make(scores=(FID, IS), **settings) -> Keeper:
        return Keeper(tmp_path / "run", Checkpoint(**settings), scores, Told())

    return make


def tensors(value: float = 1.0) -> dict:
    return {"g": {"w": torch.full((3,), value)}}


def state(rollbacks: int = 0, **more) -> dict:
    return {"guard": {"rollbacks": rollbacks}, **more}


def names(store) -> list[int]:
    return [int(path.name) for path in store.paths()]


def test_a_checkpoint_is_what_it_was_asked_to_be_however_long_it_takes(keeper, monkeypatch):
    """The disk waits until the run has gone on and changed what it told."""
    go, written = threading.Event(), checkpoint.write_synced
    monkeypatch.setattr(checkpoint, "write_synced", lambda path, data: (go.wait(), written(path, data))[1])
    one, told = keeper(), state(records=[{"nimg": 160}])
    one.save(160, tensors(), told, [], False, None)
    told["records"][0]["nimg"] = 208
    told["records"].append({"nimg": 208})
    go.set()
    one.collect(160, wait=True)
    assert checkpoint.read_state(one.checkpoints.paths()[0])["records"] == [{"nimg": 160}]


def test_the_best_is_one_a_score_and_what_beats_it_on_another_path_takes_its_place(keeper):
    one = keeper(keep_last=1)
    for nimg, best in ((100, [FID, IS]), (200, [IS]), (300, []), (640, [FID])):
        one.save(nimg, tensors(nimg), state(), best, False, None)
    one.collect(640, wait=True)
    assert names(one.checkpoints) == [640] and names(one.best[FID]) == [640] and names(one.best[IS]) == [200]
    one.forget_after(300)  # a rollback: the best of the path that is left stays
    assert names(one.checkpoints) == [] and names(one.best[FID]) == [640]
    one.save(500, tensors(5.0), state(1), [FID], True, None)
    one.collect(500, wait=True)
    assert names(one.checkpoints) == [] and names(one.best[FID]) == [500] and names(one.best[IS]) == [200]


def test_the_newest_of_no_more_than_so_many_images_or_the_best_is_there_to_go_back_to(keeper):
    one = keeper(keep_last=2)
    for nimg, best in ((100, [FID]), (200, [IS]), (300, []), (400, [])):
        one.save(nimg, tensors(nimg), state(), best, False, None)
    one.collect(400, wait=True)
    folder = one.checkpoints.folder
    assert one.newest(400) == folder / f"{400:012d}" and one.newest(399) == folder / f"{300:012d}"
    assert one.newest(299, FID) == folder / f"{100:012d}" and names(one.checkpoints) == [100, 300, 400]
    assert one.newest(299) == folder / f"{100:012d}" and one.newest(99) is None
    assert (
        one.newest(250, IS) == folder / f"{200:012d}" and one.newest(150, IS) == folder / f"{100:012d}"
    )  # not of a time that was not well


def test_a_held_checkpoint_stays_until_it_is_no_longer_held(keeper):
    one = keeper(scores=(), keep_last=1)
    for nimg, held in ((100, None), (200, 150), (300, 150), (400, 250), (500, None)):
        one.save(nimg, tensors(), state(), [], False, held)
        one.collect(nimg, wait=True)
        assert names(one.checkpoints) == {100: [100], 200: [100, 200], 300: [100, 300], 400: [100, 400], 500: [500]}[nimg]


def test_what_is_kept_for_good_stays_whoever_asks_for_what_later(keeper):
    one = keeper(scores=(IS,), keep_last=1, keep_every_kimg=0.25)
    for nimg in (100, 200, 300, 400, 500):
        one.save(nimg, tensors(), state(), [IS] if nimg == 500 else [], False, None)
    one.collect(500, wait=True)
    assert names(one.checkpoints) == [100, 300, 500]  # the first that there is, and the first beyond each multiple
    other = keeper(scores=(IS,), keep_last=1)
    for nimg in (600, 700):
        other.save(nimg, tensors(), state(), [IS] if nimg == 600 else [], False, None)
    other.collect(700, wait=True)
    assert names(other.checkpoints) == [100, 300, 500, 700] and names(other.best[IS]) == [600]
    checkpoint.verify(other.checkpoints.paths()[0])


def test_a_run_goes_on_from_the_newest_whole_one_or_else_from_a_best_one(keeper):
    one = keeper(keep_last=2)
    assert one.resumes_from(None) is None
    for nimg in (100, 200, 300):
        one.save(nimg, tensors(), state(), [FID] if nimg == 100 else [], False, None)
    one.collect(300, wait=True)
    assert one.resumes_from(None).name == f"{300:012d}"
    for path in one.checkpoints.paths():
        (path / "state.json").write_text("{}")
    assert one.resumes_from(None) == one.checkpoints.folder / f"{100:012d}"
    for path in (*one.checkpoints.paths(), *one.best[FID].paths()):
        (path / "state.json").unlink()
    with pytest.raises(
        UserError,
        match=r"all of its 3 checkpoints are damaged \(the newest: 000000000300/state.json: .*; and 2 others\); .*delete .* to start over",
    ):
        one.resumes_from(None)


def test_a_path_that_was_rolled_back_from_is_not_taken_up(keeper):
    one = keeper(keep_last=9)
    for nimg, rollbacks in ((100, 0), (200, 0), (300, 0), (250, 1)):
        one.save(nimg, tensors(), state(rollbacks), [], False, None)
    one.collect(300, wait=True)
    assert one.resumes_from({"to": 200, "guard": {"rollbacks": 1}}).name == f"{250:012d}" and names(one.checkpoints) == [100, 200, 250]


def test_a_best_one_that_a_kill_has_prevented_is_kept_when_the_run_goes_on(keeper):
    one = keeper()
    one.save(100, tensors(), state(), [], False, None)
    one.collect(100, wait=True)
    (one.checkpoints.folder / ".writing-000000000200").mkdir()
    one.tidy(100, one.checkpoints.paths()[0], {FID: 100, IS: 50}, None)
    assert names(one.best[FID]) == [100] and names(one.best[IS]) == [] and not list(one.checkpoints.folder.glob(".writing-*"))


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_what_could_not_be_written_ends_the_run_or_is_said(keeper, monkeypatch, on_error):
    """At the end it is an error in any case: there is nothing to go on with."""
    one = keeper(on_error=on_error)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", full)
    one.save(100, tensors(), state(), [], False, None)
    if on_error == "stop":
        with pytest.raises(NotWritten, match="No space left on device; it needs 12 bytes"):
            one.collect(100, wait=True)
    else:
        assert one.collect(100, wait=True) is False and one.tracker.events == [(100, "not_written")] and len(one.tracker.said) == 1
    one.save(200, tensors(), state(), [], False, None)
    with pytest.raises(NotWritten):
        one.collect(200, wait=True, last=True)
    one.close()
    assert one.collect(200) is True


def test_what_a_kill_kept_is_deleted_at_the_resume_but_for_the_one_that_is_held(keeper):
    one = keeper(keep_last=1)
    for nimg in (40, 60, 80):
        checkpoint.write(one.checkpoints.folder / f"{nimg:012d}", nimg, tensors(), state())
    one.tidy(80, one.checkpoints.paths()[-1], {}, 50)
    assert names(one.checkpoints) == [40, 80]
    one.tidy(80, one.checkpoints.paths()[-1], {}, None)
    assert names(one.checkpoints) == [80]
