"""Checkpoints: whole or passed over, written without a trace of what failed."""
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from gantrain import checkpoint
from gantrain.checkpoint import CheckpointStore, Damaged, read, verify
from gantrain.errors import UserError


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
    assert len(store.said) == 1 and str(path / name) in store.said[0] and "passed over" in store.said[0]
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
    with pytest.raises(UserError, match="none of its 1 checkpoints is whole; delete the folder to start anew"):
        store.newest()


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
from gantrain.checkpoint import CheckpointStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointStore(Path(sys.argv[1]))
store.save(1000, {"g": {"w": torch.ones(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
store.save(2000, {"g": {"w": torch.ones(100_000)}}, {})
"""


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    """The system itself refuses the bytes; nothing half-written stays."""
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True)
    assert "the checkpoint could not be written (File too large; it needs 1 MiB, " in done.stderr
    assert " are free); the one at 1 kimg is whole; make room and run the same command again" in done.stderr
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000000001000"]
    verify(tmp_path / "000000001000")


def test_the_manifest_lists_sizes_and_sums(store):
    path = store.save(1000, tensors(1.0), {"k": 1})
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in path.iterdir()} - {"manifest.json"}
    assert all(entry["bytes"] == os.path.getsize(path / name) and len(entry["sha256"]) == 64 for name, entry in manifest["files"].items())
