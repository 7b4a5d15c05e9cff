"""Processes that decode images in advance: whether the system allows them, and what to do when it has killed one."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from gantrain.errors import UserError, counted, in_words

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # checked before each use

T = TypeVar("T")
FILES_EACH, FILES_BESIDE = 16, 64  # open files of a worker (pipes, and batches that are passed on), and of everything else
PREFETCH = 4  # batches that each worker has ready
SHARED = "/dev/shm"
MOST_PER_CORE, MOST = 16, 256  # more workers than this are a mistake
LIVES, SPAN = 3, 600.0  # a worker that is killed is replaced, but not for the third time within 10 minutes
REMEDY = "lower data.workers"
logger = logging.getLogger(__name__)


def require_workers(workers: int, batch_bytes: int) -> None:
    """Refuse workers that the system does not allow. The limit on open files is raised where that is allowed.

    Args:
        workers: processes of this training process.
        batch_bytes: of a micro-batch, which a worker passes on in shared memory.

    Raises:
        UserError: names data.workers, the need, and the limit.
    """
    cores = os.cpu_count() or 1
    most = max(MOST, MOST_PER_CORE * cores)
    if workers > most:
        raise UserError(f"data.workers: {workers} are too many for the {counted(cores, 'core')} of this machine; use at most {most}")
    files = FILES_BESIDE + FILES_EACH * workers
    allowed = raise_file_limit(files)
    if workers and allowed is not None and allowed < files:
        possible = max((allowed - FILES_BESIDE) // FILES_EACH, 0)
        raise UserError(
            f"data.workers: {workers} need about {files} open files, and this process may have {allowed}; raise the limit"
            f" (ulimit -n {files}) or set data.workers={possible}"
        )
    with contextlib.suppress(OSError, AttributeError):  # another system
        found = os.statvfs(SHARED)
        size, needed = found.f_frsize * found.f_blocks, workers * PREFETCH * batch_bytes
        if 0 < size < needed:
            raise UserError(
                f"data.workers: {workers} pass {in_words(needed)} of images on through {SHARED}, which has {in_words(size)};"
                f" enlarge it (docker run --shm-size=...), {REMEDY} or batching.micro_batch"
            )


def raise_file_limit(needed: int) -> int | None:
    """Raise the soft limit on open files to `needed` if the hard one allows it; the limit then, None if there is none."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if wanted > soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class SteadyWorkers(Generic[T]):
    """Batches from worker processes. A worker that the system kills is replaced, and no batch is lost or comes twice.

    Args:
        start: makes the batches from a given number on, with new workers.
        workers: number of them.
    """

    def __init__(self, start: Callable[[int], Iterator[T]], workers: int):
        self._start, self.workers = start, workers
        self._turn = 0
        self._deaths: list[float] = []
        self._open()

    def next(self) -> T:
        """The next batch.

        Raises:
            UserError: workers are killed again and again.
        """
        while True:
            try:
                batch = next(self._batches)
            except (RuntimeError, OSError, EOFError) as error:  # OSError and EOFError: a batch that it was passing on
                if not self.workers:
                    raise  # the data set's own
                ended = multiprocessing.connection.wait([one.sentinel for one in self._processes], timeout=1)  # its connection ends first
                for one in self._processes:
                    if one.sentinel in ended:
                        one.join(5)  # its status is there a moment after its files are closed
                dead = [one for one in self._processes if not one.is_alive()]
                lost = isinstance(error, (ConnectionError, EOFError)) and not str(error).startswith("Caught ")  # in the data set
                if not dead and not lost:
                    raise
                error.__traceback__ = None  # it would keep the old workers
                self._replace(dead[0].exitcode if dead else None)
            else:
                self._turn += 1
                return batch

    def _open(self) -> None:
        before = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
                self._batches = self._start(self._turn)
        except OSError as error:
            end_processes(set(multiprocessing.active_children()) - before)
            raise UserError(
                f"data.workers: cannot start {counted(self.workers, 'worker')} ({error.strerror or error}); {REMEDY}, or raise"
                " the limits on processes and open files (ulimit -u, ulimit -n)"
            ) from None
        finally:
            # torch's handler raises in whatever runs when a worker dies, such as in the middle of an update; `next` notices it too.
            with contextlib.suppress(ValueError, AttributeError, TypeError):  # another thread, or Windows
                signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
        self._processes: set[BaseProcess] = set(multiprocessing.active_children()) - before
        # Python's exit would wait for workers that a traceback keeps, and that ignore the SIGTERM which it sends.
        self._end = multiprocessing.util.Finalize(self, end_processes, (self._processes,), exitpriority=1)

    def _replace(self, status: int | None) -> None:
        """Start new workers at the batch that is due."""
        what, remedy = words_of_death(status)
        now = time.monotonic()
        self._deaths = [*(at for at in self._deaths if now - at < SPAN), now]
        self._end()  # those that live may wait for a lock that the dead one holds
        self.close()
        if len(self._deaths) >= LIVES:
            raise UserError(
                f"data.workers: {counted(len(self._deaths), 'worker')} in {SPAN / 60:g} min ended ({what}); {remedy}; run the same"
                " command to resume from the last checkpoint"
            )
        logger.warning(f"gantrain: data: a worker ended ({what}) and is replaced; if this happens again, {remedy}")
        self._open()

    def close(self) -> None:
        """End the workers, also those whose batches something else still refers to, such as the traceback of an error."""
        self._batches = iter(())  # usually ends them in order
        self._end()


def words_of_death(status: int | None) -> tuple[str, str]:
    """Why a worker ended, and what to do."""
    number = -status if status is not None and status < 0 else 0
    name = signal.Signals(number).name if number in set(signal.Signals) else f"status {status}" if status else "without a status"
    if name == "SIGBUS":
        return f"{name}: {SHARED} is full", f"enlarge {SHARED} (docker run --shm-size=...), {REMEDY} or batching.micro_batch"
    if name == "SIGKILL":
        return f"{name}, as by the system when memory runs out", f"{REMEDY}, or give the job more memory"
    return name, f"{REMEDY}; data.workers=0 decodes in the training process"


def end_processes(processes: set[BaseProcess]) -> None:
    """Kill processes that nobody needs any more."""
    for one in processes:
        one.kill()
    for one in processes:
        one.join(5)


def bytes_of_batch(micro_batch: int, channels: int, resolution: int) -> int:
    """Bytes of a micro-batch of uint8 images with int64 labels."""
    return micro_batch * (channels * resolution**2 + 8)
