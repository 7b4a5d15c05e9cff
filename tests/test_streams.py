"""No output ends a command: closed, full and broken streams, other encodings, and somebody's own objects."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, error_of, lines_of

from gantrain import command_end, streams
from gantrain.reporting.tracker import Tracker


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    """A shell's command, in which PYTHON is this Python."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-o", "pipefail", "-c", command.replace("PYTHON", sys.executable)], capture_output=True, env=variables)


class Full(io.TextIOBase):
    """A stream on a full disk."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


class Strange:
    """A stream of somebody's own, which has nothing that a stream has."""

    def write(self, text):
        raise RuntimeError("this stream is not open")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Full(), Strange(), closed(), None, object()], ids=["full", "strange", "closed", "none", "object"])
def test_a_tracker_goes_on_whatever_standard_output_does(tmp_path, monkeypatch, stream):
    """In somebody's own program, whose streams are not made safe; the record is complete."""
    told = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", told)
    tracker = Tracker(tmp_path)
    tracker.open()
    tracker.say("fid 3.1 ± 0.2")
    tracker.say("κ → \udcff")
    tracker.log(1, {"loss/d": 0.5})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"nimg": 1, "loss/d": 0.5}\n'
    words = "training continues, and metrics.jsonl is complete\n"
    assert told.getvalue().count(words) == told.getvalue().count("\n") == (0 if stream is None else 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_characters_that_a_terminal_does_not_have_are_written_as_numbers(tmp_path, monkeypatch, encoding):
    taken = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(taken, encoding, errors="strict"))
    Tracker(tmp_path).say("a ± b → \udcff")
    text = taken.getvalue().decode(encoding)
    assert text.startswith("a ") and text.endswith(" \\udcff\n") and ("±" in text) is (encoding != "ascii")
    assert encoding != "ascii" or text == "a \\xb1 b \\u2192 \\udcff\n"


def test_a_view_that_exits_is_dropped(tmp_path, capsys):
    class View:
        def log(self, nimg, values):
            sys.exit(0)

    tracker = Tracker(tmp_path)
    tracker.open()
    tracker.views = [View()]
    tracker.log(1, {})
    assert "View: stopped" in capsys.readouterr().out and not tracker.views


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, status, out, words",
    [
        ("PYTHON -m gantrain config digits > /dev/full", 1, b"", "cannot write to standard output (No space left on device)"),
        ("PYTHON -u -m gantrain config digits > /dev/full", 1, b"", "cannot write to standard output (No space left on device)"),
        ("PYTHON -m gantrain config digits >&-", 1, b"", "cannot write to standard output (it is closed)"),
        ("PYTHON -m gantrain --help > /dev/full", 1, b"", "cannot write to standard output (No space left on device)"),
        ("PYTHON -m gantrain configs | head -n 1", 0, b"cifar10_biggan\n", ""),
        ("PYTHON -m gantrain configs 2>/dev/full | head -n 1", 0, b"cifar10_biggan\n", ""),
        ("PYTHON -m gantrain runs nosuch 2>/dev/full", 2, b"", ""),
        ("PYTHON -m gantrain runs nosuch >&- 2>&- <&-", 2, b"", ""),
    ],
)
def test_a_command_whose_output_is_lost_says_so(command, status, out, words):
    done = shell(command)
    assert (done.returncode, done.stdout) == (status, out)
    line = done.stderr.decode()
    assert line == (f"gantrain: error: {words}\n" if words else "")


@pytest.mark.slow
def test_a_closed_stream_is_not_the_next_file_that_is_opened(tmp_path):
    """What a library in C prints would land in it."""
    code = f"from gantrain import streams; streams.secure(); f = open({str(tmp_path / 'record')!r}, 'w'); import os; os.write(1, b'noise')"
    assert shell(f'PYTHON -c "{code}" >&- 2>&- <&-').returncode == 0
    assert (tmp_path / "record").read_text() == ""


@pytest.mark.slow
def test_a_reader_that_takes_its_time_gets_everything():
    code = "import os; os.set_blocking(1, False); from gantrain import streams; streams.secure(); print('x' * 10**6)"
    done = shell(f'PYTHON -c "{code}" | (sleep 1; wc -c)')
    assert done.stdout.strip() == b"1000001"


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection, environment",
    [
        ("> /dev/full", {}),
        (">&- 2>&- <&-", {}),
        ("> /dev/full 2> /dev/full", {}),
        ("| head -n 1", {}),
        ("| cat", {"PYTHONIOENCODING": "ascii"}),
        ("| cat", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    ],
)
def test_a_training_ends_with_0_and_the_same_record_whatever_standard_output_does(gantrain, tmp_path, redirection, environment):
    gantrain("train", "digits", f"run_dir={tmp_path / 'plain'}", *TINY, "total_kimg=0.16")
    words = [line for line in (tmp_path / "plain" / "config.yaml").read_text().splitlines() if not line.startswith("run_dir:")]
    (tmp_path / "κ.yaml").write_text("\n".join([*words, f"run_dir: {tmp_path / 'lost'}\n"]), encoding="utf-8")
    done = shell(f"PYTHON -m gantrain train '{tmp_path / 'κ.yaml'}' {redirection}", **environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr + done.stdout
    plain, lost = (lines_of(tmp_path / name) for name in ("plain", "lost"))
    assert [(line["nimg"], line.get("loss/d")) for line in plain] == [(line["nimg"], line.get("loss/d")) for line in lost]
    note = b"gantrain: note: cannot write to standard output"
    assert done.stderr.count(note) == (1 if redirection in ("> /dev/full", "| head -n 1") else 0)
    weights = [next((tmp_path / name / "checkpoints").glob("*160/g.safetensors")).read_bytes() for name in ("plain", "lost")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_failure_of_standard_output_is_the_status_of_a_command_that_prints(monkeypatch, gantrain):
    monkeypatch.setitem(streams.LOST, "stdout", OSError(errno.ENOSPC, "No space left on device"))
    done = gantrain("configs", check=False)
    assert done.returncode == 1 and "cannot write to standard output (No space left on device)" in done.stderr
    monkeypatch.setitem(streams.LOST, "stdout", BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert gantrain("configs").returncode == 0
    monkeypatch.setitem(streams.LOST, "stdout", OSError(errno.ENOSPC, "No space left on device"))
    assert "nosuch" in error_of(gantrain("runs", "nosuch", check=False))


def test_a_name_that_the_locale_cannot_have_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UnicodeEncodeError) as caught:
        "runs/κ".encode("ascii")
    told = str(command_end.unencodable(caught.value))
    assert told.startswith(r"runs/\u03ba: is not a file name in the encoding of this locale (ascii); set PYTHONUTF8=1")
