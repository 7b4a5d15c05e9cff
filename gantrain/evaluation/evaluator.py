"""Scores: generator to samples to features to metrics, over all processes, leaving no trace on training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from gantrain.averaging import LIVE, recalibrate
from gantrain.averaging.batchnorm import normalise_by_batch
from gantrain.config.config import Config
from gantrain.config.plugins import find
from gantrain.config.sections import Eval
from gantrain.data import ImageSet
from gantrain.distributed import from_main, local_processes, main_first, on_any_process, sum_over_processes, tensors_from_main
from gantrain.evaluation.references import Reference, of_dataset, open_reference
from gantrain.images import to_uint8
from gantrain.metrics import METRICS, FeatureSet, Metric, half_widths
from gantrain.metrics.feature_cache import cached, fingerprint, keep
from gantrain.metrics.statistics import Statistics
from gantrain.sampling.latents import calibration_batches, draw
from gantrain.score_names import Scores

PROBE = 64, 8  # images and features of what stands in for features that are no numbers


class AtOnce(Executor):
    """Does what it is given before it takes anything else."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Interrupted(Exception):
    """An evaluation was left because the run was asked to stop. Nothing has come of it."""


class Evaluator:
    """Scores generators against one reference: a data set, or what `eval.reference` names.

    The samples are a function of (seed, position) alone, cut into chunks that the processes share out, and the features
    are put back in order: the scores do not depend on how many processes there are.

    Args:
        config: of the run; its `eval` section says what is computed.
        images: the real images, a data set or an opened reference; None where `eval.reference` names some.
        accelerator: of the program.
        show_progress: draw a bar on a terminal.
        shape: (C, H, W) of generated images; None is that of the real ones.
        device: where features are computed; None is the accelerator's.

    Raises:
        UserError: the reference has too few images, or is a file that the metrics or the extractor cannot be compared with.
    """

    def __init__(
        self, config: Config, images: ImageSet | Reference | None, accelerator: Accelerator, show_progress: bool = True,
        shape: tuple[int, int, int] | None = None, device: torch.device | None = None,
    ):  # fmt: skip
        self.config, self.accelerator, self.device = config, accelerator, device or accelerator.device
        self.show_progress = show_progress and accelerator.is_main_process
        e = config.eval
        self.metrics = [metric_of(name, e) for name in e.metrics]
        self.prefix = e.features.metric_prefix
        self._extractor = None
        self._asked_to_stop: Callable[[], bool] | None = None
        self._reference: FeatureSet | None = None
        wanted = {name: str(metric.needs) for name, metric in zip(e.metrics, self.metrics)}
        if isinstance(images, Reference):
            self.real = images
        elif e.reference is None:
            self.real = of_dataset(images, e.reference_samples)
        else:
            opened = lambda: open_reference(e.reference, e.reference_samples, self.device, "features" in wanted.values())  # noqa: E731
            self.real = main_first(accelerator, opened)
        if self.real.statistics is not None:  # now, and not after the training
            shape = shape or self.real.shape or (images.channels, images.resolution, images.resolution)
            self.require_extractor(self.real.statistics, shape)
        self.real.require(wanted)

    def require_extractor(self, file: Statistics, shape: tuple[int, int, int]) -> None:
        """Refuse a file of other features than the configured ones, whose width one forward tells."""
        features, _ = self.extractor.extract(torch.zeros(1, *shape, dtype=torch.uint8, device=self.device))
        file.require_extractor(self.extractor.identity, features.shape[1])

    @property
    def extractor(self):
        """The feature extractor, built at first use; one process a machine downloads it first."""
        if self._extractor is None:
            features = self.config.eval.features
            main_first(self.accelerator, features.fetch)
            self._extractor = features.build(self.device)
        return self._extractor

    @property
    def num_reference(self) -> int | None:
        """Real images; None where a file does not say."""
        return self.real.count

    @property
    def reference_fingerprint(self) -> str:
        """What the reference is, known before any feature of it is: SHA-256 (16 hex digits) of its content and the extractor.

        Where the extractor has not been built yet, all processes must ask.
        """
        return fingerprint(self.real.content, self.real.count if self.real.take is None else self.real.taken, self.extractor.identity)

    def protocol(self, policy: str | None = None) -> dict[str, object]:
        """What a score must be quoted with; `policy` is BatchNorm's where it was not the configured one."""
        e = self.config.eval
        policy = policy or e.batchnorm
        stated = {"recalibrate": f"{e.recalibration_batches} x {e.batch_size}", "batch": f"{e.batch_size}"}
        return {
            "eval/protocol": e.protocol,
            "eval/num_samples": e.num_samples,
            "eval/reference": self.real.described,
            "eval/reference_fingerprint": self.reference_fingerprint,
            "eval/features": self.extractor.identity,
            "eval/is_splits": e.is_splits,
            "eval/resamples": e.resamples,
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
        with apart_from(self.accelerator.device):
            yield

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
        on_its_gpu = (
            {"initializer": torch.cuda.set_device, "initargs": (device,)} if device.type == "cuda" else {}
        )  # a new thread's is the first
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
            z, y = draw(
                self.config.seed, "eval", start, count, generator.dim_z, generator.num_classes, self.accelerator.device, e.truncation
            )
            return generator(z, y)

        return self.extract(chunk, e.num_samples, f"score {name}", owner)

    def reference(self) -> FeatureSet | None:
        """Features of the real images, from the cache where they were computed before; the same on every process."""
        if self._reference is not None:
            return self._reference
        real, main = self.real, self.accelerator.is_main_process
        if real.take is None:
            self._reference = real.statistics.featureset()
            return self._reference
        name = self.reference_fingerprint  # on every process: all take part in building the extractor
        found = cached(name) if main else None
        if from_main(self.accelerator, found is not None):
            both = tensors_from_main(self.accelerator, [found.features, found.logits] if main else [])
            found = found if main else FeatureSet(*both)
        else:
            found = self.extract(real.take, real.taken, "reference", None)
            if main:
                keep(name, found)
        if real.statistics is not None:
            found.given = real.statistics.moments  # of more images, perhaps, than lie in the file
        self._reference = found
        return found

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
            x = chunk(start, count).to(self.device)
            features, logits = self.extractor.extract(to_uint8(x) if x.is_floating_point() else x)
            width = features.shape[1]
            both = torch.cat([features.float(), logits.float()], dim=1)
            if x.is_floating_point():  # bytes cannot say nan
                both = both.masked_fill(~torch.isfinite(x).flatten(1).all(dim=1)[:, None], float("nan"))
            if world > 1:
                padded = torch.zeros(size, both.shape[1], device=self.accelerator.device)
                padded[:count] = both
                both = self.accelerator.gather(padded)
            if owner in (None, rank):
                rows.append(both.cpu())
        if owner not in (None, rank):
            return None
        everything = torch.cat(rows)[:total]
        return FeatureSet(everything[:, :width].contiguous(), everything[:, width:].contiguous())

    def metrics_of(self, fake: FeatureSet | None, real: FeatureSet | None) -> dict[str, float]:
        """All configured metrics with their extractor's prefix, and intervals where `eval.resamples` asks; nan where a generator puts out no numbers."""
        if fake is None or real is None:
            return {}
        whole = bool(torch.isfinite(fake.features).all() and torch.isfinite(fake.logits).all())
        if not whole:
            fake = real = FeatureSet(*torch.rand(2, *PROBE, generator=torch.Generator().manual_seed(0)))
        score = lambda some: {self.prefix + name: value for metric in self.metrics for name, value in metric.compute(some, real).items()}  # noqa: E731
        found = score(fake)
        if self.config.eval.resamples is not None:
            found |= half_widths(score, fake, self.config.eval.resamples, self.config.seed)
        return found if whole else dict.fromkeys(found, float("nan"))


@contextmanager
def apart_from(device: torch.device) -> Iterator[None]:
    """Inside, the global random state may be used and nothing is rounded to TF32; afterwards both are as before."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def metric_of(name: str, settings: Eval) -> Metric:
    """A metric by name, with those of its fields that keys of `eval` set."""
    cls: type[Metric] = find("metric", METRICS, name)
    return cls(**{field: getattr(settings, key) for field, key in cls.of_eval.items()})
