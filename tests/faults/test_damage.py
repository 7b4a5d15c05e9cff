"""Every region of every file of a checkpoint damaged in turn: named, passed over for the one before, never loaded."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, TINY, error_of, every_third
from test_commands import newest, same_run

from gantrain.run_folder.checkpoint import CheckpointStore, Damaged, canonical, read, read_manifest, seal

DIGITS = ROOT / "configs" / "digits.yaml"
FEW = ["eval.metrics=[fid]", "tracking.samples_every_kimg=null", "tracking.sample_rows=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, gantrain) -> Path:
    """A digits run with three checkpoints, and a best one."""
    run = tmp_path_factory.mktemp("damage") / "run"
    gantrain("train", DIGITS, f"run_dir={run}", *TINY, *FEW, "checkpoint.keep_last=3", "checkpoint.keep_best=[eval/ema/digits_fid]")
    return run


def flip(at: float, bit: int = 0):
    """One bit of the byte that stands at a share of the file."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(at * len(data)), len(data) - 1)] ^= 1 << bit
        path.write_bytes(data)

    return damage


def cut(keep):
    """The file's first bytes, as many as `keep` of its size says."""
    return lambda path: path.write_bytes(path.read_bytes()[: keep(path.stat().st_size)])


DAMAGES = {
    "emptied": cut(lambda size: 0),
    "halved": cut(lambda size: size // 2),
    "a byte short": cut(lambda size: size - 1),
    "a byte long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    # In a safetensors file: the length of its head, the head, and the numbers.
    **{f"bit {bit} at {at:.1%}": flip(at, bit) for bit, at in enumerate((0.0, 0.0005, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0))},
}


@pytest.mark.parametrize("damage", every_third(list(DAMAGES.values())), ids=DAMAGES.keys())
def test_a_damaged_file_is_named_and_the_one_before_is_taken(run, tmp_path, damage):
    """Each file of the newest of three in turn."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    *_, before, last = sorted(folder.iterdir())
    files = sorted(file.name for file in last.iterdir())
    assert len(files) >= 9 and {
        "manifest.json",
        "state.json",
        "g.safetensors",
        "optimizer_d.safetensors",
        "average.swa.safetensors",
    } <= set(files)
    for name in files:
        whole = (last / name).read_bytes()
        damage(last / name)
        said: list[str] = []
        assert CheckpointStore(folder, say=said.append).newest() == before, name
        assert len(said) == 1 and said[0].startswith(str(last / name)) and said[0].endswith("; skipped"), said
        with pytest.raises(Damaged, match=name):
            read(last)
        if (last / name).is_dir():
            (last / name).rmdir()
        (last / name).write_bytes(whole)
    assert CheckpointStore(folder).newest() == last


def test_files_of_another_checkpoint_or_in_each_others_place_are_no_whole_one(run, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    *_, before, last = sorted(folder.iterdir())
    for name in ("g.safetensors", "state.json", "manifest.json"):
        whole = (last / name).read_bytes()
        shutil.copy(before / name, last / name)
        if name != "manifest.json":  # one that is whole in itself makes the others the wrong ones
            with pytest.raises(Damaged, match=name):
                read(last)
        assert CheckpointStore(folder).newest() == before
        (last / name).write_bytes(whole)
    one, other = (last / "g.safetensors").read_bytes(), (last / "d.safetensors").read_bytes()
    (last / "g.safetensors").write_bytes(other)
    (last / "d.safetensors").write_bytes(one)
    assert CheckpointStore(folder).newest() == before


class Fires:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_with_a_manifest_to_match_is_passed_over_unread(run, tmp_path):
    """Sums say that a file is what its maker wrote, not that it is harmless: what a file is, is looked at too."""
    marker, folder = tmp_path / "fired", tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    *_, before, last = sorted(folder.iterdir())
    evil = pickle.dumps(Fires(marker))
    (last / "g.safetensors").write_bytes(evil)
    body = {key: value for key, value in read_manifest(last).items() if key != "seal"}
    body["files"]["g.safetensors"] = {"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    (last / "manifest.json").write_bytes(seal(body))
    said: list[str] = []
    assert CheckpointStore(folder, say=said.append).newest() == before and "g.safetensors: is not a safetensors file" in said[0]
    (last / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(Damaged, match="manifest.json: the manifest is not JSON"):
        read(last)
    (last / "manifest.json").write_bytes(canonical({"format": 4}))
    assert CheckpointStore(folder).newest() == before
    assert not marker.exists()
    pickle.loads(evil).close()
    assert marker.exists()  # it would have


@pytest.mark.parametrize(
    "files",
    [
        3,
        None,
        [],
        {"../other/g.safetensors": {"bytes": 1, "sha256": ""}},
        {"/dev/zero": {"bytes": 1, "sha256": ""}},
        {"g.safetensors": {}},
        {"g.safetensors": 7},
    ],
    ids=str,
)
def test_a_manifest_that_means_other_files_is_refused(run, tmp_path, files):
    """Sealed as it should be: whoever wrote it knew how. Nothing outside the folder is read for it."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    *_, before, last = sorted(folder.iterdir())
    body = {key: value for key, value in read_manifest(last).items() if key != "seal"}
    (last / "manifest.json").write_bytes(seal({**body, "files": files}))
    with pytest.raises(Damaged, match="manifest.json: "):
        read(last)
    assert CheckpointStore(folder).newest() == before


@pytest.mark.slow
def test_the_command_goes_on_from_the_one_before_to_the_same_bits(run, gantrain, tmp_path):
    """Two damaged ones; the third takes the run to where it was."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    last, middle = sorted((copy / "checkpoints").iterdir())[:-3:-1]
    flip(0.5)(last / "d.safetensors")
    (middle / "state.json").unlink()
    done = gantrain("train", DIGITS, f"run_dir={copy}", *TINY, *FEW, "checkpoint.keep_last=3", "checkpoint.keep_best=[eval/ema/digits_fid]")
    assert f"{last / 'd.safetensors'}: its SHA-256 differs from that in the manifest; skipped" in done.stdout
    assert f"{middle / 'state.json'}: cannot be read" in done.stdout and "resumed at 0.16 of 0.32 kimg" in done.stdout
    same_run(run, copy)
    flip(0.5)(newest(copy) / "g.safetensors")


@pytest.mark.slow
def test_where_none_but_the_best_is_whole_the_run_goes_on_from_there(run, gantrain, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (best,) = (copy / "best" / "eval.ema.digits_fid").iterdir()
    for path in (copy / "checkpoints").iterdir():  # copies, no links
        flip(0.5)(path / "g.safetensors")
    done = gantrain("train", DIGITS, f"run_dir={copy}", *TINY, *FEW, "checkpoint.keep_last=3", "checkpoint.keep_best=[eval/ema/digits_fid]")
    assert done.stdout.count("; skipped") == 3 and f"resumed at {int(best.name) / 1000:g} of 0.32 kimg" in done.stdout
    same_run(run, copy)


def test_where_none_is_whole_one_line_says_so(run, gantrain, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        flip(0.5)(path / "g.safetensors")
    settings = ["train", DIGITS, f"run_dir={copy}", *TINY, *FEW, "checkpoint.keep_last=3", "checkpoint.keep_best=[eval/ema/digits_fid]"]
    (best,) = (copy / "best" / "eval.ema.digits_fid").iterdir()
    flip(0.5)(best / "g.safetensors")
    line = error_of(gantrain(*settings, check=False))
    assert f"{copy / 'checkpoints'}: all of its 3 checkpoints are damaged (the newest: 0" in line
    assert "g.safetensors: its SHA-256 differs" in line and f"restore one of them from a copy, or delete {copy} to start over" in line
    (copy / "rollback.json").write_text('{"to": 3}')
    assert f"{copy / 'rollback.json'}: is damaged; delete it to continue as if the run had not been rolled back" in error_of(
        gantrain(*settings, check=False)
    )


@pytest.mark.slow
def test_a_best_checkpoint_is_sampled_and_a_damaged_one_refused(run, gantrain, tmp_path):
    """It is the only one of its time that is kept."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (best,) = (copy / "best" / "eval.ema.digits_fid").iterdir()
    shutil.rmtree(copy / "checkpoints" / best.name, ignore_errors=True)
    arguments = ["sample", copy, "--kimg", int(best.name) / 1000, "--num", 2, "--out", tmp_path / "two.png"]
    assert "2 images of ema" in gantrain(*arguments).stdout
    for inside in (best, best.parent):
        line = error_of(gantrain("sample", inside, "--out", tmp_path / "none.png", check=False))
        assert (
            f"{inside}: is not a run folder but part of one; pass {copy}, and --kimg {int(best.name) / 1000:g} for this checkpoint" in line
        )
    flip(0.5)(best / "average.ema.safetensors")
    assert f"{best / 'average.ema.safetensors'}: its SHA-256 differs from that in the manifest" in error_of(
        gantrain(*arguments, check=False)
    )
