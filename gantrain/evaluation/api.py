"""Scores of what no run of gantrain has made: a generator of one's own, a tensor, a folder or an archive of images.

`evaluate` is `gantrain.evaluate`; `evaluate_images` is behind `gantrain evaluate FOLDER --reference ...`, and `write_reference` behind
`gantrain reference`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from torch import Tensor, nn
from torch.utils.data import Dataset

from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.config.plugins import find
from gantrain.config.sections import Eval
from gantrain.data import ImageSet
from gantrain.distributed import from_main, make_accelerator
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator, apart_from
from gantrain.evaluation.image_files import Pictures, of_array, of_folder, of_tensor, of_zip
from gantrain.evaluation.references import Reference, of_dataset, of_pictures
from gantrain.metrics import EXTRACTORS
from gantrain.metrics.statistics import read_statistics
from gantrain.models.architecture import is_latent_generator
from gantrain.sampling.latents import draw

FEWEST = 16  # generated images, as for eval.num_samples
YAML = (".yaml", ".yml")
OF_A_GENERATOR = ("eval/batchnorm", "eval/batchnorm_batches", "eval/truncation")  # of a protocol: images have none
Images = Callable[[int, int], Tensor]  # (start, count) -> `[count, C, H, W]`, uint8 or float in [-1, 1]


def evaluate(
    generator: Any,
    reference: str | Path | Tensor | Dataset,
    num_samples: int | None = None,
    metrics: Sequence[str] = Eval.metrics,
    features: Any = "digits",
    seed: int = 0,
    batch_size: int = Eval.batch_size,
    truncation: float | None = None,
    batchnorm: str | None = None,
    resamples: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Score a generator, or images, that need have nothing to do with gantrain.

        class G(torch.nn.Module):
            dim_z, num_classes = 128, 10
            def forward(self, z, y): ...                       # z [N, 128] standard normal, y [N] int64; images in [-1, 1]

        scores = gantrain.evaluate(G(), "cifar10.npz", num_samples=50_000, features="inception")
        print(scores["fid"], scores["is"])                     # by other features: digits_fid, ...

    The module's modes, buffers and gradients, the global random state and the gradient mode are afterwards as they were. Under
    `accelerate launch` the processes share the work, and all of them get the scores.

    Args:
        generator: `G(z, y)` with attributes `dim_z` and `num_classes`, a module or not; or a function `sample(start, count)` that gives
            images start .. start + count - 1; or images themselves: a tensor (uint8 `[N, C, H, W]`), or a path of a folder, zip or
            .npz (`arr_0`, uint8 `[N, H, W, C]`). What a generator gives is uint8, or float in [-1, 1] and is rounded.
        reference: a path (see `gantrain.evaluation.references`), a tensor like those, or a torch data set of (uint8 `[C, H, W]`, label), which is
            read into memory.
        num_samples: how many images; None is all there are, of a generator 10,000.
        metrics: names from `gantrain.metrics.METRICS`, or `module:Class`.
        features: "digits" or "inception", `module:Class`, or an extractor such as `InceptionFeatures(weights=PATH)`.
        seed: of z and y.
        batch_size: images a forward.
        truncation: draw z from the normal cut at this absolute value.
        batchnorm: None leaves BatchNorm's statistics as they are; "recalibrate" and "batch" as `eval.batchnorm`, in a copy of the module.
        resamples: random halves behind a 95% interval of each score, under `<score>_ci95`.
        device: where features are computed; None is the process's own.

    Returns:
        Scores by name, with the extractor's prefix.

    Raises:
        UserError: in one line, what cannot be scored and why.
    """
    accelerator = Accelerator() if is_initialized() else make_accelerator()
    device = accelerator.device if device is None else torch.device(device)
    extractor = find("feature extractor", EXTRACTORS, features)() if isinstance(features, str) else features
    fixed = pictures_of(generator)
    total = count_of(fixed, num_samples, "num_samples") if fixed else Eval.num_samples if num_samples is None else num_samples
    if batchnorm not in (None, "recalibrate", "copy", "batch"):
        raise UserError(f"batchnorm: must be one of recalibrate, copy, batch, or None, got {batchnorm!r}")
    real = None if isinstance(reference, (str, Path)) else reference_of(reference)
    path = str(reference) if real is None else None
    settings = Eval(
        num_samples=total, metrics=tuple(metrics), features=extractor, batch_size=batch_size, truncation=truncation,
        resamples=resamples, reference=path, reference_samples=None, batchnorm=batchnorm or "copy",
    )  # fmt: skip
    config = Config(seed=seed, eval=settings)
    source = accelerator.unwrap_model(generator) if isinstance(generator, nn.Module) else fixed or generator
    with images_from(source, config, device) as (images, fit):
        with apart_from(device):
            shape = fixed.shape if fixed else tuple(images(0, 1).shape[1:])
        evaluator = Evaluator(config, real, accelerator, shape=shape, device=device)
        fit(evaluator)
        return scores_of(evaluator, images, total, "score")


def scores_of(evaluator: Evaluator, images: Images, total: int, title: str) -> dict[str, float]:
    """Scores of images 0 .. total - 1, the same on every process."""
    with evaluator.apart():
        real = evaluator.reference()
        return from_main(evaluator.accelerator, evaluator.metrics_of(evaluator.extract(images, total, title), real))


# ---- what is scored --------------------------------------------------------------------------------------------------


def pictures_of(source: Any) -> Pictures | None:
    """Images that are there already; None for what makes them."""
    if isinstance(source, Tensor):
        return of_tensor("images", source)
    return open_pictures(Path(source)) if isinstance(source, (str, Path)) else None


def open_pictures(path: Path) -> Pictures:
    """The images in a folder, zip or .npz.

    Raises:
        UserError: there are none.
    """
    if path.is_dir():
        return of_folder(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return of_zip(path)
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path}: {'is' if path.exists() else 'there is'} no folder, zip or .npz of images; give one")
    file = read_statistics(path)
    if file.images is None:
        raise UserError(
            f"{path}: holds statistics and no images (arr_0, uint8 [N, H, W, C]); it can be a --reference, and not what is scored"
        )
    return of_array(path.name, file.images, file.content)


def count_of(pictures: Pictures, wanted: int | None, option: str) -> int:
    """How many of the images are scored: the first `wanted`, or all.

    Raises:
        UserError: there are fewer.
    """
    if len(pictures) < FEWEST:
        raise UserError(f"{pictures.name}: has {len(pictures)} images; scores need at least {FEWEST}")
    if wanted is not None and not FEWEST <= wanted <= len(pictures):
        raise UserError(f"{option}: {pictures.name} has {len(pictures)} images, so it must be between {FEWEST} and that, got {wanted}")
    return len(pictures) if wanted is None else wanted


@contextmanager
def images_from(source: Any, config: Config, device: torch.device) -> Iterator[tuple[Images, Callable[[Evaluator], None]]]:
    """(images by position, what fits BatchNorm once there is an evaluator), of pictures, a generator, or a function.

    Raises:
        UserError: it is none of these.
    """
    nothing = lambda evaluator: None  # noqa: E731
    e = config.eval
    if isinstance(source, Pictures):
        yield (lambda start, count: source.take(range(start, start + count))), nothing
        return
    if not callable(source):
        raise UserError(
            f"generator: must be G(z, y) with dim_z and num_classes, sample(start, count), a tensor or a path, got {type(source).__name__}"
        )
    if not is_latent_generator(source):
        if isinstance(source, nn.Module):
            raise UserError(
                f"generator: {type(source).__name__} has no dim_z or no num_classes; set both, or give a function sample(start, count)"
            )
        yield torch.no_grad()(checked(source)), nothing
        return
    module = source if isinstance(source, nn.Module) else None
    if module is not None and e.batchnorm != "copy":
        source = module = copy.deepcopy(module)  # its statistics will be others
    where = next((p.device for p in module.parameters()), device) if module is not None else device
    modes = [(m, m.training) for m in module.modules()] if module is not None else []

    def sample(start: int, count: int) -> Tensor:
        z, y = draw(config.seed, "eval", start, count, source.dim_z, source.num_classes, where, e.truncation)
        return source(z, y)

    try:
        if module is not None:
            module.eval()
        yield torch.no_grad()(checked(sample)), (lambda evaluator: evaluator.fit_batchnorm(module)) if module is not None else nothing
    finally:
        for one, mode in modes:
            one.training = mode


def checked(sample: Images) -> Images:
    """The same function, refused where it gives no images."""

    def images(start: int, count: int) -> Tensor:
        x = sample(start, count)
        good = isinstance(x, Tensor) and x.dim() == 4 and len(x) == count and (x.dtype == torch.uint8 or x.is_floating_point())
        if not good:
            got = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"generator: must give images [{count}, C, H, W], uint8 or float in [-1, 1], and gives {got}")
        return x

    return images


def reference_of(reference: Any) -> Reference:
    """Real images in memory as a reference.

    Raises:
        UserError: they are no images.
    """
    if isinstance(reference, ImageSet):
        return of_dataset(reference, None)
    if isinstance(reference, Tensor):
        return of_pictures(of_tensor("tensor", reference))
    if not (hasattr(reference, "__getitem__") and hasattr(reference, "__len__")):
        raise UserError(
            f"reference: must be a path, a uint8 tensor [N, C, H, W] or a data set of (image, label), got {type(reference).__name__}"
        )
    items = (reference[i] for i in range(len(reference)))
    images = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
    strange = next((x for x in images if not isinstance(x, Tensor) or x.shape != images[0].shape), None)
    if strange is not None:
        what = list(strange.shape) if isinstance(strange, Tensor) else type(strange).__name__
        raise UserError(f"reference: {type(reference).__name__} must give uint8 images [C, H, W] of one size, and gives {what}")
    return of_pictures(of_tensor(type(reference).__name__, torch.stack(images) if images else torch.empty(0)))


def of_eval(overrides: Sequence[str], what: str) -> Config:
    """Defaults of `eval`, all of a reference's images taken, with overrides."""
    for override in overrides:
        if not override.startswith("eval."):
            raise UserError(f"{override}: {what} take overrides of eval only: there is no run to have other sections")
    chosen = any(text.startswith(("eval.reference_samples=", "eval.protocol=")) for text in overrides)
    return load(None, [*([] if chosen else ["eval.reference_samples=null"]), *overrides])
