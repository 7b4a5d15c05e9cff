"""A run's dashboard in Weights & Biases: what `Tracker` has it show, on a thread of its own.

W&B is a view of `metrics.jsonl`. Its charts and tables are made of that file, and its pictures of those in the run folder, here
and not in the training's time; what waits for W&B is words and numbers. A call that W&B fails at ends its run with one line.
"""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import functools
import netrc
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from gantrain.config.sections import Wandb
from gantrain.errors import one_line
from gantrain.metrics import SPREADS
from gantrain.reporting.wandb_panels import Table, best_scores, events_table, overview, scores_table, told_by, without_training
from gantrain.run_folder.best_generator import Candidate, candidates, export
from gantrain.run_folder.checkpoint import Damaged
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.record import Record
from gantrain.sampling.sheets import read_side_by_side, regroup_by_class
from gantrain.score_names import better_when_higher

WANDB_PATIENCE = 30  # seconds for W&B to answer at the start
WANDB_WAITING = 4096  # calls that may wait for W&B: a bound on memory
GENERATORS_FOLDER = "wandb/generators"  # of a run: generators that W&B's file of an offline run points to
HELPERS = ("kimg", "updates", "reals_seen", "batch/micro_batch", "eval/num_samples")  # no charts of their own
STAGING_FOLDER = "wandb/data"  # of a run: what W&B would else keep in the home folder of what is yet to be sent
Made = TypeVar("Made")


class WandbRun:
    """A W&B run that cannot stop the training: the first call that fails ends it with one line."""

    def __init__(self, run: Any, module: Any, say: Callable[[str], None]):
        self._run, self._module, self._say = run, module, say
        self._defined: set[str] = set()
        self._missing: set[str] = set()  # what could not be made, each said once
        self._exported: Path | None = None
        self._tables: dict[str, Table] = {}  # as they were logged

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
            run.define_metric("*", step_metric="kimg")
            for key in HELPERS:
                run.define_metric(key, hidden=True, **({} if key == "kimg" else {"step_metric": "kimg"}))
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
                    self._define(key)
            self._run.log(dict(values))  # never with step=: W&B drops what is logged below the highest step

        self._guarded(send)

    def _define(self, key: str) -> None:
        """A score's summary is its best; its spread has no chart."""
        higher = better_when_higher(key)
        if higher is not None:
            self._run.define_metric(key, step_metric="kimg", summary="max" if higher else "min")
        elif key.endswith(SPREADS):
            self._run.define_metric(key, step_metric="kimg", hidden=True)

    def image(self, key: str, path: Path, caption: str, values: Mapping[str, Any]) -> None:
        self._guarded(lambda: self._run.log({key: self._module.Image(str(path), caption=caption), **values}))

    def samples(self, path: Path, classes: Sequence[str], values: Mapping[str, Any]) -> None:
        """Every sheet of a picture, and of every class, a column of the sheets, a picture with a row for each."""
        shown = self._made("samples", lambda: read_side_by_side(path))
        by_class = self._made("samples of classes", lambda: regroup_by_class(shown, classes)) if shown and classes else None
        by_class = [dataclasses.replace(one, caption=f"{one.caption} at {values['kimg']:g} kimg") for one in by_class or ()]
        as_images = lambda all: [self._module.Image(one.picture, caption=one.caption) for one in all]  # noqa: E731
        pictures = {"samples": shown, "samples/classes": by_class}
        if shown:
            self._guarded(lambda: self._run.log({**{key: as_images(all) for key, all in pictures.items() if all}, **values}))

    def overview(self, run_dir: Path, values: Mapping[str, Any]) -> None:
        """The charts and the table of events of the whole record, and its best scores for the summary."""
        found = self._made("overview", lambda: overview(told_by(run_dir)))
        if found:
            figures, tables, best = found
            self._log_made(figures, tables, values, run_dir)
            self.summary(best)

    def conclude(self, run_dir: Path) -> None:
        """What there is to say at the end, however the run has ended: the last scores, the best ones, the best averaged generator."""
        told = self._made("final scores", lambda: without_training(told_by(run_dir)))
        if told is None:
            return
        found = self._made("final scores", lambda: {"events": events_table(told), "final/scores": scores_table(told)})
        if found:
            self._log_made({}, found, {"kimg": told.nimg / 1000}, told.run)
            self.summary(best_scores(told))
        goes_on = [line["event"] for line in told.events("start", "resume", "end", "gave_up", "interrupted")][-1:] == ["interrupted"]
        exported = None if goes_on else self._made("generator", lambda: self._export(told))  # whoever asked for the machine waits
        if exported:
            chosen, self._exported = exported
            self._guarded(functools.partial(self._log_generator, chosen))

    def _export(self, told: Record) -> tuple[Candidate, Path] | None:
        """The best generator whose checkpoint is whole, as a folder; None where there is none."""
        for chosen in candidates(told):
            with contextlib.suppress(Damaged):
                return chosen, export(told.run, chosen, told.run / GENERATORS_FOLDER)
        return None

    def _log_generator(self, chosen: Candidate) -> None:
        artifact = self._module.Artifact(f"generator-{self._run.id}", type="model", metadata=as_json(chosen.described))
        # Immutable: W&B takes the files where they are, instead of a copy in the home folder that an offline run's would go without.
        for path in sorted(path for path in self._exported.absolute().rglob("*") if path.is_file()):  # by add_dir W&B speaks on the console
            artifact.add_file(str(path), name=str(path.relative_to(self._exported.absolute())), policy="immutable", skip_cache=True)
        aliases = dict.fromkeys(["best", chosen.average, f"{chosen.nimg / 1000:g}kimg"])
        self._run.log_artifact(artifact, aliases=list(aliases))

    def _log_made(self, figures: Mapping[str, Any], tables: Mapping[str, Table], values: Mapping[str, Any], run_dir: Path) -> None:
        def send() -> None:
            shown = {key: self._module.Plotly(figure) for key, figure in figures.items()}
            shown |= {key: self._module.Table(columns=columns, data=rows) for key, (columns, rows) in changed.items()}
            if shown:
                with staged_in(run_dir / STAGING_FOLDER):
                    self._run.log({**shown, **values})

        changed = {
            key: table for key, table in tables.items() if table[1] and table != self._tables.get(key)
        }  # W&B keeps each as a version
        self._tables |= changed
        self._guarded(send)

    def _made(self, what: str, make: Callable[[], Made]) -> Made | None:
        """What is made here for W&B; None, and one line, where it cannot be, as on a full disk: the rest goes on."""
        if self._run is None:
            return None
        try:
            return make()
        except Exception as error:
            if what not in self._missing:
                self._missing.add(what)
                self._say(f"wandb: no {what} ({one_line(error)[:160]}); the rest goes on")
            return None

    def summary(self, values: Mapping[str, Any]) -> None:
        self._guarded(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        def close() -> None:
            self._run.finish(exit_code=exit_code)
            if self._exported and not self._run.offline:  # W&B has it
                shutil.rmtree(self._exported, ignore_errors=True)

        self._guarded(close)

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


@contextlib.contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Inside, W&B keeps copies of what it is given in the run folder, unless its user has said where: an offline run is in one place."""
    if os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


# ---- at arm's length -------------------------------------------------------------------------------------------------------


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


HUNG: list[
    threading.Thread
] = []  # threads of W&B that were let go, or have failed: W&B's own end of a process might wait for what they did


def opened(settings: Wandb, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> WandbThread:
    """The W&B run `run_id`, opened or continued on a thread."""
    return WandbThread(functools.partial(WandbRun.start, settings, run_id, config, run_dir, say), settings.patience, say)


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
