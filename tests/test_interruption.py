"""Being asked to stop, in real processes with real signals; and files that grow by whole lines."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from conftest import ROOT
from hypothesis import given, settings, strategies as st

from gantrain import cli, command_end, command_signals
from gantrain.interruption import ECHO, SIGNALS, Interruption, Stopped, exit_status
from gantrain.run_folder.line_file import LineFile

HEAD = """
import os, signal, sys, threading, time
from gantrain.interruption import ECHO, Interruption, Stopped
interruption = Interruption()
def ask(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
def later():
    time.sleep(ECHO * 1.1)
def ends(*numbers):
    "What the last of these signals raises, if any."
    try:
        ask(*numbers)
    except BaseException as error:
        return type(error).__name__
"""


def run(code: str, status: int = 0) -> list[str]:
    """The lines that such a program says, in a process of its own, which exits with this status."""
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def asks():
    """Sends this very process signals; handlers as they were before are put back in any case."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}  # the tests may run under nohup
    yield lambda number: os.kill(os.getpid(), number)
    for number, handler in before.items():
        signal.signal(number, handler)


# ---- before the loop and in it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [number for number in SIGNALS if number != signal.SIGINT], ids=lambda n: n.name)
def test_before_the_loop_a_signal_ends_the_command_at_once(number, asks):
    interruption = Interruption()
    with pytest.raises(Stopped, match=number.name) as caught, interruption:
        asks(number)
    assert caught.value.signal is number and interruption.asked is number


def test_before_the_loop_ctrl_c_is_what_it_always_is(asks):
    interruption = Interruption()
    with pytest.raises(KeyboardInterrupt), interruption:
        asks(signal.SIGINT)
    assert interruption.asked is signal.SIGINT


@pytest.mark.parametrize("context", [command_signals.Raising, Interruption])
def test_a_command_in_another_thread_leaves_the_signals_alone(context, asks, monkeypatch):
    """As in a program that has been a command, and then trains in threads."""
    monkeypatch.setattr(command_signals.State, "owner", 0)
    command_signals.listen()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    failed: list[BaseException] = []

    def train() -> None:
        try:
            with context():
                command_signals.listen()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start(), thread.join()
    assert not failed and before == {number: signal.getsignal(number) for number in SIGNALS}
    with command_signals.Raising(), pytest.raises(KeyboardInterrupt):  # and still raises in the main one
        asks(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]


def test_nothing_recovers_from_being_stopped():
    assert not issubclass(Stopped, Exception) and issubclass(Stopped, BaseException)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_in_the_loop_a_signal_is_remembered(number, asks):
    """However often it comes and whatever follows, but for a second Ctrl-C: the first says what the command exits with."""
    with Interruption() as interruption:
        interruption.patient = True
        assert interruption.asked is None
        asks(number)
        assert interruption.asked is number
        for other in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            asks(other)
        assert interruption.asked is number


@pytest.mark.parametrize("before", ["", "SIGTERM", "SIGUSR1"], ids=lambda b: b or "alone")
def test_an_echo_of_ctrl_c_is_none_and_a_later_one_ends_the_command(before):
    """A launcher passes on what the terminal has told already; also where another signal has asked before."""
    first = f"ask(signal.{before})" if before else ""
    said = run(
        f"with interruption:\n    interruption.patient = True\n    {first}\n"
        "    print(ends(signal.SIGINT, signal.SIGINT, signal.SIGINT))\n    later()\n"
        "    print(interruption.asked.name, ends(signal.SIGINT), ends(signal.SIGINT))\n"
    )
    assert said == ["None", f"{before or 'SIGINT'} KeyboardInterrupt KeyboardInterrupt"]


def test_ctrl_c_that_nobody_heard_is_a_process_that_ctrl_c_ended():
    assert (
        run(
            "with interruption:\n    interruption.patient = True\n    ask(signal.SIGINT)\n    later()\n    ask(signal.SIGINT)\n",
            status=-signal.SIGINT,
        )
        == []
    )


def test_a_signal_wakes_what_sleeps_and_the_work_goes_on():
    """Another process sends it; what is in hand is done to its end, and then the command sees it was asked."""
    code = (
        "with interruption:\n    interruption.patient = True\n    print('ready', flush=True)\n    end = time.monotonic() + 60\n"
        "    while not interruption.asked and time.monotonic() < end:\n        time.sleep(0.01)\n"
        "    print(interruption.asked.name)\nsys.exit(75)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", HEAD + code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=120)[0] == "SIGUSR1\n" and process.returncode == exit_status(signal.SIGUSR1)


def test_a_closed_terminal_and_limits_ask_to_stop_and_under_nohup_it_goes_on(asks):
    asking = (signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU)
    assert {*asking} < {*SIGNALS} and {exit_status(number) for number in asking} == {75}
    for number in asking:
        signal.signal(number, signal.SIG_IGN)
        with Interruption() as interruption:
            asks(number)
        assert interruption.asked is None and signal.getsignal(number) is signal.SIG_IGN


def test_ctrl_c_is_answered_at_once_and_by_the_main_process_alone(asks, capfd, monkeypatch):
    with Interruption() as interruption:
        interruption.patient = True
        asks(signal.SIGINT), asks(signal.SIGINT)
        assert capfd.readouterr().err == "gantrain: stopping; it saves first. Ctrl-C again stops at once, without saving\n"
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")
    with Interruption() as interruption:
        interruption.patient = True
        asks(signal.SIGINT)
        assert interruption.asked is signal.SIGINT and not capfd.readouterr().err


def test_ctrl_c_after_the_words_of_a_stop_says_nothing_that_contradicts_them(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "call", interrupt)
    for explained, words in {False: "interrupted; run the same command to resume from the last checkpoint", True: ""}.items():
        monkeypatch.setattr(command_signals.State, "explained", explained)
        assert cli.run(["train", "digits"]) == 130
        assert (words in capsys.readouterr().err) if words else not capsys.readouterr().err


def test_a_launchers_other_processes_say_nothing_of_being_stopped(monkeypatch, capfd):
    """The launcher stops them since one has failed, or since it was stopped itself; without a launcher, nobody else would say it."""

    def stop(arguments):
        raise Stopped(signal.SIGTERM)

    def end(number):
        raise SystemExit(number)

    monkeypatch.setattr(cli, "call", stop), monkeypatch.setattr(command_end, "wait", lambda seconds, status: None)
    monkeypatch.setattr(command_signals.os, "_exit", end)
    monkeypatch.setattr(command_signals.State, "owner", os.getpid()), monkeypatch.setattr(command_signals.State, "ended_with", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for launched, rank, speaks in (("True", "1", False), ("True", "0", True), ("", "1", True)):
        monkeypatch.setenv("RANK", rank), monkeypatch.setenv(command_signals.AGENT_STORE, launched)
        assert cli.run(["train", "digits"]) == 75
        assert ("stopped by SIGTERM; run" in capfd.readouterr().err) == speaks
        with pytest.raises(SystemExit, match="75"):
            command_signals._end(signal.SIGTERM, None)
        assert ("stopped by SIGTERM" in capfd.readouterr().err) == speaks


def test_a_process_that_waits_with_its_error_is_stopped_with_the_status_of_the_error(monkeypatch, capfd):
    """The main process has printed the error. One that only knows that another failed waits longer, the main one after its line."""
    waits = []

    def end(number):
        raise SystemExit(number)

    def sleep(seconds):
        waits.append((seconds, capfd.readouterr().err))
        if seconds == command_end.SECONDS_FOR_MAIN:
            command_signals._end(signal.SIGTERM, None)

    monkeypatch.setattr(command_signals.os, "_exit", end), monkeypatch.setattr(command_end.time, "sleep", sleep)
    monkeypatch.setattr(command_signals.State, "owner", os.getpid()), monkeypatch.setattr(command_signals.State, "ended_with", None)
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "1"), monkeypatch.setenv(command_signals.AGENT_STORE, "True")
    with pytest.raises(SystemExit, match="3"):
        command_end.complain("x", 3)
    assert waits == [(3, "")] and not capfd.readouterr().err
    command_end.complain("x", 2, of_another=True)
    assert waits[1:] == [(5, "")] and capfd.readouterr().err == "gantrain: error: process 1: x\n"
    monkeypatch.setenv("RANK", "0")
    command_end.complain("x", 2, of_another=True)
    assert waits[2:] == [(5, "gantrain: error: x\n")]
    monkeypatch.setenv(command_signals.AGENT_STORE, "")
    command_end.complain("x", 2, of_another=True)
    assert len(waits) == 3


# ---- who else is there -----------------------------------------------------------------------------------------------


def test_a_forked_child_is_its_owners_and_not_the_terminals():
    """Ctrl-C and SIGUSR1 pass it by, SIGTERM ends it; nothing of it reaches the one that forked it."""
    said = run(
        "with interruption:\n    interruption.patient = True\n    child = os.fork()\n    if child == 0:\n"
        "        ask(signal.SIGINT, signal.SIGUSR1, signal.SIGINT)\n        os.write(1, b'alive %d\\n' % (interruption.asked is None))\n"
        "        ask(signal.SIGTERM)\n        os.write(1, b'still alive\\n')\n        os._exit(0)\n"
        "    status = os.waitpid(child, 0)[1]\n    print(os.WTERMSIG(status) == signal.SIGTERM, interruption.asked)\n"
    )
    assert said == ["alive 1", "True None"]


def test_a_child_forked_before_the_loop_is_too():
    said = run(
        "with interruption:\n    child = os.fork()\n    if child == 0:\n        print(ends(signal.SIGINT, signal.SIGUSR1), flush=True)\n"
        "        ask(signal.SIGTERM)\n        os._exit(0)\n"
        "    print(os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM)\n"
    )
    assert said == ["None", "True"]


def test_handlers_are_those_from_before_afterwards(asks):
    """After an end of any kind; entering twice counts as once."""

    def mine(number, frame):
        pass

    for number in SIGNALS:
        signal.signal(number, mine)
    for error in (None, ValueError, KeyboardInterrupt):
        interruption = Interruption()
        try:
            with interruption:
                with interruption:
                    assert all(signal.getsignal(number) != mine for number in SIGNALS)
                assert all(signal.getsignal(number) != mine for number in SIGNALS)
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert all(signal.getsignal(number) is mine for number in SIGNALS)
    with interruption:  # and once more
        assert all(signal.getsignal(number) != mine for number in SIGNALS)
    assert all(signal.getsignal(number) is mine for number in SIGNALS)


def test_in_another_thread_nothing_is_asked():
    """Python takes signals in its main thread only: those stay as they are."""
    before, found = [signal.getsignal(number) for number in SIGNALS], []

    def work():
        with Interruption() as interruption, interruption:
            found.append((interruption.asked, [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [(None, before)] and [signal.getsignal(number) for number in SIGNALS] == before


def test_exit_status():
    """EX_TEMPFAIL for whoever wants the machine back, and what shells give for Ctrl-C."""
    assert [exit_status(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == [75, 75, 130] and ECHO == 1.0


# ---- whole lines -----------------------------------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int):
    """The system takes no byte of a file beyond this one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.text("aé\N{GRINNING FACE}", max_size=30), max_size=12), limits=st.lists(st.integers(1, 300), min_size=1, max_size=4)
)
def test_a_line_is_in_the_file_whole_or_not_at_all(tmp_path_factory, lines, limits):
    """On a file system that refuses bytes at some size, and at another later: what could be written is there, in order."""
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    file, kept = LineFile(path), b""
    for i, line in enumerate(lines):
        data = f"{line}\n".encode()
        limit = limits[i % len(limits)]
        with files_up_to(limit):
            if len(kept) + len(data) <= limit:
                file.append(f"{line}\n")
                kept += data
            else:
                with pytest.raises(OSError):
                    file.append(f"{line}\n")
        assert path.read_bytes() == kept and file.position() == len(kept)
    file.close()


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")), max_size=8),
    cut=st.integers(0, 7),
    keep=st.one_of(st.none(), st.integers(0, 70)),
    piece=st.integers(1, 9),
)
def test_what_is_kept_are_the_whole_lines_within_so_many_bytes(tmp_path_factory, lines, cut, keep, piece):
    """Of a file that may end in the middle of a line, and be shorter than what is to be kept. What stood behind them is moved,
    in pieces, and new lines follow those kept."""
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    data = b"".join(line + b"\n" for line in lines)
    data = data[: max(0, len(data) - cut)]
    path.write_bytes(data)
    file = LineFile(path, keep)
    whole = data
    if keep is not None:
        whole = data[:keep]
        while whole and not whole.endswith(b"\n"):
            whole = whole[:-1]
    assert path.read_bytes() == data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gantrain.run_folder.line_file.PIECE", piece)
        file.move_rest(path.with_name("moved.txt"))
    rest = data[len(whole) :]
    moved = path.with_name("moved.txt").read_bytes() if rest else b""
    assert moved == rest + b"\n" * bool(rest and not rest.endswith(b"\n"))
    assert path.read_bytes() == whole and file.position() == len(whole)
    file.append("new\n")
    file.append("two\nmore\n")
    assert path.read_bytes() == whole + b"new\ntwo\nmore\n" and file.position() == len(whole) + 13
    file.close()


def test_a_short_write_is_gone_on_with(tmp_path):
    """The system may take a part and say so: the rest follows."""
    file = LineFile(tmp_path / "lines.txt")

    class Miser:
        def __init__(self, inner):
            self.inner = inner

        def write(self, data):
            return self.inner.write(data[:3])

        def __getattr__(self, name):
            return getattr(self.inner, name)

    file._file = Miser(file._file)
    file.append("a line of many bytes\n")
    assert file.path.read_text() == "a line of many bytes\n" and file.position() == 21
    file.close()
