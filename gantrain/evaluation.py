"""Scores: generator to samples to features to metrics, over all processes, leaving no trace on training."""
from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from gantrain import performance
from gantrain.averaging import LIVE, recalibrate
from gantrain.averaging.average import named_weights, write_buffers, write_weights
from gantrain.averaging.batchnorm import POLICIES, normalise_by_batch
from gantrain.checkpoint import Damaged, read_manifest
from gantrain.config import Config
from gantrain.data import ImageSet, decode_all, permuted, prepare
from gantrain.distributed import from_main, local_processes, main_first, make_accelerator, on_any_process, sum_over_processes, tensors_from_main
from gantrain.errors import UserError, did_you_mean
from gantrain.images import to_uint8
from gantrain.loading import load
from gantrain.metrics import METRICS, FeatureSet
from gantrain.metrics.reference import cached, fingerprint, keep
from gantrain.plugins import find
from gantrain.sampling import AVERAGES_FOLDER, CONFIG_FILE, averages_of, calibration_batches, draw, load_weights, open_run, rebuilt_of, require_time
from gantrain.tracking import as_json, better_when_higher

Scores = dict[str, dict[str, float]]  # average -> metric -> value
FEWEST = 8  # images of a reference: fewer have no third neighbour among the halves that metrics take


class AtOnce(Executor):
    """Does what it is given before it takes anything else."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Interrupted(Exception):
    """An evaluation was left because the run was asked to stop. Nothing has come of it."""


class Evaluator:
    """Scores generators against one data set.

    The samples are a function of (seed, position) alone, cut into chunks that the processes share out, and the features
    are put back in order: the scores do not depend on how many processes there are.

    Args:
        config: of the run; its `eval` section says what is computed.
        images: the real images.
        accelerator: of the program.
        show_progress: draw a bar on a terminal.
    """

    def __init__(self, config: Config, images: ImageSet, accelerator: Accelerator, show_progress: bool = True):
        self.config, self.images, self.accelerator = config, images, accelerator
        self.show_progress = show_progress and accelerator.is_main_process
        self.metrics = [find("metric", METRICS, name)() for name in config.eval.metrics]
        self.prefix = config.eval.features.metric_prefix
        self._extractor = None
        self._asked_to_stop: Callable[[], bool] | None = None
        if self.num_reference < FEWEST:
            raise UserError(f"data: {images.name} has {len(images)} images; scores need at least {FEWEST}")
        self._reference: FeatureSet | None = None
        self._reference_print = ""

    @property
    def extractor(self):
        """The feature extractor, built at first use; one process a machine downloads it first."""
        if self._extractor is None:
            features = self.config.eval.features
            if hasattr(features, "fetch"):
                main_first(self.accelerator, features.fetch)
            self._extractor = features.build(self.accelerator.device)
        return self._extractor

    @property
    def num_reference(self) -> int:
        wanted = self.config.eval.reference_samples
        return len(self.images) if wanted is None else min(wanted, len(self.images))

    @property
    def reference_fingerprint(self) -> str:
        """What the reference is, known before it is there."""
        return fingerprint(self.images.fingerprint, self.num_reference, self.extractor.identity)

    @property
    def reference_order(self) -> Tensor:
        """Numbers of the reference's images, int64: a fixed shuffle, so that fewer than all are a sample of all."""
        return torch.from_numpy(permuted(0, torch.arange(self.num_reference).numpy(), len(self.images)))

    def protocol(self, policy: str | None = None) -> dict[str, object]:
        """What a score must be quoted with; `policy` is BatchNorm's where it was not the configured one."""
        e = self.config.eval
        policy = policy or e.batchnorm
        stated = {"recalibrate": f"{e.recalibration_batches} x {e.batch_size}", "batch": f"{e.batch_size}"}
        return {
            "eval/num_samples": e.num_samples,
            "eval/reference": f"{self.images.name} ({self.num_reference} images)",
            "eval/reference_fingerprint": self.reference_fingerprint,
            "eval/features": self.extractor.identity,
            "eval/batchnorm": policy,
            "eval/batchnorm_batches": stated.get(policy),
            "eval/truncation": e.truncation,
        }

    @contextmanager
    def leaving_when(self, asked_to_stop: Callable[[], bool]) -> Iterator[None]:
        """Inside, what is scored is left by `Interrupted` between two chunks where the run, on any process, was asked to stop."""
        self._asked_to_stop = asked_to_stop
        try:
            yield
        finally:
            self._asked_to_stop = None

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, the global random state may be used and nothing is rounded to TF32; afterwards both are as before."""
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32

    def score(
        self, names: list[str], materialize: Callable[[str, nn.Module, bool], None], generator: nn.Module, policy: str | None = None
    ) -> Scores:
        """Scores of several weights of one architecture.

        Args:
            names: of averages, or "live".
            materialize: writes the named weights into a module, with the average's own BatchNorm statistics if the third
                argument is true.
            generator: a module for that, apart from the one in training.
            policy: of BatchNorm; None is the configured one.

        Returns:
            On the main process metrics by name; elsewhere empty mappings.
        """
        policy = policy or self.config.eval.batchnorm
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        with self.apart(), self.aside() as aside:
            reference = self.reference()
            mine: dict[str, Future[dict[str, float]]] = {}
            # As many as there are processes are sampled together, then each process computes the metrics of one.
            for turn in range(0, len(names), world):
                features = None
                for owner, name in enumerate(names[turn : turn + world]):
                    materialize(name, generator, policy == "average")
                    self.fit_batchnorm(generator, policy)
                    found = self.features_of(generator, name, owner)
                    features = (name, found) if rank == owner else features
                for of in mine.values():
                    of.result()  # no more than two averages' features are in memory
                if features:
                    mine[features[0]] = aside.submit(self.metrics_of, features[1], reference)
            found = {name: of.result() for name, of in mine.items()}
        if world > 1:
            found = {name: metrics for one in gather_object([found]) for name, metrics in one.items()}
        return {name: found[name] if self.accelerator.is_main_process else {} for name in names}

    @contextmanager
    def aside(self) -> Iterator[Executor]:
        """Where metrics are computed: beside the sampling of the next average; at once where all cores are busy with that."""
        device = self.accelerator.device
        if device.type == "cpu" and torch.get_num_threads() * local_processes() >= (os.cpu_count() or 1):
            yield AtOnce()
            return
        on_its_gpu = {"initializer": torch.cuda.set_device, "initargs": (device,)} if device.type == "cuda" else {}  # a new thread's is the first
        with ThreadPoolExecutor(1, **on_its_gpu) as pool:
            yield pool

    def fit_batchnorm(self, generator: nn.Module, policy: str | None = None) -> None:
        """BatchNorm for the weights at hand, by a policy, the configured one by default; then evaluation mode."""
        policy = policy or self.config.eval.batchnorm
        if policy == "recalibrate":
            self.recalibrate(generator)
        generator.eval()
        if policy == "batch":
            normalise_by_batch(generator)

    def recalibrate(self, generator: nn.Module) -> None:
        """BatchNorm statistics measured anew, over all processes; the generator's modes stay as they are."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = calibration_batches(self.config, generator, self.config.eval.truncation, rank, world)
        recalibrate(generator, batches, self.config.eval.recalibration_batches, sum_over_processes(self.accelerator))

    def features_of(self, generator: nn.Module, name: str = LIVE, owner: int = 0) -> FeatureSet | None:
        """Features of `num_samples` generated images; None but on process `owner`."""
        e = self.config.eval

        def chunk(start: int, count: int) -> Tensor:
            z, y = draw(self.config.seed, "eval", start, count, generator.dim_z, generator.num_classes, self.accelerator.device, e.truncation)
            return generator(z, y)

        return self.extract(chunk, e.num_samples, f"score {name}", owner)

    def reference(self) -> FeatureSet | None:
        """Features of the real images, from the cache where they were computed before; the same on every process."""
        if not self._reference_print:
            self._reference_print = self.reference_fingerprint
            main = self.accelerator.is_main_process
            self._reference = cached(self._reference_print) if main else None
            if from_main(self.accelerator, self._reference is not None):
                both = tensors_from_main(self.accelerator, [self._reference.features, self._reference.logits] if main else [])
                self._reference = self._reference if main else FeatureSet(*both)
            else:
                order = self.reference_order

                def chunk(start: int, count: int) -> Tensor:
                    chosen = order[start : start + count]
                    if self.images.pixels is not None:
                        return self.images.pixels[chosen.to(self.images.pixels.device)].to(self.accelerator.device)
                    return decode_all(self.images, chosen.tolist()).to(self.accelerator.device)

                self._reference = self.extract(chunk, self.num_reference, "reference", None)
                if main:
                    keep(self._reference_print, self._reference)
        return self._reference

    @torch.no_grad()
    def extract(self, chunk: Callable[[int, int], Tensor], total: int, title: str, owner: int | None = 0) -> FeatureSet | None:
        """Features of images 0 .. total - 1 in order, each process extracting every W-th chunk; None but on process `owner`.

        Args:
            chunk: (start, count) to uint8 images `[count, C, H, W]` on this process's device.
            owner: None gives them to every process.
        """
        size, world, rank = self.config.eval.batch_size, self.accelerator.num_processes, self.accelerator.process_index
        chunks = -(-total // size)
        rows, width = [], 0
        for turn in tqdm(range(-(-chunks // world)), desc=title, leave=False, disable=None if self.show_progress else True):
            if self._asked_to_stop and on_any_process(self.accelerator, self._asked_to_stop()):
                raise Interrupted
            # Where there is no chunk left for this process it does the last one again, since all must take part.
            start = min(turn * world + rank, chunks - 1) * size
            count = min(size, total - start)
            x = chunk(start, count)
            features, logits = self.extractor.extract(to_uint8(x) if x.is_floating_point() else x)
            width = features.shape[1]
            both = torch.cat([features.float(), logits.float()], dim=1)
            if x.is_floating_point():  # bytes cannot say nan
                both = both.masked_fill(~torch.isfinite(x).flatten(1).all(dim=1)[:, None], float("nan"))
            if world > 1:
                padded = both.new_zeros(size, both.shape[1])
                padded[:count] = both
                both = self.accelerator.gather(padded)
            if owner in (None, rank):
                rows.append(both.cpu())
        if owner not in (None, rank):
            return None
        everything = torch.cat(rows)[:total]
        return FeatureSet(everything[:, :width].contiguous(), everything[:, width:].contiguous())

    def metrics_of(self, fake: FeatureSet | None, real: FeatureSet | None) -> dict[str, float]:
        """All configured metrics with their extractor's prefix; nan where a generator puts out no numbers."""
        if fake is None or real is None:
            return {}
        if not (torch.isfinite(fake.features).all() and torch.isfinite(fake.logits).all()):
            probe = FeatureSet(real.features[:64], real.logits[:64])
            return {self.prefix + name: float("nan") for metric in self.metrics for name in metric.compute(probe, probe)}
        return {self.prefix + name: value for metric in self.metrics for name, value in metric.compute(fake, real).items()}


def as_keys(scores: Scores) -> dict[str, float]:
    """Scores under their full names, eval/AVERAGE/METRIC."""
    return {f"eval/{name}/{metric}": value for name, metrics in scores.items() for metric, value in metrics.items()}


def table(scores: Scores, title: str = "average") -> str:
    """Scores as text, a row (an average under its name) each, the best of each column marked with a star unless all are equal."""
    metrics = [m for m in dict.fromkeys(m for row in scores.values() for m in row) if not m.endswith("_std")]
    best = {}
    for metric in metrics:
        higher = better_when_higher(metric)
        values = {name: row[metric] for name, row in scores.items() if metric in row and row[metric] == row[metric]}
        if higher is not None and len(scores) > 1 and (len(set(values.values())) > 1 or len(values) == 1):
            winner = (max if higher else min)(values.values())
            best[metric] = {name for name, value in values.items() if value == winner}
    width = max([len(title), *(len(name) for name in scores)])
    columns = [max(len(m), 9) + 1 for m in metrics]
    lines = ["  ".join([title.ljust(width), *(m.rjust(c - 1) + " " for m, c in zip(metrics, columns))])]
    for name, row in scores.items():
        cells = [f"{row.get(m, float('nan')):{c - 1}.4f}" + ("*" if name in best.get(m, ()) else " ") for m, c in zip(metrics, columns)]
        lines.append("  ".join([name.ljust(width), *cells]))
    return "\n".join(line.rstrip() for line in lines)


def policy_tables(by_policy: dict[str, Scores]) -> str:
    """A table a metric: an average a row, a BatchNorm policy a column, the best of all marked with a star."""
    averages = list(next(iter(by_policy.values())))
    metrics = [m for m in next(iter(next(iter(by_policy.values())).values())) if not m.endswith("_std")]
    width = max(len(name) for name in [*averages, *metrics])
    columns = [max(len(policy), 9) + 1 for policy in by_policy]
    blocks = []
    for metric in metrics:
        values = [scores[name][metric] for scores in by_policy.values() for name in averages]
        finite, higher = [v for v in values if v == v], better_when_higher(metric)
        best = (max if higher else min)(finite) if higher is not None and len(set(finite)) > 1 else None
        lines = ["  ".join([metric.ljust(width), *(policy.rjust(c - 1) + " " for policy, c in zip(by_policy, columns))])]
        for name in averages:
            cells = [f"{scores[name][metric]:{c - 1}.4f}" + ("*" if scores[name][metric] == best else " ") for scores, c in zip(by_policy.values(), columns)]
            lines.append("  ".join([name.ljust(width), *cells]))
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


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
        """Take up the data and the networks."""
        self.accelerator = make_accelerator()
        config, accelerator = self.config, self.accelerator

        def bar(items, total):
            return tqdm(items, total=total, desc="data", leave=False, disable=None if accelerator.is_main_process else True)

        images = main_first(accelerator, lambda: prepare(config.data, accelerator.device, local_processes(), bar))
        self.evaluator = Evaluator(config, images, accelerator)
        # Laid out in memory as in training: another order of summation would flip a pixel here and there.
        switches = performance.picked(config.performance, accelerator.device)
        performance.set_up(switches, accelerator.device)
        self.generator = performance.place(load_weights(config, self.path, LIVE), switches, accelerator.device)

    def score(self, names: list[str], policy: str | None = None) -> Scores:
        return self.evaluator.score(names, self.materialize, self.generator, policy)

    def materialize(self, name: str, into: nn.Module, averaged_statistics: bool = False) -> None:
        """Write what lies in the folder under a name into a generator."""
        source = load_weights(self.config, self.path, name, averaged_statistics)
        write_weights(named_weights(source), into)
        write_buffers(source.named_buffers(), into)


def evaluate_run(
    run: str | Path,
    names: list[str] | None = None,
    num_samples: int | None = None,
    kimg: float | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    policies: Sequence[str] | None = None,
) -> tuple[str, Accelerator]:
    """Score a run's checkpoint and write the scores as JSON.

    Args:
        names: averages, "live" among them; None is all of them.
        out: where the JSON goes; None is RUN/evaluations/<nimg>.json, with a number where that is taken.
        policies: of BatchNorm; None is the run's own.
        The rest as `RunScorer`.

    Returns:
        The table as text, and the Accelerator that was used.

    Raises:
        UserError: as `load_generator`.
    """
    scorer = RunScorer(run, num_samples, kimg, overrides)
    path, config = scorer.path, scorer.config
    target = Path(out) if out is not None else free_name(Path(run) / "evaluations", path.name)
    if target.is_dir() or not all(parent.is_dir() for parent in target.parents if parent.exists()):
        raise UserError(f"--out: {str(target)!r} cannot be a file there; choose another path")
    there = averages_of(path)
    for name in names or ():
        if name not in there:
            raise UserError(f"--average: {run} has no average {name!r} at {int(path.name) / 1000:g} kimg{did_you_mean(name, there)}")
    times = {}
    for name in rebuilt_of(Path(run)):
        try:
            times[name] = read_manifest(Path(run) / AVERAGES_FOLDER / name)["nimg"]
        except Damaged:
            if name in (names or ()):
                raise
            times[name] = -1  # belongs to no moment: left out where all are asked for
    if kimg is not None:
        for name in names or ():
            require_time(name, times.get(name, int(path.name)), kimg)
    for policy in policies or ():
        if policy not in POLICIES:
            raise UserError(f"--batchnorm: no policy {policy!r}{did_you_mean(policy, POLICIES)}; or all, alone")
    if names is None:  # of those that were rebuilt, only what belongs to this moment
        names = [name for name in there if times.get(name, int(path.name)) == int(path.name)]
    scorer.prepare()
    chosen = list(policies or [config.eval.batchnorm])
    by_policy: dict[str, Scores] = {}
    for policy in chosen:
        # The live weights' own running statistics are what `copy` takes.
        same = LIVE in names and policy == "average" and "copy" in by_policy
        scores = scorer.score([name for name in names if not (same and name == LIVE)], policy)
        by_policy[policy] = {name: by_policy["copy"][LIVE] if same and name == LIVE else scores[name] for name in names}
    accelerator, protocol = scorer.accelerator, scorer.evaluator.protocol(chosen[0])
    if not accelerator.is_main_process:
        return "", accelerator
    target.parent.mkdir(parents=True, exist_ok=True)
    apart = {name: nimg for name, nimg in times.items() if name in names and nimg != int(path.name)}
    record = {"nimg": int(path.name), **({"nimg_of_rebuilt": apart} if apart else {}), **protocol}
    if len(chosen) == 1:
        record["scores"] = by_policy[chosen[0]]
    else:
        record |= {"eval/batchnorm": chosen, "scores_by_batchnorm": by_policy}
        record["eval/batchnorm_batches"] = {policy: scorer.evaluator.protocol(policy)["eval/batchnorm_batches"] for policy in chosen}
    target.write_text(json.dumps(as_json(record), indent=1) + "\n")
    text = table(by_policy[chosen[0]]) if len(chosen) == 1 else policy_tables(by_policy)
    others = "".join(f"; {name} at {nimg / 1000:g} kimg" for name, nimg in apart.items())
    head = f"{run} at {int(path.name) / 1000:g} kimg{others}, {config.eval.num_samples} samples, BatchNorm {', '.join(chosen)}; also in {target}"
    return f"{head}\n{text}", accelerator


def free_name(folder: Path, stem: str) -> Path:
    """The first of stem.json, stem-2.json, ... that is free: an evaluation never overwrites another."""
    names = (f"{stem}{f'-{i}' if i > 1 else ''}.json" for i in itertools.count(1))
    return next(folder / name for name in names if not (folder / name).exists())
