"""One helper writes files: the old content or the new one, whatever goes wrong on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import spawning
from conftest import ROOT

from gantrain import atomic_file
from gantrain.atomic_file import open_draft, write_atomically

FORMS = [{}, {"durable": True}, {"only_writer": True}, {"durable": True, "only_writer": True}]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("data", ["a text, \u00e4\u2028\n", b"\x00\xff", memoryview(b"\x01\x02")], ids=["text", "bytes", "view"])
def test_a_file_is_written_and_no_draft_stays(form, data, tmp_path):
    target = tmp_path / "some.json"
    for _ in range(2):  # also over one that is there
        write_atomically(target, data, **form)
        assert target.read_bytes() == (data.encode() if isinstance(data, str) else bytes(data))
        assert os.listdir(tmp_path) == ["some.json"]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("fails", ["write", "replace", "fsync"])
def test_what_fails_leaves_the_old_file_and_no_draft_and_names_the_file(form, fails, tmp_path, monkeypatch):
    target = tmp_path / "some.json"
    target.write_text("old")

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device", "another name")

    if fails == "write":
        monkeypatch.setattr(atomic_file.Path, "write_bytes", full)
    else:
        monkeypatch.setattr(os, fails, full)
    if fails == "fsync" and not form.get("durable"):  # nothing is synced
        write_atomically(target, "new", **form)
        assert target.read_text() == "new"
        return
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(target, "new", **form)
    assert caught.value.filename == str(target) and os.listdir(tmp_path) == ["some.json"]
    assert target.read_text() == "old"


def test_an_error_of_the_caller_leaves_the_old_file_and_no_draft(tmp_path):
    target = tmp_path / "some.png"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), open_draft(target) as draft:
        assert draft.parent == tmp_path and draft.suffix == ".png"  # whose format is known by its name
        draft.write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["some.png"] and target.read_text() == "old"


@pytest.mark.parametrize("named", [None, "draft", "weights.safetensors"])
def test_an_error_of_another_file_keeps_its_name(named, tmp_path):
    target = tmp_path / "some.png"
    with pytest.raises(OSError, match="Input/output error") as caught, open_draft(target) as draft:
        raise OSError(5, "Input/output error", str(draft) if named == "draft" else named)
    assert caught.value.filename == (named if named == "weights.safetensors" else str(target)) and os.listdir(tmp_path) == []


def test_permissions_of_a_file_that_is_replaced_are_kept(tmp_path):
    target = tmp_path / "secret.json"
    target.touch(0o600)
    write_atomically(target, "new")
    assert target.stat().st_mode & 0o777 == 0o600
    (tmp_path / "by_hand").touch()
    write_atomically(tmp_path / "fresh", "new")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "by_hand").stat().st_mode  # as the umask has it


def test_a_file_system_that_refuses_chmod_does_not_stop_a_write(tmp_path, monkeypatch):
    """Some FUSE and CIFS mounts refuse it. The new file then has the permissions that the umask gives."""
    target = tmp_path / "config.yaml"
    target.write_text("old")

    def refused(*arguments: object, **keywords: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    write_atomically(target, "new", durable=True, only_writer=True)
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["config.yaml"]


def test_a_durable_file_is_synced_before_it_is_renamed_and_its_folder_afterwards(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}"))), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), replace(*names)))
    write_atomically(tmp_path / "some.json", "new", durable=True, only_writer=True)
    assert done == [".some.writing.json", "renamed", tmp_path.name]


WRITES = "import sys; from pathlib import Path; from gantrain.atomic_file import write_atomically as w; w(Path(sys.argv[1]), 'x' * 50_000)"


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The system itself refuses the bytes."""
    target = tmp_path / "some.json"
    target.write_text("old")
    done = spawning.run(["-c", WRITES, target], {**os.environ, "PYTHONPATH": str(ROOT)}, largest=20_000)
    assert f"File too large: '{target}'" in done.stderr
    assert os.listdir(tmp_path) == ["some.json"] and target.read_text() == "old"


@pytest.mark.parametrize("only_writer", [True, False])
def test_a_kill_between_writing_and_renaming_leaves_the_old_file(only_writer, tmp_path):
    """And a draft, which the next write of the only writer takes over; others each have their own."""
    target = tmp_path / "some.json"
    target.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from gantrain import atomic_file;"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL);"
        f"atomic_file.write_atomically(Path(sys.argv[1]), 'new', only_writer={only_writer})"
    )
    killed = subprocess.run([sys.executable, "-c", code, target], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and target.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2 and not list(tmp_path.glob("[!.]*.writing*"))
    write_atomically(target, "newer", only_writer=only_writer)
    assert target.read_text() == "newer" and len(os.listdir(tmp_path)) == (1 if only_writer else 2)
