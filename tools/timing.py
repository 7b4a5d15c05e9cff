"""Timing helpers: variants are measured alternately, and in separate processes if they would disturb each other."""

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
    """Returns the seconds per call, averaged over `repeats` calls."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - begin) / repeats


def seconds_cold(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """As `seconds_of`, but with the caches flushed before every call, as they are after a training update."""
    scratch = torch.zeros(2**26, device=device)  # 256 MiB
    taken = 0.0
    for _ in range(repeats):
        scratch.add_(1.0)
        taken += seconds_of(call, 1, device)
    return taken / repeats


def machine(threads: int | None = None) -> str:
    """Describes the device and its software, for the head of a table."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {threads or torch.get_num_threads()} threads"
    )
    return f"{device}; gantrain {__version__}, torch {torch.__version__}"


def versions() -> dict[str, str]:
    """Returns the date, machine and package versions of a measurement."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "accelerate", "torch-fidelity", "numpy")}
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        **packages,
    }


def processor() -> str:
    """Returns the CPU model, as the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_turns(variants: Mapping[Name, Callable[[], float]], turns: int) -> dict[Name, list[float]]:
    """Measures all variants alternately (A B A B ...). Returns the seconds of every variant in every turn."""
    times: dict[Name, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, measure in variants.items():
            times[name].append(measure())
    return times


class Variant:
    """A piece of work in its own processes, which wait while other variants are measured.

    So process-wide settings (memory, threads, TF32, precision) do not leak from one variant to another.

    Args:
        work: what each process runs, given a connection to answer on, a temporary folder and `arguments`. It first sends its facts,
            then answers requests.
        threads: number of torch threads of each process.
        processes: number of processes, in one process group; the answers of the first one are returned.

    Attributes:
        facts: what the first process sent first.
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
            # The environment must be set before the process starts: NumPy's libraries read the number of threads when they load.
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
        """Sends a request to all processes. Returns the answer of the first one after all have answered."""
        for _, connection in self._all:
            connection.send((what, number))
        return self._answer()

    def end(self) -> None:
        """Stop the processes."""
        for _, connection in self._all:
            connection.send(None)
        for process, _ in self._all:
            process.join()

    def _answer(self) -> Any:
        try:
            answers = [connection.recv() for _, connection in self._all]
        except EOFError:
            raise UserError("the process of a variant failed; see its error message above") from None
        for answer in answers:
            if isinstance(answer, str):
                raise UserError(answer)
        return answers[0]


def variant_process(work: Callable[..., None], connection: Connection, arguments: tuple, threads: int | None) -> None:
    """The main function of a process of a `Variant`."""
    if threads:
        torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            work(connection, Path(folder), *arguments)
    except UserError as error:
        connection.send(str(error))


def answer(connection: Connection, answers: Mapping[str, Callable[[int], Any]]) -> None:
    """Answer requests until None is received or the connection is closed."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (asked := connection.recv()) is not None:
            connection.send(answers[asked[0]](asked[1]))
