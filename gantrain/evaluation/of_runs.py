"""Scores of the weights that a run folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from tqdm import tqdm

from gantrain import performance
from gantrain.averaging import LIVE
from gantrain.averaging.average import named_weights, write_buffers, write_weights
from gantrain.config.loading import load
from gantrain.data import prepare
from gantrain.distributed import local_processes, main_first, make_accelerator
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.run_folder.contents import open_run
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.sampling.generators import load_weights
from gantrain.score_names import Scores


class RunScorer:
    """Scores what lies in a run's folder: its checkpoint's weights and averages, and averages rebuilt from its snapshots.

    Args:
        run: a run folder.
        num_samples: generated images a score; None is the run's own.
        kimg: which checkpoint; None is the newest.
        overrides: changes to the run's eval and data sections, `section.key=value`.
        path: a checkpoint that is none of those; `kimg` is not looked at.

    Raises:
        UserError: as `load_generator`.
    """

    def __init__(
        self, run: str | Path, num_samples: int | None = None, kimg: float | None = None, overrides: Sequence[str] = (), path: Path | None = None
    ):  # fmt: skip
        if num_samples is not None and num_samples < 16:
            raise UserError(f"--num: must be at least 16, got {num_samples}")
        for override in overrides:
            if not override.startswith(("eval.", "data.")):
                raise UserError(f"{override}: this command takes overrides of eval and data only; the rest is what was trained")
        number = [f"eval.num_samples={num_samples}"] if num_samples is not None else []
        self.run = Path(run)
        self.path = open_run(run, kimg)[1] if path is None else path
        self.config = load(self.run / CONFIG_FILE, [*overrides, *number])

    def prepare(self) -> None:
        """Take up the reference and the networks."""
        self.accelerator = make_accelerator()
        config, accelerator = self.config, self.accelerator

        def bar(items, total):
            return tqdm(items, total=total, desc="data", leave=False, disable=None if accelerator.is_main_process else True)

        images = None  # where eval.reference names others, the run's own need not even be there
        if config.eval.reference is None:
            images = main_first(accelerator, lambda: prepare(config.data, accelerator.device, local_processes(), bar))
        # Laid out in memory as in training: another order of summation would flip a pixel here and there.
        switches = performance.pick(config.performance, accelerator.device)
        performance.set_up(switches, accelerator.device)
        self.generator = performance.place(load_weights(config, self.path, LIVE), switches, accelerator.device)
        g = self.generator
        self.evaluator = Evaluator(config, images, accelerator, shape=(g.channels, g.resolution, g.resolution))

    def score(self, names: list[str], policy: str | None = None) -> Scores:
        return self.evaluator.score(names, self.materialize, self.generator, policy)

    def materialize(self, name: str, into: nn.Module, averaged_statistics: bool = False) -> None:
        """Write what lies in the folder under a name into a generator."""
        source = load_weights(self.config, self.path, name, averaged_statistics)
        write_weights(named_weights(source), into)
        write_buffers(source.named_buffers(), into)
