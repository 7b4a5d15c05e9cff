"""A record read back: of real runs, and of damaged files. (Killed and interrupted runs are in test_watching.py.)"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TESTS, TINY, error_of, lines_of

from gantrain import lock as locks
from gantrain.errors import UserError
from gantrain.run_folder import record
from gantrain.training import update

DIGITS = ROOT / "configs" / "digits.yaml"
FEW = ["eval.every_kimg=null", "eval.metrics=[fid]", "eval.num_samples=16", "tracking.samples_every_kimg=null", "tracking.sample_rows=1"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", **more}


def by_hand(run: Path, *lines: dict | str, end: str = "\n", total_kimg: float = 1) -> Path:
    """A run folder with such a record."""
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(f"total_kimg: {total_kimg}\n")
    (run / "metrics.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)
    return run


def train(nimg: int, **more) -> dict:
    return {"nimg": nimg, "loss/d": 1.0, **more}


def event(nimg: int, name: str, **more) -> dict:
    return {"nimg": nimg, "event": name, **more}


GREW = event(16, "growth", **{"from": 16, "to": 32})


def score(nimg: int, value: float | str, **averages: float | str) -> dict:
    """Of the ema, and of others."""
    return {"nimg": nimg, **{f"eval/{name}/fid": v for name, v in {"ema": value, **averages}.items()}, "eval/num_samples": 64}


def both(run: Path) -> list[record.Record]:
    """Read in either way."""
    return [record.read(run), record.outline(run)]


def nimgs(lines: list[dict]) -> list[int]:
    return [line["nimg"] for line in lines]


# ---- real runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, gantrain) -> Path:
    run = tmp_path_factory.mktemp("record") / "run"
    gantrain("train", DIGITS, f"run_dir={run}", *TINY)
    return run


def test_a_finished_run_is_its_file(finished):
    found, raw = record.read(finished), lines_of(finished)
    assert found.lines == raw and not found.abandoned and not found.unreadable
    assert found.status == record.DONE and found.nimg == 320 and found.config.total_kimg == 0.32
    assert found.training == [line for line in raw if "loss/d" in line] and nimgs(found.training) == [80, 160, 240, 320]
    assert [line["event"] for line in found.events("start", "end")] == ["start", "end"] and found.facts["device"] == "cpu"
    scored = [line for line in raw if "eval/live/digits_fid" in line]
    assert [one.nimg for one in found.evaluations] == nimgs(scored) == [0, 160, 320]
    for one, line in zip(found.evaluations, scored):
        assert {f"eval/{name}/{metric}": value for name, row in one.scores.items() for metric, value in row.items()} | {
            f"eval/{key}": value for key, value in one.protocol.items()
        } == {key: value for key, value in line.items() if key.startswith("eval/")}
    assert found.metrics == ["digits_fid", "digits_is"] and found.averages == ["live", "ema", "ema_short", "swa"]


@pytest.mark.parametrize("metric, best", [(None, min), ("digits_fid", min), ("digits_is", max)])
def test_the_best_is_the_best_of_the_file(finished, metric, best):
    for averages in (None, ["ema", "swa"]):
        values = [
            (value, key.split("/")[1], line["nimg"])
            for line in lines_of(finished)
            for key, value in line.items()
            if re.fullmatch(rf"eval/({'|'.join(averages or ['.*'])})/{metric or 'digits_fid'}", key)
        ]
        for found in both(finished):
            assert found.best(metric, averages) == best(values)
    assert record.read(finished).best("digits_kid") is None and record.read(finished).best(averages=["lawa"]) is None


def test_an_outline_knows_the_same_without_the_losses(finished):
    whole, brief = both(finished)
    assert (brief.status, brief.nimg, brief.metrics, brief.averages, brief.evaluations) == (
        whole.status,
        whole.nimg,
        whole.metrics,
        whole.averages,
        whole.evaluations,
    )
    assert not brief.training and brief.events() == whole.events()


def test_made_longer_it_is_not_done_any_more(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("total_kimg: 0.32", "total_kimg: 0.64"))
    assert [one.status for one in both(run)] == [record.INTERRUPTED] * 2


def test_rolled_back_again_and_again_and_given_up(tmp_path, gantrain, monkeypatch):
    """A nan in G's gradient at every update from that to 368 images on, with checkpoints at 80, 160, ...: three rollbacks to 320."""
    run, regularise, calls = tmp_path / "run", update.add_orthogonal_gradient, []

    def spoilt(player) -> None:
        regularise(player)
        if type(player.network).__name__.endswith("Generator"):
            calls.append(None)
            if len(calls) >= 23:
                next(player.network.parameters()).grad.view(-1)[0] = float("nan")

    monkeypatch.setattr(update, "add_orthogonal_gradient", spoilt)
    done = gantrain("train", DIGITS, f"run_dir={run}", *TINY, *FEW, "total_kimg=0.96", "tracking.every_kimg=0.016", check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    for found in both(run):
        assert found.status == record.GAVE_UP and [line["to"] for line in found.events("rollback")] == [320] * 3
    found = record.read(run)
    assert nimgs(found.training) == [*range(16, 321, 16)] and found.nimg == 336
    assert nimgs([line for line in found.abandoned if "loss/d" in line]) == [336, 352]
    assert sorted(map(str, [*found.lines, *found.abandoned])) == sorted(
        map(str, map(record.parse, (run / "metrics.jsonl").read_bytes().splitlines()))
    )


# ---- what a file may have in it --------------------------------------------------------------------------------------


def test_words_are_numbers_again_and_numbers_only(tmp_path):
    run = by_hand(
        tmp_path / "run",
        event(0, "start", notes=["nan"]),
        train(16, **{"loss/g": "nan", "a": "inf", "b": {"c": ["-inf", "nano"]}}),
        score(16, "nan", live=3.0),
    )
    line = record.read(run).lines[1]
    assert math.isnan(line["loss/g"]) and line["a"] == math.inf and line["b"] == {"c": [-math.inf, "nano"]}
    assert record.read(run).best() == (3.0, "live", 16) and record.outline(run).best() == (3.0, "live", 16)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nothing",
        "[1, 2]",
        '"nimg"',
        "17",
        "null",
        "{}",
        '{"nimg": "16"}',
        '{"nimg": true}',
        '{"nimg": 1.5}',
        '{"nimg": 16',
        "[" * 100_000,
        "\x00\x00",
        '{"nimg": 1' + "0" * 5000 + "}",
    ],
)
def test_a_line_that_is_none_is_counted_and_left_out(tmp_path, bad):
    found = record.read(by_hand(tmp_path / "run", event(0, "start"), bad, train(16)))
    assert nimgs(found.lines) == [0, 16] and found.unreadable == 1


def test_bytes_that_are_no_text_are_a_line_that_is_none(tmp_path):
    run = by_hand(tmp_path / "run", event(0, "start"), train(16))
    (run / "metrics.jsonl").write_bytes(b'{"nimg": 5, "a": "\xff"}\n' + (run / "metrics.jsonl").read_bytes())
    assert nimgs(record.read(run).lines) == [0, 16] and record.read(run).unreadable == 1


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_torn_last_line_is_being_written(tmp_path, cut):
    last = json.dumps(train(32, what="x" * 40))
    for found in both(by_hand(tmp_path / "run", event(0, "start"), train(16), last[:cut], end="")):
        assert found.nimg == 16 and not found.unreadable and found.status == record.CUT_SHORT
    assert record.read(by_hand(tmp_path / "run", event(0, "start"), last, end="")).nimg == 32  # whole but for the line's end


def test_separators_of_lines_in_text_are_none_in_the_file(tmp_path):
    run = by_hand(tmp_path / "run", event(0, "start"))
    (run / "metrics.jsonl").write_text(json.dumps(event(8, "skipped", image="a\u2028b\x85c"), ensure_ascii=False) + "\n", encoding="utf-8")
    assert record.read(run).lines == [event(8, "skipped", image="a\u2028b\x85c")]


def test_a_score_that_is_no_number_is_none(tmp_path):
    found = record.read(
        by_hand(
            tmp_path / "run", {"nimg": 16, "eval/ema/fid": None, "eval/live/fid": 2.0, "eval/swa/fid": "high", "eval/features": "digits"}
        )
    )
    assert found.best() == (2.0, "live", 16) and found.evaluations[0].protocol == {"features": "digits"}


@pytest.mark.parametrize(("metric", "best"), [("fid", min), ("is", max)])
def test_nan_and_infinities_are_never_the_best(metric, best, tmp_path):
    """Wherever they stand among the scores; alone they are none."""
    for word in ("nan", "inf", "-inf"):
        numbers = [{"nimg": 16 * (i + 1), f"eval/ema/{metric}": value} for i, value in enumerate([word, 2.0, word, 3.0, word])]
        for one in both(by_hand(tmp_path / word, *numbers)):
            assert one.best() == one.best(metric) == best([(2.0, "ema", 32), (3.0, "ema", 64)])
        for one in both(by_hand(tmp_path / word, numbers[0], numbers[2])):
            assert one.best() is None


def test_scores_that_a_swap_quotes_are_no_evaluation(tmp_path):
    quoted = {"live": {"fid": 0.1}, "eval/num_samples": 64, "eval/live/fid": 0.1}
    found = record.read(by_hand(tmp_path / "run", event(0, "start"), score(16, 2.0), event(16, "swap", moment="before", **quoted)))
    assert [one.nimg for one in found.evaluations] == [16] and found.best()[0] == 2.0


def test_scores_computed_beside_the_training_come_late(tmp_path):
    """Their line has the time of what was scored; the run is where its last line of losses is. Of two at one moment the later counts."""
    lines = [event(0, "start"), score(0, 9.0), train(16), train(32), score(16, 3.0), train(48), score(32, 2.0), score(16, 4.0)]
    for found in both(by_hand(tmp_path / "run", *lines)):
        assert [(one.nimg, one.scores["ema"]["fid"]) for one in found.evaluations] == [(0, 9.0), (16, 4.0), (32, 2.0)]
        assert found.best() == (2.0, "ema", 32)
    assert record.read(tmp_path / "run").nimg == 48


# ---- rollbacks -------------------------------------------------------------------------------------------------------


def test_a_rollback_leaves_what_came_after_its_checkpoint(tmp_path):
    """Scores at the very moment stay, those after it go, were they the best; what happened there behind the checkpoint happens again."""
    lines = [
        event(0, "start"), train(16), score(16, 5.0), event(16, "checkpoint"), GREW, train(32), score(32, 1.0),
        event(48, "rollback", to=16), GREW, train(32), score(32, 4.0),
    ]  # fmt: skip
    found = record.read(by_hand(tmp_path / "run", *lines))
    assert found.lines == [*lines[:4], *lines[7:]] and found.abandoned == lines[4:7]
    assert found.best() == (4.0, "ema", 32) and found.nimg == 32


def test_late_scores_of_the_checkpoint_that_is_gone_back_to_stay(tmp_path):
    lines = [event(0, "start"), train(16), event(16, "checkpoint"), train(32), score(16, 5.0), event(40, "rollback", to=16)]
    found = record.read(by_hand(tmp_path / "run", *lines))
    assert found.best() == (5.0, "ema", 16) and found.abandoned == [train(32)] and found.nimg == 16


def test_a_rollback_after_a_rollback(tmp_path):
    """The second goes back further, the third to a moment that the second path has come to anew; a resume between them stays."""
    lines = [
        event(0, "start"),
        event(16, "checkpoint"),
        train(32, path=1),
        event(32, "checkpoint"),
        event(40, "rollback", to=32),
        train(48, path=2),
        event(56, "rollback", to=16),
        train(32, path=3),
        event(32, "checkpoint"),
        event(32, "resume"),
        train(48, path=3),
        event(50, "rollback", to=32),
        train(48, path=4),
    ]
    found = record.read(by_hand(tmp_path / "run", *lines))
    assert [(line["nimg"], line["path"]) for line in found.training] == [(32, 3), (48, 4)]
    assert [line["to"] for line in found.events("rollback")] == [32, 16, 32] and len(found.events("resume")) == 1
    assert [line["path"] for line in found.abandoned if "path" in line] == [1, 2, 3] and found.nimg == 48


@pytest.mark.parametrize("damaged", [{}, {"to": None}, {"to": "16"}, {"to": True}])
def test_a_rollback_that_does_not_say_where_to_is_unreadable(tmp_path, damaged):
    found = record.read(by_hand(tmp_path / "run", event(0, "start"), train(16), event(16, "rollback", **damaged)))
    assert nimgs(found.lines) == [0, 16] and found.unreadable == 1 and not found.abandoned


# ---- status ----------------------------------------------------------------------------------------------------------

START, END, STOPPED, RESUMED = event(0, "start"), event(1000, "end"), event(500, "interrupted"), event(500, "resume")


@pytest.mark.parametrize(
    "lines, status",
    [
        ([], record.EMPTY),
        ([START], record.CUT_SHORT),
        ([train(16)], record.CUT_SHORT),  # its first line is damaged
        ([START, train(16), END], record.DONE),
        ([START, event(500, "end")], record.INTERRUPTED),  # of 1,000 images: made longer since
        ([START, STOPPED, event(500, "checkpoint")], record.INTERRUPTED),
        ([START, STOPPED, RESUMED], record.CUT_SHORT),
        ([START, STOPPED, RESUMED, END, event(1000, "checkpoint")], record.DONE),
        ([START, event(16, "gave_up")], record.GAVE_UP),
        ([START, event(16, "gave_up"), event(16, "resume"), train(32)], record.CUT_SHORT),
    ],
)
def test_status(tmp_path, lines, status):
    run = by_hand(tmp_path / "run", *lines, end="\n" if lines else "")
    assert [one.status for one in both(run)] == [status] * 2
    held = locks.acquire(run)
    assert [one.status for one in both(run)] == [record.RUNNING] * 2
    held.close()
    assert [one.status for one in both(run)] == [status] * 2


def test_a_run_that_has_not_written_yet_is_empty(tmp_path):
    run = by_hand(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert [(one.status, one.nimg, one.best(), one.facts) for one in both(run)] == [(record.EMPTY, 0, None, {})] * 2


def test_another_machines_run_is_running_perhaps_until_it_has_been_still(tmp_path):
    """Its lock may not be seen from here. A dead one of this machine is known to be dead, and an end is an end."""
    run = by_hand(tmp_path / "run", START, train(16))
    locks.acquire(run).close()
    assert record.read(run).status == record.CUT_SHORT
    (run / ".lock").write_text("process 7 on another.example")
    assert [one.status for one in both(run)] == [record.MAYBE] * 2
    os.utime(run / "metrics.jsonl", (time.time() - 2 * record.QUIET,) * 2)
    assert record.read(run).status == record.CUT_SHORT
    by_hand(run, START, END)
    assert record.read(run).status == record.DONE


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_no_run_or_cannot_be_read_is_one_line(tmp_path, gantrain):
    assert "is not a run folder (it has no config.yaml); pass the run_dir of a `gantrain train`" in error_of(
        gantrain("watch", tmp_path, check=False)
    )
    run = by_hand(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    for read in (record.read, record.outline):
        with pytest.raises(UserError, match="metrics.jsonl: cannot be read .*; fix this, or omit this run"):
            read(run)


@pytest.mark.parametrize("text", ["", "- a", "total_kimg: much", "seed: 0", "a: [", "\x00"])
def test_a_configuration_that_is_none_is_one_line(tmp_path, text):
    run = by_hand(tmp_path / "run", START)
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml: is (not the configuration of a run|damaged \()"):
        record.outline(run)


def test_reading_a_record_does_not_wait_for_torch(tmp_path):
    run = by_hand(tmp_path / "run", START, train(16))
    code = (
        "import sys, pathlib; from gantrain.run_folder import record;"
        f" print(record.outline(pathlib.Path({str(run)!r})).nimg, 'torch' in sys.modules)"
    )
    done = os.popen(f'{sys.executable} -c "{code}"').read()
    assert done.split() == ["16", "False"]
