"""Checkpoints that are not damaged and yet not read: of another format, under another's name, or unreadable now. Nothing is passed over."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import re
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import slow_but

from gantrain.averaging import Swa
from gantrain.config.config import Config
from gantrain.data.packed import is_other_format, read_head
from gantrain.errors import UserError
from gantrain.run_folder import held
from gantrain.run_folder.best_average import find_best
from gantrain.run_folder.checkpoint import CheckpointStore, link_checkpoint, read, read_manifest, read_state, verify, write
from gantrain.run_folder.config_damage import find_damage
from gantrain.run_folder.contents import configuration_of, default_name, forget_rebuilt_after, moment_of_rebuilt, open_run, require_average
from gantrain.run_folder.forking import open_origin
from gantrain.run_folder.manifest import Damaged, Gone, Misnamed, OtherFormat, Unreadable, seal
from gantrain.run_folder.own_config import load_config, write_config
from gantrain.run_folder.ownership import acquire_lock, look_into, read_rollback
from gantrain.run_folder.snapshots import Snapshots
from gantrain.run_folder.stores import require_known_formats
from gantrain.training.inputs import state_of
from gantrain.training.keeper import Keeper
from gantrain.version import __version__

GUARD = {"rollbacks": 0}


def state_at(nimg: int) -> dict:
    return {"gantrain": "9.9", "averages": {"ema": {"num_averaged": 1}}, "guard": GUARD, "nimg": nimg}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Nothing here depends on what is on the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run folder with three checkpoints, a best one, a snapshot and a rebuilt average."""
    run = tmp_path_factory.mktemp("refused") / "run"
    write_config(Config(run_dir=str(run)), run)
    for nimg in (80, 160, 240):
        write(run / "checkpoints" / f"{nimg:012d}", nimg, {"g": {"w": torch.full((3,), float(nimg))}, "average.ema": {}}, state_at(nimg))
    link_checkpoint(run / "checkpoints" / f"{160:012d}", run / "best" / "fid" / f"{160:012d}")
    write(run / "averages" / f"{160:012d}", 160, {"average.ema": {}}, {"gammas": {}})
    write(run / "averages" / default_name(0.1, 160), 160, {"average": {}}, {"sigma_rel": 0.1})
    write(run / "averages" / "mine", 80, {"average": {}}, {"sigma_rel": 0.2})
    return run


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def change_format(path: Path, to: object = 5, **more) -> None:
    """Give a checkpoint another format, as another version would have written it."""
    body = {key: value for key, value in json.loads((path / "manifest.json").read_text()).items() if key != "seal"}
    (path / "manifest.json").unlink()  # it may have several names
    (path / "manifest.json").write_bytes(seal({**body, "format": to, **more}))


def content(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


# ---- another format --------------------------------------------------------------------------------------------------

PLACES = ["checkpoints/{:012d}", "best/fid/{:012d}", "averages/{:012d}", "averages/mine", "scoring/{:012d}"]


@pytest.mark.parametrize(("place", "to"), slow_but([("best/fid/{:012d}", 5)], itertools.product(PLACES, [5, 3, "later", 40])))
def test_a_run_with_anything_of_another_format_is_refused_whole(place, to, run):
    """Wherever it is, newest or not; nothing is changed, pruned or adopted, and no deletion is offered."""
    path = run / place.format(160)
    if not path.exists():
        link_checkpoint(run / "checkpoints" / f"{160:012d}", path)
    change_format(path, to)
    before = content(run)
    for refused in (lambda: look_into(run, load_config(run)), lambda: acquire_lock(run)):
        with pytest.raises(OtherFormat) as caught:
            refused()
        text = str(caught.value)
        assert text.startswith(f"{path / 'manifest.json'}: has format {to}") and f"gantrain {__version__} reads format 4" in text
        assert "for this run, or another run_dir; nothing was changed" in text and "delete" not in text
        assert ("written by gantrain 9.9" in text) == (path.name != "mine" and "averages" not in place)
    assert content(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("newest", slow_but([False], [True, False]))
def test_a_mixture_is_refused_by_readers_too(newest, run):
    change_format(run / "checkpoints" / f"{240 if newest else 80:012d}")
    for reads in (lambda: open_run(run), lambda: open_origin(run), lambda: CheckpointStore(run / "checkpoints").newest()):
        with pytest.raises(OtherFormat, match="use gantrain 9.9 for this run"):
            reads()
    with pytest.raises(OtherFormat):
        find = CheckpointStore(run / "checkpoints").newest(until=240)
        raise AssertionError(find)


@pytest.mark.slow
def test_readers_of_one_checkpoint_refuse_it(run):
    path = run / "checkpoints" / f"{240:012d}"
    change_format(path)
    for reads in (read, read_state, verify, read_manifest):
        with pytest.raises(OtherFormat, match="has format 5, written by gantrain 9.9"):
            reads(path)
    change_format(run / "averages" / "mine", gantrain="10.1")
    with pytest.raises(OtherFormat, match="use gantrain 10.1"):
        require_average(Config(), run / "checkpoints" / f"{160:012d}", "mine", 0.16)
    change_format(run / "averages" / f"{160:012d}")
    with pytest.raises(OtherFormat, match="has format 5"):
        Snapshots(run)


def test_a_manifest_of_another_form_is_not_called_damaged(run):
    """A later version may seal its manifests in another way."""
    path = run / "checkpoints" / f"{240:012d}"
    (path / "manifest.json").write_text('{"format": 6, "sealed": "otherwise"}')
    with pytest.raises(OtherFormat, match="has format 6"):
        read_manifest(path)
    for text in ('{"format": 4, "sealed": "otherwise"}', '{"format": true}', "{}", '{"format": [5]}'):
        (path / "manifest.json").write_text(text)
        with pytest.raises(Damaged):
            read_manifest(path)


@pytest.mark.slow
def test_a_digit_of_the_format_that_was_altered_is_damage(run):
    path = run / "checkpoints" / f"{240:012d}"
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes().replace(b'"format": 4', b'"format": 5'))
    with pytest.raises(Damaged, match="altered"):
        read_manifest(path)
    require_known_formats(run)
    assert open_run(run)[1].name == f"{160:012d}"


# ---- another name ----------------------------------------------------------------------------------------------------


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("place", slow_but(["checkpoints"], ["checkpoints", "best/fid", "averages"]))
def test_a_name_that_is_not_that_of_the_manifest(place, run):
    """Both numbers, and how to put it right."""
    one = run / place / f"{160:012d}"
    other = one.with_name(f"{320:012d}")
    one.rename(other)
    words = re.escape(
        f"{other}: is named for 320 images seen (0.32 kimg), but its manifest.json is that of 160 images (0.16 kimg);"
        f" rename the folder to {160:012d}"
    )
    for reads in (verify, read, read_state, read_manifest):
        with pytest.raises(Damaged, match=words):
            reads(other)
    said: list[str] = []
    found = CheckpointStore(run / place, say=said.append).newest(until=320)
    assert len(said) == 1 and re.match(words, said[0]) and (found is None or found.name != other.name)
    if place == "checkpoints":
        with pytest.raises(Damaged, match=words):
            read(open_run(run, 0.32)[1])


@pytest.mark.slow
def test_two_checkpoints_with_each_others_names(run):
    swap(run / "checkpoints" / f"{160:012d}", run / "checkpoints" / f"{240:012d}")
    said: list[str] = []
    assert open_run(run, say=said.append)[1].name == f"{80:012d}" and len(said) == 2
    with pytest.raises(Damaged, match=r"named for 240 images .* that of 160 images"):
        open_origin(run, 0.24)
    assert state_of(run)["nimg"] == 80


@pytest.mark.slow
@pytest.mark.parametrize("place", slow_but(["checkpoints"], ["checkpoints", "best/fid", "averages"]))
def test_training_refuses_a_run_in_which_a_checkpoint_has_another_name(place, run):
    """It would delete by names what is whole; nothing is touched, and no deletion is offered."""
    (run / place / f"{160:012d}").rename(run / place / f"{320:012d}")
    before = content(run)
    for refused in (lambda: look_into(run, load_config(run)), lambda: acquire_lock(run)):
        with pytest.raises(Misnamed, match=rf"{320:012d}: is named for 320 images .* rename the folder to {160:012d}$"):
            refused()
    assert content(run) == before


def test_checkpoints_of_which_all_have_another_name_are_not_called_damaged(run):
    for nimg in (80, 240):
        shutil.rmtree(run / "checkpoints" / f"{nimg:012d}")
    one = (run / "checkpoints" / f"{160:012d}").rename(run / "checkpoints" / f"{320:012d}")
    store = CheckpointStore(run / "checkpoints")
    keeper = Keeper(run, Config().checkpoint, [], SimpleNamespace(say=print))
    for refused in (store.newest, lambda: keeper.resumes_from(None)):
        with pytest.raises(Misnamed, match=f"rename the folder to {160:012d}$"):
            refused()
    one.rename(run / "checkpoints" / f"{160:012d}")
    shutil.copytree(run / "checkpoints" / f"{160:012d}", one)
    (run / "checkpoints" / f"{160:012d}" / "state.json").unlink()
    with pytest.raises(Misnamed, match=f"after the folder that has this name now: {re.escape(str(run))}"):
        store.newest()


@pytest.mark.parametrize("hidden", slow_but([".writing"], [".replaced", ".writing"]))
def test_formats_are_looked_at_before_an_interrupted_replacement_is_completed(hidden, run):
    """By whoever looks first: training or a reader."""
    shutil.rmtree(run / "checkpoints" / f"{240:012d}")
    (run / "checkpoints" / f"{80:012d}").rename(run / "checkpoints" / f".replaced-{80:012d}")
    (run / "checkpoints" / f"{160:012d}").rename(path := run / "checkpoints" / f"{hidden}-{160:012d}")
    change_format(path)
    before = content(run)
    for refused in (lambda: look_into(run, load_config(run)), lambda: acquire_lock(run), lambda: open_run(run)):
        with pytest.raises(OtherFormat, match=re.escape(f"{path}/manifest.json: has format 5")):
            refused()
        assert content(run) == before


def test_a_rebuilt_average_with_the_name_of_another(run):
    right, wrong = default_name(0.1, 160), default_name(0.1, 80)
    assert moment_of_rebuilt(run, right) == 160 and moment_of_rebuilt(run, "mine") == 80
    (run / "averages" / right).rename(run / "averages" / wrong)
    words = f"{wrong}: its name is not that of the average in it, which is {right}; rename the folder to {right}"
    with pytest.raises(Damaged, match=re.escape(words)):
        require_average(Config(), run / "checkpoints" / f"{80:012d}", wrong, 0.08)
    (run / "averages" / wrong).rename(run / "averages" / default_name(0.2, 160))
    with pytest.raises(Damaged, match="its name is not that"):
        moment_of_rebuilt(run, default_name(0.2, 160))
    forget_rebuilt_after(run, 80)
    assert not (run / "averages" / default_name(0.2, 160)).exists() and (run / "averages" / "mine").exists()


# ---- what cannot be read now -----------------------------------------------------------------------------------------

FILES = ["manifest.json", "state.json", "g.safetensors", "average.ema.safetensors"]
ERRORS = [errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ETIMEDOUT]


def fail(monkeypatch, name: str, part: str, number: int) -> None:
    real = getattr(os, name)

    def call(path=".", *arguments, **kwargs):
        if part in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("number", "file"), slow_but([(errno.EACCES, FILES[0])], itertools.product(ERRORS, FILES)))
def test_a_newest_checkpoint_that_cannot_be_read_is_not_passed_over(number, file, run, monkeypatch):
    path = run / "checkpoints" / f"{240:012d}" / file
    fail(monkeypatch, "open", str(path), number)
    said: list[str] = []
    words = re.escape(f"{path}: cannot be read ({os.strerror(number)}), and it may be whole; make it readable")
    for reads in (lambda: open_run(run, say=said.append), lambda: CheckpointStore(path.parent.parent).newest(until=250)):
        with pytest.raises(Unreadable, match=words):
            reads()
    assert said == []


@pytest.mark.slow
def test_an_older_one_that_cannot_be_read_does_not_matter(run, monkeypatch):
    fail(monkeypatch, "open", f"{80:012d}/manifest.json", errno.EACCES)
    require_known_formats(run)
    assert open_run(run)[1].name == f"{240:012d}"


@pytest.mark.parametrize("folder", slow_but(["checkpoints"], ["checkpoints", "best", "best/fid", "averages"]))
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(folder, run, monkeypatch):
    """Otherwise the run would begin anew."""
    for call in ("scandir", "listdir"):
        fail(monkeypatch, call, str(run / folder), errno.EACCES)
    with pytest.raises(UserError, match=re.escape(f"{run / folder}: cannot be listed (Permission denied); make it readable")):
        look_into(run, load_config(run))


def test_a_rollback_that_cannot_be_read_is_not_called_damaged(run, monkeypatch):
    (run / "rollback.json").write_text("{}")
    fail(monkeypatch, "open", "rollback.json", errno.EACCES)
    with pytest.raises(UserError, match=r"rollback.json: cannot be read \(Permission denied\), and the run depends on it"):
        read_rollback(run)


def test_what_has_gone_is_told_from_damage(run, monkeypatch):
    path = run / "checkpoints" / f"{240:012d}"
    missing = path.with_name(f"{999:012d}")
    for reads in (read, read_state, verify, read_manifest):
        with pytest.raises(Gone, match="has gone"):
            reads(missing)
    real = os.open

    def vanishing(name, *arguments, **kwargs):
        if str(name).endswith(f"{240:012d}/state.json"):
            shutil.rmtree(path, ignore_errors=True)
        return real(name, *arguments, **kwargs)

    monkeypatch.setattr(os, "open", vanishing)
    with pytest.raises(Gone, match="was deleted or replaced while it was read"):
        read(path)


def test_a_newest_one_that_goes_while_it_is_looked_at_is_looked_for_again(run, monkeypatch):
    """As where a run with `keep_last: 1` trains: no word of damage."""
    path, real = run / "checkpoints" / f"{240:012d}", os.open

    def vanishing(name, *arguments, **kwargs):
        if str(name).endswith(f"{240:012d}/g.safetensors"):
            path.rename(path.with_name(f"{400:012d}"))
            body = json.loads((path.with_name(f"{400:012d}") / "manifest.json").read_text())
            (path.with_name(f"{400:012d}") / "manifest.json").write_bytes(seal({**{k: body[k] for k in ("format", "files")}, "nimg": 400}))
        return real(name, *arguments, **kwargs)

    monkeypatch.setattr(os, "open", vanishing)
    said: list[str] = []
    assert CheckpointStore(path.parent, say=said.append).newest().name == f"{400:012d}" and said == []


# ---- each damage in its own words ------------------------------------------------------------------------------------

STATES = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-3]), r"state.json: has \d+ bytes; the manifest has \d+"),
    "altered": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b" "), "state.json: its SHA-256 differs"),
    "missing": (Path.unlink, r"state.json: cannot be read \(No such file"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), r"state.json: cannot be read \(it is a named pipe"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), r"state.json: cannot be read \(Is a directory"),
    "endless": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), r"state.json: cannot be read \(it is a device"),
    "manifest": (lambda path: (path.parent / "manifest.json").write_bytes(b"{}"), "manifest.json: the manifest is not JSON"),
    "no manifest": (lambda path: (path.parent / "manifest.json").unlink(), "manifest.json: does not exist, as after a copy or a deletion"),
    "endless manifest": (
        lambda path: ((path.parent / "manifest.json").unlink(), (path.parent / "manifest.json").symlink_to("/dev/zero")),
        r"manifest.json: the manifest cannot be read \(it is a device",
    ),
}


@pytest.mark.parametrize("how", slow_but(["altered", "a pipe", "no manifest"], STATES))
def test_a_damage_of_the_state_says_its_own_words(how, run):
    path = run / "checkpoints" / f"{240:012d}"
    damage, words = STATES[how]
    damage(path / "state.json")
    for reads in (read_state, read, verify):
        with pytest.raises(Damaged, match=words) as caught:
            reads(path)
        assert how == "manifest" or "not JSON that this version wrote" not in str(caught.value)


@pytest.mark.parametrize("lacks", slow_but(["pread"], ["pread", "descriptors"]))
def test_a_checkpoint_that_cannot_be_held_open_is_no_damage(lacks, run, monkeypatch):
    """Where the system has no `pread`, or no descriptors left when the files are opened for later."""

    def refuse(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    if lacks == "pread":
        monkeypatch.setattr(held, "AVAILABLE", False)
    else:
        monkeypatch.setattr(held, "open_regular", refuse)
    store = CheckpointStore(run / "checkpoints")
    newest = store.paths()[-1]
    assert store.newest_held().is_empty and store.newest() == store.newest(until=10**9) == newest
    assert Keeper(run, Config().checkpoint, [], SimpleNamespace(say=pytest.fail)).resumes_from(None) == newest
    assert open_run(run)[1] == newest


def test_the_best_score_with_a_damaged_checkpoint_says_which_damage(run, tmp_path):
    (run / "metrics.jsonl").write_text('{"nimg": 240, "eval/ema/fid": 3.0, "eval/num_samples": 64}\n', encoding="utf-8")
    path = run / "checkpoints" / f"{240:012d}" / "state.json"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"({path}: has 0 bytes; the manifest has ")):
        find_best(run)


# ---- sizes -----------------------------------------------------------------------------------------------------------


def forge(path: Path, name: str, size: int) -> None:
    """A manifest that says so many bytes of a file."""
    body = {key: value for key, value in json.loads((path / "manifest.json").read_text()).items() if key != "seal"}
    body["files"][name]["bytes"] = size
    (path / "manifest.json").write_bytes(seal(body))


@pytest.mark.parametrize(
    ("holes", "name"), slow_but([(True, "g.safetensors")], itertools.product([False, True], ["g.safetensors", "state.json"]))
)
def test_a_manifest_that_says_a_petabyte_allocates_nothing(holes, name, run):
    """Also where the file has that size, most of it holes."""
    path, size = run / "checkpoints" / f"{240:012d}", 10**15 if not holes else 10**12
    forge(path, name, size)
    if holes:
        try:
            os.truncate(path / name, size)
        except OSError:
            pytest.skip("the file system has no such files")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for reads in (verify, read):
        with pytest.raises(Damaged, match=name):
            reads(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    (path / "manifest.json").unlink()
    with open(path / "manifest.json", "wb") as file:
        file.truncate(10**10)
    with pytest.raises(Damaged, match=r"manifest cannot be read \(it has 9.3 GiB or more, and 64 MiB is the most\)"):
        verify(path)


@pytest.mark.parametrize("wrong", slow_but([-1], [-1, 1.5, "12", None, True]))
def test_sizes_and_moments_that_are_no_numbers_are_damage(wrong, run):
    path = run / "checkpoints" / f"{240:012d}"
    forge(path, "g.safetensors", wrong)
    with pytest.raises(Damaged):
        verify(path)
    forge(path, "g.safetensors", 3)
    body = {key: value for key, value in json.loads((path / "manifest.json").read_text()).items() if key != "seal"}
    (path / "manifest.json").write_bytes(seal({**body, "nimg": wrong}))
    with pytest.raises(Damaged):
        verify(path)


# ---- a configuration that is not whole -------------------------------------------------------------------------------

REMEDY = "restore it from a copy, or write it again from what the run was started with: gantrain config CONFIG OVERRIDES > "


CUTS = [lambda end, size: range(0, end, 400), lambda end, size: range(end), lambda end, size: range(end, size - 1)]


@pytest.mark.parametrize("cuts", slow_but(CUTS[:1], CUTS))
def test_every_cut_of_a_configuration_is_recognised(cuts, run):
    """Half of a configuration would be one of other settings. Only switches of speed, the last ones, may be missing."""
    path = run / "config.yaml"
    whole = path.read_bytes()
    assert find_damage(path) is None
    end = whole.index(b"performance:\n") + len(b"performance:\n")
    for at in cuts(end, len(whole)):
        path.write_bytes(whole[:at])
        damage = find_damage(path)
        assert damage or (at > end + 3 and whole[at - 1 : at] == b"\n"), (at, whole[:at][-40:])


DAMAGES = [
    (lambda whole: whole[: whole.index(b"swap:")], "its end is missing"),
    (lambda whole: whole[: whole.index(b"swap:") + 3], "it ends in the middle of a line"),
    (lambda whole: b"\n" * (len(whole) % 2), "it is empty"),
    (lambda whole: whole[:1024] + bytes(1024), "parts of it are zeros"),
    (lambda whole: bytes(len(whole)), "parts of it are zeros"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "words"), slow_but(DAMAGES[:1], DAMAGES))
def test_a_damaged_configuration_is_called_damaged(damage, words, run):
    """And not a run of other settings, or no run."""
    path = run / "config.yaml"
    config, whole = load_config(run), path.read_bytes()
    path.write_bytes(damage(whole))
    match = re.escape(f"{path}: is damaged ({words}); {REMEDY}")
    for reads in (lambda: look_into(run, config), lambda: open_run(run), lambda: open_origin(run), lambda: Snapshots(run)):
        with pytest.raises(UserError, match=match):
            reads()
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "best")
    (run / "metrics.jsonl").write_text('{"nimg": 0, "event": "start"}\n')
    with pytest.raises(UserError, match=match):  # a record says as well that it is a run
        configuration_of(run)
    path.write_bytes(whole)
    assert configuration_of(run) == config


BY_HAND = [
    "total_kimg: 1\n",
    "run_dir: a\ntotal_kimg: 2.0",
    "# mine\nrun_dir: a\nseed: 0\ntotal_kimg: 1\n",
    "run_dir: a\nseed: 0\ntotal_kimg: 1\ndata: {name: digits}",
]


@pytest.mark.parametrize("text", slow_but(BY_HAND[-1:], BY_HAND))
def test_a_configuration_by_hand_may_be_short(text, run):
    """As the remedy says: the configuration that the run was started with."""
    (run / "config.yaml").write_text(text)
    assert find_damage(run / "config.yaml") is None and configuration_of(run).total_kimg in (1, 2)


def test_a_configuration_is_written_durably(monkeypatch, tmp_path):
    """Before it has its name, and the name before anything else is done."""
    told, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: told.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}"))))
    monkeypatch.setattr(os, "replace", lambda *names: (told.append("renamed"), replace(*names)))
    write_config(Config(), tmp_path / "run")
    assert told == [".config.writing.yaml", "renamed", "run"]


def test_a_prepared_data_set_of_another_format(tmp_path):
    """Named by its format, and not to be deleted."""
    head = tmp_path / "head.json"
    head.write_text('{"format": "gantrain-packed-2", "anything": "else"}')
    with pytest.raises(
        UserError, match=r"head.json: has format gantrain-packed-2, and gantrain .* reads format gantrain-packed-1; use the"
    ):
        read_head(tmp_path)
    assert is_other_format("gantrain-packed-2") and not any(map(is_other_format, ("gantrain-packed-1", "mine", None, 5)))


def test_a_configuration_that_cannot_be_read_is_not_another_programs(run, monkeypatch):
    fail(monkeypatch, "open", "config.yaml", errno.EACCES)
    with pytest.raises(UserError, match=re.escape(f"{run / 'config.yaml'}: cannot be read (Permission denied)")):
        configuration_of(run)


@pytest.mark.slow
def test_the_moment_of_a_misnamed_checkpoint_is_not_believed_at_the_start(run):
    """An average that is added later than the newest checkpoint, and not than the name."""
    (run / "checkpoints" / f"{160:012d}").rename(run / "checkpoints" / f"{150_000:012d}")
    config = load_config(run)
    late = dataclasses.replace(config, averagers={**config.averagers, "late": Swa(start_kimg=100.0)})
    with pytest.raises(Misnamed, match=r"named for 150000 images"):
        look_into(run, late)
    (run / "checkpoints" / f"{150_000:012d}").rename(run / "checkpoints" / f"{160:012d}")
    assert "averagers.late.start_kimg" in look_into(run, late)
