"""Scores of the weights in a run folder."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gantrain import performance
from gantrain.averaging import LIVE
from gantrain.averaging.average import named_weights, write_buffers, write_weights
from gantrain.data import Digits, prepare
from gantrain.data.likeness import find_difference
from gantrain.distributed import from_main, local_processes, main_first, make_accelerator
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.images import to_uint8
from gantrain.run_folder.as_trained import config_at
from gantrain.run_folder.checkpoint import read_state
from gantrain.run_folder.contents import open_held
from gantrain.run_folder.finite import count_nonfinite, require_finite
from gantrain.run_folder.held import Held
from gantrain.run_folder.manifest import hold
from gantrain.run_folder.own_config import load_config
from gantrain.run_folder.start_folder import require_images_of
from gantrain.sampling.choice import require_count
from gantrain.sampling.generators import load_weights
from gantrain.sampling.latents import GeneratorModule, draw
from gantrain.score_names import Scores

ASKED = ("eval.metrics=", "eval.num_samples=", "eval.features=", "eval.features.")


class RunScorer:
    """Scores the contents of a run folder: the weights and averages of a checkpoint, and averages rebuilt from snapshots.

    Args:
        run: a run folder.
        num_samples: generated images per score; None uses the run's own number.
        kimg: which checkpoint; None uses the newest.
        overrides: changes to the run's eval and data sections, `section.key=value`.
        path: the checkpoint itself, for one outside RUN/checkpoints; `kimg` is ignored.

    Raises:
        UserError: a number or override is out of range, or see `load_generator`.
    """

    def __init__(
        self, run: str | Path, num_samples: int | None = None, kimg: float | None = None, overrides: Sequence[str] = (),
        path: Path | None = None,
    ):  # fmt: skip
        if num_samples is not None:
            require_count(num_samples, least=16)
        for override in overrides:
            if not override.startswith(("eval.", "data.")):
                raise UserError(f"{override}: only eval and data can be overridden here; remove it to use the run's own value")
        # A run that exists is scored as it says; what is asked for now must be possible.
        self.strict = num_samples is not None or any(one.startswith(ASKED) for one in overrides)
        self.counted_by = "eval.num_samples" if num_samples is None else "--num"
        changes = [*overrides, *([f"eval.num_samples={num_samples}"] if num_samples is not None else [])]
        self.run = Path(run)
        self.nonfinite: dict[str, str] = {}  # what is not finite in each average that was loaded
        # A run that trains may delete the checkpoint long before everything in it is scored.
        if path is None:
            self.config, self.held = open_held(run, kimg, overrides=changes)
        else:
            self.held = hold(path)
            self.config = config_at(path, self.run, load_config(self.run, changes), changes)
        self.path = self.held.folder
        if path is None:
            require_images_of(self.run, self.config, overrides)

    def prepare(self) -> None:
        """Load the reference and the generator, as `evaluator` and `generator`; call it before `score`.

        Raises:
            UserError: a metric that was asked for needs more generated images.
        """
        self.accelerator = make_accelerator()
        config, accelerator = self.config, self.accelerator
        self.held = main_first(accelerator, functools.partial(self._reopened, from_main(accelerator, int(self.path.name))))
        self.path = self.held.folder

        def bar(items: Iterable, total: int) -> Iterable:
            return tqdm(items, total=total, desc="data", leave=False, disable=None if accelerator.is_main_process else True)

        other, images = None, None  # with eval.reference, the run's own images are not needed and may be missing
        if config.eval.reference is None:
            state = read_state(self.path)
            images = main_first(accelerator, lambda: prepare(config.data, accelerator.device, local_processes(), bar, state))
            # Data may be overridden here, and a fork with other data has no listing yet.
            other = find_difference(images, state, self.run) if state["data_listing"] is not None else None
        # The memory layout of training: another order of summation would change single pixels.
        switches = performance.pick(config.performance, accelerator.device)
        performance.set_up(switches, accelerator.device)
        g: GeneratorModule = performance.place(load_weights(config, self.path, LIVE), switches, accelerator.device)
        self.generator = g
        shape = (g.channels, g.resolution, g.resolution)
        # Without the run's data, its images say whether features fit them.
        scored = self.some if images is None and not isinstance(config.data, Digits) else None
        self.evaluator = Evaluator(config, images, accelerator, shape=shape, num_classes=g.num_classes, scored=scored)
        if other:
            self.evaluator.remarks.notes.insert(0, f"warning: {other}; the scores are against the images as they are now")
        if self.strict:
            self.evaluator.remarks.require_enough()

    def _reopened(self, nimg: int) -> Held:
        """The checkpoint of the main process at `nimg` images: a run that trains may have saved between the looks of two processes."""
        return self.held if int(self.path.name) == nimg else open_held(self.run, nimg / 1000)[1]

    def some(self) -> Tensor:
        """A few images of the live weights, uint8; the generator may hold any other weights afterwards."""
        e, g, device = self.config.eval, self.generator, self.accelerator.device
        self.materialize(LIVE, g)
        with torch.no_grad(), self.evaluator.isolated():
            g.eval()  # with the statistics of training: recalibration would need all processes, and a look needs no better ones
            return to_uint8(g(*draw(self.config.seed, "eval", 0, e.batch_size, g.dim_z, g.num_classes, device, e.truncation)))

    def require_finite(self, names: Iterable[str]) -> None:
        """Refuse averages whose weights are not finite, for a command of which nothing would be left.

        Raises:
            NotFinite: names the first of them, and weights that are finite.
        """
        for name in names:
            require_finite(self.path, name, named_weights(load_weights(self.config, self.path, name)))

    def score(self, names: list[str], policy: str | None = None) -> Scores:
        """Score the named averages ("live" among them); see `Evaluator.score`. Those that are not finite are named in its notes.

        Raises:
            UserError: memory does not hold the features of so many images.
        """
        self.evaluator.remarks.require_room(self.counted_by)
        scores, notes = self.evaluator.score(names, self.materialize, self.generator, policy), self.evaluator.remarks.notes
        said = [f"{name}: its weights are not finite ({words}), so its scores are nan" for name in names if (words := self.nonfinite[name])]
        notes += [note for note in said if note not in notes]
        return scores

    def materialize(self, name: str, into: nn.Module, averaged_statistics: bool = False) -> None:
        """Write the named weights of the folder into a generator; see `load_weights`."""
        source = load_weights(self.config, self.path, name, averaged_statistics)
        self.nonfinite[name] = count_nonfinite(named_weights(source))
        write_weights(named_weights(source), into)
        write_buffers(source.named_buffers(), into)
