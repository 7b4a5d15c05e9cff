"""Prepared data sets, StyleGAN's zips, and the tool that prepares data sets from all sources."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import json
import os
import pickle
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, lines_of
from test_data import CPU, cats_and_dogs, in_memory, noise, write_images, write_zip

from gantrain.data import Archive, Folder, ImageSet, Packed, RealBatches, audit, decode_all, pack, packed as packing, prepare
from gantrain.data.stream import Ahead
from gantrain.errors import UserError

LABELS = {"cat": 1, "dog": 0}


def tool(*arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """`gantrain prepare` by its old name, in this process, from the project's root."""
    out, err, before, status = io.StringIO(), io.StringIO(), os.getcwd(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare_dataset.py", *map(str, arguments)])
        os.chdir(ROOT)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                runpy.run_path("tools/prepare_dataset.py", run_name="__main__")
        except SystemExit as end:
            status = end.code
        finally:
            os.chdir(before)
    assert not check or not status, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def same(a: ImageSet, b: ImageSet) -> None:
    assert [a[i][1] for i in range(len(a))] == [b[i][1] for i in range(len(b))] and a.class_names == b.class_names
    assert all(torch.equal(a[i][0], b[i][0]) for i in range(len(a)))


# ---- StyleGAN's zips -------------------------------------------------------------------------------------------------


def test_a_zip_holds_the_images_of_its_folder_with_its_own_labels(tmp_path):
    folder = cats_and_dogs(tmp_path)
    images, files = (
        Archive(root=str(write_zip(tmp_path / "a.zip", folder, LABELS)), resolution=4).build(),
        Folder(root=str(folder), resolution=4).build(),
    )
    assert len(images) == len(files) == 7 and images.class_names == ["0", "1"] and images.labels.tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert all(torch.equal(images[i][0], files[i][0]) for i in range(7))


def test_a_zip_without_a_list_of_labels_has_its_folders_as_classes(tmp_path):
    images = Archive(root=str(write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path))), resolution=4).build()
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_the_folders_of_a_zip_without_labels_are_not_its_classes(tmp_path):
    path = write_zip(tmp_path / "a.zip", write_images(tmp_path / "shards", [f"0000{i}/{j}.png" for i in range(2) for j in range(3)]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dataset.json", '{"labels": null}')
    with pytest.raises(UserError, match="a.zip: has no labels .dataset.json contains null.; set data.labels=false to train without labels"):
        Archive(root=str(path), resolution=8).build()
    assert prepare(Archive(root=str(path), resolution=8, labels=False), CPU).class_names == ["all"]
    done = tool(path, "--out", tmp_path / "p", "--resolution", 8, check=False)
    assert done.returncode == 2 and "dataset.json contains null" in done.stderr
    assert "p: 6 images, 6 of them prepared by this command" in tool(path, "--out", tmp_path / "p", "--resolution", 8, "--no-labels").stdout


def test_the_index_of_a_zip_is_read_once_a_process(tmp_path, monkeypatch):
    from gantrain.data import archive

    opened, whole = [], zipfile.ZipFile
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path), LABELS)
    monkeypatch.setattr(archive.zipfile, "ZipFile", lambda *words: opened.append(words) or whole(*words))
    images = Archive(root=str(path), resolution=8).build()
    first = [decode_all(images, range(7)) for _ in range(5)]
    there = pickle.loads(pickle.dumps(images.decode))  # as a worker process that is not forked has it
    assert torch.equal(torch.stack([there(i) for i in range(7)]), first[4]) and images.decode.state(3) == there.state(3)
    assert len(opened) == 1


def test_members_are_read_stored_and_deflated_and_no_other_way(tmp_path):
    folder = cats_and_dogs(tmp_path)
    ways = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED, "lzma": zipfile.ZIP_LZMA}
    sets = {}
    for name, way in ways.items():
        with zipfile.ZipFile(tmp_path / name, "w", way) as opened:
            for file in sorted(folder.rglob("*.png")):
                opened.write(file, file.relative_to(folder))
        (tmp_path / name).write_bytes(b"in front" + (tmp_path / name).read_bytes())  # as self-extracting ones have something
        sets[name] = Archive(root=str(tmp_path / name), resolution=8).build()
    assert torch.equal(decode_all(sets["stored"], range(7)), decode_all(sets["deflated"], range(7)))
    with pytest.raises(UserError, match="lzma: cat/0.png cannot be read .compression method 14 is neither stored nor deflated"):
        sets["lzma"].decode(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_and_threads_read_a_zip_of_their_own(tmp_path, workers):
    """With a shared file position, a forked process would read where another process has moved it."""
    path = write_zip(tmp_path / "a.zip", write_images(tmp_path / "many", [f"{c}/{i}.png" for c in "ab" for i in range(40)]))
    on_disk = prepare(Archive(root=str(path), resolution=8, keep_in="disk"), CPU)
    in_ram = prepare(Archive(root=str(path), resolution=8), CPU)
    assert on_disk.pixels is None and in_ram.pixels is not None and on_disk.fingerprint == in_ram.fingerprint
    streams = [RealBatches(images, 0, 8, 0, 1, 0, CPU, workers=workers) for images in (on_disk, in_ram)]
    for _ in range(25):
        (x, y), (same_x, same_y) = (stream.next() for stream in streams)
        assert torch.equal(x, same_x) and torch.equal(y, same_y)
    for stream in streams:
        stream.close()


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path, folder: path.write_bytes(b"no zip"), "cannot be read as a zip of images"),
        (lambda path, folder: write_zip(path, folder, {"cat": 0.5, "dog": 1}), "is 0.5, not a class 0, 1, 2"),
        (lambda path, folder: write_zip(path, folder, {"cat": [1, 0], "dog": [0, 1]}), r"is \[1, 0\], not a class"),
        (lambda path, folder: write_zip(path, folder, {"cat": -1, "dog": 1}), "is -1, not a class"),
        (
            lambda path, folder: write_zip(path, folder, {"cat": 0, "dog": 2_000_000_000}),
            "label 2000000000 implies more classes than there are images .7.; .*set data.labels=false",
        ),
        (
            lambda path, folder: write_zip(path, folder, {"cat": 1, "dog": 6}),
            "a.zip has no images with label 0, 2, 3, 4, 5; number .*or set data.labels=false",
        ),
        (lambda path, folder: write_zip(path, folder / "cat", {"cat": 0, "": 0}), "has only one class"),
        (lambda path, folder: zipfile.ZipFile(path, "w").close(), "contains no images"),
    ],
)
def test_an_invalid_zip_is_refused(tmp_path, write, words):
    write(tmp_path / "a.zip", cats_and_dogs(tmp_path))
    with pytest.raises(UserError, match=words):
        prepare(Archive(root=str(tmp_path / "a.zip"), resolution=8), CPU)


def test_images_without_a_label_are_counted_and_one_is_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": [["cat/0.png", 0]]}))
    with pytest.raises(UserError, match=r"6 images have no label in dataset.json, for example 'cat/1.png'; set data.labels=false"):
        Archive(root=str(path)).build()


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    from gantrain.data import archive

    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path), LABELS)
    monkeypatch.setattr(archive, "MOST_MEMBER", 1000)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("dog/bomb.png", bytes(10**6))
    with pytest.raises(UserError, match="dog/bomb.png cannot be read .larger than 1,000 bytes"):
        prepare(Archive(root=str(path), resolution=8, labels=False), CPU)


def test_a_damaged_member_is_named_or_skipped(tmp_path):
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path), LABELS)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("dog/2.png").header_offset + 60
    data = bytearray(path.read_bytes())
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(UserError, match="a.zip: dog/2.png cannot be read .Bad CRC-32"):
        prepare(Archive(root=str(path), resolution=8), CPU)
    assert list(prepare(Archive(root=str(path), resolution=8, on_error="skip"), CPU).skipped) == [5]


# ---- prepared sets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A set of 50 images on disk, packed in blocks of 8."""
    for module in (packing, sys.modules["gantrain.data.intake"]):
        monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path / "cache"))
    root = write_images(tmp_path / "many", [f"{c}/{i:02}.png" for c in "ab" for i in range(25)])
    return lambda: Folder(root=str(root), resolution=8).build()


def test_a_prepared_set_is_the_set_that_it_was_made_from(many, tmp_path):
    assert pack(many(), tmp_path / "p", "many") == 50
    images = prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)
    same(images, many())
    assert images.mapped and "on disk, mapped into memory" in audit(images)
    assert np.array_equal(np.load(tmp_path / "p" / "images.npy"), images.pixels.numpy())  # anybody's NumPy reads it
    assert not (tmp_path / "p.part").exists() and sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "head.json",
        "images.npy",
        "labels.npy",
    ]
    in_ram = prepare(Packed(root=str(tmp_path / "p"), resolution=8, keep_in="host"), CPU)
    assert not in_ram.mapped and " in memory" in audit(in_ram) and in_ram.fingerprint == images.fingerprint


def test_an_interrupted_preparation_continues(many, tmp_path):
    """Finished blocks are not decoded again, but a block whose data was lost before it reached the disk is."""
    images, decoded = many(), []
    decode = images.decode

    class Stopping(type(decode)):
        def read(self, index):
            if index >= 30:
                raise KeyboardInterrupt
            return decode.read(index)

    stopping = object.__new__(Stopping)
    stopping.__dict__ |= decode.__dict__
    images.decode = stopping
    with pytest.raises(KeyboardInterrupt):
        pack(images, tmp_path / "p", "many")
    assert not (tmp_path / "p").exists() and len((tmp_path / "p.part" / "done.jsonl").read_text().splitlines()) == 3
    with open(tmp_path / "p.part" / "images.npy", "r+b") as file:
        file.seek(128 + 8 * 3 * 64)  # in the second block
        file.write(b"lost")
    with open(tmp_path / "p.part" / "done.jsonl", "a") as file:
        file.write('{"block": 3, "sha')  # cut short
    with pytest.raises(
        UserError, match=r"p' is not a prepared data set .it has no head.json.; run the command that began .*p.part again to finish it"
    ):
        Packed(root=str(tmp_path / "p"), resolution=8).build()

    class Counting(type(decode)):
        def read(self, index):
            decoded.append(index)
            return decode.read(index)

    counting = object.__new__(Counting)
    counting.__dict__ |= decode.__dict__
    images.decode = counting
    assert pack(images, tmp_path / "p", "many") == 50 - 16
    assert sorted(decoded) == [*range(8, 16), *range(24, 50)]
    same(prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU), many())


def test_another_source_does_not_continue_an_interrupted_preparation(many, tmp_path):
    (tmp_path / "p.part").mkdir()
    (tmp_path / "p.part" / "head.json").write_text("{}")
    with pytest.raises(UserError, match="p.part: was begun from another source or with other settings; delete it to start over"):
        pack(many(), tmp_path / "p", "many")
    pack(many(), tmp_path / "q", "many")
    with pytest.raises(UserError, match="q: already exists; delete it, or pass another --out"):
        pack(many(), tmp_path / "q", "many")


def test_damage_in_every_region_of_a_prepared_set_is_noticed(many, tmp_path):
    folder = tmp_path / "p"
    pack(many(), folder, "many")
    for name, at in [
        ("images.npy", 3),
        ("images.npy", 130),
        ("images.npy", 128 + 50 * 192 - 1),
        ("labels.npy", 140),
        ("head.json", 5),
        ("head.json", -70),
    ]:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 0x11
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        with pytest.raises(UserError, match=r"rebuild it with `gantrain prepare`|is not a prepared data set"):
            prepare(Packed(root=str(folder), resolution=8), CPU)
        (folder / name).write_bytes(whole[:-1])
        with pytest.raises(UserError, match="rebuild it with `gantrain prepare`"):
            prepare(Packed(root=str(folder), resolution=8), CPU)
        (folder / name).write_bytes(whole)
    prepare(Packed(root=str(folder), resolution=8), CPU)


def test_damaged_images_are_named(many, tmp_path):
    pack(many(), tmp_path / "p", "many")
    with open(tmp_path / "p" / "images.npy", "r+b") as file:
        file.seek(128 + 49 * 192)
        file.write(b"\0\1\2")
    with pytest.raises(UserError, match=r"images.npy: is damaged: images 48..49 do not match their checksums"):
        prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)


def test_images_are_verified_once_and_not_at_every_start(many, tmp_path, monkeypatch):
    monkeypatch.setattr("gantrain.cache.FRESH", 0)  # nothing is kept of files that have just been written
    pack(many(), tmp_path / "p", "many")
    prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)
    sum_array = packing.sum_array
    monkeypatch.setattr(packing, "sum_array", lambda array: "wrong" if array.ndim == 4 else sum_array(array))
    images = prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)
    with pytest.raises(UserError, match="damaged"):
        packing.verify(tmp_path / "p", images, packing.read_head(tmp_path / "p"), lambda it, total: it, always=True)


def test_another_resolution_is_refused_with_the_right_one(many, tmp_path):
    pack(many(), tmp_path / "p", "many")
    with pytest.raises(
        UserError, match="p contains images of resolution 8, not 32; set data.resolution=8, or prepare the images again at 32"
    ):
        Packed(root=str(tmp_path / "p")).build()
    with pytest.raises(UserError, match="data.root must be the folder of a prepared data set"):
        Packed().build()


def test_a_pickle_instead_of_an_array_is_not_loaded(many, tmp_path):
    pack(many(), tmp_path / "p", "many")
    np.save(tmp_path / "p" / "images.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="is incomplete"):
        Packed(root=str(tmp_path / "p"), resolution=8).build()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(many, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(os, "posix_fallocate", lambda *words: pytest.fail("it was about to fill the disk"))
    images = many()
    images.resolution = 100_000  # mistyped
    words = r"deep: the images need 1397.0 GiB, but only 1 MiB are free; free some space, or pass another --out or a smaller --resolution"
    (tmp_path / "deep").mkdir()
    with pytest.raises(UserError, match=words):
        pack(images, tmp_path / "deep" / "er" / "p", "many")
    assert not list((tmp_path / "deep").iterdir())


def test_space_for_blocks_already_written_is_not_required_again(many, tmp_path, monkeypatch):
    stopped_after_three_blocks(many(), tmp_path / "p")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=packing.A_LITTLE + 50 * 8))
    pack(many(), tmp_path / "p", "many")
    with pytest.raises(UserError, match="the images need 2 MiB, but only 1 MiB are free"):
        pack(many(), tmp_path / "q", "many")


def test_a_full_disk_keeps_no_draft_without_images(many, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    images = many()
    images.decode = None  # nobody asks it
    images.content = "x"
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match="p.part: No space left on device; free some space and run the same command again to continue"):
            pack(images, tmp_path / "p", "many")
    assert not (tmp_path / "p.part").exists()
    stopped_after_three_blocks(many(), tmp_path / "p")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match="p.part: No space left on device"):
            pack(many(), tmp_path / "p", "many")
    assert (tmp_path / "p.part" / "images.npy").stat().st_size == 128 + 24 * 192
    assert pack(many(), tmp_path / "p", "many") == 50 - 24
    same(prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU), many())


# ---- what a half made set, a head and a lock say ---------------------------------------------------------------------


def stopped_after_three_blocks(images: ImageSet, folder: Path) -> None:
    """Leave what `pack` leaves when it is killed."""

    def killed(blocks, total):
        yield from itertools.islice(blocks, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(images, folder, "many", killed)


@pytest.mark.parametrize("head", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_head_of_an_unfinished_set_says_to_start_over(many, tmp_path, head):
    stopped_after_three_blocks(many(), tmp_path / "p")
    (tmp_path / "p.part" / "head.json").write_bytes(head)
    with pytest.raises(UserError, match="p.part/head.json: is damaged; delete .*p.part to start over"):
        pack(many(), tmp_path / "p", "many")


def test_a_set_killed_just_before_its_rename_is_finished(many, tmp_path, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        pack(many(), tmp_path / "p", "many")
    assert "sha256" in json.loads((tmp_path / "p.part" / "head.json").read_text())
    assert pack(many(), tmp_path / "p", "many") == 0
    same(prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU), many())
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["head.json", "images.npy", "labels.npy"]


def test_two_processes_do_not_write_the_same_set(many, tmp_path):
    def second(blocks, total):
        with pytest.raises(
            UserError, match=f"p.part: is being written by process {os.getpid()} on .*; wait for it or stop it, or pass another --out"
        ):
            pack(many(), tmp_path / "p", "many")
        yield from blocks

    assert pack(many(), tmp_path / "p", "many", second) == 50


def test_an_unfinished_set_is_not_trained_on(many, tmp_path):
    stopped_after_three_blocks(many(), tmp_path / "p")
    words = "p.part is unfinished .made from many.; run .* with --out .*/p again to finish it, then set data.root=.*/p$"
    with pytest.raises(UserError, match=words):
        prepare(Packed(root=str(tmp_path / "p.part"), resolution=8), CPU)


def test_a_head_has_its_own_checksum(many, tmp_path):
    pack(many(), tmp_path / "p", "many")
    path = tmp_path / "p" / "head.json"
    head = json.loads(path.read_text())
    path.write_text(json.dumps({**head, "source": "else"}))
    with pytest.raises(UserError, match="head.json: does not match its checksum; rebuild it"):
        prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)
    done = tool("--verify", tmp_path / "p", check=False)
    assert done.returncode == 2 and "head.json: does not match its checksum" in done.stderr
    del head["head_sha256"]  # as earlier sets have it
    path.write_text(json.dumps(head))
    same(prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU), many())
    path.write_text(json.dumps({**head, "classes": ["a"]}))
    with pytest.raises(UserError, match="p: labels.npy contains label 1, but head.json names only classes 0..0; rebuild it with"):
        prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)


@pytest.mark.parametrize(
    "key, value",
    [("classes", "ab"), ("classes", []), ("sha256", {}), ("source", 3), ("listing", None), ("images", True), ("head_sha256", 1)],
)
def test_the_types_of_a_heads_fields_are_checked(many, tmp_path, key, value):
    pack(many(), tmp_path / "p", "many")
    path = tmp_path / "p" / "head.json"
    head = {k: v for k, v in json.loads(path.read_text()).items() if k != "head_sha256"}
    path.write_text(json.dumps({**head, key: value}))
    with pytest.raises(UserError, match="head.json: is not a head in the format gantrain-packed-1; rebuild it"):
        prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)


@pytest.mark.parametrize("name", ["images.npy", "head.json"])
def test_an_unreadable_file_is_not_called_damaged(many, tmp_path, monkeypatch, name):
    whole = os.open

    def closed(path, *words, **more):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path, *words, **more)

    pack(many(), tmp_path / "p", "many")
    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(UserError, match=f"p/{name}: is not readable .permission denied.; ask its owner for read access"):
        prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)


# ---- what is gathered ahead ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_a_mapped_set_streams_as_one_in_memory(many, tmp_path, flip):
    pack(many(), tmp_path / "p", "many")
    mapped, in_ram = (prepare(Packed(root=str(tmp_path / "p"), resolution=8, keep_in=where), CPU) for where in ("auto", "host"))
    for start in (0, 64):
        streams = [RealBatches(images, 3, 8, 1, 2, start, CPU, flip=flip) for images in (mapped, in_ram)]
        assert streams[0]._gathered and not streams[1]._gathered
        for _ in range(20):
            (x, y), (same_x, same_y) = (stream.next() for stream in streams)
            assert torch.equal(x, same_x) and torch.equal(y, same_y)
        for stream in streams:
            stream.close()


def test_results_come_in_order_and_ahead():
    made, go = [], threading.Event()

    def make(turn: int) -> int:
        made.append(turn)
        if turn == 6:
            go.wait(20)
        return turn * turn

    ahead = Ahead(make, depth=3)
    assert [ahead.next() for _ in range(4)] == [0, 1, 4, 9]
    deadline = time.monotonic() + 20
    while 6 not in made and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1, 2, 3, 4, 5, 6]  # three beyond what was taken, and no more
    go.set()
    assert ahead.next() == 16
    ahead.close()
    assert not [t for t in threading.enumerate() if t in ahead._pool._threads]


def test_an_error_is_raised_where_its_result_is_taken():
    def make(turn: int) -> int:
        if turn == 2:
            raise UserError("two")
        return turn

    ahead = Ahead(make)
    assert [ahead.next(), ahead.next()] == [0, 1]
    with pytest.raises(UserError, match="two"):
        ahead.next()
    ahead.close()


# ---- the tool --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tool_prepares_a_folder_that_a_run_trains_on(tmp_path, gantrain):
    folder = write_images(tmp_path / "many", [f"{c}/{i}.png" for c in "ab" for i in range(20)], size=(20, 16))
    said = tool(folder, "--out", tmp_path / "p", "--resolution", 8, "--channels", 1).stdout
    assert (
        f"{tmp_path / 'p'}: 40 images, 40 of them prepared by this command" in said
        and f"train with data.name=packed data.root={tmp_path / 'p'} data.resolution=8" in said
    )
    same(Packed(root=str(tmp_path / "p"), resolution=8).build(), Folder(root=str(folder), resolution=8, channels=1).build())
    assert "all 40 images match their checksums" in tool("--verify", tmp_path / "p").stdout
    runs = []
    for data in (["data.name=packed", f"data.root={tmp_path / 'p'}"], ["data.name=folder", f"data.root={folder}", "data.channels=1"]):
        runs.append(tmp_path / data[0])
        gantrain(
            "train",
            "configs/digits.yaml",
            *TINY,
            *data,
            "data.resolution=8",
            f"run_dir={runs[-1]}",
            "total_kimg=0.08",
            "eval.reference_samples=32",
            "eval.num_samples=32",
        )
    logs = [[line for line in lines_of(run) if "loss/d" in line] for run in runs]
    assert [line["loss/d"] for line in logs[0]] == [line["loss/d"] for line in logs[1]] and len(logs[0]) >= 1
    assert all(0 <= line["throughput/data_wait"] < 1 for line in logs[0])


def test_the_tool_reads_stylegans_zips(tmp_path):
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path), LABELS)
    tool(path, "--out", tmp_path / "p", "--resolution", 8)
    same(Packed(root=str(tmp_path / "p"), resolution=8).build(), Archive(root=str(path), resolution=8).build())


def test_the_tool_reads_biggan_pytorchs_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    pixels, labels = noise(20, 3, 8, 8), np.arange(20) % 3
    with h5py.File(tmp_path / "a.hdf5", "w") as file:  # as its make_hdf5.py lays it out
        file.create_dataset("imgs", data=pixels, dtype="uint8", maxshape=(None, 3, 8, 8), chunks=(10, 3, 8, 8))
        file.create_dataset("labels", data=labels, dtype="int64", maxshape=(None,), chunks=(10,))
    tool(tmp_path / "a.hdf5", "--out", tmp_path / "p", "--resolution", 8)
    images = Packed(root=str(tmp_path / "p"), resolution=8).build()
    assert np.array_equal(images.pixels.numpy(), pixels) and images.labels.tolist() == labels.tolist()
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file.create_dataset("imgs", data=pixels.astype(np.float32))
        file.create_dataset("labels", data=labels)
    done = tool(tmp_path / "b.hdf5", "--out", tmp_path / "q", "--resolution", 8, check=False)
    assert done.returncode == 2
    assert "is not an HDF5 file written by BigGAN-PyTorch's make_hdf5.py (imgs is float32 (20, 3, 8, 8)" in done.stderr


def test_the_tool_reads_torchvisions_sets(tmp_path):
    pixels, labels = noise(12, 28, 28), np.arange(12, dtype=np.uint8) % 10
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for kind in ("train", "t10k"):
        for name, magic, body in ((f"{kind}-images-idx3-ubyte", (0, 0, 8, 3), pixels), (f"{kind}-labels-idx1-ubyte", (0, 0, 8, 1), labels)):
            head = bytes(magic) + b"".join(int(n).to_bytes(4, "big") for n in body.shape)
            (raw / name).write_bytes(head + body.tobytes())
            (raw / f"{name}.gz").write_bytes(gzip.compress(head + body.tobytes()))
    tool("torchvision:FashionMNIST", "--data", tmp_path / "data", "--out", tmp_path / "p", "--resolution", 28, "--channels", 1)
    images = Packed(root=str(tmp_path / "p"), resolution=28).build()
    assert (
        np.array_equal(images.pixels[:, 0].numpy(), pixels)
        and images.labels.tolist() == labels.tolist()
        and images.class_names[9] == "Ankle boot"
    )


def test_the_tool_names_what_does_not_decode_and_skips_it_if_asked(tmp_path):
    folder = cats_and_dogs(tmp_path)
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    done = tool(folder, "--out", tmp_path / "p", "--resolution", 8, check=False)
    assert (
        done.returncode == 2
        and "cat/1.png: does not decode" in done.stderr
        and len(done.stderr.splitlines()) == 1
        and not (tmp_path / "p").exists()
    )
    said = tool(folder, "--out", tmp_path / "p", "--resolution", 8, "--on-error", "skip").stdout
    assert "skipped: " in said and "cat/1.png" in said
    images = Packed(root=str(tmp_path / "p"), resolution=8).build()
    whole = Folder(root=str(folder), resolution=8).build()
    assert torch.equal(images.pixels, decode_all(whole, [0, *range(2, 7)])) and images.labels.tolist() == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["cifar1O", "--out", "x", "--resolution", 32],
            "cifar1O: is not a folder, a .zip, a .hdf5 or the name of a data set; did you mean 'cifar10'?",
        ),
        (
            ["nope", "--out", "x", "--resolution", 32],
            "error: nope: is not a folder, a .zip, a .hdf5 or the name of a data set; known: cifar10, cifar100, digits, stl10",
        ),
        (
            ["torchvision:FashonMNIST", "--out", "x", "--resolution", 32],
            "torchvision:FashonMNIST: is not a supported torchvision data set; did you mean 'FashionMNIST'?",
        ),
        (
            ["torchvision:Nope", "--out", "x", "--resolution", 32],
            "torchvision:Nope: is not a supported torchvision data set; known: Caltech101, Caltech256, DTD, ",
        ),
        (["digits"], "error: missing: --out, --resolution"),
        (["digits", "--out", "x"], "error: missing: --resolution"),
        (["--out", "x", "--resolution", 8], "error: missing: SOURCE"),
        (["nowhere.hdf5", "--out", "x", "--resolution", 8], "error: nowhere.hdf5: is not a file"),
        (
            ["nowhere.zip", "--out", "x", "--resolution", 8],
            f"error: 'nowhere.zip' is not a file in {ROOT}, where relative paths start; pass the path of a zip",
        ),
        (
            ["--verify", "nowhere"],
            f"'nowhere' does not exist in {ROOT}, where relative paths start; pass the folder of a prepared",
        ),
        (["torchvision:MNIST", "--out", "x", "--resolution", 28, "--data", "/proc/nowhere"], "cannot be downloaded"),
    ],
)
def test_the_tools_mistakes_are_one_line(arguments, words):
    done = tool(*arguments, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and words in last and last.count("Caltech101") <= 1


def test_the_tools_remedies_are_its_own_options(tmp_path):
    folder = cats_and_dogs(tmp_path)
    flat = write_images(tmp_path / "flat", ["1.png", "2.png"])
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", folder), "a") as opened:
        opened.writestr("dataset.json", '{"labels": null}')
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    for source, words in [
        (flat, f"error: '{flat}' contains no images (.bmp, "),
        (flat, "or pass --no-labels"),
        (folder / "cat", "or pass --no-labels"),
        (write_images(tmp_path / "one", ["class/1.png"]), "pass the folder whose sub-folders are the classes, or pass --no-labels"),
        (folder, "replace or delete it, or pass --on-error skip"),
        (tmp_path / "a.zip", "(dataset.json contains null); pass --no-labels to train without labels"),
    ]:
        done = tool(source, "--out", tmp_path / "p", "--resolution", 8, check=False)
        assert done.returncode == 2 and words in done.stderr and "data." not in done.stderr, done.stderr
    assert "2 images, 2 of them prepared by this command" in tool(flat, "--out", tmp_path / "p2", "--resolution", 8, "--no-labels").stdout


def test_the_tool_reads_hdf5_without_labels(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("imgs", data=noise(5, 3, 8, 8))
    done = tool(tmp_path / "a.hdf5", "--out", tmp_path / "p", "--resolution", 8, "--no-labels")
    assert "5 images, 5 of them prepared by this command" in done.stdout
    assert Packed(root=str(tmp_path / "p"), resolution=8).build().class_names == ["all"]
    done = tool(tmp_path / "a.hdf5", "--out", tmp_path / "q", "--resolution", 8, check=False)
    assert done.returncode == 2 and "a.hdf5: has no labels; pass --no-labels" in done.stderr
    for labels, words in (
        ([0, 1, 2, 0, 2_000_000_000], "label 2000000000 implies more classes than there are images (5)"),
        ([0, 1, 4, 0, 1], "no images with label 2, 3; number"),
    ):
        with h5py.File(tmp_path / "b.hdf5", "w") as file:
            file.create_dataset("imgs", data=noise(5, 3, 8, 8))
            file.create_dataset("labels", data=np.array(labels))
        done = tool(tmp_path / "b.hdf5", "--out", tmp_path / "q", "--resolution", 8, check=False)
        assert done.returncode == 2 and words in done.stderr and "or pass --no-labels" in done.stderr


def test_the_printed_overrides_can_be_pasted(tmp_path):
    said = tool("digits", "--out", tmp_path / "my digits", "--resolution", 8).stdout.splitlines()[-1]
    assert shlex.split(said)[-2:] == [f"data.root={tmp_path / 'my digits'}", "data.resolution=8"]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_the_tool_says_where_it_was_stopped(many, tmp_path, monkeypatch, number, status):
    from gantrain.data.folder import Decoder

    whole, before = Decoder.read, signal.getsignal(number)

    def read(self, index):
        if index == 20:
            os.kill(os.getpid(), number)
        if index >= 20:
            time.sleep(0.2)  # the main thread is told meanwhile
        return whole(self, index)

    words = [tmp_path / "many", "--out", tmp_path / "p", "--resolution", 8]
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "read", read)
        done = tool(*words, check=False)
    assert done.returncode == status and signal.getsignal(number) == before
    assert done.stderr == "gantrain: error: stopped after 2 of 7 blocks; run the same command again to continue\n"
    assert "50 images, 34 of them prepared by this command" in tool(*words).stdout


def test_blank_images_are_reported_at_the_start_of_a_run(many, tmp_path):
    images = in_memory(16, 2, 1, 8)
    images.pixels[:] = 7
    pack(images, tmp_path / "p", "flat")
    with pytest.raises(UserError, match="every pixel read is 7"):
        audit(prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU))


def test_the_folder_that_one_stands_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    assert packing.drafts(Path(".")) == tmp_path / "set.part" and packing.drafts(Path("a/b")) == Path("a/b.part")
    with pytest.raises(UserError, match="is not a prepared data set"):
        packing.read_head(Path("."))
