"""Pictures of a run: sample sheets, and the orbit of the weights."""

from __future__ import annotations

from gantrain.atomic_file import open_draft
from gantrain.averaging import LIVE
from gantrain.batching import BatchController
from gantrain.data import ImageSet
from gantrain.errors import one_line
from gantrain.evaluation.evaluator import Evaluator
from gantrain.orbit.analysis import PlayerKey, analyse
from gantrain.orbit.motion import TooFewRecordings, build_motion, require_recordings
from gantrain.orbit.picture import picture_path, save_analyses
from gantrain.orbit.recorder import OrbitRecorder
from gantrain.orbit.words import summarise
from gantrain.reporting.time_left import ORBIT_LINES, ORBIT_PICTURES, SAMPLES
from gantrain.sampling.classes import Classes
from gantrain.sampling.generators import generate
from gantrain.sampling.latents import draw_class_sheet
from gantrain.sampling.sheets import Sheet, make_grid, save_side_by_side
from gantrain.score_names import Scores
from gantrain.training.context import Context
from gantrain.training.players import Players
from gantrain.training.run_state import RunState


class Pictures:
    """Draws samples, and records and draws the motion of the weights.

    Args:
        context: of the run.
        run: its clock.
        players: their weights are sampled.
        batching: the batch, on which the motion depends.
        images: the data set; its classes are the columns of a sheet.
        evaluator: prepares BatchNorm as for scores.
        orbit: the recorder.
    """

    def __init__(
        self, context: Context, run: RunState, players: Players, batching: BatchController, images: ImageSet, evaluator: Evaluator,
        orbit: OrbitRecorder,
    ):  # fmt: skip
        self.context, self.run, self.players, self.batching = context, run, players, batching
        self.images, self.evaluator, self.orbit = images, evaluator, orbit
        self._left_out = ""  # what has been said about damaged lines of the orbit's record

    def draw_samples(self, scores: Scores, scored_at: int) -> None:
        """Draw the same latents through the live weights and every average, side by side, into `samples/`.

        Every process must call it at the same time.

        Args:
            scores: the latest scores, for the captions.
            scored_at: images seen when they were computed; -1 if there are none.

        Raises:
            OSError: the picture could not be written.
        """
        with self.context.costs.measure(SAMPLES, 1 + len(self.players.bank.started())):
            self._draw_samples(scores, scored_at)

    def _draw_samples(self, scores: Scores, scored_at: int) -> None:
        context, players, nimg = self.context, self.players, self.run.nimg
        config, generator = context.config, players.averaged
        players.unify_statistics()
        sheets = []
        with self.evaluator.isolated():
            z, y, columns = draw_class_sheet(
                config.seed, players.dim_z, players.num_classes, config.tracking.sample_rows, config.tracking.sample_classes
            )
            shown = y[:columns].tolist() if players.num_classes > 1 else []
            classes = Classes(players.num_classes, self.images.known_names)
            heads = tuple(map(classes.heading, shown)) if classes.names is not None else ()
            for name in [LIVE, *players.bank.started()]:
                players.bank.materialize(name, generator, config.eval.batchnorm == "average")
                self.evaluator.fit_batchnorm(generator)
                if context.main:
                    images = generate(generator, z.to(context.device), y.to(context.device), config.eval.batch_size)
                    sheets.append(Sheet(name, caption(name, nimg, scores, scored_at), make_grid(images, columns), heads))
        if context.main:
            path = context.run_dir / "samples" / f"{nimg:012d}.png"
            path.parent.mkdir(exist_ok=True)
            with open_draft(path, only_writer=True) as draft:
                save_side_by_side(sheets, draft)
            context.tracker.samples(nimg, path, [self.images.class_names[label] for label in shown])

    def record_orbit(self, swapped: bool = False) -> None:
        """Record the position of the weights and all averages; `swapped` says that a swap has just moved them."""
        facts = {"batch_size": self.batching.batch_size, "lr": self.players.rates}
        with self.context.costs.measure(ORBIT_LINES):
            self.orbit.record(self.run.nimg, facts, swapped)

    def show_orbit(self) -> None:
        """Draw the motion recorded so far, and print its analysis; nothing if too little was recorded. Main process only."""
        if self.orbit.on:
            with self.context.costs.measure(ORBIT_PICTURES) as work:
                work.units = int(self._show_orbit())  # too little to show costs next to nothing, and says nothing about a picture

    def _show_orbit(self) -> bool:
        """Whether there was enough to show. A picture that failed has cost its time, and so will the next one."""
        context, banks = self.context, self.players.banks
        self.orbit.flush()
        profiles = {key: {name: bank.weight_profile(name) for name in bank.started()} for key, bank in banks.items()}
        try:
            recordings = require_recordings(self.orbit.recordings, context.run_dir)
            both: tuple[PlayerKey, ...] = ("g", "d")
            found = [analyse(context.run_dir, context.config, key, build_motion(recordings, key), profiles[key]) for key in both]
            path = picture_path(context.run_dir, found)
            save_analyses(found, path, context.run_dir.name)
        except TooFewRecordings:
            return False
        except Exception as error:
            context.tracker.say(f"orbit: no picture ({one_line(error)}); `gantrain orbit {context.run_dir}` tries again")
            return True
        left_out = recordings.describe_unreadable(context.run_dir)
        if left_out not in ("", self._left_out):
            self._left_out = left_out
            context.tracker.say(f"orbit: {left_out}")
        words = [summarise(one) for one in found]
        context.tracker.image(self.run.nimg, "orbit", path, "; ".join(words))
        for line in words:
            context.tracker.say(f"orbit: {line}")
        return True


def caption(name: str, nimg: int, scores: Scores, scored_at: int) -> str:
    """The caption of a sample sheet: the average, the time, and the latest score.

    Args:
        name: of an average, or "live".
        nimg: images seen now.
        scores: the latest scores; the first metric is shown.
        scored_at: images seen when they were computed; -1 if there are none.
    """
    metric, score = next(iter(scores.get(name, {}).items()), (None, None))
    when = f"{name} at {nimg / 1000:g} kimg"
    if metric is None or scored_at < 0:
        return when
    return f"{when}, {metric} {score:.4f}" + ("" if scored_at == nimg else f" at {scored_at / 1000:g} kimg")
