"""Processes of the `gantrain` command without the seconds that imports take: each is forked off one that has imported everything.

That one has done nothing else, so that what it forks off is a process as the command line would start it, with a life of its own:
signals, files, threads, exit status. `Spawned` is to a test what `subprocess.Popen` is.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Spawner:
    """Starts processes, which are children of the one that has imported everything."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
        ours, theirs = socket.socketpair()
        self._server = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._socket, self._heard = ours, b""
        self._ended: dict[int, int] = {}

    def spawn(self, task: dict) -> int:
        """Start what a task says; its process number."""
        self._socket.sendall(json.dumps(task).encode() + b"\n")
        while True:
            for said in self._listen():
                if "started" in said:
                    return said["started"]

    def status(self, pid: int) -> int | None:
        """What a process has ended with; negative for a signal, None while it runs."""
        while pid not in self._ended and select.select([self._socket], [], [], 0)[0]:
            self._listen()
        return self._ended.get(pid)

    def _listen(self) -> list[dict]:
        """All that the server has said since, at least a part of a line; waits for it.

        No buffered file: `select` knows nothing of a second line that such a file holds, where two processes end in one moment.
        """
        received = self._socket.recv(65536)
        if not received:
            raise RuntimeError("the process that starts the others has ended")
        *lines, self._heard = (self._heard + received).split(b"\n")
        said = [json.loads(line) for line in lines]
        self._ended |= {one["ended"]: one["status"] for one in said if "ended" in one}
        return said

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._server.wait()


class Spawned:
    """A process, as `subprocess.Popen` has it, with its output in files.

    Args:
        arguments: behind `python`: a script, `-m MODULE` or `-c CODE`, and what it is given.
        environment: all of it.
        largest: bytes that a file of its may have, as on a disk that is full then.
    """

    def __init__(self, arguments: Sequence[object], environment: Mapping[str, str], largest: int | None = None):
        self.args, self._spawner = list(map(str, arguments)), spawner()
        self._folder = Path(tempfile.mkdtemp(prefix="spawned-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for name in ("out", "err"):
            (self._folder / name).touch()
        task = {
            "arguments": self.args,
            "environment": dict(environment),
            "out": str(self._folder / "out"),
            "err": str(self._folder / "err"),
            "largest": largest,
        }
        self.pid = self._spawner.spawn(task)

    @property
    def returncode(self) -> int | None:
        return self._spawner.status(self.pid)

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the word of it is on its way
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout, self.output(), self.errors())
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self.output(), self.errors()

    def output(self) -> str:
        """What it has written so far."""
        return (self._folder / "out").read_text()

    def errors(self) -> str:
        return (self._folder / "err").read_text()


@functools.cache
def spawner() -> Spawner:
    """The one of this process."""
    one = Spawner()
    atexit.register(one.close)
    return one


def run(
    arguments: Sequence[object], environment: Mapping[str, str], largest: int | None = None, timeout: float = 200
) -> subprocess.CompletedProcess:
    """A process, to its end."""
    process = Spawned(arguments, environment, largest)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def together(
    processes: int, arguments: Sequence[object], environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess:
    """So many processes of one group, as a launcher starts them: when one fails, the others are ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [Spawned(arguments, {**environment, **group, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(processes)]
    deadline = time.monotonic() + timeout
    while None in (statuses := [rank.poll() for rank in ranks]):
        if any(statuses) or time.monotonic() > deadline:
            for rank in ranks:
                rank.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    status = next((s for s in statuses if s), 0)
    return subprocess.CompletedProcess(ranks[0].args, status, "".join(r.output() for r in ranks), "".join(r.errors() for r in ranks))


def serve(connection: socket.socket) -> None:
    """Fork off what is asked for, and say what became of it. In a process forked off this returns, at its end, by SystemExit."""
    import accelerate  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch._dynamo
    import torch.distributed.tensor  # noqa: F401

    import gantrain.cli
    import gantrain.training.trainer  # noqa: F401

    gc.collect()
    gc.freeze()  # what was imported is not looked through again in every process
    connection.setblocking(True)
    waiting = b""
    while True:
        ready = select.select([connection], [], [], 0.01)[0]
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                tell(connection, {"ended": ended[0], "status": os.waitstatus_to_exitcode(ended[1])})
        if not ready:
            continue
        received = connection.recv(65536)
        if not received:
            return
        waiting += received
        while b"\n" in waiting:
            line, waiting = waiting.split(b"\n", 1)
            task = json.loads(line)
            pid = os.fork()
            if pid == 0:
                connection.close()
                become(task)
            tell(connection, {"started": pid})


def tell(connection: socket.socket, what: dict) -> None:
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(json.dumps(what).encode() + b"\n")


def become(task: dict) -> None:
    """Be the process that was asked for, to its end."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background ignores it
    if task["largest"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it anyway
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["largest"], resource.RLIM_INFINITY))
    script, *rest = task["arguments"]
    paths = [p for p in task["environment"].get("PYTHONPATH", "").split(os.pathsep) if p]
    if script == "-m":
        sys.path[:0] = ["", *paths]
        name, *rest = rest
        sys.argv = [name, *rest]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif script == "-c":
        sys.path[:0] = ["", *paths]
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[:0] = [str(Path(script).parent), *paths]
        sys.argv = [script, *rest]
        runpy.run_path(script, run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
