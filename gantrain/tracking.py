"""What a run says of itself: a console line, metrics.jsonl, and Weights & Biases.

`metrics.jsonl` is the record of truth: one flushed line an event, so that a kill loses nothing. W&B is a view of it, on a
thread of its own: whether it is slow, fails or hangs, training goes on.
"""
from __future__ import annotations

import configparser
import contextlib
import functools
import json
import math
import netrc
import os
import platform
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from gantrain.errors import OF_THE_MACHINE
from gantrain.lines import LineFile
from gantrain.names import HIGHER_IS_BETTER, METRICS_FILE
from gantrain.plugins import one_line

if TYPE_CHECKING:  # whoever reads a record does not wait for torch
    from gantrain.config import Wandb

SUPERSEDED_FILE = "metrics.superseded.jsonl"
LIBRARIES = ("torch", "torchvision", "accelerate", "torch-fidelity", "numpy", "scipy", "wandb")
WANDB_PATIENCE = 30  # seconds for W&B to answer at the start
WANDB_WAITING = 4096  # calls that may wait for W&B: a bound on memory


class Tracker:
    """Speaks for the run; on every process but the main one it is silent and writes nothing.

    Args:
        run_dir: the run folder.
        enabled: whether this is the main process.
        persistent: keep lines that a full disk does not take until it does, instead of raising.
    """

    def __init__(self, run_dir: Path, enabled: bool = True, persistent: bool = False):
        self.run_dir, self.enabled, self.persistent = run_dir, enabled, persistent
        self.path = run_dir / METRICS_FILE
        self._file: LineFile | None = None
        self._waiting = ""  # lines that are not on disk yet
        self._wandb: WandbThread | None = None

    def open(self, keep_bytes: int = 0) -> None:
        """Open metrics.jsonl for appending after its first `keep_bytes` bytes.

        What stands behind them was written after the checkpoint that the run goes on from, and will be written again; it
        is moved to metrics.superseded.jsonl.
        """
        if not self.enabled:
            return
        self._file = LineFile(self.path, keep_bytes)
        tail = self._file.removed
        if tail:
            with open(self.run_dir / SUPERSEDED_FILE, "ab") as superseded:
                superseded.write(tail if tail.endswith(b"\n") else tail + b"\n")
            self._file.cut()

    def position(self) -> int:
        """Bytes of metrics.jsonl so far, those that wait for room with them; the others are on disk then. What `open` wants after a resume."""
        return self._file.position() + len(self._waiting.encode()) if self._file else 0

    def start_wandb(self, settings: Wandb, run_id: str, config: Mapping[str, Any]) -> None:
        """Open or continue the W&B run `run_id`."""
        if self.enabled and settings.mode != "disabled":
            start = functools.partial(WandbRun.start, settings, run_id, config, self.run_dir, self.say)
            self._wandb = WandbThread(start, settings.patience, self.say)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if not self.enabled:
            return
        try:
            print(f"{text}\n", end="", flush=True)  # in one piece: W&B's thread speaks too
        except BrokenPipeError:  # nobody listens any more; the training goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in OF_THE_MACHINE:  # a log on a full disk: training does not end for it
                raise

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """A line of numbers at `nimg` images."""
        self._write({"nimg": nimg, **values})
        if self._wandb:
            self._wandb.call("log", {"kimg": nimg / 1000, **values})

    def event(self, nimg: int, name: str, shown: str | None = None, /, **fields: Any) -> None:
        """Something that happens once; W&B gets what is `shown` of it."""
        self._write({"nimg": nimg, "event": name, **fields})
        if self._wandb and shown:
            self._wandb.call("log", {"kimg": nimg / 1000, f"event/{name}": shown})

    def growth(self, nimg: int, grown: Mapping[str, Any]) -> str:
        """A growth of the batch, in the record and in W&B; the same in words."""
        words = "batch {from} -> {to}: {reason}".format(**grown)
        self.event(nimg, "growth", words, **grown)
        return words

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """Show a picture that is already on disk."""
        if self._wandb:
            self._wandb.call("image", key, path, caption, {"kimg": nimg / 1000})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run."""
        if self._wandb:
            self._wandb.call("summary", values)

    def close(self, exit_code: int = 0, wait: bool = True) -> None:
        """Let go of everything; `wait` for W&B as long as its patience lasts."""
        if self._wandb:
            self._wandb.finish(exit_code, wait)
            self._wandb = None
        if self._file:
            self._flush(last=True)
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if not self._file:
            return
        self._flush(json.dumps({k: as_json(v) for k, v in line.items()}, allow_nan=False) + "\n")

    def _flush(self, more: str = "", last: bool = False) -> None:
        """Write what waits and more, all or nothing; what cannot be written waits, unless this is the `last` time."""
        waited = bool(self._waiting)
        self._waiting += more
        try:
            self._file.append(self._waiting)
        except OSError as error:
            if not self.persistent or error.errno not in OF_THE_MACHINE:
                self._waiting = ""
                raise type(error)(error.errno, error.strerror, str(self.path)) from error
            if last:
                count, self._waiting = self._waiting.count("\n"), ""
                self.say(f"{self.path}: still cannot be written ({error.strerror}); its last {count} lines are lost")
            elif not waited:
                self.say(f"{self.path}: cannot be written ({error.strerror}); its lines wait in memory for room")
            return
        self._waiting = ""
        if waited:
            self.say(f"{self.path}: can be written again; nothing is lost")


def as_json(value: Any) -> Any:
    """A value for strict JSON: "nan", "inf" and "-inf" as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    return value


class WandbRun:
    """A W&B run that cannot stop the training: the first call that fails ends it with one line."""

    def __init__(self, run: Any, module: Any, say: Callable[[str], None]):
        self._run, self._module, self._say = run, module, say
        self._defined: set[str] = set()

    @classmethod
    def start(cls, settings: Wandb, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> WandbRun | None:
        """Online where that works, else offline; None where neither does."""
        try:
            import wandb

            mode = os.environ.get("WANDB_MODE") or settings.mode
            if mode == "disabled":
                return None
            if mode not in ("offline", "dryrun"):  # W&B's own older words are dryrun and run
                if mode != "auto" and not has_key():
                    say("wandb: no key found, `wandb login` sets one; going on offline")
                mode = "online" if has_key() else "offline"  # without a key, online would ask on the terminal
            arguments = {
                "project": settings.project,
                "entity": settings.entity,
                "name": settings.name or run_dir.name,
                "id": run_id,
                "resume": "allow",
                "dir": str(run_dir),
                "config": dict(config),
                "settings": wandb.Settings(silent=True, console="off", init_timeout=WANDB_PATIENCE),
            }
            if mode == "online":
                say("wandb: connecting ...")
            try:
                run = wandb.init(mode=mode, **arguments)
            except Exception as error:  # no key, no network, no such entity: the run matters more than its dashboard
                if mode == "offline":
                    raise
                say(f"wandb: cannot go online ({one_line(error)[:160]}); going on offline")
                wandb.teardown()
                mode, run = "offline", wandb.init(mode="offline", **arguments)
            run.define_metric("kimg", hidden=True)
            run.define_metric("*", step_metric="kimg")
            say(f"wandb: {run.url}" if mode == "online" else f"wandb: offline; show the run with `wandb sync {Path(run.dir).parent}`")
            return cls(run, wandb, say)
        except Exception as error:
            say(f"wandb: not available ({one_line(error)[:160]}); metrics.jsonl has everything")
            return None

    def log(self, values: Mapping[str, Any]) -> None:
        def send() -> None:
            for key in values:
                if key.startswith("eval/") and key not in self._defined:
                    self._defined.add(key)
                    higher = better_when_higher(key)
                    if higher is not None:
                        self._run.define_metric(key, step_metric="kimg", summary="max" if higher else "min")
            self._run.log(dict(values))  # never with step=: W&B drops what is logged below the highest step

        self._guarded(send)

    def image(self, key: str, path: Path, caption: str, values: Mapping[str, Any]) -> None:
        self._guarded(lambda: self._run.log({key: self._module.Image(str(path), caption=caption), **values}))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._guarded(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        self._guarded(lambda: self._run.finish(exit_code=exit_code))

    @property
    def ended(self) -> bool:
        """Whether a call has failed."""
        return self._run is None

    def _guarded(self, call: Callable[[], Any]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:
            self._run = None
            self._say(f"wandb: stopped ({one_line(error)[:160]}); training goes on, metrics.jsonl has everything")


class WandbThread:
    """A W&B run at arm's length: a thread makes its calls, in order, and nobody waits for it but the end of the run.

    Args:
        start: opens the run; None where it cannot be had.
        patience: seconds that `finish` waits.
        say: receives a line where calls were left out or the end was not waited for.
    """

    def __init__(self, start: Callable[[], WandbRun | None], patience: float, say: Callable[[str], None]):
        self._patience, self._say = patience, say
        self._calls: queue.Queue[tuple[str, tuple]] = queue.Queue(WANDB_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, args=(start,), name="wandb", daemon=True)
        self._thread.start()

    def _run(self, start: Callable[[], WandbRun | None]) -> None:
        run = start()
        while run is not None:
            name, arguments = self._calls.get()
            getattr(run, name)(*arguments)
            if name == "finish":
                return
            if run.ended:
                HUNG.append(self._thread)
                return

    def call(self, name: str, *arguments: Any) -> None:
        """Have a method of the run called, some time."""
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait((name, arguments))
        except queue.Full:
            if not self._dropped:
                self._say("wandb: does not keep up; what comes while it is behind is left out there, metrics.jsonl has everything")
            self._dropped += 1

    def finish(self, exit_code: int, wait: bool = True) -> None:
        """Have the run closed when all calls are made, or let go of it when that takes too long, or at once unless `wait`."""
        if not wait:
            if self._thread.is_alive():
                HUNG.append(self._thread)
            return
        until = time.monotonic() + self._patience
        while self._thread.is_alive() and time.monotonic() < until:
            with contextlib.suppress(queue.Full):  # of calls that are being made
                self._calls.put(("finish", (exit_code,)), timeout=min(0.1, self._patience))
                break
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            HUNG.append(self._thread)
            self._say(f"wandb: did not take everything within {self._patience:g} seconds and is let go; metrics.jsonl has everything")


HUNG: list[threading.Thread] = []  # threads of W&B that were let go, or have failed: W&B's own end of a process might wait for what they did


def has_key() -> bool:
    """Whether W&B has a key to log in with, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    saved = configparser.ConfigParser()
    saved.read(Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser() / "settings")
    url = os.environ.get("WANDB_BASE_URL") or saved.get("default", "base_url", fallback=wandb.Settings().base_url)
    hosts = [urlparse(url).netloc, *(["api.wandb.ai"] if url == wandb.Settings().base_url else [])]
    if os.environ.get("NETRC"):
        path = Path(os.environ["NETRC"]).expanduser()
    else:
        path = next((p for p in (Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()) if p.exists()), None)
    try:
        known = netrc.netrc(path) if path else None
    except (netrc.NetrcParseError, OSError):
        return False
    return known is not None and any((known.authenticators(host) or ("", "", ""))[2] for host in hosts)


def new_run_id() -> str:
    return uuid.uuid4().hex[:8]


def utc_now() -> str:
    """The time of day for the record, such as 2026-01-31T12:00:00Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Python and the libraries that numbers depend on, without importing any of them."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def better_when_higher(key: str) -> bool | None:
    """For a key such as eval/ema/digits_fid: whether higher is better; None where it is no score."""
    name = key.rpartition("/")[2]
    for metric, higher in HIGHER_IS_BETTER.items():
        if name == metric or name.endswith("_" + metric):
            return higher
    return None


class Progress:
    """The console line: where the run is, how fast, and how long it will take."""

    def __init__(self, total_nimg: int, nimg: int):
        self.total, self.started_at, self.start = total_nimg, time.monotonic(), nimg
        self.last_time, self.last_nimg = self.started_at, nimg
        self.aside = self.all_aside = 0.0
        self.seconds = 0.0  # of training between the last two lines

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not spent on training: it counts neither in the rate nor in what is to go."""
        began = time.monotonic()
        yield
        self.aside += time.monotonic() - began

    def back_to(self, nimg: int) -> None:
        """The run goes on from fewer images; those done beyond them count in how fast it is, not in how far."""
        self.start -= self.last_nimg - nimg
        self.last_nimg = nimg

    def line(self, nimg: int, values: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """(line, what it says of time, for the record: images per second since the line before, seconds since the start, seconds to go)."""
        now = time.monotonic()
        self.seconds = max(now - self.last_time - self.aside, 1e-9)
        times = {"throughput/img_per_s": (nimg - self.last_nimg) / self.seconds, "throughput/elapsed_s": now - self.started_at}
        self.all_aside, self.aside = self.all_aside + self.aside, 0.0
        overall = (nimg - self.start) / max(now - self.started_at - self.all_aside, 1e-9)
        if overall > 0:
            times["throughput/left_s"] = max(0, self.total - nimg) / overall
        self.last_time, self.last_nimg = now, nimg
        return console_line(nimg, self.total, {**values, **times}), times


def console_line(nimg: int, total: int, values: Mapping[str, float]) -> str:
    """A line of losses as the console has it, from what the record has: every column as wide as that of any other line of a run.

    Args:
        nimg, total: images seen, and in the whole run.
        values: a training line of metrics.jsonl; what it lacks is nan, or ? where it is a time.
    """
    of = lambda key, width, decimals: fixed(values.get(key, math.nan), width, decimals)  # noqa: E731
    elapsed, left = (duration(values[key]) if key in values else "?" for key in ("throughput/elapsed_s", "throughput/left_s"))
    return (
        f"{nimg / 1000:9.1f} kimg {min(1.0, nimg / total):4.0%} | {elapsed:>7} + {left:>7} to go | {of('throughput/img_per_s', 6, 0)} img/s"
        f" | loss D {of('loss/d', 6, 3)} G {of('loss/g', 6, 3)} | D(real) {of('logits/real', 6, 2)} D(fake) {of('logits/fake', 6, 2)}"
        f" | batch {of('batch/size', 5, 0).strip():<5} | {of('memory/gib', 5, 1)} GiB{noise_in_words(values)}"
    )


def fixed(value: float, width: int, decimals: int) -> str:
    """A number flush right in so many characters: with fewer decimals where it is large, as a power of ten where it is larger."""
    for places in range(decimals, -1, -1):
        text = f"{value:{width}.{places}f}"
        if len(text) == width:
            return text
    return f"{value:.0e}".rjust(width)


def noise_in_words(values: Mapping[str, float]) -> str:
    """The noise scale of either player in images, for the end of the console line; nothing where none is measured."""
    measured = [player for player in ("D", "G") if f"noise_scale/{player}/undecidable" in values]
    cells = [f" {p} {'?' if values[f'noise_scale/{p}/undecidable'] else fixed(values[f'noise_scale/{p}/b_simple'], 6, 0).strip():<6}" for p in measured]
    return (" | noise" + "".join(cells)).rstrip() if cells else ""


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s, 2h07m or 4d03h."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
