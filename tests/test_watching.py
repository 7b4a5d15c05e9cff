"""`gantrain watch` beside real runs that are killed, come back, are asked to stop and end; and bars, which no log file ever sees."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, error_of
from hypothesis import given, settings, strategies as st
from spawning import Spawned
from test_record import FEW, by_hand, environment, event, score, train

from gantrain import cli, lock as locks
from gantrain.commands.watch import Follower, Past, summarise, watch
from gantrain.reporting.console import console_line
from gantrain.reporting.event_words import Teller
from gantrain.reporting.score_table import SaidNotes
from gantrain.run_folder import record

DIGITS = ROOT / "configs" / "digits.yaml"
SWAPS = [
    "batching={name: on_swap, max_batch: 64}", "swap={source: swa, start_kimg: 0.24, every_kimg: 0.24, after_kimg: 0.04, growth: 2}",
    "averagers.a={name: power, sigma_rel: 0.05, snapshot_every_kimg: 0.08}",
    "averagers.b={name: power, sigma_rel: 0.1, snapshot_every_kimg: 0.08}",
    "orbit.every_kimg=null", "averagers.swa.start_kimg=0.08", "averagers.ema_short=null", "eval.num_samples=32",
]  # fmt: skip


class Watched(threading.Thread):
    """`watch` on a thread: what it says, as it comes."""

    def __init__(self, run: Path, last: int = 10):
        super().__init__(daemon=True)
        self.run_dir, self.last, self.said = run, last, []
        self.start()

    def run(self) -> None:
        watch(self.run_dir, self.last, self.said.append, every=0.01)

    def until(self, condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def to_the_end(self) -> list[str]:
        self.join(120)
        assert not self.is_alive()
        return self.said


def wait_until(condition, process: Spawned) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "".join(process.communicate())
        time.sleep(0.01)


def write(run: Path, *lines: dict) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def losses(text: str) -> list[str]:
    return [line for line in text.splitlines() if " kimg " in line and "loss D" in line]


# ---- beside real runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, gantrain) -> tuple[Path, str]:
    """A run that swaps and grows; what it has said."""
    run = tmp_path_factory.mktemp("watching") / "run"
    done = gantrain("train", DIGITS, f"run_dir={run}", *TINY, *SWAPS)
    assert done.stderr == "" and "\r" not in done.stdout  # no bar of a training either
    return run, done.stdout


def test_it_says_what_the_run_has_said(finished, gantrain):
    """Lines of losses, tables, swaps and growths to the letter; all of them, or the last."""
    run, said = finished
    watched = gantrain("watch", run, "--last", 1000).stdout
    assert losses(watched) == losses(said) and len(losses(said)) == 4
    for start in ("swap: ", "growth at ", "live ", "ema ", "average "):
        wanted = [line for line in said.split("\nlive weights at")[0].splitlines() if line.startswith(start)]
        assert wanted and [line for line in watched.splitlines() if line.startswith(start)][: len(wanted)] == wanted, start
    assert "swap: swa replaces the live weights of G and D at 0.24 kimg; batch 16 -> 32; live digits_fid " in watched
    assert watched.startswith(
        f"run: {run}, done, 0.336 of 0.32 kimg; biggan on digits, hinge loss, seed 0, batch 16 (on_swap);"
        " averages: ema, swa, a, b; swap: swa every 0.24 kimg\n"
    )
    assert watched.splitlines()[-1] == "done at 0.336 kimg" and "scores at 0.16 kimg (32 samples each):\naverage " in watched
    few = gantrain("watch", run, "--last", 2).stdout
    assert few.splitlines()[1].startswith("scores at 0.336 kimg") and watched.count("note: ") == few.count("note: ") > 0, "each once"
    assert watched.endswith("".join(line for line in few.splitlines(True)[1:] if not line.startswith("note: ")))
    assert gantrain("watch", run, "--last", 0).stdout.count("\n") == 1
    assert "--last: must be at least 0, got -1" in error_of(gantrain("watch", run, "--last", "-1", check=False))


@pytest.mark.slow
def test_beside_a_run_that_is_killed_comes_back_and_is_asked_to_stop(tmp_path):
    """Its record says so too: running, cut short, running, interrupted."""
    run = tmp_path / "run"
    command = ["-m", "gantrain", "train", DIGITS, f"run_dir={run}", *TINY, *FEW, "total_kimg=100", "checkpoint.every_kimg=0.16"]
    process = Spawned(command, environment())
    wait_until((run / "config.yaml").exists, process)
    watched = Watched(run)
    watched.until(lambda: len(losses("\n".join(watched.said))) >= 4)
    assert record.read(run).status == record.outline(run).status == record.RUNNING
    process.kill()
    process.wait()
    said = watched.to_the_end()
    words = r"cut short at 0\.\d+ kimg: no process is training there; run the same command to resume from the last checkpoint"
    assert re.fullmatch(words, said[-1])
    assert losses("\n".join(said)) == losses(process.output())
    assert record.read(run).status == record.outline(run).status == record.CUT_SHORT

    process = Spawned(command, environment())
    wait_until(lambda: locks.owner(run) is not None, process)
    watched = Watched(run, last=0)  # before the run cuts off what the kill had written beyond its checkpoint, or after
    watched.until(lambda: len(losses("\n".join(watched.said))) >= 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    said = watched.to_the_end()
    assert losses("\n".join(said)) == losses(process.output()) and len([line for line in said if line.startswith("resume at ")]) <= 1
    assert re.fullmatch(r"stopped by SIGTERM at 0\.\d+ kimg; run the same command to resume", said[-1])
    found = record.read(run)
    assert found.status == record.INTERRUPTED and found.facts["processes"] == 1
    times = [line["nimg"] for line in found.training]
    assert times == sorted(set(times))  # what the kill had written beyond its checkpoint is in the file no more


@pytest.mark.parametrize(
    "sections, first, words",
    [
        ("model: {name: my.own:Model}, data: {name: digits}, seed: 3", None, ["Model on digits, seed 3", "averages: none"]),
        ("batching: {name: 'own:Doubling'}", None, ["batch policy Doubling", "averages: none"]),
        ("batching: {name: 'own:Doubling'}", 16, ["batch 16 (Doubling)", "averages: none"]),
        ("batching: {name: on_swap, batch_size: 8}", None, ["batch 8 (on_swap)", "averages: none"]),
        ("swap: {source: swa}", None, ["averages: none", "swap: swa"]),
        ("swap: {source: swa, every_kimg: 2}", None, ["averages: none", "swap: swa every 2 kimg"]),
    ],
)
def test_the_head_leaves_out_what_is_unknown(sections, first, words):
    assert summarise(record.Outline(1.0, yaml.safe_load(f"{{{sections}}}")), first) == words


def past_of(lines: list[bytes], last: int = 10) -> Past:
    past = Past(Teller(200.0), last)
    for line in lines:
        past.add(line)
    past.end()
    return past


def test_the_first_batch_is_that_before_the_first_growth():
    grown = event(112, "growth", **{"from": 16, "to": 32})
    lines = [json.dumps(line).encode() + b"\n" for line in (event(0, "start"), grown, {"nimg": 160, "batch/size": 32})]
    assert [past_of(some).first_batch for some in (lines, lines[2:], lines[:1])] == [16, 32, None]


def test_ctrl_c_is_130_and_no_word(tmp_path):
    run = by_hand(tmp_path / "run", event(0, "start"), train(16))
    held = locks.acquire(run)
    process = Spawned(["-m", "gantrain", "watch", run], environment())
    wait_until(lambda: "loss D" in process.output(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and process.errors() == "" and "\r" not in process.output()
    held.close()


# ---- beside a record that is written by hand -------------------------------------------------------------------------


def test_from_before_the_first_line_to_the_end(tmp_path):
    """No configuration yet, then no record, then half a line, which waits for its other half; the end may be made another."""
    run = tmp_path / "run"
    run.mkdir()
    held = locks.acquire(run)
    watched = Watched(run)
    time.sleep(0.05)
    assert not watched.said
    (run / "config.yaml").write_text("total_kimg: 0.1\n")
    watched.until(lambda: len(watched.said) == 1)
    assert "running, 0 of 0.1 kimg" in watched.said[0]
    write(run, event(0, "start", device="cpu", processes=2, gantrain="1.0", time="2026-01-31T12:00:00Z"))
    watched.until(lambda: len(watched.said) == 2)
    assert watched.said[1] == "start at 0 kimg on cpu, 2 processes, gantrain 1.0, 2026-01-31T12:00:00Z"
    text = json.dumps(train(32))
    for part in (text[:10], text[10:], "\n"):
        assert len(watched.said) == 2
        with open(run / "metrics.jsonl", "a") as file:
            file.write(part)
        time.sleep(0.05)
    watched.until(lambda: len(watched.said) == 3)
    (run / "config.yaml").write_text("total_kimg: 0.2\n")
    write(run, event(32, "resume"), train(64), event(64, "end"))
    held.close()
    assert watched.to_the_end()[2:] == [
        console_line(32, 100, train(32)),
        "resume at 0.032 kimg",
        console_line(64, 200, train(64)),
        "done at 0.064 kimg",
    ]


@pytest.mark.parametrize("look", [1, 2])
def test_what_a_run_writes_between_a_look_and_its_end_is_told(look, tmp_path, monkeypatch):
    """Right after the first look at its record, or the second, it writes its last lines and ends."""
    run = by_hand(tmp_path / "run", event(0, "start"), train(16))
    held, read, looks, said = locks.acquire(run), Follower.new, [], []

    def new(follower: Follower) -> list[bytes]:
        lines = list(read(follower))
        looks.append(len(lines))
        if len(looks) == look:
            write(run, train(32), event(1000, "end"))
            held.close()
        return lines

    monkeypatch.setattr(Follower, "new", new)
    watch(run, 10, said.append, every=0.001)
    assert said[1:] == ["start at 0 kimg", console_line(16, 1000, train(16)), console_line(32, 1000, train(32)), "done at 1 kimg"]
    assert looks[0] == 2 and len(looks) > look


def test_a_run_taken_up_again_goes_on_from_its_cut(tmp_path):
    """Between two looks the file is cut back and grows beyond what it was: nothing twice, nothing lost."""
    run = by_hand(tmp_path / "run", event(0, "start"), train(16))
    held = locks.acquire(run)
    watched = Watched(run)
    write(run, train(32), train(48), train(64))
    watched.until(lambda: any("0.1 kimg" in text for text in watched.said))
    by_hand(
        run,
        event(0, "start"),
        train(16),
        train(32),
        event(32, "resume"),
        train(48, again=True),
        train(64),
        train(80),
        train(96),
        event(1000, "end"),
    )
    held.close()
    wanted = [
        *(console_line(n, 1000, train(n)) for n in (16, 32, 48, 64)),
        "resume at 0.032 kimg",
        *(console_line(n, 1000, train(n)) for n in (48, 64, 80, 96)),
    ]
    assert watched.to_the_end()[1:] == ["start at 0 kimg", *wanted, "done at 1 kimg"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.booleans(), st.booleans()), max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_line_is_read_once_however_the_file_grows_and_is_cut(tmp_path_factory, steps):
    """Each step cuts off some lines, appends others, perhaps with a torn one behind, and perhaps looks."""
    path = tmp_path_factory.mktemp("follow") / "metrics.jsonl"
    follower, now, seen, count = Follower(path), [], [], 0
    assert list(follower.new()) == []
    for cut, more, torn, look in steps:
        now = now[: max(0, len(now) - cut)]
        for _ in range(more):
            count += 1
            now.append(b"%d %s\n" % (count, b"x" * (count % 3)))
        path.write_bytes(b"".join(now) + (b"torn" if torn else b""))
        if look:
            same = next((i for i, (a, b) in enumerate(zip(seen, now)) if a != b), min(len(seen), len(now)))
            assert list(follower.new()) == now[same:]
            seen = list(now)


def test_it_starts_without_torch_and_without_plugins(tmp_path):
    """Which would take seconds, and may not be installed where somebody watches."""
    run = by_hand(tmp_path / "run", event(0, "start"), event(1000, "swap"), score(1000, 1.0), event(1000, "end"))
    (run / "config.yaml").write_text("total_kimg: 1\nmodel: {name: my.own:Model}\ndata: {name: digits}\naveragers: {ema: {}}\n")
    code = (
        "import sys; from gantrain import cli\n"
        f"assert cli.run(['watch', {str(run)!r}]) == 0\n"
        "print([name for name in ('torch', 'accelerate', 'plotly', 'wandb', 'gantrain.config') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
    assert "; Model on digits; averages: ema" in done.stdout and "average        fid" in done.stdout


def test_a_folder_that_is_not_a_run_is_refused(tmp_path, gantrain):
    assert re.search(r": is (no|not a) run folder", error_of(gantrain("watch", tmp_path, check=False)))


def test_a_run_in_which_nothing_happened_or_will(tmp_path):
    run = by_hand(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    said: list[str] = []
    watch(run, 10, said.append)
    assert said[0].startswith(f"run: {run}, empty, 0 of 1 kimg")
    assert said[1:] == ["nothing has been written yet, and no process is training there"]


def test_another_machines_run_is_followed_until_it_is_still(tmp_path, monkeypatch):
    run = by_hand(tmp_path / "run", event(0, "start"), train(16))
    (run / ".lock").write_text("process 7 on another.example")
    monkeypatch.setattr(record, "QUIET", 1.0)
    watched = Watched(run)
    watched.until(lambda: len(watched.said) == 3)
    assert "running?, 0.016 of 1 kimg" in watched.said[0]
    write(run, train(32))
    assert watched.to_the_end()[3:] == [
        console_line(32, 1000, train(32)),
        "cut short at 0.032 kimg: no process is training there; run the same command to resume from the last checkpoint",
    ]


# ---- words -----------------------------------------------------------------------------------------------------------

BACK = {"kind": "nonfinite", "words": "loss/d is nan", "to": 160, "attempt": 2, "max_rollbacks": 3, "lr_scale": 0.25}


@pytest.mark.parametrize(
    "line, text",
    [
        (event(160, "checkpoint", path="checkpoints/000000000160"), ""),
        (event(160, "best", best_of=["eval/ema/fid"]), ""),
        (event(320, "rollback", **BACK), "guard: loss/d is nan; back to 0.16 kimg, attempt 2 of 3, on other images, learning rates x 0.25"),
        (event(320, "warning", kind="saturation", words="D knows it all"), "guard: D knows it all; continuing (guard.on_saturation=warn)"),
        (event(320, "skipped", image="a.png: truncated"), "data: skipped: a.png: truncated"),
        (event(320, "gave_up", words="loss/d is nan"), "gave up at 0.32 kimg: loss/d is nan"),
        (event(320, "interrupted", signal="SIGUSR1"), "stopped by SIGUSR1 at 0.32 kimg; run the same command to resume"),
        (
            event(320, "swap", moment="at", swap_nimg=320, live={}, source="swa", networks="g", grown=1.0, **{"batch/size": 64}),
            "swap: swa replaces the live weights of G at 0.32 kimg; batch 64 -> 64",
        ),
        (event(320, "growth", **{"from": 64, "to": 128, "reason": "asked"}), "growth at 0.32 kimg: batch 64 -> 128: asked"),
        (event(320, "swap"), "swap at 0.32 kimg"),  # as no version that we know writes it
        (event(320, "party"), "party at 0.32 kimg"),
        (event(320, "text"), "text at 0.32 kimg"),
        ({"nimg": 320}, ""),
    ],
)
def test_events_in_words(line, text):
    assert Teller(200.0).text(line) == text


def test_a_note_on_scores_is_said_once_and_again_when_it_changes():
    noted = SaidNotes()
    one, other = "fid: few images", "fid: few images (2)"
    assert [noted.new(notes) for notes in ([one], [one], [], [one], [other, one], [other])] == [[one], [], [], [one], [other], []]
    assert SaidNotes([one]).new([one, other]) == [other]


@pytest.mark.parametrize("last", [0, 1, 3, 10])
def test_watch_says_a_note_with_the_first_scores_that_it_shows(tmp_path, last):
    """Whatever was said before the last messages was not read by this reader."""
    scores = [{**score(16 * i, float(i)), "eval/notes": ["fid: few images"]} for i in range(1, 6)]
    run, said = by_hand(tmp_path / "run", event(0, "start"), *scores, event(96, "interrupted", signal="SIGTERM")), []
    watch(run, last, said.append)
    assert "\n".join(said).count("note: fid: few images") == (last > 1)  # the very last is no evaluation
    assert last < 2 or "note: fid: few images" in next(text for text in said if text.startswith("scores at"))


def test_watch_says_a_note_that_comes_later(tmp_path):
    """An old record without notes, one note, the same beside another, and a resumed run whose notes are the same."""
    notes = [None, ["a"], ["a", "b"], ["a", "b"], ["b"], ["b"]]
    lines = [score(16 * i, float(i)) | ({} if one is None else {"eval/notes": one}) for i, one in enumerate(notes, 1)]
    run, said = by_hand(tmp_path / "run", event(0, "start"), *lines[:4], event(64, "resume"), *lines[4:], event(96, "end")), []
    watch(run, 100, said.append)
    found = [re.findall("note: (.)", text) for text in said if text.startswith("scores at")]
    assert found == [[], ["a"], ["b"], [], [], []]


def test_where_the_run_is_and_how_long_it_takes():
    """By the rate of the last lines, 100 images a second and then 50, and by the time that the run itself has foreseen; a rollback goes
    back, late scores do not."""
    teller = Teller(1.0)
    assert teller.rest() == ""
    for line in (event(0, "start"), train(100, **{"throughput/img_per_s": 100.0}), train(200, **{"throughput/img_per_s": 50.0})):
        teller.text(line)
    assert teller.rest() == "67 img/s"  # 200 images in 3 seconds; an older record may have no time left
    teller.text(score(100, 1.0))
    assert teller.nimg == 200
    teller.text(event(250, "rollback", **{**BACK, "to": 100}))
    assert teller.nimg == 100
    teller.text(train(200, **{"throughput/img_per_s": 100.0, "throughput/left_s": 65.0}))
    assert teller.rest() == "75 img/s, 1m05s to go"


@pytest.mark.parametrize("last", [0, 1, 3, 50])
def test_the_last_things_said_are_the_last_of_all(last):
    lines = [event(0, "start")]
    for n in range(16, 800, 16):
        lines += [
            train(n),
            *([score(n, 1.0)] if n % 64 == 0 else []),
            *([event(n, "growth", **{"from": n, "to": 2 * n, "reason": "so"})] if n % 96 == 0 else []),
            event(n, "checkpoint"),
        ]
    raw = [json.dumps(line).encode() + b"\n" for line in lines]
    everything = list(filter(None, map(Teller(200.0).text, lines)))
    assert list(past_of(raw, last).texts) == everything[len(everything) - last :][-last or len(everything) :]


# ---- bars ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def standard(out: object, err: object):
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def finite(run: Path, folder: Path) -> list[list[str]]:
    """A command of every kind whose end is known when it begins."""
    return [
        ["sample", str(run), "--num", "12", "--out", f"{folder / 'drawn'}/"],
        ["evaluate", str(run), "--num", "32"],
        ["average", str(run), "--sweep", "0.06:0.09:2", "--num", "16"],
        ["noise-scale", str(run), "--updates", "8"],
    ]  # fmt: skip


@pytest.mark.slow
def test_no_bar_is_in_a_log_file(finished, tmp_path):
    for i, command in enumerate(finite(finished[0], tmp_path)):
        with open(tmp_path / f"{i}.log", "w") as log, standard(log, log):
            assert cli.run(command) == 0
        text = (tmp_path / f"{i}.log").read_text()
        assert text and not re.search(r"\r|it/s|s/it|%\||\x1b", text), (command, text)


@pytest.mark.slow
def test_no_bar_of_an_orbit_is_in_a_log_file(gantrain, tmp_path):
    gantrain(
        "train", DIGITS, f"run_dir={tmp_path / 'run'}", *TINY, *FEW, "total_kimg=0.2", "batching.batch_size=4", "orbit.every_kimg=0.004"
    )
    with open(tmp_path / "log", "w") as log, standard(log, log):
        assert cli.run(["orbit", str(tmp_path / "run")]) == 0
    assert not re.search(r"\r|it/s|%\|", (tmp_path / "log").read_text())


@pytest.fixture
def terminal():
    """A terminal's end to write to, and what has arrived at the other."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    arrived: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                arrived.append(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    file = open(theirs, "w")  # noqa: SIM115

    def text() -> str:
        if not file.closed:
            file.close()
        reader.join(10)
        return b"".join(arrived).decode()

    yield file, text
    text()
    os.close(ours)


@pytest.mark.parametrize("verb, title", [("evaluate", "score live"), ("average", "rebuild 0.09")])
def test_on_a_terminal_there_is_one_and_it_goes(finished, tmp_path, terminal, verb, title):
    file, text = terminal
    command = next(one for one in finite(finished[0], tmp_path) if one[0] == verb)
    with open(tmp_path / "out", "w") as out, standard(out, file):
        assert cli.run(command) == 0
    assert (
        f"{title}:" in text()
        and re.search(r"100%\||\d+%\|", text())
        and text().endswith("\r")
        and not (tmp_path / "out").read_text().count("\r")
    )


def test_the_bar_of_a_watched_run_says_where_it_is(tmp_path, terminal):
    """While the run goes on; its lines stand above, whole."""
    file, text = terminal
    run = by_hand(tmp_path / "run", event(0, "start"), train(100, **{"throughput/img_per_s": 50.0, "throughput/left_s": 18.0}))
    held = locks.acquire(run)

    def goes_on() -> None:
        time.sleep(0.2)
        write(run, train(500, **{"throughput/img_per_s": 100.0, "throughput/left_s": 6.0}))
        time.sleep(0.2)
        held.close()

    other = threading.Thread(target=goes_on)
    other.start()
    with standard(file, file):
        watch(run, 10, lambda line: print(line, flush=True), every=0.02)
    other.join()
    assert re.search(r"run +10%\|.*\| 0\.1 of 1 kimg, 50 img/s, 18s to go", text()) and re.search(
        r"run +50%\|.*\| 0\.5 of 1 kimg, 83 img/s, 6s to go", text()
    )
    last = {**train(500), "throughput/img_per_s": 100.0, "throughput/left_s": 6.0}
    assert re.search(r"(^|[\r\n])" + re.escape(console_line(500, 1000, last)) + r"[\r\n]", text())
    assert re.search(r"[\r\n]cut short at 0\.5 kimg.*\r\n$", text())
