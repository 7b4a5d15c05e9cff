"""The processes of a group hear of each other's end, whatever stage they are in.

A launcher ends the other processes when one fails. Without one, as under SLURM's srun, they would wait in a collective operation for two
hours, or end with a traceback of gloo. So each process keeps a connection to the main one from its start to its end: a failed process
says its exit status, and one that was killed closes its connection. The main process listens on MASTER_PORT; every message is one line.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gantrain.command_signals import owns_process
from gantrain.errors import UserError, counted
from gantrain.launch_environment import Place, resolve_address

JOIN = "GANTRAIN_JOIN_SECONDS"  # how long processes wait for each other at the start
DEFAULT_JOIN = 600.0
NOTE_AFTER = 15.0  # seconds of waiting until a process says whom it waits for
GRACE = 30.0  # seconds that a process has to end by itself after another has failed
EARLY_GRACE = 2.0  # the same while the group forms, when there is nothing to finish
LINGER = 5.0  # seconds that a process which fails at its start waits for the others, to tell them why
NEWS = 3.0  # seconds to wait for the message that says why a connection of torch broke
RETRY = 0.25  # seconds between two attempts to connect
LONGEST_MESSAGE = 100  # bytes of a message
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 6}  # a machine that lost its power is noticed after 3 minutes
AGAIN = "run the same command to resume from the last checkpoint, if there is one"


@dataclass(frozen=True)
class Failure:
    """How another process ended.

    Attributes:
        rank: of the process.
        status: its exit status; None if it ended without a message.
    """

    rank: int
    status: int | None

    @property
    def exit_status(self) -> int:
        """The exit status of the processes that end because of it."""
        return 1 if self.status is None else self.status

    def in_words(self) -> str:
        """One line for the other processes."""
        if self.status is None:
            return f"process {self.rank} was killed or crashed; see its output and the system's log, such as for a lack of memory; {AGAIN}"
        if self.status in (75, 130):
            return f"process {self.rank} was stopped; {AGAIN}"
        return "another process failed; see its error message"


class ProcessWatch:
    """The connections of one process to the others.

    Args:
        place: of this process in the group.
    """

    def __init__(self, place: Place):
        self.place = place
        self.failure: Failure | None = None  # the first of another process
        self.problem: str | None = None  # why the processes cannot join; completes a UserError
        self._news = threading.Condition()
        self._peers: dict[int, socket.socket] = {}  # the other processes on the main one; {0: it} elsewhere
        self._gone: set[int] = set()  # those that have ended in order
        self._store = 0
        self._standing_down = self._closed = False
        self.formed = False  # whether torch's group has been formed, which its maker says
        self._server: socket.socket | None = None
        if place.rank == 0:
            resolve_address(place)
            self._server = _listening(place.port)
            _require_own(place)
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._forget)  # or a data worker would keep the connections of a killed process open
        threading.Thread(target=self._serve if self._server else self._follow, name="process watch", daemon=True).start()

    # ---- joining -----------------------------------------------------------------------------------------------------

    def wait_for_all(self, note: Callable[[str], None]) -> None:
        """On the main process: wait until all processes have connected.

        Args:
            note: called with a line if it takes long.

        Raises:
            UserError: a process did not come.
        """

        def missing() -> str:
            absent = sorted(set(range(1, self.place.world)) - self._peers.keys() - self._gone)
            return ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")

        self._wait(
            lambda: len(self._peers) + len(self._gone) >= self.place.world - 1,
            lambda: f"the process{'' if missing().isdigit() else 'es'} with RANK={missing()}, at MASTER_PORT={self.place.port}",
            f"start all {counted(self.place.world, 'process', 'es')}, or set WORLD_SIZE to how many there are",
            "WORLD_SIZE",
            note,
        )

    def publish_store(self, port: int) -> None:
        """On the main process: tell the others the port of torch's store."""
        with self._news:
            self._store = port
            for rank in list(self._peers):
                self._send(rank, f"store {port}")

    def wait_for_store(self, note: Callable[[str], None]) -> int:
        """On the other processes: wait for the main one; the port of torch's store.

        Raises:
            UserError: it did not come, or this process does not fit its group.
        """
        place = self.place
        who = f"the process with RANK=0 at MASTER_ADDR={place.address}, MASTER_PORT={place.port}"
        remedy = "start it, and set MASTER_ADDR to its host and MASTER_PORT to a port that this machine can reach"
        self._wait(lambda: self._store > 0, lambda: who, remedy, "MASTER_ADDR", note)
        return self._store

    def _wait(
        self, done: Callable[[], bool], who: Callable[[], str], remedy: str, variable: str, note: Callable[[str], None]
    ) -> None:  # fmt: skip
        limit, began, noted = join_seconds(), time.monotonic(), False
        while True:
            with self._news:
                self._news.wait_for(lambda: done() or self.problem or self.failure, 0.2)  # short, so that signals are seen
                if self.problem:
                    raise UserError(self.problem)
                if self.failure:
                    raise PeerFailed(self.failure.in_words(), self.failure.exit_status)
                if done():
                    return
            passed = time.monotonic() - began
            if passed > limit:
                raise UserError(f"{variable}: {who()} did not come within {limit:g} s; {remedy} ({JOIN} sets how long to wait)")
            if passed > NOTE_AFTER and not noted:
                noted = True
                note(f"waiting for {who()}, for at most {limit:g} s")

    # ---- ending ------------------------------------------------------------------------------------------------------

    def stand_down(self) -> None:
        """This process is about to end by itself, after it has closed what is open: no thread may end it before."""
        self._standing_down = True

    def end(self, status: int, failed: bool) -> None:
        """Tell the others how this process ends, and close the connections.

        Args:
            status: its exit status.
            failed: whether the others must end because of it.
        """
        self.stand_down()
        if failed and not self._store:  # at the start, where some may not be there yet
            with self._news:
                self._news.wait_for(self._all_know, LINGER)
        with self._news:
            self._closed = True
            for rank in list(self._peers):
                self._send(rank, f"failed {self.place.rank} {status}" if failed else "bye")
            self._forget()

    def _all_know(self) -> bool:
        """Whether all that have to hear of a failure are connected, or have ended."""
        if self.place.rank:
            return bool(self._peers or self._gone or self.failure or self.problem)
        return len(self._peers) + len(self._gone) >= self.place.world - 1

    def wait_for_news(self) -> Failure | None:
        """The failure of another process, which may be known a moment after its connections break."""
        with self._news:
            self._news.wait_for(lambda: self.failure is not None, NEWS)
        return self.failure

    def _forget(self) -> None:
        for one in (*self._peers.values(), *([self._server] if self._server else [])):
            with contextlib.suppress(OSError):
                one.close()

    def _fail(self, failure: Failure) -> None:
        """Note the failure of another process, and end this one if it does not end by itself."""
        with self._news:
            if self._closed or self.failure:
                return
            self.failure = failure
            self._news.notify_all()
            for rank in list(self._peers):
                if self.place.rank == 0 and rank != failure.rank:
                    self._send(rank, f"failed {failure.rank} {'lost' if failure.status is None else failure.status}")
        threading.Thread(target=self._end_process, args=(failure,), daemon=True).start()

    def _end_process(self, failure: Failure) -> None:
        time.sleep(GRACE if self.formed else EARLY_GRACE)
        if not self._standing_down and owns_process():  # a script that uses gantrain decides for itself
            sys.stderr.write(f"gantrain: error: process {self.place.rank}: {failure.in_words()}\n")
            sys.stderr.flush()
            os._exit(failure.exit_status)

    def _send(self, rank: int, line: str) -> None:
        with contextlib.suppress(OSError):  # it has just ended, and so has its connection
            self._peers[rank].sendall(line.encode() + b"\n")

    # ---- threads -----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """On the main process: accept the others and listen to them."""
        assert self._server
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:  # closed by `end`
            selector.register(self._server, selectors.EVENT_READ)
            heard: dict[socket.socket, bytes] = {}
            while not self._closed:
                for key, _ in selector.select(0.5):
                    if key.fileobj is self._server:
                        one, _ = self._server.accept()
                        _keep_alive(one)
                        heard[one] = b""
                        selector.register(one, selectors.EVENT_READ)
                        continue
                    one = key.fileobj  # type: ignore[assignment]  # all that is registered is a socket
                    received = _received(one)
                    *lines, heard[one] = (heard[one] + received).split(b"\n")
                    for line in lines:
                        self._hear(one, line.decode("ascii", "replace").split())
                    if not received or len(heard[one]) > LONGEST_MESSAGE:
                        selector.unregister(one)
                        self._lose(one)

    def _follow(self) -> None:
        """On the other processes: connect to the main one, and listen to it."""
        place = self.place
        try:
            resolve_address(place)
        except UserError as error:
            with self._news:
                self.problem = str(error)
                self._news.notify_all()
            return
        deadline, one = time.monotonic() + join_seconds(), None
        while one is None and time.monotonic() < deadline and not self._closed:
            try:
                one = socket.create_connection((place.address, place.port), timeout=5)
            except OSError:
                time.sleep(RETRY)
        if one is None:
            return
        one.settimeout(None)
        _keep_alive(one)
        with self._news:
            if self._closed:
                one.close()
                return
            self._peers[0] = one
            self._send(0, f"hello {place.rank} {place.world}")
            self._news.notify_all()
        heard = b""
        while received := _received(one):
            *lines, heard = (heard + received).split(b"\n")
            for line in lines:
                self._hear(one, line.decode("ascii", "replace").split())
            if len(heard) > LONGEST_MESSAGE:
                break
        if self._store or not self.problem:
            self._lose(one)

    def _hear(self, one: socket.socket, words: list[str]) -> None:
        """Act on a message; anything else is ignored, since anybody may connect to a port."""
        name, numbers = (words or [""])[0], [int(word) for word in words[1:] if word.isdecimal() and len(word) < 10]
        rank = next((rank for rank, peer in self._peers.items() if peer is one), None)
        if name == "hello" and self.place.rank == 0 and rank is None and len(numbers) == 2:
            self._welcome(one, *numbers)
        elif rank is None:
            return
        elif name == "failed" and len(words) == 3 and numbers:
            self._gone.add(rank)
            self._fail(Failure(numbers[0], numbers[1] if len(numbers) == 2 else None))
        elif name == "bye":
            with self._news:
                self._gone.add(rank)
        elif name == "store" and numbers:
            with self._news:
                self._store = numbers[0]
                self._news.notify_all()
        elif name == "refused":
            with self._news:
                self.problem = REFUSALS.get(words[1] if len(words) > 1 else "", "RANK: {} does not fit the group").format(
                    self.place.rank, *(numbers or [0]), mine=self.place.world
                )
                self._news.notify_all()

    def _welcome(self, one: socket.socket, rank: int, world: int) -> None:
        with self._news:
            wrong = "world" if world != self.place.world else "twice" if rank == 0 or rank in self._peers or rank in self._gone else None
            if wrong:
                with contextlib.suppress(OSError):
                    one.sendall(f"refused {wrong} {self.place.world}\n".encode())
                return
            self._peers[rank] = one
            if self._store:
                self._send(rank, f"store {self._store}")
            if self.failure:
                self._send(rank, f"failed {self.failure.rank} {'lost' if self.failure.status is None else self.failure.status}")
            self._news.notify_all()

    def _lose(self, one: socket.socket) -> None:
        """A connection has ended: without a message before it, so has the process."""
        with self._news:
            rank = next((rank for rank, peer in self._peers.items() if peer is one), None)
            if not self._closed:
                one.close()
            if rank is not None:
                del self._peers[rank]
        if rank is not None and rank not in self._gone:
            self._gone.add(rank)
            self._fail(Failure(rank, None))


REFUSALS = {
    "twice": "RANK: two processes have RANK={0}; give each process its own, from 0 to {mine} - 1",
    "world": "WORLD_SIZE: {mine} here, but {1} on the process with RANK=0; set it to the number of processes, on all of them",
}


class PeerFailed(UserError):
    """Another process has failed, for which this one would wait forever.

    Args:
        text: of the message.
        exit_status: of this process.
    """

    of_another = True

    def __init__(self, text: str, exit_status: int):
        super().__init__(text)
        self._exit_status = exit_status

    @property
    def exit_status(self) -> int:
        """That of the process that has failed, or 1."""
        return self._exit_status


def join_seconds() -> float:
    """How long processes wait for each other at the start."""
    try:
        value = float(os.environ.get(JOIN) or DEFAULT_JOIN)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(f"{JOIN}: must be a number of seconds above 0, got {os.environ[JOIN]!r}; unset it for {DEFAULT_JOIN:g}")
    return value


def _listening(port: int) -> socket.socket:
    """A socket that accepts connections from all machines.

    Raises:
        UserError: the port is in use, or reserved.
    """
    try:
        both = socket.has_dualstack_ipv6()
        server = socket.create_server(
            ("::" if both else "", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(f"MASTER_PORT: cannot listen on {port} ({why}); set it to a free port from 1024 to 65535") from None
    return server


def _require_own(place: Place) -> None:
    """Refuse an address where the main process cannot reach itself.

    Raises:
        UserError: MASTER_ADDR is another machine, or is behind a firewall.
    """
    try:
        socket.create_connection((place.address, place.port), timeout=10).close()
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"MASTER_ADDR: {place.address!r} does not lead to this process, which has RANK=0 ({why}); set it to the host of this process"
        ) from None


def _keep_alive(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # of Linux
            with contextlib.suppress(OSError):
                one.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _received(one: socket.socket) -> bytes:
    """What has come; nothing if the connection has ended."""
    try:
        return one.recv(4096)
    except (OSError, ValueError):
        return b""
