"""TensorBoard's event file read back: the record and nothing else, whatever becomes of the run; and views that fail."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY, error_of, lines_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gantrain import reporting
from gantrain.config.sections import Tracking, Wandb
from gantrain.reporting import views
from gantrain.reporting.event_words import what_happened
from gantrain.reporting.tensorboard_run import EventFile, TensorBoardRun, open_view
from gantrain.reporting.tracker import Tracker
from gantrain.reporting.view_thread import ViewThread
from gantrain.run_folder.record import Outline, read_with
from gantrain.sampling.sheets import read_side_by_side

DIGITS = ROOT / "configs" / "digits.yaml"
SMALL = [*TINY, "eval.num_samples=16", "eval.batch_size=16", "eval.recalibration_batches=1", "orbit.every_kimg=0.032"]
SWAP = ["swap={source: swa, start_kimg: 0.2, every_kimg: 10, after_kimg: 0.04, growth: 2}", "batching={name: on_swap, max_batch: 64}"]
ON = "tracking.tensorboard=true"


def shown(run: Path) -> SimpleNamespace:
    """What TensorBoard has read of a run: scalars and texts as (tag, step, value), pictures as (tag, step) -> picture."""
    found = EventAccumulator(str(run / "tensorboard"), size_guidance=dict.fromkeys(("scalars", "tensors", "images"), 0))
    found.Reload()
    tags = found.Tags()
    assert all(found.SummaryMetadata(tag).plugin_data.plugin_name == "text" for tag in tags["tensors"])
    texts = [
        (tag.removesuffix("/text_summary"), one.step, one.tensor_proto.string_val[0].decode())
        for tag in tags["tensors"]
        for one in found.Tensors(tag)
    ]
    images = [((tag, one.step), one.encoded_image_string) for tag in tags["images"] for one in found.Images(tag)]
    assert len(dict(images)) == len(images), "a picture is there twice"
    return SimpleNamespace(
        scalars=[(tag, one.step, one.value) for tag in tags["scalars"] for one in found.Scalars(tag)],
        texts=texts,
        images={at: Image.open(io.BytesIO(data)) for at, data in images},
    )


def is_the_record(run: Path) -> None:
    """The event file has what the path of the record has, each once: no more, no less."""
    told = read_with(Outline(1.0), run)
    numbers = [line for line in told.lines if "event" not in line]
    wanted = [
        (key, line["nimg"], value) for line in numbers for key, value in line.items() if key != "nimg" and isinstance(value, (int, float))
    ]
    found = shown(run)
    assert Counter(at[:2] for at in found.scalars) == Counter(at[:2] for at in wanted)
    values = {at[:2]: at[2] for at in found.scalars}
    assert all(values[tag, step] == pytest.approx(value, rel=1e-6, nan_ok=True) for tag, step, value in wanted)
    texts = [(f"event/{line['event']}", line["nimg"], words) for line in told.events() if (words := what_happened(line))]
    assert Counter(found.texts) == Counter(texts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, gantrain) -> SimpleNamespace:
    """A run that swaps and grows, shown from its start to its end; what it has said."""
    run = tmp_path_factory.mktemp("tensorboard") / "run"
    return SimpleNamespace(run=run, said=gantrain("train", DIGITS, f"run_dir={run}", *SMALL, *SWAP, ON).stdout)


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return shutil.copytree(whole.run, tmp_path / "copied")


# ---- a real run, read back -------------------------------------------------------------------------------------------


def test_scores_of_every_average_by_kimg_are_those_of_the_record(whole):
    lines = [line for line in lines_of(whole.run) if "eval/live/digits_fid" in line]
    found = shown(whole.run)
    for average in ("live", "ema", "ema_short", "swa"):
        for metric in ("digits_fid", "digits_is"):
            key = f"eval/{average}/{metric}"
            drawn = [(step, value) for tag, step, value in found.scalars if tag == key]
            wanted = [(line["nimg"], line[key]) for line in lines if key in line]
            assert [step for step, _ in drawn] == [step for step, _ in wanted] and len(wanted) >= 2
            assert [value for _, value in drawn] == pytest.approx([value for _, value in wanted], rel=1e-6)
    assert f"tensorboard: show the run with `tensorboard --logdir {whole.run}`" in whole.said.splitlines()


def test_every_number_and_every_event_is_there_once(whole):
    is_the_record(whole.run)
    texts = shown(whole.run).texts
    (grown,) = [line for line in lines_of(whole.run) if line.get("event") == "growth"]
    (swapped,) = [line["nimg"] for line in lines_of(whole.run) if line.get("event") == "swap" and line["moment"] == "at"]
    assert ("event/swap", swapped, "swa replaces the live weights of G and D; batch 16 -> 32") in texts
    assert ("event/growth", grown["nimg"], f"batch 16 -> 32: {grown['reason']}") in texts
    assert texts[-1][0] == "event/end" or ("event/end", lines_of(whole.run)[-1]["nimg"], "done") in texts


def test_every_sheet_is_a_picture_under_its_average(whole):
    found = shown(whole.run).images
    drawn = {int(path.stem): read_side_by_side(path) for path in (whole.run / "samples").glob("*.png")}
    assert {at for at in found if at[0] != "orbit"} == {(f"samples/{one.name}", nimg) for nimg, sheets in drawn.items() for one in sheets}
    last = max(drawn)
    (sheet,) = [one for one in drawn[last] if one.name == "ema"]
    assert found["samples/ema", last].tobytes() == sheet.headed.tobytes()


def test_an_orbits_picture_is_shown(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGBA", (8, 6), "red").save(tmp_path / "orbit.png")
    view = TensorBoardRun(started(run), 0)
    view.image(320, "orbit", tmp_path / "orbit.png", "an orbit")
    view.finish(0)
    assert shown(run).images["orbit", 320].size == (8, 6)


# ---- resumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_gets_it_at_a_resume_has_its_past(tmp_path, gantrain):
    run = tmp_path / "run"
    gantrain("train", DIGITS, f"run_dir={run}", *SMALL, "total_kimg=0.16")
    assert not (run / "tensorboard").exists()
    gantrain("train", DIGITS, f"run_dir={run}", *SMALL, "total_kimg=0.24", ON)
    is_the_record(run)
    assert {step for tag, step in shown(run).images if tag == "samples/live"} == {0, 160, 240}


@pytest.mark.slow
def test_what_a_kill_leaves_behind_the_checkpoint_is_not_shown_twice(copied, gantrain):
    """The newest checkpoint is gone, so the run resumes from the one before and writes its last lines again."""
    newest = max((copied / "checkpoints").iterdir())
    shutil.rmtree(newest)
    stale = EventFile(copied / "tensorboard")
    stale.add_scalars(10**6, {"loss/d": 7.0})
    stale.close()
    gantrain("train", DIGITS, f"run_dir={copied}", *SMALL, *SWAP, ON)
    assert (copied / "metrics.superseded.jsonl").stat().st_size > 0
    is_the_record(copied)
    assert {step for tag, step in shown(copied).images if tag == "samples/live"} == {
        int(path.stem) for path in (copied / "samples").glob("*.png")
    }
    assert len(list((copied / "tensorboard").iterdir())) == 1


# ---- a record that is written by hand --------------------------------------------------------------------------------


def started(run: Path) -> Path:
    """A run folder whose record has its line of the start."""
    run.mkdir(exist_ok=True)
    tracker = Tracker(run)
    tracker.open()
    tracker.event(0, "start")
    tracker.close()
    return run


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    """Of a run with an event file."""
    tracker = Tracker(started(tmp_path / "run"))
    tracker.open(10**9)
    tracker.views.append(open_view(tracker.run_dir, tracker.say))
    return tracker


def sheet(run: Path, nimg: int) -> Path:
    path = run / "samples" / f"{nimg:012d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return path


def test_what_a_rollback_has_left_is_taken_off_and_what_it_has_not_stays(tracker):
    """Two rollbacks, the second to before the first; scores that come late; a growth right after the checkpoint; words that nan is."""
    run = tracker.run_dir

    def train(*moments: int) -> None:
        for nimg in moments:
            tracker.log(nimg, {"loss/d": nimg / 7, "loss/g": float("nan"), "batch/size": 16})

    def back(at: int, to: int) -> None:
        tracker.event(at, "rollback", words="loss/d not finite", to=to, attempt=1, max_rollbacks=3, lr_scale=1.0)

    train(100, 200)
    tracker.samples(200, sheet(run, 200), [])
    tracker.event(200, "checkpoint")
    tracker.event(200, "growth", **{"from": 16, "to": 32, "reason": "so"})
    train(300)
    tracker.log(200, {"eval/live/fid": 2.0, "eval/num_samples": 16, "eval/reference": "digits"})
    tracker.event(300, "checkpoint")
    train(400, 500)
    tracker.samples(500, sheet(run, 500), [])
    back(500, 300)
    train(400, 480)
    back(480, 200)
    tracker.event(200, "growth", **{"from": 16, "to": 64, "reason": "other"})
    train(300, 400)
    tracker.event(400, "end")
    tracker.close()
    is_the_record(run)
    found = shown(run)
    assert [(step, words) for tag, step, words in found.texts if tag == "event/rollback"] == [
        (500, "loss/d not finite; back to 0.3 kimg, attempt 1 of 3, on other images"),
        (480, "loss/d not finite; back to 0.2 kimg, attempt 1 of 3, on other images"),
    ]
    assert [step for tag, step, _ in found.scalars if tag == "loss/d"] == [100, 200, 300, 400]
    assert ("eval/live/fid", 200, 2.0) in found.scalars and list(found.images) == [("samples", 200)]
    tracker.open(10**9)  # the same of a resume of it all
    tracker.event(400, "resume")
    tracker.views.append(open_view(run, tracker.say))
    tracker.close()
    is_the_record(run)


def test_a_rollback_that_is_the_last_thing_known_is_resumed(tracker):
    tracker.log(100, {"loss/d": 1.0})
    tracker.event(100, "checkpoint")
    tracker.log(200, {"loss/d": 2.0})
    tracker.event(250, "rollback", words="worse", to=100, attempt=1, lr_scale=0.5)
    tracker.close()
    for _ in range(2):
        tracker.open(10**9)
        tracker.event(100, "resume")
        tracker.views.append(open_view(tracker.run_dir, tracker.say))
        tracker.close()
        is_the_record(tracker.run_dir)


def test_a_picture_that_is_drawn_again_at_a_resume_is_shown_once(tracker):
    """As where a run was stopped at the very moment; a damaged one is passed over."""
    run = tracker.run_dir
    path = sheet(run, 0)
    sheet(run, 50).write_bytes(b"nonsense")
    tracker.event(100, "resume")
    tracker.close()
    view = TensorBoardRun(run, (run / "metrics.jsonl").stat().st_size)
    view.samples(0, path, [])
    view.finish(0)
    assert list(shown(run).images) == [("samples", 0)]


# ---- when it fails ---------------------------------------------------------------------------------------------------


def test_a_missing_package_is_refused_before_anything_is_begun(tmp_path, gantrain, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # so that its import fails
    error = error_of(gantrain("train", DIGITS, f"run_dir={tmp_path / 'run'}", *SMALL, ON, check=False))
    assert error == (
        "gantrain: error: tracking.tensorboard: the package tensorboard is not installed;"
        " run pip install 'gantrain[tensorboard]', or set tracking.tensorboard=false"
    )
    assert not (tmp_path / "run").exists()
    views.require_views(SimpleNamespace(tensorboard=False))


def test_a_package_that_cannot_be_imported_costs_one_line(tmp_path, monkeypatch):
    """It is there, but does not go with what else is installed."""
    monkeypatch.setitem(sys.modules, "gantrain.reporting.tensorboard_run", None)
    monkeypatch.delattr(reporting, "tensorboard_run", raising=False)
    said: list[str] = []
    settings = Tracking(tensorboard=True, wandb=Wandb(mode="disabled"))
    assert views.open_views(settings, "abc", {}, tmp_path, said.append) == []
    assert len(said) == 1 and said[0].startswith("tensorboard: not available (") and list(tmp_path.iterdir()) == []


class FullDisk:
    """A file without room from some write on."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str):
        return getattr(self.file, name)


@pytest.mark.slow
def test_a_disk_that_gets_full_costs_one_line_and_no_line_of_the_record(tmp_path, monkeypatch, gantrain, capfd):
    """No traceback of a thread either."""
    kept = EventFile._write

    def write(self: EventFile, event) -> None:
        if not isinstance(self._file, FullDisk):
            self._file = self._records._writer = FullDisk(self._file, room=4)
        kept(self, event)

    monkeypatch.setattr(EventFile, "_write", write)
    run = tmp_path / "run"
    done = gantrain("train", DIGITS, f"run_dir={run}", *SMALL, ON, "total_kimg=0.16")
    said = [line for line in done.stdout.splitlines() if line.startswith("tensorboard: stopped")]
    assert said == ["tensorboard: stopped ([Errno 28] No space left on device); training continues; metrics.jsonl is complete"]
    assert lines_of(run)[-1]["event"] == "end" and done.stderr == "" and "Traceback" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_made_costs_one_line(tmp_path):
    run, said = started(tmp_path / "run"), []
    (run / "tensorboard").write_text("a file")
    view = ViewThread("tensorboard", lambda: TensorBoardRun(run, 0), 30, said.append)
    view.log(1, {"loss/d": 1.0})
    view.finish(0)
    view.log(2, {"loss/d": 1.0})
    assert len(said) == 1 and said[0].startswith("tensorboard: stopped (")


class Noted:
    """A view that takes down what it is told, and raises at one of its calls."""

    name = "noted"

    def __init__(self, raises: str = ""):
        self.calls, self.raises = [], raises

    def __getattr__(self, method: str):
        def call(*arguments) -> None:
            self.calls.append((method, *arguments))
            if method == self.raises:
                raise ValueError("not\ntoday")

        return call


METHODS = ("log", "event", "overview", "image", "samples", "summary", "conclude", "finish")


def tell_all(tracker: Tracker, folder: Path) -> None:
    """Everything that a run can tell."""
    tracker.log(100, {"loss/d": 1.0})
    tracker.event(150, "checkpoint", path="checkpoints/000000000150")
    tracker.event(200, "growth", **{"from": 16, "to": 32, "reason": "so"})
    tracker.overview(200)
    tracker.image(200, "orbit", folder / "orbit.png", "an orbit")
    tracker.samples(200, folder / "samples.png", ["0", "1"])
    tracker.summary({"final/live/fid": 1.0})
    tracker.close(3)


def test_another_view_is_told_everything(tmp_path):
    """Written here from the protocol alone; of events only what there are words for."""
    tracker, view = Tracker(tmp_path), Noted()
    tracker.open()
    tracker.views.append(view)
    tell_all(tracker, tmp_path)
    grown = {"from": 16, "to": 32, "reason": "so"}
    assert view.calls == [
        ("log", 100, {"loss/d": 1.0}), ("event", 200, "growth", "batch 16 -> 32: so", grown), ("overview", 200),
        ("image", 200, "orbit", tmp_path / "orbit.png", "an orbit"), ("samples", 200, tmp_path / "samples.png", ["0", "1"]),
        ("summary", {"final/live/fid": 1.0}), ("conclude",), ("finish", 3, True),
    ]  # fmt: skip
    assert {call[0] for call in view.calls} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_view_that_raises_costs_one_line_and_the_others_go_on(method, tmp_path, capsys):
    tracker, bad, good = Tracker(tmp_path), Noted(method), Noted()
    tracker.open()
    tracker.views += [bad, good]
    tell_all(tracker, tmp_path)
    assert bad.calls[-1][0] == method and [call[0] for call in good.calls] == list(METHODS)
    assert capsys.readouterr().out == "noted: stopped (not today); training continues; metrics.jsonl is complete\n"
    assert len(lines_of(tmp_path)) == 3


def test_a_training_goes_on_without_a_view_that_raises(tmp_path, gantrain, monkeypatch):
    monkeypatch.setattr("gantrain.training.trainer.open_views", lambda *arguments: [Noted("samples"), noted])
    noted = Noted()
    done = gantrain("train", DIGITS, f"run_dir={tmp_path / 'run'}", *SMALL, "total_kimg=0.16")
    assert done.stdout.count("noted: stopped (not today); training continues") == 1
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["event"] == "end"
    assert [call[1] for call in noted.calls if call[0] == "log"] == [line["nimg"] for line in lines if "event" not in line]
    assert [call[0] for call in noted.calls][-2:] == ["conclude", "finish"]


def test_a_view_on_a_thread_takes_what_the_protocol_has():
    view = Noted()
    thread = ViewThread("noted", lambda: view, 30, pytest.fail)
    tracker = Tracker(Path(), enabled=False)
    tracker.views.append(thread)
    tell_all(tracker, Path())
    assert [call[0] for call in view.calls] == list(METHODS)


def test_a_process_that_is_not_the_main_one_has_no_views():
    """The trainer opens them on the main process; nothing else puts any there."""
    source = (ROOT / "gantrain" / "training").rglob("*.py")
    opened = [text for path in source if "open_views(" in (text := path.read_text())]
    assert len(opened) == 1 and Tracker(Path(), enabled=False).views == []
