"""Checkpoints: whole or passed over, written without a trace of what failed."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch

from gantrain.errors import UserError
from gantrain.run_folder import checkpoint
from gantrain.run_folder.background_writer import BackgroundWriter
from gantrain.run_folder.checkpoint import CheckpointStore, Damaged, NotWritten, link_checkpoint, read, save_under, verify
from gantrain.run_folder.ownership import ROLLBACK_FILE, forget_abandoned, read_rollback, write_rollback


def tensors(value: float) -> dict:
    return {"g": {"a.weight": torch.full((3, 4), value), "n": torch.tensor(7)}, "average.ema": {"a.weight": torch.randn(3, 4)}}


@pytest.fixture
def store(tmp_path):
    said = []
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2, say=said.append)
    store.said = said
    return store


def test_what_is_saved_is_read(store):
    saved = tensors(1.5)
    saved["g"]["a.weight"] = torch.randn(3, 8, 2, 2).to(memory_format=torch.channels_last)
    path = store.save(64_000, saved, {"averages": {"ema": {"num_averaged": 3}}, "x": 0.1})
    snapshot = read(path)
    assert path.name == "000000064000" and snapshot.nimg == 64_000 and snapshot.state["x"] == 0.1
    for group, named in saved.items():
        assert all(torch.equal(snapshot.tensors[group][name], tensor) for name, tensor in named.items())
    assert list(read(path, groups=["average.ema"]).tensors) == ["average.ema"]
    assert checkpoint.groups_of(path) == ["average.ema", "g"]


def test_the_newest_are_kept_and_sort_by_images(store):
    for nimg in (1000, 999_999, 12_000_000):
        store.save(nimg, tensors(1.0), {})
    assert [p.name for p in store.paths()] == ["000000999999", "000012000000"]
    assert store.newest().name == "000012000000"


def test_no_checkpoint_is_none(store):
    assert store.newest() is None


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


FILES = ["g.safetensors", "average.ema.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip first", "flip middle", "flip last", "cut", "empty", "grown", "missing", "pickle"])
def test_damage_is_named_and_passed_over(store, name, how, tmp_path):
    """Every file, in every way: never loaded, the checkpoint before it is."""
    store.save(1000, tensors(1.0), {"k": 1})
    path = store.save(2000, tensors(2.0), {"k": 2})
    data = (path / name).read_bytes()
    trap = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    new = {
        "flip first": flip(data, 0),
        "flip middle": flip(data, len(data) // 2),
        "flip last": flip(data, len(data) - 1),
        "cut": data[:-5],
        "empty": b"",
        "grown": data + b" ",
        "pickle": pickle.dumps(Malicious()),
    }
    (path / name).unlink() if how == "missing" else (path / name).write_bytes(new[how])
    with pytest.raises(Damaged, match=name):
        verify(path)
    assert store.newest().name == "000000001000"
    assert len(store.said) == 1 and str(path / name) in store.said[0] and "skipped" in store.said[0]
    assert not trap.exists()


def test_every_byte_of_a_manifest_counts(store):
    path = store.save(1000, tensors(1.0), {"k": 1})
    data = (path / "manifest.json").read_bytes()
    for at in range(len(data)):
        (path / "manifest.json").write_bytes(flip(data, at))
        with pytest.raises(Damaged, match="manifest"):
            verify(path)


def test_nothing_whole_is_said_and_not_started_over(store):
    path = store.save(1000, tensors(1.0), {})
    (path / "g.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"its only checkpoint is damaged \(000000001000/g.safetensors: has 0 bytes; the manifest has \d+\); restore it from a copy$",
    ):
        store.newest()


FAULTS = {
    "cut": (lambda path: path.joinpath("g.safetensors").write_bytes(b"0" * 500), r"/g.safetensors: has 500 bytes; the manifest has \d+"),
    "half copied": (lambda path: path.joinpath("g.safetensors").unlink(), r"/g.safetensors: cannot be read \(No such file or directory\)"),
    "without a manifest": (
        lambda path: path.joinpath("manifest.json").unlink(),
        "/manifest.json: does not exist, as after a copy or a del",
    ),
    "flipped": (lambda path: path.joinpath("state.json").write_bytes(b"{"), "/state.json: has 1 bytes; the manifest has"),
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_error_names_the_newest_checkpoint_its_file_and_its_fault(store, count, fault):
    store.keep_last = None
    for nimg in range(1000, 1000 * count + 1, 1000):
        FAULTS[fault][0](store.save(nimg, tensors(1.0), {}))
    with pytest.raises(UserError) as refused:
        store.newest()
    told = str(refused.value)
    assert re.search(rf"00000000{count}000{FAULTS[fault][1]}", told) and told.count("/g.saf") + told.count(".json") == 1
    others = {1: "its only checkpoint is damaged (0", 2: "; and 1 other); restore one of them", 3: "; and 2 others); restore one of them"}
    assert others[count] in told and told.endswith("from a copy")


def test_a_damaged_one_is_written_anew(store):
    path = store.save(1000, tensors(1.0), {})
    (path / "g.safetensors").write_bytes(b"")
    store.save(1000, tensors(3.0), {})
    assert read(path).tensors["g"]["a.weight"][0, 0] == 3.0


def test_a_later_damaged_one_does_not_push_out_what_is_whole(store):
    store.keep_last = 1
    later = store.save(3000, tensors(1.0), {})
    (later / "g.safetensors").write_bytes(b"")
    store.save(1500, tensors(1.0), {})
    assert store.newest().name == "000000001500"


def test_what_a_kill_left_is_no_checkpoint_and_is_cleared(store):
    store.save(1000, tensors(1.0), {})
    draft = store.folder / ".writing-000000002000"
    draft.mkdir()
    (draft / "g.safetensors").write_bytes(b"half")
    assert store.newest().name == "000000001000"
    store.save(3000, tensors(1.0), {})
    assert not draft.exists()


FILL = """
import resource, signal, sys, torch
from pathlib import Path
from gantrain.run_folder.checkpoint import CheckpointStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointStore(Path(sys.argv[1]))
store.save(1000, {"g": {"w": torch.ones(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
store.save(2000, {"g": {"w": torch.ones(100_000)}}, {})
"""


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    """The system itself refuses the bytes; nothing half-written stays."""
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True)
    assert "the checkpoint could not be written (File too large; it needs 391 KiB, " in done.stderr
    assert " are free); the one at 1 kimg is intact; free some space and run the same command again" in done.stderr
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000000001000"]
    verify(tmp_path / "000000001000")


def test_the_manifest_lists_sizes_and_sums(store):
    path = store.save(1000, tensors(1.0), {"k": 1})
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in path.iterdir()} - {"manifest.json"}
    assert all(entry["bytes"] == os.path.getsize(path / name) and len(entry["sha256"]) == 64 for name, entry in manifest["files"].items())


# ---- which are kept --------------------------------------------------------------------------------------------------


def times(store: CheckpointStore) -> list[int]:
    return [int(path.name) for path in store.paths()]


@pytest.mark.parametrize("seed", range(60))
def test_what_is_kept_is_what_shall_be(seed, tmp_path):
    """Through saves at random moments, with a moment held now and then, and rollbacks: the newest, the first at or after each
    multiple of `keep_every_kimg`, and the newest not beyond what is held."""
    draw = random.Random(seed)
    every = draw.choice([None, 0.5, 1.0, 2.5, 7.3])
    store = CheckpointStore(tmp_path, keep_last=draw.choice([1, 2, 3]), keep_every_kimg=every)
    now, history, there = draw.choice([0, 0, 300]), [], set()
    for _ in range(60):
        (tmp_path / f"{now:012d}").mkdir()
        history.append(now)
        store.held = draw.choice([None, None, now, now - draw.randrange(1, 4000)])
        store.prune(now)
        there.add(now)
        shall = set(sorted(there)[-store.keep_last :])
        if every is not None:
            multiples = range(0, now + 1, round(every * 1000))
            shall |= {min(at for at in history if at >= multiple) for multiple in multiples}
        if store.held is not None:
            shall |= set(sorted(at for at in there if at <= store.held)[-1:])
        there &= shall
        assert times(store) == sorted(there)
        if draw.random() < 0.1:
            to = draw.choice(sorted(there))
            store.forget_after(to)
            now, history, there = to, [at for at in history if at <= to], {at for at in there if at <= to}
            assert times(store) == sorted(there)
        now += draw.randrange(1, 1500)


def test_all_are_kept_where_no_number_is_given(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=None)
    for nimg in range(5):
        (tmp_path / f"{nimg:012d}").mkdir()
        store.prune(nimg)
    assert times(store) == [0, 1, 2, 3, 4]


def test_the_newest_until(store):
    """Of a run that looks for where it was well: damaged ones are passed over, and none is no error."""
    store.keep_last = None
    for nimg in (1000, 2000, 3000):
        store.save(nimg, tensors(1.0), {})
    (store.folder / "000000002000" / "state.json").write_bytes(b"")
    found = [store.newest(until=nimg) for nimg in (999, 1000, 1999, 2000, 2999, 3000)]
    assert [path and int(path.name) for path in found] == [None, 1000, 1000, 1000, 1000, 3000] and len(store.said) == 2
    (store.folder / "000000001000" / "state.json").write_bytes(b"")
    assert store.newest(until=2500) is None


# ---- under a second name ---------------------------------------------------------------------------------------------


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(store):
    return store.save(1000, tensors(1.0), {"k": 1})


def test_a_second_name_is_the_same_files(saved, tmp_path):
    """No byte is there twice, and either name outlives the other."""
    target = tmp_path / "best" / "fid" / saved.name
    link_checkpoint(saved, target)
    assert {p.name: p.stat().st_ino for p in target.iterdir()} == {p.name: p.stat().st_ino for p in saved.iterdir()}
    assert [p.name for p in target.parent.iterdir()] == [saved.name]
    before = content(saved)
    shutil.rmtree(saved)
    verify(target)
    assert content(target) == before


def no_links(*args):
    raise PermissionError(1, "Operation not permitted")


def test_where_there_are_no_links_it_is_copied_and_synced(saved, tmp_path, monkeypatch):
    """Before it has its name: a power cut leaves the copy whole or not there."""
    synced, sync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}"))), sync(number)))
    monkeypatch.setattr(os, "rename", lambda *names: (synced.append("renamed"), rename(*names)))
    target = tmp_path / "best" / saved.name
    link_checkpoint(saved, target)
    verify(target)
    assert content(target) == content(saved) and not {p.stat().st_ino for p in target.iterdir()} & {
        p.stat().st_ino for p in saved.iterdir()
    }
    assert set(synced[: synced.index("renamed")]) >= {*content(saved), f".writing-{saved.name}"} and synced[-1] == "best"


@pytest.mark.parametrize("fails", ["rename", "link and open", "fsync"])
def test_a_second_name_is_there_whole_or_not_at_all(fails, saved, tmp_path, monkeypatch):
    target, count = tmp_path / "best" / saved.name, []

    def full(*args, **kwargs):
        count.append(args)
        raise OSError(28, "No space left on device")

    def full_after_two(source, there):
        if len(count) >= 2:
            full()
        count.append(there)
        real(source, there)

    real = os.link
    if fails == "link and open":
        monkeypatch.setattr(os, "link", full_after_two)
        monkeypatch.setattr(checkpoint, "write_synced", full)
        monkeypatch.setattr(shutil, "copy2", full)
    else:
        monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        link_checkpoint(saved, target)
    assert list((tmp_path / "best").iterdir()) == []
    verify(saved)


def test_a_second_name_that_is_taken_is_taken_over(store, saved, tmp_path):
    """By what a run has saved at these images before it was rolled back, or what was damaged since."""
    target = tmp_path / "best" / saved.name
    link_checkpoint(saved, target)
    store.save(1000, tensors(2.0), {"k": 2})
    link_checkpoint(saved, target)
    assert read(target).state == {"k": 2} and content(target) == content(saved)
    link_checkpoint(saved, target)
    assert content(target) == content(saved)


@pytest.fixture
def best(tmp_path):
    return [CheckpointStore(tmp_path / "best" / name, keep_last=1) for name in ("fid", "is")]


def test_one_checkpoint_is_kept_under_several_names(store, best):
    """Written once; each store keeps as many as it shall."""
    for nimg in (1000, 2000, 3000):
        save_under([store, best[0]] if nimg < 3000 else [store, best[1]], nimg, tensors(nimg), {})
    assert [times(one) for one in (store, *best)] == [[2000, 3000], [2000], [3000]]
    for path in (*store.paths(), *best[0].paths(), *best[1].paths()):
        assert read(path).tensors["g"]["a.weight"][0, 0] == int(path.name)
    save_under([best[1], best[0]], 4000, tensors(4.0), {})
    assert [times(one) for one in (store, *best)] == [[2000, 3000], [4000], [4000]]


def test_what_a_kill_left_in_any_store_is_cleared(store, best):
    """Half-written drafts hold disk, and links hold what was deleted elsewhere."""
    for one in (store, *best):
        (one.folder / ".writing-000000000500").mkdir(parents=True)
    save_under([store, *best], 1000, tensors(1.0), {})
    assert [sorted(p.name for p in one.folder.iterdir()) for one in (store, *best)] == [["000000001000"]] * 3


def test_a_second_name_that_cannot_be_had_is_named_and_the_first_is_whole(store, best):
    best[1].folder.parent.mkdir()
    best[1].folder.write_text("a file")
    with pytest.raises(
        NotWritten,
        match=r"best/is/000000001000: the checkpoint could not be kept there \((File exists|Not a directory)\); fix this and run",
    ):
        save_under([store, *best], 1000, tensors(1.0), {})
    verify(store.newest())
    verify(best[0].newest())


# ---- in the background -----------------------------------------------------------------------------------------------


@pytest.fixture
def writer():
    return BackgroundWriter()


def test_never_two_are_written_at_once_and_all_in_order(writer):
    now, most, done = [], [], []

    def job(i: int) -> None:
        now.append(i)
        most.append(len(now))
        time.sleep(0.002)
        now.remove(i)
        done.append(i)

    for i in range(50):
        writer.submit(lambda i=i: job(i))
    writer.wait()
    assert done == list(range(50)) and set(most) == {1}
    writer.wait()  # nothing to wait for


def test_whoever_comes_too_early_waits(writer):
    """So that no more than one waits to be written; looking what became of it does not wait."""
    go, done, submitted = threading.Event(), [], threading.Event()
    writer.submit(lambda: (go.wait(60), done.append(1)))
    writer.check()
    early = threading.Thread(target=lambda: (writer.submit(lambda: done.append(2)), submitted.set()))
    early.start()
    assert not submitted.wait(0.2) and done == []
    go.set()
    assert submitted.wait(60)
    early.join(60)
    writer.wait()
    assert done == [1, 2]


@pytest.mark.parametrize("how", ["wait", "check", "submit"])
@pytest.mark.parametrize(
    "error", [NotWritten("the disk is full"), MemoryError("none"), KeyboardInterrupt("a")], ids=lambda e: type(e).__name__
)
def test_what_went_wrong_is_raised_once(how, error, writer):
    """To whoever looks next; what came too early for it is not written, and the writer works on."""
    done = []

    def job():
        raise error

    writer.submit(job)
    writer._thread.join(60)
    with pytest.raises(type(error), match=str(error)):
        writer.submit(lambda: done.append(1)) if how == "submit" else getattr(writer, how)()
    writer.check()
    writer.wait()
    assert done == []
    writer.submit(lambda: done.append(2))
    writer.wait()
    assert done == [2]


def test_a_process_that_ends_does_not_wait_for_what_is_written():
    code = (
        "import time\nfrom gantrain.run_folder.background_writer import BackgroundWriter\n"
        "BackgroundWriter().submit(lambda: time.sleep(3600))\nprint('gone')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout == "gone\n"


# ---- a rollback ------------------------------------------------------------------------------------------------------

ROLLBACK = {"to": 1000, "guard": {"rollbacks": 2, "lr_scale": 0.5}, "batching": {"batch_size": 64}, "metrics_bytes": 123}


def test_a_rollback_is_read_as_it_was_written(tmp_path):
    assert read_rollback(tmp_path) is None
    for to in (1000, 500):
        write_rollback(tmp_path, {**ROLLBACK, "to": to})
        assert {**ROLLBACK, "to": to}.items() <= read_rollback(tmp_path).items()
    assert [p.name for p in tmp_path.iterdir()] == [ROLLBACK_FILE]


def test_every_byte_of_a_rollback_counts(tmp_path):
    """Flipped, cut, or something else altogether: one line names the file."""
    write_rollback(tmp_path, ROLLBACK)
    path = tmp_path / ROLLBACK_FILE
    data = path.read_bytes()
    others = [data[:-1], b"", b"[]", b"3", b"null", b"{}", b"\xff", b"[" * 100_000, data + b" "]
    for wrong in [*(flip(data, at) for at in range(len(data))), *others]:
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=f"{ROLLBACK_FILE}: is damaged; delete it to continue as if the run had not been rolled back"):
            read_rollback(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is damaged"):
        read_rollback(tmp_path)


def test_what_was_rolled_back_from_is_forgotten_and_what_came_after_is_not(store):
    """By how many rollbacks a checkpoint knows of; a damaged one tells nothing and stays to be named."""
    store.keep_last = None
    for nimg, rollbacks in ((500, 0), (1000, 1), (1500, 1), (2000, 2), (2500, 2), (3000, 3)):
        store.save(nimg, {}, {"guard": {"rollbacks": rollbacks}})
    store.save(3500, {}, {"guard": {"rollbacks": 0}})
    (store.folder / "000000003500" / "state.json").write_bytes(b"")
    forget_abandoned(store, ROLLBACK)
    assert times(store) == [500, 1000, 2000, 2500, 3000, 3500]
