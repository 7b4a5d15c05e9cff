"""Scores of generators and images from outside gantrain: `gantrain.evaluate`, and helpers that it shares with commands.

`gantrain evaluate FOLDER --reference ...` and `gantrain reference` (in `gantrain.commands`) use the helpers below.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from gantrain.config.config import Config
from gantrain.config.loading import load
from gantrain.config.plugins import find
from gantrain.config.sections import Eval
from gantrain.data import ImageSet
from gantrain.data.listing import is_folder
from gantrain.distributed import from_main, make_accelerator
from gantrain.errors import UserError, readable
from gantrain.evaluation.evaluator import Evaluator, isolate
from gantrain.evaluation.image_files import Pictures, open_folder, open_zip, sample_of, wrap_array, wrap_tensor
from gantrain.evaluation.references import Reference, wrap_dataset, wrap_pictures
from gantrain.evaluation.score_notes import LOOKED_AT
from gantrain.home import expand_user
from gantrain.images import to_uint8
from gantrain.metrics import EXTRACTORS, DigitsFeatures
from gantrain.metrics.features import DIGITS_IDENTITY
from gantrain.metrics.statistics import MOST_CLASSES, read_statistics
from gantrain.models.architecture import is_latent_generator
from gantrain.python_words import in_python, python_remedies
from gantrain.run_folder.contents import configuration_of
from gantrain.run_folder.layout import CONFIG_FILE
from gantrain.sampling.latents import draw
from gantrain.score_names import doubts
from gantrain.shipped import find_config

FEWEST_SCORED = 16  # images, as for eval.num_samples
LAST_3, LAST_4 = ".permute(2, 0, 1)", ".permute(0, 3, 1, 2)"  # of channels that come last
YAML = (".yaml", ".yml")
REFERENCES = "an .npz of statistics or images, a folder or zip of images, a run folder, a CONFIG, or a tensor of images"
GENERATOR_KEYS = ("eval/batchnorm", "eval/batchnorm_batches", "eval/truncation")  # of a protocol; they mean nothing for images
Images = Callable[[int, int], Tensor]  # (start, count) to `[count, C, H, W]`, uint8 or float in [-1, 1]


def evaluate(
    generator: Any, reference: str | Path | Tensor | Dataset, num_samples: int | None = None, metrics: Sequence[str] = Eval.metrics,
    features: Any = None, seed: int = 0, batch_size: int = Eval.batch_size, truncation: float | None = None,
    batchnorm: str | None = None, resamples: int | None = None, device: torch.device | str | None = None,
) -> dict[str, float]:  # fmt: skip
    """Score a generator or images, not necessarily from gantrain.

        class G(torch.nn.Module):
            dim_z, num_classes = 128, 10
            def forward(self, z, y): ...                       # z [N, 128] standard normal, y [N] int64; images in [-1, 1]

        scores = gantrain.evaluate(G(), "cifar10.npz", num_samples=50_000, features="inception")
        print(scores["fid"], scores["is"])                     # other extractors add a prefix: digits_fid, ...

    Module modes, buffers, gradients, the global random state and the gradient mode are restored afterwards. Under
    `accelerate launch` the processes share the work, and all of them return the scores.

    Args:
        generator: `G(z, y)`, a module or function with attributes `dim_z` and `num_classes`; or a function `sample(start, count)`
            that returns images start .. start + count - 1; or images: a tensor (uint8 `[N, C, H, W]`) or the path of a folder,
            zip or .npz (`arr_0`, uint8 `[N, H, W, C]`). A generator returns uint8, or float in [-1, 1], which is rounded.
        reference: the path of an .npz of statistics or images, of a folder or zip of images, of a run folder or of a CONFIG; such a
            tensor; or a torch data set of (uint8 `[C, H, W]`, label), which is read into memory.
        num_samples: how many images; None scores all images, or 10,000 of a generator. Fewer than there are is a random sample of
            images that exist already, drawn without replacement by the seed.
        metrics: names from `gantrain.metrics.METRICS`, or `module:Class`.
        features: "inception", "digits" (for images of digits only), `module:Class`, or an extractor such as
            `InceptionFeatures(weights=PATH)`. None takes those of the reference, if it is a run folder, a CONFIG.yaml, or a file of
            digits features by `gantrain reference`; other references need features.
        seed: of z and y, or of the sample of images.
        batch_size: images per forward pass.
        truncation: draw z from the normal truncated at this absolute value.
        batchnorm: None leaves BatchNorm's statistics as they are; "recalibrate" and "batch", see `eval.batchnorm`, act on a copy.
        resamples: random halves behind a 95% interval of each score, returned as `<score>_ci95`.
        device: where features are computed; None is the process's own.

    Returns:
        Scores by name, with the extractor's prefix. What must be known about them is a Python warning: few images, digits features of
        other images, unbalanced classes, a generator that has collapsed, files that were passed over or that decoding changes.

    Raises:
        UserError: something cannot be scored, or features is needed; one line with the reason.
    """
    with python_remedies():
        accelerator = Accelerator() if is_initialized() else make_accelerator()
        device = accelerator.device if device is None else torch.device(device)
        fixed = open_images(generator)
        total = count_images(fixed, num_samples, "num_samples") if fixed else Eval.num_samples if num_samples is None else num_samples
        real = None if isinstance(reference, (str, Path)) else wrap_reference(reference)
        features = choose_features(reference) if features is None else features
        config = build_config(
            total, metrics, features, seed, batch_size, truncation, batchnorm, resamples, reference if real is None else None
        )
        source: Any = accelerator.unwrap_model(generator) if isinstance(generator, nn.Module) else fixed or generator
        scores, notes = score_source(source, config, real, accelerator, device)
    for note in notes if accelerator.is_main_process else ():
        warnings.warn(in_python(note), stacklevel=2)
    return scores


def score_source(
    source: Any, config: Config, real: Reference | None, accelerator: Accelerator, device: torch.device
) -> tuple[dict[str, float], list[str]]:
    """Score pictures, a generator or a function; returns (the scores, what must be known about them).

    Raises:
        UserError: it is none of these, or something cannot be scored.
    """
    fixed = source if isinstance(source, Pictures) else None
    labels = source.num_classes if is_latent_generator(source) else 1
    with open_source(source, config, device) as (images, fit):
        with isolate(device):
            channels, height, width = fixed.shape if fixed else images(0, 1).shape[1:]

        seen: list[Tensor] = []

        def remembered(start: int, count: int) -> Tensor:
            x = images(start, count)
            if not seen:  # what notes look at: a function is not asked again for it
                seen.append(x[:LOOKED_AT].cpu())
            return x

        def some() -> Tensor:
            found = fixed.some(LOOKED_AT) if fixed else seen[0]
            return to_uint8(found) if found.is_floating_point() else found

        shape = channels, height, width
        evaluator = Evaluator(config, real, accelerator, shape=shape, device=device, num_classes=labels, scored=some)
        evaluator.remarks.require_room("num_samples")
        evaluator.remarks.require_enough()
        collapsed = fit(evaluator)
        scores = score_images(evaluator, remembered, config.eval.num_samples, "score")
        about = [f"{fixed.name}: {note}" for note in fixed.notes] if fixed else []
        about += [f"reference: {note}" for note in evaluator.real.notes]
        notes = [*evaluator.remarks.notes, *doubts({"images": scores})]
        return scores, [*about, *notes, *([f"the generator has collapsed: {collapsed}"] if collapsed else [])]


def choose_features(reference: Any) -> Any:
    """The features that a reference's own configuration or file names.

    Raises:
        UserError: it names none.
    """
    path = find_config(expand_user(reference, "reference")) if isinstance(reference, (str, Path)) else None
    if path is not None and not path.exists():
        raise UserError(f"{path}: there is no such file or folder; pass {REFERENCES}")
    if path is not None and (path / CONFIG_FILE).is_file():
        return configuration_of(path).eval.features
    if path is not None and path.suffix.lower() in YAML and path.is_file():
        return load(path).eval.features
    if path is not None and path.suffix.lower() == ".npz" and path.is_file():
        identity = read_statistics(path).identity or ""
        if identity.startswith(DIGITS_IDENTITY):
            return DigitsFeatures()
    raise UserError(
        "features: pass features='inception' for FID as published (needs its weights, 91 MB), or features='digits' for images of"
        " handwritten digits only"
    )


def build_config(
    num_samples: int, metrics: Sequence[str], features: Any, seed: int, batch_size: int, truncation: float | None, batchnorm: str | None,
    resamples: int | None, reference: Any,
) -> Config:  # fmt: skip
    """Build the configuration behind `evaluate`; arguments as there, `reference` a path or None.

    Raises:
        UserError: a value is out of range.
    """
    extractor = find("feature extractor", EXTRACTORS, features)() if isinstance(features, str) else features
    if batchnorm not in (None, "recalibrate", "copy", "batch"):
        raise UserError(f"batchnorm: must be one of recalibrate, copy, batch, or None, got {batchnorm!r}")
    settings = Eval(
        num_samples=num_samples, metrics=tuple(metrics), features=extractor, batch_size=batch_size, truncation=truncation,
        resamples=resamples, reference=None if reference is None else str(reference), reference_samples=None,
        batchnorm=batchnorm or "copy",
    )  # fmt: skip
    return Config(seed=seed, eval=settings)


def score_images(evaluator: Evaluator, images: Images, total: int, title: str) -> dict[str, float]:
    """Score images 0 .. total - 1; every process returns the same scores."""
    with evaluator.isolated():
        real = evaluator.reference()
        return from_main(evaluator.accelerator, evaluator.compute_metrics(evaluator.extract(images, total, title), real))


# ---- what is scored --------------------------------------------------------------------------------------------------


def open_images(source: Any) -> Pictures | None:
    """Open images that exist already, a tensor or a path; None for anything that generates them."""
    if isinstance(source, Tensor):
        return wrap_tensor("images", source)
    refuse_array("generator", source)
    return open_pictures(Path(source)) if isinstance(source, (str, Path)) else None


def open_pictures(path: Path) -> Pictures:
    """Open the images in a folder, zip or .npz.

    Raises:
        UserError: there are none.
    """
    if is_folder(path):
        return open_folder(path)
    if path.suffix.lower() == ".zip" and path.exists():
        return open_zip(path)
    if path.suffix.lower() != ".npz":
        problem = "is not" if path.exists() else "does not exist; pass"
        raise UserError(f"{path}: {problem} a folder, zip or .npz of images")
    file = read_statistics(path)
    if file.images is None:
        raise UserError(
            f"{path}: contains statistics but no images (arr_0, uint8 [N, H, W, C]), so it cannot be scored; use it as the --reference"
        )
    return wrap_array(readable(path.name), file.images, file.content)


def count_images(pictures: Pictures, wanted: int | None, option: str) -> int:
    """Count the images to be scored: a sample of `wanted`, or all.

    Raises:
        UserError: there are fewer.
    """
    if len(pictures) < FEWEST_SCORED:
        raise UserError(f"{pictures.name}: has {len(pictures)} images; scores need at least {FEWEST_SCORED}")
    if wanted is not None and not FEWEST_SCORED <= wanted <= len(pictures):
        raise UserError(f"{option}: must be between {FEWEST_SCORED} and {len(pictures)}, the images in {pictures.name}, got {wanted}")
    return len(pictures) if wanted is None else wanted


@contextmanager
def open_source(source: Any, config: Config, device: torch.device) -> Iterator[tuple[Images, Callable[[Evaluator], str]]]:
    """Open pictures, a generator or a function for scoring; a module is in evaluation mode inside, and restored afterwards.

    Yields:
        (a function that returns images by position, a function that fits BatchNorm with an evaluator and says how the generator has
        collapsed, if it has).

    Raises:
        UserError: it is none of these.
    """
    e = config.eval
    if isinstance(source, Pictures):
        yield sample_of(source, e.num_samples, config.seed), leave_batchnorm
        return
    if not callable(source):
        raise UserError(
            f"generator: must be G(z, y) with dim_z and num_classes, sample(start, count), a tensor or a path, got {type(source).__name__}"
        )
    if not is_latent_generator(source):
        if isinstance(source, nn.Module):
            raise UserError(
                f"generator: {type(source).__name__} has no dim_z or no num_classes; set both, or pass a function sample(start, count)"
            )
        yield torch.no_grad()(check_images(source)), leave_batchnorm
        return
    module = source if isinstance(source, nn.Module) else None
    if module is not None and e.batchnorm != "copy":
        source = module = copy.deepcopy(module)  # since its statistics will change
    where = next((p.device for p in module.parameters()), device) if module is not None else device
    modes = [(m, m.training) for m in module.modules()] if module is not None else []

    def sample(start: int, count: int) -> Tensor:
        z, y = draw(config.seed, "eval", start, count, source.dim_z, source.num_classes, where, e.truncation)
        return source(z, y)

    def fit(evaluator: Evaluator) -> str:
        if module is not None:
            evaluator.fit_batchnorm(module)
        with evaluator.isolated():
            return evaluator.describe_collapse(source, where)

    try:
        if module is not None:
            module.eval()
        yield torch.no_grad()(check_images(sample)), fit
    finally:
        for one, mode in modes:
            one.training = mode


def leave_batchnorm(evaluator: Evaluator) -> str:
    """Do nothing: the source has no BatchNorm to fit, and no z or y."""
    return ""


def check_images(sample: Images) -> Images:
    """Wrap a function so that it raises UserError if it returns anything but images."""

    def images(start: int, count: int) -> Tensor:
        x = sample(start, count)
        good = isinstance(x, Tensor) and x.dim() == 4 and len(x) == count and (x.dtype == torch.uint8 or x.is_floating_point())
        if not good:
            got = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"generator: must return images [{count}, C, H, W], uint8 or float in [-1, 1], got {got}")
        return x

    return images


# ---- what it is scored against ---------------------------------------------------------------------------------------


def wrap_reference(reference: Any) -> Reference:
    """Use real images in memory, a tensor or a data set, as a reference.

    Raises:
        UserError: they are not images.
    """
    if isinstance(reference, ImageSet):
        return wrap_dataset(reference, None)
    if isinstance(reference, Tensor):
        return wrap_pictures(wrap_tensor("tensor", reference))
    refuse_array("reference", reference)
    name = type(reference).__name__
    if not (hasattr(reference, "__getitem__") and hasattr(reference, "__len__")):
        raise UserError(f"reference: must be a path, a uint8 tensor [N, C, H, W] or a data set of (image, label), got {name}")
    try:
        items = [reference[i] for i in range(len(reference))]
    except (KeyError, TypeError):
        raise UserError(f"reference: {name} has no items 0, 1, 2, ...; pass a uint8 tensor [N, C, H, W] of its images") from None
    images = [item[0] if isinstance(item, (tuple, list)) and item else item for item in items]
    require_images(name, images)
    found = wrap_pictures(wrap_tensor(name, torch.stack(images) if images else torch.empty(0)))
    return replace(found, class_counts=count_labels(items, getattr(reference, "classes", ())))


def require_images(name: str, images: Sequence[Any]) -> None:
    """Refuse items of a data set that are not uint8 tensors `[C, H, W]` of one size, with the way to convert the first strange one.

    Raises:
        UserError: names the item, what it is, and the conversion.
    """
    for number, x in enumerate(images):
        given, remedy = describe_item(x)
        if remedy:
            raise UserError(f"reference: {name} must give uint8 tensors [C, H, W], but its image {number} is {given}; {remedy}")
        if x.shape != images[0].shape:
            raise UserError(
                f"reference: {name} must give images of one size, but its image {number} is {list(x.shape)} and image 0"
                f" {list(images[0].shape)}; resize them to one size"
            )


def describe_item(x: Any) -> tuple[str, str]:
    """(What an item of a data set is, how to convert it to a uint8 tensor `[C, H, W]`; "" if it is one)."""
    if isinstance(x, Image.Image):
        return "a PIL image", "give the data set transform=torchvision.transforms.PILToTensor()"
    if isinstance(x, np.ndarray):
        last = x.ndim == 3 and x.shape[2] in (1, 3) and x.shape[0] not in (1, 3)
        return f"a NumPy array, {x.dtype} {list(x.shape)}", f"convert it{bytes_first(x.dtype)}: torch.from_numpy(x){LAST_3 if last else ''}"
    if not isinstance(x, Tensor):
        return f"of type {type(x).__name__}", "write a data set whose items are (image, label)"
    given = f"a tensor, {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    if x.dtype != torch.uint8:
        return given, "use torchvision.transforms.PILToTensor() instead of ToTensor(), or convert it to 0..255 and uint8"
    if x.dim() == 3 and x.shape[0] in (1, 3):
        return given, ""
    if x.dim() == 3 and x.shape[2] in (1, 3):
        return given, f"convert it: x{LAST_3}"
    return given, "convert it to 1 or 3 channels" if x.dim() == 3 else "add the channels: x[None]" if x.dim() == 2 else "convert it"


def refuse_array(argument: str, x: Any) -> None:
    """Refuse a NumPy array of images, whose axes nobody knows, with the way to convert it.

    Raises:
        UserError: names the argument, its type and shape, and the conversion.
    """
    if isinstance(x, np.ndarray):
        last = x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3)
        raise UserError(
            f"{argument}: is a NumPy array, {x.dtype} {list(x.shape)}; pass a uint8 tensor [N, C, H, W]{bytes_first(x.dtype)}:"
            f" torch.from_numpy(x){LAST_4 if last else ''}"
        )


def bytes_first(dtype: np.dtype) -> str:
    """What to do first with an array that is not uint8; "" for uint8."""
    return "" if dtype == np.uint8 else " (values 0..255, as uint8)"


def count_labels(items: Sequence[Any], names: Any) -> tuple[int, ...]:
    """Images per class of a data set of (image, label); empty if the labels are not numbers of classes.

    Args:
        items: of the data set.
        names: its `classes`, as torchvision's data sets have them; one without an image counts too.
    """
    try:
        labels = [index(item[1]) for item in items if isinstance(item, (tuple, list)) and len(item) > 1]
    except TypeError:  # not whole numbers
        return ()
    if len(labels) < len(items) or min(labels) < 0 or max(labels) >= MOST_CLASSES:
        return ()
    return tuple(np.bincount(labels, minlength=len(names) if isinstance(names, (list, tuple)) else 0).tolist())


def load_eval_config(overrides: Sequence[str], what: str) -> Config:
    """Load the defaults of `eval` with overrides, for scoring without a run; all of a reference's images are used.

    Args:
        overrides: `eval.key=value`.
        what: what is scored, for messages.

    Raises:
        UserError: an override of another section.
    """
    for override in overrides:
        if not override.startswith("eval."):
            raise UserError(f"{override}: {what} only take overrides of eval, since there is no run; remove it")
    chosen = any(text.startswith(("eval.reference_samples=", "eval.protocol=")) for text in overrides)
    return load(None, [*([] if chosen else ["eval.reference_samples=null"]), *overrides])
