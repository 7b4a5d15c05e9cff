"""Cases in a forked process with a watchdog: what hangs, crashes or fills the memory is a failure like any other, and the hunt goes on.

A case is an action (`actions.py`) on files in a folder. It is accepted, or refused in one line that names a file or a key, or it failed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ACCEPTED, REFUSED, FAILED = "accepted", "refused", "failed"
CASE_FILE = "case.json"
ANY_OPTION = re.compile(r"(?:^|[\s`'(])--[a-z]")


@dataclass(frozen=True)
class Case:
    """What is done with the files of a folder.

    Attributes:
        action: a key of `actions.ACTIONS`.
        arguments: of the action; paths are relative to the folder.
        names: a refusal must contain one of these, or an option such as `--kimg`.
        wants: files that exist when the case was accepted; "stdout" stands for any output.
    """

    action: str
    arguments: dict[str, Any]
    names: list[str] = field(default_factory=list)
    wants: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        outcome: `ACCEPTED`, `REFUSED` or `FAILED`.
        kind: what failed, with the place in gantrain's code; failures of one kind are listed once.
        text: the refusal, or all that was said.
    """

    outcome: str
    kind: str = ""
    text: str = ""


@dataclass(frozen=True)
class Limits:
    """What one case may take.

    Attributes:
        seconds: not counting the time that the process waited for a busy CPU.
        bytes: of resident memory, at its peak.
    """

    seconds: float = 10
    bytes: int = 2 << 30


def write_case(case: Case, folder: Path) -> None:
    (folder / CASE_FILE).write_text(json.dumps(asdict(case), indent=1))


def read_case(folder: Path) -> Case:
    return Case(**json.loads((folder / CASE_FILE).read_text()))


# ---- in the worker ---------------------------------------------------------------------------------------------------


def judge(case: Case, actions: dict[str, Callable[..., Any]], said: Path) -> Verdict:
    """Do what the case says, in the current folder, and judge it. Descriptors 1 and 2 must lead to files in `said`."""
    from gantrain.errors import OF_THE_MACHINE, UserError

    status: Any = 0
    line: str | None = None  # of a refusal
    out, err = (
        io.TextIOWrapper(io.BufferedWriter(io.FileIO(number, "w", closefd=False)), "utf-8", "backslashreplace") for number in (1, 2)
    )
    for number in (1, 2):
        os.ftruncate(number, 0)
        os.lseek(number, 0, os.SEEK_SET)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                actions[case.action](**case.arguments)
            except SystemExit as end:
                status = end.code or 0
            except UserError as error:
                line = str(error)
            except OSError as error:  # as the command line does
                if error.errno not in OF_THE_MACHINE and error.filename is None:
                    raise
                line = f"{error.filename}: {error.strerror}"
            out.flush()
            err.flush()
    except BaseException as error:
        return Verdict(FAILED, kind_of(error), traceback.format_exc()[-6000:])
    printed, complained = ((said / name).read_text(errors="replace") for name in ("out", "err"))
    if line is None and status == 0:
        return judge_acceptance(case, printed, complained)
    return judge_refusal(case, line, status, complained)


def judge_acceptance(case: Case, printed: str, complained: str) -> Verdict:
    """Of what ended without an error: it must have done something."""
    missing = [name for name in case.wants if not (printed.strip() if name == "stdout" else Path(name).exists())]
    if missing:
        return Verdict(FAILED, f"status 0 without {missing[0]}", printed + complained)
    if "Traceback (most recent call last)" in complained:
        return Verdict(FAILED, f"a traceback, and status 0: {complained.strip().splitlines()[-1][:150]}", complained[-6000:])
    return Verdict(ACCEPTED, text=printed[-300:])


def judge_refusal(case: Case, line: str | None, status: Any, complained: str) -> Verdict:
    """Of what was refused: in one line that names a file or a key."""
    if line is None:
        if status not in (2, 3):
            return Verdict(FAILED, f"status {status}", complained[-6000:])
        error = "gantrain: error: "  # other lines of gantrain's own are notes, about the environment
        lines = [one for one in complained.splitlines() if one.strip() and (one.startswith(error) or not one.startswith("gantrain: "))]
        if not lines or not lines[-1].startswith(error):
            return Verdict(FAILED, "refused without a line", complained[-6000:])
        if len(lines) > 1:
            return Verdict(FAILED, f"refused in more than one line: {re.sub(r'[0-9]+', 'N', lines[0])[:150]}", complained[-6000:])
        line = lines[0]
    if "\n" in line or not line.strip():
        return Verdict(FAILED, "refused in more than one line", line)
    if not any(name in line for name in case.names) and not ANY_OPTION.search(line):
        return Verdict(FAILED, f"names neither file nor key: {re.sub(r'[0-9]+', 'N', line)[:100]}", line)
    return Verdict(REFUSED, text=line)


def kind_of(error: BaseException) -> str:
    """The type of an error and the last line of gantrain's in its traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}gantrain{os.sep}" in frame.filename]
    where = f" in {frames[-1].filename.rpartition(os.sep + 'gantrain' + os.sep)[2]}:{frames[-1].name}" if frames else ""
    told = re.sub(r"[0-9]+", "N", str(error).partition("\n")[0])[:120]
    what = f": {told}" if isinstance(error, AssertionError) or not where else ""
    return f"{type(error).__name__}{where}{what}"


def peak(reset: bool = False) -> int:
    """The highest resident memory of this process, in bytes, since it was reset."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # never reset: the worker is soon replaced


def work(jobs: Iterator[tuple[str, Path, Case]], actions: dict[str, Callable[..., Any]], limits: Limits, told: int, said: Path) -> None:
    """Judge one case after the other, each in its folder, and tell the supervisor before and after each."""
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), number)
    at_most = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 + 4 * limits.bytes
    resource.setrlimit(resource.RLIMIT_AS, (at_most, at_most))  # whatever asks for more at once: this machine has other users
    stack = open(said / "stack", "w")  # noqa: SIM115 - as long as the process lives
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR2, stack)
    home = os.getcwd()
    for name, folder, case in jobs:
        os.write(told, json.dumps({"begin": name}).encode() + b"\n")
        os.chdir(folder)
        before = peak(reset=True)
        verdict = judge(case, actions, said)
        used = peak()
        if used > limits.bytes and used > before:
            verdict = Verdict(FAILED, f"memory: {case.action}", f"{used / 2**30:.1f} GiB; {verdict.text}")
        os.chdir(home)
        os.write(told, json.dumps({"end": name, **asdict(verdict)}).encode() + b"\n")


# ---- the supervisor --------------------------------------------------------------------------------------------------


class Supervisor:
    """Runs cases in forked processes.

    Args:
        actions: name -> function.
        limits: of each case.
        folder: where the output of the worker goes.
    """

    def __init__(self, actions: dict[str, Callable[..., Any]], limits: Limits, folder: Path):
        self.actions, self.limits, self.folder = actions, limits, folder

    def run(self, jobs: Callable[[Sequence[str]], Iterator[tuple[str, Path, Case]]]) -> Iterator[tuple[str, Verdict]]:
        """The verdicts on cases.

        Args:
            jobs: yields (name, folder, case), called in the worker; again, with the names that were judged, after one that killed it.
        """
        judged: list[str] = []
        again = True
        while again:
            again = False
            for name, verdict in self._run_in_one(lambda: jobs(judged)):
                judged.append(name)
                again = verdict.kind.startswith(("hang", "memory", "crash"))
                yield name, verdict

    def _run_in_one(self, jobs: Callable[[], Iterator[tuple[str, Path, Case]]]) -> Iterator[tuple[str, Verdict]]:
        """The verdicts of one worker, to its end or to the case that ended it."""
        heard, told = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(heard)
                work(jobs(), self.actions, self.limits, told, self.folder)
                status = 0
            except BaseException:
                (self.folder / "worker").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        os.close(told)
        try:
            yield from self._listen(pid, heard)
        finally:
            os.close(heard)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # with whatever it has started
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _listen(self, pid: int, heard: int) -> Iterator[tuple[str, Verdict]]:
        buffer, current, began = b"", "", 0.0
        while True:
            if select.select([heard], [], [], 0.05)[0]:
                received = os.read(heard, 1 << 16)
                if not received:
                    break
                *lines, buffer = (buffer + received).split(b"\n")
                for line in map(json.loads, lines):
                    if "begin" in line:
                        current, began = line["begin"], clock_of(pid)
                    else:
                        current, name = "", line.pop("end")
                        yield name, Verdict(**line)
            elif current:
                if clock_of(pid) - began > self.limits.seconds:
                    yield current, Verdict(FAILED, f"hang{self._place(pid)}", f"over {self.limits.seconds:g} s\n{self._said()}")
                    return
                if resident(pid) > self.limits.bytes:
                    yield current, Verdict(FAILED, f"memory{self._place(pid)}", f"over {self.limits.bytes / 2**30:g} GiB\n{self._said()}")
                    return
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if current:
            yield current, Verdict(FAILED, f"crash: status {status}", self._said())
        elif status:
            raise RuntimeError(f"the worker has a fault of its own:\n{(self.folder / 'worker').read_text()}")

    def _place(self, pid: int) -> str:
        """Where in gantrain's code a process is; its stack is then among what it has said."""
        os.kill(pid, signal.SIGUSR2)
        time.sleep(0.3)
        found = re.search(rf'"[^"\n]*{os.sep}gantrain{os.sep}([^"\n]+)", line \d+ in (\w+)', self._said())
        return f" in {found[1]}:{found[2]}" if found else ""

    def _said(self) -> str:
        return "".join((self.folder / name).read_text(errors="replace")[-3000:] for name in ("out", "err", "stack"))


def clock_of(pid: int) -> float:
    """Seconds, less those that the process has waited for a CPU."""
    try:
        return time.monotonic() - int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return time.monotonic()


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def emptied(folder: Path) -> Path:
    """The folder, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
