"""The view of a run in Weights & Biases, on a thread.

The thread makes charts and tables from `metrics.jsonl`, and pictures from those in the run folder, so they cost the training no time;
only text and numbers wait in the queue for W&B.
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
from gantrain.reporting.wandb_panels import Rows, best_scores, events_table, overview, scores_table, without_training
from gantrain.run_folder.best_generator import Candidate, candidates, export
from gantrain.run_folder.checkpoint import Damaged
from gantrain.run_folder.condensed import Condenser
from gantrain.run_folder.contents import look_again
from gantrain.run_folder.json_values import as_json
from gantrain.run_folder.manifest import Gone
from gantrain.run_folder.record import Record, outline_config
from gantrain.sampling.sheets import read_side_by_side, regroup_by_class
from gantrain.score_names import SPREADS, better_when_higher, can_be_best

WANDB_PATIENCE = 30  # seconds that W&B has to answer at the start
GENERATORS_FOLDER = "wandb/generators"  # of a run: exported generators, which the files of offline runs refer to
SHOWN = (*MARKS, "warning", "collapse", "gave_up", "not_written")  # events that W&B is sent; it knows about starts and ends itself
HELPERS = ("kimg", "updates", "reals_seen", "batch/micro_batch", "eval/num_samples")  # no charts of their own
STAGING_FOLDER = "wandb/data"  # of a run: data still to be sent, which W&B would otherwise keep in the home folder
Made = TypeVar("Made")


class WandbRun:
    """A W&B run.

    Args:
        run: the run object of W&B.
        module: the wandb package.
        run_dir: the run folder.
        say: prints a line.
    """

    name = "wandb"

    def __init__(self, run: Any, module: Any, run_dir: Path, say: Callable[[str], None]):
        self._run, self._module, self._run_dir, self._say = run, module, run_dir, say
        self._defined: set[str] = set()
        self._missing: set[str] = set()  # what could not be made, each reported once
        self._exported: Path | None = None
        self._tables: dict[str, Rows] = {}  # as last logged
        self._condenser = Condenser(run_dir)  # reads each line of the record once, not all of them at every evaluation

    @classmethod
    def start(
        cls, settings: Wandb, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None], group: str | None = None
    ) -> WandbRun | None:  # fmt: skip
        """Open the run, online if possible, else offline; None if neither works or W&B is disabled.

        Args:
            settings: the `tracking.wandb` section.
            run_id: of the run.
            config: shown as the run's configuration.
            run_dir: the run folder.
            say: prints a line.
            group: of the run, if the settings do not name one.
        """
        try:
            import wandb

            mode = os.environ.get("WANDB_MODE") or settings.mode
            if mode == "disabled":
                return None
            if mode not in ("offline", "dryrun"):  # dryrun and run are older names of offline and online
                if mode != "auto" and not has_key():
                    say("wandb: no API key found (set one with `wandb login`); continuing offline")
                mode = "online" if has_key() else "offline"  # online without a key would prompt on the terminal
            arguments: dict[str, Any] = {
                "project": settings.project,
                "entity": settings.entity,
                "name": settings.name or run_dir.name,
                # W&B lets an argument win over its variable in the environment; None leaves the variable in force.
                "group": None if os.environ.get("WANDB_RUN_GROUP") else settings.group or group,
                "tags": None if os.environ.get("WANDB_TAGS") else list(settings.tags) or None,
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
            except Exception as error:  # no key, no network, no such entity: do not end the training for a dashboard
                if not online:
                    raise
                say(f"wandb: cannot go online ({one_line(error)[:160]}); continuing offline")
                wandb.teardown()
                online, run = False, wandb.init(mode="offline", **arguments)
            run.define_metric("*", step_metric="kimg")
            for key in HELPERS:
                run.define_metric(key, hidden=True, step_metric=None if key == "kimg" else "kimg")
            say(f"wandb: {run.url}" if online else f"wandb: offline; upload the run with `wandb sync {Path(run.dir).parent}`")
            return cls(run, wandb, run_dir, say)
        except Exception as error:
            say(f"wandb: not available ({one_line(error)[:160]}); metrics.jsonl is complete")
            return None

    def log(self, nimg: int, values: Mapping[str, Any]) -> None:
        """Log the line, after setting up the summaries of new scores."""
        for key in values:
            # W&B takes the best from what is logged after the definition, and the scores at 0 kimg are not to be it.
            if key.startswith("eval/") and key not in self._defined and (can_be_best(nimg) or better_when_higher(key) is None):
                self._defined.add(key)
                self._define(key)
        self._log(nimg, values)

    def _log(self, nimg: int, values: Mapping[str, Any]) -> None:
        self._run.log({"kimg": nimg / 1000, **values})  # not with step=: W&B drops lines below the highest step

    def event(self, nimg: int, name: str, words: str, fields: Mapping[str, Any]) -> None:
        """Log the words, and a 1 that W&B's charts can draw as a mark."""
        if name in SHOWN:
            self._log(nimg, {f"event/{name}": words, f"mark/{name}": 1})

    def _define(self, key: str) -> None:
        """Make a score's summary its best value, and hide the chart of its spread."""
        higher = better_when_higher(key)
        if higher is not None:
            self._run.define_metric(key, step_metric="kimg", summary="max" if higher else "min")
        elif key.endswith(SPREADS):
            self._run.define_metric(key, step_metric="kimg", hidden=True)

    def image(self, nimg: int, key: str, path: Path, caption: str) -> None:
        """Log the picture."""
        self._log(nimg, {key: self._module.Image(str(path), caption=caption)})

    def samples(self, nimg: int, path: Path, classes: Sequence[str]) -> None:
        """Log every sheet of a picture; and per class, a picture with one row per sheet."""
        shown = self._made("samples", lambda: read_side_by_side(path))
        by_class = self._made("samples of classes", lambda: regroup_by_class(shown, classes)) if shown and classes else None
        by_class = [dataclasses.replace(one, caption=f"{one.caption} at {nimg / 1000:g} kimg") for one in by_class or ()]
        as_images = lambda all: [self._module.Image(one.headed, caption=one.caption) for one in all]  # noqa: E731
        pictures = {"samples": shown, "samples/classes": by_class}
        if shown:
            self._log(nimg, {key: as_images(all) for key, all in pictures.items() if all})

    def overview(self, nimg: int) -> None:
        """Log charts and the table of events of the whole record, and put the best scores into the summary."""
        found = self._made("overview", lambda: overview(self._read()))
        if found:
            figures, tables, best = found
            self._log_made(nimg, figures, tables)
            self.summary(best)

    def _read(self) -> Record:
        """The record so far.

        Raises:
            UserError: it or the configuration cannot be read.
        """
        self._condenser.read_on()
        return self._condenser.record(outline_config(self._run_dir))

    def conclude(self) -> None:
        """Log the last scores, the best scores and the best averaged generator, however the run ended."""
        told = self._made("final scores", lambda: without_training(self._read()))
        if told is None:
            return
        found = self._made("final scores", lambda: {"events": events_table(told), "final/scores": scores_table(told)})
        if found:
            self._log_made(told.nimg, {}, found)
            self.summary(best_scores(told))
        interrupted = [line["event"] for line in told.events("start", "resume", "end", "gave_up", "interrupted")][-1:] == ["interrupted"]
        again = lambda: look_again(lambda: self._export(told))  # noqa: E731
        exported = None if interrupted else self._made("generator", again)  # a preempted run has no time for it
        if exported:
            self._exported = exported[1]
            self._log_generator(*exported)

    def _export(self, told: Record) -> tuple[Candidate, Path] | None:
        """Export the best generator with an undamaged checkpoint into a folder; None if there is none.

        Raises:
            Gone: a checkpoint was replaced meanwhile.
        """
        for chosen in candidates(told):
            try:
                return chosen, export(told.run, chosen, told.run / GENERATORS_FOLDER)
            except Gone:
                raise
            except Damaged:
                continue
        return None

    def _log_generator(self, chosen: Candidate, folder: Path) -> None:
        """Log an exported generator as an artifact."""
        artifact = self._module.Artifact(f"generator-{self._run.id}", type="model", metadata=as_json(chosen.described))
        # Immutable: W&B uses the files where they are, instead of copying them into the home folder, away from an offline run's files.
        folder = folder.absolute()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):  # `add_dir` prints to the console
            artifact.add_file(str(path), name=str(path.relative_to(folder)), policy="immutable", skip_cache=True)
        aliases = dict.fromkeys(["best", chosen.average, f"{chosen.nimg / 1000:g}kimg"])
        self._run.log_artifact(artifact, aliases=list(aliases))

    def _log_made(self, nimg: int, figures: Mapping[str, Any], tables: Mapping[str, Rows]) -> None:
        """Log figures, and those tables that have changed, since W&B keeps every table as a new version."""
        changed = {key: table for key, table in tables.items() if table[1] and table != self._tables.get(key)}
        self._tables |= changed
        shown = {key: self._module.Plotly(figure) for key, figure in figures.items()}
        shown |= {key: self._module.Table(columns=columns, data=rows) for key, (columns, rows) in changed.items()}
        if shown:
            with staged_in(self._run_dir / STAGING_FOLDER):
                self._log(nimg, shown)

    def _made(self, what: str, make: Callable[[], Made]) -> Made | None:
        """The result of `make`; None, with one line, if it fails, for example on a full disk."""
        try:
            return make()
        except Exception as error:
            if what not in self._missing:
                self._missing.add(what)
                self._say(f"wandb: no {what} ({one_line(error)[:160]}); the rest continues")
            return None

    def summary(self, values: Mapping[str, Any]) -> None:
        """Update the summary."""
        self._run.summary.update(dict(values))

    def finish(self, exit_code: int, wait: bool = True) -> None:
        """Finish the run, and delete the exported generator if it has been uploaded."""
        self._run.finish(exit_code=exit_code)
        if self._exported and not self._run.offline:
            shutil.rmtree(self._exported, ignore_errors=True)


@contextlib.contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Make W&B keep copies in the run folder, unless WANDB_DATA_DIR is set, so that an offline run is in one place."""
    if os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def open_view(
    settings: Wandb, run_id: str, config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None], group: str | None = None
) -> ViewThread:  # fmt: skip
    """Open or continue the W&B run `run_id`, on a thread; see `WandbRun.start`."""
    start = functools.partial(WandbRun.start, settings, run_id, config, run_dir, say, group)
    return ViewThread("wandb", start, settings.patience, say, hangs=True)
