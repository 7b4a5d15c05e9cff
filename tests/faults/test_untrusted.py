"""Untrusted files: pickles that would run code, archives that would leave their folder, images that would exhaust the memory."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, error_of
from PIL import Image
from test_damage import Fires

from gantrain.data import torchvision_sets
from gantrain.data.unpacking import unpack
from gantrain.errors import UserError

DIGITS = ROOT / "configs" / "digits.yaml"
FEW = ["eval.metrics=[fid]", "eval.every_kimg=null", "tracking.samples_every_kimg=null", "tracking.sample_rows=1", "total_kimg=0.016"]


@pytest.fixture
def marker(tmp_path) -> Path:
    """A file that appears if a pickle is loaded; no test may leave one."""
    marker = tmp_path / "fired"
    yield marker
    assert not marker.exists()


def pickles(marker: Path) -> dict[str, bytes]:
    """A malicious object as a plain pickle, and as torch saved it before and since 1.6."""
    found = {"pickle": pickle.dumps(Fires(marker))}
    for name, new in (("legacy", False), ("zip", True)):
        file = io.BytesIO()
        torch.save({"weight": Fires(marker)}, file, _use_new_zipfile_serialization=new)
        found[name] = file.getvalue()
    return found


def test_the_pickles_run_code_when_loaded(tmp_path):
    """If they did not, the cases below would prove nothing."""
    for name, data in pickles(tmp_path / "fired").items():
        if name == "pickle":
            pickle.loads(data).close()
        else:
            torch.load(io.BytesIO(data), weights_only=False)["weight"].close()
        (tmp_path / "fired").unlink()


@pytest.mark.parametrize("kind", ["pickle", "legacy", "zip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_would_run_code_are_refused(gantrain, tmp_path, marker, kind, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickles(marker)[kind])
    line = error_of(
        gantrain(
            "train",
            DIGITS,
            f"run_dir={tmp_path / 'run'}",
            *TINY,
            *FEW,
            f"eval.features={{name: inception, weights: '{path}'}}",
            check=False,
        )
    )
    assert f"{path}: contains no weights that can be read safely" in line and not (tmp_path / "run" / "checkpoints").exists()


def test_data_that_would_run_code_is_refused(gantrain, tmp_path, marker):
    """A pickle among pictures, as CIFAR's binary file, and as the configuration."""
    evil = pickles(marker)["pickle"]
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.effect_noise((16, 16), 60).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "a" / "3.png").write_bytes(evil)
    line = error_of(
        gantrain(
            "train", DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, *FEW, f"data={{name: folder, root: '{tmp_path / 'data'}'}}", check=False
        )
    )
    assert f"{tmp_path / 'data' / 'a' / '3.png'}: does not decode as an image" in line
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(evil)
    (folder / "batches.meta.txt").write_text("cat\n")
    line = error_of(
        gantrain("train", ROOT / "configs" / "cifar10_biggan.yaml", f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path}", check=False)
    )
    assert "bytes are not a whole number of 3073-byte records" in line
    (tmp_path / "evil.yaml").write_bytes(evil)
    assert str(tmp_path / "evil.yaml") in error_of(gantrain("config", tmp_path / "evil.yaml", check=False))
    (tmp_path / "tag.yaml").write_text(f"seed: !!python/object/apply:builtins.open ['{marker}', 'w']\n")
    assert str(tmp_path / "tag.yaml") in error_of(gantrain("config", tmp_path / "tag.yaml", check=False))


@pytest.mark.slow
def test_a_checkpoint_that_would_run_code_is_refused(gantrain, tmp_path, marker):
    """Each kind replaces the weights, the state and the manifest of the only checkpoint, and a rebuilt average."""
    run = tmp_path / "run"
    gantrain("train", DIGITS, f"run_dir={run}", *TINY, *FEW, "checkpoint.keep_last=1")
    (path,) = (run / "checkpoints").iterdir()
    for data in pickles(marker).values():
        for name in ("g.safetensors", "state.json", "manifest.json"):
            whole = (path / name).read_bytes()
            (path / name).write_bytes(data)
            assert "its only checkpoint is damaged" in error_of(
                gantrain("train", DIGITS, f"run_dir={run}", *TINY, *FEW, "checkpoint.keep_last=1", check=False)
            )
            (path / name).write_bytes(whole)
        (run / "averages" / "mine").mkdir(parents=True, exist_ok=True)
        (run / "averages" / "mine" / "manifest.json").write_bytes(data)
        assert "mine" in error_of(gantrain("sample", run, "--average", "mine", "--out", tmp_path / "x.png", check=False))
        shutil.rmtree(run / "averages")


# ---- archives --------------------------------------------------------------------------------------------------------


def tar(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """A tar of (name, type, link's target or content)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, what in members:
            member = tarfile.TarInfo(name)
            member.type, data = kind, b""
            if kind == tarfile.REGTYPE:
                data = what.encode()
                member.size = len(data)
            else:
                member.linkname = what
            archive.addfile(member, io.BytesIO(data))
    return path


FILE = tarfile.REGTYPE
ESCAPES = {
    "above": ("../escaped", FILE, "x"),
    "above, from within": ("a/../../escaped", FILE, "x"),
    "absolute": ("/tmp/gantrain-escaped", FILE, "x"),
    "backslashes": ("..\\escaped", FILE, "x"),
    "a drive": ("C:/escaped", FILE, "x"),
    "symbolic link": ("link", tarfile.SYMTYPE, "/tmp"),
    "hard link": ("link", tarfile.LNKTYPE, "/etc/passwd"),
    "device": ("null", tarfile.CHRTYPE, ""),
    "fifo": ("pipe", tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("member", ESCAPES.values(), ids=ESCAPES.keys())
def test_an_archive_that_would_leave_its_folder_writes_nothing(tmp_path, member):
    """Not even the members before it are written."""
    (tmp_path / "into").mkdir()
    archive = tar(tmp_path / "evil.tar.gz", ("good.txt", FILE, "good"), member)
    with pytest.raises(UserError, match="the archive is unsafe: do not use it") as refused:
        unpack(archive, tmp_path / "into")
    assert repr(member[0]) in str(refused.value) and str(archive) in str(refused.value)
    assert (
        not list((tmp_path / "into").iterdir())
        and {p.name for p in tmp_path.iterdir()} == {"evil.tar.gz", "into"}
        and not Path("/tmp/gantrain-escaped").exists()
    )


def test_an_existing_link_is_not_followed(tmp_path):
    (tmp_path / "into").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "into" / "door").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="would be written outside"):
        unpack(tar(tmp_path / "evil.tar.gz", ("door/escaped", FILE, "x")), tmp_path / "into")
    assert not list((tmp_path / "outside").iterdir())


def test_zips_are_checked_too_and_good_archives_unpack(tmp_path):
    for name in ("../escaped", "/escaped", "a/../../escaped"):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(UserError, match="would be written outside"):
            unpack(tmp_path / "evil.zip", tmp_path / "into")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/tmp")
    with pytest.raises(UserError, match="is a link or a device"):
        unpack(tmp_path / "link.zip", tmp_path / "into")
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("a/b.txt", "zip")
    unpack(tmp_path / "good.zip", tmp_path / "into")
    unpack(tar(tmp_path / "good.tar.gz", ("a", tarfile.DIRTYPE, ""), ("a/c.txt", FILE, "tar")), tmp_path / "into")
    assert (tmp_path / "into" / "a" / "b.txt").read_text() == "zip" and (tmp_path / "into" / "a" / "c.txt").read_text() == "tar"
    (tmp_path / "none.zip").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is not a tar or zip archive; delete it and download it again"):
        unpack(tmp_path / "none.zip", tmp_path / "into")


def test_the_archive_of_a_data_set_is_checked_too(gantrain, tmp_path, monkeypatch):
    """The archive is where a download would have put it and has the expected checksum."""
    archive = tar(tmp_path / "cifar-10-binary.tar.gz", ("cifar-10-batches-bin/data_batch_1.bin", FILE, "x"), ("../escaped", FILE, "x"))
    release = torchvision_sets.CIFAR10
    monkeypatch.setattr(
        torchvision_sets, "CIFAR10", type(release)(**{**vars(release), "md5": hashlib.md5(archive.read_bytes()).hexdigest()})
    )
    line = error_of(
        gantrain("train", ROOT / "configs" / "cifar10_biggan.yaml", f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path}", check=False)
    )
    assert f"{archive}: its member '../escaped' would be written outside" in line and not (tmp_path / "cifar-10-batches-bin").exists()


# ---- bombs -----------------------------------------------------------------------------------------------------------


def bomb(path: Path, side: int) -> None:
    """A PNG of a few hundred bytes whose header declares side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_an_image_bomb_is_refused_by_its_header(gantrain, tmp_path, side):
    dice = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    bomb(tmp_path / "data" / "b" / "bomb.png", side)
    line = error_of(
        gantrain(
            "train", DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, *FEW, f"data={{name: folder, root: '{tmp_path / 'data'}'}}", check=False
        )
    )
    assert (
        f"{tmp_path / 'data' / 'b' / 'bomb.png'}: does not decode as an image" in line
        and "replace or delete it, or set data.on_error=skip" in line
    )
    assert f"{side} x {side} pixels are more than 100,000,000" in line or "decompression bomb" in line
