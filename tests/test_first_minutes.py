"""What a user meets in the first minutes: slips of the command line, and run folders that somebody has changed, each with its remedy."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from conftest import ROOT

from gantrain.commands.runs import find_runs, row_of
from gantrain.commands.train import refuse_moved, require_whole_beside
from gantrain.config.config import Config
from gantrain.config.loading import load, to_yaml
from gantrain.config.notes import notes
from gantrain.errors import UserError
from gantrain.parser import hint_at_override
from gantrain.run_folder.config_damage import damage_of
from gantrain.run_folder.own_config import load_config
from gantrain.run_folder.ownership import acquire_lock
from gantrain.sampling.output import Output

DIGITS = ROOT / "configs" / "digits.yaml"
WHOLE = to_yaml(Config())
AT_A_LINE = WHOLE[: WHOLE.index("swap:")]
DAMAGES = {
    "": "it is empty",
    WHOLE[: WHOLE.index("swap:") + 3]: "it ends in the middle of a line",
    AT_A_LINE: "its end is missing",
    WHOLE.replace("seed: 0", "seed: [0"): "it is not YAML",
}


def begun(run: Path, text: str | None) -> Path:
    """The folder of a run with a checkpoint; without a configuration if `text` is None."""
    (run / "checkpoints" / f"{64:012d}").mkdir(parents=True)
    (run / "checkpoints" / f"{64:012d}" / "manifest.json").write_text("{}")
    if text is not None:
        (run / "config.yaml").write_text(text)
    return run


@pytest.mark.parametrize(("text", "words"), DAMAGES.items(), ids=list(DAMAGES.values()))
def test_every_command_says_the_same_of_a_damaged_configuration(text, words, tmp_path):
    run = begun(tmp_path / "run", text)
    path, match = run / "config.yaml", f"config.yaml: is damaged \\({words}.*restore it from a copy, or write it again"
    for reads in (lambda: load_config(run), lambda: require_whole_beside(path)):
        with pytest.raises(UserError, match=match):
            reads()
    row, _ = row_of(run, "run")
    assert row.status == "damaged" and re.search(match, row.error)


BY_HAND = ["run_dir: " + "${" * 3000, "run_dir: '${seed}'\n", "run_dir: a\nseed: ${x}", "run_dir: r${total_kimg}\nseed: 0\n"]


def test_a_reference_is_a_sign_that_the_configuration_was_written_by_hand():
    """A run folder's has none: gantrain resolves them, and marks a literal `${` by a backslash."""
    assert [damage_of(text.encode()) for text in BY_HAND] == [None] * 4
    literal = to_yaml(load(None, [r"run_dir=a\${x}"]))
    assert literal.startswith("run_dir: a\\${x}\n") and damage_of(literal.encode()) is None
    assert damage_of(literal[: literal.index("swap:")].encode()) == "its end is missing"


def test_a_run_that_has_lost_its_configuration_is_listed(tmp_path):
    run = begun(tmp_path / "run", None)
    (tmp_path / "other" / "checkpoints" / "1").mkdir(parents=True)
    assert list(find_runs(tmp_path)) == [run]
    row, _ = row_of(run, "run")
    assert row.status == "damaged" and "config.yaml: cannot be read (No such file or directory); restore it" in row.error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["total_kimg=0.5", "orbit.every_kimg=0.5"], "orbit.every_kimg=0.5 .*: there will be two recordings, at the start and at the end"),
        (["averagers.p={name: power, snapshot_every_kimg: 99}"], "there will be one snapshot, at the end"),
        (["averagers.s={name: swa, every_kimg: 99}"], "averagers.s.every_kimg=99 .*: it will have no effect before the end"),
    ],
)
def test_a_note_on_a_late_time_says_what_comes_of_it(given, words):
    assert any(re.search(words, note) for note in notes(load(DIGITS, ["total_kimg=10", *given])))


@pytest.mark.parametrize(
    ("path", "overrides", "words"),
    [
        ("seed=1", [], "seed=1: is an override, and a configuration comes first, such as: digits seed=1"),
        (DIGITS, ["data.root=x"], "data.root is a key of data.name=folder, archive and packed: choose one of them as well"),
        (DIGITS, ["run_dir="], "run_dir must be a string, got null; write a value after run_dir="),
    ],
)
def test_a_slip_gets_the_hint_that_fits(path, overrides, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load(path, overrides)


def test_one_dash_is_a_slip_as_two_are():
    assert hint_at_override(["-seed=1"]) == "; a configuration key is written without dashes: seed=1"
    assert hint_at_override(["-5"]) == "" == hint_at_override(["-s"])


def test_a_run_folder_is_not_a_configuration(tmp_path):
    run = begun(tmp_path / "run", WHOLE)
    with pytest.raises(UserError, match=re.escape(f"to resume the run in this folder, pass {run / 'config.yaml'}")):
        load(run)


def test_a_run_that_is_resumed_from_its_own_folder_is_not_a_moved_one(tmp_path, monkeypatch):
    begun(tmp_path / "runs" / "live", WHOLE)
    monkeypatch.chdir(tmp_path / "runs" / "live")
    words = f"run_dir is runs/live, a path that starts at {tmp_path}, .* cd {tmp_path}, then gantrain train runs/live/config.yaml; or add"
    with pytest.raises(UserError, match=words):
        refuse_moved(Path("config.yaml"), "runs/live", [])


def test_a_folder_that_may_not_be_written_is_named_by_its_option(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--out: '/proc/x.png' cannot be written \(.*\); choose another path"):
        Output.parse("/proc/x.png").make_folders()

    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13), str(tmp_path / ".lock"))

    monkeypatch.setattr("gantrain.lock.acquire", refuse)
    with pytest.raises(UserError, match=r"run_dir: .* may not be written \(Permission denied\); use another run_dir, or continue"):
        acquire_lock(tmp_path)
