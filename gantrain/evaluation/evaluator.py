"""Scoring a generator: samples, features, metrics. Processes share the work, and training is not affected."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

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
from gantrain.distributed import from_main, local_processes, main_first, on_any_process, on_main, sum_over_processes, tensors_from_main
from gantrain.errors import UserError
from gantrain.evaluation.collapse import describe_collapse
from gantrain.evaluation.references import Reference, open_reference, wrap_dataset
from gantrain.evaluation.score_notes import Remarks
from gantrain.images import to_uint8
from gantrain.metrics import METRICS, Extractor, FeatureSet, Metric, half_widths
from gantrain.metrics.feature_cache import cached, fingerprint, keep
from gantrain.metrics.results import compute_metric, extract_features, require_extractor
from gantrain.sampling.latents import GeneratorModule, calibration_batches, choose_label_counts, draw
from gantrain.score_names import Scores

PROBE = 64, 8  # images and features of the random ones that replace features that are not finite


class ImmediateExecutor(Executor):
    """Runs each task when it is submitted, in the calling thread."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run `fn` and return its result as a future that is done."""
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Interrupted(Exception):
    """The run was asked to stop during an evaluation, which gives no scores."""


def find_reference(
    settings: Eval, images: ImageSet | Reference | None, accelerator: Accelerator, device: torch.device, with_images: bool
) -> Reference:
    """The reference of an `Evaluator`, whose arguments these are; `with_images` as in `open_reference`."""
    path, most = settings.reference, settings.reference_samples
    if isinstance(images, Reference):
        return images
    if path is None:
        assert images is not None, "without eval.reference the caller passes the images"
        return wrap_dataset(images, most)
    return main_first(accelerator, lambda: open_reference(path, most, device, with_images))


class Evaluator:
    """Scores generators against one reference: a data set, or what `eval.reference` names.

    Samples depend only on (seed, position). Processes share them in chunks, and features are put back in order, so that scores do
    not depend on the number of processes.

    Args:
        config: of the run; its `eval` section says what is computed.
        images: the real images, as a data set or an open reference; None if `eval.reference` names them.
        accelerator: of the program.
        show_progress: show a progress bar on a terminal.
        shape: (C, H, W) of generated images; None takes that of the real ones.
        device: where features are computed; None takes the accelerator's.
        num_classes: classes of the generator; None takes those of a data set, else 1.
        scored: returns some of the scored images, uint8; see `Remarks`.
        class_counts: images per class of the data that the generator was trained on, for `labels: data`; None takes those of a data
            set, else those of the reference.

    Attributes:
        label_counts: how often each class is drawn, see `draw_labels`.
        collapsed: how each generator of the last `score` has collapsed, in words; "" if it has not.
        remarks: what must stand beside the scores.

    Raises:
        UserError: the reference has too few images, or is a file that lacks what the metrics or the extractor need; or the counts that
            `labels: data` needs are not known.
    """

    def __init__(
        self, config: Config, images: ImageSet | Reference | None, accelerator: Accelerator, show_progress: bool = True,
        shape: tuple[int, int, int] | None = None, device: torch.device | None = None, num_classes: int | None = None,
        scored: Callable[[], Tensor] | None = None, class_counts: Sequence[int] | None = None,
    ):  # fmt: skip
        self.config, self.accelerator, self.device = config, accelerator, device or accelerator.device
        self.show_progress = show_progress and accelerator.is_main_process
        e = config.eval
        self.metrics = [build_metric(name, e) for name in e.metrics]
        self.prefix = e.features.metric_prefix
        self._extractor: Extractor | None = None
        self._asked_to_stop: Callable[[], bool] | None = None
        self._reference: FeatureSet | None = None
        self.collapsed: dict[str, str] = {}
        wanted = {name: str(metric.needs) for name, metric in zip(e.metrics, self.metrics)}
        self.real = find_reference(e, images, accelerator, self.device, "features" in wanted.values())
        shape = shape or self.real.shape
        if shape is None:
            assert isinstance(images, ImageSet), "without a shape the caller passes the data set"
            shape = images.channels, images.resolution, images.resolution
        self.shape = shape
        if self.real.statistics is not None:  # checked before training, which would otherwise fail later
            self.real.statistics.require_extractor(self.extractor.identity, self.widths[0])
        self.real.require(wanted)
        trained_on = images if isinstance(images, ImageSet) else None
        classes = num_classes or (trained_on.num_classes if trained_on else 1)
        if class_counts is None and config.labels != "uniform":
            class_counts = trained_on.class_counts if trained_on else self.real.class_counts
        self.label_counts = choose_label_counts(config.labels, class_counts, classes, self.real.name)
        self.remarks = Remarks(
            e, self.metrics, self.real, trained_on if e.reference else None, classes, lambda: self.widths, scored, self.label_counts
        )

    # ---- reference and protocol ----

    @functools.cached_property
    def widths(self) -> tuple[int, int]:
        """(features, logits) per image, from one forward of the extractor. All processes must ask for it the first time."""
        with torch.no_grad(), self.isolated():
            features, logits = extract_features(
                self.extractor, torch.zeros(1, *self.shape, dtype=torch.uint8, device=self.device), self.config.eval.features
            )
        return features.shape[1], logits.shape[1]

    @property
    def extractor(self) -> Extractor:
        """The feature extractor, built at first use; one process per machine downloads its weights first."""
        if self._extractor is None:
            features = self.config.eval.features
            main_first(self.accelerator, features.fetch)
            with self.isolated():  # a network draws its first weights
                self._extractor = features.build(self.device)
            require_extractor(self._extractor, features)
        assert self._extractor is not None
        return self._extractor

    @property
    def num_reference(self) -> int | None:
        """Number of real images; None if a file does not say."""
        return self.real.count

    @property
    def reference_fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the reference's content and the extractor; needs no features.

        If the extractor has not been built yet, all processes must ask for it.
        """
        count = self.real.count if self.real.take is None else self.real.taken
        return fingerprint(self.real.content, count, self.extractor.identity)

    def protocol(self, policy: str | None = None) -> dict[str, object]:
        """The protocol that a score must be quoted with; `policy` is the BatchNorm policy, None the configured one."""
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
            **self.remarks.as_protocol(),
        }

    def reference(self) -> FeatureSet:
        """Features of the real images, the same on every process; read from the cache if they were computed before."""
        if self._reference is not None:
            return self._reference
        real, main = self.real, self.accelerator.is_main_process
        if real.take is None:
            assert real.statistics is not None, "a reference has images or statistics"
            self._reference = real.statistics.featureset()
            return self._reference
        name = self.reference_fingerprint  # on every process: all of them build the extractor
        found = cached(name) if main else None
        if from_main(self.accelerator, found is not None):
            tensors = tensors_from_main(self.accelerator, [] if found is None else [found.features, found.logits])
            found = FeatureSet(tensors[0], tensors[1]) if found is None else found
        else:
            found = self.extract(real.take, real.taken, "reference", None)
            assert found is not None, "every process gets the features"
            on_main(self.accelerator, functools.partial(keep_if_unchanged, real, name, found))
        if real.statistics is not None:
            found.given = real.statistics.moments  # possibly of more images than the file contains
        self._reference = found
        return found

    # ---- scores ----

    @contextmanager
    def interruptible(self, asked_to_stop: Callable[[], bool]) -> Iterator[None]:
        """Within this context, scoring raises `Interrupted` between two chunks if any process was asked to stop."""
        self._asked_to_stop = asked_to_stop
        try:
            yield
        finally:
            self._asked_to_stop = None

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Within this context, the global random state may be used and TF32 is off; both are restored afterwards."""
        with isolate(self.accelerator.device):
            yield

    def score(
        self, names: list[str], materialize: Callable[[str, nn.Module, bool], None], generator: GeneratorModule, policy: str | None = None
    ) -> Scores:
        """Score several weights of one architecture.

        Args:
            names: of averages, or "live".
            materialize: writes the named weights into a module, with the average's own BatchNorm statistics if the third
                argument is true.
            generator: the module to write into, not the one in training.
            policy: of BatchNorm; None takes the configured one.

        Returns:
            Metrics by name on the main process; empty mappings on the others.

        Raises:
            Interrupted: see `interruptible`.
        """
        policy = policy or self.config.eval.batchnorm
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.collapsed = {}
        with self.isolated(), metrics_executor(self.accelerator.device) as executor:
            reference = self.reference()
            mine: dict[str, Future[dict[str, float]]] = {}
            # The processes sample W averages together; then each of them computes the metrics of one.
            for turn in range(0, len(names), world):
                own: tuple[str, FeatureSet | None] | None = None
                for owner, name in enumerate(names[turn : turn + world]):
                    materialize(name, generator, policy == "average")
                    self.fit_batchnorm(generator, policy)
                    features = self.generate_features(generator, name, owner)
                    self.collapsed[name] = self.describe_collapse(generator)
                    own = (name, features) if rank == owner else own
                for pending in mine.values():
                    pending.result()  # keeps the features of at most two averages in memory
                if own:
                    mine[own[0]] = executor.submit(self.compute_metrics, own[1], reference)
            scores = {name: done.result() for name, done in mine.items()}
        if world > 1:
            scores = {name: metrics for one in gather_object([scores]) for name, metrics in one.items()}
        return {name: scores[name] if self.accelerator.is_main_process else {} for name in names}

    def fit_batchnorm(self, generator: GeneratorModule, policy: str | None = None) -> None:
        """Fit BatchNorm to the generator's weights by a policy, None being the configured one, and switch to evaluation mode."""
        policy = policy or self.config.eval.batchnorm
        if policy == "recalibrate":
            self.recalibrate(generator)
        generator.eval()
        if policy == "batch":
            normalise_by_batch(generator)

    def recalibrate(self, generator: GeneratorModule) -> None:
        """Recompute BatchNorm statistics over all processes; the modules' training modes do not change."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = calibration_batches(self.config, generator, self.config.eval.truncation, rank, world, self.label_counts)
        recalibrate(generator, batches, self.config.eval.recalibration_batches, sum_over_processes(self.accelerator))

    def draw(self, generator: GeneratorModule, start: int, count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The (z, y) of scored images start .. start + count - 1; `device` None is the accelerator's."""
        c, where = self.config, device or self.accelerator.device
        dim_z, classes = generator.dim_z, generator.num_classes
        return draw(c.seed, "eval", start, count, dim_z, classes, where, c.eval.truncation, self.label_counts)

    def generate_features(self, generator: GeneratorModule, name: str = LIVE, owner: int = 0) -> FeatureSet | None:
        """Generate `num_samples` images and extract their features; None on all processes but `owner`."""
        e = self.config.eval

        def chunk(start: int, count: int) -> Tensor:
            return generator(*self.draw(generator, start, count))

        return self.extract(chunk, e.num_samples, f"score {name}", owner)

    def describe_collapse(self, generator: GeneratorModule, device: torch.device | None = None) -> str:
        """Say how a generator in evaluation mode has collapsed; empty if it has not. Every process finds the same.

        Args:
            device: of the generator; None is the accelerator's.
        """
        e, take = self.config.eval, self.real.take
        some = None if take is None else functools.partial(take, 0, min(e.batch_size, self.real.taken))
        return describe_collapse(generator, self.config.seed, device or self.accelerator.device, e.batch_size, e.truncation, some)

    @torch.no_grad()
    def extract(self, chunk: Callable[[int, int], Tensor], total: int, title: str, owner: int | None = 0) -> FeatureSet | None:
        """Extract features of images 0 .. total - 1 in order, each of W processes extracting every W-th chunk.

        Args:
            chunk: (start, count) to images `[count, C, H, W]`, uint8 or float in [-1, 1].
            total: how many images.
            title: of the progress bar.
            owner: the process that gets the features; None gives them to every process.

        Returns:
            The features; None on processes other than `owner`. Those of an image with nan or infinity in it are nan.

        Raises:
            Interrupted: see `interruptible`.
        """
        size, world, rank = self.config.eval.batch_size, self.accelerator.num_processes, self.accelerator.process_index
        chunks = -(-total // size)
        rows, width = [], 0
        for turn in tqdm(range(-(-chunks // world)), desc=title, leave=False, disable=None if self.show_progress else True):
            if self._asked_to_stop and on_any_process(self.accelerator, self._asked_to_stop()):
                raise Interrupted
            # A process without a chunk of its own repeats the last one, because all of them take part in the gather.
            start = min(turn * world + rank, chunks - 1) * size
            count = min(size, total - start)
            x = chunk(start, count).to(self.device)
            features, logits = extract_features(self.extractor, to_uint8(x) if x.is_floating_point() else x, self.config.eval.features)
            width = features.shape[1]
            both = torch.cat([features.float(), logits.float()], dim=1)
            if x.is_floating_point():  # uint8 has no nan
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

    def compute_metrics(self, fake: FeatureSet | None, real: FeatureSet | None) -> dict[str, float]:
        """Compute all configured metrics, with the extractor's prefix, and their intervals if `eval.resamples` is set.

        All are nan if the features of generated images are not finite. Empty on a process that has no features.
        """
        if fake is None or real is None:
            return {}
        finite = bool(torch.isfinite(fake.features).all() and torch.isfinite(fake.logits).all())
        if not finite:  # random features, only to get the names of the scores
            features, logits = torch.rand(2, *PROBE, generator=torch.Generator().manual_seed(0))
            fake = real = FeatureSet(features, logits)

        def score(some: FeatureSet) -> dict[str, float]:
            return {self.prefix + name: value for metric in self.metrics for name, value in compute_metric(metric, some, real).items()}

        found = score(fake)
        if self.config.eval.resamples is not None:
            found |= half_widths(score, fake, self.config.eval.resamples, self.config.seed)
        return found if finite else dict.fromkeys(found, float("nan"))


def keep_if_unchanged(real: Reference, name: str, features: FeatureSet) -> None:
    """Keep the features of a reference in the cache, unless its files may have changed since its content was read.

    Raises:
        UserError: they have changed: the fingerprint is not that of the features.
    """
    unchanged = real.is_unchanged()
    if unchanged:
        keep(name, features)
    elif unchanged is False:
        raise UserError(f"{real.name}: its images were changed while they were read as a reference; run the same command again")


@contextmanager
def metrics_executor(device: torch.device) -> Iterator[Executor]:
    """An executor for metrics: a thread that works while the next average is sampled, unless sampling keeps all cores busy."""
    if device.type == "cpu" and torch.get_num_threads() * local_processes() >= (os.cpu_count() or 1):
        yield ImmediateExecutor()
        return
    # The current device of a new thread is the first one.
    with ThreadPoolExecutor(1, initializer=lambda: torch.cuda.set_device(device) if device.type == "cuda" else None) as pool:
        yield pool


@contextmanager
def isolate(device: torch.device) -> Iterator[None]:
    """Within this context, the global random state may be used and TF32 is off; both are restored afterwards."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def build_metric(name: str, settings: Eval) -> Metric:
    """Build a metric by name, setting the fields that keys of `eval` belong to (`of_eval` of its class)."""
    cls: type[Metric] = find("metric", METRICS, name)
    return cls(**{field: getattr(settings, key) for field, key in cls.of_eval.items()})
