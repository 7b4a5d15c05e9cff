"""Features and checksums are kept by content: other images under the same names, sizes and times are never taken for the old ones."""

from __future__ import annotations

import json
import os
import shutil
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gantrain as library
from gantrain import cache
from gantrain.data import Archive, Folder, Packed, pack, prepare
from gantrain.errors import UserError
from gantrain.evaluation.references import open_reference
from gantrain.metrics import METRICS, DigitsFeatures, FeatureSet

CPU = torch.device("cpu")
OLD = 1_600_000_000_000_000_000  # nanoseconds since 1970


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of one's own, that keeps what is known of files however new they are, as if every change were seconds ago."""
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "FRESH", 0)


def write(folder: Path, seed: int, count: int = 16) -> None:
    """Images of noise, all files of the same size and time, whatever the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i:03d}.bmp")
        os.utime(folder / f"{i:03d}.bmp", ns=(OLD, OLD))
    os.utime(folder, ns=(OLD, OLD))


def write_zip(path: Path, seed: int) -> None:
    """Such images in a zip with dates that do not change."""
    write(path.parent / "unzipped", seed)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((path.parent / "unzipped").iterdir()):
            archive.writestr(zipfile.ZipInfo(f"x/{file.name}"), file.read_bytes())
    os.utime(path, ns=(OLD, OLD))


def in_place(at: Path) -> tuple[Path, Callable[[], None]]:
    write(at / "real", 0)
    return at / "real", lambda: write(at / "real", 1)


def one_file_in_place(at: Path) -> tuple[Path, Callable[[], None]]:
    write(at / "real", 0)

    def change() -> None:
        with open(at / "real" / "007.bmp", "r+b") as file:
            file.seek(60)
            file.write(b"\x01\x02\x03")
        os.utime(at / "real" / "007.bmp", ns=(OLD, OLD))

    return at / "real", change


def swapped(at: Path) -> tuple[Path, Callable[[], None]]:
    write(at / "real", 0)
    write(at / "other", 1)

    def change() -> None:
        (at / "real").rename(at / "third")
        (at / "other").rename(at / "real")

    return at / "real", change


def exchanged_names(at: Path) -> tuple[Path, Callable[[], None]]:
    """The same files in another order."""
    write(at / "real", 0)

    def change() -> None:
        (at / "real" / "000.bmp").rename(at / "real" / "x")
        (at / "real" / "001.bmp").rename(at / "real" / "000.bmp")
        (at / "real" / "x").rename(at / "real" / "001.bmp")

    return at / "real", change


def another_target(of: str) -> Callable[[Path], tuple[Path, Callable[[], None]]]:
    def make(at: Path) -> tuple[Path, Callable[[], None]]:
        write(at / "one", 0)
        write(at / "two", 1)
        link = at / "real" if of == "folder" else at / "real" / "003.bmp"
        if of == "file":
            shutil.copytree(at / "one", at / "real")
            link.unlink()
        suffix = "" if of == "folder" else "003.bmp"
        link.symlink_to(at / "one" / suffix)

        def change() -> None:
            link.unlink()
            link.symlink_to(at / "two" / suffix)

        return at / "real", change

    return make


def a_zip(at: Path) -> tuple[Path, Callable[[], None]]:
    write_zip(at / "real.zip", 0)
    return at / "real.zip", lambda: write_zip(at / "real.zip", 1)


def an_npz(at: Path) -> tuple[Path, Callable[[], None]]:
    def change(seed: int = 1) -> None:
        np.savez(at / "real.npz", np.random.default_rng(seed).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))
        os.utime(at / "real.npz", ns=(OLD, OLD))

    change(0)
    return at / "real.npz", change


CHANGES = {
    "in place": in_place, "one file in place": one_file_in_place, "folders swapped by rename": swapped, "names exchanged": exchanged_names,
    "target of a link to a folder": another_target("folder"), "target of a link to a file": another_target("file"), "zip": a_zip,
    "npz": an_npz,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_reference_of_other_content_has_another_fingerprint(change, tmp_path):
    """Names, sizes and modification times are those of before; back at the old content, the old fingerprint returns."""
    path, act = CHANGES[change](tmp_path)
    before = open_reference(path, None, CPU)
    images = before.take(0, 16)
    assert open_reference(path, None, CPU).content == before.content
    act()
    after = open_reference(path, None, CPU)
    assert not torch.equal(after.take(0, 16), images) and after.content != before.content
    assert before.is_unchanged() is (change == "npz")  # its arrays were read whole


@pytest.mark.parametrize("keep_in", ["disk", "host"])
def test_a_data_set_of_other_content_has_another_fingerprint(keep_in, tmp_path):
    """Folders and zips that a run trains on, of the same name, also if they are decoded on demand and known from an earlier start."""
    found = []
    for seed in (0, 1):
        write(tmp_path / str(seed) / "data" / "class", seed)
        write_zip(tmp_path / str(seed) / "data.zip", seed)
        root = tmp_path / str(seed)
        folder = Folder(root=str(root / "data"), resolution=8, labels=False, keep_in=keep_in)
        archive = Archive(root=str(root / "data.zip"), resolution=8, labels=False, keep_in=keep_in)
        found += [prepare(source, CPU).fingerprint for source in (folder, folder, archive, archive)]
    assert found[0] == found[1] and found[2] == found[3] and found[4] == found[5] and found[6] == found[7] and len(set(found)) == 4


def test_a_prepared_set_that_was_changed_is_refused_although_its_time_was_set_back(tmp_path):
    write(tmp_path / "data" / "class", 0)
    pack(prepare(Folder(root=str(tmp_path / "data"), resolution=8, labels=False), CPU), tmp_path / "p", "test")
    source = Packed(root=str(tmp_path / "p"), resolution=8, labels=False)
    prepare(source, CPU)
    status = (tmp_path / "p" / "images.npy").stat()
    with open(tmp_path / "p" / "images.npy", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\xff\x00\xff")
    os.utime(tmp_path / "p" / "images.npy", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="images.npy: is damaged: images 0..15 do not match their checksums"):
        prepare(source, CPU)


def test_scores_against_another_folder_of_the_same_names_are_its_own(digits, tmp_path):
    """The case of the issue: FID against b/real is that of b/real, computed here from its pixels, and not that of a/real."""
    extract, real = DigitsFeatures().build(CPU).extract, {}
    for name, images in (("a", digits[0][:100]), ("b", 255 - digits[0][100:200])):
        (tmp_path / name / "real").mkdir(parents=True)
        real[name] = images
        for i, one in enumerate(images):
            file = tmp_path / name / "real" / f"{i:03d}.bmp"
            Image.fromarray(one[0].numpy()).save(file)
            os.utime(file, ns=(OLD, OLD))
    fake = digits[0][200:300]
    for name in ("a", "b", "a"):
        expected = METRICS["fid"]().compute(FeatureSet(*extract(fake)), FeatureSet(*extract(real[name])))["fid"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = library.evaluate(fake, tmp_path / name / "real", metrics=("fid",), features="digits")
        assert ["real is not known to be digits" in str(one.message) for one in caught] == [True] * (name == "b")
        assert found["digits_fid"] == pytest.approx(expected, rel=1e-4)


def test_what_changes_after_it_was_read_is_not_kept(tmp_path, digits):
    """A reference that is changed between its fingerprint and its features is refused, and its features are not kept."""
    write(tmp_path / "real", 0)
    from gantrain.distributed import make_accelerator
    from gantrain.evaluation.api import load_eval_config
    from gantrain.evaluation.evaluator import Evaluator

    config = load_eval_config([f"eval.reference={tmp_path / 'real'}", "eval.metrics=[fid]"], "images")
    evaluator = Evaluator(config, None, make_accelerator(), show_progress=False)
    write(tmp_path / "real", 1)
    with pytest.raises(UserError, match="real: its images were changed while they were read as a reference; run the same command again"):
        evaluator.reference()
    assert not list((tmp_path / "cache").glob("reference-*"))


def test_nothing_is_kept_of_a_file_that_has_just_been_written(tmp_path, monkeypatch):
    """Two changes within one tick of the file system's clock leave the same times, as Git knows of its index."""
    write(tmp_path / "real", 0)
    monkeypatch.setattr(cache, "FRESH", 2.0)
    assert cache.state_of_file(tmp_path / "real" / "000.bmp") is None
    assert open_reference(tmp_path / "real", None, CPU).content
    assert not list((tmp_path / "cache").glob("pictures-*"))
    later = time.time() + 3
    monkeypatch.setattr(time, "time", lambda: later)
    assert cache.state_of_file(tmp_path / "real" / "000.bmp") is not None
    content = open_reference(tmp_path / "real", None, CPU).content
    assert [json.loads(cache.kept_file(path.name)) for path in (tmp_path / "cache").glob("pictures-*")] == [content]


def test_a_hole_in_the_cache_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path))
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 40)
    assert cache.kept_file("hole") is None  # a tebibyte: at once, since the first line is not a checksum
    cache.keep_file("kept", b"whole")
    assert cache.kept_file("kept") == b"whole" and cache.kept_file("kept", 5) == b"whole" and cache.kept_file("kept", 4) is None
    with open(tmp_path / "kept", "ab") as file:
        file.truncate(1 << 28)
    tracemalloc.start()
    assert cache.kept_file("kept") is None and tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
