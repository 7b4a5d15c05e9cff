"""The view of a run in Weights & Biases, on a thread of its own.

Its charts and tables are made of `metrics.jsonl`, and its pictures of those in the run folder, on the thread and not in the
training's time; what waits for W&B is words and numbers. A call that W&B fails at ends its run with one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gantrain.config.sections import Wandb
from gantrain.errors import one_line
from gantrain.palette import MARKS
from gantrain.reporting.view_thread import ViewThread
from gantrain.reporting.wandb_key import has_key
from gantrain.reporting.wandb_panels import Rows, best_scores, events_table, overview, scores_table, told_by, without_training
from gantrain.run_folder.best_generator import Candidate, candidates, export
from gantrain.run_folder.checkpoint import Damaged
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.record import Record
from gantrain.sampling.sheets import read_side_by_side, regroup_by_class
from gantrain.score_names import SPREADS, better_when_higher

WANDB_PATIENCE = 30  # seconds for W&B to answer at the start
GENERATORS_FOLDER = "wandb/generators"  # of a run: generators that the files of offline runs point to
SHOWN = (*MARKS, "warning", "gave_up", "not_written")  # events that it is sent; starts and ends it knows by itself
HELPERS = ("kimg", "updates", "reals_seen", "batch/micro_batch", "eval/num_samples")  # no charts of their own
STAGING_FOLDER = "wandb/data"  # of a run: what is yet to be sent, which W&B would keep in the home folder
Made = TypeVar("Made")


class WandbRun:
    """A W&B run that cannot stop the training: the first call that fails ends it with one line.

    Args:
        run: of W&B.
        module: wandb.
        run_dir: the run folder.
        say: receives lines for the person who watches.
    """

    name = "wandb"

    def __init__(self, run: Any, module: Any, run_dir: Path, say: Callable[[str], None]):
        self._run, self._module, self._run_dir, self._say = run, module, run_dir, say
        self._defined: set[str] = set()
        self._missing: set[str] = set()  # what could not be made, each said once
        self._exported: Path | None = None
        self._tables: dict[str, Rows] = {}  # as they were logged

    @classmethod
    def start(cls, settings: Wandb, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> WandbRun | None:
        """Open the run online where that works, else offline; None where neither does."""
        try:
            import wandb

            mode = os.environ.get("WANDB_MODE") or settings.mode
            if mode == "disabled":
                return None
            if mode not in ("offline", "dryrun"):  # W&B's own older words are dryrun and run
                if mode != "auto" and not has_key():
                    say("wandb: no key found, `wandb login` sets one; going on offline")
                mode = "online" if has_key() else "offline"  # without a key, online would ask on the terminal
            arguments: dict[str, Any] = {
                "project": settings.project,
                "entity": settings.entity,
                "name": settings.name or run_dir.name,
                "id": run_id,
                "resume": "allow",
                "dir": str(run_dir),
                "config": dict(config),
                "settings": wandb.Settings(silent=True, console="off", init_timeout=WANDB_PATIENCE),
            }
            online = mode == "online"
            if online:
                say("wandb: connecting ...")
            try:
                run = wandb.init(mode="online" if online else "offline", **arguments)
            except Exception as error:  # no key, no network, no such entity: the run matters more than its dashboard
                if not online:
                    raise
                say(f"wandb: cannot go online ({one_line(error)[:160]}); going on offline")
                wandb.teardown()
                online, run = False, wandb.init(mode="offline", **arguments)
            run.define_metric("*", step_metric="kimg")
            for key in HELPERS:
                run.define_metric(key, hidden=True, step_metric=None if key == "kimg" else "kimg")
            say(f"wandb: {run.url}" if online else f"wandb: offline; show the run with `wandb sync {Path(run.dir).parent}`")
            return cls(run, wandb, run_dir, say)
        except Exception as error:
            say(f"wandb: not available ({one_line(error)[:160]}); metrics.jsonl has everything")
            return None

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        def send() -> None:
            for key in values:
                if key.startswith("eval/") and key not in self._defined:
                    self._defined.add(key)
                    self._define(key)
            self._log(nimg, values)

        self._guarded(send)

    def _log(self, nimg: int, values: Mapping[str, Any]) -> None:
        self._run.log({"kimg": nimg / 1000, **values})  # never with step=: W&B drops what is logged below the highest step

    def event(self, nimg: int, name: str, words: str, fields: Mapping[str, Any]) -> None:
        """The words, and a 1 where it happened, which its charts can draw."""
        if name in SHOWN:
            self._guarded(lambda: self._log(nimg, {f"event/{name}": words, f"mark/{name}": 1}))

    def _define(self, key: str) -> None:
        """Make a score's summary its best, and give its spread no chart."""
        higher = better_when_higher(key)
        if higher is not None:
            self._run.define_metric(key, step_metric="kimg", summary="max" if higher else "min")
        elif key.endswith(SPREADS):
            self._run.define_metric(key, step_metric="kimg", hidden=True)

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        self._guarded(lambda: self._log(nimg, {key: self._module.Image(str(path), caption=caption)}))

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Every sheet of a picture; and for every class, a column of the sheets, a picture with a row per sheet."""
        shown = self._made("samples", lambda: read_side_by_side(path))
        by_class = self._made("samples of classes", lambda: regroup_by_class(shown, classes)) if shown and classes else None
        by_class = [dataclasses.replace(one, caption=f"{one.caption} at {nimg / 1000:g} kimg") for one in by_class or ()]
        as_images = lambda all: [self._module.Image(one.picture, caption=one.caption) for one in all]  # noqa: E731
        pictures = {"samples": shown, "samples/classes": by_class}
        if shown:
            self._guarded(lambda: self._log(nimg, {key: as_images(all) for key, all in pictures.items() if all}))

    def overview(self, nimg: int) -> None:
        """The charts and the table of events of the whole record; the best scores for the summary."""
        found = self._made("overview", lambda: overview(told_by(self._run_dir)))
        if found:
            figures, tables, best = found
            self._log_made(nimg, figures, tables)
            self.summary(best)

    def conclude(self) -> None:
        """What is shown at the end, however the run has ended: the last scores, the best ones, the best averaged generator."""
        told = self._made("final scores", lambda: without_training(told_by(self._run_dir)))
        if told is None:
            return
        found = self._made("final scores", lambda: {"events": events_table(told), "final/scores": scores_table(told)})
        if found:
            self._log_made(told.nimg, {}, found)
            self.summary(best_scores(told))
        goes_on = [line["event"] for line in told.events("start", "resume", "end", "gave_up", "interrupted")][-1:] == ["interrupted"]
        exported = None if goes_on else self._made("generator", lambda: self._export(told))  # a preempted run has no time for it
        if exported:
            self._exported = exported[1]
            self._guarded(functools.partial(self._log_generator, *exported))

    def _export(self, told: Record) -> tuple[Candidate, Path] | None:
        """Export the best generator whose checkpoint is whole into a folder; None where there is none."""
        for chosen in candidates(told):
            with contextlib.suppress(Damaged):
                return chosen, export(told.run, chosen, told.run / GENERATORS_FOLDER)
        return None

    def _log_generator(self, chosen: Candidate, folder: Path) -> None:
        artifact = self._module.Artifact(f"generator-{self._run.id}", type="model", metadata=as_json(chosen.described))
        # Immutable: W&B takes the files from where they are; it would copy them into the home folder, away from an offline run's files.
        folder = folder.absolute()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):  # `add_dir` would speak on the console
            artifact.add_file(str(path), name=str(path.relative_to(folder)), policy="immutable", skip_cache=True)
        aliases = dict.fromkeys(["best", chosen.average, f"{chosen.nimg / 1000:g}kimg"])
        self._run.log_artifact(artifact, aliases=list(aliases))

    def _log_made(self, nimg: int, figures: Mapping[str, Any], tables: Mapping[str, Rows]) -> None:
        def send() -> None:
            shown = {key: self._module.Plotly(figure) for key, figure in figures.items()}
            shown |= {key: self._module.Table(columns=columns, data=rows) for key, (columns, rows) in changed.items()}
            if shown:
                with staged_in(self._run_dir / STAGING_FOLDER):
                    self._log(nimg, shown)

        # W&B keeps each as a version.
        changed = {key: table for key, table in tables.items() if table[1] and table != self._tables.get(key)}
        self._tables |= changed
        self._guarded(send)

    def _made(self, what: str, make: Callable[[], Made]) -> Made | None:
        """What `make` returns; None, and one line, where it fails, as on a full disk: the rest goes on."""
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

    def finish(self, exit_code: int, wait: bool = True) -> None:
        def close() -> None:
            self._run.finish(exit_code=exit_code)
            if self._exported and not self._run.offline:  # it is uploaded
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
    """Have W&B keep copies in the run folder, unless WANDB_DATA_DIR says where: so an offline run is in one place."""
    if os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def open_view(settings: Wandb, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> ViewThread:
    """The W&B run `run_id`, opened or continued on a thread."""
    start = functools.partial(WandbRun.start, settings, run_id, config, run_dir, say)
    return ViewThread("wandb", start, settings.patience, say, hangs=True)
