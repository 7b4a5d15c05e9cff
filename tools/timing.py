"""Honest timings: variants in turns, in processes of their own where they would disturb each other."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import multiprocessing
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch

from gantrain.errors import UserError
from gantrain.version import __version__

Name = TypeVar("Name")


def seconds_of(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds a call, over some calls."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - begin) / repeats


def seconds_cold(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The same with caches full of something else before every call, as an update leaves them."""
    scratch = torch.zeros(2**26, device=device)  # 256 MiB
    taken = 0.0
    for _ in range(repeats):
        scratch.add_(1.0)
        taken += seconds_of(call, 1, device)
    return taken / repeats


def machine(threads: int | None = None) -> str:
    """The device and its software, for a table's head."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {threads or torch.get_num_threads()} threads"
    )
    return f"{device}; gantrain {__version__}, torch {torch.__version__}"


def versions() -> dict[str, str]:
    """What a figure was measured with, and when."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "accelerate", "torch-fidelity", "numpy")}
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        **packages,
    }


def processor() -> str:
    """The CPU's model as the system knows it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_turns(variants: Mapping[Name, Callable[[], float]], turns: int) -> dict[Name, list[float]]:
    """Every variant's seconds at every turn, A B A B."""
    times: dict[Name, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, measure in variants.items():
            times[name].append(measure())
    return times


class Variant:
    """A piece of work in processes of its own, which wait while others have their turns. What a process sets (memory, threads,
    TF32, precision) is then each variant's own.

    Args:
        work: what each process runs: with a connection to answer on, and `arguments`. It sends facts, then answers to what it is asked.
        threads: of torch, of each process.
        processes: how many, of one group; the first one's answers count.

    Attributes:
        facts: what was sent first.
    """

    def __init__(self, work: Callable[..., None], arguments: tuple, threads: int | None, processes: int = 1):
        spawn, self._all = multiprocessing.get_context("spawn"), []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            group = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(probe.getsockname()[1]),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
            }
        for rank in range(processes):
            ours, theirs = spawn.Pipe()
            # Before it starts: NumPy's libraries look at the number of threads when they are loaded.
            environment = {
                **(group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
                **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
            }
            process = spawn.Process(target=variant_process, args=(work, theirs, arguments, threads), daemon=True)
            with mock.patch.dict(os.environ, environment):
                process.start()
            theirs.close()
            self._all.append((process, ours))
        self.facts = self._answer()

    def ask(self, what: str, number: int = 1) -> Any:
        """What the first process answers, after all have done it."""
        for _, connection in self._all:
            connection.send((what, number))
        return self._answer()

    def end(self) -> None:
        for _, connection in self._all:
            connection.send(None)
        for process, _ in self._all:
            process.join()

    def _answer(self) -> Any:
        try:
            answers = [connection.recv() for _, connection in self._all]
        except EOFError:
            raise UserError("a variant's process has ended; what it said stands above") from None
        for answer in answers:
            if isinstance(answer, str):
                raise UserError(answer)
        return answers[0]


def variant_process(work: Callable[..., None], connection: Connection, arguments: tuple, threads: int | None) -> None:
    """A process of a `Variant`."""
    if threads:
        torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            work(connection, Path(folder), *arguments)
    except UserError as error:
        connection.send(str(error))


def answer(connection: Connection, answers: Mapping[str, Callable[[int], Any]]) -> None:
    """Answer until nothing more is asked, or nobody is left to ask."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (asked := connection.recv()) is not None:
            connection.send(answers[asked[0]](asked[1]))
